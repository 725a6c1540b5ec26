"""One recorded decision made again: the same image, the same draw, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depura import _check
from depura.defence import Defence, Single
from depura.diffusion.schedules import vp_scale
from depura.evaluation.rescoring import rebuilt_header
from depura.evaluation.scoring import score
from depura.evaluation.study import AttackRun, Study
from depura.evaluation.study_file import StudySource
from depura.evaluation.verification import CODE
from depura.evaluation.verification import differences as header_differences
from depura.evaluation.without_images import examples_of
from depura.noise import Noise, Stream
from depura.records.directory import RecordError, RunDirectory, Unit


class Frame(NamedTuple):
    """One step of a reverse process.

    Attributes:
        sigma: noise level before the step.
        round: number of the round.
        state: the noisy image before the step, scaled to the range of images, (C, H, W).
        estimate: the clean image as estimated there, (C, H, W).
    """

    sigma: float
    round: int
    state: Tensor
    estimate: Tensor


class Replay(NamedTuple):
    """A decision made again.

    Attributes:
        row: whose example it is.
        image: its id.
        label: its class, by number.
        draw: number of the report draw.
        walk: number of the purification that is shown, of those that the deployed rule makes.
        clean: whether the clean image was put in instead of the adversarial one.
        recorded: the label on record; None for the clean image, which was not judged on these draws.
        predicted: the label now.
        seen: the label of each purification by itself, in order.
        original: the clean image, (C, H, W) in [0, 1].
        given: what was put in, (C, H, W).
        frames: the steps of one purification.
        purified: its result, (C, H, W), nominally in [0, 1].
        notes: what of the machine is not as recorded, in sentences.
    """

    row: str
    image: int
    label: int
    draw: int
    walk: int
    clean: bool
    recorded: int | None
    predicted: int
    seen: tuple[int, ...]
    original: Tensor
    given: Tensor
    frames: tuple[Frame, ...]
    purified: Tensor
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the label is the one on record, if there is one."""
        return self.recorded in (None, self.predicted)


def as_recorded(directory: RunDirectory, source: StudySource) -> tuple[Study, tuple[str, ...]]:
    """The study of a run, made anew, and sentences about versions and code that are not as recorded.

    A `RecordError` where it is another study than the one on record.
    """
    made, now = rebuilt_header(directory.header, source)
    other = header_differences(directory.header, now)
    first = next((its for its in other if its.part not in CODE), None)
    if first is not None:
        raise RecordError(
            f"run directory {directory.path}: expected the study that {source.path} makes, got a record of another one "
            f"({first.sentence}). Give the file as it was with --study."
        )
    return made, tuple(f"Not as recorded: {its.sentence}." for its in other)


