"""The tables of a report and of a comparison of two runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from depura.analysis.comparison import STRONGEST, Comparison
from depura.analysis.progress import Progress
from depura.analysis.ranking import LeaderboardEntry, Ranking
from depura.analysis.results import Metrics, n_draws
from depura.analysis.summary import Line, Summary
from depura.analysis.verdicts import Status, VerdictGroup, grouped
from depura.analysis.words import count, p_value, percent, share
from depura.records.kinds import AttackKind, GradientMode
from depura.records.schema import Judged
from depura.reports.figures import suite_points
from depura.reports.pictures import class_shares
from depura.reports.prose import modes
from depura.reports.table import Cell, Forms, Table
from depura.statistics.intervals import PairedDifference, Proportion

ALL = "all"
"""Gradient mode of several attacks together."""

LOSSES = 5
"""Steps whose loss is in the table."""


def attack_table(summary: Summary) -> Table:
    """All attacks of a complete run, of each method together with its strongest, which comes last."""
    n_any, n_vote = n_draws(summary.header.draws.report)
    columns = ("row", "what is attacked and judged", "gradient", "one draw (95 % CI)", "null", "random corner",
               f"any of {n_any}", f"vote of {n_vote}", "images", "NFE per image")  # fmt: skip
    title = "purified; the strongest of these attacks for each image"
    strongest: dict[str, Metrics | None] = {"": summary.strongest}
    if summary.ranking is not None:
        title = "the strongest of a method's attacks for each image"
        strongest = {entry.method: entry.strongest for entry in summary.ranking.all}
    judged = {row.name for row in summary.header.rows if row.judged is Judged.DEFENCE}
    cells: list[tuple[Cell, ...]] = []
    legend: list[tuple[str, str]] = []
    styles: dict[int, str] = {}
    breaks: list[int] = []
    for method in sorted({line.method for line in summary.lines}, key=["", *strongest].index):
        lines = [line for line in summary.lines if line.method == method]
        for line in lines:
            cells.append(_attack_cells(line, line.name, line.title, str(line.mode), line.metrics))
            named = str(line.kind) or line.name if summary.ranking is not None else line.name
            legend.append((named, line.title))
        metrics, on_defence = strongest.get(method), [line for line in lines if line.name in judged]
        if metrics is not None and on_defence and not (method and len(lines) == 1):
            longest = max(on_defence, key=lambda line: line.images)
            styles[len(cells)] = "strongest"
            cells.append(_attack_cells(longest, f"{method}-strongest".strip("-"), title, ALL, metrics))
            legend.append(("strongest", title))
        breaks.append(len(cells) - 1)
    several = len({line.images for line in summary.lines}) > 1
    table = Table(
        columns,
        tuple(cells),
        notes=(f"Accuracy in %; in brackets without attack. {modes(summary)}",),
        align="lelll-l-l-" if several else "lelll-ll--",
        styles=styles,
        breaks=tuple(breaks),
        legend=tuple(dict.fromkeys(legend)),
    )
    return table if several else table.without("images")


def _attack_cells(line: Line, name: str, title: str, mode: str, metrics: Metrics) -> tuple[Cell, ...]:
    """Cells of an attack; any-of-N and vote are followed by the same without an attack, in brackets."""

    def both(attacked: Proportion, clean: Proportion) -> Forms:
        return Forms(f"{percent(attacked)} [{share(clean)}]", f"{share(attacked)} [{share(clean)}]")

    return (
        name,
        title,
        mode,
        percent(metrics.single),
        Forms(percent(line.null.single), share(line.null.single)),
        percent(line.random.single),
        both(metrics.any, line.null.any),
        both(metrics.vote, line.null.vote),
        f"{line.images}",
        "" if mode == ALL else f"{sum(line.evaluations) / line.images:,.0f}",
    )


def suite_table(summary: Summary) -> Table:
    """The attack suite of a study of one defence, from blind to exact."""
    rows = tuple((point.name, f"{point.images}", percent(point.accuracy)) for point in suite_points(summary))
    return Table(("attack", "images", "accuracy of one draw (95 % CI)"), rows)


def ranking_table(summary: Summary, ranking: Ranking) -> Table:
    """Methods compared, the best first; those that stand apart last, without a rank."""
    kinds = _kind_headings(summary, ranking)
    n_any, _ = n_draws(summary.header.draws.report)
    best, baseline = ranking.best, ranking.baseline
    against_baseline = baseline is not None and baseline is not best
    columns: list[Cell] = [
        Forms("rank", ""), "method", "NFE", "clean", *kinds.values(),
        Forms("strongest (95 % CI)", "strongest"), f"any of {n_any}",
    ]  # fmt: skip
    if best is not None:
        columns.append(Forms(f"minus {best.method} (first)", "minus first, p"))
    if baseline is not None and against_baseline:
        columns.append(f"minus {baseline.method} (baseline)")
    cells = tuple(
        (
            "apart" if not entry.rank else f"{entry.rank}?" if entry.unchecked else f"{entry.rank}",
            method_name(entry),
            count(entry.nfe),
            share(entry.clean),
            *(_of_kind(entry, kind) for kind in kinds),
            Forms(percent(entry.strongest.single), percent(entry.strongest.single).replace(" %", "")),
            share(entry.strongest.any),
            *([_difference(entry.to_best)] if best is not None else []),
            *([_difference(entry.to_baseline)] if against_baseline else []),
        )
        for entry in ranking.all
    )
    flags = ((entry.method, ", ".join(map(str, summary.flags_of(entry.method)))) for entry in ranking.all)
    flagged = "; ".join(f"{method}: {text}" for method, text in flags if text)
    remarks = (
        *(f"* {entry.method}: {entry.note}" for entry in ranking.all if entry.note),
        *(f"Apart: {entry.method}. {entry.conclusion.refusal}" for entry in ranking.apart),
        *([f"Flags. {flagged}."] if flagged else []),
    )
    note = _ranking_note(ranking, n_any)
    undetected = any(entry.to_best is not None and not entry.to_best.detectable for entry in ranking.all)
    return Table(
        tuple(columns),
        cells,
        notes=(Forms(note, note + (" ≈: no detectable difference." if undetected else "")),),
        remarks=remarks,
        align="ll" + "r" * (2 + len(kinds)) + "lr" + "l" * (best is not None) + "-" * against_baseline,
        styles={k: "baseline" for k, entry in enumerate(ranking.all) if entry.baseline},
    )


def method_name(entry: LeaderboardEntry) -> str:
    """A method as it is printed: baselines are called so, a star leads to its note."""
    return f"{entry.method}{'*' if entry.note else ''}{' (baseline)' if entry.baseline else ''}"


def _ranking_note(ranking: Ranking, n_any: int) -> str:
    tests = ranking.comparisons
    corrected = f"corrected by Holm's method for {tests} comparisons" if tests > 1 else "of one comparison"
    note = (
        "Ranked by the accuracy of one draw under the strongest of a method's attacks for each image. Accuracy in %. "
        f"NFE: denoiser evaluations per prediction. any of {n_any}: {n_any} submissions of an image under its "
        "strongest attack are all classified correctly. minus: difference in points over the same images, with its "
        f"95 % interval; p of the paired test, {corrected}. The first is chosen by the same numbers, which flatters it "
        "a little."
    )
    if any(entry.masked for entry in ranking.all):
        note += " †: some of this row's gradients are exactly zero, so that its accuracy is no measure of robustness."
    if ranking.apart:
        note += " apart: its checks do not pass, so that it is not ranked; the reason is below."
    if any(entry.unchecked for entry in ranking.entries):
        note += " ?: unchecked, as nothing says whether its attack is strong."
    return note


def _kind_headings(summary: Summary, ranking: Ranking) -> dict[AttackKind, str]:
    """Headings of the kinds of attack that were made, in this order."""
    adaptive = [line for line in summary.lines if line.kind is AttackKind.ADAPTIVE]
    headings = {
        AttackKind.TRANSFER: "transfer",
        AttackKind.BPDA: "BPDA",
        AttackKind.ADAPTIVE: "exact" if all(line.mode is GradientMode.EXACT for line in adaptive) else "adaptive",
        AttackKind.RELAXED: "relaxed",
    }
    return {kind: text for kind, text in headings.items() if any(kind in entry.kinds for entry in ranking.all)}


def _of_kind(entry: LeaderboardEntry, kind: AttackKind) -> str:
    if kind not in entry.kinds:
        return "–"
    return share(entry.kinds[kind]) + ("†" if kind in entry.masked else "")


def _difference(difference: PairedDifference | None) -> Cell:
    if difference is None:
        return "–"
    value, low, high = (100 * number for number in difference[:3])
    p = p_value(difference.p)
    return Forms(
        f"{value:+.1f} ({low:+.1f} to {high:+.1f}), {p}{'' if difference.detectable else ': no detectable difference'}",
        f"{'' if difference.detectable else '≈ '}{value:+.1f}, {p.removeprefix('p ').replace('< ', '<')}",
    )


def error_rate_table(summary: Summary) -> Table:
    """How many images are hardly ever, sometimes, and mostly misclassified, and when to expect an error."""
    rows = tuple(
        (f"{method}, {name}" if method else name, *(percent(part) for part in metrics.shares), str(metrics.submissions))
        for method, (null, attacked) in _judged(summary).items()
        for name, metrics in (("no attack", null), ("strongest attack", attacked))
    )
    note = (
        "Share of images, with 95 % intervals: wrong in fewer than 5 % of their report draws, in 5 % to 50 %, in more. "
        "Submissions until an error: how often the same image can be submitted until an error is as likely as not."
    )
    columns = ("", "nearly always right", "unsure", "mostly wrong", "submissions until an error")
    return Table(columns, rows, (note,))


def _judged(summary: Summary) -> Mapping[str, tuple[Metrics, Metrics]]:
    """By method: metrics without an attack and under the strongest attack for each image."""
    strongest = {} if summary.strongest is None else {"": summary.strongest}
    if summary.ranking is not None:
        strongest = {entry.method: entry.strongest for entry in summary.ranking.all}
    on_defence = {row.name for row in summary.header.rows if row.attacks_defence}
    judged: dict[str, tuple[Metrics, Metrics]] = {}
    for method, metrics in strongest.items():
        lines = [line for line in summary.lines if line.name in on_defence and line.method == method]
        if lines:
            judged[method] = (max(lines, key=lambda line: line.images).null, metrics)
    return judged


def published_table(summary: Summary) -> Table:
    """What others published of the same defence, and the same of this run; empty where nothing was published."""
    rows = [
        (
            *("" if value is None else f"{value:g}" for value in (row.clean, row.robust)),
            row.attack,
            row.source,
            row.note,
        )
        for row in summary.header.published
    ]
    if rows:
        rows += [
            (percent(null.single), percent(attacked.single), "strongest attack of this run", "this run", method)
            for method, (null, attacked) in _judged(summary).items()
        ]
    note = "Accuracy in %. Published figures are by another protocol: compare with care."
    return Table(("clean", "robust", "attack", "source", "note"), tuple(rows), (note,))


def search_table(summary: Summary) -> Table:
    """Errors during the search, and those of as many draws without an attack."""
    rows = tuple(
        (s.row, f"{s.draws:,.0f}", percent(s.never_wrong), f"{s.n}", percent(s.first), percent(s.null))
        for s in summary.details.searches
    )
    note = (
        "Share of images of which no draw of the deployed rule was wrong while the attack searched: over the whole "
        "search, and over its first draws, as many as the null has. Without an attack draws are wrong too (null); over "
        "the whole search it is at most that. These are no accuracies of adversarial examples."
    )
    columns = ("row", "draws seen per image", "never wrong", "first draws", "not wrong in these", "null of as many")
    return Table(columns, rows, (note,))


def indicator_table(summary: Summary) -> Table:
    """Indicators that need no gradient."""
    rows = tuple(
        (i.row, percent(i.fixed), percent(i.fixed_clean), _ratio(i.left), _ratio(i.left_random))
        for i in summary.details.indicators
    )
    note = (
        "fixed noise: accuracy when all randomness is fixed to one draw, the same for all images, of the examples and "
        "of the images themselves. left: distance after purification over distance before, with the same noise, median "
        "over images; of the attack's change and of a random one of the same length. Below 1 purification draws the "
        "two together (cf. arXiv:2505.22839)."
    )
    return Table(("row", "fixed noise", "fixed noise, clean", "left of the attack", "left of noise"), rows, (note,))


def budget_table(summary: Summary) -> Table:
    """What more steps, draws or restarts bought."""
    rows = tuple(
        (
            b.row,
            f"{b.what}: {b.less:g} → {b.more:g}",
            f"{b.images}",
            percent(b.before),
            percent(b.after),
            f"{100 * (b.before.value - b.after.value):.1f} ({100 * b.fall[0]:.1f} to {100 * b.fall[1]:.1f})",
        )
        for b in summary.details.budgets
    )
    note = (
        "Accuracy of one draw under an attack and under the same attack with more of one thing, on the same images; "
        "taken: points that the larger budget takes, with a 95 % interval paired by image."
    )
    return Table(("row", "more", "images", "less", "more of it", "taken"), rows, (note,))


def loss_table(summary: Summary) -> Table:
    """An attack's loss at some of its steps."""
    last = LOSSES - 1
    columns = ("row", "steps", "first", *(f"{100 * k // last} %" for k in range(1, last)), "last")
    rows = tuple(
        (
            trace.row,
            f"{trace.steps[-1]}",
            *(f"{trace.loss[round(k * (len(trace.loss) - 1) / last)]:.3g}" for k in range(LOSSES)),
        )
        for trace in summary.details.traces
    )
    note = (
        "The attack's own loss, its mean over the images (one that was finished keeps its last); losses of different "
        "attacks are different functions. It should rise."
    )
    return Table(columns, rows, (note,))


