"""Numbers, kinds of attack, gradient modes, attacks, rules and threat models in words."""

from __future__ import annotations

from collections.abc import Sequence

from depura.records.kinds import AttackKind, ChoiceKind, GradientMode
from depura.records.names import short_name
from depura.records.schema import Choice, Description, RowFacts, ThreatModel
from depura.statistics.intervals import Proportion

KINDS = {
    AttackKind.UNDEFENDED: "the attack on the undefended classifier (is it strong enough to say anything?)",
    AttackKind.TRANSFER: "examples transferred from another model",
    AttackKind.BPDA: "BPDA",
    AttackKind.SURROGATE: "a surrogate of fewer steps",
    AttackKind.ADAPTIVE: "an adaptive attack through the whole defence",
    AttackKind.TARGETED: "targeted attacks",
    AttackKind.SELECTIVE: "an attack that looks at its draws one by one (selective)",
    AttackKind.BLACK_BOX: "attacks without gradients (black-box)",
    AttackKind.RANDOM: "random search",
    AttackKind.ONE_STEP: "an attack of one step",
    AttackKind.PINNED: "the defence under one fixed noise (which an attacker then knows)",
    AttackKind.TINY: "the last step of the reverse process alone",
}
"""Kinds of attack that an evaluation should run, from blind to exact."""

MODES = {
    GradientMode.NONE: "no gradient",
    GradientMode.TRANSFER: "gradient of another model than the one that is judged",
    GradientMode.BPDA: "BPDA (approximate)",
    GradientMode.SURROGATE: "another reverse process of the same denoiser, such as one of fewer steps (approximate)",
    GradientMode.ADJOINT: "continuous adjoint (approximate)",
    GradientMode.GRAFTED: "one Jacobian for all draws (approximate)",
    GradientMode.RELAXED: "smooth stand-ins for functions without a derivative",
    GradientMode.EXACT: "exact gradient of what is judged",
    GradientMode.DEVIATED: "exact gradient of the loss and the deviated reconstruction",
}
"""Gradient modes, from blind to exact."""

APPROXIMATE = (GradientMode.BPDA, GradientMode.SURROGATE, GradientMode.ADJOINT, GradientMode.GRAFTED)
"""Modes whose gradient is that of something else than what is judged."""

_BUDGETS = {
    "n_steps": "steps",
    "n_queries": "queries",
    "n_points": "points",
    "n_restarts": "restarts",
    "n_targets": "targets",
    "eot": "draws per gradient",
}


def percent(accuracy: Proportion) -> str:
    """As "41.7 % (33.4–50.4)", the interval in brackets."""
    return f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f}–{100 * accuracy.high:.1f})"


def share(accuracy: Proportion) -> str:
    """In percent without the sign, as "41.7"."""
    return f"{100 * accuracy.value:.1f}"


def at_most(accuracy: Proportion, null: Proportion) -> str:
    """What may be claimed of an accuracy under attack."""
    interval = f"{100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}"
    return f"robust accuracy at most {share(accuracy)} % (95 % CI {interval}), null {share(null)} %"


def p_value(p: float) -> str:
    """As "p 0.021"."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def count(n: float) -> str:
    """A mean number of evaluations; with one decimal where it is not whole."""
    return f"{n:,.0f}" if n == round(n) else f"{n:,.1f}"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def attack_text(row: RowFacts) -> str:
    """The attack of a row in words: its name and its budget, such as "PGD, 20 steps, 5 draws per gradient"."""
    counts: list[str] = []
    for key, word in _BUDGETS.items():
        value = row.setting(key)
        if isinstance(value, int) and value > (key in ("n_restarts", "eot")):
            counts.append(f"{value} {word}")
    inner = row.setting("attacks")
    parts = [short_name(part) for part in inner] if isinstance(inner, Sequence) and not isinstance(inner, str) else []
    name = short_name(row.attack) + (f" of {', '.join(parts)}" if parts else "")
    return ", ".join([name, *counts])


def images_text(n: int, choice: Choice | None) -> str:
    """How many images there are, and how they were chosen, such as "16 images, the first of 500"."""
    if choice is None:
        return f"{n} images"
    words = {
        ChoiceKind.ALL: f"{n} images, all there are",
        ChoiceKind.FIRST: f"{n} images, the first of {choice.size}",
        ChoiceKind.DRAWN: f"{n} images drawn at random of {choice.size} (seed {choice.seed})",
        ChoiceKind.OTHER: f"{n} of {choice.size} images, chosen by other means",
        ChoiceKind.UNKNOWN: f"{n} images (what they were chosen from is not known)",
    }
    if choice.kind is ChoiceKind.ALL and choice.size != n:  # an attack on the first of them
        return words[ChoiceKind.FIRST]
    return words[choice.kind]


def threat_text(threat: ThreatModel) -> str:
    """What an attacker may do, in words."""
    if threat.norm == "flow":
        return f"flows of at most {threat.eps:g} grid units"
    if threat.norm == "perceptual":
        return f"perceptual dissimilarity of at most {threat.eps:g}"
    return f"{threat.norm} ball of radius {radius_text(threat.eps)}"


def radius_text(eps: float) -> str:
    """A radius as the field writes it: 8/255 where it is a small number of the 256 levels of a pixel."""
    levels = round(255 * eps)
    return f"{levels}/255" if 1 <= levels <= 32 and abs(255 * eps - levels) < 1e-9 else f"{eps:g}"


def rule_text(rule: Description) -> str:
    """A deployed rule in words, from its description in a header."""
    n = rule.get("n_draws") if isinstance(rule, dict) else None
    name = short_name(rule)
    words = {
        "Single": "one draw",
        "Vote": f"vote of {n} draws",
        "MeanProb": f"mean probability of {n} draws",
        "MeanLogit": f"mean logit of {n} draws",
    }
    return words.get(name, name)
