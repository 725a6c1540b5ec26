"""The sections of the report of a complete run, in order; markdown.py and page.py write them."""

from __future__ import annotations

from typing import NamedTuple

from depura.analysis.summary import Summary
from depura.reports import tables
from depura.reports.prose import error_sentence
from depura.reports.table import Table

LONG = 24
"""Rows from which on a table of the page, or its figures, are folded."""


class Section(NamedTuple):
    """One section.

    Attributes:
        title: its heading, by which figures.py knows its figures.
        table: its numbers.
        group: on the page, the heading above this and the next sections.
        introduction: on the page, a paragraph above the table.
        text: a paragraph below the table in Markdown, above it on the page.
        missing: in Markdown, what stands in an empty table's place; empty: the section is left out then.
        folded: on the page, whether the table is folded; None: if it has more than `LONG` rows.
    """

    title: str
    table: Table
    group: str = ""
    introduction: str = ""
    text: str = ""
    missing: str = ""
    folded: bool | None = None


def sections(summary: Summary) -> tuple[Section, ...]:
    """The sections of a complete run that have something to show, in the order of the report."""
    ranking, rates, curve = summary.ranking, summary.details.error_rates, summary.header.curve
    under = "" if ranking is None else " under the strongest attack for each image"
    every = (
        *([] if ranking is None else [Section("Ranking", tables.ranking_table(summary, ranking), folded=False)]),
        Section(
            "Attack suite",
            tables.suite_table(summary),
            introduction="From blind attacks to those that know most. One that knows more and leaves clearly more is a "
            "broken or a starved attack.",
            folded=True,
        ),
        Section(
            "Rows",
            tables.attack_table(summary),
            introduction='"null": the same defence without an attack, on as many draws; "random corner": under random '
            "perturbations of the same size, chosen as an attack's candidates are. Numbers in square brackets are the "
            "null of the same metric. Intervals: 95 %, over images. NFE: evaluations of the denoiser, forward and "
            "backward, of attack and scores.",
            folded=False,
        ),
        Section("Published", tables.published_table(summary)),
        Section(
            "Errors image by image",
            tables.error_rate_table(summary),
            text=error_sentence(rates[0]) if ranking is None and rates else "",
        ),
        Section("While the attacks searched", tables.search_table(summary), group="Errors image by image"),
        Section("Without gradients", tables.indicator_table(summary), group="Errors image by image"),
        Section(
            "More budget",
            tables.budget_table(summary),
            group="Convergence",
            introduction="" if summary.details.budgets else "No row tries more steps, more draws or more restarts.",
            missing="Not run.",
        ),
        Section("Loss", tables.loss_table(summary), group="Convergence", folded=True),
        Section(
            "Accuracy against eps",
            tables.curve_table(summary),
            group="Convergence",
            introduction=f"Accuracy of one draw{under}, in %, on the first {curve.images} images.",
        ),
        Section("Checks", tables.check_table(summary)),
        Section("Gradient tests", tables.audit_table(summary)),
        Section("Gradients", tables.gradient_table(summary)),
        Section("Price of a prediction", tables.price_table(summary), group="Cost"),
        Section("Adversarial examples and their cost", tables.example_table(summary), group="Cost"),
    )
    return tuple(section for section in every if section.table.cells or section.missing)
