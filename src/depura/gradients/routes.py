"""What a gradient route is, and the two that need no machinery: the full graph and the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from depura.diffusion.schedules import Step
from depura.records.kinds import GradientMode

FromEnd = Callable[[Tensor, Step], tuple[Tensor, float]]
"""(state at the end of a step, the step) -> what `depura.diffusion.solvers.Differential.from_end` gives."""


class Advance(Protocol):
    """A purifier's walk with its noise fixed."""

    @property
    def images(self) -> tuple[int, ...]:
        """Image id of each row."""
        ...

    @property
    def rounds(self) -> int:
        """Walks that one purification consists of; they share a route's memory."""
        ...

    @property
    def width(self) -> int:
        """Images that a state consists of, one after another in its channels; the first is the one that walks.

        More than one where a step needs more than the image: the estimate before, moments. The image being purified is
        then repeated as often.
        """
        ...

    def __call__(self, x: Tensor, x_in: Tensor, step: Step, /) -> Tensor:
        """Next state, (B, width C, H, W), from the state and the image being purified: one guided step."""
        ...

    def take(self, rows: Sequence[int], /) -> Advance:
        """The walk of some rows of the batch."""
        ...

    def differential(self) -> FromEnd:
        """The walk as Euler's method on a differential equation.

        Returns:
            Its steps from their later ends.

        Raises:
            InputError: it is not one.
        """
        ...


class GradientRoute(Protocol):
    """Folds the steps, and defines the gradient of the fold."""

    mode: ClassVar[GradientMode]
    """What comes back, as reports name it."""

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step.

        Args:
            advance: one step.
            x: state before the first step, (B, C, H, W).
            x_in: image being purified, [-1, 1] units.
            steps: rows of the step table, in order.

        Returns:
            The last state, differentiable in x and x_in by this route; its value does not depend on the route.
        """
        ...

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1], differentiable by this route: a purifier's exit, if it clamps."""
        ...


def fold(advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step]) -> Tensor:
    """Apply `advance` for each step in turn."""
    for step in steps:
        x = advance(x, x_in, step)
    return x


def refuse_second_derivatives(route: str) -> None:
    """Called in a backward pass: raises where it is itself recorded, since the result would have no graph.

    Args:
        route: name of the route.

    Raises:
        NotImplementedError: the backward pass was asked for with create_graph.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(
            f"{route}: expected a backward pass without create_graph, got one that is to be differentiated again. "
            "Second derivatives need the route Direct()."
        )


def passing_clamp(images: Tensor) -> Tensor:
    """Clamp to [0, 1] in value, identity in the gradient."""
    return images.detach().clamp(0, 1) + (images - images.detach())


@dataclass(frozen=True)
class Direct:
    """Exact: ordinary automatic differentiation through all steps. Memory grows with the number of steps."""

    mode: ClassVar[GradientMode] = GradientMode.EXACT

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        return fold(advance, x, x_in, steps)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return images.clamp(0, 1)


@dataclass(frozen=True)
class StraightThrough:
    """BPDA: walk without a graph, and take the Jacobian of the purification to be the identity in the input.

    Athalye et al. 2018 (arXiv:1802.00420). Range conversion, resizing and the classifier keep their true Jacobians; the
    purifier's clamp, if it has one, is taken for the identity with the rest.
    """

    mode: ClassVar[GradientMode] = GradientMode.BPDA

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        with torch.no_grad():
            out = fold(advance, x, x_in, steps)
        return out + (x_in - x_in.detach())

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; identity in the gradient."""
        return passing_clamp(images)
