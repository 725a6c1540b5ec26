"""Commands on a finished run: verify, rescore, extend. What was recorded is sound, or the fault is named."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import depura
from depura.cli import app
from depura.evaluation.demo import study
from depura.evaluation.extending import extended
from depura.evaluation.study_file import StudySource
from depura.evaluation.units import run_unit
from depura.records.directory import RecordError, RunDirectory, Unit
from processes import Depura

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures", "without_clock")]
TINY = ("images=4", "attack_steps=2", "eot=1", "report_draws=16", "curve=0.1", "n_steps=2")
SETTINGS = [word for text in TINY for word in ("-S", text)]
ADAPTIVE = "adaptive_eps0.2_00000-00004"


JUDGED = (0, 1)
"""Exit codes of what was run and reported to the end: runs as small as these fail some checks."""


def depura_(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again") / "run"
    result = depura_("demo", "--out", folder, "--workers", 1, *SETTINGS)
    assert result.exit_code in JUDGED, result.output
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def verdicts(result: Result, status: str) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith(status)]


def edit(run: Path, name: str, **arrays: np.ndarray) -> None:
    """Change a unit as one would who knows how digests are made."""
    directory = RunDirectory.open(run)
    unit = directory.load(name)
    directory.commit(Unit({**unit.arrays, **arrays}, unit.facts))


# verify


def test_a_sound_record_holds_and_is_left_as_it_is(run: Path) -> None:
    before = contents(run)
    result = depura_("verify", run)
    assert result.exit_code == 0, result.output
    assert "The record holds" in result.output
    assert not verdicts(result, "FAIL") + verdicts(result, "WARN")
    rescored = [line for line in verdicts(result, "PASS") if "rescore, " in line]
    assert [line.split("rescore, ")[1].split(":")[0] for line in rescored] == [
        "undefended",
        "transfer",
        "adaptive",
        "bpda",
        "reference-bare",
        "reference",
        "null-undefended",
        "null-transfer",
    ], "what is attacked is scored first"
    assert [line for line in verdicts(result, "PASS") if f"{ADAPTIVE}: made again, equal bytes" in line]
    assert contents(run) == before


def test_an_unfinished_run_is_no_wrong_one(run: Path) -> None:
    n = len(RunDirectory.open(run).header.units)
    (run / "units" / f"{ADAPTIVE}.npz").unlink()
    assert depura_("report", run).exit_code in JUDGED
    result = depura_("verify", run)
    assert result.exit_code == 0, result.output
    assert any(f"{n - 1} of {n} units" in line for line in verdicts(result, "WARN"))


def flipped(data: bytes) -> bytes:
    """With another bit in the middle of the largest array. (In a date of the archive it would change nothing.)"""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.compress_size)
    lengths = struct.unpack("<HH", data[largest.header_offset + 26 : largest.header_offset + 30])
    at = largest.header_offset + 30 + sum(lengths) + largest.compress_size // 2
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data[: len(data) // 2], lambda data: b""], ids=["flipped", "halved", "emptied"]
)
def test_a_damaged_unit_is_named_and_nothing_else_is_lost(run: Path, damage: object) -> None:
    file = run / "units" / f"{ADAPTIVE}.npz"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))  # type: ignore[operator]
    before = contents(run)
    refused = {
        "verify": depura_("verify", run),
        "report": depura_("report", run),
        "demo": depura_("demo", "--out", run, "--workers", 1, *SETTINGS),
    }
    assert {name: result.exit_code for name, result in refused.items()} == {"verify": 1, "report": 2, "demo": 2}
    for result in refused.values():
        assert ADAPTIVE in result.output.replace("\n", "")
    assert contents(run) == before
    file.unlink()
    assert depura_("demo", "--out", run, "--workers", 1, *SETTINGS).exit_code in JUDGED
    assert file.read_bytes() == whole


def test_a_unit_of_another_study_under_the_right_name_is_refused(run: Path, tmp_path: Path) -> None:
    other = [word.replace("attack_steps=2", "attack_steps=3") for word in SETTINGS]
    assert depura_("demo", "--out", tmp_path / "other", "--workers", 1, *other).exit_code in JUDGED
    shutil.copy(tmp_path / "other" / "units" / f"{ADAPTIVE}.npz", run / "units" / f"{ADAPTIVE}.npz")
    for command, code in (("verify", 1), ("report", 2)):
        result = depura_(command, run)
        assert result.exit_code == code
        assert "of another one" in result.output.replace("\n", " ")


def test_a_foreign_file_is_named(run: Path) -> None:
    shutil.copy(run / "units" / f"{ADAPTIVE}.npz", run / "units" / "strange.npz")
    result = depura_("verify", run)
    assert result.exit_code == 1
    assert "strange.npz" in verdicts(result, "FAIL")[0]


def test_a_stale_report_is_named(run: Path) -> None:
    file = run / "report.md"
    file.write_text(file.read_text().replace(" %", "0 %"))
    result = depura_("verify", run)
    assert result.exit_code == 1
    assert "report.md stale" in verdicts(result, "FAIL")[0]
    assert len(verdicts(result, "FAIL")) == 1
    assert depura_("report", run).exit_code in JUDGED
    assert depura_("verify", run).exit_code == 0


def test_other_weights_fail_and_other_code_warns(run: Path) -> None:
    file = run / "study.json"
    header = json.loads(file.read_text())
    network = header["methods"][0]["defence"]["classifier"]
    assert len(network["weights_sha256"]) == 64
    network["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(header))
    for unit in (run / "units").iterdir():
        unit.unlink()
    result = depura_("verify", run)
    assert result.exit_code == 1
    assert any("hash, defence" in line and "weights_sha256" in line for line in verdicts(result, "FAIL"))
    assert any("rescore" in line for line in verdicts(result, "not run"))


def test_other_code_is_a_warning(finished: Path, tmp_path: Path) -> None:
    old = RunDirectory.open(finished)
    copy = RunDirectory.create(tmp_path / "older", old.header.model_copy(update={"code": "0" * 64}))
    for unit in old.units():
        copy.commit(unit)
    result = depura_("verify", copy.path)
    assert result.exit_code == 0, result.output
    assert [line for line in verdicts(result, "WARN") if "another code" in line]


def test_an_example_outside_its_ball_is_named(run: Path) -> None:
    unit = RunDirectory.open(run).load(ADAPTIVE)
    moved, image = unit.arrays["adversarial"].copy(), unit.arrays["ids"][2]
    moved[2, 0, 3, 3] = (moved[2, 0, 3, 3] + 0.5) % 1
    edit(run, ADAPTIVE, adversarial=moved)
    result = depura_("verify", run)
    assert result.exit_code == 1
    said = next(line for line in verdicts(result, "FAIL") if "bounds" in line)
    assert f"image {image} are not within" in said


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("predictions", lambda a: a + 10, "predictions are not all among"),
        ("predictions", lambda a: a[:, 1:], "predictions are not of 4 images and 16 draws"),
        ("select_errors", lambda a: a + 17, "select_errors are not all from 0 to 16"),
        ("chosen", lambda a: a + 9, "chosen is not one of the candidates"),
        ("distance", lambda a: a / 2, "distance is not that of the examples"),
        ("labels", lambda a: (a + 1) % 10, "labels"),
        ("ids", lambda a: a[::-1].copy(), "ids"),
        ("adversarial", lambda a: a[:2], "its arrays do not fit together"),
    ],
)
def test_what_cannot_be_true_is_named(run: Path, name: str, change: object, said: str) -> None:
    unit = RunDirectory.open(run).load(ADAPTIVE)
    edit(run, ADAPTIVE, **{name: change(unit.arrays[name])})  # type: ignore[operator]
    result = depura_("verify", run)
    assert result.exit_code == 1
    assert any(f"{ADAPTIVE}: {said}" in line for line in verdicts(result, "FAIL"))


def test_edited_predictions_disagree_with_fresh_draws(run: Path) -> None:
    """The undefended classifier is broken; a record that says otherwise does not survive one look."""
    name = ADAPTIVE.replace("adaptive", "undefended")
    unit = RunDirectory.open(run).load(name)
    assert (unit.arrays["predictions"] != unit.arrays["labels"][:, None]).any()
    right = np.repeat(unit.arrays["labels"][:, None], 16, axis=1).astype(np.int32)
    edit(run, name, predictions=right)
    assert depura_("report", run).exit_code in JUDGED
    result = depura_("verify", run, "--share", 1)
    assert result.exit_code == 1
    assert [line.split(":")[0].split()[-1] for line in verdicts(result, "FAIL")] == ["undefended"]


def test_examples_replaced_by_clean_images_are_found_by_making_the_attack_again(run: Path) -> None:
    """Everything is made to fit: distances, choices, predictions of the clean images, digests, reports."""
    directory = RunDirectory.open(run)
    unit, null = directory.load(ADAPTIVE), directory.load(ADAPTIVE.replace("adaptive", "null-transfer"))
    images = study(images=4).data.images.numpy()
    clean = null.arrays["predictions"]
    edit(
        run,
        ADAPTIVE,
        adversarial=images,
        distance=np.zeros(4, dtype=np.float32),
        farthest=np.zeros(4, dtype=np.float32),
        predictions=clean,
        margins=null.arrays["margins"],
        rounded_predictions=clean[:, : unit.arrays["rounded_predictions"].shape[1]],
        select_errors=np.zeros_like(unit.arrays["select_errors"]),
        chosen=np.zeros_like(unit.arrays["chosen"]),
    )
    assert depura_("report", run).exit_code in JUDGED
    result = depura_("verify", run, "--share", 1)
    assert result.exit_code == 1, result.output
    assert ["remake" in line for line in verdicts(result, "FAIL")] == [True], result.output
    assert "The record does not hold" in result.output
    assert depura_("verify", run, "--share", 1, "--remake", 0).exit_code == 0, "fresh draws alone do not see it"


def test_a_required_check_must_pass(run: Path) -> None:
    (run / "report.md").unlink()
    (run / "report.html").unlink()
    assert depura_("verify", run, "--remake", 0).exit_code == 0
    for name in ("report", "remake"):
        result = depura_("verify", run, "--remake", 0, "--require", name)
        assert result.exit_code == 1, result.output
        assert any(f"{name}, " in line and "required, and not run" in line for line in verdicts(result, "FAIL"))
    unknown = depura_("verify", run, "--require", "everything")
    assert unknown.exit_code == 2
    assert "a check among digest, complete, report" in unknown.output


def test_the_outcome_in_json(run: Path) -> None:
    result = depura_("verify", run, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert told["outcome"] == "holds"
    assert {check["id"] for check in told["checks"]} == {
        "digest", "complete", "report", "hash", "bounds", "rescore", "remake",
    }  # fmt: skip


MARK = (
    "from pathlib import Path\n\nfrom depura.evaluation.demo import study as demo\n\n"
    "Path(__file__).with_name('mark').touch()\n\n\n"
    "def study(*, images: int = 2) -> object:\n"
    "    return demo(images=images, attack_steps=1, eot=1, report_draws=4, curve=(), n_steps=2)\n"
)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose study file leaves a mark wherever it is run."""
    folder = tmp_path_factory.mktemp("strange")
    (folder / "study.py").write_text(MARK)
    assert depura_("run", folder / "study.py", "--out", folder / "run", "--workers", 1).exit_code in JUDGED
    (folder / "mark").unlink()
    return folder


