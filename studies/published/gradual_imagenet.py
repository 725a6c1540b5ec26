"""The gradual noise schedule on ImageNet, ResNet-50, linf 4/255, votes over 10: Lee and Kim 2023.

Beside the exact gradient it is attacked through the authors' surrogate of seven steps.

    depura plan studies/published/gradual_imagenet.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction
from depura.methods.gradual import IMAGENET, N_VOTES, gradual, surrogate


def study(
    *,
    data: Path | None = None,
    denoiser: Path | None = None,
    classifier: str = "torchvision:resnet50",
    images: int = 512,
    seed: int = 0,
) -> depura.Study:
    """The study.

    Args:
        data: the images, as the plan says; None to plan.
        denoiser: the network's file; None to plan.
        classifier: its name in its library.
        images: how many of the authors' draw.
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("adm-imagenet256", denoiser)
    network = reproduction.imagenet_classifier(classifier, planned=denoiser is None)
    defence = depura.Defence(depura.Resized(gradual(d, depths=IMAGENET), size=256), network, rule=depura.Vote(N_VOTES))
    shorter = depura.Defence(depura.Resized(surrogate(d, depths=(30, 50, 200)), size=256), network)
    ball = depura.Ball("linf", 4 / 255)
    attack = reproduction.lee_kim_pgd(ball, n_steps=20)
    title = "purified; attack through the authors' surrogate"
    return depura.Study(
        name="gradual-imagenet",
        data=reproduction.imagenet(data, reproduction.lee_kim(50_000, images)),
        defence=defence,
        rows=(
            *depura.ladder(defence, attack, blind=depura.APGD(ball, common=0)),
            depura.Row("surrogate", title, attack, shorter, defence, "surrogate"),
        ),
        seed=seed,
        published=(
            depura.Published(
                70.74,
                42.15,
                "PGD of 20 steps and 20 draws through the surrogate",
                "Lee and Kim 2023, arXiv:2303.09051",
                reproduction.UNVERIFIED,
            ),
        ),
        files=(
            reproduction.IMAGENET,
            reproduction.needs("denoiser", "adm-imagenet256"),
            reproduction.needs_by_name(classifier, "BSD-3-Clause (library); weights trained on ImageNet"),
        ),
    )
