"""The ball against brute force; PGD against closed forms on linear models and a plain loop on random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from attack_contract import keeps_the_contract
from depura.attacks.losses import cross_entropy, margin
from depura.attacks.pgd import PGD, Momentum
from depura.attacks.queries import mean_of_units
from depura.attacks.threat import Ball
from depura.defence import Defence
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from toys import TanhClassifier, rand, randn, tanh_eps

NORMS = ["linf", "l2", "l1"]
INIT = Noise(1, images=tuple(range(100, 105)), stream=Stream.INIT)
EOT = Noise(1, images=tuple(range(100, 105)), stream=Stream.EOT)


ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centres in [0, 1], some on its border, and points around them, some far."""
    origin = (1.4 * rand(n, 1, 3, 3, seed=seed) - 0.2).clamp(0, 1)
    scale = 2.0 * rand(n, 1, 1, 1, seed=seed + 1) ** 2
    return origin, origin + scale * randn(n, 1, 3, 3, seed=seed + 2)


# --- the ball --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 8 / 255, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("norm", NORMS)
def test_projection_lands_inside_and_stays(norm: str, eps: float) -> None:
    ball = Ball(norm, eps)
    origin, x = points(200, seed=3)
    inside = ball.project(x, origin)
    distance = np.linalg.norm((inside - origin).flatten(1).numpy(), ord=ORDERS[norm], axis=1)
    assert distance.max() <= eps * (1 + 1e-12) + 1e-14
    assert float(inside.min()) >= 0
    assert float(inside.max()) <= 1
    assert bool(ball.contains(inside, origin, slack=1e-12).all())
    torch.testing.assert_close(ball.project(inside, origin), inside, rtol=0, atol=1e-14)
    torch.testing.assert_close(ball.project(origin, origin), origin, rtol=0, atol=0)
    single = ball.project(x.float(), origin.float())
    assert single.dtype == torch.float32
    assert bool(ball.contains(single, origin.float()).all())


def norms(x: np.ndarray, norm: str) -> float:
    return float(np.linalg.norm(x.ravel(), ord=ORDERS[norm]))


@pytest.mark.parametrize("norm", NORMS)
def test_distance_and_contains(norm: str) -> None:
    origin, x = points(50, seed=5)
    ball = Ball(norm, 0.4)
    exact = [norms(a, norm) for a in (x - origin).numpy()]
    np.testing.assert_allclose(ball.distance(x, origin).numpy(), exact, rtol=1e-14)
    in_box = [bool((a >= 0).all() and (a <= 1).all()) for a in x.numpy()]
    expected = [d <= 0.4 and b for d, b in zip(exact, in_box, strict=True)]
    assert ball.contains(x, origin, slack=0.0).tolist() == expected
    assert 0 < sum(expected) < 50, "both answers must occur"


def nearest(x: np.ndarray, origin: np.ndarray, eps: float, *, box: bool) -> np.ndarray:
    """Nearest point of the l2 ball (and the box) by a general-purpose constrained minimiser."""
    result = scipy.optimize.minimize(
        lambda v: ((v - x) ** 2).sum(),
        origin,
        jac=lambda v: 2 * (v - x),
        bounds=[(0, 1) if box else (None, None)] * len(x),
        constraints={
            "type": "ineq",
            "fun": lambda v: eps**2 - ((v - origin) ** 2).sum(),
            "jac": lambda v: -2 * (v - origin),
        },
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 300},
    )
    return result.x


def test_l2_projection_is_the_nearest_point_where_only_ball_or_only_box_acts() -> None:
    ball, generator, seen = Ball("l2", 0.3), np.random.RandomState(0), [0, 0]
    for _ in range(60):
        origin = generator.uniform(0, 1, 3)
        x = origin + generator.normal(size=3) * generator.uniform(0, 0.6)
        got = ball.project(torch.from_numpy(x).reshape(1, 1, 1, 3), torch.from_numpy(origin).reshape(1, 1, 1, 3))
        on_ball = origin + min(1.0, 0.3 / np.linalg.norm(x - origin)) * (x - origin)
        only_ball = bool(((on_ball >= 0) & (on_ball <= 1)).all())
        only_box = np.linalg.norm(x - origin) <= 0.3
        if only_ball or only_box:
            seen[int(only_ball)] += 1
            np.testing.assert_allclose(got.numpy().ravel(), nearest(x, origin, 0.3, box=True), atol=1e-5)
    assert min(seen) >= 3


