"""Commands on finished runs that attack nothing: compare, claim, export, replay."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import depura
from depura._check import InputError
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Conclusion, HeadlineStatus
from depura.cli import app, claim
from depura.evaluation.executors import InProcess
from depura.evaluation.header import header
from depura.evaluation.replay import replay
from depura.evaluation.runner import compute
from depura.evaluation.study_file import StudySource
from depura.evaluation.without_images import KEPT, examples_of
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.schema import Header
from depura.reports.export import COLUMNS as EXPORT_COLUMNS
from depura.reports.pictures import CELL, COLUMNS, GAP, image_grid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures", "without_clock")]
STUDY = """
from depura import MeanProb, empirical_denoiser, load_digits
from depura.evaluation.demo import study as demo
from depura.evaluation.study import Study, attack_suite
from depura.attacks.threat import Ball
from depura.attacks.pgd import PGD


def study(*, n_steps: int = 2, votes: int = 1, images: int = 6, seed: int = 0) -> Study:
    small = demo(images=images, attack_steps=2, eot=2, report_draws=6, curve=(0.1,), curve_images=4, n_steps=n_steps)
    defence = small.defence.with_(denoiser=empirical_denoiser(2 * load_digits("train").first(40).images - 1))
    defence = defence if votes == 1 else defence.with_(rule=MeanProb(votes))
    rows = attack_suite(defence, PGD(Ball("linf", 0.2), n_steps=2, eot=2), without=("bpda",))
    return Study(
        name="tiny", data=small.data, defence=defence, rows=rows, seed=seed, report_draws=6, select_draws=2,
        curve_eps=(0.1,), curve_images=4, unit_images=4,
    )
