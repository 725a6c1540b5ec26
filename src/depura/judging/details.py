"""What lies behind a table: errors image by image, what more budget buys, losses step by step, prices, audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depura.evaluation.records import Unit
from depura.evaluation.statistics import Estimate, mean_with_interval, paired_gain
from depura.judging.beside import Indicators, Search, indicators, searches
from depura.judging.metrics import joined, outcome, strongest

BUDGETS = {"n_steps": "steps", "eot": "draws per step", "n_restarts": "restarts"}
"""What an attack may have more of: its name in a description, and in words."""

LONGEST_TRACE = 200
"""Steps of a loss that are kept; of longer attacks as many, evenly spread."""

Units = Mapping[tuple[str, float], Sequence[Unit]]


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
    before: Estimate
    after: Estimate
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


class Price(NamedTuple):
    """What a prediction costs.

    Attributes:
        name: of what is judged.
        evaluations: of the denoiser, per prediction of the deployed rule.
    """

    name: str
    evaluations: float


class Audit(NamedTuple):
    """The audit of a gradient.

    Attributes:
        name: of its unit.
        light: GREEN, AMBER or RED.
        verdict: a sentence.
        checks: name, light and sentence of each test.
    """

    name: str
    light: str
    verdict: str
    checks: tuple[tuple[str, str, str], ...]


class Details(NamedTuple):
    """What lies behind a table.

    Attributes:
        error_rates: one for each method, or one.
        budgets: of rows of kind "budget".
        traces: of rows that have a loss.
        prices: of what is judged.
        audits: of the gradients.
        searches: what attacks saw while they searched.
        indicators: what is told without gradients.
    """

    error_rates: tuple[ErrorRates, ...] = ()
    budgets: tuple[Budget, ...] = ()
    traces: tuple[Trace, ...] = ()
    prices: tuple[Price, ...] = ()
    audits: tuple[Audit, ...] = ()
    searches: tuple[Search, ...] = ()
    indicators: tuple[Indicators, ...] = ()


NOTHING = Details()
"""Of a run that is not complete."""


def details(header: dict[str, Any], by_row: Units, units: Sequence[Unit]) -> Details:
    """Work out the details of a complete run.

    Args:
        header: of the run.
        by_row: its units by row and radius.
        units: all of them, audits too.

    Returns:
        The details; parts that the run has no rows for are empty.
    """
    eps = header["threat_model"]["eps"]
    main = {name: its for (name, radius), its in by_row.items() if radius == eps}
    return Details(
        error_rates=_error_rates(header, main),
        budgets=tuple(b for row in header["rows"] if row["kind"] == "budget" for b in _budgets(row, header, main)),
        traces=tuple(
            Trace(row["name"], *_trace(joined(main[row["name"]], "loss")))
            for row in header["rows"]
            if _has_loss(main[row["name"]])
        ),
        prices=_prices(header, main),
        audits=tuple(_audit(unit) for unit in units if "audit" in unit.meta),
        searches=searches(header, main),
        indicators=indicators(header, main),
    )


def _error_rates(header: dict[str, Any], main: Mapping[str, Sequence[Unit]]) -> tuple[ErrorRates, ...]:
    judged = [row for row in header["rows"] if row["judged"] == "defence" and row["kind"] != "unchanged"]
    found: list[ErrorRates] = []
    for method in dict.fromkeys(row["method"] for row in judged):
        rows = [row for row in judged if row["method"] == method]
        attacked = 1 - strongest([main[row["name"]] for row in rows]).accuracies
        clean = 1 - outcome(main[rows[0]["null"]]).accuracies[: len(attacked)]
        found.append(ErrorRates(method, tuple(clean.tolist()), tuple(attacked.tolist())))
    return tuple(found)


def _budgets(row: dict[str, Any], header: dict[str, Any], main: Mapping[str, Sequence[Unit]]) -> list[Budget]:
    """A row with more of something against the adaptive row of the same attack that differs from it in this alone."""
    found: list[Budget] = []
    for other in header["rows"]:
        changed = _changed(other.get("attack"), row.get("attack"))
        if other["kind"] != "adaptive" or other["method"] != row["method"] or len(changed) != 1:
            continue
        (name,) = changed
        after = outcome(main[row["name"]])
        before = outcome(main[other["name"]]).first(len(after.labels))
        after = after.first(len(before.labels))
        found.append(
            Budget(
                row=row["name"],
                against=other["name"],
                what=BUDGETS.get(name, name),
                less=other["attack"][name],
                more=row["attack"][name],
                images=len(after.labels),
                before=mean_with_interval(before.accuracies),
                after=mean_with_interval(after.accuracies),
                fall=paired_gain(before.accuracies, after.accuracies),
            )
        )
    return found[:1]


def _changed(less: Any, more: Any) -> tuple[str, ...]:
    """Names of the numbers in which two described attacks differ; nothing where they differ in anything else."""
    if not isinstance(less, dict) or not isinstance(more, dict) or less.keys() != more.keys():  # pyright: ignore[reportUnknownMemberType]
        return ()
    names = tuple(str(name) for name in more if more[name] != less[name])  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return names if all(name in BUDGETS for name in names) else ()


def _has_loss(units: Sequence[Unit]) -> bool:
    """Whether an attack told its loss at more than one step, of the same number on all images."""
    arrays = [unit.arrays["loss"] for unit in units if "loss" in unit.arrays]
    if len(arrays) < len(units) or len({a.shape[1] for a in arrays}) != 1 or arrays[0].shape[1] < 2:
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


def _prices(header: dict[str, Any], main: Mapping[str, Sequence[Unit]]) -> tuple[Price, ...]:
    found: dict[str, Price] = {}
    for row in header["rows"]:
        costs = [unit.meta["clean"] for unit in main[row["null"]] if "clean" in unit.meta]
        if costs:
            own = {"bare": "no defence", "defence": "the defence"}
            name: str = row["method"] or own.get(row["judged"], "") or row["name"]
            spent = sum(c["evaluations"] for c in costs) / sum(c["predictions"] for c in costs)
            found.setdefault(name, Price(name, spent))
    return tuple(found.values())


def _audit(unit: Unit) -> Audit:
    audit = unit.meta["audit"]
    checks = tuple((str(c[0]), str(c[1]), str(c[2])) for c in audit["checks"])
    return Audit(unit.meta["row"], audit["light"], audit["verdict"], checks)
