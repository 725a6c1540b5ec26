"""Writing a file in one move: it is there whole and on the disk, or as it was before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a temporary file in the same folder, which is made if need be, flush it to the disk and rename it.

    Without `replace` a file that is there is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        temporary.replace(path)
    else:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    with contextlib.suppress(OSError):  # not every system can open a folder or flush it
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
