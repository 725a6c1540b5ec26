"""Methods compared: ranked by what the strongest attack on each leaves of it, with paired tests and the price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.evaluation.records import Unit
from depura.evaluation.statistics import Difference, Estimate, holm, mean_with_interval, paired_difference
from depura.judging.metrics import Metrics, at_most, joined, outcome, strongest
from depura.judging.thresholds import MASKED

Units = Mapping[str, Sequence[Unit]]
"""Units at the radius of the table, by the name of their row or null baseline."""


class Standing(NamedTuple):
    """One method's line of the ranking.

    Attributes:
        rank: 1 for the best; equal accuracies share a rank.
        method: its name.
        baseline: whether it is one that the others must beat.
        note: what a reader must know of it.
        nfe: denoiser evaluations per prediction of the deployed rule; 0 without a denoiser.
        clean: accuracy of one draw without an attack.
        kinds: accuracy of one draw under each kind of attack.
        masked: kinds of attack of which some gradients were exactly zero.
        strongest: under the strongest attack for each image.
        to_best: strongest, this method minus the best one, p corrected; None for the best.
        to_baseline: the same to the strongest baseline; None for baselines, or where there is none.
    """

    rank: int
    method: str
    baseline: bool
    note: str
    nfe: float
    clean: Estimate
    kinds: dict[str, Estimate]
    masked: frozenset[str]
    strongest: Metrics
    to_best: Difference | None
    to_baseline: Difference | None


class Ranking(NamedTuple):
    """The methods of a comparison.

    Attributes:
        standings: the best first.
        comparisons: how many tests the p-values are corrected for.
    """

    standings: tuple[Standing, ...]
    comparisons: int

    @property
    def best(self) -> Standing:
        """The method of the highest accuracy under the strongest attack for each image."""
        return self.standings[0]

    @property
    def baseline(self) -> Standing | None:
        """The strongest baseline, if there is one."""
        return next((s for s in self.standings if s.baseline), None)

    @property
    def others(self) -> tuple[Standing, ...]:
        """The methods that are no baselines, the best first."""
        return tuple(s for s in self.standings if not s.baseline)


def rank(header: dict[str, Any], by_row: Units) -> Ranking | None:
    """Rank the methods of a run.

    Args:
        header: contents of study.json.
        by_row: the units.

    Returns:
        The ranking; None where the study compares no methods.
    """
    methods: dict[str, dict[str, Any]] = {m["name"]: m for m in header["methods"]}
    if not methods:
        return None
    rows = {name: [row for row in header["rows"] if row["method"] == name] for name in methods}
    outcomes = {name: strongest([by_row[row["name"]] for row in its]) for name, its in rows.items()}
    accuracies = {name: found.accuracies for name, found in outcomes.items()}
    nulls = {name: by_row[its[0]["null"]] for name, its in rows.items()}
    clean = {name: mean_with_interval(outcome(units).accuracies) for name, units in nulls.items()}
    value = {name: float(np.mean(found)) for name, found in accuracies.items()}
    order = sorted(methods, key=lambda name: (-value[name], -clean[name].value))
    baseline = next((name for name in order if methods[name]["baseline"]), None)
    compared = _compare(accuracies, _pairs(order, baseline, {n for n in order if methods[n]["baseline"]}))
    standings = tuple(
        Standing(
            rank=1 + sum(other > value[name] for other in value.values()),
            method=name,
            baseline=methods[name]["baseline"],
            note=methods[name]["note"],
            nfe=_nfe(nulls[name]),
            clean=clean[name],
            kinds=_kinds(rows[name], by_row),
            masked=frozenset(row["kind"] for row in rows[name] if zero_share(by_row[row["name"]]) > MASKED),
            strongest=outcomes[name].metrics,
            to_best=compared.get((name, order[0])),
            to_baseline=None if methods[name]["baseline"] else compared.get((name, baseline)),
        )
        for name in order
    )
    return Ranking(standings, len(compared) // 2)


def zero_share(units: Sequence[Unit]) -> float:
    """Share of an attack's gradients that were exactly zero; 0 of an attack without gradients."""
    return float(joined(units, "zero_gradients").mean()) if "zero_gradients" in units[0].arrays else 0.0


