"""Every check of a run, on records made by hand: what passes, what warns, what takes the headline's place."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.records import ByHand, edited, named

from depura.analysis import checks
from depura.analysis.results import Results
from depura.analysis.verdicts import (
    Flag,
    HeadlineStatus,
    Status,
    Verdict,
    conclusion,
    grouped,
    of_method,
    raised_flags,
)
from depura.records.directory import Unit
from depura.records.kinds import NOT_FINITE
from depura.records.schema import AuditCheck, AuditLight, Curve

N, K, EPS = 40, 16, 0.2
BY_HAND = ByHand(np.arange(N) % 10, draws=K, eps=EPS, wrong=10)
FIRST = 16
"""Images of the reference attack, the first ones."""


def attacked(errors: Any, **more: Any) -> Unit:
    """Any row's results, on all images."""
    return BY_HAND.attacked("any", errors, **more)


def reference(errors: Any) -> Unit:
    """Results of the reference attack, on its images."""
    return BY_HAND.attacked("any", np.broadcast_to(errors, FIRST))


def null(errors: Any = 0, random: Any = 0) -> Unit:
    return BY_HAND.null("any", errors, random)


UNEVEN = np.linspace(0.5, 1.5, 16)
OF_IMAGES = {
    "error": 0.005 * UNEVEN,
    "error_left": 0.015 * UNEVEN,
    "error_up": 0.012 * UNEVEN,
    "error_mirrored": 0.02 * UNEVEN,
    "error_others": 0.006 * UNEVEN,
    "margin": np.linspace(-12, 1, N),
    "margin_others": np.linspace(-12, 1, 99),
    "stepped_margin": np.linspace(-8, 6, N),
    "stepped_margin_others": np.linspace(-8, 6, 99),
}
"""What is measured of the images of an honest study."""


def audit(light: str = "GREEN", *checks: AuditCheck, changed: int = 0, **arrays: Any) -> Unit:
    unit = BY_HAND.audit("audit", light, checks=checks, changed=changed)
    return unit._replace(arrays={k: np.asarray(v) for k, v in {**OF_IMAGES, **arrays}.items() if v is not None})


def check(name: str, light: str, sentence: str = "Said.", measured: float | None = None) -> AuditCheck:
    return AuditCheck(name=name, light=AuditLight(light), sentence=sentence, measured=measured)


LOOKED_AT = ("history", "streams", "differences at examples", "deployed gradient", "jumps")


def adaptive(errors: Any = 12, *, light: str = "GREEN", of: str = "", **more: Any) -> Unit:
    """The adaptive attack, at whose examples the defence was looked at again; one of these checks has another light."""
    its = [check(name, light if name == of else "GREEN", f"Said of {name}.") for name in LOOKED_AT]
    return attacked(errors, at_examples=its, **more)


SOUND: dict[str, Unit] = {
    "undefended": attacked(K),
    "undefended-square": attacked(K),
    "unchanged": attacked(1),
    "transfer": attacked(4),
    "bpda": attacked(6),
    "adaptive": adaptive(),
    "square": attacked(7),
    "random": attacked(2),
    "one-step": attacked(8),
    "more-steps": attacked(12),
    "pinned": attacked(K),
    "tiny": attacked(K),
    "reference": reference(12),
}
KINDS = {"square": "black-box", "more-steps": "budget", "undefended-square": "undefended"}
SHARED = ("undefended", "undefended-square")
"""Rows of the classifier by itself, which all methods share."""
OF_ONE = ("pinned", "tiny")
"""Rows that a comparison of methods does not have: they judge something else than a method."""


def run(
    rows: dict[str, Unit] | None = None,
    *,
    curve: dict[float, Unit] | None = None,
    audited: Unit | None = None,
    without: tuple[str, ...] = (),
    methods: tuple[str, ...] = ("",),
    nulls: dict[str, Unit] | None = None,
) -> Results:
    """A sound run, with some rows and clean baselines replaced or left out; of a comparison, the same of each method.

    Methods share the row of the classifier by itself.
    """
    own = {kind: unit for kind, unit in {**SOUND, **(rows or {})}.items() if kind not in without}
    curve = {0.4: attacked(15), 1.0: attacked(K)} if curve is None else curve
    clean = {"bare": null(), "pinned": null(), "tiny": null(), "defence": null(1, 2), **(nulls or {})}
    made, units = {}, dict[tuple[str, float], Unit]()
    for method in methods:
        begin = f"{method}-" if method else ""
        for kind, unit in own.items():
            if method and kind in OF_ONE:
                continue
            name, whose = (kind, "") if kind in SHARED else (f"{begin}{kind}", method)
            mode = {"mode": "none"} if kind == "undefended-square" else {}
            row = BY_HAND.row(name, KINDS.get(kind, kind), method=whose, images=unit.facts.last, **mode)
            made[name] = row
            units[name, EPS] = named(unit, name)
            units[row.null, EPS] = named(clean.get(row.null.removeprefix("null-"), clean["defence"]), row.null)
        if "adaptive" in own:
            units |= {(f"{begin}adaptive", eps): at_radius(eps, f"{begin}adaptive", its) for eps, its in curve.items()}
        if audited is not None:
            name = f"audit-{method}" if method else "audit"
            units[name, EPS] = named(audited, name)
    further = tuple(name for name, row in made.items() if row.kind == "adaptive")
    head = BY_HAND.header(tuple(made.values()), curve=Curve(eps=tuple(curve), images=N, rows=further))
    return Results.of(head, units.values())


