"""The price of a study before it is run: denoiser evaluations exactly, time from a short probe on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from depura.defence import Defence
from depura.evaluation.counting import counted
from depura.evaluation.fitting import rows_within
from depura.evaluation.scoring import ROWS_PER_CALL
from depura.evaluation.shortcuts import compares, surrogate
from depura.evaluation.study import Row, Study, UnitKey
from depura.noise import Noise, Stream

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


class _Rates(NamedTuple):
    """Rates of a row: a gradient and a forward draw of what is attacked, a forward draw of what is judged, and a
    gradient of the surrogate where cheap routes are compared with the exact one."""

    pull: _Rate
    look: _Rate
    judge: _Rate
    surrogate: _Rate | None


def plan(study: Study, *, device: str = "cpu") -> tuple[Price, ...]:
    """Price every row of a study, from a few evaluations per row: of one image first, of more if they are quick.

    Evaluations that a gradient makes again on its way back, for want of memory, are in the time and not in the counts.

    Args:
        study: the study.
        device: where it is to be computed; the networks are moved there.

    Returns:
        One price per row and radius, null baselines first.
    """
    rates: dict[str, _Rates] = {}
    groups: dict[tuple[str, float], list[UnitKey]] = {}
    for key in study.units():
        groups.setdefault((key.row, key.eps), []).append(key)
    prices: list[Price] = []
    for (name, eps), keys in groups.items():
        row = study.row(name)
        if row.name not in rates:
            rates[row.name] = _probe(study, row, device)
        prices.append(_price(study, row, rates[row.name], name, eps, keys))
    return tuple(prices)


def _price(study: Study, row: Row, rates: _Rates, name: str, eps: float, keys: Sequence[UnitKey]) -> Price:
    n = sum(key.last - key.first for key in keys)
    cost, s, k = row.attack.cost, study.select_draws, study.report_draws
    null, main = name.startswith("null-"), eps == study.ball.eps
    again = k if null else len(study.rounded_draws)
    work: list[tuple[int, _Rate]] = [(n * (row.attack.n_candidates * s + k + again), rates.judge)]
    if not null:
        work += [(n * cost.gradients, rates.pull), (n * cost.forwards, rates.look)]
    if not null and main and rates.surrogate is not None:
        draws = n * cost.at_once
        work += [(draws, rates.pull), (draws, rates.look), (draws, rates.surrogate)]
    if not null and main and row.judged.purifier is not None:
        walks = sum(2 * min(study.pictures, key.last - key.first) for key in keys)
        one = rates.judge._replace(forward=rates.judge.forward // row.judged.rule.n_draws, seconds=0.0)
        work.append((walks, one))
    return Price(
        row=name,
        eps=eps,
        images=n,
        forward=sum(count * rate.forward for count, rate in work),
        backward=sum(count * rate.backward for count, rate in work),
        seconds=sum(count * rate.seconds for count, rate in work),
    )


def _probe(study: Study, row: Row, device: str) -> _Rates:
    n = min(study.unit_images, len(study.data.images))
    row.against.to(device)
    fitting = rows_within(row.against, study.data.images[:1].to(device), study.memory)
    at_once = min(n * row.attack.cost.at_once, fitting)
    pull = _rate(study, row.against, device, rows=at_once, gradient=True)
    look = _rate(study, row.against, device, rows=at_once, gradient=False)
    judge = look
    if row.judged is not row.against:
        judge = _rate(study, row.judged, device, rows=n * max(1, ROWS_PER_CALL // n), gradient=False)
    cheap = surrogate(row.against) if compares(row) else None
    coarse = None if cheap is None else _rate(study, cheap, device, rows=at_once, gradient=True)
    return _Rates(pull, look, judge, coarse)


def _rate(study: Study, defence: Defence, device: str, *, rows: int, gradient: bool) -> _Rate:
    """Counts of one row, and seconds per row of the largest batch, up to `rows`, that fits into the probe's time."""
    model, counts = counted(defence.to(device))
    n = min(study.unit_images, len(study.data.images))
    copies = -(-rows // n)
    images = study.data.images[:n].to(device).repeat_interleave(copies, dim=0)[:rows]
    noise = Noise(study.seed, tuple(study.data.ids[:n]), stream=Stream.PROBE).expand(range(copies)).take(range(rows))
    tried, seconds = 1, _seconds(model, images[:1], noise.take([0]), gradient=gradient)
    evaluations = (counts.forward, counts.backward)
    seconds = min(seconds, _seconds(model, images[:1], noise.take([0]), gradient=gradient))
    while seconds < PROBE_SECONDS / 4 and tried < len(images):
        tried = min(4 * tried, len(images))
        seconds = _seconds(model, images[:tried], noise.take(range(tried)), gradient=gradient)
    return _Rate(*evaluations, seconds / tried)


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
