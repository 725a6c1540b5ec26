"""The defence: a purifier, a classifier, and the deployed rule.

A purification with a pixel or a logit that is not finite gives no class. The scores of its image are then NaN; the rule
is not asked to make sense of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from depura import _check
from depura.cleaner import Cleaner, freeze
from depura.noise import Noise
from depura.predictions import all_finite
from depura.records.kinds import GradientMode
from depura.rules import Rule, Single


class Defence(nn.Module):
    """Purify, classify, decide: a module from images in [0, 1] to logits, differentiable by the purifier's route.

    Any attack on an `nn.Module` works on it unchanged. Weights of the classifier are frozen and in evaluation mode.
    """

    def __init__(
        self, purifier: Cleaner | None, classifier: Callable[[Tensor], Tensor], *, rule: Rule | None = None
    ) -> None:
        """Compose.

        Args:
            purifier: the purifier, or None for the bare classifier.
            classifier: [0, 1] images (B, C, H, W) to logits (B, K); normalisation belongs inside it.
            rule: how a prediction is made; default `Single()`.
        """
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.rule: Rule = Single() if rule is None else rule
        freeze(self)
        if next(self.parameters(), None) is None:
            # Attack libraries look for a model's device at its first parameter.
            self.register_parameter("device_marker", nn.Parameter(torch.zeros(0), requires_grad=False))

    def with_(self, **changes: Any) -> Defence:
        """A copy with some parts replaced; weights are shared.

        Args:
            **changes: purifier, classifier or rule; any other name is a part of the purifier (see `Purifier.with_`).

        Returns:
            The new defence.

        Raises:
            InputError: an unknown name, or a purifier's part where there is no purifier.
        """
        own: dict[str, Any] = {"purifier": self.purifier, "classifier": self.classifier, "rule": self.rule}
        own |= {name: changes.pop(name) for name in list(changes) if name in own}
        if changes:
            if own["purifier"] is None:
                _check.fail(
                    "Defence.with_", "purifier, classifier or rule", ", ".join(changes), "There is no purifier."
                )
            own["purifier"] = own["purifier"].with_(**changes)
        return Defence(**own)

    def coarser(self, share: int) -> Defence:
        """A surrogate: the same defence with one step for every `share` steps (Lee and Kim 2023, arXiv:2303.09051).

        Args:
            share: steps for each of the new walk, at least 1.

        Returns:
            The surrogate; weights are shared.

        Raises:
            InputError: a defence without a purifier.
        """
        _check.integer("Defence.coarser", "share", share, low=1)
        if self.purifier is None:
            _check.fail("Defence.coarser", "a defence with a purifier", "a bare classifier", "It has no walk.")
        return self.with_(purifier=self.purifier.coarser(share))

    @property
    def mode(self) -> GradientMode:
        """How the purifier is differentiated; exact for the bare classifier."""
        return GradientMode.EXACT if self.purifier is None else GradientMode(self.purifier.route.mode)

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits of the deployed rule.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness, one image id per row; default `Noise.fresh`. A rule of n draws divides each draw into
                n (see `Noise.split`).

        Returns:
            (B, K); NaN for an image of which any purification has a pixel or a logit that is not finite. The bare
            classifier's logits are as it gives them.

        Raises:
            InputError: images of another range, shape or dtype, a classifier that does not give (B, K), or a rule that
                does not.
        """
        _check.images("Defence", images)
        if self.purifier is None:
            return self._classify(images)
        n = self.rule.n_draws
        if n == 1:
            purified = self.purifier(images, noise)
        else:
            noise = Noise.fresh(len(images)) if noise is None else noise
            purified = self.purifier(images.repeat_interleave(n, dim=0), noise.split(n))
        logits = self._classify(purified)
        finite = all_finite(purified) & all_finite(logits)
        # Zeros in the place of what is not finite: a rule computes with numbers only, and so does its derivative.
        numbers = logits.masked_fill(~finite[:, None], 0.0)
        scores = _answer("a rule giving scores", self.rule.scores(numbers.reshape(len(images), n, -1)), len(images))
        return scores.masked_fill(~finite.reshape(-1, n).all(1)[:, None], torch.nan)

    def train(self, mode: bool = True) -> Defence:
        """Defences stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """The rule, for records."""
        return f"rule={self.rule}"

    def _classify(self, images: Tensor) -> Tensor:
        return _answer("a classifier giving logits", self.classifier(images), len(images))


def _answer(who: str, found: object, n: int) -> Tensor:
    """An answer to n images, if it is one: (n, K), floating point."""
    if not isinstance(found, Tensor):
        _check.fail("Defence", f"{who} ({n}, K)", type(found).__name__)
    if found.ndim != 2 or len(found) != n:
        _check.fail("Defence", f"{who} ({n}, K)", f"shape {tuple(found.shape)}")
    if not found.is_floating_point():
        _check.fail("Defence", f"{who} of floating point", f"{found.dtype}", "Convert them to float.")
    return found
