"""The command extend: more images, attacks or radii on the same record."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from depura import _check
from depura.cli.console import door, duration, out, seconds
from depura.cli.machine import CheckpointEvery, Device, Machine, Workers, every, one_kind
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.cli.studies import Budget, Settings, pairs, resume
from depura.evaluation.extending import extended
from depura.evaluation.runner import Shard
from depura.evaluation.study import Study, UnitKey
from depura.planning import price
from depura.records.directory import RunDirectory
from depura.records.schema import AddedAttack


@door
def extend(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    settings: Settings = None,
    attack: Annotated[
        list[str] | None, typer.Option("--attack", help="A further attack, as `depura attacks` lists them.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of these attacks; default: the attack's.")] = None,
    eot: Annotated[int | None, typer.Option(help="Draws per step of these attacks.")] = None,
    study: StudyFile = None,
    trust: Trust = False,
    workers: Workers = None,
    device: Device = "cpu",
    budget: Budget = "1h",
    yes: Annotated[bool, typer.Option("--yes", help="Run though the plan is over the budget.")] = False,
    checkpoint_every: CheckpointEvery = "5min",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run and what it costs.")] = False,
) -> None:
    """Extend a run: more images (-S images=128), a further attack (--attack, or a row more in the study file).

    What was recorded stays and is not computed again. Kill it at any time; the same command, or `depura extend DIR`,
    goes on. More draws of the same examples are made by `depura rescore --draws`. Exit code 1: there is no headline.
    """
    devices = one_kind(workers, device)
    allowed = None if yes else seconds("--budget", budget)
    run = RunDirectory.open(directory)
    was = source_of(run.header, study=study, trust=trust)
    named = tuple(AddedAttack(name=name, steps=steps, eot=eot) for name in attack or [])
    if not named and (steps is not None or eot is not None):
        _check.fail("extend", "--steps and --eot together with --attack", "them without")
    source = replace(
        was,
        settings=tuple({**dict(was.settings), **dict(pairs(settings))}.items()),
        attacks=tuple(dict.fromkeys((*was.attacks, *named))),
    )
    larger = source.load()
    words = ["depura", "extend", "DIR"]
    words += [word for text in settings or [] for word in ("-S", text)]
    words += [word for name in attack or [] for word in ("--attack", name)]
    words += [
        word for name, value in (("--steps", steps), ("--eot", eot)) if value is not None for word in (name, str(value))
    ]
    new = extended(run, larger, source=source, command=shlex.join(words))
    if dry_run:
        _plan(larger, [key for key in larger.units() if not run.has(key.name)], len(devices), device)
        return
    if new is not run.header:
        run = run.extend(new)
    resume(larger, source, run, machine=Machine(devices, Shard(), allowed, every=every(checkpoint_every)))


def _plan(study: Study, todo: list[UnitKey], workers: int, device: str) -> None:
    """What an extension would compute, row by row."""
    if not todo:
        out.print("nothing to do: every unit is done")
        return
    prices = price.plan(study, device=device, units=todo, from_file=True)
    for p in prices:
        text = f"{p.images} images, {p.forward:,} denoiser evaluations, about {duration(p.seconds)}"
        out.print(f"{p.row}, eps {p.eps:g}: {text}", highlight=False, soft_wrap=True)
    whole = sum(p.seconds for p in prices) / workers
    out.print(f"{len(todo)} units, about {duration(whole)} on {workers} workers; nothing was run")
