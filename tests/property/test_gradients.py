"""The gradient that an attack gets is the derivative of the purifier as deployed: tests T1 to T17, in order.

T10 and T11, closed forms and the whole attack on one, are in test_known_answers.py. The bugs that these tests are there
to find are in test_gradient_mutants.py; the exact routes' settings in test_routes.py, the other routes in
test_approximate_routes.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from checks import (
    calls_of,
    coordinate_error,
    directional_errors,
    grid_mismatches,
    largest,
    merged,
    relative,
    replay_error,
    split_error,
)
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.defence import Defence, MeanProb, Vote
from depura.diffusion.denoisers import EpsDenoiser
from depura.diffusion.schedules import VP, DiscreteLinear, IndexLabel, coarser, ddpm_steps, steps_at, uniform_steps
from depura.diffusion.solvers import Ancestral, Euler, EulerMaruyamaVP
from depura.gradients import Adjoint, ChainState, Direct, StoredState, StraightThrough, graph_bytes
from depura.noise import Noise
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode
from toys import (
    DENOISERS,
    GUIDED,
    NOISE,
    SOLVERS,
    XS,
    Jittered,
    TanhClassifier,
    TanhNet,
    Toward,
    TowardNoised,
    V,
    X,
    numerical,
    purifier_of,
    randn,
    tanh_eps,
    value_and_gradient,
)

ROUTES = [StoredState(1), StoredState(2), StoredState(3), StoredState(100)]
LONG = uniform_steps(VP(), t_start=0.1, n_steps=100, t_end=1e-5)
"""The published length."""


# --- T1, T2: finite differences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward noised", "toward from noise"])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_t1_directional_derivatives(solver: str, guided: str) -> None:
    """T1: relative error 1e-6 at the best h in every direction; it falls as h^2 before rounding takes over."""
    purifier = purifier_of(solver, guided, rounds=2)
    errors = directional_errors(purifier, value_and_gradient(purifier)[1], (1e-3, 1e-4, 1e-5, 1e-6))
    assert float(errors[:, 1:].amin(1).max()) <= 1e-6
    coarse, fine = errors.sum(0)[:2]
    assert coarse / 150 <= fine <= coarse / 50, "not second order"


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("solver", SOLVERS)
def test_t2_every_coordinate_and_every_exact_route(solver: str, guided: str, denoiser: str) -> None:
    """T2: 1e-7 in all sixteen pixels; and T6 for every solver, guidance and denoiser."""
    purifier = purifier_of(solver, guided, denoiser)
    out, direct = value_and_gradient(purifier.with_(gradient=Direct()))
    assert float(direct.abs().max()) > 1e-3, "a zero gradient would agree with anything"
    for route in ROUTES:
        same, stored = value_and_gradient(purifier.with_(gradient=route))
        assert torch.equal(same, out)
        assert largest(stored, direct) <= 1e-12
    assert largest(direct, numerical(purifier)) <= 1e-7


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward from noise"])
@pytest.mark.parametrize("rounds", [2, 3])
def test_t2_several_rounds(rounds: int, guided: str) -> None:
    purifier = purifier_of("Ancestral", guided, rounds=rounds, gradient=StoredState(3))
    _, direct = value_and_gradient(purifier.with_(gradient=Direct()))
    assert largest(value_and_gradient(purifier)[1], direct) <= 1e-12
    assert coordinate_error(purifier) <= 1e-7


# --- T3, T4: the recomputation is the walk ----------------------------------------------------------------------------


@pytest.mark.parametrize("segment", [1, 3])
@pytest.mark.parametrize(
    ("guided", "rounds"), [("unguided", 1), ("unguided", 2), ("toward noised", 2), ("toward from noise", 1)]
)
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_t3_replay(solver: str, guided: str, rounds: int, segment: int) -> None:
    """T3: one noise, one walk; each recomputed step starts and ends in the walk's own states, bit for bit."""
    purifier = purifier_of(solver, guided, rounds=rounds, gradient=StoredState(segment))
    assert replay_error(purifier) == 0
    walk, (forward, _) = list(purifier.trajectory(X, NOISE)), calls_of(purifier)
    assert len(walk) == len(forward) == 4 * rounds
    assert all(torch.equal(moment.x, call.x) for moment, call in zip(walk, forward, strict=True))


def test_t3_noise_of_a_step_is_drawn_alike_whenever_it_is_asked_for() -> None:
    """T3 where noise multiplies the state, so that its gradient needs the very same draw."""
    purifier = purifier_of("Ancestral", solver=Jittered(), gradient=StoredState(1))
    assert replay_error(purifier) == 0
    assert coordinate_error(purifier) <= 1e-7


