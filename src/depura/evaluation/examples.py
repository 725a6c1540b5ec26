"""Is a defence at the examples of an attack what it is elsewhere? In other contexts, by its gradient, along the way.

An audit before the attack sees a few images, in float64 and on a copy. A defence may remember what it was asked, answer
otherwise with a graph than without, or have another derivative in its own dtype; it shows where the attack has been.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from depura.attacks.losses import margin
from depura.audit.audit import coarsest, prepared
from depura.audit.checks import Check, Light, differences, in_deployed_dtype, own_derivatives
from depura.audit.derivatives import DIRECTIONS, OwnDerivatives, loose, normal, relative
from depura.defence import Defence, predicted
from depura.noise import Noise, Stream

EXAMPLES = 8
"""Examples that are looked at, those with the fewest errors."""
ROWS = 64
"""Rows of the largest call: examples times draws."""
POINTS = 2
"""Examples, and images drawn at random, at which gradients are measured."""
FIRST_DRAW = 1 << 20
"""Number of the first draw that is used here; no score and no attack uses so high ones."""
SENSITIVITY = 10.0
"""How many times what rounding does to the logits two contexts may differ."""
UNLIKELY = 1e-3
"""Error rates on two streams must differ by less likely chance than this to be called different."""
EDGE = 5e-4
"""How far audited examples keep from 0 and 1."""
PARTS, HALVINGS = 16, 12
"""Parts of the way from an image to its example, and how often the one with the largest change is halved."""
JUMP = 0.2
"""Share of the margin's whole range by which it jumps in the last half."""


class Attacked(NamedTuple):
    """What an attack found, as it was scored.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        examples: (B, C, H, W), the chosen candidates.
        labels: (B,).
        ids: of the images.
        predictions: (B, K), the deployed labels of the report draws.
        noise: of the images, on the report stream, draw 0.
    """

    images: Tensor
    examples: Tensor
    labels: Tensor
    ids: tuple[int, ...]
    predictions: Tensor
    noise: Noise

    def take(self, rows: Sequence[int]) -> Attacked:
        """Some of them."""
        at = list(rows)
        return Attacked(
            self.images[at],
            self.examples[at],
            self.labels[at],
            tuple(self.ids[i] for i in at),
            self.predictions[at],
            self.noise.take(at),
        )

    @property
    def fewest_errors(self) -> list[int]:
        """Rows, in the order of their wrong draws."""
        wrong = (self.predictions != self.labels[:, None]).sum(1)
        return [int(k) for k in wrong.argsort(stable=True)]


class Price(NamedTuple):
    """Rows put through a defence by the checks at examples, where each check is content at once.

    Attributes:
        forwards: without a gradient.
        gradients: with one.
    """

    forwards: int
    gradients: int


