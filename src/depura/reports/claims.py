"""Claims in words, for a paper: a paragraph, a row of a LaTeX table, an entry for BibTeX."""

from __future__ import annotations

from depura.evaluation.statistics import Estimate
from depura.judging.claims import Claim
from depura.judging.summary import Summary
from depura.judging.words import MODES, changes, rule
from depura.judging.words import attack as attack_words
from depura.records.schema import RowFacts

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
