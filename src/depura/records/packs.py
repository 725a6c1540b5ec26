"""Packed units: the units of one row in one file, `units/ROW.zip`, which are read as if each had a file of its own.

A zip archive of an index and of blocks. In `index.jsonl` each line says of one unit where its arrays are: the block,
the first byte in it, type, shape and order. A block, `000012.bin`, holds the bytes of one array of several units, one
after the other, compressed together (LZMA). Blocks are about a megabyte, so that one unit is had without reading the
others.
"""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from depura.records.arrays import KINDS, Array, Stored, array_at

INDEX = "index.jsonl"

BLOCK = 2**20
"""Bytes from which on a block is closed."""

CACHED = 2**25
"""Bytes of blocks that are kept for the next unit, at most, besides the last one."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""The date of all members: equal contents give equal bytes."""


class Pack:
    """A file of packed units, to read."""

    def __init__(self, path: Path) -> None:
        """Read the index; whatever a file that is none raises is raised."""
        self.path = path
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        with zipfile.ZipFile(path) as file:
            lines = file.read(INDEX).splitlines()
        self._lines: dict[str, bytes] = {str(json.loads(line)["unit"]): line for line in lines}

    def __contains__(self, unit: object) -> bool:
        """Whether there is a unit of this name."""
        return unit in self._lines

    def __iter__(self) -> Iterator[str]:
        """Names of the units, in the order of the index."""
        return iter(self._lines)

    def unit(self, name: str) -> PackedUnit:
        """The arrays of a unit."""
        return PackedUnit(self, json.loads(self._lines[name])["arrays"])

    def block(self, number: int) -> bytes:
        """A block, from memory where it was read before."""
        if number not in self._blocks:
            with zipfile.ZipFile(self.path) as file:
                data = file.read(_block_name(number))
            while self._blocks and sum(map(len, self._blocks.values())) + len(data) > CACHED:
                self._blocks.popitem(last=False)
            self._blocks[number] = data
        self._blocks.move_to_end(number)
        return self._blocks[number]


class PackedUnit:
    """The arrays of a packed unit by name, as a file of its own gives them."""

    def __init__(self, pack: Pack, where: Mapping[str, Any]) -> None:
        """The arrays that a line of the index names."""
        self._pack, self._where = pack, where

    @property
    def files(self) -> list[str]:
        """Their names."""
        return list(self._where)

    def __getitem__(self, name: str) -> Array:
        """One array; a `ValueError` where the index leads out of its block."""
        number, first, kind, shape, order = self._where[name]
        return array_at(self._pack.block(int(number)), int(first), str(kind), tuple(map(int, shape)), order=str(order))


def write_pack(file: BinaryIO, units: Iterable[tuple[str, Stored]]) -> None:
    """Write units, one after another: each array is read once, and some megabytes are held.

    Args:
        file: to write to.
        units: their names and arrays.

    Raises:
        ValueError: an array that is neither of numbers nor of texts.
    """
    lines: list[dict[str, Any]] = []
    open_blocks: dict[str, tuple[int, bytearray]] = {}
    numbers = iter(range(10**6))
    with zipfile.ZipFile(file, "w") as archive:
        for unit, stored in units:
            where = dict[str, Any]()
            for name in stored.files:
                array = stored[name]
                if array.dtype.kind not in KINDS:
                    raise ValueError(f"expected {name} of numbers or texts, got {array.dtype}")
                if name not in open_blocks:
                    open_blocks[name] = (next(numbers), bytearray())
                number, block = open_blocks[name]
                order = "F" if array.flags.fnc else "C"  # as numpy writes it into a file
                where[name] = (number, len(block), array.dtype.str, array.shape, order)
                block += array.tobytes(order)
                if len(block) >= BLOCK:
                    _add(archive, _block_name(number), bytes(block))
                    del open_blocks[name]
            lines.append({"unit": unit, "arrays": where})
        for number, block in open_blocks.values():
            _add(archive, _block_name(number), bytes(block))
        _add(archive, INDEX, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _DATE), data, compress_type=zipfile.ZIP_LZMA)


def _block_name(number: int) -> str:
    return f"{number:06d}.bin"
