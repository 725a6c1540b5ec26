"""Tables and figures of docs/performance.md from the JSON of benchmarks.speed: `python -m benchmarks.speed_page FILE`.

Writes one figure per section as docs/figures/speed-SECTION.svg, and the tables between the two marks of the page. Of
several files, made on one machine with equal settings, the last that has a section is taken for it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TITLES = {
    "overhead": "Overhead over the bare network",
    "profile": "Where the time of a purification goes",
    "precision": "Precision and compilation",
    "anchors": "Beside other code on the same weights",
    "gradients": "Routes of the gradient",
    "noise": "Noise",
    "draws": "Many draws in one batch",
    "attack": "Attacks",
    "memory": "Memory",
    "gpu": "On a GPU",
}


def sections(told: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows by section, in the order of the page."""
    return {s: found for s in TITLES if (found := [row for row in told["rows"] if row["section"] == s])}


def machine_line(told: dict[str, Any]) -> str:
    """Machine and settings in a sentence."""
    m, s = told["machine"], told["settings"]
    gpu = f", {m['gpu']}" if "gpu" in m else ""
    return (
        f"{m['processor']} ({m['cores']} cores, {m['threads']} threads, {m['instructions']}){gpu}, torch {m['torch']}; "
        f"{s['parameters']:,} parameters, batch {s['batch']}, S = {s['steps']}, medians of {s['repeats']} rounds."
    )


def sized(what: str, value: float, unit: str) -> str:
    """What was measured, with its size where that says something on another machine: a time does not."""
    if unit == "s":
        return what
    return f"{what}: {value / 2**20:,.0f} MiB" if unit == "bytes" else f"{what}: {value:,.4g} {unit}"


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = ["| what | over | ratio | deviation | note |", "|---|---|---|---|---|"]
    for row in rows:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2g}"
        far = "" if row["deviation"] is None else f"{row['deviation']:.2g} ({row['deviation_of']})".replace("|", "\\|")
        what = sized(row["name"], row["value"], row["unit"])
        than = sized(row["than"], row["against"], row["unit"])
        ratio = f"{row['ratio']:.3g}{spread}"
        lines.append(f"| {what} | {than} | {ratio} | {far} | {row['note']} |")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Ratios as bars; a line at 1."""
    names = [f"{row['name']}\nover {row['than']}" for row in rows][::-1]
    ratios, spreads = [row["ratio"] for row in rows][::-1], [row["spread"] or 0 for row in rows][::-1]
    mpl.rcParams |= {"svg.hashsalt": "depura", "svg.fonttype": "none"}  # equal numbers give equal files; text is text
    drawn, axes = plt.subplots(figsize=(8, 0.8 + 0.5 * len(rows)), layout="constrained")
    bars = axes.barh(range(len(rows)), ratios, xerr=spreads, color="#4477aa", ecolor="#333333")
    axes.bar_label(bars, [f"{ratio:.3g}" for ratio in ratios], padding=4, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_xlabel("ratio")
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.12)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(file, metadata={"Date": None})
    plt.close(drawn)


def measured(told: dict[str, Any], figures: Path) -> str:
    """What stands between the marks; figures are drawn on the way."""
    parts = [machine_line(told)]
    for name, rows in sections(told).items():
        file = figures / f"speed-{name}.svg"
        figure(rows, TITLES[name], file)
        parts.append(f"## {TITLES[name]}\n\n![{TITLES[name]}](figures/{file.name})\n\n{table(rows)}")
    return "\n\n".join(parts)


def main(words: list[str] | None = None) -> None:
    """Draw, and write the tables into the page."""
    parser = argparse.ArgumentParser(description="Tables and figures from the JSON of benchmarks.speed.")
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args(words)
    page: Path = options.page
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        parser.error(f"{page} must have the lines {BEGIN} and {END}, between which the tables go")
    files = [json.loads(file.read_text(encoding="utf-8")) for file in options.json]
    if any(machine_line(told) != machine_line(files[0]) for told in files):
        parser.error("expected runs of one machine with equal settings, got others: measure again")
    rows = {name: found for told in files for name, found in sections(told).items()}
    text = measured(files[0] | {"rows": [row for found in rows.values() for row in found]}, page.parent / "figures")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
