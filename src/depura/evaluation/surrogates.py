"""Would a cheaper gradient have done? The cosine of cheap routes to the exact gradient, for this defence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from depura.attacks.losses import margin
from depura.attacks.queries import Queries, cosine
from depura.defence import Defence
from depura.evaluation.study import Row
from depura.gradients import StraightThrough
from depura.noise import Noise
from depura.records.kinds import GradientMode

SHARE = 5
"""The surrogate makes one step for this many of the whole reverse process."""


class Shortcuts(NamedTuple):
    """Per image, cosines to the exact gradient of the margin, means over the same draws; NaN where one is zero.

    Attributes:
        bpda: of the straight-through gradient, (B,).
        surrogate: of the gradient of a reverse process of a fifth of the steps, (B,).
    """

    bpda: Tensor
    surrogate: Tensor


def compares(row: Row) -> bool:
    """Whether a row's attack goes through an exact gradient, so that cheap ones can be compared with it."""
    through = row.mode is GradientMode.EXACT and row.against.purifier is not None
    return through and row.attack.cost.gradients > 0


def shortcuts(defence: Defence, images: Tensor, labels: Tensor, noise: Noise, *, draws: range, rows: int) -> Shortcuts:
    """Compare cheap gradients with the defence's own.

    Args:
        defence: a purifier and a classifier, with an exact route.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), int64.
        noise: of a stream that nothing is judged on.
        draws: draw numbers.
        rows: images times draws in one call.

    Returns:
        The cosines.
    """
    assert defence.purifier is not None
    cheap = (defence.with_(gradient=StraightThrough()), surrogate(defence))
    exact, *others = (
        Queries("surrogates", model, images, labels, noise=noise, rows=rows)
        .gradient(images, margin, draws=draws)
        .gradient()
        for model in (defence, *cheap)
    )
    return Shortcuts(*(cosine(other, exact) for other in others))


def surrogate(defence: Defence) -> Defence:
    """The same defence with one step for every five."""
    return defence.coarser(SHARE)
