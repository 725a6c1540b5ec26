"""Arrays of a unit: kept in the smallest whole-number type that holds them, read one by one when they are asked for."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SMALLER = tuple(np.dtype(name) for name in ("int8", "int16", "int32"))
"""Types that whole numbers are kept in where they fit, the smallest first. Signed: a label that is none is -1."""


KINDS = "biufcSU"
"""Kinds of arrays that are read: truth values, numbers and texts. None of them is an object."""


class Stored(Protocol):
    """The arrays of a unit by name, as they are kept, with its facts as "meta"."""

    @property
    def files(self) -> list[str]:
        """Their names."""
        ...

    def __getitem__(self, name: str, /) -> Array:
        """One array, read now."""
        ...


class NpzFile:
    """The arrays of an .npz file, read one by one."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        """The arrays of an archive that is open."""
        self._file = file

    @property
    def files(self) -> list[str]:
        """Their names."""
        return [name.removesuffix(".npy") for name in self._file.namelist()]

    def __getitem__(self, name: str) -> Array:
        """One array, read now; whatever damage leads to is raised."""
        return array_of(self._file.read(f"{name}.npy"))


def array_of(data: bytes) -> Array:
    """An array from the contents of an .npy file; a `ValueError` where it is none, or one of objects."""
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in KINDS:
        raise ValueError(f"expected an array of numbers or texts, got {array.dtype}")
    return array


def array_at(data: bytes, start: int, kind: str, shape: tuple[int, ...], *, order: str = "C") -> Array:
    """An array of its own from its bytes among others.

    Args:
        data: all bytes.
        start: of the array.
        kind: its type, as numpy's `dtype.str` names it.
        shape: its shape.
        order: of the bytes, "C" or "F".

    Returns:
        A copy.

    Raises:
        ValueError: a type that is not read, or bytes that are not there.
    """
    its = np.dtype(kind)
    if its.kind not in KINDS or min(start, *shape, 0) < 0 or start + math.prod(shape) * its.itemsize > len(data):
        raise ValueError(f"expected an array of {len(data)} bytes, got {kind} of shape {shape} at {start}")
    return np.array(np.ndarray(shape, its, data, start, order=cast("Any", order)))


class StoredArrays(Mapping[str, Array]):
    """Arrays by name that stay where they are until they are asked for; each time they are read anew."""

    def __init__(self, names: Sequence[str], read: Callable[[Sequence[str]], Sequence[Array]]) -> None:
        """Arrays of these names; `read` gives those of some names, in their order."""
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Array:
        """One array, read now; it is the caller's own."""
        return self.some([name])[0]

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of this name; nothing is read."""
        return name in self._names

    def some(self, names: Sequence[str]) -> Sequence[Array]:
        """Several arrays at once, which is faster than one after another; a `KeyError` for one that is not there."""
        for name in names:
            if name not in self._names:
                raise KeyError(name)
        return self._read(names)


def some_of(arrays: Mapping[str, Array], names: Sequence[str]) -> Sequence[Array]:
    """Several arrays of a unit, in the order of their names."""
    return arrays.some(names) if isinstance(arrays, StoredArrays) else [arrays[name] for name in names]


def narrowed(array: Array) -> Array:
    """The same whole numbers in the smallest signed type that holds them; anything else, and nothing, as it is."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize == 1 or array.size == 0:
        return array
    low, high = int(array.min()), int(array.max())
    for kind in SMALLER:
        if kind.itemsize < array.dtype.itemsize and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


def kept(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """What is written of some arrays, by name, and the types that were another before (see `restored`)."""
    smaller = {name: narrowed(array) for name, array in arrays.items()}
    dtypes: dict[str, np.dtype[Any]] = {name: array.dtype for name, array in arrays.items()}
    types: dict[str, str] = {name: kind.str for name, kind in dtypes.items() if kind != smaller[name].dtype}
    return smaller, types


def restored(array: Array, kind: str | None) -> Array:
    """An array with the type that it had before it was written; `kind` as `kept` gives it, None: the one it has.

    A `ValueError`: a type that is not one of wider whole numbers.
    """
    if kind is None:
        return array
    wide = np.dtype(kind)
    if wide.kind not in "iu" or array.dtype.kind != "i" or wide.itemsize <= array.dtype.itemsize:
        raise ValueError(f"expected a wider type of whole numbers than {array.dtype}, got {kind}")
    return array.astype(wide)
