"""Known bugs of purification gradients and of guidance, as parts that can be put into a purifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from depura.diffusion.guidance import State, minus_gradient
from depura.diffusion.schedules import VP, Step
from depura.diffusion.solvers import from_input
from depura.gradients import Adjoint, ChainState
from depura.noise import Noise
from depura.records.kinds import GradientMode
from toys import Jittered


@dataclass(frozen=True)
class Rewound:
    """States forward, one step at a time back, written out plainly; bugs replace one of its two parts.

    Attributes:
        again: the recomputation of step k.
        to_input: what the image gets of a step, from its own vector-Jacobian product and the cotangent.
    """

    mode: ClassVar[GradientMode] = GradientMode.EXACT
    again: Callable[..., Tensor] = lambda advance, x, x_in, step: advance((x,), x_in, step)[0]
    to_input: Callable[[Tensor, Tensor], Tensor] = lambda by_reference, cotangent: by_reference

    def __call__(self, advance, state: ChainState, x_in: Tensor, steps) -> ChainState:
        rewind: Any = _Rewind
        return (rewind.apply(self, advance, steps, state[0], x_in),)

    def clamp(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1)


class _Rewind(torch.autograd.Function):
    @staticmethod
    def forward(ctx, route: Rewound, advance, steps, x: Tensor, x_in: Tensor) -> Tensor:
        ctx.route, ctx.advance, ctx.steps, ctx.states, ctx.x_in = route, advance, steps, [], x_in
        for step in steps:
            ctx.states.append(x)
            (x,) = advance((x,), x_in, step)
        return x

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        total = torch.zeros_like(ctx.x_in)
        for step, state in zip(reversed(ctx.steps), reversed(ctx.states), strict=True):
            with torch.enable_grad():
                x, reference = state.detach().requires_grad_(), ctx.x_in.detach().requires_grad_()
                out = ctx.route.again(ctx.advance, x, reference, step)
            by_state, by_input = torch.autograd.grad(out, (x, reference), cotangent, materialize_grads=True)
            total = total + ctx.route.to_input(by_input, cotangent)
            cotangent = by_state
        return None, None, None, cotangent, total


@dataclass(frozen=True)
class Relabelled:
    """The adjoint, which says that it is exact."""

    mode: ClassVar[GradientMode] = GradientMode.EXACT

    def __call__(self, advance, state: ChainState, x_in: Tensor, steps) -> ChainState:
        return Adjoint()(advance, state, x_in, steps)

    def clamp(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1)


class Private(Jittered):
    """Multiplied by noise of a generator of its own, seeded when a walk begins and never rewound."""

    generator: ClassVar[torch.Generator] = torch.Generator()

    def begin(self, x_in: Tensor, step: Step, noise: Noise) -> Tensor:
        self.generator.manual_seed(noise.seed)
        return from_input(x_in, step, noise)

    def draw(self, x: Tensor, step: Step, noise: Noise) -> Tensor:
        return torch.randn(1, *x.shape[1:], generator=self.generator, dtype=x.dtype)


def accumulated(steps: tuple[Step, ...]) -> list[Step]:
    """The table as a loop over float32 times builds it."""
    schedule, rows = VP(), []
    t, h = torch.tensor(steps[0].t, dtype=torch.float32), torch.tensor(1e-3, dtype=torch.float32)
    for step in steps:
        row = replace(step, t=float(t), t_next=float(t - h), sigma=schedule.sigma(float(t)))
        rows.append(replace(row, scale=schedule.scale(float(t))))
        t = t - h
    return rows


@dataclass(frozen=True)
class MixedStates(Rewound):
    """A walk pulled back at the states of a finer one.

    Attributes:
        fine: the finer table.
    """

    fine: tuple[Step, ...] = ()

    def __call__(self, advance, state: ChainState, x_in: Tensor, steps) -> ChainState:
        states = {}
        with torch.no_grad():
            (at,) = state
            for step in self.fine:
                states[step.sigma] = at
                (at,) = advance((at,), x_in, step)
        (out,) = state
        for step in steps:
            (out,) = advance((states[step.sigma] + out - out.detach(),), x_in, step)
        return (out,)


def batch_mean(at: State) -> Tensor:
    """Toward, by the mean over the batch: strength falls with its size."""
    return 0.3 * minus_gradient(torch.sqrt(0.1 + (at.x0 - at.x_in).square()).flatten(1).sum(1).mean()[None], at.x)
