"""The command that judges somebody's own purifier or defence, without a study file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

import depura.evaluation.judge
from depura.cli.console import door, seconds
from depura.cli.machine import CheckpointEvery, Device, Machine, Workers, every, one_kind
from depura.cli.studies import Budget, DespiteAudit, Yes, pairs, run_source
from depura.evaluation.profiles import PROFILES
from depura.evaluation.runner import Shard
from depura.evaluation.study_file import StudySource, literal


@door
def judge(
    purifier: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="The purifier or whole defence: MODULE:NAME or FILE.py:NAME of a module, a function or an object, "
            "or of what makes one without arguments.",
        ),
    ],
    to: Annotated[Path, typer.Option("--out", help="Run directory, new or of the same study.")],
    classifier: Annotated[
        str, typer.Option(help="Classifier behind the purifier, by name or as FILE.py:NAME; none for a whole defence.")
    ] = "",
    data: Annotated[str, typer.Option(help="'digits', or a file or folder of labelled images.")] = "digits",
    images: Annotated[int, typer.Option(help="How many, the first ones.")] = 64,
    eps: Annotated[str | None, typer.Option(help="Radius, such as 8/255; 0.2 for the digits.")] = None,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    profile: Annotated[
        str, typer.Option(help=f"Attacks: {', '.join(PROFILES)}; empty: a short suite.", metavar="NAME")
    ] = "quick",
    network: Annotated[
        str | None, typer.Option(help="Dotted name of the network inside; default: found by itself.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An argument of its call, or an attribute.")
    ] = None,
    call: Annotated[str, typer.Option(help="The method that is called.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("-S", metavar="NAME=VALUE", help="Any other setting, e.g. -S range=-1,1, -S n_results=4."),
    ] = None,
    workers: Workers = None,
    device: Device = "cpu",
    budget: Budget = "1h",
    yes: Yes = False,
    checkpoint_every: CheckpointEvery = "5min",
    despite_audit: DespiteAudit = False,
) -> None:
    """Judge a purifier or a whole defence of your own, as it is, and write a report. No study file is needed.

    Exit code 1: there is no headline, as a check failed, the attack was too weak, or nothing says whether it was.
    """
    devices = one_kind(workers, device)
    given: dict[str, str | None] = {
        "purifier": purifier,
        "classifier": classifier or None,
        "data": None if data == "digits" else data,
        "images": str(images),
        "eps": eps,
        "norm": None if norm == "linf" else norm,
        "network": network,
        "call": call or None,
        "set": json.dumps({name: literal(value) for name, value in pairs(set_)}) if set_ else None,
    }
    chosen = (*((name, value) for name, value in given.items() if value is not None), *pairs(settings))
    source = StudySource(Path(depura.evaluation.judge.__file__), chosen, profile)
    machine = Machine(devices, Shard(), None if yes else seconds("--budget", budget), every=every(checkpoint_every))
    words = [word for name, value in chosen[1:] for word in ("-S", f"{name}={value}")]
    command = shlex.join(["depura", "judge", purifier, "--out", "DIR", "--profile", profile, *words])
    run_source(source, to, command=command, machine=machine, despite_audit=despite_audit)
