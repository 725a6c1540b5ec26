"""Units computed by Ray: on this machine, or on the nodes of a cluster. Nothing here is needed without it.

This process hands out the units, one at a time to each worker. A worker is an actor that keeps the study loaded.
Workers and nodes may be lost and join: what was handed to a lost worker is handed to another. A worker sends records,
and this process writes them, so that the nodes share no disk.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

from depura import _check
from depura.evaluation.answer_log import EVERY
from depura.evaluation.executors import Worker, cores, kept_under_way
from depura.evaluation.study import Study, UnitKey
from depura.evaluation.study_file import StudySource
from depura.records.describe import code_sha256
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.schema import LAYOUT, read_facts

LIMIT = 100 * 2**20
"""Bytes of a study's folder, at most, which travels to every node."""

LOSSES = 5
"""Workers that may be lost at one unit, or in a row before any has begun."""

LATE = 3.0
"""A unit is given to an idle worker once more when it takes so many times longer than the longest unit done."""

PATIENCE = 120.0
"""Seconds for which a worker that has not begun is waited for, to compute what another has computed."""

POLL = 2.0
"""Seconds after which new nodes are looked for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """What is asked of Ray.

    Attributes:
        address: "local" to start Ray on this machine, "auto" for the cluster that this machine is a node of, or the
            address of a cluster.
        cpus: cores of a worker.
        gpus: GPUs of a worker, from 0 to 1.
        workers: as many; None: as many as the nodes have room for.
        twice: whether each unit is computed twice and compared.
        shared: whether workers write the records, as the run directory is on a disk that all nodes have.
    """

    address: str
    cpus: float = 1.0
    gpus: float = 0.0
    workers: int | None = None
    twice: bool = False
    shared: bool = False


class Begun(NamedTuple):
    """What a worker says when it has loaded the study.

    Attributes:
        where: host and process.
        node: Ray's name of its node.
        software: versions, and the digest of depura's code.
    """

    where: str
    node: str
    software: dict[str, str]


class Sent(NamedTuple):
    """A unit as a worker sends it: numbers and text.

    Attributes:
        arrays: of the record; None where the worker wrote it.
        facts: as JSON.
        agrees: whether it is what was there already, if something was.
    """

    arrays: dict[str, Any] | None
    facts: str
    agrees: bool = True


@dataclass
class _Hired:
    """A worker, as this process knows it.

    Attributes:
        actor: Ray's handle.
        awaited: Ray's handle of what it was asked; None while it is idle.
        begun: what it said when it had loaded the study; None before.
        key: the unit that it computes, if any.
        since: when it was given that, or hired.
    """

    actor: Any
    awaited: Any
    begun: Begun | None = None
    key: UnitKey | None = None
    since: float = 0.0

    @property
    def node(self) -> str:
        """Ray's name of its node, when it has begun."""
        return "" if self.begun is None else self.begun.node


@dataclass
class _Stage:
    """What is left of a stage.

    Attributes:
        waiting: units to hand out.
        left: units that are not committed.
        first: of units that are computed twice, what came first, and from whom.
    """

    waiting: deque[UnitKey]
    left: set[UnitKey]
    first: dict[UnitKey, tuple[_Hired, Unit]] = field(default_factory=dict[UnitKey, tuple[_Hired, Unit]])


