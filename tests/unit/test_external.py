"""Attacks of other libraries: stand-ins for a library, judged by closed forms and by what they themselves saw."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depura
from attack_contract import EOT, INIT, bare, keeps_the_contract, labelled, random_defence
from depura.attacks import libraries
from depura.attacks.attack import Candidates, Cost
from depura.attacks.external import UNPRICED, External, Source
from depura.attacks.library_model import ModelForLibraries
from depura.attacks.losses import cross_entropy
from depura.attacks.threat import Ball
from depura.evaluation.study import AttackRun, Study
from depura.records.describe import describe
from toys import rand

LINF, L2 = Ball("linf", 0.1), Ball("l2", 0.5)
SHAPE = (1, 4, 4)
STEPS = 3


def by_steps(model: ModelForLibraries) -> Source:
    """A library's gradient attack: a random start, steps along the gradient of one call each, a last look."""

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        ball = model.ball
        x = ball.project(images + ball.eps * (2 * torch.rand_like(images) - 1), images)
        for _ in range(STEPS):
            x = x.detach().requires_grad_()
            nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
            x = ball.project(x.detach() + ball.eps / 2 * ball.unit(x.grad), images)
        with torch.no_grad():
            model(x)
        return x

    return attack


def returning(change: Callable[[Tensor, Ball], object]) -> Callable[[ModelForLibraries], Source]:
    """A library that asks the model nothing and returns the images changed."""
    return lambda model: lambda images, labels: change(images, model.ball)  # type: ignore[return-value, arg-type]


def images_of(make: Callable[[ModelForLibraries], Source], ball: Ball = LINF, **more: object) -> Candidates:
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    return External(ball, make, "stand-in", **more)(model, images, labels, init=INIT, eot=EOT)  # type: ignore[arg-type]


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5)])
@pytest.mark.parametrize("randomised", [True, False])
@pytest.mark.parametrize("ball", [LINF, L2], ids=lambda b: b.norm)
def test_image_by_image_it_keeps_the_contract(ball: Ball, randomised: bool, shape: tuple[int, int, int]) -> None:
    price = Cost(STEPS, 1, 1)
    attack = External(ball, by_steps, "stand-in", n_runs=2, images_at_once=1, price=price)
    found = keeps_the_contract(attack, randomised=randomised, shape=shape)
    assert found.finished.tolist() == [-1] * 5
    assert found.loss.shape == (0, 5)
    assert not torch.equal(found.images[0], found.images[1]), "runs have starts of their own"


# --- what the library is given, and what it sees ---------------------------------------------------------------------


def test_it_ascends_the_very_draws_that_are_its_own() -> None:
    """Against a plain loop over the defence with the addresses written out: image by row, one draw number a call."""
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    found = External(LINF, by_steps, "stand-in", n_runs=2)(model, images, labels, init=INIT, eot=EOT)
    for run in range(2):
        seed = int(INIT.bits((5, 1), kind=depura.Kind.ATTACK, step=run)[0, 0])
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(images.shape, dtype=images.dtype, generator=generator)
        x = LINF.project(images + LINF.eps * (2 * start - 1), images)
        for i in range(STEPS):
            leaf = x.clone().requires_grad_()
            draw = run * (STEPS + 1) + i  # each run has a last look beside its steps
            loss = cross_entropy(model(leaf, EOT.draw(draw)), labels).sum()
            x = LINF.project(x + LINF.eps / 2 * torch.autograd.grad(loss, leaf)[0].sign(), images)
        torch.testing.assert_close(found.images[run], x, rtol=0, atol=1e-14)


