"""The price of a study before it is run: denoiser evaluations exactly, time from a short probe on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from depura.evaluation.counting import Counts, counted
from depura.evaluation.scoring import ROWS_PER_CALL
from depura.evaluation.study import Row, Study, UnitKey
from depura.noise import Noise, Stream
from depura.purifier import Defence


class Price(NamedTuple):
    """What a row costs at one radius.

    Attributes:
        row: its name.
        eps: radius.
        images: how many.
        forward: denoiser evaluations.
        backward: denoiser evaluations pulled back through.
        seconds: on one worker of this machine.
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


def plan(study: Study) -> tuple[Price, ...]:
    """Price every row of a study. Takes two small forward and two small gradient evaluations per row.

    Args:
        study: the study.

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
            rates[row.name] = _probe(study, row)
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


def _probe(study: Study, row: Row) -> tuple[_Rate, _Rate, _Rate]:
    """Rates of a gradient and of a forward draw of what is attacked, and of a forward draw of what is judged."""
    pull = _rate(study, row.against, at_once=row.attack.cost.at_once, gradient=True)
    look = _rate(study, row.against, at_once=row.attack.cost.at_once, gradient=False)
    n = min(study.unit_images, len(study.data.images))
    judge = (
        look
        if row.judged is row.against
        else _rate(study, row.judged, at_once=max(1, ROWS_PER_CALL // n), gradient=False)
    )
    return pull, look, judge


def _rate(study: Study, defence: Defence, *, at_once: int, gradient: bool) -> _Rate:
    model, counts = counted(defence)
    n = min(study.unit_images, len(study.data.images))
    images = study.data.images[:n].repeat_interleave(at_once, dim=0)
    noise = Noise(study.seed, tuple(study.data.ids[:n]), stream=Stream.PROBE).expand(range(at_once))

    def once() -> None:
        if gradient:
            leaf = images.clone().requires_grad_()
            torch.autograd.grad(model(leaf, noise).sum(), leaf)
        else:
            with torch.no_grad():
                model(images, noise)

    seconds = _second_time(once, counts)
    return _Rate(counts.forward // len(images), counts.backward // len(images), seconds / len(images))


def _second_time(once: Callable[[], None], counts: Counts) -> float:
    """Seconds of a second call, the first having warmed things up; counts are those of the second."""
    once()
    counts.forward = counts.backward = 0
    start = time.perf_counter()
    once()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