def at_radius(eps: float, row: str, unit: Unit) -> Unit:
    """The same results of a row at another radius."""
    arrays = {**unit.arrays, "distance": np.full(N, eps), "farthest": np.full(N, eps)}
    return Unit(arrays, BY_HAND.facts(row, eps=eps))


def by_id(found: tuple[Verdict, ...]) -> dict[str, Verdict]:
    return {v.id: v for v in found}


IDS = [f"V{i}" for i in range(1, 27)]


def concluded(at: Results) -> tuple[HeadlineStatus, str]:
    """Whether a study of one defence has a headline, and what stands in its place."""
    found = conclusion(checks.verdicts(at), at)
    return found.status, found.refusal


def test_a_sound_run_passes_every_check() -> None:
    at = run(audited=audit())
    found = checks.verdicts(at)
    assert [v.id for v in found] == IDS
    assert {v.id: v.status for v in found if v.status is not Status.PASS} == {}
    assert {v.id: v.flags for v in found if v.flags} == {}
    assert concluded(at) == (HeadlineStatus.GIVEN, "")
    assert raised_flags(found, at) == ()


def weak(errors: int) -> dict[str, Unit]:
    """White-box attacks that find little."""
    return {"adaptive": adaptive(errors), "more-steps": attacked(errors)}


