"""The price of a study before it is run: denoiser evaluations and graphs exactly, time by a clock.

Networks that are there are timed (timing.py); of networks without weights, on torch's meta device, the operations are
counted and divided by this machine's rate (operations.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from depura.defence import Defence
from depura.evaluation.counting import Counts, bytes_per_row, evaluations
from depura.evaluation.diagnostics import compares, surrogate
from depura.evaluation.examples import price
from depura.evaluation.meta_device import META, is_weightless, without_weights
from depura.evaluation.scoring import ROWS_PER_CALL
from depura.evaluation.study import AttackRun, Study, UnitKey
from depura.evaluation.units import examined
from depura.gradients import Direct
from depura.planning.operations import Estimate, rate_of
from depura.planning.timing import Stopwatch, rows_of
from depura.records.kinds import GradientMode


class Price(NamedTuple):
    """What a row costs at one radius.

    Attributes:
        row: its name.
        eps: radius.
        images: how many.
        forward: denoiser evaluations.
        backward: denoiser evaluations differentiated.
        seconds: on one worker.
        memory: bytes of graph that a call of the attack holds at once; weights and results come on top.
        rate: floating-point operations a second that the seconds are estimated with; None where they are measured.
    """

    row: str
    eps: float
    images: int
    forward: int
    backward: int
    seconds: float
    memory: int
    rate: float | None = None


class _Rate(NamedTuple):
    """Cost of one draw of one image: denoiser evaluations (forward, backward) and seconds."""

    forward: int
    backward: int
    seconds: float


class _Rates(NamedTuple):
    """Rates of a row: a gradient and a forward draw of what is attacked, a forward draw of what is judged, and a
    gradient of the surrogate where cheap routes are compared with the exact one; a gradient and a forward draw of each
    surrogate that the attack goes through; and bytes of a call's graph."""

    gradient: _Rate
    forward: _Rate
    judge: _Rate
    surrogate: _Rate | None
    attacked: tuple[tuple[_Rate, _Rate], ...]
    memory: int


def plan(
    study: Study,
    *,
    device: str = "cpu",
    units: Sequence[UnitKey] | None = None,
    from_file: bool = False,
    rate: float | None = None,
) -> tuple[Price, ...]:
    """Price every row of a study, from a few evaluations per row: of one image first, of more if they are quick.

    Where networks or images are on torch's meta device, or a rate is given, all of them are priced there, and the time
    is estimated from operations.

    Evaluations that a gradient makes again on its way back, for want of memory, are in the time and not in the counts.
    The audit of gradients, on two images, is in neither. The checks at examples are in both, as they are where each is
    content at once.

    Args:
        study: the study.
        device: where it is to be computed; the networks are moved there, unless some have no weights.
        units: which pieces of its work; default all.
        from_file: whether the study is run from a file, which a check loads anew.
        rate: operations a second of the machine that it is priced for; default this one's, measured.

    Returns:
        One price per row and radius, null baselines first.
    """
    if rate is None and is_weightless(study):
        rate = rate_of(device, study.data.images.dtype)
    if rate is None:
        probe = _Probe(study, device, Stopwatch(study, device))
    else:
        study = without_weights(study)
        probe = _Probe(study, META, Estimate(study, rate))
    rates = dict[str, _Rates]()
    groups: dict[tuple[str, float], list[UnitKey]] = {}
    for key in study.units() if units is None else units:
        if key.row in study.audits:
            continue
        groups.setdefault((key.row, key.eps), []).append(key)
    prices: list[Price] = []
    for (name, eps), keys in groups.items():
        row = study.row(name)
        if row.name not in rates:
            rates[row.name] = probe(row)
        price_of = _price(study, row, rates[row.name], name, eps, keys, ways=2 if from_file else 1)
        prices.append(price_of._replace(rate=rate))
    return tuple(prices)


