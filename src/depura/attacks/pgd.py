"""Projected gradient descent with expectation over transformation, plain and with momentum.

Madry et al. 2018 (arXiv:1706.06083), Athalye et al. 2018 (arXiv:1707.07397). Against a randomised model the gradient
is the mean over `eot` draws. Every image is treated by itself: its gradient, direction and step
do not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress, check_finish
from depura.attacks.losses import Loss, margin
from depura.attacks.queries import EOT, Combine, Queries, mean, most_draws
from depura.attacks.threat import Ball, per_image
from depura.noise import Noise


@dataclass(frozen=True)
class Momentum:
    """Step along an average of past gradients: v <- decay v + g / |g|_1, in place of g.

    Dong et al. 2018 (arXiv:1710.06081); with `nesterov` the gradient is taken ahead, at x + step decay v brought into
    the ball (Lin et al. 2020, arXiv:1908.06281).

    Attributes:
        decay: weight of the past, in [0, 1].
        nesterov: take the gradient ahead.
    """

    decay: float = 1.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check.number("Momentum", "decay", self.decay, low=0.0, high=1.0)

    def ahead(self, ball: Ball, x: Tensor, origin: Tensor, velocity: Tensor, step: float) -> Tensor:
        """Where the gradient is taken, (B, C, H, W)."""
        return ball.project(x + step * self.decay * velocity, origin) if self.nesterov else x

    def update(self, velocity: Tensor, gradient: Tensor) -> Tensor:
        """The new average, (B, C, H, W)."""
        size = gradient.abs().flatten(1).sum(1)
        return self.decay * velocity + gradient / per_image(torch.where(size > 0, size, 1.0))


@dataclass(frozen=True)
class PGD(Attack):
    """x <- project(x + step * direction(mean over draws of d loss / d x)).

    Candidates of each restart are the last iterate and, of the iterates before it, the one with the largest mean loss.

    Attributes:
        ball: threat model.
        n_steps: gradient steps.
        step_size: length of a step in the ball's norm; default 2.5 eps / n_steps.
        eot: draws per gradient, a number or `AdaptiveDraws`.
        loss: what is maximised.
        random_start: begin at a random point of the ball instead of the image.
        n_restarts: runs, each from a start of its own and on draws of its own.
        momentum: step along an average of past gradients; default along the gradient.
        combine: how the gradients of the draws become one.
        finish: be content with an image at a point where all draws of the step were wrong and at least this share of
            `common` draws of the common random numbers is, in (0, 1]; it then stays there. Default: never.
        common: draws of such a question.
    """

    ball: Ball
    n_steps: int = 20
    step_size: float | None = None
    eot: EOT = 1
    loss: Loss = margin
    random_start: bool = True
    n_restarts: int = 1
    momentum: Momentum | None = None
    combine: Combine = mean
    finish: float | None = None
    common: int = 16

    def __post_init__(self) -> None:
        _check.integer("PGD", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("PGD", "eot", most_draws(self.eot), low=1)
        _check.integer("PGD", "n_restarts", self.n_restarts, low=1)
        _check.integer("PGD", "common", self.common, low=1)
        if self.step_size is not None:
            _check.number("PGD", "step_size", self.step_size, low=0.0, low_open=True)
        check_finish("PGD", self.finish)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 2 * self.n_restarts

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most; the forwards are those of `finish`."""
        n = self.n_restarts * self.n_steps
        eot = most_draws(self.eot)
        return Cost(n * eot, 0 if self.finish is None else n * self.common, at_once=eot)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Restart r uses step r of `init`; copy j at its step i uses draw (r * n_steps + i) * eot + j."""
        n = self.n_restarts * self.n_steps
        history = History(len(images), n)
        left = torch.arange(len(images), device=images.device)
        x, best, points = images.clone(), images.clone(), list[Tensor]()
        for restart in range(self.n_restarts):
            start = self.ball.sample(images, init, step=restart) if self.random_start else images
            x[left], best[left] = start[left], start[left]
            losses, drawn = images.new_full((len(images),), -torch.inf), torch.zeros_like(queries.spent[:, 0])
            run = _Run(self, queries, images, history, x, best, losses, torch.zeros_like(images), drawn)
            for i in range(restart * self.n_steps, (restart + 1) * self.n_steps):
                if len(left) > 0:
                    left = run.step(i, left)
                progress((i + 1) / n)
            points += [x.clone(), best.clone()]
        return history.candidates(torch.stack(points), queries.spent)


@dataclass
class _Run:
    """One restart; everything of an image is changed in place.

    Attributes:
        attack: the attack.
        queries: the model.
        origin: the images, (B, C, H, W).
        history: of all restarts.
        x: the last iterate, (B, C, H, W).
        best: the iterate of the largest mean loss, (B, C, H, W).
        best_loss: its mean loss, (B,).
        velocity: average of past gradients, (B, C, H, W).
        drawn: draws of the last gradient, (B,) int64.
    """

    attack: PGD
    queries: Queries
    origin: Tensor
    history: History
    x: Tensor
    best: Tensor
    best_loss: Tensor
    velocity: Tensor
    drawn: Tensor

    def step(self, number: int, at: Tensor) -> Tensor:
        """Step `number` of all restarts, of the images `at` (R,); the images that go on."""
        attack = self.attack
        size = 2.5 * attack.ball.eps / attack.n_steps if attack.step_size is None else attack.step_size
        x, origin, velocity = self.x[at], self.origin[at], self.velocity[at]
        ahead = x if attack.momentum is None else attack.momentum.ahead(attack.ball, x, origin, velocity, size)
        means = self.queries.mean_gradient(
            ahead,
            attack.loss,
            attack.eot,
            number=number,
            combine=attack.combine,
            drawn=self.drawn[at],
            at=at,
        )
        gradient, self.drawn[at] = means.gradient, means.drawn
        better = means.loss > self.best_loss[at]
        self.best[at] = torch.where(per_image(better), ahead, self.best[at])
        self.best_loss[at] = torch.where(better, means.loss, self.best_loss[at])
        self.history.add(means.loss, means.health, at=at)
        finite = per_image(gradient.flatten(1).isfinite().all(1))
        if attack.momentum is not None:
            velocity = torch.where(finite, attack.momentum.update(velocity, gradient), velocity)
            self.velocity[at], gradient = velocity, velocity
        moved = attack.ball.project(x + size * attack.ball.unit(attack.ball.free(gradient, x)), origin)
        self.x[at] = torch.where(finite, moved, x)
        if attack.finish is None:
            return at
        # Images that are beaten where the step began stay there, and are finished.
        beaten = self.queries.beaten(ahead, means.wrong, share=attack.finish, n_draws=attack.common, at=at)
        self.x[at[beaten]] = self.best[at[beaten]] = ahead[beaten]
        self.history.finish(at[beaten])
        return at[~beaten]
