"""What is not finite is an outcome of its own: never right, counted by image, and nobody else's business."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depura
from attack_contract import EOT, INIT, B, Break, Breaking, bears_what_is_not_finite, draws_of, unbroken, where
from depura._check import InputError
from depura.attacks.apgd import APGD, TargetedAPGD, WarmStart
from depura.attacks.attack import Attack, Candidates, Cost
from depura.attacks.baselines import CleanImages
from depura.attacks.catalogue import CATALOGUE, Entry, threat
from depura.attacks.ensembles import InTurn
from depura.attacks.fab import FAB
from depura.attacks.losses import cross_entropy, margin, targeted_margin
from depura.attacks.pgd import PGD, Momentum
from depura.attacks.queries import AdaptiveDraws, Queries
from depura.attacks.selective import Selective, shared_step
from depura.attacks.spsa import SPSA
from depura.attacks.square import Square
from depura.attacks.stadv import StAdv
from depura.attacks.threat import Ball
from depura.attacks.transfer import Transfer
from depura.defence import Defence, MeanLogit, MeanProb, Rule, Single, Vote
from depura.diffusion.schedules import Step
from depura.diffusion.solvers import from_input
from depura.evaluation.diagnostics import Watched, compression, identity_difference, pinned_predictions
from depura.evaluation.scoring import choose, score
from depura.gradients import Adjoint, Deviated, Direct, GradientRoute, Grafted, Relaxed, StoredState, StraightThrough
from depura.methods.agdm import agdm
from depura.noise import BLOCK, Noise, Stream
from depura.training.classifier import accuracy
from shrunk import shrunk
from toys import TanhClassifier, purifier_of, rand, tanh_eps

NAN, INF = math.nan, math.inf
IDS = (7, 8, 9, 10)
VICTIM = 9
ROW = IDS.index(VICTIM)
OTHERS = [k for k in range(len(IDS)) if k != ROW]
IMAGES = rand(4, 1, 4, 4, seed=1)
NOISE = Noise(3, IDS, draws=2, stream=Stream.REPORT)
LABELS = torch.tensor([0, 1, 0, 2])


@dataclass(frozen=True)
class Hole:
    """Walks of one image begin at a state with one pixel that is not finite, on some draws."""

    value: float = NAN
    draws: Callable[[int], bool] = lambda _: True

    def __call__(self, x_in: Tensor, step: Step, noise: Noise) -> Tensor:
        x = from_input(x_in, step, noise)
        rows = [i == VICTIM and self.draws(d) for i, d in zip(noise.images, draws_of(noise), strict=True)]
        pixel = torch.zeros_like(x, dtype=torch.bool)
        pixel[torch.tensor(rows), :, 1, 2] = True
        return torch.where(pixel, self.value, x)


class Blind(nn.Module):
    """A classifier that takes pixels that are not finite for grey ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TanhClassifier(16)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(torch.where(images.isfinite(), images, 0.5))


@dataclass(frozen=True)
class MeanTanh:
    """A rule of one's own, which takes numbers only."""

    n_draws: int = 3

    def scores(self, logits: Tensor) -> Tensor:
        assert bool(logits.isfinite().all()), "a rule is handed numbers"
        return torch.tanh(logits).mean(1)


RULES: tuple[Rule, ...] = (Single(), Vote(3), MeanProb(3), MeanLogit(3), MeanTanh())


def defence(
    start=from_input, classifier: Callable[[Tensor], Tensor] | None = None, rule: Rule | None = None, **parts
) -> Defence:
    purifier = purifier_of("EulerMaruyamaVP", start=start, **parts)
    return Defence(purifier, TanhClassifier(16) if classifier is None else classifier, rule=rule)


def gradient(model: Defence, *, twice: bool = False) -> tuple[Tensor, Tensor]:
    """Scores, and the gradient of their sum in some weights; or of that gradient's square."""
    leaf = IMAGES.clone().requires_grad_()
    scores = model(leaf, NOISE)
    total = (scores * torch.arange(1.0, scores.shape[1] + 1, dtype=scores.dtype)).sum()
    (found,) = torch.autograd.grad(total, leaf, create_graph=twice)
    if twice:
        (found,) = torch.autograd.grad(found[OTHERS].square().sum(), leaf)
    return scores.detach(), found