FIVE = np.where(np.arange(N) < 5, K, 0)
HALF = np.where(np.arange(N) < N // 2, K, 0)
FEW = np.where(np.arange(N) < 4, K, 12)


def first(n: int, errors: int = 12) -> Unit:
    """Results of the first images."""
    return BY_HAND.attacked("any", [errors] * n)


def moved(still: int, **more: Any) -> Unit:
    """An adaptive attack that leaves the first so many images as they are."""
    distance = np.where(np.arange(N) < still, 0.0, EPS)
    return attacked(12, distance=distance, farthest=distance, **more)


def constant() -> Unit:
    """A clean baseline of a classifier that gives all images class 0."""
    return BY_HAND.null("any", 0, predictions=np.zeros((N, K), dtype=np.int32))


def without_a_number(draws: int, **more: Any) -> Unit:
    """An adaptive attack of whose wrong predictions so many are not finite."""
    predictions = BY_HAND.predictions(12)
    predictions.reshape(-1)[np.flatnonzero(predictions == 10)[:draws]] = NOT_FINITE
    return attacked(12, predictions=predictions, **more)


def clean_without_a_number(draws: int) -> Unit:
    """A clean baseline whose first image has so many draws that are not finite."""
    predictions = BY_HAND.predictions(0)
    predictions[0, :draws] = NOT_FINITE
    return BY_HAND.null("any", 0, predictions=predictions)


FAULTS: dict[str, tuple[str, Status, Results, str]] = {
    "undefended stands": (
        "V1", Status.WARN, run({"undefended": attacked(HALF)}), "breaks 20 that the attack by gradients does not",
    ),
    "undefended stands alone": (
        "V1", Status.WARN, run({"undefended": attacked(HALF)}, without=("undefended-square",)), "no attack without",
    ),
    "one class for all": (
        "V1", Status.WARN, run(nulls={"bare": constant()}), "gives all 40 images the class a, without any attack",
    ),
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
    "exploding": ("V12", Status.WARN, run({"adaptive": attacked(12, spread=np.full((N, 3), 1001.0))}), "exploding"),
    "draws disagree": ("V12", Status.WARN, run({"adaptive": attacked(12, agreement=np.full((N, 3), 0.19))}), "0.19"),
    "nothing found": (
        "V14",
        Status.WARN,
        run({name: attacked(1) for name in SOUND if name not in ("undefended", *OF_ONE)}),
        "The attack found nothing beyond noise",
    ),
    "few images": (
        "V14",
        Status.WARN,
        run({name: attacked(FIVE) for name in SOUND if name not in (*SHARED, *OF_ONE)}),
        "not distinguishable from noise with 40 images",
    ),
    "outside": ("V15", Status.FAIL, run({"bpda": attacked(6, farthest=np.full(N, 0.2001))}), "bpda 0.2001"),
    "undone by rounding": (
        "V15",
        Status.WARN,
        run({"adaptive": attacked(12, rounded_predictions=BY_HAND.predictions(2, 8))}),
        "adaptive 75.0 points",
    ),
    "red audit": ("V16", Status.FAIL, run(audited=audit("RED", check("slopes", "RED", "It differs."))), "It differs."),
    "red batch": ("V16", Status.FAIL, run(audited=audit("RED", check("batch", "RED", "One alone."))), "One alone."),
    "amber audit": ("V16", Status.WARN, run(audited=audit("AMBER")), "AMBER"),
    "last step shields": ("V17", Status.WARN, run({"tiny": attacked(HALF)}), "50.0 %"),
    "neither noise nor steps": (
        "V17", Status.WARN, run({"tiny": attacked(HALF), "pinned": attacked(HALF)}), "neither noise nor steps explain",
    ),
    "no adaptive attack": (
        "V18", Status.WARN, run(without=("adaptive", "more-steps")), "No attack differentiates the defence",
    ),
    "adaptive attack on some": ("V18", Status.WARN, run({"adaptive": first(39)}, curve={}), "on 39 of 40 images"),
    "examples stay": ("V19", Status.WARN, run({"adaptive": moved(2)}), "without an attack: 2 of 40 in row adaptive."),
    "weaker than the reference": (
        "V20", Status.WARN, run({"reference": reference(14)}), "leaves 12.5 %, the study's rows together 25.0 %",
    ),
    "some not finite": ("V21", Status.WARN, run({"adaptive": without_a_number(6)}), "0.94 % of the predictions in row"),
    "many not finite": ("V21", Status.FAIL, run({"adaptive": without_a_number(7)}), "1.09 % of the predictions in row"),
    "null not finite": (
        "V21", Status.FAIL, run(nulls={"tiny": clean_without_a_number(K)}), "predictions without an attack in row tiny",
    ),
    "gradients not finite": (
        "V21", Status.FAIL, run({"adaptive": attacked(12, bad_gradients=np.full(N, 0.5))}), "50.00 % of the gradients",
    ),
    "remembers": ("V22", Status.FAIL, run({"adaptive": adaptive(light="RED", of="history")}), "Said of history."),
    "not copied": ("V22", Status.WARN, run({"adaptive": adaptive(light="AMBER", of="history")}), "Said of history."),
    "stream": ("V22", Status.FAIL, run({"adaptive": adaptive(light="RED", of="streams")}), "noise (streams)"),
    "wrong at examples": (
        "V23", Status.FAIL, run({"adaptive": adaptive(light="RED", of="differences at examples")}), "differences",
    ),
    "wrong in its dtype": (
        "V23", Status.FAIL, run({"adaptive": adaptive(light="RED", of="deployed gradient")}), "deployed gradient",
    ),
    "doubtful in its dtype": (
        "V23", Status.WARN, run({"adaptive": adaptive(light="AMBER", of="deployed gradient")}), "deployed gradient",
    ),
    "jumps beside Square": ("V24", Status.WARN, run({"adaptive": adaptive(light="AMBER", of="jumps")}), "jumps"),
    "jumps": (
        "V24", Status.WARN, run({"adaptive": adaptive(light="AMBER", of="jumps")}, without=("square",)), "jumps",
    ),
    "memorised": ("V25", Status.WARN, run(audited=audit(error=2e-4 * UNEVEN)), "0.014 in 16 images of the study"),
    "memorised with others": (
        "V25", Status.WARN, run(audited=audit(error=2e-4 * UNEVEN, error_others=2e-4 * UNEVEN)), "knows images",
    ),
    "memorised with mirror images": (
        "V25",
        Status.WARN,
        run(audited=audit(error=4e-4 * UNEVEN, error_mirrored=4e-4 * UNEVEN, error_others=None)),
        "knows images",
    ),
    "memorised with all variants": (
        "V25",
        Status.WARN,
        run(audited=audit(**dict.fromkeys(("error", "error_left", "error_up", "error_mirrored"), 0.0015 * UNEVEN))),
        "0.077 in others of the data set",
    ),
    "a quarter memorised": (
        "V25",
        Status.WARN,
        run(audited=audit(error=0.005 * UNEVEN * (np.arange(16) >= 4))),
        "and next to nothing in 4 of them: the purifier knows images of the study",
    ),
    "easy images": (
        "V26", Status.WARN, run(audited=audit(margin=np.linspace(-12, -6, N))), "as they are by 9.00 and 5.50 (p ",
    ),
    "easy after a step": (
        "V26", Status.WARN, run(audited=audit(stepped_margin=np.linspace(-8, -1, N))), "radius by 4.50 and 1.00",
    ),
}  # fmt: skip


@cache
def verdicts_of(fault: str) -> tuple[Verdict, ...]:
    """All verdicts on a faulty run."""
    return checks.verdicts(FAULTS[fault][2])


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_by_its_check(fault: str) -> None:
    id, status, _, said = FAULTS[fault]
    verdict = by_id(verdicts_of(fault))[id]
    assert verdict.status is status, verdict
    assert said in verdict.sentence


WITHHOLDING = (
    "undefended stands",
    "undefended stands alone",
    "more steps find more",
    "bpda is better",
    "noise is better",
    "square alone breaks",
    "neither noise nor steps",
    "no adaptive attack",
    "adaptive attack on some",
    "examples stay",
    "weaker than the reference",
    "jumps",
    "memorised",
    "memorised with others",
    "memorised with mirror images",
    "memorised with all variants",
    "a quarter memorised",
    "easy images",
    "easy after a step",
)
"""Warnings that take the headline away."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_takes_the_headlines_place(fault: str) -> None:
    id, status, at, _ = FAULTS[fault]
    verdict = by_id(verdicts_of(fault))[id]
    found = conclusion((verdict,), at)
    said = found.refusal
    if status is Status.FAIL:
        assert found.status is HeadlineStatus.FAILED
        assert said.startswith(f"No headline: {id} (")
        assert verdict.sentence in said
        assert verdict.advice in said
    elif fault in WITHHOLDING:
        assert found.status is HeadlineStatus.WITHHELD
        assert said.startswith(f"Headline withheld: {id} (")
        assert verdict.sentence in said
    else:
        assert found.status is HeadlineStatus.GIVEN
        assert said == ""


def test_a_failure_weighs_more_than_a_weak_attack() -> None:
    at = run({"adaptive": moved(2, zero_gradients=np.full(N, 0.02)), "reference": reference(14)})
    status, said = concluded(at)
    assert status is HeadlineStatus.FAILED
    assert said.startswith("No headline: V12 (")
    assert "V19" not in said
    weak = run({"adaptive": moved(2), "reference": reference(14)})
    status, said = concluded(weak)
    assert status is HeadlineStatus.WITHHELD
    assert said.startswith("Headline withheld: V19 (")
    assert " V20 (" in said


ROWS_OF = {
    "V3": "unchanged", "V5": "one-step", "V6": "more-steps", "V9": "random", "V10": "pinned",
    "V17": "tiny", "V20": "reference",
}  # fmt: skip


@pytest.mark.parametrize("id", ROWS_OF)
def test_a_check_without_its_row_is_not_run(id: str) -> None:
    at = run(audited=audit(), without=(ROWS_OF[id],))
    found = by_id(checks.verdicts(at))
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == {id}
    assert concluded(at)[0] is HeadlineStatus.GIVEN


def test_without_an_audit_four_checks_are_not_run() -> None:
    found = by_id(checks.verdicts(run()))
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == {"V2", "V16", "V25", "V26"}


def test_a_record_that_does_not_have_what_was_measured_of_the_images_is_read() -> None:
    found = by_id(checks.verdicts(run(audited=BY_HAND.audit())))
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == {"V25", "V26"}
    assert found["V25"].sentence == "The run did not measure what purification changes."


@pytest.mark.parametrize(
    "errors",
    [
        dict.fromkeys(("error", "error_left", "error_up", "error_mirrored", "error_others"), np.zeros(16)),
        {"error": 0.005 * UNEVEN * (np.arange(16) >= 3)},
        {"error": 0.0008 * UNEVEN, "error_others": None},
        {"error": 1e-4 * (-1.0) ** np.arange(16), "error_others": 1e-3 * (-1.0) ** np.arange(16)},
        {"error": 0.0015 * UNEVEN, "error_others": 0.003 * UNEVEN},
        {name: (1e-12 if name == "error" else 1e-7) * UNEVEN for name in checks.VARIANTS | {"error": ""}},
    ],
    ids=[
        "nothing is changed",
        "three are known",
        "its neighbours are new to it",
        "noise",
        "others are harder",
        "rounding",
    ],
)
def test_an_honest_purifier_may_know_some_images_a_little(errors: dict[str, Any]) -> None:
    """One that changes nothing; one that barely changes 3 images of 16; one that knows what it was trained on."""
    if "error_others" in errors and len(errors) == 2 and errors["error"][1] < 0:  # noise on all alike
        errors = {**errors, **dict.fromkeys(("error_left", "error_up", "error_mirrored"), errors["error"])}
    found = by_id(checks.verdicts(run(audited=audit(**errors))))["V25"]
    assert found.status is Status.PASS, found


def test_of_three_images_nothing_is_said() -> None:
    few: dict[str, Any] = {name: values[:3] for name, values in OF_IMAGES.items()}
    found = by_id(checks.verdicts(run(audited=audit(**{**few, "error": few["error"] * 0}))))
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == {"V25", "V26"}
    lost = np.where(np.arange(16) < 13, np.nan, UNEVEN)
    assert checks.images_not_memorised(run(audited=audit(error=lost)).only("")).status is Status.NOT_RUN


def test_a_classifier_alone_has_no_purification_error() -> None:
    bare = edited(run(audited=audit()).header, "methods", 0, "defence", "purifier", to=None)
    found = checks.images_not_memorised(replace(run(audited=audit(error=UNEVEN * 0)), header=bare).only(""))
    assert found.status is Status.NOT_RUN
    assert found.sentence == "There is no purifier whose purified images could be looked at."


def test_harder_images_than_others_are_no_cherries() -> None:
    hard = run(audited=audit(margin=np.linspace(-2, 4, N), stepped_margin=np.linspace(0, 9, N)))
    assert checks.images_no_easier(hard.only("")).status is Status.PASS
    without = {name: None for name in OF_IMAGES if name.endswith("margin_others")}
    assert checks.images_no_easier(run(audited=audit(**without)).only("")).status is Status.NOT_RUN


def test_without_the_classifier_alone_nothing_is_said_of_it() -> None:
    at = run(audited=audit(), without=SHARED)
    assert {v.id for v in checks.verdicts(at) if v.status is Status.NOT_RUN} == {"V1"}
    assert concluded(at)[0] is HeadlineStatus.GIVEN


def test_without_an_attack_by_gradients_nothing_is_said_of_them() -> None:
    found = by_id(checks.verdicts(run(audited=audit(), without=("adaptive", "more-steps"), curve={})))
    not_run = {"V4", "V5", "V6", "V7", "V8", "V9", "V11", "V12", "V19", "V22", "V23", "V24"}
    assert {i for i, v in found.items() if v.status is Status.NOT_RUN} == not_run
    assert found["V18"].status is Status.WARN


def test_where_no_row_judges_the_defence_there_is_no_headline() -> None:
    at = run(without=tuple(name for name in SOUND if name not in ("undefended", "unchanged", "reference")), curve={})
    assert concluded(at) == (HeadlineStatus.FAILED, "No headline: No row judges the defence.")
    found = by_id(checks.verdicts(at))
    assert {found[id].status for id in ("V13", "V14", "V20")} == {Status.NOT_RUN}


def test_a_last_step_that_is_no_purification_says_nothing() -> None:
    assert checks.last_step_breaks(run({"tiny": attacked(K)}, nulls={"tiny": null(12)})).status is Status.NOT_RUN


@pytest.mark.parametrize(("errors", "alone"), [(9, False), (14, True)])
def test_an_image_is_broken_alone_only_beyond_the_noise_of_draws(errors: int, alone: bool) -> None:
    """9 wrong draws of 16 against 8 are no difference; 14 against 2 are one."""
    white = {"adaptive": attacked(2 if alone else 8), "more-steps": attacked(0)}
    found = checks.no_gain_without_gradients(run({**white, "square": attacked(errors)}))
    assert (found.status is Status.WARN) == alone


def test_an_image_that_both_break_is_not_broken_alone() -> None:
    """9 wrong draws of 16 are more than half, however many more another attack turns."""
    found = checks.no_gain_without_gradients(
        run({"adaptive": attacked(9), "more-steps": attacked(0), "square": attacked(K)})
    )
    assert found.status is Status.PASS


@pytest.mark.parametrize("kind", ["adaptive", "relaxed", "targeted", "selective"])
def test_any_attack_through_the_defence_covers_its_images(kind: str) -> None:
    rows = {name: unit for name, unit in SOUND.items() if name not in ("adaptive", "more-steps")}
    without = tuple(name for name in ("adaptive", "more-steps") if name != kind)
    found = checks.attacked_on_every_image(run({**rows, kind: attacked(12)}, without=without))
    assert found.status is Status.PASS
    assert found.sentence == f"Row {kind} attacks the defence that is judged on 40 of 40 images."


def test_more_budget_and_what_is_judged_on_something_else_cover_no_images() -> None:
    """V18 looks at the attacks on the defence; the headline is of as many images as the longest of these."""
    more = checks.attacked_on_every_image(run(without=("adaptive",), curve={}))
    assert more.status is Status.WARN
    assert more.flags == (Flag.NOT_ADAPTIVE,)
    head = run().header
    bare = edited(head, "rows", [row.name for row in head.rows].index("adaptive"), "judged", to="bare")
    assert checks.attacked_on_every_image(replace(run(), header=bare)).flags == (Flag.NOT_ADAPTIVE,)
    few = {name: first(39, 4) for name in ("transfer", "bpda", "square", "random", "one-step", "more-steps")}
    assert checks.attacked_on_every_image(run({**few, "adaptive": first(39)}, curve={})).status is Status.PASS
    assert checks.attacked_on_every_image(run({**few, "adaptive": first(38)}, curve={})).flags == (Flag.PARTIAL,)


def test_attacks_are_compared_on_the_images_that_both_were_run_on() -> None:
    """The adaptive attack on 20 images; the others break the images after these."""
    late = attacked(np.where(np.arange(N) < 20, 4, K))
    rows = dict.fromkeys(("one-step", "more-steps", "transfer", "bpda", "square"), late)
    found = by_id(checks.verdicts(run({**rows, "adaptive": first(20, 12)}, curve={})))
    assert {found[id].status for id in ("V5", "V6", "V7", "V8")} == {Status.PASS}
    assert found["V5"].sentence == "One step leaves 75.0 %, many steps 25.0 %."
    assert found["V6"].sentence.startswith("On 20 images: more-steps takes -50.0 points more")
    assert "transfer 75.0 %, bpda 75.0 %" in found["V7"].sentence


def test_an_image_that_is_wrong_anyway_may_be_left_as_it_is() -> None:
    """3 % of 40 images are 1.2: one may stay. Of images that are wrong in half of their draws any may."""
    assert checks.examples_moved(run({"adaptive": moved(1)})).status is Status.PASS
    assert checks.examples_moved(run({"adaptive": moved(2)})).status is Status.WARN
    wrong = np.where(np.arange(N) < 10, K // 2, 1)
    assert checks.examples_moved(run({"adaptive": moved(10)}, nulls={"defence": null(wrong)})).status is Status.PASS
    some = checks.examples_moved(run({"adaptive": moved(12)}, nulls={"defence": null(wrong)}))
    assert "2 of 30 in row adaptive" in some.sentence


def test_rows_without_a_gradient_may_leave_images_as_they_are() -> None:
    still = attacked(4, distance=np.zeros(N), farthest=np.zeros(N))
    found = checks.examples_moved(run(dict.fromkeys(("transfer", "square", "random", "one-step", "unchanged"), still)))
    assert found.status is Status.PASS


def test_the_reference_attack_is_held_against_all_rows_on_its_own_images() -> None:
    """It is run on the first 16 images: what the study's rows leave of the others does not count."""
    late = np.where(np.arange(N) < FIRST, 14, 0)
    rows = {"adaptive": attacked(late), "more-steps": attacked(late)}
    assert checks.reference_finds_no_more(run({**rows, "reference": reference(14)})).status is Status.PASS
    early = run({"adaptive": attacked(12), "square": attacked(14), "reference": reference(14)})
    assert checks.reference_finds_no_more(early).status is Status.PASS  # another row takes as much
    found = checks.reference_finds_no_more(run({"reference": reference(14)}))
    assert "On 16 images" in found.sentence
    assert found.flags == (Flag.REFERENCE,)


def test_a_reference_attack_that_is_better_by_chance_says_nothing() -> None:
    """One image of 16 has two more wrong draws; then all, by less than 2 points."""
    one = np.where(np.arange(FIRST) == 0, 14, 12)
    assert checks.reference_finds_no_more(run({"reference": reference(one)})).status is Status.PASS
    fine = ByHand(BY_HAND.labels, draws=100, eps=EPS, wrong=10)
    rows = [fine.row("adaptive"), fine.row("reference")]
    for more, status in ((1, Status.PASS), (3, Status.WARN)):
        units = [fine.attacked("adaptive", 50), fine.attacked("reference", 50 + more)]
        assert checks.reference_finds_no_more(Results.of(fine.header(rows), units)).status is status


def test_numbers_that_are_not_finite_are_counted_by_row() -> None:
    """640 draws: 6 are 0.94 %, on one image of 12 wrong draws; 7 are more than 1 %."""
    few = checks.numbers_are_finite(run({"adaptive": without_a_number(6)}))
    assert few.sentence == "Not finite: 0.94 % of the predictions in row adaptive, on 1 images."
    many = checks.numbers_are_finite(run({"adaptive": without_a_number(13)}))
    assert many.sentence == (
        "Not finite: 2.03 % of the predictions in row adaptive, on 2 images. No more than 1 % is allowed."
    )
    gradients = checks.numbers_are_finite(run({"bpda": attacked(6, bad_gradients=np.full(N, 0.01))}))
    assert gradients.status is Status.WARN
    assert gradients.sentence == "Not finite: 1.00 % of the gradients in row bpda."
    both = checks.numbers_are_finite(run({"adaptive": without_a_number(6)}, nulls={"tiny": clean_without_a_number(1)}))
    assert both.status is Status.WARN
    assert "; 0.16 % of the predictions without an attack in row tiny, on 1 images." in both.sentence


def test_a_prediction_that_is_not_finite_is_wrong_and_one_above_the_classes_is_finite() -> None:
    at = run({"adaptive": without_a_number(7)})
    assert at.accuracies(at.header.row("adaptive")).tolist() == [1 - 12 / K] * N
    assert checks.numbers_are_finite(run()).status is Status.PASS  # wrong draws say class 10 of ten classes, 0 to 9


def test_without_anything_that_tries_the_attack_a_study_is_unchecked() -> None:
    """Further radii, an attack of depura's own, or one without gradients: each of the three is enough."""
    at = run(without=("reference", "square"), curve={})
    status, said = concluded(at)
    assert status is HeadlineStatus.UNCHECKED
    assert said.startswith("Unchecked: The attack was run at one radius, ")
    for tried in (
        run(without=("reference", "square")),
        run(without=("square",), curve={}),
        run(without=("reference",), curve={}),
    ):
        assert concluded(tried) == (HeadlineStatus.GIVEN, "")
    weak = run({"bpda": attacked(14)}, without=("reference", "square"), curve={})
    assert concluded(weak)[0] is HeadlineStatus.WITHHELD  # what is known to be weak is not called unchecked


FLAGGED = {
    "masked": Flag.MASKED,
    "masked beside relaxed": Flag.MASKED,
    "exploding": Flag.GRADIENTS,
    "draws disagree": Flag.GRADIENTS,
    "bpda is better": Flag.WEAK,
    "noise is better": Flag.WEAK,
    "square alone breaks": Flag.WEAK,
    "more steps find more": Flag.NOT_CONVERGED,
    "nothing found": Flag.NOISE,
    "few images": Flag.FEW_IMAGES,
    "undefended stands": Flag.MASKED,
    "neither noise nor steps": Flag.SHIELDED,
    "remembers": Flag.STATE,
    "stream": Flag.STATE,
    "wrong at examples": Flag.AT_EXAMPLES,
    "wrong in its dtype": Flag.AT_EXAMPLES,
    "jumps": Flag.JUMPS,
    "jumps beside Square": Flag.JUMPS,
    "outside": Flag.OUTSIDE,
    "undone by rounding": Flag.ROUNDED,
    "box keeps": Flag.RADIUS,
    "large radius keeps": Flag.RADIUS,
    "rises with radius": Flag.RADIUS,
    "red audit": Flag.WRONG_GRADIENT,
    "red batch": Flag.BATCH,
    "no adaptive attack": Flag.NOT_ADAPTIVE,
    "adaptive attack on some": Flag.PARTIAL,
    "examples stay": Flag.UNMOVED,
    "weaker than the reference": Flag.REFERENCE,
    "some not finite": Flag.NOT_FINITE,
    "many not finite": Flag.NOT_FINITE,
    "null not finite": Flag.NOT_FINITE,
    "gradients not finite": Flag.NOT_FINITE,
    "memorised": Flag.MEMORISED,
    "memorised with others": Flag.MEMORISED,
    "memorised with mirror images": Flag.MEMORISED,
    "memorised with all variants": Flag.MEMORISED,
    "a quarter memorised": Flag.MEMORISED,
    "easy images": Flag.CHOSEN,
    "easy after a step": Flag.CHOSEN,
}


@pytest.mark.parametrize("fault", FLAGGED)
def test_flags(fault: str) -> None:
    id, _, at, _ = FAULTS[fault]
    found = verdicts_of(fault)
    assert by_id(found)[id].flags == (FLAGGED[fault],)
    raised = raised_flags(found, at)
    assert FLAGGED[fault] in raised
    assert all(isinstance(flag, Flag) for flag in raised)
    assert len(set(raised)) == len(raised)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in FLAGGED])
