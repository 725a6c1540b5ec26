"""Figures of a report: the accuracy-against-eps curve and the ranking as SVG, and frames of pictures as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depura.evaluation.statistics import Estimate
from depura.judging.ranking import Ranking
from depura.judging.summary import Point, Summary

COLOURS = {"undefended": "#888888", "transfer": "#e69f00", "adaptive": "#d55e00", "bpda": "#0072b2", "null": "#009e73"}
"""Okabe and Ito's colours, distinguishable for the colour blind; other rows take matplotlib's cycle."""


def curve_svg(summary: Summary) -> str | None:
    """Accuracy of one draw against eps, with intervals, and the null baseline.

    Args:
        summary: of a complete run.

    Returns:
        An <svg> element, equal text for equal summaries; None where matplotlib (the extra "report") is not installed.
    """

    def draw(axes: Any) -> None:
        for name, points in summary.curve.items():
            if name != "null":
                _draw(axes, name, points)
        for point in summary.curve.get("null", ()):
            accuracy = 100 * point.accuracy.value
            axes.axhline(accuracy, color=COLOURS["null"], linestyle=":", label="purified, no attack")
        axes.set_xlabel(f"eps ({summary.header['threat_model']['norm']})")
        axes.set_ylabel("accuracy of one draw, %")
        axes.set_ylim(-3, 103)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.legend(loc="upper right", fontsize=8)

    return _svg(draw, (6.4, 3.6))


def ranking_svg(ranking: Ranking) -> str | None:
    """Accuracy of each method without an attack and under the strongest one for each image, with intervals.

    Args:
        ranking: of the methods.

    Returns:
        As `curve_svg`.
    """
    standings = ranking.standings

    def draw(axes: Any) -> None:
        heights = range(len(standings))
        for label, colour, offset, estimates in (
            ("no attack", COLOURS["null"], -0.14, [s.clean for s in standings]),
            ("strongest attack for each image", COLOURS["adaptive"], 0.14, [s.strongest.single for s in standings]),
        ):
            middle, spread = _with_spread(estimates)
            places = [height + offset for height in heights]
            axes.errorbar(
                middle,
                places,
                xerr=spread,
                linestyle="",
                marker="o",
                markersize=4,
                capsize=3,
                color=colour,
                label=label,
            )
        names = [f"{s.method} (baseline)" if s.baseline else s.method for s in standings]
        axes.set_yticks(list(heights), names)
        axes.invert_yaxis()
        axes.set_xlabel("accuracy of one draw, %")
        axes.set_xlim(-3, 103)
        axes.grid(axis="x", alpha=0.25)
        axes.figure.legend(loc="outside upper left", ncols=2, fontsize=8)

    return _svg(draw, (6.4, 1.2 + 0.36 * len(standings)))


def _svg(draw: Callable[[Any], None], size: tuple[float, float]) -> str | None:
    """A figure of one pair of axes as an <svg> element; None without matplotlib."""
    try:
        import matplotlib  # noqa: PLC0415 (an optional extra)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return None
    settings: Any = {"svg.hashsalt": "depura", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw(axes: Any, name: str, points: tuple[Point, ...]) -> None:
    eps = [p.eps for p in points]
    middle, spread = _with_spread([p.accuracy for p in points])
    axes.errorbar(eps, middle, yerr=spread, marker="o", markersize=4, capsize=3, color=COLOURS.get(name), label=name)


def _with_spread(estimates: Sequence[Estimate]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracies in %, (n,), and how far their intervals reach below and above, (2, n)."""
    middle = np.array([100 * e.value for e in estimates])
    low = middle - np.array([100 * e.low for e in estimates])
    high = np.array([100 * e.high for e in estimates]) - middle
    return middle, np.maximum(np.stack([low, high]), 0)


def png(frame: NDArray[np.uint8]) -> bytes:
    """A frame (C, H, W) uint8, C being 1 or 3, as PNG."""
    picture = Image.fromarray(frame[0] if len(frame) == 1 else np.ascontiguousarray(np.moveaxis(frame, 0, 2)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def data_uri(frame: NDArray[np.uint8]) -> str:
    """A frame as a data: address, to be put into a page."""
    return "data:image/png;base64," + base64.b64encode(png(frame)).decode()
