"""Trying one part by itself: twice, with a graph, image by image, and its derivative by each input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from depura.audit.derivatives import Precision, normal, pull, relative, slope, watched

Tensors = tuple[Tensor, ...]

ADVICE_SECOND = (
    "Guidance by pull needs second derivatives: use operations that have them (for attention, "
    "torch.nn.attention.sdpa_kernel(SDPBackend.MATH))."
)


class Fault(NamedTuple):
    """A part that is not what it has to be.

    Attributes:
        part: its name, e.g. "guidance Toward" or "denoiser.network.body.2 (Block)".
        sentence: what was expected, what was measured, what to look for.
    """

    part: str
    sentence: str


@dataclass(frozen=True)
class Probe:
    """A part at one point of a reverse process, as a function of tensors that begin with the images of a batch.

    Attributes:
        part: name for people.
        call: (inputs, rows of the batch they are for) -> outputs; it honours the caller's grad mode.
        inputs: what the gradient flows back to.
        names: of the inputs.
        n: rows of the batch.
        thing: the object that is tried, to look into; None where there is nothing to look into.
        strict: whether a batch of one image must be accepted.
        together: whether it is several parts, to be tried where none of them fails by itself.
        advice: what to do where nothing connects its outputs with its inputs, a sentence; empty where that may be.
        batch_advice: what else to do where an output depends on the batch, a sentence or nothing.
    """

    part: str
    call: Callable[[Tensors, tuple[int, ...]], Tensors]
    inputs: Tensors
    names: tuple[str, ...]
    n: int
    thing: object = None
    strict: bool = True
    together: bool = False
    advice: str = ""
    batch_advice: str = ""

    @property
    def rows(self) -> tuple[int, ...]:
        """All rows of the batch."""
        return tuple(range(self.n))


def examine(probe: Probe, precision: Precision, seed: int) -> Fault | None:
    """Try a part: twice, with a graph, image by image, and its derivative by each input.

    Args:
        probe: the part, at a point.
        precision: what counts as equal.
        seed: of cotangents and directions.

    Returns:
        The first thing that is wrong with it, or None; None too where what it is given is not finite.
    """
    if not all(bool(t.isfinite().all()) for t in probe.inputs):
        return None
    try:
        sentence = _unreplayed(probe, precision) or _mixed(probe, precision) or _underived(probe, precision, seed)
        sentence = sentence or _unconnected(probe)
    except Exception as error:
        sentence = f"expected a value and a derivative, got {error_line(error)}"
        sentence += f" {ADVICE_SECOND}" if "is not implemented" in sentence else ""
    return None if sentence is None else Fault(probe.part, f"{probe.part}: {sentence}")


def _unreplayed(probe: Probe, precision: Precision) -> str | None:
    device = probe.inputs[0].device if probe.inputs else torch.device("cpu")
    with watched(device) as touched, torch.no_grad():
        first, again = (probe.call(_copies(probe.inputs), probe.rows) for _ in range(2))
        changed = touched()
    broken = sum(int((~out.isfinite()).sum()) for out in first)
    if broken:
        return f"expected finite values, got {broken} of {sum(map(Tensor.numel, first))} that are not."
    drift = _farthest(first, again)
    advice = "Draw from the noise it is handed; look for a generator of its own, dropout, or state kept between calls."
    if drift > (0 if device.type == "cpu" else precision.same):
        got = f"got a relative difference of {drift:.2g}"
        return f"expected the same output from the same input and noise, {got}. {advice}"
    if changed:
        return f"expected the global random generators untouched, got them changed. {advice}"
    with torch.enable_grad():
        recorded = probe.call(tuple(t.clone().requires_grad_() for t in probe.inputs), probe.rows)
    drift = _farthest(first, tuple(out.detach() for out in recorded))
    if drift > precision.same:
        return f"expected the same output with a graph as without, got a relative difference of {drift:.2g}."
    return None


def _mixed(probe: Probe, precision: Precision) -> str | None:
    with torch.no_grad():
        whole = probe.call(_copies(probe.inputs), probe.rows)
        drift = 0.0
        for row in probe.rows:
            try:
                alone = probe.call(tuple(take_rows(t, (row,), probe.n).clone() for t in probe.inputs), (row,))
                drift = max(drift, _farthest(alone, tuple(take_rows(out, (row,), probe.n) for out in whole)))
            except Exception:
                if probe.strict:
                    raise
                return None
    if drift <= precision.same:
        return None
    return (
        "expected an image's output to be the same alone and in a batch, got a relative difference of "
        f"{drift:.2g}. Look for a mean over the batch (F.mse_loss, .mean()), batch norm in training mode, or noise "
        f"that is not addressed by image. {probe.batch_advice}"
    ).rstrip()


def _underived(probe: Probe, precision: Precision, seed: int) -> str | None:
    if not probe.inputs:
        return None
    with torch.no_grad():
        outputs = probe.call(_copies(probe.inputs), probe.rows)
    weights = [normal(out, seed, k) for k, out in enumerate(outputs)]
    pulled = pull(lambda leaves: probe.call(leaves, probe.rows), probe.inputs, weights)
    broken = sum(int((~g.isfinite()).sum()) for g in pulled)
    if broken:
        total = sum(map(Tensor.numel, pulled))
        got = f"got {broken} of {total} entries that are not"
        return f"expected a finite derivative, {got}. Look for roots or quotients at 0."
    lost: list[str] = []
    bent: list[str] = []
    worst = 0.0
    for k, (name, x, g) in enumerate(zip(probe.names, probe.inputs, pulled, strict=True)):
        unit = float(x.square().mean().sqrt()) or 1.0
        found = slope(
            partial(_flat, probe, k, x, unit),
            torch.zeros_like(x),
            unit * g,
            torch.cat([w.flatten() for w in weights]),
            precision=precision,
            seed=seed,
        )
        if found.wrong(precision):
            (bent if bool(g.any()) else lost).append(name)
            worst = max(worst, found.error)
    if not lost and not bent:
        return None
    got = f"one without the path through {' and '.join(lost)}" if lost else f"another by {' and '.join(bent)}"
    return (
        f"expected the derivative that finite differences give, got {got} (relative error {worst:.2g}). "
        "Look for a detach or no_grad there."
    )


def _unconnected(probe: Probe) -> str | None:
    """Of a part that must have a gradient: whether it has none, not even one of zero."""
    if not probe.advice:
        return None
    with torch.enable_grad():
        outputs = probe.call(tuple(t.clone().requires_grad_() for t in probe.inputs), probe.rows)
    if any(out.requires_grad for out in outputs):
        return None
    path = f"a result with a gradient path to the {' and '.join(probe.names)}"
    return f"expected {path}, got one without. {probe.advice}"


def _flat(probe: Probe, k: int, x: Tensor, unit: float, moved: Tensor) -> Tensor:
    """All outputs in one row, as a function of the k-th input, which is moved in its own units."""
    inputs = [t.clone() for t in probe.inputs]
    inputs[k] = x + unit * moved
    return torch.cat([out.flatten() for out in probe.call(tuple(inputs), probe.rows)])


def take_rows(t: Tensor, rows: Sequence[int], n: int) -> Tensor:
    """The part of a tensor that belongs to some of n images; the whole where it is not divided by images.

    Args:
        t: (n * k, ...), image after image, or anything else.
        rows: which images.
        n: images in the batch.

    Returns:
        (len(rows) * k, ...), or t.
    """
    if t.ndim == 0 or len(t) == 0 or len(t) % n:
        return t
    return t.reshape(n, len(t) // n, *t.shape[1:])[list(rows)].flatten(0, 1)


def error_line(error: Exception) -> str:
    """An exception in one line, with a full stop."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}."


def inner_modules(thing: object) -> Mapping[str, nn.Module]:
    """The modules that something calls: itself, or those that it holds as attributes or closes over, by name."""
    if isinstance(thing, nn.Module):
        return {"": thing}
    held: dict[str, Any] = dict(getattr(thing, "__dict__", {}))
    if (code := getattr(thing, "__code__", None)) is not None:
        names, cells = code.co_freevars, getattr(thing, "__closure__", None) or ()
        held |= {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}
    return {name: value for name, value in held.items() if isinstance(value, nn.Module)}


def _copies(inputs: Tensors) -> Tensors:
    return tuple(t.clone() for t in inputs)


def _farthest(a: Tensors, b: Tensors) -> float:
    return max((relative(x, y) if not torch.equal(x, y) else 0.0 for x, y in zip(a, b, strict=True)), default=0.0)
