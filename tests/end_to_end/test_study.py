"""A tiny study on the digits: run, stop, go on, shard, plan, report. The machine must not show in the results."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import depura
from depura.demo import digits_purifier, study
from depura.evaluation.records import RecordError, RunDirectory
from depura.evaluation.runner import Shard, missing, run, run_unit
from depura.evaluation.scoring import score
from depura.evaluation.streams import Streams
from depura.evaluation.study import UnitKey
from depura.reports import page
from depura.reports.summary import summarise

SMALL = {"images": 6, "attack_steps": 3, "eot": 2, "report_draws": 8, "curve": (0.1,), "n_steps": 2}
SETTINGS = [w for k, v in SMALL.items() for w in ("-S", f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}")]


def small(**changes: object) -> depura.Study:
    return replace(study(**{**SMALL, **changes}), unit_images=3, curve_images=4)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(small(), tmp_path_factory.mktemp("run") / "a", command="depura run x")


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_every_unit_is_recorded(finished: RunDirectory) -> None:
    names = {entry["unit"] for entry in finished.header["units"]}
    assert names == {p.stem for p in (finished.path / "units").iterdir()}
    assert len(names) == 2 * (2 + 4) + 4 * 2
    unit = finished.load("adaptive_eps0.2_00003-00006")
    assert unit.arrays["ids"].tolist() == list(small().data.ids[3:6])
    assert unit.arrays["predictions"].shape == (3, 8)
    assert unit.arrays["select_errors"].shape == (3, 2)
    assert unit.arrays["loss"].shape == (3, 3)
    assert unit.arrays["distance"].max() <= 0.2 + 1e-6


def test_reported_numbers_can_be_recomputed_from_the_report_stream(finished: RunDirectory) -> None:
    """Nothing but the saved examples and the report stream goes into the reported predictions."""
    s, unit = small(), finished.load("adaptive_eps0.2_00000-00003")
    examples = torch.from_numpy(unit.arrays["adversarial"])
    noise = depura.Noise(s.seed, s.data.ids[:3], stream=depura.Stream.REPORT)
    again = score(s.defence, examples, s.data.labels[:3], noise, draws=range(8))
    assert np.array_equal(again.predictions.numpy(), unit.arrays["predictions"])
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
        row.attack(row.against, images, labels, init=streams.init(ids), eot=streams.eot(ids))
        for row in (bare, transfer)
    )
    assert torch.equal(a.images, b.images)
    assert transfer.judged is s.defence
    assert transfer.against.purifier is None


def test_a_second_run_does_nothing_and_changes_nothing(finished: RunDirectory) -> None:
    before, done = contents(finished.path), []
    run(small(), finished.path, command="depura run x", on_unit=done.append)
    assert not done
    assert contents(finished.path) == before


def test_missing_units_alone_are_made_again_and_are_the_same(finished: RunDirectory, tmp_path: Path) -> None:
    copy = RunDirectory.create(tmp_path / "b", {k: v for k, v in finished.header.items() if k != "schema"})
    keep = ("transfer_eps0.2_00000-00003", "adaptive_eps0.1_00000-00003")
    for name in keep:
        copy.commit(name, finished.load(name))
    done: list[UnitKey] = []
    run(small(), copy.path, command="depura run x", on_unit=done.append)
    assert {key.name for key in done} == {e["unit"] for e in finished.header["units"]} - set(keep)
    assert contents(copy.path) == contents(finished.path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_shards_into_one_folder_make_the_whole(
    finished: RunDirectory, tmp_path: Path, order: tuple[int, int]
) -> None:
    for k, index in enumerate(order):
        part = run(small(), tmp_path / "b", command="depura run x", shard=Shard(index, 2))
        assert summarise(part).complete == (k == 1)
    for directory in (finished.path, tmp_path / "b"):
        page.write(RunDirectory.open(directory))
    assert contents(tmp_path / "b") == contents(finished.path)


def test_a_unit_does_not_depend_on_the_units_before_it(finished: RunDirectory) -> None:
    key = next(k for k in small().units() if k.name == "bpda_eps0.2_00003-00006")
    alone, recorded = run_unit(small(), key), finished.load(key.name)
    assert alone.meta == recorded.meta
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
    copy = RunDirectory.create(tmp_path / "b", {k: v for k, v in finished.header.items() if k != "schema"})
    name = "bpda_eps0.2_00003-00006"
    copy.file(name).write_bytes(finished.file(name).read_bytes()[:100])
    with pytest.raises(RecordError, match=name):
        missing(small(), copy)


def test_an_attack_that_leaves_the_ball_is_refused(tmp_path: Path) -> None:
    class Outside(depura.PGD):
        def __call__(self, model, images, labels, **noise):  # type: ignore[no-untyped-def]
            found = super().__call__(model, images, labels, **noise)
            return found._replace(images=(found.images + 0.05).clamp(0, 1))

    s = small()
    cheat = replace(s, rows=tuple(replace(r, attack=Outside(r.attack.ball, n_steps=1)) for r in s.rows))
    with pytest.raises(depura.InputError, match="candidates within Ball"):
        run(cheat, tmp_path / "b")


def test_the_plan_counts_exactly_what_is_evaluated(finished: RunDirectory) -> None:
    counted: dict[tuple[str, float], list[int]] = {}
    for unit in finished.units():
        total = counted.setdefault((unit.meta["row"], unit.meta["eps"]), [0, 0])
        for part in unit.meta["evaluations"].values():
            total[0] += part[0]
            total[1] += part[1]
    planned = {(p.row, p.eps): [p.forward, p.backward] for p in depura.plan(small())}
    assert planned == counted
    # 6 images, 2 draws; 3 attack steps and one comparison through 2 steps each, and the surrogate's single step.
    assert counted["adaptive", 0.2][1] == 6 * 2 * ((3 + 1) * 2 + 1)


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
    """The code is read off the defences: an approximate gradient cannot be called exact."""
    study = small()
    defence, adaptive = study.defence, study.row("adaptive")
    assert [row.route for row in study.rows] == ["G0", "G0", "G6", "G2"]
    steps = defence.purifier.steps
    codes = {
        "G4": defence.with_(steps=depura.coarser(steps, 1)),
        "G5": defence.with_(gradient=depura.Adjoint()),
        "G7": defence.with_(gradient=depura.Grafted()),
        "G8": defence.with_(gradient=depura.Relaxed()),
        "G6": defence.with_(gradient=depura.Direct()),
    }
    assert {replace(adaptive, against=against).route for against in codes.values()} == set(codes)
    for code, against in codes.items():
        assert replace(adaptive, against=against).route == code
    assert replace(adaptive, against=defence.with_(denoiser=depura.digits_denoiser())).route == "G4"
    resized = defence.with_(purifier=depura.Resized(defence.purifier, size=8))
    assert replace(adaptive, against=resized, judged=resized.with_(clamp=False)).route == "G6"
    assert replace(adaptive, against=resized).route == "G4"


def test_a_ladder_needs_a_purifier() -> None:
    bare = depura.Defence(None, depura.digits_classifier())
    with pytest.raises(depura.InputError, match="ladder"):
        depura.ladder(bare, depura.PGD(depura.Ball("linf", 0.1)))


def test_a_study_may_do_without_pictures(tmp_path: Path) -> None:
    directory = run(replace(small(images=2), pictures=0, curve_eps=()), tmp_path / "r", command="x")
    summary, written = page.write(directory)
    assert summary.complete
    assert not summary.pictures
    assert all(file.exists() for file in written)


def test_a_defence_that_votes_can_be_judged(tmp_path: Path) -> None:
    defence = depura.Defence(digits_purifier(n_steps=2), depura.digits_classifier(), rule=depura.Vote(3))
    attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=2, eot=2)
    s = replace(small(images=3), defence=defence, rows=depura.ladder(defence, attack), curve_eps=(), report_draws=4)
    directory = run(s, tmp_path / "v", command="x")
    assert summarise(directory).complete
    planned = {p.row: (p.forward, p.backward) for p in depura.plan(s)}
    for unit in directory.units():
        parts = unit.meta["evaluations"].values()
        assert planned[unit.meta["row"]] == tuple(sum(p[i] for p in parts) for i in (0, 1))


# Whole processes, as a user has them.


def start(out: Path, *extra: str, said: Path | None = None) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "depura", "run", "studies/digits.py", "--out", str(out), *SETTINGS, *extra]
    with (said or Path(os.devnull)).open("wb") as sink:
        return subprocess.Popen(
            words,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
            stdout=sink,
            stderr=sink,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as a shell in the foreground has it
        )


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
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_and_given_again_a_run_ends_as_if_undisturbed(tmp_path: Path, workers: str) -> None:
    more = ("-S", "images=24")
    assert start(tmp_path / "whole", "--workers", "1", *more).wait(120) == 0
    whole = contents(tmp_path / "whole")
    assert {"report.html", "report.md", "study.json"} < set(whole)

    out = tmp_path / "killed"
    process = start(out, "--workers", workers, *more)
    deadline = time.monotonic() + 120
    while len(units_in(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid), "workers outlive a killed run"
    kept = units_in(out)
    n_units = sum(name.startswith("units/") for name in whole)
    assert 3 <= len(kept) < n_units
    assert not (out / "report.html").exists()

    assert start(out, "--workers", workers, *more).wait(120) == 0
    assert {name: units_in(out)[name] for name in kept} == kept, "a finished unit was made again"
    left_behind = {name: data for name, data in contents(out).items() if not name.endswith(".partial")}
    assert left_behind == whole


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_so(tmp_path: Path) -> None:
    out, deadline = tmp_path / "r", time.monotonic() + 120
    process = start(out, "--workers", "2", "-S", "images=48", said=tmp_path / "said")
    while len(units_in(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    said = (tmp_path / "said").read_text()
    assert "What is done is kept" in said
    assert "Traceback" not in said
    assert len(units_in(out)) >= 3
    assert not (out / "report.html").exists()


@pytest.mark.slow
def test_two_processes_with_a_shard_each_make_the_whole(tmp_path: Path) -> None:
    both = [start(tmp_path / "b", "--workers", "1", "--shard", f"{i}/2") for i in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    assert start(tmp_path / "a", "--workers", "1").wait(120) == 0
    assert start(tmp_path / "b", "--workers", "1").wait(120) == 0
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
