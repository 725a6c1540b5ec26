"""What a gradient audit looks at: a copy of the defence, its images and noise, and ways to differentiate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from depura.audit.derivatives import Precision, pull
from depura.defence import Defence
from depura.diffusion.schedules import Step
from depura.gradients import ChainState, GradientRoute, Transition
from depura.noise import Noise
from depura.purifiers.purifier import IterativePurifier, Purifier
from depura.records.kinds import GradientMode

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Subject:
    """What is audited, and where.

    Attributes:
        defence: a copy in the dtype of the audit, with a smooth rule and the exact route.
        images: (B, C, H, W) in [0, 1], B >= 2.
        inner: the same, pulled into the open interval so that differences stay in range.
        noise: one image id per row.
        weights: (B, K), the cotangent of the logits: the loss is their scalar product.
        precision: what counts as equal.
        route: the study's own route.
        seed: of directions.
    """

    defence: Defence
    images: Tensor
    inner: Tensor
    noise: Noise
    weights: Tensor
    precision: Precision
    route: GradientRoute | None
    seed: int

    def gradient(
        self, x: Tensor, noise: Noise, weights: Tensor, route: GradientRoute | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and gradient of their product with the weights, by the exact or another route."""
        model = self.defence if route is None else rerouted(self.defence, route)
        values: list[Tensor] = []

        def call(leaves: tuple[Tensor, ...]) -> tuple[Tensor]:
            logits = model(leaves[0], noise)
            values.append(logits.detach())
            return (logits,)

        (gradient,) = pull(call, (x,), (weights,))
        return values[0], gradient

    def is_connected(self) -> bool:
        """Whether the logits have a gradient path to the images, be the gradient zero or not."""
        with torch.enable_grad():
            return self.defence(self.inner.clone().requires_grad_(), self.noise).requires_grad


@dataclass(frozen=True)
class Checkpointed:
    """Exact, by torch's own checkpointing of each step: a second way to the gradient, independent of `StoredState`."""

    mode: ClassVar[GradientMode] = GradientMode.EXACT

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        for step in steps:
            state = cast(
                ChainState, checkpoint(advance, state, x_in, step, use_reentrant=False, preserve_rng_state=False)
            )
        return state

    def clamp(self, images: Tensor) -> Tensor:
        """The images within [0, 1]."""
        return images.clamp(0, 1)


def rerouted(defence: Defence, route: GradientRoute) -> Defence:
    """The same defence by another route. Unlike `with_` it leaves modules in the mode that they are in."""
    twin = _twin(defence)
    if twin.purifier is not None:
        twin.purifier = _rerouted(twin.purifier, route)
    if isinstance(twin.classifier, Purifier):
        twin.classifier = _rerouted(twin.classifier, route)
    return twin


def _rerouted(purifier: Purifier, route: GradientRoute) -> Purifier:
    twin = _twin(purifier)
    if isinstance(twin, IterativePurifier):
        twin.gradient = route
    for name, part in twin.named_children():
        if isinstance(part, Purifier):
            twin.__dict__["_modules"][name] = _rerouted(part, route)
        elif isinstance(part, nn.ModuleList):
            parts = [_rerouted(p, route) for p in part if isinstance(p, Purifier)]
            twin.__dict__["_modules"][name] = nn.ModuleList(parts)
    return twin


def _twin(module: M) -> M:
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_modules"] = dict(module.named_children())
    return twin


def at_least_two(images: Tensor, noise: Noise) -> tuple[Tensor, Noise]:
    """A single image becomes two rows, of different draws, so that batches can be told from single images."""
    if len(images) > 1:
        return images, noise
    return images.repeat(2, 1, 1, 1), replace(noise, images=noise.images * 2, draws=(0, 1))