class OnRay:
    """An `Executor` whose workers are Ray's actors."""

    def __init__(
        self,
        study: Study,
        source: StudySource,
        directory: RunDirectory,
        cluster: Cluster,
        *,
        device: str,
        every: float | None = EVERY,
    ) -> None:
        """Start nothing yet.

        Args:
            study: the study.
            source: where it comes from; every worker loads it by itself.
            directory: its run directory.
            cluster: what is asked of Ray.
            device: where a worker computes; "cuda" is the GPU that Ray gave it.
            every: as of `InProcess`, for workers that write the records themselves.
        """
        self._study, self._source, self._directory = study, source, directory
        self._cluster, self._device, self._every = cluster, device, every
        self._ray: Any = None
        self._actor: Any = None
        self._hired: list[_Hired] = []
        self._where: dict[UnitKey, str] = {}
        self._lost: dict[UnitKey | None, int] = {}
        self._longest = 0.0
        self._terminated: Any = None

    @property
    def workers(self) -> int:
        """How many there is room for, or are asked for."""
        return self._cluster.workers or max(1, self._slots())

    def __enter__(self) -> OnRay:
        self._ray = ray = _ray(self._cluster.address)
        folder, self._source = self._source.seen_from_its_folder()
        with tempfile.TemporaryDirectory() as copy:
            environment: dict[str, Any] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
            if folder is not None:
                _copy(folder, Path(copy), without=self._directory.path)
                environment["working_dir"] = copy
            try:
                self._connect(environment)
                self._begin()
            except BaseException:
                self.__exit__()
                raise
        options = {"num_cpus": self._cluster.cpus, "num_gpus": self._cluster.gpus, "max_restarts": 0}
        self._actor = ray.remote(**options)(RayWorker)
        return self

    def __exit__(self, *_: object) -> None:
        self._hired.clear()
        self._ray.shutdown()
        if self._terminated is not None:
            signal.signal(signal.SIGTERM, self._terminated)
            self._terminated = None

    def _connect(self, environment: dict[str, Any]) -> None:
        address = self._cluster.address
        options: dict[str, Any] = {"address": address, "runtime_env": environment, "log_to_driver": False}
        if address == "local":
            options |= {"num_cpus": cores(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            try:
                self._ray.init(logging_level="ERROR", **options)
            except Exception:  # Ray raises bare ones, as when a busy machine takes longer to start it than it waits
                if address != "local":
                    raise
                self._ray.shutdown()
                self._ray.init(logging_level="ERROR", **options)
        except Exception as error:
            said = str(error).strip().splitlines()[0].rstrip(".")
            advice = "Start one with `ray start --head`, or give --ray local." if address == "auto" else ""
            raise _check.InputError(
                f"--ray: expected a cluster at {address!r}, got: {said}. {advice}".rstrip()
            ) from error
        if address == "local" and any(node["NodeManagerAddress"] != "127.0.0.1" for node in self._ray.nodes()):
            _check.fail(
                "--ray local",
                "a Ray that listens to this machine only",
                f"one at {self._ray.nodes()[0]['NodeManagerAddress']}",
                "Start Ray yourself with `ray start --head`, and give --ray auto.",
            )

    def _begin(self) -> None:
        """End as after Ctrl-C when asked to end; and find room for at least one worker."""
        if threading.current_thread() is threading.main_thread():
            self._terminated = signal.signal(signal.SIGTERM, _leave)
        if self._cluster.workers is None and not self._slots():
            _check.fail(
                "--ray",
                f"a node with {self._cluster.cpus:g} CPUs and {self._cluster.gpus:g} GPUs",
                "none",
                "Ask for less by --cpus-per-unit and --gpus-per-unit, or say by --workers how many an autoscaler "
                "shall find room for.",
            )

    def _slots(self) -> int:
        """Workers that the nodes have room for."""
        asked = (("CPU", self._cluster.cpus), ("GPU", self._cluster.gpus))
        room = [
            min(int(node["Resources"].get(name, 0.0) / share + 1e-9) for name, share in asked if share)
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        return sum(room)

    def ask(self, function: Callable[[Study, str], T]) -> T:
        """See `Executor`."""
        while True:
            self._hire(1)
            for hired in [its for its in self._hired if its.awaited is None][:1]:
                try:
                    return self._ray.get(hired.actor.ask.remote(function))
                except self._ray.exceptions.RayTaskError as error:
                    self._as_here(error)
                except self._ray.exceptions.RayError as error:
                    self._dismiss(hired, None, error)
            list(self._next(_Stage(deque(), set())))

    def __call__(self, keys: Sequence[UnitKey]) -> Iterator[UnitKey]:
        """See `Executor`."""
        stage = _Stage(deque(keys), set(keys))
        if self._cluster.twice:
            stage.waiting.extend(keys)
        while stage.left:
            self._hire(len(stage.waiting) + sum(hired.key is not None for hired in self._hired))
            for hired in [its for its in self._hired if its.awaited is None]:
                key = self._choice(stage, hired)
                if key is not None:
                    hired.awaited, hired.key, hired.since = hired.actor.unit.remote(key), key, time.monotonic()
            yield from self._next(stage)

    def _hire(self, units: int) -> None:
        """As many workers as there are units, and room; they begin by loading the study."""
        while len(self._hired) < min(units, self.workers):
            actor = self._actor.remote()
            out = str(self._directory.path.resolve()) if self._cluster.shared else None
            begun = actor.begin.remote(self._source, self._device, out, self._every)
            self._hired.append(_Hired(actor, begun, since=time.monotonic()))

    def _choice(self, stage: _Stage, hired: _Hired) -> UnitKey | None:
        """What an idle worker is given: what waits; else what takes another worker very long.

        The second time a unit goes to another node than the first, or to another worker where there is one node.
        """
        ready = [its for its in self._hired if its.begun is not None]
        coming = any(its.begun is None and time.monotonic() - its.since < PATIENCE for its in self._hired)
        nodes = len({its.node for its in ready})
        for key in stage.waiting:
            other = stage.first[key][0] if key in stage.first else next((its for its in ready if its.key == key), None)
            better = other is not None and (coming or any(_apart(other, its, nodes) for its in ready))
            if other is None or _apart(other, hired, nodes) or not better:
                stage.waiting.remove(key)
                return key
        if stage.waiting or not self._longest:
            return None
        under_way = [its for its in self._hired if its.key in stage.left]
        keys = [its.key for its in under_way]
        late = [its for its in under_way if time.monotonic() - its.since > LATE * self._longest]
        return next((its.key for its in late if keys.count(its.key) == 1), None)

    def _next(self, stage: _Stage) -> Iterator[UnitKey]:
        """What is heard of workers next, with the units that are committed by it."""
        by_handle = {hired.awaited: hired for hired in self._hired if hired.awaited is not None}
        if not by_handle:
            time.sleep(POLL)
            return
        ready, _ = self._ray.wait(list(by_handle), num_returns=1, timeout=POLL)
        for handle in ready:
            hired = by_handle[handle]
            key, hired.key, hired.awaited = hired.key, None, None
            try:
                said = self._ray.get(handle)
            except self._ray.exceptions.RayTaskError as error:
                self._as_here(error)
            except self._ray.exceptions.RayError as error:
                self._dismiss(hired, key, error)
                if key in stage.left:
                    assert key is not None
                    stage.waiting.appendleft(key)
                continue
            if key is None:
                hired.begun = begun = cast("Begun", said)
                self._alike(begun)
                self._lost.pop(None, None)
            else:
                self._longest = max(self._longest, time.monotonic() - hired.since)
                if self._settle(stage, hired, key, said):
                    stage.left.discard(key)
                    yield key

    def _settle(self, stage: _Stage, hired: _Hired, key: UnitKey, sent: Sent) -> bool:
        """Keep what a worker sends; whether the unit is committed by it. Compare it with what was sent before."""
        assert hired.begun is not None
        here = hired.begun.where
        if sent.arrays is None:
            if not sent.agrees:
                _differs(key, self._where.get(key, "an earlier run"), here)
            self._where.setdefault(key, here)
            return key in stage.left
        unit = Unit(sent.arrays, read_facts(json.loads(sent.facts), layout=LAYOUT))
        if self._directory.has(key.name):
            if not same_bytes(self._directory, unit):
                _differs(key, self._where.get(key, "an earlier run"), here)
            return key in stage.left
        if self._cluster.twice:
            if key not in stage.first:
                stage.first[key] = hired, unit
                return False
            other, before = stage.first[key]
            if self._directory.signature(before) != self._directory.signature(unit):
                assert other.begun is not None
                _differs(key, other.begun.where, here)
        self._directory.commit(unit)
        self._where[key] = here
        return True

    def _dismiss(self, hired: _Hired, key: UnitKey | None, error: Exception) -> None:
        """Do without a worker that is lost; after too many, give up."""
        self._hired.remove(hired)
        self._ray.kill(hired.actor)
        self._lost[key] = self._lost.get(key, 0) + 1
        if self._lost[key] <= LOSSES:
            return
        at = "before any had loaded the study" if key is None else f"at the unit {key.name}"
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise RecordError(
            f"run: expected workers to live, but {self._lost[key]} were lost {at} ({said}). Perhaps memory is short: "
            "ask for more CPUs or GPUs for each unit. What is done is kept; give the same command again."
        ) from error

    def _alike(self, begun: Begun) -> None:
        """Refuse a worker with other software: the record says what this process has."""
        here = software()
        for name, version in begun.software.items():
            if version != here[name]:
                what = "depura of the same code" if name == "code" else f"{name} {here[name]}"
                got = "another" if name == "code" else version
                _check.fail(f"--ray: on {begun.where}", what, got, "Install the same packages on all nodes and here.")

    def _as_here(self, error: Any) -> NoReturn:
        """An error of the study, as if it had been raised in this process."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException):
            raise cause from error
        raise error


class RayWorker:
    """What runs in Ray's workers; its methods answer with numbers and text."""

    def __init__(self) -> None:
        """Load nothing yet."""
        self._worker: Worker | None = None
        self._directory: RunDirectory | None = None
        self._every: float | None = None

    def begin(self, source: StudySource, device: str, out: str | None, every: float | None) -> Begun:
        """Load the study; `out` is the run directory, if this worker is to write records, `every` as of `InProcess`."""
        self._worker, self._every = Worker(source, device), every
        self._directory = None if out is None else RunDirectory.open(Path(out))
        node = importlib.import_module("ray").get_runtime_context().get_node_id()
        return Begun(f"{socket.gethostname()} (process {os.getpid()})", node, software())

    def ask(self, function: Callable[[Study, str], T]) -> T:
        """What a function says of the study and the device."""
        assert self._worker is not None
        return function(self._worker.study, self._worker.device)

    def unit(self, key: UnitKey) -> Sent:
        """Compute a unit."""
        assert self._worker is not None
        if self._directory is None:
            unit = self._worker.unit(key)
            return Sent(dict(unit.arrays), unit.facts.model_dump_json(exclude_none=True))
        with kept_under_way(self._directory, key, self._every) as log:
            unit = self._worker.unit(key, log=log)
            there = self._directory.has(key.name)
            agrees = not there or same_bytes(self._directory, unit)
            if not there:
                self._directory.commit(unit)
        return Sent(None, unit.facts.model_dump_json(exclude_none=True), agrees)


def same_bytes(directory: RunDirectory, unit: Unit) -> bool:
    """Whether a unit is what a run directory holds under its name."""
    return directory.signature(directory.read(unit.facts.unit)) == directory.signature(unit)


def _differs(key: UnitKey, before: str, here: str) -> NoReturn:
    raise RecordError(
        f"unit {key.name}: expected the same bytes whoever computes it, got others from {here} than from {before}. "
        "Other processors, GPUs or drivers round otherwise, and a study may depend on more than its seed. "
        "Give the run nodes of one kind."
    )


def _apart(one: _Hired, other: _Hired, nodes: int) -> bool:
    """Whether two are on different nodes; where there is one node only, whether they are two."""
    return one.node != other.node if nodes > 1 else one is not other


def software() -> dict[str, str]:
    """Versions that decide what is computed, and the digest of depura's code."""
    return {name: importlib.metadata.version(name) for name in ("depura", "torch", "numpy")} | {"code": code_sha256()}


def _ray(address: str) -> Any:
    """The library, told before it is imported to send no statistics and, where it is started here, to stay here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what binds all servers of Ray to 127.0.0.1
    try:
        return importlib.import_module("ray")  # an optional extra
    except ImportError as error:
        raise _check.InputError(
            '--ray: expected the package ray, got none. Install it with: pip install "depura[ray]".'
        ) from error


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Asked to end, end in order."""
    sys.exit(128 + number)


def travelling(folder: Path, *, without: Path) -> dict[Path, int]:
    """Files of a study's folder that go to the nodes, relative to it, with their bytes.

    Left out are hidden files, run directories, virtual environments and what Python compiles.

    Args:
        folder: with the study file.
        without: the run directory.

    Returns:
        Bytes by file.

    Raises:
        InputError: they are more than `LIMIT` bytes.
    """
    found: dict[Path, int] = {}
    for at, folders, names in os.walk(folder):
        here = Path(at)
        folders[:] = sorted(name for name in folders if _travels(here / name) and (here / name).resolve() != without)
        for name in sorted(names):
            if not name.startswith(".") and (here / name).is_file():
                found[(here / name).relative_to(folder)] = (here / name).stat().st_size
        if sum(found.values()) > LIMIT:
            largest = max(found, key=lambda file: found[file])
            _check.fail(
                "--ray",
                f"a study in a folder of at most {LIMIT // 2**20} MiB, which travels to all nodes",
                f"more in {folder}, such as {largest} of {found[largest] / 2**20:,.0f} MiB",
                "Keep large files outside of it, at a path that all nodes have, and name that path in the study.",
            )
    return found


def _travels(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name == "__pycache__":
        return False
    return not any((folder / mark).exists() for mark in ("study.json", "pyvenv.cfg"))


def _copy(folder: Path, to: Path, *, without: Path) -> None:
    for file in travelling(folder, without=without.resolve()):
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, to / file)
