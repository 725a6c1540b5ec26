"""Expectation over transformation: loss and gradient of every draw, in calls that fit into memory, and what they tell.

Athalye et al. 2018 (arXiv:1707.07397). The gradient of a randomised model is the mean over draws; it does not depend on
how the draws are split into calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from depura import _check
from depura.attacks.losses import Loss
from depura.attacks.threat import per_image
from depura.gradients.memory import unless_out_of_memory
from depura.noise import Noise
from depura.predictions import all_finite, predicted

T = TypeVar("T")


class RandomModel(Protocol):
    """A model whose randomness is handed to it, such as a `Defence`."""

    def __call__(self, images: Tensor, noise: Noise, /) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        ...


Model = Callable[[Tensor], Tensor]
"""Any callable from images in [0, 1] to logits."""

Combine = Callable[[Tensor], Tensor]
"""How the gradients of an image's draws become one: (B, m, C, H, W) -> (B, C, H, W); `mean` or `mean_of_units`."""


class Draws(NamedTuple):
    """Loss and gradient of m draws of each of B images.

    A draw with a logit that is not finite has a loss and a gradient of NaN, and is misclassified: it names no class.

    Attributes:
        losses: (B, m).
        gradients: (B, m, C, H, W), of each draw's own loss.
        wrong: (B, m), whether each draw is misclassified.
        rows: rows that were put through the model at once; fewer than asked for if memory ran out.
    """

    losses: Tensor
    gradients: Tensor
    wrong: Tensor
    rows: int

    def loss(self) -> Tensor:
        """Mean over draws, (B,)."""
        return mean(self.losses)

    def gradient(self, combine: Combine | None = None) -> Tensor:
        """One gradient per image, (B, C, H, W): by default the mean over draws; not finite where any draw is not."""
        return mean(self.gradients) if combine is None else combine(self.gradients)


class Health(NamedTuple):
    """What the gradients of some draws tell about themselves. Nothing is replaced or left out but where said.

    Attributes:
        zero: (B,), share of draws whose gradient is exactly zero everywhere.
        bad: (B,), share of draws whose gradient is not finite somewhere.
        zero_pixels: (B,), share of the mean gradient's entries that are exactly zero.
        agreement: (B,), cosine of the mean gradients of the two halves of the draws; NaN with less than two draws, or
            where a half is zero or not finite.
        spread: (B,), largest over median norm of a draw; NaN where the median is zero or not finite.
    """

    zero: Tensor
    bad: Tensor
    zero_pixels: Tensor
    agreement: Tensor
    spread: Tensor


def by_draw(
    model: Model | RandomModel,
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    *,
    draws: range,
    noise: Noise | None,
    rows: int | None = None,
    where: str = "attack",
    targets: Tensor | None = None,
) -> Draws:
    """Loss and gradient of each draw by itself.

    Args:
        model: images to logits; called as model(images) where `noise` is None, else as model(images, noise).
        images: (B, C, H, W) in [0, 1].
        labels: (B,), int64.
        loss: one number per row.
        draws: draw numbers; without noise only their count matters.
        noise: randomness of the model, one image id per row.
        rows: images times draws in one call; default all. If memory runs out, half as many, and so on.
        where: who asks, for messages.
        targets: (B,), a class per image that the loss is called with too; default none.

    Returns:
        The draws.

    Raises:
        InputError: a model without a gradient path to the images, or labels that are not its classes.
    """
    m, n = len(draws), len(images) * len(draws)
    copies = images.detach().repeat_interleave(m, dim=0)
    classes = [t.repeat_interleave(m) for t in (labels, targets) if t is not None]
    noises = None if noise is None else noise.expand(draws)
    found, at_once = _in_calls(n, rows, lambda part: _pull(model, copies, classes, loss, noises, part, where))
    losses, gradients, wrong = (torch.cat(parts) for parts in zip(*found, strict=True))
    shape = (len(images), m)
    return Draws(losses.reshape(shape), gradients.reshape(*shape, *images.shape[1:]), wrong.reshape(shape), at_once)


@torch.no_grad()
def logits_by_draw(
    model: Model | RandomModel, images: Tensor, *, draws: range, noise: Noise | None, rows: int | None = None
) -> tuple[Tensor, int]:
    """Logits of each draw by itself, without a gradient.

    Args:
        model: images to logits; called as model(images) where `noise` is None, else as model(images, noise).
        images: (B, C, H, W) in [0, 1].
        draws: draw numbers; without noise only their count matters.
        noise: randomness of the model, one image id per row.
        rows: images times draws in one call; default all. If memory runs out, half as many, and so on.

    Returns:
        (B, m, K), and the rows that were put through the model at once.
    """
    m, n = len(draws), len(images) * len(draws)
    copies, noises = images.repeat_interleave(m, dim=0), None if noise is None else noise.expand(draws)
    found, at_once = _in_calls(n, rows, lambda part: _put(model, *_some(copies, noises, part)))
    return torch.cat(found).reshape(len(images), m, -1), at_once


