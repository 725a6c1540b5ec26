"""What an attack is: hyper-parameters that propose candidates at a known cost, and never judge themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from depura.attacks.eot import Model, RandomModel
from depura.attacks.threat import Threat
from depura.noise import Noise

Told = Callable[[float], None]
"""Told of progress: the share of the work that is done, in [0, 1], never falling."""


def part_of(told: Told | None, *, before: float, own: float, whole: float) -> Told | None:
    """Progress of a part as progress of the whole.

    Args:
        told: who hears of the whole, if anybody does.
        before: work that is done when the part begins.
        own: work of the part.
        whole: work in all.

    Returns:
        Who hears of the part.
    """
    return None if told is None else lambda done: told((before + done * own) / whole)


class Gradients(NamedTuple):
    """What the gradients of an attack told about themselves (see `depura.attacks.eot.Health`).

    Attributes:
        zero: (B,), share of all draws whose gradient was exactly zero.
        bad: (B,), share of all draws whose gradient was not finite; the image stays put in such a step.
        zero_pixels: (B,), share of the entries of the mean gradients that were exactly zero.
        agreement: (steps, B), cosine of the mean gradients of two halves of the draws; NaN where there is none.
        spread: (steps, B), largest over median norm of a draw's gradient; NaN where the median is zero.
    """

    zero: Tensor
    bad: Tensor
    zero_pixels: Tensor
    agreement: Tensor
    spread: Tensor


class Candidates(NamedTuple):
    """What an attack proposes. It is the evaluation that judges them, on draws of its own.

    Attributes:
        images: (n, B, C, H, W), n candidates for each image, in the ball and in [0, 1].
        loss: (steps, B), the attack's own mean loss at each step; NaN where an image was finished, or where one of the
            draws was not finite.
        spent: (B, 2) int64, evaluations of the model on each image: with a gradient, and without.
        finished: (B,) int64, the step at which the attack was content with an image and left it; -1 where it never was.
        gradients: of attacks that use them.
        surrogate: (B, 2) int64, evaluations of a surrogate on each image, as `spent`; None of attacks without one.
    """

    images: Tensor
    loss: Tensor
    spent: Tensor
    finished: Tensor
    gradients: Gradients | None = None
    surrogate: Tensor | None = None


class Cheap(NamedTuple):
    """Evaluations of a surrogate per image, at most.

    Attributes:
        share: steps of the walk for each of its own.
        gradients: evaluations with a gradient.
        forwards: evaluations without.
    """

    share: int
    gradients: int
    forwards: int


class Cost(NamedTuple):
    """Evaluations of the model per image, at most: an image that is finished early costs less.

    Attributes:
        gradients: evaluations with a gradient.
        forwards: evaluations without.
        at_once: draws of an image in one call.
        surrogates: what surrogates of the model are asked.
    """

    gradients: int
    forwards: int
    at_once: int
    surrogates: tuple[Cheap, ...] = ()

    def __str__(self) -> str:
        """In words, as tables show it."""
        parts = _in_words(self.gradients, self.forwards)
        for cheap in self.surrogates:
            walk = f"through a walk of one step for every {cheap.share}"
            parts += [f"{words} {walk}" for words in _in_words(cheap.gradients, cheap.forwards)]
        return " + ".join(parts) or "nothing"


def _in_words(gradients: int, forwards: int) -> list[str]:
    return [f"{n:,} {what}" for n, what in ((gradients, "gradients"), (forwards, "forwards")) if n]


class Attack(Protocol):
    """A frozen dataclass of hyper-parameters that proposes candidates.

    Images are attacked one by one: what is found for an image depends neither on the batch that it is in nor on the
    order of the batch, but for rounding. No attack ends an image on a single lucky draw of a randomised model. Where
    the model's answers are not finite candidates are finite all the same.
    """

    @property
    def ball(self) -> Threat:
        """Threat model."""
        ...

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        ...

    @property
    def cost(self) -> Cost:
        """Evaluations per image, at most."""
        ...

    def __call__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
        told: Told | None = None,
    ) -> Candidates:
        """Attack.

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: randomness of the attack itself, one image id per row; default `Noise.fresh`.
            eot: randomness of the model. Without it the model's own randomness, if any, is used.
            rows: images times draws put through the model at once; default all. The result does not depend on it, but
                for rounding; out of memory, it is halved.
            told: called with the share of the work that is done.

        Returns:
            The candidates.

        Raises:
            InputError: images or labels that are not usable.
        """
        ...

    def at(self, eps: float) -> Attack:
        """The same attack at another radius."""
        ...
