"""DiffAttack's second objective: states of the reverse process move away from the states of the forward process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from depura import _check
from depura.diffusion.schedules import Step, vp_scale
from depura.gradients.routes import ChainState, Transition
from depura.gradients.stored import Passing, StoredState
from depura.records.kinds import GradientMode


@dataclass(frozen=True)
class Deviated:
    """The exact gradient of the attack's loss plus `weight` times the deviated-reconstruction loss.

    Kang, Song and Li 2023 (arXiv:2311.16124). With the first state of the reverse process read as x_in + sigma_start e,
    and e held constant,

        L_dev = sum over levels of |x'_t - x_t|^2 / (number of levels),        x_t = sqrt(abar_t) (x_in + sigma_t e),

    where x'_t is the state of the reverse process at the same level, in variance-preserving coordinates, and the
    square is summed over an image's pixels. Its gradient joins the cotangents as each level is passed, so the memory is
    that of the inner route; values are unchanged. Every round has a term of its own, with its own e. What comes back
    is the gradient of sum(loss) + weight sum(L_dev) only if the loss is summed over rows, as attacks do; a rule of
    several draws has a term for each draw.

    Attributes:
        weight: of L_dev; 0 is the inner route.
        n_steps: levels of each round, spread evenly and the last one among them, at most; default all of them.
        inner: the route through the steps.
    """

    mode: ClassVar[GradientMode] = GradientMode.DEVIATED
    weight: float = 1.0
    n_steps: int | None = None
    inner: StoredState = field(default_factory=StoredState)

    def __post_init__(self) -> None:
        _check.number("Deviated", "weight", self.weight, low=0.0)
        if self.n_steps is not None:
            _check.integer("Deviated", "n_steps", self.n_steps, low=1)

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        """The state after the last step."""
        if steps[-1].sigma_next >= steps[0].sigma:
            _check.fail(
                "Deviated",
                "steps from noisy to clean",
                f"steps from noise level {steps[0].sigma:.4g} to {steps[-1].sigma_next:.4g}",
                "Use StoredState.",
            )
        away = self._away(state[0].detach(), x_in.detach(), steps)
        return self.inner(advance, state, x_in, steps, away)

    def clamp(self, images: Tensor, /) -> Tensor:
        """Clamp to [0, 1]; no gradient where it acts."""
        return self.inner.clamp(images)

    def _away(self, start: Tensor, x_in: Tensor, steps: Sequence[Step]) -> Passing:
        """What joins the cotangents; `start` and `x_in` without their graphs."""
        n = len(steps)
        m = n if self.n_steps is None else min(self.n_steps, n)
        chosen = {round((j + 1) * n / m) - 1 for j in range(m)}

        def passing(k: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
            if k not in chosen:
                return None
            sigma = steps[k].sigma_next
            forth = x_in + sigma / steps[0].sigma * (start - x_in)
            gradient = 2 * self.weight / m * vp_scale(sigma) ** 2 * (x - forth)
            return gradient, -gradient

        return passing