def curve_table(summary: Summary) -> Table:
    """Accuracy of one draw at each radius."""
    names = [name for name in summary.curve if name != "null"]
    rows = [
        (f"{point.eps:g}", f"{point.images}", *(percent(summary.curve[name][k].accuracy) for name in names))
        for name in names[:1]
        for k, point in enumerate(summary.curve[name])
    ]
    return Table(("eps", "images", *names), tuple(rows))


def check_counts(summary: Summary) -> str:
    """How many checks passed, warned, failed and were not run."""
    counts = (f"{sum(v.status is status for v in summary.verdicts)} {status.value}" for status in Status)
    return f"{', '.join(counts)}." if summary.verdicts else ""


def check_table(summary: Summary) -> Table:
    """The verdicts of the checks; of a comparison, those that want attention method by method, the others together."""
    counts = check_counts(summary)
    notes = (counts,) if counts else ()
    if summary.ranking is None:
        rows = tuple((v.id, v.name, v.status.value, v.sentence, v.passes, v.advice) for v in summary.verdicts)
        return Table(("", "check", "", "found", "passes where", "what to do"), rows, notes)
    rows = tuple(row for group in grouped(summary.verdicts) for row in _group_rows(summary, group))
    return Table(("", "check", "", "methods", "found", "passes where", "what to do"), rows, notes)


