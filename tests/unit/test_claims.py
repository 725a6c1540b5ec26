"""Claims, from the records that test_summary makes by hand."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit import test_ranking, test_summary

from depura._check import InputError
from depura.judging.claims import claims
from depura.judging.summary import Summary, summarise
from depura.judging.verdicts import Status, Verdict
from depura.reports.claims import COLUMNS, attack, bibtex, escaped, latex, paragraph

PGD = {"type": "depura.attacks.pgd.PGD", "n_steps": 20, "n_restarts": 1, "eot": 5}
ROOT = Path(__file__).parents[2]


def summary(tmp_path: Path, **changed: Any) -> Summary:
    """One image in four is right under the strongest attack (12 of 16 draws are wrong), 15 of 16 without."""
    made = summarise(test_summary.made(tmp_path))
    header = copy.deepcopy(made.header)
    header["defence"] = {"purifier": {"type": "x"}}
    header["versions"] |= {"torch": "2_x"}
    for row in header["rows"]:
        row["attack"] = PGD
    return replace(made, header=header, **{"verdicts": (), "flags": (), "refused": False, **changed})


def test_the_paragraph_holds_every_number_of_the_run(tmp_path: Path) -> None:
    made = summary(tmp_path, flags=("transfer-only",))
    (claim,) = claims(made)
    assert claim.accuracy.value == pytest.approx(0.25)
    assert claim.null.value == pytest.approx(15 / 16)
    text = paragraph(made, claim)
    low, high = 100 * claim.accuracy.low, 100 * claim.accuracy.high
    for part in (
        "Linf ball of radius 0.1, images in [0, 1]: the robust accuracy of by-hand is at most 25.0 % "
        f"(95 % CI {low:.1f}–{high:.1f}; {claim.accuracy.method}), for the deployed rule of vote of 5 draws.",
        "the same defence has 93.8 %",
        "the strongest of 2 attacks for each image, chosen on 2 other draws, on 4 images of four, each",
        "The attacks: transfer (PGD, 20 steps, 5 draws per gradient; route G0, bare classifier); adaptive (PGD,",
        "One seed (7); depura 0, torch 2_x.",
        "Flags: transfer-only.",
    ):
        assert part in text
    assert "undefended" not in text  # no attack on the defence


def test_what_was_not_tested(tmp_path: Path) -> None:
    made = summary(tmp_path)
    told = claims(made)[0].untested
    for text in (
        "targeted attacks",
        "attacks without gradients (black-box)",
        "BPDA",
        "an attack by the exact gradient: every route is approximate",
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


def test_what_was_tested_is_not_told_as_missing(tmp_path: Path) -> None:
    made = summary(tmp_path)
    header = copy.deepcopy(made.header)
    header["curve"]["eps"] = [0.2]
    header["draws"]["report"] = 64
    header["threat_model"]["norm"] = "flow"
    header["rows"][2]["attack"] = {**PGD, "n_steps": 50}
    lines = [line._replace(images=600) for line in made.lines]
    lines[1] = lines[1]._replace(kind="targeted", images=128)
    lines[2] = lines[2]._replace(route="G6")
    told = claims(replace(made, header=header, lines=tuple(lines)))[0].untested
    assert told == (
        "attacks without gradients (black-box)",
        "examples transferred from another model",
        "BPDA",
        "an attack that looks at its draws one by one (selective)",
        "the defence with its noise pinned (which an attacker then knows)",
        "targeted attacks: on the first 128 of the images only",
        "another seed of attack and noise: one was run",
        "changes of pixel values, and any other threat",
    )


def test_checks_that_did_not_pass_are_told(tmp_path: Path) -> None:
    verdicts = tuple(Verdict(f"V{k}", "a check", status, f"sentence {k}") for k, status in enumerate(Status))
    told = claims(summary(tmp_path, verdicts=verdicts))[0].untested
    assert [text for text in told if text.startswith("check")] == [
        "check V1 (a check), WARN: sentence 1",
        "check V2 (a check), FAIL: sentence 2",
        "check V3 (a check), not run: sentence 3",
    ]


def test_without_a_headline_there_is_no_claim(tmp_path: Path) -> None:
    for made, said in (
        (summary(tmp_path, refused=True, headline="V16 failed."), r"a headline, got one without \(V16 failed\.\)"),
        (summary(tmp_path, done=3), "a run that has a headline"),
        (summary(tmp_path, strongest=None), "a run that judges a defence"),
    ):
        with pytest.raises(InputError, match=said):
            claims(made)
    with pytest.raises(InputError, match=r"--method: expected a method of the run \(it has none\), got 'x'"):
        claims(summary(tmp_path), method="x")


def test_each_method_of_a_comparison(tmp_path: Path) -> None:
    made = summarise(test_ranking.made(tmp_path))
    header = copy.deepcopy(made.header)
    for method in header["methods"]:
        method["defence"] = {"purifier": None if method["baseline"] else {"type": "x"}}
    for row in header["rows"]:
        row["attack"] = PGD
    made = replace(made, header=header, refused=False)
    assert made.ranking is not None
    found = claims(made)
    assert [c.method for c in found] == [s.method for s in made.ranking.standings]
    assert [c.accuracy for c in found] == [s.strongest.single for s in made.ranking.standings]
    (at,) = claims(made, method="at")
    assert [row["name"] for row in at.attacks] == ["at-adaptive"]
    assert "BPDA" not in at.untested  # of a bare classifier there is nothing to pass
    (new,) = claims(made, method="new")
    assert [row["name"] for row in new.attacks] == ["new-transfer", "new-adaptive", "new-relaxed"]
    assert "BPDA" in new.untested
    assert "under the attack, on" in paragraph(made, at)


def test_a_row_for_latex(tmp_path: Path) -> None:
    made = summary(tmp_path)
    made.header["name"] = r"50%_of {a} & b\c"
    (claim,) = claims(made)
    row = latex(made, claim)
    assert row.startswith(r"50\%\_of \{a\} \& b\textbackslash{}c & linf, 0.1 & vote of 5 draws & ")
    assert row.endswith(r"\\")
    cells = re.split(r"(?<!\\)&", row)
    assert len(cells) == len(re.split(r"(?<!\\)&", COLUMNS))
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
    parts = [{"type": "depura.attacks.apgd.APGD"}, {"type": "depura.attacks.fab.FAB"}]
    row = {"route": "G0", "attack": {"type": "depura.attacks.ensembles.Together", "attacks": parts}}
    assert attack(row) == "Together of APGD, FAB; route G0, bare classifier"
