"""APGD on closed forms and toys, in all norms; what it does on randomised models, and when it stops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attack_contract import EOT, INIT, keeps_the_contract
from depura._check import InputError
from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import History
from depura.attacks.climb import Sparse
from depura.attacks.losses import BoundedMargin, cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from depura.attacks.queries import COMMON
from depura.attacks.threat import Ball
from depura.noise import Noise
from slow import slow
from toys import TanhClassifier, rand, randn

NORMS = ["linf", "l2", "l1"]
W = randn(1, 3, 3, seed=7)
ZEROS = torch.zeros(5, dtype=torch.int64)


def linear(bias: float = 0.0, others: int = 0):
    """Two classes; logit 1 minus logit 0 is <w, x - 1/2> - bias; further classes far below."""

    def model(images: Tensor) -> Tensor:
        z = ((images - 0.5) * W).flatten(1).sum(1) - bias
        return torch.stack([torch.zeros_like(z), z, *[torch.full_like(z, -50.0 - k) for k in range(others)]], dim=1)

    return model


def optimum(norm: str, eps: float, images: Tensor) -> Tensor:
    """The best point of a linear model: signs, the direction, or the entries of the largest weights up to the wall."""
    if norm == "linf":
        return (images + eps * W.sign()).clamp(0, 1)
    if norm == "l2":
        return images + eps * W / W.norm()
    best = images.clone()
    for image in best:
        flat, left = image.reshape(-1), eps
        for k in W.abs().flatten().argsort(descending=True).tolist():
            room = float(1 - flat[k]) if W.flatten()[k] > 0 else float(flat[k])
            step = min(room, left)
            flat[k] += step * float(W.flatten()[k].sign())
            left -= step
    return best


@pytest.mark.parametrize("loss", [margin, cross_entropy, BoundedMargin(0.5)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.1), ("l1", 0.3), ("l1", 1.5)])
def test_apgd_reaches_the_optimum_of_a_linear_model(norm: str, eps: float, loss) -> None:
    images = 0.4 + 0.2 * rand(5, 1, 3, 3, seed=1)
    attack = APGD(Ball(norm, eps), n_steps=150, loss=loss, common=0)
    found = attack(linear(), images, ZEROS, init=INIT)
    best = optimum(norm, eps, images)
    reached, limit = (((x - images) * W).flatten(1).sum(1) for x in (found.images[1], best))
    if norm == "l1":
        assert bool((reached > 0.99 * limit).all())
    else:
        torch.testing.assert_close(found.images[1], best, rtol=0, atol=1e-5)
    assert bool((reached <= limit + 1e-9).all())


@pytest.mark.parametrize("norm", NORMS)
def test_apgd_breaks_a_linear_model_just_beyond_its_margin_and_never_before(norm: str) -> None:
    dual = {"linf": W.abs().sum(), "l2": W.norm(), "l1": W.abs().max()}[norm]
    images = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64)
    attacks = [APGD(Ball(norm, 0.1), n_steps=100, common=0)]
    attacks.append(TargetedAPGD(Ball(norm, 0.1), n_steps=100, n_targets=3, common=0))
    for attack in attacks:
        for bias, breaks in [(0.1 * float(dual) * 1.001, False), (0.1 * float(dual) * 0.98, True)]:
            found = attack(linear(bias, others=3), images, ZEROS, init=INIT)
            wrong = torch.stack([linear(bias, others=3)(c).argmax(1) != ZEROS for c in found.images])
            assert bool(wrong.any(0).all()) == breaks
            assert bool(wrong.any()) == breaks


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 4), slow((3, 4, 5))], ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("finish", [None, 0.75])
def test_apgd_keeps_the_contract(
    norm: str, shape: tuple[int, int, int], randomised: bool, finish: float | None
) -> None:
    attack = APGD(Ball(norm, 0.3), n_steps=8, eot=2, n_restarts=2, common=4, finish=finish)
    found = keeps_the_contract(attack, randomised=randomised, shape=shape)
    assert bool((found.finished >= 0).any()) == (finish is not None), "some image must finish, if any may"


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("norm", ["linf", slow("l2"), slow("l1")])
@pytest.mark.parametrize("finish", [None, 0.75])
def test_targeted_apgd_keeps_the_contract(norm: str, randomised: bool, finish: float | None) -> None:
    attack = TargetedAPGD(Ball(norm, 0.3), n_steps=6, eot=2, n_targets=3, common=4, finish=finish)
    keeps_the_contract(attack, randomised=randomised, shape=(3, 4, 4))


def test_the_mean_over_draws_decides_not_the_last_draw() -> None:
    """Where the last of four draws says the opposite of the other three, the attack climbs the mean."""

    def model(images: Tensor, noise: Noise) -> Tensor:
        draws = torch.tensor([noise.draws] * len(noise) if isinstance(noise.draws, int) else noise.draws)
        sign = torch.where((draws % 4 == 3) & (draws < COMMON), -1.0, 1.0).double()
        z = sign * ((images - 0.5) * W).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = 0.4 + 0.2 * rand(5, 1, 3, 3, seed=1)
    found = APGD(Ball("linf", 0.1), n_steps=30, eot=4)(model, images, ZEROS, init=INIT, eot=EOT)
    for k in (1, 2):
        torch.testing.assert_close(found.images[k], optimum("linf", 0.1, images), rtol=0, atol=1e-9)


class Lucky:
    """Logits that do not depend on the image but for a slope; draws of one step get a bonus that means nothing."""

    def __init__(self, eot: int, step: int) -> None:
        self.lucky = range(eot * step, eot * (step + 1))

    def __call__(self, images: Tensor, noise: Noise) -> Tensor:
        draws = [noise.draws] * len(noise) if isinstance(noise.draws, int) else noise.draws
        bonus = torch.tensor([5.0 if d in self.lucky else 0.0 for d in draws], dtype=images.dtype)
        z = ((images - 0.5) * W).flatten(1).sum(1) + bonus
        return torch.stack([torch.zeros_like(z), z], dim=1)


def test_a_lucky_iterate_does_not_keep_the_candidate_of_the_common_tape() -> None:
    """The start's draws flatter whatever is there: it is best by its own mean, not on the common tape."""
    images = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64)
    found = APGD(Ball("linf", 0.1), n_steps=30, eot=2)(Lucky(2, 0), images, ZEROS, init=INIT, eot=EOT)
    gain = [float(((x - images) * W).flatten(1).sum(1).mean()) for x in found.images]
    full = 0.1 * float(W.abs().sum())
    assert gain[2] == pytest.approx(full)
    assert gain[1] < 0.999 * full


