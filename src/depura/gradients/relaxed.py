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
from depura.gradients.routes import Advance, FromEnd, GradientRoute, passing_clamp
from depura.gradients.stored import StoredState
from depura.schedules import Step


@dataclass(frozen=True)
class Relaxed:
    """Approximate on purpose: the values of the walk as it is, the derivatives of a smoother one.

    For defences whose exact gradient is zero almost everywhere (guidance by a sign, quantisation, a saturated clamp),
    so that it tells an attacker nothing. Inside each step, in the backward pass only,

    - sign(x) has the derivative of tanh(x / tau), also where it is the slope of |x|, of an L1 norm or an L1 loss;
    - clamp, round, floor, ceil and trunc have the derivative 1;
    - the purifier's clamp has the derivative 1.

    Functions in place count too; conversions to integers, argmax, top-k and comparisons cannot be relaxed this way.

    Attributes:
        tau: width of the smoothed sign, in the units of its argument, > 0.
        inner: the route through the relaxed walk; exact by default.
    """

    code: ClassVar[str] = "G8"
    tau: float = 0.1
    inner: GradientRoute = field(default_factory=StoredState)

    def __post_init__(self) -> None:
        _check.number("Relaxed", "tau", self.tau, low=0.0, low_open=True)

    def __call__(self, advance: Advance, x: Tensor, x_in: Tensor, steps: Sequence[Step], /) -> Tensor:
        """The state after the last step."""
        return self.inner(_RelaxedAdvance(advance, self.tau), x, x_in, steps)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; identity in the gradient."""
        return passing_clamp(images)


@dataclass(frozen=True)
class _RelaxedAdvance:
    """`advance` with stand-ins."""

    advance: Advance
    tau: float

    @property
    def images(self) -> tuple[int, ...]:
        return self.advance.images

    @property
    def rounds(self) -> int:
        return self.advance.rounds

    def __call__(self, x: Tensor, x_in: Tensor, step: Step, /) -> Tensor:
        with _StandIns(self.tau):
            return self.advance(x, x_in, step)

    def take(self, rows: Sequence[int], /) -> _RelaxedAdvance:
        return _RelaxedAdvance(self.advance.take(rows), self.tau)

    def differential(self) -> FromEnd:
        plain = self.advance.differential()

        def relaxed(x: Tensor, step: Step) -> tuple[Tensor, float]:
            with _StandIns(self.tau):
                return plain(x, step)

        return relaxed


class _Sign(torch.autograd.Function):
    """sign(x), with the derivative of tanh(x / tau)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tau = tau
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (1 - torch.tanh(x / ctx.tau) ** 2) / ctx.tau, None


class _Abs(torch.autograd.Function):
    """|x|, whose derivative is the relaxed sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tau = tau
        return x.abs()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * _sign(x, ctx.tau), None


class _Passing(torch.autograd.Function):
    """The value of one tensor, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        return grad_outputs[0], None


Handler = Callable[[float, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Tensor]


class _StandIns(TorchFunctionMode):
    """Replaces calls of the functions that `Relaxed` names while it is active."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        real = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point() and "out" not in kwargs
        if real and func in _HANDLERS:
            return _HANDLERS[func](self.tau, func, args, kwargs)
        if real and func in _IN_PLACE:
            plain = _IN_PLACE[func]
            # The derivative is taken at the old value, so that is copied before it is overwritten.
            new = _HANDLERS[plain](self.tau, plain, (args[0].clone(), *args[1:]), kwargs)
            return args[0].copy_(new)
        return func(*args, **kwargs)


def _sign(x: Tensor, tau: float) -> Tensor:
    function: Any = _Sign
    return function.apply(x, tau)


def _abs(x: Tensor, tau: float) -> Tensor:
    function: Any = _Abs
    return function.apply(x, tau)


def _passing(x: Tensor, value: Tensor) -> Tensor:
    function: Any = _Passing
    return function.apply(x, value.detach())


def _sign_call(tau: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _sign(args[0], tau)


def _abs_call(tau: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _abs(args[0], tau)


def _passing_call(tau: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _passing(args[0], func(*args, **kwargs))


def _l1_loss(tau: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    bound = inspect.signature(F.l1_loss).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given.get("weight") is not None:
        return func(*args, **kwargs)
    distance = _abs(given["input"] - given["target"], tau)
    reduction = given["reduction"]
    reduced = distance if reduction == "none" else distance.sum() if reduction == "sum" else distance.mean()
    return _passing(reduced, func(*args, **kwargs))


def _norm(tau: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Norms of order 1: torch.norm(x, p, dim, keepdim) and torch.linalg.vector_norm(x, ord, dim, keepdim)."""
    named = dict(zip(("x", "order", "dim", "keepdim"), args, strict=False)) | kwargs
    if named.get("order", named.get("p", named.get("ord"))) != 1 or "dtype" in kwargs:
        return func(*args, **kwargs)
    distance, dim = _abs(args[0], tau), named.get("dim")
    total = distance.sum() if dim is None else distance.sum(dim, keepdim=bool(named.get("keepdim", False)))
    return _passing(total, func(*args, **kwargs))


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
