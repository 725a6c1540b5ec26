"""Profiles: suites of attacks, from blind to exact, for four purposes. Each is a plain function.

`smoke` is for tests, `quick` for development, `standard` for internal tables, `paper` for claims. They differ in how
many images, draws and steps they spend; the checks of a report are as good as the rows that its profile runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from depura import _check
from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import Attack
from depura.attacks.baselines import CleanImages, RandomPoints
from depura.attacks.ensembles import Together
from depura.attacks.ensembles import standard as autoattack
from depura.attacks.losses import cross_entropy, targeted_margin
from depura.attacks.pgd import PGD
from depura.attacks.preview import can_preview, preview
from depura.attacks.queries import most_draws
from depura.attacks.selective import Selective
from depura.attacks.spsa import SPSA
from depura.attacks.square import Square
from depura.attacks.threat import Ball
from depura.defence import Defence, Single
from depura.evaluation.diagnostics import SHARE, surrogate
from depura.evaluation.study import OWN_RULES, AttackRun, Study, bare_square
from depura.gradients import StraightThrough
from depura.purifiers.composed import FixedNoise
from depura.purifiers.purifier import Purifier


@dataclass(frozen=True)
class AttackSuite:
    """What a profile runs, and how it is judged.

    Attributes:
        rows: the attacks.
        images: how many images its purpose asks for, at least.
        select_draws: draws on which candidates are compared.
        report_draws: draws on which the chosen one is reported.
        curve_eps: further radii for the accuracy-against-eps curve.
        curve_images: how many images these are run on.
        curve_rows: which rows these are run for.
    """

    rows: tuple[AttackRun, ...]
    images: int
    select_draws: int
    report_draws: int
    curve_eps: tuple[float, ...] = ()
    curve_images: int = 1
    curve_rows: tuple[str, ...] = ()


Profile = Callable[..., AttackSuite]
"""(defence, ball, *, n_classes, n_values) -> attack suite: of what is deployed, with a purifier, and the threat model.

The suite depends on how many classes there are and how many values an image has."""


def smoke(defence: Defence, ball: Ball, *, n_classes: int = 10, n_values: int = 3072) -> AttackSuite:
    """A minute's worth, for tests: every part runs once, no number is worth reading. See `Profile`."""
    del n_classes, n_values
    few = SuiteRuns(defence, ball)
    rows = (
        few.undefended(APGD(ball, n_steps=20)),
        few.undefended_square(),
        few.unchanged(),
        few.transfer(APGD(ball, n_steps=20)),
        few.adaptive(APGD(ball, n_steps=10, eot=4)),
        few.short_square(n_queries=50, images=8),
        few.pinned(APGD(ball, n_steps=10, common=0), images=8),
    )
    return AttackSuite(_there(*rows), images=16, select_draws=4, report_draws=8)


def quick(defence: Defence, ball: Ball, *, n_classes: int = 10, n_values: int = 3072) -> AttackSuite:
    """For development; its numbers are not to be published. See `Profile`."""
    runs = SuiteRuns(defence, ball)
    strong = APGD(ball, n_steps=20, eot=4)
    rows = (
        runs.undefended(APGD(ball, n_steps=50)),
        runs.undefended_square(),
        runs.unchanged(),
        runs.transfer(APGD(ball, n_steps=50)),
        runs.bpda(APGD(ball, n_steps=30, eot=4)),
        runs.adaptive(strong),
        runs.short_square(n_queries=100, images=16),
        runs.one_step(strong, images=16),
        runs.pinned(_deterministic(ball, 20, n_classes), images=16),
        runs.tiny(_deterministic(ball, 20, n_classes), images=16),
    )
    return AttackSuite(
        _there(*rows),
        images=64,
        select_draws=8,
        report_draws=32,
        curve_eps=radii(ball, n_values),
        curve_images=16,
        curve_rows=_on_curve(*rows),
    )


