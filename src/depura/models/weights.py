"""Weight files: safetensors only, which cannot carry code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from depura import _check


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file by name, and its metadata, if any; a damaged file is refused."""
    try:
        handle: Any = safe_open(path, framework="pt")
        with handle as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise _check.InputError(
            f"read_safetensors: expected a readable safetensors file, got {path} ({error}). Check the file."
        ) from error