def test_other_faults_raise_no_flag_of_their_own(fault: str) -> None:
    assert by_id(verdicts_of(fault))[FAULTS[fault][0]].flags == ()


def test_a_flag_is_printed_as_its_text() -> None:
    assert f"{Flag.MASKED}" == str(Flag.MASKED) == "masked gradient"
    assert Flag.MASKED == "masked gradient"


def test_flags_of_checks_that_pass_or_were_not_run_are_not_raised() -> None:
    told = [Verdict("V0", "a check", status, "Said.", flags=(Flag.WEAK,)) for status in (Status.PASS, Status.NOT_RUN)]
    assert raised_flags(told, run()) == ()


def test_what_is_approximate_or_deterministic_is_flagged() -> None:
    at = run()
    rows = [{**row, "mode": "adjoint"} for row in at.header.as_json()["rows"]]
    assert raised_flags((), replace(at, header=edited(at.header, "rows", to=rows))) == (Flag.APPROXIMATE,)
    assert raised_flags((), at) == ()
    same = check("randomness", "GREEN", measured=0.0)
    assert raised_flags((), run(audited=audit("GREEN", same))) == (Flag.DETERMINISTIC,)
    for other in (check("randomness", "GREEN", measured=0.1), check("zeros", "GREEN", measured=0.0)):
        assert raised_flags((), run(audited=audit("GREEN", other))) == ()


