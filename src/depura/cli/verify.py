"""The command verify: whether a record holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from depura import _check
from depura.analysis import verification as words
from depura.analysis.summary import summarise
from depura.analysis.verdicts import Status, Verdict
from depura.analysis.verification import IDS, Verification
from depura.cli.console import door, out
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.cli.studies import Settings, pairs
from depura.evaluation import verification
from depura.evaluation.executors import cores
from depura.evaluation.rescoring import rebuilt_header
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.reports import page

STYLES = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.NOT_RUN: "yellow"}
ENDINGS = {
    Verification.HOLDS: (0, "bold"),
    Verification.DOES_NOT_HOLD: (1, "bold red"),
    Verification.NOT_CHECKED: (3, "bold yellow"),
}
"""Exit code and style of the last line; exit code 2 is for input that cannot be used."""


@door
def verify(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    share: Annotated[float, typer.Option(help="Of the images of each row that are scored again, in (0, 1].")] = 0.05,
    remake: Annotated[int, typer.Option(help="Units of the adaptive attack that are made again, attack and all.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the choice of these images and units.")] = 0,
    study: StudyFile = None,
    trust: Trust = False,
    settings: Settings = None,
    require: Annotated[
        list[str] | None,
        typer.Option(help=f"A check that must pass, not warn or be left out: {', '.join(IDS)}.", metavar="ID"),
    ] = None,
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Check that a record holds: files, reports, study, examples; some images scored and a unit made again.

    A study is code: it is run only if it is given (--study) or trusted (--trust). Exit code 0: the record holds. 1: it
    does not. 3: its files hold, its numbers were not checked.
    """
    _check.device("--device", device)
    _check.number("verify", "--share", share, low=0.0, high=1.0, low_open=True)
    _check.integer("verify", "--seed", seed)
    _check.integer("verify", "--remake", remake)
    unknown = [name for name in require or [] if name not in IDS]
    if unknown:
        _check.fail("--require", f"a check among {', '.join(IDS)}", repr(unknown[0]))
    run = RunDirectory.open(directory)
    verdicts: list[Verdict] = []
    given = pairs(settings)
    for unasked in _verdicts(run, study, trust, given, share=share, remake=remake, seed=seed, device=device):
        verdict = words.required(unasked, require or [])
        verdicts.append(verdict)
        if not as_text:
            _print(verdict)
    outcome, text = words.verification(verdicts)
    code, style = ENDINGS[outcome]
    if as_text:
        checks = [
            {"id": v.id, "name": v.name, "status": v.status.value, "sentence": v.sentence, "advice": v.advice}
            for v in verdicts
        ]
        typer.echo(json.dumps({"outcome": outcome.value, "checks": checks}, indent=1))
    else:
        out.print(f"\n{text}", style=style, highlight=False, markup=False, soft_wrap=True)
    if code:
        raise typer.Exit(code)


def _verdicts(
    run: RunDirectory,
    file: Path | None,
    trust: bool,
    settings: tuple[tuple[str, str], ...],
    *,
    share: float,
    remake: int,
    seed: int,
    device: str,
) -> Iterator[Verdict]:
    files, units = words.file_verdict(run)
    yield files
    yield words.completeness_verdict(_there(run, units), len(run.header.units))
    if files.status is Status.PASS:
        yield _report(run)
    try:
        source = source_of(run.header, study=file, trust=trust, settings=settings)
        study, anew = rebuilt_header(run.header, source)
    except _check.InputError as error:
        yield from words.without_study(str(error))
        return
    hashes = words.study_verdicts(verification.differences(run.header, anew))
    yield from hashes
    if any(verdict.status is Status.FAIL for verdict in hashes):
        yield from words.without_study("the study built anew is another one")[1:]
        return
    faults = {unit.facts.unit: verification.faults(unit, study, outputs=anew.data.outputs or 0) for unit in units}
    yield words.bounds_verdict([fault for its in faults.values() for fault in its], len(units))
    sound = [unit for unit in units if not faults[unit.facts.unit]]
    # Of a row with a unit that cannot be true there is nothing to score.
    wrong = {unit.facts.row for unit in units if faults[unit.facts.unit] and unit.facts.eps == study.ball.eps}
    names = [name for name in _rows(study, sound) if name not in wrong]
    recounts = verification.recounts(run, source, names, share=share, seed=seed, device=device, processes=cores())
    yield from words.rescore_verdicts(recounts)
    yield _remade(run, source, sound, remake, seed=seed, device=device)


def _there(run: RunDirectory, sound: Sequence[Unit]) -> int:
    """How many units are there; of a run with packed units that cannot be read, how many are sound."""
    try:
        return run.done
    except RecordError:
        return len(sound)


def _report(run: RunDirectory) -> Verdict:
    try:
        texts = page.reports(summarise(run))
    except Exception as error:  # arrays that cannot be true raise whatever they lead to
        why = f"no report can be made of the record ({type(error).__name__}: {error})"
        return Verdict("report", "reports", Status.FAIL, why)
    present = [name for name in texts if (run.path / name).exists()]
    return words.report_verdict(present, [n for n in present if (run.path / n).read_bytes() != texts[n].encode()])


def _rows(study: Study, units: Sequence[Unit]) -> list[str]:
    """Rows at the main radius of which there is a unit, then clean baselines: what is attacked is scored first."""
    there = {unit.facts.row for unit in units if unit.facts.eps == study.ball.eps}
    return [name for name in (*(row.name for row in study.all_rows), *study.nulls()) if name in there]


def _remade(
    run: RunDirectory, source: StudySource, units: Sequence[Unit], n: int, *, seed: int, device: str
) -> Verdict:
    sound = {unit.facts.unit for unit in units}
    entries = [entry for entry in run.header.units if entry.unit in sound]
    names = [entry.unit for entry in verification.to_remake(run.header, entries, n=n, seed=seed)]
    why_none = "no unit was asked for" if n == 0 else "the run holds no attack that could be made again"
    return words.remake_verdict(verification.remakes(run, source, names, device=device) if names else [], why_none)


def _print(verdict: Verdict) -> None:
    advice = f" {verdict.advice}" if verdict.advice else ""
    out.print(f"{verdict.status.value:<8}", style=STYLES[verdict.status], end="")
    text = f"{verdict.id}, {verdict.name}: {verdict.sentence}.{advice}"
    out.print(text.replace("..", "."), highlight=False, markup=False, soft_wrap=True)
