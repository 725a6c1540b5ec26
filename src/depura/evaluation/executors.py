"""Where the units of a study are computed: in this process, in processes of this machine, or elsewhere (on_ray.py).

A study, its units, the order of its stages and its report know nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch

from depura.audit.probes import error_line
from depura.evaluation.answer_log import EVERY, AnswerLog
from depura.evaluation.originals import Originals
from depura.evaluation.study import Study, UnitKey
from depura.evaluation.study_file import StudySource
from depura.evaluation.units import run_unit
from depura.records.directory import RecordError, RunDirectory, Unit

OnShare = Callable[[UnitKey, float], None]
"""Called, while a unit is attacked, with the share of its attack that is done."""


T = TypeVar("T")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Executor(Protocol):
    """Computes units somewhere. Its workers live as long as its context: `with executor: ...`."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    @property
    def workers(self) -> int:
        """How many units are computed at once; known within the context."""
        ...

    def ask(self, function: Callable[[Study, str], T]) -> T:
        """What a function says of the study and the device, on a machine where units are computed.

        Args:
            function: of a module, so that it can be sent there.

        Returns:
            Its answer.
        """
        ...

    def __call__(self, keys: Sequence[UnitKey]) -> Iterator[UnitKey]:
        """Compute units in any order, and yield each when it is committed.

        Args:
            keys: the units of a stage.

        Returns:
            Each of them once.

        Raises:
            RecordError: workers were lost, or a record differs from one that is there; what is committed is kept.
        """
        ...


@contextlib.contextmanager
def kept_under_way(
    directory: RunDirectory, key: UnitKey, every: float | None
) -> Generator[AnswerLog | None, None, None]:
    """A log for a unit that is computed and committed in the context; kept where that is interrupted.

    Args:
        directory: where it is kept.
        key: the unit.
        every: seconds between two files; None for no log.

    Yields:
        The log.
    """
    folder, identity = directory.under_way(key.name), directory.identity(key.row)
    log = None if every is None else AnswerLog(folder, identity, every=every)
    try:
        yield log
    except BaseException as error:  # Ctrl-C, too
        with contextlib.suppress(OSError):  # such as a full disk, which may be why
            if log is not None:
                log.write()
            if isinstance(error, Exception):
                directory.note_error(key.name, error_line(error))
        raise
    if log is not None:
        log.forget()


class InProcess:
    """In this process, one unit after the other."""

    def __init__(
        self,
        study: Study,
        directory: RunDirectory,
        *,
        device: str = "cpu",
        on_share: OnShare | None = None,
        source: StudySource | None = None,
        every: float | None = EVERY,
    ) -> None:
        """Keep a study as it is now.

        Args:
            study: the study.
            directory: its run directory.
            device: where to compute, as torch names it.
            on_share: called with the progress within a unit.
            source: where the study comes from, if from a file: to load it anew for a check.
            every: seconds after which what a unit under way was answered is kept; None for never.
        """
        self._study, self._directory, self._device, self._on_share = study, directory, device, on_share
        self._originals, self._every = Originals(study, source), every
        self.workers = 1

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, function: Callable[[Study, str], T]) -> T:
        """See `Executor`."""
        return function(self._study, self._device)

    def __call__(self, keys: Sequence[UnitKey]) -> Iterator[UnitKey]:
        """See `Executor`."""
        for key in keys:
            progress = None if self._on_share is None else partial(self._on_share, key)
            with kept_under_way(self._directory, key, self._every) as log:
                unit = run_unit(
                    self._study, key, device=self._device, progress=progress, originals=self._originals, log=log
                )
                self._directory.commit(unit)
            yield key


class Processes:
    """In processes of this machine, of one thread each; units are handed out as they come.

    A killed worker ends the run with a `RecordError`.
    """

    def __init__(
        self,
        study: Study,
        source: StudySource,
        directory: RunDirectory,
        *,
        devices: Sequence[str],
        every: float | None = EVERY,
    ) -> None:
        """Start nothing yet.

        Args:
            study: the study.
            source: where it comes from; every worker loads it by itself.
            directory: its run directory.
            devices: one worker for each, which computes there; a device that is named twice has two.
            every: as of `InProcess`.
        """
        self._study, self._source, self._directory, self._devices = study, source, directory, tuple(devices)
        self._every = every
        self.workers = len(self._devices)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(
            max_workers=len(self._devices),
            mp_context=context,
            initializer=_begin_worker,
            initargs=(self._source, self._directory, self._devices, self._every, context.Value("i", 0), os.getpid()),
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def ask(self, function: Callable[[Study, str], T]) -> T:
        """See `Executor`; asked in this process, on the first device."""
        return function(self._study, self._devices[0])

    def __call__(self, keys: Sequence[UnitKey]) -> Iterator[UnitKey]:
        """See `Executor`."""
        assert self._pool is not None, "outside of its context"
        try:
            with _interrupts_ignored():
                jobs = {self._pool.submit(_work, key): key for key in keys}
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        except BrokenProcessPool as error:
            raise RecordError(
                "run: expected every worker to live, but one was ended from outside (perhaps for want of memory). "
                "What is done is kept; give the same command again, with fewer --workers."
            ) from error


class Worker:
    """What every worker process keeps: the study, loaded by itself, and how it was before anything was computed."""

    def __init__(self, source: StudySource, device: str) -> None:
        """Load the study.

        Args:
            source: where the study comes from.
            device: where to compute.
        """
        torch.set_num_threads(1)  # more threads sum in another order
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(device)  # for code that asks for "cuda" and names no device
        self.study, self.device = source.load(), device
        self._originals = Originals(self.study, source)

    def unit(self, key: UnitKey, *, log: AnswerLog | None = None) -> Unit:
        """Compute a unit."""
        return run_unit(self.study, key, device=self.device, originals=self._originals, log=log)


_worker: list[tuple[Worker, RunDirectory, float | None]] = []


def _begin_worker(
    source: StudySource,
    directory: RunDirectory,
    devices: Sequence[str],
    every: float | None,
    begun: Any,
    parent: int,
) -> None:
    """The i-th worker that begins takes the i-th device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with begun.get_lock():
        index: int = begun.value
        begun.value += 1
    _worker.append((Worker(source, devices[index]), directory, every))


def _work(key: UnitKey) -> None:
    worker, directory, every = _worker[0]
    with kept_under_way(directory, key, every) as log:
        directory.commit(worker.unit(key, log=log))


@contextlib.contextmanager
def _interrupts_ignored() -> Generator[None, None, None]:
    """Processes started meanwhile ignore Ctrl-C from their first moment on.

    It reaches the whole process group: the parent stops handing out work, workers finish the unit under way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _end_with(parent: int) -> None:
    """Leave when the parent is gone: a killed run must not leave workers behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
