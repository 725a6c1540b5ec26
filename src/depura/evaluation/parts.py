"""The parts of a defence, each by itself, at states of a real walk.

Solver and guidance are given a smooth stand-in for the denoiser, so that a part is not blamed for what it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from depura.evaluation.probes import Probe, Tensors
from depura.guidance import State
from depura.noise import Noise
from depura.purifier import Defence, MeanProb, Moment, Purifier, Resized, Single, Vote


def parts(defence: Defence, images: Tensor, noise: Noise) -> Iterator[Probe]:
    """The parts of a defence at the first, middle and last step of a walk, then classifier and rule."""
    with torch.no_grad():
        purified = images if defence.purifier is None else defence.purifier(images, noise)
    if defence.purifier is not None:
        yield from _of_purifier(defence.purifier, images, noise)
    n = len(images)

    def classify(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (defence.classifier(inputs[0]),)

    yield Probe(_label("classifier", defence.classifier), classify, (purified,), ("images",), n, defence.classifier)
    if not isinstance(defence.rule, (Single, MeanProb, Vote)) and defence.purifier is not None:
        with torch.no_grad():
            m = defence.rule.n_draws
            many = defence.purifier(images.repeat_interleave(m, dim=0), noise.split(m))
            logits = defence.classifier(many).reshape(n, m, -1)
        yield Probe(_label("rule", defence.rule), lambda t, _: (defence.rule.scores(t[0]),), (logits,), ("logits",), n)


def _of_purifier(purifier: Purifier | Resized, images: Tensor, noise: Noise) -> Iterator[Probe]:
    core = purifier.purifier if isinstance(purifier, Resized) else purifier
    x_in = 2 * _images_of(core, purifier, images, noise) - 1
    n_steps = len(core.steps)
    last = core.rounds * n_steps - 1
    image = x_in
    for position, moment in enumerate(core.trajectory((x_in + 1) / 2, noise)):
        tape = noise.in_round(moment.round)
        if position % n_steps == 0:
            yield _start(core, image, tape)
        if position in (0, (last + 1) // 2, last):
            yield from _at(core, moment, x_in, tape)
        if (position + 1) % n_steps == 0:
            image = core.steps[-1].scale_next * moment.x_next


def _start(core: Purifier, image: Tensor, tape: Noise) -> Probe:
    def start(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (core.start(inputs[0], core.steps[0], tape.take(rows)),)

    return Probe(_label("start", core.start), start, (image,), ("x_in",), len(image), core.start)


def _at(core: Purifier, moment: Moment, x_in: Tensor, tape: Noise) -> Iterator[Probe]:
    n, step = len(x_in), moment.step

    def denoise(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (core.denoiser(inputs[0], step.sigma),)

    def solve(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        return (core.solver.step(_stand_in(moment, rows), inputs[0], step, tape.take(rows)).x_next,)

    def guide(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        def displace(x: Tensor) -> Tensor:
            return _displacement(
                core, State(x, _stand_in(moment, rows)(x, step.sigma), inputs[1], step, tape.take(rows))
            )

        return _recorded(displace, inputs[0])

    def guided(inputs: Tensors, rows: tuple[int, ...]) -> Tensors:
        def move(x: Tensor) -> Tensor:
            x_next, x0 = core.solver.step(core.denoiser, x, step, tape.take(rows))
            return x_next + _displacement(core, State(x, x0, inputs[1], step, tape.take(rows)))

        return _recorded(move, inputs[0])

    yield Probe(_label("denoiser", core.denoiser), denoise, (moment.x,), ("x",), n, core.denoiser)
    if not bool(moment.x0.isfinite().all()):  # nothing to stand in for
        return
    yield Probe(_label("solver", core.solver), solve, (moment.x,), ("x",), n, core.solver)
    if core.guidance is not None:
        at = ("at.x", "at.x_in")
        yield Probe(_label("guidance", core.guidance), guide, (moment.x, x_in), at, n, core.guidance)
        together = f"{_label('guidance', core.guidance)} with {_label('denoiser', core.denoiser)}"
        yield Probe(together, guided, (moment.x, x_in), at, n, together=True)


def _displacement(core: Purifier, at: State) -> Tensor:
    assert core.guidance is not None
    return core.guidance(at)


def _recorded(move: Callable[[Tensor], Tensor], x: Tensor) -> Tensors:
    """What a guided function gives at x, which has to record for it; with a graph only if the caller records."""
    recording = torch.is_grad_enabled()
    with torch.enable_grad():
        moved = move(x if x.requires_grad else x.detach().requires_grad_())
    return (moved if recording else moved.detach(),)


def _stand_in(moment: Moment, rows: tuple[int, ...]) -> Callable[[Tensor, float], Tensor]:
    """A smooth, curved, bounded function of x through the real estimate at the real state."""
    x0, x = moment.x0[list(rows)], moment.x[list(rows)]
    return lambda z, sigma: x0 + 0.4 * torch.tanh(z - x + 0.3) - 0.1165


def _images_of(core: Purifier, purifier: nn.Module, images: Tensor, noise: Noise) -> Tensor:
    """What the inner purifier is given."""
    seen: list[Tensor] = []
    handle = core.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            purifier(images, noise)
    finally:
        handle.remove()
    return seen[0]


def _label(role: str, thing: Any) -> str:
    while isinstance(thing, partial):
        thing = thing.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    name: str = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{role} {name.rpartition('<locals>.')[2]}"
