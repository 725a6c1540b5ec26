"""Every example runs as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(SCRIPTS) == 5
    assert all(len(p.read_text().splitlines()) <= 60 for p in SCRIPTS)


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for folder in ("examples", "studies", "docs"):
        for word in text.replace("(", " ").replace(")", " ").replace("`", " ").split():
            if word.startswith(f"{folder}/") and "." in word:
                assert (ROOT / word.rstrip(".,:;")).exists(), word


def test_the_readme_code_runs() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python")[1:]]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
