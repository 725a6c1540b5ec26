"""Square against closed forms on linear models; what it compares, on which draws, and what that costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attack_contract import EOT, INIT, keeps_the_contract
from depura import InputError
from depura.attacks.losses import cross_entropy, margin
from depura.attacks.numbers import numbered
from depura.attacks.queries import COMMON
from depura.attacks.square import Bumps, FlatSquares, Square, bump
from depura.attacks.threat import Ball
from depura.noise import Kind, Noise
from toys import rand, randn

NORMS = ["linf", "l2"]
W = randn(1, 3, 4, seed=7)
LABELS = torch.zeros(5, dtype=torch.int64)


def two(x: Tensor, bias: float | Tensor = 0.0) -> Tensor:
    """Two classes; logit 1 minus logit 0 is <w, x - 1/2> - bias."""
    z = ((x - 0.5) * W.to(x.dtype)).flatten(1).sum(1) - bias
    return torch.stack([torch.zeros_like(z), z], dim=1)


# --- what is proposed ------------------------------------------------------------------------------------------------


def test_the_share_of_pixels_is_halved_nine_times() -> None:
    """By hand: after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80 percent of the queries."""
    attack = Square(Ball("linf", 0.1), n_queries=5000, p_init=0.8)
    last = {5: 0, 25: 1, 100: 2, 250: 3, 500: 4, 1000: 5, 2000: 6, 3000: 7, 4000: 8, 4999: 9}
    for query, halvings in last.items():
        assert attack.share(query) == 0.8 / 2**halvings, query
        if query < 4999:
            assert attack.share(query + 1) == 0.8 / 2 ** (halvings + 1), query + 1


def test_sides() -> None:
    assert [FlatSquares().side((3, 32, 32), p) for p in (0.8, 0.1, 0.0001)] == [29, 10, 1]
    assert [FlatSquares().side((3, 4, 9), p) for p in (1.0, 0.5)] == [4, 4]
    assert [Bumps().side((3, 32, 32), p) for p in (0.8, 0.1, 0.0001)] == [29, 11, 3]
    assert [Bumps().side((3, 4, 9), p) for p in (1.0, 0.0001)] == [4, 3]


def test_linf_begins_with_vertical_stripes() -> None:
    origin = 0.3 + 0.4 * rand(5, 3, 4, 6, seed=1)
    u = INIT.uniform(origin.new_empty(5, 18), kind=Kind.ATTACK)
    change = (FlatSquares().start(Ball("linf", 0.1), origin, u) - origin) / 0.1
    torch.testing.assert_close(change.abs(), torch.ones_like(change))
    assert bool((change == change[:, :, :1]).all() or (change - change[:, :, :1]).abs().max() < 1e-12)
    signs = change[:, :, 0].sign()
    assert abs(float(signs.mean())) < 0.5
    assert len({tuple(row) for row in signs.flatten(1).tolist()}) == 5


def test_linf_squares_lie_anywhere_and_have_a_sign_for_each_channel() -> None:
    """On an image of 4 x 6 with side 2, all 3 x 5 corners with equal chance, all 4 pairs of signs."""
    n = 3000
    origin = torch.full((n, 2, 4, 6), 0.5, dtype=torch.float64)
    u = Noise(0, images=tuple(range(n))).uniform(origin.new_empty(n, 4), kind=Kind.ATTACK)
    moves, ball = FlatSquares(), Ball("linf", 0.1)
    assert moves.side((2, 4, 6), 0.16) == 2
    change = (moves.propose(ball, origin, origin, 0.16, u) - origin) / 0.1
    corners: Counter[tuple[int, int]] = Counter()
    signs: Counter[tuple[float, ...]] = Counter()
    for one in change:
        rows, columns = one[0].nonzero().unbind(1)
        corner = (int(rows.min()), int(columns.min()))
        block = one[:, corner[0] : corner[0] + 2, corner[1] : corner[1] + 2]
        assert block.shape == (2, 2, 2)
        assert int((one != 0).sum()) == 8
        assert float((block.abs() - 1).abs().max()) < 1e-12
        assert float((block - block[:, :1, :1]).abs().max()) == 0
        corners[corner] += 1
        signs[tuple(block[:, 0, 0].sign().tolist())] += 1
    assert len(corners) == 15
    assert len(signs) == 4
    assert all(abs(count - n / 15) < 5 * (n / 15) ** 0.5 for count in corners.values())
    assert all(abs(count - n / 4) < 5 * (n / 4) ** 0.5 for count in signs.values())


def test_a_bump_by_hand() -> None:
    """Side 3: the upper row 1/4, 1/1 + 1/4, 1/4 and two lower rows with heights by their distance from the middle."""
    near, far = 1 + 1 / 4, 1 / 4
    upper = torch.tensor([[far, near, far]]).double()
    lower = torch.tensor([[far, far, far], [far, near, far]]).double()
    expected = torch.cat([upper / upper.norm(), -lower / lower.norm()])
    torch.testing.assert_close(bump(3, like=expected), expected / expected.norm(), rtol=0, atol=1e-15)
    assert bump(1, like=expected).tolist() == [[-1.0]]


def test_l2_starts_on_tiles_all_over_the_image() -> None:
    """Tiles of 12 div 5 = 2 on 12 x 17: all rows, and all but the seventeenth column; at the radius."""
    origin = torch.full((5, 2, 12, 17), 0.5, dtype=torch.float64)
    n, _ = Bumps().n_uniforms((2, 12, 17))
    assert n == 6 * 8 * 3
    u = INIT.uniform(origin.new_empty(5, n), kind=Kind.ATTACK)
    change = Bumps().start(Ball("l2", 0.5), origin, u) - origin
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((5,), 0.5).double())
    assert bool((change[..., :16] != 0).all())
    assert not bool(change[..., 16].any())
    tiles = change.unfold(2, 2, 2).unfold(3, 2, 2)
    torch.testing.assert_close(tiles.square().sum((4, 5)), torch.full((5, 2, 6, 8), 0.25 / 96).double())
    # Each tile is a bump, upright or transposed, of either sign: two pixels up and two down.
    assert float(tiles.sum((4, 5)).abs().max()) < 1e-15
    upright = (tiles[..., 0, 0] * tiles[..., 0, 1] > 0).flatten(1).double()
    assert 0.2 < float(upright.mean()) < 0.8


def test_l2_moves_mass_from_one_window_to_another_and_stays_at_the_radius() -> None:
    origin = torch.full((5, 2, 8, 9), 0.5, dtype=torch.float64)
    ball, moves = Ball("l2", 0.5), Bumps()
    best = ball.project(origin + randn(5, 2, 8, 9, seed=1), origin)
    u = INIT.uniform(origin.new_empty(5, 7), kind=Kind.ATTACK)
    u[:, :2], u[:, 2:4] = 0.0, 0.999
    change = moves.propose(ball, origin, best, 0.1, u) - origin
    before = best - origin
    assert moves.side((2, 8, 9), 0.1) == 3
    torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((5,), 0.5).double())
    assert not bool(change[:, :, -3:, -3:].any()), "the second window is emptied"
    rest = torch.ones(8, 9, dtype=torch.bool)
    rest[:3, :3] = rest[-3:, -3:] = False
    torch.testing.assert_close(change[:, :, rest], before[:, :, rest], rtol=0, atol=1e-12)
    mass = before[:, :, :3, :3].square().sum((2, 3)) + before[:, :, -3:, -3:].square().sum((2, 3))
    torch.testing.assert_close(change[:, :, :3, :3].square().sum((2, 3)), mass, rtol=0, atol=1e-12)


# --- linear models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [margin, cross_entropy])
def test_linf_reaches_the_optimum_of_a_linear_model(loss) -> None:
    images = 0.4 + 0.2 * rand(5, 1, 3, 4, seed=1)
    got = Square(Ball("linf", 0.1), n_queries=400, loss=loss, renew=None)(two, images, LABELS, init=INIT)
    torch.testing.assert_close(got.images[0], images + 0.1 * W.sign(), rtol=0, atol=1e-12)
    assert (got.spent[:, 0].tolist(), got.spent[:, 1].tolist()) == ([0] * 5, [401] * 5)


@pytest.mark.slow
def test_l2_comes_near_the_optimum_of_a_linear_model() -> None:
    """As near as windows of 3 pixels come on 3 x 4; the start alone gains next to nothing."""
    images = 0.4 + 0.2 * rand(5, 1, 3, 4, seed=1)
    got = Square(Ball("l2", 0.1), n_queries=600, renew=None)(two, images, LABELS, init=INIT)
    gain = margin(two(got.images[0]), LABELS) - margin(two(images), LABELS)
    assert float(gain.min()) > 0.65 * 0.1 * float(W.norm())
    assert float(got.loss[0].mean() - margin(two(images), LABELS).mean()) < 0.3 * 0.1 * float(W.norm())
    assert float(gain.max()) <= 0.1 * float(W.norm()) * (1 + 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_broken_beyond_its_margin_and_never_before(norm: str) -> None:
    dual = float(W.abs().sum()) if norm == "linf" else float(W.norm())
    images = torch.full((5, 1, 3, 4), 0.5, dtype=torch.float64)
    attack = Square(Ball(norm, 0.1), n_queries=300, finish=0.5, common=2)
    for bias, breaks in ((0.1 * dual * 1.0001, False), (0.1 * dual * 0.6, True)):
        got = attack(lambda x, bias=bias: two(x, bias), images, LABELS, init=INIT)
        assert (got.finished >= 0).tolist() == [breaks] * 5
        for candidate in got.images:
            assert bool((candidate != images).flatten(1).any(1).all()), "never the image itself"
        assert (two(got.images[0], bias).argmax(1) != LABELS).tolist() == [breaks] * 5


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_returns_the_images(norm: str) -> None:
    images = rand(5, 1, 3, 4, seed=1)
    got = Square(Ball(norm, 0.0), n_queries=5)(two, images, LABELS, init=INIT)
    for candidate in got.images:
        torch.testing.assert_close(candidate, images, rtol=0, atol=1e-12)


# --- randomised models -----------------------------------------------------------------------------------------------


class Loud:
    """A linear model under a bias a hundred times as large as anything that an attack can gain, new in each draw."""

    def __init__(self) -> None:
        self.draws: list[set[int]] = []

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        self.draws.append({noise.draws} if isinstance(noise.draws, int) else set(noise.draws))
        return two(x, 100 * noise(x[:, 0, 0, 0], kind=Kind.FORWARD))


@pytest.mark.parametrize("norm", NORMS)
def test_points_are_compared_on_the_same_draws(norm: str) -> None:
    """The same search as without the noise: also just after a renewal, as the best point is asked again."""
    images = 0.4 + 0.2 * rand(5, 1, 3, 4, seed=1)
    attack = Square(Ball(norm, 0.1), n_queries=60, eot=3, renew=7)
    quiet = attack(two, images, LABELS, init=INIT)
    loud = attack(Loud(), images, LABELS, init=INIT, eot=EOT)
    torch.testing.assert_close(loud.images[0], quiet.images[0], rtol=0, atol=1e-12)
    assert float((loud.loss - quiet.loss).abs().max()) > 10


def test_draws_are_renewed_and_the_best_point_asked_again() -> None:
    model, images = Loud(), rand(5, 1, 3, 4, seed=1)
    attack = Square(Ball("linf", 0.1), n_queries=9, eot=2, renew=4)
    got = attack(model, images, LABELS, init=INIT, eot=EOT)
    # The start and queries 0 to 3; best and queries 4 to 7; best and query 8.
    assert model.draws == [{0, 1}] * 5 + [{2, 3}] * 5 + [{4, 5}] * 2
    assert got.spent.tolist() == [[0, 24]] * 5
    assert attack.cost == (0, 24, 2, ())
    assert replace(attack, n_queries=8).cost.forwards == 20
    fixed = replace(attack, renew=None)
    model.draws.clear()
    assert fixed(model, images, LABELS, init=INIT, eot=EOT).images.shape[0] == fixed.n_candidates == 1
    assert model.draws == [{0, 1}] * 10
    assert fixed.cost == (0, 20, 2, ())


def test_the_second_candidate_is_best_on_draws_that_it_was_not_chosen_on() -> None:
    """Draws 0 to 3 are used in turn; the largest bias in the attacker's favour is that of draw 2."""
    favour = torch.tensor([0.0, 5.0, 50.0, 9.0]).double()
    seen: list[Tensor] = []

    def model(x: Tensor, noise: Noise) -> Tensor:
        seen.append(x.clone())
        return two(x, -favour[list(noise.draws)])

    images = 0.4 + 0.2 * rand(5, 1, 3, 4, seed=1)
    attack = Square(Ball("linf", 0.1), n_queries=16, renew=4)
    got = attack(model, images, LABELS, init=INIT, eot=EOT)
    # Start, 4 queries, best, 4 queries, best: the eleventh call is the second renewal's.
    torch.testing.assert_close(got.images[1], seen[10], rtol=0, atol=0)
    assert bool((two(got.images[0])[:, 1] >= two(got.images[1])[:, 1]).all())
    assert not torch.equal(got.images[0], got.images[1])


