"""The page docs/results.md, from records alone:

    python -m experiments.results

Records are those that `depura publish` makes of runs of studies/cifar10.py. Every number of the page is computed from
them, also those in its sentences; the classifier's size is counted on its network, published figures are those of the
studies in studies/published/.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from depura import InputError
from depura.analysis.ranking import LeaderboardEntry, Ranking
from depura.analysis.results import n_draws
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Status, grouped
from depura.analysis.words import count, percent, radius_text, share
from depura.evaluation.study_file import StudySource
from depura.models.networks.resnet import CifarResNet
from depura.records.directory import RunDirectory
from depura.records.kinds import AttackKind
from depura.reports import tables
from depura.reports.prose import limits
from depura.reports.table import Table, markdown

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "records"
RECORDS = (
    "cifar10-few",
    "cifar10-transfer",
    "cifar10-methods-linf",
    "cifar10-methods-l2",
    "cifar10-depths",
    "cifar10-steps",
)
"""The records of the page, in its order."""
PUBLISHED = {
    "diffpure": ("diffpure", "cifar10-linf-wrn28", "cifar10-l2-wrn28"),
    "mimic": ("mimicdiffusion", "cifar10"),
    "agdm": ("agdm", "cifar10-linf", "cifar10-l2"),
    "gdmp": ("gdmp", "cifar10"),
    "gradual": ("gradual", "cifar10-linf", "cifar10-l2"),
}
"""Study and rows, by method."""

INTRO = """# CIFAR-10

Written by `python -m experiments.results` from the records in [records/](../records); nothing here was typed in by
hand.

