"""Two runs on the same images, compared image by image, with what differs between them besides the defence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from depura import _check
from depura.analysis.results import Floats, Outcome, Results, longest
from depura.records.directory import Differing, RunDirectory, differences
from depura.records.schema import Header, Method, RowFacts
from depura.statistics.intervals import PairedDifference, Proportion, holm, mean_with_interval, paired_difference

POWER = 0.8
"""Chance of finding a difference as large as the detectable gap."""

NULL, STRONGEST, SHARED = "null", "strongest", "strongest of shared"


class Pair(NamedTuple):
    """One printed comparison.

    Attributes:
        methods: whose accuracies they are, in the first and the second run; empty where a run has one defence.
        row: name of the row that both have, less the method's; "null", "strongest" (of all rows that a run has) or
            "strongest of shared" (of those that both have).
        images: how many are compared, the first ones that both have.
        first: accuracy of one draw in the first run.
        second: in the second run.
        difference: first - second, p corrected for all pairs.
        gap: the smallest true difference, in either direction, that would have been found with a chance of 80 %; NaN
            where all images differ by the same, so that there is no estimate.
    """

    methods: tuple[str, str]
    row: str
    images: int
    first: Proportion
    second: Proportion
    difference: PairedDifference
    gap: float


class Comparison(NamedTuple):
    """Two runs compared.

    Attributes:
        names: of the studies.
        pairs: the comparisons, those of one pair of methods together.
        warnings: what makes the two sides unlike in the attack.
        notes: what else differs between the runs.
    """

    names: tuple[str, str]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def detectable(self) -> tuple[Pair, ...]:
        """The comparisons that found a difference."""
        return tuple(pair for pair in self.pairs if pair.difference.detectable)

    def as_json(self) -> dict[str, Any]:
        """The comparison as a JSON value: accuracies as shares, not percent, "detectable" differences, NaN as null."""
        pairs = [
            {
                **pair._asdict(),
                "methods": list(pair.methods),
                "first": pair.first._asdict(),
                "second": pair.second._asdict(),
                "difference": {**pair.difference._asdict(), "detectable": pair.difference.detectable},
                "gap": None if math.isnan(pair.gap) else pair.gap,
            }
            for pair in self.pairs
        ]
        return {**self._asdict(), "pairs": pairs}


@dataclass(frozen=True)
class _Side:
    """A defence in a run: its description, and what was recorded of its rows."""

    path: Path
    results: Results
    method: str

    @property
    def header(self) -> Header:
        return self.results.header

    @property
    def described(self) -> Method:
        """With its defence and its rule."""
        return self.header.method(self.method)

    @property
    def rows(self) -> dict[str, RowFacts]:
        """Rows that attack this defence, by their names without the method's."""
        return {
            row.name.removeprefix(f"{self.method}-") if self.method else row.name: row for row in self.results.attacks
        }

    def outcome(self, name: str) -> Outcome:
        """Under one row, by its name without the method's."""
        return self.results.of_row(self.rows[name]).outcome()

    def strongest(self, names: Sequence[str]) -> Outcome:
        """Under the strongest of some rows for each image."""
        return self.results.strongest([self.rows[name] for name in names])

    @property
    def null(self) -> Outcome:
        """Without an attack."""
        return self.results.null_of(longest(self.results.attacks)).outcome()