class Lucky:
    """Wrong in some draws whatever the image, and right in all others; counts what was asked of the common tape."""

    def __init__(self, wrong: set[int]) -> None:
        self.wrong, self.common = wrong, 0

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        bias = torch.tensor([-9.0 if d in self.wrong else 9.0 for d in noise.draws]).double()
        self.common += sum(d >= COMMON for d in noise.draws)
        return two(x, bias)


def test_lucky_draws_do_not_finish_an_image() -> None:
    images = rand(5, 1, 3, 4, seed=1)
    attack = Square(Ball("linf", 0.1), n_queries=10, eot=2, renew=3, finish=0.6, common=4)
    # The search's own draws are wrong all along, and half of the common tape.
    half = Lucky({*range(20), COMMON, COMMON + 2})
    got = attack(half, images, LABELS, init=INIT, eot=EOT)
    assert got.finished.tolist() == [-1] * 5
    assert half.common == 5 * 4 * 4, "at queries 0, 3, 6 and 9"
    assert attack.cost == (0, (1 + 10 + 3) * 2 + 4 * 4, 4, ())
    assert got.spent[:, 1].tolist() == [attack.cost.forwards] * 5
    # Half of the search's draws are wrong: the common tape is not asked.
    some = Lucky({*range(0, 20, 2), *range(COMMON, COMMON + 4)})
    assert attack(some, images, LABELS, init=INIT, eot=EOT).finished.tolist() == [-1] * 5
    assert some.common == 0
    # Three of four of the common tape are enough, and the image is left at once.
    most = Lucky({*range(20), *range(COMMON, COMMON + 3)})
    got = attack(most, images, LABELS, init=INIT, eot=EOT)
    assert got.finished.tolist() == [0] * 5
    assert got.spent.tolist() == [[0, 2 + 4]] * 5
    assert got.loss.isfinite().sum(0).tolist() == [1] * 5


