"""The rules of deployment against brute force, scipy and single draws assembled by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from depura.defence import Defence, MeanProb, Single, Vote
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from toys import TanhClassifier, rand, randn, tanh_eps


def ballot(logits: list[list[float]]) -> int:
    """The label of the most votes; then of the lowest mean rank; then of the lowest index."""
    k = len(logits[0])
    orders = [sorted(range(k), key=lambda j, row=row: (-row[j], j)) for row in logits]
    votes = [sum(order[0] == j for order in orders) for j in range(k)]
    ranks = [sum(order.index(j) for order in orders) / len(orders) for j in range(k)]
    return min(range(k), key=lambda j: (-votes[j], ranks[j], j))


@pytest.mark.parametrize(("n", "k", "top"), [(1, 3, 2), (2, 2, 2), (3, 4, 3), (5, 3, 2), (10, 10, 4), (4, 2, 50)])
def test_vote_against_brute_force(n: int, k: int, top: int) -> None:
    """Small whole-number logits, so that ties within a draw and between labels are common."""
    logits = np.random.RandomState(n * k).randint(0, top + 1, size=(400, n, k)).astype(np.float64)
    rule = Vote(n)
    expected = [ballot(row) for row in logits.tolist()]
    assert rule.winner(torch.from_numpy(logits)).tolist() == expected
    scores = rule.scores(torch.from_numpy(logits))
    assert scores.argmax(1).tolist() == expected
    assert bool(scores.isfinite().all())
    np.testing.assert_allclose(scores.exp().sum(1).numpy(), 1, rtol=1e-6)


def test_ties_of_a_vote() -> None:
    votes = {
        "two to one": ([[9, 0, 0], [9, 0, 0], [0, 9, 0]], 0),
        "one each, lower mean rank wins": ([[9, 5, 0], [0, 9, 5], [5, 0, 9]], 0),
        "one each, label 1 is second elsewhere": ([[9, 5, 0], [0, 9, 5], [0, 5, 9]], 1),
        "one each and equal ranks, lowest index": ([[9, 5], [5, 9]], 0),
    }
    for name, (logits, winner) in votes.items():
        assert int(Vote(len(logits)).winner(torch.tensor([logits]).double())[0]) == winner, name


def test_scores_of_a_vote_order_labels_by_votes() -> None:
    logits = torch.tensor([[[9.0, 0, 1], [9, 0, 1], [9, 1, 0], [0, 9, 1]]])
    expected = torch.tensor([3 + 0.5 + 1 / 3, 1 + 1 / 3, 1 / 3])
    torch.testing.assert_close(Vote(4).scores(logits)[0], torch.log(expected / expected.sum()))


@pytest.mark.parametrize("n", [1, 4])
def test_mean_of_probabilities_against_scipy(n: int) -> None:
    logits = 5 * randn(20, n, 6, seed=n)
    expected = np.log(scipy.special.softmax(logits.numpy(), axis=2).mean(1))
    np.testing.assert_allclose(MeanProb(n).scores(logits).numpy(), expected, rtol=1e-12, atol=1e-14)
    extreme = torch.tensor([[[1000.0, 0.0], [0.0, 1000.0]]], dtype=torch.float64)
    np.testing.assert_allclose(MeanProb(2).scores(extreme).numpy(), np.log([[0.5, 0.5]]), atol=1e-12)


def test_single_is_the_logits() -> None:
    logits = randn(5, 1, 3)
    assert torch.equal(Single().scores(logits), logits[:, 0])


@pytest.mark.parametrize("rule", [Single(), MeanProb(1), MeanProb(4), Vote(1), Vote(4)], ids=str)
@pytest.mark.parametrize("draws", [0, 3, (2, 9, 0)])
def test_draw_d_of_a_rule_is_made_of_draws_dn_to_dn_plus_n(rule, draws) -> None:
    purifier = DiffusionPurifier(tanh_eps(), steps=uniform_steps(VP(), t_start=0.3, n_steps=3), solver=Ancestral())
    classifier = TanhClassifier(16)
    defence = Defence(purifier, classifier, rule=rule)
    x, ids = rand(3, 1, 4, 4), (8, 2, 5)
    n = rule.n_draws
    numbers = (draws,) * 3 if isinstance(draws, int) else draws
    logits = torch.stack(
        [
            torch.cat(
                [
                    classifier(purifier(x[row : row + 1], Noise(1, (ids[row],), numbers[row] * n + j, Stream.REPORT)))
                    for j in range(n)
                ]
            )
            for row in range(3)
        ]
    )
    got = defence(x, Noise(1, ids, draws, Stream.REPORT))
    torch.testing.assert_close(got, rule.scores(logits), rtol=0, atol=1e-12)


def test_one_draw_of_a_rule_does_not_reuse_those_of_another() -> None:
    purifier = DiffusionPurifier(tanh_eps(), steps=uniform_steps(VP(), t_start=0.3, n_steps=3), solver=Ancestral())
    defence = Defence(purifier, TanhClassifier(16), rule=MeanProb(3))
    x = rand(1, 1, 4, 4)
    values = [defence(x, Noise(1, (0,), d)) for d in range(4)]
    for i in range(4):
        for j in range(i):
            assert float((values[i] - values[j]).abs().max()) > 1e-6
