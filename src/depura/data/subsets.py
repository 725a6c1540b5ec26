"""The images that the papers judge on, by the same draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from depura import _check


def subset(n: int, images: int, *, seed: int = 0) -> tuple[int, ...]:
    """Rows drawn without replacement, in the order of the draw: `numpy.random.RandomState(seed).choice`.

    This is how published evaluations of purification draw their images from the test or validation set, in its
    published order:

    - Lee and Kim, "Robust Evaluation of Diffusion-Based Adversarial Purification", ICCV 2023, and those who use their
      code (MimicDiffusion): `subset(10_000, 512)` of CIFAR-10, seed 0.
    - Nie et al., "Diffusion Models for Adversarial Purification", ICML 2022: `subset(10_000, 64, seed=s)` of CIFAR-10
      for s = 0 .. 7, `subset(50_000, 16, seed=s)` of ImageNet's validation folders for s = 0 .. 31, each of them run by
      itself; together they are `diffpure_subset`.
    - The same for CelebA-HQ: the first 8 of `subset(n, int(0.02 * n), seed=s)` of the n images of the validation
      part, for 64 seeds.

    Other papers (AGDM among them) do not say which images they took.

    Args:
        n: images of the full set.
        images: how many to draw, 1 to n.
        seed: of the draw, 0 to 2^32 - 1.

    Returns:
        Distinct rows from 0 to n - 1.
    """
    _check.integer("subset", "n", n, low=1)
    _check.integer("subset", "images", images, low=1, high=n)
    _check.integer("subset", "seed", seed, high=2**32 - 1)
    return tuple(int(row) for row in np.random.RandomState(seed).choice(n, images, replace=False))


def diffpure_subset(n: int, images: int, *, seeds: Sequence[int]) -> tuple[int, ...]:
    """The rows of several draws by `subset`, one after another; rows that an earlier draw has had are left out.

    The draws of DiffPure's code are independent, so that its "512 images" hold some twice. The 8 x 64 of CIFAR-10
    (`diffpure_subset(10_000, 64, seeds=range(8))`) are 504 distinct images, the 32 x 16 of ImageNet
    (`diffpure_subset(50_000, 16, seeds=range(32))`) 510. Averages over the published draws weigh the repeated ones
    twice; here each counts once.

    Args:
        n: images of the full set.
        images: of each draw.
        seeds: of the draws.

    Returns:
        Distinct rows from 0 to n - 1.
    """
    return tuple(dict.fromkeys(row for seed in seeds for row in subset(n, images, seed=seed)))


def some_others(n: int, chosen: Sequence[int], *, most: int = 400) -> tuple[int, ...]:
    """Rows from 0 to n - 1 that were not chosen, up to so many of them, the same ones each time, in random order."""
    left = np.setdiff1d(np.arange(n), np.asarray(chosen, dtype=np.int64))
    return tuple(int(row) for row in np.random.RandomState(0).permutation(left)[:most])
