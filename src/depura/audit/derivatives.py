"""Measuring derivatives: a pulled-back gradient against central differences, in a stated precision."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from depura.noise import Kind, Noise, Stream

DIRECTIONS = 5
"""Random directions along which differences are taken."""
_UNLIKELY_SEED = 0x5EEDBED


@dataclass(frozen=True)
class Precision:
    """How closely two computations of one quantity have to agree.

    Attributes:
        dtype: what is computed in; the coarsest, if several.
        difference: relative error allowed of a gradient against differences at the best width.
        same: relative difference allowed between two orders of the same arithmetic.
        widths: half-widths of the central differences, largest first, in units of the argument.
    """

    dtype: torch.dtype
    difference: float
    same: float
    widths: tuple[float, ...]


FLOAT64 = Precision(torch.float64, 1e-5, 1e-9, (1e-4, 1e-5, 1e-6, 1e-7, 1e-8))
"""Rounding of 1e-15 in the value is 1e-7 in a difference of half-width 1e-8; narrow ones step over fewer kinks."""


def loose(dtype: torch.dtype) -> Precision:
    """The tolerances for a dtype of single or lower precision: some units of rounding where those are large."""
    eps = torch.finfo(dtype).eps
    return Precision(dtype, max(2e-2, 32 * eps), max(1e-4, 8 * eps), (1e-2, 3e-3, 1e-3, 3e-4))


def normal(like: Tensor, seed: int, number: int) -> Tensor:
    """Standard normal numbers cut at 4, of any shape, on the probing stream.

    Args:
        like: a tensor of the shape, dtype and device wanted.
        seed: of the noise.
        number: which of the tensors of this shape, from 0.

    Returns:
        Tensor like `like`.
    """
    noise = Noise(seed, images=(0,), draws=number, stream=Stream.PROBE)
    return noise(like.reshape(1, -1), kind=Kind.ATTACK).reshape(like.shape).clamp(-4, 4)


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / max(|a|, |b|) in the Euclidean norm; 0 where both are zero."""
    scale = max(_length(a), _length(b))
    return _length(a - b) / scale if scale != 0 else 0.0


class Slope(NamedTuple):
    """A gradient compared with central differences.

    Attributes:
        error: relative error at the best width.
        resolution: by how much the differences of two neighbouring widths disagree, at best (kinks), with what the
            rounding of the values amounts to.
    """

    error: float
    resolution: float

    def wrong(self, precision: Precision) -> bool:
        """Whether the gradient is another one than that of the program."""
        return self.error > precision.difference and self.error > 3 * self.resolution

    def undecided(self, precision: Precision) -> bool:
        """Whether differences are too coarse to tell."""
        return self.error > precision.difference and not self.wrong(precision)


def slope(
    call: Callable[[Tensor], Tensor], x: Tensor, pulled: Tensor, weights: Tensor, *, precision: Precision, seed: int
) -> Slope:
    """Compare a vector-Jacobian product with central differences along random directions.

    Args:
        call: the function, run without a graph.
        x: where, any shape.
        pulled: the product to be checked, of x's shape.
        weights: the cotangent, of the output's shape.
        precision: tolerance and half-widths; the first width within the tolerance ends the search.
        seed: of the directions.

    Returns:
        The relative error over all directions together, and what it is worth.
    """
    directions = [normal(x, seed, 100 + k) for k in range(DIRECTIONS)]
    exact = torch.tensor([_dot(pulled, v) for v in directions], dtype=torch.float64)
    error = resolution = float("inf")
    rounding = 0.0
    before: Tensor | None = None
    with torch.no_grad():
        for h in precision.widths:
            values = [_dot(call(x + h * v) - call(x - h * v), weights) / (2 * h) for v in directions]
            quotient = torch.tensor(values, dtype=torch.float64)
            error = min(error, relative(quotient, exact))
            if error <= precision.difference:
                break
            if before is None:
                rounding = torch.finfo(precision.dtype).eps * DIRECTIONS**0.5 * _length(call(x) * weights)
            else:
                scale = max(_length(quotient), _length(exact))
                resolution = min(resolution, (_length(quotient - before) + rounding / h) / scale)
            before = quotient
    return Slope(error, resolution)


def pull(
    call: Callable[[tuple[Tensor, ...]], Iterable[Tensor]], inputs: tuple[Tensor, ...], weights: Iterable[Tensor]
) -> tuple[Tensor, ...]:
    """Vector-Jacobian products of a function of several tensors; zero where there is no path.

    Args:
        call: the function, run with a graph; it may change its arguments in place.
        inputs: where.
        weights: one cotangent per output.

    Returns:
        One product per input, of its shape.
    """
    with torch.enable_grad():
        leaves = tuple(t.detach().clone().requires_grad_() for t in inputs)
        outputs = call(tuple(leaf.clone() for leaf in leaves))
        terms = [(out * w).sum() for out, w in zip(outputs, weights, strict=True) if out.requires_grad]
        if not terms:
            return tuple(torch.zeros_like(t) for t in inputs)
        total = torch.stack(terms).sum()
        gradients = cast("tuple[Tensor | None, ...]", torch.autograd.grad(total, leaves, allow_unused=True))
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, gradients, strict=True))


