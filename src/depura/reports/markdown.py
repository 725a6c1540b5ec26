"""The report in Markdown: what the page says, without its figures."""

from __future__ import annotations

from depura.analysis.summary import Summary
from depura.reports import prose, table, tables
from depura.reports.sections import sections


def markdown(summary: Summary) -> str:
    """The report of a run, complete or not, in Markdown; equal summaries give equal texts."""
    header = summary.header
    lines = [f"# {header.name}", "", f"**{'⚠ ' if summary.refused else ''}{summary.headline}**", ""]
    if summary.complete:
        lines += [f"Flags: {', '.join(map(str, summary.flags))}.", ""] if summary.flags else []
        lines += [prose.conditions(summary), ""]
        lines += ["## Warnings", "", *(f"- {w}" for w in summary.warnings), ""] if summary.warnings else []
    else:
        lines += ["## So far", "", *table.markdown(tables.progress_table(summary.progress))]
    lines += ["## Threat model", "", *(f"- {name}: {value}" for name, value in prose.threat_model(summary)), ""]
    if summary.complete:
        for section in sections(summary):
            lines += [f"## {section.title}", ""]
            lines += table.markdown(section.table) if section.table.cells else [section.missing, ""]
            lines += [section.text, ""] if section.text else []
        if summary.pictures:
            lines += ["## Image gallery", "", *table.markdown(tables.gallery_table(summary))]
    lines += ["## Repeat it", "", f"    {header.command}", ""]
    if summary.complete:
        lines += ["## Limits", "", " ".join(prose.limits(summary)), ""]
    lines += ["## Versions", "", *(f"- {name} {version}" for name, version in prose.versions(summary)), ""]
    return "\n".join(lines)
