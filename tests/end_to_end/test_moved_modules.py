"""A record outlives the code: files are moved, a class is renamed with an alias, and every record still holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import results

ROOT = Path(__file__).parents[2]
OLDER = ROOT / "tests" / "data" / "records" / "layout5"
HAS_DATA = "DEPURA_CIFAR10" in os.environ and "DEPURA_RESNET20" in os.environ

MOVED = {
    "defence": "decision",
    "purifiers/purifier": "purifiers/reverse",
    "gradients/stored": "gradients/kept",
    "attacks/threat": "attacks/ball",
    "image_ops": "filters",
    "models/networks/wrappers": "models/networks/around",
}
"""Modules, and what they are called in the copy."""

ALIAS = '    "depura.StoredState": "depura.StatesInMemory",\n'


def moved(folder: Path) -> Path:
    """A copy of the source with other file names, and with a class of another name."""
    source = Path(shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__")))
    for old, new in MOVED.items():
        (source / "depura" / f"{old}.py").rename(source / "depura" / f"{new}.py")
    for file in source.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for old, new in MOVED.items():
            dotted, other = (f"depura.{path.replace('/', '.')}" for path in (old, new))
            text = re.sub(rf"\b{re.escape(dotted)} import\b", f"{other} import", text)
        text = re.sub(r"\bStoredState\b", "StatesInMemory", text)
        if file.name == "names.py" and file.parent.name == "records":
            text = text.replace("ALIASES: dict[str, str] = {\n", "ALIASES: dict[str, str] = {\n" + ALIAS)
        file.write_text(text, encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved(tmp_path_factory.mktemp("moved"))


def verified(source: Path, record: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `depura verify` by the code of the copy, and what it says."""
    command = [sys.executable, "-m", "depura", "verify", str(record), "--remake", "0", "--json", *words]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{"), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_copy_is_what_is_run(copy: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import depura.decision as d; print(d.__file__)"],
        env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == str(copy / "depura" / "decision.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "study"),
    [("compared", "old_compared.py"), ("rescored", "old_one.py"), ("extended", "old_one.py")],
)
def test_an_older_record_holds_after_modules_were_moved(copy: Path, record: str, study: str) -> None:
    code, told = verified(copy, OLDER / record, "--study", str(OLDER / study))
    failed = [check for check in told["checks"] if check["status"] == "FAIL"]
    assert (code, told["outcome"], failed) == (0, "holds", [])


@pytest.mark.slow
@pytest.mark.parametrize("record", results.RECORDS if HAS_DATA else results.RECORDS[:1])
def test_a_published_record_holds_after_modules_were_moved(copy: Path, record: str) -> None:
    """With the data at hand all of it; else what the record says is read in names as they are, and the report is the
    same."""
    words = ["--study", "studies/cifar10.py"] if HAS_DATA else []
    code, told = verified(copy, results.FOLDER / record, *words)
    failed = [check for check in told["checks"] if check["status"] == "FAIL"]
    assert (code, failed) == (0 if HAS_DATA else 3, [])


@pytest.mark.slow
def test_a_record_made_before_the_move_is_gone_on_with_where_only_names_changed(copy: Path, tmp_path: Path) -> None:
    """A run of this code, read by the code of the copy: the study built there has the same names."""
    words = ["-S", "images=2", "-S", "attack_steps=1", "-S", "eot=1", "-S", "report_draws=4", "-S", "curve="]
    run = [sys.executable, "-m", "depura", "run", "studies/digits.py", "--out", str(tmp_path / "r"), "--workers", "1"]
    subprocess.run([*run, *words], cwd=ROOT, capture_output=True, check=False)
    code, told = verified(copy, tmp_path / "r", "--study", "studies/digits.py")
    failed = [check for check in told["checks"] if check["status"] == "FAIL"]
    assert (code, failed) == (0, []), told