def test_a_finished_image_is_left_alone_with_the_point_that_finished_it() -> None:
    images = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64)
    attack = APGD(Ball("linf", 0.1), n_steps=20, common=0, finish=1.0)
    found = attack(linear(0.02), images, ZEROS, init=INIT)
    assert bool((found.finished >= 0).all())
    assert bool((found.spent[:, 0] == found.finished + 1).all())
    assert bool((found.spent[:, 1] == 1).all())
    assert found.loss.shape == (21, 5)
    assert bool(found.loss[-1].isnan().all())
    for candidate in found.images:
        assert bool((linear(0.02)(candidate).argmax(1) == 1).all())


def test_targets_are_the_likeliest_wrong_classes() -> None:
    """One class is out of reach for the margin though it ranks second at the image; the third one is not."""

    def model(images: Tensor) -> Tensor:
        z = (images - 0.5).flatten(1)
        return torch.stack([z[:, 0] * 0 + 1, z[:, 0] * 0 + 0.9, 40 * z[:, 1], z[:, 0] - 5], dim=1)

    images = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    label = torch.zeros(1, dtype=torch.int64)
    one = TargetedAPGD(Ball("linf", 0.1), n_steps=20, n_targets=1, loss=targeted_margin, common=0)
    two = TargetedAPGD(Ball("linf", 0.1), n_steps=20, n_targets=2, loss=targeted_dlr, common=0)
    assert model(one(model, images, label, init=INIT.take([0])).images[0]).argmax(1).tolist() == [0]
    assert model(two(model, images, label, init=INIT.take([0])).images[0]).argmax(1).tolist() == [2]


def test_refusals() -> None:
    images = rand(1, 1, 2, 2, seed=1)
    with pytest.raises(InputError, match="at most 2 targets for 3 classes, got 9"):
        TargetedAPGD(Ball("linf", 0.1))(TanhClassifier(4), images, ZEROS[:1])
    with pytest.raises(InputError, match="dlr: expected at least 3 classes"):
        APGD(Ball("linf", 0.1), loss=dlr)(linear(), 0.5 * torch.ones(1, 1, 3, 3, dtype=torch.float64), ZEROS[:1])
    with pytest.raises(InputError, match="APGD: expected finish in \\(0, 1\\]"):
        APGD(Ball("linf", 0.1), finish=0.0)
    with pytest.raises(InputError, match="TargetedAPGD: expected n_targets at least 1"):
        TargetedAPGD(Ball("linf", 0.1), n_targets=0)


def test_what_is_ascended_and_what_is_compared_share_no_draws() -> None:
    seen: dict[bool, set[int]] = {True: set(), False: set()}

    def model(images: Tensor, noise: Noise) -> Tensor:
        draws = {noise.draws} if isinstance(noise.draws, int) else set(noise.draws)
        seen[images.requires_grad] |= draws
        return linear()(images)

    images = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64)
    APGD(Ball("linf", 0.1), n_steps=10, eot=2, n_restarts=2, common=4)(model, images, ZEROS, init=INIT, eot=EOT)
    assert seen[True] == set(range(2 * 11 * 2)), "every evaluation has draws of its own"
    assert seen[False] == set(range(COMMON, COMMON + 4))


def test_sparse_steps_shrink_while_as_many_entries_change() -> None:
    """Before, 10 entries. With 9 now (below 95 %) the step is eps again and the row goes back; with 10 it shrinks."""

    class Here:
        origin = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
        kept = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
        x = origin

    here = Here()
    here.kept.view(2, 16)[0, :9] = 0.1
    here.kept.view(2, 16)[1, :10] = 0.1
    start = {"step": 0.5, "share": 0.2, "entries": 10.0}
    here.own = {name: torch.full((2,), value, dtype=torch.float64) for name, value in start.items()}  # type: ignore[attr-defined]
    back = Sparse(Ball("l1", 0.6), n_steps=100).adapt(here, 3)  # type: ignore[arg-type]
    assert back.tolist() == [True, False]
    own = here.own  # type: ignore[attr-defined]
    torch.testing.assert_close(own["step"], torch.tensor([0.6, 0.5 / 1.5], dtype=torch.float64))
    torch.testing.assert_close(own["share"], torch.tensor([9 / 24, 10 / 24], dtype=torch.float64))
    assert own["entries"].tolist() == [9, 10]


def test_the_first_time_that_an_image_finishes_counts() -> None:
    history = History(3, 4)
    for at in ([0, 1, 2], [0, 2], [2]):
        rows = torch.tensor(at)
        history.add(torch.zeros(len(at)), at=rows)
        history.finish(rows[:1])
    found = history.candidates(torch.zeros(1, 3, 1, 1, 1), torch.zeros(3, 2))
    assert found.finished.tolist() == [0, -1, 2]
    assert found.loss.isnan().sum(0).tolist() == [2, 3, 1]
