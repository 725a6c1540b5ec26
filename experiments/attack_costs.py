"""Accuracy beside cost of every attack of a run, as the table of docs/attacks.md.

python -m experiments.attack_costs RUN-DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

from depura.analysis.summary import Line, summarise
from depura.analysis.words import percent
from depura.records.directory import RunDirectory

HEADINGS = ("attack", "gradient", "gradients", "forwards", "network evaluations", "one draw", "null")


def cells(line: Line, images: int, scoring: int) -> tuple[str, ...]:
    """One line: what an image costs the attacker, and what is left of the defence."""
    forward, backward = line.evaluations
    return (
        line.title.removeprefix("purified; "),
        str(line.mode),
        f"{line.examples.gradients:,.0f}",
        f"{line.examples.forwards:,.0f}",
        f"{(forward + backward) / images - scoring:,.0f}",
        percent(line.metrics.single),
        f"{100 * line.null.single.value:.1f} %",
    )


def main() -> None:
    """Print the table, the strongest attack last."""
    directory = RunDirectory.open(Path(sys.argv[1]))
    summary = summarise(directory)
    assert summary.complete, summary.headline
    units = list(directory.units())
    images = len(summary.header.data.ids)
    scored = {
        line.name: sum(u.facts.evaluations["score"][0] for u in units if u.facts.row == line.name) // images
        for line in summary.lines
    }
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for line in sorted(summary.lines, key=lambda line: -line.metrics.single.value):
        print("| " + " | ".join(cells(line, images, scored[line.name])) + " |")
    print(f"\n{summary.headline}")


if __name__ == "__main__":
    main()
