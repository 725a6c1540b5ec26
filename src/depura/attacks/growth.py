"""Draws of a gradient that grow: few while two halves of them agree, up to all where they do not.

Whether the mean of m draws points anywhere is told by its halves: where these have cosine c on average, the mean of all
m has cosine sqrt(2 c / (1 + c)) with the gradient of the expectation (Spearman 1910 and Brown 1910, of halves of a
test).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.attacks.eot import Combine, Draws, Health, health
from depura.attacks.losses import Loss
from depura.attacks.queries import Queries


@dataclass(frozen=True)
class Growth:
    """Few draws per gradient at first; twice as many where two halves of them disagree, up to the attack's `eot`.

    An image begins with `start` draws. Where at a point the cosine of the mean gradients of the two halves is below
    `agreement`, or one of them is zero or not finite, as many draws again are made at that point and joined to them,
    until the halves agree or there are `eot`. At its next point the image begins with the number it has come to. So no
    gradient of fewer than `eot` draws is followed where its halves disagree, and draws are never made twice.

    Attributes:
        start: draws at first, at least 2.
        agreement: cosine, in (0, 1].
    """

    start: int = 4
    agreement: float = 0.5

    def __post_init__(self) -> None:
        _check.integer("Growth", "start", self.start, low=2)
        _check.number("Growth", "agreement", self.agreement, low=0.0, high=1.0, low_open=True)

    def levels(self, eot: int) -> tuple[int, ...]:
        """The numbers of draws there may be at a point, rising, the last one `eot`."""
        found, m = list[int](), self.start
        while m < eot:
            found.append(m)
            m *= 2
        return (*found, eot)


class Looked(NamedTuple):
    """What the draws at R points said.

    Attributes:
        loss: (R,), mean over the draws.
        gradient: (R, C, H, W).
        wrong: (R,), whether every draw is misclassified.
        health: what the gradients tell about themselves.
        drawn: (R,) int64, how many draws there were.
    """

    loss: Tensor
    gradient: Tensor
    wrong: Tensor
    health: Health
    drawn: Tensor


def look(
    queries: Queries,
    x: Tensor,
    loss: Loss,
    *,
    draws: range,
    combine: Combine,
    growth: Growth | None,
    drawn: Tensor,
    at: Tensor,
    targets: Tensor | None = None,
) -> Looked:
    """Loss and gradient at some points.

    Args:
        queries: the model.
        x: points, (R, C, H, W).
        loss: one number per row.
        draws: draw numbers, the most that are made of a point; with fewer, the first of them.
        combine: how the gradients of the draws become one.
        growth: when there are how many; None makes all of them.
        drawn: (R,) int64, draws that each row begins with, at least.
        at: (R,), which image each row is a point for.
        targets: (R,), classes aimed at.

    Returns:
        What was seen.
    """
    levels = (len(draws),) if growth is None else growth.levels(len(draws))
    rows, before = torch.arange(len(x), device=x.device), 0
    made: Draws | None = None
    parts: list[tuple[Tensor, Looked]] = []
    for m in levels:
        aims = None if targets is None else targets[rows]
        new = queries.gradient(x[rows], loss, draws=draws[before:m], at=at[rows], targets=aims)
        made, before = new if made is None else _joined(made, new), m
        seen = health(made.gradients)
        more = torch.zeros_like(rows, dtype=torch.bool)
        if growth is not None and m < len(draws):
            more = (drawn[rows] > m) | ~(seen.agreement >= growth.agreement)
        parts.append((rows[~more], _seen(_some(made, ~more), Health(*(v[~more] for v in seen)), combine)))
        rows, made = rows[more], _some(made, more)
        if len(rows) == 0:
            break
    order = torch.cat([own for own, _ in parts]).argsort()
    values = [torch.cat(column)[order] for column in zip(*(part[:3] for _, part in parts), strict=True)]
    healths = [torch.cat(column)[order] for column in zip(*(part.health for _, part in parts), strict=True)]
    counts = torch.cat([part.drawn for _, part in parts])[order]
    return Looked(values[0], values[1], values[2], Health(*healths), counts)


def _seen(draws: Draws, told: Health, combine: Combine) -> Looked:
    n = torch.full(draws.wrong.shape[:1], draws.wrong.shape[1], dtype=torch.int64, device=draws.wrong.device)
    return Looked(draws.loss(), draws.gradient(combine), draws.wrong.all(1), told, n)


def _joined(draws: Draws, more: Draws) -> Draws:
    """Draws of the same rows, one after another."""
    losses, gradients, wrong = (
        torch.cat([getattr(d, name) for d in (draws, more)], dim=1) for name in Draws._fields[:3]
    )
    return Draws(losses, gradients, wrong, more.rows)


def _some(draws: Draws, rows: Tensor) -> Draws:
    if bool(rows.all()):
        return draws
    return Draws(draws.losses[rows], draws.gradients[rows], draws.wrong[rows], draws.rows)
