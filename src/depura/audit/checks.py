"""The checks of a gradient audit: each yields one sentence, green, amber or red."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from depura.audit.derivatives import OwnDerivatives, relative, slope, watched
from depura.audit.probes import error_line
from depura.audit.subject import Checkpointed, Subject
from depura.defence import Defence
from depura.gradients import Direct, GradientRoute, StoredState
from depura.purifiers.wrapped import Wrapped
from depura.records.kinds import GradientMode

EOT_DRAWS = 3
MASK_DRAWS = 4
DIRECTION, DOUBTFUL = 0.9, 0.99
"""Cosine of the deployed dtype's gradient to float64's below which it is wrong, and below which it is to be read."""


NEGLIGIBLE = 100.0
"""Units of rounding of the logits that a gradient must be able to move them by to be compared."""


class Light(IntEnum):
    """What a check says."""

    GREEN = 0
    AMBER = 1
    RED = 2


class Check(NamedTuple):
    """One check.

    Attributes:
        name: in one or two words.
        light: what it says.
        sentence: expected, measured, what to do.
        measured: the number behind it, if there is one.
    """

    name: str
    light: Light
    sentence: str
    measured: float | None = None


def run(subject: Subject) -> Iterator[Check]:
    """All checks that need the defence to be evaluated, in order; those that a red one makes pointless are left out."""
    with torch.no_grad():
        logits = subject.defence(subject.inner, subject.noise)
    value = _finite("logits", logits)
    replay = _replay(subject, logits)
    if max(value.light, replay.light) is Light.RED:
        yield value if value.light is Light.RED else replay
        return
    yield replay
    if not subject.defence.differentiable:
        yield from _without_gradient(subject, logits)
        return
    try:
        with watched(logits.device) as touched:
            recorded, gradient = subject.gradient(subject.inner, subject.noise, subject.weights)
            changed = touched()
    except Exception as error:
        got = f"Expected a gradient, got {error_line(error)}"
        yield Check("gradient", Light.RED, got)
        return
    yield _generators(changed)
    finite = _finite("gradient", gradient)
    yield finite
    if finite.light is Light.RED:
        return
    if not bool(gradient.any()) and not subject.is_connected():
        yield Check(
            "gradient", Light.RED, "Expected logits with a gradient path to the images, got logits without one."
        )
        return
    for check in (
        lambda: differences(subject, gradient),
        lambda: _second_way(subject, recorded, gradient),
        lambda: _alone(subject, recorded, gradient),
        lambda: _order(subject, recorded, gradient),
        lambda: _draws(subject),
        lambda: _masked(subject),
        lambda: _randomness(subject, logits),
        lambda: _memory(subject, logits),
    ):
        try:
            yield check()
        except Exception as error:
            yield Check("gradient", Light.RED, f"Expected a gradient, got {error_line(error)}")


def _without_gradient(subject: Subject, logits: Tensor) -> Iterator[Check]:
    """The checks of a defence that has no gradient path and says so."""
    core = subject.defence.core
    why = core.why_no_gradient(subject.inner, subject.noise) if isinstance(core, Wrapped) else ""
    sentence = "There is no exact gradient" + (f": {why}" if why else "")
    yield Check("gradient", Light.AMBER, f"{sentence}. Attacks take BPDA, scores and transfer.")
    alone = torch.cat([_values(subject, [row]) for row in range(len(logits))])
    yield _compare("batch", "An image alone against the same image in the batch", relative(alone, logits), subject)
    rows = list(reversed(range(len(logits))))
    drift = relative(_values(subject, rows), logits[rows])
    yield _compare("order", "The batch in reverse order against the batch", drift, subject)
    yield _randomness(subject, logits)
    yield _memory(subject, logits)


def _values(subject: Subject, rows: list[int]) -> Tensor:
    """Logits of some rows."""
    with torch.no_grad():
        return subject.defence(subject.inner[rows], subject.noise.take(rows))


def _finite(what: str, values: Tensor) -> Check:
    broken = int((~values.isfinite()).sum())
    name = f"finite {what}"
    if broken:
        return Check(
            name, Light.RED, f"Expected finite {what}, got {broken} of {values.numel()} that are not.", float(broken)
        )
    return Check(name, Light.GREEN, f"All {values.numel()} entries of the {what} are finite.", 0.0)


def _replay(subject: Subject, logits: Tensor) -> Check:
    with torch.no_grad():
        again = subject.defence(subject.inner, subject.noise)
    drift = relative(logits, again)
    exact = logits.device.type == "cpu"
    if not torch.equal(logits, again) and (exact or not drift <= subject.precision.same):
        return Check(
            "replay",
            Light.RED,
            f"Expected the same logits from the same images and noise, got a relative difference of {drift:.2g}. The "
            "other checks need this one and were left out.",
            drift,
        )
    return Check("replay", Light.GREEN, "The same images and noise give the same logits.", drift)


def _memory(subject: Subject, logits: Tensor) -> Check:
    check = _replay(subject, logits)
    if check.light is not Light.RED:
        return Check(
            "history",
            Light.GREEN,
            "After all other checks the same images and noise still give the same logits.",
            check.measured,
        )
    return check._replace(
        name="history",
        sentence="Expected the logits not to depend on what was computed before, got a relative difference of "
        f"{check.measured:.2g}. Look for state kept between calls.",
    )


def _generators(changed: bool) -> Check:
    if not changed:
        return Check("generators", Light.GREEN, "The global generators of torch, numpy and Python are untouched.")
    return Check(
        "generators",
        Light.RED,
        "Expected the global random generators untouched, got them advanced or reseeded. Draw from the noise instead.",
    )


def own_derivatives(own: OwnDerivatives, defence: Defence) -> Check:
    """Derivatives that somebody wrote, listed.

    Args:
        own: what was applied in a call with its gradient.
        defence: whose modules are looked through for hooks.

    Returns:
        The check; amber where there are any.
    """
    found = own.found(defence)
    if not found:
        return Check("own derivatives", Light.GREEN, "Autograd takes no derivative on trust.", 0.0)
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    sentence = (
        f"Derivatives that somebody wrote, which autograd takes on trust: {', '.join(found[:6])}{more}. Test them with "
        "torch.autograd.gradcheck."
    )
    return Check("own derivatives", Light.AMBER, sentence, float(len(found)))


def in_deployed_dtype(deployed: Tensor, exact: Tensor, logits: Tensor, dtype: torch.dtype) -> Check:
    """The gradient in the dtype that attacks compute in against the one in float64, image by image.

    Args:
        deployed: the one, (B, C, H, W).
        exact: the other.
        logits: (B, K), weighted as the gradient's loss weighs them.
        dtype: that attacks compute in.

    Returns:
        The check, by the smallest cosine of an image.
    """
    short = str(dtype).removeprefix("torch.")
    # A gradient that moves the logits by less than their rounding, whichever way an image is moved, may be anything.
    exact_size, size, of_logits = (its.flatten(1).square().sum(1).sqrt() for its in (exact, deployed, logits))
    moves = torch.maximum(exact_size, size) * exact[0].numel() ** 0.5
    known = moves > NEGLIGIBLE * torch.finfo(dtype).eps * of_logits
    if not bool(known.any()):
        return Check(
            "deployed gradient", Light.GREEN, f"The gradients in {short} and in float64 are both next to zero."
        )
    a, b = (normalize(its.flatten(1)[known].double(), dim=1, eps=1e-300) for its in (deployed, exact))
    cosines = (a * b).sum(1)
    worst = float(cosines.min())
    text = f"The cosine of the gradient in {short}, which attacks follow, to the one in float64 is at least {worst:.3f}"
    if not worst >= DIRECTION:  # a cosine that is not a number, too
        advice = f"expected at least {DIRECTION:g}. Look for code that does otherwise in {short}."
        return Check("deployed gradient", Light.RED, f"{text}; {advice}", worst)
    light = Light.GREEN if worst >= DOUBTFUL else Light.AMBER
    return Check("deployed gradient", light, f"{text}.", worst)


def _compare(name: str, what: str, drift: float, subject: Subject, advice: str = "") -> Check:
    allowed = subject.precision.same
    if drift <= allowed:
        return Check(name, Light.GREEN, f"{what}: relative difference {drift:.1g} (allowed {allowed:g}).", drift)
    sentence = f"{what}: expected a relative difference of at most {allowed:g}, got {drift:.2g}. {advice}"
    return Check(name, Light.RED, sentence.rstrip(), drift)


def differences(subject: Subject, gradient: Tensor) -> Check:
    """The gradient of a subject against finite differences of its logits.

    Args:
        subject: what is audited.
        gradient: of its logits' product with its weights, (B, C, H, W).

    Returns:
        The check.
    """
    found = slope(
        lambda x: subject.defence(x, subject.noise),
        subject.inner,
        gradient,
        subject.weights,
        precision=subject.precision,
        seed=subject.seed,
    )
    name, allowed = "differences", subject.precision.difference
    if found.wrong(subject.precision):
        sentence = (
            "Expected the gradient to be the slope of the logits as finite differences measure it, within "
            f"{allowed:g}; got a relative error of {found.error:.2g}."
        )
        return Check(name, Light.RED, sentence, found.error)
    if found.undecided(subject.precision):
        sentence = (
            f"Finite differences are too coarse to tell: they differ among themselves by {found.resolution:.2g} and "
            f"from the gradient by {found.error:.2g} (allowed {allowed:g}). Look for jumps, kinks or rounding."
        )
        return Check(name, Light.AMBER, sentence, found.error)
    sentence = f"The gradient is the slope by differences: relative error {found.error:.1g} (allowed {allowed:g})."
    return Check(name, Light.GREEN, sentence, found.error)


def _second_way(subject: Subject, logits: Tensor, gradient: Tensor) -> Check:
    if subject.defence.core is None:
        return Check("second way", Light.GREEN, "There are no steps to differentiate in a second way.")
    # Torch's checkpoints are wrong around code that differentiates inside: wrapped code has its full graph instead.
    second: GradientRoute = Direct() if isinstance(subject.defence.core, Wrapped) else Checkpointed()
    routes: list[GradientRoute] = [second, StoredState(), StoredState(segment=2), StoredState(segment=5)]
    own = subject.route
    if own is not None and own.mode == GradientMode.EXACT and not isinstance(own, (StoredState, Direct)):
        routes.append(own)
    drift = 0.0
    for route in routes:
        value, other = subject.gradient(subject.inner, subject.noise, subject.weights, route)
        drift = max(drift, relative(value, logits), relative(other, gradient))
    other_way = "the full graph" if isinstance(second, Direct) else "checkpointing"
    what = f"Stored states against {other_way} and other segments"
    return _compare("second way", what, drift, subject, "Look for parts that do otherwise with a graph than without.")


def _alone(subject: Subject, logits: Tensor, gradient: Tensor) -> Check:
    drift = 0.0
    for row in range(len(logits)):
        here = slice(row, row + 1)
        value, own = subject.gradient(subject.inner[here], subject.noise.take([row]), subject.weights[here])
        drift = max(drift, relative(value, logits[here]), relative(own, gradient[here]))
    return _compare("batch", "An image alone against the same image in the batch", drift, subject)


def _order(subject: Subject, logits: Tensor, gradient: Tensor) -> Check:
    rows = list(reversed(range(len(logits))))
    value, other = subject.gradient(subject.inner[rows], subject.noise.take(rows), subject.weights[rows])
    drift = max(relative(value, logits[rows]), relative(other, gradient[rows]))
    return _compare("order", "The batch in reverse order against the batch", drift, subject)


def _draws(subject: Subject) -> Check:
    if subject.defence.core is None:
        return Check("draws", Light.GREEN, "There are no draws to average over.")
    draws = range(EOT_DRAWS)
    single = torch.stack([subject.gradient(subject.inner, subject.noise.draw(d), subject.weights)[1] for d in draws])
    many = subject.inner.repeat_interleave(EOT_DRAWS, dim=0)
    weights = subject.weights.repeat_interleave(EOT_DRAWS, dim=0) / EOT_DRAWS
    _, together = subject.gradient(many, subject.noise.expand(draws), weights)
    together = together.reshape(len(subject.inner), EOT_DRAWS, *together.shape[1:]).sum(1)
    drift = relative(single.mean(0), together)
    return _compare("draws", f"Gradients of {EOT_DRAWS} draws one by one against all at once", drift, subject)


DETERMINISTIC = "The logits do not depend on the noise"


def _randomness(subject: Subject, logits: Tensor) -> Check:
    """Whether the noise that a defence is handed matters; either way is sound, but evaluations differ."""
    if subject.defence.core is None:
        return Check("randomness", Light.GREEN, "There is no purifier, and no randomness.")
    with torch.no_grad():
        other = subject.defence(subject.inner, subject.noise.draw(1))
    drift = relative(logits, other)
    if drift == 0:
        sentence = f"{DETERMINISTIC}: the defence is deterministic, its noise fixed, or drawn from elsewhere."
        return Check("randomness", Light.GREEN, sentence, drift)
    return Check("randomness", Light.GREEN, f"Another draw moves the logits by {drift:.2g}.", drift)


def _masked(subject: Subject) -> Check:
    """Zeros and non-finite entries, at the images themselves."""
    draws = [subject.noise] if subject.defence.core is None else [subject.noise.draw(d) for d in range(MASK_DRAWS)]
    found = [subject.gradient(subject.images, noise, subject.weights) for noise in draws]
    logits, gradients = (torch.stack(values) for values in zip(*found, strict=True))
    for finite in (_finite("logits", logits), _finite("gradient", gradients)):
        if finite.light is Light.RED:
            return finite
    pixels = float((gradients == 0).double().mean())
    images = float((gradients == 0).flatten(2).all(2).double().mean())
    counted = f"{images:.0%} of images and {pixels:.0%} of pixels have a gradient of exactly zero"
    if images <= 0.01 and pixels <= 0.5:
        return Check("zeros", Light.GREEN, f"{counted}.", pixels)
    advice = "An attack by it is masked: add one by a route that sees through (Relaxed, or BPDA by StraightThrough)."
    return Check("zeros", Light.AMBER, f"{counted}. The gradient is exact, but says little. {advice}", pixels)
