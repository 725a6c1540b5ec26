"""Low-frequency attack: an image is changed, then smoothed by filters that are optimised with the change.

After DiffBreak (Kassis, Hengartner and Yu 2024, arXiv:2411.16598), which adapts filters that were optimised against
watermarks. Written from its description alone; what differs is in docs/deviations.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from depura import _check
from depura.attacks.adam import AdamAverages
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress
from depura.attacks.losses import Loss, margin
from depura.attacks.perceptual import Perceptual
from depura.attacks.queries import Queries, mean
from depura.attacks.threat import per_image
from depura.noise import Noise

INSIDE = 0.99
"""Pixels are INSIDE times as far from grey, in the argument of arctanh, so that black and white can be moved, too."""

CENTRE = 8.0
"""Logit of a kernel's own pixel at the start, all others 0: with the default colours no pixel changes by 1/255."""


@dataclass(frozen=True)
class LowFrequency(Attack):
    """Adam on a change of the pixels and on the kernels of a chain of filters that the changed image goes through.

    With `m` the modifier and K_b the filters, each with kernels of its own for every pixel, the example is

        K_n(... K_1((tanh(arctanh(f (2 x - 1)) + m) / f + 1) / 2)),        f = 0.99,

    where a kernel is a softmax of free numbers less |x_p - x_q|^2 / (2 colour^2), so that it takes little from pixels
    of another colour and keeps edges. Ascended is the mean loss less weight * max(0, dissimilarity - eps). Gradients
    longer than 1 are scaled down to it, image by image, over all that is optimised.

    Candidates are the last iterate, and, of the iterates before it, the one of the largest objective; both are brought
    back inside by `Perceptual.project`.

    Attributes:
        ball: threat model.
        n_steps: gradient steps.
        rate: Adam's, of the modifier.
        kernel_rate: Adam's, of the kernels.
        eot: draws per gradient.
        loss: what is maximised.
        kernels: sides of the filters in pixels, odd, the first filter first; on images of at most twice a side, the
            largest odd side up to half the image's, and at least 3. None: no filters.
        colour: standard deviation of the colour weights, in [0, 1] units; None leaves them out.
        weight: of the excess of dissimilarity.
    """

    ball: Perceptual = field(default_factory=Perceptual)
    n_steps: int = 100
    rate: float = 0.008
    kernel_rate: float = 0.05
    eot: int = 1
    loss: Loss = margin
    kernels: tuple[int, ...] = (5, 7, 5, 3)
    colour: float | None = 0.05
    weight: float = 1e4

    def __post_init__(self) -> None:
        where = "LowFrequency"
        _check.integer(where, "n_steps", self.n_steps, low=1)
        _check.integer(where, "eot", self.eot, low=1)
        _check.number(where, "rate", self.rate, low=0.0, low_open=True)
        _check.number(where, "kernel_rate", self.kernel_rate, low=0.0)
        _check.number(where, "weight", self.weight, low=0.0)
        for side in self.kernels:
            if _check.integer(where, "sides in kernels", side, low=1) % 2 == 0:
                _check.fail(where, "odd sides in kernels", f"{side}", "A kernel has a pixel in its middle.")
        if self.colour is not None:
            _check.number(where, "colour", self.colour, low=0.0, low_open=True, advice="None leaves colours out.")

    @property
    def n_candidates(self) -> int:
        """Two."""
        return 2

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost(gradients=self.n_steps * self.eot, forwards=0, at_once=self.eot)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Change the images; `loss` is the whole objective. Copy j at step i uses draw i * eot + j."""
        history, filters = History(len(images), self.n_steps), self._filters(images)
        free = filters.start()
        rates = free.new_full(free.shape[1:], self.kernel_rate)
        rates[: images[0].numel()] = self.rate
        adam = AdamAverages(free)
        best, best_value = images, torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        for i in range(self.n_steps):
            changed = filters.made(free).clamp(0, 1)
            draws = queries.gradient(changed, self.loss, draws=range(i * self.eot, (i + 1) * self.eot))
            excess, gradient = self._gradient(filters, free, mean(draws.gradients))
            value = mean(draws.losses) - excess
            history.add(value, draws.gradients)
            better = value > best_value
            best, best_value = torch.where(per_image(better), changed, best), torch.where(better, value, best_value)
            # An image without a usable gradient stays put, with its averages.
            length = gradient.square().sum(1, keepdim=True).sqrt()
            gradient, finite = gradient / length.clamp_min(1), length.isfinite()
            moved = filters.held(free + rates * adam.direction(gradient, finite))
            free = torch.where(finite, moved, free)
            progress((i + 1) / self.n_steps)
        found = torch.stack([self.ball.project(x, images) for x in (filters.made(free), best)])
        return history.candidates(found, queries.spent)

    def _filters(self, images: Tensor) -> Filters:
        most = max(3, (min(images.shape[2:]) // 2 - 1) // 2 * 2 + 1)
        return Filters(images, [min(side, most) for side in self.kernels], self.colour)

    def _gradient(self, filters: Filters, free: Tensor, by_pixel: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted excess, (B,), and the objective's gradient by what is free, given the loss's by the pixels."""
        with torch.enable_grad():
            leaf = free.clone().requires_grad_()
            changed = filters.made(leaf)
            excess = self.weight * (self.ball.distance(changed, filters.images) - self.ball.eps).clamp_min(0)
            rises = (changed * by_pixel).flatten(1).sum(1) - excess
            (gradient,) = torch.autograd.grad(rises.sum(), leaf)
        return excess.detach().to(free.dtype), gradient


