"""Smooth stand-ins for functions whose derivative is zero almost everywhere, in the backward pass only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from depura import _check
from depura.diffusion.schedules import Step
from depura.gradients.routes import ChainState, FromEnd, GradientRoute, Transition, passing_clamp
from depura.gradients.stored import StoredState
from depura.records.kinds import GradientMode


@dataclass(frozen=True)
class Relaxed:
    """Approximate on purpose: the values of the reverse process as it is, the derivatives of a smoother one.

    For defences whose exact gradient is zero almost everywhere (guidance by a sign, quantisation, a saturated clamp),
    so that it tells an attacker nothing. Inside each step, in the backward pass only,

    - sign(x) has the derivative of tanh(x / tau), also where it is the slope of |x|, of an L1 norm or an L1 loss;
    - clamp, round, floor, ceil and trunc have the derivative 1;
    - the purifier's clamp has the derivative 1.

    Functions in place count too; conversions to integers, argmax, top-k and comparisons cannot be relaxed this way.

    Attributes:
        tau: width of the smoothed sign, in the units of its argument, > 0.
        inner: the route through the relaxed steps; exact by default.
    """

    mode: ClassVar[GradientMode] = GradientMode.RELAXED
    tau: float = 0.1
    inner: GradientRoute = field(default_factory=StoredState)

    def __post_init__(self) -> None:
        _check.number("Relaxed", "tau", self.tau, low=0.0, low_open=True)

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        return self.inner(_RelaxedTransition(advance, self.tau), state, x_in, steps)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; identity in the gradient."""
        return passing_clamp(images)


@dataclass(frozen=True)
class _RelaxedTransition:
    """`advance` with stand-ins."""

    advance: Transition
    tau: float

    @property
    def images(self) -> tuple[int, ...]:
        return self.advance.images

    @property
    def rounds(self) -> int:
        return self.advance.rounds

    def __call__(self, state: ChainState, x_in: Tensor, step: Step, /) -> ChainState:
        with _StandIns(self.tau):
            return self.advance(state, x_in, step)

    def take(self, rows: Sequence[int], /) -> _RelaxedTransition:
        return _RelaxedTransition(self.advance.take(rows), self.tau)

    def differential(self) -> FromEnd:
        plain = self.advance.differential()

        def relaxed(x: Tensor, step: Step) -> tuple[Tensor, float]:
            with _StandIns(self.tau):
                return plain(x, step)

        return relaxed


class _Abs(torch.autograd.Function):
    """|x|, whose derivative is the relaxed sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, within: _StandIns) -> Tensor:
        ctx.save_for_backward(x)
        ctx.within = within
        return x.abs()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        inner = ctx.within.active
        return grad_outputs[0] * (_sign(x, ctx.within) if inner else torch.sign(x)), None


class _StandIn(torch.autograd.Function):
    """The value of one tensor; on the way back the gradient of another.

    A gradient taken inside the step (`depura.diffusion.guidance.pull`) is a value of the step, so there it is the true
    one.
    """

    @staticmethod
    def forward(ctx: Any, true: Tensor, smooth: Tensor, within: _StandIns) -> Tensor:
        ctx.within = within
        return true.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None, None]:
        return (grad_outputs[0], None, None) if ctx.within.active else (None, grad_outputs[0], None)


Handler = Callable[["_StandIns", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Tensor]


class _StandIns(TorchFunctionMode):
    """Replaces calls of the functions that `Relaxed` names while it is active."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.active = False

    def __enter__(self) -> _StandIns:
        self.active = True
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.active = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        real = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point() and "out" not in kwargs
        if real and func in _HANDLERS:
            return _HANDLERS[func](self, func, args, kwargs)
        if real and func in _IN_PLACE:
            plain = _IN_PLACE[func]
            # The derivative is taken at the old value, so that is copied before it is overwritten.
            new = _HANDLERS[plain](self, plain, (args[0].clone(), *args[1:]), kwargs)
            return args[0].copy_(new)
        return func(*args, **kwargs)


def _sign(x: Tensor, within: _StandIns) -> Tensor:
    return _stand_in(x.sign(), torch.tanh(x / within.tau), within)


def _abs(x: Tensor, within: _StandIns) -> Tensor:
    function: Any = _Abs
    return function.apply(x, within)


def _stand_in(true: Tensor, smooth: Tensor, within: _StandIns) -> Tensor:
    function: Any = _StandIn
    return function.apply(true, smooth, within)


def _valued(smooth: Tensor, value: Tensor) -> Tensor:
    """The value of one tensor, all gradients of the other."""
    return value.detach() + (smooth - smooth.detach())


def _sign_call(within: _StandIns, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _sign(args[0], within)


def _abs_call(within: _StandIns, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _abs(args[0], within)


def _passing_call(within: _StandIns, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _stand_in(func(*args, **kwargs), args[0], within)


def _l1_loss(within: _StandIns, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    bound = inspect.signature(F.l1_loss).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given.get("weight") is not None:
        return func(*args, **kwargs)
    distance = _abs(given["input"] - given["target"], within)
    reduction = given["reduction"]
    reduced = distance if reduction == "none" else distance.sum() if reduction == "sum" else distance.mean()
    return _valued(reduced, func(*args, **kwargs))


def _norm(within: _StandIns, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Norms of order 1: torch.norm(x, p, dim, keepdim) and torch.linalg.vector_norm(x, ord, dim, keepdim)."""
    named = dict(zip(("x", "order", "dim", "keepdim"), args, strict=False)) | kwargs
    if named.get("order", named.get("p", named.get("ord"))) != 1 or "dtype" in kwargs:
        return func(*args, **kwargs)
    distance, dim = _abs(args[0], within), named.get("dim")
    total = distance.sum() if dim is None else distance.sum(dim, keepdim=bool(named.get("keepdim", False)))
    return _valued(total, func(*args, **kwargs))


_ROUNDING = ("round", "floor", "ceil", "trunc", "fix")
_CLAMPS = ("clamp", "clip", "clamp_min", "clamp_max")
_CALLS: dict[str, Handler] = {
    **dict.fromkeys(("sign", "sgn"), _sign_call),
    **dict.fromkeys(("abs", "absolute"), _abs_call),
    **dict.fromkeys((*_ROUNDING, *_CLAMPS), _passing_call),
}
_HANDLERS: dict[Callable[..., Any], Handler] = {
    **{getattr(torch, name): handler for name, handler in _CALLS.items()},
    **{getattr(Tensor, name): handler for name, handler in _CALLS.items()},
    Tensor.__abs__: _abs_call,
    F.l1_loss: _l1_loss,
    torch.norm: _norm,
    Tensor.norm: _norm,
    torch.linalg.vector_norm: _norm,
}
_IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(Tensor, f"{name}_"): getattr(Tensor, name) for name in _CALLS
}
