"""The activations of one layer of any network, as a module."""

from __future__ import annotations

import difflib
from contextvars import ContextVar
from typing import Any, cast

from torch import Tensor, nn

from depura import _check

_call: ContextVar[object] = ContextVar("_call")
"""Which call of a `Features` is running in this thread, the innermost one."""


class Features(nn.Module):
    """What a named submodule of a network gives, flattened image by image: (B, C, H, W) to (B, F).

    Nothing is cut from the graph, so it is as often differentiable as the network is. The network is shared, not
    copied, and left without hooks between calls; calls may be nested or run in several threads.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        """Set up.

        Args:
            network: any module that takes images.
            layer: name of a submodule that is called once per call of the network, as in `network.named_modules()`.

        Raises:
            InputError: there is no such submodule.
        """
        super().__init__()
        names: list[str] = [name for name, _ in cast("Any", network).named_modules() if name]
        if layer not in names:
            near = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names[:3]
            advice = f"Close to it: {', '.join(near)}." if near else ""
            _check.fail("Features", f"the name of a submodule of {type(network).__name__}", repr(layer), advice)
        self.network = network
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """Run the network and return what the layer gave.

        Args:
            images: (B, C, H, W).

        Returns:
            (B, F).

        Raises:
            InputError: the layer was not called exactly once, or gave something other than one row per image.
        """
        seen: list[Any] = []

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # A copy, because a layer that follows may work in place (ReLU(inplace=True)).
            if _call.get() is seen:
                seen.append(output.clone() if isinstance(output, Tensor) else output)

        handle = self.network.get_submodule(self.layer).register_forward_hook(hook)
        token = _call.set(seen)
        try:
            self.network(images)
        finally:
            _call.reset(token)
            handle.remove()
        if len(seen) != 1:
            _check.fail(
                "Features", f"one call of layer {self.layer!r} per call of the network", f"{len(seen)}", "Name another."
            )
        found = seen[0]
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            _check.fail(
                "Features", f"one row per image ({len(images)}) from layer {self.layer!r}", got, "Name another."
            )
        return found.flatten(1)
