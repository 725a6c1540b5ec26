"""The parts of a defence, each by itself, at states of a real reverse process.

Solver and guidance are given a smooth stand-in for the denoiser, so that a part is not blamed for what it calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from depura.audit.probes import Probe, Tensors
from depura.defence import Defence, MeanLogit, MeanProb, Single, Vote
from depura.diffusion.guidance import State, recorded
from depura.diffusion.solvers import AncestralLearned, Before, Denoise, Multistep, Solver
from depura.gradients import Direct
from depura.noise import Noise
from depura.purifiers.purifier import DiffusionPurifier, Stage, TrajectoryStep
from depura.purifiers.wrapped import Wrapped

NO_SCORES = "Give it scores with a gradient, such as logits or probabilities, in the place of labels."
NO_SLOPE = (
    "Give the rule's scores a gradient, as depura.Vote does (its counts have that of depura.MeanProb), or deploy "
    "depura.Vote or depura.MeanProb."
)


def parts(defence: Defence, images: Tensor, noise: Noise) -> Iterator[Probe]:
    """The parts of a defence at the first, middle and last step of a reverse process, then classifier and rule."""
    with torch.no_grad():
        purified = images if defence.purifier is None else defence.purifier(images, noise)
    if defence.purifier is not None:
        for stage in defence.purifier.stages_of(images, noise):
            if isinstance(stage.purifier, DiffusionPurifier):
                yield from _of_purifier(stage.purifier, stage)
            elif isinstance(stage.purifier, Wrapped):
                yield _of_wrapped("purifier", stage.purifier, stage.images, stage.noise)
    if isinstance(defence.classifier, Wrapped):
        yield _of_wrapped("defence", defence.classifier, images, noise)
        return
    n = len(images)

    def classify(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (defence.classifier(inputs[0]),)

    name, network = _label("classifier", defence.classifier), defence.classifier
    yield Probe(name, classify, (purified,), ("images",), n, network, advice=NO_SCORES)
    if not isinstance(defence.rule, (Single, MeanLogit, MeanProb, Vote)) and defence.purifier is not None:
        with torch.no_grad():
            m = defence.rule.n_draws
            many = defence.purifier(images.repeat_interleave(m, dim=0), noise.split(m))
            logits = defence.classifier(many).reshape(n, m, -1)

        def score(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
            return (defence.rule.scores(inputs[0]),)

        yield Probe(_label("rule", defence.rule), score, (logits,), ("logits",), n, advice=NO_SLOPE)


def _of_wrapped(role: str, core: Wrapped, images: Tensor, noise: Noise) -> Probe:
    """Somebody's own code: as a whole, and the modules inside it."""

    whole = core.with_(gradient=Direct())

    def call(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (whole.purify(inputs[0], noise.take(rows)),)

    advice = "Or say isolate=True: images then go through it one by one."
    return Probe(f"{role} {core.title}", call, (images,), ("images",), len(images), core.thing, batch_advice=advice)


def _of_purifier(core: DiffusionPurifier, stage: Stage) -> Iterator[Probe]:
    x_in = 2 * stage.images - 1
    n_steps = len(core.steps)
    last = core.rounds * n_steps - 1
    image, before = x_in, None
    for position, at in enumerate(core.sample_steps(stage, 0)):
        noise = stage.noise.later(at.round)
        if position % n_steps == 0:
            yield _start(core, image, noise)
            before = None
        if position in (0, (last + 1) // 2, last):
            yield from _at(core, at, x_in, noise, before)
        before = Before(at.x0, at.step.sigma) if isinstance(core.solver, Multistep) else None
        if (position + 1) % n_steps == 0:
            image = core.steps[-1].scale_next * at.x_next


def _start(core: DiffusionPurifier, image: Tensor, noise: Noise) -> Probe:
    def start(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (core.start(inputs[0], core.steps[0], noise.take(rows)),)

    return Probe(_label("start", core.start), start, (image,), ("x_in",), len(image), core.start)


def _at(
    core: DiffusionPurifier, seen: TrajectoryStep, x_in: Tensor, noise: Noise, before: Before | None
) -> Iterator[Probe]:
    n, step = len(x_in), seen.step
    estimates = () if before is None else (before.x0,)

    def denoise(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (core.denoiser(inputs[0], step.sigma),)

    def stepped(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        solver = _following(core, None if before is None else Before(inputs[1], before.sigma))
        return (solver.step(_stand_in(core, seen, rows), inputs[0], step, noise.take(rows)).x_next,)

    def displace(inputs: Tensors, rows: tuple[int, ...], denoise: Denoise, *, whole: bool) -> Tensors:
        def move(x: Tensor) -> Tensors:
            assert core.guidance is not None
            solver = _following(core, None if before is None else Before(before.x0[list(rows)], before.sigma))
            x_next, x0, variance = solver.step(denoise, x, step, noise.take(rows))
            moved = core.guidance(State(x, x0, inputs[1], step, noise.take(rows), variance))
            return (x_next + moved if whole else moved,)

        return recorded(move, *inputs)

    def guide(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return displace(inputs, rows, _stand_in(core, seen, rows), whole=False)

    def guided(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return displace(inputs, rows, core.denoiser, whole=True)

    yield Probe(_label("denoiser", core.denoiser), denoise, (seen.x,), ("x",), n, core.denoiser)
    if not bool(seen.x0.isfinite().all()):  # nothing to stand in for
        return
    names = ("x", "before.x0")[: 1 + len(estimates)]
    yield Probe(_label("solver", core.solver), stepped, (seen.x, *estimates), names, n, core.solver)
    if core.guidance is not None:
        at = ("at.x", "at.x_in")
        yield Probe(_label("guidance", core.guidance), guide, (seen.x, x_in), at, n, core.guidance)
        together = f"{_label('guidance', core.guidance)} with {_label('denoiser', core.denoiser)}"
        yield Probe(together, guided, (seen.x, x_in), at, n, together=True)


def _following(core: DiffusionPurifier, before: Before | None) -> Solver:
    """The solver, after a step if there was one and it uses it."""
    if before is None or not isinstance(core.solver, Multistep):
        return core.solver
    return core.solver.after(before)


def _stand_in(core: DiffusionPurifier, seen: TrajectoryStep, rows: tuple[int, ...]) -> Denoise:
    """A smooth, curved, bounded function of x through the real estimate at the real state."""
    x0, x = seen.x0[list(rows)], seen.x[list(rows)]

    def estimate(z: Tensor, sigma: float) -> Tensor:
        near = x0 + 0.4 * torch.tanh(z - x + 0.3) - 0.1165
        if not isinstance(core.solver, AncestralLearned):
            return near
        with torch.no_grad():
            return torch.cat([near, core.denoise(x, sigma)[:, x.shape[1] :]], dim=1)

    return estimate


def _label(role: str, thing: Any) -> str:
    while isinstance(thing, partial):
        thing = thing.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    name: str = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{role} {name.rpartition('<locals>.')[2]}"