@pytest.mark.parametrize("segment", [1, 7])
@pytest.mark.parametrize("solver", [Ancestral(), EulerMaruyamaVP()], ids=str)
def test_t4_step_table(solver, segment: int) -> None:
    """T4: a hundred steps; rows, noise levels and the labels that the network is told are those of the table."""
    labels: list[float] = []
    network = TanhNet()

    def told(x: Tensor, label: Tensor) -> Tensor:
        labels.append(float(label[0]))
        return network(x, label / 1000)

    if isinstance(solver, Ancestral):
        steps = ddpm_steps(DiscreteLinear(), n_noise=100)
        planned = [float(k) for k in range(99, -1, -1)]
    else:
        steps = LONG
        planned = [DiscreteLinear().t(step.sigma) if step.sigma > 0.0101 else 0.0 for step in steps]
    denoiser = EpsDenoiser(told, label=IndexLabel(DiscreteLinear()))
    purifier = DiffusionPurifier(denoiser, steps=steps, solver=solver, gradient=StoredState(segment))
    assert grid_mismatches(purifier) == 0
    assert labels[:100] == pytest.approx(planned, abs=1e-9)
    assert sorted(labels[100:], reverse=True) == labels[:100], "recomputed with the same labels, to the last bit"


# --- T5: guidance -----------------------------------------------------------------------------------------------------


def reference_dropped(guidance):
    """The guidance with no gradient to the image that it pulls toward."""
    return lambda at: guidance(at._replace(x_in=at.x_in.detach()))


def detached(guidance):
    """The guidance as a constant of the step."""
    return lambda at: guidance(at).detach()


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", [Toward, TowardNoised])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_t5_guidance_is_differentiated(solver: str, kind, strength: float) -> None:
    """T5: stored states equal the full graph at no, usual and tenfold guidance; leaving out a path differs."""
    purifier = purifier_of(solver, guidance=kind(strength), gradient=StoredState(1))
    out, stored = value_and_gradient(purifier)
    assert largest(stored, value_and_gradient(purifier.with_(gradient=Direct()))[1]) <= 1e-12
    assert relative(stored, numerical(purifier)) <= 1e-7
    for part in (reference_dropped, detached):
        same, other = value_and_gradient(purifier.with_(guidance=part(kind(strength))))
        assert torch.equal(same, out), "the values do not show what the gradient lacks"
        if strength == 0:
            assert largest(stored, other) <= 1e-12
        else:
            assert largest(stored, other) > 1e-6


def test_t5b_a_walk_from_noise_has_a_gradient_through_the_reference_only() -> None:
    """T5b: without guidance no path at all; with a smooth one the exact gradient, all of it by the reference."""
    unguided = purifier_of("Ancestral", "toward from noise", guidance=None)
    assert not unguided.with_(gradient=Direct())(X.clone().requires_grad_(), NOISE).requires_grad
    assert float(value_and_gradient(unguided)[1].abs().max()) == 0
    for route in (StoredState(1), StoredState(2), Direct()):
        guided = purifier_of("Ancestral", "toward from noise", gradient=route)
        assert float(value_and_gradient(guided)[1].abs().max()) > 1e-3
        assert coordinate_error(guided) <= 1e-7
    dropped = purifier_of("Ancestral", "toward from noise", guidance=reference_dropped(Toward()))
    assert float(value_and_gradient(dropped)[1].abs().max()) == 0


# --- T6: one gradient by several routes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpointed:
    """Exact, by torch's own checkpoints: one for each step."""

    mode: ClassVar[GradientMode] = GradientMode.EXACT

    def __call__(self, advance, state: ChainState, x_in: Tensor, steps) -> ChainState:
        for step in steps:
            state = checkpoint(advance, state, x_in, step, use_reentrant=False)
        return state

    def clamp(self, images: Tensor) -> Tensor:
        return images.clamp(0, 1)


