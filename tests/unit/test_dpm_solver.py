"""DPM-Solver++(2M) in a purifier: what it is told of the step before, at rounds, guidance, routes, counts and audit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from checks import largest
from depura import diffpure
from depura._check import InputError
from depura.audit.derivatives import FLOAT64
from depura.audit.parts import parts
from depura.audit.probes import examine
from depura.defence import Defence
from depura.diffusion.denoisers import EpsVarianceDenoiser
from depura.diffusion.exact import MixtureDenoiser
from depura.diffusion.guidance import State
from depura.diffusion.schedules import VP, TimeLabel, karras_steps, log_snr_steps, steps_at
from depura.diffusion.solvers import Ancestral, Before, DpmSolverPP, Euler
from depura.evaluation.counting import counted
from depura.gradients import Direct, Relaxed, StoredState
from depura.noise import Kind
from depura.purifiers.purifier import DiffusionPurifier
from toys import (
    CLEAN,
    NOISE,
    NOISES,
    STEPS,
    VS,
    XS,
    TanhClassifier,
    TanhNet,
    Toward,
    X,
    purifier_of,
    randn,
    tanh_edm,
    value_and_gradient,
)


def by_hand(purifier: DiffusionPurifier, x: Tensor, *, stochastic: bool) -> Tensor:
    """Two rounds of three steps, written out; only the estimate of the same round is looked back at."""
    x_in = image = 2 * x - 1
    for number in range(purifier.rounds):
        tape = replace(NOISE, round=number)
        state = image + purifier.steps[0].sigma * tape(x, kind=Kind.FORWARD)
        estimates: list[Tensor] = []
        for k, step in enumerate(purifier.steps):
            s, s_next = step.sigma, step.sigma_next
            estimates.append(purifier.denoiser(state, s))
            ahead = estimates[-1]
            if k > 0 and s_next > 0:
                change = (estimates[-1] - estimates[-2]) / math.log(purifier.steps[k - 1].sigma / s)
                ahead = estimates[-1] + change * math.log(s / s_next) / 2
            displacement = torch.zeros_like(state)
            if purifier.guidance is not None:
                leaf = state.detach().requires_grad_()
                distance = torch.sqrt(0.1 + (purifier.denoiser(leaf, s) - x_in).square()).sum()
                displacement = -0.3 * torch.autograd.grad(distance, leaf)[0]
            if stochastic:
                z = tape(x, kind=Kind.REVERSE, step=step.index)
                kept = (s_next / s) ** 2
                state = kept * state + (1 - kept) * ahead + s_next * math.sqrt(1 - kept) * z
            else:
                state = s_next / s * state + (1 - s_next / s) * ahead
            state = state + displacement
        image = purifier.steps[-1].scale_next * state
    return (image + 1) / 2


@pytest.mark.parametrize("guidance", [None, Toward(0.3)], ids=["unguided", "toward"])
@pytest.mark.parametrize("steps", [STEPS, CLEAN, karras_steps(sigma_max=0.9, n_steps=4)], ids=["VP", "clean", "EDM"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_two_rounds_by_hand(stochastic: bool, steps, guidance) -> None:
    solver = DpmSolverPP(stochastic)
    purifier = DiffusionPurifier(tanh_edm(), steps=steps, solver=solver, guidance=guidance, rounds=2)
    out = purifier(X, NOISE)
    torch.testing.assert_close(out, by_hand(purifier, X, stochastic=stochastic), rtol=0, atol=1e-12)
    moments = list(purifier.trajectory(X, NOISE))
    assert len(moments) == 2 * len(steps)
    assert moments[0].x.shape == moments[0].x0.shape == X.shape
    assert torch.equal((steps[-1].scale_next * moments[-1].x_next + 1) / 2, out)
    single = purifier.with_(solver=Ancestral() if stochastic else Euler())
    assert largest(single(X, NOISE), out) > 1e-3, "the step before must matter"


@pytest.mark.parametrize("stochastic", [False, True])
def test_guidance_is_told_of_the_noise_of_the_step(stochastic: bool) -> None:
    told: list[State] = []

    def listen(at: State) -> Tensor:
        told.append(at)
        return torch.zeros_like(at.x)

    purifier = DiffusionPurifier(tanh_edm(), steps=CLEAN, solver=DpmSolverPP(stochastic), guidance=listen)
    purifier(X, NOISE)
    expected = [s.sigma_next**2 * (1 - (s.sigma_next / s.sigma) ** 2) if stochastic else 0 for s in CLEAN]
    assert [at.variance for at in told] == pytest.approx(expected, abs=1e-15)
    assert all(at.x.shape == at.x0.shape == at.x_in.shape == X.shape for at in told)


def test_steps_that_do_not_follow_from_each_other_are_refused() -> None:
    for steps in (STEPS[:1] + STEPS[2:], STEPS + STEPS, tuple(replace(s, sigma_next=s.sigma) for s in STEPS)):
        with pytest.raises(
            InputError, match="DiffusionPurifier: expected steps that each start at the lower noise level"
        ):
            DiffusionPurifier(tanh_edm(), steps=steps, solver=DpmSolverPP())
        DiffusionPurifier(tanh_edm(), steps=steps, solver=Euler())
    purifier = DiffusionPurifier(tanh_edm(), steps=STEPS, solver=DpmSolverPP())
    assert len(purifier.coarser(2).steps) == 2
    alone = purifier.one_step(0.5)
    assert torch.equal(alone(X, NOISE), alone.with_(solver=Euler())(X, NOISE)), "a step alone is of first order"


def test_learned_variances_are_refused() -> None:
    def both(x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([TanhNet()(x, label), TanhNet()(x, label)], dim=1)

    denoiser = EpsVarianceDenoiser(both, label=TimeLabel(VP(), factor=1.0))
    with pytest.raises(InputError, match="a denoiser that gives the shape"):
        DiffusionPurifier(denoiser, steps=STEPS, solver=DpmSolverPP())(X, NOISE)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("rounds", [1, 2])
def test_one_evaluation_a_step(rounds: int, stochastic: bool) -> None:
    purifier = DiffusionPurifier(tanh_edm(), steps=STEPS, solver=DpmSolverPP(stochastic), rounds=rounds)
    defence, counts = counted(Defence(purifier, TanhClassifier(16)))
    defence(X, NOISE)
    assert counts.forward == 4 * rounds


def test_relaxed_without_anything_to_relax_is_exact() -> None:
    purifier = purifier_of("DpmSolverPP", "toward")
    exact = value_and_gradient(purifier.with_(gradient=Direct()), XS, VS, NOISES)
    for inner in (StoredState(2), Direct()):
        out, gradient = value_and_gradient(purifier.with_(gradient=Relaxed(inner=inner)), XS, VS, NOISES)
        assert torch.equal(out, exact[0])
        assert largest(gradient, exact[1]) <= 1e-12


@dataclass(frozen=True)
class Forgetful(DpmSolverPP):
    """Takes the estimate of the step before for a constant."""

    def after(self, before):
        return super().after(Before(before.x0.detach(), before.sigma))


@pytest.mark.parametrize("guided", ["unguided", "toward"])
@pytest.mark.parametrize("steps", [STEPS, CLEAN], ids=["to a level", "clean"])
def test_the_audit_tries_the_solver_with_the_step_before(steps, guided: str) -> None:
    images, noise = XS[:2], NOISES.take([0, 1])
    for solver, faulty in ((DpmSolverPP(), False), (DpmSolverPP(stochastic=True), False), (Forgetful(), True)):
        defence = Defence(purifier_of("DpmSolverPP", guided, solver=solver, steps=steps), TanhClassifier(16))
        faults = [examine(probe, FLOAT64, seed=1) for probe in parts(defence, images, noise)]
        found = {fault.part for fault in faults if fault is not None}
        assert found == ({"solver Forgetful"} if faulty else set())


def test_few_steps_come_nearer_to_the_fine_walk_than_those_of_first_order() -> None:
    """On a mixture, from sigma 0.72 to 0, and against 400 steps: where eight of Euler's still miss."""
    denoiser = MixtureDenoiser(0.7 * randn(3, 1, 4, 4, seed=9), std=0.2)

    def gap(solver, n: int) -> float:
        steps = log_snr_steps(VP(), t_start=0.2, n_steps=n)
        return largest(DiffusionPurifier(denoiser, steps=steps, solver=solver)(XS, NOISES), fine)

    fine = DiffusionPurifier(denoiser, steps=log_snr_steps(VP(), t_start=0.2, n_steps=400), solver=Euler())(XS, NOISES)
    for n in (8, 16):
        assert gap(DpmSolverPP(), n) < 0.5 * gap(Euler(), n)


def test_diffpure_takes_it() -> None:
    purifier = diffpure(tanh_edm(), t_star=0.1, n_steps=5, t_end=0.0, solver=DpmSolverPP())
    steps = steps_at(VP(), [0.1 * (1 - k / 5) for k in range(6)])
    assert (
        largest(purifier(X, NOISE), DiffusionPurifier(tanh_edm(), steps=steps, solver=DpmSolverPP())(X, NOISE)) <= 1e-12
    )
    assert "DpmSolverPP(stochastic=False)" in purifier.extra_repr()
    assert not purifier.same_function(purifier.with_(solver=DpmSolverPP(stochastic=True)))
