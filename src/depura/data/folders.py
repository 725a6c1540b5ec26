"""Pictures in folders: one folder for each class, and CelebA-HQ with its table of attributes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depura import _check
from depura.data.pictures import PICTURES, Frame
from depura.data.table import LIKE_TEST, Table, no_parts, one_part, stack_pictures

PARTS = ("train", *LIKE_TEST)
"""Names of folders that are parts of a data set, not classes."""

PARTITION = "list_eval_partition.txt"
PARTITIONS = ("train", "val", "test")
"""CelebA's parts 0, 1 and 2."""


def tree(path: Path, *, split: str | None, frame: Frame, where: str) -> Table | None:
    """A folder of one folder for each class, or of parts (train, val, ...) that are such folders.

    Classes are numbered by the names of their folders, sorted, and pictures go by class and name, in all folders
    below. With ImageNet's folders (n01440764, ...) this is the usual order of its classes.

    Args:
        path: of it.
        split: the part, if there are parts; default as `one_part` says.
        frame: what is done to each picture.
        where: who asks, for messages.

    Returns:
        The data set, or None where the folder has no folders.

    Raises:
        InputError: a class without a picture.
    """
    folders = sorted((p for p in path.iterdir() if p.is_dir()), key=lambda p: p.name) if path.is_dir() else []
    if not folders:
        return None
    name = path.resolve().name
    if all(folder.name in PARTS for folder in folders):
        part = one_part([folder.name for folder in folders], split, source=path, where=where)
        folders = sorted((p for p in (path / part).iterdir() if p.is_dir()), key=lambda p: p.name)
        name = f"{name}-{part}"
        if not folders:
            _check.fail(where, f"one folder for each class in {path / part}", "no folder")
    else:
        no_parts(split, source=path, where=where)
    files: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        found = _pictures_below(folder)
        if not found:
            _check.fail(where, f"PNG or JPEG files in every class folder of {folder.parent}", f"none in {folder.name}")
        files += found
        labels += [number] * len(found)

    def read(rows: Sequence[int]) -> Tensor:
        return stack_pictures([(f"{files[r]}", files[r].read_bytes) for r in rows], frame, where=where)

    classes = tuple(folder.name for folder in folders)
    return Table(name, np.asarray(labels, dtype=np.int64), classes, np.arange(len(files)), read)


def attributes(path: Path, *, split: str | None, labels: str | None, frame: Frame, where: str) -> Table | None:
    """CelebA-HQ: pictures and a text file of attributes, as CelebA, CelebA-HQ and CelebAMask-HQ have it.

    The text file (a name with "attr" in it) holds the number of lines, the names of the attributes, and for each
    picture its name and 1 or -1 for each attribute. Pictures lie beside it or in one folder beside it; their order is
    that of their names, and they may have another ending than in the table. Class 1 is having the attribute. Where
    CelebA's list_eval_partition.txt lies beside the table there are the parts train, val and test.

    Args:
        path: the folder of the text file, or the file.
        split: the part; default as `one_part` says.
        labels: the attribute.
        frame: what is done to each picture.
        where: who asks, for messages.

    Returns:
        The data set, ids being positions among all pictures; None where there is no such text file.

    Raises:
        InputError: no attribute was named, or the files do not fit one another.
    """
    found = [path] if path.suffix == ".txt" else sorted(path.glob("*attr*.txt")) if path.is_dir() else []
    if not found:
        return None
    if len(found) > 1:
        _check.fail(where, f"one table of attributes in {path}", f"{[p.name for p in found]}", "Name one of them.")
    names, lines = _attribute_table(found[0], where)
    if labels not in names:
        _check.fail(where, f"labels= an attribute of {found[0]}: {', '.join(names)}", repr(labels))
    pictures = _pictures_of(found[0].parent, where)
    unknown = [picture for picture in pictures if picture.stem not in lines]
    if unknown:
        _check.fail(where, f"a line for every picture in {found[0]}", f"none for {unknown[0]}")
    values = np.asarray([int(lines[p.stem][names.index(labels)] == "1") for p in pictures], dtype=np.int64)
    ids = np.arange(len(pictures))
    name = f"{found[0].parent.resolve().name}-{labels}"
    partition = found[0].parent / PARTITION
    if partition.is_file():
        part = one_part(PARTITIONS, split, source=partition, where=where)
        ids = _partition(partition, pictures, PARTITIONS.index(part), where)
        name = f"{name}-{part}"
    else:
        no_parts(split, source=found[0], where=where)

    def read(rows: Sequence[int]) -> Tensor:
        chosen = [pictures[int(ids[r])] for r in rows]
        return stack_pictures([(f"{p}", p.read_bytes) for p in chosen], frame, where=where)

    return Table(name, values[ids], (f"not {labels}", labels), ids, read)


def _attribute_table(path: Path, where: str) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the attributes, and their values by name of picture without its ending."""
    rows = _lines(path, where)
    if len(rows) < 2 or len(rows[0]) != 1 or not rows[0][0].isdecimal() or len(rows) != int(rows[0][0]) + 2:
        got = f"{len(rows)} lines" + (f", the first of which says {' '.join(rows[0])[:40]}" if rows else "")
        _check.fail(where, f"the number of pictures, a line of names and a line for each picture in {path}", got)
    names, lines = rows[1], rows[2:]
    wrong = next((r for r in lines if len(r) != len(names) + 1 or not set(r[1:]) <= {"1", "-1", "0"}), None)
    if wrong is not None:
        _check.fail(where, f"a name and {len(names)} times 1 or -1 a line in {path}", " ".join(wrong)[:60])
    table = {Path(line[0]).stem: line[1:] for line in lines}
    if len(table) < len(lines):
        _check.fail(where, f"every picture once in {path}", f"{len(lines)} lines for {len(table)}")
    return names, table


def _partition(path: Path, pictures: Sequence[Path], number: int, where: str) -> NDArray[np.int64]:
    rows = _lines(path, where)
    wrong = next((row for row in rows if len(row) != 2 or row[1] not in ("0", "1", "2")), None)
    if wrong is not None:
        _check.fail(where, f"a name and 0, 1 or 2 a line in {path}", " ".join(wrong)[:60])
    parts = {Path(name).stem: int(part) for name, part in rows}
    unknown = [picture for picture in pictures if picture.stem not in parts]
    if unknown:
        _check.fail(where, f"a line for every picture in {path}", f"none for {unknown[0]}")
    return np.flatnonzero(np.asarray([parts[picture.stem] for picture in pictures]) == number)


def _lines(path: Path, where: str) -> list[list[str]]:
    """Words of the lines that have any."""
    try:
        return [words for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        return _check.fail(where, "a readable text file", f"{path} ({getattr(error, 'strerror', 'not text')})")


def _pictures_of(folder: Path, where: str) -> list[Path]:
    """Pictures in a folder, else in the one folder below that has some."""
    here = _pictures_in(folder)
    if here:
        return here
    below = [found for sub in sorted(folder.iterdir()) if sub.is_dir() and (found := _pictures_in(sub))]
    if len(below) != 1:
        _check.fail(where, f"PNG or JPEG files in {folder} or in one folder in it", f"them in {len(below)} folders")
    return below[0]


def _pictures_in(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES), key=lambda p: p.name)


def _pictures_below(folder: Path) -> list[Path]:
    """Pictures in a folder and all below, by folder and name."""
    walked = sorted(os.walk(folder, followlinks=True))
    return [Path(at) / name for at, _, names in walked for name in sorted(names) if name.lower().endswith(PICTURES)]
