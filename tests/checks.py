"""What the gradient tests measure. Honest code must come out small, and each known bug must not: both use these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from depura.diffusion.schedules import Step
from depura.diffusion.solvers import Before, Multistep, Solver, StepResult
from depura.noise import Noise
from depura.purifiers.purifier import DiffusionPurifier
from toys import NOISE, NOISES, VS, XS, V, X, numerical, randn, value_and_gradient

Module = Callable[[Tensor, Noise], Tensor]


def largest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors."""
    return float((a - b).abs().max())


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| in the Euclidean norm."""
    return float((a - b).norm() / b.norm())


def directional_errors(module: Module, gradient: Tensor, widths: Sequence[float]) -> Tensor:
    """T1: relative errors of <gradient, u> against central differences, (5 directions, widths)."""
    errors = torch.empty(5, len(widths), dtype=torch.float64)
    for seed in range(5):
        u = randn(*X.shape, seed=100 + seed)
        exact = float((gradient * u).sum())
        for k, h in enumerate(widths):
            with torch.no_grad():
                difference = module(X + h * u, NOISE) - module(X - h * u, NOISE)
            errors[seed, k] = abs(float((difference * V).sum()) / (2 * h) - exact) / max(abs(exact), 1e-12)
    return errors


def coordinate_error(module: Module, *, program: Module | None = None) -> float:
    """T2: the module's gradient against differences of the program (the module itself), by every coordinate."""
    return largest(value_and_gradient(module)[1], numerical(module if program is None else program))


@dataclass(frozen=True)
class Call:
    """One call of a solver: what it was asked, and what came out."""

    step: Step
    noise: Noise
    sigmas: tuple[float, ...]
    x: Tensor
    x_next: Tensor


@dataclass(frozen=True)
class Recorded:
    """A solver that writes down its calls."""

    solver: Solver
    calls: list[Call] = field(default_factory=list)

    def step(self, denoise: Any, x: Tensor, step: Step, noise: Noise) -> StepResult:
        return self.recorded(self.solver.step, denoise, x, step, noise)

    def recorded(self, solve: Any, denoise: Any, x: Tensor, step: Step, noise: Noise) -> StepResult:
        sigmas: list[float] = []

        def asked(state: Tensor, sigma: float) -> Tensor:
            sigmas.append(sigma)
            return denoise(state, sigma)

        result = solve(asked, x, step, noise)
        self.calls.append(Call(step, noise, tuple(sigmas), x.detach().clone(), result.x_next.detach().clone()))
        return result


class RecordedMultistep(Recorded):
    """A multistep solver that writes down its calls."""

    solver: Multistep

    def after(self, before: Before) -> Recorded:
        return Recorded(self.solver.after(before), self.calls)


def calls_of(
    purifier: DiffusionPurifier, x: Tensor = X, v: Tensor = V, noise: Noise = NOISE
) -> tuple[list[Call], list[Call]]:
    """The solver's calls on the way forward, and those on the way back."""
    solver = purifier.solver
    recorded = RecordedMultistep(solver) if isinstance(solver, Multistep) else Recorded(solver)
    out = purifier.with_(solver=recorded)(x.clone().requires_grad_(), noise)
    n = len(recorded.calls)
    (out * v).sum().backward()
    return recorded.calls[:n], recorded.calls[n:]


def pairs_of(purifier: DiffusionPurifier) -> list[tuple[Call, Call]]:
    """Each recomputed call beside the call that it recomputes: same round, same place on the way."""
    forward, back = calls_of(purifier)
    n = len(purifier.steps)
    rounds = [forward[k : k + n] for k in range(0, len(forward), n)]
    assert len(back) == len(forward), "every step is recomputed once"
    assert [call.noise.round for call in back] == sorted((call.noise.round for call in back), reverse=True)
    recomputed = [back[k : k + n] for k in range(0, len(back), n)]
    return [
        (a, b)
        for there, again in zip(rounds, reversed(recomputed), strict=True)
        for a, b in zip(there, sorted(again, key=lambda call: call.step.index), strict=True)
    ]


def replay_error(purifier: DiffusionPurifier) -> float:
    """T3: two walks on one noise, and every recomputed step against the walk; 0 means bit for bit."""
    with torch.no_grad():
        error = largest(purifier(X, NOISE), purifier(X, NOISE))
    for call, again in pairs_of(purifier):
        error = max(error, largest(call.x, again.x), largest(call.x_next, again.x_next))
    return error


def grid_mismatches(purifier: DiffusionPurifier) -> int:
    """T4: recomputed steps that are not the very row of the table, or ask for another noise level or address."""
    count = 0
    for (call, again), step in zip(pairs_of(purifier), purifier.steps * purifier.rounds, strict=True):
        same = call.step is step and again.step is step
        count += not (same and call.sigmas == again.sigmas and call.noise == again.noise)
    return count


def split_error(module: Module, x: Tensor = XS, v: Tensor = VS, noise: Noise = NOISES) -> tuple[float, float]:
    """T7, T8: largest change of output and gradient when a batch is permuted, cut in two, or taken row by row."""
    n, order = len(x), [2, 0, 3, 1]
    together = value_and_gradient(module, x, v, noise)
    errors = [0.0, 0.0]
    parts = [order, list(range(n // 2)), list(range(n // 2, n)), *([row] for row in range(n))]
    for rows in parts:
        part = value_and_gradient(module, x[rows], v[rows], noise.take(rows))
        for k in (0, 1):
            errors[k] = max(errors[k], largest(part[k], together[k][rows]))
    return errors[0], errors[1]


def grad_mode_error(purifier: DiffusionPurifier) -> float:
    """Largest difference of the output with and without gradients: attack and test must run one process."""
    with torch.no_grad():
        plain = purifier(X, NOISE)
    return largest(plain, value_and_gradient(purifier)[0])


def merged(steps: Sequence[Step], n_steps: int) -> tuple[Step, ...]:
    """A table of n steps, each standing for equally many rows of the given one."""
    size = len(steps) // n_steps
    assert size * n_steps == len(steps)
    return tuple(
        replace(
            steps[k * size],
            index=k,
            t_next=steps[(k + 1) * size - 1].t_next,
            sigma_next=steps[(k + 1) * size - 1].sigma_next,
            scale_next=steps[(k + 1) * size - 1].scale_next,
        )
        for k in range(n_steps)
    )
