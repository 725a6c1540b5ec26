"""What an attack saw of the defence while it searched: how many draws, and which was the first that was wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from depura.defence import Defence, predicted
from depura.evaluation.study import Row, same_function
from depura.noise import Noise


class Watched(nn.Module):
    """A defence that notes, image by image, what it answers. It answers as the defence itself does.

    An error during a search is no accuracy of an adversarial example: with as many draws, images that nobody attacked
    are misclassified too.

    Attributes:
        draws: (B,) int64, draws of the deployed rule that were answered for each image.
        errors: (B,) int64, how many of them were wrong; an answer that is not finite is.
        first: (B,) int64, number of the first wrong draw, from 1; 0 where none was.
    """

    def __init__(self, defence: Defence, ids: Sequence[int], labels: Tensor) -> None:
        """Watch.

        Args:
            defence: what is asked.
            ids: of the images that are attacked.
            labels: (B,), their classes.
        """
        super().__init__()
        self.defence = defence
        self._rows = {identity: row for row, identity in enumerate(ids)}
        self._labels = labels.cpu().numpy()
        self.draws, self.errors, self.first = (np.zeros(len(ids), dtype=np.int64) for _ in range(3))

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits, (B, K), as the defence gives them.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: of the attack; without it nothing is noted, as nothing says which image is which.

        Returns:
            The logits.
        """
        logits = self.defence(images, noise)
        if noise is not None:
            at = np.array([self._rows[identity] for identity in noise.images])
            self._note(at, predicted(logits).cpu().numpy() != self._labels[at])
        return logits

    def coarser(self, share: int) -> Defence:
        """The defence with one step for every `share` steps. What it answers is not noted, as nobody deploys it.

        Args:
            share: steps for each of the new walk.

        Returns:
            The surrogate.
        """
        return self.defence.coarser(share)

    def _note(self, at: NDArray[np.int64], wrong: NDArray[np.bool_]) -> None:
        """Rows of images in the order asked, and whether the answer was wrong."""
        for row in np.unique(at[wrong]):
            if not self.first[row]:
                self.first[row] = self.draws[row] + int(wrong[at == row].argmax()) + 1
        np.add.at(self.draws, at, 1)
        np.add.at(self.errors, at[wrong], 1)


def sees_what_is_judged(row: Row) -> bool:
    """Whether the answers an attack gets are those that are judged: the same purifier, classifier and rule."""
    return same_function(row.against, row.judged)
