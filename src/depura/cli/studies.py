"""Commands about studies: demo, run, report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

import depura.evaluation.demo
from depura import _check
from depura.analysis.beside import runs_beside
from depura.analysis.summary import Summary
from depura.analysis.verdicts import Status, grouped
from depura.cli.console import door, duration, out, seconds
from depura.cli.live import Live
from depura.cli.machine import (
    CheckpointEvery,
    CpusPerUnit,
    Devices,
    GpusPerUnit,
    Machine,
    OneDevice,
    Ray,
    SharedDisk,
    Twice,
    Workers,
    cluster_of,
    devices_of,
    every,
    one_kind,
)
from depura.data import files
from depura.evaluation.executors import Executor
from depura.evaluation.header import header
from depura.evaluation.profiles import PROFILES
from depura.evaluation.runner import Shard, admit, compute, missing
from depura.evaluation.study import Study, UnitKey
from depura.evaluation.study_file import StudySource
from depura.planning import price
from depura.records.directory import RunDirectory
from depura.reports.page import write_reports
from depura.reports.table import terminal
from depura.reports.tables import attack_table, progress_table, ranking_table

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-S", metavar="NAME=VALUE", help="A parameter of the study, e.g. -S eps=8/255."),
]
Profile = Annotated[
    str, typer.Option(help=f"Attacks in the place of the study's own rows: {', '.join(PROFILES)}.", metavar="NAME")
]
Budget = Annotated[str, typer.Option(help="Time that needs no further word, e.g. 30min or 12h.", metavar="TIME")]


Yes = Annotated[bool, typer.Option("--yes", help="Run though the plan is over the budget.")]
DespiteAudit = Annotated[
    bool, typer.Option("--despite-audit", help="Run though the gradient is wrong; there will be no headline.")
]


@door
def demo(
    to: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    settings: Settings = None,
    workers: Workers = None,
) -> None:
    """Purify, attack, judge and report on the bundled digits. No network needed; a minute or two."""
    source = StudySource(Path(depura.evaluation.demo.__file__), pairs(settings))
    machine = Machine(one_kind(workers, "cpu"), Shard(), None)
    summary = run_source(source, to, command=_command("demo", None, settings), machine=machine)
    if summary is None:
        return
    folder = to / "adversarial"
    files.write_all(_attacked_digits(RunDirectory.open(to), folder))
    out.print(
        f"Digits attacked without knowledge of the purifier are in {folder}; clean them with\n"
        f"{_program()} purify {folder} --out {to / 'purified'}",
        highlight=False,
        soft_wrap=True,
    )


def _program() -> str:
    """The command as it was called, so that what is printed can be pasted."""
    return sys.argv[0] if Path(sys.argv[0]).name == "depura" else "depura"


def _attacked_digits(directory: RunDirectory, folder: Path) -> dict[Path, bytes]:
    """Pictures of the first attacked images of the undefended row, named by image and class."""
    unit = next(unit for unit in directory.units() if unit.facts.row == "undefended")
    pictures: dict[Path, bytes] = {}
    for image, label, pixels in list(zip(*(unit.arrays[k] for k in ("ids", "labels", "adversarial")), strict=True))[:8]:
        path = folder / f"digit-{image:04d}-a-{label}.png"
        pictures[path] = files.encode(torch.from_numpy(pixels)[None], path)
    return pictures


@door
def run(
    study: Annotated[Path, typer.Argument(help="Python file with a function study() -> Study.")],
    to: Annotated[Path, typer.Option("--out", help="Run directory, new or of the same study.")],
    settings: Settings = None,
    workers: Workers = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only every N-th unit from the I-th (from 0).")] = "0/1",
    device: OneDevice = None,
    devices: Devices = "",
    ray: Ray = "",
    gpus_per_unit: GpusPerUnit = None,
    cpus_per_unit: CpusPerUnit = None,
    twice: Twice = False,
    shared: SharedDisk = False,
    profile: Profile = "",
    budget: Budget = "1h",
    yes: Yes = False,
    checkpoint_every: CheckpointEvery = "5min",
    despite_audit: DespiteAudit = False,
) -> None:
    """Run a study, or what is missing of it, and write its report. Kill it at any time; the same command goes on.

    Exit code 1: there is no headline, as a check failed, the attack was too weak, or nothing says whether it was.
    """
    source = StudySource(study, pairs(settings), profile)
    cluster = cluster_of(
        ray,
        cpus=cpus_per_unit,
        gpus=gpus_per_unit,
        workers=workers,
        twice=twice,
        shared=shared,
        others=["--devices"] if devices else [],
    )
    if cluster is None:
        where = devices_of(devices, workers=workers, device=device)
    else:
        usual = "cuda" if cluster.gpus else "cpu"
        where = (usual if device is None else device,)  # of another machine, which may have others
    allowed = None if yes else seconds("--budget", budget)
    machine = Machine(where, _shard(shard), allowed, cluster, every(checkpoint_every))
    run_source(
        source, to, command=_command("run", study, settings, profile), machine=machine, despite_audit=despite_audit
    )


@door
def report(directory: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write report.html and report.md of a run directory, and print its table. Exit code 1: a check failed."""
    write_report(RunDirectory.open(directory))


