"""What lies behind a table, and how far a run is, from records made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.records import ByHand

from depura.analysis.details import LONGEST_TRACE, Details, details
from depura.analysis.progress import run_progress
from depura.analysis.results import Results
from depura.records.directory import Unit
from depura.records.schema import AuditCheck, AuditLight, RowFacts

BY_HAND = ByHand([0, 1, 2, 3])


def attacked(row: str, errors: list[int], select: list[int], loss: Any = ((1.0, 2.0),) * 4) -> Unit:
    return BY_HAND.attacked(row, errors, select, select_margins=[0] * len(errors), loss=np.array(loss)[: len(errors)])


def null(row: str, errors: list[int], evaluations: int) -> Unit:
    return BY_HAND.null(row, errors, evaluations=evaluations)


def row(name: str, kind: str, *, images: int = 4, **attack: Any) -> RowFacts:
    described = {"type": "depura.A", "loss": "margin", "n_steps": 10, "eot": 4, "n_restarts": 1, **attack}
    return BY_HAND.row(name, kind, images=images, attack=described)


ROWS = (
    row("undefended", "undefended"),
    row("unchanged", "unchanged"),
    row("transfer", "transfer"),
    row("other", "adaptive", loss="cross entropy"),
    row("adaptive", "adaptive"),
    row("more-steps", "budget", n_steps=20, images=2),
    row("restart", "budget", n_restarts=2, images=2),
    row("two-things", "budget", n_steps=20, eot=8, images=2),
    row("reference", "reference"),
)
UNITS = {
    unit.facts.row: unit
    for unit in (
        null("null-bare", [0, 0, 0, 0], 0),
        null("null-defence", [0, 0, 1, 0], 120),
        attacked("undefended", [4] * 4, [2] * 4),
        attacked("unchanged", [4] * 4, [4] * 4),  # it would be the strongest, were it an attack
        attacked("transfer", [3, 0, 1, 0], [2, 0, 1, 0]),
        attacked("other", [0, 0, 0, 0], [0, 0, 0, 0]),
        attacked("adaptive", [1, 4, 3, 0], [1, 2, 0, 0]),
        attacked("more-steps", [3, 4], [1, 1]),
        attacked("restart", [1, 4], [0, 1]),
        attacked("two-things", [4, 4], [0, 0]),
        attacked("reference", [4] * 4, [4] * 4),  # it is no attack of the study
    )
}
CHECK = AuditCheck(name="zeros", light=AuditLight.GREEN, sentence="None.", measured=0.0)
AUDIT = BY_HAND.audit(verdict="Sound.", checks=[CHECK])


def of(**changed: Unit) -> Details:
    units = {**UNITS, **changed}
    return details(Results.of(BY_HAND.header(ROWS, audits=["audit"]), [*units.values(), AUDIT]))


def test_error_rates_are_those_of_the_strongest_attack_of_each_image() -> None:
    """On the select draws transfer is the strongest for images 0 and 2, adaptive for 1; image 3 is never wrong."""
    (rates,) = of().error_rates
    assert rates.clean == (0, 0, 1 / 4, 0)
    assert rates.attacked == (3 / 4, 1, 1 / 4, 0)


def test_budgets_are_compared_on_the_same_images_with_the_row_that_differs_in_one_number() -> None:
    steps, restart = of().budgets
    assert [(b.row, b.against, b.what, b.less, b.more, b.images) for b in (steps, restart)] == [
        ("more-steps", "adaptive", "steps", 10, 20, 2),
        ("restart", "adaptive", "restarts", 1, 2, 2),
    ]
    assert steps.before.value == pytest.approx((3 / 4 + 0) / 2)
    assert steps.after.value == pytest.approx((1 / 4 + 0) / 2)
    assert steps.fall[0] <= 1 / 4 <= steps.fall[1]
    assert restart.before.value == restart.after.value
    assert restart.fall[0] < 0 < restart.fall[1]


def test_a_finished_image_keeps_its_last_loss() -> None:
    nan = np.nan
    loss = ((1, 2, nan, nan), (3, nan, 5, 7), (nan, nan, 1, 1), (nan,) * 4)
    found = of(adaptive=attacked("adaptive", [1, 4, 3, 0], [1, 2, 0, 0], loss))
    trace = next(t for t in found.traces if t.row == "adaptive")
    # By hand: 1 2 2 2; 3 3 5 7; from its third step on 1 1; never anything.
    assert trace.steps == (1, 2, 3, 4)
    assert trace.loss == pytest.approx(((1 + 3) / 2, (2 + 3) / 2, (2 + 5 + 1) / 3, (2 + 7 + 1) / 3))


def test_a_long_loss_keeps_its_ends_and_a_constant_number_of_steps() -> None:
    steps = np.arange(1000.0)
    found = of(adaptive=attacked("adaptive", [0] * 4, [0] * 4, [steps] * 4))
    trace = next(t for t in found.traces if t.row == "adaptive")
    assert len(trace.steps) == LONGEST_TRACE
    assert (trace.steps[0], trace.steps[-1]) == (1, 1000)
    assert np.array(trace.loss) + 1 == pytest.approx(np.array(trace.steps))


def test_rows_without_a_loss_have_no_trace() -> None:
    silent = attacked("adaptive", [0] * 4, [0] * 4, np.full((4, 3), np.nan))
    short = attacked("transfer", [0] * 4, [0] * 4, np.ones((4, 1)))
    found = of(adaptive=silent, transfer=short).traces
    assert not {"adaptive", "transfer"} & {t.row for t in found}
    assert "other" in {t.row for t in found}


def test_prices_and_audits() -> None:
    found = of()
    assert found.prices == {"no defence": 0, "the defence": 7.5}
    (audit,) = found.audits
    assert (audit.method, audit.audit.light, audit.audit.verdict) == ("", "GREEN", "Sound.")
    assert audit.audit.checks == (CHECK,)


def test_error_rates_and_audits_of_a_comparison_are_of_each_method() -> None:
    rows = [BY_HAND.row(f"{name}-adaptive", "adaptive", method=name) for name in ("one", "two")]
    audits = [BY_HAND.audit(f"audit-{name}", verdict=f"Of {name}.") for name in ("one", "two")]
    nulls = [null("null-one", [0, 0, 0, 1], 16), null("null-two", [2, 0, 0, 0], 160)]
    attacks = [attacked("one-adaptive", [1, 2, 3, 4], [1] * 4), attacked("two-adaptive", [0] * 4, [0] * 4)]
    found = details(Results.of(BY_HAND.header(rows), [*audits, *nulls, *attacks]))
    assert [(rates.method, rates.clean, rates.attacked) for rates in found.error_rates] == [
        ("one", (0, 0, 0, 1 / 4), (1 / 4, 2 / 4, 3 / 4, 1)),
        ("two", (2 / 4, 0, 0, 0), (0, 0, 0, 0)),
    ]
    assert [(its.method, its.audit.verdict) for its in found.audits] == [("one", "Of one."), ("two", "Of two.")]
    assert found.prices == {"one": 1, "two": 10}


def test_progress_counts_units_and_images_and_shows_the_accuracy_so_far() -> None:
    """Nine images in three units of one row; of another radius no unit is there."""
    nine = ByHand([0, 1, 2, 3, 0, 1, 2, 3, 0])
    facts = [
        nine.facts("audit", last=2),
        nine.facts("null-defence", last=4),
        *(nine.facts("adaptive", first=first, last=last) for first, last in ((0, 4), (4, 8), (8, 9))),
        nine.facts("adaptive", eps=0.05, last=4),
    ]
    entries = [f.model_dump(include={"unit", "row", "eps", "first", "last"}) for f in facts]
    header = nine.header([nine.row("adaptive", title="an attack")], units=entries)
    done = [
        nine.audit(),
        nine.attacked("adaptive", [0, 0, 4, 0]),
        nine.attacked("adaptive", [4, 4, 0, 0], first=4),
    ]
    found = {(p.name, p.eps): p for p in run_progress(header, done)}
    assert list(found) == [("audit", 0.1), ("null-defence", 0.1), ("adaptive", 0.1), ("adaptive", 0.05)]
    assert [(p.done, p.total, p.images, p.of) for p in found.values()] == [
        (1, 1, 2, 2), (0, 1, 0, 4), (2, 3, 8, 9), (0, 1, 0, 4),
    ]  # fmt: skip
    so_far = found["adaptive", 0.1].so_far
    wilson = stats.binomtest(5, 8).proportion_ci(method="wilson")
    assert so_far is not None
    assert (so_far.value, so_far.low, so_far.high) == pytest.approx((5 / 8, wilson.low, wilson.high))
    assert found["audit", 0.1].so_far is None
    assert found["adaptive", 0.05].so_far is None
