"""A run as one table, from the records that test_summary makes by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_summary import attacked, made

from depura._check import InputError
from depura.evaluation.records import Unit
from depura.judging.exported import COLUMNS, table
from depura.reports.datafiles import encode


def of(row: str, errors: list[int], select: list[int], **arrays: Any) -> Unit:
    unit = attacked(row, errors, select, [0.5, -1, 0.25, 2])
    return Unit({**unit.arrays, "margins": np.array([0.1, 0.2, 0.3, 1 / 3]), **arrays}, unit.meta)


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
    found = table(run)
    assert list(found) == list(COLUMNS)
    assert found["row"] == ["undefended"] * 4 + ["transfer"] * 4 + ["adaptive"] * 4
    assert found["image"] == [10, 11, 12, 13] * 3
    assert found["errors"][4:] == [3, 0, 1, 2, 1, 4, 3, 4]
    assert found["error_rate"][8] == 0.25
    assert found["null_errors"] == [0, 0, 0, 0] + [0, 0, 1, 0] * 2
    assert found["random_errors"] == [0, 0, 0, 0] + [0, 1, 1, 0] * 2
    assert found["select_errors"][8:] == [0, 2, 1, 0]  # candidate 0 had none, candidate 1 as many as given above
    assert found["select_margin"][:4] == [0.5, -1, 0.25, 2]
    assert found["rounded_errors"][4:8] == [2, 1, 2, 2]  # one more than as made, of two draws
    assert found["zero_gradients"][8:] == [0, 0.5, 0.25, 1]
    assert found["predicted"][8:] == ["0:3 9:1", "9:4", "9:3 2:1", "9:4"]
    assert found["finished"][:4] == [3, -1, 0, -1]
    line = dict(zip(COLUMNS, encode(found, Path("x.csv")).decode().splitlines()[4].split(","), strict=True))
    assert line["margin"] == repr(1 / 3)


def test_an_attack_without_gradients_has_no_share_of_zeros(tmp_path: Path) -> None:
    units = {name: of(name, [1] * 4, [1] * 4) for name in ("undefended", "transfer", "adaptive")}
    del units["transfer"].arrays["zero_gradients"]
    found = table(made(tmp_path, **units))
    assert found["zero_gradients"] == [0] * 4 + [None] * 4 + [0] * 4
    line = dict(zip(COLUMNS, encode(found, Path("x.CSV")).decode().splitlines()[5].split(","), strict=True))
    assert line["zero_gradients"] == ""


def test_other_endings_are_refused() -> None:
    with pytest.raises(InputError, match=r"a file name ending in \.csv or \.parquet, got x\.json"):
        encode({"a": [1]}, Path("x.json"))


def test_the_columns_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "working-with-runs.md").read_text(encoding="utf-8")
    assert "\n".join(f"| {name} | {holds} |" for name, holds in COLUMNS.items()) in page