def run_source(
    source: StudySource, to: Path, *, command: str, machine: Machine, despite_audit: bool = False
) -> Summary | None:
    """Run and report; the summary, or None where units of other shards are missing."""
    study = source.load()
    directory = RunDirectory.create(to, header(study, command=command, source=source))
    return resume(study, source, directory, machine=machine, despite_audit=despite_audit)


def resume(
    study: Study, source: StudySource, directory: RunDirectory, *, machine: Machine, despite_audit: bool = False
) -> Summary | None:
    """Compute what is missing of a run, and report. The summary is None where units of other shards are missing."""
    todo = missing(study, directory, machine.shard)
    out.print(f"study    {study.name}: {len(study.data.images)} images of {study.data.name}, {study.ball}")
    if not todo:
        out.print("plan     nothing to do: every unit is done")
        if not despite_audit:
            admit(study, directory)
        return write_report(directory)
    live = Live(study, directory, todo)
    with machine.executor(study, source, directory, on_share=live.share) as executor:
        _within_budget(study, directory, todo, executor, machine.budget)
        begun = time.monotonic()
        with live.bars:
            compute(study, directory, todo, executor, on_unit=live.unit, despite_audit=despite_audit)
    out.print(f"took     {duration(time.monotonic() - begun)}")
    return write_report(directory)


def _within_budget(
    study: Study, directory: RunDirectory, todo: Sequence[UnitKey], executor: Executor, budget: float | None
) -> None:
    """Say what is to come, and go on only if it is within the budget."""
    prices, workers = executor.ask(partial(_prices, todo)), executor.workers
    left = sum(p.seconds for p in prices) / workers
    out.print(
        f"plan     {sum(p.forward for p in prices):,} denoiser evaluations, about {duration(left)} on "
        f"{workers} worker{'s' if workers > 1 else ''}; {len(todo)} of {len(study.units())} units to do"
    )
    if budget is not None and left > budget:
        _check.fail(
            "run",
            f"a plan within the budget of {duration(budget)}",
            f"about {duration(left)}",
            f"Nothing was run in {directory.path}. Give --yes, or a larger --budget, or a smaller study.",
        )


def _prices(todo: Sequence[UnitKey], study: Study, device: str) -> tuple[price.Price, ...]:
    return price.plan(study, device=device, units=todo, from_file=True)


def write_report(directory: RunDirectory) -> Summary | None:
    """Write the reports of a run and print its table; exit with 1 where a check failed.

    While units are missing only the headline is printed, and the summary is None.
    """
    summary, written = write_reports(directory)
    if not summary.complete:
        out.print(terminal(progress_table(summary.progress)))
        out.print(summary.headline)
        return None
    if summary.ranking is not None:
        out.print(terminal(ranking_table(summary, summary.ranking), tight=True))
    out.print(terminal(attack_table(summary), wrap=summary.ranking is not None))
    for warning in summary.warnings:
        out.print(f"warning  {warning}", style="yellow", markup=False, highlight=False)
    for group in grouped(summary.verdicts, Status.WARN, Status.FAIL):
        style = "red" if group.status is Status.FAIL else "yellow"
        out.print(f"{group.status.value}     {group.text}", style=style, markup=False, highlight=False)
    out.print(f"\n{summary.headline}\n", style="bold red" if summary.refused else "bold", markup=False, highlight=False)
    for other in runs_beside(directory):
        out.print(f"beside   {other.text}", markup=False, highlight=False, soft_wrap=True)
    for file in written:
        out.print(f"wrote    {file}")
    if summary.refused:
        raise typer.Exit(1)
    return summary


def pairs(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    """The (name, value) pairs of texts NAME=VALUE."""
    settings: list[tuple[str, str]] = []
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals):
            _check.fail("-S", "NAME=VALUE", repr(text))
        settings.append((name, value))
    return tuple(settings)


def _shard(text: str) -> Shard:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        _check.fail("--shard", "I/N with 0 <= I < N", repr(text), "The first of two shards is 0/2.")
    return Shard(int(index), int(count))


def _command(name: str, study: Path | None, settings: list[str] | None, profile: str = "") -> str:
    words = ["depura", name, *([] if study is None else [study.as_posix(), "--out", "DIR"])]
    if profile:
        words += ["--profile", profile]
    for text in settings or []:
        words += ["-S", text]
    return shlex.join(words)
