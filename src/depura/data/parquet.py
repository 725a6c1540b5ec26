"""Parquet files of encoded pictures, as Hugging Face publishes CIFAR-10, CIFAR-100 and ImageNet."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data.table import WHERE, Request, Table, stack_pictures

IMAGES = ("image", "img")
"""How columns of pictures are called."""

LABELS = ("label", "fine_label")
"""How columns of labels are called where none is asked for."""

_SHARD = re.compile(r"(?P<part>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?")


class _Group(NamedTuple):
    """Rows that are stored together: of which file, their number in it, the first one in the data set and the file."""

    path: Path
    file: Any
    number: int
    first: int
    in_file: int


def table(request: Request) -> Table | None:
    """A Parquet file, or a folder of shards NAME-0000x-of-0000y.parquet, also one folder further down.

    The column `image` or `img` holds encoded pictures, as binary or as a struct with the field `bytes`. Parts are the
    NAMEs of the shards, labels the column of class numbers. None where the path is something else; fails where shards
    or columns are missing, a file is damaged, or pyarrow is not installed.
    """
    path = request.path
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() != ".parquet":
        return None
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        _check.fail(WHERE, f"one folder of Parquet files in {path}", f"{[f.name for f in folders]}", "Name one.")
    if not path.is_dir():
        request.without_parts()
        return _table(files, path.stem, request)
    parts: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        parts.setdefault(shard["part"] if shard else file.stem, []).append(file)
    part = request.part_of(list(parts))
    return _table(_complete(parts[part]), f"{path.resolve().stem}-{part}", request)


def _complete(files: Sequence[Path]) -> list[Path]:
    """Shards in order, all there."""
    shards = {int(shard["number"]): (int(shard["total"]), f) for f in files if (shard := _SHARD.fullmatch(f.stem))}
    if not shards:
        return list(files)
    totals = {total for total, _ in shards.values()}
    if len(totals) > 1 or len(files) != len(shards):
        _check.fail(WHERE, f"shards of one division in {files[0].parent}", f"{[file.name for file in files]}")
    (total,) = totals
    missing = sorted(set(range(total)) - set(shards))
    if missing or len(shards) > total:
        _check.fail(WHERE, f"all {total} shards beside {files[0]}", f"no number {missing}", "Fetch it.")
    return [shards[i][1] for i in sorted(shards)]


def _table(files: Sequence[Path], name: str, request: Request) -> Table:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")  # an optional extra, without types
    except ImportError as error:
        raise _check.InputError(
            f"{WHERE}: expected pyarrow for Parquet files, got an installation without it. "
            "Install depura with its extra: pip install 'depura[data]'."
        ) from error
    groups: list[_Group] = []
    numbers: list[NDArray[np.int64]] = []
    classes: tuple[str, ...] = ()
    column, first = "", 0
    for path in files:
        with _readable(path):
            file = parquet.ParquetFile(path)
            column, label = _columns(file.schema_arrow, request.labels, path)
            values = file.read(columns=[label]).column(label)
        numbers.append(_numbers(values, label, path))
        classes = classes or _class_names(file.schema_arrow, label)
        start = first
        for g in range(file.metadata.num_row_groups):
            groups.append(_Group(path, file, g, first, first - start))
            first += int(file.metadata.row_group(g).num_rows)
    labels = np.concatenate(numbers)
    highest = int(labels.max()) if len(labels) else -1
    if classes and highest >= len(classes):
        _check.fail(WHERE, f"labels 0 to {len(classes) - 1} in {files[0].parent}", f"{highest}")

    def read(rows: Sequence[int]) -> Tensor:
        return stack_pictures(_pictures(groups, column, rows), request.frame)

    return Table(name, labels, classes or tuple(map(str, range(highest + 1))), np.arange(len(labels)), read)


def _pictures(groups: Sequence[_Group], column: str, rows: Sequence[int]) -> list[tuple[str, bytes]]:
    """Encoded pictures of some rows; of each group the asked ones only, and no group without one."""
    order = np.asarray(rows)
    owner = np.searchsorted([group.first for group in groups], order, side="right") - 1
    encoded: dict[int, tuple[str, bytes]] = {}
    for g in np.unique(owner):
        group = groups[int(g)]
        at = order[owner == g] - group.first
        with _readable(group.path):
            cells = group.file.read_row_group(group.number, columns=[column]).column(column)
            values: list[Any] = cells.take(at.tolist()).to_pylist()
        for row, value in zip(at.tolist(), values, strict=True):
            source = f"row {row + group.in_file} of {group.path}"
            data: Any = cast("dict[str, Any]", value).get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                _check.fail(WHERE, f"an encoded picture in {source}", "none", "Files beside the table are not read.")
            encoded[row + group.first] = (source, data)
    return [encoded[int(row)] for row in order]


def _columns(schema: Any, asked: str | None, path: Path) -> tuple[str, str]:
    """Names of the columns of pictures and labels."""
    names: list[str] = list(schema.names)
    chosen: list[str] = []
    for known in (IMAGES, LABELS if asked is None else (asked,)):
        name = next((name for name in known if name in names), None)
        if name is None:
            advice = "Name the column of class numbers with labels=."
            _check.fail(WHERE, f"a column {' or '.join(known)} in {path}", f"{names}", advice)
        chosen.append(name)
    return chosen[0], chosen[1]


def _numbers(column: Any, label: str, path: Path) -> NDArray[np.int64]:
    values = column.to_numpy() if not column.null_count else np.array([None])
    if values.dtype.kind not in "iu" or (len(values) and int(values.min()) < 0):
        got = "numbers below 0 (unlabelled images)" if values.dtype.kind in "iu" else "empty or other values"
        _check.fail(WHERE, f"class numbers in the column {label} of {path}", got)
    return values.astype(np.int64)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """As the table says, where it does."""
    try:
        metadata: dict[bytes, bytes] = schema.metadata or {}
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


@contextmanager
def _readable(path: Path) -> Generator[None]:
    try:
        yield
    except _check.InputError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise _check.InputError(
            f"{WHERE}: expected a readable Parquet file, got {path} ({str(error).partition(chr(10))[0]}). "
            "It may be truncated; check the file."
        ) from error
