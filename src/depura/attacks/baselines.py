"""Random changes: what an attack must beat, and with a single point a null that asks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress
from depura.attacks.flow import Flow
from depura.attacks.losses import Loss, comparable, margin
from depura.attacks.perceptual import Perceptual
from depura.attacks.queries import Queries, common, mean
from depura.attacks.threat import Ball, per_image
from depura.noise import Kind, Noise


@dataclass(frozen=True)
class CleanImages(Attack):
    """Every image as it is, the one candidate of an attack at radius 0.

    Attributes:
        ball: threat model; only its name matters.
    """

    ball: Ball | Flow | Perceptual

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(0, 0, 1)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Return the images."""
        progress(1.0)
        n = len(images)
        never = torch.full((n,), -1, dtype=torch.int64, device=images.device)
        nothing = torch.zeros((n, 2), dtype=torch.int64, device=images.device)
        return Candidates(images[None].clone(), images.new_zeros((0, n)), nothing, never)


Proposal = Callable[[Ball | Flow | Perceptual, Tensor, Noise, int], Tensor]
"""(threat model, images (B, C, H, W), noise, address of the draw) -> random points, one for each image."""


def corners(ball: Ball | Flow | Perceptual, origin: Tensor, noise: Noise, step: int) -> Tensor:
    """Changes of the largest size, as the threat model's `corner`: in linf signs times eps, in l2 a direction."""
    return ball.corner(origin, noise, step=step)


def uniform(ball: Ball | Flow | Perceptual, origin: Tensor, noise: Noise, step: int) -> Tensor:
    """Points as the threat model's `sample`: uniform in a ball, flows uniform in their bound, then into [0, 1]."""
    return ball.sample(origin, noise, step=step)


def gaussian(ball: Ball | Flow | Perceptual, origin: Tensor, noise: Noise, step: int) -> Tensor:
    """Gaussian noise, scaled so that its norm is eps, then into [0, 1]; for l2 distributed as `corners`.

    Args:
        ball: linf or l2.
        origin: centre, (B, C, H, W).
        noise: the randomness, one image id per row.
        step: address of the draw.

    Returns:
        (B, C, H, W).

    Raises:
        InputError: another threat model than a ball.
    """
    if not isinstance(ball, Ball):
        _check.fail("gaussian", "a Ball", ball.norm, "Use corners or uniform.")
    change = noise(origin, kind=Kind.ATTACK, step=step)
    size = ball.distance(change, torch.zeros_like(change))
    return ball.project(origin + ball.eps * change / per_image(size), origin)


@dataclass(frozen=True)
class RandomPoints(Attack):
    """The worst of some random points, by mean loss on draws that are the same for all of them; no gradients.

    With no more points than are kept nothing is asked of the model, and the attack is a null baseline.

    Attributes:
        ball: threat model.
        n_points: random points for each image.
        kind: how they are made: `corners`, `uniform` or `gaussian`.
        eot: draws on which points are compared.
        keep: the points of largest loss that are candidates.
        loss: what is compared.
    """

    ball: Ball | Flow | Perceptual
    n_points: int = 20
    kind: Proposal = corners
    eot: int = 8
    keep: int = 2
    loss: Loss = margin

    def __post_init__(self) -> None:
        _check.integer("RandomPoints", "n_points", self.n_points, low=1, high=65536)
        _check.integer("RandomPoints", "eot", self.eot, low=1)
        _check.integer("RandomPoints", "keep", self.keep, low=1)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return min(self.keep, self.n_points)

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(gradients=0, forwards=self.n_points * self.eot if self._compares else 0, at_once=self.eot)

    @property
    def _compares(self) -> bool:
        return self.n_points > self.keep

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """The points of largest mean loss first. Point i uses step i of `init`."""
        history = History(len(images), self.n_points if self._compares else 0)
        kept, values = images.new_zeros(0, *images.shape), images.new_zeros(0, len(images))
        every = torch.arange(len(images), device=images.device)
        for i in range(self.n_points):
            point, value = self.kind(self.ball, images, init, i), images.new_zeros(len(images))
            if self._compares:
                value = mean(queries.losses(point, self.loss, draws=common(self.eot)))
                history.add(value)
            together = torch.cat([values, comparable(value)[None]])
            order = together.argsort(dim=0, descending=True, stable=True)[: self.keep]
            kept, values = torch.cat([kept, point[None]])[order, every], together.gather(0, order)
            progress((i + 1) / self.n_points)
        return history.candidates(kept, queries.spent)