def test_a_record_runs_nothing_that_it_names(strange: Path, tmp_path: Path) -> None:
    """Every command that takes a run directory, each in its plainest form."""
    run = strange / "run"
    image = RunDirectory.open(run).header.data.ids[0]
    for words, code in {
        ("verify", run): 3,
        ("publish", run, "--out", tmp_path / "p"): 2,
        ("extend", run): 2,
        ("extend", run, "-S", "images=3", "--dry-run"): 2,
        ("rescore", run, "--rule", "vote", "--k", 3, "--out", tmp_path / "v"): 2,
        ("replay", run, "--image", image): 2,
        ("report", run): 1,
        ("claim", run): 1,
        ("compare", run, run): 0,
        ("export", run, "--out", tmp_path / "t.csv"): 0,
    }.items():
        result = depura_(*words)
        assert result.exit_code in (code, *((0,) if words[0] in ("report", "claim") else ())), (words, result.output)
        assert not (strange / "mark").exists(), words
        if code in (2, 3):
            assert "a study is code" in result.output.replace("\n", " ")
    assert "The files hold; the numbers were not checked." in depura_("verify", run).output


@pytest.mark.parametrize("how", ["--trust", "--study"])
def test_a_study_that_is_given_or_trusted_is_run(strange: Path, how: str) -> None:
    words = ["--trust"] if how == "--trust" else ["--study", strange / "study.py"]
    result = depura_("verify", strange / "run", *words)
    assert result.exit_code == 0, result.output
    assert (strange / "mark").exists()
    (strange / "mark").unlink()
    if how == "--trust":
        assert f"runs {strange / 'study.py'}" in result.output.replace("\n", "")


