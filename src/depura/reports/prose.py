"""Sentences of a report, and of a claim for a paper: a paragraph, a row of a LaTeX table, an entry for BibTeX."""

from __future__ import annotations

import math

from depura.analysis.claims import Claim
from depura.analysis.comparison import STRONGEST, Comparison, Pair
from depura.analysis.details import ErrorRates
from depura.analysis.summary import Summary
from depura.analysis.words import APPROXIMATE, KINDS, MODES, attack_text, capital, p_value, rule_text, threat_text
from depura.records.kinds import AttackKind
from depura.records.schema import Judged
from depura.statistics.intervals import Proportion

BALLS = "l_p ball; spatial and perceptual changes are not covered"
FLOWS = "spatial: pixels move by a bounded flow; changes of their values are not covered"
PERCEPTUAL = "perceptual: the dissimilarity is bounded, not the change of a pixel; not to be compared with l_p balls"


def conditions(summary: Summary) -> str:
    """Under which conditions the headline holds, some sentences."""
    header = summary.header
    attacks = sum(row.attacks_defence for row in header.rows)
    strongest = "the strongest attack on each method" if header.compares else f"the strongest of {attacks} attacks"
    return (
        f"Deployed rule: {deployed_rules(summary)}. {capital(threat_text(header.threat_model))}, "
        f"{len(header.data.ids)} images of {header.data.name}; {strongest} for each image, chosen on "
        f"{header.draws.select} draws and reported on {header.draws.report} others. An upper bound: a better attack "
        "may exist."
    )


def deployed_rules(summary: Summary) -> str:
    """The deployed rule in words; of each method, where methods differ in it."""
    rules = {method.name: rule_text(method.rule) for method in summary.header.methods}
    if len(set(rules.values())) == 1:
        return next(iter(rules.values()))
    return ", ".join(f"{name}: {text}" for name, text in rules.items())


def threat_model(summary: Summary) -> tuple[tuple[str, str], ...]:
    """What the attacker may do and knows: names and values."""
    threat = summary.header.threat_model
    return (
        ("norm and radius", f"{threat.norm}, eps = {threat.eps:g}, images stay in [0, 1]"),
        ("goal", "targeted" if threat.targeted else "any wrong class"),
        ("the attacker knows", threat.knows),
        ("deployed rule", deployed_rules(summary)),
        ("input quantised to 8 bits", "yes" if threat.quantised else "no"),
        ("queries", threat.queries),
        ("resubmissions of an image", threat.resubmissions),
        ("stateful detection", "yes" if threat.stateful_detection else "no"),
        ("time per image", threat.time_per_image),
        ("class of threat", {"spatial": FLOWS, "perceptual": PERCEPTUAL}.get(threat.family, BALLS)),
    )


def versions(summary: Summary) -> tuple[tuple[str, str], ...]:
    """Names and versions of what the numbers were made with, the devices and the seed."""
    header = summary.header
    return (*sorted(header.versions.items()), ("device", ", ".join(summary.devices)), ("seed", str(header.seed)))


def modes(summary: Summary) -> str:
    """What the gradient modes of the attacks mean, a sentence; approximate ones are called so."""
    used = [mode for mode in MODES if any(line.mode is mode for line in summary.lines)]
    return "Gradients: " + ", ".join(f"{mode}: {MODES[mode]}" for mode in used) + "."


def error_sentence(rates: ErrorRates) -> str:
    """How many images are broken, and how many are neither broken nor safe."""
    broken, broken_before = (sum(e > 0.5 for e in values) for values in (rates.attacked, rates.clean))
    between = sum(0.05 <= e <= 0.5 for e in rates.attacked)
    return (
        f"Under the strongest attack {broken} of {len(rates.attacked)} images are wrong in more than half of the draws "
        f"({broken_before} without attack), and {between} are neither safe nor broken: of those any-of-N takes most."
    )


def limits(summary: Summary) -> tuple[str, ...]:
    """The limits of a complete run, one sentence each, the most important first."""
    header = summary.header
    kinds = {row.kind for row in header.rows}
    missing = [text for kind, text in KINDS.items() if kind not in kinds]
    approximate = [
        row.name
        for row in header.rows
        if row.kind is AttackKind.ADAPTIVE and row.judged is Judged.DEFENCE and row.mode in APPROXIMATE
    ]
    n = len(header.data.ids)
    fewer = [f"{line.name} ({line.images})" for line in summary.lines if line.images < n]
    sentences = (
        f"Not run: {', '.join(missing)}." if missing else "Every kind of attack that depura knows was run.",
        f"The gradient of {', '.join(approximate)} is an approximation; with the exact one the attack may be stronger."
        if approximate
        else "",
        ""
        if AttackKind.BUDGET in kinds
        else "Whether more steps, more draws per step or another restart would find more was not tried.",
        f"{n} images of {header.data.name}; intervals are over images like these.",
        f"Run on the first images only: {', '.join(fewer)}." if fewer else "",
        "" if header.curve.eps else "Other radii were not tried.",
        f"One seed ({header.seed}) for all noise and all attacks; how numbers differ between seeds is not known.",
        "Flags of the machine (deterministic algorithms, reduced precision of matrix products) are not recorded.",
        "An accuracy under attack is an upper bound, not a certificate; other threat models are not covered.",
    )
    return tuple(filter(None, sentences))


