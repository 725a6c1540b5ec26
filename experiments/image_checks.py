"""What the checks of a study's images (V25, V26) say of honest studies of the bundled digits, and of others:

    python -m experiments.image_checks

First: by how many times purification surely changes the images' neighbours and others of the data set more (squared,
lower over upper end of 95 % intervals; of moved and mirrored images the second largest), with denoisers that do not
know the images and with such that do. Then: of how many honest draws of 12 and of 64 digits the checks warn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import depura
from depura.analysis.checks import ALIKE, FAMILIAR, IMPROBABLE, surely_larger
from depura.data.origins import others_of
from depura.diffusion.exact import MixtureDenoiser
from depura.diffusion.solvers import Ancestral
from depura.evaluation.data_checks import IMAGES, bare_margins, purification_errors
from depura.evaluation.demo import EPS
from depura.noise import Noise, Stream

DEPTHS, STEPS = (0.02, 0.05, 0.09, 0.2, 0.3), (1, 3, 5)
DRAWS = 50


def walk(denoiser: depura.Denoiser, t_star: float, n_steps: int) -> depura.DiffusionPurifier:
    """Few-step DiffPure."""
    return depura.diffpure(denoiser, t_star=t_star, n_steps=n_steps, t_end=0.0, solver=Ancestral())


def ratios(purifier: depura.Purifier, data: depura.ImageSet) -> tuple[float, float]:
    """How many times as much surely changes of moved and mirrored images (second largest), and of others."""
    others = others_of(data)
    assert others is not None
    noise = Noise(0, data.ids[:IMAGES], stream=Stream.NULL)
    errors = purification_errors(purifier, data.images[:IMAGES], others.images, noise, draw=0)
    own = errors["error"].numpy()
    moved = sorted(surely_larger(errors[f"error_{name}"].numpy(), own) for name in ("left", "up", "mirrored"))
    return moved[-2], surely_larger(errors["error_others"].numpy(), own)


def nearest(images: Tensor) -> Callable[[Tensor, float], Tensor]:
    """A denoiser that returns the nearest of some images."""
    return lambda x, sigma: images[torch.cdist(x.flatten(1), images.flatten(1)).argmin(1)] + 0 * x


def familiarity() -> None:
    """Print the ratios."""
    test, train = depura.load_digits("test"), depura.load_digits("train")
    known, every, honest = 2 * test.images[:64] - 1, 2 * test.images - 1, depura.digits_denoiser()
    mirrored = torch.cat([known, known.flip(3), known.roll(-1, 3), known.roll(-1, 2)])
    cases: dict[str, tuple[depura.Denoiser, depura.ImageSet]] = {
        "the bundled denoiser, test images": (honest, test),
        "the bundled denoiser, its training images": (honest, train),
        "mixture of the training images, std 0.3": (MixtureDenoiser(2 * train.images - 1, std=0.3), test),
        "mixture of 64 test images, std 0.02": (MixtureDenoiser(known, std=0.02), test),
        "mixture of 64 test images, std 0.1": (MixtureDenoiser(known, std=0.1), test),
        "mixture of 64 test images, std 0.2": (MixtureDenoiser(known, std=0.2), test),
        "the nearest of 64 test images": (nearest(known), test),
        "mixture of 64, moved and mirrored too": (MixtureDenoiser(mirrored, std=0.1), test),
        "mixture of all test images, std 0.1": (MixtureDenoiser(every, std=0.1), test),
        "mixture of all training and 64 test images": (
            MixtureDenoiser(torch.cat([2 * train.images - 1, known]), std=0.1),
            test,
        ),
    }
    print(f"moved or mirrored / others; V25 warns above {FAMILIAR:g} / {ALIKE:g}")
    print(f"{'':<45}" + "".join(f"t* {t:<18g}" for t in DEPTHS))
    for name, (denoiser, data) in cases.items():
        for n_steps in STEPS:
            found = [ratios(walk(denoiser, t, n_steps), data.first(IMAGES)) for t in DEPTHS]
            print(
                f"{name if n_steps == 1 else '':<42}x{n_steps} "
                + "".join(f"{f'{a:.3g} / {b:.3g}':<21}" for a, b in found)
            )


def alarms() -> None:
    """Print of how many honest draws the checks warn."""
    data, classifier = depura.load_digits("test"), depura.digits_classifier()
    purifier, ball = walk(depura.digits_denoiser(), 0.09, 3), depura.Ball("linf", EPS)
    for n in (12, 64):
        draws = [data.draw(n, seed) for seed in range(DRAWS)]
        far = [ratios(purifier, drawn) for drawn in draws]
        memorised = sum(moved > FAMILIAR or others > ALIKE for moved, others in far)
        improbable: list[float] = []
        for drawn in draws:
            m = bare_margins(depura.Defence(None, classifier), ball, drawn.images, drawn.labels, others_of(drawn))
            pairs = [(m[name], m[f"{name}_others"]) for name in ("margin", "stepped_margin")]
            improbable.append(min(float(stats.mannwhitneyu(*pair, alternative="less").pvalue) for pair in pairs))
        print(
            f"{DRAWS} draws of {n}: V25 warns of {memorised} (largest ratios {max(a for a, _ in far):.2g} / "
            f"{max(b for _, b in far):.2g}), V26 of {sum(p < IMPROBABLE for p in improbable)} "
            f"(smallest p {np.min(improbable):.2g})"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    familiarity()
    alarms()
