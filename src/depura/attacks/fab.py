"""FAB, the fast adaptive boundary attack: the smallest change that alters the class of a deterministic model.

Croce and Hein 2020 (arXiv:1907.02044). Where the other attacks look for the largest loss in a ball, this one uses no
radius while it moves: it follows the boundary between classes towards the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress, check_finish, part_of
from depura.attacks.losses import margin, targeted_margin
from depura.attacks.queries import Queries
from depura.attacks.threat import Ball, Norm, only, per_image
from depura.defence import all_finite, predicted
from depura.noise import Kind, Noise


class Found:
    """What was seen of each image.

    Attributes:
        images: (B, C, H, W), the images under attack.
        closest: (B, C, H, W), the closest misclassified points.
        distance: (B,), how far they are; infinite where there is none.
    """

    def __init__(self, images: Tensor, wrong: Tensor) -> None:
        """Begin.

        Args:
            images: (B, C, H, W).
            wrong: (B,), whether the image itself is misclassified.
        """
        self.images = images
        self.closest = images.clone()
        self.distance = torch.where(wrong, 0.0, torch.inf).to(images.dtype)
        self._worst = images.clone()
        self._loss = torch.full_like(self.distance, -torch.inf)

    def see(self, x: Tensor, loss: Tensor, wrong: Tensor, at: Tensor, ball: Ball) -> None:
        """Points x (R, C, H, W) for the images `at` (R,), distinct; the image itself is none."""
        distance = ball.distance(x, self.images[at])
        closer = wrong & (distance < self.distance[at])
        self.closest[at[closer]], self.distance[at[closer]] = x[closer], distance[closer]
        worse = (loss > self._loss[at]) & (distance > 0)
        self._worst[at[worse]], self._loss[at[worse]] = x[worse], loss[worse]

    def inside(self, ball: Ball) -> Tensor:
        """Whether the closest misclassified point is in the ball, (B,)."""
        return self.distance <= ball.eps * (1 + 1e-6)

    def result(self, ball: Ball) -> Tensor:
        """The closest point if in the ball, else the one of the largest loss, brought into it: (B, C, H, W)."""
        return torch.where(per_image(self.inside(ball)), self.closest, ball.project(self._worst, self.images))


def dual_norm(norm: Norm, w: Tensor) -> Tensor:
    """Largest <w, d> over changes d of norm 1: the l1 norm for linf, the l2 norm for l2; (B, C, H, W) -> (B,)."""
    flat = w.flatten(1)
    return flat.abs().sum(1) if norm == "linf" else flat.square().sum(1).sqrt()


def to_hyperplane(norm: Norm, x: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """The smallest change d with <w, d> = gap and x + d in [0, 1]; where there is none, the one that comes closest.

    All pixels move at once, pixel i at a speed of 1 (linf) or |w_i| (l2) towards its end of [0, 1], and stop there.
    This is what the conditions of optimality ask for: as a function of time the product <w, d> is concave and piecewise
    linear, with a kink where a pixel stops, so that sorting the times of the stops solves it exactly. The projection of
    Croce and Hein 2020 (arXiv:1907.02044).

    Args:
        norm: "linf" or "l2".
        x: (B, C, H, W) in [0, 1].
        w: normals, (B, C, H, W); pixels where it is zero do not move.
        gap: (B,), how much <w, x> has to grow.

    Returns:
        d, (B, C, H, W).
    """
    point, normal = x.flatten(1), w.flatten(1)
    way = normal.sign() * gap.sign()[:, None]
    room = torch.where(way > 0, 1 - point, point).clamp_min(0) * way.abs()
    weight = normal.abs()
    speed = torch.where((weight == 0) | (norm == "linf"), 1.0, weight)
    stop, order = (room / speed).sort(dim=1)
    gained = (weight * room).gather(1, order)
    before = gained.cumsum(1) - gained
    slope = (weight * speed).gather(1, order).flip(1).cumsum(1).flip(1)
    # The stretch between two stops in which the gap is closed. Beyond the last stop it cannot be: time only goes on.
    stretch = (before + slope * stop < gap.abs()[:, None]).sum(1, keepdim=True)
    here = stretch.clamp_max(stop.shape[1] - 1)
    rate = slope.gather(1, here)
    missing = (gap.abs()[:, None] - before.gather(1, here)).clamp_min(0)
    time = missing / torch.where(rate > 0, rate, 1.0)
    return (way * torch.minimum(time * speed, room)).reshape(x.shape)


ONE = range(1)
"""A deterministic model is asked for a single draw."""

NEAREST = 1e-8
"""Distances to a hyperplane are taken for at least this, so that their ratio exists on the hyperplane."""


@dataclass(frozen=True)
class FAB(Attack):
    """Steps to a linear model's boundary, drawn back towards the image.

    At x the boundary with class l is taken for the hyperplane z_l - z_y = 0 of the linearised logits. With d and d0 the
    shortest ways there from x and from the image x0, inside [0, 1], the step is

        x <- clamp((1 - alpha) (x + eta d) + alpha (x0 + eta d0), 0, 1),   alpha = min(|d| / (|d| + |d0|), alpha_max),

    and every misclassified point is drawn back: x <- x0 + beta (x - x0). Untargeted, l is the class whose hyperplane is
    nearest; targeted, one run for each of the classes that the image is taken for next.

    The candidate is the closest misclassified point (the image itself, where that is misclassified) if it is within
    eps (1 + 1e-6); else the visited point of the largest margin loss, brought into the ball. The steps that are
    recorded are the image, and then those of run after run: all restarts of a target before the next target.

    Attributes:
        ball: threat model; its radius only decides what is close enough, and how far random starts are.
        n_steps: steps of a run.
        n_restarts: runs for each target: the first starts at the image, the others at random points within eps / 2.
        n_targets: classes to be taken for, in the order of the image's logits; 0 for the untargeted attack.
        n_classes: classes of the model, which the price of the untargeted attack is made of. Targeted it is not used.
        alpha_max: largest weight of the image's own projection, in [0, 1].
        eta: how far a step goes; beyond 1 it crosses the hyperplane.
        beta: what remains of a change when it is drawn back, in (0, 1).
        finish: an image with a misclassified point in the ball is left out of later runs, as published. The share of
            wrong draws that it takes, in (0, 1]: any, as there is one draw. None: no image is left out.
    """

    ball: Ball
    n_steps: int = 100
    n_restarts: int = 1
    n_targets: int = 9
    n_classes: int = 10
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    finish: float | None = 1.0

    def __post_init__(self) -> None:
        only("FAB", self.ball, "linf", "l2")
        _check.integer("FAB", "n_steps", self.n_steps, low=1)
        _check.integer("FAB", "n_restarts", self.n_restarts, low=1)
        _check.integer("FAB", "n_targets", self.n_targets)
        _check.integer("FAB", "n_classes", self.n_classes, low=2)
        _check.integer("FAB", "n_targets times n_restarts", self.n_targets * self.n_restarts, high=65535)
        _check.number("FAB", "alpha_max", self.alpha_max, low=0.0, high=1.0)
        _check.number("FAB", "eta", self.eta, low=0.0, low_open=True)
        _check.number("FAB", "beta", self.beta, low=0.0, high=1.0, low_open=True)
        check_finish("FAB", self.finish)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1

    @property
    def cost(self) -> Cost:
        """Evaluations per image: each step one gradient, untargeted one for every other class, and a forward."""
        steps = self._n_runs * self.n_steps
        return Cost(gradients=steps * (1 if self.n_targets else self.n_classes - 1), forwards=steps + 1, at_once=1)

    @property
    def _n_runs(self) -> int:
        return max(self.n_targets, 1) * self.n_restarts

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Follow the boundary. Run r uses step r of `init`; images within the radius are left out of later runs."""
        if not queries.deterministic(images):
            _check.fail(
                "FAB",
                "a deterministic model",
                "logits that change from draw to draw",
                "FAB judges single predictions: use PGD or Square with several draws (eot), or fix the model's noise.",
            )
        clean = queries.logits(images, draws=ONE)[:, 0]
        targets = self._targets(clean, queries.labels)
        history = History(len(images), 1 + self._n_runs * self.n_steps)
        found = Found(images, predicted(clean) != queries.labels)
        history.add(torch.where(all_finite(clean), margin(clean, queries.labels), torch.nan))
        for run in range(self._n_runs):
            at = self._left(found, history)
            if not len(at):
                break
            target = run // self.n_restarts
            classes = targets[at, target : target + 1] if self.n_targets else targets[at]
            x = images[at]
            if run % self.n_restarts:
                x = self._start(x, found.distance[at], init.take(at), run)
            share = part_of(progress, before=run, own=1, whole=self._n_runs)
            self._run(queries, x, at, classes, found, history, share)
        self._left(found, history)
        progress(1.0)
        return history.candidates(found.result(self.ball)[None], queries.spent)

    def _targets(self, clean: Tensor, labels: Tensor) -> Tensor:
        """Classes other than the label: (B, n_targets) by their logits, or untargeted all of them, (B, K - 1)."""
        k = clean.shape[1]
        if self.n_targets > k - 1:
            _check.fail("FAB", f"n_targets at most {k - 1} for a model of {k} classes", f"{self.n_targets}")
        if not self.n_targets and k != self.n_classes:
            _check.fail("FAB", f"a model of n_classes = {self.n_classes} classes", f"{k}", f"Give n_classes={k}.")
        order = torch.arange(k - 1, device=clean.device)[None, :]
        if not self.n_targets:
            return order + (order >= labels[:, None])
        # Classes without a finite logit come last, and only the label after them.
        clean = torch.where(clean.isfinite(), clean, torch.finfo(clean.dtype).min)
        ranked = clean.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        return ranked[:, : self.n_targets]

    def _left(self, found: Found, history: History) -> Tensor:
        """The images that the next run is for; the others are finished."""
        if self.finish is None:
            return torch.arange(len(found.distance), device=found.distance.device)
        inside = found.inside(self.ball)
        history.finish(inside.nonzero()[:, 0])
        return (~inside).nonzero()[:, 0]

    def _start(self, origin: Tensor, closest: Tensor, init: Noise, run: int) -> Tensor:
        """A random point at half the radius, or half of the smallest change so far."""
        if self.ball.norm == "linf":
            change = 2 * init.uniform(origin, kind=Kind.ATTACK, step=run) - 1
        else:
            change = init(origin, kind=Kind.ATTACK, step=run)
        length = self._length(change)
        size = 0.5 * closest.clamp_max(self.ball.eps) / torch.where(length > 0, length, 1.0)
        return (origin + per_image(size) * change).clamp(0, 1)

    def _run(
        self,
        queries: Queries,
        x: Tensor,
        at: Tensor,
        classes: Tensor,
        found: Found,
        history: History,
        progress: Progress,
    ) -> None:
        """One run from x, of the images `at`, for which found.closest and found.worst are brought up to date."""
        origin = found.images[at]
        for i in range(self.n_steps):
            difference, normal = self._nearest(queries, x, at, classes)
            x = self._step(x, origin, difference, normal)
            answers = queries.answers(x, margin, draws=ONE, at=at)
            loss, wrong = answers.losses[:, 0], answers.wrong[:, 0]
            history.add(loss, normal[:, None], at=at)
            found.see(x, loss, wrong, at, self.ball)
            x = torch.where(per_image(wrong), origin + self.beta * (x - origin), x)
            progress((i + 1) / self.n_steps)

    def _nearest(self, queries: Queries, x: Tensor, at: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """z_l - z_y, (R,), and its gradient, for the class l of the nearest hyperplane; NaN where none is finite."""
        nearest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        difference, normal = torch.full_like(nearest, torch.nan), torch.full_like(x, torch.nan)
        for column in classes.unbind(1):
            draws = queries.gradient(x, targeted_margin, draws=ONE, at=at, targets=column)
            value, gradient = draws.losses[:, 0], draws.gradients[:, 0]
            length = value.abs() / (dual_norm(self.ball.norm, gradient) + 1e-12)
            closer = length < nearest
            nearest = torch.where(closer, length, nearest)
            difference = torch.where(closer, value, difference)
            normal = torch.where(per_image(closer), gradient, normal)
        return difference, normal

    def _step(self, x: Tensor, origin: Tensor, difference: Tensor, normal: Tensor) -> Tensor:
        """The next point; the same one where there is no hyperplane."""
        norm = self.ball.norm
        d = to_hyperplane(norm, x, normal, -difference)
        back = (normal * (x - origin)).flatten(1).sum(1)
        d0 = to_hyperplane(norm, origin, normal, back - difference)
        length, length0 = self._length(d).clamp_min(NEAREST), self._length(d0).clamp_min(NEAREST)
        alpha = per_image((length / (length + length0)).clamp_max(self.alpha_max))
        moved = ((1 - alpha) * (x + self.eta * d) + alpha * (origin + self.eta * d0)).clamp(0, 1)
        return torch.where(per_image(difference.isfinite() & normal.flatten(1).isfinite().all(1)), moved, x)

    def _length(self, change: Tensor) -> Tensor:
        return self.ball.distance(change, torch.zeros_like(change))