"""


def changed(run: RunDirectory, header: Header) -> RunDirectory:
    """The same folder under another header."""
    return RunDirectory(run.path, header, header.as_json())


class Made:
    """Runs of one study file with different settings, each made once."""

    def __init__(self, folder: Path) -> None:
        self.file, self.folder, self.done = folder / "tiny.py", folder, dict[str, RunDirectory]()
        self.file.write_text(STUDY, encoding="utf-8")

    def run(self, **settings: int) -> RunDirectory:
        name = "-".join(f"{k}-{v}" for k, v in settings.items()) or "plain"
        if name not in self.done:
            source = StudySource(self.file, tuple((k, str(v)) for k, v in settings.items()))
            study = source.load()
            directory = RunDirectory.create(
                self.folder / name, header(study, command="depura run tiny.py --out DIR", source=source)
            )
            compute(study, directory, study.units(), InProcess(study, directory))
            self.done[name] = directory
        return self.done[name]

    def source(self, run: RunDirectory) -> StudySource:
        """Where the study of a run comes from, given and not taken from the record."""
        return StudySource.of(run.header, path=self.file)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("tools"))


def depura_(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def says(result: Result, code: int, *parts: str) -> None:
    text = " ".join((result.stdout + result.stderr).split())
    assert result.exit_code == code, text
    for part in parts:
        assert part in text


def test_compare_two_runs(made: Made) -> None:
    a, b = made.run(), made.run(n_steps=3)
    result = depura_("compare", a.path, b.path)
    says(result, 0, "null", "transfer", "adaptive", "strongest", "corrected by Holm's method for 4 comparisons")
    found = json.loads(depura_("compare", a.path, b.path, "--json").stdout)
    assert [pair["row"] for pair in found["pairs"]] == ["null", "transfer", "adaptive", "strongest"]
    for run, side in ((a, "first"), (b, "second")):
        unit = [run.load(f"adaptive_eps0.2_{k}").arrays for k in ("00000-00004", "00004-00006")]
        right = np.concatenate([(u["predictions"] == u["labels"][:, None]).mean(1) for u in unit])
        assert found["pairs"][2][side]["value"] == pytest.approx(right.mean())
    says(depura_("compare", a.path, a.path), 0, "No detectable difference between A and B")
    other_rule = depura_("compare", a.path, made.run(votes=3).path)
    says(other_rule, 2, "two runs of the same deployed rule, got deployed rule.n_draws 1 in")
    says(depura_("compare", a.path, a.path, "--method-a", "x"), 2, "--method-a", "it has none")


def test_claim_of_a_run(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made.run()
    summary = summarise(run)
    assert summary.strongest is not None
    number = f"the robust accuracy of tiny is at most {100 * summary.strongest.single.value:.1f} %"
    for refused in (False, True):
        status = HeadlineStatus.FAILED if refused else HeadlineStatus.GIVEN
        judged = replace(summary, conclusions=(Conclusion("", status),), headline="No headline: V16.")
        assert judged.refused is refused

        def given(_: RunDirectory, judged: Summary = judged) -> Summary:
            return judged

        monkeypatch.setattr(claim, "summarise", given)
        result = depura_("claim", run.path)
        if refused:
            says(result, 1, "No claim. No headline: V16.")
            assert not result.stdout
        else:
            says(result, 0, number, "@misc{depura", "Not tested:", "- more than 6 images", "- targeted attacks", r"\\")
            says(depura_("claim", run.path, "--method", "x"), 2, "--method: expected a method of the run")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export_reads_back_as_recorded(made: Made, tmp_path: Path, ending: str) -> None:
    run, file = made.run(), tmp_path / f"run.{ending}"
    says(depura_("export", run.path, "--out", file), 0, "42 lines")
    if ending == "csv":
        with file.open(encoding="utf-8", newline="") as handle:
            lines: list[dict[str, Any]] = list(csv.DictReader(handle))
    else:
        lines = pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    assert list(lines[0]) == list(EXPORT_COLUMNS)
    assert len(lines) == 3 * (6 + 4) + 2 * 6  # three rows, on all images and the curve's; depura's own attacks
    for row, eps, unit_name, null in (
        ("adaptive", 0.2, "adaptive_eps0.2_00004-00006", "null-transfer_eps0.2_00004-00006"),
        ("transfer", 0.1, "transfer_eps0.1_00000-00004", "null-transfer_eps0.2_00000-00004"),
    ):
        unit, clean = run.load(unit_name).arrays, run.load(null).arrays
        for i, image in enumerate(unit["ids"]):
            (line,) = (x for x in lines if (x["row"], float(x["eps"]), int(x["image"])) == (row, eps, image))
            label, drawn = unit["labels"][i], unit["predictions"][i]
            assert int(line["label"]) == label
            assert (int(line["errors"]), int(line["draws"])) == (sum(drawn != label), 6)
            assert float(line["error_rate"]) == sum(drawn != label) / 6
            assert int(line["null_errors"]) == sum(clean["predictions"][i] != label)
            assert float(line["margin"]) == unit["margins"][i]  # to the last bit
            assert float(line["distance"]) == unit["distance"][i]
            assert int(line["select_errors"]) == unit["select_errors"][i][unit["chosen"][i]]
            assert int(line["rounded_errors"]) == sum(unit["rounded_predictions"][i] != label)
            assert (int(line["gradients"]), int(line["forwards"])) == tuple(unit["spent"][i])
            assert {int(p.split(":")[0]): int(p.split(":")[1]) for p in line["predicted"].split()} == {
                int(k): int((drawn == k).sum()) for k in np.unique(drawn)
            }
            random = sum(clean["random_predictions"][i] != label) if eps == 0.2 else None
            assert line["random_errors"] == (random if ending == "parquet" else "" if random is None else str(random))


def test_export_says_what_it_takes(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made.run()
    says(depura_("export", run.path, "--out", tmp_path / "run.xlsx"), 2, "ending in .csv or .parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    says(depura_("export", run.path, "--out", tmp_path / "run.parquet"), 2, 'pip install "depura[data]"')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{}, {"votes": 3}])
def test_every_recorded_decision_is_made_again(made: Made, settings: dict[str, int]) -> None:
    run = made.run(**settings)
    predicted = set()
    for name in ("adaptive_eps0.2_00000-00004", "transfer_eps0.2_00004-00006"):
        unit = run.load(name)
        for i, image in enumerate(unit.arrays["ids"][:2]):
            for draw in (0, 5):
                found = replay(run, image=int(image), draw=draw, row=unit.facts.row, source=made.source(run))
                assert found.recorded == unit.arrays["predictions"][i, draw]
                assert found.agrees
                assert len(found.seen) == settings.get("votes", 1)
                predicted.add(found.predicted)
    assert len(predicted) > 1


def test_a_replay_is_the_walk_of_the_purifier(made: Made) -> None:
    """From the address of the noise written out: a draw d of a rule of three purifications is draws 3 d to 3 d + 2."""
    run = made.run(votes=3)
    unit = run.load("adaptive_eps0.2_00000-00004")
    x = torch.from_numpy(unit.arrays["adversarial"][1:2])
    found = replay(run, image=int(unit.arrays["ids"][1]), draw=4, walk=2, source=made.source(run))
    defence = made.source(run).load().defence
    assert defence.purifier is not None
    noise = depura.Noise(0, (found.image,), draws=14, stream=depura.Stream.REPORT)
    assert torch.equal(found.purified, defence.purifier(x, noise)[0])
    assert torch.equal(found.given, x[0])
    assert len(found.frames) == 2
    moments = list(defence.purifier.trajectory(x, noise))
    for frame, moment in zip(found.frames, moments, strict=True):
        assert torch.allclose(2 * frame.estimate - 1, moment.x0[0], atol=1e-6)
        assert torch.allclose((2 * frame.state - 1) * (1 + frame.sigma**2) ** 0.5, moment.x[0], atol=1e-5)
    alone = [depura.Noise(0, (found.image,), draws=d, stream=depura.Stream.REPORT) for d in (12, 13, 14)]
    logits = torch.cat([defence.classifier(defence.purifier(x, each)) for each in alone])
    assert found.seen == tuple(logits.argmax(1).tolist())
    assert found.predicted == int(logits.softmax(1).mean(0).argmax())


def test_a_clean_image_meets_the_same_noise(made: Made) -> None:
    run = made.run()
    image = run.header.data.ids[2]
    found = replay(run, image=image, draw=1, clean=True, source=made.source(run))
    assert found.recorded is None
    assert found.agrees
    assert torch.equal(found.given, found.original)
    data = made.source(run).load().data
    assert torch.equal(found.original, data.images[2])
    attacked = replay(run, image=image, draw=1, source=made.source(run))
    # The first state is signal and noise: under the same noise it differs by the scaled perturbation alone.
    scale = (1 + found.frames[0].sigma ** 2) ** -0.5
    apart = attacked.frames[0].state - found.frames[0].state
    assert torch.allclose(apart, scale * (attacked.given - found.given), atol=1e-6)
    assert float(apart.abs().max()) > 0.1


def test_replay_names_what_there_is(made: Made) -> None:
    run = made.run()
    ids = run.header.data.ids
    for asked, said in (
        (
            {"image": 999},
            rf"id of an image of row adaptive at eps 0.2 \({', '.join(map(str, ids))}\)",
        ),
        ({"image": ids[5], "eps": 0.1}, r"at eps 0\.1 \(\d+, \d+, \d+, \d+\)"),
        ({"image": ids[0], "eps": 0.3}, r"--eps: expected a radius of row adaptive \(0\.1, 0\.2\), got 0\.3"),
        ({"image": ids[0], "draw": 6}, "draw from 0 to 5, got 6"),
        ({"image": ids[0], "walk": 1}, "walk from 0 to 0, got 1"),
        (
            {"image": ids[0], "row": "x"},
            r"a row that judges a purifier \(transfer, adaptive, reference\), got 'x'",
        ),
        ({"image": ids[0], "row": "undefended"}, "'undefended', which judges a bare classifier"),
    ):
        with pytest.raises(InputError, match=said):
            replay(run, **asked, source=made.source(run))  # type: ignore[arg-type]


def test_replay_refuses_another_study(made: Made, tmp_path: Path) -> None:
    run = made.run()
    other = tmp_path / "other.py"
    other.write_text(STUDY.replace("seed: int = 0", "seed: int = 5"), encoding="utf-8")
    image = run.header.data.ids[0]
    with pytest.raises(RecordError, match=r"seed is 0 there and 5 here\)\. Give the file as it was with --study"):
        replay(run, image=image, source=StudySource.of(run.header, path=other))
    versions = {**run.header.versions, "torch": "1"}
    other_code = changed(run, run.header.model_copy(update={"code": "0", "versions": versions}))
    with pytest.raises(RecordError, match="got that of another one"):  # a unit knows the code that made it
        replay(other_code, image=image, source=made.source(run))
    with pytest.raises(InputError, match="which was not run, since a study is code"):
        replay(run, image=image)
    from_python = changed(run, run.header.model_copy(update={"source": None}))
    with pytest.raises(InputError, match="a run of a study file, got one made from Python"):
        replay(from_python, image=image)


def test_replay_tells_a_decision_that_is_not_on_record(made: Made, tmp_path: Path) -> None:
    """An edited record, with a digest of its own, is not what the defence says; the machine is told apart from it."""
    run = made.run()
    copy = RunDirectory.create(tmp_path / "copy", run.header.model_copy(update={"code": "00"}))
    name = "adaptive_eps0.2_00000-00004"
    unit = run.load(name)
    wrong = (unit.arrays["predictions"] + 1) % 10
    copy.commit(Unit({**unit.arrays, "predictions": wrong}, unit.facts))
    image = int(unit.arrays["ids"][0])
    result = depura_("replay", copy.path, "--study", made.file, "--image", image, "--out", tmp_path / "out")
    says(result, 1, "note Not as recorded: code is", "not the same", "Not the decision on record")


def test_replay_writes_an_image_grid(made: Made, tmp_path: Path) -> None:
    run = made.run(votes=3)
    image = run.header.data.ids[0]
    result = depura_("replay", run.path, "--study", made.file, "--image", image, "--draw", 2, "--out", tmp_path)
    says(result, 0, f"image {image}, class 1, attacked; row adaptive, draw 2 of 6, purification 0 of 3", "the same")
    stem = f"adaptive-image-{image}-draw-2"
    found = replay(run, image=image, draw=2, source=made.source(run))
    with Image.open(tmp_path / f"{stem}.png") as picture:
        pixels = np.asarray(picture)
    cell = CELL + GAP
    assert pixels.shape == (2 * cell + 2 * GAP, (2 + len(found.frames)) * cell)
    expected = [(found.original, found.given), *[f[2:] for f in found.frames], (found.purified, found.purified)]
    for k, pair in enumerate(expected):
        for line, image_ in enumerate(pair):
            block = pixels[line * cell : line * cell + CELL, k * cell : k * cell + CELL]
            assert np.array_equal(block[4::8, 4::8], (255 * image_[0].clamp(0, 1)).round().numpy().astype(np.uint8))


def test_many_steps_wrap_into_lines() -> None:
    columns = [
        (np.full((3, 70, 70), k, dtype=np.uint8), np.full((3, 70, 70), 0, dtype=np.uint8)) for k in range(COLUMNS + 1)
    ]
    with Image.open(io.BytesIO(image_grid(columns))) as picture:
        pixels = np.asarray(picture)
    side = 70 + GAP
    assert pixels.shape == (2 * (2 * side + 2 * GAP), COLUMNS * side, 3)
    assert pixels[2 * side + 2 * GAP, 0, 0] == COLUMNS  # the first of the second line


def test_replays_in_the_folder_of_a_run_do_not_disturb_it(made: Made) -> None:
    run = made.run()
    image = run.header.data.ids[0]
    says(depura_("replay", run.path, "--study", made.file, "--image", image), 0, f"{run.path}{os.sep}replay")
    assert not run.foreign()
    study = made.source(run).load()
    again = RunDirectory.create(run.path, header(study, command=run.header.command))
    assert again.header == run.header


def published(made: Made, to: Path) -> RunDirectory:
    says(depura_("publish", made.run().path, "--study", made.file, "--out", to), 0, "no image in it")
    return RunDirectory.open(to)


def test_a_published_record_has_no_image_and_gives_every_example_back_to_the_bit(made: Made, tmp_path: Path) -> None:
    run, copy = made.run(), published(made, tmp_path / "copy")
    study, images, pictures = StudySource(made.file).load(), 0, 0
    assert [unit.facts.unit for unit in copy.units()] == [unit.facts.unit for unit in run.units()]
    for unit, left in zip(run.units(), copy.units(), strict=True):
        for name, array in left.arrays.items():
            assert name == KEPT or np.array_equal(array, unit.arrays[name], equal_nan=array.dtype.kind == "f")
            assert array.shape[1:] != study.data.images.shape[1:] or array.dtype == np.int32
        gone = set(unit.arrays) - set(left.arrays)
        assert gone <= {"adversarial", "picture_rows", "picture_frames", "picture_titles"}
        assert not {"adversarial", "picture_frames"} & set(left.arrays)
        pictures += "picture_frames" in gone
        if "adversarial" in unit.arrays:
            images += 1
            assert np.array_equal(examples_of(left, study).numpy(), unit.arrays["adversarial"])
            assert np.array_equal(examples_of(unit, study).numpy(), unit.arrays["adversarial"])
            clean = study.data.images[unit.facts.first : unit.facts.last].numpy()
            same = unit.arrays["adversarial"] == clean
            assert np.array_equal(left.arrays[KEPT] == 0, same)
    assert images > 4
    assert pictures > 1


def test_a_published_record_is_verified_replayed_and_rescored_like_the_run(made: Made, tmp_path: Path) -> None:
    run, copy = made.run(), published(made, tmp_path / "copy")
    result = depura_("verify", copy.path, "--study", made.file, "--share", 1)
    says(result, 0, "The record holds")
    assert "not run" not in result.output
    a, b = (
        replay(directory, image=run.header.data.ids[0], draw=1, row="adaptive", source=made.source(run))
        for directory in (run, copy)
    )
    assert torch.equal(a.given, b.given)
    assert a.predicted == b.predicted
    for directory, name in ((run, "a"), (copy, "b")):
        words = ("--study", made.file, "--rule", "vote", "--k", 3, "--out", tmp_path / name)
        says(depura_("rescore", directory.path, *words), 1, "no attack here was adapted to the rule that is judged")
    for unit in RunDirectory.open(tmp_path / "a").units():
        again = RunDirectory.open(tmp_path / "b").load(unit.facts.unit)
        if "predictions" in unit.arrays:
            assert np.array_equal(unit.arrays["predictions"], again.arrays["predictions"])


def test_a_published_record_that_was_edited_does_not_hold(made: Made, tmp_path: Path) -> None:
    copy = published(made, tmp_path / "copy")
    unit = next(unit for unit in copy.units() if KEPT in unit.arrays)
    far = unit.arrays[KEPT].copy()
    far.flat[3] += 2**26
    copy.commit(Unit({**unit.arrays, KEPT: far}, unit.facts))
    says(depura_("verify", copy.path, "--study", made.file), 1, "bounds", "FAIL")


def test_what_cannot_be_published_or_extended(made: Made, tmp_path: Path) -> None:
    copy = published(made, tmp_path / "copy")
    says(depura_("publish", copy.path, "--out", tmp_path / "again"), 2, "run with its images")
    says(depura_("extend", copy.path, "--study", made.file, "-S", "images=8"), 2, "published without")
    part = RunDirectory.create(tmp_path / "part", made.run().header)
    says(depura_("publish", part.path, "--study", made.file, "--out", tmp_path / "third"), 2, "complete run")
