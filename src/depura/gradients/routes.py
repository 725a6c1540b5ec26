"""What a gradient route is, and the two that need no machinery: the full graph and the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from depura.diffusion.schedules import Step
from depura.records.kinds import GradientMode

ChainState = tuple[Tensor, ...]
"""A state of the reverse process: tensors (B, C, H, W), the image first, then what a step needs of the steps before."""

FromEnd = Callable[[Tensor, Step], tuple[Tensor, float]]
"""(state at the end of a step, the step) -> what `depura.diffusion.solvers.Differential.from_end` gives."""


class Transition(Protocol):
    """One step of a purifier as a function of its state; its noise is fixed."""

    @property
    def images(self) -> tuple[int, ...]:
        """Image id of each row."""
        ...

    @property
    def rounds(self) -> int:
        """Rounds that one purification consists of; they share a route's memory."""
        ...

    def __call__(self, state: ChainState, x_in: Tensor, step: Step, /) -> ChainState:
        """Next state, from the state and the image being purified, (B, C, H, W) in [-1, 1]: one guided step."""
        ...

    def take(self, rows: Sequence[int], /) -> Transition:
        """The transition of some rows of the batch."""
        ...

    def differential(self) -> FromEnd:
        """The steps as Euler's method on a differential equation.

        Returns:
            Its steps from their later ends.

        Raises:
            InputError: it is not one.
        """
        ...


class GradientRoute(Protocol):
    """Makes the steps, and defines the gradient of the last state by the first state and the input."""

    mode: ClassVar[GradientMode]
    """What comes back, as reports name it."""

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step; called only where a gradient is asked for.

        Args:
            advance: one step.
            state: before the first step.
            x_in: image being purified, (B, C, H, W) in [-1, 1].
            steps: rows of the step table, in order.

        Returns:
            The last state, differentiable in `state` and `x_in` by this route; its value does not depend on the route.
        """
        ...

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1], differentiable by this route: a purifier's exit, if it clamps."""
        ...


def fold(advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step]) -> ChainState:
    """The state after the last step: `advance` applied for each step in turn."""
    for step in steps:
        state = advance(state, x_in, step)
    return state


def passing_clamp(images: Tensor) -> Tensor:
    """Clamp to [0, 1] in value, identity in the gradient."""
    return images.detach().clamp(0, 1) + (images - images.detach())


@dataclass(frozen=True)
class Direct:
    """Exact: ordinary automatic differentiation through all steps. Memory grows with the number of steps."""

    mode: ClassVar[GradientMode] = GradientMode.EXACT

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        return fold(advance, state, x_in, steps)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return images.clamp(0, 1)


@dataclass(frozen=True)
class StraightThrough:
    """BPDA: make the steps without a graph, and take the Jacobian of the purification to be the identity in the input.

    Athalye et al. 2018 (arXiv:1802.00420). Range conversion, resizing and the classifier keep their true Jacobians; the
    purifier's clamp, if it has one, is taken for the identity with the rest.
    """

    mode: ClassVar[GradientMode] = GradientMode.BPDA

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        with torch.no_grad():
            image, *others = fold(advance, state, x_in, steps)
        return (image + (x_in - x_in.detach()), *others)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; identity in the gradient."""
        return passing_clamp(images)
