"""Claims in words, for a paper: a paragraph, a row of a LaTeX table, an entry for BibTeX."""

from __future__ import annotations

from typing import Any

from depura.evaluation.statistics import Estimate
from depura.judging.claims import Claim
from depura.judging.summary import Summary
from depura.reports.tables import ROUTES, changes, rule_words

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
        Sentences: the number with its interval, rule, null, attacks with their routes, images, draws and seed.
    """
    header, words = summary.header, rule_words(claim.rule)
    versions, n = header["versions"], len(claim.attacks)
    attacks = "; ".join(f"{row['name']} ({attack(row)})" for row in claim.attacks)
    strongest = f"the strongest of {n} attacks for each image, chosen on {header['draws']['select']} other draws"
    one = "the attack" if n == 1 else strongest
    flags = f" Flags: {', '.join(summary.flags)}." if summary.flags else ""
    return (
        f"{_capital(changes(header['threat_model']))}, images in [0, 1]: the robust accuracy of {claim.method} is at "
        f"most {_percent(claim.accuracy)} (95 % CI {_interval(claim.accuracy)}; {claim.accuracy.method}), for the "
        f"deployed rule of {words}. Without an attack, on as many draws, the same defence has {_percent(claim.null)} "
        f"(95 % CI {_interval(claim.null)}). This is the accuracy of a single decision under {one}, on "
        f"{claim.images} images of {header['data']['name']}, each judged on {header['draws']['report']} fresh draws. "
        f"The attacks: {attacks}. The attacker knows: {header['threat_model']['knows']}. One seed "
        f"({header['seed']}); depura {versions.get('depura', 'of unknown version')}, torch "
        f"{versions.get('torch', 'of unknown version')}. An upper bound: a better attack may exist.{flags}"
    )


def attack(row: dict[str, Any]) -> str:
    """An attack of a row in words: what it is, its budget and its route."""
    described = row["attack"]
    budget = {
        "n_steps": "steps",
        "n_queries": "queries",
        "n_points": "points",
        "n_restarts": "restarts",
        "n_targets": "targets",
        "eot": "draws per gradient",
    }
    counts = [f"{described[key]} {word}" for key, word in budget.items() if isinstance(described.get(key), int)
              and described[key] > (key in ("n_restarts", "eot"))]  # fmt: skip
    parts = [part["type"].rpartition(".")[2] for part in described.get("attacks", ())]
    name = described["type"].rpartition(".")[2] + (f" of {', '.join(parts)}" if parts else "")
    return f"{', '.join([name, *counts])}; route {row['route']}, {ROUTES.get(row['route'], 'unnamed')}"


def latex(summary: Summary, claim: Claim) -> str:
    """A row of a LaTeX table with the columns of `COLUMNS`, all text escaped."""
    header = summary.header
    cells = [
        escaped(claim.method),
        escaped(f"{header['threat_model']['norm']}, {header['threat_model']['eps']:.4g}"),
        escaped(rule_words(claim.rule)),
        escaped(", ".join(row["name"] for row in claim.attacks)),
        str(claim.images),
        str(header["draws"]["report"]),
        f"{100 * claim.null.value:.1f}",
        f"{100 * claim.accuracy.value:.1f} ({escaped(_interval(claim.accuracy))})",
    ]
    return " & ".join(cells) + r" \\"


def bibtex(summary: Summary) -> str:
    """An entry for the software that made the numbers."""
    version = summary.header["versions"].get("depura", "unknown")
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
