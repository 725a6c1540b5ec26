"""A purifier that does nothing, in the place of the real one: does the pipeline itself change a prediction?"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from depura.defence import Defence
from depura.noise import Noise, Stream
from depura.predictions import predicted
from depura.purifier import Purifier
from depura.rules import Single
from depura.schedules import VP, Step, uniform_steps
from depura.solvers import Euler

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


def nothing() -> Purifier:
    """A walk whose denoiser answers with what it is given, so that no step moves: the identity, but for rounding."""
    return Purifier(_as_given, steps=uniform_steps(VP(), t_start=0.1, n_steps=2), solver=Euler(), start=_from_image)


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