OF_METHODS = [id for id in IDS if id not in ("V10", "V17")]


def test_a_comparison_makes_every_check_of_every_method() -> None:
    at = run(audited=audit(), methods=("zz", "yy"))
    found = checks.verdicts(at)
    assert [(v.method, v.id) for v in found] == [(method, id) for method in ("zz", "yy") for id in IDS]
    assert {v.id for v in found if v.status is not Status.PASS} == {"V10", "V17"}  # a comparison has no such rows
    for method, its in at.each():
        own = of_method(found, method.name)
        assert [v.id for v in own] == IDS
        assert conclusion(own, its) == (method.name, HeadlineStatus.GIVEN, "")
        assert raised_flags(own, its) == ()


@pytest.mark.parametrize("fault", {its[0]: fault for fault, its in FAULTS.items() if its[0] in OF_METHODS}.values())
def test_verdicts_are_the_same_whether_a_method_is_named_or_not(fault: str) -> None:
    """The records of a study of one defence, and the same as those of the one method of a comparison."""
    one = FAULTS[fault][2]
    names = {row.name: row.name if row.name in (*SHARED, *OF_ONE) else f"zz-{row.name}" for row in one.header.rows}
    rows = [
        {**row, "name": names[row["name"]], "method": "zz" if names[row["name"]] != row["name"] else ""}
        for row in one.header.as_json()["rows"]
    ]
    head = edited(edited(one.header, "rows", to=rows), "methods", 0, "name", to="zz")
    head = edited(head, "curve", "rows", to=[names[name] for name in one.header.curve.rows])
    names["audit"] = "audit-zz"
    units = [named(unit, names.get(row, row)) for (row, _), its in one.by_row.items() for unit in its.units]
    compared = Results.of(head, units)
    plain, found = verdicts_of(fault), checks.verdicts(compared)
    assert {v.method for v in plain} == {""}
    assert {v.method for v in found} == {"zz"}
    said = [(v.id, v.status, v.flags, v.sentence.replace("zz-", ""), v.advice.replace("zz-", "")) for v in found]
    assert said == [(v.id, v.status, v.flags, v.sentence, v.advice) for v in plain]
    (_, its) = compared.each()[0]
    assert raised_flags(found, its) == raised_flags(plain, one)
    assert conclusion(found, its).status is conclusion(plain, one).status


