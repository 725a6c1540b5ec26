"""The exact routes in a purifier's other parts, and the memory dial: what it costs, never what comes out."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from depura._check import InputError
from depura.defence import Defence, MeanProb, Single, Vote
from depura.diffusion.denoisers import Clipped
from depura.diffusion.schedules import EDM, VP, Step, steps_at, uniform_steps
from depura.diffusion.solvers import Ancestral, Euler, Heun
from depura.gradients import ChainState, Direct, GradientRoute, StoredState, graph_bytes
from depura.noise import Kind
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from toys import (
    CLEAN,
    NOISE,
    TanhClassifier,
    V,
    X,
    numerical,
    purifier_of,
    rand,
    randn,
    tanh_edm,
    tanh_eps,
    value_and_gradient,
)

# --- around the walk: rounds, resizing, clamps, the rule --------------------------------------------------------------


def test_several_rounds_are_the_rounds_in_turn() -> None:
    """Round r is the single-round purifier at the noise of round r, on the last result."""
    one, three = purifier_of("Ancestral"), purifier_of("Ancestral", rounds=3)
    x = X
    with torch.no_grad():
        for number in range(3):
            x = 0.5 * (one_in_round(one, x, number) + 1)
        torch.testing.assert_close(three(X, NOISE), x, rtol=0, atol=1e-13)


def one_in_round(purifier: DiffusionPurifier, x: Tensor, number: int) -> Tensor:
    """The walk written out: state in [-1, 1] after one round."""
    tape = replace(NOISE, round=number)
    state = (2 * x - 1) + purifier.steps[0].sigma * tape(x, kind=Kind.FORWARD)
    for step in purifier.steps:
        state = purifier.solver.step(purifier.denoiser, state, step, tape).x_next
    return state


@pytest.mark.parametrize("route", [StoredState(2), Direct()], ids=str)
def test_resized(route: GradientRoute) -> None:
    purifier = Resized(purifier_of("Ancestral", "toward", gradient=route), size=6)
    x = rand(1, 1, 4, 4, seed=1)
    _, gradient = value_and_gradient(purifier, x)
    torch.testing.assert_close(gradient, numerical(purifier, x), rtol=0, atol=1e-7)


def test_clipped_denoiser_and_clamped_exit_have_no_gradient_where_they_act() -> None:
    purifier = purifier_of("Ancestral")
    inner = purifier.with_(denoiser=Clipped(purifier.denoiser), clamp=True)
    out, stored = value_and_gradient(inner)
    _, direct = value_and_gradient(inner.with_(gradient=Direct()))
    torch.testing.assert_close(stored, direct, rtol=0, atol=1e-12)
    torch.testing.assert_close(stored, numerical(inner), rtol=0, atol=1e-7)
    assert 0 < int(((out == 0) | (out == 1)).sum()) < out.numel(), "the clamp must act somewhere, not everywhere"


@pytest.mark.parametrize("guided", ["unguided", "toward"])
@pytest.mark.parametrize("rule", [Single(), MeanProb(1), MeanProb(3)], ids=str)
def test_defence(rule, guided: str) -> None:
    purifier = purifier_of("EulerMaruyamaVP", guided)
    weights = randn(1, 3, seed=5)
    stored = Defence(purifier, TanhClassifier(16), rule=rule)
    direct = stored.with_(gradient=Direct())
    _, gradient = value_and_gradient(stored, v=weights)
    _, other = value_and_gradient(direct, v=weights)
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, numerical(stored, v=weights), rtol=0, atol=1e-7)


def test_the_gradient_of_a_vote_is_that_of_the_mean() -> None:
    mean = Defence(purifier_of("Ancestral"), TanhClassifier(16), rule=MeanProb(3))
    weights = randn(1, 3, seed=5)
    _, expected = value_and_gradient(mean, v=weights)
    value, gradient = value_and_gradient(mean.with_(rule=Vote(3)), v=weights)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(value, mean(X, NOISE)), "the value is that of the vote"


def test_edm_clock_in_one_step() -> None:
    """One Euler step from sigma to 0 is the denoiser itself, and so is its gradient."""
    purifier = DiffusionPurifier(tanh_edm(), steps=steps_at(EDM(), [0.7, 0.0]), solver=Euler())
    leaf = X.clone().requires_grad_()
    expected = (tanh_edm()(2 * leaf - 1 + 0.7 * NOISE(X, kind=Kind.FORWARD), 0.7) + 1) / 2
    (by_hand,) = torch.autograd.grad((expected * V).sum(), leaf)
    out, gradient = value_and_gradient(purifier)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-13)


# --- the machinery ----------------------------------------------------------------------------------------------------


def test_backward_calls_and_repeated_gradients() -> None:
    """`loss.backward()` accumulates as for any module, and the graph can be kept."""
    purifier = purifier_of("Heun", "toward")
    _, expected = value_and_gradient(purifier)
    x = X.clone().requires_grad_()
    loss = (purifier(x, NOISE) * V).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("route", [StoredState(1), StoredState(2), StoredState(), Direct()], ids=str)
def test_network_calls_per_step(route: GradientRoute) -> None:
    """One call a step forward, one more a step whose graph is not kept; Heun takes two but for the clean end."""
    counts: list[float] = []
    inner = tanh_eps()

    def counting(x: Tensor, sigma: float) -> Tensor:
        counts.append(sigma)
        return inner(x, sigma)

    purifier = DiffusionPurifier(counting, steps=CLEAN, solver=Ancestral(), gradient=route)
    levels = [s.sigma for s in CLEAN]
    value_and_gradient(purifier)
    back = levels if isinstance(route, StoredState) and route.segment else []
    assert sorted(counts) == sorted(levels + back)
    counts.clear()
    purifier(X, NOISE)
    assert counts == levels
    counts.clear()
    purifier.with_(solver=Heun())(X, NOISE)
    assert len(counts) == 2 * len(levels) - 1


# --- stored states: the memory dial -----------------------------------------------------------------------------------


TEN = uniform_steps(VP(), t_start=0.3, n_steps=10, t_end=1e-3)
DIALS = [
    StoredState(),
    *(StoredState(segment=n) for n in (1, 3, 10)),
    *(StoredState(budget=n) for n in (0, 3000, 12_000, 10**9)),
    StoredState(segment=4, budget=12_000),
    StoredState(segment=2, offload=True),
    StoredState(budget=12_000, offload=True),
]


class Counted:
    """A denoiser that counts its calls, in all and those that build a graph."""

    def __init__(self) -> None:
        self.inner, self.calls, self.graphs = tanh_eps(), 0, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        self.graphs += torch.is_grad_enabled() and x.requires_grad
        return self.inner(x, sigma)


@pytest.mark.parametrize("guided", ["unguided", "toward", "toward noised"])
@pytest.mark.parametrize("solver", ["Heun", "Ancestral", "EulerMaruyamaVP", "DpmSolverPP"])
def test_every_setting_gives_the_same_bits(solver: str, guided: str) -> None:
    purifier = purifier_of(solver, guided, steps=TEN, rounds=2)
    out, gradient = value_and_gradient(purifier.with_(gradient=DIALS[0]))
    assert float(gradient.abs().max()) > 1e-3
    for route in DIALS[1:]:
        same, other = value_and_gradient(purifier.with_(gradient=route))
        assert torch.equal(same, out)
        assert torch.equal(other, gradient), route


def held(purifier: DiffusionPurifier) -> int:
    """Bytes of graph that a purification and its gradient hold at once."""
    return graph_bytes(lambda: purifier(X.clone().requires_grad_(), NOISE).sum().backward())


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("guided", ["unguided", "toward"])
def test_the_budget_buys_recomputation_and_is_kept(guided: str, rounds: int) -> None:
    """As many steps as fit are not evaluated again, all rounds together; what one step takes is the least there is."""
    counted, n = Counted(), 10 * rounds
    purifier = purifier_of("Ancestral", guided, steps=TEN, rounds=rounds, denoiser=counted)
    least, most = (
        held(purifier.with_(gradient=StoredState(1))),
        held(purifier.with_(gradient=StoredState(budget=10**9))),
    )
    one = (most - least) / (n - 1)
    images = 2 * rounds * X.numel() * X.element_size()  # what the route itself saves: its two arguments
    kept = []
    for budget in (0, *(int(rounds * (least + k * one)) for k in (0.5, 2.5, 5.5, 7.5)), 2 * most):
        counted.calls = 0
        assert held(purifier.with_(gradient=StoredState(budget=budget))) <= max(budget, least) + images
        kept.append(2 * n - counted.calls)
        fits = budget / rounds - least
        assert kept[-1] >= rounds * min(10, math.floor(fits / one) - 2), "room that was not used"
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, n)
    assert len(set(kept)) > 3


def test_default_keeps_everything_where_there_is_room_and_nothing_where_a_segment_is_asked_for() -> None:
    for route, recomputed in ((StoredState(), 0), (StoredState(3), 10), (StoredState(3, budget=10**9), 0)):
        counted = Counted()
        value_and_gradient(purifier_of("Ancestral", steps=TEN, denoiser=counted, gradient=route))
        assert counted.calls == 10 + recomputed


class _Alive(torch.autograd.Function):
    """Identity that holds a place among the graphs alive."""

    @staticmethod
    def forward(ctx, x: Tensor, scarce: Scarce) -> Tensor:
        ctx.place = scarce.take_place()
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


class Scarce:
    """A denoiser on a machine with room for a few graphs; and out of memory at some calls, whatever they are."""

    def __init__(self, room: int, at: tuple[int, ...] = ()) -> None:
        self.inner, self.room, self.at = tanh_eps(), room, at
        self.alive = self.calls = self.refused = 0

    def take_place(self) -> object:
        if self.alive >= self.room:
            self.refuse()
        self.alive += 1
        place = _Place()
        weakref.finalize(place, self.give_back)
        return place

    def give_back(self) -> None:
        self.alive -= 1

    def refuse(self) -> None:
        self.refused += 1
        raise torch.OutOfMemoryError("no room")

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        if self.calls in self.at:
            self.refuse()
        if torch.is_grad_enabled() and x.requires_grad:
            x = _Alive.apply(x, self)
        return self.inner(x, sigma)


class _Place:
    pass


@pytest.mark.parametrize("route", [StoredState(), StoredState(3), StoredState(10), StoredState(budget=10**9)], ids=str)
@pytest.mark.parametrize("guided", ["unguided", "toward"])
@pytest.mark.parametrize("room", [1, 2, 5, 10])
def test_out_of_memory_gives_up_graphs_and_goes_on(room: int, guided: str, route: StoredState) -> None:
    """With room for a few graphs, at least for the one that a guided step makes anyway."""
    purifier = purifier_of("Ancestral", guided, steps=TEN, denoiser=Scarce(10**9), gradient=StoredState(1))
    expected = value_and_gradient(purifier)
    purifier, scarce = purifier.with_(gradient=route), Scarce(room)
    found = value_and_gradient(purifier.with_(denoiser=scarce))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    needs = 3 if route.segment == 3 else 10
    assert (scarce.refused > 0) == (room < needs), "the machine was as small as it says"
    assert scarce.alive == 0, "graphs that nobody needs are gone"
    if room < 10:
        with pytest.raises(torch.OutOfMemoryError):
            value_and_gradient(purifier.with_(denoiser=Scarce(room), gradient=Direct()))


@pytest.mark.parametrize("at", [(1,), (3, 4), (10,), (11,), (12, 13), (5, 15, 18)])
@pytest.mark.parametrize("route", [StoredState(4), StoredState(10), StoredState(budget=10**9)], ids=str)
def test_out_of_memory_at_a_call(route: StoredState, at: tuple[int, ...]) -> None:
    """At any call, with or without a graph, as long as there is something to give up."""
    purifier = purifier_of("Ancestral", "toward", steps=TEN, denoiser=Scarce(10**9), gradient=route)
    expected = value_and_gradient(purifier)
    scarce = Scarce(100, at)
    try:
        found = value_and_gradient(purifier.with_(denoiser=scarce))
    except torch.OutOfMemoryError:
        assert route.budget is None
        assert min(at) <= 10, "nothing is held on the way forward"
        return
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_out_of_memory_for_a_single_step_is_an_error() -> None:
    for room, route in ((0, StoredState()), (0, StoredState(3))):
        with pytest.raises(torch.OutOfMemoryError):
            value_and_gradient(purifier_of("Ancestral", steps=TEN, denoiser=Scarce(room), gradient=route))


@pytest.mark.parametrize("route", [StoredState(), StoredState(1), StoredState(budget=3000)], ids=str)
def test_other_errors_are_not_taken_for_a_lack_of_memory(route: StoredState) -> None:
    """They are raised at once, not tried again with less."""
    calls = []

    def broken(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        raise RuntimeError("the network is broken")

    with pytest.raises(RuntimeError, match="the network is broken"):
        value_and_gradient(purifier_of("Ancestral", denoiser=broken, gradient=route))
    assert len(calls) == 1


@pytest.mark.parametrize("route", [Direct(), StoredState(), StoredState(1), StoredState(budget=12_000)], ids=str)
@pytest.mark.parametrize("guided", ["unguided", "toward"])
def test_graphs_are_freed(guided: str, route: GradientRoute) -> None:
    """After a gradient, and where none is taken: nothing stays, without a garbage collection."""
    scarce = Scarce(10**9)
    purifier = purifier_of("Ancestral", guided, steps=TEN, denoiser=scarce, gradient=route)
    value_and_gradient(purifier)
    assert scarce.alive == 0
    out = purifier(X.clone().requires_grad_(), NOISE)
    assert scarce.alive == (0 if route == StoredState(1) else pytest.approx(5.5, abs=4.5))
    del out
    assert scarce.alive == 0


@pytest.mark.parametrize("route", [Direct(), StoredState(), StoredState(1), StoredState(budget=3000)], ids=str)
def test_a_network_that_overwrites_what_it_saved_is_an_error(route: GradientRoute) -> None:
    """As in ordinary automatic differentiation; a silent wrong gradient otherwise."""
    inner = tanh_eps()

    def careless(x: Tensor, sigma: float) -> Tensor:
        h = torch.tanh(x)
        out = inner(h, sigma)
        h.mul_(0.5)
        return out

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value_and_gradient(purifier_of("Ancestral", denoiser=careless, gradient=route))


class Products:
    """The least that a route can fold: x times x_in, plus x."""

    images = (0,)
    rounds = 1

    def __call__(self, state: ChainState, x_in: Tensor, step: Step) -> ChainState:
        (x,) = state
        return (x * x_in + x,)


@pytest.mark.parametrize("route", [StoredState(), StoredState(1), StoredState(3), StoredState(budget=3000)], ids=str)
def test_a_kept_graph_can_be_used_again_and_a_freed_one_cannot(route: GradientRoute) -> None:
    x = X.clone().requires_grad_()
    out = purifier_of("Ancestral", "toward", steps=TEN, gradient=route, rounds=2)(x, NOISE)
    first, second, third = (torch.autograd.grad(out, x, V, retain_graph=k < 2)[0] for k in range(3))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    x, x_in = X.clone().requires_grad_(), X.clone().requires_grad_()
    (out,) = route(Products(), (x,), x_in, TEN)
    found = torch.autograd.grad(out, (x, x_in), V)
    torch.testing.assert_close(found[0], (1 + X) ** 10 * V, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], 10 * (1 + X) ** 9 * X * V, rtol=1e-12, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, (x, x_in), V)


@pytest.mark.parametrize("route", [StoredState(), StoredState(1), Direct()], ids=str)
def test_an_input_that_is_overwritten_before_the_way_back_is_an_error(route: GradientRoute) -> None:
    x, x_in = X.clone().requires_grad_(), X.clone().requires_grad_()
    (out,) = route(Products(), (x,), x_in, TEN)
    with torch.no_grad():
        x_in.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, (x, x_in), V)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segment": 0}, "StoredState: expected segment"),
        ({"segment": 1.5}, "StoredState: expected segment"),
        ({"budget": -1}, "StoredState: expected budget"),
    ],
)
def test_dials_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises((InputError, TypeError), match=message):
        StoredState(**arguments)
