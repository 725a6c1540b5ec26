"""Seconds of a call, estimated from its floating-point operations: the clock of a plan for networks without weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from depura.defence import Defence, Single
from depura.evaluation.counting import Counts, call, evaluations
from depura.evaluation.meta_device import META
from depura.evaluation.study import Study
from depura.planning.timing import rows_of, step_at

PROBE_SECONDS = 0.2
"""How long the probe of a device's rate takes at least."""


@dataclass(frozen=True)
class Estimate:
    """Estimates calls from the operations of their matrix products and convolutions.

    Attributes:
        study: without weights.
        rate: floating-point operations a second.
    """

    study: Study
    rate: float
    _known: dict[tuple[int, bool], tuple[Defence, float]] = field(
        default_factory=dict[tuple[int, bool], tuple[Defence, float]], init=False, repr=False
    )

    def seconds(self, defence: Defence, rows: int, counts: Counts, *, gradient: bool) -> float:
        """Seconds per row, however many rows there are: operations of a row with these evaluations over the rate."""
        del rows
        key = (id(defence), gradient)
        if key not in self._known:
            self._known[key] = (defence, self.operations(defence, counts, gradient=gradient))
        return self._known[key][1] / self.rate

    def operations(self, defence: Defence, whole: Counts, *, gradient: bool) -> float:
        """Floating-point operations of one row, a multiplication and an addition counted as two.

        Of a reverse process, a first and a middle step are counted and multiplied: steps are of one kind, or of two
        (guided and not), and how many there are of either follows from the evaluations of the whole process.

        Args:
            defence: without weights.
            whole: evaluations of one row.
            gradient: whether with the gradient by the images.

        Returns:
            Their number, a fraction where the last step is of a third kind.
        """
        classified = self._counted(defence.with_(purifier=None, rule=Single()), gradient)
        if defence.purifier is None:
            return classified
        once = defence.with_(rule=Single())
        kinds = [step_at(once, where) for where in (0.0, 0.5)]
        counts = [self._evaluations(kind, gradient) for kind in kinds]
        many = shares(whole, counts[0], counts[1])
        sampling = sum(
            n * (self._counted(kind, gradient) - classified) for n, kind in zip(many, kinds, strict=True) if n > 0
        )
        return sampling + classified * defence.rule.n_draws

    def _evaluations(self, defence: Defence, gradient: bool) -> Counts:
        return evaluations(defence, *rows_of(self.study, 1, device=META), gradient=gradient)

    def _counted(self, defence: Defence, gradient: bool) -> int:
        images, noise = rows_of(self.study, 1, device=META)
        return operations(lambda: call(defence, images, noise, gradient=gradient))


def shares(whole: Counts, first: Counts, middle: Counts) -> tuple[float, float]:
    """How many steps of either kind sampling consists of, by evaluations; all of the first where they are alike."""
    alike = first.forward * middle.backward - first.backward * middle.forward
    if alike == 0:
        return whole.forward / max(1, first.forward), 0.0
    a = (whole.forward * middle.backward - whole.backward * middle.forward) / alike
    b = (first.forward * whole.backward - first.backward * whole.forward) / alike
    return max(0.0, a), max(0.0, b)


def operations(f: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call of a function.

    A multiplication and an addition are two. On the meta device nothing is computed.
    """
    with _Counting() as counting:
        f()
    return counting.total


class _Counting(TorchDispatchMode):
    """Adds up by torch's own formulas. (Torch's `FlopCounterMode` also tracks modules, which gradients by inputs in
    the middle of a function upset.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def rate_of(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one convolution of 128 features on 8 images of 32 x 32 pixels, the best of
    a few.

    Networks, with their smaller operations in between, are somewhat slower.
    """
    x, weight = (torch.ones(shape, dtype=dtype, device=device) for shape in ((8, 128, 32, 32), (128, 128, 3, 3)))
    count = operations(lambda: F.conv2d(x, weight, padding=1))
    best, begun = float("inf"), time.perf_counter()
    with torch.no_grad():
        while best == float("inf") or time.perf_counter() - begun < PROBE_SECONDS:
            start = time.perf_counter()
            out = F.conv2d(x, weight, padding=1)
            if out.is_cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return count / best
