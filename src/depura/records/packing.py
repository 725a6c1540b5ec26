"""Packing a run: the units of each row into one file, and back. It may be ended at any moment; no unit is lost.

A packed file is written, flushed to the disk and read back, every unit against its digest, before it takes its name.
Only then are the files of its units removed. Where a unit is in both places, they say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from depura import _atomic
from depura.records.arrays import Stored
from depura.records.directory import RecordError, RunDirectory
from depura.records.packs import Pack, write_pack


class Packed(NamedTuple):
    """What was made of the units of a row.

    Attributes:
        row: its name.
        units: in its file.
        before: bytes of the files that the units were in.
        after: bytes of the files that they are in now.
    """

    row: str
    units: int
    before: int
    after: int


def pack(run: RunDirectory) -> Iterator[Packed]:
    """Pack what is not packed yet, row by row; a row that is packed and has further units is packed anew.

    Args:
        run: complete or not; it can go on afterwards.

    Yields:
        What was made of a row that had something to pack.

    Raises:
        RecordError: a damaged unit, or files that are no units of this run; what was packed before them stays packed.
    """
    foreign = run.foreign()
    if foreign:
        raise RecordError(
            f"pack: expected only units of this run in {run.path}, got {foreign[0]}. Move what is foreign away."
        )
    rows: dict[str, list[str]] = {}
    for name, row in run.unit_rows.items():
        rows.setdefault(row, []).append(name)
    for row, names in rows.items():
        loose = [name for name in names if run.file(name).exists()]
        if loose:
            yield _packed(run, row, [name for name in names if run.has(name)], loose)


def _packed(run: RunDirectory, row: str, names: list[str], loose: list[str]) -> Packed:
    file = run.pack_file(row)
    temporary = _atomic.temporary_of(file)
    for left in file.parent.glob(f".{file.name}.*.partial"):  # of a process that was killed
        left.unlink(missing_ok=True)
    states = {name: run.file(name).stat() for name in loose}
    before = sum(state.st_size for state in states.values()) + (file.stat().st_size if file.exists() else 0)
    try:
        with _atomic.flushed(temporary) as written:
            write_pack(written, _stored(run, names))
        made = Pack(temporary)
        for name in names:
            run.read(name, within=made)
        _atomic.move(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    for name, state in states.items():
        now = run.file(name).stat()
        if (now.st_mtime_ns, now.st_ino) == (state.st_mtime_ns, state.st_ino):  # not written anew meanwhile
            run.file(name).unlink()
    _atomic.flush_folder(file.parent)
    return Packed(row, len(names), before, file.stat().st_size)


def _stored(run: RunDirectory, names: list[str]) -> Iterator[tuple[str, Stored]]:
    for name in names:
        run.read(name)  # whole, and of this run
        with run.stored(name) as stored:
            yield name, stored


def unpack(run: RunDirectory) -> Iterator[Packed]:
    """Give every packed unit a file of its own again, with the same contents.

    Args:
        run: the run.

    Yields:
        What was made of a packed row.

    Raises:
        RecordError: damaged units, after all others were taken out; the files that they are in stay. Or packed units
            that are none of this run.
    """
    foreign = run.foreign()
    if foreign:
        raise RecordError(
            f"pack --undo: expected only units of this run in {run.path}, got {foreign[0]}. Move what is foreign away."
        )
    broken: list[str] = []
    for row in dict.fromkeys(run.unit_rows.values()):
        found = run.packed(row)
        if found is None:
            continue
        file, damaged = run.pack_file(row), len(broken)
        before = file.stat().st_size
        for name in found:
            if not run.file(name).exists():
                try:
                    run.read(name)
                    with run.stored(name) as stored:
                        run.write(name, {key: stored[key] for key in stored.files})
                except RecordError as error:
                    broken.append(str(error))
        if len(broken) == damaged:
            file.unlink()
            _atomic.flush_folder(file.parent)
            yield Packed(row, len([*found]), before, sum(run.file(name).stat().st_size for name in found))
    if broken:
        raise RecordError(
            f"pack --undo: expected whole units, got {len(broken)} damaged: {broken[0]} All others have files of their "
            "own now."
        )
