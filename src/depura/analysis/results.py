"""The results of a run, from its record: predictions by attack, image and draw, and what follows of them.

Arrays are read from the units when they are asked for. What is kept is small: labels of draws in the smallest type that
holds them, and arrays of one number per image. Examples and pictures are never read for all images at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.records.arrays import narrowed, some_of
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.kinds import AttackKind
from depura.records.schema import Audit, AuditCheck, Header, Identity, Method, RowFacts
from depura.statistics.error_rates import Shares, Submissions, error_shares, submissions
from depura.statistics.intervals import Proportion, any_of, errors_of, majority, mean_with_interval, single_draw
from depura.statistics.precision import Spread, spread

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRADIENT_KINDS = (AttackKind.ADAPTIVE, AttackKind.RELAXED, AttackKind.TARGETED, AttackKind.SELECTIVE, AttackKind.BUDGET)
"""Attacks that differentiate the defence that is judged, as it is or through smooth stand-ins."""

N_ANY, N_VOTE = 10, 21
"""Draws of the any-of-N and majority metrics; fewer where fewer were recorded (an odd number for the majority)."""


def n_draws(k: int) -> tuple[int, int]:
    """Draws of the any-of-N and majority metrics where k were recorded."""
    return min(N_ANY, k), min(N_VOTE, k - (k + 1) % 2) if k > 1 else 1


class Metrics(NamedTuple):
    """One set of predictions, in several ways.

    Attributes:
        single: accuracy of one draw.
        any: probability that N submissions are all classified correctly.
        vote: accuracy of a majority of N draws.
        shares: of images that are nearly always right, sometimes wrong, and mostly wrong.
        submissions: of the same image, until an error is as likely as not.
    """

    single: Proportion
    any: Proportion
    vote: Proportion
    shares: Shares
    submissions: Submissions


class Outcome(NamedTuple):
    """Predictions of all images.

    Attributes:
        predictions: (n, K), the deployed label of each report draw, whole numbers of any type; -1 where it is not
            finite.
        labels: (n,).
    """

    predictions: Ints
    labels: Ints

    def first(self, n: int) -> Outcome:
        """Of the first n images."""
        return Outcome(self.predictions[:n], self.labels[:n])

    @property
    def accuracies(self) -> Floats:
        """Single-draw accuracy of each image, (n,)."""
        return single_draw(self.predictions, self.labels)

    @property
    def metrics(self) -> Metrics:
        """The metrics."""
        n_any, n_vote = n_draws(self.predictions.shape[1])
        return Metrics(
            mean_with_interval(self.accuracies),
            mean_with_interval(any_of(self.predictions, self.labels, n_any)),
            mean_with_interval(majority(self.predictions, self.labels, n_vote)),
            error_shares(self.predictions, self.labels),
            submissions(self.predictions, self.labels),
        )

    @property
    def spread(self) -> Spread:
        """What the width of the single-draw interval is made of, and how a longer run would narrow it."""
        return spread((self.predictions == self.labels[:, None]).astype(np.float64))


DRAWN = ("predictions", "rounded_predictions", "random_predictions")
"""Arrays of labels of draws, (n, K)."""

KEPT = 256
"""Bytes per image up to which any other array is kept; one that takes more is read each time it is asked for."""

LARGE = ("adversarial", "picture_")
"""How names of arrays begin that are of the size of images: they are read for themselves alone."""


@dataclass(frozen=True)
class RowResults:
    """What was recorded of a row, of a clean baseline or of an audit at one radius: its units, in order of the images.

    Attributes:
        units: the units that are there.
    """

    units: tuple[Unit, ...]
    _kept: dict[str, NDArray[Any]] = field(
        default_factory=dict[str, NDArray[Any]], init=False, repr=False, compare=False
    )

    def has(self, name: str) -> bool:
        """Whether every unit has an array."""
        return all(name in unit.arrays for unit in self.units)

    def array(self, name: str) -> NDArray[Any]:
        """An array of all images, (n, ...); labels of draws are in the smallest type that holds them."""
        if name not in self._kept:
            names = [name]
            if not self._kept and not name.startswith(LARGE):  # all small ones at once: each file is opened once
                first = self.units[0].arrays if self.units else ()
                names += [its for its in first if its != name and not its.startswith(LARGE) and self.has(its)]
            read = self._read(names)
            small = {its: array for its, array in read.items() if its in DRAWN or array.nbytes <= KEPT * len(array)}
            self._kept.update(small)
            return read[name]
        return self._kept[name]

    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        parts: list[list[NDArray[Any]]] = [[] for _ in names]
        for unit in self.units:
            for part, name, array in zip(parts, names, some_of(unit.arrays, names), strict=True):
                part.append(narrowed(array) if name in DRAWN else array)
        # Beside the first, arrays that do not fit together are left to those who ask for them.
        fit = [k == 0 or len({array.shape[1:] for array in arrays}) == 1 for k, arrays in enumerate(parts)]
        found = zip(names, parts, fit, strict=True)
        return {name: np.concatenate(arrays) for name, arrays, fits in found if fits}

    def unit_of(self, position: int) -> tuple[Unit, int]:
        """The unit that holds the image at a position among all, and its position there."""
        for unit in self.units:
            n = unit.facts.last - unit.facts.first
            if position < n:
                return unit, position
            position -= n
        raise IndexError("no unit holds an image at this position")

    def outcome(self, name: str = "predictions") -> Outcome:
        """What was predicted, by the name of the array that says so."""
        return Outcome(self.array(name), self.array("labels").astype(np.int64))

    @property
    def n_images(self) -> int:
        """How many images there are."""
        return len(self.array("labels"))

    @property
    def accuracies(self) -> Floats:
        """Single-draw accuracy of each image, (n,)."""
        return self.outcome().accuracies

    def accuracy(self, name: str, draws: int) -> Proportion:
        """Accuracy of one draw over the first draws of an array of predictions, by its name."""
        outcome = self.outcome(name)
        return mean_with_interval(single_draw(outcome.predictions[:, :draws], outcome.labels))

    @property
    def evaluations_per_prediction(self) -> float | None:
        """Denoiser evaluations per prediction, of a clean baseline; None where they were not counted."""
        costs = [unit.facts.clean for unit in self.units if unit.facts.clean is not None]
        return sum(cost.evaluations for cost in costs) / sum(cost.predictions for cost in costs) if costs else None

    @property
    def zero_share(self) -> float:
        """Share of an attack's gradients that were exactly zero; 0 of an attack without gradients."""
        return float(self.array("zero_gradients").mean()) if self.has("zero_gradients") else 0.0


