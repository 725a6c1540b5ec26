"""The command rescore: recorded examples under another deployed rule, or on other draws."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from depura import _check
from depura.cli.console import door, out, progress
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.cli.studies import write_report
from depura.evaluation.replay import as_recorded
from depura.evaluation.rescoring import rescore as rescore_units
from depura.evaluation.rescoring import rescored_header, rule_named, under
from depura.evaluation.study import UnitKey
from depura.records.directory import RecordError, RunDirectory


class RuleName(str, Enum):
    """Rules of the command line."""

    single = "single"
    vote = "vote"
    mean_prob = "mean-prob"
    mean_logit = "mean-logit"


@door
def rescore(
    directory: Annotated[Path, typer.Argument(help="Run directory, complete.")],
    rule: Annotated[
        RuleName | None, typer.Option(help="How a prediction is made from K purifications; default as deployed.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="K.")] = 1,
    to: Annotated[
        Path | None, typer.Option("--out", help="New run directory; default: in the folder of the old one.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Predictions per image; default as many as recorded.")] = None,
    study: StudyFile = None,
    trust: Trust = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Score the recorded examples and the clean images under another deployed rule or on other draws. No attack.

    Examples were not made against another rule, and the report says so. Kill it at any time; the same command goes on.
    """
    _check.device("--device", device)
    recorded = RunDirectory.open(directory)
    if recorded.header.rescored_from is not None:
        raise RecordError(f"rescore: expected a run with attacks, got one rescored ({directory}). Take the first one.")
    if rule is None and draws is None:
        _check.fail("rescore", "--rule, --draws or both", "neither")
    _check.integer("rescore", "--k", k, low=1)
    deployed = None if rule is None else rule_named(rule.value, k)
    if draws is not None:
        _check.integer("rescore", "--draws", draws, low=1)
    source = source_of(recorded.header, study=study, trust=trust)
    loaded, _ = as_recorded(recorded, source)
    words = ["depura", "rescore", "DIR"]
    words += [] if rule is None else ["--rule", rule.value, "--k", str(k)]
    words += [] if draws is None else ["--draws", str(draws)]
    new_header = rescored_header(loaded, deployed, report_draws=draws, source=source, command=shlex.join(words))
    new = RunDirectory.create(
        directory.with_name(_default_out(directory, rule, k, draws)) if to is None else to, new_header
    )
    had = recorded.header.draws.report
    if rule is RuleName.vote and loaded.defence.rule.n_draws == 1 and k <= had:
        out.print(f"majority of {k}: of {had // k} disjoint groups of the {had} recorded draws it needs no new ones")
    derived = under(loaded, deployed, report_draws=draws)
    with progress() as bar:
        task = bar.add_task("rescoring", total=len(derived.units()))

        def done(key: UnitKey) -> None:
            bar.update(task, advance=1, description=f"rescoring {key.row}, eps {key.eps:g}")

        rescore_units(derived, recorded, new, device=device, on_unit=done)
    write_report(new)


def _default_out(directory: Path, rule: RuleName | None, k: int, draws: int | None) -> str:
    """Name of the new run directory, in the folder of the old one."""
    parts = [directory.name, *([] if rule is None else [f"{rule.value}{k}"])]
    return "-".join([*parts, *([] if draws is None else [f"draws{draws}"])])
