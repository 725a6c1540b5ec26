"""Fewer evaluations, same answer: draws that grow, and a warm start. Off, nothing changes; on, the end is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import depura
from attack_contract import EOT, INIT, B, bare, keeps_the_contract, labelled, random_defence
from depura._check import InputError
from depura.attacks.apgd import APGD, TargetedAPGD, WarmStart
from depura.attacks.attack import Candidates, Cheap
from depura.attacks.ensembles import Together
from depura.attacks.losses import targeted_margin
from depura.attacks.pgd import PGD
from depura.attacks.queries import COMMON, AdaptiveDraws, Queries, mean
from depura.attacks.threat import Ball
from depura.evaluation.demo import digits_purifier
from depura.evaluation.units import run_unit
from depura.noise import Noise
from depura.records.describe import describe
from slow import slow
from toys import rand, randn

BALL = Ball("linf", 0.1)
W = randn(1, 3, 3, seed=7)
ZEROS = torch.zeros(5, dtype=torch.int64)
FLAT = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64)


def draws_of(noise: Noise) -> list[int]:
    return [noise.draws] * len(noise) if isinstance(noise.draws, int) else list(noise.draws)


def two_classes(z: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(z), z], dim=1)


def same(a: Candidates, b: Candidates) -> bool:
    assert a.gradients is not None
    assert b.gradients is not None
    pairs = [(a.images, b.images), (a.loss, b.loss), (a.spent, b.spent), (a.finished, b.finished)]
    pairs += zip(a.gradients, b.gradients, strict=True)
    return all(torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0)) for x, y in pairs)


# --- Adaptive draws ---------------------------------------------------------------------------------------------------

EOT_MOST = 8
AGREE, LATE, NEVER = 100, 101, 102


def by_image(images: Tensor, noise: Noise) -> Tensor:
    """Gradients by image: the same in all draws; at the first point alike from four draws on, later always; at right
    angles in all draws."""
    flat, z = (images - 0.5).flatten(1), list[Tensor]()
    for row, (image, draw) in enumerate(zip(noise.images, draws_of(noise), strict=True)):
        point, j = divmod(draw, EOT_MOST) if draw < COMMON else (0, draw - COMMON)
        entry = {AGREE: 0, LATE: j % 2 if point == 0 else 0}.get(image, j)
        z.append(flat[row, entry % flat.shape[1]])
    return two_classes(torch.stack(z))


def test_levels_double_up_to_all_draws() -> None:
    assert AdaptiveDraws(16, 4).levels() == (4, 8, 16)
    assert AdaptiveDraws(20, 4).levels() == (4, 8, 16, 20)
    assert AdaptiveDraws(4, 4).levels() == (4,)
    assert AdaptiveDraws(1, 4).levels() == (1,)


@pytest.mark.parametrize("attack", [PGD(BALL, n_steps=3, eot=EOT_MOST), APGD(BALL, n_steps=2, eot=EOT_MOST)], ids=type)
def test_draws_grow_where_halves_disagree_and_never_fall(attack: PGD | APGD) -> None:
    """Three points each: agreement at two draws is enough, four at the first point stay four, none takes all."""
    ids = (AGREE, LATE, NEVER)
    grown = replace(attack, eot=AdaptiveDraws(EOT_MOST, 2, 0.9))
    init, eot = (replace(noise, images=ids) for noise in (INIT.take([0, 1, 2]), EOT.take([0, 1, 2])))
    found = grown(by_image, FLAT[:3], ZEROS[:3], init=init, eot=eot)
    assert found.spent[:, 0].tolist() == [3 * 2, 3 * 4, 3 * EOT_MOST]
    assert found.gradients is not None
    torch.testing.assert_close(found.gradients.agreement[0], torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    plain = attack(by_image, FLAT[:3], ZEROS[:3], init=init, eot=eot)
    assert plain.spent[:, 0].tolist() == [3 * EOT_MOST] * 3
    assert torch.equal(found.images[:, 2], plain.images[:, 2]), "all draws are those that are made without growth"
    assert torch.equal(found.spent[:, 1], plain.spent[:, 1])


def test_the_gradient_is_the_mean_of_the_draws_that_were_made() -> None:
    ids = (NEVER, AGREE, LATE)
    queries = Queries("test", by_image, FLAT[:3], ZEROS[:3], noise=replace(EOT.take([0, 1, 2]), images=ids))
    at, begun = torch.arange(3), torch.tensor([0, 4, 0])
    seen = queries.mean_gradient(
        FLAT[:3], depura.margin, AdaptiveDraws(EOT_MOST, 2, 0.5), number=0, combine=mean, drawn=begun, at=at
    )
    assert seen.drawn.tolist() == [EOT_MOST, 4, 4], "agreement does not undo what an image has come to"
    assert queries.spent.tolist() == [[EOT_MOST, 0], [4, 0], [4, 0]]
    expected = torch.zeros(3, 9, dtype=torch.float64)
    expected[0, :EOT_MOST], expected[1, 0], expected[2, :2] = 1 / EOT_MOST, 1.0, 0.5
    torch.testing.assert_close(seen.gradient.flatten(1), expected)


def test_no_gradient_at_all_is_no_agreement() -> None:
    def blind(images: Tensor, noise: Noise) -> Tensor:
        return two_classes(0 * images.flatten(1).sum(1))

    found = PGD(BALL, n_steps=2, eot=AdaptiveDraws(8, 2))(blind, FLAT, ZEROS, init=INIT, eot=EOT)
    assert found.spent[:, 0].tolist() == [16] * 5


@pytest.mark.parametrize(
    "attack",
    [
        PGD(BALL, n_steps=4, eot=4, n_restarts=2),
        APGD(BALL, n_steps=6, eot=4, finish=0.75),
        TargetedAPGD(BALL, n_steps=4, eot=4, n_targets=2, loss=targeted_margin),
    ],
    ids=type,
)
def test_as_many_draws_at_first_as_there_may_be_change_no_bit(attack: PGD | APGD | TargetedAPGD) -> None:
    model = random_defence((1, 4, 4))
    images, labels = labelled(model, (1, 4, 4))
    off = attack(model, images, labels, init=INIT, eot=EOT)
    assert same(off, replace(attack, eot=AdaptiveDraws(4, 4, 1.0))(model, images, labels, init=INIT, eot=EOT))
    assert not same(off, replace(attack, eot=AdaptiveDraws(4, 2, 0.01))(model, images, labels, init=INIT, eot=EOT))


def counting(model: depura.Defence) -> tuple[dict[int, int], object]:
    """A model that counts gradients by image."""
    counts = dict.fromkeys(EOT.images, 0)

    def asked(images: Tensor, noise: Noise) -> Tensor:
        if images.requires_grad:
            for image in noise.images:
                counts[image] += 1
        return model(images, noise)

    return counts, asked


@pytest.mark.parametrize(
    "attack",
    [
        PGD(Ball("linf", 0.3), n_steps=4, eot=AdaptiveDraws(7, 2, 0.3)),
        APGD(Ball("l2", 0.3), n_steps=6, eot=AdaptiveDraws(7, 2, 0.3), common=4),
        slow(
            TargetedAPGD(Ball("linf", 0.3), n_steps=4, eot=AdaptiveDraws(7, 2, 0.3), n_targets=2, loss=targeted_margin)
        ),
    ],
    ids=type,
)
def test_growth_keeps_the_contract_and_what_is_spent_is_what_is_asked(attack: PGD | APGD | TargetedAPGD) -> None:
    found = keeps_the_contract(attack)
    model = random_defence((1, 4, 4))
    counts, asked = counting(model)
    images, labels = labelled(model, (1, 4, 4))
    again = attack(asked, images, labels, init=INIT, eot=EOT)  # type: ignore[arg-type]
    assert again.spent[:, 0].tolist() == list(counts.values()) == found.spent[:, 0].tolist()
    assert len(set(counts.values())) > 1, "images differ in how many they need"
    assert max(counts.values()) <= attack.cost.gradients


# --- A warm start -----------------------------------------------------------------------------------------------------


class Steep:
    """Linear, with a surrogate of other weights; everything asked is written down."""

    def __init__(self, weights: Tensor, other: Tensor | None = None, *, bias: float = 0.0) -> None:
        self.weights, self.other, self.bias = weights, other, bias
        self.asked: list[tuple[str, bool, Tensor, set[int]]] = []
        self.shares: list[int] = []

    def answer(self, who: str, weights: Tensor, bias: float, images: Tensor, noise: Noise) -> Tensor:
        self.asked.append((who, images.requires_grad, images.detach().clone(), set(draws_of(noise))))
        return two_classes(((images - 0.5) * weights).flatten(1).sum(1) + bias)

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        return self.answer("exact", self.weights, self.bias, images, noise)

    def coarser(self, share: int):
        self.shares.append(share)
        other = self.weights if self.other is None else self.other
        return lambda images, noise: self.answer("cheap", other, 5.0, images, noise)


COLD = APGD(BALL, n_steps=4, eot=2, n_restarts=2, common=3)
WARM = WarmStart(COLD, n_steps=6, share=7)


def test_a_warm_start_ends_with_all_exact_steps() -> None:
    model = Steep(W)
    found = WARM(model, FLAT, ZEROS, init=INIT, eot=EOT)
    assert model.shares == [7]
    order = "".join(who[0] for who, *_ in model.asked)
    looks = replace(COLD, n_steps=6).n_comparisons
    cheap, exact = 7 + looks, 5 + COLD.n_comparisons
    assert order == 2 * ("c" * cheap + "e" * exact)
    assert [g for who, g, *_ in model.asked if who == "exact"].count(True) == 2 * 5
    seen = torch.cat([x for who, _, x, _ in model.asked if who == "exact"])
    for candidate in found.images.flatten(0, 1):
        assert bool((seen == candidate).flatten(1).all(1).any()), "the model was asked about every candidate"
    assert found.spent.tolist() == [list(WARM.cost[:2])] * 5 == [[2 * 5 * 2, 2 * COLD.n_comparisons * 3]] * 5
    assert found.surrogate is not None
    assert found.surrogate.tolist() == [[2 * 7 * 2, 2 * looks * 3]] * 5
    assert WARM.cost.surrogates == (Cheap(7, 2 * 7 * 2, 2 * looks * 3),)
    assert found.loss.shape == (2 * 5, 5), "losses are the model's own"


def test_the_attack_begins_where_the_surrogate_ends_and_with_a_short_step() -> None:
    """The surrogate climbs the other way: its best point is one corner of the ball, the model's the opposite one."""
    model = Steep(W, -W)
    WARM(model, FLAT, ZEROS, init=INIT, eot=EOT)
    first, second = [x[::2] for who, g, x, _ in model.asked if who == "exact" and g][:2]
    torch.testing.assert_close(first, FLAT - 0.1 * W.sign(), rtol=0, atol=1e-12)
    torch.testing.assert_close(second, FLAT - (0.1 - 0.25 * 0.2) * W.sign(), rtol=0, atol=1e-12)


