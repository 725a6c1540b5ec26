"""Two runs compared, from records made by hand: 8 images, 4 report draws."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.records import SINGLE, ByHand, edited, method

from depura._check import InputError
from depura.analysis.comparison import compare_runs, detectable_gap
from depura.records.directory import RecordError, RunDirectory, differences
from depura.records.schema import Header
from depura.reports.prose import comparison_sentences

N, K = 8, 4
BY_HAND = ByHand(range(N), draws=K)

Errors = dict[str, list[int]]
Change = Callable[[Header], Header]

A: Errors = {
    "null-defence": [0, 0, 0, 0, 0, 0, 0, 1],
    "undefended": [4] * N,
    "transfer": [4, 0, 0, 0, 0, 0, 0, 0],
    "adaptive": [2, 3, 1, 1, 2, 1, 4, 2],
}
B: Errors = {
    "null-defence": [0, 0, 0, 0, 0, 0, 0, 1],
    "undefended": [4] * N,
    "transfer": [0, 0, 0, 0, 0, 0, 0, 0],
    "adaptive": [0, 0, 0, 0, 0, 0, 0, 0],
}
KINDS = {"square": "black-box"}


def header(errors: Errors, of: str = "") -> Header:
    """Of the rows of one defence, or of one method of a comparison; the bare classifier has its clean baseline too."""
    begin = f"{of}-" if of else ""
    rows = [
        BY_HAND.row(
            f"{begin}{name}",
            KINDS.get(name, name),
            method="" if name == "undefended" else of,
            images=len(found),
            null=f"null-{of or 'defence'}",
        )
        for name, found in errors.items()
        if not name.startswith("null-")
    ]
    return BY_HAND.header(rows, methods=[method(of)])


def run(path: Path, head: Header, errors: Errors) -> RunDirectory:
    """A run whose attacks found, on the select draws, as many errors as are reported."""
    units = [
        BY_HAND.null(name, found) if name.startswith("null-") else BY_HAND.attacked(name, found)
        for name, found in errors.items()
    ]
    return BY_HAND.run(path, head, units)


def made(path: Path, errors: Errors, change: Change = lambda head: head) -> RunDirectory:
    """A run of one defence."""
    return run(path, change(header(errors)), errors)


def changed(*path: str | int, to: Any) -> Change:
    """What sets one value of a header."""
    return lambda head: edited(head, *path, to=to)


def swapped_p(differences: np.ndarray) -> float:
    """The permutation test by enumeration of all signs."""
    seen = abs(differences.sum())
    sums = [abs((differences * signs).sum()) for signs in itertools.product((1, -1), repeat=len(differences))]
    return float(np.mean([total >= seen - 1e-12 for total in sums]))


def test_every_number_of_a_comparison(tmp_path: Path) -> None:
    found = compare_runs(made(tmp_path / "a", A), made(tmp_path / "b", B))
    pairs = {pair.row: pair for pair in found.pairs}
    assert list(pairs) == ["null", "transfer", "adaptive", "strongest"]
    assert pairs["null"].difference.value == 0
    assert pairs["adaptive"].first.value == pytest.approx(1 - 16 / 32)
    assert pairs["adaptive"].second.value == 1
    assert pairs["adaptive"].difference.value == pytest.approx(-0.5)
    strongest = np.array([4, 3, 1, 1, 2, 1, 4, 2]) / 4  # image 0: transfer had more errors on the select draws
    assert pairs["strongest"].first.value == pytest.approx(1 - strongest.mean())
    # All eight images differ the same way: the permutation test gives 2 / 2^8. Raw p-values: null 1, transfer 1 (one
    # image), adaptive and strongest 2 / 256; Holm multiplies the two smallest by 4 and by 3, then takes the larger.
    raw = swapped_p(strongest)
    assert raw == 2 / 2**8
    assert pairs["adaptive"].difference.p == pytest.approx(4 * raw)
    assert pairs["strongest"].difference.p == pytest.approx(4 * raw)
    assert pairs["null"].difference.p == pairs["transfer"].difference.p == 1
    assert [pair.row for pair in found.detectable] == ["adaptive", "strongest"]
    assert "B keeps 56.2 points more accuracy than A" in comparison_sentences(found)[0]
    assert not found.warnings


def test_the_gap_is_that_of_a_normal_test_at_the_corrected_level(tmp_path: Path) -> None:
    found = compare_runs(made(tmp_path / "a", A), made(tmp_path / "b", B))
    adaptive = next(pair for pair in found.pairs if pair.row == "adaptive")
    spread = np.std(np.array(A["adaptive"]) / K, ddof=1)
    assert adaptive.gap == pytest.approx((2.4977 + 0.8416) * spread / math.sqrt(N), rel=1e-4)  # z of 1 - 0.05 / 8, 0.8
    assert math.isnan(next(pair for pair in found.pairs if pair.row == "null").gap)
    assert detectable_gap(np.array([0.5, 0.5])) != detectable_gap(np.array([0.5, 0.5]))  # NaN: nothing to go by


def test_the_gap_is_found_in_four_of_five_runs() -> None:
    """Simulated: true differences of the size of the gap, many images, one test."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 0.3, (4000, 200))
    gap = np.mean([detectable_gap(row) for row in draws[:200]])
    z = (draws.mean(1) + gap) / (draws.std(1, ddof=1) / math.sqrt(200))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.02)