def test_a_run_made_from_python_is_verified_by_a_module_that_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_study_of_ours.py").write_text(MARK.replace("def study", "def made"))
    monkeypatch.syspath_prepend(str(tmp_path))
    depura.run(study(images=2, attack_steps=1, eot=1, report_draws=4, curve=(), n_steps=2), tmp_path / "r")
    alone = depura_("verify", tmp_path / "r")
    assert alone.exit_code == 3
    assert "made from Python" in alone.output
    for given in ("a_study_of_ours:made", f"{tmp_path / 'a_study_of_ours.py'}:made"):
        result = depura_("verify", tmp_path / "r", "--study", given, "-S", "images=2")
        assert result.exit_code == 0, result.output
    lost = depura_("verify", tmp_path / "r", "--study", "no_such_module_here:made")
    assert lost.exit_code == 3
    assert "no_such_module_here" in lost.output


def test_the_study_file_may_have_moved(tmp_path: Path) -> None:
    text = (
        "from depura.evaluation.demo import study as demo\n\n\n"
        "def study(*, images: int = 2) -> object:\n"
        "    return demo(images=images, attack_steps=1, eot=1, report_draws=2, curve=(), n_steps=2)\n"
    )
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(text)
    assert depura_("run", first, "--out", tmp_path / "r", "--workers", 1).exit_code in JUDGED
    first.rename(second)
    lost = depura_("verify", tmp_path / "r")
    assert lost.exit_code == 3
    assert len(verdicts(lost, "not run")) == 4
    assert "first.py" in lost.output.replace("\n", "")
    found = depura_("verify", tmp_path / "r", "--study", second)
    assert found.exit_code == 0, found.output
    assert not verdicts(found, "not run")
    second.write_text(text.replace("attack_steps=1", "attack_steps=2"))
    other = depura_("verify", tmp_path / "r", "--study", second)
    assert other.exit_code == 1
    assert any("hash, attacks" in line and "n_steps" in line for line in verdicts(other, "FAIL"))


