"""The study behind `depura demo`: DiffPure in five steps on the bundled digits, attacked four ways."""

from __future__ import annotations

from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.data.digits import SHAPE, load_digits
from depura.defence import Defence
from depura.evaluation.study import Study, attack_suite
from depura.methods.diffpure import N_STEPS, T_STAR, few_steps
from depura.models.digits import digits_classifier, digits_denoiser
from depura.purifiers.purifier import DiffusionPurifier

EPS = 0.2
"""linf radius on the digits, in [0, 1] units."""


def digits_purifier(*, t_star: float = T_STAR, n_steps: int = N_STEPS) -> DiffusionPurifier:
    """DiffPure with ancestral steps around the bundled denoiser, for images of shape (B, 1, 8, 8) in [0, 1]."""
    return few_steps(digits_denoiser(), t_star=t_star, steps=n_steps).with_(image_shape=SHAPE)


def study(
    *,
    images: int = 64,
    eps: float = EPS,
    t_star: float = T_STAR,
    n_steps: int = N_STEPS,
    attack_steps: int = 20,
    eot: int = 5,
    report_draws: int = 64,
    curve: tuple[float, ...] = (0.1, 0.15, 0.3),
    curve_images: int = 16,
    seed: int = 0,
) -> Study:
    """Four rows on the first test digits: undefended, transfer, adaptive, BPDA.

    Args:
        images: how many test digits (up to 500).
        eps: linf radius in [0, 1] units.
        t_star: how far the purifier noises.
        n_steps: its steps.
        attack_steps: gradient steps of the attacks.
        eot: draws per gradient.
        report_draws: fresh draws that each example is judged on.
        curve: further radii, of the undefended and the adaptive row.
        curve_images: images at the further radii.
        seed: of all noise.

    Returns:
        The study.
    """
    defence = Defence(digits_purifier(t_star=t_star, n_steps=n_steps), digits_classifier())
    ball = Ball("linf", eps)
    rows = attack_suite(defence, PGD(ball, n_steps=attack_steps, eot=eot), blind=PGD(ball, n_steps=attack_steps))
    return Study(
        name="digits-diffpure",
        data=load_digits("test").first(images),
        defence=defence,
        rows=rows,
        seed=seed,
        report_draws=report_draws,
        curve_eps=tuple(e for e in curve if e != eps),
        curve_images=curve_images,
        curve_rows=("undefended", "adaptive"),
    )
