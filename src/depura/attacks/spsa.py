"""SPSA: gradient ascent on a gradient that is estimated from pairs of losses.

Simultaneous perturbation, Uesato et al. 2018 (arXiv:1802.05666); with Gaussian directions natural evolution
strategies, Ilyas et al. 2018 (arXiv:1804.08598). Needs no gradient, so that it is a check of attacks that do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress, check_finish
from depura.attacks.losses import Loss, margin
from depura.attacks.numbers import numbered
from depura.attacks.queries import Queries, mean
from depura.attacks.threat import Ball, per_image
from depura.noise import Kind, Noise


class Directions(Protocol):
    """Independent symmetric numbers of variance 1."""

    def __call__(self, like: Tensor, noise: Noise, *, step: int) -> Tensor:
        """Directions u like images (R, C, H, W), one noise id per row."""
        ...

    def reach(self, room: Tensor, delta: float) -> Tensor:
        """E[|u| min(delta |u|, room)]: what of delta remains, on average, where only so much room is left."""
        ...


@dataclass(frozen=True)
class Rademacher:
    """Signs: SPSA. Spall 1992; as an attack Uesato et al. 2018 (arXiv:1802.05666)."""

    def __call__(self, like: Tensor, noise: Noise, *, step: int) -> Tensor:
        """Directions."""
        words = noise.bits(like.shape, kind=Kind.ATTACK, step=step, device=like.device)
        return torch.where(words < 2**31, -1.0, 1.0).to(like.dtype)

    def reach(self, room: Tensor, delta: float) -> Tensor:
        """The smaller of both."""
        return room.clamp_max(delta)


@dataclass(frozen=True)
class Gaussian:
    """Normal numbers: natural evolution strategies. Ilyas et al. 2018 (arXiv:1804.08598)."""

    def __call__(self, like: Tensor, noise: Noise, *, step: int) -> Tensor:
        """Directions."""
        return noise(like, kind=Kind.ATTACK, step=step)

    def reach(self, room: Tensor, delta: float) -> Tensor:
        """Delta times the chance of a move within the room, by Stein's identity."""
        return delta * torch.erf(room / (delta * 2**0.5))


class Estimate(NamedTuple):
    """What the pairs around R points said.

    Attributes:
        loss: (R,), mean over all members and draws.
        gradient: (R, C, H, W), of the mean loss.
        wrong: (R,), whether all members and draws are misclassified.
    """

    loss: Tensor
    gradient: Tensor
    wrong: Tensor