@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_t6_routes_agree(solver: str, guided: str) -> None:
    """T6: one graph, torch's checkpoints, segments of 1, 2, 5 and all of ten steps, and graphs kept from the way
    forward, each with each; stored states agree among themselves to the last bit."""
    steps = uniform_steps(VP(), t_start=0.3, n_steps=10, t_end=1e-3)
    stored = [*(StoredState(n) for n in (1, 2, 5, 10)), *(StoredState(budget=n) for n in (0, 10_000, 10**9))]
    routes = [Direct(), Checkpointed(), *stored]
    found = [value_and_gradient(purifier_of(solver, guided, steps=steps, gradient=route)) for route in routes]
    assert float(found[0][1].abs().max()) > 1e-3
    for a in found:
        for b in found:
            assert torch.equal(a[0], b[0])
            assert largest(a[1], b[1]) <= 1e-12
    assert all(torch.equal(found[2][1], gradient) for _, gradient in found[3:])


def test_t6_long_walks() -> None:
    """T6: a hundred steps, the published length: stored states against one graph."""
    purifier = DiffusionPurifier(tanh_eps(), steps=LONG, solver=EulerMaruyamaVP(), guidance=Toward(0.01))
    _, direct = value_and_gradient(purifier.with_(gradient=Direct()))
    for segment in (1, 7, 100):
        _, stored = value_and_gradient(purifier.with_(gradient=StoredState(segment)))
        assert largest(stored, direct) <= 1e-11


# --- T7, T8: an image's gradient is its own ---------------------------------------------------------------------------


@pytest.mark.parametrize("route", [StoredState(1), StoredState(3), Direct()], ids=str)
@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_t7_t8_batch_order_and_split(solver: str, guided: str, route) -> None:
    """T7, T8: alone, permuted, in two halves: output and gradient to 1e-12. test_invariance.py does it on digits."""
    value, gradient = split_error(purifier_of(solver, guided, gradient=route, rounds=2))
    assert value <= 1e-12
    assert gradient <= 1e-12


@pytest.mark.parametrize("rule", [None, MeanProb(3), Vote(3)], ids=str)
def test_t8_split_of_draws(rule) -> None:
    """T8: the mean gradient over six draws, however they are grouped into calls."""
    defence = Defence(purifier_of("EulerMaruyamaVP", "toward noised"), TanhClassifier(16), rule=rule)
    weights = randn(1, 3, seed=5)

    def summed(groups: list[range]) -> tuple[Tensor, Tensor]:
        x = X.clone().requires_grad_()
        calls = [defence(x.expand(len(g), -1, -1, -1), NOISE.expand(g)) for g in groups]
        (gradient,) = torch.autograd.grad(torch.cat(calls).mul(weights).sum(), x)
        return torch.cat(calls).detach(), gradient

    value, gradient = summed([range(6)])
    for groups in ([range(4), range(4, 6)], [range(k, k + 1) for k in range(6)]):
        other = summed(groups)
        assert largest(value, other[0]) <= 1e-12
        assert largest(gradient, other[1]) <= 1e-12
    assert rule == Vote(3) or largest(value[0], value[1]) > 1e-3, "draws must differ, or any grouping agrees"


# --- T9: forward mode -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_t9_jvp_is_the_transpose_of_the_vjp(solver: str) -> None:
    """T9: <v, J u> by forward differentiation of the graph version equals <J^T v, u> of every exact route."""
    purifier, u = purifier_of(solver, rounds=2, gradient=Direct()), randn(*X.shape, seed=50)
    out, pushed = torch.func.jvp(lambda x: purifier(x, NOISE), (X,), (u,))
    forward = float((pushed * V).sum())
    assert abs(forward) > 1e-2
    for route in (Direct(), StoredState(1), StoredState(3)):
        same, gradient = value_and_gradient(purifier.with_(gradient=route))
        assert torch.equal(same, out)
        assert abs(float((gradient * u).sum()) - forward) <= 1e-10


@pytest.mark.parametrize("guided", [name for name in GUIDED if name != "unguided"])
def test_t9_guided(guided: str) -> None:
    """T9 with guidance, a gradient inside: dual numbers forward over it, as torch.func does not nest with it."""
    purifier, u = purifier_of("Ancestral", guided), randn(*X.shape, seed=50)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X.clone().requires_grad_(), u)
        pushed = forward_ad.unpack_dual(purifier.with_(gradient=Direct())(dual, NOISE)).tangent
        forward = float((pushed.detach() * V).sum())
    assert abs(forward) > 1e-2
    for route in (Direct(), StoredState(1)):
        _, gradient = value_and_gradient(purifier.with_(gradient=route))
        assert abs(float((gradient * u).sum()) - forward) <= 1e-10


# --- T12: the ladder of routes ----------------------------------------------------------------------------------------


