"""Purifiers of purifiers: values, noise addresses, gradients, batches, and what the evaluation asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from checks import largest
from depura._check import InputError
from depura.audit.audit import audit_gradient
from depura.audit.checks import Light
from depura.defence import Defence, MeanLogit
from depura.diffusion.schedules import Step
from depura.evaluation.counting import counted
from depura.gradients import ChainState, Direct, Grafted, StoredState, StraightThrough, Transition
from depura.methods.baselines import blur_only, noise_only
from depura.methods.likelihood import likelihood
from depura.noise import Kind, Noise
from depura.purifiers.composed import Averaged, FixedNoise, Mixed, Resized, Sequential
from depura.purifiers.purifier import Purifier
from depura.records.describe import describe
from slow import slow
from toys import CLEAN, NOISES, STEPS, VS, XS, TanhClassifier, numerical, purifier_of, rand, randn, value_and_gradient

A, B = purifier_of("Ancestral", "toward", rounds=2), purifier_of("EulerMaruyamaVP")

MADE: dict[str, Callable[[], Purifier]] = {
    "sequential": lambda: Sequential(A, B),
    "nested": lambda: Sequential(Sequential(B, A), B),
    "averaged": lambda: Averaged(A, n_paths=3),
    "mixed": lambda: Mixed(B, B.with_(steps=CLEAN), B.with_(solver=A.solver)),
    "resized": lambda: Resized(Sequential(B, B), size=6),
    "mixed in sequence": lambda: Sequential(B, Mixed(B, B.with_(steps=CLEAN))),
    "average of a sequence": lambda: Averaged(Sequential(B, A), n_paths=2),
    "pinned": lambda: FixedNoise(Sequential(B, A), seed=3),
    "optimised": lambda: likelihood(B.denoiser, n_steps=3),
    "optimised in sequence": lambda: Sequential(likelihood(B.denoiser, n_steps=2), B),
}


@pytest.fixture(params=MADE, ids=str)
def made(request: pytest.FixtureRequest) -> Purifier:
    return MADE[request.param]()


def test_rows_do_not_depend_on_the_batch(made: Purifier) -> None:
    together = made(XS, NOISES)
    alone = torch.cat([made(XS[k : k + 1], NOISES.take([k])) for k in range(len(XS))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(made(XS[order], NOISES.take(order)), together[order], rtol=0, atol=1e-11)


def test_exact_routes_agree_with_differences(made: Purifier) -> None:
    x, v, noise = XS[:1], VS[:1], NOISES.take([0])
    out, stored = value_and_gradient(made.with_(gradient=StoredState(1)), x, v, noise)
    again, direct = value_and_gradient(made.with_(gradient=Direct()), x, v, noise)
    assert torch.equal(out, again)
    assert largest(stored, direct) < 1e-11 * float(direct.abs().max())
    by_differences = numerical(made, x, v, noise)
    assert largest(by_differences, direct) < 1e-6 * float(direct.abs().max())


def test_walk_ends_where_forward_does(made: Purifier) -> None:
    moments = list(made.trajectory(XS, NOISES))
    assert [m.round for m in moments] == sorted(m.round for m in moments)
    assert moments[-1].round == made.n_rounds - 1
    if not isinstance(made, (Averaged, Resized)) and made.n_steps == len(moments) and made.components[-1] is B:
        last = moments[-1]
        torch.testing.assert_close((last.step.scale_next * last.x_next + 1) / 2, made(XS, NOISES), rtol=0, atol=1e-12)


def test_evaluations_are_counted_through_all_parts(made: Purifier) -> None:
    defence, counts = counted(Defence(made, TanhClassifier(16)))
    with torch.no_grad():
        value = defence(XS, NOISES)
    assert torch.equal(value, Defence(made, TanhClassifier(16))(XS, NOISES))
    paths = made.n_paths if isinstance(made, Averaged) else 1
    assert counts.forward == len(XS) * paths * made.n_steps


def test_parts_are_told_apart_and_described(made: Purifier) -> None:
    again = made.map(lambda component: component)
    assert made.same_function(again)
    assert made.same_function(made.with_(gradient=StraightThrough()))
    shorter = made.coarser(2)
    assert not made.same_function(shorter)
    assert not made.same_function(B.with_(rounds=7))
    assert not B.with_(rounds=7).same_function(made)
    assert describe(made) == describe(again)
    assert describe(made) != describe(shorter)
    assert describe(made) != describe(made.with_(gradient=StraightThrough()))


def test_weights_are_frozen_and_generators_untouched(made: Purifier) -> None:
    before = torch.get_rng_state()
    made(XS, NOISES)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad for p in made.parameters())
    assert not made.train().training


@pytest.mark.parametrize("name", [slow("nested"), "averaged", slow("mixed in sequence"), "optimised in sequence"])
def test_audit_sees_through_compositions(name: str) -> None:
    assert audit_gradient(Defence(MADE[name](), TanhClassifier(16)), XS[:2]).light is Light.GREEN
    broken = MADE[name]().over(lambda denoiser: lambda x, sigma: denoiser(x, sigma).detach() + 0 * x)
    found = audit_gradient(Defence(broken, TanhClassifier(16)), XS[:2])
    assert found.light is Light.RED
    if "optimised" not in name:
        assert any("denoiser" in fault.sentence for fault in found.faults)


def test_sequence_is_one_after_the_other_with_later_noise() -> None:
    first = A(XS, NOISES)
    expected = B.purify(first, NOISES.in_round(2))
    assert torch.equal(Sequential(A, B)(XS, NOISES), expected)
    assert not torch.equal(Sequential(B, B)(XS, NOISES), B.purify(B(XS, NOISES), NOISES))


def test_all_parts_of_a_sequence_count_when_sequences_are_compared() -> None:
    assert not Sequential(A, B).same_function(Sequential(A, B.coarser(2)))
    assert not Sequential(A, B).same_function(Sequential(B, A))
    assert not Sequential(A).same_function(Sequential(A, B))


def test_one_step_is_that_of_the_table() -> None:
    n = len(B.steps)
    assert [B.one_step(where).steps for where in (0.0, 0.5, 1.0)] == [
        (B.steps[k],) for k in (0, round((n - 1) / 2), n - 1)
    ]
    assert A.one_step(0.0).rounds == 1


@dataclass(frozen=True)
class Seen(Direct):
    """The full graph; it writes down how many walks it is told that it shares its memory with."""

    rounds: list[int] = field(default_factory=list[int])

    def __call__(self, advance: Transition, state: ChainState, x_in: Tensor, steps: Sequence[Step], /) -> ChainState:
        self.rounds.append(advance.rounds)
        return super().__call__(advance, state, x_in, steps)


def test_walks_of_one_purification_share_their_memory() -> None:
    """A's two rounds and B's one, wherever they are wrapped; on its own a part has its own only."""
    seen = Seen()
    wholes = (Sequential(A, B), Sequential(Resized(A, size=6), B), Averaged(Mixed(Sequential(A, B)), n_paths=2))
    for whole in wholes:
        whole.with_(gradient=seen)(XS.clone().requires_grad_(), NOISES)
    assert seen.rounds == [3] * 9
    A.with_(gradient=seen)(XS.clone().requires_grad_(), NOISES)
    assert seen.rounds[9:] == [2, 2]


def test_average_is_the_mean_of_its_paths() -> None:
    paths = [B(XS, Noise(7, NOISES.images, tuple(3 * d + k for d in (0, 1, 2, 0)))) for k in range(3)]
    torch.testing.assert_close(Averaged(B, n_paths=3)(XS, NOISES), torch.stack(paths).mean(0), rtol=0, atol=1e-12)


def test_pinned_noise_is_that_of_one_address_for_all() -> None:
    pinned = FixedNoise(Sequential(A, B), seed=3)
    one = torch.cat([Sequential(A, B)(x[None], Noise(3, images=(0,))) for x in XS])
    torch.testing.assert_close(pinned(XS, NOISES), one, rtol=0, atol=1e-12)
    assert torch.equal(pinned(XS), pinned(XS, NOISES.draw(8)))
    assert not torch.allclose(FixedNoise(Sequential(A, B), seed=4)(XS, NOISES), one)
    assert pinned.same_function(FixedNoise(Sequential(A, B), seed=3))
    assert not pinned.same_function(FixedNoise(Sequential(A, B), seed=4))
    assert not pinned.same_function(Sequential(A, B))


def test_mixture_draws_all_its_parts_equally_often() -> None:
    n = 3000
    parts = [noise_only(std=s) for s in (0.5, 1.0, 2.0)]
    noise = Noise(0, tuple(range(n)))
    images = torch.full((n, 1, 2, 2), 0.5, dtype=torch.float64)
    out = Mixed(*parts)(images, noise)
    each = torch.stack([p(images, noise) for p in parts])
    picked = (each == out).all(dim=(2, 3, 4)).double()
    assert bool((picked.sum(0) == 1).all())
    assert float((picked.mean(1) - 1 / 3).abs().max()) < 4 * (2 / 9 / n) ** 0.5


def test_baselines_do_not_ask_a_denoiser() -> None:
    images = rand(2, 3, 6, 6)
    noise = Noise(1, (0, 1))
    expected = images + 0.3 * noise(images, kind=Kind.FORWARD)
    torch.testing.assert_close(noise_only(std=0.3)(images, noise), expected, rtol=0, atol=1e-12)
    defence, counts = counted(Defence(noise_only(std=0.3), lambda x: x.flatten(1)))
    defence(images, noise)
    assert counts.forward == 0


def test_blur_is_a_normalised_gaussian() -> None:
    """Against a direct sum at an inner pixel, and constants stay constant up to the edges."""
    images = rand(1, 1, 9, 9)
    offsets = torch.arange(-3, 4, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / 2)
    weights = window[:, None] * window / window.sum() ** 2
    expected = (images[0, 0, 1:8, 1:8] * weights).sum()
    blurred = blur_only(std=1.0)(images, Noise(0, (0,)))
    assert float((blurred[0, 0, 4, 4] - expected).abs()) < 1e-12
    flat = blur_only(std=1.0)(torch.full_like(images, 0.25), Noise(0, (0,)))
    torch.testing.assert_close(flat, torch.full_like(images, 0.25), rtol=0, atol=1e-12)


def test_mean_logit() -> None:
    logits = randn(2, 5, 3)
    torch.testing.assert_close(MeanLogit(5).scores(logits), logits.mean(1))


class Small(nn.Module):
    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequential(), "Sequential: expected at least one purifier"),
        (lambda: Sequential(*[B.with_(rounds=200)] * 2), "Sequential: expected .*rounds"),
        (lambda: Mixed(B, B.with_(steps=STEPS[:2])), "Mixed: expected purifiers of one number"),
        (lambda: Averaged(B, n_paths=0), "Averaged: expected n_paths"),
        (lambda: FixedNoise(B, seed=-1), "FixedNoise: expected seed"),
        (
            lambda: FixedNoise(B.with_(gradient=Grafted())),
            "FixedNoise: expected a gradient route that takes images one by one",
        ),
        (
            lambda: FixedNoise(B).with_(gradient=Grafted()),
            "FixedNoise: expected a gradient route that takes images one by one",
        ),
        (lambda: Sequential(B)(XS * 3, NOISES), r"Sequential: expected images in \[0, 1\]"),
        (lambda: Mixed(B).with_(speed=2), "DiffusionPurifier.with_: expected names among"),
        (
            lambda: Resized(B, size=6)(XS.float(), NOISES),
            "DiffusionPurifier: expected images of the denoiser's dtype torch.float64",
        ),
        (
            lambda: Sequential(B, A)(XS.float(), NOISES),
            "DiffusionPurifier: expected images of the denoiser's dtype torch.float64",
        ),
        (lambda: likelihood(B.denoiser)(XS.float(), NOISES), "Optimised: expected images of the denoiser's dtype"),
        (
            lambda: Resized(B.with_(image_shape=(1, 4, 4)), size=6)(XS, NOISES),
            r"DiffusionPurifier: expected images of .*1, 4, 4",
        ),
        (
            lambda: next(Resized(B, size=6).trajectory(XS.float(), NOISES)),
            "DiffusionPurifier: expected images of the denoiser's",
        ),
        (lambda: likelihood(Small(), sigma_range=(0.6, 0.4)), "Optimised: expected highest sigma"),
        (lambda: likelihood(Small(), n_steps=0), "Optimised: expected n_steps"),
        (lambda: likelihood(Small()).with_(rounds=2), "Optimised.with_: expected names among"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


class Blended(Purifier):
    """Purifiers, one after another, of whose result only a share is taken: a composition that depura has not."""

    def __init__(self, *purifiers: Purifier, share: float = 1.0) -> None:
        super().__init__()
        self.purifiers = torch.nn.ModuleList(purifiers)
        self.share = share

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]):
        purified = images
        for part in self.inner:
            purified = yield from part.stages(purified, noise, rows)
            noise = noise.later(part.n_rounds)
        return images + self.share * (purified - images)


def test_a_composition_of_ones_own_is_copied_with_all_its_settings() -> None:
    half = Blended(A, B, share=0.5)
    expected = XS + 0.5 * (Sequential(A, B)(XS, NOISES) - XS)
    torch.testing.assert_close(half(XS, NOISES), expected, rtol=0, atol=1e-12)
    copied = half.map(lambda component: component)
    assert copied.share == 0.5
    assert torch.equal(copied(XS, NOISES), half(XS, NOISES))
    assert half.same_function(half.with_(gradient=StraightThrough()))
    assert not half.same_function(Blended(A, B))
    assert [stage.purifier for stage in half.stages_of(XS, NOISES)] == [A, B]
    assert [step.round for step in half.trajectory(XS, NOISES)][-1] == half.n_rounds - 1
    assert audit_gradient(Defence(half, TanhClassifier(16)), XS[:2]).light is Light.GREEN
