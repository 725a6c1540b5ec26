"""What is measured of a study's images before anything is attacked: are they memorised, are they easy ones?

Both compare them with others: with the same images moved or mirrored, and with images of the same data set that were
not chosen. The checks V25 and V26 say what follows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from depura.attacks.losses import margin
from depura.attacks.threat import Ball, Threat
from depura.data.imageset import Known
from depura.defence import Defence, Single
from depura.evaluation.scoring import ROWS_PER_CALL
from depura.noise import Noise
from depura.purifiers.purifier import Purifier

IMAGES = 16
"""Images whose purification error is measured, and as many others, at most."""


@torch.no_grad()
def purification_errors(
    purifier: Purifier, images: Tensor, others: Tensor | None, noise: Noise, *, draw: int
) -> dict[str, Tensor]:
    """What purification changes in some images, in their neighbours, and in others of the same data set.

    The error of an image is the mean over its pixels of (P(x; w) - x) (P(x; w') - x), with two draws w and w'. Its
    expectation is the square of the mean change: noise that purification leaves in the image is not in it. A denoiser
    that has memorised an image hardly changes it, and changes neighbours and others as it must.

    Args:
        purifier: P.
        images: x, (B, C, H, W) in [0, 1].
        others: (M, C, H, W) in [0, 1]; None where none is known.
        noise: of B rows, the same for all that is compared.
        draw: number of w; w' is the next one.

    Returns:
        Errors (B,), float64, in squares of [0, 1] units, by the array that they are recorded as: `error` of the images,
        `error_left` and `error_up` of them moved by a pixel, `error_mirrored` of their mirror images, and
        `error_others` (at most B) where there are others. NaN where a purified pixel is not finite.
    """
    left = torch.cat([images[..., 1:], images[..., -1:]], dim=3)
    up = torch.cat([images[..., 1:, :], images[..., -1:, :]], dim=2)
    compared = {"error": images, "error_left": left, "error_up": up, "error_mirrored": images.flip(3)}
    if others is not None:
        compared["error_others"] = others[: len(images)].to(images)
    found: dict[str, Tensor] = {}
    for name, x in compared.items():
        its = replace(noise, images=noise.images[: len(x)])
        one, two = (purifier.purify(x, its.draw(k)).to(torch.float64) - x for k in (draw, draw + 1))
        error = (one * two).flatten(1).mean(1)
        found[name] = torch.where(error.isfinite(), error, torch.nan)
    return found


def bare_margins(
    defence: Defence, threat: Threat, images: Tensor, labels: Tensor, others: Known | None
) -> dict[str, Tensor]:
    """Margins of the bare classifier on the images of a study and on others of the same data set.

    Taken at the images as they are and, in a ball, after a single step of half its radius along the gradient: the
    second says more of which images an attack leaves. Nothing is purified.

    Args:
        defence: whose classifier it is.
        threat: of the study.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), their classes.
        others: the others; None where none is known.

    Returns:
        max_{j != y} z_j - z_y, (B,) or (M,), below 0 where the prediction is right, by the array that it is recorded
        as: `margin`, `margin_others`, `stepped_margin` and `stepped_margin_others`. None where there are no others or
        no bare classifier.
    """
    if others is None or (defence.purifier is None and defence.core is not None):
        return {}
    bare = defence.with_(purifier=None, rule=Single())
    sets = {"": (images, labels), "_others": (others.images.to(images), others.labels.to(labels.device))}
    found: dict[str, Tensor] = {}
    for ending, (x, y) in sets.items():
        parts = [
            _margins(bare, threat, x[k : k + ROWS_PER_CALL], y[k : k + ROWS_PER_CALL])
            for k in range(0, len(x), ROWS_PER_CALL)
        ]
        found[f"margin{ending}"] = torch.cat([plain for plain, _ in parts])
        stepped = [after for _, after in parts if after is not None]
        if len(stepped) == len(parts):
            found[f"stepped_margin{ending}"] = torch.cat(stepped)
    return found


def _margins(bare: Defence, threat: Threat, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Margins (B,), and those after a step of half the radius; None where there is no ball or no gradient."""
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        plain = margin(bare(leaf), labels)
        follows = plain.requires_grad and isinstance(threat, Ball)
        (gradient,) = torch.autograd.grad(plain.sum(), leaf, allow_unused=True) if follows else (None,)
    if gradient is None or not isinstance(threat, Ball):
        return plain.detach(), None
    half = replace(threat, eps=threat.eps / 2)
    moved = half.project(images + half.eps * half.unit(half.free(gradient, images)), images)
    moved = torch.where(moved.isfinite(), moved, images)
    with torch.no_grad():
        return plain.detach(), margin(bare(moved), labels)
