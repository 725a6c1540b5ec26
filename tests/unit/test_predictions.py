"""What counts as a prediction, and where in the library one is made."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch

from depura.defence import all_finite, predicted, same_answers
from depura.records.kinds import NOT_FINITE

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
