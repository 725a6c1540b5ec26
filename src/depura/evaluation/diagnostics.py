"""What a unit records besides its scores: the attack's query log, cosines of cheap gradients, auxiliary indicators.

They judge nothing. An error during a search is no accuracy. A purifier may contract the distance that an attack made
and still move the image over the border of its class (cf. arXiv:2505.22839), and a defence that errs at random looks
better or worse under one fixed noise sample than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depura import _check
from depura.attacks.losses import margin
from depura.attacks.queries import Log, Queries, cosine, mean
from depura.defence import Defence, Single, predicted
from depura.diffusion.schedules import VP, Step, uniform_steps
from depura.diffusion.solvers import Euler
from depura.evaluation.answer_log import PartLog
from depura.evaluation.scoring import ROWS_PER_CALL, for_scoring
from depura.evaluation.study import AttackRun, same_function
from depura.gradients import StraightThrough
from depura.noise import Kind, Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import GradientMode


@torch.no_grad()
def compression(defence: Defence, images: Tensor, perturbed: Tensor, noise: Noise) -> Tensor:
    """How much of a perturbation is left after purification: |P(x + d; w) - P(x; w)|_2 / |d|_2, with the same noise w.

    Below 1 the purifier draws the two together, above 1 it drives them apart. Compare that of adversarial examples
    with that of `random_direction`: what an attack finds is the directions that are kept.

    Args:
        defence: whose purifier it is about.
        images: x, (B, C, H, W) in [0, 1].
        perturbed: x + d, of the same shape; nominally in [0, 1].
        noise: w, one image id per row.

    Returns:
        (B,) float64; NaN where there is no purifier or no perturbation, or where a purified pixel is not finite.

    Raises:
        InputError: images out of range, or of two shapes.
    """
    _check.images("compression", images)
    if images.shape != perturbed.shape:
        _check.fail("compression", f"perturbed images of shape {tuple(images.shape)}", f"{tuple(perturbed.shape)}")
    before = _lengths(perturbed - images)
    if defence.purifier is None:
        return torch.full_like(before, torch.nan)
    after = _lengths(defence.purifier.purify(perturbed, noise) - defence.purifier.purify(images, noise))
    return torch.where((before > 0) & after.isfinite(), after / before, torch.nan)


def random_direction(images: Tensor, length: Tensor, noise: Noise) -> Tensor:
    """Images moved by a given l2 length in a random direction.

    The direction is uniform on the sphere; then elements that would leave [0, 1] move the other way, so that the
    length stays exact. Only an element that moves by more than a half can leave [0, 1] either way, and then it does.

    Args:
        images: (B, C, H, W) in [0, 1].
        length: of each image's perturbation, (B,), >= 0; for comparison that of an attack.
        noise: what the directions are drawn from, with `Kind.ATTACK`.

    Returns:
        The moved images, (B, C, H, W).

    Raises:
        InputError: images out of range, or lengths that are negative, not finite, or not one per image.
    """
    _check.images("random_direction", images)
    if length.shape != (len(images),) or not bool(((length >= 0) & length.isfinite()).all()):
        _check.fail("random_direction", f"{len(images)} lengths, finite and >= 0, one per image", f"{length.tolist()}")
    direction = noise(images.to(torch.float64), kind=Kind.ATTACK)
    scale = length.to(direction) / _lengths(direction)
    moves = (direction * scale[:, None, None, None]).to(images.dtype)
    there, back = images + moves, images - moves
    outside = (there < 0) | (there > 1)
    return torch.where(outside & (back >= 0) & (back <= 1), back, there)


@torch.no_grad()
def pinned_predictions(defence: Defence, images: Tensor, noise: Noise) -> Tensor:
    """Labels that the deployed rule gives under a fixed noise sample, the same for all images.

    The sample is that of image id 0 at the noise's (first) draw, so it does not depend on the batch. A vote is over as
    many purifications as ever, the same ones for every image; `FixedNoise` has one for good, on the deploy stream.

    Args:
        defence: what is asked.
        images: (B, C, H, W) in [0, 1].
        noise: its seed, stream and draw name the sample; one image id per row, which do not matter.

    Returns:
        (B,) int64; -1 where a logit or a purified pixel is not finite.

    Raises:
        InputError: images out of range, noise of a stream that is not for scoring, or of another number of rows.
    """
    for_scoring(noise)
    if len(noise) != len(images):
        _check.fail("pinned_predictions", f"noise of {len(images)} rows, one per image", f"{len(noise)}")
    draw = noise.draws if isinstance(noise.draws, int) else noise.draws[0]
    return predicted(defence(images, replace(noise, images=(0,) * len(noise), draws=draw)))


def _lengths(images: Tensor) -> Tensor:
    """l2 length of each, (B,) float64."""
    return images.to(torch.float64).flatten(1).square().sum(1).sqrt()


class Difference(TypedDict):
    """What the pipeline changes.

    Attributes:
        images: how many were tried.
        predictions: how many are given another label than the classifier alone gives them; no label, where a logit is
            not finite, is another one.
        logits: largest change of a logit, over the largest logit; of those that are finite in both.
    """

    images: int
    predictions: int
    logits: float


def nothing() -> DiffusionPurifier:
    """A purifier whose denoiser returns its input, so that no step moves: the identity, but for rounding."""
    return DiffusionPurifier(
        _as_given, steps=uniform_steps(VP(), t_start=0.1, n_steps=2), solver=Euler(), start=_from_image
    )


@torch.no_grad()
def identity_difference(defence: Defence, images: Tensor, *, seed: int) -> Difference:
    """Compare a classifier by itself with the same one behind a purifier that does nothing.

    Args:
        defence: whose classifier it is.
        images: (B, C, H, W) in [0, 1].
        seed: of the noise that the purifier is given and does not use.

    Returns:
        The difference; none of a sound pipeline but the rounding of [0, 1] to [-1, 1] and back.
    """
    if defence.purifier is None and defence.core is not None:  # a whole defence: nothing can be put in its place
        return {"images": 0, "predictions": 0, "logits": 0.0}
    bare = defence.with_(purifier=None, rule=Single())
    empty = bare.with_(purifier=nothing())
    changed, largest, scale = 0, 0.0, 1e-12
    for k in range(0, len(images), ROWS_PER_CALL):
        part = images[k : k + ROWS_PER_CALL]
        noise = Noise(seed, tuple(range(len(part))), stream=Stream.PROBE)
        alone, behind = bare(part), empty(part, noise)
        changed += int((predicted(alone) != predicted(behind)).sum())
        both = alone.isfinite() & behind.isfinite()
        largest = max(largest, float(torch.where(both, (alone - behind).abs(), 0.0).max()))
        scale = max(scale, float(torch.where(both, alone.abs(), 0.0).max()))
    return {"images": len(images), "predictions": changed, "logits": largest / scale}


def _from_image(x_in: Tensor, step: Step, noise: Noise) -> Tensor:
    del step, noise
    return x_in


def _as_given(x: Tensor, sigma: float) -> Tensor:
    del sigma
    return x


class Logged(nn.Module):
    """A defence with a log of what it was asked, for an attack (see `depura.attacks.queries.Log`)."""

    def __init__(self, defence: Defence, log: Log | None) -> None:
        """A defence and its log."""
        super().__init__()
        self.defence, self.log = defence, log

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits, (B, K), as the defence gives them."""
        return self.defence(images, noise)


