"""A table of a report as a value, written for a terminal or in Markdown here and in HTML by page.html.j2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

STYLES = {"strongest": "bold", "baseline": "italic"}
"""Styles of rows in a terminal; the page has classes of the same names."""


class Forms(NamedTuple):
    """A text that is shorter in a terminal.

    Attributes:
        long: in Markdown and on the page.
        short: in a terminal.
    """

    long: str
    short: str


Cell = str | Forms


def _long(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.long


def _short(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.short


@dataclass(frozen=True)
class Table:
    """A table and what its columns mean.

    Attributes:
        columns: headings.
        cells: one tuple per row, one cell per column.
        notes: paragraphs on what the columns mean.
        remarks: paragraphs on single rows.
        align: one letter per column: l or r as in LaTeX; e: it explains the column before, which the page prints in one
            cell and a terminal below the table; -: a terminal leaves it out. Empty: l for all.
        styles: of rows, by their numbers; names of `STYLES`.
        breaks: numbers of the rows after which a terminal draws a line.
        legend: what names of rows mean, printed below the table in a terminal.
    """

    columns: tuple[Cell, ...]
    cells: tuple[tuple[Cell, ...], ...]
    notes: tuple[Cell, ...] = ()
    remarks: tuple[str, ...] = ()
    align: str = ""
    styles: Mapping[int, str] = field(default_factory=dict[int, str])
    breaks: tuple[int, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the columns in their long form."""
        return tuple(map(_long, self.columns))

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """All cells in their long form."""
        return tuple(tuple(map(_long, row)) for row in self.cells)

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """The notes in their long form."""
        return tuple(map(_long, self.notes))

    def without(self, *headings: str) -> Table:
        """The table without some columns, by their headings."""
        kept = [k for k, heading in enumerate(self.headings) if heading not in headings]
        return replace(
            self,
            columns=tuple(self.columns[k] for k in kept),
            cells=tuple(tuple(row[k] for k in kept) for row in self.cells),
            align="".join(self.align[k] for k in kept) if self.align else "",
        )


def terminal(table: Table, *, wrap: bool = True, tight: bool = False) -> Group:
    """What rich prints for a table in a terminal, with legend, remarks and notes below it.

    Cells that are too wide are broken into lines, or cut without `wrap`. A `tight` table has no space around cells, and
    breaks them between words only.
    """
    align = table.align or "l" * len(table.columns)
    shown = [k for k, letter in enumerate(align) if letter in "lr"]
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=0 if tight else (0, 1))
    for k in shown:
        words = " ".join(_short(row[k]) for row in (table.columns, *table.cells)).split()
        grid.add_column(
            _short(table.columns[k]),
            justify="right" if align[k] == "r" else "left",
            no_wrap=not wrap,
            overflow="fold" if wrap else "ellipsis",
            min_width=max(map(len, words), default=0) if tight else None,
        )
    for number, row in enumerate(table.cells):
        grid.add_row(*(Text(_short(row[k])) for k in shown), style=STYLES.get(table.styles.get(number, ""), ""))
        if number in table.breaks:
            grid.add_section()
    legend = RichTable.grid(padding=(0, 2))
    for name, meaning in table.legend:
        legend.add_row(Text(name, style="dim"), Text(meaning, style="dim"))
    below: list[RenderableType] = [legend] if table.legend else []
    below += [Text(_short(text), style="dim") for text in (*table.remarks, *table.notes)]
    return Group(grid, *below)


def markdown(table: Table) -> list[str]:
    """The table in Markdown, line by line, with notes and remarks below it."""
    escapes = str.maketrans({"|": "\\|", "*": "\\*"})
    lines = ["| " + " | ".join(table.headings) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(cell.translate(escapes) for cell in row) + " |" for row in table.rows]
    for paragraph in table.paragraphs:
        lines += ["", paragraph]
    lines += ["", *(f"- {remark.translate(escapes)}" for remark in table.remarks)] if table.remarks else []
    return [*lines, ""]
