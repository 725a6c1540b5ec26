"""A comparison of two runs for the terminal."""

from __future__ import annotations

import math

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from depura.analysis.comparison import STRONGEST, Comparison, Pair


def terminal(found: Comparison, *, names: tuple[str, str]) -> Group:
    """The comparison for a terminal of 80 columns.

    Args:
        found: the comparison.
        names: what the reader calls the two runs, such as their folders.

    Returns:
        The table, and what it means.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("row", "A", "B", "A - B (95 % CI)", "p", "would be seen"):
        table.add_column(heading, justify="left" if heading == "row" else "right")
    several = len({pair.methods for pair in found.pairs}) > 1
    for k, pair in enumerate(found.pairs):
        if k and pair.methods != found.pairs[k - 1].methods:
            table.add_section()
        low, high = (f"{100 * end:+.1f}" for end in pair.difference[1:3])
        table.add_row(
            f"{pair.methods[0]} {pair.row}" if several else pair.row,
            f"{100 * pair.first.value:.1f}",
            f"{100 * pair.second.value:.1f}",
            f"{'' if pair.difference.detectable else '≈ '}{100 * pair.difference.value:+.1f} ({low} to {high})",
            "<0.001" if pair.difference.p < 0.001 else f"{pair.difference.p:.3f}",
            "–" if math.isnan(pair.gap) else f"{100 * pair.gap:.1f}",
            style="bold" if pair.row == STRONGEST else "",
        )
    n, tests = max(pair.images for pair in found.pairs), len(found.pairs)
    meaning = (
        f"Accuracy of one draw in %, {n} images, compared image by image; differences in points. p of the paired test,"
        f" corrected by Holm's method for {tests} comparisons; intervals are not corrected. ≈: no detectable "
        "difference. would be seen: the smallest true difference that would have been found with a chance of 80 % "
        "(normal approximation, all tests at once)."
    )
    heads = [Text(f"{letter}  {name}") for letter, name in zip("AB", names, strict=True)]
    return Group(*heads, table, Text(meaning, style="dim"))


def sentences(found: Comparison) -> tuple[str, ...]:
    """What was found of the strongest attack for each image, a sentence for each pair of methods."""
    return tuple(_sentence(pair) for pair in found.pairs if pair.row == STRONGEST)


def _sentence(pair: Pair) -> str:
    left, right = (f"{run} ({name})" if name else run for run, name in zip("AB", pair.methods, strict=True))
    d = pair.difference
    interval = f"95 % CI {100 * d.low:+.1f} to {100 * d.high:+.1f} points, corrected {_p(d.p)}"
    if d.detectable:
        better, worse = (left, right) if d.value > 0 else (right, left)
        return (
            f"Under the strongest attack for each image {better} keeps {100 * abs(d.value):.1f} points more accuracy "
            f"than {worse} (A - B: {interval})."
        )
    seen = "" if math.isnan(pair.gap) else f" Only one of about {100 * pair.gap:.0f} points would have been seen."
    return (
        f"No detectable difference between {left} and {right} under the strongest attack for each image "
        f"(A - B: {100 * d.value:+.1f}, {interval}).{seen}"
    )


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"
