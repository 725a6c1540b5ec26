"""Every example runs as it stands."""

import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

import depura
from depura.attacks.pgd import PGD
from depura.cli import app, command_named

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images, attacks of two steps, shorter walks and few draws, whatever is asked for."""
    first, study, wrap, ddpm = depura.ImageSet.first, depura.Study, depura.wrap, depura.ddpm_steps
    few = {"select_draws": 2, "report_draws": 2, "reference": False}
    monkeypatch.setattr(
        depura, "wrap", lambda code, **its: wrap(code, **its | ({"n_steps": 1} if "n_steps" in its else {}))
    )
    monkeypatch.setattr(depura, "ddpm_steps", lambda schedule, **its: ddpm(schedule, **its | {"n_steps": 10}))
    monkeypatch.setattr(depura.ImageSet, "first", lambda data, n: first(data, min(n, 3)))
    monkeypatch.setattr(depura, "Study", lambda **settings: study(**settings | few))
    monkeypatch.setattr(depura, "PGD", lambda ball, n_steps, **settings: PGD(ball, n_steps=min(n_steps, 2), **settings))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
@pytest.mark.usefixtures("smaller", "without_figures", "without_clock")
def test_examples_run(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "study" in script.stem:
        words = ["run", str(script), "--out", "r", "--workers", "1", "-S", "images=2", "-S", "votes=3"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (0, 1), done.output  # two images may be too few for a headline
        assert done.stdout.strip()
    else:
        runpy.run_path(str(script), run_name="__main__")
        assert capsys.readouterr().out.strip()


def test_examples_are_short() -> None:
    assert len(SCRIPTS) == 6
    assert all(len(p.read_text().splitlines()) <= 60 for p in SCRIPTS)


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for folder in ("examples", "studies", "docs"):
        for word in text.replace("(", " ").replace(")", " ").replace("`", " ").split():
            if word.startswith(f"{folder}/") and "." in word:
                assert (ROOT / word.partition(":")[0].rstrip(".,:;")).exists(), word


@pytest.mark.usefixtures("smaller")
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


@pytest.mark.slow
def test_a_defence_of_ones_own_is_judged_and_its_record_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one command; what the record names as code is said, and run only where it is trusted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import torch\ndef purify(x): return x + 0.1 * torch.randn(x.shape)\n")
    words = ["judge", "mine.py:purify", "--classifier", "digits", "--out", "r", "--images", "2", "--workers", "1"]
    done = CliRunner().invoke(app, [*words, "--profile", "smoke"])
    assert done.exit_code == 0, done.output
    assert "robust accuracy at most 0.0 %" in done.stdout
    assert (
        "depura judge of mine.py:purify and digits, which was not run"
        in CliRunner().invoke(app, ["verify", "r"]).stdout
    )
    trusted = CliRunner().invoke(app, ["verify", "r", "--trust", "--share", "1"])
    assert trusted.exit_code == 0, trusted.output
    refused = CliRunner().invoke(
        app, ["purify", "x.png", "--out", "y.png", "--purifier", "mine.py:purify", "--steps", "3"]
    )
    assert refused.exit_code == 2
    assert "expected --purifier alone" in refused.stderr
