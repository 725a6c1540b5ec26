"""Adam for attacks: every image has averages of its own, and one without a usable gradient keeps them."""

from __future__ import annotations

import torch
from torch import Tensor

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


class AdamAverages:
    """Directions of Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1, with its constants."""

    def __init__(self, like: Tensor) -> None:
        """Begin with averages of zero.

        Args:
            like: what is optimised, (B, ...).
        """
        self._steps = 0
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)

    def direction(self, gradient: Tensor, finite: Tensor) -> Tensor:
        """The next step in units of its rate, upwards.

        Args:
            gradient: (B, ...).
            finite: which images' gradients are used, broadcastable to it; the averages of the others stay.

        Returns:
            (B, ...); of no meaning where `finite` is false.
        """
        self._steps += 1
        self._mean = torch.where(finite, BETA1 * self._mean + (1 - BETA1) * gradient, self._mean)
        self._square = torch.where(finite, BETA2 * self._square + (1 - BETA2) * gradient.square(), self._square)
        average, square = self._mean / (1 - BETA1**self._steps), self._square / (1 - BETA2**self._steps)
        return average / (square.sqrt() + ADAM_EPS)
