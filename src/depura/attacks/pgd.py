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
from depura.attacks.ball import Ball, per_image
from depura.attacks.eot import Combine, Model, RandomModel, mean
from depura.attacks.history import History
from depura.attacks.losses import Loss, margin
from depura.attacks.queries import Queries
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
        eot: draws per gradient.
        loss: what is maximised.
        random_start: begin at a random point of the ball instead of the image.
        n_restarts: runs, each from a start of its own and on draws of its own.
        momentum: step along an average of past gradients; default along the gradient.
        combine: how the gradients of the draws become one.
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

    def __post_init__(self) -> None:
        _check.integer("PGD", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("PGD", "eot", self.eot, low=1)
        _check.integer("PGD", "n_restarts", self.n_restarts, low=1)
        if self.step_size is not None:
            _check.number("PGD", "step_size", self.step_size, low=0.0, low_open=True)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 2 * self.n_restarts

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(gradients=self.n_restarts * self.n_steps * self.eot, forwards=0, at_once=self.eot)

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
        found: list[Tensor] = []
        for restart in range(self.n_restarts):
            x = self.ball.sample(images, init, step=restart) if self.random_start else images.clone()
            found += self._run(queries, x, images, restart, history, told)
        return history.candidates(torch.stack(found), queries.spent)

    def _run(
        self, queries: Queries, x: Tensor, origin: Tensor, restart: int, history: History, told: Told | None
    ) -> tuple[Tensor, Tensor]:
        """Last and best point of one restart."""
        step_size = 2.5 * self.ball.eps / self.n_steps if self.step_size is None else self.step_size
        best, best_loss = x, torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        velocity = torch.zeros_like(x)
        for i in range(self.n_steps):
            done = restart * self.n_steps + i
            numbers = range(done * self.eot, (done + 1) * self.eot)
            there = x if self.momentum is None else self.momentum.ahead(self.ball, x, origin, velocity, step_size)
            draws = queries.gradient(there, self.loss, draws=numbers)
            loss, gradient = draws.loss(), draws.gradient(self.combine)
            better = loss > best_loss
            best, best_loss = torch.where(per_image(better), there, best), torch.where(better, loss, best_loss)
            history.add(loss, draws.gradients)
            finite = per_image(gradient.flatten(1).isfinite().all(1))
            if self.momentum is not None:
                velocity = torch.where(finite, self.momentum.update(velocity, gradient), velocity)
                gradient = velocity
            moved = self.ball.project(x + step_size * self.ball.unit(self.ball.free(gradient, x)), origin)
            x = torch.where(finite, moved, x)
            if told is not None:
                told((done + 1) / (self.n_restarts * self.n_steps))
        return x, best
