"""Ways to a hyperplane against general-purpose optimisers; FAB against closed forms on linear models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from attack_contract import EOT, INIT, bare, keeps_the_contract, labelled, random_defence
from depura import InputError
from depura.attacks.fab import FAB, dual_norm, to_hyperplane
from depura.attacks.losses import margin
from depura.attacks.threat import Ball
from toys import rand, randn

NORMS = ["linf", "l2"]
SHORT = FAB(Ball("linf", 0.1), n_steps=4, n_targets=1)


# --- ways to a hyperplane --------------------------------------------------------------------------------------------


def shortest(norm: str, x: np.ndarray, w: np.ndarray, gap: float) -> float:
    """Smallest norm of d with <w, d> = gap and x + d in [0, 1], by scipy; linf as a linear programme in (d, t)."""
    n = len(x)
    if norm == "linf":
        eye, ones = np.eye(n), np.ones((n, 1))
        found = scipy.optimize.linprog(
            np.r_[np.zeros(n), 1.0],
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * n),
            A_eq=np.r_[w, 0.0][None],
            b_eq=[gap],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )
        return float(found.fun)
    found = scipy.optimize.minimize(
        lambda d: (d**2).sum(),
        np.zeros(n),
        jac=lambda d: 2 * d,
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "eq", "fun": lambda d: w @ d - gap, "jac": lambda d: w},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return math.sqrt(found.fun)


def planes(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, some on the border; normals with zeros; gaps of both signs, up to nearly what the box allows."""
    x, w = (1.4 * rand(n, 2, 2, 3, seed=1) - 0.2).clamp(0, 1), randn(n, 2, 2, 3, seed=2)
    x[: n // 4] = 0.3 + 0.4 * x[: n // 4]
    w[:, 0, 0, 0] = 0
    up = (w * torch.where(w > 0, 1 - x, -x)).flatten(1).sum(1)
    down = (w * torch.where(w > 0, -x, 1 - x)).flatten(1).sum(1)
    share = rand(n, seed=3)
    return x, w, torch.where(rand(n, seed=4) < 0.5, up, down) * share


@pytest.mark.parametrize("norm", NORMS)
def test_the_shortest_way_to_a_hyperplane(norm: str) -> None:
    x, w, gap = planes(40)
    d = to_hyperplane(norm, x, w, gap)
    torch.testing.assert_close((w * d).flatten(1).sum(1), gap, rtol=0, atol=1e-13)
    assert float((x + d).min()) >= -1e-15
    assert float((x + d).max()) <= 1 + 1e-15
    length = Ball(norm, 1.0).distance(d, torch.zeros_like(d))
    expected = [shortest(norm, *(v.numpy().ravel() for v in (x[i], w[i])), float(gap[i])) for i in range(40)]
    np.testing.assert_allclose(length.numpy(), expected, atol=2e-6 if norm == "l2" else 1e-9)
    free = gap.abs() / dual_norm(norm, w)
    assert int((length > free * 1.01).sum()) > 10, "the box must matter"
    assert int((length < free * (1 + 1e-12)).sum()) > 2, "and at times not"


@pytest.mark.parametrize("norm", NORMS)
def test_a_hyperplane_out_of_reach_is_approached_as_far_as_the_box_allows(norm: str) -> None:
    x, w = rand(5, 1, 2, 2, seed=1), randn(5, 1, 2, 2, seed=2)
    d = to_hyperplane(norm, x, w, torch.tensor([50.0, -50.0, 1e9, -1e9, 50.0]).double())
    up = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).double()[:, None, None, None]
    torch.testing.assert_close(x + d, (w * up > 0).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", NORMS)
def test_no_way_where_there_is_no_gap_or_no_normal(norm: str) -> None:
    x, w = rand(2, 1, 2, 2, seed=1), randn(2, 1, 2, 2, seed=2)
    assert not bool(to_hyperplane(norm, x, w, torch.zeros(2).double()).any())
    assert not bool(to_hyperplane(norm, x, torch.zeros_like(w), torch.ones(2).double()).any())


# --- linear models ---------------------------------------------------------------------------------------------------

W = randn(3, 12, seed=7)
BIAS = torch.tensor([0.6, 0.3, 0.2]).double()


def linear(x: Tensor) -> Tensor:
    return (x.flatten(1) - 0.5) @ W.to(x.dtype).T + BIAS.to(x.dtype)


def to_class(norm: str, x: Tensor, label: int, other: int) -> list[float]:
    """Distance of each image to the region of another class of the linear model, inside the box, by scipy."""
    gap = (linear(x)[:, label] - linear(x)[:, other]).tolist()
    w = (W[other] - W[label]).numpy()
    return [shortest(norm, image.numpy().ravel(), w, g) for image, g in zip(x, gap, strict=True)]


def first_class(n: int, *, border: bool = False) -> Tensor:
    """Images around 1/2, or with all pixels close to 0 or 1, that the linear model takes for class 0."""
    images = 0.4 + 0.2 * rand(6 * n, 1, 3, 4, seed=9)
    if border:
        images = torch.where(images < 0.5, (images - 0.4) / 2, 1 - (0.6 - images) / 2)
    return images[linear(images).argmax(1) == 0][:n]


@pytest.mark.parametrize("norm", NORMS)
def test_distance_to_the_boundary_of_a_linear_model(norm: str) -> None:
    """Never less than the true distance, and 1 % more; 5 % at the border, which the choice of the class ignores."""
    for images, most in ((first_class(6), 1.01), (first_class(6, border=True), 1.05)):
        assert len(images) == 6
        labels = torch.zeros(len(images), dtype=torch.int64)
        both = torch.tensor([to_class(norm, images, 0, other) for other in (1, 2)]).double()
        attack = FAB(Ball(norm, 50.0), n_steps=40, n_targets=0, n_classes=3)
        found = attack(linear, images, labels).images[0]
        assert bool((linear(found).argmax(1) != 0).all())
        ratio = attack.ball.distance(found, images) / both.amin(0)
        assert float(ratio.min()) >= 1 - 1e-5
        assert float(ratio.max()) <= most


@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_the_classes_with_the_largest_logits(norm: str) -> None:
    """One target: the runner-up, though here another class is nearer; two targets find the nearer one."""
    images = first_class(40)
    labels = torch.zeros(len(images), dtype=torch.int64)
    logits, other = linear(images), torch.tensor([to_class(norm, images, 0, k) for k in (1, 2)]).double()
    runner_up = logits[:, 1:].argmax(1)
    odd = other.argmin(0) != runner_up
    assert int(odd.sum()) >= 2, "the test needs images whose runner-up is not nearest"
    images, labels, runner_up, other = images[odd], labels[odd], runner_up[odd], other[:, odd]
    for n, expected in ((1, other.gather(0, runner_up[None])[0]), (2, other.amin(0))):
        attack = FAB(Ball(norm, 50.0), n_steps=40, n_targets=n, finish=None)
        found = attack(linear, images, labels).images[0]
        ratio = attack.ball.distance(found, images) / expected
        assert float(ratio.min()) >= 1 - 1e-5, n
        assert float(ratio.max()) <= 1.01, n


def two(bias: float):
    """Two classes; logit 1 minus logit 0 is <w, x - 1/2> - bias."""

    def model(x: Tensor) -> Tensor:
        z = (x.flatten(1) - 0.5) @ W[0].to(x.dtype) - bias
        return torch.stack([torch.zeros_like(z), z], dim=1)

    return model


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_broken_beyond_its_margin_and_never_before(norm: str) -> None:
    dual = float(dual_norm(norm, W[:1]).item()) if norm == "linf" else float(W[0].norm())
    images, labels = torch.full((3, 1, 3, 4), 0.5).double(), torch.zeros(3, dtype=torch.int64)
    attack = FAB(Ball(norm, 0.1), n_steps=30, n_restarts=2, n_targets=1)
    for bias, breaks in [(0.1 * dual * 1.0001, False), (0.1 * dual * 0.99, True)]:
        got = attack(two(bias), images, labels, init=INIT.take([0, 1, 2]))
        assert (got.finished >= 0).tolist() == [breaks] * 3
        assert (two(bias)(got.images[0]).argmax(1) != labels).tolist() == [breaks] * 3
        assert bool((got.images[0] != images).flatten(1).any(1).all()), "never the image itself"


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_point_inside_the_worst_visited_one_is_brought_into_the_ball(norm: str) -> None:
    """Out of all forwards after the image's own, by hand: after each of the 2 * 5 gradients."""
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return two(0.5)(x)

    images, labels = 0.45 + 0.1 * rand(3, 1, 3, 4, seed=1), torch.zeros(3, dtype=torch.int64)
    attack = FAB(Ball(norm, 0.005), n_steps=5, n_restarts=2, n_targets=1)
    got = attack(model, images, labels, init=INIT.take([0, 1, 2]))
    visited = torch.stack(seen[4::2])
    assert len(visited) == 10
    losses = torch.stack([margin(two(0.5)(x), labels) for x in visited])
    torch.testing.assert_close(got.loss[1:], losses, rtol=0, atol=1e-14)
    worst = torch.stack([visited[int(k), i] for i, k in enumerate(losses.argmax(0))])
    torch.testing.assert_close(got.images[0], attack.ball.project(worst, images), rtol=0, atol=1e-14)
    assert got.finished.tolist() == [-1] * 3


def test_one_step_by_hand() -> None:
    """In the middle of the box: x0 + eta d to the boundary, where both ways are the same."""
    images, labels = torch.full((1, 1, 3, 4), 0.5).double(), torch.zeros(1, dtype=torch.int64)
    got = FAB(Ball("l2", 9.0), n_steps=1, n_targets=1, eta=1.2)(two(0.5), images, labels)
    expected = images + 1.2 * 0.5 * (W[0] / W[0].square().sum()).reshape(1, 1, 3, 4)
    torch.testing.assert_close(got.images[0], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(got.loss[:, 0].tolist(), [-0.5, 0.1], rtol=0, atol=1e-14)
    torch.testing.assert_close(got.spent, torch.tensor([[1, 2]]))


@pytest.mark.parametrize("alpha_max", [0.1, 0.3, 1.0])
def test_a_step_from_a_random_start_by_hand(alpha_max: float) -> None:
    """Far from the border of the box the ways are gap w / |w|^2, from the start and from the image."""
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return two(0.3)(x)

    images, labels = torch.full((5, 1, 3, 4), 0.5).double(), torch.zeros(5, dtype=torch.int64)
    attack = FAB(Ball("l2", 0.1), n_steps=1, n_restarts=2, n_targets=1, alpha_max=alpha_max, finish=None)
    attack(model, images, labels, init=INIT)
    start, then = seen[-2].flatten(1), seen[-1].flatten(1)
    gap = 0.3 - (start - 0.5) @ W[0]
    share = (gap / (gap + 0.3)).clamp_max(alpha_max)[:, None]
    assert (alpha_max < 1) == bool((share == alpha_max).all())
    way, way0 = gap[:, None] * W[0] / W[0].square().sum(), 0.3 * W[0] / W[0].square().sum()
    expected = (1 - share) * (start + 1.05 * way) + share * (0.5 + 1.05 * way0)
    torch.testing.assert_close(then, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", NORMS)
def test_points_that_are_not_misclassified_do_not_count(norm: str) -> None:
    """z_1 - z_0 = e^(-6 b) - e^(-6 s), for s = <w, x - 1/2>, is concave: the first steps fall short of s = b."""

    def model(x: Tensor) -> Tensor:
        z = math.exp(-1.8) - torch.exp(-6 * ((x.flatten(1) - 0.5) @ W[0]))
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images, labels = torch.full((3, 1, 3, 4), 0.5).double(), torch.zeros(3, dtype=torch.int64)
    got = FAB(Ball(norm, 1.0), n_steps=20, n_targets=1)(model, images, labels)
    assert bool((got.loss[1] < 0).all())
    assert model(got.images[0]).argmax(1).tolist() == [1] * 3
    distance = Ball(norm, 1.0).distance(got.images[0], images)
    ratio = distance * dual_norm(norm, W[0].reshape(1, 1, 3, 4)) / 0.3
    assert 1 <= float(ratio.min()) <= float(ratio.max()) < 1.01


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_within_half_the_radius_or_half_of_what_was_found(norm: str) -> None:
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return two(0.1)(x)

    images, labels = torch.full((4, 1, 3, 4), 0.5).double(), torch.zeros(4, dtype=torch.int64)
    labels[3] = 1
    closest = 0.1 / float(dual_norm(norm, W[0].reshape(1, 1, 3, 4)))
    for eps in (closest / 4, closest * 4):
        seen.clear()
        attack = FAB(Ball(norm, eps), n_steps=3, n_restarts=2, n_targets=1, finish=None)
        attack(model, images, labels, init=INIT.take(range(4)))
        start = attack.ball.distance(seen[3 + 2 * 3].detach(), images)
        if eps < closest:
            torch.testing.assert_close(start[:3], torch.full((3,), eps / 2).double())
        else:
            # The true distance is found to a few percent in three steps.
            assert bool((start[:3] >= closest / 2 * (1 - 1e-12)).all())
            assert bool((start[:3] <= closest / 2 * 1.06).all())
        assert float(start[3]) == 0, "a misclassified image is at no distance"
        assert not torch.allclose(seen[9][0], seen[9][1])


# --- images, right or wrong ------------------------------------------------------------------------------------------


def test_a_misclassified_image_is_its_own_closest_point() -> None:
    model = bare((1, 4, 4))
    images, labels = labelled(model, (1, 4, 4))
    got = SHORT(model, images, labels, init=INIT, eot=EOT)
    assert got.finished[-1] == 0
    assert torch.equal(got.images[0, -1], images[-1])
    assert got.spent[-1].tolist() == [0, 1]
    whole = replace(SHORT, finish=None)(model, images, labels, init=INIT, eot=EOT)
    assert torch.equal(whole.images[0, -1], images[-1])
    assert whole.finished.tolist() == [-1] * 5
    assert whole.spent.tolist() == [[4, 5]] * 5


def test_finished_images_are_left_out_of_later_runs_only() -> None:
    """Runs are made to their end; the loss has NaN from the run after the one that succeeded."""
    model = bare((1, 4, 4))
    images, labels = labelled(model, (1, 4, 4))
    got = FAB(Ball("linf", 0.04), n_steps=3, n_restarts=2, n_targets=2)(model, images, labels, init=INIT, eot=EOT)
    runs = torch.where(got.finished < 0, 4, got.finished // 3)
    assert len(set(runs.tolist())) >= 3, "the test needs images of different fates"
    assert got.loss.isfinite().sum(0).tolist() == (1 + 3 * runs).tolist()
    assert got.spent.tolist() == [[3 * r, 1 + 3 * r] for r in runs.tolist()]
    assert got.gradients.zero.nan_to_num(0).tolist() == [0] * 5


def test_gradients_that_are_not_finite_leave_an_image_where_it_is() -> None:
    def broken(x: Tensor) -> Tensor:
        assert bool(x.isfinite().all())
        z = (x.flatten(1) - 0.5) @ W[0] - 0.2
        planted = torch.sqrt((x * 0).flatten(1).sum(1)) * torch.tensor([1.0, 0.0]).double()
        return torch.stack([torch.zeros_like(z), torch.where(planted.isnan(), z, z + planted)], dim=1)

    images, labels = torch.full((2, 1, 3, 4), 0.5).double(), torch.zeros(2, dtype=torch.int64)
    got = FAB(Ball("l2", 9.0), n_steps=3, n_targets=1)(broken, images, labels)
    assert torch.equal(got.images[0], images)
    assert got.gradients.bad.tolist() == [1, 1]


def test_zero_gradients_leave_an_image_where_it_is() -> None:
    def flat(x: Tensor) -> Tensor:
        return torch.stack([1 + 0 * x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], dim=1)

    images, labels = torch.full((2, 1, 3, 4), 0.5).double(), torch.zeros(2, dtype=torch.int64)
    got = FAB(Ball("linf", 0.1), n_steps=3, n_targets=1)(flat, images, labels)
    assert torch.equal(got.images[0], images)
    assert got.gradients.zero.tolist() == [1, 1]


def test_what_is_refused() -> None:
    model, shape = random_defence((1, 4, 4)), (1, 4, 4)
    images, labels = labelled(model, shape)
    with pytest.raises(InputError, match=r"FAB: expected a deterministic model.*several draws"):
        SHORT(model, images, labels, init=INIT, eot=EOT)
    with pytest.raises(InputError, match="n_targets at most 4"):
        replace(SHORT, n_targets=5)(bare(shape), images, labels, init=INIT, eot=EOT)
    with pytest.raises(InputError, match="n_classes=5"):
        replace(SHORT, n_targets=0)(bare(shape), images, labels, init=INIT, eot=EOT)
    for wrong in ({"n_steps": 0}, {"alpha_max": 1.5}, {"beta": 0.0}, {"eta": 0.0}, {"finish": 0.0}, {"n_restarts": 0}):
        with pytest.raises(InputError):
            replace(SHORT, **wrong)


def test_the_whole_search_again_at_another_radius_and_radius_zero() -> None:
    assert SHORT.at(0.3) == replace(SHORT, ball=Ball("linf", 0.3))
    model = bare((1, 4, 4))
    images, labels = labelled(model, (1, 4, 4))
    got = SHORT.at(0.0)(model, images, labels, init=INIT, eot=EOT)
    assert torch.equal(got.images[0], images)
    assert str(FAB(Ball("l2", 0.5)).cost) == "900 gradients + 901 forwards"
    assert FAB(Ball("l2", 0.5), n_targets=0, n_classes=7, n_restarts=2).cost[:2] == (1200, 201)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5)])
@pytest.mark.parametrize(
    "settings",
    [{"n_targets": 2}, {"n_targets": 0, "n_classes": 5}, {"n_targets": 1, "finish": None}],
    ids=["targeted", "untargeted", "to-the-end"],
)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.15)])
def test_fab_keeps_the_contract(norm: str, eps: float, settings: dict, shape: tuple[int, int, int]) -> None:
    attack = FAB(Ball(norm, eps), n_steps=3, n_restarts=2, **settings)
    keeps_the_contract(attack, randomised=False, shape=shape)
