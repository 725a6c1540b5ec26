"""The gradual noise schedule on CIFAR-10, WideResNet-28-10, l2 0.5, votes over 10: Lee and Kim 2023.

Beside the exact gradient it is attacked through the authors' surrogate of seven steps.

    depura plan studies/published/gradual_cifar10_l2.py

With the files that the plan names (-S NAME=PATH) it can be run.
"""

from __future__ import annotations

from pathlib import Path

import depura
from depura.evaluation import reproduction
from depura.methods.gradual import CIFAR10, N_VOTES, gradual, surrogate


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
        images: how many of the authors' draw.
        seed: of all noise.

    Returns:
        The study.
    """
    d = reproduction.denoiser("score-sde-cifar10", denoiser)
    network = reproduction.classifier("wrn-28-10", classifier)
    defence = depura.Defence(gradual(d, depths=CIFAR10), network, rule=depura.Vote(N_VOTES))
    shorter = depura.Defence(surrogate(d), network)
    ball = depura.Ball("l2", 0.5)
    attack = reproduction.lee_kim_pgd(ball, n_steps=200)
    title = "purified; attack through the authors' surrogate"
    return depura.Study(
        name="gradual-cifar10-l2",
        data=reproduction.cifar(data, reproduction.lee_kim(10_000, images)),
        defence=defence,
        rows=(
            *depura.ladder(defence, attack, blind=depura.APGD(ball, common=0)),
            depura.Row("surrogate", title, attack, shorter, defence, "surrogate"),
        ),
        seed=seed,
        published=(
            depura.Published(
                90.16,
                83.59,
                "PGD of 200 steps and 20 draws through the surrogate",
                "Lee and Kim 2023, arXiv:2303.09051",
                reproduction.UNVERIFIED,
            ),
        ),
        files=(
            reproduction.CIFAR10,
            reproduction.needs("denoiser", "score-sde-cifar10"),
            reproduction.needs("classifier", "wrn-28-10"),
        ),
    )