def price(n: int, n_draws: int, *, ways: int, exact: bool) -> Price:
    """What the checks at examples cost.

    Args:
        n: images of the unit.
        n_draws: report draws.
        ways: in which there is another copy of the defence.
        exact: whether the attack goes through an exact gradient.

    Returns:
        The price.
    """
    some = min(EXAMPLES, n)
    k = max(1, min(ROWS // some, n_draws))
    forwards = (4 + ways) * some * k + 7 * some if ways else 0
    if not exact:
        return Price(forwards, 0)
    points, walked = min(POINTS, n) + POINTS, max(2, min(2 * POINTS, n))
    forwards += (2 + 2 * DIRECTIONS) * points + 2 * walked + (PARTS + 1 + HALVINGS) * min(2 * POINTS, n)
    return Price(forwards, points + points + n - min(POINTS, n))


def in_contexts(defence: Defence, anew: Mapping[str, Callable[[], Defence]], found: Attacked) -> list[Check]:
    """Whether a defence answers the same anew, alone, in another order, with a graph, and on another stream.

    Args:
        defence: as it is after the attack.
        anew: ways to the defence as it was before anything was computed, in words; each call makes another copy.
        found: what the attack found.

    Returns:
        The checks.
    """
    some = found.take(found.fewest_errors[:EXAMPLES])
    n = len(some.ids)
    k = max(1, min(ROWS // n, some.predictions.shape[1]))
    many, labels = some.examples.repeat_interleave(k, dim=0), some.labels.repeat_interleave(k)
    probe = some.noise.on(Stream.PROBE)
    noise = probe.expand(range(FIRST_DRAW, FIRST_DRAW + k))
    worn, fresh = _logits(defence, many, noise), next(iter(anew.values()))
    together = _logits(fresh(), many, noise)
    single, one = some.examples, probe.draw(FIRST_DRAW)
    allowed = _allowed(fresh(), single, one)
    checks: list[Check] = []
    for number, (how, make) in enumerate(anew.items()):
        sentence = f"The defence after the attack against the defence {how}"
        other = _logits(make(), many, noise) if number else together
        checks.append(_same("history", sentence, worn, other, allowed))
    reported = predicted(_logits(fresh(), many, some.noise.expand(range(k)))).reshape(n, k)
    checks.append(_as_recorded(some, reported, k))
    few = _logits(fresh(), single, one)
    alone, lonely = fresh(), range(n)
    singly = torch.cat([_logits(alone, single[i : i + 1], one.take([i])) for i in lonely])
    checks.append(_same("batch size", f"Examples one by one against {n} together", singly, few, allowed))
    checks.append(_same("batch size", f"{n * k} rows together against {n}", together[::k], few, allowed))
    back = list(reversed(range(n)))
    turned = _logits(fresh(), single[back], one.take(back))
    checks.append(_same("order", "Examples in reverse order against the order given", turned, few[back], allowed))
    with torch.enable_grad():
        graph = fresh()(single.clone().requires_grad_(), one).detach()
    checks.append(_same("grad mode", "The logits with a graph against those without", graph, few, allowed))
    checks.append(_streams(fresh, many, labels, some.noise, k))
    return checks


def _logits(defence: Defence, images: Tensor, noise: Noise) -> Tensor:
    with torch.no_grad():
        return defence(images, noise)


def _allowed(defence: Defence, images: Tensor, noise: Noise) -> float:
    """By how much logits may differ: what rounding alone does to them, some times over."""
    tolerance = loose(coarsest(copy.deepcopy(defence), images, noise)).same
    change = torch.finfo(images.dtype).eps * normal(images, 0, 7)
    moved = relative(*_numbers(_logits(defence, images, noise), _logits(defence, (images + change).clamp(0, 1), noise)))
    return max(tolerance, SENSITIVITY * moved)


def _numbers(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Logits as numbers: what is not finite is 0 where it is so in both, else far from the other."""
    odd = ~a.isfinite() & ~b.isfinite()
    return tuple(torch.where(odd, 0.0, t.nan_to_num(1e6, 1e6, -1e6)) for t in (a, b))  # pyright: ignore[reportReturnType]


def _same(name: str, what: str, a: Tensor, b: Tensor, allowed: float) -> Check:
    drift = relative(*_numbers(a, b))
    if drift <= allowed:
        return Check(name, Light.GREEN, f"{what}: relative difference {drift:.1g} (allowed {allowed:.1g}).", drift)
    changed = int((predicted(a) != predicted(b)).sum())
    sentence = (
        f"{what}: expected a relative difference of the logits of at most {allowed:.1g}, got {drift:.2g}; {changed} of "
        f"{len(a)} labels change."
    )
    return Check(name, Light.RED, sentence, drift)


def _as_recorded(some: Attacked, again: Tensor, k: int) -> Check:
    """Labels of the report draws as they were recorded, against a copy's on the same noise."""
    recorded = some.predictions[:, :k]
    changed, total = int((recorded != again).sum()), recorded.numel()
    text = f"Of {total} recorded labels of examples a copy gives {changed} otherwise on the same noise"
    if changed <= max(1, 0.02 * total):
        return Check("recorded labels", Light.GREEN, f"{text}.", changed / total)
    before, after = (int((its != some.labels[:, None]).sum()) for its in (recorded, again))
    return Check("recorded labels", Light.RED, f"{text}: {before} were wrong, {after} are.", changed / total)


def _streams(fresh: Callable[[], Defence], many: Tensor, labels: Tensor, report: Noise, k: int) -> Check:
    """Error rates on the stream of attacks against the one that is reported on."""
    wrong: list[int] = []
    for stream in (Stream.EOT, Stream.REPORT):
        noise = report.on(stream).expand(range(FIRST_DRAW, FIRST_DRAW + k))
        wrong.append(int((predicted(_logits(fresh(), many, noise)) != labels).sum()))
    n = len(many)
    p = float(stats.fisher_exact(np.array([[errors, n - errors] for errors in wrong])).pvalue)
    text = f"Of {n} draws {wrong[0]} are wrong on the stream that attacks use, {wrong[1]} on the one that is reported"
    light = Light.RED if p < UNLIKELY else Light.GREEN
    return Check("streams", light, f"{text} (p {p:.2g}).", p)


def by_gradients(
    attacked: Defence, found: Attacked, others: Tensor, *, seed: int, device: str, rows: int | None = None
) -> list[Check]:
    """Whether the gradient that the attack followed is the derivative, at its examples and at other images.

    Args:
        attacked: what the attack differentiated, by an exact route.
        found: what the attack found.
        others: images drawn at random, (R, C, H, W) in [0, 1].
        seed: of noise and directions.
        device: where to compute.
        rows: that the attack puts through at once, at most; default all.

    Returns:
        The checks: float64's gradient against finite differences, and the deployed dtype's against float64's.
    """
    order = found.fewest_errors
    points = torch.cat([found.examples[order[:POINTS]], others.to(found.examples)])
    rest = found.examples[order[POINTS:][: None if rows is None else max(0, rows - len(points))]]
    ids = tuple(range(len(points) + len(rest)))
    noise = Noise(seed, ids, stream=Stream.PROBE)
    subject, _ = prepared(attacked, points, noise.take(range(len(points))), seed=seed, device=device, edge=EDGE)
    dtype = subject.inner.dtype
    with OwnDerivatives() as own:
        logits, exact = subject.gradient(subject.inner, subject.noise, subject.weights)
        checks = [differences(subject, exact)._replace(name="differences at examples")]
        # As many rows together as the attack asked.
        every = torch.cat([subject.inner, EDGE + (1 - 2 * EDGE) * rest.to(subject.inner)]).to(points.dtype)
        weights = torch.cat([subject.weights, normal(subject.weights[:1].expand(len(rest), -1), seed, 9)])
        _, deployed = replace(subject, defence=attacked).gradient(every, noise, weights.to(points.dtype))
    if dtype != points.dtype:
        asked = deployed[: len(points)].to(dtype)
        checks.append(in_deployed_dtype(asked, exact, subject.weights * logits, points.dtype))
    return [*checks, own_derivatives(own, attacked)]


def along_the_way(attacked: Defence, found: Attacked, *, seed: int, device: str) -> Check:
    """Whether the margin jumps on the way from images to their examples, under one fixed noise.

    Args:
        attacked: what the attack differentiated.
        found: what the attack found.
        seed: of the noise.
        device: where to compute.

    Returns:
        The check; amber where it does.
    """
    order = [k for k in found.fewest_errors if bool((found.examples[k] != found.images[k]).any())][: 2 * POINTS]
    if not order:
        return Check("jumps", Light.GREEN, "No example differs from its image.")
    some = found.take(order)
    noise = Noise(seed, tuple(range(len(order))), stream=Stream.PROBE)
    subject, _ = prepared(attacked, some.examples, noise, seed=seed, device=device, edge=0.0)
    n = len(order)  # one image alone is two rows there
    model, start = subject.defence, some.images.to(subject.images)
    change, noise = some.examples.to(subject.images) - start, subject.noise.take(range(n))

    def margins(shares: Tensor) -> Tensor:
        """At shares (n, S) of the way: (n, S)."""
        width = shares.shape[1]
        at = start[:, None] + shares[:, :, None, None, None] * change[:, None]
        logits = _logits(model, at.flatten(0, 1), noise.take([k for k in range(n) for _ in range(width)]))
        found = margin(logits, some.labels.repeat_interleave(width))
        return found.reshape(n, width).nan_to_num(0.0)

    grid = torch.linspace(0, 1, PARTS + 1, dtype=start.dtype, device=start.device).expand(n, -1)
    values = margins(grid)
    spread = values.amax(1) - values.amin(1)
    part = values.diff(dim=1).abs().max(1).indices
    rows = torch.arange(n, device=part.device)
    low, high = grid[rows, part], grid[rows, part + 1]
    below, above = values[rows, part], values[rows, part + 1]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        value = margins(middle[:, None])[:, 0]
        first = (value - below).abs() >= (above - value).abs()
        low, high = torch.where(first, low, middle), torch.where(first, middle, high)
        below, above = torch.where(first, below, value), torch.where(first, value, above)
    jump = (above - below).abs()
    jumps = (jump > JUMP * spread) & (spread > 1e-6)
    width = 1 / PARTS / 2**HALVINGS
    count = int(jumps.sum())
    if not count:
        return Check(
            "jumps", Light.GREEN, f"The margin does not jump on the way from {n} images to their examples.", 0.0
        )
    sentence = (
        f"On the way from {n} images to their examples the margin jumps for {count}: by up to {float(jump.max()):.2g} "
        f"within {width:.0e} of the way, where the whole way changes it by {float(spread[jumps].max()):.2g}. A "
        "gradient does not see it."
    )
    return Check("jumps", Light.AMBER, sentence, count / n)