def _group_rows(summary: Summary, group: VerdictGroup) -> list[tuple[str, ...]]:
    head = (group.id, group.name, group.status.value)
    if group.status in (Status.WARN, Status.FAIL):
        verdicts = [v for v in summary.verdicts if (v.id, v.status) == (group.id, group.status)]
        return [(*head, v.method, v.sentence, v.passes, v.advice) for v in verdicts]
    text = group.sentence if len(group.methods) == 1 else f"{group.methods[0]}: {group.sentence}"
    return [(*head, ", ".join(group.methods), text, group.passes, group.advice)]


def audit_table(summary: Summary) -> Table:
    """What the audit of each gradient tested."""
    audits = summary.details.audits
    several = len(audits) > 1
    rows = tuple(
        (*((a.method,) if several else ()), check.name, check.light.value, check.sentence)
        for a in audits
        for check in a.audit.checks
    )
    verdicts = " ".join(f"{a.method}: {a.audit.verdict}" if several else a.audit.verdict for a in audits)
    return Table((*(("method",) if several else ()), "test", "light", "found"), rows, (verdicts,))


def gradient_table(summary: Summary) -> Table:
    """Norms and agreement of the gradients of each attack that has some."""
    rows = tuple(
        (
            line.name,
            str(line.mode),
            *(f"{100 * part:.2f} %" for part in (g.zero, g.zero_pixels, g.bad)),
            " / ".join(_ratio(value) for value in g.agreement),
            _ratio(g.spread),
            _ratio(g.bpda),
            _ratio(g.surrogate),
        )
        for line in summary.lines
        if (g := line.gradients) is not None
    )
    columns = ("row", "gradient", "zero", "zero entries", "not finite", "halves agree", "largest norm", "BPDA",
               "surrogate")  # fmt: skip
    note = (
        "zero, not finite: share of draws over steps and images. zero entries: of the mean gradients. halves agree: "
        "cosine of the mean gradients of two halves of the draws, median over images, at the first, middle and last "
        "step. largest norm: over the median of its image. BPDA, surrogate (a fifth of the steps): cosine to the exact "
        "gradient on clean images, median; near 1 means that this cheaper gradient would do for this defence."
    )
    return Table(columns, rows, (note,))


