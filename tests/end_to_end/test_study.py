"""A tiny study on the digits: run, stop, go on, shard, plan, report. The machine must not show in the results."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import depura
from depura.analysis.checks import CHECKS
from depura.analysis.summary import summarise
from depura.cli import app
from depura.evaluation.counting import bytes_per_row
from depura.evaluation.demo import digits_purifier, study
from depura.evaluation.runner import Shard, missing, run
from depura.evaluation.scoring import score
from depura.evaluation.study import UnitKey
from depura.evaluation.units import run_unit
from depura.records.directory import RecordError, RunDirectory
from depura.reports import page
from processes import STUDY, Depura
from slow import slow
from toys import Streams

pytestmark = pytest.mark.usefixtures("without_figures", "without_clock")
SMALL = {"images": 6, "attack_steps": 3, "eot": 2, "report_draws": 8, "curve": (0.1,), "n_steps": 2}


def small(**changes: object) -> depura.Study:
    return replace(study(**{**SMALL, **changes}), unit_images=3, curve_images=4)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(small(), tmp_path_factory.mktemp("run") / "a", command="depura run x")


def depura_(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_every_unit_is_recorded(finished: RunDirectory) -> None:
    names = {entry.unit for entry in finished.header.units}
    assert names == {p.stem for p in (finished.path / "units").iterdir()}
    assert len(names) == 1 + 2 * (2 + 5) + 2 * 2 + 2  # the last of depura's own attack on the bare classifier
    unit = finished.load("adaptive_eps0.2_00003-00006")
    assert unit.arrays["ids"].tolist() == list(small().data.ids[3:6])
    assert unit.arrays["predictions"].shape == (3, 8)
    assert unit.arrays["select_errors"].shape == (3, 2)
    assert unit.arrays["loss"].shape == (3, 3)
    assert unit.arrays["finished"].tolist() == [-1] * 3
    attack = small().row("adaptive").attack
    assert unit.arrays["spent"].tolist() == [[attack.cost.gradients, attack.cost.forwards]] * 3
    assert unit.arrays["distance"].max() <= 0.2 + 1e-6


def test_the_walks_of_the_worst_and_of_the_luckiest_image_are_kept(finished: RunDirectory) -> None:
    for part in ("00000-00003", "00003-00006"):
        for row in ("transfer", "adaptive", "bpda"):
            unit = finished.load(f"{row}_eps0.2_{part}").arrays
            errors = (unit["predictions"] != unit["labels"][:, None]).sum(1)
            worst, luckiest = unit["picture_rows"]
            assert worst != luckiest
            assert (errors[worst], errors[luckiest]) == (errors.max(), errors.min())
            # Clean, adversarial, noised, one estimate for each of the two steps, purified.
            assert unit["picture_frames"].shape == (2, 6, 1, 8, 8)


def test_reported_numbers_can_be_recomputed_from_the_report_stream(finished: RunDirectory) -> None:
    """Nothing but the saved examples and the report stream goes into the reported predictions."""
    s, unit = small(), finished.load("adaptive_eps0.2_00000-00003")
    examples = torch.from_numpy(unit.arrays["adversarial"])
    noise = depura.Noise(s.seed, s.data.ids[:3], stream=depura.Stream.REPORT)
    again = score(s.defence, examples, s.data.labels[:3], noise, draws=range(8))
    assert np.array_equal(again.predictions.numpy(), unit.arrays["predictions"])
    levels = np.rint(255 * unit.arrays["adversarial"]).astype(np.uint8)
    kept = torch.from_numpy(levels.astype(np.float32) / 255)
    rounded = score(s.defence, kept, s.data.labels[:3], noise, draws=range(8)).predictions
    assert np.array_equal(rounded.numpy(), unit.arrays["rounded_predictions"])
    for stream in ("select", "null"):
        other = score(
            s.defence, examples, s.data.labels[:3], getattr(Streams(s.seed), stream)(s.data.ids[:3]), draws=range(8)
        )
        assert not np.array_equal(other.margins.numpy(), unit.arrays["margins"])


def test_the_null_baseline_scores_clean_images_on_as_many_draws(finished: RunDirectory) -> None:
    s, unit = small(), finished.load("null-transfer_eps0.2_00000-00003")
    noise = Streams(s.seed).null(s.data.ids[:3])
    again = score(s.defence, s.data.images[:3], s.data.labels[:3], noise, draws=range(16, 24))
    assert np.array_equal(again.predictions.numpy(), unit.arrays["predictions"])
    assert unit.arrays["random_predictions"].shape == unit.arrays["predictions"].shape


def test_the_transferred_examples_are_those_of_the_undefended_row() -> None:
    """Only the choice among candidates may differ, as it is made on what is judged."""
    s = small()
    bare, transfer = (s.row(name) for name in ("undefended", "transfer"))
    ids, images, labels = s.data.ids[:3], s.data.images[:3], s.data.labels[:3]
    streams = Streams(s.seed)
    a, b = (
        row.attack(row.attacked, images, labels, init=streams.init(ids), eot=streams.eot(ids))
        for row in (bare, transfer)
    )
    assert torch.equal(a.images, b.images)
    assert transfer.evaluated is s.defence
    assert transfer.attacked.purifier is None


def test_a_second_run_does_nothing_and_changes_nothing(finished: RunDirectory) -> None:
    before, done = contents(finished.path), []
    run(small(), finished.path, command="depura run x", on_unit=done.append)
    assert not done
    assert contents(finished.path) == before


@pytest.mark.slow
def test_missing_units_alone_are_made_again_and_are_the_same(finished: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory.create(tmp_path / "b", finished.header)
    keep = {entry.unit for entry in finished.header.units if "00000-00003" in entry.unit and entry.row != "adaptive"}
    keep |= {"undefended_eps0.1_00003-00004", "reference_eps0.2_00003-00006", "adaptive_eps0.1_00000-00003"}
    for name in keep:
        copy.commit(finished.load(name))
    done: list[UnitKey] = []
    run(small(), copy.path, command="depura run x", on_unit=done.append)
    assert {key.name for key in done} == {entry.unit for entry in finished.header.units} - keep
    assert contents(copy.path) == contents(finished.path)


@pytest.mark.slow
def test_two_shards_into_one_folder_make_the_whole(finished: RunDirectory, tmp_path: Path) -> None:
    """The second first; test_zoo.py has three, and test_interruptions.py has them in processes of their own."""
    for k, index in enumerate((1, 0)):
        part = run(small(), tmp_path / "b", command="depura run x", shard=Shard(index, 2))
        assert summarise(part).complete == (k == 1)
    for directory in (finished.path, tmp_path / "b"):
        page.write_reports(RunDirectory.open(directory))
    assert contents(tmp_path / "b") == contents(finished.path)


def test_a_unit_does_not_depend_on_the_units_before_it(finished: RunDirectory) -> None:
    key = next(k for k in small().units() if k.name == "bpda_eps0.2_00003-00006")
    alone, recorded = run_unit(small(), key), finished.load(key.name)
    assert alone.facts == recorded.facts
    assert all(np.array_equal(alone.arrays[k], recorded.arrays[k]) for k in recorded.arrays)


@pytest.mark.parametrize(
    "change", [{"eps": 0.15}, {"seed": 1}, {"t_star": 0.1}, {"images": 5}, {"eot": 3}, {"report_draws": 9}]
)
def test_a_folder_of_another_study_is_refused(finished: RunDirectory, change: dict[str, object]) -> None:
    before = contents(finished.path)
    with pytest.raises(RecordError, match="got another one"):
        run(small(**change), finished.path)
    assert contents(finished.path) == before


def test_a_damaged_unit_is_found_before_work_begins(finished: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory.create(tmp_path / "b", finished.header)
    name = "bpda_eps0.2_00003-00006"
    copy.file(name).write_bytes(finished.file(name).read_bytes()[:100])
    with pytest.raises(RecordError, match=name):
        missing(small(), copy)


def test_an_attack_that_leaves_the_range_of_images_is_refused(tmp_path: Path) -> None:
    class Outside(depura.PGD):
        def __call__(self, model, images, labels, **noise):  # type: ignore[no-untyped-def]
            found = super().__call__(model, images, labels, **noise)
            return found._replace(images=found.images + 0.5)

    s = small()
    cheat = replace(s, rows=tuple(replace(r, attack=Outside(r.attack.ball, n_steps=1)) for r in s.rows))
    with pytest.raises(depura.InputError, match="candidates in"):
        run(cheat, tmp_path / "b")


def test_the_plan_counts_exactly_what_is_evaluated(finished: RunDirectory) -> None:
    counted: dict[tuple[str, float], list[int]] = {}
    for unit in finished.units():
        if unit.facts.row == "audit":
            continue
        total = counted.setdefault((unit.facts.row, unit.facts.eps), [0, 0])
        done = unit.facts.evaluations
        for part in (done.attack, done.score, done.checks):
            total[0] += part[0]
            total[1] += part[1]
    planned = {(p.row, p.eps): [p.forward, p.backward] for p in depura.plan(small())}
    assert planned == counted
    # 6 images, 2 draws; 3 attack steps and one comparison through 2 steps each, and the surrogate's single step.
    facts = [unit.facts for unit in finished.units()]
    looked = sum(f.evaluations.checks[1] for f in facts if (f.row, f.eps) == ("adaptive", 0.2))
    assert counted["adaptive", 0.2][1] - looked == 6 * 2 * ((3 + 1) * 2 + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": ()},
        {"report_draws": 0},
        {"select_draws": 0},
        {"seed": -1},
        {"unit_images": 0},
        {"curve_images": 0},
        {"curve_eps": (0.1, -0.1)},
        {"curve_eps": (0.1, 0.2)},
        {"curve_eps": (0.1, 0.1 + 1e-9)},
        {"pictures": -1},
        {"memory": 0},
    ],
    ids=str,
)
def test_an_unusable_study_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(depura.InputError, match="Study"):
        replace(small(), **changes)


def test_rows_are_named_by_what_is_differentiated() -> None:
    """The mode is read off the defences: an approximate gradient cannot be called exact."""
    study = small()
    defence, adaptive = study.defence, study.row("adaptive")
    assert [row.mode.value for row in study.rows] == ["exact", "transfer", "exact", "bpda"]
    steps = defence.purifier.steps
    modes = {
        "surrogate": defence.with_(steps=depura.coarser(steps, 1)),
        "adjoint": defence.with_(gradient=depura.Adjoint()),
        "grafted": defence.with_(gradient=depura.Grafted()),
        "relaxed": defence.with_(gradient=depura.Relaxed()),
        "exact": defence.with_(gradient=depura.Direct()),
    }
    for mode, against in modes.items():
        assert replace(adaptive, attacked=against).mode == mode
    resized = defence.with_(purifier=depura.Resized(defence.purifier, size=8))
    assert replace(adaptive, attacked=resized, evaluated=resized.with_(clamp=False)).mode == "exact"
    assert replace(adaptive, attacked=resized).mode == "surrogate"
    assert replace(adaptive, attack=depura.CleanImages(study.ball)).mode == "none"
    assert replace(adaptive, attack=depura.Square(study.ball)).mode == "none"


def other_weights(module: torch.nn.Module) -> torch.nn.Module:
    """With one weight a little larger."""
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3
    return module


ANOTHER = {
    "the same weights": (lambda d: d.with_(classifier=depura.digits_classifier()), "exact", "adaptive"),
    "the same denoiser": (lambda d: d.with_(denoiser=depura.digits_denoiser()), "exact", "adaptive"),
    "other classifier weights": (
        lambda d: d.with_(classifier=other_weights(depura.digits_classifier())), "transfer", "transfer",
    ),
    "other denoiser weights": (
        lambda d: d.with_(denoiser=other_weights(depura.digits_denoiser())), "transfer", "transfer",
    ),
    "another rule": (lambda d: d.with_(rule=depura.Vote(3)), "transfer", "transfer"),
    "no purifier": (lambda d: d.with_(purifier=None), "transfer", "transfer"),
    "fewer steps": (lambda d: d.coarser(2), "surrogate", "surrogate"),
    "BPDA": (lambda d: d.with_(gradient=depura.StraightThrough()), "bpda", "bpda"),
    "smooth stand-ins": (lambda d: d.with_(gradient=depura.Relaxed()), "relaxed", "relaxed"),
}  # fmt: skip


@pytest.mark.parametrize("what", ANOTHER)
def test_a_row_that_is_called_adaptive_is_what_the_two_defences_make_it(what: str) -> None:
    """DiffusionPurifier, classifier weights and rule are compared: an attack on something else is no adaptive one."""
    change, mode, kind = ANOTHER[what]
    row = small().row("adaptive")
    against = change(row.evaluated)
    made = replace(row, attacked=against)
    assert (made.mode, made.true_kind) == (mode, kind)
    square = replace(made, attack=depura.Square(row.attack.ball), kind="black-box")
    assert square.true_kind == ("black-box" if kind in ("adaptive", "bpda", "relaxed") else kind)


def test_guidance_made_by_a_function_is_told_apart() -> None:
    """Two functions of one name may differ in what they hold: they are the same only if they are one object."""

    def guided(strength: float) -> depura.Guidance:
        return lambda at: strength * (at.x_in - at.x0)

    defence = small().defence
    weak, strong = (defence.with_(guidance=guided(strength)) for strength in (0.1, 0.9))
    row = replace(small().row("adaptive"), evaluated=weak, attacked=strong)
    assert row.mode == "surrogate"
    assert replace(row, attacked=weak.with_(gradient=depura.Direct())).mode == "exact"


def test_depuras_own_attack_runs_beside_the_rows() -> None:
    """Through the exact gradient of what is judged, also where the study's own is another one or misleads."""
    study = small()
    bare, own = study.references
    assert (bare.name, bare.kind, bare.mode, study.n_images(bare)) == ("reference-bare", "reference", "none", 6)
    assert bare.evaluated is study.row("undefended").evaluated
    assert (own.name, own.kind, own.mode, study.n_images(own)) == ("reference", "reference", "exact", 6)
    assert own.evaluated is study.defence
    assert [key.eps for key in study.units() if key.row == "reference"] == [0.2, 0.2]
    assert not replace(study, reference=False).references

    by_bpda = replace(study, defence=study.defence.with_(gradient=depura.StraightThrough()))
    assert by_bpda.references[-1].attacked.mode == "exact"

    class Counted:
        n_draws = 3

        def scores(self, logits: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits).mean(1)

    counting = study.defence.with_(rule=Counted())
    through = replace(study, defence=counting).references[-1]
    assert through.evaluated is counting
    assert through.attacked.rule == depura.MeanProb(3)
    assert [row.method for row in comparison().references] == ["", "plain", "by-sign", "bare"]