@contextmanager
def watched(device: torch.device) -> Generator[Callable[[], bool], None, None]:
    """Watch the global generators of torch (and of the device), numpy and Python.

    They are put into states of their own, so that seeding again what is seeded is noticed, and put back afterwards.

    Args:
        device: where is computed.

    Yields:
        A function that says whether a generator was advanced or seeded.
    """
    found = _states(device)
    _set_states(device, _unlikely_states(device))
    before = repr(_states(device))
    try:
        yield lambda: repr(_states(device)) != before
    finally:
        _set_states(device, found)


class Narrowing(TorchFunctionMode):
    """Watches for operations that turn numbers of a dtype into coarser ones.

    Attributes:
        seen: the coarsest dtype that numbers of the watched dtype were turned into, or None.
    """

    def __init__(self, dtype: torch.dtype, *, traced: bool = False) -> None:
        """Watch.

        Args:
            dtype: whose numbers are watched.
            traced: watch only numbers that require grad: those that depend on the image, but not the labels.
        """
        super().__init__()
        self.dtype = dtype
        self.traced = traced
        self.seen: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at its result."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            coarse = torch.finfo(result.dtype).eps > torch.finfo(self.seen or self.dtype).eps
            if coarse and any(self._watches(a) for a in args):
                self.seen = result.dtype
        return result

    def _watches(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype == self.dtype and (value.requires_grad or not self.traced)


class OwnDerivatives:
    """Watches for derivatives that somebody wrote: `autograd.Function`s and hooks on gradients. A context manager.

    What torch and depura themselves define is left out, and so are hooks that were set before.

    Attributes:
        functions: names of the functions that were applied.
        hooks: modules and files that set hooks on tensors.
    """

    def __init__(self) -> None:
        self.functions: set[str] = set()
        self.hooks: set[str] = set()
        self._before: dict[str, Any] = {}

    def __enter__(self) -> OwnDerivatives:
        apply: Any = Function.__dict__["apply"]
        hook: Any = Tensor.register_hook  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
        self._before = {"apply": apply, "hook": hook}

        def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if not _of_the_house(cls.__module__):
                self.functions.add(cls.__qualname__.replace("<locals>.", ""))
            return apply.__func__(cls, *args, **kwargs)

        def hooked(tensor: Tensor, its: Any) -> Any:
            name = sys._getframe(1).f_globals.get("__name__", "")  # pyright: ignore[reportPrivateUsage]
            if not _of_the_house(name):
                self.hooks.add(name)
            return hook(tensor, its)

        Function.apply = classmethod(applied)  # pyright: ignore[reportAttributeAccessIssue]
        Tensor.register_hook = hooked  # pyright: ignore[reportAttributeAccessIssue]
        return self

    def __exit__(self, *error: object) -> None:
        Function.apply = self._before["apply"]
        Tensor.register_hook = self._before["hook"]

    def found(self, module: nn.Module) -> list[str]:
        """In words: the functions, and the hooks on tensors and on the modules inside a module."""
        said = [f"autograd function {name}" for name in sorted(self.functions)]
        said += [f"hook on a tensor, set in {name}" for name in sorted(self.hooks)]
        for name, inner in cast("Iterable[tuple[str, nn.Module]]", module.named_modules()):
            if any(getattr(inner, kind, None) for kind in ("_backward_hooks", "_backward_pre_hooks")):
                said.append(f"backward hook on {name or 'the defence'} ({type(inner).__name__})")
        return said


def _of_the_house(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "depura")


def _length(a: Tensor) -> float:
    return float(a.detach().cpu().to(torch.float64).square().sum()) ** 0.5


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def _states(device: torch.device) -> tuple[Any, ...]:
    on_device = _plain(torch.cuda.get_rng_state(device)) if device.type == "cuda" else b""
    numbers: Any = np.random.get_state()
    return _plain(torch.get_rng_state()), on_device, (*numbers[:1], tuple(numbers[1]), *numbers[2:]), random.getstate()


def _unlikely_states(device: torch.device) -> tuple[Any, ...]:
    on_device = _plain(torch.Generator(device).get_state()) if device.type == "cuda" else b""
    numbers: Any = np.random.RandomState(_UNLIKELY_SEED).get_state()
    return _plain(torch.Generator().get_state()), on_device, numbers, random.Random(_UNLIKELY_SEED).getstate()


def _set_states(device: torch.device, states: tuple[Any, ...]) -> None:
    own, on_device, numbers, python = states
    torch.set_rng_state(torch.tensor(list(own), dtype=torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.tensor(list(on_device), dtype=torch.uint8), device)
    np.random.set_state(numbers)
    random.setstate(python)


def _plain(state: Tensor) -> bytes:
    return state.cpu().numpy().tobytes()