def test_a_run_is_no_different_from_itself(tmp_path: Path) -> None:
    run = made(tmp_path / "a", A)
    found = compare_runs(run, run)
    assert not found.detectable
    assert comparison_sentences(found)[0].startswith("No detectable difference between A and B")
    assert "The purifiers are the same: what differs is the attack or chance." in found.notes


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("data", "ids"), [*range(1, N), 0], r"same images, got ids\[0\] 0 in .*a and 1 in .*b"),
        (("data", "labels"), [1] * N, r"same images, got labels\[0\]"),
        (("data", "images"), {"sha256": "11"}, r'same images, got images\.sha256 "00" in .*a and "11" in .*b'),
        (("threat_model", "eps"), 0.2, r"same threat model, got eps 0\.1 in .*a and 0\.2 in .*b"),
        (
            ("methods", 0, "rule"),
            {**SINGLE, "n_draws": 3},
            r"same deployed rule, got deployed rule\.n_draws 1 in .* and 3 in",
        ),
        (
            ("methods", 0, "defence", "classifier", "weights_sha256"),
            "bb",
            r"same classifier, got classifier\.weights_sha256",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, said: str
) -> None:
    a, b = made(tmp_path / "a", A), made(tmp_path / "b", B, changed(*path, to=value))
    with pytest.raises(InputError, match=said):
        compare_runs(a, b)


def test_another_purifier_is_what_comparisons_are_for(tmp_path: Path) -> None:
    other = changed("methods", 0, "defence", "purifier", "t_star", to=0.2)
    found = compare_runs(made(tmp_path / "a", A), made(tmp_path / "b", B, other))
    assert not any("purifiers" in note for note in found.notes)


def test_unequal_attacks_are_told(tmp_path: Path) -> None:
    def change(head: Header) -> Header:
        head = edited(head, "seed", to=8)
        head = edited(head, "draws", "report", to=5)
        head = edited(head, "versions", "depura", to="1")
        head = edited(head, "rows", 2, "mode", to="bpda")
        return edited(head, "rows", 2, "attack", "eot", to=1)

    b = {**B, "transfer": B["transfer"][:6], "square": [1] * N}
    found = compare_runs(made(tmp_path / "a", A), made(tmp_path / "b", b, change))
    assert found.warnings == (
        "Row transfer was run on 8 images in A and 6 in B; the first 6 are compared.",
        "Row adaptive is another attack in B than in A (eot: 5 in A, 1 in B).",
        "Row adaptive has gradient mode exact in A and bpda in B.",
        "Only B has square: 'strongest' is under unequal sets of attacks, 'strongest of shared' is under those that "
        "both have.",
    )
    assert found.notes[:3] == (
        "Not the same: seed (7 in A, 8 in B).",
        "Not the same: draws.report (4 in A, 5 in B).",
        'Not the same: versions.depura ("0" in A, "1" in B).',
    )
    pairs = {pair.row: pair for pair in found.pairs}
    assert pairs["transfer"].images == 6
    assert pairs["transfer"].first.value == pytest.approx(1 - 4 / 24)
    assert "square" not in pairs
    assert pairs["strongest"].second.value == pytest.approx(3 / 4)
    assert pairs["strongest of shared"].second.value == 1


