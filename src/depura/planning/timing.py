"""Seconds of a call, measured by making it: the clock of a plan for networks that are there."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from depura.defence import Defence, Single
from depura.evaluation.counting import call
from depura.evaluation.study import Study
from depura.gradients import StoredState
from depura.noise import Noise, Stream
from depura.purifiers.purifier import Purifier

PROBE_SECONDS = 1.0
"""The probe's batches grow until one takes a quarter of this; sampling that takes longer is priced from one step."""


@dataclass(frozen=True)
class Stopwatch:
    """Measures calls on a study's images.

    Attributes:
        study: whose images and seed.
        device: where the networks are.
    """

    study: Study
    device: str

    def seconds(self, defence: Defence, rows: int, counts: object, *, gradient: bool) -> float:
        """Seconds per row of the largest batch, up to `rows`, that fits into the probe's time."""
        del counts
        defence.to(self.device)
        if defence.core is None or defence.core.n_steps == 1:
            return self._timed(defence, rows, gradient)
        single = step_at(defence, 0.0)
        assert single.core is not None
        repeated = defence.core.n_steps / single.core.n_steps
        if self._timed(single, 1, gradient) * repeated <= PROBE_SECONDS:
            return self._timed(defence, rows, gradient)
        one = self._timed(single, rows, gradient)
        if defence.purifier is None:
            return one * repeated
        bare = defence.with_(purifier=None, rule=Single())
        classified = self._timed(bare, rows, gradient) * defence.rule.n_draws
        return max(0.0, one - classified) * repeated + classified

    def _timed(self, defence: Defence, rows: int, gradient: bool) -> float:
        """Seconds per row."""
        images, noise = rows_of(self.study, rows, device=self.device)
        tried = 1
        seconds = min(_seconds(defence, images[:1], noise.take([0]), gradient) for _ in range(2))
        while seconds < PROBE_SECONDS / 4 and tried < len(images):
            tried = min(4 * tried, len(images))
            seconds = _seconds(defence, images[:tried], noise.take(range(tried)), gradient)
        return seconds / tried


def rows_of(study: Study, rows: int, *, device: str) -> tuple[Tensor, Noise]:
    """Images (rows, C, H, W) on a device, and noise, of a call of so many rows, as an attack makes it."""
    n = min(study.unit_images, len(study.data.images))
    copies = -(-rows // n)
    images = study.data.images[:n].to(device).repeat_interleave(copies, dim=0)[:rows]
    noise = Noise(study.seed, tuple(study.data.ids[:n]), stream=Stream.PROBE)
    return images, noise.expand(range(copies)).take(range(rows))


def step_at(defence: Defence, where: float) -> Defence:
    """One step of each purifier alone, from the first (0) to the last (1), differentiated as one of many is."""
    single = defence.over_core(lambda core: core.one_step(where))
    return single.with_(gradient=StoredState(segment=1)) if _stores(single.core) else single


def _seconds(defence: Defence, images: Tensor, noise: Noise, gradient: bool) -> float:
    start = time.perf_counter()
    call(defence, images, noise, gradient=gradient)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _stores(core: Purifier | None) -> bool:
    return core is not None and isinstance(core.route, StoredState)
