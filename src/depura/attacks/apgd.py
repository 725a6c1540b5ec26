"""APGD: projected gradient ascent that finds its own step size, untargeted, targeted, and from a warm start.

Croce and Hein 2020 (arXiv:2003.01690); for l1 Croce and Hein 2021 (arXiv:2103.01208). The released code judges a
randomised model by the last of its draws; here a point's loss is the mean over all of them, and points to return to are
compared on common random numbers (`depura.attacks.climb`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cheap, Cost, History, Progress, check_finish, part_of
from depura.attacks.climb import Climb, rule_for, run
from depura.attacks.losses import Loss, comparable, margin, targeted_dlr
from depura.attacks.queries import EOT, Combine, Queries, RandomModel, common, mean, most_draws
from depura.attacks.threat import Ball, Threat, per_image
from depura.noise import Noise

Start = Callable[[int, Tensor, Progress], Tensor]
"""(number of the restart, images (R,), progress) -> where it begins, (R, C, H, W)."""


@dataclass(frozen=True)
class APGD(Attack):
    """Gradient ascent with momentum whose step is halved, and which returns to the best point, where it oscillates.

    Candidates of each restart are the last iterate, the one of the largest mean loss over its own draws and, where
    points are compared on common random numbers, the best of that comparison.

    Attributes:
        ball: threat model.
        n_steps: gradient steps; one more gradient is taken at the start.
        eot: draws per gradient, a number or `AdaptiveDraws`.
        loss: what is maximised.
        n_restarts: runs, each from a start of its own and on draws of its own.
        rho: share of steps that must raise the loss, or the step is halved.
        common: draws of the common random numbers; 0 for deterministic models, where an iterate's own loss is exact.
        finish: share of wrong draws of the common random numbers at which an image is finished; None never.
        combine: how the gradients of the draws become one.
        released_check: compare the first step's loss with 0 instead of the start's, as the released code does.
    """

    ball: Ball
    n_steps: int = 100
    eot: EOT = 1
    loss: Loss = margin
    n_restarts: int = 1
    rho: float = 0.75
    common: int = 16
    finish: float | None = None
    combine: Combine = mean
    released_check: bool = False

    def __post_init__(self) -> None:
        _check.integer("APGD", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("APGD", "eot", most_draws(self.eot), low=1)
        _check.integer("APGD", "n_restarts", self.n_restarts, low=1)
        _check.integer("APGD", "common", self.common, low=0)
        _check.number("APGD", "rho", self.rho, low=0.0, high=1.0)
        check_finish("APGD", self.finish)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return (3 if self.common else 2) * self.n_restarts

    @property
    def n_comparisons(self) -> int:
        """Times that a run compares points on common random numbers: at the start, at each check and at the end."""
        checks = rule_for(self.ball, n_steps=self.n_steps, rho=self.rho, released=False).checks()
        return 1 + len(checks) + (self.n_steps - 1 not in checks)

    @property
    def cost_of_run(self) -> Cost:
        """One gradient more than steps; comparisons on common random numbers, and one at every point to finish."""
        forwards = self.common * self.n_comparisons
        if self.finish is not None:
            forwards += (self.n_steps + 1) * max(1, self.common)
        eot = most_draws(self.eot)
        return Cost(gradients=(self.n_steps + 1) * eot, forwards=forwards, at_once=eot)

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most."""
        return self.cost_of_run.times(self.n_restarts)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Restart r uses step r of `init`; copy j at its evaluation i uses draw (r (n_steps + 1) + i) eot + j."""

        def start(restart: int, at: Tensor, progress: Progress) -> Tensor:
            return self.ball.surface(images, init, step=restart)[at]

        return self.search_from(start, queries, images, progress)

    def search_from(
        self,
        start: Start,
        queries: Queries,
        images: Tensor,
        progress: Progress,
        *,
        first: float = 1.0,
        start_share: float = 0.0,
    ) -> Candidates:
        """As `search`, from other starts.

        Args:
            start: where each restart begins.
            queries: the model under attack.
            images: (B, C, H, W) in [0, 1].
            progress: called with the share of the work that is done.
            first: length of the first step, as a share of the attack's own.
            start_share: work of finding a start, in steps.

        Returns:
            The candidates.
        """
        history = History(len(images), self.n_restarts * (self.n_steps + 1))
        at = torch.arange(len(images), device=images.device)
        n_kept = 3 if self.common else 2
        points, proposed = torch.stack([images] * n_kept), list[Tensor]()
        for r in range(self.n_restarts):
            share = part_of(progress, before=r, own=1, whole=self.n_restarts)
            if len(at) > 0:
                begin = start(r, at, share)
                number = r * (self.n_steps + 1)
                steps = part_of(share, before=start_share, own=self.n_steps, whole=start_share + self.n_steps)
                climb = self.climb(queries, images[at], begin, at, steps, number=number, history=history, first=first)
                points = points.index_copy(1, at, torch.stack([climb.last, climb.best, climb.compared][:n_kept]))
                at = at[~history.is_finished(at)]
            share(1.0)
            proposed.append(points)
        return history.candidates(torch.cat(proposed), queries.spent)

    def climb(
        self,
        queries: Queries,
        origin: Tensor,
        start: Tensor,
        at: Tensor,
        progress: Progress,
        *,
        number: int,
        history: History,
        targets: Tensor | None = None,
        first: float = 1.0,
    ) -> Climb:
        """One run, to its end.

        Args:
            queries: the model under attack.
            origin: the images, (R, C, H, W).
            start: where it begins, (R, C, H, W).
            at: (R,), which images they are.
            progress: called with the share of the steps that is done.
            number: of the first gradient.
            history: what the steps are entered into.
            targets: (R,), classes aimed at.
            first: length of the first step, as a share of the attack's own.

        Returns:
            The run, with its last point, its best one and the best in comparisons on common random numbers.
        """
        climb = Climb(queries, self, origin, start, at=at, number=number, history=history, targets=targets)
        rule = rule_for(self.ball, n_steps=self.n_steps, rho=self.rho, released=self.released_check)
        run(climb, rule, self.n_steps, progress=progress, first=first)
        return climb


@dataclass(frozen=True)
class WarmStart(Attack):
    """APGD that begins where another APGD through a surrogate of fewer steps has ended.

    The surrogate is the model with one step of its reverse process for every `share` steps (Lee and Kim 2023,
    arXiv:2303.09051), which the model gives: `model.coarser(share)`, as a `Defence` does. What is found on it is a
    start and no more: its losses are not compared with the model's, nothing is finished by it, and the candidates are
    points that the model itself has been evaluated at.

    Attributes:
        attack: the attack on the model.
        n_steps: gradient steps through the surrogate before each restart; one more gradient is taken at the start.
        share: steps of the reverse process for each step of the surrogate, at least 2.
        first: length of the first of the attack's own steps, as a share of the length it would have without this, in
            (0, 1]: from a full step the start would be lost.
    """

    attack: APGD
    n_steps: int = 50
    share: int = 5
    first: float = 0.25

    def __post_init__(self) -> None:
        _check.integer("WarmStart", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("WarmStart", "share", self.share, low=2)
        _check.number("WarmStart", "first", self.first, low=0.0, high=1.0, low_open=True)

    @property
    def ball(self) -> Threat:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Threat model."""
        return self.attack.ball

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return self.attack.n_candidates

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most."""
        surrogate = self._on_surrogate.cost
        cheap = Cheap(self.share, surrogate.gradients, surrogate.forwards)
        return self.attack.cost._replace(surrogates=(cheap,))

    @property
    def _on_surrogate(self) -> APGD:
        return replace(self.attack, n_steps=self.n_steps, finish=None)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """As the attack; the surrogate's draws come after all of the model's."""
        coarser = getattr(queries.model, "coarser", None)
        if not callable(coarser):
            what = "a model with a surrogate, model.coarser(share), such as a Defence with a purifier"
            _check.fail(self.title, what, type(queries.model).__name__, "Leave the warm start out.")
        model = cast("Callable[[int], RandomModel]", coarser)(self.share)
        cheap = Queries(self.title, model, images, queries.labels, noise=queries.noise, rows=queries.rows)
        attack, inner = self.attack, self._on_surrogate
        before = self.n_steps / self.share

        def start(restart: int, at: Tensor, progress: Progress) -> Tensor:
            begin = attack.ball.surface(images, init, step=restart)[at]
            number = attack.n_restarts * (attack.n_steps + 1) + restart * (self.n_steps + 1)
            share = part_of(progress, before=0, own=before, whole=before + attack.n_steps)
            history = History(len(images), self.n_steps + 1)
            return inner.climb(cheap, images[at], begin, at, share, number=number, history=history).compared

        found = attack.search_from(start, queries, images, progress, first=self.first, start_share=before)
        return found._replace(surrogate=cheap.spent)


@dataclass(frozen=True)
class TargetedAPGD(Attack):
    """APGD towards one wrong class after another, the likeliest first.

    Classes are ranked by their mean logit at the image itself, over common random numbers (over one draw where `common`
    is 0). The candidate is the worst of the points that the runs end with: the one with the most wrong draws on common
    random numbers, then of the largest mean margin there.

    Attributes:
        ball: threat model.
        n_steps: gradient steps towards each class.
        n_targets: classes; at most all but the label.
        eot: draws per gradient, a number or `AdaptiveDraws`.
        loss: what is maximised; called with the target too.
        rho: share of steps that must raise the loss, or the step is halved.
        common: draws of the common random numbers; 0 for deterministic models.
        finish: share of wrong draws of them at which an image is finished, and no further class is aimed at.
        combine: how the gradients of the draws become one.
        released_check: compare the first step's loss with 0 instead of the start's, as the released code does.
    """

    ball: Ball
    n_steps: int = 100
    n_targets: int = 9
    eot: EOT = 1
    loss: Loss = targeted_dlr
    rho: float = 0.75
    common: int = 16
    finish: float | None = None
    combine: Combine = mean
    released_check: bool = False

    def __post_init__(self) -> None:
        _check.integer("TargetedAPGD", "n_targets", self.n_targets, low=1)
        self._run()

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most; each class's candidate is evaluated on the common random numbers."""
        whole = self._run().cost_of_run.times(self.n_targets)
        return whole._replace(forwards=whole.forwards + (self.n_targets + 1) * max(1, self.common))

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Class k uses step k of `init`; copy j at evaluation i towards it uses draw (k (n_steps + 1) + i) eot + j."""
        history = History(len(images), self.n_targets * (self.n_steps + 1))
        draws, attack = common(max(1, self.common)), self._run()
        targets = self._ranked(queries, images, draws)
        worst, errors = images.clone(), torch.full(images.shape[:1], -1.0, dtype=torch.float64, device=images.device)
        margins = torch.full_like(errors, -torch.inf)
        at = torch.arange(len(images), device=images.device)
        for k in range(self.n_targets):
            share = part_of(progress, before=k, own=1, whole=self.n_targets)
            if len(at) == 0:
                share(1.0)
                continue
            start, number = self.ball.surface(images, init, step=k)[at], k * (self.n_steps + 1)
            climb = attack.climb(
                queries, images[at], start, at, share, number=number, history=history, targets=targets[at, k]
            )
            answers = queries.answers(climb.compared, margin, draws=draws, at=at)
            wrong, by = answers.wrong.double().mean(1), comparable(answers.losses.mean(1, dtype=torch.float64))
            worse = (wrong > errors[at]) | ((wrong == errors[at]) & (by > margins[at]))
            worst[at] = torch.where(per_image(worse), climb.compared, worst[at])
            errors[at], margins[at] = torch.where(worse, wrong, errors[at]), torch.where(worse, by, margins[at])
            at = at[~history.is_finished(at)]
        return history.candidates(worst[None], queries.spent)

    def _ranked(self, queries: Queries, images: Tensor, draws: range) -> Tensor:
        """The classes aimed at, (B, n_targets)."""
        logits = queries.logits(images, draws=draws).mean(1, dtype=torch.float64)
        n_classes = logits.shape[1]
        if self.n_targets > n_classes - 1:
            _check.fail("TargetedAPGD", f"at most {n_classes - 1} targets for {n_classes} classes", f"{self.n_targets}")
        # Classes without a finite mean logit come last, and only the label after them.
        logits = torch.where(logits.isfinite(), logits, torch.finfo(logits.dtype).min)
        own = F.one_hot(queries.labels, n_classes).bool()
        return logits.masked_fill(own, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, : self.n_targets]

    def _run(self) -> APGD:
        """One run."""
        return APGD(
            self.ball,
            n_steps=self.n_steps,
            eot=self.eot,
            loss=self.loss,
            rho=self.rho,
            common=self.common,
            finish=self.finish,
            combine=self.combine,
            released_check=self.released_check,
        )
