"""Runs of the same study beside a run, from records made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.records import edited
from tests.unit import test_summary
from typer.testing import CliRunner

from depura.analysis.beside import runs_beside
from depura.analysis.summary import summarise
from depura.cli import app
from depura.records.directory import RunDirectory
from depura.records.schema import Header


def made(folder: Path, name: str, head: Header | None = None, **changed: Any) -> RunDirectory:
    """A run of the study of test_summary in a folder of that name."""
    run = test_summary.made(folder / "parts", head or test_summary.header(**changed))
    shutil.move(run.path, folder / name)
    return RunDirectory.open(folder / name)


def test_other_seeds_and_other_images_are_listed_by_name(tmp_path: Path) -> None:
    run = made(tmp_path, "b")
    assert runs_beside(run) == ()
    made(tmp_path, "c", seed=3)
    made(tmp_path, "a", seed=5)
    made(tmp_path, "d", edited(test_summary.header(), "data", "ids", to=[20, 11, 12, 13]))
    number = f"at most {100 * summarise(run).strongest.single.value:.1f} %"  # type: ignore[union-attr]
    assert [other.text for other in runs_beside(run)] == [
        f"a (seed 5): {number}",
        f"c (seed 3): {number}",
        f"d (seed 7, other images): {number}",
    ]
    assert [other.name for other in runs_beside(RunDirectory.open(tmp_path / "a"))] == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("name",), "another"),
        (("data", "name"), "other digits"),
        (("threat_model", "eps"), 0.2),
        (("methods", 0, "note"), "another"),
        (("rows", 2, "attack", "n_steps"), 40),
    ],
)
def test_other_studies_are_none_of_it(tmp_path: Path, path: tuple[Any, ...], to: Any) -> None:
    run = made(tmp_path, "a")
    head = edited(test_summary.header(seed=3), *path, to=to)
    other = RunDirectory.create(tmp_path / "b", head)
    assert runs_beside(run) == ()
    assert runs_beside(other) == ()


def test_the_same_run_copied_is_no_other_run(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    shutil.copytree(run.path, tmp_path / "b")
    assert runs_beside(run) == ()


def test_runs_under_way_and_without_a_headline_are_named(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    half = made(tmp_path, "b", seed=3)
    next(iter((half.path / "units").iterdir())).unlink()
    refused = made(tmp_path, "c", test_summary.header(seed=4))
    next((refused.path / "units").glob("reference*")).unlink()
    said = {other.name: other.number for other in runs_beside(run)}
    n = len(run.header.units)
    assert said == {"b": f"under way, {n - 1} of {n} units done", "c": f"under way, {n - 1} of {n} units done"}


def test_what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    run = made(tmp_path, "a")
    made(tmp_path, "c", seed=3)
    broken = made(tmp_path, "b", seed=5)
    for file in (broken.path / "units").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    for name, text in {
        "d": "{",
        "e": "[]",
        "f": '{"name": "by-hand"}',
        "g": '{"name": "by-hand", "schema": 99}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(text, encoding="utf-8")
    (tmp_path / "h").mkdir()
    (tmp_path / "i").write_text("a file", encoding="utf-8")
    assert [other.name for other in runs_beside(run)] == ["c"]


def test_the_commands_print_them_and_the_files_do_not_change(tmp_path: Path) -> None:
    """A report's files are made of the record alone, so that anybody can make them again."""
    run = made(tmp_path, "a")
    CliRunner().invoke(app, ["report", f"{run.path}"])
    before = [(run.path / name).read_bytes() for name in ("report.md", "report.html")]
    made(tmp_path, "b", seed=3)
    done = CliRunner().invoke(app, ["report", f"{run.path}"])
    assert "beside   b (seed 3): at most " in done.output
    assert [(run.path / name).read_bytes() for name in ("report.md", "report.html")] == before
    claimed = CliRunner().invoke(app, ["claim", f"{run.path}"])
    assert "Other runs of this study beside it:\n- b (seed 3): at most " in claimed.output
