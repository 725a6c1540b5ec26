"""The attacks there are: where each is from, what it needs of a model, and what it costs.

To add one, add an `Entry`; a test holds its formulas against the `cost` of the attack that it builds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import Attack
from depura.attacks.ball import Ball, Norm
from depura.attacks.pgd import PGD, Momentum
from depura.attacks.selective import Selective

Needs = Literal["gradients", "scores", "decisions"]


@dataclass(frozen=True)
class Entry:
    """An attack as it is listed.

    Attributes:
        name: on the command line.
        title: as people call it.
        source: where it is from.
        needs: of a model, the most that it asks for: gradients, scores (logits), or decisions (labels) alone.
        norms: of the balls that it takes.
        build: the attack with its defaults, in a ball.
        gradients: evaluations with a gradient per image, at most: a Python expression in the attack's own fields.
        forwards: those without, likewise.
        words: what a reader sees instead of these expressions, where they would not help.
    """

    name: str
    title: str
    source: str
    needs: Needs
    norms: tuple[Norm, ...]
    build: Callable[[Ball], Attack]
    gradients: str = "0"
    forwards: str = "0"
    words: str = ""

    @property
    def formula(self) -> str:
        """What it costs, as a reader sees it."""
        if self.words:
            return self.words
        parts = ((self.gradients, "gradients"), (self.forwards, "forwards"))
        return " + ".join(f"{what.replace('*', 'x')} {unit}" for what, unit in parts if what != "0") or "nothing"


def _momentum(ball: Ball) -> PGD:
    return PGD(ball, momentum=Momentum())


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="pgd",
        title="PGD with EOT",
        source="Madry et al. 2018, arXiv:1706.06083; Athalye et al. 2018, arXiv:1707.07397",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=PGD,
        gradients="n_restarts * n_steps * eot",
    ),
    Entry(
        name="pgd-momentum",
        title="PGD with momentum and EOT",
        source="Dong et al. 2018, arXiv:1710.06081",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=_momentum,
        gradients="n_restarts * n_steps * eot",
    ),
    Entry(
        name="apgd",
        title="APGD with EOT, settled on a common tape",
        source="Croce and Hein 2020, arXiv:2003.01690; l1: arXiv:2103.01208",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=APGD,
        gradients="n_restarts * (n_steps + 1) * eot",
        forwards="n_restarts * (n_looks * common + (n_steps + 1) * max(1, common) * (finish is not None))",
        words="n_restarts x ((n_steps + 1) x eot gradients + a dozen looks at the common tape)",
    ),
    Entry(
        name="apgd-targeted",
        title="targeted APGD with EOT",
        source="Croce and Hein 2020, arXiv:2003.01690",
        needs="gradients",
        norms=("linf", "l2", "l1"),
        build=TargetedAPGD,
        gradients="n_targets * (n_steps + 1) * eot",
        forwards="n_targets * (n_looks * common + (n_steps + 1) * max(1, common) * (finish is not None))"
        " + (n_targets + 1) * max(1, common)",
        words="n_targets x ((n_steps + 1) x eot gradients + a dozen looks at the common tape)",
    ),
    Entry(
        name="selective",
        title="Selective ascent, after DiffHammer",
        source="Wang et al., NeurIPS 2024",
        needs="gradients",
        norms=("linf", "l2"),
        build=Selective,
        gradients="n_restarts * n_steps * eot",
        forwards="(n_restarts * n_steps * common if finish else 0)",
    ),
)


def at_default(entry: Entry) -> Attack:
    """The attack with its defaults, in the first ball that it takes, at 8/255: to look at, such as at its cost."""
    return entry.build(Ball(entry.norms[0], 8 / 255))
