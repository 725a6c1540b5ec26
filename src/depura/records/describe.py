"""What an object is, in JSON: for the header of a run, which decides whether two runs are of one study.

Objects are called by the names of `depura.records.names`, which do not say in which file they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depura.records.names import record_name

NO_PART_OF_RECORDS = ("analysis", "cli", "planning", "reports", "training")
"""Packages that change no record."""


ADDED_LATER = "added later"
"""In the metadata of a field that is described only where it differs from its default."""


def describe(value: Any) -> Any:
    """Describe a value by its public configuration.

    Dataclasses and depura's own composition modules are opened up; other modules are named and their weights hashed;
    functions are named. No memory address, path or time gets in.

    Args:
        value: anything that a study is made of.

    Returns:
        A JSON value.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return {"type": "Tensor", "shape": list(value.shape), "dtype": str(value.dtype), "sha256": _digest([value])}
    if isinstance(value, nn.Module):
        return _module(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "type": record_name(type(value)),
            **{f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if not _omitted(value, f)},
        }
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, Sequence):
        return [describe(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, partial):
        return {"type": "partial", "function": describe(value.func), "keywords": describe(value.keywords)}  # pyright: ignore[reportUnknownMemberType]
    if callable(value) and hasattr(value, "__qualname__"):
        return record_name(value)
    return {"type": record_name(type(value)), **{k: describe(v) for k, v in sorted(vars(value).items()) if k[0] != "_"}}


def added_later(default: Any) -> Any:
    """A field with a default, of a dataclass that records have described without it: described where it is another.

    Args:
        default: what the class did before it had the field; compared by `==`.

    Returns:
        What `dataclasses.field` gives.
    """
    return dataclasses.field(default=default, metadata={ADDED_LATER: True})


def _omitted(value: Any, its: dataclasses.Field[Any]) -> bool:
    return ADDED_LATER in its.metadata and getattr(value, its.name) == its.default


def weights_sha256(module: nn.Module) -> str:
    """Digest of all parameters and buffers of a module, with their names."""
    state = module.state_dict()
    digest = hashlib.sha256("\n".join(sorted(state)).encode())
    digest.update(_digest([state[key] for key in sorted(state)]).encode())
    return digest.hexdigest()


@cache
def source_sha256(kind: Any) -> str:
    """Digest of the source file of a class or function; empty where there is none."""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_text(encoding="utf-8").encode()).hexdigest()
    except (TypeError, OSError):
        return ""


@cache
def code_sha256() -> str:
    """Digest of the source files of depura that records depend on: what made a number, more exactly than a version."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name, file in sorted((f.relative_to(root).as_posix(), f) for f in root.rglob("*.py")):
        if name.partition("/")[0] not in NO_PART_OF_RECORDS:
            text = file.read_text(encoding="utf-8")  # as text: line ends may differ between systems
            digest.update(f"{name} {len(text)}\n{text}".encode())
    return digest.hexdigest()


def _module(module: nn.Module) -> Any:
    if isinstance(module, nn.ModuleList):
        return [describe(part) for part in module]
    origin = type(module).__module__
    if not origin.startswith("depura.") or ".networks." in origin:
        return {"type": record_name(type(module)), "weights_sha256": weights_sha256(module)}
    if hasattr(module, "record_settings"):
        settings: Any = module.record_settings
        return {"type": record_name(type(module)), **settings()}
    own = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
    parts = {**own, **dict(module.named_children()), **dict(module.named_buffers(recurse=False))}
    return {"type": record_name(type(module)), **{k: describe(parts[k]) for k in sorted(parts)}}


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()
