"""The defence: a purifier, a classifier, and the deployed rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from depura import _check
from depura.cleaner import Cleaner, freeze
from depura.noise import Noise
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
    def route(self) -> str:
        """Code of the gradient route; G0 for the bare classifier."""
        return "G0" if self.purifier is None else self.purifier.route.code

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits of the deployed rule.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness, one image id per row; default `Noise.fresh`. A draw of a rule with n draws uses
                purifications draw * n .. draw * n + n - 1.

        Returns:
            (B, K).

        Raises:
            InputError: images of another range, shape or dtype, or a classifier that does not give (B, K).
        """
        _check.images("Defence", images)
        if self.purifier is None:
            return self._classify(images)
        n = self.rule.n_draws
        if n == 1:
            return self.rule.scores(self._classify(self.purifier(images, noise))[:, None])
        noise = Noise.fresh(len(images)) if noise is None else noise
        logits = self._classify(self.purifier(images.repeat_interleave(n, dim=0), noise.split(n)))
        return self.rule.scores(logits.reshape(len(images), n, -1))

    def train(self, mode: bool = True) -> Defence:
        """Defences stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """The rule, for records."""
        return f"rule={self.rule}"

    def _classify(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        if logits.ndim != 2 or len(logits) != len(images):
            _check.fail("Defence", f"a classifier giving logits ({len(images)}, K)", f"shape {tuple(logits.shape)}")
        return logits
