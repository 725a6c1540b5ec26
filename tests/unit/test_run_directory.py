"""Run directories: what is written comes back, and what is damaged or of another study is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.records import ByHand, edited

from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.schema import LAYOUT

BY_HAND = ByHand([0, 1])
HEADER = BY_HAND.header([BY_HAND.row("adaptive")])
NAME = "adaptive_eps0.1_00000-00002"


def unit(value: float = 1.0) -> Unit:
    arrays = {"x": np.array([value, 2.0]), "titles": np.asarray(["clean", "purified"])}
    return Unit(arrays, BY_HAND.facts("adaptive", rows_at_once=8))


def test_a_unit_comes_back_as_it_went_in(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r", HEADER)
    assert not run.has(NAME)
    assert (run.done, run.missing) == (0, ("null-defence_eps0.1_00000-00002", NAME))
    run.commit(unit())
    assert (run.done, run.missing) == (1, ("null-defence_eps0.1_00000-00002",))
    back = RunDirectory.open(tmp_path / "r").load(NAME)
    assert back.facts == unit().facts
    assert back.arrays["x"].tolist() == [1.0, 2.0]
    assert back.arrays["titles"].tolist() == ["clean", "purified"]
    assert [u.facts.unit for u in run.units()] == [NAME]


def test_equal_units_are_equal_bytes(tmp_path: Path) -> None:
    a, b = (RunDirectory.create(tmp_path / name, HEADER) for name in "ab")
    a.commit(unit())
    b.commit(Unit(dict(reversed(list(unit().arrays.items()))), unit().facts))
    assert a.file(NAME).read_bytes() == b.file(NAME).read_bytes()


def test_a_commit_leaves_nothing_else_behind(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit(unit())
    assert sorted(p.name for p in tmp_path.rglob("*")) == [f"{NAME}.npz", "study.json", "units"]


def test_the_same_study_may_come_back_by_another_command(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, HEADER)
    again = RunDirectory.create(tmp_path, edited(HEADER, "command", to="another"))
    assert again.header.command == HEADER.command


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"t_star": 0.2, "steps": [1, 2]}, r"methods\[0\]\.defence\.t_star is 0\.1 there and 0\.2 here"),
        ({"t_star": 0.1, "steps": [1, 3]}, r"methods\[0\]\.defence\.steps\[1\] is 2 there and 3 here"),
        ({"t_star": 0.1, "steps": [1]}, r"methods\[0\]\.defence\.steps\[1\] is 2 there and missing here"),
    ],
)
def test_another_study_is_refused_and_told_apart(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    place = ("methods", 0, "defence")
    RunDirectory.create(tmp_path, edited(HEADER, *place, to={"t_star": 0.1, "steps": [1, 2]}))
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(RecordError, match=named):
        RunDirectory.create(tmp_path, edited(HEADER, *place, to=changed))
    assert (tmp_path / "study.json").read_bytes() == before


def test_a_study_of_another_name_is_refused(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, HEADER)
    with pytest.raises(RecordError, match='name is "by-hand" there and "b" here'):
        RunDirectory.create(tmp_path, edited(HEADER, "name", to="b"))


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RecordError, match="folder of other files"):
        RunDirectory.create(tmp_path, HEADER)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="--out"):
        RunDirectory.create(tmp_path / "file" / "run", HEADER)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"schema": 99}'])
def test_what_is_not_a_run_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(RecordError, match="run directory"):
        RunDirectory.open(tmp_path)


def damage(data: bytes, kind: str) -> bytes:
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "flipped":
        middle = data.index(b"x.npy") + 60
        return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    return {"empty": b"", "foreign": b"hello world"}[kind]


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_unit_is_named(tmp_path: Path, kind: str) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit(unit())
    file = run.file(NAME)
    file.write_bytes(damage(file.read_bytes(), kind))
    with pytest.raises(RecordError, match=rf"{NAME}\.npz.*Delete this file"):
        run.load(NAME)


def test_a_unit_under_another_name_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit(unit())
    run.file(NAME).rename(run.file("v"))
    with pytest.raises(RecordError, match=f"record of v, got that of {NAME}"):
        run.load("v")


def test_a_unit_of_another_study_is_refused(tmp_path: Path) -> None:
    """Of the same name and whole, but of another seed; one of another command is taken."""
    run, same, other = (
        RunDirectory.create(tmp_path / name, head)
        for name, head in (
            ("a", HEADER), ("b", edited(HEADER, "command", to="another")), ("c", edited(HEADER, "seed", to=8)),
        )
    )  # fmt: skip
    run.commit(unit())
    for there in (same, other):
        there.file(NAME).write_bytes(run.file(NAME).read_bytes())
    assert same.load(NAME).facts == unit().facts
    with pytest.raises(RecordError, match="expected a record of this study, got that of another one"):
        other.load(NAME)


def test_facts_that_were_changed_are_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit(unit())
    with np.load(run.file(NAME)) as stored:
        arrays = dict(stored)
    facts = json.loads(arrays["meta"].tobytes())
    arrays["meta"] = np.frombuffer(json.dumps({**facts, "device": "cuda"}).encode(), dtype=np.uint8)
    np.savez(run.file(NAME), **arrays)
    with pytest.raises(RecordError, match="expected the contents that its digest was taken of"):
        run.load(NAME)


def test_files_that_are_no_units_are_named(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit(unit())
    assert run.foreign() == ()
    (tmp_path / "units" / "notes.txt").touch()
    assert run.foreign() == (tmp_path / "units" / "notes.txt",)


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..\\elsewhere"])
def test_names_of_units_do_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    run = RunDirectory.create(tmp_path / "r", HEADER)
    raw = HEADER.as_json()
    raw["units"][1]["unit"] = name
    (tmp_path / "r" / "study.json").write_text(json.dumps(raw))
    run.commit(unit())
    run.file(NAME).rename(tmp_path / "elsewhere.npz")
    run = RunDirectory.open(tmp_path / "r")
    for read in (lambda: run.missing, lambda: run.load(name), lambda: list(run.units())):
        with pytest.raises(RecordError, match=r"expected names of units without / and \\, got '.*elsewhere'"):
            read()


def test_pickles_are_not_read(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    np.savez(run.file(NAME), meta=np.array([{"unit": NAME}], dtype=object), allow_pickle=True)
    with pytest.raises(RecordError, match="Delete this file"):
        run.load(NAME)


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    there = json.loads((tmp_path / "study.json").read_text())
    assert there == run.raw == HEADER.as_json()
    assert there["schema"] == LAYOUT
    assert run.header == HEADER
