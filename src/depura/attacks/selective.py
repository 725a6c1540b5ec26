"""Selective attack: ascend for the draws of a randomised model that one common step can still break.

After DiffHammer (Wang et al., NeurIPS 2024), from its mathematics. Where draws of a model call for steps in conflicting
directions, their mean gradient may vanish although a share of them could be broken. So each step first looks for one
change r that, to first order, is expected to break most draws, and then ascends for the draws that r decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress, check_finish
from depura.attacks.losses import Loss, comparable, cross_entropy, dlr, margin
from depura.attacks.queries import Draws, Queries, mean
from depura.attacks.threat import Ball, per_image
from depura.defence import all_finite
from depura.noise import Noise

SHORTER = tuple(2.0**-k for k in range(10))
"""Shares of the way to the next iterate that a round of `shared_step` tries."""


class Shared(NamedTuple):
    """One step for all draws of an image, and what it decides.

    Attributes:
        step: (R, C, H, W), at most the given size long.
        weights: (R, m), >= 0, sum 1: how much each draw still depends on the step.
        broken: (R,), expected number of broken draws, sum_i sigmoid(sharpness (l_i + <step, u_i>)).
    """

    step: Tensor
    weights: Tensor
    broken: Tensor


def shared_step(
    ball: Ball, losses: Tensor, gradients: Tensor, *, size: float, sharpness: float, n_rounds: int
) -> Shared:
    """The step r, |r| <= size, that maximises J(r) = sum_i sigmoid(sharpness (l_i + <r, u_i>)).

    The derivative of J weighs draw i by q_i = sigmoid'(z_i), z_i being the argument above. So the maximiser over the
    ball, unless it lies inside, solves r = size * unit(sum_i q_i(r) u_i), which is iterated. J is neither convex nor
    concave and the full move may overshoot; so a round takes whichever share of the way raises J most, and stays where
    none does: J never falls. As there may be several maxima, the rounds begin at no step at all and at the step of each
    draw alone, and the best end is kept. Nothing of it asks the model.

    Args:
        ball: for its norm.
        losses: (R, m), 0 at the border.
        gradients: (R, m, C, H, W).
        size: longest step.
        sharpness: slope, > 0.
        n_rounds: of the iteration, at most.

    Returns:
        The step in float64, the weights q_i / sum_j q_j at it, and J.
    """
    shape, flat = gradients.shape, gradients.flatten(2).double()

    def unit(directions: Tensor) -> Tensor:
        return ball.unit(directions.reshape(-1, *shape[2:])).reshape(directions.shape)

    def reach(steps: Tensor) -> Tensor:
        return sharpness * (losses.double()[:, None] + steps @ flat.mT)

    step = size * torch.cat([torch.zeros_like(flat[:, :1]), unit(flat)], dim=1)
    z = reach(step)
    shares = torch.tensor(SHORTER, dtype=z.dtype, device=z.device)
    for _ in range(n_rounds):
        aim = size * unit(_weights(z) @ flat)
        aimed = reach(aim)
        tried = z + shares[:, None, None, None] * (aimed - z)
        value, which = _log_broken(tried).max(0)
        share = torch.where(value > _log_broken(z) + 1e-12, shares[which], 0.0)[..., None]
        step, z = step + share * (aim - step), z + share * (aimed - z)
        if not bool((share > 0).any()):
            break
    rows, end = torch.arange(len(z), device=z.device), _log_broken(z).argmax(1)
    return Shared(
        step[rows, end].reshape(shape[0], *shape[2:]), _weights(z)[rows, end], _log_broken(z)[rows, end].exp()
    )


def _weights(z: Tensor) -> Tensor:
    """sigmoid'(z), made to sum to 1 over the last axis; in logarithms, as all may be too small for floating point."""
    return torch.softmax(logsigmoid(z) + logsigmoid(-z), dim=-1)


def _log_broken(z: Tensor) -> Tensor:
    """log sum sigmoid(z) over the last axis: rises with the sum, and does not underflow."""
    return torch.logsumexp(logsigmoid(z), dim=-1)


