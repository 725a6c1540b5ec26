"""Parquet files of encoded pictures, as Hugging Face publishes CIFAR-10, CIFAR-100 and ImageNet."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data.pictures import Frame
from depura.data.table import Table, no_parts, one_part, stack_pictures

IMAGES = ("image", "img")
"""How columns of pictures are called."""

LABELS = ("label", "fine_label")
"""How columns of labels are called where none is asked for."""

_SHARD = re.compile(r"(?P<part>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?")


class _Group(NamedTuple):
    """Some rows that are stored together.

    Attributes:
        file: an open Parquet file.
        path: its.
        number: of the group in the file.
        first: row of the whole data set.
        before: rows of the file before it.
    """

    file: Any
    path: Path
    number: int
    first: int
    before: int


def table(path: Path, *, split: str | None, labels: str | None, frame: Frame, where: str) -> Table | None:
    """A Parquet file, or a folder of shards NAME-0000x-of-0000y.parquet, also one folder further down.

    The column `image` or `img` holds encoded pictures, as binary or as a struct with the field `bytes`.

    Args:
        path: of it.
        split: the NAME of the shards; default as `one_part` says.
        labels: the column of class numbers; default `label` or `fine_label`.
        frame: what is done to each picture.
        where: who asks, for messages.

    Returns:
        The data set, or None where the path is something else.

    Raises:
        InputError: shards or columns are missing, a file is damaged, or pyarrow is not installed.
    """
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet")) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() != ".parquet":
        return None
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        _check.fail(where, f"one folder of Parquet files in {path}", f"{[f.name for f in folders]}", "Name one.")
    if path.is_dir():
        parts = _parts(files)
        part = one_part(list(parts), split, source=path, where=where)
        files = _complete(parts[part], where)
    else:
        no_parts(split, source=path, where=where)
        part = path.stem
    return _table(files, f"{path.resolve().stem}-{part}" if path.is_dir() else part, labels, frame, where)


def _table(files: Sequence[Path], name: str, asked: str | None, frame: Frame, where: str) -> Table:
    parquet = _pyarrow(where)
    groups: list[_Group] = []
    numbers: list[NDArray[np.int64]] = []
    classes: tuple[str, ...] = ()
    column = ""
    first = 0
    for path in files:
        try:
            file = parquet.ParquetFile(path)
            column, label = _columns(file.schema_arrow, asked, path, where)
            found = file.read(columns=[label]).column(label)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            _damaged(path, error, where)
        numbers.append(_numbers(found, label, path, where))
        classes = classes or _class_names(file.schema_arrow, label)
        before = 0
        for g in range(file.metadata.num_row_groups):
            groups.append(_Group(file, path, g, first, before))
            before += int(file.metadata.row_group(g).num_rows)
            first += int(file.metadata.row_group(g).num_rows)
    values = np.concatenate(numbers)
    highest = int(values.max()) if len(values) else -1
    if classes and highest >= len(classes):
        _check.fail(where, f"labels 0 to {len(classes) - 1} in {files[0].parent}", f"{highest}")

    def read(rows: Sequence[int]) -> Tensor:
        return stack_pictures(_pictures(groups, column, rows, where), frame, where=where)

    names = classes or tuple(str(i) for i in range(highest + 1))
    return Table(name, values, names, np.arange(len(values)), read)


def _pictures(
    groups: Sequence[_Group], column: str, rows: Sequence[int], where: str
) -> list[tuple[str, Callable[[], bytes]]]:
    """Encoded pictures of some rows; of each group the asked ones only, and no group without one."""
    order = np.asarray(rows)
    owner = np.searchsorted([group.first for group in groups], order, side="right") - 1
    encoded: dict[int, tuple[str, Callable[[], bytes]]] = {}
    for g in np.unique(owner):
        group = groups[int(g)]
        asked = order[owner == g]
        try:
            cells = group.file.read_row_group(group.number, columns=[column]).column(column)
            values: list[Any] = cells.take((asked - group.first).tolist()).to_pylist()
        except (OSError, ValueError) as error:
            _damaged(group.path, error, where)
        for row, value in zip(asked.tolist(), values, strict=True):
            source = f"row {row - group.first + group.before} of {group.path}"
            data: Any = cast("dict[str, Any]", value).get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                _check.fail(where, f"an encoded picture in {source}", "none", "Files beside the table are not read.")
            encoded[row] = (source, _constant(data))
    return [encoded[int(row)] for row in order]


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _columns(schema: Any, asked: str | None, path: Path, where: str) -> tuple[str, str]:
    """Names of the columns of pictures and labels."""
    names: list[str] = list(schema.names)
    column = next((name for name in IMAGES if name in names), None)
    label = next((name for name in ((asked,) if asked is not None else LABELS) if name in names), None)
    if column is None or label is None:
        missing = f"a column {' or '.join(IMAGES)}" if column is None else f"a column {asked or ' or '.join(LABELS)}"
        _check.fail(where, f"{missing} in {path}", f"{names}", "Name the column of class numbers with labels=.")
    return column, label


def _numbers(found: Any, label: str, path: Path, where: str) -> NDArray[np.int64]:
    values = found.to_numpy() if not found.null_count else np.array([None])
    if values.dtype.kind not in "iu" or (len(values) and int(values.min()) < 0):
        got = "numbers below 0 (unlabelled images)" if values.dtype.kind in "iu" else "empty or other values"
        _check.fail(where, f"class numbers in the column {label} of {path}", got)
    return values.astype(np.int64)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """As the table says, where it does."""
    try:
        metadata: dict[bytes, bytes] = schema.metadata or {}
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _parts(files: Sequence[Path]) -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        parts.setdefault(shard["part"] if shard else file.stem, []).append(file)
    return parts


def _complete(files: Sequence[Path], where: str) -> list[Path]:
    """Shards in order, all there."""
    numbered = [(_SHARD.fullmatch(file.stem), file) for file in files]
    shards = {int(shard["number"]): file for shard, file in numbered if shard}
    totals = {int(shard["total"]) for shard, _ in numbered if shard}
    if not shards:
        return list(files)
    if len(totals) > 1 or len(files) != len(shards):
        _check.fail(where, f"shards of one division in {files[0].parent}", f"{[file.name for file in files]}")
    missing = sorted(set(range(next(iter(totals)))) - set(shards))
    if missing or len(shards) > next(iter(totals)):
        _check.fail(where, f"all {next(iter(totals))} shards beside {files[0]}", f"no number {missing}", "Fetch it.")
    return [shards[i] for i in sorted(shards)]


def _damaged(path: Path, error: Exception, where: str) -> NoReturn:
    raise _check.InputError(
        f"{where}: expected a readable Parquet file, got {path} ({str(error).splitlines()[0] if str(error) else ''}). "
        "It may be truncated; check the file."
    ) from error


def _pyarrow(where: str) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")  # an optional extra, without types
    except ImportError as error:
        raise _check.InputError(
            f"{where}: expected pyarrow for Parquet files, got an installation without it. "
            "Install depura with its extra: pip install 'depura[data]'."
        ) from error
