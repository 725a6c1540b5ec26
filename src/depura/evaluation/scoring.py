"""Scoring: what a defence says of images on fresh draws, and which candidate of an attack is the worst."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.attacks.losses import margin
from depura.attacks.queries import Log
from depura.defence import Defence, predicted
from depura.noise import Noise, Stream
from depura.records.kinds import NOT_FINITE

SCORING = (Stream.SELECT, Stream.REPORT, Stream.NULL, Stream.VERIFY)
"""The streams that scores may be computed on."""


def for_scoring(noise: Noise) -> Noise:
    """The same noise, refused where it is of no scoring stream: where it belongs to an attack or to deployment."""
    if noise.stream not in SCORING:
        _check.fail(
            "score",
            "noise of the select, report, null or verify stream",
            f"the {noise.stream.name.lower()} stream",
            "A score on draws that an attack has seen says nothing.",
        )
    return noise


ROWS_PER_CALL = 512
"""Images times draws put through the defence at once. Fixed, so that a unit's floating-point sums are too."""


class Scores(NamedTuple):
    """Outcome of K draws for each image.

    A draw with a purified pixel, a logit or a margin that is not finite has an outcome of its own, never a right one.

    Attributes:
        predictions: (B, K) int64, the deployed label of each draw; -1 where the outcome is not finite.
        margins: (B,) float64, mean over the other draws of max_{j != y} z_j - z_y; NaN where there are none.
        not_finite: (B,) int64, draws whose outcome is not finite.
    """

    predictions: Tensor
    margins: Tensor
    not_finite: Tensor

    def errors(self, labels: Tensor) -> Tensor:
        """Wrong draws of each image, (B,); among them those that are not finite."""
        return (self.predictions != labels[:, None]).sum(1)


def eight_bit(images: Tensor) -> Tensor:
    """Images in [0, 1] as a file of 8 bits per channel would keep them: the nearest of 256 levels, (B, C, H, W).

    A change moves by up to half a level, so that it may leave its ball by as much.
    """
    return (images * 255).round() / 255


@torch.no_grad()
def score(
    defence: Defence, images: Tensor, labels: Tensor, noise: Noise, *, draws: range, log: Log | None = None
) -> Scores:
    """Put images through the deployed rule.

    Args:
        defence: what is judged.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), true classes.
        noise: of a scoring stream, one image id per row.
        draws: draw numbers.
        log: of answers that were had before.

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
    finite = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for k in range(0, len(draws), at_once):
        part = draws[k : k + at_once]
        asked = (images.repeat_interleave(len(part), dim=0), noise.expand(part))
        (logits,) = (defence(*asked),) if log is None else log.answer(asked, lambda asked=asked: (defence(*asked),))
        _check.labels("score", labels, n_images=len(images), n_classes=logits.shape[1])
        margins = margin(logits, labels.repeat_interleave(len(part)))
        outcome = torch.where(margins.isfinite(), predicted(logits), NOT_FINITE).reshape(len(images), len(part))
        predictions.append(outcome)
        margins = torch.where(outcome != NOT_FINITE, margins.reshape(outcome.shape), 0.0)
        total += margins.to(torch.float64).sum(1)
        finite += (outcome != NOT_FINITE).sum(1)
    return Scores(torch.cat(predictions, dim=1), total / finite, len(draws) - finite)


class Choice(NamedTuple):
    """The candidate chosen for each image.

    Attributes:
        images: (B, C, H, W).
        which: (B,), its number.
        errors: (n, B), wrong draws of every candidate.
        margins: (B,), mean margin of the chosen one; NaN where none of its draws is finite.
        not_finite: (n, B), draws of every candidate whose outcome is not finite.
    """

    images: Tensor
    which: Tensor
    errors: Tensor
    margins: Tensor
    not_finite: Tensor


def choose(
    defence: Defence, candidates: Tensor, labels: Tensor, noise: Noise, *, draws: range, log: Log | None = None
) -> Choice:
    """The candidate with the most wrong draws; ties by the larger mean margin, then by the lower index.

    A mean margin that is not a number counts as the largest.

    Args:
        defence: what is judged.
        candidates: (n, B, C, H, W).
        labels: (B,).
        noise: of a scoring stream other than the one to report on.
        draws: draw numbers, the same for all candidates.
        log: of answers that were had before.

    Returns:
        The choice.
    """
    scores = [score(defence, c, labels, noise, draws=draws, log=log) for c in candidates]
    errors = torch.stack([s.errors(labels) for s in scores])
    margins = torch.stack([s.margins for s in scores])
    by = torch.where(margins.isnan(), torch.inf, margins)
    index = torch.where(errors == errors.amax(0), by, -torch.inf).argmax(0)
    rows = torch.arange(len(labels), device=index.device)
    not_finite = torch.stack([s.not_finite for s in scores])
    return Choice(candidates[index, rows], index, errors, margins[index, rows], not_finite)
