"""The continuous adjoint, as DiffPure published it. Approximate; kept for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from depura import _check
from depura.diffusion.schedules import Step
from depura.gradients.routes import ChainState, FromEnd, Transition, fold
from depura.gradients.stored import refuse_second_derivatives
from depura.records.kinds import GradientMode


@dataclass(frozen=True)
class Adjoint:
    """Approximate: the stochastic adjoint of the differential equation that the steps discretise.

    Li et al. 2020 (arXiv:2001.01328), as used by Nie et al. 2022, section 3.3. Only the final state is kept. On the way
    back, state and cotangent are solved together by Euler's method on the steps' own grid and noise: with
    du = F(u, t) dt + g(t) dW in the solver's coordinates,

        a <- a + h F'(u, t')^T a,        u <- u - h F(u, t') - g(t') dW,

    everything taken at the later end t' of each step. (The noise does not depend on the state, so Milstein's correction
    is zero.) The state is reconstructed, not remembered: the reverse process contracts, so going back along it
    amplifies errors, and the gradient is not that of the discrete steps. The difference falls linearly with the step
    length where the density is smooth, and can be total where it is sharp (docs/gradients.md). DiffPure's released code
    also shifts the backward grid by 1e-5 (docs/deviations.md).

    Works for solvers that are Euler's method on a differential equation (`depura.diffusion.solvers.Differential`),
    without guidance, ending above noise level 0.
    """

    mode: ClassVar[GradientMode] = GradientMode.ADJOINT

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        if steps[-1].sigma_next <= 0:
            _check.fail(
                "Adjoint",
                "steps that end above noise level 0, where the differential equation is singular",
                "steps that end at 0",
                "Give the step table a t_end > 0, or use StoredState.",
            )
        from_end = advance.differential()
        (x,) = state  # a solver that is a differential equation keeps nothing beside the image
        solved: Any = _AdjointSteps
        return (solved.apply(self, advance, from_end, tuple(steps), x, x_in),)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return images.clamp(0, 1)

    def solve_back(
        self, from_end: FromEnd, x: Tensor, cotangent: Tensor, steps: Sequence[Step]
    ) -> tuple[Tensor, Tensor]:
        """State and cotangent before the first step, from those after the last.

        Args:
            from_end: the steps, taken from their later ends.
            x: state after the last step, (B, C, H, W).
            cotangent: of that state.
            steps: rows of the step table, in forward order.

        Returns:
            The reconstructed first state, and the cotangent there.
        """
        for step in reversed(steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                again, growth = from_end(leaf, step)
            (pulled,) = torch.autograd.grad(again, leaf, cotangent)
            cotangent = growth * pulled
            x = (2 * x - again.detach()) / growth
        return x, cotangent


class _AdjointSteps(torch.autograd.Function):
    """The steps, and the adjoint solve."""

    @staticmethod
    def forward(
        ctx: Any,
        route: Adjoint,
        advance: Transition,
        from_end: FromEnd,
        steps: tuple[Step, ...],
        x: Tensor,
        x_in: Tensor,
    ) -> Tensor:
        (out,) = fold(advance, (x,), x_in, steps)
        ctx.route, ctx.from_end, ctx.steps = route, from_end, steps
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[None, None, None, None, Tensor, None]:
        refuse_second_derivatives("Adjoint")
        (out,) = ctx.saved_tensors
        _, cotangent = ctx.route.solve_back(ctx.from_end, out, grad_outputs[0], ctx.steps)
        return None, None, None, None, cotangent, None
