"""The model as an attack sees it: asked for losses and gradients of some images, with every evaluation counted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.attacks.eot import Draws, Model, RandomModel, by_draw, logits_by_draw
from depura.attacks.losses import Loss, margin
from depura.noise import BLOCK, Noise
from depura.predictions import all_finite, predicted, same_answers

COMMON = BLOCK
"""Draws of the model's noise from here on are the common tape: candidates are compared on it, nothing is ascended.

They are the upper block of draw numbers. A rule of several draws divides them within it (`Noise.split`).
"""


def common(n: int) -> range:
    """The first n draws of the common tape."""
    return range(COMMON, COMMON + n)


class Answers(NamedTuple):
    """What m draws of each of R points said; a draw with a logit that is not finite has a loss of NaN and is wrong.

    Attributes:
        losses: (R, m).
        wrong: (R, m), whether each draw is misclassified.
    """

    losses: Tensor
    wrong: Tensor


class Queries:
    """A model with the labels of the images under attack, its noise, and the count of what was asked.

    Rows of a question may be any of the images, in any order and repeated: `at` says which. Draw d of image i is the
    same noise in every question, so that two points compared on the same draws differ by the points alone.

    Attributes:
        labels: (B,) int64.
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
            model: images to logits; called as model(images) where `noise` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            noise: randomness of the model, one image id per row.
            rows: images times draws in one call; default all. Out of memory, it is halved.

        Raises:
            InputError: images or labels that are not usable.
        """
        _check.images(where, images)
        self.labels = _check.labels(where, labels, n_images=len(images)).long()
        self.spent = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)
        self._where = where
        self._model = model
        self._noise = noise
        self._rows = rows

    def gradient(
        self, x: Tensor, loss: Loss, *, draws: range, at: Tensor | None = None, targets: Tensor | None = None
    ) -> Draws:
        """Loss and gradient of every draw.

        Args:
            x: points, (R, C, H, W).
            loss: one number per row; called with the targets too, where there are some.
            draws: draw numbers.
            at: (R,), which image each row is a point for; default all, in order.
            targets: (R,), a class per row for targeted losses.

        Returns:
            The draws.
        """
        at = self._index(x, at)
        found = by_draw(
            self._model,
            x,
            self.labels[at],
            loss,
            draws=draws,
            noise=self._noise_of(at),
            rows=self._rows,
            where=self._where,
            targets=targets,
        )
        self._limit(found.rows, len(x) * len(draws))
        self._count(at, 0, len(draws))
        return found

    def logits(self, x: Tensor, *, draws: range, at: Tensor | None = None) -> Tensor:
        """Logits of every draw, without a gradient.

        Args:
            x: points, (R, C, H, W).
            draws: draw numbers.
            at: (R,), which image each row is a point for; default all, in order.

        Returns:
            (R, m, K).
        """
        at = self._index(x, at)
        logits, rows = logits_by_draw(self._model, x, draws=draws, noise=self._noise_of(at), rows=self._rows)
        self._limit(rows, len(x) * len(draws))
        self._count(at, 1, len(draws))
        _check.labels(self._where, self.labels, n_images=len(self.labels), n_classes=logits.shape[2])
        return logits

    def answers(
        self, x: Tensor, loss: Loss, *, draws: range, at: Tensor | None = None, targets: Tensor | None = None
    ) -> Answers:
        """Loss of every draw, and whether it is misclassified, without a gradient: as `gradient`."""
        at, m = self._index(x, at), len(draws)
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
        """Which points an attack may be content with: at least a share of the common tape is misclassified there.

        Only suspected points are asked about, so that most steps ask nothing; and only draws that were not ascended.

        Args:
            x: points, (R, C, H, W).
            suspected: (R,), bool: such as where all draws of the step itself were wrong.
            share: of the draws; None is never content.
            n_draws: of the common tape.
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
        """Whether two draws of each image give the same logits, to the last bit (asked without being counted)."""
        spent = self.spent.clone()
        first, second = (self.logits(x, draws=draws) for draws in (common(1), range(COMMON + 1, COMMON + 2)))
        self.spent = spent
        return same_answers(first, second)

    def _limit(self, rows: int, asked: int) -> None:
        """Keep to fewer rows in one call from now on, if memory ran out."""
        if rows < asked:
            self._rows = rows

    def _index(self, x: Tensor, at: Tensor | None) -> Tensor:
        return torch.arange(len(x), device=x.device) if at is None else at

    def _noise_of(self, at: Tensor) -> Noise | None:
        return None if self._noise is None else self._noise.take(at)

    def _count(self, at: Tensor, column: int, n: int) -> None:
        self.spent[:, column].index_add_(0, at, torch.full_like(at, n))
