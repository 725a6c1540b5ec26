"""What one call of a defence costs: denoiser evaluations, counted by a hook, and rows that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depura.defence import Defence
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.solvers import AncestralLearned
from depura.gradients import Direct, StoredState, graph_bytes, recomputing
from depura.noise import Noise, Stream
from depura.purifiers.purifier import IterativePurifier
from depura.purifiers.wrapped import Wrapped
from depura.records.kinds import GradientMode


@dataclass
class Counts:
    """Denoiser evaluations, in images.

    Attributes:
        forward: evaluations of the denoiser, but for those run again on the way back.
        backward: times that one of them was differentiated, also by guidance that is a gradient.
        recomputed: evaluations run again for their gradient; how many depends on the memory there is.
    """

    forward: int = 0
    backward: int = 0
    recomputed: int = 0

    def numbers(self) -> NDArray[np.int64]:
        """The three counts."""
        return np.array([self.forward, self.backward, self.recomputed], dtype=np.int64)

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Add to the three counts."""
        forward, backward, recomputed = map(int, numbers)
        self.forward += forward
        self.backward += backward
        self.recomputed += recomputed

    def __deepcopy__(self, memo: object) -> Counts:
        """Itself: what a copy of a counted defence evaluates is added to the same counts."""
        return self


class _Counted(nn.Module):
    def __init__(self, denoiser: Denoiser, counts: Counts) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.counts = counts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer; (x, sigma) to x0, but for networks of wrapped callables, which take what they take."""
        answer: Any = cast("Callable[..., Any]", self.denoiser)(*args, **kwargs)
        n = next((len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 0), 1)
        if recomputing():
            self.counts.recomputed += n
        else:
            self.counts.forward += n
        x0 = _first_tensor(answer)
        if x0 is not None and x0.requires_grad:
            x0.register_hook(self._pulled)
        return answer

    def _pulled(self, gradient: Tensor) -> None:
        if not recomputing():
            self.counts.backward += len(gradient)


def _first_tensor(answer: Any) -> Tensor | None:
    """The answer, or the first tensor in a tuple, list or mapping of answers."""
    if isinstance(answer, Tensor):
        return answer
    values = cast("Mapping[Any, Any]", answer).values() if isinstance(answer, Mapping) else answer
    several = cast("Iterable[Any]", values) if isinstance(values, Iterable) else ()
    return next((value for value in several if isinstance(value, Tensor)), None)


def counted(defence: Defence) -> tuple[Defence, Counts]:
    """A copy of a defence, with shared weights, and the counts that its denoiser evaluations are added to.

    The bare classifier has none to count.
    """
    counts = Counts()
    return counted_into(defence, counts), counts


def counted_into(defence: Defence, counts: Counts) -> Defence:
    """A copy of a defence, with shared weights, whose denoiser evaluations are added to some counts."""
    return defence.over_core(lambda core: core.over(lambda denoiser: _Counted(denoiser, counts)))


def evaluations(defence: Defence, images: Tensor, noise: Noise, *, gradient: bool) -> Counts:
    """Denoiser evaluations of one call, counted with an idle denoiser in the place of the real one.

    Args:
        defence: any defence.
        images: (B, C, H, W); what else the defence consists of must be on their device.
        noise: of B rows.
        gradient: whether with the gradient by the images.

    Returns:
        The counts; none for the bare classifier.
    """
    if defence.core is None:
        return Counts()
    idle = defence.over_core(lambda core: core.map(_idle))
    model, counts = counted(idle.to(images.device))
    call(model, images, noise, gradient=gradient)
    return counts


def call(defence: Defence, images: Tensor, noise: Noise, *, gradient: bool) -> None:
    """Call a defence on images (B, C, H, W) once, with the gradient of its logits' sum by them or without a graph."""
    if gradient and (defence.differentiable or defence.mode is GradientMode.BPDA):
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(defence(leaf, noise).sum(), leaf)
    else:
        with torch.no_grad():
            defence(images, noise)


def _idle(purifier: IterativePurifier) -> IterativePurifier:
    if isinstance(purifier, Wrapped):  # its network has a shape that nobody knows
        return purifier
    return purifier.with_(denoiser=_Idle(learned=isinstance(purifier.settings().get("solver"), AncestralLearned)))


class _Idle(nn.Module):
    """Evaluated as often as the real denoiser, at no cost."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        del sigma
        x0 = 0.5 * x
        return torch.cat([x0, torch.full_like(x, 0.5)], dim=1) if self.learned else x0


def rows_within(defence: Defence, image: Tensor, memory: int) -> int:
    """Rows that can be differentiated in one call if each holds the graph of one step.

    That is what `StoredState` needs at least; with `Direct` it is the graph of all steps. Measured on the first, the
    middle and the last step, for one row.

    Args:
        defence: what is differentiated.
        image: (1, C, H, W) in [0, 1].
        memory: bytes of graph.

    Returns:
        At least 1.
    """
    return max(1, memory // max(1, bytes_per_row(defence, image)))


def bytes_per_row(defence: Defence, image: Tensor) -> int:
    """Bytes of graph that one row holds at once in a gradient of the defence (see `rows_within`)."""
    noise = Noise(0, (0,), stream=Stream.PROBE)
    whole = defence.core
    if whole is None or not whole.differentiable:
        return graph_bytes(lambda: _differentiated(defence, image, noise))
    short = [
        defence.over_core(lambda core, at=at: core.one_step(at).with_(gradient=StoredState(segment=1)))
        for at in (0.0, 0.5, 1.0)
    ]
    one = max(graph_bytes(lambda d=d: _differentiated(d, image, noise)) for d in short)
    return one * whole.n_steps if isinstance(whole.route, Direct) else one


def _differentiated(defence: Defence, image: Tensor, noise: Noise) -> None:
    with torch.enable_grad():
        leaf = image.detach().clone().requires_grad_()
        total = defence(leaf, noise).sum()
        if total.requires_grad:  # what has no gradient holds its graph on the way forward all the same
            torch.autograd.grad(total, leaf)
