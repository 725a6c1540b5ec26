"""Networks in the form that denoisers call, (images in [-1, 1], labels) -> output, made of those with other habits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depura import _check


class OfClass(nn.Module):
    """A class-conditional network that is given the same class for all images."""

    def __init__(self, network: nn.Module, class_index: int) -> None:
        """Wrap the network.

        Args:
            network: called as network(images, labels, classes=...), with classes (B,) int64.
            class_index: the class, from 0.
        """
        super().__init__()
        self.network = network
        self.class_index = _check.integer("OfClass", "class_index", class_index)

    def forward(self, x: Tensor, label: Tensor | float) -> Tensor:
        """What the network says of images (B, C, H, W) of that class."""
        classes = torch.full((len(x),), self.class_index, dtype=torch.int64, device=x.device)
        return self.network(x, label, classes=classes)


class UnitRange(nn.Module):
    """A score network for images in [-1, 1] made of one for images in [0, 1].

    With u = 2 v - 1 the score is half that of v, and noise levels are twice those of v.
    """

    def __init__(self, network: nn.Module) -> None:
        """Wrap the network.

        Args:
            network: takes images in [0, 1] with noise, gives the gradient of log p with respect to them.
        """
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The score at x, (B, C, H, W); labels are the network's own."""
        return 0.5 * self.network((x + 1) / 2, label)


class DiffusersNetwork(nn.Module):
    """What a diffusers U-Net (`UNet2DModel`) says, without the container around it."""

    def __init__(self, unet: nn.Module) -> None:
        """Wrap it.

        Args:
            unet: called as unet(images, labels); its answer has the output under `sample`.
        """
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(B, C, H, W) and labels (B,) -> (B, C or more, H, W)."""
        answer: Any = self.unet(x, label)
        return answer.sample