class Turning(NamedTuple):
    """A loss and the value at which a draw turns from right to wrong.

    Attributes:
        loss: what is maximised.
        at: subtracted before draws are weighed, so that 0 is the border there for every loss, as it is for the margin.
    """

    loss: Loss
    at: float = 0.0


@dataclass(frozen=True)
class Selective(Attack):
    """Projected ascent along a weighted mean of the draws' gradients, with weights from `shared_step`.

    Each step draws `eot` losses and gradients, finds the shared step of the length of the step about to be made, and
    moves along g_k = k^-alpha g + (1 - k^-alpha) g_{k-1}, g being the mean gradient under its weights, k = 1, 2, ...
    Wang et al. 2024 push the weighted gradient of the purified images through the Jacobian of one representative draw;
    here every draw goes through its own, so that no draw stands for another (a defence may have the route `Grafted`).

    Restarts take the losses in turn. They should be about as large as logit margins, for which `sharpness` is meant:
    the margin and DLR are 0 where a draw turns wrong and are weighed as they are; cross-entropy is weighed less log 2,
    its value at probability 1/2. DLR needs three classes.

    Candidates of each restart are its last iterate and, of the points where draws were made, the one with the largest
    share of wrong draws, ties by mean loss. An image that is finished stays where it is for the restarts that are left.

    Attributes:
        ball: threat model.
        n_steps: gradient steps of a restart.
        step_size: length of the first step in the ball's norm, from which steps shrink linearly, the last being
            1/n_steps of it; default eps/2, or more where the steps would not add up to 2.5 eps.
        eot: draws per step.
        losses: of the restarts, in turn.
        n_restarts: runs, each from a start of its own and on draws of its own.
        sharpness: slope of the weights (lambda of the paper), per unit of loss.
        n_rounds: rounds in which a shared step is sought, at most.
        smoothing: alpha above, in [0, 1]; 0 forgets past gradients.
        random_start: begin at a random point of the ball instead of the image.
        finish: be content with an image at a visited point where all draws of the step were wrong and at least this
            share of `common` draws of common random numbers is; default never.
        common: draws of such a question.
    """

    ball: Ball
    n_steps: int = 50
    step_size: float | None = None
    eot: int = 10
    losses: tuple[Turning, ...] = field(default=(Turning(margin), Turning(cross_entropy, at=math.log(2)), Turning(dlr)))
    n_restarts: int = 3
    sharpness: float = 5.0
    n_rounds: int = 20
    smoothing: float = 0.5
    random_start: bool = True
    finish: float | None = None
    common: int = 32

    def __post_init__(self) -> None:
        _check.integer("Selective", "n_steps", self.n_steps, low=1)
        for name in ("eot", "n_restarts", "n_rounds", "common"):
            _check.integer("Selective", name, getattr(self, name), low=1)
        _check.integer("Selective", "n_restarts", self.n_restarts, high=65536)
        if self.step_size is not None:
            _check.number("Selective", "step_size", self.step_size, low=0.0, low_open=True)
        _check.number("Selective", "sharpness", self.sharpness, low=0.0, low_open=True)
        _check.number("Selective", "smoothing", self.smoothing, low=0.0, high=1.0)
        check_finish("Selective", self.finish)
        if not self.losses or not all(isinstance(loss, Turning) for loss in self.losses):  # pyright: ignore[reportUnnecessaryIsInstance]
            _check.fail("Selective", "losses as a tuple of Turning", repr(self.losses), "Write Turning(margin).")

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 2 * self.n_restarts

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most; the forwards are those of `finish`."""
        n = self.n_restarts * self.n_steps
        return Cost(
            gradients=n * self.eot,
            forwards=0 if self.finish is None else n * self.common,
            at_once=self.eot if self.finish is None else max(self.eot, self.common),
        )

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Ascend. Restart r uses step r of `init`; copy j at its step i uses draw (r * n_steps + i) * eot + j."""
        history = History(len(images), self.n_restarts * self.n_steps)
        found: list[Tensor] = []
        left = torch.arange(len(images), device=images.device)
        content = images.clone()
        for restart in range(self.n_restarts):
            if not len(left):
                found += [content, content]
                continue
            start = self.ball.sample(images, init, step=restart) if self.random_start else images
            inside = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            inside[left] = True
            x = torch.where(per_image(inside), start, content)
            last, best, left = self._run(queries, x, images, left, restart, history, progress)
            content = last
            found += [last, best]
        progress(1.0)
        return history.candidates(torch.stack(found), queries.spent)

    def _run(
        self,
        queries: Queries,
        x: Tensor,
        origin: Tensor,
        left: Tensor,
        restart: int,
        history: History,
        progress: Progress,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Last and best points of one restart, and the images that are left for the next."""
        turning = self.losses[restart % len(self.losses)]
        best = Best(x)
        smooth = torch.zeros_like(x)
        for i in range(self.n_steps):
            done = restart * self.n_steps + i
            numbers = range(done * self.eot, (done + 1) * self.eot)
            draws = queries.gradient(x[left], turning.loss, draws=numbers, at=left)
            history.add(mean(draws.losses), draws.gradients, at=left)
            best.see(x[left], draws, at=left)
            going = self._going(queries, x[left], draws, left, history)
            left, draws = left[going], Draws(*(value[going] for value in draws))
            if not len(left):
                break
            size = self._first() * (1 - i / self.n_steps)
            gradient, finite = self._ascent(draws, turning.at, size)
            weight = (i + 1) ** -self.smoothing
            smoothed = weight * gradient + (1 - weight) * smooth[left]
            smooth[left] = torch.where(finite, smoothed, smooth[left])
            moved = self.ball.project(x[left] + size * self.ball.unit(smoothed), origin[left])
            x = x.index_copy(0, left, torch.where(finite, moved, x[left]))
            progress((done + 1) / (self.n_restarts * self.n_steps))
        return x, best.images, left

    def _first(self) -> float:
        """Length of the first step; n steps that shrink linearly add up to (n + 1) / 2 of it."""
        return self.ball.eps * max(0.5, 5 / (self.n_steps + 1)) if self.step_size is None else self.step_size

    def _ascent(self, draws: Draws, border: float, size: float) -> tuple[Tensor, Tensor]:
        """Weighted mean gradient, (R, C, H, W), and whether all that it is made of is finite, (R, 1, 1, 1)."""
        finite = all_finite(draws.gradients) & all_finite(draws.losses)
        losses = torch.where(finite[:, None], draws.losses, 0.0)
        gradients = torch.where(per_image(finite)[..., None], draws.gradients, 0.0)
        shared = shared_step(
            self.ball, losses - border, gradients, size=size, sharpness=self.sharpness, n_rounds=self.n_rounds
        )
        weights = shared.weights[:, :, None, None, None]
        return (weights * gradients.double()).sum(1).to(gradients.dtype), per_image(finite)

    def _going(self, queries: Queries, x: Tensor, draws: Draws, left: Tensor, history: History) -> Tensor:
        """Which images go on, (R,)."""
        content = queries.beaten(x, draws.wrong.all(1), share=self.finish, n_draws=self.common, at=left)
        history.finish(left[content])
        return ~content


class Best:
    """Of the points visited, the one with the largest share of wrong draws, ties by mean loss."""

    def __init__(self, x: Tensor) -> None:
        self.images = x.clone()
        self._wrong = torch.full((len(x),), -1.0, dtype=torch.float64, device=x.device)
        self._loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def see(self, x: Tensor, draws: Draws, *, at: Tensor) -> None:
        """Compare points of some images with what is kept."""
        wrong, loss = draws.wrong.double().mean(1), comparable(mean(draws.losses))
        equal = wrong == self._wrong[at]
        better = (wrong > self._wrong[at]) | (equal & (loss > self._loss[at]))
        rows = at[better]
        self.images[rows], self._wrong[rows], self._loss[rows] = x[better], wrong[better], loss[better]
