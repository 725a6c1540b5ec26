"""Running a study: one unit of work at a time, each committed at once, so that a run may be stopped at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from depura import _check
from depura.evaluation.header import header
from depura.evaluation.originals import Originals
from depura.evaluation.study import Study, UnitKey
from depura.evaluation.study_file import StudySource
from depura.evaluation.units import run_unit
from depura.records.directory import RecordError, RunDirectory
from depura.records.schema import AuditLight


class RefusedError(RecordError):
    """A run that would give numbers without meaning; the message says why."""


OnUnit = Callable[[UnitKey], None]
"""Called with each unit when it is committed."""

OnShare = Callable[[UnitKey, float], None]
"""Called, while a unit is attacked, with the share of its attack that is done."""


@dataclass(frozen=True)
class Shard:
    """Every n-th unit, beginning with the i-th.

    Attributes:
        index: i, from 0.
        count: n.
    """

    index: int = 0
    count: int = 1


def run(
    study: Study,
    out: Path,
    *,
    command: str = "",
    shard: Shard | None = None,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
    despite_audit: bool = False,
) -> RunDirectory:
    """Compute what is missing of a study, in this process.

    Args:
        study: the study.
        out: run directory, new or of the same study.
        command: how to repeat it, for the report.
        shard: which part of the units; default all.
        device: where to compute, as torch names it.
        on_unit: called with each unit when it is committed.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.

    Returns:
        The run directory.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
    """
    _check.device("run", device)
    directory = RunDirectory.create(out, header(study, command=command))
    todo = missing(study, directory, shard)
    compute(study, directory, todo, device=device, on_unit=on_unit, despite_audit=despite_audit)
    return directory


def compute(
    study: Study,
    directory: RunDirectory,
    todo: Sequence[UnitKey],
    *,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
    on_share: OnShare | None = None,
    despite_audit: bool = False,
    source: StudySource | None = None,
) -> None:
    """Compute units in this process, audits of gradients first.

    Args:
        study: the study.
        directory: its run directory.
        todo: the units.
        device: where to compute.
        on_unit: called with each unit when it is committed.
        on_share: called with the progress within a unit.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.
        source: where the study comes from, if from a file: to load it anew for a check.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
    """
    originals = Originals(study, source)
    for stage in _stages(study, directory, todo, despite_audit=despite_audit):
        for key in stage:
            progress = None if on_share is None else partial(on_share, key)
            directory.commit(run_unit(study, key, device=device, progress=progress, originals=originals))
            if on_unit is not None:
                on_unit(key)


def _stages(
    study: Study, directory: RunDirectory, todo: Sequence[UnitKey], *, despite_audit: bool
) -> Iterator[list[UnitKey]]:
    """What can be computed in any order, stage by stage; each must be done before the next is asked for."""
    yield [key for key in todo if key.row in study.audits]
    if not despite_audit:
        admit(study, directory)
    yield [key for key in todo if key.row not in study.audits]


def admit(study: Study, directory: RunDirectory) -> None:
    """Refuse (`RefusedError`) to go on where the audit of a defence's gradient is red; all audits must be done."""
    for key in study.units():
        if key.row in study.audits:
            audit = directory.load(key.name).facts.audit
            if audit is not None and audit.light is AuditLight.RED:
                reasons = " ".join(fault.sentence for fault in audit.faults)
                reasons = reasons or " ".join(c.sentence for c in audit.checks if c.light is AuditLight.RED)
                raise RefusedError(
                    f"run refused: an attack by this gradient would say nothing ({key.row}). {audit.verdict} "
                    f"{reasons} "
                    "Mend it, or go on without a headline by --despite-audit."
                )


def compute_parallel(
    study: Study,
    source: StudySource,
    directory: RunDirectory,
    todo: Sequence[UnitKey],
    *,
    workers: int,
    device: str = "cpu",
    on_unit: OnUnit | None = None,
    despite_audit: bool = False,
) -> None:
    """Compute units in several processes of one thread each; audits of gradients first.

    Args:
        study: the study.
        source: where the study comes from; every worker loads it by itself.
        directory: its run directory.
        todo: the units, at least one.
        workers: processes.
        device: where to compute.
        on_unit: called with each unit when it is committed.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
        RecordError: a worker was killed.
    """
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(todo)),
        mp_context=get_context("spawn"),
        initializer=_begin_worker,
        initargs=(source, directory, device, os.getpid()),
    )
    try:
        for stage in _stages(study, directory, todo, despite_audit=despite_audit):
            with _interrupts_ignored():
                jobs = {pool.submit(_work, key): key for key in stage}
            for job in as_completed(jobs):
                job.result()
                if on_unit is not None:
                    on_unit(jobs[job])
    except BrokenProcessPool as error:
        raise RecordError(
            "run: expected every worker to live, but one was ended from outside (perhaps for want of memory). "
            "What is done is kept; give the same command again, with fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def missing(study: Study, directory: RunDirectory, shard: Shard | None = None) -> tuple[UnitKey, ...]:
    """Units not yet done, in order; those that are done are read once, so that damage is found before the work begins.

    Args:
        study: the study.
        directory: its run directory.
        shard: which part of the units; default all. Audits of gradients belong to every part.

    Returns:
        The keys.

    Raises:
        RecordError: a damaged unit, or files that are no units of this study.
    """
    shard = Shard() if shard is None else shard
    if not 0 <= shard.index < shard.count:
        _check.fail("run", "a shard i/n with 0 <= i < n", f"{shard.index}/{shard.count}", "Shards count from 0.")
    foreign = list(directory.foreign())
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise RecordError(
            f"run directory {directory.path}: expected only units of this study, got {foreign[0]}{more}. "
            "Move what is foreign away; what was recorded is kept."
        )
    audits = [key for key in study.units() if key.row in study.audits]
    others = [key for key in study.units() if key.row not in study.audits]
    keys = (*audits, *others[shard.index :: shard.count])
    for key in keys:
        if directory.has(key.name):
            directory.read(key.name)
    return tuple(key for key in keys if not directory.has(key.name))


_worker: list[tuple[Study, RunDirectory, str, Originals]] = []


def _begin_worker(source: StudySource, directory: RunDirectory, device: str, parent: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    study = source.load()
    _worker.append((study, directory, device, Originals(study, source)))


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


def _work(key: UnitKey) -> None:
    study, directory, device, originals = _worker[0]
    directory.commit(run_unit(study, key, device=device, originals=originals))


def _end_with(parent: int) -> None:
    """Leave when the parent is gone: a killed run must not leave workers behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
