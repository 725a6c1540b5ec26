"""Running a study: one unit of work at a time, each committed at once, so that a run may be stopped at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from depura import _check
from depura.evaluation.executors import Executor, InProcess
from depura.evaluation.header import header
from depura.evaluation.study import Study, UnitKey
from depura.records.directory import RecordError, RunDirectory
from depura.records.schema import AuditLight


class RefusedError(RecordError):
    """A run that would give numbers without meaning; the message says why."""


OnUnit = Callable[[UnitKey], None]
"""Called with each unit when it is committed."""


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
    executor = InProcess(study, directory, device=device)
    compute(study, directory, todo, executor, on_unit=on_unit, despite_audit=despite_audit)
    return directory


def compute(
    study: Study,
    directory: RunDirectory,
    todo: Sequence[UnitKey],
    executor: Executor,
    *,
    on_unit: OnUnit | None = None,
    despite_audit: bool = False,
) -> None:
    """Compute units, audits of gradients first.

    Args:
        study: the study.
        directory: its run directory.
        todo: the units.
        executor: where they are computed, within its context.
        on_unit: called with each unit when it is committed.
        despite_audit: go on though the audit of a gradient is red; there will be no headline.

    Raises:
        RefusedError: a red audit; nothing is attacked then.
    """
    for stage in _stages(study, directory, todo, despite_audit=despite_audit):
        for key in executor(stage):
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