def test_t12_straight_through_is_exact_where_the_purifier_only_adds_noise() -> None:
    """T12: with D(x) = x an ODE step stays where it is, the Jacobian is the identity, and BPDA takes it to be that."""
    purifier = DiffusionPurifier(lambda x, sigma: x, steps=SOLVERS["Heun"][1], solver=Euler(), gradient=StoredState(1))
    out, stored = value_and_gradient(purifier)
    same, through = value_and_gradient(purifier.with_(gradient=StraightThrough()))
    assert torch.equal(out, same)
    assert largest(stored, through) <= 1e-12
    assert largest(stored, V) <= 1e-12
    other = purifier_of("Euler")
    assert largest(*(value_and_gradient(other.with_(gradient=r))[1] for r in (StoredState(1), StraightThrough()))) > 0.1


@pytest.mark.parametrize("solver", ["Euler", "EulerMaruyama", "EulerMaruyamaVP"])
def test_t12_adjoint_converges_with_the_step(solver: str) -> None:
    """T12: on a smooth density the continuous adjoint's error falls as the step, and is there at any step."""
    counts, errors = (20, 40, 80), []
    for n in counts:
        steps = steps_at(VP(), np.linspace(0.2, 0.02, n + 1).tolist())
        purifier = purifier_of(solver, "unguided", "smooth", steps=steps, gradient=StoredState(1))
        exact = value_and_gradient(purifier)
        out, adjoint = value_and_gradient(purifier.with_(gradient=Adjoint()))
        assert torch.equal(out, exact[0])
        errors.append(relative(adjoint, exact[1]))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.1), errors
    assert 1e-3 < errors[-1] < 0.1


@pytest.mark.parametrize("guided", ["unguided", "toward noised"])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_t12_surrogate(solver: str, guided: str) -> None:
    """T12: with as many steps as the walk a surrogate is the walk; with fewer it is another function, and exact."""
    whole = purifier_of(solver, guided, gradient=StoredState(1))
    out, gradient = value_and_gradient(whole)
    same, other = value_and_gradient(whole.with_(steps=coarser(whole.steps, 4)))
    assert torch.equal(same, out)
    assert torch.equal(other, gradient)
    surrogate = whole.with_(steps=coarser(whole.steps, 2))
    by_hand = [replace(step, index=2 * step.index) for step in merged(whole.steps, 2)]
    assert list(surrogate.steps) == by_hand, "under the index of the first row that a row replaces"
    assert coordinate_error(surrogate) <= 1e-7
    assert largest(value_and_gradient(surrogate)[1], gradient) > 1e-2


# --- T13: draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [StoredState(1), StoredState(3), Direct()], ids=str)
def test_t13_gradient_of_the_mean_over_draws_is_the_mean_of_gradients(route) -> None:
    """T13: one call with five draws in it against five calls."""
    purifier = purifier_of("EulerMaruyamaVP", "toward", gradient=route)
    x = X.clone().requires_grad_()
    out = purifier(x.expand(5, -1, -1, -1), NOISE.expand(range(5)))
    (together,) = torch.autograd.grad((out * V).sum() / 5, x)
    alone = torch.stack([value_and_gradient(purifier, noise=NOISE.draw(k))[1] for k in range(5)])
    assert largest(together, alone.mean(0)) <= 1e-13


# --- T14: counters ----------------------------------------------------------------------------------------------------


class Patchy(torch.nn.Module):
    """Logits whose gradient is usual, exactly zero or not a number, by the id of the image and the draw."""

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        draws = torch.tensor(noise.draws if isinstance(noise.draws, tuple) else [noise.draws] * len(noise))
        ids = torch.tensor(noise.images)
        plain = images.flatten(1) @ randn(16, 3, seed=6)
        zero = ((ids == 1) & (draws % 4 == 0)) | (ids == 2)
        logits = torch.where(zero[:, None], plain.detach(), plain)
        bad = (ids == 3) & (draws % 2 == 0)
        steep = torch.where(bad, (images - images.detach()).flatten(1).sum(1), 1.0).sqrt()
        return logits + steep[:, None]


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_t14_zero_and_bad_gradients_are_counted(rows: int | None) -> None:
    """T14: shares of the draws of all steps; none, a quarter or all zero; half of them not finite."""
    attack, noise = PGD(Ball("linf", 0.1), n_steps=3, eot=4), Noise(5, images=(0, 1, 2, 3))
    found = attack(Patchy(), XS, torch.zeros(4, dtype=torch.long), init=noise, eot=noise, rows=rows)
    assert found.gradients.zero.tolist() == [0, 0.25, 1, 0]
    assert found.gradients.bad.tolist() == [0, 0, 0, 0.5]


