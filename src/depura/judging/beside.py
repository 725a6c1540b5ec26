"""What stands beside an accuracy: errors during the search, one tape for all, what purification leaves of a change."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from depura.evaluation.statistics import Estimate, any_of, mean_with_interval
from depura.judging.results import Results


class Search(NamedTuple):
    """What an attack saw of the deployed rule while it searched (metric H).

    Attributes:
        row: whose search.
        draws: that it saw of each image, on average.
        untouched: share of images of which no draw was wrong, over the whole search.
        first: the same over as many first draws as the null has.
        n: that number.
        null: share of images of which none of n draws is wrong without an attack.
    """

    row: str
    draws: float
    untouched: Estimate
    first: Estimate
    n: int
    null: Estimate


class Indicators(NamedTuple):
    """What is told without gradients.

    Attributes:
        row: whose examples.
        pinned: accuracy on the examples under one tape, the same for all images.
        pinned_clean: the same of the images themselves.
        kept: what purification leaves of the attack's change, over the change; median over images.
        kept_random: the same of random changes of the same l2 length.
    """

    row: str
    pinned: Estimate
    pinned_clean: Estimate
    kept: float
    kept_random: float


def searches(results: Results) -> tuple[Search, ...]:
    """Metric H of every row that saw what is judged, beside a null of as many draws.

    Args:
        results: of the run.

    Returns:
        One for each such row.
    """
    made: list[Search] = []
    for row in results.all_rows:
        its = results.of_row(row)
        if not its.has("seen_draws"):
            continue
        draws, first = its.array("seen_draws"), its.array("first_hit")
        null = results.null_of(row).outcome().first(len(draws))
        n = int(min(null.predictions.shape[1], draws.min()))
        if n < 1:
            continue
        made.append(
            Search(
                row=row.name,
                draws=float(draws.mean()),
                untouched=mean_with_interval((first == 0).astype(np.float64)),
                first=mean_with_interval(((first == 0) | (first > n)).astype(np.float64)),
                n=n,
                null=mean_with_interval(any_of(null.predictions, null.labels, n)),
            )
        )
    return tuple(made)


def indicators(results: Results) -> tuple[Indicators, ...]:
    """Indicators of every row that judges a purifier.

    Args:
        results: of the run.

    Returns:
        One for each such row.
    """
    made: list[Indicators] = []
    for row in results.all_rows:
        its = results.of_row(row)
        if not its.has("pinned_predictions"):
            continue
        labels = its.array("labels")
        pinned, clean = (
            mean_with_interval((its.array(name) == labels).astype(np.float64))
            for name in ("pinned_predictions", "pinned_clean")
        )
        kept, random = (_median(its.array(name)) for name in ("compression", "compression_random"))
        made.append(Indicators(row.name, pinned, clean, kept, random))
    return tuple(made)


def _median(values: np.ndarray) -> float:
    """Of the values that are there; NaN where none is."""
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else float("nan")
