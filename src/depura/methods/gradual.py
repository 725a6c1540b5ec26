"""Gradual noise schedule (Lee and Kim, ICCV 2023, arXiv:2303.09051): purify in rounds of growing depth:

    for T in depths:  x <- noise to T, then DDPM back to 0 over all T indices

with predictions voted over ten purifications. `surrogate` is the same paper's attack: a few large steps in place of
many, differentiated instead of the defence. Depths: the released scripts. Deviations are in docs/deviations.md#gradual.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import DiscreteLinear, ddpm_steps
from depura.diffusion.solvers import Ancestral, Solver
from depura.gradients import GradientRoute
from depura.methods.entry import Method, Setting
from depura.purifiers.composed import Sequential
from depura.purifiers.purifier import DiffusionPurifier

CIFAR10 = (30,) * 4 + (50,) * 2 + (125,) * 2
"""Depths in indices: 8 rounds, 470 evaluations."""
IMAGENET = (30,) * 4 + (50,) * 2 + (200,) * 2
"""8 rounds, 620 evaluations."""
SVHN = (30,) * 4 + (50,) * 2 + (80,) * 2
"""8 rounds, 380 evaluations."""
N_VOTES = 10
"""Purifications that the published defence votes over: `Vote(N_VOTES)`."""


def gradual(
    denoiser: Denoiser,
    *,
    depths: Sequence[int] = CIFAR10,
    n_steps: Sequence[int] | None = None,
    solver: Solver | None = None,
    gradient: GradientRoute | None = None,
) -> Sequential:
    """The gradual noise schedule around any denoiser.

    Args:
        denoiser: D(x, sigma) -> x0.
        depths: noising depth of each round, in indices.
        n_steps: reverse steps of each round, divisors of the depths; default all indices.
        solver: default `Ancestral()` (DDPM); `Euler()` is DDIM.
        gradient: how the reverse processes are differentiated.

    Returns:
        The rounds, one after another.

    Raises:
        InputError: no rounds, or as many numbers of steps as there are not depths.
    """
    counts = tuple(depths) if n_steps is None else tuple(n_steps)
    if len(depths) == 0 or len(counts) != len(depths):
        _check.fail("gradual", "a depth and a number of steps for each round", f"{len(depths)} and {len(counts)}")
    rounds = [(pair, len(list(same))) for pair, same in groupby(zip(depths, counts, strict=True))]
    return Sequential(
        *(
            DiffusionPurifier(
                denoiser,
                steps=ddpm_steps(DiscreteLinear(), n_noise=depth, n_steps=count),
                solver=Ancestral() if solver is None else solver,
                gradient=gradient,
                rounds=n_rounds,
            )
            for (depth, count), n_rounds in rounds
        )
    )


def surrogate(
    denoiser: Denoiser, *, depths: Sequence[int] = (30, 50, 125), n_steps: Sequence[int] = (1, 1, 5)
) -> Sequential:
    """The surrogate process that attacks on the gradual schedule differentiate: seven evaluations.

    Args:
        denoiser: D(x, sigma) -> x0.
        depths: noising depths; (30, 50, 200) for ImageNet, (30, 50, 80) for SVHN.
        n_steps: their numbers of steps.

    Returns:
        The rounds.
    """
    return gradual(denoiser, depths=depths, n_steps=n_steps)


METHOD = Method(
    "gradual",
    "gradual schedule",
    "Lee and Kim 2023, arXiv:2303.09051",
    "gradual",
    (
        Setting("lk_gradual_cifar", "gradual", gradual, N_VOTES),
        Setting("lk_gradual_imagenet", "gradual(depths=gradual.IMAGENET)", partial(gradual, depths=IMAGENET), N_VOTES),
        Setting("lk_gradual_svhn", "gradual(depths=gradual.SVHN)", partial(gradual, depths=SVHN), N_VOTES),
        Setting("lk_surrogate_cifar", "gradual.surrogate", surrogate),
        Setting("lk_single", "gradual(depths=(200,), n_steps=(5,))", partial(gradual, depths=(200,), n_steps=(5,))),
    ),
    build=gradual,
)
