"""How images are moved and mirrored in training, by the addresses of the training step's noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from depura.noise import Kind, Noise


def mirrored(images: Tensor, noise: Noise) -> Tensor:
    """Every second image mirrored, left to right.

    Args:
        images: (B, C, H, W).
        noise: whose addresses decide.

    Returns:
        (B, C, H, W).
    """
    chosen = noise.bits((len(images),), kind=Kind.AUGMENT, step=1, device=images.device) % 2 == 1
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def augmented(images: Tensor, noise: Noise, *, shift: int = 1, flip: bool = False) -> Tensor:
    """Images moved by up to `shift` pixels in each direction, with zeros where nothing moves in, and mirrored.

    Args:
        images: (B, C, H, W).
        noise: whose addresses decide.
        shift: most pixels.
        flip: mirror every second image, left to right.

    Returns:
        (B, C, H, W).
    """
    if flip:
        images = mirrored(images, noise)
    at = images.device
    shifts = noise.bits((len(images), 2), kind=Kind.AUGMENT, device=at) % (2 * shift + 1)
    height, width = images.shape[2:]
    padded = F.pad(images, 4 * (shift,))
    rows = (shifts[:, :1] + torch.arange(height, device=at))[:, None, :, None]
    columns = (shifts[:, 1:] + torch.arange(width, device=at))[:, None, None, :]
    batch = torch.arange(len(images), device=at)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=at)[None, :, None, None]
    return padded[batch, channel, rows, columns]