def test_an_image_that_is_there_twice_is_refused() -> None:
    s = small()
    data = s.data._replace(images=s.data.images[[0, 1, 2, 3, 1, 5]])
    ids = s.data.ids
    with pytest.raises(depura.InputError, match=f"distinct images, got copies: image {ids[4]} is {ids[1]} again"):
        replace(s, data=data)


def test_a_classifier_of_too_few_classes_is_refused_before_anything_runs(tmp_path: Path) -> None:
    s = small()
    few = depura.Defence(s.defence.purifier, lambda images: s.defence.classifier(images)[:, :7])
    attack = s.row("adaptive").attack
    wrong = replace(s, defence=few, rows=depura.attack_suite(few, attack))
    with pytest.raises(depura.InputError, match="at least the 10 classes of digits-test, got one with 7 logits"):
        run(wrong, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_classes_that_have_no_name_are_numbers(tmp_path: Path) -> None:
    """A classifier that knows more than the data: what it says is right or wrong all the same."""
    s = small()
    more = lambda images: torch.cat([s.defence.classifier(images), torch.full((len(images), 3), 40.0)], dim=1)  # noqa: E731
    wide = depura.Defence(s.defence.purifier, more)
    attack = s.row("adaptive").attack
    rows = depura.attack_suite(wide, attack)
    made = replace(s, data=s.data.first(2), defence=wide, rows=rows, curve_eps=(), pictures=2, reference=False)
    directory = run(made, tmp_path / "r", despite_audit=True)
    assert directory.header.data.outputs == 13
    summary, written = page.write_reports(directory)
    assert {name for picture in summary.pictures for name, _ in picture.votes} == {"class 10"}
    assert all("class 10" in file.read_text() for file in written)


def test_an_attack_that_cannot_be_called_is_refused_in_a_sentence() -> None:
    """Such as one that was written for the keyword of before."""

    class Older:
        ball = depura.Ball("linf", 0.1)

        def __call__(self, model, images, labels, *, init=None, eot=None, rows=None, told=None):  # type: ignore[no-untyped-def]
            raise AssertionError

    defence = depura.Defence(None, depura.digits_classifier())
    with pytest.raises(depura.InputError, match=r"row 'a': expected an attack .*progress=, got Older, which takes no"):
        depura.AttackRun("a", "b", Older(), defence, defence)  # type: ignore[arg-type]


def test_a_suite_needs_a_purifier() -> None:
    bare = depura.Defence(None, depura.digits_classifier())
    with pytest.raises(depura.InputError, match="attack_suite"):
        depura.attack_suite(bare, depura.PGD(depura.Ball("linf", 0.1)))


@pytest.mark.slow
def test_a_study_may_do_without_pictures(tmp_path: Path) -> None:
    directory = run(replace(small(images=2), pictures=0, curve_eps=()), tmp_path / "r", command="x")
    summary, written = page.write_reports(directory)
    assert summary.complete
    assert not summary.pictures
    assert all(file.exists() for file in written)


# Several methods in one study.


def by_sign(at: depura.State) -> torch.Tensor:
    """Guidance whose exact gradient is zero wherever it has one."""
    return -0.4 * (at.x0 - at.x_in).sign()


def comparison() -> depura.Study:
    """Two purifications on a closed-form denoiser, one of them masked, and the classifier alone as a baseline."""
    known = depura.load_digits("train").first(40).images * 2 - 1
    plain = digits_purifier(n_steps=2).with_(denoiser=depura.empirical_denoiser(known))
    masked = plain.with_(start=depura.from_noise, guidance=by_sign)
    classifier = depura.digits_classifier()
    ours = depura.Defence(plain, classifier, rule=depura.Vote(3))
    sign, bare = depura.Defence(masked, classifier), depura.Defence(None, classifier)
    attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=2, eot=2)
    rows = (
        *depura.attack_suite(ours, attack, method="plain"),
        *depura.attack_suite(sign, attack, method="by-sign", relaxed=0.2, without=("undefended", "transfer")),
        *depura.bare_suite(bare, attack, method="bare"),
    )
    return depura.Study(
        name="three",
        data=depura.load_digits("test").first(6),
        defence=ours,
        rows=rows,
        select_draws=4,
        report_draws=6,
        unit_images=4,
        curve_eps=(0.1,),
        curve_images=3,
        pictures=1,
        baselines=("bare",),
        notes={"by-sign": "a toy"},
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(comparison(), tmp_path_factory.mktemp("run") / "c", command="depura run x")


@pytest.mark.slow
def test_a_comparison_says_of_every_row_what_it_is(compared: RunDirectory) -> None:
    rows = [(r.name, r.kind, r.method, r.mode, r.judged, r.null) for r in compared.header.rows]
    assert len({name for name, *_ in rows}) == len(rows)
    (alone,) = [row for row in rows if row[1:3] == ("reference", "")]
    assert alone[3:] == ("none", "bare", "null-plain-undefended")
    assert [row for row in rows if row is not alone] == [
        ("plain-undefended", "undefended", "", "exact", "bare", "null-plain-undefended"),
        ("plain-transfer", "transfer", "plain", "transfer", "defence", "null-plain-transfer"),
        ("plain-adaptive", "adaptive", "plain", "exact", "defence", "null-plain-transfer"),
        ("plain-bpda", "bpda", "plain", "bpda", "defence", "null-plain-transfer"),
        ("by-sign-adaptive", "adaptive", "by-sign", "exact", "defence", "null-by-sign-adaptive"),
        ("by-sign-relaxed", "relaxed", "by-sign", "relaxed", "defence", "null-by-sign-adaptive"),
        ("by-sign-bpda", "bpda", "by-sign", "bpda", "defence", "null-by-sign-adaptive"),
        ("bare-adaptive", "adaptive", "bare", "exact", "defence", "null-bare-adaptive"),
        ("plain-reference", "reference", "plain", "exact", "defence", "null-plain-transfer"),
        ("by-sign-reference", "reference", "by-sign", "exact", "defence", "null-by-sign-adaptive"),
        ("bare-reference", "reference", "bare", "exact", "defence", "null-bare-adaptive"),
    ]
    methods = compared.header.methods
    assert [(m.name, m.baseline, m.note) for m in methods] == [
        ("plain", False, ""),
        ("by-sign", False, "a toy"),
        ("bare", True, ""),
    ]
    assert methods[1].part("purifier")["guidance"].endswith("by_sign")
    assert methods[0].rule["n_draws"] == 3
    assert methods[2].is_bare


def test_a_comparison_ranks_its_methods(compared: RunDirectory) -> None:
    summary, written = page.write_reports(compared)
    assert summary.ranking is not None
    entries = {entry.method: entry for entry in summary.ranking.all}
    assert {name: entry.nfe for name, entry in entries.items()} == {"plain": 3 * 2, "by-sign": 2, "bare": 0}
    assert entries["bare"].strongest.single.value == min(e.strongest.single.value for e in entries.values())
    assert entries["by-sign"].masked == {"adaptive"}
    gradients = next(v for v in summary.verdicts if (v.id, v.method) == ("V12", "by-sign"))
    assert "by-sign-adaptive 100.0 %" in gradients.sentence
    assert "masked gradient" in summary.flags_of("by-sign")
    assert len(summary.verdicts) == len(CHECKS) * 3
    assert {name: len(points) for name, points in summary.curve.items()} == {"plain": 2, "by-sign": 2, "bare": 2}
    # Of each purification up to 2 of the worst images and up to 2 lucky ones; a bare classifier has no walk to show.
    pictured = [(p.row.partition("-adaptive")[0].partition("-transfer")[0].partition("-bpda")[0], p.lucky, p.image)
                for p in summary.pictures]  # fmt: skip
    assert len({(method, image) for method, _, image in pictured}) == len(pictured)
    worst = [method for method, lucky, _ in pictured if not lucky]
    assert set(worst) == {"plain", "by-sign"}
    assert max(map(worst.count, worst)) <= 2
    assert [lucky for _, lucky, _ in pictured] == sorted(lucky for _, lucky, _ in pictured)
    for file in written:
        text = file.read_text()
        assert summary.headline in text
        assert "bare (baseline)" in text


def test_the_strongest_attack_is_found_from_the_records_of_a_method_alone(compared: RunDirectory) -> None:
    """Worked out again, image by image, for the method with three rows."""
    ranking = summarise(compared).ranking
    assert ranking is not None
    parts = ("00000-00004", "00004-00006")
    images: dict[int, list[tuple[int, float, float]]] = {}
    for kind in ("transfer", "adaptive", "bpda"):
        for unit in (compared.load(f"plain-{kind}_eps0.2_{part}").arrays for part in parts):
            right = (unit["predictions"] == unit["labels"][:, None]).mean(1)
            for k, image in enumerate(unit["ids"]):
                wrong = unit["select_errors"][k, unit["chosen"][k]]
                images.setdefault(int(image), []).append((wrong, unit["select_margins"][k], right[k]))
    expected = np.mean([max(tried)[2] for tried in images.values()])
    (plain,) = (entry for entry in ranking.all if entry.method == "plain")
    assert plain.strongest.single.value == pytest.approx(expected)


def test_the_plan_of_a_comparison_counts_exactly(compared: RunDirectory) -> None:
    counted: dict[tuple[str, float], list[int]] = {}
    for unit in compared.units():
        if unit.facts.row.startswith("audit"):
            continue
        total = counted.setdefault((unit.facts.row, unit.facts.eps), [0, 0])
        done = unit.facts.evaluations
        for part in (done.attack, done.score, done.checks):
            total[0] += part[0]
            total[1] += part[1]
    planned = {(p.row, p.eps): [p.forward, p.backward] for p in depura.plan(comparison())}
    # The posterior mean over 40 images is almost a step function: at examples, its differences are taken again, finer.
    again = "plain-adaptive", 0.2
    assert {key for key in {*planned, *counted} if planned.get(key) != counted.get(key)} == {again}
    assert planned[again][0] < counted[again][0]
    assert planned[again][1] == counted[again][1]


def test_the_relaxed_row_differentiates_the_same_walk() -> None:
    row = comparison().row("by-sign-relaxed")
    assert row.attacked.purifier.gradient == depura.Relaxed(0.2)
    assert row.attacked.purifier.same_function(row.evaluated.purifier)
    assert "relaxed gradient" in row.title
    assert "tau 0.2" in row.title


def test_a_ladder_leaves_out_what_it_is_asked_to() -> None:
    s, attack = comparison(), depura.PGD(depura.Ball("linf", 0.1))
    rows = depura.attack_suite(s.defence, attack, without=("undefended", "bpda"))
    assert [row.name for row in rows] == ["transfer", "adaptive"]
    assert all(row.method == "" for row in rows)
    with pytest.raises(
        depura.InputError, match=r"attack_suite: .*among undefended, transfer, adaptive, bpda, got 'relaxed'"
    ):
        depura.attack_suite(s.defence, attack, without=("relaxed",))
    with pytest.raises(depura.InputError, match="bare_suite: expected a defence without a purifier"):
        depura.bare_suite(s.defence, attack, method="a")
    with pytest.raises(depura.InputError, match="bare_suite: expected the name"):
        depura.bare_suite(s.methods["bare"], attack, method="")


def test_ladders_are_one_after_another_with_the_undefended_row_once() -> None:
    s, ball = comparison(), depura.Ball("linf", 0.1)
    attack, blind = depura.PGD(ball), depura.PGD(ball, n_steps=7)
    purifiers = {name: its.purifier for name, its in s.methods.items() if its.purifier is not None}
    first, second = list(purifiers)[:2]
    purifiers = {name: purifiers[name] for name in (first, second)}
    rows = depura.attack_suites(purifiers, s.defence.classifier, attack, blind=blind, relaxed={second: 0.2})
    expected = [f"{first}-{kind}" for kind in ("undefended", "transfer", "adaptive", "bpda")]
    expected += [f"{second}-{kind}" for kind in ("transfer", "adaptive", "relaxed", "bpda")]
    assert [row.name for row in rows] == expected
    for row in rows[1:]:
        assert row.evaluated.purifier is purifiers[row.method]
        assert row.attack is (blind if row.kind == "transfer" else attack)
    with pytest.raises(depura.InputError, match="attack_suites: expected at least one purifier"):
        depura.attack_suites({}, s.defence.classifier, attack)
    with pytest.raises(depura.InputError, match="attack_suites: expected relaxed for methods among"):
        depura.attack_suites(purifiers, s.defence.classifier, attack, relaxed={"other": 0.2})


def unusable(what: str) -> depura.Study:
    s, attack = comparison(), comparison().row("bare-adaptive").attack
    plain = s.methods["plain"]
    copy = depura.Defence(plain.purifier, plain.classifier, rule=plain.rule)
    if what == "a kind of its own":
        return replace(s, rows=(*s.rows, replace(s.row("plain-bpda"), name="more", kind="strange")))
    changed = {
        "another defence": {"rows": (*s.rows, replace(s.row("plain-bpda"), name="more", evaluated=copy))},
        "a shared defence": {"rows": (*s.rows, replace(s.row("plain-bpda"), name="more", method="twin"))},
        "no method": {"rows": (*s.rows, replace(s.row("plain-bpda"), name="more", method=""))},
        "an unplain name": {"rows": tuple(replace(r, method="my method") if r.method == "bare" else r for r in s.rows)},
        "defence of none": {"defence": copy},
        "unknown baseline": {"baselines": ("plane",)},
        "unknown note": {"notes": {"plane": "x"}},
        "baseline of no comparison": {"rows": depura.attack_suite(s.defence, attack)},
    }[what]
    return replace(s, **changed)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("another defence", "rows of method 'plain' to judge one Defence object, got another in row 'more'"),
        ("a shared defence", "a Defence object of its own for each method, got one for 'plain' and 'twin'"),
        ("no method", "the method of every row that judges a purifier, got none in row 'more'"),
        ("an unplain name", "method names of letters, digits and dashes, got 'my method'"),
        ("a kind of its own", "a kind that is empty or among .*, got 'strange'"),
        ("defence of none", "as defence one of the methods that are judged"),
        ("unknown baseline", r"baselines and notes of its methods \(plain, by-sign, bare\), got 'plane'"),
        ("unknown note", "got 'plane'"),
        ("baseline of no comparison", "as no row has one"),
    ],
)
def test_an_unusable_comparison_is_refused(what: str, said: str) -> None:
    with pytest.raises(depura.InputError, match=said):
        unusable(what)


