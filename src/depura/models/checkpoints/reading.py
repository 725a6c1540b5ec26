"""The weights in a checkpoint file of any of the usual formats, however they are wrapped.

Nothing in a file is ever run: files that would have to be are refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from depura import _check
from depura.data.pickles import UnpicklingError
from depura.models.checkpoints.modules import PickledModule, read_modules
from depura.models.weights import read_safetensors

ENTRIES = ("ema", "params_ema", "state_dict", "model_state_dict", "model", "net", "network", "params")
"""Names under which files keep a network, averaged weights first."""

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch.save before version 1.6 begin."""

_NOT_WEIGHTS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch it with git lfs pull."),
    (b"<!doctype html", "a web page", "Download the file itself; large files often need a confirmation."),
    (b"<html", "a web page", "Download the file itself; large files often need a confirmation."),
)


class Weights(NamedTuple):
    """The weights of one network.

    Attributes:
        tensors: by name, as in the file.
        entry: where they were, in words.
        kind: how the file was written, in words.
        average: exponential moving averages of the parameters in their order, without names; empty if there are none.
        module: class of a pickled module, else empty.
        settings: what the file says of the network (a pickled module's, or a converted file's); else empty.
    """

    tensors: Mapping[str, Tensor]
    entry: str
    kind: str = ""
    average: Sequence[Tensor] = ()
    module: str = ""
    settings: Mapping[str, Any] = {}


def read_weights(path: Path, *, where: str) -> Weights:
    """The averaged weights where a file has them, else the others. `where` asks, for messages.

    Files are safetensors, of torch's zip and legacy formats, or EDM's pickled modules. Refused are those that are not
    there, empty, truncated, no checkpoint, or would have to run code to be read, the state of an optimizer, and what is
    no network.
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
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return Weights(tensors, "the whole file", "safetensors", settings=_own(metadata))
    if head.startswith((b"PK", _LEGACY_MAGIC)):
        zipped = head.startswith(b"PK")
        kind = "torch.save" if zipped else "torch.save (legacy format)"
        return _unwrapped(_load_torch(path, zipped=zipped, where=where), path, where)._replace(kind=kind)
    if head.startswith(b"\x80"):
        content = read_modules(path.read_bytes(), where=f"{where}: {path}")
        return _unwrapped(content, path, where)._replace(kind="pickled modules")
    return _check.fail(
        where,
        "a file of torch.save, safetensors, or an EDM pickle",
        f"{path}, which begins with {head[:8]!r}",
        "Check that it is a checkpoint and whole.",
    )


def _own(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What `convert` and `depura train` wrote about a file."""
    try:
        own: Any = json.loads(metadata.get("depura", "{}"))
    except ValueError:
        return {}
    return cast(dict[str, Any], own) if isinstance(own, dict) else {}


def _unwrapped(content: Any, path: Path, where: str) -> Weights:
    """The weights among mappings, lists, numbers and tensors, or of a pickled module."""
    if isinstance(content, PickledModule):
        return Weights(content.tensors, f"the pickled {content.name}", module=content.name, settings=content.settings)
    if isinstance(content, list | tuple):
        return _listed(cast(Sequence[Any], content), path, where)
    if not isinstance(content, Mapping):
        return _check.fail(where, "a checkpoint", f"{path}, which holds a {type(content).__name__}")
    entries = cast(Mapping[Any, Any], content)
    if tensors := _tensors(entries):
        return Weights(tensors, "the whole file")
    if {"state", "param_groups"} <= set(entries):
        _check.fail(
            where,
            "a network's weights",
            f"{path}, which is the state of an optimizer",
            "Take the file of the model (or its EMA) that lies beside it.",
        )
    average = _shadow(entries.get("ema"))
    if average and (tensors := _tensors(entries.get("model"))):
        return Weights(tensors, "ema (moving averages), with the names of model", average=average)
    for name in ENTRIES:
        inner = entries.get(name)
        if isinstance(inner, PickledModule):
            return Weights(inner.tensors, name, module=inner.name, settings=inner.settings)
        if tensors := _tensors(inner):
            return Weights(tensors, name)
    names = [str(name) for name in entries]
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "no entries"
    wanted = f"a network's tensors, alone or under one of {', '.join(ENTRIES)}"
    return _check.fail(where, wanted, f"{path}, which has {listed}", "Save the state_dict alone.")


def _listed(items: Sequence[Any], path: Path, where: str) -> Weights:
    """[model, optimizer, epoch, step] or [..., ema] of Ho et al.'s code in PyTorch."""
    networks = [tensors for item in items if (tensors := _tensors(item))]
    if not networks:
        _check.fail(where, "a checkpoint", f"{path}, a list without a network's tensors")
    bare = [{name.removeprefix("module.") for name in tensors} for tensors in networks]
    if len(networks) > 1 and bare[-1] == bare[0]:
        return Weights(networks[-1], "the last mapping of a list (its moving averages)")
    return Weights(networks[0], "the first mapping of a list")


def _tensors(value: Any) -> dict[str, Tensor]:
    """A state dict, or nothing."""
    if not isinstance(value, Mapping):
        return {}
    items = cast(Mapping[Any, Any], value)
    if not items or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in items.items()):
        return {}
    return {str(name): cast(Tensor, tensor) for name, tensor in items.items()}


def _shadow(value: Any) -> list[Tensor]:
    """The list without names in which score_sde keeps moving averages."""
    if not isinstance(value, Mapping):
        return []
    listed = cast(Mapping[str, Any], value).get("shadow_params", [])
    return cast(list[Tensor], listed) if isinstance(listed, list) else []


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


def _damaged(path: Path, where: str, error: Exception | None = None) -> NoReturn:
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