def test_a_fault_of_one_method_is_none_of_another() -> None:
    """Only "zz" has a weak adaptive attack; the row of the classifier is shared, and its fault is that of both."""
    at = run({"undefended": attacked(HALF)}, methods=("zz", "yy"))
    weak = named(attacked(0), "zz-adaptive")
    by_row = {**at.by_row, ("zz-adaptive", EPS): replace(at.by_row["zz-adaptive", EPS], units=(weak,))}
    found = checks.verdicts(replace(at, by_row=by_row))
    assert [v.method for v in found if v.id == "V7" and v.status is Status.WARN] == ["zz"]
    assert [v.method for v in found if v.id == "V1" and v.status is Status.WARN] == ["zz", "yy"]
    assert "zz-bpda" in next(v.sentence for v in found if v.id == "V7")
    assert not any("zz-" in v.sentence for v in of_method(found, "yy"))


def test_an_audit_is_that_of_its_method() -> None:
    at = run(audited=audit(), methods=("zz", "yy"))
    red = BY_HAND.audit("audit-yy", "RED", checks=[check("slopes", "RED", "It differs.")], changed=1)
    by_row = {**at.by_row, ("audit-yy", EPS): replace(at.by_row["audit-yy", EPS], units=(red,))}
    found = checks.verdicts(replace(at, by_row=by_row))
    assert [(v.id, v.method) for v in found if v.status is Status.FAIL] == [("V2", "yy"), ("V16", "yy")]


