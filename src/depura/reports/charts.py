"""Charts as SVG that takes its colours from the page it stands in, so that it can be read in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depura.statistics.intervals import Proportion

WIDTH = 4.8
"""Inches: about as wide as a phone shows it, so that letters keep their size there."""

COLOURS = {
    "blue": "#0072b2",
    "sky": "#56b4e9",
    "green": "#009e73",
    "yellow": "#d4aa00",
    "orange": "#e69f00",
    "red": "#d55e00",
    "pink": "#cc79a7",
    "grey": "#888888",
}
"""Okabe and Ito's colours, distinguishable for the colour blind. A page may say others, as --chart-NAME."""

INK = "#010203"
"""Letters and axes; it becomes the colour of the text around the chart."""


def svg(name: str, draw: Callable[[Any], None], *, height: float, width: float = WIDTH) -> str | None:
    """A chart of one pair of axes.

    Args:
        name: of the chart, distinct within a page; its ids begin with it.
        draw: called with the matplotlib axes to draw on.
        height: in inches.
        width: in inches.

    Returns:
        An <svg> element, equal text for equal charts; None where matplotlib (the extra "report") is not installed.
    """
    try:
        import matplotlib  # noqa: PLC0415 (an optional extra)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return None
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    settings: Any = {
        "svg.hashsalt": "depura",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.prop_cycle": f"cycler('color', {list(COLOURS.values())})",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        **dict.fromkeys(inked, INK),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(buffer.getvalue(), name)


def error_bars(accuracies: Sequence[Proportion]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracies in %, (n,), and how far their intervals reach below and above, (2, n)."""
    middle = np.array([100 * e.value for e in accuracies])
    low = middle - np.array([100 * e.low for e in accuracies])
    high = np.array([100 * e.high for e in accuracies]) - middle
    return middle, np.maximum(np.stack([low, high]), 0)


def _embedded(text: str, name: str) -> str:
    """A file of its own made part of a page: ids that no other chart has, and the page's letters and colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ((?:\w+ )*[\d.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", text)
    text = text.replace(INK, "currentColor")
    for colour, code in COLOURS.items():
        text = text.replace(code, f"var(--chart-{colour}, {code})")
    return text.replace("<svg ", '<svg aria-hidden="true" stroke-linejoin="round" ', 1)
