"""Pictures in folders: one folder for each class, and CelebA-HQ with its table of attributes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from depura import _check
from depura.data.pictures import PICTURES, WORDS
from depura.data.table import LIKE_TEST, WHERE, Request, Table, stack_pictures

PARTS = ("train", *LIKE_TEST)
"""Names of folders that are parts of a data set, not classes."""

PARTITION = "list_eval_partition.txt"
PARTITIONS = ("train", "val", "test")
"""CelebA's parts 0, 1 and 2."""


def tree(request: Request) -> Table | None:
    """A folder of one folder for each class, or of parts (train, val, ...) that are such folders; None for others.

    Classes are numbered by the names of their folders, sorted, and pictures go by class and name, in all folders
    below. With ImageNet's folders (n01440764, ...) this is the usual order of its classes. Fails at a class without a
    picture.
    """
    path = request.path
    folders = _folders(path)
    if not folders:
        return None
    name = path.resolve().name
    if all(folder.name in PARTS for folder in folders):
        part = request.part_of([folder.name for folder in folders])
        folders = _folders(path / part)
        name = f"{name}-{part}"
        if not folders:
            _check.fail(WHERE, f"one folder for each class in {path / part}", "no folder")
    else:
        request.without_parts()
    files: list[Path] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        walked = sorted(os.walk(folder, followlinks=True))
        pictures = [Path(at) / n for at, _, names in walked for n in sorted(names) if n.lower().endswith(PICTURES)]
        if not pictures:
            _check.fail(WHERE, f"{WORDS} files in every class folder of {folder.parent}", f"none in {folder.name}")
        files += pictures
        labels += [number] * len(pictures)
    classes = tuple(folder.name for folder in folders)
    return _table(name, np.asarray(labels, dtype=np.int64), classes, np.arange(len(files)), files, request)


def attributes(request: Request) -> Table | None:
    """CelebA-HQ: pictures and a text file of attributes, as CelebA, CelebA-HQ and CelebAMask-HQ have it.

    The text file (a name with "attr" in it) holds the number of lines, the names of the attributes, and for each
    picture its name and 1 or -1 for each attribute. Pictures lie beside it or in one folder beside it; their order is
    that of their names, and they may have another ending than in the table. Class 1 is having the attribute. Where
    CelebA's list_eval_partition.txt lies beside the table there are the parts train, val and test. Ids are positions
    among all pictures. None where there is no such text file; fails where the files do not fit one another.
    """
    path, attribute = request.path, request.labels
    texts = [path] if path.suffix == ".txt" else sorted(path.glob("*attr*.txt")) if path.is_dir() else []
    if not texts:
        return None
    if len(texts) > 1:
        _check.fail(WHERE, f"one table of attributes in {path}", f"{[p.name for p in texts]}", "Name one of them.")
    text, folder = texts[0], texts[0].parent
    rows = _lines(text)
    if len(rows) < 2 or len(rows[0]) != 1 or not rows[0][0].isdecimal() or len(rows) != int(rows[0][0]) + 2:
        got = f"{len(rows)} lines" + (f", the first of which says {' '.join(rows[0])[:40]}" if rows else "")
        _check.fail(WHERE, f"the number of pictures, a line of names and a line for each picture in {text}", got)
    names, lines = rows[1], rows[2:]
    values = _by_picture(lines, len(names), {"1", "-1", "0"}, f"{len(names)} times 1 or -1", text)
    if attribute not in names:
        _check.fail(WHERE, f"labels= an attribute of {text}: {', '.join(names)}", repr(attribute))
    pictures = _pictures_of(folder)
    column = names.index(attribute)
    labels = np.asarray([row[column] == "1" for row in _of(pictures, values, text)], dtype=np.int64)
    name, ids = f"{folder.resolve().name}-{attribute}", np.arange(len(pictures))
    if (partition := folder / PARTITION).is_file():
        part = request.part_of(PARTITIONS)
        number = f"{PARTITIONS.index(part)}"
        parts = _by_picture(_lines(partition), 1, {"0", "1", "2"}, "0, 1 or 2", partition)
        ids = np.flatnonzero([row == [number] for row in _of(pictures, parts, partition)])
        name = f"{name}-{part}"
    else:
        request.without_parts()
    chosen = [pictures[i] for i in ids]
    return _table(name, labels[ids], (f"not {attribute}", attribute), ids, chosen, request)


def _table(
    name: str, labels: np.ndarray, classes: tuple[str, ...], ids: np.ndarray, files: Sequence[Path], request: Request
) -> Table:
    def read(rows: Sequence[int]) -> Tensor:
        return stack_pictures([(f"{files[r]}", files[r]) for r in rows], request.frame)

    return Table(name, labels, classes, ids, read)


def _by_picture(lines: list[list[str]], n: int, values: set[str], words: str, path: Path) -> dict[str, list[str]]:
    """Values of each picture, by its name without the ending."""
    wrong = next((line for line in lines if len(line) != n + 1 or not set(line[1:]) <= values), None)
    if wrong is not None:
        _check.fail(WHERE, f"a name and {words} a line in {path}", " ".join(wrong)[:60])
    table = {Path(line[0]).stem: line[1:] for line in lines}
    if len(table) < len(lines):
        _check.fail(WHERE, f"every picture once in {path}", f"{len(lines)} lines for {len(table)}")
    return table


def _of(pictures: Sequence[Path], table: dict[str, list[str]], path: Path) -> list[list[str]]:
    unknown = [picture for picture in pictures if picture.stem not in table]
    if unknown:
        _check.fail(WHERE, f"a line for every picture in {path}", f"none for {unknown[0]}")
    return [table[picture.stem] for picture in pictures]


def _lines(path: Path) -> list[list[str]]:
    """Words of the lines that have any."""
    try:
        return [words for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        return _check.fail(WHERE, "a readable text file", f"{path} ({getattr(error, 'strerror', 'not text')})")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _pictures_of(folder: Path) -> list[Path]:
    """Pictures in a folder, by name, else in the one folder below that has some."""
    held = [
        pictures
        for place in (folder, *_folders(folder))
        if (pictures := sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURES))
    ]
    if held and held[0][0].parent == folder:
        return held[0]
    if len(held) != 1:
        _check.fail(WHERE, f"{WORDS} files in {folder} or in one folder in it", f"them in {len(held)} folders")
    return held[0]