def test_every_row_of_every_call_meets_noise_of_its_own() -> None:
    seen: list[tuple[int, int]] = []

    def model(images: Tensor, noise: depura.Noise) -> Tensor:
        assert not isinstance(noise.draws, int)
        seen.extend(zip(noise.images, noise.draws, strict=True))
        return images.flatten(1)[:, :5]

    def make(asked: ModelForLibraries) -> Source:
        def attack(images: Tensor, labels: Tensor) -> Tensor:
            asked(images)
            asked(images[[4, 2]])
            asked(images.repeat(3, 1, 1, 1)[:12])
            asked(images)
            return images

        return attack

    images = rand(5, 1, 4, 4)
    labels = torch.zeros(5, dtype=torch.int64)
    found = External(LINF, make, "stand-in", n_runs=2)(model, images, labels, init=INIT, eot=EOT)
    assert len(seen) == len(set(seen)) == 2 * (5 + 2 + 12 + 5)
    ids = list(EOT.images)
    assert seen[:7] == [*((i, 0) for i in ids), (ids[0], 1), (ids[1], 1)]
    assert seen[7:19] == [(ids[r % 5], 2 + r // 5) for r in range(12)]
    assert seen[19:24] == [(i, 5) for i in ids]
    assert seen[24] == (ids[0], 6), "the second run goes on where the first ended"
    assert found.spent.tolist() == [[0, 2 * 5]] * 5, "24 rows for 5 images are 5 each, rounded up, in each run"


def test_rows_that_are_differentiated_again_count_again_and_others_are_forwards() -> None:
    def make(model: ModelForLibraries) -> Source:
        def attack(images: Tensor, labels: Tensor) -> Tensor:
            leaf = images.clone().requires_grad_()
            logits = model(leaf)
            for k in range(2):
                torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
            model(leaf)  # could be differentiated, and is not
            model(images)
            some = images[:2].clone().requires_grad_()
            torch.autograd.grad(model(some).sum(), some)
            return images

        return attack

    found = images_of(make)
    assert found.spent.tolist() == [[2 + 1, 2]] * 5, "12 rows were differentiated and 10 were not"
    alone = images_of(make, images_at_once=1)
    assert alone.spent.tolist() == [[3, 2]] * 5


def test_a_call_in_pieces_can_be_differentiated_as_often_as_one_of_a_piece() -> None:
    found: list[Tensor] = []

    def make(model: ModelForLibraries) -> Source:
        def attack(images: Tensor, labels: Tensor) -> Tensor:
            leaf = images.repeat(2, 1, 1, 1).requires_grad_()
            logits = model(leaf)
            found.extend(torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3))
            return images

        return attack

    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    for rows in (None, 3):
        External(LINF, make, "stand-in")(model, images, labels, init=INIT, eot=EOT, rows=rows)
    for k in range(3):
        torch.testing.assert_close(found[3 + k], found[k], rtol=0, atol=1e-12)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_fewer_rows_in_a_call_change_rounding_only(rows: int) -> None:
    most: list[int] = []

    class Watched(nn.Module):
        def forward(self, images: Tensor, noise: depura.Noise) -> Tensor:
            most.append(len(images))
            return model(images, noise)

    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack = External(LINF, by_steps, "stand-in")
    whole = attack(model, images, labels, init=INIT, eot=EOT)
    part = attack(Watched(), images, labels, init=INIT, eot=EOT, rows=rows)
    assert max(most) == rows
    torch.testing.assert_close(part.images, whole.images, rtol=0, atol=1e-12)
    assert torch.equal(part.spent, whole.spent)


def test_out_of_memory_the_run_begins_again_with_fewer_rows() -> None:
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    tried: list[int] = []

    def small(x: Tensor, noise: depura.Noise) -> Tensor:
        tried.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError
        return model(x, noise)

    attack = External(LINF, by_steps, "stand-in", n_runs=2)
    found = attack(small, images, labels, init=INIT, eot=EOT)
    whole = attack(model, images, labels, init=INIT, eot=EOT)
    torch.testing.assert_close(found.images, whole.images, rtol=0, atol=1e-12)
    assert found.spent.tolist() == whole.spent.tolist()
    assert tried[:3] == [5, 3, 2]
    assert max(tried[2:]) == 2, "the next run does not try again what was too much"

    def none(x: Tensor, noise: depura.Noise) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        attack(none, images, labels, init=INIT, eot=EOT)


def test_the_model_is_an_ordinary_module_and_the_users_own_is_left_alone() -> None:
    defence = random_defence(SHAPE)
    images, labels = labelled(defence, SHAPE)
    seen: list[ModelForLibraries] = []

    def make(model: ModelForLibraries) -> Source:
        seen.append(model)
        model.double().train()
        model.requires_grad_(True)
        single = images.float().requires_grad_()
        logits = model(single)
        assert logits.dtype == torch.float32, "a library in float32 gets logits in float32"
        assert torch.autograd.grad(logits.sum(), single)[0].dtype == torch.float32
        return lambda images, labels: images.zero_()

    before = images.clone()
    with pytest.raises(depura.InputError, match=r"External stand-in: expected images within Ball.*model\.ball"):
        External(LINF, make, "stand-in")(defence, images, labels, init=INIT, eot=EOT)
    assert torch.equal(images, before), "a library gets a copy of the images"
    assert [p.numel() for p in seen[0].parameters()] == [1]
    assert next(seen[0].parameters()).device == images.device
    assert not any(p.requires_grad for p in defence.parameters())
    assert not defence.training


def test_the_global_generators_are_seeded_for_the_library_and_then_as_they_were() -> None:
    drawn: list[tuple[float, float, float]] = []

    def make(model: ModelForLibraries) -> Source:
        def attack(images: Tensor, labels: Tensor) -> Tensor:
            drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))
            assert model.seed == torch.initial_seed()
            return images

        return attack

    def states() -> tuple[object, ...]:
        _, words, position, *_ = np.random.get_state()
        return torch.get_rng_state().tolist(), words.tolist(), position, random.getstate()

    np.random.seed(1)
    before = states()
    images_of(make, n_runs=2)
    assert states() == before
    torch.rand(1), np.random.rand(), random.random()
    images_of(make, n_runs=2)
    assert drawn[:2] == drawn[2:], "the same addresses draw the same"
    assert all(a != b for a, b in zip(*drawn[:2], strict=True)), "runs draw differently"

    def failing(model: ModelForLibraries) -> Source:
        raise KeyError("the library's own")

    before = states()
    with pytest.raises(KeyError):
        images_of(failing)
    assert states() == before