def compare_runs(first: RunDirectory, second: RunDirectory, *, methods: tuple[str, str] = ("", "")) -> Comparison:
    """Compare two finished runs, image by image.

    Compared are the null baselines, each row that both have by name, and the strongest attack for each image; rows
    that judge the bare classifier are not, as it is the same in both. Differences are paired by image. p-values are
    corrected by Holm's method for all comparisons that are made.

    Args:
        first: a run.
        second: another one, or the same where two of its methods are compared.
        methods: of runs that compare methods, which one in the first and in the second; empty: those that both have.

    Returns:
        The comparison.

    Raises:
        RecordError: a run lacks units.
        InputError: images, threat model, rule or classifier differ; unknown methods, or none in common.
    """
    _same(first, second, "images", lambda h: h.data.model_dump(mode="json", include={"ids", "labels", "images"}))
    _same(first, second, "threat model", lambda h: h.threat_model.as_json())
    results = (Results.read(first), Results.read(second))
    sides = [
        (_Side(first.path, results[0].only(a), a), _Side(second.path, results[1].only(b), b))
        for a, b in _methods(first.header, second.header, methods)
    ]
    accuracies: list[tuple[tuple[str, str], str, Floats, Floats]] = []
    warnings: list[str] = []
    for a, b in sides:
        _same_deployment(a, b)
        accuracies += [((a.method, b.method), name, x, y) for name, x, y in _accuracies(a, b)]
        warnings += _unlike(a, b)
    return Comparison(
        (first.header.name, second.header.name),
        _paired(accuracies),
        tuple(dict.fromkeys(warnings)),
        _notes(first.header, second.header, sides),
    )


def detectable_gap(differences: Floats, *, tests: int = 1) -> float:
    """The smallest true mean difference that a two-sided paired test at level 0.05 finds with a chance of 80 %.

    (z_{1 - 0.025 / tests} + z_{0.8}) s / sqrt(n), by the normal approximation, with s the standard deviation of the
    differences that were seen. Optimistic for a few dozen images.

    Args:
        differences: one per image, (n,).
        tests: how many tests share the level (Bonferroni, so that Holm's first step holds).

    Returns:
        The gap, in the unit of the differences; NaN where all of them are equal or there is only one.
    """
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan
    reach = float(stats.norm.ppf(1 - 0.025 / tests) + stats.norm.ppf(POWER))
    return reach * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))


def _accuracies(a: _Side, b: _Side) -> list[tuple[str, Floats, Floats]]:
    """What is compared of two defences: name, and the accuracies of both image by image."""
    shared = [name for name in a.rows if name in b.rows]
    outcomes = [(NULL, a.null, b.null)]
    outcomes += [(name, a.outcome(name), b.outcome(name)) for name in shared]
    if shared and set(a.rows) != set(b.rows):
        outcomes.append((SHARED, a.strongest(shared), b.strongest(shared)))
    outcomes.append((STRONGEST, a.strongest(list(a.rows)), b.strongest(list(b.rows))))
    n = [min(len(x.labels), len(y.labels)) for _, x, y in outcomes]
    return [(name, x.first(k).accuracies, y.first(k).accuracies) for (name, x, y), k in zip(outcomes, n, strict=True)]


def _paired(accuracies: Sequence[tuple[tuple[str, str], str, Floats, Floats]]) -> tuple[Pair, ...]:
    differences = [paired_difference(x, y) for _, _, x, y in accuracies]
    corrected = holm([d.p for d in differences])
    return tuple(
        Pair(
            methods=methods,
            row=row,
            images=len(x),
            first=mean_with_interval(x),
            second=mean_with_interval(y),
            difference=d._replace(p=p),
            gap=detectable_gap(x - y, tests=len(accuracies)),
        )
        for (methods, row, x, y), d, p in zip(accuracies, differences, corrected, strict=True)
    )


def _methods(a: Header, b: Header, asked: tuple[str, str]) -> list[tuple[str, str]]:
    """The pairs of methods to compare; empty names stand for the defence of a study that has one."""
    known = [[m.name for m in header.methods if m.name] for header in (a, b)]
    given = list(zip(("--method-a", "--method-b"), asked, known, strict=True))
    for option, name, names in given:
        if name and name not in names:
            _check.fail(option, f"a method of that run ({', '.join(names) or 'it has none'})", repr(name))
    for option, name, names in given:
        if any(asked) and names and not name:
            _check.fail(option, f"which of the run's methods ({', '.join(names)})", "none", "Name one.")
    if any(asked) or not any(known):
        return [asked]
    shared = [name for name in known[0] if name in known[1]]
    if not shared:
        lists = " and ".join(", ".join(names) or "no methods" for names in known)
        advice = "Name the two with --method-a and --method-b."
        _check.fail("compare", "two runs with a method in common", lists, advice)
    return [(name, name) for name in shared]


