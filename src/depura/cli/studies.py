"""Commands about studies: demo, run, plan, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

import depura.demo
from depura import _check
from depura.cli.doors import cores, door, one_thread, out, progress
from depura.data import files
from depura.evaluation import price
from depura.evaluation.records import RunDirectory
from depura.evaluation.runner import Shard, compute, compute_parallel, header, missing
from depura.evaluation.source import StudySource
from depura.evaluation.study import Study, UnitKey
from depura.judging.summary import Summary
from depura.reports import page
from depura.reports.tables import terminal

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-S", metavar="NAME=VALUE", help="A parameter of the study, e.g. -S eps=8/255."),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
Workers = Annotated[int | None, typer.Option(help="Processes; default: one per core.")]


@door
def demo(
    to: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    settings: Settings = None,
    workers: Workers = None,
) -> None:
    """Purify, attack, judge and report on the bundled digits. No network needed; a minute or two."""
    source = StudySource(Path(depura.demo.__file__), pairs(settings))
    summary = _run(source, to, command=_command("demo", None, settings), workers=workers, shard=None)
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
    unit = next(unit for unit in directory.units() if unit.meta["row"] == "undefended")
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
    device: Device = "cpu",
) -> None:
    """Run a study, or what is missing of it, and write its report. Kill it at any time; the same command goes on."""
    source = StudySource(study, pairs(settings))
    _check.device("--device", device)
    command = _command("run", study, settings)
    _run(source, to, command=command, workers=workers, shard=_shard(shard), device=device)


@door
def plan(
    study: Annotated[Path, typer.Argument(help="Python file with a function study() -> Study.")],
    settings: Settings = None,
    workers: Workers = None,
    device: Device = "cpu",
) -> None:
    """Print what a study costs before it is run: denoiser evaluations, and time from a short probe."""
    one_thread()
    _check.device("--device", device)
    loaded = StudySource(study, pairs(settings)).load()
    _print_plan(loaded, price.plan(loaded, device=device), _workers(workers, device))


@door
def report(directory: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Write report.html and report.md of a run directory, and print its table."""
    _report(RunDirectory.open(directory))


def _run(
    source: StudySource, to: Path, *, command: str, workers: int | None, shard: Shard | None, device: str = "cpu"
) -> Summary | None:
    """Run and report; the summary, or None where units of other shards are missing."""
    one_thread()
    study = source.load()
    n_workers = _workers(workers, device)
    directory = RunDirectory.create(to, header(study, command=command, source=source))
    todo = missing(study, directory, shard)
    out.print(f"study    {study.name}: {len(study.data.images)} images of {study.data.name}, {study.ball}")
    if todo:
        prices = price.plan(study, device=device)
        forward, seconds = sum(p.forward for p in prices), sum(p.seconds for p in prices)
        out.print(
            f"plan     {forward:,} denoiser evaluations in all, about {_duration(seconds / n_workers)} on {n_workers} "
            f"worker{'s' if n_workers > 1 else ''}; {len(todo)} of {len(study.units())} units to do"
        )
    else:
        out.print("plan     nothing to do: every unit is done")
    with progress() as bar:
        task = bar.add_task("running", total=len(todo))

        finished: list[UnitKey] = []

        def done(key: UnitKey) -> None:
            finished.append(key)
            bar.update(task, completed=len(finished), description=f"running  {key.row}, eps {key.eps:g}")
            if not out.is_terminal and len(finished) % -(-len(todo) // 4) == 0:
                out.print(f"running  {len(finished)} of {len(todo)} units done")

        def within(key: UnitKey, share: float) -> None:
            described = f"running  {key.row}, eps {key.eps:g}, {100 * share:.0f} %"
            bar.update(task, completed=len(finished) + share, description=described)

        if n_workers == 1 or not todo:
            compute(study, directory, todo, device=device, on_unit=done, on_share=within)
        else:
            compute_parallel(study, source, directory, todo, workers=n_workers, device=device, on_unit=done)
    return _report(directory)


def _report(directory: RunDirectory) -> Summary | None:
    summary, written = page.write(directory)
    if not summary.complete:
        out.print(summary.headline)
        return None
    out.print(terminal(summary))
    for warning in summary.warnings:
        out.print(f"warning  {warning}", style="yellow")
    out.print(f"\n{summary.headline}\n", style="bold", highlight=False)
    for file in written:
        out.print(f"wrote    {file}")
    return summary


def _print_plan(study: Study, prices: tuple[price.Price, ...], workers: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("row", "eps", "images", "forward", "pulled back", "one worker"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for p in prices:
        table.add_row(p.row, f"{p.eps:g}", f"{p.images}", f"{p.forward:,}", f"{p.backward:,}", _duration(p.seconds))
    forward, backward = sum(p.forward for p in prices), sum(p.backward for p in prices)
    seconds = sum(p.seconds for p in prices)
    table.add_section()
    table.add_row("all", "", "", f"{forward:,}", f"{backward:,}", _duration(seconds), style="bold")
    out.print(f"{study.name}: denoiser evaluations, exactly; time from a short probe on this machine")
    out.print(table)
    out.print(f"about {_duration(seconds / workers)} on {workers} worker{'s' if workers > 1 else ''}")


def _workers(asked: int | None, device: str) -> int:
    """Processes: as asked, else one per core, or one where a GPU does the work."""
    default = cores() if device == "cpu" else 1
    return _check.integer("run", "workers", default if asked is None else asked, low=1)


def pairs(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    """The (name, value) pairs of texts NAME=VALUE."""
    found: list[tuple[str, str]] = []
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not (name and equals):
            _check.fail("-S", "NAME=VALUE", repr(text))
        found.append((name, value))
    return tuple(found)


def _shard(text: str) -> Shard:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        _check.fail("--shard", "I/N with 0 <= I < N", repr(text), "The first of two shards is 0/2.")
    return Shard(int(index), int(count))


def _command(name: str, study: Path | None, settings: list[str] | None) -> str:
    words = ["depura", name, *([] if study is None else [study.as_posix(), "--out", "DIR"])]
    for text in settings or []:
        words += ["-S", text]
    return shlex.join(words)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