def test_verdicts_of_one_check_and_status_are_one_line() -> None:
    def said(id: str, status: Status, method: str) -> Verdict:
        return Verdict(id, f"check {id}", status, f"Of {method}.", "Do it.", method=method)

    found = (
        said("V1", Status.PASS, "a"), said("V2", Status.WARN, "a"), said("V3", Status.WARN, "a"),
        said("V1", Status.WARN, "b"), said("V2", Status.WARN, "b"), said("V3", Status.FAIL, "b"),
        said("V1", Status.PASS, "c"), said("V2", Status.WARN, "c"), said("V3", Status.WARN, "c"),
    )  # fmt: skip
    lines = grouped(found, Status.WARN, Status.FAIL)
    assert [(line.id, line.status, line.methods) for line in lines] == [
        ("V1", Status.WARN, ("b",)),
        ("V2", Status.WARN, ("a", "b", "c")),
        ("V3", Status.WARN, ("a", "c")),
        ("V3", Status.FAIL, ("b",)),
    ]
    assert lines[0].text == "V1 check V1, b: Of b. Do it."
    assert lines[1].text == "V2 check V2, 3 methods (a, b, c). a: Of a. Do it."
    assert len(grouped(found)) == 5
    alone = grouped((said("V1", Status.WARN, "")._replace(sentence="Said."),))
    assert [(line.methods, line.text) for line in alone] == [((), "V1 check V1: Said. Do it.")]


