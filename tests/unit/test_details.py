"""What lies behind a table, and how far a run is, from records made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from depura.evaluation.records import Unit
from depura.evaluation.study import UnitKey
from depura.judging.details import LONGEST_TRACE, details
from depura.judging.progress import progress

LABELS = [0, 1, 2, 3]
K = 4


def predictions(errors: list[int], labels: list[int] = LABELS) -> np.ndarray:
    """K draws per image, the first `errors` of them wrong (class 9)."""
    return np.array([[9] * e + [y] * (K - e) for e, y in zip(errors, labels, strict=True)], dtype=np.int32)


def attacked(errors: list[int], select: list[int], loss: Any = ((1.0, 2.0),) * 4) -> Unit:
    n = len(errors)
    arrays = {
        "labels": np.array(LABELS[:n]),
        "predictions": predictions(errors, LABELS[:n]),
        "select_errors": np.array([[s] for s in select]),
        "chosen": np.zeros(n, dtype=np.int32),
        "select_margins": np.zeros(n),
        "loss": np.array(loss, dtype=np.float32)[:n],
    }
    return Unit(arrays, {"row": "any"})


def null(errors: list[int], *, cost: tuple[int, int]) -> Unit:
    arrays = {"labels": np.array(LABELS), "predictions": predictions(errors)}
    return Unit(arrays, {"row": "null", "clean": {"predictions": cost[0], "evaluations": cost[1]}})


def row(name: str, kind: str, **attack: Any) -> dict[str, Any]:
    described = {"type": "A", "loss": "margin", "n_steps": 10, "eot": 4, "n_restarts": 1, **attack}
    judged = "bare" if kind == "undefended" else "defence"
    return {
        "name": name, "kind": kind, "method": "", "judged": judged, "null": f"null-{judged}", "attack": described,
    }  # fmt: skip


ROWS = (
    row("undefended", "undefended"),
    row("unchanged", "unchanged"),
    row("transfer", "transfer"),
    row("other", "adaptive", loss="cross entropy"),
    row("adaptive", "adaptive"),
    row("more-steps", "budget", n_steps=20),
    row("restart", "budget", n_restarts=2),
    row("two-things", "budget", n_steps=20, eot=8),
)
UNITS = {
    "null-bare": [null([0, 0, 0, 0], cost=(16, 0))],
    "null-defence": [null([0, 0, 1, 0], cost=(16, 120))],
    "undefended": [attacked([4] * 4, [2] * 4)],
    "unchanged": [attacked([4] * 4, [4] * 4)],  # it would be the strongest, were it an attack
    "transfer": [attacked([3, 0, 1, 0], [2, 0, 1, 0])],
    "other": [attacked([0, 0, 0, 0], [0, 0, 0, 0])],
    "adaptive": [attacked([1, 4, 3, 0], [1, 2, 0, 0])],
    "more-steps": [attacked([3, 4], [1, 1])],
    "restart": [attacked([1, 4], [0, 1])],
    "two-things": [attacked([4, 4], [0, 0])],
}
AUDIT = Unit(
    {}, {"row": "audit", "audit": {"light": "GREEN", "verdict": "Sound.", "checks": [["zeros", "GREEN", "None.", 0.0]]}}
)


def of(units: dict[str, list[Unit]] = UNITS, rows: tuple[dict[str, Any], ...] = ROWS) -> Any:
    header = {"threat_model": {"eps": 0.1}, "rows": list(rows)}
    by_row = {(name, 0.1): its for name, its in units.items()}
    return details(header, by_row, [*(u for its in units.values() for u in its), AUDIT])


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
    units = {**UNITS, "adaptive": [attacked([1, 4, 3, 0], [1, 2, 0, 0], loss)]}
    trace = next(t for t in of(units).traces if t.row == "adaptive")
    # By hand: 1 2 2 2; 3 3 5 7; from its third step on 1 1; never anything.
    assert trace.steps == (1, 2, 3, 4)
    assert trace.loss == pytest.approx(((1 + 3) / 2, (2 + 3) / 2, (2 + 5 + 1) / 3, (2 + 7 + 1) / 3))


def test_a_long_loss_keeps_its_ends_and_a_constant_number_of_steps() -> None:
    steps = np.arange(1000.0)
    trace = next(
        t for t in of({**UNITS, "adaptive": [attacked([0] * 4, [0] * 4, [steps] * 4)]}).traces if t.row == "adaptive"
    )
    assert len(trace.steps) == LONGEST_TRACE
    assert (trace.steps[0], trace.steps[-1]) == (1, 1000)
    assert np.array(trace.loss) + 1 == pytest.approx(np.array(trace.steps))


def test_rows_without_a_loss_have_no_trace() -> None:
    silent = attacked([0] * 4, [0] * 4, np.full((4, 3), np.nan))
    short = attacked([0] * 4, [0] * 4, np.ones((4, 1)))
    found = of({**UNITS, "adaptive": [silent], "transfer": [short]}).traces
    assert not {"adaptive", "transfer"} & {t.row for t in found}


def test_prices_and_audits() -> None:
    found = of()
    assert [(p.name, p.evaluations) for p in found.prices] == [("no defence", 0), ("the defence", 7.5)]
    (audit,) = found.audits
    assert (audit.name, audit.light, audit.verdict, audit.checks) == (
        "audit", "GREEN", "Sound.", (("zeros", "GREEN", "None."),),
    )  # fmt: skip


def test_progress_counts_units_and_images_and_shows_the_accuracy_so_far() -> None:
    keys = [
        UnitKey("audit", 0.1, 0, 2), UnitKey("null-a", 0.1, 0, 4), UnitKey("a", 0.1, 0, 4), UnitKey("a", 0.1, 4, 8),
        UnitKey("a", 0.1, 8, 9), UnitKey("a", 0.05, 0, 4),
    ]  # fmt: skip
    names = [key.name for key in keys]
    units = [{"unit": key.name, **key._asdict()} for key in keys]
    header = {"units": units, "rows": [{"name": "a", "title": "an attack"}]}

    def unit(name: str, errors: list[int]) -> Unit:
        return attacked(errors, [0] * 4)._replace(meta={"unit": name, "row": "a"})

    done = [
        AUDIT._replace(meta={**AUDIT.meta, "unit": names[0]}),
        unit(names[2], [0, 0, 4, 0]),
        unit(names[3], [4, 4, 0, 0]),
    ]
    found = {(p.name, p.eps): p for p in progress(header, done)}
    assert list(found) == [("audit", 0.1), ("null-a", 0.1), ("a", 0.1), ("a", 0.05)]
    assert [(p.done, p.total, p.images, p.of) for p in found.values()] == [
        (1, 1, 2, 2), (0, 1, 0, 4), (2, 3, 8, 9), (0, 1, 0, 4),
    ]  # fmt: skip
    so_far = found["a", 0.1].so_far
    wilson = stats.binomtest(5, 8).proportion_ci(method="wilson")
    assert so_far is not None
    assert (so_far.value, so_far.low, so_far.high) == pytest.approx((5 / 8, wilson.low, wilson.high))
    assert found["audit", 0.1].so_far is None
    assert found["a", 0.05].so_far is None
