"""Networks without memory for their weights, on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Built = TypeVar("Built")

_DRAWING = {"normal_", "uniform_"}


def on_meta(build: Callable[[], Built]) -> Built:
    """What a function builds, on the meta device: shapes and names without numbers.

    Initial weights are not drawn: on that device drawing means nothing, and the first normal draw loads half of torch.

    Args:
        build: makes modules.

    Returns:
        What it made.
    """
    with torch.device("meta"), _NoDraws():
        return build()


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are where initial weights would be drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if getattr(func, "__name__", "") not in _DRAWING:
            return func(*args, **given)
        return args[0] if args else given["tensor"]  # a tensor's method, or the function of torch.nn.init