# Runs as a user has them.


def start(study: Path, out: Path, workers: int, said: Path | None = None, *, forked: bool = False) -> Depura:
    """A run in a process of its own."""
    study.write_text(STUDY, encoding="utf-8")
    return Depura(["run", study, "--out", out, "--workers", workers], study.parent, said=said, forked=forked)


def until_some_are_done(out: Path) -> None:
    """Three units, or as many as there are after two minutes."""
    deadline = time.monotonic() + 120
    while len(units_in(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)


def units_in(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "units").glob("[!.]*.npz")} if out.exists() else {}


def alive(group: int) -> list[int]:
    """Processes of a process group that are not zombies waiting to be reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_and_given_again_a_run_ends_as_if_undisturbed(tmp_path: Path) -> None:
    """Its workers end with it. Workers of killed process groups and shards are in test_interruptions.py."""
    study, out, whole = tmp_path / "study.py", tmp_path / "killed", tmp_path / "whole"
    process = start(study, out, workers=2)
    until_some_are_done(out)
    process.kill()
    deadline = time.monotonic() + 120
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid), "workers outlive a killed run"
    kept = units_in(out)
    assert len(kept) >= 3
    assert not (out / "report.html").exists()

    for folder in (out, whole):
        assert depura_("run", study, "--out", folder, "--workers", 1).exit_code in (0, 1)
    assert {"report.html", "report.md", "study.json"} < set(contents(whole))
    assert len(kept) < len(units_in(whole))
    assert {name: units_in(out)[name] for name in kept} == kept, "a finished unit was made again"
    left_behind = {name: data for name, data in contents(out).items() if not name.endswith(".partial")}
    assert left_behind == contents(whole)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = start(tmp_path / "study.py", out, workers=2, said=tmp_path / "said", forked=True)
    until_some_are_done(out)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "said").read_text()
    assert "What is done is kept" in said
    assert "Traceback" not in said
    assert len(units_in(out)) >= 3
    assert not (out / "report.html").exists()


def test_the_record_says_how_many_rows_were_differentiated_at_once() -> None:
    """As many as fit, and the results do not depend on it."""
    found: dict[int, Any] = {}
    whole = small()
    row = next(row for row in whole.rows if row.name == "adaptive")
    one = bytes_per_row(row.attacked, whole.data.images[:1])
    for n in (1, 3):
        study = replace(whole, memory=n * one + one // 2)
        key = next(key for key in study.units() if key.row == "adaptive")
        unit = run_unit(study, key)
        assert unit.facts.rows_at_once == n
        found[n] = unit.arrays
    assert np.array_equal(found[1]["predictions"], found[3]["predictions"])


CUT = """
import depura


