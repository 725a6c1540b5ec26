"""Records of layout 5, made by the code of that time: they are read, judged, compared and rescored as ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from depura.analysis.checks import CHECKS
from depura.analysis.comparison import compare_runs
from depura.analysis.summary import summarise
from depura.cli import app
from depura.records.directory import RecordError, RunDirectory
from depura.records.kinds import AttackKind, GradientMode
from depura.reports.export import run_columns

FOLDER = Path(__file__).parents[1] / "data" / "records" / "layout5"
STUDIES = {"extended": "old_one.py", "rescored": "old_one.py", "compared": "old_compared.py"}


def opened(name: str) -> RunDirectory:
    return RunDirectory.open(FOLDER / name)


@pytest.mark.parametrize("name", STUDIES)
def test_every_name_of_the_record_is_as_it_is_now(name: str) -> None:
    """No name says in which file a thing was."""
    run = opened(name)
    assert "depura.rules" in json.dumps(run.raw)
    said = json.dumps(run.header.as_json())
    assert "depura.rules" not in said
    assert '"depura.Single"' in said
    assert '"depura.Ball"' in said


def test_routes_have_the_names_of_gradient_modes() -> None:
    rows = {row.name: (row.kind, row.mode) for row in opened("compared").header.rows}
    assert rows["few-undefended"] == (AttackKind.UNDEFENDED, GradientMode.EXACT)
    assert rows["few-transfer"] == (AttackKind.TRANSFER, GradientMode.TRANSFER)
    assert rows["few-adaptive"] == (AttackKind.ADAPTIVE, GradientMode.EXACT)
    assert rows["few-bpda"] == (AttackKind.BPDA, GradientMode.BPDA)
    assert rows["trades-adaptive"] == (AttackKind.ADAPTIVE, GradientMode.EXACT)


def test_one_defence_is_a_method_without_a_name() -> None:
    header = opened("extended").header
    assert not header.compares
    assert [method.name for method in header.methods] == [""]
    assert header.methods[0].rule == {"type": "depura.Single", "n_draws": 1}
    assert [method.name for method in opened("compared").header.methods] == ["few", "noise", "trades"]


def test_further_draws_are_read_with_the_first_ones() -> None:
    """Six draws were made with the attack, three more by an extension."""
    run = opened("extended")
    assert run.header.draws.report == 9
    assert not run.missing
    units = [unit for unit in run.units() if unit.facts.audit is None]
    assert {unit.arrays["predictions"].shape for unit in units} == {(3, 9)}
    assert run.foreign() == ()
    attack = next(unit for unit in units if unit.facts.row == "adaptive")
    first = run.read(attack.facts.unit)
    assert np.array_equal(attack.arrays["predictions"][:, :6], first.arrays["predictions"])


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_judged_by_all_checks(name: str) -> None:
    summary = summarise(opened(name))
    methods = len(summary.header.methods)
    assert len(summary.verdicts) == len(CHECKS) * methods
    assert summary.complete
    assert len(run_columns(opened(name))["image"]) == 3 * (len(summary.header.rows) + len(summary.header.curve.eps))


def test_examples_made_against_another_rule_are_transferred_ones() -> None:
    """The vote was never attacked: no headline."""
    summary = summarise(opened("rescored"))
    kinds = {row.name: row.kind for row in summary.header.rows}
    assert kinds["adaptive"] is kinds["bpda"] is AttackKind.TRANSFER
    assert summary.refused
    assert "No attack differentiates the defence that is judged" in summary.headline


def test_two_of_them_are_compared() -> None:
    """The same images, another rule: refused in a sentence; with itself: no difference."""
    with pytest.raises(ValueError, match="deployed rule"):
        compare_runs(opened("extended"), opened("rescored"))
    same = compare_runs(opened("extended"), opened("extended"))
    assert not same.detectable


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_it_verifies_against_its_study(name: str) -> None:
    """What computed it was other code, and says so; nothing else differs, though every name is another one."""
    done = CliRunner().invoke(
        app, ["verify", str(FOLDER / name), "--study", str(FOLDER / STUDIES[name]), "--share", "1", "--json"]
    )
    told = json.loads(done.stdout)
    by_name = {(check["id"], check["name"]): check for check in told["checks"]}
    assert done.exit_code == 0, told
    assert told["outcome"] == "holds"
    for part in ("data", "defence", "attacks", "study"):
        assert by_name["hash", part]["status"] == "PASS"
    assert by_name["hash", "code"]["status"] == "WARN"
    remade = by_name["remake", "the attack"]["status"]
    # The mean margin of draws made in two stages is rounded otherwise than that of all at once.
    assert remade == {"rescored": "not run", "extended": "WARN", "compared": "PASS"}[name]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "extended", tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    file = run.file("adaptive_eps0.2_00000-00003")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordError, match=r"adaptive_eps0\.2_00000-00003"):
        list(RunDirectory.open(tmp_path / "run").units())


def test_it_is_not_extended_by_this_code(tmp_path: Path) -> None:
    """Its draws were made in two stages, and other code would compute the new units: refused, nothing is changed."""
    shutil.copytree(FOLDER / "extended", tmp_path / "run")
    before = (tmp_path / "run" / "study.json").read_bytes()
    words = ["extend", str(tmp_path / "run"), "--study", str(FOLDER / "old_one.py"), "-S", "images=4"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "expected the same study with more to it" in done.output
    assert (tmp_path / "run" / "study.json").read_bytes() == before
