"""The defence: a purifier, a classifier, and the deployed rule.

A purification with a pixel or a logit that is not finite gives no class. The scores of its image are then NaN; the rule
is not asked to make sense of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.noise import Noise
from depura.purifiers.purifier import Purifier
from depura.records.kinds import NOT_FINITE, GradientMode


class Rule(Protocol):
    """How a prediction is made from several purifications of one image.

    A rule of one's own needs no more than the two members below. To be attacked by gradients, its scores must have one:
    see `Vote` for scores that are counts and have the gradient of mean probabilities.
    """

    @property
    def n_draws(self) -> int:
        """Purifications per prediction."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Combine.

        Args:
            logits: (B, n_draws, K), all finite: a `Defence` sees to images with others itself.

        Returns:
            (B, K), whose largest entry is the deployed prediction.
        """
        ...


@dataclass(frozen=True)
class Single:
    """One purification, its logits."""

    n_draws: int = 1

    def __post_init__(self) -> None:
        if self.n_draws != 1:
            _check.fail("Single", "n_draws = 1", f"{self.n_draws}", "Use Vote or MeanProb.")

    def scores(self, logits: Tensor) -> Tensor:
        """The logits themselves."""
        return logits[:, 0]


@dataclass(frozen=True)
class MeanLogit:
    """The mean of the logits of several purifications."""

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("MeanLogit", "n_draws", self.n_draws, low=1)

    def scores(self, logits: Tensor) -> Tensor:
        """Mean logits."""
        return logits.mean(1)


@dataclass(frozen=True)
class MeanProb:
    """The mean of the softmax probabilities of several purifications; scores are its logarithm."""

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("MeanProb", "n_draws", self.n_draws, low=1)

    def scores(self, logits: Tensor) -> Tensor:
        """log mean softmax."""
        return torch.logsumexp(torch.log_softmax(logits, dim=2), dim=1) - torch.log(
            torch.tensor(float(self.n_draws), dtype=logits.dtype, device=logits.device)
        )


@dataclass(frozen=True)
class Vote:
    """The most frequent label of several purifications.

    Ties go to the class of the lowest mean rank (0 for the highest logit of a draw), then to the lowest index. Scores
    are log shares of the votes, smoothed by 1 / K of a vote, with half a vote more for the winner. Votes are
    piecewise constant, so the gradient is that of `MeanProb` with as many draws.
    """

    n_draws: int

    def __post_init__(self) -> None:
        _check.integer("Vote", "n_draws", self.n_draws, low=1)

    def winner(self, logits: Tensor) -> Tensor:
        """The deployed label, (B,) int64, of logits (B, n_draws, K)."""
        _, n, k = logits.shape
        order = logits.argsort(dim=2, descending=True, stable=True)
        ranks = order.argsort(dim=2).sum(1)
        votes = F.one_hot(order[:, :, 0], k).sum(1)
        index = torch.arange(k, device=logits.device)
        return ((votes * (n * k) + (n * k - 1 - ranks)) * k + (k - 1 - index)).argmax(1)

    def scores(self, logits: Tensor) -> Tensor:
        """Smoothed log shares of the votes."""
        k = logits.shape[2]
        counts = F.one_hot(logits.argmax(2), k).sum(1).to(logits.dtype)
        votes = counts + 0.5 * F.one_hot(self.winner(logits), k) + 1 / k
        value = torch.log(votes / votes.sum(1, keepdim=True))
        soft = MeanProb(self.n_draws).scores(logits)
        return value.detach() + (soft - soft.detach())


def predicted(logits: Tensor) -> Tensor:
    """The class of the largest logit; the lowest of several.

    Args:
        logits: (..., K).

    Returns:
        (...), int64; `NOT_FINITE` (-1), which is no class, where any of the K logits is NaN or infinite.
    """
    return logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), NOT_FINITE)


def all_finite(values: Tensor) -> Tensor:
    """Whether all numbers of each row are finite: (B, ...) to (B,), bool."""
    return values.flatten(1).isfinite().all(1)


def same_answers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are equal to the last bit; NaN equals NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class Defence(nn.Module):
    """Purify, classify, decide: a module from images in [0, 1] to logits, differentiable by the purifier's route.

    Any attack on an `nn.Module` works on it unchanged. Weights of the classifier are frozen and in evaluation mode.
    """

    def __init__(
        self, purifier: Purifier | None, classifier: Callable[[Tensor], Tensor], *, rule: Rule | None = None
    ) -> None:
        """Compose.

        Args:
            purifier: the purifier, or None for the bare classifier.
            classifier: [0, 1] images (B, C, H, W) to logits (B, K); normalisation belongs inside it. A purifier that
                gives logits is a whole defence, purification and all (`depura.wrap_defence`).
            rule: how a prediction is made; default `Single()`.
        """
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.rule: Rule = Single() if rule is None else rule
        self.requires_grad_(False).eval()
        weights = classifier.parameters() if isinstance(classifier, nn.Module) else ()
        halves = {p.dtype for p in weights} & {torch.float16, torch.bfloat16}
        self._half = next(iter(halves), None) if len(halves) == 1 else None
        if next(self.parameters(), None) is None:
            # Attack libraries look for a model's device at its first parameter.
            self.register_parameter("device_marker", nn.Parameter(torch.zeros(0), requires_grad=False))

    def with_(self, **changes: Any) -> Defence:
        """A copy with some parts replaced; weights are shared.

        Args:
            **changes: purifier, classifier or rule; any other name is a setting of the purifier (`Purifier.with_`).

        Returns:
            The new defence.

        Raises:
            InputError: an unknown name, or a purifier's part where there is no purifier.
        """
        own: dict[str, Any] = {"purifier": self.purifier, "classifier": self.classifier, "rule": self.rule}
        own |= {name: changes.pop(name) for name in list(changes) if name in own}
        made = Defence(**own)
        if changes and made.core is None:
            _check.fail("Defence.with_", "purifier, classifier or rule", ", ".join(changes), "There is no purifier.")
        return made.over_core(lambda core: core.with_(**changes)) if changes else made

    @property
    def core(self) -> Purifier | None:
        """What noise and gradient routes concern: the purifier, or a whole defence that was wrapped; else None."""
        return self.classifier if isinstance(self.classifier, Purifier) else self.purifier

    @property
    def differentiable(self) -> bool:
        """Whether the core has a gradient path; a bare classifier is taken to have one."""
        return self.core is None or self.core.differentiable

    def over_core(self, change: Callable[[Purifier], Purifier]) -> Defence:
        """A copy with its core changed; the bare classifier as it is."""
        if self.core is None:
            return self
        return self.with_(**{"purifier" if self.core is self.purifier else "classifier": change(self.core)})

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
        if self.core is None:
            _check.fail("Defence.coarser", "a defence with a purifier", "a bare classifier", "It has no steps.")
        return self.over_core(lambda core: core.coarser(share))

    @property
    def mode(self) -> GradientMode:
        """How the purifier is differentiated; exact for the bare classifier."""
        return GradientMode.EXACT if self.core is None else GradientMode(self.core.route.mode)

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
        bare = self.purifier is None and not isinstance(self.classifier, Purifier)
        n = 1 if bare else self.rule.n_draws
        if n > 1:
            noise = (Noise.fresh(len(images)) if noise is None else noise).split(n)
        purified = images.repeat_interleave(n, dim=0) if n > 1 else images
        if self.purifier is not None:
            purified = self.purifier(purified, noise)
        answer: Any = (
            self.classifier(purified, noise)
            if isinstance(self.classifier, Purifier)
            else self.classifier(
                # A copy, which a classifier may change in place; in half precision for one of half precision.
                purified.clone() if self._half is None or purified.dtype == torch.float64 else purified.to(self._half)
            )
        )
        logits = _answer("a classifier giving logits", answer, len(purified))
        if self._half is not None:
            logits = logits.to(images.dtype)
        if bare:
            return logits
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


def _answer(who: str, answer: object, n: int) -> Tensor:
    """An answer to n images, if it is one: (n, K), floating point, K at least 2."""
    found = answer if isinstance(answer, Tensor) else _check.tensor_in(answer)
    if found is None:
        _check.fail("Defence", f"{who} ({n}, K)", type(answer).__name__)
    if found.ndim != 2 or len(found) != n:
        _check.fail("Defence", f"{who} ({n}, K)", f"shape {tuple(found.shape)}")
    if found.shape[1] < 2:
        advice = "A single score z of two classes is torch.cat([-z, z], dim=1) / 2 as logits."
        _check.fail("Defence", f"{who} of at least two classes", f"shape {tuple(found.shape)}", advice)
    if not found.is_floating_point():
        _check.fail("Defence", f"{who} of floating point", f"{found.dtype}", "Convert them to float.")
    return found
