"""The recipes of docs/cluster.md, as far as one machine can run them: shards of a list of jobs make the whole run.

A script is run by bash with programs that write down how they were called; depura is then called so.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from depura.cli import app, command_named
from processes import STUDY, Depura

pytestmark = [
    pytest.mark.usefixtures("without_figures", "without_clock"),
    pytest.mark.skipif(os.name != "posix", reason="runs shell scripts"),
]
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def recipe(mark: str) -> str:
    """The block of code with this text."""
    blocks, block = [], list[str]()
    for line in [*PAGE.read_text(encoding="utf-8").splitlines(), "end"]:
        if line.startswith("    "):
            block.append(line.removeprefix("    "))
        elif block:
            blocks.append("\n".join(block) + "\n")
            block = []
    (found,) = (its for its in blocks if mark in its)
    return found


def calls(script: str, folder: Path, *, of: Sequence[str], **variables: str) -> list[list[str]]:
    """How a script calls programs."""
    programs, said = folder / "programs", folder / "called"
    programs.mkdir(exist_ok=True)
    said.unlink(missing_ok=True)
    for name in of:
        program = programs / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> "{said}"\necho >> "{said}"\necho first\n')
        program.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", **variables}
    subprocess.run(["bash", "-eu", "-c", script], cwd=folder, env=environment, check=True, timeout=60)
    return [line.split("\0")[:-1] for line in said.read_text().splitlines()]


def here(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code in (0, 1), done.output


def contents(out: Path) -> dict[str, bytes]:
    files = [file for file in out.rglob("*") if file.is_file() and not file.name.endswith(".partial")]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "study.py"
    file.write_text(STUDY.replace("first(5)", "first(2)").replace("unit_images=1", "unit_images=1, reference=False"))
    return file


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "run"
    here("run", study, "--out", out, "--workers", 1)
    return contents(out)


SHARDS = {
    "an array of Slurm": ("SLURM_ARRAY_TASK_ID", ("SLURM_ARRAY_TASK_ID",), {}),
    "variables of a launcher": ("$RANK/$WORLD_SIZE", ("RANK", "LOCAL_RANK"), {"WORLD_SIZE": "2"}),
}


@pytest.mark.parametrize("what", SHARDS)
def test_shards_given_by_variables_make_the_whole(
    what: str, study: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    mark, numbers, more = SHARDS[what]
    out = tmp_path / "run"
    for i in range(2):
        variables = {"STUDY": str(study), "OUT": str(out), "DEVICE": "cpu", **dict.fromkeys(numbers, str(i)), **more}
        (words,) = calls(recipe(mark), tmp_path, of=["depura"], **variables)
        here(*words[1:], "--workers", 1)
    assert contents(out) == whole


def test_the_script_of_slurm_takes_a_gpu_by_default(tmp_path: Path) -> None:
    (words,) = calls(recipe("SLURM_ARRAY_TASK_ID"), tmp_path, of=["depura"], SLURM_ARRAY_TASK_ID="1")
    assert words[words.index("--device") + 1] == "cuda"
    assert words[words.index("--shard") + 1] == "1/2"
    (words,) = calls(
        recipe("$RANK/$WORLD_SIZE"), tmp_path, of=["depura"], STUDY="s.py", OUT="r", RANK="9", LOCAL_RANK="1",
        WORLD_SIZE="16",
    )  # fmt: skip
    assert words[words.index("--device") + 1] == "cuda:1"


def test_ray_on_slurm(tmp_path: Path) -> None:
    """tests/end_to_end/test_ray.py computes on a cluster; here is what is called."""
    variables = {"STUDY": "s.py", "OUT": "r", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    called = calls(recipe("symmetric-run"), tmp_path, of=["srun", "scontrol"], **variables)
    assert called[0] == ["scontrol", "show", "hostnames", "n[1-2]"]
    start = ["srun", "ray", "symmetric-run", "--address", "first:6379", "--min-nodes", "2", "--"]
    assert called[1][: len(start)] == start
    assert called[1][len(start) : len(start) + 2] == ["depura", "run"]


@pytest.mark.slow
def test_shards_without_a_common_disk_are_merged_by_copying(
    study: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """One is killed with -9 and given again."""
    for i in range(2):
        part = tmp_path / "shards" / str(i)
        words = ["run", study, "--out", part, "--shard", f"{i}/2", "--workers", 1]
        if i == 1:
            process = Depura(words, study.parent)
            while process.poll() is None and len(list(part.glob("units/[!.]*.npz"))) < 3:
                pass
            process.kill()
            assert len(list(part.glob("units/[!.]*.npz"))) < 6, "it was over before it was killed"
        assert Depura(words, study.parent).wait() in (0, 1)
    units = tmp_path / "runs" / "diffpure" / "units"
    script = recipe("cp -n")
    (words,) = calls(script, tmp_path, of=["depura"])
    copied = {f"units/{file.name}": file.read_bytes() for file in units.iterdir()}
    assert copied == {name: data for name, data in whole.items() if name.startswith("units/")}
    assert words[:2] == ["depura", "run"]
    here("run", study, *words[3:-1], tmp_path / words[-1], "--workers", 1)
    assert contents(tmp_path / "runs" / "diffpure") == whole


def test_every_command_of_the_page_has_its_options() -> None:
    """Of the lines that call depura, with what Slurm and Kubernetes are told."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("    ")]
    called = [line[line.index("depura run") :] for line in lines if "depura run" in line]
    known = {option for parameter in command_named("run").params for option in parameter.opts}
    for line in called:
        assert {word for word in shlex.split(line) if word.startswith("--")} <= known, line
    assert len(called) >= 10
