"""The attacks there are: where each is from, what it needs of a model, and what it costs.

To add one, add an `Entry`; a test holds its formulas against the `cost` of the attack that it builds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from depura import _check
from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import Attack
from depura.attacks.baselines import RandomPoints
from depura.attacks.ensembles import rand, standard
from depura.attacks.fab import FAB
from depura.attacks.flow import Flow
from depura.attacks.low_frequency import LowFrequency
from depura.attacks.perceptual import Perceptual
from depura.attacks.pgd import PGD, Momentum
from depura.attacks.selective import Selective
from depura.attacks.spsa import SPSA
from depura.attacks.square import Square
from depura.attacks.stadv import StAdv
from depura.attacks.threat import Ball, Norm, Threat

Needs = Literal["gradients", "scores", "decisions"]


@dataclass(frozen=True)
class Entry:
    """An attack as it is listed.

    Attributes:
        name: on the command line.
        title: as people call it.
        source: where it is from.
        needs: of a model, the most that it asks for: gradients, scores (logits), or decisions (labels) alone.
        norms: of the threat models that it takes: those of a `Ball`, "flow" or "perceptual".
        build: the attack with its defaults, in a threat model.
        price: evaluations per image, at most, in the attack's own fields; its `cost` counts them.
    """

    name: str
    title: str
    source: str
    needs: Needs
    norms: tuple[str, ...]
    build: Callable[[Any], Attack]
    price: str


EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "flow": 0.05, "perceptual": 0.05}
"""Usual sizes on CIFAR-10, by norm."""

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="pgd",
        title="PGD with EOT",
        source="Madry et al. 2018, arXiv:1706.06083; Athalye et al. 2018, arXiv:1707.07397",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=PGD,
        price="n_restarts x n_steps x eot gradients",
    ),
    Entry(
        name="pgd-momentum",
        title="PGD with momentum and EOT",
        source="Dong et al. 2018, arXiv:1710.06081",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=partial(PGD, momentum=Momentum()),
        price="n_restarts x n_steps x eot gradients",
    ),
    Entry(
        name="apgd",
        title="APGD with EOT, compared on common random numbers",
        source="Croce and Hein 2020, arXiv:2003.01690; l1: arXiv:2103.01208",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=APGD,
        price="n_restarts x ((n_steps + 1) x eot gradients + a dozen comparisons of common draws)",
    ),
    Entry(
        name="apgd-targeted",
        title="targeted APGD with EOT",
        source="Croce and Hein 2020, arXiv:2003.01690",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=TargetedAPGD,
        price="n_targets x ((n_steps + 1) x eot gradients + a dozen comparisons of common draws)",
    ),
    Entry(
        name="selective",
        title="Selective ascent, after DiffHammer",
        source="Wang et al., NeurIPS 2024",
        needs="gradients",
        norms=("linf", "l2"),
        build=Selective,
        price="n_restarts x n_steps x eot gradients + (n_restarts x n_steps x common if finish else 0) forwards",
    ),
    Entry(
        name="fab",
        title="FAB, towards the likeliest classes; deterministic models",
        source="Croce and Hein 2020, arXiv:1907.02044",
        needs="gradients",
        norms=("linf", "l2"),
        build=FAB,
        price="n_targets x n_restarts x n_steps gradients + as many forwards, and one",
    ),
    Entry(
        name="square",
        title="Square, a random search",
        source="Andriushchenko et al. 2020, arXiv:1912.00049",
        needs="scores",
        norms=("linf", "l2"),
        build=Square,
        price="(1 + n_queries + n_queries / renew) x eot forwards",
    ),
    Entry(
        name="spsa",
        title="SPSA, gradients by differences",
        source="Uesato et al. 2018, arXiv:1802.05666",
        needs="scores",
        norms=("linf", "l2", "l1"),
        build=SPSA,
        price="2 x n_steps x n_pairs x eot forwards",
    ),
    Entry(
        name="stadv",
        title="StAdv, flows that bend an image",
        source="Xiao et al. 2018, arXiv:1801.02612",
        needs="gradients",
        norms=("flow",),
        build=StAdv,
        price="n_steps x eot gradients",
    ),
    Entry(
        name="low-frequency",
        title="low-frequency changes through optimised filters, after DiffBreak",
        source="Kassis et al. 2024, arXiv:2411.16598",
        needs="gradients",
        norms=("perceptual",),
        build=LowFrequency,
        price="n_steps x eot gradients",
    ),
    Entry(
        name="random",
        title="random points, the worst of them",
        source="Carlini et al. 2019, arXiv:1902.06705",
        needs="scores",
        norms=("linf", "l2", "l1"),
        build=RandomPoints,
        price="n_points x eot forwards",
    ),
    Entry(
        name="standard",
        title="AutoAttack's standard ensemble; deterministic models",
        source="Croce and Hein 2020, arXiv:2003.01690",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=standard,
        price="those of apgd, apgd-targeted, fab and square together; an image that one breaks is left to it",
    ),
    Entry(
        name="rand",
        title="AutoAttack's ensemble for randomised models",
        source="Croce and Hein 2020, arXiv:2003.01690",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=rand,
        price="twice that of apgd",
    ),
)


def at_default(entry: Entry) -> Attack:
    """The attack with its defaults, in the first threat model that it takes: to look at, such as at its cost."""
    return entry.build(threat(entry.norms[0], EPS[entry.norms[0]]))


def threat(norm: str, eps: float) -> Threat:
    """A threat model by its name and its size.

    Args:
        norm: the norm of a `Ball`, "flow" or "perceptual".
        eps: radius in that norm; of a flow its bound in grid units, of "perceptual" that of `dssim`.

    Returns:
        The threat model.
    """
    if norm == "perceptual":
        return Perceptual(eps)
    return Flow(eps) if norm == "flow" else Ball(cast("Norm", norm), eps)


EOT = 10
"""Draws per step where the answer is random and none are asked for, unless the attack has more by default."""


def built(name: str, ball: Threat, *, random: bool, steps: int | None, eot: int | None) -> Attack:
    """An attack of the catalogue with the settings that were given; one that it does not have is refused.

    Args:
        name: as listed.
        ball: threat model.
        random: whether the model's answer is random.
        steps: of the attack; default its own.
        eot: draws per step; default 1, or where the answer is random at least `EOT`.

    Returns:
        The attack.

    Raises:
        InputError: an unknown name, a norm that is not the attack's, or a setting that it does not have.
    """
    entries = {entry.name: entry for entry in CATALOGUE}
    if name not in entries:
        _check.fail("--attack", f"one of {', '.join(entries)}", repr(name), "See `depura attacks`.")
    entry = entries[name]
    if ball.norm not in entry.norms:
        _check.fail("attack", f"--norm {' or '.join(entry.norms)} for {name}", ball.norm)
    made = entry.build(ball)
    settings = _settings(made)
    for option, field, value in (("--steps", "n_steps", steps), ("--eot", "eot", eot)):
        if value is not None and field not in settings:
            having = ", ".join(e.name for e in CATALOGUE if field in _settings(at_default(e)))
            _check.fail("attack", f"{option} for an attack that has it ({having})", name, "Leave it out.")
    own = max(settings.get("eot", 1), EOT) if random else 1
    wanted = {"n_steps": steps, "eot": own if eot is None else eot}
    changes = {field: value for field, value in wanted.items() if value is not None and field in settings}
    return cast("Attack", dataclasses.replace(cast("Any", made), **changes))


def _settings(made: Attack) -> dict[str, Any]:
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(cast("Any", made))}