class Detached:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x, sigma):
        return self.inner(x.detach(), sigma)


def study():
    d = depura.digits_denoiser()
    purifiers = {name: depura.diffpure(it, t_star=0.02, n_steps=2) for name, it in (("whole", d), ("cut", Detached(d)))}
    rows = depura.attack_suites(purifiers, depura.digits_classifier(), depura.PGD(depura.Ball("linf", 0.1), n_steps=1))
    return depura.Study(
        name="cut", data=depura.load_digits("test").first(4), defence=rows[1].evaluated, rows=rows, select_draws=1,
        report_draws=2, reference=False,
    )
"""


@pytest.mark.parametrize("workers", [1, slow(2)])
def test_nothing_is_attacked_where_an_audit_is_red(tmp_path: Path, workers: int) -> None:
    """All audits are recorded, whoever computes them, and the run is refused until it is told to go on despite."""
    file, out = tmp_path / "cut.py", tmp_path / "run"
    file.write_text(CUT, encoding="utf-8")
    words = ("run", file, "--out", out, "--yes")
    made = []
    if workers > 1:
        code = Depura([*words, "--workers", workers], tmp_path, said=tmp_path / "said", forked=True).wait()
        made.append((code, (tmp_path / "said").read_text()))
    again = depura_(*words, "--workers", 1)
    made.append((again.exit_code, again.output))
    for code, said in made:
        assert code == 1
        assert "run refused" in said
        assert "audit-cut" in said
        assert sorted(name.split("_")[0] for name in units_in(out)) == ["audit-cut", "audit-whole"]
    assert "No headline" in depura_(*words, "--workers", 1, "--despite-audit").output
    assert len(units_in(out)) > 2
