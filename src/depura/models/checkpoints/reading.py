"""Opening a checkpoint file of any of the usual formats. Nothing in a file is ever run: files that would have to be
are refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from depura import _check
from depura.data.pickles import UnpicklingError
from depura.models.checkpoints.modules import read_modules
from depura.models.weights import read_safetensors

SAFETENSORS = ".safetensors"

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save before version 1.6 begin."""

_NOT_WEIGHTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch it with git lfs pull."),
    (b"<!doctype html", "a web page", "Download the file itself; large files often need a confirmation."),
    (b"<html", "a web page", "Download the file itself; large files often need a confirmation."),
)


class Opened(NamedTuple):
    """What a file holds.

    Attributes:
        content: mappings, lists, numbers and tensors, as they were saved; for a pickled module (EDM), that.
        kind: how the file was written, in words.
        metadata: what a converted file says about itself; empty otherwise.
    """

    content: Any
    kind: str
    metadata: Mapping[str, Any]


def open_file(path: Path, *, where: str) -> Opened:
    """Read a file: safetensors, torch's zip and legacy formats, EDM's pickled modules.

    Args:
        path: the file.
        where: who asks, for messages.

    Returns:
        What it holds.

    Raises:
        InputError: not there, empty, truncated, no checkpoint, or one that would have to run code to be read.
    """
    if path.is_dir():
        _check.fail(where, "a checkpoint file", f"the folder {path}", "Name a file in it.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        _check.fail(where, "a readable checkpoint file", f"{path} ({error.strerror})", "Check the path.")
    if not head:
        _check.fail(where, "a checkpoint file", f"{path}, which is empty", "Download it again.")
    for start, what, advice in _NOT_WEIGHTS:
        if head.lstrip().lower().startswith(start):
            _check.fail(where, "a checkpoint file", f"{path}, which is {what}", advice)
    if path.suffix.lower() == SAFETENSORS:
        tensors, metadata = read_safetensors(path)
        return Opened(tensors, "safetensors", _own(metadata))
    if head.startswith((b"PK", _LEGACY_MAGIC)):
        kind = "torch.save" if head.startswith(b"PK") else "torch.save (legacy format)"
        return Opened(_load_torch(path, zipped=head.startswith(b"PK"), where=where), kind, {})
    if head.startswith(b"\x80"):
        return Opened(read_modules(path.read_bytes(), where=f"{where}: {path}"), "pickled modules", {})
    return _check.fail(
        where,
        "a file of torch.save, safetensors, or an EDM pickle",
        f"{path}, which begins with {head[:8]!r}",
        "Check that it is a checkpoint and whole.",
    )


def _own(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What `convert` wrote about a file."""
    try:
        found: Any = json.loads(metadata.get("depura", "{}"))
    except ValueError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _load_torch(path: Path, *, zipped: bool, where: str) -> Any:
    if zipped and not zipfile.is_zipfile(path):
        _damaged(path, where)
    try:
        with torch.serialization.safe_globals(_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        if "weights_only" not in str(error).lower() and "unsupported" not in str(error).lower():
            _damaged(path, where, error)
        raise _check.InputError(
            f"{where}: expected a file of tensors, numbers and texts, got {path}, which carries objects that only "
            f"running its code would restore ({_first(error)}). Nothing was run. Save its state_dict where its code is "
            "installed."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        _damaged(path, where, error)


def _damaged(path: Path, where: str, error: Exception | None = None) -> Any:
    reason = "" if error is None else f" ({_first(error)})"
    raise _check.InputError(
        f"{where}: expected a whole checkpoint file, got {path}, which is truncated or damaged{reason}. "
        "Download it again and compare its size."
    ) from error


def _first(error: Exception) -> str:
    """The first line of an error, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _numbers() -> list[Any]:
    """What numpy needs to restore a number (checkpoints keep accuracies as such); it can do nothing else."""
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