def test_no_flipped_bit_is_taken_for_a_record(run: Path) -> None:
    """One bit anywhere in the file: the same arrays, or a RecordError that names the file."""
    directory = RunDirectory.open(run)
    file = directory.file(ADAPTIVE)
    whole, unit = file.read_bytes(), directory.load(ADAPTIVE)
    generator = random.Random(0)
    refused: list[str] = []
    for _ in range(200):
        at, bit = generator.randrange(len(whole)), generator.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            found = directory.load(ADAPTIVE)
        except RecordError as error:
            refused.append(str(error))
            continue
        assert found.facts == unit.facts
        assert found.arrays.keys() == unit.arrays.keys()
        for name, array in found.arrays.items():
            assert array.dtype == unit.arrays[name].dtype
            assert array.tobytes() == unit.arrays[name].tobytes()
    assert len(refused) > 100
    assert all(str(file) in said for said in refused)


# rescore


def test_rescored_votes_are_those_of_the_purifications_that_were_recorded(finished: Path, tmp_path: Path) -> None:
    """Draw d of a vote of 3 takes purifications 3d, 3d + 1, 3d + 2 of the same stream: 5 votes of 15 recorded draws."""
    result = depura_("rescore", finished, "--rule", "vote", "--k", 3, "--draws", 5, "--out", tmp_path / "v")
    assert result.exit_code in JUDGED, result.output
    assert "examples made against" in result.output.replace("\n", " ")
    old, new = RunDirectory.open(finished), RunDirectory.open(tmp_path / "v")
    told = 0
    for name in (ADAPTIVE, ADAPTIVE.replace("adaptive", "bpda"), ADAPTIVE.replace("adaptive", "transfer")):
        before, after = old.load(name).arrays, new.load(name).arrays
        assert before["adversarial"].tobytes() == after["adversarial"].tobytes()
        assert before["select_errors"].tobytes() == after["select_errors"].tobytes()
        for votes, winners in zip(before["predictions"][:, :15].reshape(4, 5, 3), after["predictions"], strict=True):
            for three, winner in zip(votes, winners, strict=True):
                counts = np.bincount(three, minlength=10)
                if (counts == counts.max()).sum() == 1:  # ties go by ranks, which are not recorded
                    assert winner == counts.argmax()
                    told += 1
    assert told > 40
    bare = ADAPTIVE.replace("adaptive", "undefended")
    assert new.load(bare).arrays["predictions"].shape == (4, 5)


