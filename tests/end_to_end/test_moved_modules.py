"""A record outlives the code: files are moved, a class is renamed with an alias, and every record still holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from depura.cli import app
from experiments import results

pytestmark = pytest.mark.slow
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


SETTINGS = [f"-S{word}" for word in ("images=2", "attack_steps=1", "eot=1", "report_draws=4", "curve=", "n_steps=2")]
MADE_BEFORE = ("compared", "old_compared.py"), ("rescored", "old_one.py"), ("extended", "old_one.py")
PUBLISHED = results.RECORDS if HAS_DATA else results.RECORDS[:1]

VERIFY = """
import json, sys
from typer.testing import CliRunner
import depura.decision
from depura.cli import app

found = {name: CliRunner().invoke(app, words) for name, words in json.load(sys.stdin).items()}
json.dump([depura.decision.__file__, {name: (done.exit_code, done.stdout) for name, done in found.items()}], sys.stdout)
"""
"""What is run in the copy: several commands in one process."""


class Said(NamedTuple):
    """The file of a moved module, and exit code and output of `depura verify` by record."""

    file: Path
    codes: dict[str, tuple[int, str]]

    def of(self, record: str) -> tuple[int, dict[str, Any]]:
        code, text = self.codes[record]
        assert text.startswith("{"), text
        return code, json.loads(text)


@pytest.fixture(scope="module")
def said(copy: Path, without_clock: None, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Records of older code, published ones, and one of a run of this code, read by the code of the copy."""
    now = tmp_path_factory.mktemp("now") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        words = ["run", "studies/digits.py", "--out", str(now), "--workers", "1", *SETTINGS]
        assert CliRunner().invoke(app, words).exit_code in (0, 1)
    records = {name: [OLDER / name, "--study", OLDER / study] for name, study in MADE_BEFORE}
    records |= {name: [results.FOLDER / name, *["--study", "studies/cifar10.py"][: 2 * HAS_DATA]] for name in PUBLISHED}
    records["now"] = [now, "--study", "studies/digits.py"]
    asked = {name: ["verify", *map(str, words), "--remake", "0", "--json"] for name, words in records.items()}
    done = subprocess.run(
        [sys.executable, "-c", VERIFY], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(copy)}, input=json.dumps(asked),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    file, codes = json.loads(done.stdout)
    return Said(Path(file), codes)


def failed(told: dict[str, Any]) -> list[Any]:
    return [check for check in told["checks"] if check["status"] == "FAIL"]


def test_the_copy_is_what_is_run(copy: Path, said: Said) -> None:
    assert said.file == copy / "depura" / "decision.py"


@pytest.mark.parametrize("record", [name for name, _ in MADE_BEFORE])
def test_an_older_record_holds_after_modules_were_moved(said: Said, record: str) -> None:
    code, told = said.of(record)
    assert (code, told["outcome"], failed(told)) == (0, "holds", [])


@pytest.mark.parametrize("record", PUBLISHED)
def test_a_published_record_holds_after_modules_were_moved(said: Said, record: str) -> None:
    """With the data at hand all of it; else what the record says is read in names as they are, and the report is the
    same."""
    code, told = said.of(record)
    assert (code, failed(told)) == (0 if HAS_DATA else 3, [])


def test_a_record_made_before_the_move_is_gone_on_with_where_only_names_changed(said: Said) -> None:
    """A run of this code: the study built by the code of the copy has the same names."""
    code, told = said.of("now")
    assert (code, failed(told)) == (0, []), told
