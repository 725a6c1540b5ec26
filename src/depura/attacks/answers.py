"""Losses and predictions from the same evaluations, for attacks that use no gradients."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from depura.attacks.losses import Loss
from depura.attacks.queries import Queries


class Answers(NamedTuple):
    """What m draws of each of R points said.

    Attributes:
        losses: (R, m).
        wrong: (R, m), whether each draw is misclassified.
    """

    losses: Tensor
    wrong: Tensor


def ask(queries: Queries, x: Tensor, loss: Loss, *, draws: range, at: Tensor) -> Answers:
    """Ask for losses and predictions.

    Args:
        queries: the model.
        x: points, (R, C, H, W).
        loss: one number per row.
        draws: draw numbers.
        at: (R,), which image each row is a point for.

    Returns:
        The answers.
    """
    m = len(draws)
    logits = queries.logits(x, draws=draws, at=at).flatten(0, 1)
    labels = queries.labels[at].repeat_interleave(m)
    return Answers(loss(logits, labels).reshape(-1, m), (logits.argmax(1) != labels).reshape(-1, m))