def test_linf_projection_is_the_nearest_point() -> None:
    origin, x = points(30, seed=8)
    got = Ball("linf", 0.2).project(x, origin).numpy()
    for axis in np.ndindex(x.shape):
        grid = np.linspace(max(0.0, float(origin[axis]) - 0.2), min(1.0, float(origin[axis]) + 0.2), 2001)
        assert got[axis] == pytest.approx(grid[np.abs(grid - float(x[axis])).argmin()], abs=2e-4)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4, 1.0, 3.0])
def test_l1_projection_is_the_nearest_point(eps: float) -> None:
    """Against the definition by bisection, and against points nearby that are allowed."""
    ball, (origin, x) = Ball("l1", eps), points(120, seed=31)
    got = ball.project(x, origin)
    for k in range(len(x)):
        o, d = origin[k].numpy(), (x[k] - origin[k]).numpy()
        room = np.where(d > 0, 1 - o, o)

        def shrunk(lam: float, d: np.ndarray = d, room: np.ndarray = room) -> np.ndarray:
            return np.sign(d) * np.clip(np.abs(d) - lam, 0, room)

        lam = 0.0
        if np.abs(shrunk(0.0)).sum() > eps:
            lam = scipy.optimize.brentq(lambda v: np.abs(shrunk(v)).sum() - eps, 0, np.abs(d).max() + 1, xtol=1e-15)
        np.testing.assert_allclose(got[k].numpy(), np.clip(o + shrunk(lam), 0, 1), atol=1e-12)
    closest = (got - x).flatten(1).norm(dim=1)
    for seed in range(20):
        other = ball.project(got + 0.1 * randn(*got.shape, seed=seed), origin)
        assert bool(((other - x).flatten(1).norm(dim=1) >= closest - 1e-12).all())


def test_l1_steps_share_their_length_among_the_largest_entries() -> None:
    g = randn(3, 1, 8, 8, seed=2)
    g[2] = 0
    step = Ball("l1", 0.1).unit(g)
    for k in range(2):
        largest = g[k].flatten().abs().topk(3).indices
        expected = torch.zeros(64, dtype=g.dtype)
        expected[largest] = g[k].flatten()[largest].sign() / 3
        torch.testing.assert_close(step[k].flatten(), expected)
    assert bool((step[2] == 0).all())


def test_l1_steps_pass_over_what_the_walls_hold() -> None:
    """The image is at the walls where the weights point out of the box: PGD must find the best of the other entries."""
    images = torch.where(W.abs() > W.abs().median(), (W > 0).to(W.dtype), 0.5).expand(2, 1, 3, 3).clone()
    free = torch.where(images[0] == 0.5, W.abs(), 0.0)
    found = PGD(Ball("l1", 0.2), n_steps=60, random_start=False)(linear(0.0), images, torch.zeros(2, dtype=torch.int64))
    gain = ((found.images[0] - images) * W).flatten(1).sum(1)
    torch.testing.assert_close(gain, 0.2 * free.max().expand(2), rtol=0, atol=1e-9)


