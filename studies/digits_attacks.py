"""Every attack against one defence, DiffPure on the bundled digits: accuracy beside cost.

    depura run studies/digits_attacks.py --out runs/attacks --workers 2
    python -m experiments.attack_costs runs/attacks

The defence is the demo's. Attacks go through its exact gradient unless the row says otherwise, and run at their
defaults for randomised models; where a default would take an hour on two cores it is cut down, and the row says to
what.
"""

from __future__ import annotations

from dataclasses import replace

import depura
from depura import AttackRun, Defence
from depura.attacks.attack import Attack
from depura.attacks.ensembles import rand
from depura.attacks.losses import BoundedMargin
from depura.attacks.pgd import Momentum
from depura.evaluation.demo import EPS, digits_purifier
from depura.evaluation.diagnostics import surrogate


def rows(defence: Defence, ball: depura.Ball) -> tuple[AttackRun, ...]:
    """The attacks, by what they ask of the defence."""
    bare = defence.with_(purifier=None)
    fixed = defence.with_(purifier=depura.FixedNoise(digits_purifier()))
    routes = {
        "bpda": defence.with_(gradient=depura.StraightThrough()),
        "surrogate": surrogate(defence),
        "grafted": defence.with_(gradient=depura.Grafted()),
        "diffattack": defence.with_(gradient=depura.Deviated()),
    }
    pgd, blind = depura.PGD(ball, n_steps=100, eot=10), depura.PGD(ball, n_steps=100)
    apgd = depura.APGD(ball, n_steps=100, eot=10)
    through: dict[str, tuple[str, Attack]] = {
        "pgd": ("PGD 100 x 10", pgd),
        "pgd-momentum": ("PGD 100 x 10 with momentum", replace(pgd, momentum=Momentum())),
        "apgd": ("APGD 100 x 10, margin", apgd),
        "apgd-bounded": ("APGD 100 x 10, bounded margin", replace(apgd, loss=BoundedMargin())),
        "apgd-targeted": (
            "targeted APGD 50 x 10, 3 classes",
            depura.TargetedAPGD(ball, n_steps=50, n_targets=3, eot=10),
        ),
        "autoattack-rand": ("AutoAttack's rand ensemble, 2 x 100 x 20", rand(ball)),
        "selective": ("selective attack after DiffHammer", depura.Selective(ball)),
        "square": ("Square, 1,000 queries x 20", depura.Square(ball, n_queries=1000, eot=20)),
        "spsa": ("SPSA 40 x 128 pairs", depura.SPSA(ball)),
        "random": ("random points", depura.RandomPoints(ball)),
    }
    found = [
        AttackRun("undefended", "no defence; PGD-100", blind, bare, bare, "undefended"),
        AttackRun(
            "pinned", "purified with pinned noise; APGD-100", depura.APGD(ball, common=0), fixed, fixed, "pinned"
        ),
        AttackRun("transfer", "purified; PGD-100 on the bare classifier", blind, bare, defence, "transfer"),
    ]
    for name, title in (
        ("bpda", "BPDA"),
        ("surrogate", "a fifth of the steps"),
        ("grafted", "one Jacobian for all draws"),
    ):
        kind = "bpda" if name == "bpda" else ""
        found.append(AttackRun(name, f"purified; APGD 100 x 10 through {title}", apgd, routes[name], defence, kind))
    found += [
        AttackRun(name, f"purified; {title}", attack, defence, defence, "") for name, (title, attack) in through.items()
    ]
    title = "purified; APGD 100 x 10 with DiffAttack's loss"
    found.append(AttackRun("diffattack", title, apgd, routes["diffattack"], defence, ""))
    return tuple(found)


def spatial(defence: Defence, bound: float) -> tuple[AttackRun, ...]:
    """The one attack of another threat model: flows."""
    bare = defence.with_(purifier=None)
    attack = depura.StAdv(depura.Flow(bound), eot=10)
    return (
        AttackRun("undefended", "no defence; StAdv-100", replace(attack, eot=1), bare, bare, "undefended"),
        AttackRun("stadv", "purified; StAdv 100 x 10", attack, defence, defence, "adaptive"),
    )


def study(*, images: int = 64, eps: float = EPS, flow: float = 0.0, draws: int = 64, seed: int = 0) -> depura.Study:
    """The study.

    Args:
        images: how many test digits (up to 500).
        eps: linf radius in [0, 1] units.
        flow: if above 0, flows of at most so many grid units instead (2 are the width of the image).
        draws: fresh draws that each example is judged on.
        seed: of all noise.

    Returns:
        The study.
    """
    defence = Defence(digits_purifier(), depura.digits_classifier())
    return depura.Study(
        name="digits-flows" if flow else "digits-attacks",
        data=depura.load_digits("test").first(images),
        defence=defence,
        rows=spatial(defence, flow) if flow else rows(defence, depura.Ball("linf", eps)),
        seed=seed,
        report_draws=draws,
        unit_images=8,
    )