# the defence


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_pixel_that_is_not_finite_leaves_no_scores_though_the_classifier_hides_it(rule: Rule, value: float) -> None:
    whole = defence(classifier=Blind(), rule=rule)(IMAGES, NOISE)
    broken = defence(Hole(value), Blind(), rule)
    assert bool(Blind()(broken.purifier(IMAGES, NOISE)).isfinite().all())
    found = broken(IMAGES, NOISE)
    assert bool(found[ROW].isnan().all())
    assert torch.equal(found[OTHERS], whole[OTHERS])
    assert found.dtype == whole.dtype


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_logit_that_is_not_finite_leaves_no_scores_and_no_rule_sees_it(rule: Rule, value: float) -> None:
    """One class of one draw of the three, of the image whose purification is darkest."""
    model = defence(rule=rule)
    with torch.no_grad():
        tape = NOISE.split(rule.n_draws)
        purified = model.purifier(IMAGES.repeat_interleave(rule.n_draws, dim=0), tape)
    dark = purified.flatten(1).sum(1)
    worst = int(dark.argmin())

    class Breaks(TanhClassifier):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            broken = (images.flatten(1).sum(1) <= dark[worst])[:, None] & (torch.arange(3) == 1)
            return torch.where(broken, value, logits)

    found, whole = model.with_(classifier=Breaks(16))(IMAGES, NOISE), model(IMAGES, NOISE)
    rows = [k for k in range(4) if k != worst // rule.n_draws]
    assert bool(found[worst // rule.n_draws].isnan().all())
    assert torch.equal(found[rows], whole[rows])


def test_one_draw_of_a_vote_is_enough() -> None:
    """Sub-draw 7 is the middle one of draw 2."""
    model = defence(Hole(draws=lambda draw: draw == 7), rule=MeanTanh())
    assert model(IMAGES, NOISE).isnan().any(1).tolist() == [k == ROW for k in range(4)]
    assert not bool(model(IMAGES, NOISE.draw(1)).isnan().any())
    assert not bool(model(IMAGES, NOISE.draw(3)).isnan().any())


ROUTES: tuple[GradientRoute, ...] = (
    Direct(),
    StoredState(),
    StoredState(segment=1),
    Adjoint(),
    StraightThrough(),
    Grafted(),
    Relaxed(),
    Deviated(0.5),
)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("route", ROUTES, ids=repr)
def test_other_images_have_the_same_gradient(route: GradientRoute, rule: Rule) -> None:
    for classifier in (TanhClassifier(16), Blind()):
        whole, expected = gradient(defence(classifier=classifier, rule=rule, gradient=route))
        scores, found = gradient(defence(Hole(), classifier, rule, gradient=route))
        assert torch.equal(scores[OTHERS], whole[OTHERS])
        assert torch.equal(found[OTHERS], expected[OTHERS])
        assert bool(expected.isfinite().all())


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_second_derivatives_of_other_images_are_the_same(rule: Rule) -> None:
    _, expected = gradient(defence(rule=rule, gradient=Direct()), twice=True)
    _, found = gradient(defence(Hole(), rule=rule, gradient=Direct()), twice=True)
    assert torch.equal(found[OTHERS], expected[OTHERS])
    assert bool(expected[OTHERS].isfinite().all())
    assert bool(expected[OTHERS].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_scores_are_what_the_rule_makes_of_the_logits(rule: Rule, dtype: torch.dtype) -> None:
    """To the last bit, in its dtype; and so is the gradient, of which plain autograd is the measure."""

    def classify(images: Tensor) -> Tensor:
        return TanhClassifier(16)(images).to(dtype)

    model, n = defence(classifier=classify, rule=rule, gradient=Direct()), rule.n_draws
    scores, found = gradient(model)
    leaf = IMAGES.clone().requires_grad_()
    logits = classify(model.purifier(leaf.repeat_interleave(n, dim=0), NOISE.split(n)))
    plain = rule.scores(logits.reshape(4, n, 3))
    (expected,) = torch.autograd.grad((plain * torch.arange(1.0, 4.0, dtype=dtype)).sum(), leaf)
    assert scores.dtype == plain.dtype
    assert torch.equal(scores, plain)
    assert torch.equal(found, expected)


def test_a_bare_classifier_is_passed_on_as_it_is() -> None:
    logits = torch.tensor([[NAN, 1.0], [INF, 0.0], [0.0, 1.0], [2.0, 1.0]])
    assert Defence(None, lambda images: logits)(IMAGES) is logits


@pytest.mark.parametrize(
    ("classifier", "rule", "said"),
    [
        (lambda x: x.flatten(1)[:, 0], None, r"a classifier giving logits \(4, K\), got shape \(4,\)"),
        (lambda x: {"scores": x.flatten(1)}, None, r"a classifier giving logits \(4, K\), got dict"),
        (
            lambda x: (x.flatten(1) > 0.5).long(),
            None,
            r"a classifier giving logits of floating point, got torch\.int64",
        ),
        (None, lambda logits: logits[:, 0, 0], r"a rule giving scores \(4, K\), got shape \(4,\)"),
        (None, lambda logits: logits, r"a rule giving scores \(4, K\), got shape \(4, 1, 3\)"),
        (None, lambda logits: logits.tolist(), r"a rule giving scores \(4, K\), got list"),
        (None, lambda logits: (logits > 0).sum(1), r"a rule giving scores of floating point, got torch\.int64"),
    ],
)
def test_what_is_no_answer_is_refused(classifier, rule, said: str) -> None:
    class Own:
        n_draws = 1

        def scores(self, logits: Tensor) -> Tensor:
            return rule(logits)

    with pytest.raises(InputError, match=f"^Defence: expected {said}"):
        defence(classifier=classifier, rule=None if rule is None else Own())(IMAGES, NOISE)


# scoring


class Answers(nn.Module):
    """Logits by image and draw, from a table; images and noise are only looked at for who is asked."""

    def __init__(self, table: dict[tuple[int, int], list[float]], *, by_pixel: bool = False) -> None:
        super().__init__()
        self.table, self.by_pixel = table, by_pixel
        self.asked: list[tuple[int, int]] = []

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        who = list(zip(noise.images, draws_of(noise), strict=True))
        self.asked += who
        return torch.tensor([self.table[w] for w in who], dtype=torch.float64)


TABLE = {
    (1, 0): [2.0, 1.0, 0.0],
    (1, 1): [NAN, 1.0, 0.0],
    (1, 2): [0.0, 4.0, 1.0],
    (2, 0): [NAN, NAN, NAN],
    (2, 1): [INF, 0.0, 0.0],
    (2, 2): [0.0, 0.0, -INF],
    (3, 0): [0.0, 1.0, 5.0],
    (3, 1): [0.0, 1.0, 6.0],
    (3, 2): [0.0, 1.0, 7.0],
}


def test_scores_count_what_is_not_finite_as_wrong() -> None:
    """Image 2 is of class 0, which is what the argmax of NaN would be."""
    labels = torch.tensor([0, 0, 2])
    noise = Noise(0, (1, 2, 3), stream=Stream.REPORT)
    found = score(Answers(TABLE), rand(3, 1, 2, 2), labels, noise, draws=range(3))
    assert found.predictions.tolist() == [[0, -1, 1], [-1, -1, -1], [2, 2, 2]]
    assert found.errors(labels).tolist() == [2, 3, 0]
    assert found.not_finite.tolist() == [1, 3, 0]
    assert (found.predictions.dtype, found.not_finite.dtype) == (torch.int64, torch.int64)
    np.testing.assert_array_equal(found.margins.numpy(), [(-1.0 + 4.0) / 2, NAN, (-4.0 - 5.0 - 6.0) / 3])


def test_a_margin_that_overflows_is_not_finite() -> None:
    """The logits are numbers in float32; their difference is none."""
    labels = torch.tensor([1])
    huge = Defence(None, lambda images: torch.tensor([[3e38, -3e38]]).expand(len(images), 2))
    found = score(huge, rand(1, 1, 2, 2).float(), labels, Noise(0, (1,), stream=Stream.REPORT), draws=range(4))
    assert found.predictions.tolist() == [[-1] * 4]
    assert found.not_finite.tolist() == [4]
    assert found.margins.isnan().tolist() == [True]


def chosen(*candidates: list[list[float]]) -> tuple[int, list[int], list[int], float]:
    """Which candidate is chosen of one image of class 0, wrong and broken draws of each, and the margin."""
    images = torch.arange(len(candidates)).double().reshape(-1, 1, 1, 1, 1) / 10

    class Reads(nn.Module):
        def forward(self, images: Tensor, noise: Noise) -> Tensor:
            which = [round(10 * float(x)) for x in images.flatten()]
            return torch.tensor([candidates[k][d] for k, d in zip(which, draws_of(noise), strict=True)]).double()

    noise = Noise(0, (1,), stream=Stream.SELECT)
    found = choose(Reads(), images, torch.tensor([0]), noise, draws=range(len(candidates[0])))
    assert torch.equal(found.images, images[found.which, 0])
    return int(found.which), found.errors[:, 0].tolist(), found.not_finite[:, 0].tolist(), float(found.margins)


RIGHT, WRONG, VERY, BROKEN = [1.0, 0.0], [0.0, 1.0], [0.0, 9.0], [NAN, 0.0]


def test_the_candidate_with_most_wrong_draws_is_chosen_broken_ones_among_them() -> None:
    assert chosen([RIGHT, WRONG], [WRONG, VERY], [BROKEN, RIGHT]) == (1, [1, 2, 1], [0, 0, 1], 5.0)
    assert chosen([RIGHT, RIGHT], [RIGHT, RIGHT], [BROKEN, RIGHT])[:3] == (2, [0, 0, 1], [0, 0, 1])
    assert chosen([WRONG, BROKEN], [VERY, WRONG], [VERY, BROKEN]) == (2, [2, 2, 2], [1, 0, 1], 9.0)


def test_no_margin_is_the_largest_of_a_tie() -> None:
    which, errors, broken, margin_of = chosen([VERY, VERY], [BROKEN, BROKEN], [BROKEN, BROKEN])
    assert (which, errors, broken) == (1, [2, 2, 2], [0, 2, 2])
    assert math.isnan(margin_of)
    assert chosen([BROKEN, BROKEN], [VERY, VERY])[0] == 0
    assert chosen([BROKEN, RIGHT], [VERY, WRONG])[0] == 1, "of fewer wrong draws it is not"


def test_what_an_attack_saw_counts_broken_answers_as_errors() -> None:
    watched = Watched(Answers(TABLE), (3, 2, 1), torch.tensor([2, 0, 0]))
    images = rand(3, 1, 2, 2)
    for draw in range(3):
        watched(images, Noise(0, (1, 2, 3), draws=draw))
    assert watched.errors.tolist() == [0, 3, 2]
    assert watched.first.tolist() == [0, 1, 2]


def test_a_purifier_that_does_nothing_before_a_classifier_that_breaks_down() -> None:
    """Images of a level above a half have no logits; they are moved by rounding only, so both agree on that."""

    def classify(images: Tensor) -> Tensor:
        level = images.flatten(1).mean(1)
        return torch.where((level > 0.5)[:, None], torch.nan, torch.stack([level, 1 - level], 1))

    images = torch.linspace(0.01, 0.95, 11, dtype=torch.float64)[:, None, None, None].expand(11, 1, 4, 4)
    assert not torch.equal((2 * images - 1 + 1) / 2, images)
    assert 0 < int(classify(images).isnan().any(1).sum()) < 11
    found = identity_difference(Defence(None, classify), images, seed=0)
    assert (found["images"], found["predictions"]) == (11, 0)
    assert 0 < found["logits"] < 1e-12, "a number, though some logits are none"

    def edge(images: Tensor) -> Tensor:
        """What comes back from [-1, 1] is another number than 0.1, of class 0."""
        level = images.flatten(1).mean(1)
        return torch.where((level == level.new_tensor(0.1))[:, None], torch.nan, torch.stack([1 - level, level], 1))

    level = torch.full((2, 1, 4, 4), 0.1, dtype=torch.float64)
    level[1] = 0.25
    assert float((2 * level[:1] - 1 + 1).mean() / 2) != 0.1
    assert identity_difference(Defence(None, edge), level, seed=0)["predictions"] == 1


def test_indicators_of_a_broken_purification_are_no_numbers() -> None:
    model = defence(Hole(), Blind())
    pinned = pinned_predictions(model, IMAGES, NOISE)
    assert pinned.tolist() == pinned_predictions(defence(classifier=Blind()), IMAGES, NOISE).tolist(), "image id 0"
    zero = pinned_predictions(Defence(model.purifier.with_(start=HoleAtZero()), Blind()), IMAGES, NOISE)
    assert zero.tolist() == [-1] * 4
    for value in (NAN, INF):
        ratio = compression(defence(Hole(value), Blind()), IMAGES, (IMAGES + 0.1).clamp(0, 1), NOISE)
        assert ratio.isnan().tolist() == [k == ROW for k in range(4)]


def test_a_perturbation_that_grows_without_bound_has_no_ratio() -> None:
    class Overflows(nn.Module):
        def purify(self, images: Tensor, noise: Noise) -> Tensor:
            return torch.where(images > 1, torch.inf, images)

    class Around:
        purifier = Overflows()

    moved = 0.9 * IMAGES
    moved[ROW, 0, 0, 0] = 1.5
    ratio = compression(Around(), IMAGES, moved, NOISE)  # type: ignore[arg-type]
    assert ratio.isnan().tolist() == [k == ROW for k in range(4)]


@dataclass(frozen=True)
class HoleAtZero(Hole):
    """The hole is in the walks of image id 0, whose tape pinned predictions are made on."""

    def __call__(self, x_in: Tensor, step: Step, noise: Noise) -> Tensor:
        return super().__call__(x_in, step, replace(noise, images=(VICTIM,) * len(noise)))


def test_no_accuracy_by_answers_that_are_not_finite() -> None:
    class Empty(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.where(images.flatten(1)[:, :1] > 0.5, torch.nan, torch.tensor([1.0, 0.0]))

    images = torch.tensor([0.1, 0.9, 0.2, 0.8]).reshape(4, 1, 1, 1)
    assert accuracy(Empty(), images, torch.zeros(4, dtype=torch.int64)) == 0.5


def test_a_guide_without_a_class_for_an_image_leaves_no_purified_image() -> None:
    """There is no label to go by, and class 0 is none. Other images are as ever."""
    head = TanhClassifier(16, seed=32)

    class Partly(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            known = (images.detach() - IMAGES[ROW]).flatten(1).abs().amax(1) > 1e-9
            return torch.where(known[:, None], head(images), torch.nan)

    def purified(classifier: Callable[[Tensor], Tensor]) -> Tensor:
        return agdm(tanh_eps(), guide=classifier, features=nn.Flatten(), scale=5.0, n_noise=4)(IMAGES, NOISE)

    found, whole = purified(Partly()), purified(head)
    assert torch.equal(found[OTHERS], whole[OTHERS])
    assert bool(found[ROW].isnan().all())


# attacks


SIZES = {"linf": 0.3, "l2": 1.0, "l1": 3.0, "flow": 0.3, "perceptual": 0.1}
CASES = [(entry, norm) for entry in CATALOGUE for norm in entry.norms]
BREAKS: dict[str, Break] = {
    "no number": where(102),
    "infinite": where(102, INF),
    "one class": where(102, column=3),
    "minus infinity for one class": where(102, -INF, column=1),
    "every other draw": where(102, draws=lambda draw: draw % 2 == 1),
    "the common tape": where(102, draws=lambda draw: draw >= BLOCK),
    "all but the common tape": where(102, draws=lambda draw: draw < BLOCK),
}


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize(("entry", "norm"), CASES, ids=[f"{entry.name}-{norm}" for entry, norm in CASES])
def test_attacks_bear_a_model_that_breaks_down_on_one_image(entry: Entry, norm: str, broken: str) -> None:
    attack = shrunk(entry.build(threat(norm, SIZES[norm])), n_steps=4, n_queries=30, n_points=5)
    deterministic = entry.name in ("fab", "standard")
    if deterministic and broken == "every other draw":
        pytest.skip("another answer on another draw is no deterministic model")
    bears_what_is_not_finite(attack, BREAKS[broken], row=2, randomised=not deterministic)


OTHER_ATTACKS: dict[str, Attack] = {
    "finished early": APGD(Ball("linf", 0.4), n_steps=5, eot=2, common=4, finish=0.5, n_restarts=2),
    "finished early, pgd": PGD(Ball("linf", 0.4), n_steps=5, eot=2, common=4, finish=0.5, n_restarts=2),
    "finished early, square": Square(Ball("linf", 0.4), n_queries=30, eot=2, renew=5, finish=0.5, common=4),
    "finished early, spsa": SPSA(Ball("linf", 0.4), n_steps=4, n_pairs=3, finish=0.5, common=4),
    "finished early, selective": Selective(Ball("linf", 0.4), n_steps=4, eot=3, n_restarts=2, finish=0.5, common=4),
    "growing": APGD(Ball("linf", 0.3), n_steps=3, eot=AdaptiveDraws(8, 2), common=4),
    "warm": WarmStart(APGD(Ball("linf", 0.3), n_steps=3, eot=2, common=4), 3, share=2),
    "nesterov": PGD(Ball("l2", 1.0), n_steps=4, eot=2, momentum=Momentum(0.9, nesterov=True)),
    "ranked": Transfer(PGD(Ball("linf", 0.3), n_steps=2), TanhClassifier(16, 5), keep=1, eot=3),
    "unchanged": CleanImages(Ball("linf", 0.3)),
}


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("name", OTHER_ATTACKS)
def test_so_do_attacks_with_other_settings(name: str, broken: str) -> None:
    bears_what_is_not_finite(OTHER_ATTACKS[name], BREAKS[broken], row=2)


def test_a_broken_draw_has_no_loss_and_no_gradient_and_is_wrong() -> None:
    """Whatever the loss looks at: a target's logit and the label's are numbers here, a third class's is none."""
    images, labels = rand(B, 1, 4, 4, seed=1), torch.zeros(B, dtype=torch.int64)
    targets = torch.ones_like(labels)
    for loss, more in ((margin, {}), (cross_entropy, {}), (targeted_margin, {"targets": targets})):
        made = [
            Queries("attack", Breaking((1, 4, 4), broken, randomised=True), images, labels, noise=EOT).gradient(
                images, loss, draws=range(4), **more
            )
            for broken in (where(102, column=3, draws=lambda draw: draw == 1), unbroken)
        ]
        found, whole = made
        at = torch.zeros(B, 4, dtype=torch.bool)
        at[2, 1] = True
        assert bool(found.losses[at].isnan().all())
        assert bool(found.gradients[at].isnan().all())
        assert bool(found.wrong[at].all())
        for broken, sound in zip(found, whole, strict=True):
            assert torch.equal(broken[~at], sound[~at])


def first_look_fails(attack: Attack, n: int) -> tuple[Candidates, Breaking, Tensor, Tensor]:
    """An attack on a deterministic model that gives no numbers for one image on the first n draws."""
    model = Breaking((1, 4, 4), where(102, draws=lambda draw: draw < n), randomised=False)
    images = rand(B, 1, 4, 4, seed=1)
    whole = Breaking((1, 4, 4), unbroken, randomised=False)
    labels = whole(images, EOT).argmax(1)
    return attack(model, images, labels, init=INIT, eot=EOT), whole, images, labels


@pytest.mark.parametrize(
    ("attack", "which"),
    [
        (APGD(Ball("linf", 0.1), n_steps=8, common=0), 1),
        (APGD(Ball("l2", 0.3), n_steps=8, common=0), 1),
        (APGD(Ball("l1", 1.0), n_steps=8, common=0), 1),
        (PGD(Ball("linf", 0.1), n_steps=8), 1),
        (Selective(Ball("linf", 0.1), n_steps=8, eot=1, n_restarts=1), 1),
    ],
    ids=["apgd-linf", "apgd-l2", "apgd-l1", "pgd", "selective"],
)
def test_the_best_point_is_one_with_a_loss(attack: Attack, which: int) -> None:
    """At the start there is none. Of the points that come after it, the best is the one with the largest."""
    found, whole, _, labels = first_look_fails(attack, 1)
    assert found.loss[0].isnan().tolist() == [k == 2 for k in range(B)]
    later = found.loss[1:, 2]
    assert bool(later.isfinite().all())
    with torch.no_grad():
        best = margin(whole(found.images[which], EOT), labels)
    torch.testing.assert_close(best, found.loss.nan_to_num(nan=-INF).amax(0), rtol=0, atol=1e-12)
    assert float(best[2]) > float(later[0]), "it climbed"


def test_the_settled_point_is_one_with_a_loss() -> None:
    """At the start the common tape gives no number for one image; at the points that it settles on later, it does."""
    attack = APGD(Ball("linf", 0.1), n_steps=8, common=2)
    looks: list[int] = []

    def broken(logits: Tensor, noise: Noise) -> Tensor:
        looks.append(int(draws_of(noise)[0] >= BLOCK))
        if not looks[-1] or sum(looks) > 1:
            return logits
        return torch.where(torch.tensor([i == 102 for i in noise.images])[:, None], torch.nan, logits)

    images = rand(B, 1, 4, 4, seed=1)
    whole = Breaking((1, 4, 4), unbroken, randomised=False)
    labels = whole(images, EOT).argmax(1)
    found = attack(Breaking((1, 4, 4), broken, randomised=False), images, labels, init=INIT, eot=EOT)
    with torch.no_grad():
        settled = margin(whole(found.images[2], EOT), labels)
    torch.testing.assert_close(settled, found.loss.amax(0), rtol=0, atol=1e-12)


def test_the_label_is_no_target_though_other_logits_are_minus_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four other classes are aimed at. Class 1, which has no finite logit, comes last."""
    aimed: list[list[int]] = []

    def spy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        aimed.append(targets.tolist())
        return targeted_margin(logits, labels, targets)

    monkeypatch.setattr("depura.attacks.fab.targeted_margin", spy)
    images, ball = rand(1, 1, 4, 4, seed=1), Ball("linf", 0.01)
    init, eot = INIT.take([2]), EOT.take([2])
    attacks: dict[str, Attack] = {
        "apgd": TargetedAPGD(ball, n_steps=1, n_targets=4, common=1, loss=spy),
        "fab": FAB(ball, n_steps=1, n_targets=4, finish=None),
    }
    for label in (0, 4):
        for name, attack in attacks.items():
            aimed.clear()
            model = Breaking((1, 4, 4), where(102, -INF, column=1), randomised=False)
            found = attack(model, images, torch.tensor([label]), init=init, eot=eot)
            (order,) = zip(*aimed, strict=True)
            assert list(dict.fromkeys(order))[-1] == 1, name
            assert set(order) == {0, 1, 2, 3, 4} - {label}, name
            if name == "fab":
                assert bool(found.loss.isnan().all()), "no logits, no margin"


def test_shared_steps_are_made_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(ball, losses: Tensor, gradients: Tensor, **more):
        assert bool(losses.isfinite().all())
        assert bool(gradients.isfinite().all())
        return shared_step(ball, losses, gradients, **more)

    monkeypatch.setattr("depura.attacks.selective.shared_step", checked)
    attack = Selective(Ball("linf", 0.1), n_steps=3, eot=3, n_restarts=1)
    bears_what_is_not_finite(attack, where(102, draws=lambda draw: draw % 3 == 1), row=2)


def test_square_goes_on_after_a_renewal_without_a_loss() -> None:
    """Draws 0 are the start's; draw 1 is that of the first renewal, and on it the best point has no loss."""
    attack = Square(Ball("linf", 0.3), n_queries=40, renew=20)
    model = Breaking((1, 4, 4), unbroken, randomised=False)
    asked: list[int] = []

    def broken(logits: Tensor, noise: Noise) -> Tensor:
        """The first question about draw 1, which the renewal asks, has no answer."""
        rows = torch.tensor([i == 102 and d == 1 for i, d in zip(noise.images, draws_of(noise), strict=True)])
        asked.append(int(rows.any()))
        return torch.where(rows[:, None] & (sum(asked) == 1), torch.nan, logits)

    images = rand(B, 1, 4, 4, seed=1)
    labels = model(images, EOT).argmax(1)
    model.broken = broken
    found = attack(model, images, labels, init=INIT, eot=EOT)
    with torch.no_grad():
        last = margin(Breaking((1, 4, 4), unbroken, randomised=False)(found.images[0], EOT), labels)
    torch.testing.assert_close(last[2], found.loss[-20:, 2].amax(), rtol=0, atol=1e-12)
    assert float(last[2]) > float(found.loss[-20, 2]), "proposals after the renewal were taken"


def test_targets_after_one_without_a_margin_are_looked_at() -> None:
    """All draws of the first target's point are broken, so all are wrong; the next one's are so and have a margin."""
    attack = TargetedAPGD(Ball("linf", 1.0), n_steps=3, n_targets=2, common=2, loss=targeted_margin)
    images = rand(B, 1, 4, 4, seed=1)
    whole = Breaking((1, 4, 4), unbroken, randomised=False)
    labels = whole(images, EOT).argmax(1)
    plain = attack(whole, images, labels, init=INIT, eot=EOT).images[0]
    looks: list[int] = []

    def broken(logits: Tensor, noise: Noise) -> Tensor:
        """Call 2 + n_comparisons on common random numbers is the one that judges the first target's point."""
        looks.append(int(draws_of(noise)[0] >= BLOCK))
        if not looks[-1] or sum(looks) != 2 + attack._run().n_comparisons:
            return logits
        return torch.where(torch.tensor([i == 102 for i in noise.images])[:, None], torch.nan, logits)

    model = Breaking((1, 4, 4), broken, randomised=False)
    found = attack(model, images, labels, init=INIT, eot=EOT).images[0]
    first = replace(attack, n_targets=1)(whole, images, labels, init=INIT, eot=EOT).images[0]
    assert not torch.equal(found[2], first[2]), "the second target's point"
    with torch.no_grad():
        assert bool((whole(found, EOT).argmax(1) != labels).all())
    others = [k for k in range(B) if k != 2]
    assert torch.equal(found[others], plain[others])


@dataclass(frozen=True)
class Fixed:
    """Proposes the same changes to every image."""

    changes: tuple[float, ...]
    ball: Ball = field(default_factory=lambda: Ball("linf", 0.4))

    @property
    def n_candidates(self) -> int:
        return len(self.changes)

    @property
    def cost(self) -> Cost:
        return Cost(0, 0, 1)

    def at(self, eps: float) -> Fixed:
        return replace(self, ball=Ball("linf", eps))

    def __call__(
        self, model, images: Tensor, labels: Tensor, *, init=None, eot=None, rows=None, progress=None
    ) -> Candidates:
        made = torch.stack([(images + change).clamp(0, 1) for change in self.changes])
        n = len(images)
        return Candidates(made, images.new_zeros(0, n), torch.zeros(n, 2, dtype=torch.int64), torch.full((n,), -1))


def by_level(images: Tensor, noise: Noise | None = None) -> Tensor:
    """Class 0 below a level of 0.7, no class from 0.45 to 0.55, class 1 above 0.7."""
    level = images.flatten(1).mean(1)
    logits = torch.stack([torch.zeros_like(level), level - 0.7], dim=1)
    return torch.where(((level > 0.45) & (level < 0.55))[:, None], torch.nan, logits)


GREY = torch.full((1, 1, 2, 2), 0.3, dtype=torch.float64)
ZERO = torch.tensor([0])


def test_a_candidate_without_a_loss_is_ranked_last() -> None:
    """It is of no use to who looks for the largest loss; whether it is wrong is for the judge to say."""
    ranked = Transfer(Fixed((0.2, 0.1, 0.3)), by_level, keep=3, eot=1)(by_level, GREY, ZERO, init=INIT.take([0]))
    levels = [round(float(x.mean()), 3) for x in ranked.images]
    assert levels == [0.6, 0.4, 0.5]


@pytest.mark.parametrize(
    ("first", "second", "level", "by"),
    [((0.2,), (0.4,), 0.5, 0), ((0.1, 0.2), (0.42,), 0.5, 0), ((0.1,), (0.2,), 0.5, 1), ((0.1,), (0.05,), 0.4, -1)],
)
def test_a_candidate_without_a_class_is_broken(first, second, level: float, by: int) -> None:
    """The next attack is not asked."""
    both = InTurn((Fixed(first, Ball("linf", 0.5)), Fixed(second, Ball("linf", 0.5))))
    found = both(by_level, GREY, ZERO, init=INIT.take([0]))
    assert round(float(found.images[0].mean()), 3) == level
    assert found.finished.tolist() == [by]


def test_flows_climb_after_a_look_that_failed() -> None:
    found, whole, images, labels = first_look_fails(StAdv(n_steps=6), 1)
    assert found.loss[0].isnan().tolist() == [k == 2 for k in range(B)]
    assert bool(found.loss[1:].isfinite().all())
    with torch.no_grad():
        best, clean = (margin(whole(x, EOT), labels) for x in (found.images[1], images))
    assert float(best[2]) > float(clean[2])


def test_spsa_climbs_after_a_look_that_failed() -> None:
    found, whole, images, labels = first_look_fails(SPSA(Ball("linf", 0.3), n_steps=6, n_pairs=8), 1)
    assert found.loss[0].isnan().tolist() == [k == 2 for k in range(B)]
    with torch.no_grad():
        best, clean = (margin(whole(x, EOT), labels) for x in (found.images[1], images))
    assert float(best[2]) > float(clean[2])


# the whole


def test_a_study_counts_what_is_not_finite(tmp_path) -> None:
    """Digits of class 0 with a purifier that gives no number for them: nothing of them is robust."""
    digits = depura.load_digits("test")
    zeros = [k for k in range(200) if int(digits.labels[k]) == 0][:3]
    images, labels, ids = digits.images[zeros], digits.labels[zeros], tuple(digits.ids[k] for k in zeros)
    walk = depura.diffpure(depura.digits_denoiser(), t_star=0.09, n_steps=2, t_end=0.0, solver=depura.Ancestral())

    def start(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
        return torch.full_like(x_in, torch.nan)

    broken = depura.Defence(walk.with_(start=start), depura.digits_classifier())
    found = score(broken, images, labels, Noise(0, ids, stream=Stream.REPORT), draws=range(4))
    assert found.errors(labels).tolist() == found.not_finite.tolist() == [4, 4, 4]
    sound = score(
        depura.Defence(walk, depura.digits_classifier()),
        images,
        labels,
        Noise(0, ids, stream=Stream.REPORT),
        draws=range(4),
    )
    assert int(sound.errors(labels).sum()) < 4
