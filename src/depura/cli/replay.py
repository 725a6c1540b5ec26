"""The command replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.text import Text
from torch import Tensor

from depura.cli.console import door, err, fraction, one_thread, out
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.data import files
from depura.evaluation.replay import Replay
from depura.evaluation.replay import replay as replayed
from depura.records.directory import RunDirectory
from depura.records.schema import Data
from depura.reports.pictures import LARGEST_TERMINAL as LARGEST
from depura.reports.pictures import film, sketch, strip

GAP = 2
"""Columns between two drawings in a terminal."""


@door
def replay(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    image: Annotated[int, typer.Option(help="Id of the image.")],
    draw: Annotated[int, typer.Option(help="Number of the report draw, from 0.")] = 0,
    row: Annotated[str, typer.Option(help="Whose example; default: the first adaptive row.")] = "",
    eps: Annotated[float | None, typer.Option(parser=fraction, help="Radius; default: the study's own.")] = None,
    walk: Annotated[int, typer.Option(help="Which purification, where the rule makes several.")] = 0,
    clean: Annotated[bool, typer.Option("--clean", help="Put in the clean image, under the same noise.")] = False,
    study: StudyFile = None,
    trust: Trust = False,
    to: Annotated[Path | None, typer.Option("--out", help="Folder for the pictures; default: DIR/replay.")] = None,
) -> None:
    """Make one recorded decision again, picture its walk, and check that it comes out as recorded (or exit 1)."""
    one_thread()
    run = RunDirectory.open(directory)
    source = source_of(run.header, study=study, trust=trust)
    found = replayed(run, image=image, draw=draw, row=row, eps=eps, walk=walk, clean=clean, source=source)
    for note in found.notes:
        out.print(f"note     {note}", highlight=False, markup=False, soft_wrap=True)
    data = run.header.data
    _tell(found, data, run.header.draws.report)
    columns = [(_pixels(a, found.given), _pixels(b, found.given)) for a, b in _columns(found)]
    folder = directory / "replay" if to is None else to
    stem = f"{found.row}-image-{image}-draw-{draw}{'-clean' if clean else ''}" + (f"-walk-{walk}" if walk else "")
    made = {folder / f"{stem}.png": strip(columns), folder / f"{stem}.gif": film(columns)}
    files.write_all(made, where="replay")
    if out.is_terminal and max(found.given.shape[1:]) <= LARGEST:
        _draw(found)
    for file in made:
        out.print(f"wrote    {file}", highlight=False, soft_wrap=True)
    if not found.agrees:
        err.print(
            f"Not the decision on record: {data.class_name(found.predicted)} now, "
            f"{data.class_name(found.recorded or 0)} then. A label "
            "may tip where two classes are all but level and sums are rounded otherwise (another machine or batch).",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _tell(found: Replay, data: Data, draws: int) -> None:
    """What was put in, how it walked and what came out."""
    of = f", purification {found.walk} of {len(found.seen)}" if len(found.seen) > 1 else ""
    given = "clean" if found.clean else "attacked"
    rounds = len({frame.round for frame in found.frames})
    again = f" in {rounds} rounds" if rounds > 1 else ""
    lines = [
        f"image    {found.image}, class {data.class_name(found.label)}, {given}; row {found.row}, draw {found.draw} of "
        f"{draws}{of}",
        f"walk     {len(found.frames)} steps{again}: sigma {_levels([frame.sigma for frame in found.frames])}",
    ]
    if len(found.seen) > 1:
        seen = ", ".join(f"{name} {count}x" for name, count in _counted([data.class_name(k) for k in found.seen]))
        lines.append(f"seen as  {seen}, one purification at a time")
    if found.recorded is None:
        lines.append(
            f"decision {data.class_name(found.predicted)}; not on record, as clean images are judged on other draws"
        )
    else:
        verdict = "the same" if found.agrees else "not the same"
        lines.append(
            f"decision {data.class_name(found.predicted)}; on record {data.class_name(found.recorded)}: {verdict}"
        )
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _columns(found: Replay) -> list[tuple[Tensor, Tensor]]:
    """The clean image over what was put in, the noisy state over the estimate of each step, the result over itself."""
    steps = [(frame.state, frame.estimate) for frame in found.frames]
    return [(found.original, found.given), *steps, (found.purified, found.purified)]


def _pixels(image: Tensor, like: Tensor) -> NDArray[np.uint8]:
    """8-bit pixels of the size of another image."""
    if image.shape[1:] != like.shape[1:]:
        image = torch.nn.functional.interpolate(image[None], size=like.shape[1:], mode="nearest")[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _levels(sigmas: list[float]) -> str:
    """Noise levels; of many the first, the middle and the last few."""
    words = [f"{sigma:.2g}" for sigma in sigmas]
    return ", ".join(words) if len(words) <= 8 else ", ".join([*words[:3], "...", *words[-3:]])


def _counted(names: list[str]) -> list[tuple[str, int]]:
    """Names with their counts, the most frequent first."""
    return sorted(((name, names.count(name)) for name in dict.fromkeys(names)), key=lambda pair: -pair[1])


def _draw(found: Replay) -> None:
    """As many columns as fit in the terminal, evenly chosen, drawn with half blocks."""
    columns = _columns(found)
    width = found.given.shape[2] + GAP
    fit = max(2, min(len(columns), out.width // width))
    shown = sorted({round(float(k)) for k in np.linspace(0, len(columns) - 1, fit)})
    for part in (0, 1):
        drawings = [sketch(torch.from_numpy(_pixels(columns[k][part], found.given)) / 255) for k in shown]
        for line in zip(*drawings, strict=True):
            out.print(Text(" " * GAP).join(line), no_wrap=True)
        out.print()
