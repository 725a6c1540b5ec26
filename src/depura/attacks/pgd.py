"""Projected gradient descent with expectation over transformation, plain and with momentum.

Madry et al. 2018 (arXiv:1706.06083), Athalye et al. 2018 (arXiv:1707.07397). Against a randomised model the gradient
is the mean over `eot` draws. Every image is treated by itself: its gradient, direction and step
do not depend on the batch it is in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Candidates, Cost, Told
from depura.attacks.eot import Combine, Model, RandomModel, mean
from depura.attacks.growth import Growth, look
from depura.attacks.history import History
from depura.attacks.losses import Loss, margin
from depura.attacks.queries import Queries
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
class PGD:
    """x <- project(x + step * direction(mean over draws of d loss / d x)).

    Candidates of each restart are the last iterate and, of the iterates before it, the one with the largest mean loss.

    Attributes:
        ball: threat model.
        n_steps: gradient steps.
        step_size: length of a step in the ball's norm; default 2.5 eps / n_steps.
        eot: draws per gradient, at most.
        loss: what is maximised.
        random_start: begin at a random point of the ball instead of the image.
        n_restarts: runs, each from a start of its own and on draws of its own.
        momentum: step along an average of past gradients; default along the gradient.
        combine: how the gradients of the draws become one.
        finish: be content with an image at a point where all draws of the step were wrong and at least this share of
            `common` draws of the common tape is, in (0, 1]; it then stays there. Default: never.
        common: draws of such a question.
        growth: how the draws of a gradient grow; default all of them at every step.
    """

    ball: Ball
    n_steps: int = 20
    step_size: float | None = None
    eot: int = 1
    loss: Loss = margin
    random_start: bool = True
    n_restarts: int = 1
    momentum: Momentum | None = None
    combine: Combine = mean
    finish: float | None = None
    common: int = 16
    growth: Growth | None = None

    def __post_init__(self) -> None:
        _check.integer("PGD", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("PGD", "eot", self.eot, low=1)
        _check.integer("PGD", "n_restarts", self.n_restarts, low=1)
        _check.integer("PGD", "common", self.common, low=1)
        if self.step_size is not None:
            _check.number("PGD", "step_size", self.step_size, low=0.0, low_open=True)
        if self.finish is not None:
            _check.number("PGD", "finish", self.finish, low=0.0, high=1.0, low_open=True)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 2 * self.n_restarts

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most; the forwards are those of `finish`."""
        n = self.n_restarts * self.n_steps
        return Cost(n * self.eot, 0 if self.finish is None else n * self.common, at_once=self.eot)

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
        told: Told | None = None,
    ) -> Candidates:
        """Attack.

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: randomness of the starts; default `Noise.fresh`. Restart r uses its step r.
            eot: randomness of the model; draw (r * n_steps + i) * eot + j is used for copy j at step i of restart r.
                Without it the model's own randomness, if any, is used.
            rows: images times draws put through the model at once; default all. The result does not depend on it, but
                for rounding; out of memory, it is halved.
            told: called with the share of the work that is done.

        Returns:
            The candidates.

        Raises:
            InputError: images or labels that are not usable.
        """
        queries = Queries("PGD", model, images, labels, noise=eot, rows=rows)
        init = Noise.fresh(len(images)) if init is None else init
        history = History(len(images), self.n_restarts * self.n_steps)
        left = torch.arange(len(images), device=images.device)
        last = best = images
        found: list[Tensor] = []
        for restart in range(self.n_restarts):
            start = self.ball.sample(images, init, step=restart) if self.random_start else images
            last, best = last.index_copy(0, left, start[left]), best.index_copy(0, left, start[left])
            run = _Run(self, queries, images, history, restart, last, best, left)
            run.to_the_end(told)
            last, best, left = run.x, run.best, run.left
            found += [last, best]
        return history.candidates(torch.stack(found), queries.spent)


class _Run:
    """One restart; images leave it as they are finished."""

    def __init__(
        self,
        attack: PGD,
        queries: Queries,
        origin: Tensor,
        history: History,
        number: int,
        x: Tensor,
        best: Tensor,
        left: Tensor,
    ) -> None:
        self.attack, self.queries, self.origin, self.history, self.number = attack, queries, origin, history, number
        self.x, self.best, self.left = x.clone(), best.clone(), left
        self.best_loss = torch.full(x.shape[:1], -torch.inf, dtype=x.dtype, device=x.device)
        self.velocity = torch.zeros_like(x)
        self.drawn = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def to_the_end(self, told: Told | None) -> None:
        """All steps."""
        n = self.attack.n_steps
        for i in range(n):
            if len(self.left) > 0:
                self.step(self.number * n + i)
            if told is not None:
                told((self.number * n + i + 1) / (self.attack.n_restarts * n))

    def step(self, done: int) -> None:
        """One step of the images that are left, after `done` steps of all restarts."""
        attack, at = self.attack, self.left
        size = 2.5 * attack.ball.eps / attack.n_steps if attack.step_size is None else attack.step_size
        x, origin, velocity = self.x[at], self.origin[at], self.velocity[at]
        there = x if attack.momentum is None else attack.momentum.ahead(attack.ball, x, origin, velocity, size)
        numbers = range(done * attack.eot, (done + 1) * attack.eot)
        seen = look(
            self.queries,
            there,
            attack.loss,
            draws=numbers,
            combine=attack.combine,
            growth=attack.growth,
            drawn=self.drawn[at],
            at=at,
        )
        loss, gradient, self.drawn[at] = seen.loss, seen.gradient, seen.drawn
        better = loss > self.best_loss[at]
        self.best[at] = torch.where(per_image(better), there, self.best[at])
        self.best_loss[at] = torch.where(better, loss, self.best_loss[at])
        self.history.add(loss, seen.health, at=at)
        finite = per_image(gradient.flatten(1).isfinite().all(1))
        if attack.momentum is not None:
            velocity = torch.where(finite, attack.momentum.update(velocity, gradient), velocity)
            self.velocity[at], gradient = velocity, velocity
        moved = attack.ball.project(x + size * attack.ball.unit(attack.ball.free(gradient, x)), origin)
        self.x[at] = torch.where(finite, moved, x)
        self._leave(there, seen.wrong)

    def _leave(self, there: Tensor, wrong: Tensor) -> None:
        """Images that are beaten where the step began stay there, and go."""
        at, n_draws = self.left, self.attack.common
        beaten = self.queries.beaten(there, wrong, share=self.attack.finish, n_draws=n_draws, at=at)
        self.x[at[beaten]] = self.best[at[beaten]] = there[beaten]
        self.history.finish(at[beaten])
        self.left = at[~beaten]
