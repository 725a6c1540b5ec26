"""Is the gradient that an attack would follow the derivative of the defence? An audit, in red, amber or green."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from depura import _check
from depura.audit.checks import Check, Light, in_deployed_dtype, own_derivatives, run
from depura.audit.derivatives import FLOAT64, Narrowing, OwnDerivatives, Precision, loose, normal, watched
from depura.audit.modules import localise
from depura.audit.probes import Fault, error_line
from depura.audit.subject import Checkpointed, Subject, at_least_two, rerouted
from depura.defence import Defence, MeanProb, Vote
from depura.gradients import StoredState
from depura.noise import Noise, Stream
from depura.purifiers.fast import deviation, is_fast
from depura.purifiers.wrapped import Wrapped
from depura.records.kinds import GradientMode

MARGIN = 0.05
"""How far audited images keep from 0 and 1, so that finite differences stay in range."""
CLOSE = 2.0
"""Median deviation of a faster network's purified images, in units of 1/255, above which the light is amber."""

_WORDS = {
    GradientMode.BPDA: "BPDA",
    GradientMode.ADJOINT: "the continuous adjoint",
    GradientMode.DEVIATED: "that of the loss and the deviated reconstruction together",
    GradientMode.GRAFTED: "one Jacobian for all draws",
    GradientMode.RELAXED: "that of smooth stand-ins",
}
"""Gradients that are not exact, in words."""


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
        precision: the dtype computed in and the tolerances.
        checks: in order.
        faults: the parts to blame, looked for where a check is red, or where a small gradient may hide them.
    """

    precision: Precision
    checks: tuple[Check, ...]
    faults: tuple[Fault, ...]

    @property
    def light(self) -> Light:
        """The worst of the checks; red if a part is to blame."""
        return Light.RED if self.faults else max(check.light for check in self.checks)

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        red = [check.name for check in self.checks if check.light is Light.RED]
        if self.faults:
            failed = ", ".join(red) or "a part by itself"
            return f"Red: {failed} failed. To blame: {'; '.join(fault.part for fault in self.faults)}."
        if red:
            advice = "No part fails by itself: look at what parts share, and at the gradient route."
            return f"Red: {', '.join(red)} failed. {advice}"
        amber = [check.name for check in self.checks if check.light is Light.AMBER]
        if amber:
            return f"Amber: nothing is wrong with the gradient as far as it was checked; read on {', '.join(amber)}."
        return "Green: the gradient is the derivative of the defence."


def audit_gradient(
    defence: Defence, images: Tensor, *, ids: Sequence[int] | None = None, seed: int = 0, device: str = "cpu"
) -> Audit:
    """Audit the gradient of a defence through the exact route, on a few real images.

    In float64 on a copy if the defence can be computed in it, else in the images' dtype with loose tolerances. The
    loss is a random combination of the logits. The defence itself is left as it is.

    Args:
        defence: what is deployed. `Vote` is audited as `MeanProb` of as many draws, whose gradient it has.
        images: (B, C, H, W) in [0, 1]; two are enough.
        ids: one id per image; default 0 .. B-1.
        seed: of all noise.
        device: where to compute.

    Returns:
        The audit.

    Raises:
        InputError: not a defence, or unusable images, ids, seed or device.
    """
    if not isinstance(defence, Defence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _check.InputTypeError(f"audit_gradient: expected a Defence, got {type(defence).__name__}.")
    _check.images("audit_gradient", images)
    _check.device("audit_gradient", device)
    ids = tuple(range(len(images))) if ids is None else tuple(ids)
    if len(ids) != len(images):
        _check.fail("audit_gradient", f"one id for each of {len(images)} images", f"{len(ids)}")
    noise = Noise(seed, ids, stream=Stream.PROBE)
    with (
        watched(torch.device(device)),
        OwnDerivatives() as own,
    ):  # a defence that draws from a global generator leaves it as it was
        subject, made = prepared(defence, images, noise, seed=seed, device=device, edge=MARGIN)
        quick = _fast(defence, images, noise, device)
        checks = [
            _modes(defence),
            made,
            *quick,
            _route(defence),
            *_probabilities(subject),
            *run(subject),
            *_foreign(subject),
            *_deployed(defence, subject, images.dtype, device),
            own_derivatives(own, defence),
        ]
        faults: tuple[Fault, ...] = ()
        red = [check.name for check in checks if check.light is Light.RED]
        if red or any(check.name in ("differences", "zeros") and check.light is Light.AMBER for check in checks):
            for where in _places(subject, red):
                if not faults:
                    faults = localise(subject.defence, where, subject.noise, precision=subject.precision, seed=seed)
    return Audit(subject.precision, tuple(checks), faults)


def prepared(
    defence: Defence, images: Tensor, noise: Noise, *, seed: int, device: str, edge: float
) -> tuple[Subject, Check]:
    """A copy to compute with, in float64 if that works; and what it is, said.

    Args:
        defence: what is audited.
        images: (B, C, H, W) in [0, 1].
        noise: of B rows.
        seed: of cotangents and directions.
        device: where to compute.
        edge: how far audited images keep from 0 and 1; at least `MARGIN` where float64 does not work.

    Returns:
        The copy with its images, two of them at least; and a check that says what was computed in.
    """
    images, noise = at_least_two(images, noise)
    given = images.dtype
    try:
        model, doubled = copy.deepcopy(defence).to(device, torch.float64), images.to(device, torch.float64)
        inner = coarsest(model, doubled, noise)
        reason = "" if inner == torch.float64 else f"it computes in {_short(inner)} inside"
    except Exception as error:
        reason = error_line(error).rstrip(".")
    else:
        if not reason:
            made = Check("precision", Light.GREEN, "Computed in float64.")
            return _subject(defence, model, doubled, noise, FLOAT64, seed, edge), made
    try:
        model = copy.deepcopy(defence).to(device)
    except Exception:  # not copyable: share its parts
        model = defence.to(device)
    images = images.to(device)
    inner = coarsest(model, images, noise)
    within = "" if inner == given else f" ({_short(inner)} inside)"
    precision = loose(inner)
    sentence = (
        f"Computed in {_short(given)}{within} with loose tolerances ({precision.difference:.1g} for differences, "
        f"{precision.same:.1g} for the rest): float64 is not possible ({reason})."
    )
    subject = _subject(defence, model, images, noise, precision, seed, max(edge, MARGIN))
    return subject, Check("precision", Light.AMBER, sentence)


def coarsest(model: Defence, images: Tensor, noise: Noise) -> torch.dtype:
    """The coarsest dtype that anything which depends on the images passes through."""
    with Narrowing(images.dtype) as everything:
        _logits(model, images, noise)
    if everything.seen is None:
        return images.dtype
    try:  # labels may be narrowed, as they do not depend on the images: watch those that do
        with Narrowing(images.dtype, traced=True) as dependent, torch.enable_grad():
            rerouted(model, Checkpointed())(images.clone().requires_grad_(), noise)
    except Exception:
        return everything.seen
    return dependent.seen or images.dtype


def _subject(
    defence: Defence, model: Defence, images: Tensor, noise: Noise, precision: Precision, seed: int, edge: float
) -> Subject:
    model = rerouted(model, StoredState(segment=1))
    if isinstance(model.rule, Vote):
        model.rule = MeanProb(model.rule.n_draws)
    return Subject(
        defence=model,
        images=images,
        inner=edge + (1 - 2 * edge) * images,
        noise=noise,
        weights=normal(_logits(model, images, noise), seed, 0),
        precision=precision,
        route=None if defence.core is None else defence.core.route,
        seed=seed,
    )


def _logits(model: Defence, images: Tensor, noise: Noise) -> Tensor:
    with torch.no_grad():
        return model(images, noise)


def _modes(defence: Defence) -> Check:
    """Modules in training mode, and weights that would collect gradients."""
    modules = cast("Iterable[tuple[str, nn.Module]]", defence.named_modules())
    training = [name or "the defence" for name, module in modules if module.training]
    weights = [name for name, weight in defence.named_parameters() if weight.requires_grad]
    said: list[str] = []
    if training:
        said.append(f"expected all modules in evaluation mode, got {_some(training)} in training mode. Call .eval()")
    if weights:
        said.append(f"expected frozen weights, got {_some(weights)} requiring grad. Call .requires_grad_(False)")
    if not said:
        return Check("modes", Light.GREEN, "All modules are in evaluation mode and all weights are frozen.")
    return Check("modes", Light.AMBER, " ".join(f"{text[0].upper()}{text[1:]}." for text in said))


def _probabilities(subject: Subject) -> list[Check]:
    """Whether the answers are probabilities, on which losses of logits are weak; nothing where they are not."""
    answers = _logits(subject.defence, subject.inner, subject.noise)
    sums = (answers.sum(1) - 1).abs()
    if not bool(((answers >= 0) & (answers <= 1)).all()) or not bool((sums < 1e-3).all()):
        return []
    sentence = (
        "Expected logits, got answers that are probabilities (within [0, 1], of sum 1). Leave the softmax out, or take "
        "its logarithm: losses of logits have small gradients where it saturates."
    )
    return [Check("probabilities", Light.AMBER, sentence)]


def _foreign(subject: Subject) -> list[Check]:
    """What wrapped code does in a call of one image: where its numbers come from, what it prints and remembers."""
    wrapped = [m for m in cast("Iterable[nn.Module]", subject.defence.modules()) if isinstance(m, Wrapped)]
    for module in wrapped:
        module.forget()
    if wrapped:
        _logits(subject.defence, subject.inner[:1], subject.noise.take([0]))
    checks: list[Check] = []
    for module in wrapped:
        seen, light = module.observed, Light.GREEN
        drawn = ", ".join(f"{name} x{n}" for name, n in seen.operators.items()) or "none"
        said = [f"A call of one image draws from the noise: {drawn}"]
        if seen.sources:
            said.append(f"other generators: {', '.join(sorted(seen.sources))}")
        if seen.whole:
            said.append(f"not divided by image: {', '.join(sorted(seen.whole))}")
        if seen.by_call and module.isolate is False:
            light = Light.AMBER
            said.append("images go through it together all the same (isolate=False), so that they share these numbers")
        elif seen.by_call:
            said.append("so images go through it one by one")
        if module.network_name is not None:
            said.append(f"network: {module.network_name or 'none'}")
        if seen.printed or seen.files:
            said.append(f"{seen.printed} characters printed and {seen.files} files written, all dropped")
        if seen.state:
            light = Light.AMBER
            said.append(f"state changed by a call: {', '.join(sorted(seen.state)[:8])}")
        checks.append(Check("wrapped code", light, "; ".join(said) + "."))
    return checks


def _deployed(defence: Defence, subject: Subject, dtype: torch.dtype, device: str) -> list[Check]:
    """The gradient in the dtype that attacks compute in; nothing where that is what was audited, or there is none."""
    if subject.precision is not FLOAT64 or dtype == torch.float64 or not subject.defence.differentiable:
        return []
    try:
        model = rerouted(copy.deepcopy(defence).to(device), StoredState(segment=1))
        logits, exact = subject.gradient(subject.inner, subject.noise, subject.weights)
        inner, weights = subject.inner.to(dtype), subject.weights.to(dtype)
        _, deployed = replace(subject, defence=model).gradient(inner, subject.noise, weights)
    except Exception:  # another check says what is wrong
        return []
    return [in_deployed_dtype(deployed.to(exact.dtype), exact, subject.weights * logits, dtype)]


def _places(subject: Subject, red: list[str]) -> tuple[Tensor, ...]:
    """The images at which parts are tried: where what is red was seen."""
    if red == ["finite gradient"]:
        return (subject.images,)
    return (subject.inner, subject.images) if red == ["finite logits"] else (subject.inner,)


def _fast(defence: Defence, images: Tensor, noise: Noise, device: str) -> list[Check]:
    """By how much a faster network moves purified images; nothing where there is none."""
    purifier = defence.purifier
    if purifier is None or not is_fast(purifier):
        return []
    moved = copy.deepcopy(purifier).to(device)
    weight = next((p.dtype for p in moved.parameters() if p.is_floating_point()), images.dtype)
    found = deviation(moved, images.to(device, weight), noise)
    text = f"{'; '.join(purifier.remarks)}: {found}. What float64 audits is the plain network."
    return [Check("fast network", Light.GREEN if found.median <= CLOSE else Light.AMBER, text)]


def _route(defence: Defence) -> Check:
    if defence.mode is GradientMode.EXACT:
        return Check("route", Light.GREEN, "The study's own gradient is the exact gradient of the loss.")
    own = _WORDS.get(defence.mode, defence.mode.value)
    sentence = f"The study's own gradient is {own}, not the exact gradient of the loss. Audited was the exact gradient."
    return Check("route", Light.AMBER, sentence)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
