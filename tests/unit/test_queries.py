"""Draws, micro-batches, and what gradients tell about themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from depura.attacks.losses import margin
from depura.attacks.pgd import PGD
from depura.attacks.queries import Draws, Queries, cosine, health, mean, mean_of_units
from depura.attacks.threat import Ball
from depura.defence import Defence, MeanProb, Vote
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.evaluation.counting import bytes_per_row, counted, rows_within
from depura.evaluation.diagnostics import shortcuts, surrogate
from depura.gradients import Direct, StoredState, graph_bytes
from depura.noise import Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from toys import TanhClassifier, Toward, rand, tanh_eps

STEPS = uniform_steps(VP(), t_start=0.3, n_steps=6)
X, Y = rand(3, 1, 4, 4, seed=1), torch.tensor([0, 1, 2])
NOISE = Noise(5, images=(4, 7, 9))


def by_draw(model, images, labels, loss, *, draws: range, noise: Noise | None, rows: int | None = None) -> Draws:
    """Loss and gradient of each draw by itself."""
    return Queries("attack", model, images, labels, noise=noise, rows=rows).gradient(images, loss, draws=draws)


def defence(**changes) -> Defence:
    purifier = DiffusionPurifier(tanh_eps(), steps=STEPS, solver=Ancestral(), guidance=Toward())
    return Defence(purifier, TanhClassifier(16)).with_(**changes)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 11, 12, 100])
def test_the_split_into_calls_does_not_matter(rows: int) -> None:
    whole = by_draw(defence(), X, Y, margin, draws=range(4, 8), noise=NOISE)
    split = by_draw(defence(), X, Y, margin, draws=range(4, 8), noise=NOISE, rows=rows)
    torch.testing.assert_close(split.losses, whole.losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(split.gradients, whole.gradients, rtol=0, atol=1e-12)
    assert whole.losses.shape == (3, 4)
    assert whole.gradients.shape == (3, 4, 1, 4, 4)


def test_draws_are_those_of_single_calls() -> None:
    together = by_draw(defence(), X, Y, margin, draws=range(4, 8), noise=NOISE)
    for row in range(3):
        for k in range(4):
            leaf = X[row : row + 1].clone().requires_grad_()
            loss = margin(defence()(leaf, NOISE.take([row]).draw(4 + k)), Y[row : row + 1])
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            torch.testing.assert_close(together.losses[row, k], loss[0].detach(), rtol=0, atol=1e-12)
            torch.testing.assert_close(together.gradients[row, k], gradient[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(mean(together.gradients), together.gradients.mean(1), rtol=0, atol=1e-14)


class Cramped:
    """A model with room for three rows; it remembers how many it was asked for."""

    def __init__(self, model: Defence) -> None:
        self.model = model
        self.sizes: list[int] = []

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.model(images, noise)


def test_out_of_memory_halves_the_rows_and_goes_on() -> None:
    model = defence()
    small = Cramped(model)
    found = by_draw(small, X, Y, margin, draws=range(4), noise=NOISE)
    whole = by_draw(model, X, Y, margin, draws=range(4), noise=NOISE)
    torch.testing.assert_close(found.gradients, whole.gradients, rtol=0, atol=1e-12)
    assert small.sizes == [12, 6, 3, 3, 3, 3]


def test_out_of_memory_for_a_single_row_is_told() -> None:
    def never(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        by_draw(never, X, Y, margin, draws=range(1), noise=None)


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        by_draw(broken, X, Y, margin, draws=range(1), noise=None)


def test_an_attack_remembers_how_many_rows_fit() -> None:
    model = defence()
    small = Cramped(model)
    attack = PGD(Ball("linf", 0.1), n_steps=3, eot=2)
    found = attack(small, X, Y, init=NOISE, eot=NOISE)
    torch.testing.assert_close(found.images, attack(model, X, Y, init=NOISE, eot=NOISE).images, rtol=0, atol=1e-12)
    assert small.sizes == [6, 3, 3, 3, 3, 3, 3]


def test_health_by_hand() -> None:
    g = torch.zeros(3, 4, 1, 1, 2, dtype=torch.float64)
    g[0] = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).reshape(4, 1, 1, 2)
    g[1, 0], g[1, 1, 0, 0, 0] = 1.0, math.nan
    found = health(g)
    assert found.zero.tolist() == [0.0, 0.5, 1.0]
    assert found.bad.tolist() == [0.0, 0.25, 0.0]
    assert found.zero_pixels.tolist() == [0.0, 0.0, 1.0]
    assert found.agreement[0] == 0
    assert found.agreement[1:].isnan().all()
    assert found.spread[0] == 3.0, "torch's median of an even number is the lower one"
    assert found.spread[2].isnan()


def test_one_draw_has_no_halves() -> None:
    assert health(torch.ones(2, 1, 1, 2, 2)).agreement.isnan().all()
    assert health(torch.ones(2, 3, 1, 2, 2)).agreement.tolist() == pytest.approx([1, 1])


def test_cosine_of_nothing_is_not_a_number() -> None:
    a = torch.tensor([[1.0, 1.0], [0.0, 0.0], [math.nan, 1.0]])
    values = cosine(a, torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert values[0] == pytest.approx(math.sqrt(0.5))
    assert values[1:].isnan().all()


def test_gradients_that_are_not_finite_are_counted_and_the_image_stays() -> None:
    def model(images: Tensor) -> Tensor:
        flat = images.flatten(1)
        bad = torch.sqrt(flat[:, :1] - flat[:, :1].detach())  # slope of infinity at 0
        return torch.cat([flat[:, :2], flat[:, 2:3] + torch.where(flat[:, :1] > 0.5, bad, 0.0)], dim=1)

    x = torch.full((2, 1, 2, 2), 0.2, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.7
    found = PGD(Ball("linf", 0.1), n_steps=4, random_start=False)(model, x, torch.tensor([2, 2]))
    assert found.gradients.bad.tolist() == [1.0, 1.0], "0 * inf is not finite either"
    assert torch.equal(found.images[0], x)


def test_shortcuts_of_an_isotropic_gaussian_are_perfect() -> None:
    """The walk is then a multiple of the identity for any number of steps."""
    purifier = DiffusionPurifier(
        GaussianDenoiser(torch.zeros(1, 4, 4, dtype=torch.float64), torch.full((1, 4, 4), 0.5, dtype=torch.float64)),
        steps=STEPS,
        solver=Ancestral(),
    )
    linear = torch.nn.Linear(16, 3).double()
    model = Defence(purifier, torch.nn.Sequential(torch.nn.Flatten(), linear))
    # The margin of a linear classifier has one gradient only if the runner-up does not change: two classes.
    linear.weight.data[2] = linear.weight.data[1]
    linear.bias.data[2] = linear.bias.data[1] - 100
    found = shortcuts(model, X, Y.clamp(max=1), NOISE, draws=range(2), rows=100)
    torch.testing.assert_close(found.bpda, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.surrogate, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_shortcuts_are_cosines_to_the_exact_gradient() -> None:
    model = defence()
    found = shortcuts(model, X, Y, NOISE, draws=range(3), rows=4)
    exact = by_draw(model.with_(gradient=Direct()), X, Y, margin, draws=range(3), noise=NOISE).gradients.mean(1)
    cheap = mean(by_draw(surrogate(model), X, Y, margin, draws=range(3), noise=NOISE).gradients)
    expected = torch.nn.functional.cosine_similarity(cheap.flatten(1), exact.flatten(1))
    torch.testing.assert_close(found.surrogate, expected, rtol=0, atol=1e-10)
    assert len(surrogate(model).purifier.steps) == 2
    assert float(found.bpda.abs().max()) < 0.9999


@pytest.mark.parametrize("rule", [MeanProb(1), Vote(3)], ids=str)
def test_rows_within_a_budget_hold_to_it(rule) -> None:
    """As many rows as `rows_within` says, differentiated with one step at a time, stay within the memory."""
    model = defence(rule=rule, gradient=StoredState(segment=1))
    memory = 40 * bytes_per_row(model, X[:1])
    rows = rows_within(model, X[:1], memory)
    assert rows == 40
    images, noise = X[:1].expand(rows, -1, -1, -1), Noise(0, tuple(range(rows)))
    leaf = images.clone().requires_grad_()
    used = graph_bytes(lambda: torch.autograd.grad(model(leaf, noise).sum(), leaf))
    assert 0.5 * memory < used <= 1.05 * memory


def test_a_full_graph_needs_all_steps() -> None:
    one, all_steps = bytes_per_row(defence(), X[:1]), bytes_per_row(defence(gradient=Direct()), X[:1])
    assert all_steps == 6 * one
    resized = Defence(
        Resized(DiffusionPurifier(tanh_eps(), steps=STEPS, solver=Ancestral()), size=8), TanhClassifier(16)
    )
    assert bytes_per_row(resized, X[:1]) > bytes_per_row(defence(guidance=None), X[:1])
    assert rows_within(Defence(None, TanhClassifier(16)), X[:1], 1) == 1


def test_recomputed_evaluations_are_counted_apart() -> None:
    """What is recorded does not depend on memory; what was made again is known too."""
    seen = {}
    for route in (StoredState(segment=1), StoredState(budget=10**9), Direct()):
        model, counts = counted(defence(gradient=route))
        by_draw(model, X, Y, margin, draws=range(2), noise=NOISE)
        seen[str(route)] = (counts.forward, counts.backward, counts.recomputed)
    # 6 rows, 6 steps; guidance pulls back once on the way, the gradient once more.
    assert list(seen.values()) == [(36, 72, 36), (36, 72, 0), (36, 72, 0)]


def test_every_draw_has_one_voice_in_the_mean_of_units() -> None:
    gradients = torch.zeros(2, 3, 1, 1, 2, dtype=torch.float64)
    gradients[0, :, 0, 0] = torch.tensor([[3e6, 4e6], [0.0, 1e-3], [0.0, 0.0]])
    gradients[1, :, 0, 0] = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 5.0]])
    expected = torch.tensor([[0.6 / 3, 1.8 / 3], [0.0, 1 / 3]], dtype=torch.float64).reshape(2, 1, 1, 2)
    torch.testing.assert_close(mean_of_units(gradients), expected)
