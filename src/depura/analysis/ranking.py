"""Methods compared: ranked by what the strongest attack on each leaves of it, with paired tests and the price.

A method whose checks fail, or whose attack is too weak for its number to be printed, is not ranked: it stands apart,
with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from depura.analysis.checks import MASKED
from depura.analysis.results import Floats, Metrics, Results, longest, strongest
from depura.analysis.verdicts import Conclusion, HeadlineStatus
from depura.analysis.words import at_most, share
from depura.records.kinds import AttackKind
from depura.records.schema import RowFacts
from depura.statistics.intervals import PairedDifference, Proportion, holm, mean_with_interval, paired_difference


class LeaderboardEntry(NamedTuple):
    """One method's line of the ranking.

    Attributes:
        rank: 1 for the best; equal accuracies share a rank; 0 for a method that stands apart.
        method: its name.
        baseline: whether it is one that the others must beat.
        note: what a reader must know of it.
        nfe: denoiser evaluations per prediction of the deployed rule; 0 without a denoiser.
        clean: accuracy of one draw without an attack.
        kinds: accuracy of one draw under each kind of attack.
        masked: kinds of attack of which some gradients were exactly zero.
        strongest: under the strongest attack for each image.
        to_best: strongest, this method minus the best one, p corrected; None for the best, and for those apart.
        to_baseline: the same to the strongest baseline; None for baselines, those apart, or where there is none.
        conclusion: whether its checks let it have a headline, and why not.
    """

    rank: int
    method: str
    baseline: bool
    note: str
    nfe: float
    clean: Proportion
    kinds: dict[AttackKind, Proportion]
    masked: frozenset[AttackKind]
    strongest: Metrics
    to_best: PairedDifference | None
    to_baseline: PairedDifference | None
    conclusion: Conclusion

    @property
    def unchecked(self) -> bool:
        """Whether nothing says if its attack is strong."""
        return self.conclusion.status is HeadlineStatus.UNCHECKED


class Ranking(NamedTuple):
    """The methods of a comparison.

    Attributes:
        entries: those that are ranked, the best first.
        apart: those whose checks let them have no headline, the highest accuracy first.
        comparisons: how many tests the p-values are corrected for.
    """

    entries: tuple[LeaderboardEntry, ...]
    apart: tuple[LeaderboardEntry, ...]
    comparisons: int

    @property
    def all(self) -> tuple[LeaderboardEntry, ...]:
        """Ranked ones first."""
        return (*self.entries, *self.apart)

    @property
    def best(self) -> LeaderboardEntry | None:
        """The method of the highest accuracy under the strongest attack for each image; None where none is ranked."""
        return self.entries[0] if self.entries else None

    @property
    def baseline(self) -> LeaderboardEntry | None:
        """The strongest baseline that is ranked, if there is one."""
        return next((e for e in self.entries if e.baseline), None)

    @property
    def others(self) -> tuple[LeaderboardEntry, ...]:
        """The ranked methods that are no baselines, the best first."""
        return tuple(e for e in self.entries if not e.baseline)


RANKED = (HeadlineStatus.GIVEN, HeadlineStatus.UNCHECKED)


def rank(results: Results, conclusions: Sequence[Conclusion]) -> Ranking | None:
    """The methods of a run in order, by a conclusion on each; None where the study compares no methods."""
    if not results.header.compares:
        return None
    by_method = {conclusion.method: conclusion for conclusion in conclusions}
    methods = {method.name: method for method, _ in results.each()}
    rows = {method.name: its.attacks or its.own_rows for method, its in results.each()}
    outcomes = {name: results.strongest(its) for name, its in rows.items()}
    accuracies = {name: its.accuracies for name, its in outcomes.items()}
    nulls = {name: results.null_of(longest(its)) for name, its in rows.items()}
    clean = {name: mean_with_interval(its.accuracies) for name, its in nulls.items()}
    value = {name: float(np.mean(its)) for name, its in accuracies.items()}
    order = sorted(methods, key=lambda name: (-value[name], -clean[name].value))
    ranked = [name for name in order if by_method[name].status in RANKED]
    baseline = next((name for name in ranked if methods[name].baseline), None)
    pairs = _pairs(ranked, baseline, {name for name in ranked if methods[name].baseline})
    compared = _compare(accuracies, pairs)
    entries = {
        name: LeaderboardEntry(
            rank=1 + sum(value[other] > value[name] for other in ranked) if name in ranked else 0,
            method=name,
            baseline=methods[name].baseline,
            note=methods[name].note,
            nfe=nulls[name].evaluations_per_prediction or 0.0,
            clean=clean[name],
            kinds=_kinds(results, rows[name]),
            masked=frozenset(row.kind for row in rows[name] if results.of_row(row).zero_share > MASKED),
            strongest=outcomes[name].metrics,
            to_best=compared.get((name, ranked[0])) if ranked else None,
            to_baseline=None if methods[name].baseline or baseline is None else compared.get((name, baseline)),
            conclusion=by_method[name],
        )
        for name in order
    }
    apart = tuple(entries[name] for name in order if name not in ranked)
    return Ranking(tuple(entries[name] for name in ranked), apart, len(compared) // 2)


def ranking_headline(ranking: Ranking) -> str:
    """The sentence on top of a comparison: what may be claimed of the best ranked method; where none is, why."""
    best, baseline, n = ranking.best, ranking.baseline, len(ranking.entries)
    if best is None:
        reasons = "; ".join(f"{entry.method}: {entry.conclusion.reason.partition(':')[0]}" for entry in ranking.apart)
        return f"No headline: none of {len(ranking.apart)} methods passed its checks ({reasons})"
    apart = f"; {len(ranking.apart)} more without a rank, as checks do not pass" if ranking.apart else ""
    if best.unchecked:
        first = f"{best.method} is the first of {n} methods" if n > 1 else best.method
        return f"Unchecked: {first}, but nothing says whether the attack on it is strong{apart}"
    claim = at_most(best.strongest.single, best.clean)
    if n == 1:
        return f"{best.method}: {claim}{apart}"
    if baseline is not None and best.baseline and ranking.others:
        other = ranking.others[0]
        how = "detectably worse" if _detectable(other.to_best) else "no detectable difference"
        return (
            f"no purification here is better than the baseline {best.method} alone: {claim}; the best "
            f"purification, {other.method}, at most {share(other.strongest.single)} % ({how}){apart}"
        )
    text = f"{best.method} is the first of {n} methods: {claim}"
    if baseline is not None and not best.baseline:
        accuracy = f"at most {share(baseline.strongest.single)} %"
        if _detectable(best.to_baseline):
            return f"{text}; the strongest baseline, {baseline.method}, {accuracy}{apart}"
        return f"{text}; but the baseline {baseline.method} alone, {accuracy}, is not detectably worse{apart}"
    return f"{text}{apart}"


def ranking_warnings(ranking: Ranking) -> list[str]:
    """Sentences on what a comparison says against its own methods."""
    best, baseline, others, warnings = ranking.best, ranking.baseline, ranking.others, list[str]()
    if best is None:
        return warnings
    tied = [e.method for e in ranking.entries if e.to_best is not None and not e.to_best.detectable]
    if tied:
        warnings.append(f"No detectable difference from the first, {best.method}: {', '.join(tied)}.")
    unchecked = [e.method for e in ranking.entries if e.unchecked]
    if unchecked and len(unchecked) < len(ranking.entries):
        warnings.append(f"Unchecked, as nothing says whether their attacks are strong: {', '.join(unchecked)}.")
    if baseline is None or not others:
        return warnings
    no_better = [e for e in others if not (_detectable(e.to_baseline) and e.to_baseline and e.to_baseline.value > 0)]
    worse = [e for e in no_better if _detectable(e.to_baseline)]
    if len(no_better) == len(others):
        warnings.append(f"The baseline {baseline.method} alone is not detectably worse than any purification here.")
    elif no_better:
        names = ", ".join(e.method for e in no_better)
        warnings.append(f"Not detectably better than the baseline {baseline.method} alone: {names}.")
    if worse:
        names = ", ".join(e.method for e in worse)
        warnings.append(f"Detectably worse than the baseline {baseline.method} alone: {names}.")
    return warnings


def _detectable(difference: PairedDifference | None) -> bool:
    return difference is not None and difference.detectable


def _pairs(order: Sequence[str], baseline: str | None, baselines: set[str]) -> list[tuple[str, str]]:
    """The comparisons that are printed, each once: all with the best, and those that are no baselines with one."""
    pairs = [(name, order[0]) for name in order[1:]]
    if order and baseline is not None and baseline != order[0]:
        pairs += [(name, baseline) for name in order[1:] if name not in baselines]
    return pairs


def _compare(
    accuracies: Mapping[str, Floats], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str | None], PairedDifference]:
    """Differences of the pairs on the images that both have, p corrected for all of them, and the other way round."""
    shared = [min(len(accuracies[a]), len(accuracies[b])) for a, b in pairs]
    plain = [paired_difference(accuracies[a][:n], accuracies[b][:n]) for (a, b), n in zip(pairs, shared, strict=True)]
    differences: dict[tuple[str, str | None], PairedDifference] = {}
    for (a, b), d, p in zip(pairs, plain, holm([d.p for d in plain]), strict=True):
        differences[a, b] = d._replace(p=p)
        differences[b, a] = PairedDifference(-d.value, -d.high, -d.low, p, d.test)
    return differences


def _kinds(results: Results, rows: Sequence[RowFacts]) -> dict[AttackKind, Proportion]:
    """Accuracy by kind of attack; the strongest for each image where rows share a kind."""
    kinds = dict.fromkeys(row.kind for row in rows if row.kind is not AttackKind.OTHER)
    by_kind = {kind: [results.of_row(row) for row in rows if row.kind is kind] for kind in kinds}
    return {kind: mean_with_interval(strongest(of_kind).accuracies) for kind, of_kind in by_kind.items()}