def health(gradients: Tensor) -> Health:
    """What gradients tell about themselves.

    Args:
        gradients: (B, m, C, H, W).

    Returns:
        Per image.
    """
    flat = gradients.detach().flatten(2).to(torch.float64)
    half = flat.shape[1] // 2
    agreement = torch.full((len(flat),), torch.nan, dtype=torch.float64, device=flat.device)
    if half:
        agreement = cosine(flat[:, :half].mean(1), flat[:, half : 2 * half].mean(1))
    norms = flat.square().sum(2).sqrt()
    median = norms.median(dim=1).values
    return Health(
        zero=(flat == 0).all(2).double().mean(1),
        bad=(~flat.isfinite().all(2)).double().mean(1),
        zero_pixels=(flat.mean(1) == 0).double().mean(1),
        agreement=agreement,
        spread=norms.amax(1) / torch.where(median > 0, median, torch.nan),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two gradients per image, (B, ...) -> (B,); NaN where one is zero or not finite."""
    a, b = a.flatten(1).to(torch.float64), b.flatten(1).to(torch.float64)
    norms = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return (a * b).sum(1) / torch.where(norms > 0, norms, torch.nan)


def mean(values: Tensor) -> Tensor:
    """Mean over the draws, (B, m, ...) -> (B, ...), summed in float64."""
    return values.mean(1, dtype=torch.float64).to(values.dtype)


def mean_of_units(gradients: Tensor) -> Tensor:
    """Mean of the draws' gradients, each scaled to length 1 first (a zero stays zero): (B, m, C, H, W) -> (B, C, H, W).

    Where few draws have gradients thousands of times longer than the others', the plain mean is theirs alone; here
    every draw has one voice.
    """
    length = gradients.to(torch.float64).flatten(2).square().sum(2).sqrt()
    return mean(gradients / torch.where(length > 0, length, 1.0)[:, :, None, None, None].to(gradients.dtype))


def _in_calls(n: int, rows: int | None, call: Callable[[range], T]) -> tuple[list[T], int]:
    """Results of n rows in calls of at most `rows`, fewer when memory runs out; and how many rows a call had."""
    at_once, done = n if rows is None else min(rows, n), 0
    found: list[T] = []
    while done < n:
        part = range(done, min(done + at_once, n))
        result = unless_out_of_memory(lambda part=part: call(part))
        if result is None and at_once > 1:
            at_once = (at_once + 1) // 2
            continue
        found.append(call(part) if result is None else result)
        done = part.stop
    return found, at_once


def _put(model: Model | RandomModel, images: Tensor, noise: Noise | None) -> Tensor:
    """Logits (R, K)."""
    noises = () if noise is None else (noise,)
    return cast("Callable[..., Tensor]", model)(images, *noises)


def _some(copies: Tensor, noises: Noise | None, part: range) -> tuple[Tensor, Noise | None]:
    """Some rows of a call."""
    return copies[part.start : part.stop], None if noises is None else noises.take(part)


def _pull(
    model: Model | RandomModel,
    images: Tensor,
    classes: list[Tensor],
    loss: Loss,
    noise: Noise | None,
    part: range,
    where: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (R,), gradients (R, C, H, W) and whether the prediction is wrong (R,), of some rows."""
    labels, *targets = (c[part.start : part.stop] for c in classes)
    some, noises = _some(images, noise, part)
    with torch.enable_grad():
        leaf = some.clone().requires_grad_()
        logits = _put(model, leaf, noises)
        _check.labels(where, labels, n_images=len(leaf), n_classes=logits.shape[1])
        if not logits.requires_grad:
            _check.fail(
                where,
                "logits with a gradient path to the images",
                "logits without one",
                "Look for a detach, no_grad or argmax in the model. A purifier without a gradient can be attacked "
                "through StraightThrough, a rule without one as if it were depura.MeanProb, and a classifier without "
                "one by its scores alone, as Square does.",
            )
        values = loss(logits, labels, *targets)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    broken, values = ~all_finite(logits), values.detach()
    gradient = gradient.masked_fill(per_image(broken), torch.nan)
    return values.masked_fill(broken, torch.nan), gradient, predicted(logits.detach()) != labels
