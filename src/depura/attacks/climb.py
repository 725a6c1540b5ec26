"""Climbing a noisy loss: where an attack is, the best point so far, and which images are finished.

On a randomised model the mean over an iterate's own draws is a noisy number, and the largest of many noisy numbers is
too large. So the point to return to is settled on a common tape: the best iterate since the last time meets the one
kept so far on draws that are the same for both and that nothing has ascended. A loss that is not a number is smaller
than any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depura.attacks.ball import per_image
from depura.attacks.eot import Combine, mean
from depura.attacks.growth import Growth, look
from depura.attacks.history import History
from depura.attacks.losses import Loss, comparable
from depura.attacks.queries import Queries, common


@dataclass(frozen=True)
class Asking:
    """How a climb asks the model.

    Attributes:
        loss: what is maximised.
        eot: draws per gradient, at most.
        common: draws of the common tape; 0 trusts an iterate's own mean, as one may on a deterministic model.
        finish: share of wrong draws on the common tape at which an image is finished; None never.
        combine: how the gradients of the draws become one.
        growth: how the draws grow; None makes all of them at every point.
    """

    loss: Loss
    eot: int
    common: int
    finish: float | None
    combine: Combine
    growth: Growth | None = None


class Climb:
    """The state of the images that are still climbing; rows leave as they finish.

    Attributes:
        at: (R,) int64, which images they are.
        origin: (R, C, H, W), the centres of their balls.
        x: where they are.
        before: where the last step began.
        gradient: at x.
        loss: (R,), at x; minus infinity where it is not a number.
        kept: the point to return to.
        kept_gradient: its gradient.
        improved: (R,), whether `kept` changed when it was last settled.
        own: what the rule that drives the climb remembers of each row, by name.
        last: (N, C, H, W), where each of the N images that began is now, or was when it finished.
        best: (N, C, H, W), the iterate of the largest mean loss over its own draws.
        settled: (N, C, H, W), the point last settled on.
    """

    def __init__(
        self,
        queries: Queries,
        asking: Asking,
        origin: Tensor,
        start: Tensor,
        *,
        at: Tensor,
        draw: int,
        history: History,
        targets: Tensor | None = None,
    ) -> None:
        """Look around at the start.

        Args:
            queries: the model.
            asking: how it is asked.
            origin: (R, C, H, W).
            start: (R, C, H, W).
            at: (R,) int64.
            draw: first draw of the model that may be used.
            history: what the steps are entered into.
            targets: (R,), classes aimed at.
        """
        self.own: dict[str, Tensor] = {}
        self._queries, self._asking, self._history, self._draw = queries, asking, history, draw
        self._targets = targets
        self._rows = torch.arange(len(at), device=at.device)
        self.last, self.best, self.settled = start.clone(), start.clone(), start.clone()
        self.at, self.origin, self.x, self.before = at, origin, start, start
        self._drawn = torch.zeros_like(at)
        self.gradient, self.loss, wrong = self._look(start)
        self._best_loss = self.loss
        self._contender, self._contender_gradient, self._contender_loss = self.x, self.gradient, self.loss
        self.kept, self.kept_gradient = self.x, self.gradient
        self._kept_loss = self._on_common(self.x) if asking.common else self.loss
        self.improved = torch.zeros_like(self.loss, dtype=torch.bool)
        self._leave(wrong)

    def step(self, x: Tensor) -> None:
        """Go to x (R, C, H, W), and look around. Where the gradient here is not finite, stay."""
        finite = per_image(self.gradient.flatten(1).isfinite().all(1))
        self.before, self.x = self.x, torch.where(finite, x, self.x)
        self.gradient, self.loss, wrong = self._look(self.x)
        better = self.loss > self._best_loss
        self.best[self._rows] = torch.where(per_image(better), self.x, self.best[self._rows])
        self._best_loss = torch.where(better, self.loss, self._best_loss)
        ahead = self.loss > self._contender_loss
        self._contender = torch.where(per_image(ahead), self.x, self._contender)
        self._contender_gradient = torch.where(per_image(ahead), self.gradient, self._contender_gradient)
        self._contender_loss = torch.where(ahead, self.loss, self._contender_loss)
        self.last[self._rows] = self.x
        self._leave(wrong)

    def settle(self) -> None:
        """Decide between the best point since the last time and the one kept, and begin anew to look for the best."""
        if len(self.at) == 0:
            return
        found = self._on_common(self._contender) if self._asking.common else self._contender_loss
        self.improved = found > self._kept_loss
        wins = per_image(self.improved)
        self.kept = torch.where(wins, self._contender, self.kept)
        self.kept_gradient = torch.where(wins, self._contender_gradient, self.kept_gradient)
        self._kept_loss = torch.where(self.improved, found, self._kept_loss)
        self.settled[self._rows] = self.kept
        if self._asking.common:
            self._contender_loss = torch.full_like(self._contender_loss, -torch.inf)

    def go_back(self, where: Tensor) -> None:
        """Return to the kept point where (R,) says so."""
        self.x = torch.where(per_image(where), self.kept, self.x)
        self.gradient = torch.where(per_image(where), self.kept_gradient, self.gradient)

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ask = self._asking
        numbers = range(self._draw, self._draw + ask.eot)
        self._draw += ask.eot
        seen = look(
            self._queries,
            x,
            ask.loss,
            draws=numbers,
            combine=ask.combine,
            growth=ask.growth,
            drawn=self._drawn,
            at=self.at,
            targets=self._targets,
        )
        self._drawn = seen.drawn
        self._history.add(seen.loss, seen.health, at=self.at)
        return seen.gradient, comparable(seen.loss), seen.wrong

    def _on_common(self, x: Tensor) -> Tensor:
        draws = common(self._asking.common)
        losses = self._queries.losses(x, self._asking.loss, draws=draws, at=self.at, targets=self._targets)
        return comparable(mean(losses))

    def _leave(self, wrong: Tensor) -> None:
        """Images whose every draw was wrong here are asked on the common tape, and leave with this point if beaten."""
        share, n_draws = self._asking.finish, max(1, self._asking.common)
        leaves = self._queries.beaten(self.x, wrong, share=share, n_draws=n_draws, at=self.at)
        if not bool(leaves.any()):
            return
        rows = self._rows[leaves]
        for point in (self.last, self.best, self.settled):
            point[rows] = self.x[leaves]
        self._history.finish(self.at[leaves])
        self._keep(~leaves)

    def _keep(self, stays: Tensor) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in ("last", "best", "settled"):
                setattr(self, name, value[stays])
        self.own = {name: value[stays] for name, value in self.own.items()}
