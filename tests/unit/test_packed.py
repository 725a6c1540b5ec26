"""Packed units are read as if each had a file of its own, nothing is lost on the way, and reading holds little."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.records import ByHand
from typer.testing import CliRunner

from depura import _atomic
from depura.analysis.summary import summarise
from depura.analysis.verification import file_verdict
from depura.cli import app
from depura.records import arrays, directory, packing, packs
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.packing import pack, unpack
from depura.reports.export import run_columns
from depura.reports.page import reports

BY_HAND = ByHand([0, 1, 2, 3, 4, 5], ids=[7, 3, 11, 2, 5, 8])
PARTS = ((0, 2), (2, 4), (4, 6))
NAME = "adaptive_eps0.1_00002-00004"
OLD = Path(__file__).parents[1] / "data" / "records" / "layout5"


def made(path: Path) -> RunDirectory:
    """A run of two attacks in three units each, with examples and pictures."""
    rows = [BY_HAND.row("adaptive"), BY_HAND.row("transfer")]
    header = BY_HAND.header(rows)
    cut = [BY_HAND.facts(row.name, first=first, last=last, rows_at_once=8) for row in rows for first, last in PARTS]
    entries = [entry for entry in header.units if entry.row.startswith("null-")]
    units = (*entries, *(type(entries[0])(**facts.model_dump(include=set(entries[0].model_dump()))) for facts in cut))
    run = RunDirectory.create(path, header.model_copy(update={"units": units}))
    rng = np.random.default_rng(0)
    run.commit(BY_HAND.null("null-defence", 1))
    for facts in cut:
        frames = rng.integers(0, 256, (1, 2, 1, 8, 8)).astype(np.uint8)
        run.commit(
            BY_HAND.attacked(
                facts.row,
                [1 + facts.first // 2, 3],
                first=facts.first,
                adversarial=rng.random((2, 1, 8, 8)).astype(np.float32),
                loss=np.asfortranarray(rng.random((2, 3))),
                picture_rows=[1],
                picture_frames=frames,
                picture_titles=["clean", "purified"],
            )
        )
    return run


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Such a run, to be copied."""
    return made(tmp_path_factory.mktemp("ready") / "r")


def copied(run: RunDirectory, to: Path) -> RunDirectory:
    shutil.copytree(run.path, to)
    return RunDirectory.open(to)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same(a: Unit, b: Unit) -> bool:
    """Equal facts, and arrays equal to the bit, with their types."""
    kinds = [{name: (array.dtype.str, array.shape) for name, array in unit.arrays.items()} for unit in (a, b)]
    bits = [{name: array.tobytes() for name, array in unit.arrays.items()} for unit in (a, b)]
    return a.facts == b.facts and kinds[0] == kinds[1] and bits[0] == bits[1]


@pytest.mark.parametrize(
    ("values", "kind", "smallest"),
    [
        ([-1, 9], "<i4", "int8"),
        ([-128, 127], "<i8", "int8"),
        ([-129, 0], "<i4", "int16"),
        ([0, 128], "<i4", "int16"),
        ([0, 2**31 - 1], "<i8", "int32"),
        ([0, 2**31], "<i8", "int64"),
        ([0, 255], "|u1", "uint8"),
        ([0, 200], "<u2", "uint16"),
        ([0, 200], "<u4", "int16"),
        ([], "<i8", "int64"),
        ([0.0, 1.0], "<f8", "float64"),
    ],
)
def test_whole_numbers_are_kept_small_and_come_back(
    tmp_path: Path, values: list[float], kind: str, smallest: str
) -> None:
    run = RunDirectory.create(tmp_path, BY_HAND.header([BY_HAND.row("adaptive")]))
    array = np.array(values, dtype=kind)
    facts = BY_HAND.facts("adaptive")
    run.commit(Unit({"x": array}, facts))
    with np.load(run.file(facts.unit)) as stored:
        assert stored["x"].dtype == smallest
    back = run.load(facts.unit).arrays["x"]
    assert (back.dtype, back.tolist()) == (array.dtype, values)


