"""How to differentiate a walk is a part, not a mode: routes fold `advance` over the steps and decide what comes back.

`Direct` and `StoredState` are exact; `StraightThrough` is the BPDA approximation. Each has a code by which reports
name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from depura import _check
from depura.schedules import Step


class Advance(Protocol):
    """One guided step of a purifier with its noise fixed."""

    def __call__(self, x: Tensor, x_in: Tensor, step: Step, /) -> Tensor:
        """Next state, (B, C, H, W), from the state and the image being purified."""
        ...


class GradientRoute(Protocol):
    """Folds the steps, and defines the gradient of the fold."""

    code: ClassVar[str]
    """The route's code in reports (G2 BPDA, G6 exact, ...)."""

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step.

        Args:
            advance: one step.
            x: state before the first step, (B, C, H, W).
            x_in: image being purified, [-1, 1] units.
            steps: rows of the step table, in order.

        Returns:
            The last state, differentiable in x and x_in by this route.
        """
        ...


def fold(advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step]) -> Tensor:
    """Apply `advance` for each step in turn."""
    for step in steps:
        x = advance(x, x_in, step)
    return x


@dataclass(frozen=True)
class Direct:
    """Exact: ordinary automatic differentiation through all steps. Memory grows with the number of steps."""

    code: ClassVar[str] = "G6"

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        return fold(advance, x, x_in, steps)


@dataclass(frozen=True)
class StoredState:
    """Exact, in constant graph memory: keep the states entering each segment, recompute and pull back one at a time.

    The recomputation uses the same step rows and the same addressed noise as the walk itself, so it is the same
    function. Costs one purification without graph and one with. Cannot be differentiated twice: a backward pass with
    create_graph raises NotImplementedError.

    Attributes:
        segment: steps recomputed together.
    """

    code: ClassVar[str] = "G6"
    segment: int = 1

    def __post_init__(self) -> None:
        _check.integer("StoredState", "segment", self.segment, low=1)

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        if not (torch.is_grad_enabled() and (x.requires_grad or x_in.requires_grad)):
            return fold(advance, x, x_in, steps)
        segments = [steps[k : k + self.segment] for k in range(0, len(steps), self.segment)]
        walk: Any = _StoredWalk
        return walk.apply(advance, segments, x, x_in)


class _StoredWalk(torch.autograd.Function):
    """The walk and its vector-Jacobian product by segments, last to first."""

    @staticmethod
    def forward(ctx: Any, advance: Advance, segments: list[Sequence[Step]], x: Tensor, x_in: Tensor) -> Tensor:
        states: list[Tensor] = []
        for segment in segments:
            states.append(x)
            x = fold(advance, x, x_in, segment)
        ctx.advance, ctx.segments = advance, segments
        ctx.save_for_backward(x_in, *states)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[None, None, Tensor | None, Tensor | None]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "StoredState: expected a backward pass without create_graph, got one that is to be differentiated "
                "again. Second derivatives need the route Direct()."
            )
        cotangent: Tensor = grad_outputs[0]
        x_in, *states = ctx.saved_tensors
        by_input = torch.zeros_like(x_in)
        for segment, state in zip(reversed(ctx.segments), reversed(states), strict=True):
            with torch.enable_grad():
                x, reference = state.detach().requires_grad_(), x_in.detach().requires_grad_()
                out = fold(ctx.advance, x, reference, segment)
            by_state, by_reference = _pull(out, (x, reference), cotangent)
            cotangent = torch.zeros_like(state) if by_state is None else by_state
            if by_reference is not None:
                by_input = by_input + by_reference
        wants = ctx.needs_input_grad
        return None, None, cotangent if wants[2] else None, by_input if wants[3] else None


def _pull(out: Tensor, inputs: tuple[Tensor, Tensor], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian products; None for an input that the output does not depend on."""
    return torch.autograd.grad(out, inputs, cotangent, allow_unused=True)


@dataclass(frozen=True)
class StraightThrough:
    """BPDA: walk without a graph, and take the Jacobian of the walk to be the identity in the input.

    Athalye et al. 2018 (arXiv:1802.00420). Range conversion, resizing and the classifier keep their true Jacobians.
    """

    code: ClassVar[str] = "G2"

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        with torch.no_grad():
            out = fold(advance, x, x_in, steps)
        return out + (x_in - x_in.detach())