def standard(defence: Defence, ball: Ball, *, n_classes: int = 10, n_values: int = 3072) -> AttackSuite:
    """For ablations and internal tables. See `Profile`."""
    runs = SuiteRuns(defence, ball)
    strong, blind = APGD(ball, n_steps=50, eot=16), _deterministic(ball, 100, n_classes)
    rows = (
        runs.undefended(blind),
        runs.undefended_square(),
        runs.unchanged(),
        runs.transfer(blind),
        runs.bpda(PGD(ball, n_steps=100, eot=10)),
        runs.surrogate(strong),
        runs.adaptive(strong),
        runs.selective(Selective(ball, n_steps=50, n_restarts=1)),
        runs.black_box(Square(ball, n_queries=1000, eot=20), images=32),
        runs.random(RandomPoints(ball, n_points=1000), images=32),
        runs.one_step(strong, images=64),
        *runs.more(strong, images=64),
        runs.pinned(_deterministic(ball, 50, n_classes), images=64),
        runs.tiny(_deterministic(ball, 50, n_classes), images=64),
    )
    return AttackSuite(
        _there(*rows),
        images=512,
        select_draws=16,
        report_draws=64,
        curve_eps=radii(ball, n_values),
        curve_images=64,
        curve_rows=_on_curve(*rows),
    )


def paper(defence: Defence, ball: Ball, *, n_classes: int = 10, n_values: int = 3072) -> AttackSuite:
    """For claims. One seed; run it with three. See `Profile`."""
    runs = SuiteRuns(defence, ball)
    strong, blind = APGD(ball, n_steps=100, eot=20), _blind(ball, n_classes)
    targets = min(9, n_classes - 1)
    rows = (
        runs.undefended(blind),
        runs.undefended_square(),
        runs.unchanged(),
        runs.transfer(blind),
        runs.bpda(PGD(ball, n_steps=200, eot=20)),
        runs.surrogate(strong),
        runs.adaptive(strong),
        runs.adaptive(replace(strong, loss=cross_entropy), name="cross-entropy", title="APGD on cross entropy"),
        runs.adaptive(PGD(ball, n_steps=200, eot=20), name="pgd", title="PGD 200 x 20"),
        runs.targeted(TargetedAPGD(ball, n_steps=50, n_targets=targets, eot=20, loss=targeted_margin), images=128),
        runs.selective(Selective(ball, n_steps=150)),
        runs.black_box(Square(ball, n_queries=1000, eot=20), images=128),
        runs.black_box(SPSA(ball), images=128, name="spsa", title="SPSA, gradients estimated from queries"),
        runs.random(RandomPoints(ball, n_points=10_000), images=32),
        runs.one_step(strong, images=128),
        *runs.more(strong, images=128),
        runs.pinned(_deterministic(ball, 100, n_classes)),
        runs.tiny(_deterministic(ball, 100, n_classes), images=128),
    )
    return AttackSuite(
        _there(*rows),
        images=512,
        select_draws=32,
        report_draws=256,
        curve_eps=radii(ball, n_values),
        curve_images=128,
        curve_rows=_on_curve(*rows),
    )


PROFILES: dict[str, Profile] = {"smoke": smoke, "quick": quick, "standard": standard, "paper": paper}
"""By name, the cheapest first."""


def stronger(name: str) -> str | None:
    """The next more expensive profile, if there is one."""
    names = list(PROFILES)
    later = names[names.index(name) + 1 :] if name in names else names[-2:]
    return later[0] if later else None


def under(study: Study, profile: Profile) -> Study:
    """The same defence on the same images, under a profile's attacks instead of the study's own rows.

    Args:
        study: with one defence; a comparison of methods has rows of its own.
        profile: `smoke`, `quick`, `standard`, `paper`, or another function like them.

    Returns:
        The study. It keeps all its images, be they more or fewer than the profile's purpose asks for.

    Raises:
        InputError: a comparison of methods, a bare classifier, or a threat model that is no l_p ball.
    """
    where = f"profile of study {study.name!r}"
    if study.methods:
        _check.fail(where, "a study of one defence", "a comparison of methods", "Profiles judge one defence at a time.")
    if study.defence.core is None:
        _check.fail(where, "a defence with a purifier", "a bare classifier")
    if not isinstance(study.ball, Ball):
        _check.fail(where, "an l_p ball", f"{study.ball}", "Give the study rows of its own.")
    suite = profile(study.defence, study.ball, n_classes=len(study.data.classes), n_values=study.data.images[0].numel())
    return replace(
        study,
        rows=suite.rows,
        select_draws=suite.select_draws,
        report_draws=suite.report_draws,
        curve_eps=tuple(eps for eps in suite.curve_eps if f"{eps:.6g}" != f"{study.ball.eps:.6g}"),
        curve_images=suite.curve_images,
        curve_rows=suite.curve_rows,
        # The profile's own adaptive attack is as strong; of a rule that somebody wrote the gradient may mislead.
        reference=study.reference and not isinstance(study.defence.rule, OWN_RULES),
    )


