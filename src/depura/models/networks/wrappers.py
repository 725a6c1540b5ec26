"""What stands between an image in [0, 1] and a network that wants something else; all of it in the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
"""Mean and standard deviation of the published CIFAR-10 networks (DiffPure's, RobustBench's DeepMind ones)."""
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
"""The same of RobustBench's CIFAR-100 networks of the DeepMind layout."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The same of ImageNet networks, and of the CIFAR-10 ResNet-20 family of `CifarResNet`."""


class Normalised(nn.Module):
    """A network for images in [0, 1] made of one for (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap the network.

        The constants are rounded to float32, as published networks keep them.

        Args:
            network: takes normalised images.
            mean: one number per channel.
            std: one number per channel, > 0.
        """
        super().__init__()
        if len(mean) != len(std):
            _check.fail("Normalised", "as many means as standard deviations", f"{len(mean)} and {len(std)}")
        for value in std:
            _check.number("Normalised", "std", value, low=0.0, low_open=True)
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of images (B, C, H, W) in [0, 1]."""
        return self.network((images - self.mean) / self.std)


class ResizedInput(nn.Module):
    """A network for images of any size made of one for images of a fixed size."""

    def __init__(
        self, network: nn.Module, *, size: int | tuple[int, int], mode: str = "bilinear", antialias: bool = False
    ) -> None:
        """Wrap the network.

        Args:
            network: takes images of `size`.
            size: height and width, in pixels; one number for square ones.
            mode: "bilinear", "bicubic" or "nearest", as torch.nn.functional.interpolate computes them, with corners
                not aligned.
            antialias: whether to average over what a pixel of the result covers; not for "nearest". DiffPure and the
                methods after it do not.

        Raises:
            InputError: a size below 1, another mode, or an antialiased "nearest".
        """
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        self.size = (
            _check.integer("ResizedInput", "size", height, low=1),
            _check.integer("ResizedInput", "size", width, low=1),
        )
        if mode not in ("bilinear", "bicubic", "nearest"):
            _check.fail("ResizedInput", "mode 'bilinear', 'bicubic' or 'nearest'", repr(mode))
        if antialias and mode == "nearest":
            _check.fail("ResizedInput", "antialias with mode 'bilinear' or 'bicubic'", repr(mode))
        self.network = network
        self.mode = mode
        self.antialias = antialias

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of images (B, C, H, W)."""
        if tuple(images.shape[2:]) == self.size:
            return self.network(images)
        return self.network(F.interpolate(images, self.size, mode=self.mode, antialias=self.antialias))


class Padded(nn.Module):
    """A network for images with a border of zeros made of one for images that have it.

    RobustBench's DeepMind networks can pad before they normalise: `Padded(Normalised(network, ...), width=4)`.
    """

    def __init__(self, network: nn.Module, *, width: int) -> None:
        """Wrap the network.

        Args:
            network: takes padded images.
            width: of the border, in pixels, >= 0.
        """
        super().__init__()
        self.network = network
        self.width = _check.integer("Padded", "width", width)

    def forward(self, images: Tensor) -> Tensor:
        """What the network says of images (B, C, H, W)."""
        return self.network(F.pad(images, 4 * (self.width,)))


class TwoLogits(nn.Module):
    """A classifier of two classes made of a network with one logit l: its logits are [l, -l].

    DiffPure's wrapper of the CelebA attribute networks.
    """

    def __init__(self, network: nn.Module) -> None:
        """Wrap the network.

        Args:
            network: gives (B, 1).
        """
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 2) of images (B, C, H, W)."""
        logit = self.network(images)
        return torch.cat([logit, -logit], dim=1)