def test_layout_6_keeps_the_types_that_were_computed_in(tmp_path: Path) -> None:
    """A folder of that layout holds what it held before; it is read as the others are."""
    header = BY_HAND.header([BY_HAND.row("adaptive")])
    RunDirectory.create(tmp_path, header)
    (tmp_path / "study.json").write_text(json.dumps({**header.as_json(), "schema": 6}))
    run = RunDirectory.open(tmp_path)
    assert run.header == header
    unit = BY_HAND.attacked("adaptive", 1)
    run.commit(unit)
    with np.load(run.file(unit.facts.unit)) as stored:
        assert stored["predictions"].dtype == np.int32
        assert "types" not in json.loads(stored["meta"].tobytes())
    assert same(run.load(unit.facts.unit), unit)
    list(pack(run))
    assert same(run.load(unit.facts.unit), unit)


def test_a_type_that_is_none_of_whole_numbers_is_refused() -> None:
    for kind in ("<f4", "|O", "|i1", "<U2"):
        with pytest.raises(ValueError, match="wider type"):
            arrays.restored(np.zeros(2, dtype=np.int8), kind)


@pytest.mark.parametrize("kind", ["|b1", "|u1", "<i8", "<f4", ">f8", "<c8", "<U5", "|S3"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    bits = np.random.default_rng(0).integers(48, 57, 200)
    wanted = (bits[: int(np.prod(shape))] % 2 if kind == "|b1" else bits[: int(np.prod(shape))]).reshape(shape)
    for array in (wanted.astype(kind), np.asfortranarray(wanted.astype(kind))):
        np.savez_compressed(tmp_path / "a.npz", x=array)
        with zipfile.ZipFile(tmp_path / "a.npz") as file, np.load(tmp_path / "a.npz") as there:
            found = arrays.NpzFile(file)["x"]
            assert (found.dtype, found.shape) == (there["x"].dtype, there["x"].shape)
            assert np.array_equal(found, there["x"])


def test_packing_and_undoing_leave_the_files_as_they_were(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    before = contents(tmp_path)
    done = list(pack(run))
    assert [(its.row, its.units) for its in done] == [("null-defence", 1), ("adaptive", 3), ("transfer", 3)]
    names = sorted(path.name for path in (tmp_path / "r" / "units").iterdir())
    assert names == ["adaptive.zip", "null-defence.zip", "transfer.zip"]
    assert run.foreign() == ()
    assert (run.done, run.missing) == (7, ())
    assert list(pack(run)) == []
    assert len(list(unpack(RunDirectory.open(run.path)))) == 3
    assert contents(tmp_path) == before
    assert list(unpack(run)) == []


def test_a_packed_run_says_the_same(ready: RunDirectory, tmp_path: Path) -> None:
    """Units to the bit, reports to the byte, the table, and the same to another process."""
    loose, packed = ready, copied(ready, tmp_path / "packed")
    list(pack(packed))
    for again in (packed, RunDirectory.open(packed.path), pickle.loads(pickle.dumps(packed))):
        assert all(same(a, b) for a, b in zip(loose.units(), again.units(), strict=True))
    assert reports(summarise(packed)) == reports(summarise(loose))
    assert run_columns(packed) == run_columns(loose)
    assert len(summarise(loose).pictures) > 1


def test_equal_runs_are_packed_to_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        list(pack(made(tmp_path / name)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", ["extended", "rescored", "compared"])
def test_older_records_are_packed_and_undone(tmp_path: Path, name: str) -> None:
    shutil.copytree(OLD / name, tmp_path / "r")
    loose, run = RunDirectory.open(OLD / name), RunDirectory.open(tmp_path / "r")
    list(pack(run))
    assert all(same(a, b) for a, b in zip(loose.units(), run.units(), strict=True))
    list(unpack(run))
    assert {key.name for key in (tmp_path / "r" / "units").iterdir()} == {
        key.name for key in (OLD / name / "units").iterdir()
    }
    assert all(same(a, b) for a, b in zip(loose.units(), run.units(), strict=True))


def test_a_run_goes_on_in_a_packed_folder(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    unit = run.load(NAME)
    kept = Unit(dict(unit.arrays), unit.facts)
    run.file(NAME).unlink()
    list(pack(run))
    assert run.missing == (NAME,)
    run.commit(kept)
    assert run.missing == ()
    assert same(run.load(NAME), kept)
    assert [(its.row, its.units) for its in pack(run)] == [("adaptive", 3)]
    assert not run.file(NAME).exists()
    assert same(run.load(NAME), kept)


class Killed(BaseException):
    """Ends a process at some moment."""


@pytest.mark.parametrize("moment", range(1, 70, 4))
def test_packing_may_be_ended_at_any_moment(
    ready: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """At every flush, renaming and removal, and at every unit that is written: all units are there, and it goes on."""
    run = copied(ready, tmp_path / "r")
    left = [moment]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def before(place: object, name: str) -> None:
        there = getattr(place, name)

        def first_tick(*args: object, **kwargs: object) -> object:
            tick()
            return there(*args, **kwargs)

        monkeypatch.setattr(place, name, first_tick)

    before(os, "fsync")
    before(Path, "replace")
    before(Path, "unlink")
    before(packs, "_add")
    with contextlib.suppress(Killed):
        list(pack(run))
    monkeypatch.undo()
    again = RunDirectory.open(run.path)
    assert again.missing == ()
    assert again.foreign() == ()
    assert all(same(a, b) for a, b in zip(again.units(), ready.units(), strict=True))
    list(pack(again))
    assert sorted(path.name for path in (run.path / "units").iterdir()) == [
        "adaptive.zip",
        "null-defence.zip",
        "transfer.zip",
    ]
    list(unpack(again))
    assert contents(run.path) == contents(ready.path)


def test_a_packed_file_is_read_back_before_anything_is_removed(
    ready: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk gives back other bytes than were written, every unit keeps its file."""
    run = copied(ready, tmp_path / "r")
    there = packs._add

    def spoilt(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
        there(archive, name, data if name == packs.INDEX else bytes([data[0] ^ 1]) + data[1:])

    monkeypatch.setattr(packs, "_add", spoilt)
    with pytest.raises(RecordError, match="expected"):
        list(pack(run))
    assert contents(run.path) == contents(ready.path)


def changed(file: Path, name: str, edit: object) -> None:
    """Put other contents into a member of an archive, with checksums that hold."""
    with zipfile.ZipFile(file) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members[name] = edit(members[name])  # type: ignore[operator]
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def test_every_damaged_byte_of_a_packed_file_is_noticed(ready: RunDirectory, tmp_path: Path) -> None:
    """The units that are had are those that were packed."""
    run, whole = copied(ready, tmp_path / "r"), {unit.facts.unit: unit for unit in ready.units()}
    list(pack(run))
    file = run.pack_file("adaptive")
    data = file.read_bytes()
    noticed = 0
    for at in np.random.default_rng(0).choice(len(data), 24, replace=False):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        verdict, sound = file_verdict(RunDirectory.open(run.path))
        noticed += verdict.status.value == "FAIL"
        for unit in sound:
            assert same(unit, whole[unit.facts.unit])
    assert noticed > 12


def test_values_that_were_changed_in_a_packed_file_are_noticed(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    list(pack(run))
    where = run.packed("adaptive")
    assert where is not None
    block = where.unit(NAME)._where["predictions"][0]  # type: ignore[attr-defined]
    changed(run.pack_file("adaptive"), f"{block:06d}.bin", lambda data: bytes([data[0] ^ 1]) + data[1:])
    verdict, sound = file_verdict(RunDirectory.open(run.path))
    assert verdict.status.value == "FAIL"
    assert "expected the contents that its digest was taken of, got others. Give depura pack --undo" in verdict.sentence
    assert len(sound) == 6
    with pytest.raises(RecordError, match=r"got 1 damaged.*All others have files of their own now"):
        list(unpack(RunDirectory.open(run.path)))
    run.pack_file("adaptive").unlink()
    again = RunDirectory.open(run.path)
    assert again.missing == ("adaptive_eps0.1_00000-00002",)
    assert again.foreign() == ()


def test_damage_is_told_by_the_commands(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    list(pack(run))
    run.pack_file("adaptive").write_bytes(b"PK")
    done = CliRunner().invoke(app, ["verify", str(run.path)])
    assert done.exit_code == 1
    assert "adaptive.zip: expected a complete file" in done.output
    assert "4 of 7 units are there" in done.output
    for words in (["report", str(run.path)], ["pack", str(run.path)], ["pack", str(run.path), "--undo"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        assert "adaptive.zip: expected a complete file" in done.output


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..\\elsewhere", "notes"])
def test_names_in_a_packed_file_do_not_lead_out_of_the_folder(ready: RunDirectory, tmp_path: Path, name: str) -> None:
    run = copied(ready, tmp_path / "r")
    list(pack(run))
    text = name.replace("\\", "\\\\").encode()
    changed(run.pack_file("adaptive"), packs.INDEX, lambda data: data.replace(NAME.encode(), text))
    again = RunDirectory.open(run.path)
    assert again.missing == (NAME,)
    assert len(again.foreign()) == 1
    with pytest.raises(RecordError, match="expected only units of this run"):
        list(unpack(again))
    assert not list(tmp_path.rglob("*elsewhere*"))


def test_objects_in_a_packed_file_are_not_read(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    list(pack(run))
    changed(run.pack_file("adaptive"), packs.INDEX, lambda data: data.replace(b'"<f8"', b'"|O"'))
    with pytest.raises(RecordError, match="expected a complete record"):
        RunDirectory.open(run.path).load(NAME)


def test_the_command_packs_and_undoes(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    before = contents(run.path)
    said = [
        CliRunner().invoke(app, ["pack", str(run.path), *more]).output.split(":")[0]
        for more in ([], [], ["--undo"], ["--undo"])
    ]
    assert said == [
        "packed   7 units into 3 files",
        "nothing to do",
        "unpacked   7 units out of 3 files",
        "nothing to do",
    ]
    assert contents(run.path) == before
    (run.path / "units" / "notes.txt").touch()
    done = CliRunner().invoke(app, ["pack", str(run.path)])
    assert done.exit_code == 2
    assert "Move what is foreign away" in done.output


@pytest.mark.parametrize("packed", [False, True])
def test_reading_holds_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """For a summary examples are read for the digests alone, and frames of the shown pictures; one unit at a time."""
    run = made(tmp_path / "r")
    if packed:
        list(pack(run))
    asked: list[str] = []
    there = RunDirectory._arrays

    def noted(self: RunDirectory, name: str, wanted: list[str], known: object) -> object:
        asked.extend(its for its in wanted if its in ("adversarial", "picture_frames"))
        return there(self, name, wanted, known)  # type: ignore[arg-type]

    monkeypatch.setattr(RunDirectory, "_arrays", noted)
    summary = summarise(RunDirectory.open(run.path))
    assert asked == ["picture_frames"] * len(summary.pictures)
    assert 0 < len(summary.pictures) < 6


def test_a_unit_is_compared_with_its_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again where its file was changed since."""
    run = made(tmp_path / "r")
    file = run.file(NAME)
    os.utime(file, ns=(10**18, 10**18))
    counted: list[object] = []
    there = directory.contents_sha256

    def noted(*args: object) -> str:
        counted.append(args)
        return there(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(directory, "contents_sha256", noted)
    for _ in range(3):
        unit = run.load(NAME)
    assert len(counted) == 1
    data = bytearray(file.read_bytes())
    data[data.index(b"adversarial.npy") + 60] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(RecordError, match="complete record"):
        unit.arrays["labels"]
    with pytest.raises(RecordError, match="complete record"):
        run.load(NAME)


def test_a_unit_that_was_read_is_had_from_where_it_went(ready: RunDirectory, tmp_path: Path) -> None:
    run = copied(ready, tmp_path / "r")
    unit = run.load(NAME)
    wanted = unit.arrays["adversarial"]
    list(pack(RunDirectory.open(run.path)))
    assert np.array_equal(unit.arrays["adversarial"], wanted)
    list(unpack(RunDirectory.open(run.path)))
    assert np.array_equal(unit.arrays["adversarial"], wanted)


def test_identities_are_made_once_for_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.open(made(tmp_path / "r").path)
    counted: list[str] = []
    there = RunDirectory._new_identity

    def noted(self: RunDirectory, row: str) -> str:
        counted.append(row)
        return there(self, row)

    monkeypatch.setattr(RunDirectory, "_new_identity", noted)
    list(run.units())
    assert counted == ["null-defence", "adaptive", "transfer"]


def test_a_file_that_is_written_is_flushed_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name, place in (("fsync", os), ("replace", Path), ("unlink", Path)):
        there = getattr(place, name)

        def noted(*args: object, name: str = name, there: object = there, **kwargs: object) -> object:
            order.append(name)
            return there(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(place, name, noted)
    run = made(tmp_path / "r")
    order.clear()
    assert next(packing.pack(run)).units == 1
    assert order[:3] == ["fsync", "replace", "fsync"]
    assert order.count("unlink") >= 1
    assert _atomic.temporary_of(run.pack_file("x")).name.startswith(".x.zip.")
