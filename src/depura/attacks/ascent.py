"""How APGD moves: steps with momentum that halve when they oscillate, and sparse steps for the l1 ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from depura.attacks.attack import Told
from depura.attacks.ball import Ball, per_image, signs_of_largest
from depura.attacks.climb import Climb


class Rule(Protocol):
    """How a climb moves, and when it settles."""

    def checks(self) -> tuple[int, ...]:
        """Steps after which the climb settles and the rule thinks again, rising."""
        ...

    def begin(self, climb: Climb) -> None:
        """Before the first step."""
        ...

    def propose(self, climb: Climb, i: int) -> Tensor:
        """The next point, (R, C, H, W)."""
        ...

    def note(self, climb: Climb) -> None:
        """After each step."""
        ...

    def think(self, climb: Climb, i: int) -> Tensor:
        """After the climb has settled: adapt, and say which rows go back to the kept point, (R,) bool."""
        ...


@dataclass(frozen=True)
class Oscillation:
    """Steps with momentum; halved where the loss does not rise often enough (linf and l2).

    Croce and Hein 2020 (arXiv:2003.01690), algorithm 1 with its conditions 1 and 2. Losses are those of the
    iterates, the start's first.

    Attributes:
        ball: threat model.
        n_steps: steps in all.
        rho: share of steps that must raise the loss.
        released: compare the first step's loss with 0, as the released code's history does, instead of the start's.
    """

    ball: Ball
    n_steps: int
    rho: float
    released: bool

    def checks(self) -> tuple[int, ...]:
        """Steps at fractions 0, .22 and then gaps that shrink by .03 to .06."""
        n = self.n_steps
        window, least, shrink = (max(int(share * n), 1) for share in (0.22, 0.06, 0.03))
        found: list[int] = []
        at = window - 1
        while at < n:
            found.append(at)
            window = max(window - shrink, least)
            at += window
        return tuple(found)

    def begin(self, climb: Climb) -> None:
        """Step size 2 eps; nothing to compare with yet."""
        first = torch.zeros_like(climb.loss) if self.released else climb.loss
        climb.own = {
            "step": torch.full_like(climb.loss, 2 * self.ball.eps),
            "risen": torch.zeros_like(climb.loss),
            "before": first,
            "reduced": torch.ones_like(climb.improved),
        }

    def propose(self, climb: Climb, i: int) -> Tensor:
        """A step along the gradient, and a quarter of the last one."""
        share = 0.75 if i > 0 else 1.0
        step = per_image(climb.own["step"])
        ahead = self.ball.project(climb.x + step * self.ball.unit(climb.gradient), climb.origin)
        mixed = climb.x + share * (ahead - climb.x) + (1 - share) * (climb.x - climb.before)
        return self.ball.project(mixed, climb.origin)

    def note(self, climb: Climb) -> None:
        """Count the steps that raised the loss."""
        own = climb.own
        own["risen"] = own["risen"] + (climb.loss > own["before"])
        own["before"] = climb.loss

    def think(self, climb: Climb, i: int) -> Tensor:
        """Halve and go back where too few steps rose, or where nothing was gained at a step size that was kept."""
        own, checks = climb.own, self.checks()
        window = i - (checks[checks.index(i) - 1] if i != checks[0] else -1)
        rarely = own["risen"] <= self.rho * window
        back = rarely | (~own["reduced"] & ~climb.improved)
        own["step"] = torch.where(back, own["step"] / 2, own["step"])
        own["reduced"], own["risen"] = back, torch.zeros_like(own["risen"])
        return back


@dataclass(frozen=True)
class Sparse:
    """Steps of sign on a few of the largest entries of the gradient; as many as the best point so far needs (l1).

    Croce and Hein 2021 (arXiv:2103.01208), section 4.

    Attributes:
        ball: threat model.
        n_steps: steps in all.
    """

    ball: Ball
    n_steps: int

    def checks(self) -> tuple[int, ...]:
        """Every 4 % of the steps."""
        every = max(int(0.04 * self.n_steps), 1)
        return tuple(range(every - 1, self.n_steps, every))

    def begin(self, climb: Climb) -> None:
        """Step size eps; a fifth of the entries."""
        n = climb.x[0].numel()
        climb.own = {
            "step": torch.full_like(climb.loss, self.ball.eps),
            "share": torch.full_like(climb.loss, 0.2),
            "entries": torch.full_like(climb.loss, n),
        }

    def propose(self, climb: Climb, i: int) -> Tensor:
        """A step of l1 length `step`, projected."""
        n = climb.x[0].numel()
        direction = signs_of_largest(climb.gradient, (climb.own["share"] * n).long().clamp(1, n))
        return self.ball.project(climb.x + per_image(climb.own["step"]) * direction, climb.origin)

    def note(self, climb: Climb) -> None:
        """Nothing: the points say all."""

    def think(self, climb: Climb, i: int) -> Tensor:
        """Aim at two thirds of the entries that the kept point changes; shrink the step while these stay as many."""
        own = climb.own
        entries = ((climb.kept - climb.origin).flatten(1) != 0).sum(1).to(own["entries"].dtype)
        fewer = entries < 0.95 * own["entries"]
        low, high = self.ball.eps / 10, self.ball.eps
        own["step"] = torch.where(fewer, torch.full_like(own["step"], high), own["step"] / 1.5).clamp(low, high)
        own["share"], own["entries"] = entries / climb.x[0].numel() / 1.5, entries
        return fewer


def rule_for(ball: Ball, *, n_steps: int, rho: float, released: bool) -> Rule:
    """The rule of a norm."""
    if ball.norm == "l1":
        return Sparse(ball, n_steps)
    return Oscillation(ball, n_steps, rho, released)


def run(climb: Climb, rule: Rule, n_steps: int, *, told: Told | None, first: float = 1.0) -> None:
    """Climb to the end, or until every image has finished.

    Args:
        climb: at its start.
        rule: how it moves.
        n_steps: how far.
        told: called with the share of the steps that is done.
        first: length of the first step, as a share of the rule's own.
    """
    rule.begin(climb)
    climb.own["step"] = first * climb.own["step"]
    checks = rule.checks()
    for i in range(n_steps):
        if len(climb.at) > 0:
            climb.step(rule.propose(climb, i))
            rule.note(climb)
        if len(climb.at) > 0 and i in checks:
            climb.settle()
            climb.go_back(rule.think(climb, i))
        if told is not None:
            told((i + 1) / n_steps)
    if n_steps - 1 not in checks:
        climb.settle()
