"""CIFAR-10 and CIFAR-100 as published: the Python version (pickles, read without running them) and the binary one.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the description on its page.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data import pickles
from depura.data.pictures import from_bytes
from depura.data.table import Table, no_parts, one_part

PIXELS = 3 * 32 * 32
ARCHIVES = (".tar.gz", ".tgz", ".tar")
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
"""As the archives call them."""

Contents = Mapping[str, Callable[[], bytes]]
"""Files by name, with how to read each."""

Parsed = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""(N, 3072) pixels and (N,) labels."""


class Label(NamedTuple):
    """One of the labels of an image.

    Attributes:
        name: as it is asked for, and as columns of Parquet files are called.
        key: in a Python batch.
        at: which byte of a binary record.
        n: how many classes.
        names: where their names are: a file, and the key in it where it is a pickle.
    """

    name: str
    key: str
    at: int
    n: int
    names: tuple[str, str]


class Layout(NamedTuple):
    """One published version.

    Attributes:
        name: of the data set.
        parts: names of files by part.
        labels: what an image may be labelled with, the usual one first.
        label_bytes: before each image of a binary file; 0 for pickles.
    """

    name: str
    parts: dict[str, tuple[str, ...]]
    labels: tuple[Label, ...]
    label_bytes: int

    @property
    def files(self) -> set[str]:
        """Names of all batches."""
        return {name for names in self.parts.values() for name in names}


_TRAIN10 = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = (
    Layout(
        "cifar10",
        {"train": _TRAIN10, "test": ("test_batch",)},
        (Label("label", "labels", 0, 10, ("batches.meta", "label_names")),),
        0,
    ),
    Layout(
        "cifar10",
        {"train": tuple(f"{name}.bin" for name in _TRAIN10), "test": ("test_batch.bin",)},
        (Label("label", "", 0, 10, ("batches.meta.txt", "")),),
        1,
    ),
    Layout(
        "cifar100",
        {"train": ("train",), "test": ("test",)},
        (
            Label("fine_label", "fine_labels", 1, 100, ("meta", "fine_label_names")),
            Label("coarse_label", "coarse_labels", 0, 20, ("meta", "coarse_label_names")),
        ),
        0,
    ),
    Layout(
        "cifar100",
        {"train": ("train.bin",), "test": ("test.bin",)},
        (
            Label("fine_label", "", 1, 100, ("fine_label_names.txt", "")),
            Label("coarse_label", "", 0, 20, ("coarse_label_names.txt", "")),
        ),
        2,
    ),
)


def layout_of(names: Sequence[str]) -> Layout | None:
    """The version that files of these names belong to, if any."""
    return next((layout for layout in LAYOUTS if layout.files & set(names)), None)


def table(path: Path, *, split: str | None, labels: str | None, where: str) -> Table | None:
    """A folder, an archive or one batch of CIFAR-10 or CIFAR-100.

    Args:
        path: of it.
        split: "train" or "test" of a folder or archive.
        labels: "fine_label" or "coarse_label" of CIFAR-100.
        where: who asks, for messages.

    Returns:
        The data set, or None where the path is something else.

    Raises:
        InputError: files are missing, damaged, or hold something else.
    """
    if path.name.endswith(ARCHIVES):
        contents, alone = _archive(path, where), False
    elif path.is_dir():
        contents, alone = {p.name: p.read_bytes for p in path.iterdir() if p.is_file()}, False
    else:
        contents, alone = {p.name: p.read_bytes for p in path.parent.iterdir() if p.is_file()}, True
    layout = layout_of([path.name] if alone else list(contents))
    if layout is None:
        return None
    if alone:
        no_parts(split, source=path, where=where)
        part, names = path.stem, (path.name,)
    else:
        present = [part for part, names in layout.parts.items() if set(names) & set(contents)]
        part = one_part(present, split, source=path, where=where)
        names = layout.parts[part]
    label = _label(layout, labels, path, where)
    missing = [name for name in names if name not in contents]
    if missing:
        _check.fail(where, f"all batches of the {part} part of {layout.name}", f"no {missing[0]} in {path}")
    folder = path.parent if alone else path
    batches = [_batch(contents[name](), layout, label, f"{folder / name}", where) for name in names]
    pixels = np.concatenate([batch[0] for batch in batches]).reshape(-1, 3, 32, 32)
    numbers = np.concatenate([batch[1] for batch in batches])

    def read(rows: Sequence[int]) -> Tensor:
        return from_bytes(pixels[list(rows)])

    classes = _class_names(contents, label, folder, where)
    return Table(f"{layout.name}-{part}", numbers, classes, np.arange(len(numbers)), read)


