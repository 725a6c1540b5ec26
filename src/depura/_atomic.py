"""Writing a file in one move: it is there whole, or as it was before."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a temporary file beside the target and rename it.

    Args:
        path: the file; its folder is there.
        data: its contents.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_bytes(data)
    temporary.replace(path)
