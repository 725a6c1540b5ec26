"""The run of APGD: gradient ascent on a noisy loss, its step rules, the best point so far, and finished images.

On a randomised model the mean over an iterate's own draws is a noisy number, and the largest of many noisy numbers is
too large. So the point to return to is chosen on common random numbers: the best iterate since the last comparison, the
candidate, is compared with the point kept so far on draws that are the same for both and whose gradients were not
followed. A loss that is not a number is smaller than any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from depura.attacks.attack import History, Progress
from depura.attacks.losses import comparable
from depura.attacks.queries import Queries, common, mean
from depura.attacks.threat import Ball, per_image, signs_of_largest

if TYPE_CHECKING:
    from depura.attacks.apgd import APGD


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

    def adapt(self, climb: Climb, i: int) -> Tensor:
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

    def adapt(self, climb: Climb, i: int) -> Tensor:
        """Aim at two thirds of the entries that the kept point changes; shrink the step while these stay as many."""
        own = climb.own
        entries = ((climb.kept - climb.origin).flatten(1) != 0).sum(1).to(own["entries"].dtype)
        fewer = entries < 0.95 * own["entries"]
        low, high = self.ball.eps / 10, self.ball.eps
        own["step"] = torch.where(fewer, torch.full_like(own["step"], high), own["step"] / 1.5).clamp(low, high)
        own["share"], own["entries"] = entries / climb.x[0].numel() / 1.5, entries
        return fewer


def rule_for(ball: Ball, *, n_steps: int, rho: float, released: bool) -> Oscillation | Sparse:
    """The step rule of a norm."""
    if ball.norm == "l1":
        return Sparse(ball, n_steps)
    return Oscillation(ball, n_steps, rho, released)


def run(climb: Climb, rule: Oscillation | Sparse, n_steps: int, *, progress: Progress, first: float = 1.0) -> None:
    """Make all steps of a rule, the first one shortened to a share, or those until every image has finished."""
    rule.begin(climb)
    climb.own["step"] = first * climb.own["step"]
    checks = rule.checks()
    for i in range(n_steps):
        if len(climb.at) > 0:
            climb.step(rule.propose(climb, i))
            rule.note(climb)
        if len(climb.at) > 0 and i in checks:
            climb.compare()
            climb.restart(rule.adapt(climb, i))
        progress((i + 1) / n_steps)
    if n_steps - 1 not in checks:
        climb.compare()


class Climb:
    """The state of a run; rows leave as their images finish.

    Attributes:
        at: (R,) int64, which images they are.
        origin: (R, C, H, W), the centres of their balls.
        x: where they are.
        before: where the last step began.
        gradient: at x.
        loss: (R,), at x; minus infinity where it is not a number.
        kept: the point to return to.
        kept_gradient: its gradient.
        improved: (R,), whether `kept` changed in the last comparison.
        own: what the step rule remembers of each row, by name.
        last: (N, C, H, W), where each of the N images that began is now, or was when it finished.
        best: (N, C, H, W), the iterate of the largest mean loss over its own draws.
        compared: (N, C, H, W), the best point of the last comparison.
    """

    def __init__(
        self,
        queries: Queries,
        settings: APGD,
        origin: Tensor,
        start: Tensor,
        *,
        at: Tensor,
        number: int,
        history: History,
        targets: Tensor | None = None,
    ) -> None:
        """Evaluate the start.

        Args:
            queries: the model.
            settings: of the attack.
            origin: (R, C, H, W).
            start: (R, C, H, W).
            at: (R,) int64.
            number: of the first gradient; gradient i uses draws i * eot and on.
            history: what the steps are entered into.
            targets: (R,), classes aimed at.
        """
        self.own: dict[str, Tensor] = {}
        self._queries, self._settings, self._history, self._number = queries, settings, history, number
        self._targets = targets
        self._rows = torch.arange(len(at), device=at.device)
        self.last, self.best, self.compared = start.clone(), start.clone(), start.clone()
        self.at, self.origin, self.x, self.before = at, origin, start, start
        self._drawn = torch.zeros_like(at)
        self.gradient, self.loss, wrong = self._evaluate(start)
        self._best_loss = self.loss
        self._candidate, self._candidate_gradient, self._candidate_loss = self.x, self.gradient, self.loss
        self.kept, self.kept_gradient = self.x, self.gradient
        self._kept_loss = self._on_common(self.x) if settings.common else self.loss
        self.improved = torch.zeros_like(self.loss, dtype=torch.bool)
        self._leave(wrong)

    def step(self, x: Tensor) -> None:
        """Go to x (R, C, H, W), and evaluate it. Where the gradient here is not finite, stay."""
        finite = per_image(self.gradient.flatten(1).isfinite().all(1))
        self.before, self.x = self.x, torch.where(finite, x, self.x)
        self.gradient, self.loss, wrong = self._evaluate(self.x)
        better = self.loss > self._best_loss
        self.best[self._rows] = torch.where(per_image(better), self.x, self.best[self._rows])
        self._best_loss = torch.where(better, self.loss, self._best_loss)
        ahead = self.loss > self._candidate_loss
        self._candidate = torch.where(per_image(ahead), self.x, self._candidate)
        self._candidate_gradient = torch.where(per_image(ahead), self.gradient, self._candidate_gradient)
        self._candidate_loss = torch.where(ahead, self.loss, self._candidate_loss)
        self.last[self._rows] = self.x
        self._leave(wrong)

    def compare(self) -> None:
        """Keep the better of the candidate, the best point since the last comparison, and the point kept so far."""
        if len(self.at) == 0:
            return
        found = self._on_common(self._candidate) if self._settings.common else self._candidate_loss
        self.improved = found > self._kept_loss
        wins = per_image(self.improved)
        self.kept = torch.where(wins, self._candidate, self.kept)
        self.kept_gradient = torch.where(wins, self._candidate_gradient, self.kept_gradient)
        self._kept_loss = torch.where(self.improved, found, self._kept_loss)
        self.compared[self._rows] = self.kept
        if self._settings.common:
            self._candidate_loss = torch.full_like(self._candidate_loss, -torch.inf)

    def restart(self, where: Tensor) -> None:
        """Return to the kept point where (R,) says so."""
        self.x = torch.where(per_image(where), self.kept, self.x)
        self.gradient = torch.where(per_image(where), self.kept_gradient, self.gradient)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        settings = self._settings
        means = self._queries.mean_gradient(
            x,
            settings.loss,
            settings.eot,
            number=self._number,
            combine=settings.combine,
            drawn=self._drawn,
            at=self.at,
            targets=self._targets,
        )
        self._number += 1
        self._drawn = means.drawn
        self._history.add(means.loss, means.health, at=self.at)
        return means.gradient, comparable(means.loss), means.wrong

    def _on_common(self, x: Tensor) -> Tensor:
        draws = common(self._settings.common)
        losses = self._queries.losses(x, self._settings.loss, draws=draws, at=self.at, targets=self._targets)
        return comparable(mean(losses))

    def _leave(self, wrong: Tensor) -> None:
        """Images whose every draw was wrong here leave with this point if common random numbers say so too."""
        share, n_draws = self._settings.finish, max(1, self._settings.common)
        leaves = self._queries.beaten(self.x, wrong, share=share, n_draws=n_draws, at=self.at)
        if not bool(leaves.any()):
            return
        rows = self._rows[leaves]
        for point in (self.last, self.best, self.compared):
            point[rows] = self.x[leaves]
        self._history.finish(self.at[leaves])
        self._keep(~leaves)

    def _keep(self, stays: Tensor) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in ("last", "best", "compared"):
                setattr(self, name, value[stays])
        self.own = {name: value[stays] for name, value in self.own.items()}
