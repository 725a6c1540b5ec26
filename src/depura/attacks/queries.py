"""The model as an attack sees it: asked for losses and gradients of some images, with every evaluation counted."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from depura import _check
from depura.attacks.eot import Draws, Model, RandomModel, by_draw, logits_by_draw
from depura.attacks.losses import Loss
from depura.noise import Noise

COMMON = 2**31
"""Draws of the model's noise from here on are the common tape: candidates are compared on it, nothing is ascended."""


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

    def losses(
        self, x: Tensor, loss: Loss, *, draws: range, at: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Loss of every draw, without a gradient: as `gradient`, (R, m)."""
        at = self._index(x, at)
        m = len(draws)
        logits = self.logits(x, draws=draws, at=at).flatten(0, 1)
        given = () if targets is None else (targets.repeat_interleave(m),)
        return loss(logits, self.labels[at].repeat_interleave(m), *given).reshape(-1, m)

    def wrong(self, x: Tensor, *, draws: range, at: Tensor | None = None) -> Tensor:
        """Share of draws that are misclassified, (R,)."""
        at = self._index(x, at)
        predicted = self.logits(x, draws=draws, at=at).argmax(2)
        return (predicted != self.labels[at][:, None]).double().mean(1)

    def beaten(self, x: Tensor, *, share: float, n_draws: int, at: Tensor | None = None) -> Tensor:
        """Whether at least a share of the first draws of the common tape is misclassified, (R,).

        This is how an attack may decide that it is content with an image: on draws that it has not ascended.
        """
        return self.wrong(x, draws=range(COMMON, COMMON + n_draws), at=at) >= share

    def deterministic(self, x: Tensor) -> bool:
        """Whether two draws of each image give the same logits, to the last bit (asked without being counted)."""
        spent = self.spent.clone()
        first = self.logits(x, draws=range(COMMON, COMMON + 1))
        second = self.logits(x, draws=range(COMMON + 1, COMMON + 2))
        self.spent = spent
        return torch.equal(first, second)

    def _limit(self, rows: int, asked: int) -> None:
        """Keep to fewer rows in one call from now on, if memory ran out."""
        if rows < asked:
            self._rows = rows

    def _index(self, x: Tensor, at: Tensor | None) -> Tensor:
        return torch.arange(len(x), device=x.device) if at is None else at

    def _noise_of(self, at: Tensor) -> Noise | None:
        return None if self._noise is None else self._noise.take(cast("list[int]", at.tolist()))

    def _count(self, at: Tensor, column: int, n: int) -> None:
        self.spent[:, column].index_add_(0, at, torch.full_like(at, n))