def _same(a: RunDirectory, b: RunDirectory, what: str, part: Callable[[Header], Any]) -> None:
    """Refuse runs that differ in a part of their headers."""
    where = next(differences(part(a.header), part(b.header)), None)
    if where is not None:
        _refuse(a.path, b.path, what, where)


def _same_deployment(a: _Side, b: _Side) -> None:
    """Refuse defences that differ in more than the purifier, and defences that no row attacks."""
    for side in (a, b):
        if not side.rows:
            _check.fail("compare", "runs with rows that attack their defence", f"{side.path} with none")
    for what, ours, theirs in (
        ("deployed rule", a.described.rule, b.described.rule),
        ("classifier", a.described.part("classifier"), b.described.part("classifier")),
    ):
        where = next(differences(ours, theirs, what), None)
        if where is not None:
            _refuse(a.path, b.path, what, where)


def _refuse(a: Path, b: Path, what: str, where: Differing) -> None:
    _check.fail(
        "compare",
        f"two runs of the same {what}",
        f"{where.where} {where.found} in {a} and {where.wanted} in {b}",
        "A difference between such runs would not be the purifiers'.",
    )


def _unlike(a: _Side, b: _Side) -> list[str]:
    """What makes the attacks on two defences unlike, in sentences."""
    methods = dict.fromkeys(name for name in (a.method, b.method) if name)
    of = f" ({' and '.join(methods)})" if methods else ""
    warnings: list[str] = []
    for name in a.rows:
        if name not in b.rows:
            continue
        ours, theirs = a.rows[name], b.rows[name]
        fields = list(differences(ours.attack, theirs.attack))
        fields = [d for d in fields if d.where == "type"] or fields  # other fields of another attack say nothing
        if fields:
            text = ", ".join(f"{d.where}: {d.found} in A, {d.wanted} in B" for d in fields[:4])
            more = f", and {len(fields) - 4} more fields" if len(fields) > 4 else ""
            warnings.append(f"Row {name}{of} is another attack in B than in A ({text}{more}).")
        if ours.mode != theirs.mode:
            warnings.append(f"Row {name}{of} has gradient mode {ours.mode} in A and {theirs.mode} in B.")
        if ours.images != theirs.images:
            n = min(ours.images, theirs.images)
            warnings.append(
                f"Row {name}{of} was run on {ours.images} images in A and {theirs.images} in B; the first {n} are "
                "compared."
            )
    for letter, side, other in (("A", a, b), ("B", b, a)):
        alone = [name for name in side.rows if name not in other.rows]
        if alone:
            warnings.append(
                f"Only {letter} has {', '.join(alone)}{of}: '{STRONGEST}' is under unequal sets of attacks, "
                f"'{SHARED}' is under those that both have."
            )
    return warnings


def _notes(a: Header, b: Header, sides: Sequence[tuple[_Side, _Side]]) -> tuple[str, ...]:
    """What else differs between the runs, in sentences."""
    notes: list[str] = []
    ours, theirs = a.as_json(), b.as_json()
    for key in ("seed", "draws", "memory", "versions"):
        notes += [
            f"Not the same: {d.where} ({d.found} in A, {d.wanted} in B)."
            for d in differences(ours[key], theirs[key], key)
        ]
    if a.code != b.code:
        notes.append("Not the same: the code of depura.")
    if a.seed == b.seed and any(x.path != y.path for x, y in sides):
        notes.append("The seed is the same: an image met noise of the same addresses in both.")
    for x, y in sides:
        if next(differences(x.described.part("purifier"), y.described.part("purifier")), None) is None:
            methods = dict.fromkeys(name for name in (x.method, y.method) if name)
            of = f" of {' and '.join(methods)}" if methods else ""
            notes.append(f"The purifiers{of} are the same: what differs is the attack or chance.")
    return tuple(dict.fromkeys(notes))
