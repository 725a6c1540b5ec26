"""DiffPure on CelebA-HQ, attribute classifiers, linf 16/255, t* = 0.5 (DDPM, 500 steps): Nie et al. 2022.

    depura plan studies/published/diffpure_celebahq.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction
from depura.methods.diffpure_ddpm import CELEBA


def study(
    *,
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: Path | None = None,
    attribute: str = "Eyeglasses",
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; None to plan.
        attribute: which one the classifier tells: Eyeglasses or Smiling.
        images: how many images, the first ones.
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("ddpm-celebahq256", denoiser)
    defence = depura.Defence(CELEBA.purifier(d), reproduction.classifier("celebahq-attribute", classifier))
    ball = depura.Ball("linf", 16 / 255)
    attack = depura.PGD(ball, n_steps=50, step_size=2 / 255, eot=15, random_start=False)
    return depura.Study(
        name="diffpure-celebahq",
        data=reproduction.celeba_hq(data, images, attribute=attribute),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.PGD(ball, n_steps=50)),
        seed=seed,
        published=(
            depura.Published(
                None,
                None,
                "BPDA of 50 steps and 15 draws, verified on 20",
                "Nie et al. 2022, arXiv:2205.07460",
                "the figures of its table were not at hand; it also tries t* = 0.4",
            ),
        ),
        files=(
            reproduction.CELEBA_HQ,
            reproduction.needs("denoiser", "ddpm-celebahq256"),
            reproduction.needs("classifier", "celebahq-attribute"),
        ),
    )
