"""The methods folder as a whole: short files, a complete list, and the page that says how to add one."""

from __future__ import annotations

import ast
import io
import json
import re
import runpy
import tokenize
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cases import NFE
from depura.cli import app

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "src" / "depura" / "methods").glob("[a-z]*.py"))


def code_lines(text: str) -> int:
    """Lines that hold code: not blank, not a comment, not part of a docstring."""
    tree = ast.parse(text)
    held = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - held)


def test_lines_are_counted() -> None:
    head = '"""Doc.\n\nMore."""\n\n# comment\nx = 1  # one\n'
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
    assert "reconstruction" in found["agdm_cifar"]["remark"]


def test_list_is_printed() -> None:
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("DiffPure", "MimicDiffusion", "AGDM: reconstruction", "470 x10"))


def test_every_method_is_listed_and_its_deviations_are_described() -> None:
    lines = json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    text = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    anchors = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.+)$", text, re.M)}
    wanted = {line["deviations"].partition("#")[2] for line in lines if line["deviations"]}
    assert wanted <= anchors
    for file in FILES:
        assert set(re.findall(r"deviations\.md#([a-z-]+)", file.read_text(encoding="utf-8"))) <= anchors


def test_the_method_on_the_page_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """docs/adding-a-method.md shows a whole method in under 40 lines, and what it prints."""
    text = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(block.splitlines()) < 40
    (tmp_path / "method.py").write_text(block, encoding="utf-8")
    runpy.run_path(str(tmp_path / "method.py"))
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.S)
    assert capsys.readouterr().out == shown