The classifier is a published ResNet-20 ({weights:,} weights, Y. Idelbayev's) that nobody here trained. The
[denoiser](../weights/cifar10-small.md) and the [adversarially trained network](../weights/cifar10-guide.md) are small
and were trained on a processor, purifiers have few steps, and the images are the first of CIFAR-10's test
images: **read it as methods under equal conditions, not as what they reach with large networks.** Every accuracy under
attack is an upper bound. These records were made before depura ran an attack of its own beside a study's rows: most
methods have nothing beside their adaptive attack that says whether it is strong, and are called unchecked. All that
noise the input noise it to one t*, and AGDM has one strength (its own is not public); `python -m
experiments.cifar10_choices` shows how both were chosen, on training images. The commands expect the data and the
classifier where [records/](../records/README.md) says.
"""
CURVES = {"depths": ("depth t*", "t*"), "steps": ("number of steps", "S")}
"""Tables of the study that are curves: over what, in words and as a symbol."""

UNTESTED = """Beyond what each record lists: large denoisers and WideResNets (studies for their published files are in
[studies/published](published-rows.md)); purifiers of a hundred steps; more than the first
images of the test set under adaptive attacks; AutoAttack as a whole on every method; a vote attacked as a vote; under
l2 the methods that its table lacks; CIFAR-100 and ImageNet.
"""


class Record(NamedTuple):
    """A record and what it says.

    Attributes:
        path: of its folder.
        summary: of the run.
    """

    path: Path
    summary: Summary

    @property
    def name(self) -> str:
        """Of the study."""
        return self.summary.header.name

    @property
    def table(self) -> str:
        """Of the study: studies are named cifar10-TABLE-THREAT."""
        return self.name.split("-")[1]

    @property
    def ball(self) -> str:
        """The threat model."""
        threat = self.summary.header.threat_model
        return _threat(threat.norm, threat.eps)


def page(records: Sequence[Record]) -> str:
    """The page.

    Args:
        records: complete ones.

    Returns:
        Markdown.
    """
    alone = [record for record in records if record.table in ("few", "transfer")]
    compared = [record for record in records if record.table == "methods"]
    curves = [record for record in records if record.table in CURVES]
    out = [INTRO.format(weights=sum(p.numel() for p in CifarResNet().parameters()))]
    for record in alone:
        what = "the blind attack alone" if record.table == "transfer" else "a suite of attacks"
        out += [f"## Few-step DiffPure under {what}, {record.ball}", "", *_alone(record)]
    for record in compared:
        out += [f"## All methods, {record.ball}", "", *_compared(record)]
    out += ["## Published figures", "", *_published()]
    for record in curves:
        out += [f"## Few-step DiffPure by {CURVES[record.table][0]}, {record.ball}", "", *_curve(record)]
    surprises = [text for record in records for text in _surprises(record)]
    out += ["## What surprised", "", *(f"- {text}" for text in surprises), ""]
    out += ["## What was not tested", "", UNTESTED]
    for record in records:
        out += [f"- {_title(record)}: {' '.join(limits(record.summary))}"]
    out += ["", "## Records", "", *_records(records)]
    return "\n".join(out)


def _threat(norm: str, eps: float) -> str:
    return f"{norm} {radius_text(eps)}"


def _title(record: Record) -> str:
    return f"[{record.path.name}](../records/{record.path.name}/report.md)"


def _head(record: Record) -> list[str]:
    """The headline, the command, what was warned of."""
    summary = record.summary
    n = len(summary.header.data.ids)
    flags = f" Flags: {', '.join(map(str, summary.flags))}." if summary.flags else ""
    counted = tables.check_counts(summary)
    return [
        f"> {'⚠ ' if summary.refused else ''}{summary.headline}",
        "",
        f"{n} images, {summary.header.draws.report} report draws. Checks: {counted}{flags} {_title(record)} has "
        "all of it; it was made by",
        "",
        f"    {summary.header.command}",
        "",
    ]


def _alone(record: Record) -> list[str]:
    summary = record.summary
    verdicts = [v for v in summary.verdicts if v.status in (Status.WARN, Status.FAIL) or v.id == "V13"]
    return [
        *_head(record),
        *markdown(tables.suite_table(summary)),
        *markdown(tables.attack_table(summary).without("random corner", "NFE per image")),
        *(f"- {v.id} {v.name}, {v.status.value}: {v.sentence}" for v in verdicts),
        *([""] if verdicts else []),
    ]


def _compared(record: Record) -> list[str]:
    ranking = record.summary.ranking
    assert ranking is not None
    return [
        *_head(record),
        *markdown(tables.ranking_table(record.summary, ranking)),
        *_warned(record),
        *_others(record),
        *_votes(record, ranking),
    ]


def _warned(record: Record) -> list[str]:
    """What the checks warn of, those of one kind together."""
    groups = grouped(record.summary.verdicts, Status.WARN, Status.FAIL)
    return [*(f"- {group.status.value} {group.text}" for group in groups), *([""] if groups else [])]


def _others(record: Record) -> list[str]:
    """Rows that the ranking has no column for; nothing where there are none."""
    lines = [line for line in record.summary.lines if line.kind in (AttackKind.SURROGATE, AttackKind.BLACK_BOX)]
    rows = tuple((line.method, line.title, percent(line.metrics.single), f"{line.images}") for line in lines)
    return markdown(Table(("method", "what else was tried", "one draw (95 % CI)", "images"), rows)) if rows else []


def _votes(record: Record, ranking: Ranking) -> list[str]:
    """The strongest attack for each image under one draw, a majority of draws and repeated submission."""
    n_any, n_vote = n_draws(record.summary.header.draws.report)
    rows = tuple(
        (
            entry.method,
            percent(entry.strongest.single),
            percent(entry.strongest.vote),
            percent(entry.strongest.any),
        )
        for entry in ranking.all
    )
    return [
        "Under the strongest attack for each image:",
        "",
        *markdown(Table(("method", "one draw", f"vote of {n_vote}", f"any of {n_any}"), rows)),
        "The attacks were not made against the vote: that column is a looser bound than the others.",
        "",
    ]


def _curve(record: Record) -> list[str]:
    """Methods in the study's order: points of a curve."""
    ranking = record.summary.ranking
    assert ranking is not None
    by_name = {s.method: s for s in ranking.all}
    kinds = (AttackKind.TRANSFER, AttackKind.BPDA, AttackKind.ADAPTIVE)
    rows = []
    for method in record.summary.header.methods:
        s = by_name[method.name]
        under = [percent(s.kinds[kind]) if kind in s.kinds else "–" for kind in kinds]
        rows.append((_point(s.method), count(s.nfe), percent(s.clean), *under, percent(s.strongest.single)))
    heads = (CURVES[record.table][1], "NFE", "clean", "transfer", "BPDA", "exact", "strongest")
    return [*_head(record), *markdown(Table(heads, tuple(rows))), *_warned(record)]


def _point(name: str) -> str:
    """A point by its name in the study: t50 is t* = 0.05, s5 is five steps."""
    return f"{float(name[1:]) / 1000:g}" if name.startswith("t") else name[1:]


def _published() -> list[str]:
    rows: list[tuple[str, ...]] = []
    for method, (file, *names) in PUBLISHED.items():
        for name in names:
            study = StudySource(ROOT / "studies" / "published" / f"{file}.py", (("row", name),)).load()
            for p in study.published:
                values = ["–" if value is None else f"{value:g}" for value in (p.clean, p.robust)]
                threat = _threat(str(study.ball.norm), study.ball.eps)
                rows.append((method, threat, *values, p.attack, p.source, p.note))
    return [
        "**Others' settings**: large denoisers, WideResNets, hundreds of images, attacks of their own, most judged "
        "by one purification. They are here to be remembered, not to be compared with the tables above.",
        "",
        *markdown(Table(("method", "threat", "clean", "robust", "attack", "source", "note"), tuple(rows))),
    ]


def _surprises(record: Record) -> list[str]:
    """Sentences about what stands out, by rules; nothing where nothing does."""
    ranking = record.summary.ranking
    if ranking is None:
        return _of_one(record)
    return _of_methods(record, ranking) if record.table == "methods" else _of_points(record, ranking)


def _of_one(record: Record) -> list[str]:
    """How far cheaper attacks are from the exact one."""
    under = {line.kind: share(line.metrics.single) for line in record.summary.lines}
    if not {"transfer", "bpda", "adaptive"} <= set(under):
        return []
    return [
        f"{record.ball}: few-step DiffPure keeps {under['transfer']} % under examples made against the bare classifier "
        f"and {under['bpda']} % under BPDA; through its exact gradient {under['adaptive']} % are left."
    ]


def _of_points(record: Record, ranking: Ranking) -> list[str]:
    """Where on a curve blind attacks and the strongest ones are held best."""
    symbol = CURVES[record.table][1]
    known = [s for s in ranking.all if "transfer" in s.kinds]
    blind = max(known, key=lambda s: s.kinds["transfer"].value)
    best = max(known, key=lambda s: s.strongest.single.value)
    return [
        f"{record.ball}: transferred examples are held best at {symbol} = {_point(blind.method)} "
        f"({share(blind.kinds['transfer'])} %), the strongest attack leaves most at {symbol} = {_point(best.method)} "
        f"({percent(best.strongest.single)})."
    ]


def _of_methods(record: Record, ranking: Ranking) -> list[str]:
    """What a comparison shows."""
    where, surprises = record.ball, list[str]()
    blind = [(s.kinds["transfer"].value - s.strongest.single.value, s) for s in ranking.others if "transfer" in s.kinds]
    if blind:
        fall, s = max(blind, key=lambda pair: pair[0])
        surprises.append(
            f"{where}: the blind attack flatters {s.method} most: {share(s.kinds['transfer'])} % under transferred "
            f"examples, {share(s.strongest.single)} % under the strongest attack ({100 * fall:.1f} points)."
        )
    masked = [s for s in ranking.all if s.masked]
    if masked:
        falls = ", ".join(
            f"{s.method} {share(s.kinds['adaptive'])} → {share(s.strongest.single)} %"
            for s in masked
            if "adaptive" in s.kinds
        )
        surprises.append(f"{where}: an exact gradient that is zero looks like robustness (exact → strongest): {falls}.")
    ahead = [s for s in ranking.others if ranking.baseline is not None and _above(s, ranking.baseline)]
    if ranking.baseline is not None:
        of = f"{len(ahead)} of {len(ranking.others)} purifications are" if ahead else "no purification is"
        surprises.append(
            f"{where}: {of} above the baseline {ranking.baseline.method} "
            f"({percent(ranking.baseline.strongest.single)}), by the estimate alone; the table has the tests."
        )
    worn = max(ranking.others, key=lambda s: s.strongest.single.value - s.strongest.any.value)
    surprises.append(
        f"{where}: repeated submission wears {worn.method} down most: {share(worn.strongest.single)} % of one draw, "
        f"{share(worn.strongest.any)} % of several in a row."
    )
    return surprises


def _above(a: LeaderboardEntry, b: LeaderboardEntry) -> bool:
    return a.strongest.single.value > b.strongest.single.value


def _records(records: Sequence[Record]) -> list[str]:
    rows = []
    for record in records:
        files = sorted(record.path.rglob("*.npz"))
        digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
        size = sum(file.stat().st_size for file in record.path.rglob("*") if file.is_file())
        rows.append((_title(record), f"{len(files)}", f"{size / 1e6:.1f} MB", f"`{digest[:16]}`"))
    return [
        "Without images: of each example, how its bits differ from the image's (`depura publish`). With CIFAR-10's "
        "test images at hand, `depura verify records/NAME --study studies/cifar10.py` checks them. The digest is of "
        "all units.",
        "",
        *markdown(Table(("record", "units", "size", "sha256"), tuple(rows))),
    ]


def read(paths: Iterable[Path]) -> list[Record]:
    """Records of finished runs.

    Args:
        paths: their folders.

    Returns:
        The records.

    Raises:
        InputError: one that is not complete.
    """
    records = [Record(path, summarise(RunDirectory.open(path))) for path in paths]
    for record in records:
        if not record.summary.complete:
            raise InputError(
                f"results: expected complete records, got {record.path}. Finish the run, publish it again."
            )
    return records


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="*", default=[FOLDER / name for name in RECORDS])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    given = parser.parse_args()
    given.out.write_text(page(read(given.records)), encoding="utf-8")


if __name__ == "__main__":
    main()
