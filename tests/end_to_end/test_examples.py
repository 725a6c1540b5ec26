"""Every example runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

from depura.cli import command_named

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    small = ["-S", "images=3", "-S", "votes=3"]
    words = ["-m", "depura", "run", str(script), "--out", str(tmp_path / "r"), "--workers", "1", *small]
    command = [sys.executable, *(words if "study" in script.stem else [str(script)])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    judged = "study" in script.stem  # three images may be too few for a headline
    assert done.returncode in ((0, 1) if judged else (0,)), done.stderr
    assert done.stdout.strip()


def test_examples_are_short() -> None:
    assert len(SCRIPTS) == 6
    assert all(len(p.read_text().splitlines()) <= 60 for p in SCRIPTS)


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for folder in ("examples", "studies", "docs"):
        for word in text.replace("(", " ").replace(")", " ").replace("`", " ").split():
            if word.startswith(f"{folder}/") and "." in word:
                assert (ROOT / word.partition(":")[0].rstrip(".,:;")).exists(), word


@pytest.mark.parametrize("page", ["README.md", "docs/judge-your-own.md"])
def test_the_code_of_pages_runs(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = [part.split("```")[0] for part in text.split("```python")[1:]]
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_the_readme_commands_are_there() -> None:
    """Every line that calls depura names a command, its options and its studies; test_cli.py runs them."""
    text = (ROOT / "README.md").read_text()
    lines = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("    .venv/bin/depura ")]
    assert len(lines) > 12
    for _, name, *words in lines:
        options = {option for parameter in command_named(name).params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, (name, words)
        assert all((ROOT / word).exists() for word in words if word.startswith(("studies/", "records/")))
