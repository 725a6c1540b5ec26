"""Cheap indicators of how a purifier treats a perturbation, without gradients; cf. arXiv:2505.22839.

They judge nothing. A purifier may contract the distance that an attack made and still move the image over the border
of its class, and a defence that errs at random looks better or worse under one fixed tape than it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from depura import _check
from depura.defence import Defence, Single, predicted
from depura.diffusion.schedules import VP, Step, uniform_steps
from depura.diffusion.solvers import Euler
from depura.evaluation.scoring import for_scoring
from depura.noise import Kind, Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier


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
    """Labels that the deployed rule gives when its randomness is pinned: one tape, the same for all images.

    The tape is that of image id 0 at the noise's (first) draw, so it does not depend on the batch. A vote is over as
    many purifications as ever, the same ones for every image; `FixedNoise` has a tape for good, on the deploy stream.

    Args:
        defence: what is asked.
        images: (B, C, H, W) in [0, 1].
        noise: its seed, stream and draw name the tape; one image id per row, which do not matter.

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


ROWS_PER_CALL = 512


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
    """A walk whose denoiser answers with what it is given, so that no step moves: the identity, but for rounding."""
    return DiffusionPurifier(
        _as_given, steps=uniform_steps(VP(), t_start=0.1, n_steps=2), solver=Euler(), start=_from_image
    )


@torch.no_grad()
def identity_difference(defence: Defence, images: Tensor, *, seed: int) -> Difference:
    """Compare a classifier by itself with the same one behind a purifier that does nothing.

    Args:
        defence: whose classifier it is.
        images: (B, C, H, W) in [0, 1].
        seed: of the noise that the walk is handed and does not use.

    Returns:
        The difference; none of a sound pipeline but the rounding of [0, 1] to [-1, 1] and back.
    """
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
