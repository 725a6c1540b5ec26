"""Writing a file in one move: it is there whole and on the disk, or as it was before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO


def write(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a temporary file in the same folder, which is made if need be, flush it to the disk and rename it.

    Without `replace` a file that is there is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    with flushed(temporary) as file:
        file.write(data)
    if replace:
        move(temporary, path)
    else:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
        flush_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """A file beside another one, of this process, that becomes the other one by `move`."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextlib.contextmanager
def flushed(path: Path) -> Generator[BinaryIO, None, None]:
    """A file to write, which is on the disk in the end."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def move(temporary: Path, path: Path) -> None:
    """Give a file the name of another one, which it replaces, and flush their folder."""
    temporary.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    with contextlib.suppress(OSError):  # not every system can open a folder or flush it
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
