"""Training a denoiser: EDM's weighted denoising loss (Karras et al. 2022, section 5)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depura import _check
from depura.data.imageset import ImageSet
from depura.diffusion.denoisers import Denoiser, EdmDenoiser, edm_coefficients
from depura.models.networks.edm import SongUNet
from depura.models.networks.preconditioned import EdmPreconditioned
from depura.models.networks.small import SmallUNet
from depura.noise import Kind, Noise, Stream
from depura.training.loop import CONSTANT, UNDECIDED, Fitted, Progress, Recipe, Report, quick, seeded, train
from depura.training.mixture import Mixture, mirrored

P_MEAN, P_STD = -1.2, 1.2
"""ln(sigma) ~ N(P_MEAN, P_STD^2) in training; Karras et al. 2022, table 1."""


class EdmLoss:
    """E over sigma and n of lambda(sigma) |D(x0 + sigma n; sigma) - x0|^2, lambda = (sigma^2 + s^2) / (sigma s)^2.

    In terms of the raw network F the weight is 1: the loss is |F - (x0 - c_skip x) / c_out|^2, mean over pixels.
    """

    def __init__(
        self, network: Callable[..., Tensor], *, sigma_data: float, flip: bool = False, sources: int = 1
    ) -> None:
        """Set up.

        Args:
            network: raw network, takes (c_in x, ln(sigma) / 4).
            sigma_data: standard deviation of the data in [-1, 1] units.
            flip: mirror every second image, left to right.
            sources: kinds of images there are. With more than one, the network gets which by (None, marks) after the
                label: (B, sources - 1), 1 for the source, and all 0 for the first, which a network without marks
                therefore serves (the non-leaking augmentation of Karras et al. 2022, appendix F.2, with the defects of
                the other sources as augmentation).
        """
        self.network = network
        self.sigma_data = sigma_data
        self.flip = flip
        self.sources = sources

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Loss of a batch, see `depura.training.loop.Loss`; labels are the numbers of the images' sources."""
        x0 = 2 * images - 1
        if self.flip:
            x0 = mirrored(x0, noise)
        levels = noise(torch.empty(len(x0)), kind=Kind.AUGMENT)
        sigma = torch.exp(P_MEAN + P_STD * levels)
        marks = None if self.sources == 1 else F.one_hot(labels, self.sources)[:, 1:].to(x0.dtype)
        return self.at(x0, sigma, noise(x0, kind=Kind.FORWARD), marks)

    def at(self, x0: Tensor, sigma: Tensor, n: Tensor, marks: Tensor | None = None) -> Tensor:
        """The loss, a scalar, of x0 (B, C, H, W) in [-1, 1] at levels sigma (B,), with noise n like x0."""
        rows = torch.tensor([edm_coefficients(float(s), self.sigma_data) for s in sigma], dtype=x0.dtype)
        skip, out, into, label = rows.T.to(x0.device)
        x = x0 + _column(sigma.to(x0.device)) * n
        more = () if marks is None else (None, marks)
        predicted = self.network(_column(into) * x, label, *more)
        return ((predicted - (x0 - _column(skip) * x) / _column(out)) ** 2).mean()


def data_std(images: Tensor) -> float:
    """Standard deviation of all pixels in [-1, 1] units, to two digits (EDM's sigma_data)."""
    return round(math.sqrt(float((2 * images - 1).double().var())), 2)


def _column(v: Tensor) -> Tensor:
    return v[:, None, None, None]


@dataclass(frozen=True)
class Design:
    """Which network a denoiser is, and how it is trained.

    Attributes:
        unet: settings of a `SongUNet` but for its channels and marks; None for a `SmallUNet`.
        width: of the `SmallUNet`, a multiple of 8; twice as many channels at half the resolution.
        flip: mirror every second image.
        bfloat16: run the network in bfloat16, where it is safe; weights, their average and the loss are float32.
        compiled: by torch.compile, in channels-last memory.
    """

    unet: Mapping[str, Any] | None = None
    width: int = 24
    flip: bool = False
    bfloat16: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if _check.integer("train_denoiser", "width", self.width, low=8) % 8:
            _check.fail("train_denoiser", "a width that is a multiple of 8", f"{self.width}")