def robust(left: Any) -> dict[str, Unit]:
    """A classifier that is robust by itself, as an attack without gradients says, too."""
    return {"undefended": attacked(left), "undefended-square": attacked(left)}


def test_a_classifier_that_is_robust_by_itself_is_not_suspected() -> None:
    """Nothing is left to find: the attack by gradients, Square, fixed noise and one step all leave every image."""
    rows = {name: attacked(0) for name in SOUND if name not in ("adaptive", "reference")}
    at = run({**rows, "adaptive": adaptive(0), "reference": reference(0)}, audited=audit(), nulls={"defence": null(0)})
    found = by_id(checks.verdicts(at))
    assert {id: v.status for id, v in found.items() if v.status is not Status.PASS} == {}
    assert "the classifier is robust by itself" in found["V1"].sentence
    masked = by_id(checks.verdicts(run({**rows, "undefended-square": attacked(K), "adaptive": adaptive(0)})))
    assert [masked[id].status for id in ("V1", "V10", "V14", "V17")] == [Status.WARN] * 4


def test_fixed_noise_may_leave_what_is_robust() -> None:
    """A purifier is itself robust to some images: what is left must be detectably less than of noise drawn anew."""
    quarter = np.where(np.arange(N) < N // 4, 0, K)
    assert checks.fixed_noise_breaks(run({"pinned": attacked(quarter)})).status is Status.WARN
    weaker = {"adaptive": adaptive(4), "more-steps": attacked(4), "pinned": attacked(quarter)}
    found = checks.fixed_noise_breaks(run(weaker))
    assert found.status is Status.PASS
    assert "detectably less than 75.0 % where it is drawn anew" in found.sentence
    one = np.where(np.arange(N) < 1, 0, K)  # 2.5 %, of which the interval reaches below 2 %
    assert checks.fixed_noise_breaks(run({"pinned": attacked(one)})).status is Status.PASS
    same = audit("GREEN", check("randomness", "GREEN", measured=0.0))
    assert checks.fixed_noise_breaks(run({"pinned": attacked(quarter)}, audited=same)).status is Status.NOT_RUN


def test_a_classifier_at_chance_without_an_attack_says_nothing() -> None:
    """4 of 40 images right, of ten classes: that an attack leaves none of them is no sign of a strong one."""
    wrong = np.where(np.arange(N) < 4, 0, K)
    found = checks.classifier_breaks(run(nulls={"bare": null(wrong)}))
    assert found.status is Status.NOT_RUN
    assert "may be chance (10 %)" in found.sentence


@pytest.mark.parametrize(("broken", "status"), [(1, Status.PASS), (3, Status.PASS), (4, Status.WARN)])
def test_a_few_images_broken_alone_may_be_chance(broken: int, status: Status) -> None:
    """Of 40 images 2 % are 0.8: by the binomial distribution 3 are as many with probability 0.046, 4 with 0.008."""
    tail = 1 - sum(math.comb(40, k) * 0.02**k * 0.98 ** (40 - k) for k in range(broken))
    assert (tail < 0.025) is (status is Status.WARN)
    square = attacked(np.where(np.arange(N) < broken, K, 0))
    found = checks.no_gain_without_gradients(run({**weak(2), "square": square, "transfer": attacked(0)}))
    assert found.status is status


def test_examples_at_smaller_radii_count_at_the_radius_of_the_table() -> None:
    """They lie in the ball. At half the radius the attack finds what it misses at the whole one."""
    rows = {name: attacked(4) for name in SOUND if name not in SHARED}
    at = run(rows, curve={EPS / 2: attacked(14), 1.0: attacked(K)})
    assert at.strongest(at.attacks).accuracies.tolist() == [1 - 14 / K] * N
    larger = run(rows, curve={2 * EPS: attacked(14)})
    assert larger.strongest(larger.attacks).accuracies.tolist() == [1 - 4 / K] * N


def test_every_check_says_what_it_takes_to_pass() -> None:
    found = checks.verdicts(run(audited=audit()))
    assert len({v.passes for v in found}) == len(IDS)
    page = (Path(__file__).parents[2] / "docs" / "judging.md").read_text(encoding="utf-8")
    assert [v.id for v in found if f"\n| {v.id} {v.name} | {v.passes} |" not in page] == []


def test_changes_of_pixels_say_nothing_of_the_bound_of_a_flow() -> None:
    """They are in [0, 1] units, and the bound in grid units."""
    at = run({"bpda": attacked(6, farthest=np.full(N, 0.5))})
    assert checks.within_ball(at).status is Status.FAIL
    flows = replace(at, header=edited(at.header, "threat_model", "norm", to="flow"))
    assert checks.within_ball(flows).status is Status.PASS
