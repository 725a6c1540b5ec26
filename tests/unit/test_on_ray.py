"""Handing out units to workers that are lost, late, or answer otherwise: by a stand-in for Ray that a script drives.

Real clusters are in tests/end_to_end/test_ray.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import depura
from depura.evaluation import on_ray
from depura.evaluation.header import header
from depura.evaluation.on_ray import Begun, Cluster, OnRay, Sent
from depura.evaluation.study import Study, UnitKey
from depura.evaluation.study_file import StudySource
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.schema import Evaluations, UnitFacts

Answer = Callable[[UnitKey, int], Any]
"""What a worker answers to a unit, by the worker's number: a value, an error to raise, or `None` for not yet."""


class TaskError(Exception):
    """As Ray wraps an error of what runs in a worker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a traceback")
        self.cause = cause


class LostError(Exception):
    """As Ray says that a worker is gone."""


class Handle:
    """What is awaited."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer


class FakeRay:
    """The part of Ray that is used, with workers that answer at once, by a function."""

    class Errors(SimpleNamespace):
        """Ray's exceptions."""

    def __init__(self, answer: Answer, *, room: int = 2, nodes: tuple[str, ...] = ("a", "b")) -> None:
        self.answer, self.room, self.names = answer, room, nodes
        self.exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=LostError)
        self.handed: list[tuple[str, int]] = []
        self.numbers = itertools.count()
        self.killed: list[Any] = []
        self.software = on_ray.software()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.room)}}]

    def remote(self) -> Any:
        """Another worker."""
        number = next(self.numbers)
        node = self.names[number % len(self.names)]

        def begin(*_: object) -> Handle:
            return Handle(lambda: Begun(f"host-{node} (process {number})", node, self.software))

        def unit(key: UnitKey) -> Handle:
            self.handed.append((key.name, number))
            return Handle(lambda: self.answer(key, number))

        return SimpleNamespace(begin=SimpleNamespace(remote=begin), unit=SimpleNamespace(remote=unit), number=number)

    def wait(self, handles: list[Handle], **_: object) -> tuple[list[Handle], list[Handle]]:
        ready = [its for its in handles if its.answer() is not None]
        return ready[:1], ready[1:]

    def get(self, handle: Handle) -> Any:
        said = handle.answer()
        if isinstance(said, Exception):
            raise said
        return said

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)


@pytest.fixture(scope="module")
def study() -> Study:
    defence = depura.Defence(None, depura.digits_classifier())
    rows = (depura.AttackRun("bare", "bare", depura.PGD(depura.Ball("linf", 0.2), n_steps=1), defence, defence),)
    data = depura.load_digits("test").first(4)
    return Study("short", data, defence, rows, select_draws=1, report_draws=1, unit_images=1, reference=False)


@pytest.fixture
def directory(study: Study, tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", header(study, command=""))


def keys_of(study: Study) -> list[UnitKey]:
    return [key for key in study.units() if key.row == "bare"]


def sent(key: UnitKey, value: float = 0.5) -> Sent:
    facts = UnitFacts(
        unit=key.name, **key._asdict(), device="cpu", evaluations=Evaluations(attack=(1, 1), score=(1, 0))
    )
    return Sent({"margins": np.full(1, value)}, facts.model_dump_json(exclude_none=True))


def executor(study: Study, directory: RunDirectory, ray: FakeRay, **asked: Any) -> OnRay:
    """With the stand-in in the place of Ray; its context, which starts Ray, is not entered."""
    made = OnRay(study, StudySource(Path("s.py")), directory, Cluster("auto", **asked), device="cpu")
    made._ray, made._actor = ray, ray  # type: ignore[attr-defined]
    return made


def files_of(directory: RunDirectory) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (directory.path / "units").iterdir()}


def test_each_unit_is_handed_out_once_and_written_here(study: Study, directory: RunDirectory) -> None:
    ray = FakeRay(lambda key, _: sent(key))
    keys = keys_of(study)
    assert sorted(executor(study, directory, ray)(keys)) == sorted(keys)
    assert sorted(name for name, _ in ray.handed) == sorted(key.name for key in keys)
    assert next(ray.numbers) == 2, "as many workers as there is room for"
    assert np.array_equal(directory.read(keys[0].name).arrays["margins"], [0.5])


