"""The command rescore: recorded examples under another deployed rule."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from depura import _check
from depura.cli.doors import door, one_thread, out, progress
from depura.cli.studies import conclude
from depura.evaluation.header import header
from depura.evaluation.records import RecordError, RunDirectory
from depura.evaluation.rescoring import rescore as rescore_units
from depura.evaluation.rescoring import rescored_header, rule_named, under
from depura.evaluation.source import StudySource
from depura.evaluation.study import UnitKey
from depura.evaluation.verification import CODE, differences


class RuleName(str, Enum):
    """Rules of the command line."""

    single = "single"
    vote = "vote"
    mean_prob = "mean-prob"
    mean_logit = "mean-logit"


@door
def rescore(
    directory: Annotated[Path, typer.Argument(help="Run directory, complete.")],
    rule: Annotated[RuleName, typer.Option(help="How a prediction is made from K purifications.")],
    k: Annotated[int, typer.Option("--k", help="K.")] = 1,
    to: Annotated[Path | None, typer.Option("--out", help="New run directory; default beside it.")] = None,
    draws: Annotated[int | None, typer.Option(help="Predictions per image; default as many as recorded.")] = None,
    study: Annotated[Path | None, typer.Option(help="The study file, if it is not where it was.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Score the recorded examples and the clean images under another deployed rule. No attack is run.

    The examples were not made against that rule, and the report says so. Kill it at any time; the same command goes on.
    """
    one_thread()
    _check.device("--device", device)
    recorded = RunDirectory.open(directory)
    if "rescored_from" in recorded.header:
        raise RecordError(f"rescore: expected a run with attacks, got one rescored ({directory}). Take the first one.")
    deployed = rule_named(rule.value, _check.integer("rescore", "--k", k, low=1))
    if draws is not None:
        _check.integer("rescore", "--draws", draws, low=1)
    source = StudySource.of(recorded.header, path=study)
    loaded = source.load()
    other = [d for d in differences(recorded.header, header(loaded, command="")) if d.part not in CODE]
    if other:
        raise RecordError(f"rescore: expected the study of {directory}, got another one ({other[0].sentence}).")
    target = directory.with_name(f"{directory.name}-{rule.value}{deployed.n_draws}") if to is None else to
    words = ["depura", "rescore", "DIR", "--rule", rule.value, "--k", str(k)]
    words += [] if draws is None else ["--draws", str(draws)]
    said = rescored_header(loaded, deployed, report_draws=draws, source=source, command=shlex.join(words))
    new = RunDirectory.create(target, said)
    had, n = recorded.header["draws"]["report"], deployed.n_draws
    if rule is RuleName.vote and loaded.defence.rule.n_draws == 1 and n <= had:
        out.print(f"majority of {n}: of {had // n} disjoint groups of the {had} recorded draws it needs no new ones")
    derived = under(loaded, deployed, report_draws=draws)
    with progress() as bar:
        task = bar.add_task("rescoring", total=len(derived.units()))

        def done(key: UnitKey) -> None:
            bar.update(task, advance=1, description=f"rescoring {key.row}, eps {key.eps:g}")

        rescore_units(derived, recorded, new, device=device, on_unit=done)
    conclude(new)