@pytest.mark.parametrize(("rule", "made"), [("mean-prob", depura.MeanProb(2)), ("mean-logit", depura.MeanLogit(2))])
def test_rescored_means_are_those_of_the_defence_with_that_rule(
    finished: Path, tmp_path: Path, rule: str, made: depura.MeanProb
) -> None:
    result = depura_("rescore", finished, "--rule", rule, "--k", 2, "--draws", 4, "--out", tmp_path / "v")
    assert result.exit_code in JUDGED, result.output
    unit = RunDirectory.open(tmp_path / "v").load(ADAPTIVE)
    defence = study(n_steps=2).defence.with_(rule=made)
    ids = tuple(int(i) for i in unit.arrays["ids"])
    for draw in range(4):
        noise = depura.Noise(0, ids, draws=draw, stream=depura.Stream.REPORT)
        with torch.no_grad():
            expected = defence(torch.from_numpy(unit.arrays["adversarial"]), noise).argmax(1)
        assert unit.arrays["predictions"][:, draw].tolist() == expected.tolist()


def test_a_rescored_run_is_a_run_of_its_own(finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    words = ("rescore", finished, "--rule", "vote", "--k", 3, "--draws", 4, "--out", tmp_path / "v")
    first = depura_(*words)
    assert first.exit_code in JUDGED
    assert contents(finished) == before
    warning = "no attack here was adapted to the rule that is judged"
    assert warning in first.output.replace("\n", " ")
    assert warning in (tmp_path / "v" / "report.md").read_text()
    held = depura_("verify", tmp_path / "v", "--share", 1)
    assert held.exit_code == 0, held.output
    whole = contents(tmp_path / "v")
    (tmp_path / "v" / "units" / f"{ADAPTIVE}.npz").unlink()
    assert depura_(*words).exit_code in JUDGED
    assert contents(tmp_path / "v") == whole
    other = depura_(*[5 if word == 3 else word for word in words])
    assert other.exit_code == 2
    again = depura_("rescore", tmp_path / "v", "--rule", "single")
    assert "one rescored" in again.output.replace("\n", " ")
    # its units are not taken for those of a run that was attacked under that rule
    shutil.copy(tmp_path / "v" / "units" / f"{ADAPTIVE}.npz", tmp_path / "v" / "units" / "kept")
    rescored = RunDirectory.open(tmp_path / "v").header
    honest = RunDirectory.create(tmp_path / "w", rescored.model_copy(update={"rescored_from": None}))
    shutil.copy(tmp_path / "v" / "units" / "kept", honest.file(ADAPTIVE))
    with pytest.raises(RecordError, match="of another one"):
        honest.load(ADAPTIVE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rule", "single", "--k", 3), "n_draws = 1"),
        (("--rule", "single"), "another rule or another number of draws"),
        (("--rule", "vote", "--k", 0), "--k"),
        (("--rule", "vote", "--k", 3, "--draws", 0), "--draws"),
        (("--rule", "mode", "--k", 3), "mode"),
    ],
)
def test_unusable_rules(finished: Path, tmp_path: Path, words: tuple[object, ...], said: str) -> None:
    result = depura_("rescore", finished, *words, "--out", tmp_path / "v")
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
    assert not (tmp_path / "v").exists()


