"""A run as one table, from the records that test_summary makes by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_summary import BY_HAND, attacked, header, made

from depura._check import InputError
from depura.records.directory import RecordError, Unit
from depura.records.kinds import NOT_FINITE
from depura.records.schema import Curve
from depura.reports.export import COLUMNS, file_bytes, run_columns


def of(row: str, errors: list[int], select: list[int], **arrays: Any) -> Unit:
    return attacked(row, errors, select, [0.5, -1, 0.25, 2], **{"margins": [0.1, 0.2, 0.3, 1 / 3], **arrays})


def test_one_line_for_each_image_and_attack(tmp_path: Path) -> None:
    run = made(
        tmp_path,
        undefended=of("undefended", [4, 4, 4, 4], [2, 2, 2, 2]),
        transfer=of("transfer", [3, 0, 1, 2], [2, 0, 0, 1]),
        adaptive=of(
            "adaptive",
            [1, 4, 3, 4],
            [1, 2, 1, 1],
            chosen=np.array([0, 1, 1, 0], dtype=np.int32),
            zero_gradients=np.array([0, 0.5, 0.25, 1]),
        ),
    )
    found = run_columns(run)
    assert list(found) == list(COLUMNS)
    assert found["row"] == ["undefended"] * 4 + ["transfer"] * 4 + ["adaptive"] * 4 + ["reference"] * 4
    assert found["mode"] == ["exact"] * 4 + ["transfer"] * 4 + ["exact"] * 8
    assert found["kind"][12:] == ["reference"] * 4
    assert found["image"] == [10, 11, 12, 13] * 4
    assert found["errors"][4:12] == [3, 0, 1, 2, 1, 4, 3, 4]
    assert found["not_finite"] == [0] * 16
    assert found["error_rate"][8] == 0.25
    assert found["null_errors"] == [0, 0, 0, 0] + [0, 0, 1, 0] * 3
    assert found["random_errors"] == [0, 0, 0, 0] + [0, 1, 1, 0] * 3
    assert found["select_errors"][8:12] == [0, 2, 1, 0]  # candidate 0 had none, candidate 1 as many as given above
    assert found["select_margin"][:4] == [0.5, -1, 0.25, 2]
    assert found["rounded_errors"][4:8] == [2, 1, 2, 2]  # one more than as made, of two draws
    assert found["zero_gradients"][8:12] == [0, 0.5, 0.25, 1]
    assert found["predicted"][8:12] == ["0:3 9:1", "9:4", "9:3 2:1", "9:4"]
    assert found["finished"][:4] == [3, -1, 0, -1]
    line = dict(zip(COLUMNS, file_bytes(found, Path("x.csv")).decode().splitlines()[4].split(","), strict=True))
    assert line["margin"] == repr(1 / 3)
    assert (line["mode"], line["not_finite"]) == ("exact", "0")


def test_an_attack_without_gradients_has_no_share_of_zeros(tmp_path: Path) -> None:
    units = {name: of(name, [1] * 4, [1] * 4) for name in ("undefended", "transfer", "adaptive")}
    del units["transfer"].arrays["zero_gradients"]
    found = run_columns(made(tmp_path, **units))
    assert found["zero_gradients"] == [0] * 4 + [None] * 4 + [0] * 8
    line = dict(zip(COLUMNS, file_bytes(found, Path("x.CSV")).decode().splitlines()[5].split(","), strict=True))
    assert line["zero_gradients"] == ""


def test_draws_that_are_not_finite_are_counted_and_are_errors(tmp_path: Path) -> None:
    """Of image 10, whose class is 0, all draws; of image 12 one, and another is wrong."""
    predictions = BY_HAND.predictions([0, 0, 2, 0])
    predictions[0], predictions[2, 0] = NOT_FINITE, NOT_FINITE
    adaptive = of("adaptive", [1] * 4, [1] * 4, predictions=predictions)
    found = run_columns(made(tmp_path, adaptive=adaptive))
    assert found["not_finite"][8:12] == [4, 0, 1, 0]
    assert found["errors"][8:12] == [4, 0, 2, 0]
    assert found["predicted"][8:12] == ["-1:4", "1:4", "2:2 -1:1 9:1", "3:4"]


def test_further_radii_have_lines_of_their_own(tmp_path: Path) -> None:
    """Random corners are of the study's own radius; nothing is told of them at others."""
    head = header(curve=Curve(eps=(0.2,), images=2, rows=("adaptive",)))
    further = BY_HAND.attacked("adaptive", [4, 2], eps=0.2)
    run = made(tmp_path, head.model_copy(update={"units": header().units}))
    run = run.extend(head)
    run.commit(further)
    found = run_columns(run)
    lines = [k for k, row in enumerate(found["row"]) if row == "adaptive"]
    assert [found["eps"][k] for k in lines] == [0.1] * 4 + [0.2] * 2
    assert [found["errors"][k] for k in lines] == [1, 4, 3, 4, 4, 2]
    assert [found["random_errors"][k] for k in lines] == [0, 1, 1, 0, None, None]


def test_an_unfinished_run_has_no_table(tmp_path: Path) -> None:
    run = made(tmp_path)
    run.file("adaptive_eps0.1_00000-00004").unlink()
    with pytest.raises(
        RecordError, match=r"a finished run, got one that lacks 1 of its 6 units\. Finish it: depura run"
    ):
        run_columns(run)


def test_other_endings_are_refused() -> None:
    with pytest.raises(InputError, match=r"a file name ending in \.csv or \.parquet, got x\.json"):
        file_bytes({"a": [1]}, Path("x.json"))


def test_the_columns_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "working-with-runs.md").read_text(encoding="utf-8")
    assert "\n".join(f"| {name} | {holds} |" for name, holds in COLUMNS.items()) in page
