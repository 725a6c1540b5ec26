"""The command replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from depura.cli.console import door, err, fraction, out
from depura.cli.recorded import StudyFile, Trust, source_of
from depura.data import files
from depura.evaluation.replay import Replay
from depura.evaluation.replay import replay as replayed
from depura.records.directory import RunDirectory
from depura.records.schema import Data
from depura.reports.pictures import image_grid


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
    to: Annotated[Path | None, typer.Option("--out", help="Folder for the image grid; default: DIR/replay.")] = None,
) -> None:
    """Make a recorded decision again, picture its steps, and check that it comes out as recorded (or exit 1)."""
    run = RunDirectory.open(directory)
    source = source_of(run.header, study=study, trust=trust)
    result = replayed(run, image=image, draw=draw, row=row, eps=eps, walk=walk, clean=clean, source=source)
    for note in result.notes:
        out.print(f"note     {note}", highlight=False, markup=False, soft_wrap=True)
    data = run.header.data
    _print(result, data, run.header.draws.report)
    columns = [(_pixels(a, result.given), _pixels(b, result.given)) for a, b in _columns(result)]
    folder = directory / "replay" if to is None else to
    stem = f"{result.row}-image-{image}-draw-{draw}{'-clean' if clean else ''}" + (f"-walk-{walk}" if walk else "")
    file = folder / f"{stem}.png"
    files.write_all({file: image_grid(columns)}, where="replay")
    out.print(f"wrote    {file}", highlight=False, soft_wrap=True)
    if not result.agrees:
        err.print(
            f"Not the decision on record: {data.class_name(result.predicted)} now, "
            f"{data.class_name(result.recorded or 0)} then. A label "
            "may tip where two classes are all but level and sums are rounded otherwise (another machine or batch).",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _print(result: Replay, data: Data, draws: int) -> None:
    """Print what was put in, the steps of the reverse process and the decision."""
    of = f", purification {result.walk} of {len(result.seen)}" if len(result.seen) > 1 else ""
    given = "clean" if result.clean else "attacked"
    rounds = len({frame.round for frame in result.frames})
    again = f" in {rounds} rounds" if rounds > 1 else ""
    lines = [
        f"image    {result.image}, class {data.class_name(result.label)}, {given}; row {result.row}, "
        f"draw {result.draw} of {draws}{of}",
        f"steps    {len(result.frames)}{again}: sigma {_levels([frame.sigma for frame in result.frames])}",
    ]
    if len(result.seen) > 1:
        seen = ", ".join(f"{name} {count}x" for name, count in _counted([data.class_name(k) for k in result.seen]))
        lines.append(f"seen as  {seen}, one purification at a time")
    decision = f"decision {data.class_name(result.predicted)}"
    if result.recorded is None:
        lines.append(f"{decision}; not on record, as clean images are judged on other draws")
    else:
        agrees = "the same" if result.agrees else "not the same"
        lines.append(f"{decision}; on record {data.class_name(result.recorded)}: {agrees}")
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _columns(result: Replay) -> list[tuple[Tensor, Tensor]]:
    """The clean image over what was put in, the noisy state over the estimate of each step, the result over itself."""
    steps = [(frame.state, frame.estimate) for frame in result.frames]
    return [(result.original, result.given), *steps, (result.purified, result.purified)]


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
