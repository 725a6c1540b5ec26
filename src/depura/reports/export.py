"""A finished run as one table, a line for each image, attack and radius, in a CSV or a Parquet file."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depura import _check
from depura.analysis.results import Results
from depura.records.directory import RunDirectory
from depura.records.kinds import NOT_FINITE
from depura.records.schema import RowFacts
from depura.statistics.intervals import errors_of

Columns = dict[str, list[Any]]
"""Columns of equal length; None where there is no value."""

ENDINGS = (".csv", ".parquet")

COLUMNS = {
    "run": "name of the study",
    "row": "name of the attack's row",
    "kind": "what sort of attack",
    "method": "the one that is judged, where methods are compared",
    "mode": "gradient mode: how the attack differentiates what is judged",
    "eps": "radius",
    "image": "id of the image",
    "label": "its class, by number",
    "draws": "report draws",
    "errors": "wrong ones among them",
    "error_rate": "errors / draws",
    "not_finite": "draws whose prediction is not finite, counted as errors",
    "null_draws": "draws without an attack",
    "null_errors": "wrong ones among them",
    "random_errors": "of as many draws, under random corners of the ball; at the study's own radius only",
    "select_draws": "draws on which candidates were compared",
    "select_errors": "wrong ones of the chosen candidate",
    "select_margin": "its mean margin there",
    "margin": "mean margin over the report draws",
    "chosen": "number of the chosen candidate",
    "distance": "size of its perturbation, in the norm of the threat model",
    "rounded_draws": "draws on which the example was judged after rounding to 8 bits",
    "rounded_errors": "wrong ones among them",
    "gradients": "evaluations with a gradient that the attack spent on the image",
    "forwards": "evaluations without",
    "finished": "step after which the attack was content with the image; -1 for never",
    "zero_gradients": "share of gradients that were exactly zero; none of attacks without gradients",
    "predicted": "labels of the report draws with their counts, the most frequent first, as in 7:60 1:4",
}
"""Names of the columns, and what they hold."""


def run_columns(directory: RunDirectory) -> Columns:
    """All attacks of a finished run: the columns of `COLUMNS`, in the order of rows, radii and images.

    A `RecordError` where units are missing or damaged.
    """
    results = Results.read(directory)
    columns: Columns = {name: [] for name in COLUMNS}
    for row in results.all_rows:
        for eps in sorted(radius for name, radius in results.by_row if name == row.name):
            for name, values in _row_columns(results, row, eps).items():
                columns[name] += values
    return columns


def _row_columns(results: Results, row: RowFacts, eps: float) -> Columns:
    """The columns of one row at one radius; clean baselines do not depend on the radius, random corners do."""
    its, clean = results.of_row(row, eps), results.null_of(row)
    attacked, rounded = its.outcome(), its.outcome("rounded_predictions")
    n, draws = attacked.predictions.shape
    null, random = clean.outcome().first(n), clean.outcome("random_predictions").first(n)
    chosen, spent, errors = its.array("chosen"), its.array("spent"), errors_of(*attacked)
    zeros = its.array("zero_gradients").reshape(n, -1).mean(1) if its.has("zero_gradients") else None
    values: dict[str, Any] = {
        "run": results.header.name,
        "row": row.name,
        "kind": row.kind.value,
        "method": row.method,
        "mode": row.mode.value,
        "eps": eps,
        "image": its.array("ids"),
        "label": attacked.labels,
        "draws": draws,
        "errors": errors,
        "error_rate": errors / draws,
        "not_finite": (attacked.predictions == NOT_FINITE).sum(1),
        "null_draws": null.predictions.shape[1],
        "null_errors": errors_of(*null),
        "random_errors": errors_of(*random) if eps == results.eps else None,
        "select_draws": results.header.draws.select,
        "select_errors": its.array("select_errors")[np.arange(n), chosen],
        "select_margin": its.array("select_margins"),
        "margin": its.array("margins"),
        "chosen": chosen,
        "distance": its.array("distance"),
        "rounded_draws": rounded.predictions.shape[1],
        "rounded_errors": errors_of(*rounded),
        "gradients": spent[:, 0],
        "forwards": spent[:, 1],
        "finished": its.array("finished"),
        "zero_gradients": zeros,
        "predicted": np.array([_counts(labels) for labels in attacked.predictions], dtype=object),
    }
    return {name: v.tolist() if isinstance(v, np.ndarray) else [v] * n for name, v in values.items()}


def _counts(labels: NDArray[np.int64]) -> str:
    """Labels with their counts, the most frequent first, then by number."""
    found, counts = np.unique(labels, return_counts=True)
    return " ".join(f"{found[k]}:{counts[k]}" for k in np.lexsort((found, -counts)))


def file_bytes(columns: Columns, path: Path) -> bytes:
    """The bytes of a file.

    Args:
        columns: of equal length.
        path: whose ending says which format. In CSV what is None is empty, and numbers are written so that they can be
            read back exactly.

    Returns:
        The bytes.

    Raises:
        InputError: another ending, or Parquet without pyarrow (the extra "data").
    """
    if path.suffix.lower() not in ENDINGS:
        _check.fail("export", f"a file name ending in {' or '.join(ENDINGS)}", str(path))
    if path.suffix.lower() == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue().encode()
    try:
        arrow: Any = importlib.import_module("pyarrow")  # an optional extra, without types
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise _check.InputError(
            "export: expected pyarrow for a .parquet file, got an installation without it. "
            'Install it with pip install "depura[data]", or write a .csv file.'
        ) from error
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(columns), buffer)
    return buffer.getvalue()