def test_nothing_is_finished_on_the_surrogates_word_and_no_draw_is_shared() -> None:
    model = Steep(W, bias=-5.0)  # the surrogate is always wrong, the model never
    found = replace(WARM, attack=replace(COLD, finish=0.5))(model, FLAT, ZEROS, init=INIT, eot=EOT)
    assert found.finished.tolist() == [-1] * 5
    ascended = {who: set().union(*(d for w, g, _, d in model.asked if w == who and g)) for who in ("exact", "cheap")}
    assert ascended["exact"] == set(range(2 * 5 * 2))
    assert ascended["cheap"] == set(range(2 * 5 * 2, 2 * 5 * 2 + 2 * 7 * 2))


def test_without_a_warm_start_no_surrogate_is_asked() -> None:
    model = Steep(W)
    found = COLD(model, FLAT, ZEROS, init=INIT, eot=EOT)
    assert found.surrogate is None
    assert {who for who, *_ in model.asked} == {"exact"}
    assert COLD.cost.surrogates == ()


@pytest.mark.parametrize("norm", ["linf", slow("l2"), slow("l1")])
def test_a_warm_start_keeps_the_contract(norm: str) -> None:
    attack = WarmStart(APGD(Ball(norm, 0.3), n_steps=4, eot=2, n_restarts=2, common=3), 5, share=2)  # type: ignore[arg-type]
    keeps_the_contract(attack)


