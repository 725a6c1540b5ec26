"""The model as an attack sees it: losses, gradients and logits of draws, in calls that fit into memory, and counted.

Expectation over transformation, Athalye et al. 2018 (arXiv:1707.07397): the gradient of a randomised model is the mean
over draws of its noise; it does not depend on how the draws are split into calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from depura import _check
from depura.attacks.losses import Loss, margin
from depura.attacks.threat import per_image
from depura.defence import all_finite, predicted, same_answers
from depura.gradients.stored import unless_out_of_memory
from depura.noise import BLOCK, Noise

T = TypeVar("T")


class RandomModel(Protocol):
    """A model whose randomness is handed to it, such as a `Defence`."""

    def __call__(self, images: Tensor, noise: Noise, /) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        ...


class Log(Protocol):
    """What was asked and answered, so that an attack that was interrupted need not ask again: a model's `log`."""

    def answer(
        self, question: Sequence[object], ask: Callable[[], tuple[Tensor, ...]], *, spent: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The answer to a question: known, else by asking, which adds to `spent`."""
        ...


Model = Callable[[Tensor], Tensor]
"""Any callable from images in [0, 1] to logits."""

Combine = Callable[[Tensor], Tensor]
"""How the gradients of an image's draws become one: (B, m, C, H, W) -> (B, C, H, W); `mean` or `mean_of_units`."""


COMMON = BLOCK
"""Draws of the model's noise from here on are common random numbers: candidates are compared on them, no gradient is.

They are the upper block of draw numbers. A rule of several draws divides them within it (`Noise.split`).
"""


def common(n: int) -> range:
    """The first n draws of the common random numbers."""
    return range(COMMON, COMMON + n)


class Answers(NamedTuple):
    """Losses of m draws of each of R points; a draw with a logit that is not finite has a loss of NaN and is wrong.

    Attributes:
        losses: (R, m).
        wrong: (R, m), whether each draw is misclassified.
    """

    losses: Tensor
    wrong: Tensor


class Draws(NamedTuple):
    """Loss and gradient of m draws of each of B images.

    A draw with a logit that is not finite has a loss and a gradient of NaN, and is misclassified: it names no class.

    Attributes:
        losses: (B, m).
        gradients: (B, m, C, H, W), of each draw's own loss.
        wrong: (B, m), whether each draw is misclassified.
    """

    losses: Tensor
    gradients: Tensor
    wrong: Tensor


class Health(NamedTuple):
    """Statistics of the gradients of some draws. Nothing is replaced or left out but where said.

    Attributes:
        zero: (B,), share of draws whose gradient is exactly zero everywhere.
        bad: (B,), share of draws whose gradient is not finite somewhere.
        zero_pixels: (B,), share of the mean gradient's entries that are exactly zero.
        agreement: (B,), cosine of the mean gradients of the two halves of the draws; NaN with less than two draws, or
            where a half is zero or not finite.
        spread: (B,), largest over median norm of a draw; NaN where the median is zero or not finite.
    """

    zero: Tensor
    bad: Tensor
    zero_pixels: Tensor
    agreement: Tensor
    spread: Tensor


@dataclass(frozen=True)
class AdaptiveDraws:
    """Few draws per gradient at first; twice as many where two halves of them disagree, up to `most`: for `eot`.

    An image begins with `start` draws. Where at a point the cosine of the mean gradients of the two halves is below
    `agreement`, or one of them is zero or not finite, as many draws again are made at that point and joined to them,
    until the halves agree or there are `most`. At its next point the image begins with the number it has come to. So no
    gradient of fewer than `most` draws is followed where its halves disagree, and draws are never made twice.

    Whether the mean of m draws points anywhere is seen from its halves: where these have cosine c on average, the mean
    of all m has cosine sqrt(2 c / (1 + c)) with the gradient of the expectation (Spearman 1910 and Brown 1910, of
    halves of a test).

    Attributes:
        most: draws per gradient, at most.
        start: draws at first, at least 2.
        agreement: cosine, in (0, 1].
    """

    most: int = 16
    start: int = 4
    agreement: float = 0.5

    def __post_init__(self) -> None:
        _check.integer("AdaptiveDraws", "most", self.most, low=1)
        _check.integer("AdaptiveDraws", "start", self.start, low=2)
        _check.number("AdaptiveDraws", "agreement", self.agreement, low=0.0, high=1.0, low_open=True)

    def levels(self) -> tuple[int, ...]:
        """The numbers of draws there may be at a point, rising, the last one `most`."""
        levels, m = list[int](), self.start
        while m < self.most:
            levels.append(m)
            m *= 2
        return (*levels, self.most)


EOT = int | AdaptiveDraws
"""Draws per gradient: a number, or a policy."""


def most_draws(eot: EOT) -> int:
    """Draws per gradient, at most."""
    return eot.most if isinstance(eot, AdaptiveDraws) else eot


class MeanGradient(NamedTuple):
    """Loss and gradient at R points, over the draws of each.

    Attributes:
        loss: (R,), mean over the draws.
        gradient: (R, C, H, W), the draws' gradients combined.
        wrong: (R,), whether every draw is misclassified.
        health: statistics of the draws' gradients.
        drawn: (R,) int64, how many draws there were.
    """

    loss: Tensor
    gradient: Tensor
    wrong: Tensor
    health: Health
    drawn: Tensor

    @classmethod
    def of(cls, draws: Draws, statistics: Health, combine: Combine) -> MeanGradient:
        """From all draws; a gradient is not finite where any of its draws is not."""
        counts = torch.full_like(draws.wrong[:, 0], draws.wrong.shape[1], dtype=torch.int64)
        return cls(mean(draws.losses), combine(draws.gradients), draws.wrong.all(1), statistics, counts)


class Queries:
    """A model with the labels of the images under attack, its noise, and the count of what was asked.

    Rows of a question may be any of the images, in any order and repeated: `at` says which. Draw d of image i is the
    same noise in every question, so that two points compared on the same draws differ by the points alone.

    Attributes:
        where: who asks, for messages.
        model: images to logits; called as model(images) where `noise` is None, else as model(images, noise).
        labels: (B,) int64.
        noise: randomness of the model, one image id per row.
        rows: images times draws in one call; None for all. Out of memory, it is halved.
        spent: (B, 2) int64, evaluations on each image: with a gradient, and without.
    """

    def __init__(
        self,
        where: str,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        noise: Noise | None,
        rows: int | None = None,
    ) -> None:
        """Check what an attack was given.

        Args:
            where: the attack's name, for messages.
            model: images to logits.
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            noise: randomness of the model.
            rows: images times draws in one call.

        Raises:
            InputError: images or labels that are not usable.
        """
        _check.images(where, images)
        self.where = where
        self.model = model
        self.labels = _check.labels(where, labels, n_images=len(images)).long()
        self.noise = noise
        self.rows = rows
        self._log: Log | None = getattr(model, "log", None)
        self.spent = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)

    def gradient(
        self, x: Tensor, loss: Loss, *, draws: range, at: Tensor | None = None, targets: Tensor | None = None
    ) -> Draws:
        """Loss and gradient of every draw.

        Args:
            x: points, (R, C, H, W).
            loss: one number per row; called with the targets too, where there are some.
            draws: draw numbers; without noise only their count matters.
            at: (R,), which image each row is a point for; default all, in order.
            targets: (R,), a class per row for targeted losses.

        Returns:
            The draws.

        Raises:
            InputError: a model without a gradient path to the images, or labels that are not its classes.
        """
        at = torch.arange(len(x), device=x.device) if at is None else at
        return Draws(*self._answered(lambda: self._gradient(x, loss, draws, at, targets), x, at, targets, draws))

    def _gradient(self, x: Tensor, loss: Loss, draws: range, at: Tensor, targets: Tensor | None) -> Draws:
        m, copies = len(draws), x.detach().repeat_interleave(len(draws), dim=0)
        classes = [t.repeat_interleave(m) for t in (self.labels[at], targets) if t is not None]
        noise = None if self.noise is None else self.noise.take(at).expand(draws)
        parts = self._in_calls(len(copies), lambda part: self._differentiate(copies, classes, loss, noise, part))
        losses, gradients, wrong = (torch.cat(values) for values in zip(*parts, strict=True))
        self.spent[:, 0].index_add_(0, at, torch.full_like(at, m))
        shape = (len(x), m)
        return Draws(losses.reshape(shape), gradients.reshape(*shape, *x.shape[1:]), wrong.reshape(shape))

    def _answered(self, ask: Callable[[], tuple[Tensor, ...]], *question: object) -> tuple[Tensor, ...]:
        """An answer, from the log where there is one and the question was asked before."""
        if self._log is None or self.noise is None:
            return ask()
        return self._log.answer((*question, self.labels, self.noise), ask, spent=self.spent)

    def mean_gradient(
        self,
        x: Tensor,
        loss: Loss,
        eot: EOT,
        *,
        number: int,
        combine: Combine,
        drawn: Tensor,
        at: Tensor,
        targets: Tensor | None = None,
    ) -> MeanGradient:
        """Loss and gradient at some points, over the draws that the policy asks for.

        Args:
            x: points, (R, C, H, W).
            loss: one number per row.
            eot: draws per gradient.
            number: of the gradient; each has `most_draws` draw numbers of its own.
            combine: how the gradients of the draws become one.
            drawn: (R,) int64, draws that each row begins with, at least.
            at: (R,), which image each row is a point for.
            targets: (R,), classes aimed at.

        Returns:
            The means.
        """

        def ask() -> tuple[Tensor, ...]:
            found = self._mean_gradient(x, loss, eot, number, combine, drawn, at, targets)
            return (found.loss, found.gradient, found.wrong, found.drawn, *found.health)

        means, gradient, wrong, counts, *statistics = self._answered(ask, x, at, targets, drawn, eot, number)
        return MeanGradient(means, gradient, wrong, Health(*statistics), counts)

    def _mean_gradient(
        self,
        x: Tensor,
        loss: Loss,
        eot: EOT,
        number: int,
        combine: Combine,
        drawn: Tensor,
        at: Tensor,
        targets: Tensor | None,
    ) -> MeanGradient:
        if isinstance(eot, int):
            draws = self.gradient(x, loss, draws=range(number * eot, (number + 1) * eot), at=at, targets=targets)
            return MeanGradient.of(draws, health(draws.gradients), combine)
        first = number * eot.most
        rows, before = torch.arange(len(x), device=x.device), 0
        draws: Draws | None = None
        parts: list[tuple[Tensor, MeanGradient]] = []
        for m in eot.levels():
            aims = None if targets is None else targets[rows]
            new = self.gradient(x[rows], loss, draws=range(first + before, first + m), at=at[rows], targets=aims)
            draws = new if draws is None else Draws(*(torch.cat(pair, dim=1) for pair in zip(draws, new, strict=True)))
            before, statistics = m, health(draws.gradients)
            more = torch.zeros_like(rows, dtype=torch.bool)
            if m < eot.most:
                more = (drawn[rows] > m) | ~(statistics.agreement >= eot.agreement)
            done = Draws(*(value[~more] for value in draws))
            parts.append((rows[~more], MeanGradient.of(done, Health(*(value[~more] for value in statistics)), combine)))
            rows, draws = rows[more], Draws(*(value[more] for value in draws))
            if len(rows) == 0:
                break
        order = torch.cat([own for own, _ in parts]).argsort()
        means = [mean_of for _, mean_of in parts]
        statistics = Health(*(torch.cat(values)[order] for values in zip(*(m.health for m in means), strict=True)))
        return MeanGradient(
            torch.cat([m.loss for m in means])[order],
            torch.cat([m.gradient for m in means])[order],
            torch.cat([m.wrong for m in means])[order],
            statistics,
            torch.cat([m.drawn for m in means])[order],
        )

    @torch.no_grad()
    def logits(self, x: Tensor, *, draws: range, at: Tensor | None = None) -> Tensor:
        """Logits of every draw, without a gradient.

        Args:
            x: points, (R, C, H, W).
            draws: draw numbers.
            at: (R,), which image each row is a point for; default all, in order.

        Returns:
            (R, m, K).
        """
        at = torch.arange(len(x), device=x.device) if at is None else at
        (logits,) = self._answered(lambda: (self._logits(x, draws, at),), x, at, draws)
        _check.labels(self.where, self.labels, n_images=len(self.labels), n_classes=logits.shape[2])
        return logits

    def _logits(self, x: Tensor, draws: range, at: Tensor) -> Tensor:
        m, copies = len(draws), x.repeat_interleave(len(draws), dim=0)
        noise = None if self.noise is None else self.noise.take(at).expand(draws)
        model = cast("Callable[..., Tensor]", self.model)
        parts = self._in_calls(
            len(copies),
            lambda part: model(copies[part.start : part.stop], *(() if noise is None else (noise.take(part),))),
        )
        logits = torch.cat(parts).reshape(len(x), m, -1)
        self.spent[:, 1].index_add_(0, at, torch.full_like(at, m))
        return logits

    def answers(
        self, x: Tensor, loss: Loss, *, draws: range, at: Tensor | None = None, targets: Tensor | None = None
    ) -> Answers:
        """Loss of every draw, and whether it is misclassified, without a gradient: as `gradient`."""
        at, m = torch.arange(len(x), device=x.device) if at is None else at, len(draws)
        logits = self.logits(x, draws=draws, at=at).flatten(0, 1)
        labels = self.labels[at].repeat_interleave(m)
        given = () if targets is None else (targets.repeat_interleave(m),)
        losses = loss(logits, labels, *given).masked_fill(~all_finite(logits), torch.nan)
        wrong = predicted(logits) != labels
        return Answers(losses.reshape(-1, m), wrong.reshape(-1, m))

    def losses(
        self, x: Tensor, loss: Loss, *, draws: range, at: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Loss of every draw, without a gradient: as `gradient`, (R, m)."""
        return self.answers(x, loss, draws=draws, at=at, targets=targets).losses

    def beaten(self, x: Tensor, suspected: Tensor, *, share: float | None, n_draws: int, at: Tensor) -> Tensor:
        """Which points an attack may be content with: at least a share of the common draws is misclassified there.

        Only suspected points are evaluated, so that most steps cost nothing; and only on draws whose gradients were not
        followed.

        Args:
            x: points, (R, C, H, W).
            suspected: (R,), bool: such as where all draws of the step itself were wrong.
            share: of the draws; None is never content.
            n_draws: of the common random numbers.
            at: (R,), which image each row is a point for.

        Returns:
            (R,), bool.
        """
        content = torch.zeros_like(suspected)
        if share is not None and bool(suspected.any()):
            wrong = self.answers(x[suspected], margin, draws=common(n_draws), at=at[suspected]).wrong
            content[suspected] = wrong.double().mean(1) >= share
        return content

    def deterministic(self, x: Tensor) -> bool:
        """Whether two draws of each image give the same logits, to the last bit (evaluated without being counted)."""
        spent = self.spent.clone()
        first, second = (self.logits(x, draws=draws) for draws in (common(1), range(COMMON + 1, COMMON + 2)))
        self.spent = spent
        return same_answers(first, second)

    def _in_calls(self, n: int, call: Callable[[range], T]) -> list[T]:
        """Results of n rows in calls of at most `rows`, from now on of fewer when memory runs out."""
        parts, done = list[T](), 0
        while done < n:
            at_once = n if self.rows is None else min(self.rows, n)
            part = range(done, min(done + at_once, n))
            result = unless_out_of_memory(lambda part=part: call(part))
            if result is None and at_once > 1:
                self.rows = (at_once + 1) // 2
                continue
            parts.append(call(part) if result is None else result)
            done = part.stop
        return parts

    def _differentiate(
        self, copies: Tensor, classes: list[Tensor], loss: Loss, noise: Noise | None, part: range
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (R,), gradients (R, C, H, W) and whether the prediction is wrong (R,), of the rows `part`."""
        labels, *targets = (c[part.start : part.stop] for c in classes)
        with torch.enable_grad():
            x = copies[part.start : part.stop].clone().requires_grad_()
            logits = cast("Callable[..., Tensor]", self.model)(x, *(() if noise is None else (noise.take(part),)))
            _check.labels(self.where, labels, n_images=len(x), n_classes=logits.shape[1])
            if not logits.requires_grad:
                _check.fail(
                    self.where,
                    "logits with a gradient path to the images",
                    "logits without one",
                    "Look for a detach, no_grad or argmax in the model. A purifier without a gradient can be attacked "
                    "through StraightThrough, a rule without one as if it were depura.MeanProb, and a classifier "
                    "without one by its scores alone, as Square does.",
                )
            values = loss(logits, labels, *targets)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        broken, values = ~all_finite(logits), values.detach()
        gradient = gradient.masked_fill(per_image(broken), torch.nan)
        return values.masked_fill(broken, torch.nan), gradient, predicted(logits.detach()) != labels


def health(gradients: Tensor) -> Health:
    """What gradients tell about themselves.

    Args:
        gradients: (B, m, C, H, W).

    Returns:
        Per image.
    """
    flat = gradients.detach().flatten(2).to(torch.float64)
    half = flat.shape[1] // 2
    agreement = torch.full((len(flat),), torch.nan, dtype=torch.float64, device=flat.device)
    if half:
        agreement = cosine(flat[:, :half].mean(1), flat[:, half : 2 * half].mean(1))
    norms = flat.square().sum(2).sqrt()
    median = norms.median(dim=1).values
    return Health(
        zero=(flat == 0).all(2).double().mean(1),
        bad=(~flat.isfinite().all(2)).double().mean(1),
        zero_pixels=(flat.mean(1) == 0).double().mean(1),
        agreement=agreement,
        spread=norms.amax(1) / torch.where(median > 0, median, torch.nan),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two gradients per image, (B, ...) -> (B,); NaN where one is zero or not finite."""
    a, b = a.flatten(1).to(torch.float64), b.flatten(1).to(torch.float64)
    norms = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return (a * b).sum(1) / torch.where(norms > 0, norms, torch.nan)


def mean(values: Tensor) -> Tensor:
    """Mean over the draws, (B, m, ...) -> (B, ...), summed in float64."""
    return values.mean(1, dtype=torch.float64).to(values.dtype)


def mean_of_units(gradients: Tensor) -> Tensor:
    """Mean of the draws' gradients, each scaled to length 1 first (a zero stays zero): (B, m, C, H, W) -> (B, C, H, W).

    Where few draws have gradients thousands of times longer than the others', the plain mean is theirs alone; here
    every draw has one voice.
    """
    length = gradients.to(torch.float64).flatten(2).square().sum(2).sqrt()
    return mean(gradients / torch.where(length > 0, length, 1.0)[:, :, None, None, None].to(gradients.dtype))
