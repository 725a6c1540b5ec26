"""Previews: what an attacker takes for a purifier that is not known, from the denoiser and the classifier alone.

After PureProof, an attack known from a public note only: it needs no gradient of the reverse process, as it looks at
one-step previews of the clean image, each from freshly noised input. Any attack runs on the model that `preview` gives;
its examples are then tried on what is deployed, as transferred ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from depura import _check
from depura.defence import Defence
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import EDM, steps_at
from depura.diffusion.solvers import AncestralLearned, Euler
from depura.gradients import GradientRoute
from depura.purifiers.composed import Mixed, Resized
from depura.purifiers.purifier import DiffusionPurifier, IterativePurifier, Purifier
from depura.purifiers.wrapped import Wrapped

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.6)
"""Noise levels of previews by default, in [-1, 1] units: where published purifiers start (t* 0.03 to 0.17)."""


def previews(
    denoiser: Denoiser,
    *,
    sigmas: Sequence[float] = SIGMAS,
    learned: bool = False,
    gradient: GradientRoute | None = None,
) -> Mixed:
    """Noise an image to a level drawn at random, and take the denoiser's estimate of the clean image.

        x0 = D(x_in + sigma n, sigma),        sigma uniform over the levels, n ~ N(0, I), both afresh for every draw

    Args:
        denoiser: D(x, sigma) -> x0.
        sigmas: noise levels, > 0, in units of images in [-1, 1].
        learned: the denoiser gives variances, too (`EpsVarianceDenoiser`); they are left out.
        gradient: how the one step is differentiated; default exact.

    Returns:
        A purifier of one evaluation.

    Raises:
        InputError: no levels, or levels that are not positive.
    """
    if not sigmas:
        _check.fail("previews", "at least one noise level", "none")
    for sigma in sigmas:
        _check.number("previews", "sigmas", sigma, low=0.0, low_open=True)
    solver = AncestralLearned() if learned else Euler()  # either gives x0 in a step to sigma 0
    tables = [steps_at(EDM(), [sigma, 0.0]) for sigma in sigmas]
    return Mixed(*(DiffusionPurifier(denoiser, steps=its, solver=solver, gradient=gradient) for its in tables))


def preview(defence: Defence, *, sigmas: Sequence[float] = SIGMAS) -> Defence:
    """What an attacker can differentiate who knows a defence's denoiser and classifier, but not its purifier.

    Nothing of the purifier is kept but its denoiser and the resolution of a `Resized` one, and nothing of the rule: an
    answer is that of one preview. Hand it to an attack in the place of the defence, with several draws per gradient.

    Args:
        defence: what is deployed.
        sigmas: noise levels (see `previews`).

    Returns:
        The classifier behind `previews`; weights are shared.

    Raises:
        InputError: a defence without a purifier, or whose purifier has several denoisers or none that can be called.
    """
    if defence.purifier is None:
        _check.fail("preview", "a defence with a purifier", "one without", "Attack the classifier itself.")
    return Defence(_previews_of(defence.purifier, sigmas), defence.classifier)


def can_preview(defence: Defence) -> bool:
    """Whether `preview` takes a defence."""
    return defence.purifier is not None and len(_denoising(defence.purifier)) == 1


def _previews_of(purifier: Purifier, sigmas: Sequence[float]) -> Purifier:
    if isinstance(purifier, Resized):
        inner = next(iter(purifier.inner))
        return Resized(_previews_of(inner, sigmas), size=purifier.size)
    found = _denoising(purifier)
    if len(found) != 1:
        _check.fail("preview", "a purifier of one denoiser", f"{len(found)} of them", "Take previews(denoiser).")
    part = found[0]
    learned = isinstance(part, DiffusionPurifier) and isinstance(part.solver, AncestralLearned)
    return previews(part.denoiser, sigmas=sigmas, learned=learned)


def _denoising(purifier: Purifier) -> list[IterativePurifier]:
    """For each denoiser of a purifier a part that has it; networks inside somebody's own code are none."""
    parts = [part for part in purifier.components if not isinstance(part, Wrapped)]
    return list({id(part.denoiser): part for part in parts}.values())