class Filters:
    """A change of pixels and a chain of filters, as functions of free numbers, (B, N): the modifier, then the kernels.

    Attributes:
        images: what is changed, (B, C, H, W) in [0, 1]; their colours guide all filters.
    """

    def __init__(self, images: Tensor, sides: Sequence[int], colour: float | None) -> None:
        """Prepare.

        Args:
            images: (B, C, H, W) in [0, 1].
            sides: of the kernels of each filter, odd.
            colour: standard deviation of the colour weights; None leaves them out.
        """
        self.images = images
        self.sides = tuple(sides)
        self._at_start = torch.arctanh(INSIDE * (2 * images.clamp(0, 1) - 1))
        self._offsets = [_colour_logits(images, side, colour) for side in self.sides]

    def start(self) -> Tensor:
        """The free numbers at the start, (B, N): no change, and kernels that take nearly all from the pixel itself."""
        b, _, h, w = self.images.shape
        parts = [torch.zeros_like(self.images).flatten(1)]
        for side in self.sides:
            kernels = self.images.new_zeros(b, side**2, h * w)
            kernels[:, side**2 // 2] = CENTRE
            parts.append(kernels.flatten(1))
        return torch.cat(parts, dim=1)

    def held(self, free: Tensor) -> Tensor:
        """The free numbers with modifiers brought back to where pixels are in [0, 1]."""
        n, most = self.images[0].numel(), math.atanh(INSIDE)
        modifiers = free[:, :n].reshape(self.images.shape) + self._at_start
        return torch.cat([(modifiers.clamp(-most, most) - self._at_start).flatten(1), free[:, n:]], dim=1)

    def made(self, free: Tensor) -> Tensor:
        """The changed images, (B, C, H, W), within [0, 1] but for rounding; differentiable by the free numbers."""
        n, (b, _, h, w) = self.images[0].numel(), self.images.shape
        modifiers = free[:, :n].reshape(self.images.shape)
        x = (torch.tanh(self._at_start + modifiers) / INSIDE + 1) / 2
        for side, offsets in zip(self.sides, self._offsets, strict=True):
            own = free[:, n : n + side**2 * h * w].reshape(b, side**2, h * w)
            x, n = filtered_by(x, torch.softmax(own + offsets, dim=1)), n + side**2 * h * w
        return x


def filtered_by(images: Tensor, kernels: Tensor) -> Tensor:
    """Every pixel replaced by a weighted sum of its neighbours, with weights of its own, the same for all channels.

    Args:
        images: (B, C, H, W).
        kernels: (B, k^2, H W), weights of the k x k neighbours of each pixel, row by row; k odd. Those of neighbours
            outside the image meet zeros.

    Returns:
        (B, C, H, W).
    """
    b, c, h, w = images.shape
    side = math.isqrt(kernels.shape[1])
    return (_neighbours(images, side) * kernels[:, None]).sum(2).reshape(b, c, h, w)


def _neighbours(images: Tensor, side: int) -> Tensor:
    """The k x k neighbours of each pixel, zeros outside, (B, C, H, W) -> (B, C, k^2, H W)."""
    b, c = images.shape[:2]
    return F.unfold(images, side, padding=side // 2).reshape(b, c, side**2, -1)


def _colour_logits(images: Tensor, side: int, colour: float | None) -> Tensor:
    """-|x_p - x_q|^2 / (2 colour^2) for each pixel p and neighbour q, (B, k^2, H W); -inf outside the image."""
    if colour is None:
        alike = images.new_zeros(len(images), side**2, images[0, 0].numel())
    else:
        apart = _neighbours(images, side) - images.flatten(2)[:, :, None]
        alike = -apart.square().sum(1) / (2 * colour**2)
    there = _neighbours(torch.ones_like(images[:, :1]), side)[:, 0] > 0
    return alike.masked_fill(~there, -torch.inf)
