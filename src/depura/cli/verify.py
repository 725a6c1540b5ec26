"""The command verify: whether a record holds, without attacking anything again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from depura import _check
from depura.cli.doors import door, one_thread, out
from depura.evaluation import verification
from depura.evaluation.records import RunDirectory, Unit
from depura.evaluation.rescoring import rebuilt
from depura.evaluation.statistics import Recount
from depura.evaluation.study import Study
from depura.judging import recheck
from depura.judging.summary import summarise
from depura.judging.verdicts import Status, Verdict
from depura.reports import page

STYLES = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.NOT_RUN: "yellow"}


@door
def verify(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    share: Annotated[float, typer.Option(help="Of the images of each row that are scored again, in (0, 1].")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the choice of these images.")] = 0,
    study: Annotated[Path | None, typer.Option(help="The study file, if it is not where it was.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Check that a record holds: files, reports, study, examples, and some images scored again. No attack is run.

    Prints a line for each check. Exit code 0 where none failed, 1 where one did.
    """
    one_thread()
    _check.device("--device", device)
    _check.number("verify", "--share", share, low=0.0, high=1.0, low_open=True)
    _check.integer("verify", "--seed", seed)
    run = RunDirectory.open(directory)
    failed = 0
    for verdict in _verdicts(run, study, share=share, seed=seed, device=device):
        failed += verdict.status is Status.FAIL
        _print(verdict)
    if failed:
        out.print(f"\nThe record does not hold: {failed} check{'s' if failed > 1 else ''} failed.", style="bold red")
        raise typer.Exit(1)
    out.print("\nThe record holds.", style="bold")


def _verdicts(run: RunDirectory, file: Path | None, *, share: float, seed: int, device: str) -> Iterator[Verdict]:
    said, units = recheck.files(run)
    yield said
    yield recheck.complete(run.done, len(run.header["units"]))
    if said.status is Status.PASS:
        yield _report(run)
    try:
        study, anew = rebuilt(run.header, path=file)
    except _check.InputError as error:
        yield from recheck.not_rebuilt(f"the study cannot be built anew: {error}")
        return
    hashes = recheck.study(verification.differences(run.header, anew))
    yield from hashes
    if any(verdict.status is Status.FAIL for verdict in hashes):
        why = "the study built anew is another one"
        yield from (verdict for verdict in recheck.not_rebuilt(why) if verdict.id != "hash")
        return
    wrong = {unit.meta["unit"]: verification.faults(unit, study) for unit in units}
    yield recheck.bounds([fault for faults in wrong.values() for fault in faults], len(units))
    sound = [unit for unit in units if not wrong[unit.meta["unit"]]]
    yield from recheck.rescored(_recounts(study, sound, share=share, seed=seed, device=device))


def _report(run: RunDirectory) -> Verdict:
    try:
        texts = page.texts(summarise(run))
    except Exception as error:  # arrays that cannot be true raise whatever they lead to
        return recheck.unreportable(f"{type(error).__name__}: {error}")
    present = [name for name in texts if (run.path / name).exists()]
    return recheck.report(present, [n for n in present if (run.path / n).read_bytes() != texts[n].encode()])


def _recounts(study: Study, units: Sequence[Unit], *, share: float, seed: int, device: str) -> list[Recount]:
    """Of every row and null baseline at the main radius of which there is a unit."""
    names = (*study.nulls(), *(row.name for row in study.rows))
    found: list[Recount] = []
    for name in names:
        own = [unit for unit in units if unit.meta["row"] == name and unit.meta["eps"] == study.ball.eps]
        if own:
            found.append(verification.recount(study, own, share=share, seed=seed, device=device))
    return found


def _print(verdict: Verdict) -> None:
    advice = f" {verdict.advice}" if verdict.advice else ""
    out.print(f"{verdict.status.value:<8}", style=STYLES[verdict.status], end="")
    words = f"{verdict.id}, {verdict.name}: {verdict.sentence}.{advice}"
    out.print(words.replace("..", "."), highlight=False, markup=False, soft_wrap=True)
