"""GDMP on CIFAR-10, WideResNet-28-10, linf 8/255, 4 rounds of 36 steps, 10 paths: Wang et al. 2022.

The published classifier is a pickled module, which is not loaded here: RobustBench's Standard stands in its place.

    depura plan studies/published/gdmp_cifar10.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction
from depura.methods.gdmp import released_start


def study(
    *,
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: Path | None = None,
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: the network's file; None to plan.
        images: how many images of Lee and Kim's draw (GDMP's is not known).
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("ddpm-cifar10", denoiser)
    purifier = depura.gdmp(d, start=released_start(36))
    defence = depura.Defence(purifier, reproduction.classifier("wrn-28-10", classifier), rule=depura.MeanLogit(10))
    ball = depura.Ball("linf", 8 / 255)
    attack = depura.PGD(ball, n_steps=40, step_size=2 / 255, eot=15)
    return depura.Study(
        name="gdmp-cifar10",
        data=reproduction.cifar(data, reproduction.lee_kim(10_000, images)),
        defence=defence,
        rows=depura.ladder(defence, attack, blind=depura.PGD(ball, n_steps=40)),
        seed=seed,
        published=(
            depura.Published(
                93.5,
                90.06,
                "PGD on the bare classifier, transferred",
                "Wang et al. 2022, arXiv:2205.14969",
                "as DiffBreak repeats it; 90.1 in its abstract",
            ),
            depura.Published(89.96, 75.59, "BPDA", "Lee and Kim 2023", reproduction.AUTHORS_LATER),
            depura.Published(
                89.96,
                24.53,
                "PGD of 200 steps and 20 draws through a surrogate",
                "Lee and Kim 2023",
                reproduction.AUTHORS_LATER,
            ),
            depura.Published(
                93.36, 19.53, "exact gradients (10.55 with 20 purifications)", "DiffBreak", reproduction.AUTHORS_LATER
            ),
        ),
        files=(
            reproduction.CIFAR10,
            reproduction.needs("denoiser", "ddpm-cifar10"),
            reproduction.needs("classifier", "wrn-28-10"),
        ),
    )