def _on_curve(*rows: AttackRun | None) -> tuple[str, ...]:
    """Rows of the curve: the undefended one, and the adaptive one or what takes its place."""
    names = [row.name for row in _there(*rows)]
    strong = "adaptive" if "adaptive" in names else "bpda"
    return tuple(name for name in ("undefended", strong) if name in names)


def radii(ball: Ball, n_values: int) -> tuple[float, ...]:
    """Radii for the accuracy-against-eps curve, rising: half and twice the ball's, fourfold, up to `whole_box`."""
    whole, found = whole_box(ball.norm, n_values), [ball.eps / 2, 2 * ball.eps]
    while found[-1] < whole / 4:
        found.append(4 * found[-1])
    return (*(eps for eps in found if eps < 0.99 * whole), whole)


def whole_box(norm: str, n_values: int) -> float:
    """The radius from which on any image in [0, 1] can become any other: 1 (linf), sqrt(n) (l2), n (l1)."""
    return {"linf": 1.0, "l2": math.sqrt(n_values), "l1": float(n_values)}[norm]


def _deterministic(ball: Ball, n_steps: int, n_classes: int) -> Attack:
    """A strong attack on what answers the same every time."""
    targeted = TargetedAPGD(ball, n_steps=n_steps, n_targets=min(9, n_classes - 1), loss=targeted_margin, common=0)
    return Together((APGD(ball, n_steps=n_steps, common=0), targeted))


def _blind(ball: Ball, n_classes: int) -> Attack:
    """AutoAttack's standard ensemble where it is defined: its losses need four classes."""
    if n_classes < 4 or ball.norm == "l1":
        return _deterministic(ball, 100, n_classes)
    return autoattack(ball, n_targets=min(9, n_classes - 1))


BARE_IMAGES = 64
"""Images on which a classifier by itself is attacked without gradients."""

_WITHOUT_GRADIENT = ("undefended", "unchanged", "transfer", "bpda", "black-box", "random")
"""Kinds of rows that need no exact gradient."""


def _there(*rows: AttackRun | None) -> tuple[AttackRun, ...]:
    """The rows that a defence can have; without a gradient path BPDA and scores take the place of exact gradients."""
    there = tuple(row for row in rows if row is not None)
    if all(row.evaluated.differentiable for row in there):
        return there
    there = tuple(row for row in there if row.kind in _WITHOUT_GRADIENT)
    runs = SuiteRuns(there[-1].evaluated, there[-1].attack.ball)
    kinds = {row.kind for row in there}
    bpda = None if "bpda" in kinds else runs.bpda(APGD(runs.ball, n_steps=20, eot=4))
    scores = None if "black-box" in kinds else runs.black_box(Square(runs.ball, n_queries=200, eot=4), images=16)
    return (*there, *(row for row in (bpda, scores) if row is not None))


