"""Spatial attack: the image is bent by a flow field, and no pixel value is added.

Xiao et al. 2018 (arXiv:1801.02612), in the form of DiffPure's evaluation (Nie et al. 2022, arXiv:2205.07460).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from depura import _check
from depura.attacks.adam import AdamAverages
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress
from depura.attacks.flow import Flow, roughness, sampled, warped
from depura.attacks.losses import Loss, margin
from depura.attacks.queries import Queries, mean
from depura.attacks.threat import per_image
from depura.noise import Noise


@dataclass(frozen=True)
class StAdv(Attack):
    """Adam on a flow field: ascends mean loss - weight * roughness of the flow, from the image itself.

    Sampling points are brought back to within the bound after each step. Candidates are the last iterate, and, of the
    iterates before it, the one of the largest objective. The released code keeps track of the best, too, but returns
    the last.

    Attributes:
        ball: threat model; its eps is a shift in grid units.
        n_steps: gradient steps.
        rate: Adam's, in grid units.
        eot: draws per gradient.
        loss: what is maximised.
        weight: of the roughness; default 0.0025 / eps, as released.
    """

    ball: Flow = field(default_factory=Flow)
    n_steps: int = 100
    rate: float = 0.01
    eot: int = 1
    loss: Loss = margin
    weight: float | None = None

    def __post_init__(self) -> None:
        _check.integer("StAdv", "n_steps", self.n_steps, low=1)
        _check.integer("StAdv", "eot", self.eot, low=1)
        _check.number("StAdv", "rate", self.rate, low=0.0, low_open=True)
        if self.weight is not None:
            _check.number("StAdv", "weight", self.weight, low=0.0)

    @property
    def n_candidates(self) -> int:
        """Two."""
        return 2

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(gradients=self.n_steps * self.eot, forwards=0, at_once=self.eot)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Bend the images; `loss` is the whole objective. Copy j at step i uses draw i * eot + j."""
        history = History(len(images), self.n_steps)
        still = self.ball.grid(images)
        points, adam = still, AdamAverages(still)
        best, best_value = still, torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        for i in range(self.n_steps):
            draws = queries.gradient(sampled(images, points), self.loss, draws=range(i * self.eot, (i + 1) * self.eot))
            rough, gradient = self._gradient(images, points, still, mean(draws.gradients))
            value = mean(draws.losses) - rough
            history.add(value, draws.gradients)
            better = value > best_value
            best, best_value = torch.where(per_image(better), points, best), torch.where(better, value, best_value)
            # An image without a usable gradient stays put, with its averages.
            finite = per_image(gradient.flatten(1).isfinite().all(1))
            moved = self.ball.project(points + self.rate * adam.direction(gradient, finite), still)
            points = torch.where(finite, moved, points)
            progress((i + 1) / self.n_steps)
        found = torch.stack([sampled(images, points), sampled(images, best)])
        return history.candidates(found, queries.spent)

    def _gradient(self, images: Tensor, points: Tensor, still: Tensor, by_pixel: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted roughness, (B,), and the objective's gradient by the points, given the loss's by the pixels."""
        weight = self._weight()
        with torch.enable_grad():
            leaf = points.clone().requires_grad_()
            rough = weight * roughness(leaf - still)
            bent = (warped(images, leaf) * by_pixel).flatten(1).sum(1)
            (gradient,) = torch.autograd.grad((bent - rough).sum(), leaf)
        return rough.detach(), gradient

    def _weight(self) -> float:
        if self.weight is not None:
            return self.weight
        return 0.0025 / self.ball.eps if self.ball.eps > 0 else 0.0
