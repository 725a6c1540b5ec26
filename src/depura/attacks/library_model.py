"""A model as an attack of another library sees it: an ordinary module with addressed noise, whose rows are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from depura import _check
from depura.attacks.queries import Model, RandomModel
from depura.attacks.threat import Ball
from depura.noise import Noise

_again: Callable[..., Tensor] = cast(Any, torch.utils.checkpoint).checkpoint


class ModelForLibraries(nn.Module):
    """A model as a library sees it: a module from images to logits, each call of which meets noise of its own.

    Row r of a call has the image id of row r of the batch under attack, and a draw number that no call before had; rows
    beyond the batch begin again at its first image with the next number. A library may ask for some of its images only,
    or for each several times: it does not say which, so that a row's noise is fresh but not always its image's own.

    Attributes:
        ball: what the library must keep to.
        seed: for attacks that seed themselves, in [0, 2^32).
        gradients: rows that were differentiated, once for every time.
        forwards: rows that never were.
        draws: the next draw number.
        rows: rows in one call; None where there is no limit.
    """

    def __init__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        noise: Noise | None,
        ball: Ball,
        seed: int,
        first: int = 0,
        rows: int | None = None,
    ) -> None:
        """Wrap.

        Args:
            model: images to logits; called as model(images) where `noise` is None, else as model(images, noise).
            images: the batch under attack, (B, C, H, W); the model is called on its device and in its dtype.
            labels: (B,), the true classes.
            noise: randomness of the model, one image id per row.
            ball: threat model.
            seed: for attacks that seed themselves.
            first: the first draw number.
            rows: rows in one call; default all. With fewer, what a gradient needs is computed again on its way back.
        """
        super().__init__()
        self.ball, self.seed = ball, seed
        self.gradients, self.forwards, self.draws = 0, 0, first
        # Libraries look for a model's device at its first parameter.
        self.device_marker = nn.Parameter(images.new_zeros(1), requires_grad=False)
        # In a tuple it is no part of this module: what a library does to its modules is not done to the user's.
        self._model = (model,)
        self._noise = noise
        self._labels, self._batch = labels, len(images)
        self.rows = rows
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (R, K), in the dtype of the images, of any number of images (R, C, H, W)."""
        n = len(images)
        x = images.to(self.device_marker).view_as(images)
        noise = None
        if self._noise is not None:
            noise = self._noise.take(r % self._batch for r in range(n))
            noise = replace(noise, draws=tuple(self.draws + r // self._batch for r in range(n)))
        self.draws += -(-n // self._batch)
        self.forwards += n
        if torch.is_grad_enabled() and x.requires_grad:
            x.register_hook(self._counting(n))
        return self._logits(x, noise).to(images.dtype)

    def _logits(self, x: Tensor, noise: Noise | None) -> Tensor:
        if self.rows is None or len(x) <= self.rows:
            return self._put(x, noise)
        put: Callable[..., Tensor] = partial(_again, self._put, use_reentrant=False) if x.requires_grad else self._put
        found: list[Tensor] = []
        for k in range(0, len(x), self.rows):
            some = range(k, min(k + self.rows, len(x)))
            part = None if noise is None else noise.take(some)
            found.append(put(x[k : some.stop], part))
        return torch.cat(found)

    def _put(self, x: Tensor, noise: Noise | None) -> Tensor:
        logits = cast("Callable[..., Tensor]", self._model[0])(x, *(() if noise is None else (noise,)))
        _check.labels("External", self._labels, n_images=self._batch, n_classes=logits.shape[1])
        return logits

    def _counting(self, n: int) -> Callable[[Tensor], None]:
        """What to do when a call is differentiated: the first time, it was no mere forward after all."""
        times = [0]

        def differentiated(_: Tensor) -> None:
            self.forwards -= n if times[0] == 0 else 0
            self.gradients += n
            times[0] += 1

        return differentiated
