"""From recorded predictions to the metrics of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.evaluation.error_rates import Shares, Submissions, error_shares, submissions
from depura.evaluation.precision import Spread, spread
from depura.evaluation.records import RecordError, RunDirectory, Unit
from depura.evaluation.statistics import Estimate, any_of, majority, mean_with_interval, single_draw

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

    single: Estimate
    any: Estimate
    vote: Estimate
    shares: Shares
    submissions: Submissions


class Outcome(NamedTuple):
    """Predictions of all images.

    Attributes:
        predictions: (n, K), the deployed label of each report draw.
        labels: (n,).
    """

    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]

    def first(self, n: int) -> Outcome:
        """Of the first n images."""
        return Outcome(self.predictions[:n], self.labels[:n])

    @property
    def accuracies(self) -> NDArray[np.float64]:
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


def outcome(units: Sequence[Unit], name: str = "predictions") -> Outcome:
    """What was predicted in the units of a row, by the name of the array that says so."""
    return Outcome(joined(units, name).astype(np.int64), joined(units, "labels").astype(np.int64))


def accuracy(units: Sequence[Unit], name: str, n_draws: int) -> Estimate:
    """Accuracy of one draw over the first draws of an array of predictions, by its name."""
    found = outcome(units, name)
    return mean_with_interval(single_draw(found.predictions[:, :n_draws], found.labels))


def strongest(rows: Sequence[Sequence[Unit]]) -> Outcome:
    """Per image, the attack whose chosen candidate had the most wrong select draws (ties: larger margin).

    Rows may be of the first images only: an image's strongest attack is the strongest of those that were run on it.
    """
    which = choice(rows)
    found = [outcome(units) for units in rows]
    whole = max(found, key=lambda o: len(o.labels))
    predictions = np.stack([found[int(row)].predictions[image] for image, row in enumerate(which)])
    return Outcome(predictions, whole.labels)


def choice(rows: Sequence[Sequence[Unit]]) -> NDArray[np.int64]:
    """Which row is the strongest on each image (see `strongest`), (n,) indices of rows."""
    n = max(sum(len(unit.arrays["labels"]) for unit in units) for units in rows)
    errors, margins = np.full((len(rows), n), -1), np.full((len(rows), n), -np.inf)
    for row, units in enumerate(rows):
        chosen = joined(units, "chosen")
        errors[row, : len(chosen)] = joined(units, "select_errors")[np.arange(len(chosen)), chosen]
        margins[row, : len(chosen)] = joined(units, "select_margins")
    return np.where(errors == errors.max(0), margins, -np.inf).argmax(0)


def by_row(directory: RunDirectory) -> dict[tuple[str, float], list[Unit]]:
    """The units of a finished run, by the name of their row or null baseline and by radius.

    Args:
        directory: the run.

    Returns:
        The units, in the order of the images.

    Raises:
        RecordError: units are missing.
    """
    header, found = directory.header, dict[tuple[str, float], list[Unit]]()
    missing = [entry["unit"] for entry in header["units"] if not directory.has(entry["unit"])]
    if missing:
        raise RecordError(
            f"run directory {directory.path}: expected a finished run, got one that lacks {len(missing)} of its "
            f"{len(header['units'])} units. Finish it: {header['command']}"
        )
    for unit in directory.units():
        found.setdefault((unit.meta["row"], unit.meta["eps"]), []).append(unit)
    return found


def joined(units: Sequence[Unit], name: str) -> NDArray[Any]:
    """An array of all units of a row, in the order of the images."""
    return np.concatenate([unit.arrays[name] for unit in units])


def percent(estimate: Estimate) -> str:
    """As "41.7 % (33.4-50.4)"."""
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def at_most(estimate: Estimate, null: Estimate) -> str:
    """What may be claimed of an accuracy under attack, in words."""
    low, high = 100 * estimate.low, 100 * estimate.high
    return (
        f"robust accuracy at most {100 * estimate.value:.1f} % (95 % CI {low:.1f}–{high:.1f}), "
        f"null {100 * null.value:.1f} %"
    )
