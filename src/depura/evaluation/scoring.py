"""Scoring: what a defence says of images on fresh draws, and which candidate of an attack is the worst."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.attacks.losses import margin
from depura.defence import Defence
from depura.evaluation.streams import for_scoring
from depura.noise import Noise

ROWS_PER_CALL = 512
"""Images times draws put through the defence at once. Fixed, so that a unit's floating-point sums are too."""


class Scores(NamedTuple):
    """Outcome of K draws for each image.

    Attributes:
        predictions: (B, K) int64, the deployed label of each draw.
        margins: (B,), mean over draws of max_{j != y} z_j - z_y.
    """

    predictions: Tensor
    margins: Tensor

    def errors(self, labels: Tensor) -> Tensor:
        """Wrong draws of each image, (B,)."""
        return (self.predictions != labels[:, None]).sum(1)


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file of 8 bits per channel would keep them: the nearest of 256 levels, (B, C, H, W).

    A change moves by up to half a level, so that it may leave its ball by as much.
    """
    return (images * 255).round() / 255


@torch.no_grad()
def score(defence: Defence, images: Tensor, labels: Tensor, noise: Noise, *, draws: range) -> Scores:
    """Put images through the deployed rule.

    Args:
        defence: what is judged.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), true classes.
        noise: of a scoring stream, one image id per row.
        draws: draw numbers.

    Returns:
        The scores.

    Raises:
        InputError: noise of a stream that is not for scoring, no draws, or labels that are no classes.
    """
    for_scoring(noise)
    if len(draws) == 0:
        _check.fail("score", "at least one draw", "none")
    at_once = max(1, ROWS_PER_CALL // len(images))
    predictions: list[Tensor] = []
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for k in range(0, len(draws), at_once):
        part = draws[k : k + at_once]
        logits = defence(images.repeat_interleave(len(part), dim=0), noise.expand(part))
        _check.labels("score", labels, n_images=len(images), n_classes=logits.shape[1])
        predictions.append(logits.argmax(1).reshape(len(images), len(part)))
        margins = margin(logits, labels.repeat_interleave(len(part)))
        total += margins.reshape(len(images), len(part)).to(torch.float64).sum(1)
    return Scores(torch.cat(predictions, dim=1), total / len(draws))


class Choice(NamedTuple):
    """The candidate chosen for each image.

    Attributes:
        images: (B, C, H, W).
        which: (B,), its number.
        errors: (n, B), wrong draws of every candidate.
        margins: (B,), mean margin of the chosen one.
    """

    images: Tensor
    which: Tensor
    errors: Tensor
    margins: Tensor


def choose(defence: Defence, candidates: Tensor, labels: Tensor, noise: Noise, *, draws: range) -> Choice:
    """The candidate with the most wrong draws; ties by the larger mean margin, then by the lower index.

    Args:
        defence: what is judged.
        candidates: (n, B, C, H, W).
        labels: (B,).
        noise: of a scoring stream other than the one to report on.
        draws: draw numbers, the same for all candidates.

    Returns:
        The choice.
    """
    scores = [score(defence, c, labels, noise, draws=draws) for c in candidates]
    errors = torch.stack([s.errors(labels) for s in scores])
    margins = torch.stack([s.margins for s in scores])
    tied = torch.where(errors == errors.amax(0), margins, -torch.inf)
    index = tied.argmax(0)
    rows = torch.arange(len(labels), device=index.device)
    return Choice(candidates[index, rows], index, errors, margins[index, rows])
