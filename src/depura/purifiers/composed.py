"""Purifiers made of purifiers: at another resolution, one after another, averaged, of fixed noise, drawn at random."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from depura import _check
from depura.image_ops import bilinear
from depura.noise import Kind, Noise
from depura.purifiers.purifier import Purifier, Stages
from depura.records.kinds import GradientMode


class Resized(Purifier):
    """A purifier of another resolution: bilinear to `size`, purify, bilinear back; both in the gradient.

    DiffPure on ImageNet: 224 -> 256 -> 224, align_corners=False, no antialiasing.
    """

    def __init__(self, purifier: Purifier, *, size: int) -> None:
        """Wrap the purifier.

        Args:
            purifier: takes size x size images.
            size: its resolution.
        """
        super().__init__()
        self.purifier = purifier
        self.size = _check.integer("Resized", "size", size, low=1)

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """Those of the purifier inside, on images of its resolution."""
        resized = bilinear(images, (self.size, self.size))
        purified = yield from self.purifier.stages(resized, noise, rows)
        return bilinear(purified, images.shape[2:])


class Sequential(Purifier):
    """Purifiers one after another, each on the result of the one before (with rounds of noise of its own).

    Each takes what it is given for the image being purified. Gradual noise schedules are of this kind, and so is one
    method behind another.
    """

    def __init__(self, *purifiers: Purifier) -> None:
        """Compose.

        Args:
            *purifiers: at least one, in order; together at most 256 rounds.

        Raises:
            InputError: none, or too many rounds.
        """
        super().__init__()
        self.purifiers = nn.ModuleList(purifiers)
        if not purifiers:
            _check.fail("Sequential", "at least one purifier", "none")
        _check.integer("Sequential", "rounds of all purifiers together", self.n_rounds, low=1, high=256)

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """Those of all purifiers, one after another."""
        for purifier in self.inner:
            images = yield from purifier.stages(images, noise, rows)
            noise = noise.later(purifier.n_rounds)
        return images


class FixedNoise(Purifier):
    """A purifier whose noise is fixed, the same for every image, draw and call: a deterministic defence.

    The attacker knows the noise too. What remains of a defence's accuracy under attack when its noise is fixed is not
    owed to randomness; and an attack that does not break a defence of fixed noise has a wrong gradient or a poor
    optimiser (Carlini et al. 2019, arXiv:1902.06705). Votes over such a purifier are unanimous.
    """

    def __init__(self, purifier: Purifier, *, seed: int = 0) -> None:
        """Wrap the purifier.

        Args:
            purifier: whose noise is fixed.
            seed: of the fixed noise.

        Raises:
            InputError: a purifier that is differentiated by the grafted route, which tells images apart by their noise.
        """
        super().__init__()
        self.purifier = purifier
        self.seed = _check.integer("FixedNoise", "seed", seed, high=2**64 - 1)
        if any(component.gradient.mode == GradientMode.GRAFTED for component in purifier.components):
            _check.fail("FixedNoise", "a gradient route that takes images one by one", "Grafted", "Take StoredState.")

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """Those of the purifier inside, with the fixed noise."""
        fixed = Noise(self.seed, images=(0,) * len(noise), round=noise.round)
        return (yield from self.purifier.stages(images, fixed, rows))


class Averaged(Purifier):
    """The mean of several purifications of an image, with noise of their own, folded into the batch.

    Draw d uses purifications d * n .. d * n + n - 1. To average predictions instead of images give the `Defence` a rule
    (`MeanLogit`, `MeanProb`, `Vote`).
    """

    def __init__(self, purifier: Purifier, *, n_paths: int) -> None:
        """Wrap the purifier.

        Args:
            purifier: makes one purification.
            n_paths: how many.
        """
        super().__init__()
        self.purifier = purifier
        self.n_paths = _check.integer("Averaged", "n_paths", n_paths, low=1)

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """Those of the purifier inside, each image n times."""
        n = self.n_paths
        repeated = tuple(row for row in rows for _ in range(n))
        paths = yield from self.purifier.stages(images.repeat_interleave(n, dim=0), noise.split(n), repeated)
        return paths.reshape(len(images), n, *paths.shape[1:]).mean(1)


class Mixed(Purifier):
    """One of several purifiers, drawn afresh for each image and draw, all equally likely: for random settings.

    Rows of a batch that draw the same purifier go through it together.
    """

    def __init__(self, *purifiers: Purifier) -> None:
        """Compose.

        Args:
            *purifiers: at least one, all of the same numbers of steps and rounds.

        Raises:
            InputError: none, or of different lengths.
        """
        super().__init__()
        self.purifiers = nn.ModuleList(purifiers)
        lengths = sorted({(part.n_rounds, part.n_steps) for part in purifiers})
        if len(lengths) != 1:
            _check.fail("Mixed", "purifiers of one number of rounds and steps", f"{lengths}")

    @property
    def n_rounds(self) -> int:
        """Those of one purifier."""
        return self.inner[0].n_rounds

    @property
    def n_steps(self) -> int:
        """Steps of one purification."""
        return self.inner[0].n_steps

    def stages(self, images: Tensor, noise: Noise, rows: tuple[int, ...]) -> Stages:
        """Those of each purifier that was drawn, with its rows."""
        n, done, order = len(self.purifiers), list[Tensor](), list[int]()
        share = noise.uniform(torch.empty(len(images), dtype=torch.float64), kind=Kind.T_STAR)
        drawn = cast("list[int]", (share * n).long().clamp(max=n - 1).tolist())
        for number, purifier in enumerate(self.inner):
            own = [row for row, k in enumerate(drawn) if k == number]
            if own:
                theirs = tuple(rows[row] for row in own)
                done.append((yield from purifier.stages(images[own], noise.take(own), theirs)))
                order += own
        return torch.cat(done)[torch.tensor(order, device=images.device).argsort()]
