"""Claims, from the records that test_summary makes by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.records import PGD, edited, row
from tests.unit import test_ranking, test_summary

from depura._check import InputError
from depura.analysis.claims import claims
from depura.analysis.summary import Summary, summarise
from depura.analysis.verdicts import Conclusion, Flag, HeadlineStatus, Status, Verdict
from depura.analysis.words import MODES, attack_text
from depura.records.kinds import AttackKind, GradientMode
from depura.reports.prose import LATEX_COLUMNS, bibtex, escaped, latex, paragraph

ROOT = Path(__file__).parents[2]


def summary(tmp_path: Path, **changed: Any) -> Summary:
    """One image in four is right under the strongest attack (12 of 16 draws are wrong), 15 of 16 without."""
    made = summarise(test_summary.made(tmp_path))
    header = edited(made.header, "versions", to={"depura": "0", "torch": "2_x"})
    return replace(made, header=header, **{"verdicts": (), "flagged": {}, **changed})


def test_the_paragraph_holds_every_number_of_the_run(tmp_path: Path) -> None:
    made = summary(tmp_path, flagged={"": (Flag.NOT_CONVERGED, Flag.WEAK), "another": (Flag.MASKED,)})
    (claim,) = claims(made)
    assert claim.accuracy.value == pytest.approx(0.25)
    assert claim.null.value == pytest.approx(15 / 16)
    text = paragraph(made, claim)
    low, high = 100 * claim.accuracy.low, 100 * claim.accuracy.high
    for part in (
        "Linf ball of radius 0.1, images in [0, 1]: the robust accuracy of by-hand is at most 25.0 % "
        f"(95 % CI {low:.1f}–{high:.1f}; {claim.accuracy.method}), for the deployed rule of vote of 5 draws.",
        "the same defence has 93.8 %",
        "the strongest of 2 attacks for each image, chosen on 2 other draws, on 4 images of by hand, each",
        "The attacks: transfer (PGD, 20 steps, 5 draws per gradient; gradient of another model than the one that is "
        "judged); adaptive (PGD, 20 steps, 5 draws per gradient; exact gradient of what is judged).",
        "One seed (7); depura 0, torch 2_x.",
        "Flags: not converged, weak white-box attack.",
    ):
        assert part in text
    assert "undefended" not in text  # no attack on the defence
    assert "reference" not in text  # none of the study's attacks


def test_what_was_not_tested(tmp_path: Path) -> None:
    made = summary(tmp_path)
    lines = tuple(line._replace(mode=GradientMode.BPDA) for line in made.lines)
    told = claims(replace(made, lines=lines))[0].untested
    for text in (
        "targeted attacks",
        "attacks without gradients (black-box)",
        "BPDA",
        "an attack by the exact gradient: every gradient is approximate",
        "adaptive attacks of more than 20 steps (50 or more are expected)",
        "more than 4 images (512 or more are expected)",
        "more than 4 report draws of each image (64 or more are expected)",
        "another seed of attack and noise: one was run",
        "other radii: there is no curve of accuracy against eps",
        "threats other than the l_p ball: spatial and perceptual changes",
    ):
        assert text in told
    assert not any("adaptive attack through" in text or "transferred" in text for text in told)
    assert not any("undefended" in text for text in told)
    assert "an attack by the exact gradient: every gradient is approximate" not in claims(made)[0].untested


def test_what_was_tested_is_not_told_as_missing(tmp_path: Path) -> None:
    made = summary(tmp_path)
    header = edited(made.header, "curve", "eps", to=[0.2])
    header = edited(header, "draws", "report", to=64)
    header = edited(header, "threat_model", "norm", to="flow")
    header = edited(header, "rows", 2, "attack", to={**PGD, "n_steps": 50})
    lines = [line._replace(images=600) for line in made.lines]
    lines[1] = lines[1]._replace(kind=AttackKind.TARGETED, images=128)
    lines[2] = lines[2]._replace(mode=GradientMode.DEVIATED)
    told = claims(replace(made, header=header, lines=tuple(lines)))[0].untested
    assert told == (
        "attacks without gradients (black-box)",
        "examples transferred from another model",
        "BPDA",
        "an attack that looks at its draws one by one (selective)",
        "the defence under one fixed noise (which an attacker then knows)",
        "targeted attacks: on the first 128 of the images only",
        "another seed of attack and noise: one was run",
        "changes of pixel values, and any other threat",
    )
    header = edited(header, "threat_model", "norm", to="perceptual")
    told = claims(replace(made, header=header, lines=tuple(lines)))[0].untested
    assert told[-1] == "threats other than a bounded dissimilarity: l_p balls and spatial changes"


def test_checks_that_did_not_pass_are_told(tmp_path: Path) -> None:
    verdicts = tuple(Verdict(f"V{k}", "a check", status, f"sentence {k}") for k, status in enumerate(Status))
    verdicts += (Verdict("V9", "a check", Status.WARN, "sentence 9", method="another"),)
    told = claims(summary(tmp_path, verdicts=verdicts))[0].untested
    assert [text for text in told if text.startswith("check")] == [
        "check V1 (a check), WARN: sentence 1",
        "check V2 (a check), FAIL: sentence 2",
        "check V3 (a check), not run: sentence 3",
    ]


def test_without_a_headline_there_is_no_claim(tmp_path: Path) -> None:
    failed, unchecked = (
        (Conclusion("", status, "A reason."),) for status in (HeadlineStatus.FAILED, HeadlineStatus.UNCHECKED)
    )
    refused = r"a headline, got one without \(V16 failed\.\)"
    for made, said in (
        (summary(tmp_path, conclusions=failed, headline="V16 failed."), refused),
        (summary(tmp_path, conclusions=unchecked, headline="V16 failed."), refused),
        (summary(tmp_path, done=3), "a run that has a headline"),
        (summary(tmp_path, strongest=None), "a run that judges a defence"),
    ):
        with pytest.raises(InputError, match=said):
            claims(made)
    with pytest.raises(InputError, match=r"--method: expected a method of the run \(it has none\), got 'x'"):
        claims(summary(tmp_path), method="x")


def test_each_method_of_a_comparison(tmp_path: Path) -> None:
    made = summarise(test_ranking.made(tmp_path))
    assert made.ranking is not None
    found = claims(made)
    assert [c.method for c in found] == [entry.method for entry in made.ranking.entries] == ["new", "at", "old"]
    assert [c.accuracy for c in found] == [entry.strongest.single for entry in made.ranking.entries]
    assert [c.flags for c in found] == [made.flags_of(c.method) for c in found]
    assert Flag.MASKED in found[0].flags
    assert Flag.MASKED not in found[1].flags
    (at,) = claims(made, method="at")
    assert [row.name for row in at.attacks] == ["at-adaptive"]
    assert "BPDA" not in at.untested  # of a bare classifier there is nothing to pass
    (new,) = claims(made, method="new")
    assert [row.name for row in new.attacks] == ["new-transfer", "new-adaptive", "new-relaxed"]
    assert "BPDA" in new.untested
    assert "under the attack, on" in paragraph(made, at)
    assert any(text.startswith("check V12 (gradients), WARN: ") for text in new.untested)
    assert not any(text.startswith("check V12") for text in at.untested)


def test_of_a_method_that_stands_apart_or_is_unchecked_nothing_is_claimed(tmp_path: Path) -> None:
    """The examples against "old" leave the ball; nothing tries the attack on "at"."""
    far = test_ranking.attacked("old-adaptive", 3, 2, farthest=test_ranking.FAR)
    head = test_ranking.header(test_ranking.ROWS[:-1])
    made = summarise(test_ranking.made(tmp_path, head, old_adaptive=far))
    assert [c.method for c in claims(made)] == ["new"]
    for name, reason in (("old", "V15"), ("at", "The attack was run at one radius")):
        with pytest.raises(InputError, match=rf"a method that has a headline, got {name}, which has none \({reason}"):
            claims(made, method=name)


def test_a_row_for_latex(tmp_path: Path) -> None:
    made = summary(tmp_path)
    made = replace(made, header=edited(made.header, "name", to=r"50%_of {a} & b\c"))
    (claim,) = claims(made)
    row = latex(made, claim)
    assert row.startswith(r"50\%\_of \{a\} \& b\textbackslash{}c & linf, 0.1 & vote of 5 draws & ")
    assert row.endswith(r"\\")
    cells = re.split(r"(?<!\\)&", row)
    assert len(cells) == len(re.split(r"(?<!\\)&", LATEX_COLUMNS))
    assert cells[-2].strip() == "93.8"
    assert cells[-1].strip().startswith("25.0 (")
    assert "–" not in row
    assert escaped("a–b ~ ^ $ # <") == (r"a--b \textasciitilde{} \textasciicircum{} \$ \# \textless{}")


def test_the_entry_for_bibtex_says_what_the_citation_file_says(tmp_path: Path) -> None:
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    entry = bibtex(summary(tmp_path))
    title, author = (re.search(rf'^ *(?:- )?{key}: "(.*)"$', cff, re.M) for key in ("title", "name"))
    assert title is not None
    assert author is not None
    assert f"title = {{{title[1]}}}" in entry
    assert f"author = {{{{{author[1]}}}}}" in entry
    assert entry.count("{") == entry.count("}")


def test_an_ensemble_names_its_parts() -> None:
    parts = [{"type": "depura.APGD"}, {"type": "depura.FAB"}]
    its = row("transfer", images=4, attack={"type": "depura.Together", "attacks": parts})
    assert attack_text(its) == "Together of APGD, FAB"
    assert MODES[its.mode] == "gradient of another model than the one that is judged"