def test_gradients_are_on_even_where_the_caller_has_switched_them_off() -> None:
    with torch.no_grad():
        quiet = images_of(by_steps)
    assert torch.equal(quiet.images, images_of(by_steps).images)


# --- what comes back -------------------------------------------------------------------------------------------------


def test_the_clean_image_is_accepted_and_success_is_nobodys_business() -> None:
    found = images_of(returning(lambda images, ball: images))
    assert torch.equal(found.images[0], labelled(random_defence(SHAPE), SHAPE)[0])


@pytest.mark.parametrize("ball", [LINF, L2], ids=lambda b: b.norm)
def test_rounding_is_projected(ball: Ball) -> None:
    def beyond(images: Tensor, ball: Ball) -> Tensor:
        grey = images - images + 0.5
        direction = ball.unit(grey - images)
        return images + ball.eps * (1 + 1e-6) * direction

    found = images_of(returning(beyond), ball).images[0]
    images = labelled(random_defence(SHAPE), SHAPE)[0]
    assert float(ball.distance(found, images).max()) <= ball.eps * (1 + 1e-12)
    torch.testing.assert_close(found, beyond(images, ball), rtol=0, atol=1e-6)
    assert bool(ball.contains(images_of(returning(lambda x, b: x - 3e-6), ball).images[0], images).all())


WRONG = {
    "too far": (lambda x, b: x + 1.01 * b.eps * b.unit(0.5 - x), r"within Ball\(norm='linf', eps=0.1\).*0\.101"),
    "outside [0, 1]": (lambda x, b: x - 2e-5 * (x == x.min()) - x.min() * (x == x.min()), "outside"),
    "nan": (lambda x, b: x / 0 * 0, "finite images"),
    "one image too few": (lambda x, b: x[1:], r"shape \(5, 1, 4, 4\).*got shape \(4, 1, 4, 4\)"),
    "numpy": (lambda x, b: x.numpy(), "got ndarray"),
    "a tuple of foolbox": (lambda x, b: (x, x, x), "got tuple"),
}


@pytest.mark.parametrize("what", WRONG)
def test_anything_else_is_refused(what: str) -> None:
    change, message = WRONG[what]
    with pytest.raises(depura.InputError, match=message):
        images_of(returning(change))


def test_another_dtype_is_converted() -> None:
    found = images_of(returning(lambda x, b: x.float()))
    assert found.images.dtype == torch.float64


# --- what it says of itself ------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_a_sentence() -> None:
    model = bare(SHAPE)
    images, labels = labelled(model, SHAPE)
    for change, message in (
        ({"n_runs": 0}, "n_runs"),
        ({"n_runs": 65537}, "n_runs"),
        ({"images_at_once": 0}, "images_at_once"),
    ):
        with pytest.raises(depura.InputError, match=message):
            External(LINF, by_steps, "stand-in", **change)
    attack = External(LINF, by_steps, "stand-in")
    with pytest.raises(depura.InputError, match="External stand-in: expected labels of shape"):
        attack(model, images, labels[1:])
    with pytest.raises(depura.InputError, match=r"External stand-in: expected images in \[0, 1\]"):
        attack(model, 2 * images - 1, labels)
    with pytest.raises(depura.InputError, match="expected labels from 0 to 4"):
        attack(model, images, labels + 5)


