"""Training images from several sources, each with its share of a batch, and a part of the first held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check
from depura.data.imageset import ImageSet
from depura.noise import Kind, Noise


def mirrored(images: Tensor, noise: Noise) -> Tensor:
    """Images (B, C, H, W), every second one mirrored, left to right, as the addresses of the noise decide."""
    chosen = noise.bits((len(images),), kind=Kind.AUGMENT, step=1, device=images.device) % 2 == 1
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def augmented(images: Tensor, noise: Noise, *, shift: int = 1, flip: bool = False) -> Tensor:
    """Images (B, C, H, W) moved by up to `shift` pixels in each direction, with zeros where nothing moves in.

    With `flip`, every second one is mirrored too. The addresses of the noise decide.
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


COARSE = 8
"""Pixels along a side of the small copies by which the same picture is found in two sources."""

SAME = 0.04
"""Root mean square distance of small copies, in [0, 1] units, below which two pictures are taken for the same one.

JPEGs of CIFAR-10 images at 0.9 kB lie within 0.025 of their originals (512 measured). What else is nearer than this,
about one in a hundred images, are near copies within CIFAR-10, which had better not be trained on either."""


@dataclass(frozen=True)
class Mixture:
    """Images of several sources that batches are drawn from.

    Attributes:
        images: (N, C, H, W) in [0, 1], of all sources one after the other.
        labels: (N,).
        sizes: images of each source.
        weights: share of a batch that comes from each, in expectation; they add up to 1.
        n_classes: how many classes there are.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    n_classes: int

    @classmethod
    def of(cls, sources: Sequence[ImageSet], weights: Sequence[float] | None = None) -> Mixture:
        """Mix data sets.

        Args:
            sources: of images of one shape.
            weights: relative shares, > 0; default: every image is as likely as any other.

        Returns:
            The mixture.

        Raises:
            InputError: no source, different shapes, or other weights.
        """
        if not sources:
            _check.fail("Mixture", "at least one data set", "none")
        sizes = tuple(len(source.images) for source in sources)
        shares = tuple(map(float, sizes if weights is None else weights))
        if len(shares) != len(sizes):
            _check.fail("Mixture", f"one weight for each of {len(sizes)} data sets", f"{len(shares)}")
        for share in shares:
            _check.number("Mixture", "weight", share, low=0.0, low_open=True)
        for source in sources:
            _check.images("Mixture", source.images, shape=sources[0].images.shape[1:])
            _check.labels("Mixture", source.labels, n_images=len(source.images))
        n_classes = max(len(source.classes) for source in sources)
        if len(sources) == 1:
            return cls(sources[0].images, sources[0].labels, sizes, (1.0,), n_classes)
        images = torch.cat([source.images for source in sources])
        labels = torch.cat([source.labels for source in sources])
        return cls(images, labels, sizes, tuple(share / sum(shares) for share in shares), n_classes)

    @property
    def source(self) -> Tensor:
        """(N,), which source each image is of."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))

    def labelled_by_source(self) -> Mixture:
        """The same with the number of its source as the label of each image."""
        return replace(self, labels=self.source, n_classes=len(self.sizes))

    def rows(self, noise: Noise) -> Tensor:
        """Positions (B,) of the images of a batch, drawn with replacement by the noise of a step."""
        batch = len(noise.images)
        words = noise.bits((batch,), kind=Kind.T_STAR)
        if len(self.sizes) == 1:
            return words % self.sizes[0]
        u = noise.uniform(torch.empty(batch, dtype=torch.float64), kind=Kind.T_STAR, step=1)
        ends = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        chosen = torch.bucketize(u, ends[:-1], right=True)
        sizes = torch.tensor(self.sizes)
        return (sizes.cumsum(0) - sizes)[chosen] + words % sizes[chosen]


def split_held_out(source: ImageSet, n: int) -> tuple[ImageSet, ImageSet]:
    """All but the last n images of a data set, and the last n, which are held out; n is 1 .. N-1."""
    _check.integer("split_held_out", "n", n, low=1, high=len(source.images) - 1)
    rows = range(len(source.images))
    return source.take(rows[:-n]), source.take(rows[-n:])


def without_copies(source: ImageSet, held_out: ImageSet) -> ImageSet:
    """A data set without the pictures that also are in another, in whatever compression.

    Two pictures are the same where their labels agree and their small copies (means over squares) lie within `SAME`.
    """
    small, others = _coarse(source.images), _coarse(held_out.images)
    distance = torch.cdist(small, others) / small.shape[1] ** 0.5
    copies = (distance < SAME) & (source.labels[:, None] == held_out.labels[None])
    return source.take([row for row, copied in enumerate(copies.any(1)) if not copied])


def _coarse(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, COARSE).flatten(1)