def test_an_unfinished_run_cannot_be_rescored(run: Path, tmp_path: Path) -> None:
    (run / "units" / f"{ADAPTIVE}.npz").unlink()
    result = depura_("rescore", run, "--rule", "vote", "--k", 3, "--draws", 2, "--out", tmp_path / "v")
    assert result.exit_code == 2
    assert ADAPTIVE in result.output.replace("\n", "")


# extend


def test_more_images_are_those_of_a_run_of_all_of_them(tmp_path: Path) -> None:
    """The boundaries agree: units have 2 images."""
    file = tmp_path / "study.py"
    file.write_text(
        "from dataclasses import replace\n\nfrom depura.evaluation.demo import study as demo\n\n\n"
        "def study(*, images: int = 2) -> object:\n"
        "    made = demo(images=images, attack_steps=1, eot=1, report_draws=4, curve=(0.1,), n_steps=1)\n"
        "    return replace(made, unit_images=2)\n"
    )
    for name, images in (("few", 2), ("all", 3)):
        words = ("--out", tmp_path / name, "-S", f"images={images}", "--workers", 1)
        assert depura_("run", file, *words).exit_code in JUDGED
    before = contents(tmp_path / "few")
    result = depura_("extend", tmp_path / "few", "--trust", "-S", "images=3", "--workers", 1)
    assert result.exit_code in JUDGED, result.output
    extended, whole = RunDirectory.open(tmp_path / "few"), RunDirectory.open(tmp_path / "all")
    new = [unit.unit for unit in extended.header.units if f"units/{unit.unit}.npz" not in before]
    assert {name.partition("_eps0.2_")[2] for name in new if "eps0.2" in name} == {"00002-00003"}
    shared = {unit.unit for unit in whole.header.units} & {unit.unit for unit in extended.header.units}
    compared = 0
    for name in sorted(shared - {"audit_eps0.2_00000-00002"}):
        a, b = extended.load(name), whole.load(name)
        assert a.arrays.keys() == b.arrays.keys()
        assert all(array.tobytes() == b.arrays[key].tobytes() for key, array in a.arrays.items())
        compared += 1
    assert compared >= 12
    old = {name: data for name, data in before.items() if name.startswith("units/")}
    assert {name: data for name, data in contents(tmp_path / "few").items() if name in old} == old
    assert (tmp_path / "few" / "report.md").read_text().count("depura extend DIR -S images=3") == 1
    held = depura_("verify", tmp_path / "few", "--trust")
    assert held.exit_code == 0, held.output


