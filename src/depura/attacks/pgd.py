"""Projected gradient descent with expectation over transformation.

Madry et al. 2018 (arXiv:1706.06083), Athalye et al. 2018 (arXiv:1707.07397). Against a randomised model the gradient
is the mean over `eot` draws. Every image is treated by itself: its gradient, direction and step
do not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.attacks.ball import Ball, per_image
from depura.attacks.eot import Health, Model, RandomModel, by_draw, health
from depura.attacks.losses import Loss, margin
from depura.noise import Noise


class Candidates(NamedTuple):
    """What an attack proposes. It is the evaluation that judges them, on draws of its own.

    Attributes:
        images: (n, B, C, H, W), n candidates for each image, in the ball and in [0, 1].
        loss: (steps, B), mean loss over the draws at the iterate that each step began from.
        zero_gradients: (B,), share of all draws whose gradient was exactly zero.
        bad_gradients: (B,), share of all draws whose gradient was not finite; the image stays put in such a step.
        zero_pixels: (B,), share of the entries of the mean gradients that were exactly zero.
        agreement: (steps, B), cosine of the mean gradients of two halves of the draws; NaN where there is none.
        spread: (steps, B), largest over median norm of a draw's gradient; NaN where the median is zero.
    """

    images: Tensor
    loss: Tensor
    zero_gradients: Tensor
    bad_gradients: Tensor
    zero_pixels: Tensor
    agreement: Tensor
    spread: Tensor


class Cost(NamedTuple):
    """Evaluations of the model per image.

    Attributes:
        gradients: evaluations with a gradient.
        forwards: evaluations without.
        at_once: draws of an image in one call.
    """

    gradients: int
    forwards: int
    at_once: int


@dataclass(frozen=True)
class PGD:
    """x <- project(x + step * direction(mean over draws of d loss / d x)).

    Candidates are the last iterate and, of the iterates before it, the one with the largest mean loss.

    Attributes:
        ball: threat model.
        n_steps: gradient steps.
        step_size: length of a step in the ball's norm; default 2.5 eps / n_steps.
        eot: draws per gradient.
        loss: what is maximised.
        random_start: begin at a random point of the ball instead of the image.
    """

    ball: Ball
    n_steps: int = 20
    step_size: float | None = None
    eot: int = 1
    loss: Loss = margin
    random_start: bool = True

    def __post_init__(self) -> None:
        _check.integer("PGD", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("PGD", "eot", self.eot, low=1)
        if self.step_size is not None:
            _check.number("PGD", "step_size", self.step_size, low=0.0, low_open=True)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 2

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(gradients=self.n_steps * self.eot, forwards=0, at_once=self.eot)

    def at(self, eps: float) -> PGD:
        """The same attack at another radius (a given step size is scaled with it)."""
        size = None if self.step_size is None or self.ball.eps == 0 else self.step_size * eps / self.ball.eps
        return replace(self, ball=replace(self.ball, eps=eps), step_size=size)

    def __call__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
    ) -> Candidates:
        """Attack.

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: randomness of the start; default `Noise.fresh`.
            eot: randomness of the model; draw i * eot + j is used for copy j at step i. Without it the model's own
                randomness, if any, is used.
            rows: images times draws put through the model at once; default all. The result does not depend on it, but
                for rounding; out of memory, it is halved.

        Returns:
            The candidates.

        Raises:
            InputError: images or labels that are not usable.
        """
        _check.images("PGD", images)
        labels = _check.labels("PGD", labels, n_images=len(images)).long()
        init = Noise.fresh(len(images)) if init is None else init
        step_size = 2.5 * self.ball.eps / self.n_steps if self.step_size is None else self.step_size
        x = self.ball.sample(images, init) if self.random_start else images.clone()
        best, best_loss = x, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        losses: list[Tensor] = []
        healths: list[Health] = []
        for i in range(self.n_steps):
            numbers = range(i * self.eot, (i + 1) * self.eot)
            draws = by_draw(model, x, labels, self.loss, draws=numbers, noise=eot, rows=rows, where="PGD")
            rows, loss, gradient = draws.rows, draws.loss(), draws.gradient()
            better = loss > best_loss
            best, best_loss = torch.where(per_image(better), x, best), torch.where(better, loss, best_loss)
            losses.append(loss)
            healths.append(health(draws.gradients))
            finite = gradient.flatten(1).isfinite().all(1)
            moved = self.ball.project(x + step_size * self.ball.unit(gradient), images)
            x = torch.where(per_image(finite), moved, x)
        seen = Health(*(torch.stack(values) for values in zip(*healths, strict=True)))
        return Candidates(
            images=torch.stack([x, best]),
            loss=torch.stack(losses),
            zero_gradients=seen.zero.mean(0),
            bad_gradients=seen.bad.mean(0),
            zero_pixels=seen.zero_pixels.mean(0),
            agreement=seen.agreement,
            spread=seen.spread,
        )