def test_no_more_workers_than_units_and_as_many_as_are_asked_for(study: Study, directory: RunDirectory) -> None:
    ray = FakeRay(lambda key, _: sent(key), room=9)
    keys = keys_of(study)
    list(executor(study, directory, ray)(keys[:1]))
    assert next(ray.numbers) == 1
    ray = FakeRay(lambda key, _: sent(key), room=1)
    made = executor(study, directory, ray, workers=3)
    assert made.workers == 3
    list(made(keys[1:]))
    assert next(ray.numbers) == 3


@pytest.mark.parametrize(
    ("asked", "nodes", "slots"),
    [
        ({}, [{"CPU": 4.0}, {"CPU": 3.0}], 7),
        ({"cpus": 2.0}, [{"CPU": 4.0}, {"CPU": 3.0}], 3),
        ({"gpus": 1.0}, [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}], 2),
        ({"gpus": 0.5}, [{"CPU": 8.0, "GPU": 2.0}], 4),
        ({"gpus": 0.1, "cpus": 0.1}, [{"CPU": 1.0, "GPU": 1.0}], 10),
    ],
)
def test_the_room_of_nodes(
    asked: dict[str, float], nodes: list[dict[str, float]], slots: int, study: Study, directory: RunDirectory
) -> None:
    """A worker is on one node, so that what is left over on several does not add up."""
    ray = FakeRay(lambda key, _: sent(key))
    alive = [{"Alive": True, "Resources": its} for its in nodes]
    ray.nodes = lambda: [*alive, {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}]  # type: ignore[method-assign]
    assert executor(study, directory, ray, **asked).workers == slots


def test_what_was_handed_to_a_lost_worker_is_handed_to_another(study: Study, directory: RunDirectory) -> None:
    ray = FakeRay(lambda key, number: LostError("gone") if number == 0 else sent(key))
    keys = keys_of(study)
    assert sorted(executor(study, directory, ray)(keys)) == sorted(keys)
    (lost,) = (name for name, number in ray.handed if number == 0)
    assert [number for name, number in ray.handed if name == lost][1:] != [0]
    assert ray.killed == [0]
    assert len(files_of(directory)) == len(keys)


def test_a_unit_at_which_every_worker_is_lost_ends_the_run(study: Study, directory: RunDirectory) -> None:
    keys = keys_of(study)
    ray = FakeRay(lambda key, _: LostError("out of memory") if key == keys[2] else sent(key))
    with pytest.raises(RecordError, match=rf"{on_ray.LOSSES + 1} were lost at the unit {keys[2].name} \(out of memory"):
        list(executor(study, directory, ray)(keys))
    assert keys[0].name in files_of(directory), "what is done is kept"


def test_an_error_of_the_study_is_raised_here(study: Study, directory: RunDirectory) -> None:
    ray = FakeRay(lambda key, _: TaskError(depura.InputError("labels from 0 to 9")))
    with pytest.raises(depura.InputError, match=r"^labels from 0 to 9$"):
        list(executor(study, directory, ray)(keys_of(study)))


def test_a_worker_with_other_software_is_refused(study: Study, directory: RunDirectory) -> None:
    for name, said in (
        ("torch", "expected torch .*, got 0.1"),
        ("code", "expected depura of the same code, got another"),
    ):
        ray = FakeRay(lambda key, _: sent(key))
        ray.software = {**on_ray.software(), name: "0.1"}
        with pytest.raises(depura.InputError, match=rf"--ray: on host-a \(process 0\): {said}"):
            list(executor(study, directory, ray)(keys_of(study)))
    assert not files_of(directory)


def test_twice_goes_to_two_nodes_and_is_written_when_both_agree(study: Study, directory: RunDirectory) -> None:
    ray = FakeRay(lambda key, _: sent(key), room=4)
    keys = keys_of(study)
    assert sorted(executor(study, directory, ray, twice=True)(keys)) == sorted(keys)
    for key in keys:
        numbers = [number for name, number in ray.handed if name == key.name]
        assert len(numbers) == 2
        assert numbers[0] % 2 != numbers[1] % 2, "on two nodes"