def price_table(summary: Summary) -> Table:
    """Evaluations of the denoiser per prediction."""
    rows = tuple((name, count(evaluations)) for name, evaluations in summary.details.prices.items())
    note = (
        "Evaluations of the denoiser per prediction of the deployed rule, counted; a prediction also runs the "
        "classifier. Times are not in the records, since equal studies give equal bytes on any machine: "
        "'depura plan' measures them on yours."
    )
    return Table(("what is judged", "NFE per prediction"), rows, (note,))


def example_table(summary: Summary) -> Table:
    """The adversarial examples of each attack, and what they cost."""
    rows = tuple(
        (
            line.name,
            f"{e.largest:.4g}",
            percent(e.exact),
            percent(e.rounded),
            f"{e.finished}",
            f"{e.gradients:,.0f}",
            f"{e.forwards:,.0f}",
            f"{line.evaluations[0]:,}",
            f"{line.evaluations[1]:,}",
        )
        for line in summary.lines
        for e in (line.examples,)
    )
    columns = ("row", "largest change", "as made", "after 8-bit rounding", "finished early", "gradients", "forwards",
               "denoiser", "backward")  # fmt: skip
    note = (
        "largest change: in the norm of the threat model, over all images. as made, after 8-bit rounding: accuracy of "
        "one draw of the examples as they are and as an 8-bit file would keep them, on the same draws (the first of "
        "those reported). finished early: images that the attack was content with before its budget was spent. "
        "gradients, forwards: evaluations of what is attacked with and without a gradient, mean per image. denoiser, "
        "backward: all evaluations of the denoiser, forward and backward, of the attack and the scores of the row "
        "together; those made again on the way back for want of memory are not in them."
    )
    return Table(columns, rows, (note,))