def test_a_further_attack_and_odd_boundaries_on_the_same_record(run: Path) -> None:
    before = {name: data for name, data in contents(run).items() if name.startswith("units/")}
    words = ("extend", run, "-S", "images=6", "--attack", "pgd", "--steps", 1, "--eot", 1)
    dry = depura_(*words, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "pgd-steps1-eot1, eps 0.2: 6 images, " in dry.output
    assert "adaptive, eps 0.2: 2 images, " in dry.output
    assert {name: data for name, data in contents(run).items() if name.startswith("units/")} == before
    assert not RunDirectory.open(run).header.extensions
    result = depura_(*words, "--workers", 1)
    assert result.exit_code in JUDGED, result.output
    assert "pgd-steps1-eot1" in result.output
    after = contents(run)
    assert {name: after[name] for name in before} == before
    directory = RunDirectory.open(run)
    assert directory.load("adaptive_eps0.2_00004-00006").arrays["ids"].tolist() == list(study(images=6).data.ids[4:])
    assert directory.load("pgd-steps1-eot1_eps0.2_00000-00006").arrays["predictions"].shape == (6, 16)
    assert directory.header.extensions[0].images == 4
    held = depura_("verify", run, "--share", 1)
    assert held.exit_code == 0, held.output
    assert not directory.foreign()
    # the same again, and without words, does nothing
    for repeated in (words, ("extend", run)):
        again = depura_(*repeated, "--workers", 1)
        assert again.exit_code in JUDGED, again.output
        assert "nothing to do" in again.output
        assert contents(run) == after
    # and it may be extended once more
    more = depura_("extend", run, "-S", "images=7", "--workers", 1)
    assert more.exit_code in JUDGED, more.output
    steps = RunDirectory.open(run).header.extensions
    assert [(step.images, step.rows) for step in steps] == [(4, 6), (6, 7)]
    assert RunDirectory.open(run).load("pgd-steps1-eot1_eps0.2_00006-00007").arrays["predictions"].shape == (1, 16)
    # and rescored
    rescored = depura_("rescore", run, "--rule", "vote", "--k", 3, "--draws", 2, "--out", run.with_name("v"))
    assert rescored.exit_code in JUDGED, rescored.output
    assert depura_("verify", run.with_name("v")).exit_code == 0


def test_a_killed_extension_goes_on(run: Path) -> None:
    """Killed by the system after its first new unit, with no chance to clean up."""
    before = {name: data for name, data in contents(run).items() if name.startswith("units/")}
    process = Depura(["extend", run, "-S", "images=6", "--workers", 1], run)
    while process.poll() is None and len(list((run / "units").glob("*.npz"))) == len(before):
        time.sleep(0.01)
    process.kill()
    stopped = contents(run)
    assert {name: stopped[name] for name in before} == before
    assert depura_("report", run).exit_code == 0
    assert depura_("verify", run).exit_code in JUDGED
    result = depura_("extend", run, "--workers", 1)
    assert result.exit_code in JUDGED, result.output
    held = depura_("verify", run)
    assert held.exit_code == 0, held.output
    after = contents(run)
    assert {name: after[name] for name in stopped if name.endswith(".npz")} == {
        name: data for name, data in stopped.items() if name.endswith(".npz")
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-S", "images=3"), "data.ids"),
        (("-S", "seed=1"), "seed is 0 there and 1 here"),
        (("-S", "eps=0.3"), "eps is 0.2 there and 0.3 here"),
        (("-S", "attack_steps=3"), "n_steps is 2 there and 3 here"),
        (("-S", "n_steps=3"), "defence"),
        (("-S", "report_draws=32"), "draws.report is 16 there and 32 here"),
        (("-S", "curve="), "unit undefended_eps0.1"),
        (("--attack", "sorcery"), "sorcery"),
        (("--steps", 3), "--steps and --eot together with --attack"),
    ],
)
def test_what_is_no_extension_is_refused(finished: Path, words: tuple[object, ...], said: str) -> None:
    before = contents(finished)
    result = depura_("extend", finished, *words, "--workers", 1)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
    assert contents(finished) == before


def test_other_images_under_the_same_ids_are_no_extension(tmp_path: Path) -> None:
    file = tmp_path / "study.py"
    file.write_text(
        "from dataclasses import replace\n\nfrom depura.evaluation.demo import study as demo\n\n\n"
        "def study(*, images: int = 2, shade: float = 0.0) -> object:\n"
        "    made = demo(images=images, attack_steps=1, eot=1, report_draws=2, curve=(), n_steps=2)\n"
        "    return replace(made, data=made.data._replace(images=made.data.images * (1 - shade)))\n"
    )
    assert depura_("run", file, "--out", tmp_path / "r", "--workers", 1).exit_code in JUDGED
    words = ("extend", tmp_path / "r", "--trust", "-S", "images=3", "--workers", 1)
    result = depura_(*words, "-S", "shade=0.5")
    assert result.exit_code == 2
    assert "data.images.sha256" in result.output.replace("\n", " ")
    assert depura_(*words).exit_code in JUDGED


