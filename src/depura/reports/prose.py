"""Claims in words, for a paper: a paragraph, a row of a LaTeX table, an entry for BibTeX."""

from __future__ import annotations

from depura.analysis.claims import Claim
from depura.analysis.summary import Summary
from depura.analysis.words import APPROXIMATE, KINDS, MODES, changes, rule
from depura.analysis.words import attack as attack_words
from depura.records.kinds import AttackKind
from depura.records.schema import Judged, RowFacts
from depura.statistics.intervals import Estimate


def sentences(summary: Summary) -> tuple[str, ...]:
    """The limits of a complete run.

    Args:
        summary: of the run.

    Returns:
        Sentences, the most important first.
    """
    return tuple(
        filter(None, (_attacks(summary), _gradient(summary), _budget(summary), _images(summary), *_rest(summary)))
    )


def _attacks(summary: Summary) -> str:
    kinds = {row.kind for row in summary.header.rows}
    missing = [words for kind, words in KINDS.items() if kind not in kinds]
    return f"Not run: {', '.join(missing)}." if missing else "Every kind of attack that depura knows was run."


def _gradient(summary: Summary) -> str:
    """Methods whose adaptive attack has no exact gradient."""
    rows = [r for r in summary.header.rows if r.kind is AttackKind.ADAPTIVE and r.judged is Judged.DEFENCE]
    named = [row.name for row in rows if row.mode in APPROXIMATE]
    if not named:
        return ""
    return f"The gradient of {', '.join(named)} is an approximation; with the exact one the attack may be stronger."


def _budget(summary: Summary) -> str:
    if not any(row.kind is AttackKind.BUDGET for row in summary.header.rows):
        return "Whether more steps, more draws per step or another restart would find more was not tried."
    return ""


def _images(summary: Summary) -> str:
    n = len(summary.header.data.ids)
    fewer = [f"{line.name} ({line.images})" for line in summary.lines if line.images < n]
    some = f" Run on the first images only: {', '.join(fewer)}." if fewer else ""
    return f"{n} images of {summary.header.data.name}; intervals are over images like these.{some}"


def _rest(summary: Summary) -> tuple[str, ...]:
    curve = () if summary.header.curve.eps else ("Other radii were not tried.",)
    return (
        *curve,
        f"One seed ({summary.header.seed}) for all noise and all attacks; how numbers differ between seeds is not "
        "known.",
        "Flags of the machine (deterministic algorithms, reduced precision of matrix products) are not recorded.",
        "An accuracy under attack is an upper bound, not a certificate; other threat models are not covered.",
    )


TITLE = "depura: diffusion-based adversarial purification and its honest evaluation"
AUTHORS = "The depura authors"

COLUMNS = "defence & threat & rule & attacks & images & draws & no attack, \\% & robust at most, \\% (95\\,\\% CI) \\\\"
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
    """A paragraph for a paper, in plain text.

    Args:
        summary: of the run.
        claim: on one of its defences.

    Returns:
        Sentences: the number with its interval, rule, null, attacks with their gradients, images, draws and seed.
    """
    header, threat = summary.header, summary.header.threat_model
    versions, n = header.versions, len(claim.attacks)
    attacks = "; ".join(f"{row.name} ({attack(row)})" for row in claim.attacks)
    strongest = f"the strongest of {n} attacks for each image, chosen on {header.draws.select} other draws"
    one = "the attack" if n == 1 else strongest
    flags = f" Flags: {', '.join(map(str, claim.flags))}." if claim.flags else ""
    return (
        f"{_capital(changes(threat))}, images in [0, 1]: the robust accuracy of {claim.method} is at "
        f"most {_percent(claim.accuracy)} (95 % CI {_interval(claim.accuracy)}; {claim.accuracy.method}), for the "
        f"deployed rule of {rule(claim.rule)}. Without an attack, on as many draws, the same defence has "
        f"{_percent(claim.null)} (95 % CI {_interval(claim.null)}). This is the accuracy of a single decision under "
        f"{one}, on {claim.images} images of {header.data.name}, each judged on {header.draws.report} fresh draws. "
        f"The attacks: {attacks}. The attacker knows: {threat.knows}. One seed "
        f"({header.seed}); depura {versions.get('depura', 'of unknown version')}, torch "
        f"{versions.get('torch', 'of unknown version')}. An upper bound: a better attack may exist.{flags}"
    )


def attack(row: RowFacts) -> str:
    """An attack of a row in words: what it is, its budget and its gradient."""
    return f"{attack_words(row)}; {MODES[row.mode]}"


def latex(summary: Summary, claim: Claim) -> str:
    """A row of a LaTeX table with the columns of `COLUMNS`, all text escaped."""
    header = summary.header
    cells = [
        escaped(claim.method),
        escaped(f"{header.threat_model.norm}, {header.threat_model.eps:.4g}"),
        escaped(rule(claim.rule)),
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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} %"


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"
