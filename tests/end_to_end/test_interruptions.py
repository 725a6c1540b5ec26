"""Runs killed with -9 at random moments and given again, in two shards of two workers each, end in the same bytes.

One run by default, killed twice; as many as the environment variable DEPURA_KILLS says.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depura.cli import app
from processes import STUDY, Depura

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_figures", "without_clock")]
N_RUNS = int(os.environ.get("DEPURA_KILLS", "1"))
Whole = tuple[dict[str, bytes], float]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "study.py"
    file.write_text(STUDY, encoding="utf-8")
    return file


def start(study: Path, out: Path, shard: str) -> Depura:
    """A shard in a process of its own, with two workers."""
    return Depura(["run", study, "--out", out, "--shard", shard, "--workers", 2], study.parent, forked=True)


def here(study: Path, out: Path) -> int:
    """The whole in this process: the exit code."""
    return CliRunner().invoke(app, ["run", str(study), "--out", str(out), "--workers", "1"]).exit_code


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".partial")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """An undisturbed run, and how long it took."""
    out, begun = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert here(study, out) in (0, 1)
    return contents(out), time.monotonic() - begun


@pytest.mark.skipif(os.name != "posix", reason="kills process groups")
@pytest.mark.parametrize("number", range(N_RUNS))
def test_a_killed_run_ends_in_the_same_bytes(
    number: int, study: Path, whole: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    expected, took = whole
    moment = random.Random(number)
    out = tmp_path / "run"
    for _ in range(2):
        running = [start(study, out, f"{i}/2") for i in range(2)]
        while not (out / "study.json").exists() and all(process.poll() is None for process in running):
            time.sleep(0.01)
        time.sleep(moment.uniform(0.1, 0.7) * took)
        for process in running:
            process.kill(group=True)
    before = {name: data for name, data in contents(out).items() if name.startswith("units/")} if out.exists() else {}
    finishing = [start(study, out, f"{i}/2") for i in range(2)]
    assert all(process.wait(600) in (0, 1) for process in finishing)
    assert here(study, out) in (0, 1)
    after = contents(out)
    assert {name: after[name] for name in before} == before, "what was recorded is kept"
    assert after == expected


LONG = STUDY.replace("n_steps=1, eot=1", "n_steps=40, eot=2").replace("unit_images=1", "unit_images=5")
"""The same study in one unit for each row."""


@pytest.mark.skipif(os.name != "posix", reason="kills process groups")
def test_a_long_unit_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    file, moment = tmp_path / "study.py", random.Random(0)
    file.write_text(LONG, encoding="utf-8")
    assert CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "whole"), "--workers", "1"]).exit_code < 2
    again = ["run", file, "--out", tmp_path / "run", "--workers", 1, "--checkpoint-every", "0s"]
    out, kept = tmp_path / "run", [0]
    while len(kept) < 6:
        running = Depura(again, tmp_path, forked=True)
        while running.poll() is None and len(list(out.glob("under-way/*/*.npz"))) == kept[-1]:
            time.sleep(0.01)
        time.sleep(moment.uniform(0.0, 0.2))
        if running.poll() is not None:
            break
        running.kill(group=True)
        kept.append(len(list(out.glob("under-way/*/*.npz"))))
    assert max(kept) > 2, "answers of several attempts are kept"
    assert Depura(again, tmp_path, forked=True).wait() < 2
    units = {file.name: file.read_bytes() for file in (tmp_path / "whole" / "units").iterdir()}
    assert {file.name: file.read_bytes() for file in (out / "units").iterdir()} == units
    assert not (out / "under-way").exists()
