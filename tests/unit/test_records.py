import json
from pathlib import Path

import numpy as np
import pytest

from depura.evaluation.records import SCHEMA, RecordError, RunDirectory, Unit

HEADER = {"name": "a", "defence": {"t_star": 0.1, "steps": [1, 2]}, "units": [{"unit": "u"}], "command": "depura run"}


def unit(value: float = 1.0) -> Unit:
    return Unit({"x": np.array([value, 2.0]), "titles": np.asarray(["clean", "purified"])}, {"unit": "u", "eps": 0.1})


def test_a_unit_comes_back_as_it_went_in(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r", HEADER)
    assert not run.has("u")
    run.commit("u", unit())
    back = RunDirectory.open(tmp_path / "r").load("u")
    assert back.meta == unit().meta
    assert back.arrays["x"].tolist() == [1.0, 2.0]
    assert [u.meta["unit"] for u in run.units()] == ["u"]


def test_equal_units_are_equal_bytes(tmp_path: Path) -> None:
    a, b = (RunDirectory.create(tmp_path / name, HEADER) for name in "ab")
    a.commit("u", unit())
    b.commit("u", Unit(dict(reversed(list(unit().arrays.items()))), unit().meta))
    assert a.file("u").read_bytes() == b.file("u").read_bytes()


def test_a_commit_leaves_nothing_else_behind(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit("u", unit())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["study.json", "u.npz", "units"]


def test_the_same_study_may_come_back_by_another_command(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, HEADER)
    again = RunDirectory.create(tmp_path, {**HEADER, "command": "another"})
    assert again.header["command"] == "depura run"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"defence": {"t_star": 0.2, "steps": [1, 2]}}, r"defence\.t_star is 0\.1 there and 0\.2 here"),
        ({"defence": {"t_star": 0.1, "steps": [1, 3]}}, r"defence\.steps\[1\] is 2 there and 3 here"),
        ({"defence": {"t_star": 0.1, "steps": [1]}}, r"defence\.steps\[1\] is 2 there"),
        ({"name": "b"}, 'name is "a" there'),
    ],
)
def test_another_study_is_refused_and_told_apart(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    RunDirectory.create(tmp_path, HEADER)
    before = (tmp_path / "study.json").read_bytes()
    with pytest.raises(RecordError, match=named):
        RunDirectory.create(tmp_path, {**HEADER, **changed})
    assert (tmp_path / "study.json").read_bytes() == before


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
    run.commit("u", unit())
    file = run.file("u")
    file.write_bytes(damage(file.read_bytes(), kind))
    with pytest.raises(RecordError, match=r"u\.npz.*Delete this file"):
        run.load("u")


def test_a_unit_under_another_name_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    run.commit("v", unit())
    with pytest.raises(RecordError, match="record of v, got that of u"):
        run.load("v")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    np.savez(run.file("u"), meta=np.array([{"unit": "u"}], dtype=object), allow_pickle=True)
    with pytest.raises(RecordError, match="Delete this file"):
        run.load("u")


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, HEADER)
    assert json.loads((tmp_path / "study.json").read_text()) == run.header == {"schema": SCHEMA, **HEADER}