def _label(layout: Layout, asked: str | None, path: Path, where: str) -> Label:
    known = {label.name: label for label in layout.labels}
    if asked is not None and asked not in known:
        _check.fail(where, f"labels= one of {sorted(known)} of {path}", repr(asked))
    return layout.labels[0] if asked is None else known[asked]


def _batch(data: bytes, layout: Layout, label: Label, source: str, where: str) -> Parsed:
    pixels, labels = (
        _binary(data, layout.label_bytes, label, source, where)
        if layout.label_bytes
        else _python(data, label, source, where)
    )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= label.n:
        got = f"{labels.min()} to {labels.max()}" if len(labels) else "no image"
        _check.fail(where, f"images labelled 0 to {label.n - 1} in {source}", got)
    return pixels, labels


def _binary(data: bytes, label_bytes: int, label: Label, source: str, where: str) -> Parsed:
    record = label_bytes + PIXELS
    if len(data) % record:
        _check.fail(
            where,
            f"whole records of {record} bytes in {source}",
            f"{len(data)} bytes, {len(data) % record} more than {len(data) // record} records",
            "The file is truncated or of another data set.",
        )
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label.at].astype(np.int64)


def _python(data: bytes, label: Label, source: str, where: str) -> Parsed:
    batch = _dictionary(data, source, where)
    pixels, numbers = batch.get("data"), batch.get(label.key)
    if not isinstance(pixels, _Array) or type(numbers) is not list:
        _check.fail(where, f"an array data and a list {label.key} in {source}", f"{sorted(batch)}")
    numbers = cast("list[Any]", numbers)
    if not all(type(number) is int for number in numbers):
        _check.fail(where, f"whole numbers in {label.key} of {source}", "something else")
    array = pixels.array()
    if array is None or array.shape != (len(numbers), PIXELS):
        _check.fail(where, f"({len(numbers)}, {PIXELS}) bytes of pixels in {source}, as many as labels", f"{pixels}")
    try:
        return array, np.asarray(numbers, dtype=np.int64)
    except OverflowError:
        return _check.fail(where, f"class numbers in {label.key} of {source}", "one beyond 64 bits")


def _class_names(contents: Contents, label: Label, folder: Path, where: str) -> tuple[str, ...]:
    """As the data set names them; by number where the file of names is not there."""
    file, key = label.names
    if file not in contents:
        return tuple(str(i) for i in range(label.n))
    data, source = contents[file](), f"{folder / file}"
    names: list[Any] = _dictionary(data, source, where).get(key, []) if key else data.split()
    texts = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)
    if len(texts) != label.n:
        _check.fail(where, f"{label.n} names of classes in {source}", f"{len(texts)}")
    return texts


def _archive(path: Path, where: str) -> Contents:
    """The files of an archive, read from it without unpacking."""
    contents: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    contents[Path(member.name).name] = _constant(file.read())
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _check.InputError(
            f"{where}: expected a readable archive, got {path} ({error}). It may be truncated; check the file."
        ) from error
    return contents


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


class _Array:
    """What a pickle says of a numpy array; no code of numpy's sees it before it has been checked."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self._state = tuple(state)

    def array(self) -> NDArray[np.uint8] | None:
        """The array, if it is one of bytes in C order, with two dimensions and all its data."""
        match self._state:
            case (int(), (int() as n, int() as width), _Type(kind=b"u1" | "u1"), 0 | False, bytes() as data):
                return np.frombuffer(data, np.uint8).reshape(n, width) if n >= 0 and len(data) == n * width else None
            case _:
                return None

    def __repr__(self) -> str:
        match self._state:
            case (_, shape, _Type(kind=kind), _, data):
                held = f"{len(data)} bytes" if isinstance(data, bytes) else "no bytes"
                return f"an array of shape {shape} and type {kind} with {held}"
            case _:
                return "an array of an unknown kind"


class _Type:
    """What a pickle says of a numpy type."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields say nothing more of bytes."""


def _new_array(*_: Any) -> _Array:
    return _Array()


def _new_type(kind: Any, *_: Any) -> _Type:
    return _Type(kind)


def _latin1(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes into pickles that Python 2 can read."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("encoding of something else")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _new_array,
    ("numpy", "dtype"): _new_type,
    ("_codecs", "encode"): _latin1,
}


def _dictionary(data: bytes, source: str, where: str) -> dict[str, Any]:
    found = pickles.read(data, _ALLOWED, where=f"{where}: {source}", encoding="bytes")
    if type(found) is not dict:
        _check.fail(where, f"a pickled dict in {source}", type(found).__name__)
    items = cast("dict[Any, Any]", found)
    return {key.decode(errors="replace") if isinstance(key, bytes) else str(key): v for key, v in items.items()}