def test_another_kind_of_attack_is_told_by_its_type_alone(tmp_path: Path) -> None:
    other = changed("rows", 2, "attack", to={"type": "depura.APGD", "n_steps": 10})
    found = compare_runs(made(tmp_path / "a", A), made(tmp_path / "b", B, other))
    assert found.warnings == (
        'Row adaptive is another attack in B than in A (type: "depura.PGD" in A, "depura.APGD" in B).',
    )


def of_methods(path: Path, errors: Errors, *names: str) -> RunDirectory:
    """The rows of a run, once for each of several methods."""
    heads = [header(errors, name) for name in names]
    rows = [row for head in heads for row in head.rows]
    own = {f"{m}-{n}" if not n.startswith("null-") else f"null-{m}": e for m in names for n, e in errors.items()}
    return run(path, BY_HAND.header(rows), own)


def test_methods_of_comparisons(tmp_path: Path) -> None:
    a = of_methods(tmp_path / "a", A, "old", "new")
    b = of_methods(tmp_path / "b", B, "new", "other")
    both = compare_runs(a, b)
    assert {pair.methods for pair in both.pairs} == {("new", "new")}
    assert [pair.row for pair in both.pairs] == ["null", "transfer", "adaptive", "strongest"]
    assert both.pairs[3].difference.value == pytest.approx(-18 / 32)
    named = compare_runs(a, b, methods=("old", "other"))
    assert {pair.methods for pair in named.pairs} == {("old", "other")}
    assert comparison_sentences(named)[0].startswith("Under the strongest attack for each image B (other) keeps")
    alone = compare_runs(made(tmp_path / "c", A), b, methods=("", "new"))
    assert alone.pairs[3].difference.value == pytest.approx(-18 / 32)
    assert comparison_sentences(alone)[0].startswith("Under the strongest attack for each image B (new) keeps")
    assert "more accuracy than A (A - B:" in comparison_sentences(alone)[0]
    for methods, said in (
        (("older", ""), r"--method-a: expected a method of that run \(old, new\), got 'older'"),
        (("old", ""), r"--method-b: expected which of the run's methods \(new, other\)"),
    ):
        with pytest.raises(InputError, match=said):
            compare_runs(a, b, methods=methods)
    with pytest.raises(InputError, match=r"a method in common, got no methods and new, other"):
        compare_runs(made(tmp_path / "c", A), b)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", A), made(tmp_path / "b", B)
    b.file("adaptive_eps0.1_00000-00008").unlink()
    with pytest.raises(RecordError, match="b: expected a finished run, got one that lacks 1 of its 4 units"):
        compare_runs(a, b)


def test_json_holds_the_same_and_no_nan(tmp_path: Path) -> None:
    found = compare_runs(made(tmp_path / "a", A), made(tmp_path / "b", B))
    again = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert [p["row"] for p in again["pairs"]] == [p.row for p in found.pairs]
    assert again["pairs"][0]["gap"] is None
    assert again["pairs"][2]["difference"]["detectable"] is True
    assert again["pairs"][2]["first"]["value"] == found.pairs[2].first.value


def test_differences_name_every_place() -> None:
    found = [*differences({"a": 1, "b": [1, {"c": None}], "d": 2}, {"a": 1, "b": [2, {"c": None}, 3]})]
    assert [tuple(d) for d in found] == [("b[0]", "1", "2"), ("b[2]", "missing", "3"), ("d", "2", "missing")]
    assert [d.where for d in differences({"a": None}, {})] == ["a"]
