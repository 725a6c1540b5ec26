"""Modules that were pickled whole with their source code, as EDM does: their tensors and settings, not the code.

Such a file asks `torch_utils.persistence` to run the source that lies in it. Here the request is answered by a plain
record, so that what is read is data: the names of the classes, their settings, their tensors.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from depura import _check
from depura.data import pickles


class PickledModule(NamedTuple):
    """A module of such a file.

    Attributes:
        name: of its class.
        settings: keyword arguments of its constructor, as far as they are numbers, texts and lists of them.
        tensors: its state dict.
    """

    name: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class _Record:
    """In the place of an object of any class: its name and its attributes."""

    name = ""

    def __init__(self, *_: Any) -> None:
        self.attributes: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, Mapping) else {}


def read_modules(data: bytes, *, where: str) -> Any:
    """What such a file holds, with a `PickledModule` in the place of each module among its entries.

    A mapping {"ema": ..., "loss_fn": ..., ...} in EDM's files. Refused where it is damaged, or asks for anything else
    than such records, tensors and plain data.
    """
    content = pickles.read(data, _ALLOWED, where=where)
    if isinstance(content, Mapping):
        return {name: _finished(value) for name, value in cast(Mapping[Any, Any], content).items()}
    return _finished(content)


def _finished(value: Any) -> Any:
    if not isinstance(value, _Record):
        return value
    return PickledModule(value.name, _plain(value.attributes.get("_init_kwargs", {})), dict(_state(value, "")))


def _state(module: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, then children: the order of `state_dict`."""
    of = module.attributes
    passing = of.get("_non_persistent_buffers_set", set())
    for name, tensor in [*of.get("_parameters", {}).items(), *of.get("_buffers", {}).items()]:
        if isinstance(tensor, Tensor) and name not in passing:
            yield prefix + name, tensor
    for name, child in of.get("_modules", {}).items():
        if isinstance(child, _Record):
            yield from _state(child, f"{prefix}{name}.")


def _plain(settings: Any) -> dict[str, Any]:
    return {str(name): value for name, value in dict(settings).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in cast(Sequence[Any], value))
    return value is None or isinstance(value, bool | int | float | str)


def _persistent(pickled: Mapping[str, Any], *_: Any) -> _Record:
    """In the place of `_reconstruct_persistent_obj`: the source in it is left alone."""
    record = _Record()
    record.name = str(pickled["class_name"])
    record.__setstate__(pickled["state"])
    return record


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """In the place of `torch._utils._rebuild_tensor_v2`."""
    numbers = storage._untyped_storage  # of a typed storage, whose public name for it warns
    held = len(numbers) // torch.empty(0, dtype=storage.dtype).element_size()
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if offset < 0 or min((*size, *stride, 0)) < 0 or reach > held:
        _check.fail("read_modules", f"a tensor inside its storage of {held} numbers", f"one of shape {size}")
    return torch.empty(0, dtype=storage.dtype).set_(numbers, offset, size, stride)


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): dict,
    ("dnnlib", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch.nn.modules.container", "ModuleDict"): _Record,
    ("torch.nn.modules.container", "ModuleList"): _Record,
    ("torch.nn.modules.container", "Sequential"): _Record,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
"""Everything that such a file may ask for. Nothing here runs what is in the file."""