def test_t14_a_purifier_has_finite_gradients_and_no_zeros() -> None:
    """T14 for the real thing, and through a cut path: all zero."""
    labels, noise = torch.tensor([0, 1, 2, 0]), Noise(5, images=(0, 1, 2, 3))
    attack = PGD(Ball("l2", 0.5), n_steps=2, eot=2)
    defence = Defence(purifier_of("Ancestral", "toward from noise", gradient=StoredState(1)), TanhClassifier(16))
    for guidance, share in ((Toward(), 0.0), (reference_dropped(Toward()), 1.0)):
        found = attack(defence.with_(guidance=guidance), XS, labels, init=noise, eot=noise)
        assert found.gradients.zero.tolist() == [share] * 4
        assert found.gradients.bad.tolist() == [0] * 4


# --- T15: memory ------------------------------------------------------------------------------------------------------


def graph_of(route, n_steps: int, guided: str) -> int:
    """Bytes of graph that a purification and its gradient hold at once."""
    steps = uniform_steps(VP(), t_start=0.1, n_steps=n_steps, t_end=1e-5)
    purifier = purifier_of("EulerMaruyamaVP", guided, steps=steps, gradient=route)
    return graph_bytes(lambda: purifier(X.clone().requires_grad_(), NOISE).sum().backward())


@pytest.mark.parametrize("guided", ["unguided", "toward"])
def test_t15_graph_memory_does_not_grow_with_the_walk(guided: str) -> None:
    """T15: ten steps against a hundred, by stored states within a fifth; by one graph tenfold."""
    for route in (StoredState(1), StoredState(5), StoredState(budget=6000)):
        assert graph_of(route, 100, guided) == pytest.approx(graph_of(route, 10, guided), rel=0.2)
    assert graph_of(Direct(), 100, guided) == pytest.approx(10 * graph_of(Direct(), 10, guided), rel=0.2)


def test_t15_the_measure_counts_what_is_saved() -> None:
    """A product saves both factors, exp its result; a storage counts once and a weight not at all."""
    a, b = randn(100, seed=1).requires_grad_(), randn(100, seed=2).requires_grad_()
    weight = torch.nn.Parameter(randn(100, seed=3))
    assert graph_bytes(lambda: a * b) == 1600
    assert graph_bytes(lambda: (a * a).exp()) == 1600
    assert graph_bytes(lambda: [(a * a).sum().backward() for _ in range(5)]) == 800
    assert graph_bytes(lambda: a * weight) == 800
    assert graph_bytes(lambda: a + b) == 0


# --- T16: no second derivative ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", [lambda out: (out * V).sum(), lambda out: out.square().sum()], ids=["linear", "square"]
)
def test_t16_double_backward_is_refused(loss) -> None:
    """T16: stored states refuse; the graph version differentiates twice."""
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError):  # noqa: PT012
        (gradient,) = torch.autograd.grad(loss(purifier_of("Ancestral")(x, NOISE)), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), x)
    direct = purifier_of("Ancestral", gradient=Direct())(x, NOISE)
    (gradient,) = torch.autograd.grad(loss(direct), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert float(second.abs().max()) > 1e-6, "Direct is differentiable twice"


@pytest.mark.parametrize(
    "loss", [lambda out: (out * V).sum(), lambda out: out.square().sum()], ids=["linear", "square"]
)
def test_t16_a_gradient_penalty_is_refused_and_not_silently_dropped(loss) -> None:
    """T16: beside a term that can be differentiated, the penalty would vanish without an error."""
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError):  # noqa: PT012
        (gradient,) = torch.autograd.grad(loss(purifier_of("Ancestral")(x, NOISE)), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum() + x.square().sum(), x)


# --- T17: global state ------------------------------------------------------------------------------------------------


def global_states() -> tuple[bytes, str, str]:
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())


@pytest.mark.parametrize("route", [StoredState(1), StoredState(3), Direct(), StraightThrough()], ids=str)
def test_t17_global_generators_are_left_alone(route) -> None:
    """T17: torch's, numpy's and Python's, over purification and gradient; each of them moves when drawn from."""
    before = global_states()
    purifier = purifier_of("EulerMaruyamaVP", "toward noised", gradient=route, rounds=2)
    value_and_gradient(purifier)
    list(purifier.trajectory(X, NOISE))
    assert global_states() == before
    with torch.random.fork_rng():
        torch.rand(1)
        assert global_states()[0] != before[0]