def replay(
    directory: RunDirectory,
    *,
    image: int,
    draw: int = 0,
    row: str = "",
    eps: float | None = None,
    walk: int = 0,
    clean: bool = False,
    source: StudySource | None = None,
) -> Replay:
    """Make one recorded decision again, from the recorded example and the noise of a report draw.

    Args:
        directory: a run; the unit that holds the image must be done.
        image: its id.
        draw: number of the report draw, from 0.
        row: whose example; default: the first adaptive row, or else the first that attacks the defence.
        eps: radius; default the study's own.
        walk: which of the purifications of a rule of several draws to show.
        clean: put in the clean image instead of the adversarial one, under the same noise.
        source: where the run's study comes from; default `StudySource.of` its header, which runs nothing that the
            record names.

    Returns:
        The decision with its trajectory.

    Raises:
        InputError: unknown image, draw, row, radius or purification; the message says what there is.
        RecordError: the study cannot be rebuilt as recorded, or the unit is missing or damaged.
    """
    made, notes = as_recorded(directory, StudySource.of(directory.header) if source is None else source)
    chosen = _row(made, row)
    unit, place = _recorded(directory, chosen, image, made.ball.eps if eps is None else eps)
    n_draws, k = unit.arrays["predictions"].shape[1], chosen.evaluated.rule.n_draws
    _check.integer("replay", "draw", draw, low=0, high=n_draws - 1, advice=f"Row {chosen.name} has {n_draws} draws.")
    _check.integer("replay", "walk", walk, low=0, high=k - 1, advice=f"The rule makes {k} purifications.")
    position = made.data.ids.index(image)
    original, label = made.data.images[position : position + 1], made.data.labels[position : position + 1]
    given = original if clean else examples_of(unit, made)[place : place + 1]
    noise = made.noise(Stream.REPORT, (image,))
    decided = score(chosen.evaluated, given, label, noise, draws=range(draw, draw + 1))
    alone = score(chosen.evaluated.with_(rule=Single()), given, label, noise, draws=range(draw * k, (draw + 1) * k))
    frames, purified = _trajectory(chosen.evaluated, given, noise.draw(draw * k + walk))
    return Replay(
        row=chosen.name,
        image=image,
        label=int(label),
        draw=draw,
        walk=walk,
        clean=clean,
        recorded=None if clean else int(unit.arrays["predictions"][place, draw]),
        predicted=int(decided.predictions),
        seen=tuple(int(k) for k in alone.predictions[0]),
        original=original[0],
        given=given[0],
        frames=frames,
        purified=purified,
        notes=notes,
    )


def _trajectory(defence: Defence, given: Tensor, noise: Noise) -> tuple[tuple[Frame, ...], Tensor]:
    """The steps of one purification, and its result."""
    assert defence.purifier is not None
    frames = tuple(
        Frame(
            sigma=moment.step.sigma,
            round=moment.round,
            state=((vp_scale(moment.step.sigma) * moment.x + 1) / 2)[0],
            estimate=((moment.x0 + 1) / 2)[0],
        )
        for moment in defence.purifier.trajectory(given, noise)
    )
    with torch.no_grad():
        return frames, defence.purifier(given, noise)[0]


def _row(study: Study, name: str) -> AttackRun:
    """The row of a name; without one, the first adaptive row, or else the first that attacks a purified defence."""
    purified = [row for row in study.all_rows if row.evaluated.purifier is not None]
    if not purified:
        _check.fail("replay", "a study that judges a defence with a purifier", "one without", "There are no steps.")
    if not name:
        return next((row for row in purified if row.kind == "adaptive"), purified[0])
    found = next((row for row in purified if row.name == name), None)
    if found is None:
        known = ", ".join(row.name for row in purified)
        bare = any(row.name == name for row in study.rows)
        got = f"{name!r}, which judges a bare classifier" if bare else repr(name)
        _check.fail("--row", f"a row that judges a purifier ({known})", got)
    return found


def _recorded(directory: RunDirectory, row: AttackRun, image: int, eps: float) -> tuple[Unit, int]:
    """The unit of a row that holds an image, and the image's place in it."""
    entries = [entry for entry in directory.header.units if entry.row == row.name]
    there = sorted({entry.eps for entry in entries})
    if eps not in there:
        _check.fail("--eps", f"a radius of row {row.name} ({', '.join(f'{r:g}' for r in there)})", f"{eps:g}")
    ids = directory.header.data.ids
    own = [entry for entry in entries if entry.eps == eps]
    for entry in own:
        if image in ids[entry.first : entry.last]:
            unit = directory.load(entry.unit)
            return unit, int(np.flatnonzero(unit.arrays["ids"] == image)[0])
    known = [k for entry in own for k in ids[entry.first : entry.last]]
    return _check.fail("--image", f"the id of an image of row {row.name} at eps {eps:g} ({_listed(known)})", f"{image}")


def _listed(ids: Iterable[int]) -> str:
    """All of a few numbers, the first and the last of many."""
    words = [str(k) for k in ids]
    return ", ".join(words) if len(words) <= 40 else f"{', '.join(words[:30])}, ..., {words[-1]}; {len(words)} in all"