def comparison_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Whether the strongest attack for each image leaves a difference, a sentence for each pair of methods."""
    return tuple(_comparison_sentence(pair) for pair in comparison.pairs if pair.row == STRONGEST)


def _comparison_sentence(pair: Pair) -> str:
    left, right = (f"{run} ({name})" if name else run for run, name in zip("AB", pair.methods, strict=True))
    d = pair.difference
    interval = f"95 % CI {100 * d.low:+.1f} to {100 * d.high:+.1f} points, corrected {p_value(d.p)}"
    if d.detectable:
        better, worse = (left, right) if d.value > 0 else (right, left)
        return (
            f"Under the strongest attack for each image {better} keeps {100 * abs(d.value):.1f} points more accuracy "
            f"than {worse} (A - B: {interval})."
        )
    gap = "" if math.isnan(pair.gap) else f" Only one of about {100 * pair.gap:.0f} points would have been seen."
    return (
        f"No detectable difference between {left} and {right} under the strongest attack for each image "
        f"(A - B: {100 * d.value:+.1f}, {interval}).{gap}"
    )


TITLE = "depura: diffusion-based adversarial purification and its honest evaluation"
AUTHORS = "The depura authors"

LATEX_COLUMNS = (
    "defence & threat & rule & attacks & images & draws & no attack, \\% & robust at most, \\% (95\\,\\% CI) \\\\"
)
"""Heading of `latex`."""

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def paragraph(summary: Summary, claim: Claim) -> str:
    """A paragraph of a claim on a defence for a paper, in plain text.

    Sentences: the number with its interval, rule, null, attacks with their gradients, images, draws and seed.
    """
    header, threat = summary.header, summary.header.threat_model
    software, n = header.versions, len(claim.attacks)
    attacks = "; ".join(f"{row.name} ({attack_text(row)}; {MODES[row.mode]})" for row in claim.attacks)
    strongest = f"the strongest of {n} attacks for each image, chosen on {header.draws.select} other draws"
    one = "the attack" if n == 1 else strongest
    flags = f" Flags: {', '.join(map(str, claim.flags))}." if claim.flags else ""
    return (
        f"{capital(threat_text(threat))}, images in [0, 1]: the robust accuracy of {claim.method} is at "
        f"most {_percent(claim.accuracy)} (95 % CI {_interval(claim.accuracy)}; {claim.accuracy.method}), for the "
        f"deployed rule of {rule_text(claim.rule)}. Without an attack, on as many draws, the same defence has "
        f"{_percent(claim.null)} (95 % CI {_interval(claim.null)}). This is the accuracy of a single decision under "
        f"{one}, on {claim.images} images of {header.data.name}, each judged on {header.draws.report} fresh draws. "
        f"The attacks: {attacks}. The attacker knows: {threat.knows}. One seed "
        f"({header.seed}); depura {software.get('depura', 'of unknown version')}, torch "
        f"{software.get('torch', 'of unknown version')}. An upper bound: a better attack may exist.{flags}"
    )


def latex(summary: Summary, claim: Claim) -> str:
    """A row of a LaTeX table with the columns of `LATEX_COLUMNS`, all text escaped."""
    header = summary.header
    cells = [
        escaped(claim.method),
        escaped(f"{header.threat_model.norm}, {header.threat_model.eps:.4g}"),
        escaped(rule_text(claim.rule)),
        escaped(", ".join(row.name for row in claim.attacks)),
        str(claim.images),
        str(header.draws.report),
        f"{100 * claim.null.value:.1f}",
        f"{100 * claim.accuracy.value:.1f} ({escaped(_interval(claim.accuracy))})",
    ]
    return " & ".join(cells) + r" \\"


def bibtex(summary: Summary) -> str:
    """An entry for the software that made the numbers."""
    version = summary.header.versions.get("depura", "unknown")
    return "\n".join(
        (
            "@misc{depura,",
            f"  author = {{{{{AUTHORS}}}}},",
            f"  title = {{{TITLE}}},",
            f"  note = {{Python package, version {escaped(version)}}},",
            "}",
        )
    )


def escaped(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(_ESCAPES.get(c, c) for c in text)


def _percent(accuracy: Proportion) -> str:
    return f"{100 * accuracy.value:.1f} %"


def _interval(accuracy: Proportion) -> str:
    return f"{100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}"
