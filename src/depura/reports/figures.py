"""Figures of a report: the accuracy-against-eps curve as SVG, and frames of pictures as PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from depura.reports.summary import Point, Summary

COLOURS = {"undefended": "#888888", "transfer": "#e69f00", "adaptive": "#d55e00", "bpda": "#0072b2", "null": "#009e73"}
"""Okabe and Ito's colours, distinguishable for the colour blind; other rows take matplotlib's cycle."""


def curve_svg(summary: Summary) -> str | None:
    """Accuracy of one draw against eps, with intervals, and the null baseline.

    Args:
        summary: of a complete run.

    Returns:
        An <svg> element, equal text for equal summaries; None where matplotlib (the extra "report") is not installed.
    """
    try:
        import matplotlib  # noqa: PLC0415 (an optional extra)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return None
    settings: Any = {"svg.hashsalt": "depura", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes: Any = figure.subplots()
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
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw(axes: Any, name: str, points: tuple[Point, ...]) -> None:
    eps = [p.eps for p in points]
    middle = np.array([100 * p.accuracy.value for p in points])
    low = middle - np.array([100 * p.accuracy.low for p in points])
    high = np.array([100 * p.accuracy.high for p in points]) - middle
    spread = np.maximum(np.stack([low, high]), 0)
    axes.errorbar(eps, middle, yerr=spread, marker="o", markersize=4, capsize=3, color=COLOURS.get(name), label=name)


def png(frame: NDArray[np.uint8]) -> bytes:
    """A frame (C, H, W) uint8, C being 1 or 3, as PNG."""
    picture = Image.fromarray(frame[0] if len(frame) == 1 else np.ascontiguousarray(np.moveaxis(frame, 0, 2)))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def data_uri(frame: NDArray[np.uint8]) -> str:
    """A frame as a data: address, to be put into a page."""
    return "data:image/png;base64," + base64.b64encode(png(frame)).decode()