def test_l1_distances_of_large_float32_images_are_allowed_their_rounding() -> None:
    origin = rand(4, 3, 64, 64, seed=1).float()
    ball = Ball("l1", 0.5)
    inside = ball.project(origin + 0.01 * randn(4, 3, 64, 64, seed=2).float(), origin)
    assert bool(ball.contains(inside, origin).all())
    assert not bool(ball.contains(origin + 1.01 * (inside - origin), origin).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_unit_is_the_steepest_direction(norm: str) -> None:
    """No point of the unit ball has a larger product with the gradient."""
    ball, g = Ball(norm, 0.1), randn(4, 1, 3, 3, seed=1)
    g[3] = 0
    direction = ball.unit(g)
    dual = g.flatten(1).abs().sum(1) if norm == "linf" else g.flatten(1).square().sum(1).sqrt()
    torch.testing.assert_close((direction * g).flatten(1).sum(1), dual)
    size = [norms(d, norm) for d in direction.numpy()]
    assert size == pytest.approx([1, 1, 1, 0], abs=1e-12)


@pytest.mark.parametrize("method", ["sample", "corner"])
@pytest.mark.parametrize("norm", NORMS)
def test_random_points_are_inside_and_addressable(norm: str, method: str) -> None:
    ball = Ball(norm, 0.25)
    origin = rand(5, 1, 3, 3, seed=4)
    draw = getattr(ball, method)
    together = draw(origin, INIT, step=3)
    assert bool(ball.contains(together, origin, slack=1e-12).all())
    order = [3, 0, 4]
    torch.testing.assert_close(draw(origin[order], INIT.take(order), step=3), together[order], rtol=0, atol=1e-15)
    torch.testing.assert_close(draw(origin[2:3], INIT.take([2]), step=3), together[2:3], rtol=0, atol=1e-15)
    assert not torch.allclose(draw(origin, INIT, step=4), together)
    assert not torch.allclose(draw(origin, INIT.on(Stream.EOT), step=3), together)


def test_samples_are_uniform_and_corners_extreme() -> None:
    n = 4000
    origin, noise = torch.full((n, 1, 1, 3), 0.5, dtype=torch.float64), Noise(0, images=tuple(range(n)))
    cube = (Ball("linf", 0.2).sample(origin, noise) - origin) / 0.2
    assert scipy.stats.kstest(cube.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    sphere = (Ball("l2", 0.2).sample(origin, noise) - origin).flatten(1) / 0.2
    radius = sphere.norm(dim=1).numpy()
    assert scipy.stats.kstest(radius**3, "uniform").pvalue > 1e-3, "volume grows as the cube of the radius"
    assert float((sphere / sphere.norm(dim=1, keepdim=True)).mean(0).abs().max()) < 4 / math.sqrt(3 * n)
    corners = (Ball("linf", 0.2).corner(origin, noise) - origin).abs()
    torch.testing.assert_close(corners, torch.full_like(corners, 0.2))
    edge = (Ball("l2", 0.2).corner(origin, noise) - origin).flatten(1).norm(dim=1)
    torch.testing.assert_close(edge, torch.full_like(edge, 0.2))


# --- losses ----------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    logits, labels = randn(30, 4, seed=2), torch.arange(30) % 4
    rows = [(row, int(y)) for row, y in zip(logits.tolist(), labels, strict=True)]
    expected = [max(z for j, z in enumerate(row) if j != y) - row[y] for row, y in rows]
    np.testing.assert_allclose(margin(logits, labels).numpy(), expected, rtol=1e-13)
    expected = [math.log(sum(math.exp(z) for z in row)) - row[y] for row, y in rows]
    np.testing.assert_allclose(cross_entropy(logits, labels).numpy(), expected, rtol=1e-12)
    wrong = logits.argmax(1) != labels
    assert bool(((margin(logits, labels) > 0) == wrong).all())


# --- PGD -------------------------------------------------------------------------------------------------------------

W = randn(1, 3, 3, seed=7)


def linear(bias: float):
    """Two classes; logit 1 minus logit 0 is <w, x - 1/2> - bias."""

    def model(images: Tensor) -> Tensor:
        z = ((images - 0.5) * W).flatten(1).sum(1) - bias
        return torch.stack([torch.zeros_like(z), z], dim=1)

    return model


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("loss", [margin, cross_entropy])
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_the_optimum_of_a_linear_model(norm: str, loss, random_start: bool) -> None:
    eps = 0.1
    images = 0.4 + 0.2 * rand(5, 1, 3, 3, seed=1)
    largest = (W.abs() == W.abs().max()).to(W.dtype) * W.sign()
    direction = {"linf": torch.sign(W), "l2": W / W.norm(), "l1": largest}[norm]
    attack = PGD(Ball(norm, eps), n_steps=50, step_size=eps, loss=loss, random_start=random_start)
    found = attack(linear(0.0), images, torch.zeros(5, dtype=torch.int64), init=INIT).images[0]
    torch.testing.assert_close(found, images + eps * direction, rtol=0, atol=1e-12)
    # Against class 1 the way is the opposite one.
    found = attack(linear(0.0), images, torch.ones(5, dtype=torch.int64), init=INIT).images[0]
    torch.testing.assert_close(found, images - eps * direction, rtol=0, atol=1e-12)


def test_pgd_in_one_exact_l2_step() -> None:
    images = torch.full((1, 1, 3, 3), 0.5, dtype=torch.float64)
    attack = PGD(Ball("l2", 0.1), n_steps=1, random_start=False)
    found = attack(linear(0.0), images, torch.zeros(1, dtype=torch.int64)).images[0]
    torch.testing.assert_close(found, images + 0.1 * W / W.norm(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_breaks_a_linear_model_just_beyond_its_margin_and_never_before(norm: str) -> None:
    """The margin at the image 1/2 is the bias; the ball lowers it by eps times the dual norm of w."""
    dual = float({"linf": W.abs().sum(), "l2": W.norm(), "l1": W.abs().max()}[norm])
    images = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64)
    labels = torch.zeros(5, dtype=torch.int64)
    attack = PGD(Ball(norm, 0.1), n_steps=50, step_size=0.1)
    for bias, breaks in [(0.1 * dual * 1.001, False), (0.1 * dual * 0.99, True)]:
        candidates = attack(linear(bias), images, labels, init=INIT).images
        wrong = torch.stack([linear(bias)(c).argmax(1) != labels for c in candidates])
        assert bool(wrong.any()) == breaks
        assert bool(wrong[0].all()) == breaks


def random_defence() -> Defence:
    purifier = DiffusionPurifier(tanh_eps(), steps=uniform_steps(VP(), t_start=0.2, n_steps=2), solver=Ancestral())
    return Defence(purifier, TanhClassifier(9))


@pytest.mark.parametrize("norm", NORMS)
def test_images_are_attacked_one_by_one(norm: str) -> None:
    defence, labels = random_defence(), torch.tensor([0, 1, 2, 0, 1])
    images = rand(5, 1, 3, 3, seed=1)
    attack = PGD(Ball(norm, 0.1), n_steps=4, eot=3)
    together = attack(defence, images, labels, init=INIT, eot=EOT)
    order = [4, 1, 3]
    permuted = attack(defence, images[order], labels[order], init=INIT.take(order), eot=EOT.take(order))
    torch.testing.assert_close(permuted.images, together.images[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(permuted.loss, together.loss[:, order], rtol=0, atol=1e-12, equal_nan=True)
    alone = attack(defence, images[2:3], labels[2:3], init=INIT.take([2]), eot=EOT.take([2]))
    torch.testing.assert_close(alone.images, together.images[:, 2:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_against_a_plain_loop_over_draws(norm: str, random_start: bool) -> None:
    """One image and one draw at a time; draw i * eot + j for copy j of step i; candidates are the last and the best."""
    defence, labels = random_defence(), torch.tensor([0, 1, 2, 0, 1])
    images, eps, n, m = rand(5, 1, 3, 3, seed=1), 0.1, 5, 3
    attack = PGD(Ball(norm, eps), n_steps=n, step_size=0.04, eot=m, loss=cross_entropy, random_start=random_start)
    got = attack(defence, images, labels, init=INIT, eot=EOT)
    start = Ball(norm, eps).sample(images, INIT) if random_start else images
    for row in range(5):
        origin, x = images[row : row + 1], start[row : row + 1]
        history: list[tuple[float, Tensor]] = []
        for i in range(n):
            leaf = x.clone().requires_grad_()
            losses = [
                torch.nn.functional.cross_entropy(defence(leaf, EOT.take([row]).draw(i * m + j)), labels[row : row + 1])
                for j in range(m)
            ]
            mean = torch.stack(losses).mean()
            (g,) = torch.autograd.grad(mean, leaf)
            history.append((float(mean.detach()), x))
            x = x + 0.04 * (g.sign() if norm == "linf" else g / g.norm())
            if norm == "linf":
                x = torch.clamp(torch.min(torch.max(x, origin - eps), origin + eps), 0, 1)
            else:
                for _ in range(2):
                    d = x - origin
                    x = (origin + d * min(1.0, eps / float(d.norm()))).clamp(0, 1)
        torch.testing.assert_close(got.images[0, row], x[0], rtol=0, atol=1e-12)
        best = max(history, key=lambda pair: pair[0])
        torch.testing.assert_close(got.images[1, row], best[1][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(got.loss[:, row].tolist(), [loss for loss, _ in history], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_candidates(norm: str) -> None:
    defence, labels = random_defence(), torch.tensor([0, 1, 2, 0, 1])
    images = rand(5, 1, 3, 3, seed=1)
    attack = PGD(Ball(norm, 0.2), n_steps=6, eot=2)
    got = attack(defence, images, labels, init=INIT, eot=EOT)
    assert got.images.shape == (2, 5, 1, 3, 3)
    assert got.images.shape[0] == attack.n_candidates
    assert got.loss.shape == (6, 5)
    assert (attack.cost.gradients, attack.cost.forwards) == (12, 0)
    for candidate in got.images:
        assert bool(attack.ball.contains(candidate, images, slack=1e-12).all())
    assert got.gradients.zero.tolist() == got.gradients.bad.tolist() == [0] * 5
    assert not got.images.requires_grad


def test_the_best_candidate_has_the_largest_recorded_loss() -> None:
    """A model whose loss falls from the second step on: the best iterate is the second, not the last."""
    calls: list[Tensor] = []

    def turning(images: Tensor) -> Tensor:
        calls.append(images.detach().clone())
        sign = 1.0 if len(calls) < 3 else -1.0
        z = sign * (images * W).flatten(1).sum(1) - (10.0 if len(calls) >= 3 else 0.0)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    attack = PGD(Ball("linf", 0.3), n_steps=6, step_size=0.05, random_start=False)
    got = attack(turning, images, torch.zeros(2, dtype=torch.int64))
    assert got.loss.argmax(0).tolist() == [1, 1]
    torch.testing.assert_close(got.images[1], calls[1])
    assert not torch.allclose(got.images[0], got.images[1])


def test_zero_and_bad_gradients_are_counted_image_by_image() -> None:
    """Image 0: gradient exactly zero at steps 0 and 2 of 4; image 1: not a number at step 1; image 2: sound."""
    calls: list[int] = []

    def planted(images: Tensor) -> Tensor:
        step = len(calls)
        calls.append(step)
        z = (images * W).flatten(1).sum(1)
        zero, bad = 0.0 if step in (0, 2) else 1.0, math.nan if step == 1 else 1.0
        z = torch.tensor([zero, bad, 1.0], dtype=torch.float64) * z
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = torch.full((3, 1, 3, 3), 0.5, dtype=torch.float64)
    attack = PGD(Ball("linf", 0.3), n_steps=4, step_size=0.05, random_start=False)
    got = attack(planted, images, torch.zeros(3, dtype=torch.int64))
    assert got.gradients.zero.tolist() == [0.5, 0, 0]
    assert got.gradients.bad.tolist() == [0, 0.25, 0]
    moves = ((got.images[0] - images) / (0.05 * W.sign())).flatten(1)
    torch.testing.assert_close(moves, torch.tensor([[2.0], [3.0], [4.0]]).double().expand(3, 9))


def test_bad_gradients_do_not_move_an_image() -> None:
    def broken(images: Tensor) -> Tensor:
        z = torch.sqrt((images * 0).flatten(1).sum(1))
        return torch.stack([torch.zeros_like(z), z], dim=1)

    images = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    got = PGD(Ball("l2", 0.3), n_steps=3, random_start=False)(broken, images, torch.zeros(2, dtype=torch.int64))
    assert got.gradients.bad.tolist() == [1, 1]
    assert got.gradients.zero.tolist() == [0, 0]
    for candidate in got.images:
        assert torch.equal(candidate, images)


def test_any_callable_and_any_grad_mode() -> None:
    images, labels = rand(5, 1, 3, 3, seed=1), torch.tensor([0, 1, 2, 0, 1])
    model = TanhClassifier(9)
    attack = PGD(Ball("linf", 0.1), n_steps=3)
    got = attack(lambda x: model(x), images, labels, init=INIT)
    with torch.no_grad():
        again = attack(Defence(None, model), images, labels, init=INIT, eot=EOT)
    torch.testing.assert_close(got.images, again.images, rtol=0, atol=1e-12)
    assert model.enter.grad is None
    state = torch.get_rng_state()
    attack(model, images, labels, init=INIT)
    assert torch.equal(torch.get_rng_state(), state)


def test_at_another_radius() -> None:
    attack = PGD(Ball("linf", 0.1), step_size=0.02, eot=4)
    wider = attack.at(0.2)
    assert wider == PGD(Ball("linf", 0.2), step_size=0.04, eot=4)
    assert PGD(Ball("l2", 0.1)).at(0.5) == PGD(Ball("l2", 0.5))


def test_radius_zero_returns_the_images() -> None:
    images, labels = rand(5, 1, 3, 3, seed=1), torch.tensor([0, 1, 2, 0, 1])
    for norm in NORMS:
        got = PGD(Ball(norm, 0.0), n_steps=2)(TanhClassifier(9), images, labels, init=INIT)
        for candidate in got.images:
            torch.testing.assert_close(candidate, images, rtol=0, atol=0)


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_keeps_the_contract_when_images_finish(norm: str, randomised: bool) -> None:
    attack = PGD(Ball(norm, 0.3), n_steps=6, eot=2, n_restarts=2, finish=0.75, common=4, momentum=Momentum(0.5))
    found = keeps_the_contract(attack, randomised=randomised, shape=(3, 4, 5))
    assert bool((found.finished >= 0).any())


def test_a_finished_image_stays_where_it_was_beaten() -> None:
    """Margin 0.3 of what the ball can take: broken early, asked once more, and left there by the second restart too."""
    images, labels = torch.full((5, 1, 3, 3), 0.5, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    bias = 0.3 * 0.1 * float(W.abs().sum())
    attack = PGD(Ball("linf", 0.1), n_steps=30, random_start=False, n_restarts=2, finish=1.0, common=1)
    found = attack(linear(bias), images, labels, init=INIT)
    steps = attack.ball.eps * 2.5 / 30
    first = math.ceil(0.03 / steps)  # steps of equal length along the signs
    assert found.finished.tolist() == [first] * 5
    assert found.spent.tolist() == [[first + 1, 1]] * 5
    for candidate in found.images:
        torch.testing.assert_close(candidate, images + first * steps * W.sign(), rtol=0, atol=1e-12)
    never = attack(linear(2 * 0.1 * float(W.abs().sum())), images, labels, init=INIT)
    assert never.finished.tolist() == [-1] * 5
    assert never.spent.tolist() == [[60, 0]] * 5


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "settings", [{}, {"momentum": Momentum(0.8)}, {"momentum": Momentum(1.0, nesterov=True)}], ids=["plain", "mi", "ni"]
)
def test_pgd_keeps_the_contract(norm: str, settings: dict, randomised: bool) -> None:
    attack = PGD(Ball(norm, 0.1), n_steps=3, eot=2, n_restarts=2, combine=mean_of_units, **settings)
    keeps_the_contract(attack, randomised=randomised, shape=(3, 4, 5))