def test_the_price_is_what_was_said_or_measured() -> None:
    model = random_defence(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack = External(LINF, by_steps, "stand-in", n_runs=3)
    assert attack.price == UNPRICED
    assert attack.cost == Cost(0, 0, 1)
    assert attack.n_candidates == 3
    priced = attack.priced(model, images[:2], labels[:2], eot=EOT.take([0, 1]))
    assert priced == replace(attack, price=Cost(STEPS, 1, 1))
    assert priced.cost == Cost(3 * STEPS, 3, 1)
    found = priced(model, images, labels, init=INIT, eot=EOT)
    assert found.spent.tolist() == [list(priced.cost[:2])] * 5


def test_in_a_study_its_candidates_are_judged_like_any_other(tmp_path: object) -> None:
    """Run and recorded: the head says what it is, the numbers are of the report stream, not of the library."""
    data = depura.load_digits("test").first(4)
    defence = depura.Defence(None, depura.digits_classifier())
    attack = External(Ball("linf", 0.2), by_steps, "stand-in", n_runs=2)
    study = Study(
        name="external",
        data=data,
        defence=defence,
        rows=(AttackRun("external", "Stand-in", attack, defence, defence, kind="undefended"),),
        report_draws=2,
        select_draws=2,
        unit_images=4,
        pictures=0,
    )
    done = depura.run(study, tmp_path, command="test")  # type: ignore[arg-type]
    unit = done.load("external_eps0.2_00000-00004")
    assert unit.arrays["select_errors"].shape == (4, 2)
    assert unit.arrays["spent"].tolist() == [[2 * STEPS, 2]] * 4
    predicted = defence(torch.from_numpy(unit.arrays["adversarial"])).argmax(1).numpy()
    assert np.array_equal(unit.arrays["predictions"], np.stack([predicted] * 2, axis=1))
    head = done.header.rows[0].attack
    assert head["type"] == "depura.External"
    assert head["make"].endswith("by_steps")


# --- the libraries' doors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda: libraries.torchattacks_source("PGD"),
        lambda: libraries.foolbox_source("LinfPGD"),
        lambda: libraries.art_source("SquareAttack", n_classes=10),
        lambda: libraries.autoattack_source(),
        lambda: libraries.as_foolbox(bare(SHAPE)),
        lambda: libraries.as_art(bare(SHAPE), SHAPE, 5),
    ],
    ids=["torchattacks", "foolbox", "art", "pyautoattack", "as foolbox", "as art"],
)
def test_a_missing_library_is_named_with_what_to_install(
    call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchattacks", "foolbox", "foolbox.attacks", "art", "pyautoattack"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "art.attacks.evasion", raising=False)
    monkeypatch.delitem(sys.modules, "art.estimators.classification", raising=False)
    with pytest.raises(depura.InputError, match=r"to be installed, got .*pip install 'depura\[attacks\]'"):
        call()


class Library:
    """A stand-in for the module torchattacks."""

    __name__ = "torchattacks"

    class Seeded:
        """Takes all that depura sets."""

        def __init__(
            self, model: ModelForLibraries, eps: float, norm: str, seed: int, alpha: float = 1.0, steps: int = 1
        ) -> None:
            self.seen = {"eps": eps, "norm": norm, "seed": seed, "alpha": alpha, "steps": steps}
            Library.last = self.seen

        def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
            return images

    class Plain(Seeded):
        """Takes eps alone."""

        def __init__(self, model: ModelForLibraries, eps: float, alpha: float = 1.0) -> None:
            Library.last = {"eps": eps, "alpha": alpha}

    last: dict[str, object]


def test_options_follow_the_ball_and_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", Library())  # type: ignore[arg-type]
    make = libraries.torchattacks_source("Seeded", {"steps": 7}, times_eps={"alpha": 0.25})
    attack = External(L2, make, "Seeded of torchattacks")
    model = bare(SHAPE)
    images, labels = labelled(model, SHAPE)
    attack(model, images, labels, init=INIT)
    seed = int(INIT.bits((5, 1), kind=depura.Kind.ATTACK)[0, 0])
    assert Library.last == {"eps": 0.5, "norm": "L2", "seed": seed, "alpha": 0.125, "steps": 7}
    attack.at(0.1)(model, images, labels, init=INIT)
    assert Library.last == {"eps": 0.1, "norm": "L2", "seed": seed, "alpha": 0.25 * 0.1, "steps": 7}
    External(LINF, libraries.torchattacks_source("Plain"), "Plain")(model, images, labels)
    assert Library.last == {"eps": 0.1, "alpha": 1.0}
    said = describe(attack)["make"]
    assert said["keywords"] == {"attack": "Seeded", "options": {"steps": 7}, "times_eps": {"alpha": 0.25}}


def test_options_that_are_not_yours_to_set_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", Library())  # type: ignore[arg-type]
    with pytest.raises(depura.InputError, match=r"without eps, norm, seed.*got eps, seed.*decide these"):
        libraries.torchattacks_source("Seeded", {"eps": 1.0, "seed": 3})
    with pytest.raises(depura.InputError, match="got norm"):
        libraries.torchattacks_source("Seeded", times_eps={"norm": 1.0})
    with pytest.raises(depura.InputError, match=r"each given once, got alpha\.$"):
        libraries.torchattacks_source("Seeded", {"alpha": 1.0}, times_eps={"alpha": 1.0})
    with pytest.raises(depura.InputError, match="torchattacks: expected the name of an attack in it, got 'Nothing'"):
        libraries.torchattacks_source("Nothing")
