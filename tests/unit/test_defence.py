"""The rules of deployment against brute force, scipy and single draws assembled by hand; what is a prediction."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch

from depura.defence import Defence, MeanProb, Single, Vote, all_finite, predicted, same_answers
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import NOT_FINITE
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


SOURCE = Path(__file__).parents[2] / "src" / "depura"
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ([1.0, 3.0, 2.0], 1),
        ([0.0, 0.0, 0.0], 0),
        ([-5.0, 2.0, 2.0], 1),
        ([3e38, -3e38, 0.0], 0),
        ([NAN, 3.0, 2.0], NOT_FINITE),
        ([1.0, 3.0, NAN], NOT_FINITE),
        ([INF, 3.0, 2.0], NOT_FINITE),
        ([1.0, -INF, 2.0], NOT_FINITE),
        ([NAN, NAN, NAN], NOT_FINITE),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_class_or_none(logits: list[float], label: int, dtype: torch.dtype) -> None:
    found = predicted(torch.tensor(logits, dtype=dtype))
    assert (found.dtype, found.shape, int(found)) == (torch.int64, (), label)


def test_every_row_by_itself() -> None:
    logits = torch.tensor([[[0.0, 1.0], [NAN, 1.0]], [[2.0, 1.0], [0.0, INF]]])
    assert predicted(logits).tolist() == [[1, -1], [0, -1]]
    assert predicted(torch.zeros(0, 4, 3)).shape == (0, 4)
    assert all_finite(logits).tolist() == [False, False]
    assert all_finite(logits[:, 0]).tolist() == [True, True]


def test_no_class_is_no_class() -> None:
    """It is no index, and equal to no label that a data set may have."""
    assert NOT_FINITE == -1


def test_answers_are_the_same_where_both_are_no_numbers() -> None:
    a = torch.tensor([1.0, NAN, INF])
    assert same_answers(a, a.clone())
    for k, other in ((0, 1.0000001), (0, NAN), (1, 0.0), (2, -INF), (2, NAN)):
        b = a.clone()
        b[k] = other
        assert not same_answers(a, b)
        assert not same_answers(b, a)


def test_predictions_are_made_in_one_place() -> None:
    """Of the files that compute with tensors, few look for the largest number, and these where all are finite."""
    found: set[str] = set()
    for file in SOURCE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        if "torch" in modules and any(isinstance(node, ast.Attribute) and node.attr == "argmax" for node in nodes):
            found.add(file.relative_to(SOURCE).as_posix())
    assert found == {
        "defence.py",  # which hands on finite logits only to its rules
        "attacks/threat.py",  # of whether a sum has been reached
        "attacks/selective.py",  # of steps made of finite gradients
        "evaluation/diagnostics.py",  # of whether an answer was wrong
        "evaluation/scoring.py",  # of margins, where no number counts as the largest
    }