@dataclass(frozen=True)
class SPSA(Attack):
    """x <- project(x + step * direction(mean over pairs of (L(x + delta u) - L(x - delta u)) u / (2 delta))).

    Both members of a pair are asked on the same draws of the model, so that they differ by delta u alone; other pairs
    are asked on other draws. On draws of their own the difference, divided by 2 delta, would be nearly all noise.

    The members are brought into [0, 1], pixel by pixel, so near the border a pixel moves less than it should. Its
    estimate is therefore divided by the mean product of its move and its direction instead of by 2 delta, which keeps
    it unbiased for a loss that is linear about x. Members may lie delta outside the ball; candidates do not.

    The search begins at the image. Candidates are the last iterate and, of the iterates before it, the one with the
    largest mean loss of its pairs; these losses are recorded.

    Attributes:
        ball: threat model.
        n_steps: steps.
        n_pairs: pairs per step.
        delta: distance of the members from the iterate, for each pixel, > 0.
        step_size: length of a step in the ball's norm; default eps / 8.
        eot: draws per pair.
        loss: what is maximised.
        directions: how u is drawn.
        finish: leave an image alone at an iterate that is misclassified in at least this share of `common` draws of
            common random numbers, in (0, 1]. Asked at each step but the last, and only where all answers of the step
            were wrong. Default: go on to the end.
        common: draws of common random numbers.
    """

    ball: Ball
    n_steps: int = 40
    n_pairs: int = 128
    delta: float = 0.001
    step_size: float | None = None
    eot: int = 1
    loss: Loss = margin
    directions: Directions = field(default_factory=Rademacher)
    finish: float | None = None
    common: int = 32

    def __post_init__(self) -> None:
        _check.integer("SPSA", "n_steps", self.n_steps, low=1)
        _check.integer("SPSA", "n_pairs", self.n_pairs, low=1)
        _check.integer("SPSA", "n_steps times n_pairs", self.n_steps * self.n_pairs, high=2**23)
        _check.number("SPSA", "delta", self.delta, low=0.0, high=0.5, low_open=True)
        if self.step_size is not None:
            _check.number("SPSA", "step_size", self.step_size, low=0.0, low_open=True)
        _check.integer("SPSA", "eot", self.eot, low=1)
        check_finish("SPSA", self.finish)
        _check.integer("SPSA", "common", self.common, low=1)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 2

    @property
    def cost(self) -> Cost:
        """Evaluations per image: of both members of every pair, and the most that `finish` can ask."""
        forwards = self.n_steps * self.n_pairs * 2 * self.eot
        if self.finish is None:
            return Cost(gradients=0, forwards=forwards, at_once=2 * self.eot)
        forwards += (self.n_steps - 1) * self.common
        return Cost(gradients=0, forwards=forwards, at_once=max(2 * self.eot, self.common))

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Ascend along estimated gradients.

        Pair p of step i has number n = i * n_pairs + p, of which the lower 16 bits are the step of its direction in
        `init` and the others are added to the round; copy j of both of its members uses draw n * eot + j.
        """
        history = History(len(images), self.n_steps)
        step_size = self.ball.eps / 8 if self.step_size is None else self.step_size
        x, best = images.clone(), images.clone()
        best_loss = images.new_full((len(images),), -torch.inf)
        at = torch.arange(len(images), device=images.device)
        for i in range(self.n_steps):
            here = x[at]
            noise = init.take(at)
            loss, gradient, wrong = self.estimate(queries, here, noise, at=at, step=i)
            history.add(loss, at=at)
            better = loss > best_loss[at]
            best[at[better]], best_loss[at[better]] = here[better], loss[better]
            if self.finish is not None and i + 1 < self.n_steps:
                beaten = queries.beaten(here, wrong, share=self.finish, n_draws=self.common, at=at)
                history.finish(at[beaten])
                at, here, gradient = at[~beaten], here[~beaten], gradient[~beaten]
            finite = per_image(gradient.flatten(1).isfinite().all(1))
            moved = self.ball.project(here + step_size * self.ball.unit(gradient), images[at])
            x[at] = torch.where(finite, moved, here)
            progress((i + 1) / self.n_steps if len(at) else 1.0)
            if not len(at):
                break
        return history.candidates(torch.stack((x, best)), queries.spent)

    def estimate(self, queries: Queries, x: Tensor, noise: Noise, *, at: Tensor, step: int) -> Estimate:
        """What the pairs of one step say.

        Args:
            queries: the model.
            x: points, (R, C, H, W) in [0, 1].
            noise: randomness of the directions, one image id per row.
            at: (R,), distinct, which image each row is a point for.
            step: its number.

        Returns:
            The estimate.
        """
        both = torch.cat((at, at))
        total, slope = torch.zeros_like(x[:, 0, 0, 0]), torch.zeros_like(x)
        wrong = torch.ones_like(at, dtype=torch.bool)
        for number in range(step * self.n_pairs, (step + 1) * self.n_pairs):
            addressed, address = numbered(noise, number)
            u = self.directions(x, addressed, step=address)
            members = torch.cat((x + self.delta * u, x - self.delta * u)).clamp(0, 1)
            draws = range(number * self.eot, (number + 1) * self.eot)
            answers = queries.answers(members, self.loss, draws=draws, at=both)
            up, down = mean(answers.losses).chunk(2)
            total, slope = total + (up + down) / 2, slope + per_image(up - down) * u
            wrong = wrong & answers.wrong.reshape(2, len(at), -1).all(2).all(0)
        above, below = (self.directions.reach(room.clamp_min(0), self.delta) for room in (1 - x, x))
        return Estimate(total / self.n_pairs, slope / (self.n_pairs * (above + below)), wrong)
