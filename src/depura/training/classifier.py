"""Training a classifier: cross-entropy on images shifted by at most one pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura.data.imageset import ImageSet
from depura.networks.small import SmallClassifier
from depura.noise import Kind, Noise
from depura.training.loop import Progress, Recipe, seeded, train

AT_ONCE = 256
"""Images put through a network together when accuracy is measured."""


def shifted(images: Tensor, noise: Noise) -> Tensor:
    """Images moved by -1, 0 or 1 pixel in each direction, with zeros where nothing moves in.

    Args:
        images: (B, C, H, W).
        noise: whose addresses decide.

    Returns:
        (B, C, H, W).
    """
    shifts = noise.bits((len(images), 2), kind=Kind.AUGMENT) % 3
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))
    rows = (shifts[:, :1] + torch.arange(height))[:, None, :, None]
    columns = (shifts[:, 1:] + torch.arange(width))[:, None, None, :]
    batch = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[batch, channel, rows, columns]


@dataclass(frozen=True)
class ShiftedCrossEntropy:
    """Cross-entropy of a network on images moved by -1, 0 or 1 pixel in each direction (zero padding).

    Attributes:
        network: takes images in [0, 1], gives logits.
    """

    network: nn.Module = field(repr=False)

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,).
            noise: of the training step.

        Returns:
            Scalar.
        """
        return F.cross_entropy(self.network(shifted(images, noise)), labels)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified correctly.

    Args:
        network: takes images in [0, 1], gives logits.
        images: (N, C, H, W).
        labels: (N,).

    Returns:
        In [0, 1].
    """
    found = torch.cat([network(images[k : k + AT_ONCE]).argmax(1) for k in range(0, len(images), AT_ONCE)])
    return float((found == labels).double().mean())


def train_classifier(
    data: ImageSet,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
) -> tuple[SmallClassifier, dict[str, object]]:
    """Train a `SmallClassifier`.

    Args:
        data: training images.
        recipe: how.
        checkpoint: file to save to and go on from.
        every: steps between checkpoints.
        progress: told of each step.

    Returns:
        The classifier, and what its weight file says about itself.
    """
    architecture = {"channels": data.images.shape[1], "classes": len(data.classes), "width": 24}
    network = seeded(lambda: SmallClassifier(**architecture), recipe.seed)
    loss = ShiftedCrossEntropy(network)
    train(network, loss, data.images, data.labels, recipe, checkpoint=checkpoint, every=every, progress=progress)
    return network, {"architecture": architecture}
