"""One exact Jacobian for many draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from depura.diffusion.schedules import Step
from depura.gradients.routes import ChainState, GradientRoute, Transition, fold
from depura.gradients.stored import StoredState
from depura.records.kinds import GradientMode


@dataclass(frozen=True)
class Grafted:
    """One Jacobian for all draws of an image: N draws forward, and the sum of their output gradients taken back
    through the exact Jacobian of the first of them.

    For a call that holds N draws of an image (rows of one image id), the gradient of their mean loss is J_1^T mean(u)
    instead of mean(J_n^T u_n), for N S + S (2 + b) evaluations instead of N S (2 + b). Approximate: it assumes that the
    draws' Jacobians are alike. Each row of the image is given an equal share of the gradient. Draws of one image in
    several calls get one Jacobian per call.

    Attributes:
        inner: the route through the first draw; exact by default.
    """

    mode: ClassVar[GradientMode] = GradientMode.GRAFTED
    inner: GradientRoute = field(default_factory=StoredState)

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        first, group = _groups(advance.images)
        with torch.no_grad():
            image, *others = fold(advance, state, x_in, steps)
        index = torch.tensor(group, device=x_in.device)
        state_of_first = tuple(_shared(x, first, index) for x in state)
        representative = self.inner(advance.take(first), state_of_first, _shared(x_in, first, index), steps)[0]
        return (image + (representative - representative.detach())[index], *others)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return self.inner.clamp(images)


def _groups(images: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The first row of every image, and for each row the number of its image among them."""
    numbers: dict[int, int] = {}
    first: list[int] = []
    for row, image in enumerate(images):
        if image not in numbers:
            numbers[image] = len(first)
            first.append(row)
    return first, [numbers[image] for image in images]


def _shared(x: Tensor, first: list[int], group: Tensor) -> Tensor:
    """The first rows' values, with a gradient that is shared equally by all rows of the image."""
    total = torch.zeros(len(first), *x.shape[1:], dtype=x.dtype, device=x.device).index_add(0, group, x)
    counts = torch.bincount(group, minlength=len(first)).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    mean = total / counts
    return x.detach()[first] + (mean - mean.detach())