def headline(ranking: Ranking) -> str:
    """The sentence on top of a comparison."""
    best, baseline, n = ranking.best, ranking.baseline, len(ranking.standings)
    claim = at_most(best.strongest.single, best.clean)
    if n == 1:
        return f"{best.method}: {claim}"
    if baseline is not None and best.baseline and ranking.others:
        other = ranking.others[0]
        found = "detectably worse" if _detectable(other.to_best) else "no detectable difference"
        return (
            f"no purification here is better than the baseline {best.method} alone: {claim}; the best purification, "
            f"{other.method}, at most {_value(other)} % ({found})"
        )
    text = f"{best.method} is the first of {n} methods: {claim}"
    if baseline is not None and not best.baseline:
        if _detectable(best.to_baseline):
            return f"{text}; the strongest baseline, {baseline.method}, at most {_value(baseline)} %"
        return (
            f"{text}; but the baseline {baseline.method} alone, at most {_value(baseline)} %, is not detectably worse"
        )
    return text


def warnings(ranking: Ranking) -> list[str]:
    """What a comparison says against its own methods."""
    baseline, others, found = ranking.baseline, ranking.others, list[str]()
    tied = [s.method for s in ranking.standings if s.to_best is not None and not s.to_best.detectable]
    if tied:
        found.append(f"No detectable difference from the first, {ranking.best.method}: {', '.join(tied)}.")
    if baseline is None or not others:
        return found
    no_better = [s for s in others if not (_detectable(s.to_baseline) and s.to_baseline and s.to_baseline.value > 0)]
    worse = [s for s in no_better if _detectable(s.to_baseline)]
    if len(no_better) == len(others):
        found.append(f"The baseline {baseline.method} alone is not detectably worse than any purification here.")
    elif no_better:
        names = ", ".join(s.method for s in no_better)
        found.append(f"Not detectably better than the baseline {baseline.method} alone: {names}.")
    if worse:
        names = ", ".join(s.method for s in worse)
        found.append(f"Detectably worse than the baseline {baseline.method} alone: {names}.")
    return found


def _detectable(difference: Difference | None) -> bool:
    return difference is not None and difference.detectable


def _value(standing: Standing) -> str:
    return f"{100 * standing.strongest.single.value:.1f}"


def _pairs(order: Sequence[str], baseline: str | None, baselines: set[str]) -> list[tuple[str, str]]:
    """The comparisons that are printed, each once: all with the best, and those that are no baselines with one."""
    pairs = [(name, order[0]) for name in order[1:]]
    if baseline is not None and baseline != order[0]:
        pairs += [(name, baseline) for name in order[1:] if name not in baselines]
    return pairs


def _compare(
    accuracies: Mapping[str, NDArray[np.float64]], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str | None], Difference]:
    """Differences of the pairs, p corrected for all of them, and the same the other way round."""
    plain = [paired_difference(accuracies[a], accuracies[b]) for a, b in pairs]
    found: dict[tuple[str, str | None], Difference] = {}
    for (a, b), d, p in zip(pairs, plain, holm([d.p for d in plain]), strict=True):
        found[a, b] = d._replace(p=p)
        found[b, a] = Difference(-d.value, -d.high, -d.low, p, d.test)
    return found


def _nfe(nulls: Sequence[Unit]) -> float:
    """Denoiser evaluations per prediction, as counted on clean images."""
    costs = [unit.meta["clean"] for unit in nulls]
    return sum(c["evaluations"] for c in costs) / sum(c["predictions"] for c in costs)


def _kinds(rows: Sequence[dict[str, Any]], by_row: Units) -> dict[str, Estimate]:
    """Accuracy by kind of attack; the strongest for each image where rows share a kind."""
    kinds = dict.fromkeys(row["kind"] for row in rows if row["kind"])
    units = {kind: [by_row[row["name"]] for row in rows if row["kind"] == kind] for kind in kinds}
    return {kind: mean_with_interval(strongest(its).accuracies) for kind, its in units.items()}
