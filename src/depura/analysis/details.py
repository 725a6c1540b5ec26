"""The details of a report: errors image by image, what more budget buys, losses step by step, prices, audits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.analysis.results import Results, RowResults, finite_median, longest
from depura.records.kinds import AttackKind
from depura.records.schema import Audit, Judged, RowFacts
from depura.statistics.intervals import Proportion, any_of, mean_with_interval, paired_gain


class Search(NamedTuple):
    """Errors that an attack saw of the deployed rule while it searched (metric H).

    Attributes:
        row: whose search.
        draws: that it saw of each image, on average.
        never_wrong: share of images of which no draw was wrong, over the whole search.
        first: the same over as many first draws as the null has.
        n: that number.
        null: share of images of which none of n draws is wrong without an attack.
    """

    row: str
    draws: float
    never_wrong: Proportion
    first: Proportion
    n: int
    null: Proportion


class Indicators(NamedTuple):
    """Indicators that need no gradient.

    Attributes:
        row: whose examples.
        fixed: accuracy on the examples under one noise sample, the same for all images.
        fixed_clean: the same of the images themselves.
        left: what purification leaves of the attack's change, over the change; median over images.
        left_random: the same of random changes of the same l2 length.
    """

    row: str
    fixed: Proportion
    fixed_clean: Proportion
    left: float
    left_random: float


BUDGETS = {"n_steps": "steps", "eot": "draws per step", "n_restarts": "restarts"}
"""What an attack may have more of: its name in a description, and in words."""

LONGEST_TRACE = 200
"""Steps of a loss that are kept; of longer attacks as many, evenly spread."""


class ErrorRates(NamedTuple):
    """Share of wrong report draws, image by image.

    Attributes:
        method: the one that is judged, where methods are compared; else empty.
        clean: without an attack.
        attacked: under the strongest attack for each image, the same images in the same order.
    """

    method: str
    clean: tuple[float, ...]
    attacked: tuple[float, ...]


class Budget(NamedTuple):
    """An attack against the same attack with more of something, on the same images.

    Attributes:
        row: the one with more.
        against: the one with less.
        what: of what there is more, in words.
        less: how much the other row had.
        more: how much this one had.
        images: on how many.
        before: accuracy of one draw under the row with less.
        after: under the one with more.
        fall: 95 % interval of before - after, paired by image.
    """

    row: str
    against: str
    what: str
    less: float
    more: float
    images: int
    before: Proportion
    after: Proportion
    fall: tuple[float, float]


class Trace(NamedTuple):
    """An attack's own loss.

    Attributes:
        row: whose.
        steps: numbers of the steps, from 1.
        loss: mean over images at these steps; an image that was finished keeps its last loss.
    """

    row: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]


class Audited(NamedTuple):
    """The audit of a gradient.

    Attributes:
        method: whose; empty in a study of one defence.
        audit: its tests and its verdict.
    """

    method: str
    audit: Audit


class Details(NamedTuple):
    """The details of a report.

    Attributes:
        error_rates: one for each method, or one.
        budgets: of rows of kind "budget".
        traces: of rows that have a loss.
        prices: evaluations of the denoiser per prediction of the deployed rule, by the name of what is judged.
        audits: of the gradients.
        searches: what attacks saw while they searched.
        indicators: those that need no gradient.
    """

    error_rates: tuple[ErrorRates, ...] = ()
    budgets: tuple[Budget, ...] = ()
    traces: tuple[Trace, ...] = ()
    prices: Mapping[str, float] = {}
    audits: tuple[Audited, ...] = ()
    searches: tuple[Search, ...] = ()
    indicators: tuple[Indicators, ...] = ()


def details(results: Results) -> Details:
    """The details of a complete run; parts that it has no rows for are empty."""
    rows = results.all_rows
    return Details(
        error_rates=tuple(_error_rates(method.name, its) for method, its in results.each() if its.attacks),
        budgets=tuple(b for row in rows if row.kind is AttackKind.BUDGET for b in _budgets(row, results)),
        traces=tuple(
            Trace(row.name, *_trace(results.of_row(row).array("loss")))
            for row in rows
            if _has_loss(results.of_row(row))
        ),
        prices=_prices(results),
        audits=tuple(Audited(method.name, audit) for method, its in results.each() for audit, _ in its.audits),
        searches=tuple(filter(None, (_search(row, results) for row in rows))),
        indicators=tuple(
            _indicators(row.name, its) for row in rows if (its := results.of_row(row)).has("pinned_predictions")
        ),
    )


def _search(row: RowFacts, results: Results) -> Search | None:
    """Metric H of a row that saw what is judged, and the null of as many draws."""
    its = results.of_row(row)
    if not its.has("seen_draws"):
        return None
    draws, first = its.array("seen_draws"), its.array("first_hit")
    null = results.null_of(row).outcome().first(len(draws))
    n = int(min(null.predictions.shape[1], draws.min()))
    if n < 1:
        return None
    return Search(
        row=row.name,
        draws=float(draws.mean()),
        never_wrong=mean_with_interval((first == 0).astype(np.float64)),
        first=mean_with_interval(((first == 0) | (first > n)).astype(np.float64)),
        n=n,
        null=mean_with_interval(any_of(null.predictions, null.labels, n)),
    )


def _indicators(row: str, its: RowResults) -> Indicators:
    labels = its.array("labels")
    fixed, clean = (
        mean_with_interval((its.array(name) == labels).astype(np.float64))
        for name in ("pinned_predictions", "pinned_clean")
    )
    left, random = (finite_median(its.array(name)) for name in ("compression", "compression_random"))
    return Indicators(row, fixed, clean, left, random)


def _error_rates(method: str, results: Results) -> ErrorRates:
    attacked = 1 - results.strongest(results.attacks).accuracies
    clean = 1 - results.null(longest(results.attacks), len(attacked))
    return ErrorRates(method, tuple(clean.tolist()), tuple(attacked.tolist()))


def _budgets(row: RowFacts, results: Results) -> list[Budget]:
    """A row with more of something against the adaptive row of the same attack that differs from it in this alone."""
    budgets: list[Budget] = []
    for other in results.all_rows:
        changed = _changed(other, row)
        if other.kind is not AttackKind.ADAPTIVE or other.method != row.method or len(changed) != 1:
            continue
        (name,) = changed
        after = results.of_row(row).outcome()
        before = results.of_row(other).outcome().first(len(after.labels))
        after = after.first(len(before.labels))
        budgets.append(
            Budget(
                row=row.name,
                against=other.name,
                what=BUDGETS.get(name, name),
                less=_number(other.setting(name)),
                more=_number(row.setting(name)),
                images=len(after.labels),
                before=mean_with_interval(before.accuracies),
                after=mean_with_interval(after.accuracies),
                fall=paired_gain(before.accuracies, after.accuracies),
            )
        )
    return budgets[:1]


def _changed(less: RowFacts, more: RowFacts) -> tuple[str, ...]:
    """Names of the numbers in which the attacks of two rows differ; nothing where they differ in anything else."""
    a, b = less.attack, more.attack
    if not isinstance(a, dict) or not isinstance(b, dict) or a.keys() != b.keys():
        return ()
    names = tuple(name for name in b if b[name] != a[name])
    return names if all(name in BUDGETS for name in names) else ()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _has_loss(its: RowResults) -> bool:
    """Whether an attack recorded its loss at more than one step, of the same number on all images."""
    arrays = [unit.arrays["loss"] for unit in its.units if "loss" in unit.arrays]
    if len(arrays) < len(its.units) or len({a.shape[1] for a in arrays}) != 1 or arrays[0].shape[1] < 2:
        return False
    return any(bool(np.isfinite(a).any()) for a in arrays)


def _trace(loss: NDArray[Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps (from 1) and mean over images of (n, steps) losses, each held from its image's last finite one on."""
    finite: NDArray[np.bool_] = np.isfinite(loss)
    there_at: NDArray[np.int64] = np.where(finite, np.arange(loss.shape[1], dtype=np.int64), -1)
    last: NDArray[np.int64] = np.maximum.accumulate(there_at, axis=1)
    held = np.where(last >= 0, np.take_along_axis(loss, np.maximum(last, 0), axis=1), np.nan).astype(np.float64)
    there = np.flatnonzero((last >= 0).any(0))
    n = min(LONGEST_TRACE, len(there))
    kept = there[[k * (len(there) - 1) // max(n - 1, 1) for k in range(n)]]
    return tuple((kept + 1).tolist()), tuple(np.nanmean(held[:, kept], axis=0).tolist())


def _prices(results: Results) -> dict[str, float]:
    prices: dict[str, float] = {}
    names = {Judged.BARE: "no defence", Judged.DEFENCE: "the defence"}
    for row in results.all_rows:
        evaluations = results.null_of(row).evaluations_per_prediction
        if evaluations is not None:
            prices.setdefault(row.method or names.get(row.judged, row.name), evaluations)
    return prices