class Watched(Logged):
    """A defence that notes, image by image, what it answers. It answers as the defence itself does.

    An error during a search is no accuracy of an adversarial example: with as many draws, images that nobody attacked
    are misclassified too.

    Attributes:
        draws: (B,) int64, draws of the deployed rule that were answered for each image.
        errors: (B,) int64, how many of them were wrong; an answer that is not finite is.
        first: (B,) int64, number of the first wrong draw, from 1; 0 where none was.
        log: of what an attack asked before; None for none.
    """

    def __init__(self, defence: Defence, ids: Sequence[int], labels: Tensor, *, log: Log | None = None) -> None:
        """Watch.

        Args:
            defence: what is asked.
            ids: of the images that are attacked.
            labels: (B,), their classes.
            log: of what an attack asked before.
        """
        super().__init__(defence, log)
        self._rows = {identity: row for row, identity in enumerate(ids)}
        self._labels = labels.cpu().numpy()
        self.draws, self.errors, self.first = (np.zeros(len(ids), dtype=np.int64) for _ in range(3))

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits, (B, K), as the defence gives them.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: of the attack; without it nothing is noted, as nothing says which image is which.

        Returns:
            The logits.
        """
        logits = super().forward(images, noise)
        if noise is not None:
            at = np.array([self._rows[identity] for identity in noise.images])
            self._note(at, predicted(logits).cpu().numpy() != self._labels[at])
        return logits

    def coarser(self, share: int) -> Logged:
        """The defence with one step for every `share` steps. What it answers is not noted, as nobody deploys it."""
        log = None if self.log is None else PartLog(self.log, f"coarser {share}")
        return Logged(self.defence.coarser(share), log)

    def _note(self, at: NDArray[np.int64], wrong: NDArray[np.bool_]) -> None:
        """Rows of images in the order asked, and whether the answer was wrong."""
        for row in np.unique(at[wrong]):
            if not self.first[row]:
                self.first[row] = self.draws[row] + int(wrong[at == row].argmax()) + 1
        np.add.at(self.draws, at, 1)
        np.add.at(self.errors, at[wrong], 1)


def sees_what_is_judged(row: AttackRun) -> bool:
    """Whether the answers an attack gets are those that are judged: the same purifier, classifier and rule."""
    return same_function(row.attacked, row.evaluated)


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


def compares(row: AttackRun) -> bool:
    """Whether a row's attack goes through an exact gradient, so that cheap ones can be compared with it."""
    through = row.mode is GradientMode.EXACT and row.attacked.core is not None
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
    none = torch.full((len(images),), torch.nan, dtype=torch.float64, device=images.device)
    cheap = {
        "bpda": defence.with_(gradient=StraightThrough()) if defence.purifier is not None else None,
        "surrogate": surrogate(defence) if defence.core is not None and defence.core.shortens else None,
    }

    def gradient(model: Defence) -> Tensor:
        queries = Queries("surrogates", model, images, labels, noise=noise, rows=rows)
        return mean(queries.gradient(images, margin, draws=draws).gradients)

    exact = gradient(defence)
    return Shortcuts(**{k: none if d is None else cosine(gradient(d), exact) for k, d in cheap.items()})


def surrogate(defence: Defence) -> Defence:
    """The same defence with one step for every five."""
    return defence.coarser(SHARE)
