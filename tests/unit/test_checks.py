"""Every check of a run, on records made by hand: what passes, what warns, what takes the headline's place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from depura.evaluation.records import Unit
from depura.judging import checks, soundness, strength
from depura.judging.evidence import Evidence
from depura.judging.verdicts import Status, Verdict

N, K, EPS = 40, 16, 0.2
LABELS = np.arange(N) % 10
JUDGED = {"undefended": "bare", "pinned": "other", "tiny": "other"}
ROUTES = {"undefended": "G0", "transfer": "G0", "bpda": "G2"}


def predictions(errors: Any, k: int = K) -> np.ndarray:
    """The first so many draws of each image wrong (class 10), the others right."""
    errors = np.broadcast_to(errors, N)
    return np.where(np.arange(k)[None] < errors[:, None], 10, LABELS[:, None])


def attacked(errors: Any, **more: Any) -> Unit:
    arrays = {
        "labels": LABELS,
        "predictions": predictions(errors),
        "rounded_predictions": predictions(errors)[:, :8],
        "chosen": np.zeros(N, dtype=np.int32),
        "select_errors": np.broadcast_to(errors, N)[:, None],
        "select_margins": np.full(N, 1.0),
        "distance": np.full(N, EPS),
        "farthest": np.full(N, EPS),
        "zero_gradients": np.zeros(N),
        "bad_gradients": np.zeros(N),
        "agreement": np.full((N, 3), 0.6),
        "spread": np.full((N, 3), 2.0),
    }
    return Unit({**arrays, **more}, {})


def null(errors: Any = 0, random: Any = 0) -> Unit:
    arrays = {"labels": LABELS, "predictions": predictions(errors), "random_predictions": predictions(random)}
    return Unit({**arrays, "margins": np.full(N, -1.0)}, {})


def audit(light: str = "GREEN", changed: int = 0, red: str = "") -> Unit:
    found = {"light": light, "verdict": f"{light}.", "checks": [["batch", "RED", red]] if red else [], "faults": []}
    return Unit({}, {"row": "audit", "audit": found, "identity": {"images": N, "predictions": changed, "logits": 1e-7}})


SOUND: dict[str, Unit] = {
    "undefended": attacked(K),
    "unchanged": attacked(1),
    "transfer": attacked(4),
    "bpda": attacked(6),
    "adaptive": attacked(12),
    "square": attacked(7),
    "random": attacked(2),
    "one-step": attacked(8),
    "more-steps": attacked(12),
    "pinned": attacked(K),
    "tiny": attacked(K),
}
KINDS = {"square": "black-box", "more-steps": "budget"}


def run(
    rows: dict[str, Unit] | None = None,
    *,
    curve: dict[float, Unit] | None = None,
    audited: Unit | None = None,
    without: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
) -> Evidence:
    """A sound run, with some rows replaced or left out."""
    units = {name: unit for name, unit in {**SOUND, **(rows or {})}.items() if name not in without}
    curve = {0.4: attacked(15), 1.0: attacked(K)} if curve is None else curve
    header = {
        "data": {"ids": list(range(N)), "classes": list("abcdefghij"), "shape": [1, 8, 8]},
        "threat_model": {"norm": "linf", "eps": EPS},
        "draws": {"select": 4, "report": K},
        "methods": list(methods),
        "curve": {"eps": list(curve), "images": N, "rows": ["adaptive"]},
        "rows": [
            {
                "name": name,
                "kind": KINDS.get(name, name),
                "route": ROUTES.get(name, "G6"),
                "judged": JUDGED.get(name, "defence"),
                "null": f"null-{name if name in JUDGED else 'unchanged'}",
                "images": N,
            }
            for name in units
        ],
    }
    records = {(name, EPS): [unit] for name, unit in units.items()}
    records |= {("adaptive", eps): [unit] for eps, unit in curve.items()}
    records |= {(f"null-{name}", EPS): [null()] for name in JUDGED}
    records["null-unchanged", EPS] = [null(1, 2)]
    if audited is not None:
        records["audit", EPS] = [audited]
    return Evidence(header, records)


def by_id(found: tuple[Verdict, ...]) -> dict[str, Verdict]:
    return {v.id: v for v in found}


def test_a_sound_run_passes_every_check() -> None:
    found = checks.verdicts(run(audited=audit()))
    assert [v.id for v in found] == [f"V{i}" for i in range(1, 18)]
    assert {v.id: v.status for v in found if v.status is not Status.PASS} == {}
    assert checks.refusal(found) == ""
    assert checks.flags(found, run(audited=audit())) == ()


def weak(errors: int) -> dict[str, Unit]:
    """White-box attacks that find little."""
    return {"adaptive": attacked(errors), "more-steps": attacked(errors)}


HALF = np.where(np.arange(N) < N // 2, K, 0)
FEW = np.where(np.arange(N) < 4, K, 12)

FAULTS: dict[str, tuple[str, Status, Evidence, str]] = {
    "undefended stands": ("V1", Status.WARN, run({"undefended": attacked(HALF)}), "undefended classifier 50.0 %"),
    "identity changes": ("V2", Status.FAIL, run(audited=audit(changed=1)), f"1 of {N} predictions"),
    "judge is biased": ("V3", Status.FAIL, run({"unchanged": attacked(3)}), "12.5 points"),
    "box keeps": ("V4", Status.FAIL, run(curve={1.0: attacked(15)}), "any image can become any other"),
    "large radius keeps": ("V4", Status.FAIL, run(curve={0.6: attacked(12)}), "no more than chance (10.0 %)"),
    "rises with radius": ("V4", Status.WARN, run(curve={0.4: attacked(8), 1.0: attacked(K)}), "rises from 0.2 to 0.4"),
    "one step is better": ("V5", Status.FAIL, run({"one-step": attacked(14)}), "One step leaves 12.5 %"),
    "more steps find more": ("V6", Status.WARN, run({"more-steps": attacked(13)}), "takes 6.2 points more"),
    "bpda is better": ("V7", Status.WARN, run({"bpda": attacked(14)}), "weaker than bpda"),
    "noise is better": ("V7", Status.WARN, run({"adaptive": attacked(0)}), "weaker than null, random corners"),
    "square alone breaks": ("V8", Status.WARN, run({**weak(4), "square": attacked(FEW)}), "40 of 40"),
    "random alone breaks": ("V9", Status.WARN, run({**weak(2), "random": attacked(HALF)}), "20 of 40"),
    "pinned stands": ("V10", Status.WARN, run({"pinned": attacked(HALF)}), "noise pinned the defence keeps 50.0 %"),
    "loss stays": ("V11", Status.WARN, run({"adaptive": attacked(12, select_margins=np.full(N, -1.0))}), "adaptive"),
    "masked": (
        "V12", Status.FAIL, run({"adaptive": attacked(12, zero_gradients=np.full(N, 0.02))}), "adaptive 2.0 %",
    ),
    "masked beside relaxed": (
        "V12",
        Status.WARN,
        run({"adaptive": attacked(12, zero_gradients=np.full(N, 0.02)), "relaxed": attacked(12)}),
        "the row to read is relaxed",
    ),
    "not finite": ("V12", Status.WARN, run({"adaptive": attacked(12, bad_gradients=np.full(N, 0.5))}), "50.00 %"),
    "exploding": ("V12", Status.WARN, run({"adaptive": attacked(12, spread=np.full((N, 3), 1001.0))}), "exploding"),
    "draws disagree": ("V12", Status.WARN, run({"adaptive": attacked(12, agreement=np.full((N, 3), 0.19))}), "0.19"),
    "nothing found": (
        "V14",
        Status.WARN,
        run({name: attacked(1) for name in SOUND if name not in JUDGED}),
        "The attack found nothing beyond noise",
    ),
    "outside": ("V15", Status.FAIL, run({"bpda": attacked(6, farthest=np.full(N, 0.2001))}), "bpda 0.2001"),
    "undone by rounding": (
        "V15",
        Status.WARN,
        run({"adaptive": attacked(12, rounded_predictions=predictions(2, 8))}),
        "adaptive 75.0 points",
    ),
    "red audit": ("V16", Status.FAIL, run(audited=audit("RED", red="An image alone differs.")), "An image alone"),
    "amber audit": ("V16", Status.WARN, run(audited=audit("AMBER")), "AMBER"),
    "last step shields": ("V17", Status.WARN, run({"tiny": attacked(HALF)}), "50.0 %"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_by_its_check(fault: str) -> None:
    id, status, at, said = FAULTS[fault]
    verdict = by_id(checks.verdicts(at))[id]
    assert verdict.status is status, verdict
    assert said in verdict.sentence


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_takes_the_headlines_place(fault: str) -> None:
    id, status, at, _ = FAULTS[fault]
    verdict = by_id(checks.verdicts(at))[id]
    said = checks.refusal((verdict,))
    if status is Status.FAIL:
        assert said.startswith(f"No headline: {id} (")
    elif id in ("V6", "V7", "V8"):
        assert said.startswith(f"Headline withheld: {id} (")
    else:
        assert said == ""


ROWS_OF = {
    "V1": "undefended", "V3": "unchanged", "V5": "one-step", "V6": "more-steps", "V9": "random", "V10": "pinned",
    "V17": "tiny",
}  # fmt: skip


@pytest.mark.parametrize("id", ROWS_OF)
def test_a_check_without_its_row_is_not_run(id: str) -> None:
    found = by_id(checks.verdicts(run(audited=audit(), without=(ROWS_OF[id],))))
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == {id}


def test_without_an_audit_two_checks_are_not_run() -> None:
    found = by_id(checks.verdicts(run()))
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == {"V2", "V16"}


def test_a_last_step_that_is_no_purification_says_nothing() -> None:
    at = run({"tiny": attacked(K)})
    records = dict(at.units) | {("null-tiny", EPS): [null(12)]}
    assert soundness.tiny(Evidence(at.header, records)).status is Status.NOT_RUN


@pytest.mark.parametrize(("errors", "alone"), [(9, False), (14, True)])
def test_an_image_is_broken_alone_only_beyond_the_noise_of_draws(errors: int, alone: bool) -> None:
    """9 wrong draws of 16 against 8 are no difference; 14 against 2 are one."""
    white = {"adaptive": attacked(2 if alone else 8), "more-steps": attacked(0)}
    found = strength.without_gradients(run({**white, "square": attacked(errors)}))
    assert (found.status is Status.WARN) == alone


def test_an_image_that_both_break_is_not_broken_alone() -> None:
    """9 wrong draws of 16 are more than half, however many more another attack turns."""
    found = strength.without_gradients(run({"adaptive": attacked(9), "more-steps": attacked(0), "square": attacked(K)}))
    assert found.status is Status.PASS


FLAGGED = {
    "masked": "masked gradient",
    "bpda is better": "weak white-box attack",
    "more steps find more": "not converged",
    "nothing found": "nothing beyond noise",
    "outside": "examples outside the ball",
    "undone by rounding": "undone by 8 bits",
    "box keeps": "accuracy does not fall with the radius",
    "red audit": "gradient is not the derivative",
}


@pytest.mark.parametrize("fault", FLAGGED)
def test_flags(fault: str) -> None:
    at = FAULTS[fault][2]
    assert FLAGGED[fault] in checks.flags(checks.verdicts(at), at)


def test_a_red_audit_of_the_batch_is_flagged_as_such() -> None:
    at = run(audited=audit("RED", red="An image alone against the same image in the batch: ..."))
    assert "batch-dependent" in checks.flags(checks.verdicts(at), at)


def test_approximate_and_missing_attacks_are_flagged() -> None:
    at = run()
    for row in at.header["rows"]:
        row["route"] = "G5"
    assert checks.flags((), at) == ("approximate route",)
    without = run(without=("adaptive",))
    assert checks.flags((), without) == ("no adaptive attack",)


def test_a_comparison_makes_three_checks_of_all_methods() -> None:
    assert [v.id for v in checks.verdicts(run(audited=audit(), methods=("a",)))] == ["V2", "V15", "V16"]