def train_denoiser(
    data: ImageSet | Mixture,
    recipe: Recipe,
    *,
    design: Design | None = None,
    checkpoint: Path | None = None,
    every: int = 500,
    progress: Progress | None = None,
    watch: Callable[[Denoiser, Report], Mapping[str, float]] | None = None,
    device: str = "cpu",
) -> Fitted[Denoiser]:
    """Train a U-Net as an EDM denoiser.

    Args:
        data: training images of a height and width that the network's levels halve; of several sources, the first is
            the one that the denoiser is to serve, and the network is given marks of the others (`SongUNet` only).
        recipe: how.
        design: the network; default a `SmallUNet` of width 24.
        checkpoint: file to save to and go on from.
        every: steps between checkpoints.
        progress: called after each step.
        watch: measures the denoiser with averaged weights at checkpoints, see `depura.training.loop.Watch`.
        device: where to train.

    Returns:
        The denoiser, and what is to be known of it.

    Raises:
        InputError: a width that is no multiple of 8; images that the network does not take.
    """
    chosen = design or Design()
    mixture = data if isinstance(data, Mixture) else Mixture.of([data])
    first = mixture.images[: mixture.sizes[0]]
    channels, height, width = first.shape[1:]
    sigma_data, sources = data_std(first), len(mixture.sizes)
    settings: dict[str, Any]
    if chosen.unet is None:
        if height % 2 or width % 2:
            _check.fail("train", "images of even height and width", f"{(height, width)}", "Pad or crop them.")
        sources = 1
        settings = {"channels": channels, "width": chosen.width, "inner": 2 * chosen.width, "embed": 32}
        about: dict[str, object] = {"architecture": settings, "sigma_data": sigma_data}
        build, wrap = SmallUNet, partial(EdmDenoiser, sigma_data=sigma_data)
    else:
        augment = sources - 1 if sources > 1 else None
        settings = {**chosen.unet, "channels": channels, "outputs": channels, "augment": augment}
        kind = {"preconditioner": "EDMPrecond", "network": "SongUNet", "constants": {"sigma_data": sigma_data}}
        about = {"family": "edm", "settings": {**kind, **settings}, "options": {}}
        build, wrap = SongUNet, partial(EdmPreconditioned, sigma_data=sigma_data)
    raw: nn.Module = seeded(lambda: build(**settings), recipe.seed)
    denoiser: Denoiser = wrap(raw)
    called = quick(raw, bfloat16=chosen.bfloat16, compiled=chosen.compiled)
    history = train(
        raw,
        EdmLoss(called, sigma_data=sigma_data, flip=chosen.flip, sources=sources),
        mixture.labelled_by_source(),
        recipe,
        about=json.dumps([about, chosen.flip, chosen.bfloat16, chosen.compiled, mixture.sizes, mixture.weights]),
        checkpoint=checkpoint,
        every=every,
        progress=progress,
        watch=None if watch is None else lambda network, report: watch(wrap(network), report),
        device=device,
    )
    assert isinstance(denoiser, nn.Module)
    return Fitted(denoiser, raw if chosen.unet is None else denoiser, about, history)


@torch.no_grad()
def denoising_error(denoiser: Denoiser, images: Tensor, *, sigma: float, seed: int = 0) -> float:
    """Root mean square error per pixel of the estimate, in [-1, 1] units, at one noise level.

    Of images (N, C, H, W) in [0, 1]; sigma itself would be the error of not denoising.
    """
    x0 = 2 * images - 1
    noise = Noise(seed, tuple(range(len(x0))), stream=Stream.PROBE)
    x = x0 + sigma * noise(x0, kind=Kind.FORWARD)
    return float((denoiser(x, sigma) - x0).double().square().mean().sqrt())


class Preset(NamedTuple):
    """A network and its recipe.

    Attributes:
        design: the network.
        recipe: how it is trained; the number of steps is to be given, or a time budget.
        about: in a sentence.
    """

    design: Design
    recipe: Recipe
    about: str


_CIFAR10 = {"resolution": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": ()}

PRESETS: Mapping[str, Preset] = {
    "cifar10-small": Preset(
        Design({**_CIFAR10, "width": 32}, flip=True, bfloat16=True, compiled=True),
        Recipe(UNDECIDED, batch=64, rate=1e-3, warmup=200, schedule=CONSTANT),
        "1.2 million parameters, three levels; for a processor and two hours",
    ),
    "cifar10-base": Preset(
        Design(
            {**_CIFAR10, "width": 96, "multipliers": (2, 2, 2), "blocks": 4, "attention": (1,)},
            flip=True,
            bfloat16=True,
            compiled=True,
        ),
        Recipe(UNDECIDED, batch=512, rate=1e-3, warmup=2000, ema=0.9995, schedule=CONSTANT),
        "31 million parameters, DDPM++ with attention at 16x16; for a GPU",
    ),
}
"""By name. What they share is in EDM's style: DDPM++ (Karras et al. 2022, table 5), narrower."""