def _price(
    study: Study, row: AttackRun, rates: _Rates, name: str, eps: float, keys: Sequence[UnitKey], *, ways: int
) -> Price:
    n = sum(key.last - key.first for key in keys)
    cost, s, k = row.attack.cost, study.select_draws, study.report_draws
    null, main = name.startswith("null-"), eps == study.ball.eps
    again = k if null else len(study.rounded_draws)
    work: list[tuple[int, _Rate]] = [(n * (row.attack.n_candidates * s + k + again), rates.judge)]
    if not null:
        work += [(n * cost.gradients, rates.gradient), (n * cost.forwards, rates.forward)]
        for cheap, (gradient, forward) in zip(cost.surrogates, rates.attacked, strict=True):
            work += [(n * cheap.gradients, gradient), (n * cheap.forwards, forward)]
    if not null and main and compares(row):
        draws = n * cost.at_once
        work += [(draws, rates.gradient), (draws if row.attacked.purifier is not None else 0, rates.forward)]
        work += [] if rates.surrogate is None else [(draws, rates.surrogate)]
    if not null and main and row.evaluated.purifier is not None:
        shown = sum(2 * min(study.pictures, key.last - key.first) for key in keys)
        one = rates.judge._replace(forward=rates.judge.forward // row.evaluated.rule.n_draws, seconds=0.0)
        work += [(shown + 4 * n, one), (2 * n, rates.judge)]
    looked = [key for key in keys if not null and examined(study, row, key) is not None]
    for key in looked:
        exact = row.mode is GradientMode.EXACT and row.attacked.differentiable
        forwards, gradients = price(key.last - key.first, k, ways=ways, exact=exact)
        work += [(forwards, rates.judge), (gradients, rates.gradient)]
    return Price(
        row=name,
        eps=eps,
        images=n,
        forward=sum(count * rate.forward for count, rate in work),
        backward=sum(count * rate.backward for count, rate in work),
        seconds=sum(count * rate.seconds for count, rate in work),
        memory=0 if null else rates.memory,
    )


@dataclass
class _Probe:
    """Measures what rows cost; rows that attack or judge the same defence in the same way share a measurement."""

    study: Study
    device: str
    clock: Stopwatch | Estimate
    known: dict[tuple[int, int, bool], _Rate] = field(default_factory=dict[tuple[int, int, bool], _Rate])
    graphs: list[tuple[Defence, int]] = field(default_factory=list[tuple[Defence, int]])
    counted: dict[tuple[int, bool], Counts] = field(default_factory=dict[tuple[int, bool], Counts])
    kept: list[Defence] = field(default_factory=list[Defence])

    def __call__(self, row: AttackRun) -> _Rates:
        n = min(self.study.unit_images, len(self.study.data.images))
        row.attacked.to(self.device)
        graph = self.graph(row.attacked)
        at_once = min(n * row.attack.cost.at_once, max(1, self.study.memory // max(1, graph)))
        gradients = row.attack.cost.gradients > 0
        forward = self.rate(row.attacked, rows=at_once, gradient=False)
        gradient = self.rate(row.attacked, rows=at_once, gradient=True) if gradients else forward
        judge = forward
        if row.evaluated is not row.attacked:
            judge = self.rate(row.evaluated, rows=n * max(1, ROWS_PER_CALL // n), gradient=False)
        shortens = row.attacked.core is not None and row.attacked.core.shortens
        cheap = surrogate(row.attacked) if compares(row) and shortens else None
        coarse = None if cheap is None else self.rate(cheap, rows=at_once, gradient=True)
        others = [row.attacked.coarser(its.share) for its in row.attack.cost.surrogates]
        attacked = [
            (self.rate(its, rows=at_once, gradient=True), self.rate(its, rows=at_once, gradient=False))
            for its in others
        ]
        return _Rates(gradient, forward, judge, coarse, tuple(attacked), at_once * graph if gradients else 0)

    def graph(self, defence: Defence) -> int:
        """Bytes of a row's graph; measured once for defences that differ only in how they are differentiated."""
        graph = next((known for other, known in self.graphs if _same_graph(other, defence)), None)
        if graph is None:
            graph = bytes_per_row(defence, self.study.data.images[:1].to(self.device))
            self.graphs.append((defence, graph))
        return graph

    def rate(self, defence: Defence, *, rows: int, gradient: bool) -> _Rate:
        """Counts of one row, and seconds per row of the largest batch up to `rows` that fits into the probe's time."""
        key = (id(defence), rows, gradient)
        if key not in self.known:
            self.kept.append(defence)
            counts = self.counts(defence, gradient=gradient)
            seconds = self.clock.seconds(defence, rows, counts, gradient=gradient)
            self.known[key] = _Rate(counts.forward, counts.backward, seconds)
        return self.known[key]

    def counts(self, defence: Defence, *, gradient: bool) -> Counts:
        """Evaluations of one row."""
        key = (id(defence), gradient)
        if key not in self.counted:
            self.counted[key] = evaluations(defence, *rows_of(self.study, 1, device=self.device), gradient=gradient)
        return self.counted[key]


def _same_graph(a: Defence, b: Defence) -> bool:
    ours, theirs = a.core, b.core
    if ours is None or theirs is None:
        return ours is theirs and a.classifier is b.classifier
    alike = ours.same_function(theirs) and isinstance(ours.route, Direct) == isinstance(theirs.route, Direct)
    return alike and a.rule == b.rule and (a.classifier is b.classifier or ours is a.classifier)
