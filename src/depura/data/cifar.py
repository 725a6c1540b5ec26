"""CIFAR-10 and CIFAR-100 as published: the Python version (pickles, read without running them) and the binary one.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the description on its page.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data import pickles
from depura.data.pictures import from_bytes
from depura.data.table import WHERE, Request, Table

PIXELS = 3 * 32 * 32
ARCHIVES = (".tar.gz", ".tgz", ".tar")
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")
"""As the archives call them."""


class Label(NamedTuple):
    """One of the labels of an image.

    Attributes:
        name: as it is asked for, and as columns of Parquet files are called.
        key: in a Python batch.
        at: which byte of a binary record.
        n: how many classes.
        names: key of their names in the Python version, stem of their file in the binary one.
    """

    name: str
    key: str
    at: int
    n: int
    names: str


class Layout(NamedTuple):
    """One published version.

    Attributes:
        name: of the data set.
        parts: stems of files by part.
        labels: what an image may be labelled with, the usual one first; a byte for each is in a binary record.
        meta: the file with the names of the classes in the Python version.
        ending: of the files: none, which are pickles, or ".bin".
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    labels: tuple[Label, ...]
    meta: str
    ending: str

    def files(self, part: str) -> tuple[str, ...]:
        """Names of the files of a part."""
        return tuple(stem + self.ending for stem in self.parts[part])

    def names_file(self, label: Label) -> str:
        """The file with the names of the classes."""
        if not self.ending:
            return self.meta
        return f"{self.meta}.txt" if len(self.labels) == 1 else f"{label.names}.txt"


LAYOUTS = tuple(
    Layout(name, parts, labels, meta, ending)
    for name, parts, labels, meta in (
        (
            "cifar10",
            {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
            (Label("label", "labels", 0, 10, "label_names"),),
            "batches.meta",
        ),
        (
            "cifar100",
            {"train": ("train",), "test": ("test",)},
            (
                Label("fine_label", "fine_labels", 1, 100, "fine_label_names"),
                Label("coarse_label", "coarse_labels", 0, 20, "coarse_label_names"),
            ),
            "meta",
        ),
    )
    for ending in ("", ".bin")
)


def layout_of(names: Iterable[str]) -> Layout | None:
    """The version that files of these names belong to, if any."""
    here = set(names)
    return next((layout for layout in LAYOUTS if any(here.intersection(layout.files(p)) for p in layout.parts)), None)


def table(request: Request) -> Table | None:
    """A folder, an archive or one batch of CIFAR-10 or CIFAR-100; None where the path is something else.

    Parts are "train" and "test" of a folder or archive; labels are "fine_label" and "coarse_label" of CIFAR-100.
    Fails where files are missing, damaged, or hold something else.
    """
    path = request.path
    single = path.is_file() and not path.name.endswith(ARCHIVES)
    folder = path.parent if single else path
    contents = {p.name: p for p in folder.iterdir() if p.is_file()} if folder.is_dir() else _archive(path)
    layout = layout_of([path.name] if single else contents)
    if layout is None:
        return None
    if single:
        request.without_parts()
        part, names = path.stem, (path.name,)
    else:
        part = request.part_of([part for part in layout.parts if set(layout.files(part)) & set(contents)])
        names = layout.files(part)
    known = {label.name: label for label in layout.labels}
    if request.labels is not None and request.labels not in known:
        _check.fail(WHERE, f"labels= one of {sorted(known)} of {path}", repr(request.labels))
    label = known[request.labels or layout.labels[0].name]
    missing = [name for name in names if name not in contents]
    if missing:
        _check.fail(WHERE, f"all batches of the {part} part of {layout.name}", f"no {missing[0]} in {path}")
    batches = [_batch(_bytes(contents[name]), layout, label, f"{folder / name}") for name in names]
    pixels = np.concatenate([batch[0] for batch in batches]).reshape(-1, 3, 32, 32)
    numbers = np.concatenate([batch[1] for batch in batches])

    def read(rows: Sequence[int]) -> Tensor:
        return from_bytes(pixels[list(rows)])

    classes = tuple(str(i) for i in range(label.n))
    if (file := layout.names_file(label)) in contents:
        classes = _class_names(_bytes(contents[file]), layout, label, f"{folder / file}")
    return Table(f"{layout.name}-{part}", numbers, classes, np.arange(len(numbers)), read, at_hand=True)


def _bytes(content: Path | bytes) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _archive(path: Path) -> dict[str, bytes]:
    """The files of an archive, read from it without unpacking; nothing of other files."""
    if not path.name.endswith(ARCHIVES):
        return {}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    contents[Path(member.name).name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _check.InputError(
            f"{WHERE}: expected a readable archive, got {path} ({error}). It may be truncated; check the file."
        ) from error
    return contents


def _batch(data: bytes, layout: Layout, label: Label, source: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(N, 3072) pixels and (N,) labels of one file."""
    if layout.ending:
        before = len(layout.labels)
        record = before + PIXELS
        if len(data) % record:
            _check.fail(
                WHERE,
                f"whole records of {record} bytes in {source}",
                f"{len(data)} bytes, {len(data) % record} more than {len(data) // record} records",
                "The file is truncated or of another data set.",
            )
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        pixels, labels = records[:, before:], records[:, label.at].astype(np.int64)
    else:
        pixels, labels = _python(data, label, source)
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= label.n:
        got = f"{labels.min()} to {labels.max()}" if len(labels) else "no image"
        _check.fail(WHERE, f"images labelled 0 to {label.n - 1} in {source}", got)
    return pixels, labels


def _python(data: bytes, label: Label, source: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _dictionary(data, source)
    pixels, numbers = batch.get("data"), batch.get(label.key)
    if not isinstance(pixels, _Array) or type(numbers) is not list:
        _check.fail(WHERE, f"an array data and a list {label.key} in {source}", f"{sorted(batch)}")
    numbers = cast("list[Any]", numbers)
    if not all(type(number) is int and abs(number) < 2**63 for number in numbers):
        _check.fail(WHERE, f"whole numbers of classes in {label.key} of {source}", "something else")
    array = pixels.array()
    if array is None or array.shape != (len(numbers), PIXELS):
        _check.fail(WHERE, f"({len(numbers)}, {PIXELS}) bytes of pixels in {source}, as many as labels", f"{pixels}")
    return array, np.asarray(numbers, dtype=np.int64)


def _class_names(data: bytes, layout: Layout, label: Label, source: str) -> tuple[str, ...]:
    names: list[Any] = data.split() if layout.ending else _dictionary(data, source).get(label.names, [])
    texts = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)
    if len(texts) != label.n:
        _check.fail(WHERE, f"{label.n} names of classes in {source}", f"{len(texts)}")
    return texts


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


def _dictionary(data: bytes, source: str) -> dict[str, Any]:
    found = pickles.read(data, _ALLOWED, where=f"{WHERE}: {source}", encoding="bytes")
    if type(found) is not dict:
        _check.fail(WHERE, f"a pickled dict in {source}", type(found).__name__)
    items = cast("dict[Any, Any]", found)
    return {key.decode(errors="replace") if isinstance(key, bytes) else str(key): v for key, v in items.items()}