def strongest(rows: Sequence[RowResults]) -> Outcome:
    """Per image, the attack whose chosen candidate had the most wrong select draws (ties: larger margin).

    Rows may be of the first images only: an image's strongest attack is the strongest of those that were run on it.
    """
    outcomes, which = [row.outcome() for row in rows], strongest_rows(rows)
    labels = max(outcomes, key=lambda outcome: len(outcome.labels)).labels
    kinds = [outcome.predictions.dtype for outcome in outcomes]
    predictions = np.empty((len(labels), outcomes[0].predictions.shape[1]), np.result_type(*kinds))
    for k, outcome in enumerate(outcomes):
        chosen = np.flatnonzero(which == k)
        predictions[chosen] = outcome.predictions[chosen]
    return Outcome(predictions, labels)


def longest(rows: Sequence[RowFacts]) -> RowFacts:
    """The row that was run on the most images; the first of several."""
    return max(rows, key=lambda row: row.images)


def strongest_rows(rows: Sequence[RowResults]) -> Ints:
    """Which row is the strongest on each image (see `strongest`), (n,) indices of rows."""
    n = max(row.n_images for row in rows)
    errors, margins = np.full((len(rows), n), -1), np.full((len(rows), n), -np.inf)
    for k, row in enumerate(rows):
        chosen = row.array("chosen")
        errors[k, : len(chosen)] = row.array("select_errors")[np.arange(len(chosen)), chosen]
        # A margin without a finite draw is of an image that is always wrong.
        margins[k, : len(chosen)] = np.nan_to_num(row.array("select_margins"), nan=np.inf)
    return np.where(errors == errors.max(0), margins, -np.inf).argmax(0)


