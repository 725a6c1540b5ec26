"""What an attack keeps of its steps: losses, when images were finished, and what the gradients told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depura.attacks.attack import Candidates, Gradients
from depura.attacks.eot import Health, health


class History:
    """The record of an attack in the making.

    Steps may concern some images only; the others have NaN there. The result has `n_steps` rows whether or not all
    steps were made, so that its shape does not depend on which images were attacked together.
    """

    def __init__(self, n_images: int, n_steps: int) -> None:
        """Begin.

        Args:
            n_images: images under attack, B.
            n_steps: the most steps there can be.
        """
        self._n = n_images
        self._n_steps = n_steps
        self._losses: list[Tensor] = []
        self._healths: list[Health] = []
        self._finished: Tensor | None = None

    def add(self, loss: Tensor, gradients: Tensor | Health | None = None, *, at: Tensor | None = None) -> None:
        """One more step.

        Args:
            loss: (R,), mean loss over the draws.
            gradients: (R, m, C, H, W), of every draw, or what they told, if the attack uses gradients.
            at: (R,) int64, distinct, the images concerned; default all.
        """
        self._losses.append(self._spread(loss, at))
        if gradients is not None:
            told = gradients if isinstance(gradients, Health) else health(gradients)
            self._healths.append(Health(*(self._spread(value, at) for value in told)))

    def finish(self, at: Tensor) -> None:
        """The attack is content with some images after the last step; (R,) int64. The first time counts."""
        if self._finished is None:
            self._finished = torch.full((self._n,), -1, dtype=torch.int64, device=at.device)
        fresh = at[self._finished[at] < 0]
        self._finished[fresh] = len(self._losses) - 1

    def is_finished(self, at: Tensor) -> Tensor:
        """Whether the attack is content with some images, (R,) bool."""
        none = torch.zeros_like(at, dtype=torch.bool)
        return none if self._finished is None else self._finished[at] >= 0

    def candidates(self, images: Tensor, spent: Tensor) -> Candidates:
        """The result.

        Args:
            images: (n, B, C, H, W).
            spent: (B, 2) int64.

        Returns:
            With all that was kept.
        """
        none = torch.full((self._n,), -1, dtype=torch.int64, device=images.device)
        losses = self._stacked(self._losses, images)
        gradients = None
        if self._healths:
            seen = Health(*(torch.stack(values) for values in zip(*self._healths, strict=True)))
            gradients = Gradients(
                zero=seen.zero.nanmean(0),
                bad=seen.bad.nanmean(0),
                zero_pixels=seen.zero_pixels.nanmean(0),
                agreement=self._stacked(seen.agreement, images),
                spread=self._stacked(seen.spread, images),
            )
        finished = none if self._finished is None else self._finished
        return Candidates(images=images, loss=losses, spent=spent, finished=finished, gradients=gradients)

    def _stacked(self, rows: Sequence[Tensor] | Tensor, images: Tensor) -> Tensor:
        """Rows (B,) one upon another, and NaN for the steps that were not made."""
        missing = [torch.full((self._n,), torch.nan, device=images.device)] * (self._n_steps - len(rows))
        together = [*rows, *(row.to(rows[0].dtype) if len(rows) else row for row in missing)]
        return torch.stack(together) if together else images.new_zeros(0, self._n)

    def _spread(self, values: Tensor, at: Tensor | None) -> Tensor:
        if at is None:
            return values
        full = torch.full((self._n,), torch.nan, dtype=values.dtype, device=values.device)
        full[at] = values
        return full
