"""Parts of a report, from summaries made by hand: attack suite, tables, gallery, limits, charts, a run under way."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tests.records import ByHand, edited, method

from depura.analysis.details import Audited, Budget, Details, ErrorRates, Trace
from depura.analysis.progress import Progress
from depura.analysis.ranking import LeaderboardEntry, Ranking
from depura.analysis.results import Metrics
from depura.analysis.summary import Examples, Line, Picture, Point, Summary, _extremes
from depura.analysis.verdicts import Conclusion, Flag, HeadlineStatus, Status, Verdict
from depura.analysis.words import KINDS
from depura.records.kinds import AttackKind, GradientMode
from depura.records.schema import Audit, AuditCheck, AuditLight, Curve, Header
from depura.reports import charts, figures, page, pictures, prose, tables
from depura.reports.markdown import markdown
from depura.reports.table import terminal
from depura.statistics.error_rates import Shares, Submissions
from depura.statistics.intervals import Proportion


def about(value: float) -> Proportion:
    return Proportion(value, max(0, value - 0.1), min(1, value + 0.1), "by hand")


def three(value: float) -> Metrics:
    shares = Shares(about(value), about(0.25), about(0.125))
    return Metrics(about(value), about(value), about(value), shares, Submissions(4, 2, np.inf, 8))


BY_HAND = ByHand([0] * 40, draws=8)


def line(name: str, kind: str, value: float, *, images: int = 40, mode: str = "exact", method: str = "") -> Line:
    made = Examples(0.1, about(value), about(value), 0, 10.0, 2.0)
    null, random = three(0.9), three(0.8)
    return Line(
        name=name,
        title=f"title of {name}",
        kind=AttackKind(kind),
        method=method,
        mode=GradientMode(mode),
        images=images,
        metrics=three(value),
        null=null,
        random=random,
        examples=made,
        gradients=None,
        evaluations=(400, 80),
        gain=(0, 0.1),
    )


LINES = (
    line("undefended", "undefended", 0.0),
    line("targets", "targeted", 0.31, images=20),
    line("adaptive", "adaptive", 0.33),
    line("bpda", "bpda", 0.52, mode="bpda"),
    line("unchanged", "unchanged", 0.89, mode="none"),
    line("transfer", "transfer", 0.61, mode="transfer"),
    line("more-steps", "budget", 0.32, images=20),
)


def header(lines: tuple[Line, ...] = LINES, *, eps: tuple[float, ...] = (0.05, 0.2), **changed: Any) -> Header:
    rows = [
        BY_HAND.row(its.name, its.kind, method=its.method, mode=its.mode, title=its.title, images=its.images)
        for its in lines
    ]
    return BY_HAND.header(rows, curve=Curve(eps=eps, images=20, rows=("adaptive",)), **changed)


CHECK = AuditCheck(name="zeros", light=AuditLight.GREEN, sentence="No zeros.")
DETAILS = Details(
    error_rates=(ErrorRates("", (0.0, 0.0, 0.049, 0.05, 0.9), (0.04, 0.05, 0.5, 0.51, 1.0)),),
    budgets=(Budget("more-steps", "adaptive", "steps", 10, 20, 20, about(0.33), about(0.32), (-0.01, 0.04)),),
    traces=(Trace("adaptive", tuple(range(1, 10)), tuple(float(k * k) for k in range(1, 10))),),
    prices={"no defence": 0.0, "the defence": 7.5},
    audits=(Audited("", Audit(light=AuditLight.GREEN, verdict="Sound.", checks=(CHECK,))),),
)
VERDICTS = (
    Verdict("V1", "undefended", Status.PASS, "Broken."),
    Verdict("V9", "random", Status.NOT_RUN, "No row of random points | at all."),
    Verdict("V6", "budget", Status.WARN, "More is better.", "Take more."),
)


def frames(size: int = 8) -> np.ndarray:
    return np.arange(3 * size * size, dtype=np.uint8).reshape(3, 1, size, size)


def picture(image: int, errors: int, *, most: int | None = None, row: str = "adaptive", draws: int = 64) -> Picture:
    votes = (
        (("cat", draws - errors), ("dog", errors)) if 2 * errors < draws else (("dog", errors), ("cat", draws - errors))
    )
    titles = ("clean", "adversarial", "purified")
    return Picture(
        row, image, "cat", "dog", errors, draws, titles, frames(), votes, most=errors if most is None else most
    )


def summary(**changed: Any) -> Summary:
    whole = Summary(
        header=header(),
        done=0,
        total=0,
        headline="robust accuracy at most 30 %",
        lines=LINES,
        strongest=three(0.3),
        curve={
            "adaptive": (Point(0.05, about(0.7), 20), Point(0.2, about(0.2), 20)),
            "null": (Point(0, about(0.9), 20),),
        },
        pictures=(picture(3, 60), picture(5, 4)._replace(lucky=True)),
        warnings=(),
        devices=("cpu",),
        verdicts=VERDICTS,
        conclusions=(Conclusion("", HeadlineStatus.GIVEN),),
        flagged={"": (Flag.NOT_CONVERGED,)},
        details=DETAILS,
    )
    return replace(whole, **changed)


def test_the_ladder_goes_from_blind_to_exact_and_ends_with_the_strongest() -> None:
    found = figures.suite_points(summary())
    assert [(point.name, point.images, point.accuracy.value) for point in found] == [
        ("null", 40, 0.9), ("random corner", 40, 0.8), ("transfer", 40, 0.61), ("bpda", 40, 0.52),
        ("adaptive", 40, 0.33), ("targets", 20, 0.31), ("strongest", 40, 0.3),
    ]  # fmt: skip
    assert figures.suite_points(summary(strongest=None)) == ()
    drawn = figures.suite_svg(summary())
    assert drawn is not None
    heights = {t.text: float(t.attrib["y"]) for t in ElementTree.fromstring(drawn).iter() if "y" in t.attrib and t.text}
    named = [heights[name] for name in ("random corner", "transfer", "bpda", "adaptive", "targets (20)", "strongest")]
    assert named == sorted(named)


def test_charts_take_colours_and_letters_from_the_page_and_share_no_ids() -> None:
    drawn = [figures.trace_svg(DETAILS.traces[0], k) for k in range(2)]
    ids = [set(re.findall(r'id="([^"]+)"', text or "")) for text in drawn]
    assert all(ids)
    assert not ids[0] & ids[1]
    for text in drawn:
        assert text is not None
        assert "currentColor" in text
        assert charts.INK not in text
        assert f"var(--chart-blue, {charts.COLOURS['blue']})" in text
        assert "<metadata" not in text
        used = re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text)
        assert used
        assert set(used) <= set(re.findall(r'id="([^"]+)"', text))


def test_radii_far_apart_are_drawn_on_a_logarithmic_axis() -> None:
    """The radii 0.05, 0.2, 0.8: evenly spaced in the logarithm, and 16 times apart; then 0.05, 0.5, 5."""

    def places(radii: tuple[float, ...]) -> list[float]:
        points = tuple(Point(eps, about(0.5), 20) for eps in radii)
        drawn = figures.curve_svg(summary(curve={"adaptive": points}))
        assert drawn is not None
        marks = [g for g in ElementTree.fromstring(drawn).iter() if g.attrib.get("id", "").startswith("curve-line2d")]
        found = [[float(u.attrib["x"]) for u in g.iter() if u.tag.endswith("use")] for g in marks]
        return next(xs for xs in found if len(xs) == len(radii))

    linear, logarithmic = places((0.05, 0.2, 0.8)), places((0.05, 0.5, 5.0))
    assert (linear[2] - linear[1]) / (linear[1] - linear[0]) == pytest.approx(4, rel=1e-3)
    assert (logarithmic[2] - logarithmic[1]) / (logarithmic[1] - logarithmic[0]) == pytest.approx(1, rel=1e-3)


def test_error_rates_are_those_of_the_null_and_of_the_strongest_attack() -> None:
    """The sentence counts: above 0.5, and from 0.05 to 0.5, both ends in it."""
    until = "4 (2–never within 8)"
    assert tables.error_rate_table(summary()).rows == (
        ("no attack", "90.0 % (80.0–100.0)", "25.0 % (15.0–35.0)", "12.5 % (2.5–22.5)", until),
        ("strongest attack", "30.0 % (20.0–40.0)", "25.0 % (15.0–35.0)", "12.5 % (2.5–22.5)", until),
    )
    assert "2 of 5 images are wrong in more than half of the draws (1 without attack), and 2 are" in (
        prose.error_sentence(DETAILS.error_rates[0])
    )


def test_published_figures_stand_beside_those_of_the_run() -> None:
    said = {"clean": 89.02, "robust": None, "attack": "AutoAttack", "source": "a paper", "note": "unverified"}
    made = summary(header=edited(header(), "published", to=[said]))
    first, ours = tables.published_table(made).rows
    assert first == ("89.02", "", "AutoAttack", "a paper", "unverified")
    assert made.strongest is not None
    assert ours[0].startswith("90.0")
    assert ours[1].startswith(f"{100 * made.strongest.single.value:.1f}")
    for text in (page.html(made), markdown(made)):
        assert "Published" in text
        assert "89.02" in text
    for text in (page.html(summary()), markdown(summary())):
        assert "Published" not in text


def test_losses_are_read_at_five_moments() -> None:
    (row,) = tables.loss_table(summary()).rows
    assert row == ("adaptive", "9", "1", "9", "25", "49", "81")


def test_tables_of_budgets_checks_audits_and_prices() -> None:
    assert tables.budget_table(summary()).rows == (
        ("more-steps", "steps: 10 → 20", "20", "33.0 % (23.0–43.0)", "32.0 % (22.0–42.0)", "1.0 (-1.0 to 4.0)"),
    )
    checks = tables.check_table(summary())
    assert [row[2] for row in checks.rows] == ["PASS", "not run", "WARN"]
    assert checks.paragraphs == ("1 PASS, 1 WARN, 0 FAIL, 1 not run.",)
    assert tables.audit_table(summary()).rows == (("zeros", "GREEN", "No zeros."),)
    assert tables.price_table(summary()).rows == (("no defence", "0"), ("the defence", "7.5"))


def test_images_are_a_column_only_where_rows_differ_in_them() -> None:
    assert "images" not in tables.attack_table(summary(lines=LINES[2:4])).headings
    table = tables.attack_table(summary())
    assert table.headings[-2:] == ("images", "NFE per image")
    cells = {row[0]: row[-2:] for row in table.rows}  # 480 evaluations on 40 and on 20 images
    assert cells["adaptive"] == ("40", "12")
    assert cells["targets"] == ("20", "24")
    assert cells["strongest"] == ("40", "")


def test_limits_name_what_was_not_run_and_nothing_else() -> None:
    text = " ".join(prose.limits(summary()))
    missing = text[len("Not run: ") : text.index(".")]
    assert missing.split(", ") == [
        KINDS[AttackKind(k)] for k in ("surrogate", "selective", "black-box", "random", "one-step", "pinned", "tiny")
    ]
    assert "more steps" not in text
    assert "Run on the first images only: targets (20), more-steps (20)." in text
    assert "One seed (7)" in text
    assert "Other radii" not in text
    few = (LINES[0], line("adaptive", "adaptive", 0.3, mode="adjoint"))
    text = " ".join(prose.limits(summary(lines=few, header=header(few, eps=()))))
    assert "Whether more steps, more draws per step or another restart would find more was not tried." in text
    assert "Other radii were not tried." in text
    assert "The gradient of adaptive is an approximation" in text
    assert "first images only" not in text


def test_the_gallery_shows_the_worst_images_and_those_that_are_lucky_under_every_attack() -> None:
    pictured = [
        picture(1, 64), picture(2, 10), picture(2, 50, row="bpda"), picture(3, 0, most=63), picture(4, 5, most=6),
        picture(5, 30, most=40),
    ]  # fmt: skip
    assert [(p.image, p.row, p.errors, p.lucky) for p in _extremes(pictured, n=2)] == [
        (1, "adaptive", 64, False), (2, "bpda", 50, False), (4, "adaptive", 5, True), (5, "adaptive", 30, True),
    ]  # fmt: skip
    assert [(p.image, p.lucky) for p in _extremes(pictured[:1])] == [(1, False)]
    mild = [picture(1, 33), picture(2, 32), picture(3, 4), picture(4, 2)]
    assert [(p.image, p.lucky) for p in _extremes(mild, n=2)] == [(1, False), (4, True), (3, True)]


def test_bars_of_classes_add_up() -> None:
    votes = tuple((f"class {k}", n) for k, n in enumerate((20, 14, 10, 9, 6, 4, 1)))
    parts = pictures.class_shares(picture(1, 44)._replace(votes=votes, label="class 2"))
    assert [(s.name, s.draws, s.right) for s in parts] == [
        ("class 0", 20, False), ("class 1", 14, False), ("class 2", 10, True), ("class 3", 9, False),
        ("others", 11, False),
    ]  # fmt: skip
    assert sum(s.percent for s in parts) == pytest.approx(100)


def test_frames_are_kept_as_they_are_unless_they_are_large() -> None:
    small = frames()[1]
    address = pictures.data_uri(small)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))), small[0])
    large = np.zeros((3, 192, 384), dtype=np.uint8)
    large[0, :96], large[1, 96:] = 200, 100
    shrunk = np.asarray(Image.open(io.BytesIO(pictures.png(large))))
    assert shrunk.shape == (48, 96, 3)
    assert shrunk[10, 10].tolist() == [200, 0, 0]
    assert shrunk[40, 90].tolist() == [0, 100, 0]


def test_both_texts_hold_every_part() -> None:
    text, web = markdown(summary()), page.html(summary())
    for table in (
        tables.error_rate_table(summary()), tables.budget_table(summary()), tables.loss_table(summary()),
        tables.audit_table(summary()), tables.price_table(summary()),
    ):  # fmt: skip
        for cell in (cell for row in table.rows for cell in row):
            assert cell in text
            assert cell in web
    for needed in ("not converged", "Take more.", *prose.limits(summary()), "31.0 % (21.0–41.0)"):
        assert needed in text
        assert needed in web
    assert "No row of random points \\| at all." in text
    wanted = (
        "Threat",
        "Attack suite",
        "Rows",
        "Errors",
        "Convergence",
        "Checks",
        "Gradient tests",
        "Cost",
        "Image gallery",
        "Repeat",
        "Limits",
    )
    assert [web.index(f"<h2>{name}") for name in wanted] == sorted(web.index(f"<h2>{name}") for name in wanted)
    heads = [
        text.index(f"## {name}") for name in ("Threat", "Attack suite", "Rows", "Errors", "More", "Loss", "Checks")
    ]
    assert heads == sorted(heads)


def test_a_refused_report_alarms_and_another_does_not() -> None:
    for status in (HeadlineStatus.FAILED, HeadlineStatus.WITHHELD, HeadlineStatus.UNCHECKED):
        refused = summary(conclusions=(Conclusion("", status, "A reason."),))
        assert refused.refused
        assert 'class="headline refused"' in page.html(refused)
        assert "**⚠ robust accuracy" in markdown(refused)
    assert 'class="headline refused"' not in page.html(summary())
    assert "⚠" not in markdown(summary())


def test_flags_are_printed_as_their_texts() -> None:
    flagged = summary(flagged={"": (Flag.MASKED, Flag.NOT_FINITE), "another": (Flag.BATCH,)})
    assert "Flags: masked gradient, predictions that are not finite." in markdown(flagged)
    assert "<li>masked gradient</li><li>predictions that are not finite</li>" in page.html(flagged)
    for text in (markdown(flagged), page.html(flagged)):
        assert "Flag." not in text
        assert "batch-dependent" not in text


def compared(*verdicts: Verdict) -> Summary:
    """Two methods, the second of which stands apart."""
    made = [
        LeaderboardEntry(
            rank=rank,
            method=name,
            baseline=False,
            note="",
            nfe=1,
            clean=about(0.9),
            kinds={AttackKind.ADAPTIVE: about(0.3)},
            masked=frozenset(),
            strongest=three(0.3),
            to_best=None,
            to_baseline=None,
            conclusion=Conclusion(name, status, reason),
        )
        for rank, name, status, reason in (
            (1, "one", HeadlineStatus.GIVEN, ""), (0, "two", HeadlineStatus.WITHHELD, "V6 (budget): More is better."),
        )
    ]  # fmt: skip
    lines = tuple(line(f"{name}-adaptive", "adaptive", 0.3, method=name) for name in ("one", "two"))
    return summary(
        header=header(lines, methods=[method("one"), method("two")]),
        lines=lines,
        strongest=None,
        ranking=Ranking(tuple(made[:1]), tuple(made[1:]), 0),
        conclusions=tuple(entry.conclusion for entry in made),
        verdicts=verdicts,
        flagged={},
        details=Details(),
        curve={},
        pictures=(),
    )


def test_checks_of_several_methods_are_told_one_by_one_where_they_want_attention() -> None:
    """What passes, or was not run, is one line for all methods that it is said of."""
    verdicts = [
        Verdict(id, "a check", status, f"{id} of {name}.", f"Mend {name}.", method=name, passes="it is done")
        for name, statuses in (
            ("one", (Status.PASS, Status.WARN, Status.NOT_RUN)), ("two", (Status.PASS, Status.WARN, Status.FAIL)),
        )
        for id, status in zip(("V1", "V2", "V3"), statuses, strict=True)
    ]  # fmt: skip
    table = tables.check_table(compared(*verdicts))
    assert table.headings == ("", "check", "", "methods", "found", "passes where", "what to do")
    assert table.rows == (
        ("V1", "a check", "PASS", "one, two", "one: V1 of one.", "it is done", "Mend one."),
        ("V2", "a check", "WARN", "one", "V2 of one.", "it is done", "Mend one."),
        ("V2", "a check", "WARN", "two", "V2 of two.", "it is done", "Mend two."),
        ("V3", "a check", "not run", "one", "V3 of one.", "it is done", "Mend one."),
        ("V3", "a check", "FAIL", "two", "V3 of two.", "it is done", "Mend two."),
    )
    assert table.paragraphs == ("2 PASS, 2 WARN, 1 FAIL, 1 not run.",)
    for text in (markdown(compared(*verdicts)), page.html(compared(*verdicts))):
        assert "V2 of two." in text
        assert "Apart: two. Headline withheld: V6 (budget): More is better." in text
        assert "⚠" not in text
        assert "headline refused" not in text


def test_audits_of_several_methods_say_whose_they_are() -> None:
    audits = tuple(
        Audited(name, Audit(light=AuditLight.GREEN, verdict=f"Sound, {name}.", checks=(CHECK,)))
        for name in ("one", "two")
    )
    table = tables.audit_table(replace(compared(), details=Details(audits=audits)))
    assert table.headings == ("method", "test", "light", "found")
    assert table.rows == (("one", "zeros", "GREEN", "No zeros."), ("two", "zeros", "GREEN", "No zeros."))
    assert table.paragraphs == ("one: Sound, one. two: Sound, two.",)


def test_what_is_said_of_an_image_cannot_become_part_of_the_page() -> None:
    evil = "<img src=x onerror=alert(1)>"
    web = page.html(
        summary(headline=evil, warnings=(evil,), pictures=(picture(1, 3)._replace(label=evil, votes=((evil, 64),)),))
    )
    assert evil not in web
    assert web.count("&lt;img") >= 4


def test_a_run_under_way_shows_what_is_done_and_no_headline() -> None:
    so_far = (
        Progress("adaptive", 0.1, 1, 3, 16, 40, about(0.4)),
        Progress("bpda", 0.1, 0, 3, 0, 40, None),
    )
    early = summary(
        done=1, total=6, headline="No headline: 1 of 6", progress=so_far, lines=(), strongest=None, curve={}
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal(tables.progress_table(early.progress)))
    for text in (markdown(early), page.html(early), console.export_text()):
        assert re.search(r"adaptive\W.*40.0 % \(30.0–50.0\).*16 of 40.*1 of 3", text, re.DOTALL)
        assert "0 of 40" in text
        assert "robust accuracy" not in text
        assert "Limits" not in text