def test_twice_on_one_node_goes_to_two_workers(study: Study, directory: RunDirectory) -> None:
    ray = FakeRay(lambda key, _: sent(key), nodes=("a",))
    keys = keys_of(study)
    list(executor(study, directory, ray, twice=True)(keys))
    assert all(len({number for name, number in ray.handed if name == key.name}) == 2 for key in keys)
    alone = FakeRay(lambda key, _: sent(key), room=1)
    again = RunDirectory.create(directory.path.parent / "again", directory.header)
    list(executor(study, again, alone, twice=True)(keys))
    assert len(alone.handed) == 2 * len(keys), "by one worker, where there is no other"
    assert files_of(again) == files_of(directory)


def test_twice_and_not_the_same_names_the_two_hosts(study: Study, directory: RunDirectory) -> None:
    keys = keys_of(study)
    ray = FakeRay(lambda key, number: sent(key, np.nextafter(0.5, 1) if number and key == keys[0] else 0.5))
    said = rf"unit {keys[0].name}: expected the same bytes .* from host-[ab] \(process [01]\) than from host-[ab] "
    with pytest.raises(RecordError, match=said):
        list(executor(study, directory, ray, twice=True)(keys))
    assert keys[0].name not in files_of(directory)


class Clock:
    """Time that passes with each look at it."""

    now: ClassVar[float] = 0.0

    @classmethod
    def monotonic(cls) -> float:
        cls.now += 1.0
        return cls.now

    @staticmethod
    def sleep(_: float) -> None:
        """Not here."""


@pytest.mark.parametrize("agrees", [True, False])
def test_a_unit_that_takes_very_long_is_given_to_another_worker_and_compared(
    agrees: bool, study: Study, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker answers to its second unit only when all is done; what it says then is looked at."""
    monkeypatch.setattr(on_ray, "time", Clock)
    keys = keys_of(study)
    late: list[UnitKey] = []

    def answer(key: UnitKey, number: int) -> Sent | None:
        if number == 0 and (late or len(files_of(directory))):
            late.append(key)
        if number == 0 and late:
            return sent(key, 0.5 if agrees else 0.75) if len(files_of(directory)) == len(keys) else None
        return sent(key)

    ray = FakeRay(answer)
    made = executor(study, directory, ray)
    assert sorted(made(keys)) == sorted(keys)
    assert [number for name, number in ray.handed if name == late[0].name] == [0, 1]
    more = [UnitKey("null-bare", 0.2, 0, 1)]
    if agrees:
        assert list(made(more)) == more
    else:
        with pytest.raises(RecordError, match=r"got others from host-a \(process 0\) than from host-b \(process 1\)"):
            list(made(more))
    assert np.array_equal(directory.read(late[0].name).arrays["margins"], [0.5]), "what was written first stays"


def test_records_that_workers_write_are_not_written_here(study: Study, directory: RunDirectory) -> None:
    keys = keys_of(study)
    ray = FakeRay(lambda key, _: Sent(None, "{}"))
    assert sorted(executor(study, directory, ray, shared=True)(keys)) == sorted(keys)
    assert not files_of(directory)
    ray = FakeRay(lambda key, _: Sent(None, "{}", agrees=False))
    with pytest.raises(RecordError, match="than from an earlier run"):
        list(executor(study, directory, ray, shared=True)(keys))


def test_a_worker_on_a_shared_disk_compares_with_what_is_there(
    study: Study, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a worker was lost after it had written."""
    worker = on_ray.RayWorker()
    key = keys_of(study)[0]
    values: Iterator[float] = iter([0.5, 0.5, 0.75])

    def unit(_: UnitKey, **__: object) -> Unit:
        made = sent(key, next(values))
        assert made.arrays is not None
        return Unit(made.arrays, UnitFacts.model_validate_json(made.facts))

    worker._worker, worker._directory = SimpleNamespace(unit=unit), directory  # type: ignore[assignment]
    said = [worker.unit(key) for _ in range(3)]
    assert [(its.arrays, its.agrees) for its in said] == [(None, True), (None, True), (None, False)]
    assert np.array_equal(directory.read(key.name).arrays["margins"], [0.5])
