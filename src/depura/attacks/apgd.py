"""APGD: projected gradient ascent that finds its own step size, untargeted and targeted.

Croce and Hein 2020 (arXiv:2003.01690); for l1 Croce and Hein 2021 (arXiv:2103.01208). The released code judges a
randomised model by the last of its draws; here a point's loss is the mean over all of them, and points to return to are
settled on a common tape (`depura.attacks.climb`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check
from depura.attacks.attack import Candidates, Cheap, Cost, Told, part_of
from depura.attacks.climb import Asking, Climb, rule_for, run
from depura.attacks.eot import Combine, Model, RandomModel, mean
from depura.attacks.growth import Growth
from depura.attacks.history import History
from depura.attacks.losses import Loss, comparable, margin, targeted_dlr
from depura.attacks.queries import Queries, common
from depura.attacks.threat import Ball, per_image
from depura.attacks.warm import Warm
from depura.noise import Noise


@dataclass(frozen=True)
class APGD:
    """Gradient ascent with momentum whose step is halved, and which returns to the best point, where it oscillates.

    Candidates of each restart are the last iterate, the one of the largest mean loss over its own draws and, where
    there is a common tape, the one settled on there.

    Attributes:
        ball: threat model.
        n_steps: gradient steps; one more gradient is taken at the start.
        eot: draws per gradient, at most.
        loss: what is maximised.
        n_restarts: runs, each from a start of its own and on draws of its own.
        rho: share of steps that must raise the loss, or the step is halved.
        common: draws of the common tape; 0 for deterministic models, where an iterate's own loss is exact.
        finish: share of wrong draws on the common tape at which an image is finished; None never.
        combine: how the gradients of the draws become one.
        released_check: compare the first step's loss with 0 instead of the start's, as the released code does.
        growth: how the draws of a gradient grow; default all of them at every point.
        warm: steps through a surrogate before these; default none.
    """

    ball: Ball
    n_steps: int = 100
    eot: int = 1
    loss: Loss = margin
    n_restarts: int = 1
    rho: float = 0.75
    common: int = 16
    finish: float | None = None
    combine: Combine = mean
    released_check: bool = False
    growth: Growth | None = None
    warm: Warm | None = None

    def __post_init__(self) -> None:
        _check.integer("APGD", "n_steps", self.n_steps, low=1, high=65535)
        _check.integer("APGD", "eot", self.eot, low=1)
        _check.integer("APGD", "n_restarts", self.n_restarts, low=1)
        _check.integer("APGD", "common", self.common, low=0)
        _check.number("APGD", "rho", self.rho, low=0.0, high=1.0)
        if self.finish is not None:
            _check.number("APGD", "finish", self.finish, low=0.0, high=1.0, low_open=True)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return (3 if self.common else 2) * self.n_restarts

    @property
    def n_looks(self) -> int:
        """Times that a run looks at the common tape: at the start, at each check and at the end."""
        checks = rule_for(self.ball, n_steps=self.n_steps, rho=self.rho, released=False).checks()
        return 1 + len(checks) + (self.n_steps - 1 not in checks)

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most."""
        whole = _times(self.n_restarts, _of_a_run(self))
        if self.warm is None:
            return whole
        warm = _times(self.n_restarts, _of_a_run(self._warming(self.warm)))
        return whole._replace(surrogates=(Cheap(self.warm.share, warm.gradients, warm.forwards),))

    def at(self, eps: float) -> APGD:
        """The same attack at another radius."""
        return replace(self, ball=replace(self.ball, eps=eps))

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
        """Attack (see `depura.attacks.attack.Attack`).

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: randomness of the starts; default `Noise.fresh`. Restart r uses its step r.
            eot: randomness of the model; copy j at evaluation i of restart r uses draw (r (n_steps + 1) + i) eot + j;
                of the surrogate, as much further as all restarts of the model go.
            rows: images times draws put through the model at once; default all.
            told: called with the share of the work that is done.

        Returns:
            The candidates.

        Raises:
            InputError: images or labels that are not usable, or a warm start on a model without a surrogate.
        """
        queries = Queries("APGD", model, images, labels, noise=eot, rows=rows)
        cheap: Queries | None = None
        if self.warm is not None:
            cheap = Queries("APGD", self.warm.surrogate("APGD", model), images, labels, noise=eot, rows=rows)
        init = Noise.fresh(len(images)) if init is None else init
        history = History(len(images), self.n_restarts * (self.n_steps + 1))
        at = torch.arange(len(images), device=images.device)
        n_kept = 3 if self.common else 2
        points, found = torch.stack([images] * n_kept), list[Tensor]()
        for r in range(self.n_restarts):
            share = part_of(told, before=r, own=1, whole=self.n_restarts)
            if len(at) > 0:
                start = self.ball.surface(images, init, step=r)[at]
                if self.warm is not None and cheap is not None:
                    share, start = self._warmed(self.warm, cheap, images[at], start, at, r, share)
                climb = _climb(self, queries, images[at], start, at, r, history, None, share)
                points = points.index_copy(1, at, torch.stack([climb.last, climb.best, climb.settled][:n_kept]))
                at = at[~history.is_finished(at)]
            elif share is not None:
                share(1.0)
            found.append(points)
        proposed = history.candidates(torch.cat(found), queries.spent)
        return proposed if cheap is None else proposed._replace(surrogate=cheap.spent)

    def _warming(self, warm: Warm) -> APGD:
        """The part of a run that goes through the surrogate: it finishes nothing."""
        return replace(self, n_steps=warm.n_steps, finish=None, warm=None)

    def _warmed(
        self, warm: Warm, cheap: Queries, origin: Tensor, start: Tensor, at: Tensor, r: int, told: Told | None
    ) -> tuple[Told | None, Tensor]:
        """Who hears of the rest of restart r, and where it begins."""
        part = self._warming(warm)
        before, own = warm.n_steps / warm.share, float(self.n_steps)
        share = part_of(told, before=0, own=before, whole=before + own)
        draw = (self.n_restarts * (self.n_steps + 1) + r * (warm.n_steps + 1)) * self.eot
        unseen = History(len(cheap.labels), warm.n_steps + 1)
        climb = _climb(part, cheap, origin, start, at, r, unseen, None, share, draw=draw)
        return part_of(told, before=before, own=own, whole=before + own), climb.settled