def gallery_table(summary: Summary) -> Table:
    """The image gallery in words."""
    rows = tuple(
        (
            f"{p.image}",
            p.label,
            p.row,
            p.seen_as,
            f"{p.errors} of {p.draws}",
            ", ".join(f"{part.name}: {part.draws}" for part in class_shares(p)),
        )
        for p in summary.pictures
    )
    return Table(("image", "class", "row", "this draw", "wrong draws", "classes given"), rows)


def progress_table(lines: Sequence[Progress]) -> Table:
    """How far a run is."""
    rows = tuple(
        (
            p.name,
            f"{p.eps:g}",
            "–" if p.so_far is None else percent(p.so_far),
            f"{p.images} of {p.of}",
            f"{p.done} of {p.total}",
        )
        for p in lines
    )
    note = (
        "Accuracy of one draw on the images that are done; it moves until the last is. null-: without an attack. No "
        "headline is made of part of a run."
    )
    return Table(("row", "eps", "so far (95 % CI)", "images", "units"), rows, (note,), align="lrlrr")


def comparison_table(comparison: Comparison) -> Table:
    """Two runs compared, row by row."""
    pairs = comparison.pairs
    several = len({pair.methods for pair in pairs}) > 1
    rows = tuple(
        (
            f"{pair.methods[0]} {pair.row}" if several else pair.row,
            share(pair.first),
            share(pair.second),
            f"{'' if d.detectable else '≈ '}{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})",
            p_value(d.p).removeprefix("p ").replace("< ", "<"),
            "–" if math.isnan(pair.gap) else f"{100 * pair.gap:.1f}",
        )
        for pair in pairs
        for d in (pair.difference,)
    )
    note = (
        f"Accuracy of one draw in %, {max(pair.images for pair in pairs)} images, compared image by image; differences "
        f"in points. p of the paired test, corrected by Holm's method for {len(pairs)} comparisons; intervals are not "
        "corrected. ≈: no detectable difference. would be seen: the smallest true difference that would have been "
        "found with a chance of 80 % (normal approximation, all tests at once)."
    )
    return Table(
        ("row", "A", "B", "A - B (95 % CI)", "p", "would be seen"),
        rows,
        (note,),
        align="lrrrrr",
        styles={k: "strongest" for k, pair in enumerate(pairs) if pair.row == STRONGEST},
        breaks=tuple(k for k, pair in enumerate(pairs[1:]) if pair.methods != pairs[k].methods),
    )


def _ratio(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
