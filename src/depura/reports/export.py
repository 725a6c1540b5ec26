"""A table as the bytes of a CSV or a Parquet file."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from typing import Any

from depura import _check
from depura.analysis.table import Table

ENDINGS = (".csv", ".parquet")


def encode(table: Table, path: Path) -> bytes:
    """The bytes of a file.

    Args:
        table: columns of equal length.
        path: whose ending says which format. In CSV what is None is empty, and numbers are written so that they can be
            read back exactly.

    Returns:
        The bytes.

    Raises:
        InputError: another ending, or Parquet without pyarrow (the extra "data").
    """
    if path.suffix.lower() not in ENDINGS:
        _check.fail("export", f"a file name ending in {' or '.join(ENDINGS)}", str(path))
    return _csv(table) if path.suffix.lower() == ".csv" else _parquet(table)


def _csv(table: Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue().encode()


def _parquet(table: Table) -> bytes:
    try:
        arrow: Any = importlib.import_module("pyarrow")  # an optional extra, without types
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise _check.InputError(
            "export: expected pyarrow for a .parquet file, got an installation without it. "
            'Install it with pip install "depura[data]", or write a .csv file.'
        ) from error
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(table), buffer)
    return buffer.getvalue()