@dataclass(frozen=True)
class TargetedAPGD:
    """APGD towards one wrong class after another, the likeliest first.

    Classes are ranked by their mean logit at the image itself, over the common tape (over one draw where `common` is
    0). The candidate is the worst of all runs' settled points: the one with the most wrong draws on the common tape,
    then of the largest mean margin there.

    Attributes:
        ball: threat model.
        n_steps: gradient steps towards each class.
        n_targets: classes; at most all but the label.
        eot: draws per gradient, at most.
        loss: what is maximised; called with the target too.
        rho: share of steps that must raise the loss, or the step is halved.
        common: draws of the common tape; 0 for deterministic models.
        finish: share of wrong draws on the common tape at which an image is finished, and no further class is aimed at.
        combine: how the gradients of the draws become one.
        released_check: compare the first step's loss with 0 instead of the start's, as the released code does.
        growth: how the draws of a gradient grow; default all of them at every point.
    """

    ball: Ball
    n_steps: int = 100
    n_targets: int = 9
    eot: int = 1
    loss: Loss = targeted_dlr
    rho: float = 0.75
    common: int = 16
    finish: float | None = None
    combine: Combine = mean
    released_check: bool = False
    growth: Growth | None = None

    def __post_init__(self) -> None:
        _check.integer("TargetedAPGD", "n_targets", self.n_targets, low=1)
        self._run()

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1

    @property
    def n_looks(self) -> int:
        """Times that a run looks at the common tape."""
        return self._run().n_looks

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most; each class's candidate is looked at on the common tape."""
        whole = _times(self.n_targets, _of_a_run(self._run()))
        return whole._replace(forwards=whole.forwards + (self.n_targets + 1) * max(1, self.common))

    def at(self, eps: float) -> TargetedAPGD:
        """The same attack at another radius."""
        return replace(self, ball=replace(self.ball, eps=eps))

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
        """Attack (see `depura.attacks.attack.Attack`).

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: randomness of the starts; default `Noise.fresh`. Class k uses its step k.
            eot: randomness of the model; copy j at evaluation i towards class k uses draw
                (k (n_steps + 1) + i) eot + j.
            rows: images times draws put through the model at once; default all.
            told: called with the share of the work that is done.

        Returns:
            The candidates.

        Raises:
            InputError: images or labels that are not usable, or more targets than there are wrong classes.
        """
        queries = Queries("TargetedAPGD", model, images, labels, noise=eot, rows=rows)
        init = Noise.fresh(len(images)) if init is None else init
        history = History(len(images), self.n_targets * (self.n_steps + 1))
        tape, settings = common(max(1, self.common)), self._run()
        targets = self._ranked(queries, images, tape)
        worst, errors = images.clone(), torch.full(images.shape[:1], -1.0, dtype=torch.float64, device=images.device)
        margins = torch.full_like(errors, -torch.inf)
        at = torch.arange(len(images), device=images.device)
        for k in range(self.n_targets):
            share = part_of(told, before=k, own=1, whole=self.n_targets)
            if len(at) == 0:
                if share is not None:
                    share(1.0)
                continue
            start = self.ball.surface(images, init, step=k)[at]
            climb = _climb(settings, queries, images[at], start, at, k, history, targets[at, k], share)
            answers = queries.answers(climb.settled, margin, draws=tape, at=at)
            wrong, by = answers.wrong.double().mean(1), comparable(answers.losses.mean(1, dtype=torch.float64))
            worse = (wrong > errors[at]) | ((wrong == errors[at]) & (by > margins[at]))
            worst[at] = torch.where(per_image(worse), climb.settled, worst[at])
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
            growth=self.growth,
        )


def _climb(
    attack: APGD,
    queries: Queries,
    origin: Tensor,
    start: Tensor,
    at: Tensor,
    number: int,
    history: History,
    targets: Tensor | None,
    told: Told | None,
    *,
    draw: int | None = None,
) -> Climb:
    """Run number `number` of an attack, to its end; its first draw is `draw`, by default after all earlier runs'."""
    asking = Asking(attack.loss, attack.eot, attack.common, attack.finish, attack.combine, attack.growth)
    draw = number * (attack.n_steps + 1) * attack.eot if draw is None else draw
    climb = Climb(queries, asking, origin, start, at=at, draw=draw, history=history, targets=targets)
    rule = rule_for(attack.ball, n_steps=attack.n_steps, rho=attack.rho, released=attack.released_check)
    run(climb, rule, attack.n_steps, told=told, first=1.0 if attack.warm is None else attack.warm.first)
    return climb


def _of_a_run(attack: APGD) -> Cost:
    """One gradient more than steps; looks at the common tape, and one at every point to finish."""
    forwards = attack.common * attack.n_looks
    if attack.finish is not None:
        forwards += (attack.n_steps + 1) * max(1, attack.common)
    return Cost(gradients=(attack.n_steps + 1) * attack.eot, forwards=forwards, at_once=attack.eot)


def _times(n: int, cost: Cost) -> Cost:
    return Cost(n * cost.gradients, n * cost.forwards, cost.at_once)
