"""Losses that attacks maximise: logits (B, K) and labels (B,) to one number per image, (B,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check

Loss = Callable[..., Tensor]
"""(logits (B, K), labels (B,)) -> (B,), larger is worse for the classifier; targeted ones take targets (B,) as well."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax_y. Its gradient vanishes on draws that are confidently right."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive where the prediction is wrong. Carlini and Wagner 2017, without a floor."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits.gather(1, labels[:, None])[:, 0]


@dataclass(frozen=True)
class BoundedMargin:
    """sigmoid(margin / tau): close to the probability of an error, so that draws near the boundary weigh most.

    Attributes:
        tau: width, in logits.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        _check.number("BoundedMargin", "tau", self.tau, low=0.0, low_open=True)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        return torch.sigmoid(margin(logits, labels) / self.tau)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)): blind to the scale of the logits.

    Croce and Hein 2020 (arXiv:2003.01690), equation (6). Constant (1) where the label ranks third or lower.

    Args:
        logits: (B, K), K >= 3.
        labels: (B,).

    Returns:
        (B,).

    Raises:
        InputError: fewer than three classes.
    """
    if logits.shape[1] < 3:
        _check.fail("dlr", "at least 3 classes", f"{logits.shape[1]}", "Use margin.")
    ranked = logits.sort(1, descending=True).values
    return margin(logits, labels) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    Croce and Hein 2020 (arXiv:2003.01690), equation (7).

    Args:
        logits: (B, K), K >= 4.
        labels: (B,).
        targets: (B,), classes to be taken for.

    Returns:
        (B,).

    Raises:
        InputError: fewer than four classes.
    """
    if logits.shape[1] < 4:
        _check.fail("targeted_dlr", "at least 4 classes", f"{logits.shape[1]}", "Use targeted_margin.")
    ranked = logits.sort(1, descending=True).values
    scale = ranked[:, 0] - 0.5 * (ranked[:, 2] + ranked[:, 3]) + 1e-12
    return targeted_margin(logits, labels, targets) / scale


def targeted_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y, for targets t (B,)."""
    return logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, labels[:, None])[:, 0]


def comparable(losses: Tensor) -> Tensor:
    """Losses as points are compared by them: NaN becomes minus infinity, so that it is never the larger one."""
    return losses.masked_fill(losses.isnan(), -torch.inf)
