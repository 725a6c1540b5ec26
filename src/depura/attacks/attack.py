"""What an attack is: hyper-parameters that propose candidates at a known cost, and never judge themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from depura import _check
from depura.attacks.queries import Health, Model, Queries, RandomModel, health
from depura.noise import Noise

A = TypeVar("A", bound="Attack")

Progress = Callable[[float], None]
"""Progress callback: called with the share of the work that is done, in [0, 1], never falling."""


def part_of(progress: Progress, *, before: float, own: float, whole: float) -> Progress:
    """Progress of a part as progress of the whole.

    Args:
        progress: callback of the whole.
        before: work that is done when the part begins.
        own: work of the part.
        whole: work in all.

    Returns:
        Callback of the part.
    """
    return lambda share: progress((before + share * own) / whole)


class Gradients(NamedTuple):
    """Statistics of the gradients that an attack took (see `depura.attacks.queries.Health`).

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
        share: steps of the reverse process for each of its own.
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
        surrogates: evaluations of surrogates of the model.
    """

    gradients: int
    forwards: int
    at_once: int
    surrogates: tuple[Cheap, ...] = ()

    def times(self, n: int) -> Cost:
        """The cost of n runs."""
        cheap = tuple(Cheap(c.share, n * c.gradients, n * c.forwards) for c in self.surrogates)
        return Cost(n * self.gradients, n * self.forwards, self.at_once, cheap)

    @staticmethod
    def total(costs: Sequence[Cost]) -> Cost:
        """The cost of several attacks on the same images."""
        return Cost(
            sum(c.gradients for c in costs),
            sum(c.forwards for c in costs),
            max(c.at_once for c in costs),
            tuple(cheap for c in costs for cheap in c.surrogates),
        )

    def __str__(self) -> str:
        """In words, as tables show it."""
        parts = _in_words(self.gradients, self.forwards)
        for cheap in self.surrogates:
            surrogate = f"through a surrogate of one step for every {cheap.share}"
            parts += [f"{words} {surrogate}" for words in _in_words(cheap.gradients, cheap.forwards)]
        return " + ".join(parts) or "nothing"


def _in_words(gradients: int, forwards: int) -> list[str]:
    return [f"{n:,} {what}" for n, what in ((gradients, "gradients"), (forwards, "forwards")) if n]


class Attack(ABC):
    """A frozen dataclass of hyper-parameters that proposes candidates.

    Images are attacked one by one: what is found for an image depends neither on the batch that it is in nor on the
    order of the batch, but for rounding. No attack ends an image on a single lucky draw of a randomised model. Where
    the model's answers are not finite candidates are finite all the same.

    Attributes:
        ball: the threat model, a `depura.attacks.threat.Threat`.
    """

    ball: Any

    @property
    @abstractmethod
    def n_candidates(self) -> int:
        """Candidates per image."""

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """Evaluations per image, at most."""

    @abstractmethod
    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Look for candidates.

        Args:
            queries: the model under attack, with the labels; it counts every evaluation.
            images: (B, C, H, W) in [0, 1].
            init: randomness of the attack itself, one image id per row.
            progress: called with the share of the work that is done.

        Returns:
            The candidates.
        """

    def __call__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
        progress: Progress | None = None,
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
            progress: called with the share of the work that is done, in [0, 1].

        Returns:
            The candidates.

        Raises:
            InputError: images or labels that are not usable, or a model that the attack is not for.
        """
        queries = Queries(self.title, model, images, labels, noise=eot, rows=rows)
        init = Noise.fresh(len(images)) if init is None else init
        return self.search(queries, images, init, (lambda share: None) if progress is None else progress)

    @property
    def title(self) -> str:
        """What messages call the attack."""
        return type(self).__name__

    def at(self: A, eps: float) -> A:
        """The same attack at another radius.

        A step size that was given is scaled with the radius; attacks inside are taken at the radius too.

        Args:
            eps: the radius.

        Returns:
            The attack.
        """
        changes: dict[str, Any] = {}
        for name in (setting.name for setting in fields(cast(Any, self))):
            value = getattr(self, name)
            if name == "ball":
                changes[name] = replace(value, eps=eps)
            elif name == "step_size" and value is not None and self.ball.eps > 0:
                changes[name] = value * eps / self.ball.eps
            elif name == "step_size":
                changes[name] = None
            elif isinstance(value, Attack):
                changes[name] = value.at(eps)
            elif type(value) is tuple:
                items = cast("tuple[Any, ...]", value)
                changes[name] = tuple(item.at(eps) if isinstance(item, Attack) else item for item in items)
        return cast(A, replace(cast(Any, self), **changes))


def check_finish(where: str, finish: float | None) -> None:
    """Check the share of wrong draws at which an attack is content with an image: in (0, 1], or None for never.

    Args:
        where: the attack's name.
        finish: the share.

    Raises:
        InputError: outside the interval.
    """
    if finish is not None:
        _check.number(where, "finish", finish, low=0.0, high=1.0, low_open=True)


@dataclass
class History:
    """The record of an attack in the making.

    Steps may concern some images only; the others have NaN there. The result has `n_steps` rows whether or not all
    steps were made, so that its shape does not depend on which images were attacked together.

    Attributes:
        n_images: images under attack, B.
        n_steps: the most steps there can be.
    """

    n_images: int
    n_steps: int
    _done: int = field(default=0, init=False)
    _done_health: int = field(default=0, init=False)
    _loss: Tensor | None = field(default=None, init=False)
    _health: Health | None = field(default=None, init=False)
    _finished: Tensor | None = field(default=None, init=False)

    def add(self, loss: Tensor, gradients: Tensor | Health | None = None, *, at: Tensor | None = None) -> None:
        """One more step.

        Args:
            loss: (R,), mean loss over the draws.
            gradients: (R, m, C, H, W), of every draw, or their statistics, if the attack uses gradients.
            at: (R,) int64, distinct, the images concerned; default all.
        """
        rows = slice(None) if at is None else at
        if self._loss is None:
            self._loss = loss.new_full((self.n_steps, self.n_images), torch.nan)
        self._loss[self._done, rows] = loss
        if gradients is not None:
            statistics = gradients if isinstance(gradients, Health) else health(gradients)
            if self._health is None:
                shape = (self.n_steps, self.n_images)
                self._health = Health(*(value.new_full(shape, torch.nan) for value in statistics))
            for values, value in zip(self._health, statistics, strict=True):
                values[self._done_health, rows] = value
            self._done_health += 1
        self._done += 1

    def finish(self, at: Tensor) -> None:
        """The attack is content with some images after the last step; (R,) int64. The first time counts."""
        if self._finished is None:
            self._finished = torch.full((self.n_images,), -1, dtype=torch.int64, device=at.device)
        fresh = at[self._finished[at] < 0]
        self._finished[fresh] = self._done - 1

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
        loss = images.new_full((self.n_steps, self.n_images), torch.nan) if self._loss is None else self._loss
        gradients = None
        if self._health is not None:
            zero, bad, zero_pixels, agreement, spread = self._health
            gradients = Gradients(zero.nanmean(0), bad.nanmean(0), zero_pixels.nanmean(0), agreement, spread)
        finished = self._finished
        if finished is None:
            finished = torch.full((self.n_images,), -1, dtype=torch.int64, device=images.device)
        return Candidates(images, loss, spent, finished, gradients)
