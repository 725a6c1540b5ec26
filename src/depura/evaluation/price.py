"""The price of a study before it is run: denoiser evaluations exactly, time from a short probe on this machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from depura.evaluation.counting import counted
from depura.evaluation.scoring import ROWS_PER_CALL
from depura.evaluation.study import Row, Study, UnitKey
from depura.noise import Noise, Stream
from depura.purifier import Defence

PROBE_SECONDS = 1.0
"""The probe's batches grow until one takes a quarter of this."""


class Price(NamedTuple):
    """What a row costs at one radius.

    Attributes:
        row: its name.
        eps: radius.
        images: how many.
        forward: denoiser evaluations.
        backward: denoiser evaluations pulled back through.
        seconds: on one worker.
    """

    row: str
    eps: float
    images: int
    forward: int
    backward: int
    seconds: float


class _Rate(NamedTuple):
    """Cost of one draw of one image: denoiser evaluations (forward, backward) and seconds."""

    forward: int
    backward: int
    seconds: float


def plan(study: Study, *, device: str = "cpu") -> tuple[Price, ...]:
    """Price every row of a study, from a few evaluations per row: of one image first, of more if they are quick.

    Args:
        study: the study.
        device: where it is to be computed; the networks are moved there.

    Returns:
        One price per row and radius, null baselines first.
    """
    prices: list[Price] = []
    rates: dict[str, tuple[_Rate, _Rate, _Rate]] = {}
    groups: dict[tuple[str, float], list[UnitKey]] = {}
    for key in study.units():
        groups.setdefault((key.row, key.eps), []).append(key)
    for (name, eps), keys in groups.items():
        row = study.row(name)
        if row.name not in rates:
            rates[row.name] = _probe(study, row, device)
        pull, look, judge = rates[row.name]
        n = sum(key.last - key.first for key in keys)
        cost, s, k = row.attack.cost, study.select_draws, study.report_draws
        scored = n * (row.attack.n_candidates * s + k)
        if name.startswith("null-"):
            scored, gradients, forwards = scored + n * k, 0, 0
        else:
            gradients, forwards = n * cost.gradients, n * cost.forwards
        pictured = 0
        if row.judged.purifier is not None and eps == study.ball.eps and not name.startswith("null-"):
            walks = sum(2 * min(study.pictures, key.last - key.first) for key in keys)
            pictured = walks * judge.forward // row.judged.rule.n_draws
        prices.append(
            Price(
                row=name,
                eps=eps,
                images=n,
                forward=gradients * pull.forward + forwards * look.forward + scored * judge.forward + pictured,
                backward=gradients * pull.backward,
                seconds=gradients * pull.seconds + forwards * look.seconds + scored * judge.seconds,
            )
        )
    return tuple(prices)


def _probe(study: Study, row: Row, device: str) -> tuple[_Rate, _Rate, _Rate]:
    """Rates of a gradient and of a forward draw of what is attacked, and of a forward draw of what is judged."""
    pull = _rate(study, row.against, device, at_once=row.attack.cost.at_once, gradient=True)
    look = _rate(study, row.against, device, at_once=row.attack.cost.at_once, gradient=False)
    n = min(study.unit_images, len(study.data.images))
    judge = (
        look
        if row.judged is row.against
        else _rate(study, row.judged, device, at_once=max(1, ROWS_PER_CALL // n), gradient=False)
    )
    return pull, look, judge


def _rate(study: Study, defence: Defence, device: str, *, at_once: int, gradient: bool) -> _Rate:
    """Counts of one row, and seconds per row of the largest batch that fits into the probe's time."""
    model, counts = counted(defence.to(device))
    n = min(study.unit_images, len(study.data.images))
    images = study.data.images[:n].to(device).repeat_interleave(at_once, dim=0)
    noise = Noise(study.seed, tuple(study.data.ids[:n]), stream=Stream.PROBE).expand(range(at_once))
    rows, seconds = 1, _seconds(model, images[:1], noise.take([0]), gradient=gradient)
    evaluations = (counts.forward, counts.backward)
    seconds = min(seconds, _seconds(model, images[:1], noise.take([0]), gradient=gradient))
    while seconds < PROBE_SECONDS / 4 and rows < len(images):
        rows = min(4 * rows, len(images))
        seconds = _seconds(model, images[:rows], noise.take(range(rows)), gradient=gradient)
    return _Rate(*evaluations, seconds / rows)


def _seconds(model: Defence, images: Tensor, noise: Noise, *, gradient: bool) -> float:
    start = time.perf_counter()
    if gradient:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(model(leaf, noise).sum(), leaf)
    else:
        with torch.no_grad():
            model(images, noise)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