@dataclass(frozen=True)
class Results:
    """The results of a run, or of one method of a comparison: attacks x images x draws.

    Attributes:
        header: of the run.
        by_row: what was recorded, by the name of the row, clean baseline or audit, and by radius.
        method: of a comparison, whose rows `rows` gives; None for all.
    """

    header: Header
    by_row: Mapping[tuple[str, float], RowResults]
    method: str | None = None

    @classmethod
    def read(cls, directory: RunDirectory) -> Results:
        """All results of a finished run; a `RecordError` where units are missing or damaged."""
        missing = directory.missing
        if missing:
            raise RecordError(
                f"run directory {directory.path}: expected a finished run, got one that lacks {len(missing)} of its "
                f"{len(directory.header.units)} units. Finish it: {directory.header.command}"
            )
        return cls.of(directory.header, directory.units())

    @classmethod
    def of(cls, header: Header, units: Iterable[Unit]) -> Results:
        """Results of some units of a run, in the order of the images."""
        groups: dict[tuple[str, float], list[Unit]] = {}
        for unit in units:
            groups.setdefault((unit.facts.row, unit.facts.eps), []).append(unit)
        return cls(header, {key: RowResults(tuple(row_units)) for key, row_units in groups.items()})

    def only(self, method: str) -> Results:
        """The results of one method: its rows, and those that all methods share (the undefended classifier's)."""
        return replace(self, method=method)

    def each(self) -> tuple[tuple[Method, Results], ...]:
        """Every method with its results; in a study of one defence, that one."""
        return tuple((method, self.only(method.name)) for method in self.header.methods)

    @property
    def eps(self) -> float:
        """The radius of the table."""
        return self.header.threat_model.eps

    @property
    def all_rows(self) -> tuple[RowFacts, ...]:
        """Rows, in the order of the table."""
        return tuple(row for row in self.header.rows if self.method is None or row.method in ("", self.method))

    @property
    def own_rows(self) -> tuple[RowFacts, ...]:
        """Rows whose method this is."""
        return tuple(row for row in self.all_rows if self.method is None or row.method == self.method)

    @property
    def attacks(self) -> tuple[RowFacts, ...]:
        """Rows that attack what is judged: what a headline is made of."""
        return tuple(row for row in self.own_rows if row.attacks_defence)

    @property
    def audits(self) -> tuple[tuple[Audit, Identity], ...]:
        """Audits of gradients, each with what a purifier that does nothing changes."""
        name = "audit" if not self.method else f"audit-{self.method}"
        whole = self.method is None
        audits = [its for (row, _), its in self.by_row.items() if row == name or (whole and row.startswith("audit-"))]
        facts = [unit.facts for its in audits for unit in its.units]
        return tuple((f.audit, f.identity) for f in facts if f.audit is not None and f.identity is not None)

    @property
    def deterministic(self) -> bool:
        """Whether the audits say that another draw does not move the logits."""
        randomness = [audit.check("randomness") for audit, _ in self.audits]
        return bool(randomness) and all(check is not None and check.measured == 0 for check in randomness)

    @property
    def at_examples(self) -> tuple[AuditCheck, ...]:
        """Checks of the defence at the examples of an attack on it."""
        units = [unit for row in self.own_rows for unit in self.of_row(row).units]
        return tuple(check for unit in units for check in unit.facts.at_examples)

    def of_images(self, name: str) -> Floats | None:
        """What was measured of the study's images beside an audit, (n,), NaN where it is not finite; None: nothing."""
        its = self.by_row.get((f"audit-{self.method}" if self.method else "audit", self.eps))
        if its is None or not its.has(name):
            return None
        return its.array(name).astype(np.float64)

    def rows(self, *kinds: AttackKind) -> list[RowFacts]:
        """Rows of some kinds, in the order of the table."""
        return [row for row in self.all_rows if row.kind in kinds]

    def of_row(self, row: RowFacts, eps: float | None = None) -> RowResults:
        """Results of a row, at the radius of the table or another one."""
        return self.by_row[row.name, self.eps if eps is None else eps]

    def null_of(self, row: RowFacts) -> RowResults:
        """The clean baseline of a row."""
        return self.by_row[row.null, self.eps]

    def accuracies(self, row: RowFacts, eps: float | None = None) -> Floats:
        """Single-draw accuracy of each image of a row, (n,)."""
        return self.of_row(row, eps).accuracies

    def null(self, row: RowFacts, n: int, name: str = "predictions") -> Floats:
        """Accuracy of each of the first n images of a row without an attack, or of random corners."""
        return self.null_of(row).outcome(name).accuracies[:n]

    def strongest(self, rows: Sequence[RowFacts]) -> Outcome:
        """Each image under the strongest of some rows that was run on it, at the radius of the table or below."""
        radii = [self.eps, *(eps for eps in self.header.curve.eps if eps < self.eps)]
        return strongest([self.of_row(row, eps) for row in rows for eps in radii if (row.name, eps) in self.by_row])

    def errors(self, rows: Sequence[RowFacts]) -> Ints:
        """Wrong report draws of each image under the strongest of some rows that was run on it, (n,)."""
        return errors_of(*self.strongest(rows))

    def array(self, row: RowFacts, name: str) -> NDArray[Any] | None:
        """An array of a row, (n, ...); None where its attack has none."""
        its = self.of_row(row)
        return its.array(name) if its.has(name) else None


def finite_median(values: NDArray[Any]) -> float:
    """Median of the values that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")