def test_both_levers_in_an_ensemble_are_counted_together() -> None:
    model, grown = random_defence((1, 4, 4)), replace(WARM, attack=replace(COLD, eot=AdaptiveDraws(4, 2, 0.9)))
    images, labels = labelled(model, (1, 4, 4))
    both = Together((grown, WARM, COLD))
    found = both(model, images, labels, init=INIT, eot=EOT)
    assert found.surrogate is not None
    assert both.cost.surrogates == grown.cost.surrogates + WARM.cost.surrogates
    most = torch.tensor([cost[1:] for cost in both.cost.surrogates]).sum(0)
    assert bool((found.surrogate <= most).all())
    assert bool((found.surrogate >= torch.tensor(WARM.cost.surrogates[0][1:])).all())


def test_refusals() -> None:
    with pytest.raises(InputError, match="WarmStart: expected a model with a surrogate"):
        WARM(lambda images, noise: images.flatten(1)[:, :2], FLAT, ZEROS, init=INIT, eot=EOT)
    with pytest.raises(InputError, match=r"Defence\.coarser: expected a defence with a purifier"):
        WARM(bare((1, 4, 4)), rand(B, 1, 4, 4, seed=1), ZEROS, init=INIT, eot=EOT)
    with pytest.raises(InputError, match="AdaptiveDraws: expected start at least 2"):
        AdaptiveDraws(start=1)
    with pytest.raises(InputError, match=r"AdaptiveDraws: expected agreement in \(0, 1\]"):
        AdaptiveDraws(agreement=0.0)
    with pytest.raises(InputError, match="WarmStart: expected share at least 2"):
        WarmStart(COLD, share=1)
    with pytest.raises(InputError, match=r"WarmStart: expected first in \(0, 1\]"):
        WarmStart(COLD, first=0.0)