class SuiteRuns:
    """Rows by kind, for one defence."""

    def __init__(self, defence: Defence, ball: Ball) -> None:
        if defence.core is None:
            _check.fail("profile", "a defence with a purifier", "a bare classifier")
        self.defence, self.ball, self.core = defence, ball, defence.core
        self.bare = None if defence.purifier is None else defence.with_(purifier=None, rule=Single())

    def undefended(self, attack: Attack) -> AttackRun | None:
        """None of a whole defence, which has no bare classifier."""
        if self.bare is None:
            return None
        return AttackRun("undefended", "no defence", attack, self.bare, self.bare, "undefended")

    def undefended_square(self) -> AttackRun | None:
        """Whether the classifier is robust by itself, or its gradient masked: an attack without gradients tells."""
        if self.bare is None or self.ball.norm == "l1":
            return None
        title = "no defence; Square, no gradients"
        return AttackRun(
            "undefended-square", title, bare_square(self.ball), self.bare, self.bare, "undefended", images=BARE_IMAGES
        )

    def short_square(self, *, n_queries: int, images: int) -> AttackRun | None:
        """A few queries; None where a longer search takes the place of a gradient that is not there, and in l1."""
        if not self.defence.differentiable or self.ball.norm == "l1":
            return None
        return self.black_box(Square(self.ball, n_queries=n_queries, eot=2, common=8), images=images)

    def judged(self, name: str, title: str, attack: Attack, kind: str, images: int | None = None) -> AttackRun:
        """A row whose attack asks or differentiates the defence itself."""
        return AttackRun(name, f"purified; {title}", attack, self.defence, self.defence, kind, images=images)

    def unchanged(self) -> AttackRun:
        title = "images as they are, scored like an attack's"
        return self.judged("unchanged", title, CleanImages(self.ball), "unchanged")

    def transfer(self, attack: Attack) -> AttackRun | None:
        """None of a whole defence."""
        if self.bare is None:
            return None
        title = "purified; examples made against the bare classifier"
        return AttackRun("transfer", title, attack, self.bare, self.defence, "transfer")

    def bpda(self, attack: Attack) -> AttackRun | None:
        """None of a whole defence."""
        if self.bare is None:
            return None
        through = self.defence.with_(gradient=StraightThrough())
        return AttackRun(
            "bpda", "purified; BPDA (purifier taken for the identity)", attack, through, self.defence, "bpda"
        )

    def preview(self, attack: Attack) -> AttackRun | None:
        """Of an attacker who does not know the purifier; None where there is not one denoiser to look through."""
        if not can_preview(self.defence):
            return None
        title = "purified; examples made on one-step previews by the denoiser, the purifier unknown"
        return AttackRun("preview", title, attack, preview(self.defence), self.defence, "transfer")

    def surrogate(self, attack: Attack) -> AttackRun | None:
        """None where there are too few steps to have fewer."""
        if self.core.n_steps < SHARE or not self.core.shortens:
            return None
        title = f"purified; through a walk of one step for every {SHARE}"
        return AttackRun("surrogate", title, attack, surrogate(self.defence), self.defence, "surrogate")

    def adaptive(self, attack: Attack, *, name: str = "adaptive", title: str = "adaptive attack") -> AttackRun:
        return self.judged(name, f"{title} through the whole defence", attack, "adaptive")

    def targeted(self, attack: Attack, *, images: int) -> AttackRun:
        return self.judged("targeted", "towards one wrong class after the other", attack, "targeted", images)

    def selective(self, attack: Attack) -> AttackRun:
        return self.judged("selective", "along the draws that can be broken together", attack, "selective")

    def black_box(self, attack: Attack, *, images: int, name: str = "square", title: str = "Square") -> AttackRun:
        return self.judged(name, f"{title}, no gradients", attack, "black-box", images)

    def random(self, attack: RandomPoints, *, images: int) -> AttackRun:
        return self.judged("random", f"the worst of {attack.n_points:,} random corners", attack, "random", images)

    def one_step(self, attack: APGD, *, images: int) -> AttackRun:
        single = PGD(self.ball, n_steps=1, step_size=self.ball.eps, eot=attack.eot, random_start=False)
        return self.judged("one-step", "one step of the full size", single, "one-step", images)

    def more(self, attack: APGD, *, images: int) -> tuple[AttackRun, ...]:
        """The adaptive attack with twice the steps, twice the draws, and one restart more."""
        variants = {
            "more-steps": ("twice the steps", replace(attack, n_steps=2 * attack.n_steps)),
            "more-draws": ("twice the draws per step", replace(attack, eot=2 * most_draws(attack.eot))),
            "restart": ("one restart more", replace(attack, n_restarts=attack.n_restarts + 1)),
        }
        return tuple(
            self.judged(name, f"the adaptive attack with {what}", its, "budget", images)
            for name, (what, its) in variants.items()
        )

    def pinned(self, attack: Attack, *, images: int | None = None) -> AttackRun:
        fixed = self._fixed(self.core)
        title = "purified under one noise for good, which the attacker knows"
        return AttackRun("pinned", title, attack, fixed, fixed, "pinned", images=images)

    def _fixed(self, core: Purifier) -> Defence:
        """A core under fixed noise, with the rest of the defence."""
        if self.bare is None:
            return Defence(None, FixedNoise(core), rule=Single())
        return Defence(FixedNoise(core), self.defence.classifier, rule=Single())

    def tiny(self, attack: Attack, *, images: int) -> AttackRun | None:
        """None where the last step cannot be taken alone, or is the whole process."""
        if not self.core.shortens or self.core.n_steps == 1:
            return None
        last = self._fixed(self.core.one_step(1.0))
        title = "purified by the last step of the walk alone"
        return AttackRun("tiny", title, attack, last, last, "tiny", images=images)
