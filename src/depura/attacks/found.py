"""What a search for the smallest change keeps: the closest misclassified point, and the worst point of all."""

from __future__ import annotations

import torch
from torch import Tensor

from depura.attacks.ball import Ball, per_image


class Found:
    """What was seen of each image.

    Attributes:
        images: (B, C, H, W), the images under attack.
        closest: (B, C, H, W), the closest misclassified points.
        distance: (B,), how far they are; infinite where there is none.
    """

    def __init__(self, images: Tensor, wrong: Tensor) -> None:
        """Begin.

        Args:
            images: (B, C, H, W).
            wrong: (B,), whether the image itself is misclassified.
        """
        self.images = images
        self.closest = images.clone()
        self.distance = torch.where(wrong, 0.0, torch.inf).to(images.dtype)
        self._worst = images.clone()
        self._loss = torch.full_like(self.distance, -torch.inf)

    def see(self, x: Tensor, loss: Tensor, wrong: Tensor, at: Tensor, ball: Ball) -> None:
        """Points x (R, C, H, W) for the images `at` (R,), distinct; the image itself is none."""
        distance = ball.distance(x, self.images[at])
        closer = wrong & (distance < self.distance[at])
        self.closest[at[closer]], self.distance[at[closer]] = x[closer], distance[closer]
        worse = (loss > self._loss[at]) & (distance > 0)
        self._worst[at[worse]], self._loss[at[worse]] = x[worse], loss[worse]

    def inside(self, ball: Ball) -> Tensor:
        """Whether the closest misclassified point is in the ball, (B,)."""
        return self.distance <= ball.eps * (1 + 1e-6)

    def result(self, ball: Ball) -> Tensor:
        """The closest point if in the ball, else the one of the largest loss, brought into it: (B, C, H, W)."""
        return torch.where(per_image(self.inside(ball)), self.closest, ball.project(self._worst, self.images))
