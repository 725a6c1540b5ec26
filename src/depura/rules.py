"""Deployed rules: how a prediction is made from several purifications of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check


class Rule(Protocol):
    """How a prediction is made from several purifications of one image.

    A rule of one's own needs no more than the two members below. To be attacked by gradients, its scores must have one:
    see `Vote` for scores that are counts and have the gradient of mean probabilities.
    """

    @property
    def n_draws(self) -> int:
        """Purifications per prediction."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Combine.

        Args:
            logits: (B, n_draws, K), all finite: a `Defence` sees to images with others itself.

        Returns:
            (B, K), whose largest entry is the deployed prediction.
        """
        ...


@dataclass(frozen=True)
class Single:
    """One purification, its logits."""

    n_draws: int = 1

    def __post_init__(self) -> None:
        if self.n_draws != 1:
            _check.fail("Single", "n_draws = 1", f"{self.n_draws}", "Use Vote or MeanProb.")

    def scores(self, logits: Tensor) -> Tensor:
        """The logits themselves."""
        return logits[:, 0]


@dataclass(frozen=True)
class MeanLogit:
    """The mean of the logits of several purifications."""

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("MeanLogit", "n_draws", self.n_draws, low=1)

    def scores(self, logits: Tensor) -> Tensor:
        """Mean logits."""
        return logits.mean(1)


@dataclass(frozen=True)
class MeanProb:
    """The mean of the softmax probabilities of several purifications; scores are its logarithm."""

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("MeanProb", "n_draws", self.n_draws, low=1)

    def scores(self, logits: Tensor) -> Tensor:
        """log mean softmax."""
        return torch.logsumexp(torch.log_softmax(logits, dim=2), dim=1) - torch.log(
            torch.tensor(float(self.n_draws), dtype=logits.dtype, device=logits.device)
        )


@dataclass(frozen=True)
class Vote:
    """The most frequent label of several purifications.

    Ties go to the class of the lowest mean rank (0 for the highest logit of a draw), then to the lowest index. Scores
    are log shares of the votes, smoothed by 1 / K of a vote, with half a vote more for the winner. Votes are
    piecewise constant, so the gradient is that of `MeanProb` with as many draws.
    """

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("Vote", "n_draws", self.n_draws, low=1)

    def winner(self, logits: Tensor) -> Tensor:
        """The deployed label, (B,) int64, of logits (B, n_draws, K)."""
        _, n, k = logits.shape
        order = logits.argsort(dim=2, descending=True, stable=True)
        ranks = order.argsort(dim=2).sum(1)
        votes = F.one_hot(order[:, :, 0], k).sum(1)
        index = torch.arange(k, device=logits.device)
        return ((votes * (n * k) + (n * k - 1 - ranks)) * k + (k - 1 - index)).argmax(1)

    def scores(self, logits: Tensor) -> Tensor:
        """Smoothed log shares of the votes."""
        k = logits.shape[2]
        counts = F.one_hot(logits.argmax(2), k).sum(1).to(logits.dtype)
        votes = counts + 0.5 * F.one_hot(self.winner(logits), k) + 1 / k
        value = torch.log(votes / votes.sum(1, keepdim=True))
        soft = MeanProb(self.n_draws).scores(logits)
        return value.detach() + (soft - soft.detach())
