"""The methods folder as a whole: short files, a complete list, and the page that says how to add one."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import depura
from cases import NFE
from depura.cli import app
from depura.data import files

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "src" / "depura" / "methods").glob("[a-z]*.py"))


def code_lines(text: str) -> int:
    """Lines that hold code: not blank, not a comment, not an import, not part of a docstring."""
    tree = ast.parse(text)
    left_out = {
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str))
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - left_out)


def test_lines_are_counted() -> None:
    head = '"""Doc.\n\nMore."""\n\nimport a\nfrom b import (\n    c,\n)\n\n# comment\nx = 1  # one\n'
    body = 'def f(\n    a,\n):\n    """Doc."""\n    return [\n        a,\n    ]\n'
    assert code_lines(head + body) == 7


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_method_files_are_short(file: Path) -> None:
    assert code_lines(file.read_text(encoding="utf-8")) <= 80


def test_list_of_methods() -> None:
    """Evaluations of the published settings, as the papers' numbers of steps give them."""
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0, result.output
    found = {line["setting"]: line for line in json.loads(result.output)}
    nfe = {name: n for name, n in NFE.items() if name not in {"mimic_edm", "noise_only"}} | {"noise": 0}
    assert {name: found[name]["nfe"] for name in nfe} == nfe
    assert found["lk_gradual_cifar"]["predictions"] == 10
    assert "reconstructed" in found["agdm_cifar"]["remark"]


def test_list_is_printed() -> None:
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("DiffPure", "MimicDiffusion", "AGDM: reconstructed from", "470 x10"))


def test_every_method_is_listed_and_its_deviations_are_described() -> None:
    lines = json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.+)$", text, re.M)}
    wanted = {line["deviations"].partition("#")[2] for line in lines if line["deviations"]}
    assert wanted <= anchors
    for file in FILES:
        assert set(re.findall(r"deviations\.md#([a-z-]+)", file.read_text(encoding="utf-8"))) <= anchors


@pytest.fixture(scope="module")
def page() -> tuple[str, str, str]:
    """docs/adding-a-method.md: a method's file, a script that uses it, and what that prints."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    file, script = re.findall(r"```python\n(.*?)```", text, re.S)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.S)
    return file, script, shown


@pytest.fixture(scope="module")
def with_one_more(page: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the page's file, its line in METHODS and its import."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "src" / "depura", copy / "depura", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "depura" / "methods" / "blur_guided.py").write_text(page[0], encoding="utf-8")
    table = copy / "depura" / "methods" / "table.py"
    text = table.read_text(encoding="utf-8")
    for before in ("    baselines,\n", "        baselines.METHOD,\n"):
        assert text.count(before) == 1
        text = text.replace(before, before.replace("baselines", "blur_guided") + before)
    table.write_text(text, encoding="utf-8")
    return copy


def of_copy(copy: Path, *words: str | Path) -> str:
    """What python prints with the sources of the copy."""
    told = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=told, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_method_on_the_page_is_short_and_runs(page: tuple[str, str, str], with_one_more: Path) -> None:
    file, script, shown = page
    assert code_lines(file) < 40
    assert of_copy(with_one_more, "-c", script) == shown


@pytest.mark.slow
def test_a_method_of_one_line_is_listed_and_compared(with_one_more: Path) -> None:
    lines = json.loads(of_copy(with_one_more, "-m", "depura", "methods", "--json"))
    (line,) = [line for line in lines if line["method"] == "blur guidance"]
    assert (line["setting"], line["nfe"], line["guidance"]) == ("blur_guided", 6, "TowardBlurred")
    script = (
        "from pathlib import Path\nfrom depura.evaluation.study_file import StudySource\n"
        "study = StudySource(Path('studies/digits_methods.py'), (('images', '1'),)).load()\n"
        "print({name: defence.purifier and defence.purifier.n_steps for name, defence in study.methods.items()})"
    )
    compared = ast.literal_eval(of_copy(with_one_more, "-c", script))
    assert compared["blur-guided"] == 6
    assert len(compared) == 17


@pytest.mark.slow
def test_a_method_of_one_line_purifies_by_its_name(
    page: tuple[str, str, str], with_one_more: Path, tmp_path: Path
) -> None:
    data = depura.load_digits("test").first(2)
    np.savez(tmp_path / "x.npz", image=data.images.numpy())
    words = ("purify", tmp_path / "x.npz", "--out", tmp_path / "y.npz", "--method", "blur-guided", "--steps", "9")
    of_copy(with_one_more, "-m", "depura", *words)
    (tmp_path / "blur_guided.py").write_text(page[0], encoding="utf-8")
    by_hand = runpy.run_path(str(tmp_path / "blur_guided.py"))["blur_guided"](depura.digits_denoiser(), n_steps=9)
    expected = by_hand(data.images, depura.Noise(0, files.load(tmp_path / "x.npz").ids)).clamp(0, 1)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "y.npz")["image"]), expected, atol=1e-5, rtol=0)