def test_the_record_has_the_levers_and_the_plan_bounds_what_they_cost() -> None:
    """Walks of four steps and of two: every evaluation of the network is one of these steps of a counted draw."""
    defence = depura.Defence(digits_purifier(n_steps=4), depura.digits_classifier())
    attack = WarmStart(APGD(Ball("linf", 0.2), n_steps=3, eot=AdaptiveDraws(4, 2, 0.5), common=2), 2, share=2)
    row = depura.AttackRun("adaptive", "levers", attack, defence, defence, "adaptive")
    data = depura.load_digits("test").first(3)
    study = depura.Study("levers", data, defence, (row,), select_draws=2, report_draws=2, pictures=0)
    key = next(key for key in study.units() if key.row == "adaptive")
    unit = run_unit(study, key)
    spent, cheap = unit.arrays["spent"].sum(0), unit.arrays["spent_surrogate"].sum(0)
    compared = 3 * attack.cost.at_once  # gradients: exact, BPDA and a fifth of the walk, which is one step
    forward = 4 * int(spent.sum()) + 2 * int(cheap.sum()) + compared * (4 + 4 + 1)
    backward = 4 * int(spent[0]) + 2 * int(cheap[0]) + compared * (4 + 1)
    assert unit.facts.evaluations.attack == (forward, backward)
    planned = next(price for price in depura.plan(study) if price.row == "adaptive")
    looked = unit.facts.evaluations.checks[1]  # at the examples
    assert backward + looked <= planned.backward == 4 * 3 * 16 + 2 * 3 * 12 + compared * (4 + 1) + looked
    settings = describe(attack)
    inner = settings["attack"]["eot"]
    assert (inner["most"], inner["start"], inner["agreement"]) == (4, 2, 0.5)
    assert (settings["n_steps"], settings["share"], settings["first"]) == (2, 2, 0.25)
    assert "through a surrogate of one step for every 2" in str(attack.cost)