def test_the_common_tape_is_not_asked_twice_about_the_same_point() -> None:
    """Nothing is better than the start, as the loss does not depend on the image; without renewals."""

    def constant(x: Tensor, noise: Noise) -> Tensor:
        counted.append(sum(d >= COMMON for d in noise.draws))
        z = torch.tensor([-1.0 if d >= COMMON else 1.0 for d in noise.draws]).double()
        return torch.stack([0 * z, z], dim=1)

    counted: list[int] = []
    attack = Square(Ball("linf", 0.1), n_queries=6, renew=None, finish=1.0, common=4)
    attack(constant, rand(5, 1, 3, 4, seed=1), LABELS, init=INIT, eot=EOT)
    assert sum(counted) == 5 * 4
    assert attack.cost.forwards == 7 + 6 * 4


# --- addresses, settings, contract -----------------------------------------------------------------------------------


def test_numbers_beyond_the_steps_of_a_round() -> None:
    assert numbered(INIT, 65535) == (INIT, 65535)
    assert numbered(INIT, 65536) == (INIT.in_round(1), 0)
    assert numbered(INIT.in_round(2), 3 * 65536 + 7) == (INIT.in_round(5), 7)


def test_settings() -> None:
    attack = Square(Ball("linf", 0.1), n_queries=7, moves=FlatSquares())
    assert attack.at(0.2) == replace(attack, ball=Ball("linf", 0.2))
    assert Square(Ball("linf", 0.1)).proposer == FlatSquares()
    assert Square(Ball("l2", 0.1)).proposer == Bumps()
    assert str(replace(attack, n_queries=5000, renew=None).cost) == "5,001 forwards"
    for wrong in ({"n_queries": 0}, {"p_init": 0.0}, {"eot": 0}, {"renew": 0}, {"finish": 1.5}, {"common": 0}):
        with pytest.raises(InputError):
            replace(attack, **wrong)
    with pytest.raises(InputError):
        Bumps(offset=-1)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 5), (2, 1, 7)])
@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_square_keeps_the_contract(norm: str, randomised: bool, shape: tuple[int, int, int]) -> None:
    keeps_the_contract(Square(Ball(norm, 0.1), n_queries=8, eot=2, renew=3), randomised=randomised, shape=shape)