def test_more_draws_are_those_of_a_run_with_as_many(run: Path, tmp_path: Path) -> None:
    """The same examples on the same addresses, in a run of its own; clean baselines too, to the last bit."""
    before = contents(run)
    result = depura_("rescore", run, "--draws", 24, "--out", tmp_path / "more")
    assert result.exit_code in JUDGED, result.output
    assert contents(run) == before
    at_once = tmp_path / "whole"
    settings = [word.replace("report_draws=16", "report_draws=24") for word in SETTINGS]
    assert depura_("demo", "--out", at_once, "--workers", 1, *settings).exit_code in JUDGED
    whole, larger = RunDirectory.open(at_once), RunDirectory.open(tmp_path / "more")
    for name in ("adaptive", "bpda", "transfer", "reference", "null-transfer", "null-undefended"):
        a, b = (run.load(f"{name}_eps0.2_00000-00004").arrays for run in (larger, whole))
        for array in ("predictions", "margins", *(["random_predictions"] if name.startswith("null") else [])):
            assert a[array].tobytes() == b[array].tobytes(), (name, array)
    assert [row.kind for row in larger.header.rows] == [row.kind for row in whole.header.rows]
    assert "24 others" in (tmp_path / "more" / "report.md").read_text()
    assert "was adapted to the rule" not in (tmp_path / "more" / "report.md").read_text()
    held = depura_("verify", tmp_path / "more")
    assert held.exit_code == 0, held.output


def test_draws_of_a_null_are_never_used_twice() -> None:
    """Addresses of the null's stream: select draws, asked for every candidate, then clean and random ones, once."""
    heard: list[int] = []
    made = study(images=2, report_draws=4, attack_steps=1, eot=1, curve=())
    plain = depura.Defence.forward

    def forward(self: depura.Defence, images: torch.Tensor, noise: depura.Noise | None = None) -> torch.Tensor:
        if noise is not None and noise.stream is depura.Stream.NULL:
            draws = (noise.draws,) * len(noise) if isinstance(noise.draws, int) else noise.draws
            heard.extend(draw for draw, image in zip(draws, noise.images, strict=True) if image == noise.images[0])
        return plain(self, images, noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depura.Defence, "forward", forward)
        for key in made.units():
            if key.row == "null-transfer":
                run_unit(made, key)
    select = made.select_draws
    counts = Counter(heard)
    assert sorted(counts) == list(range(select + 2 * 4))
    assert {counts[k] for k in range(select)} == {made.row("transfer").attack.n_candidates}
    assert {counts[k] for k in range(select, select + 8)} == {1}


def test_an_extension_under_way_can_be_looked_at(run: Path) -> None:
    """Stopped when the record speaks of more images and draws already: what is done is shown, and counted."""
    source = StudySource.of(RunDirectory.open(run).header)
    source = replace(source, settings=(*source.settings[1:], ("images", "6")))
    larger = RunDirectory.open(run)
    larger = larger.extend(extended(larger, source.load(), source=source, command="depura extend DIR"))
    result = depura_("report", run)
    assert result.exit_code == 0, result.output
    done, total = larger.done, len(larger.header.units)
    assert 0 < done < total
    assert f"{done} of {total} units are done" in " ".join(result.output.split())
    assert "4 of 6" in result.output


@pytest.mark.parametrize("how", ["extended", "rescored"])
def test_a_decision_of_a_derived_run_can_be_made_again(run: Path, tmp_path: Path, how: str) -> None:
    derived = run
    if how == "extended":
        assert depura_("extend", run, "-S", "images=5", "--workers", 1).exit_code in JUDGED
    else:
        derived = tmp_path / "votes"
        words = ("--rule", "vote", "--k", 3, "--draws", 4, "--out", derived)
        assert depura_("rescore", run, *words).exit_code in JUDGED
    draws = RunDirectory.open(derived).header.draws.report
    image = RunDirectory.open(run).header.data.ids[2]
    result = depura_("replay", derived, "--image", image, "--draw", draws - 1)
    assert result.exit_code == 0, result.output
    assert "the same" in result.output
