"""The benchmark of speed runs and measures what it says: same functions and weights. Its times are nobody's promise."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import rows as timing
from benchmarks import speed, speed_page
from benchmarks.anchors import diffusers_loop, plain_loop
from benchmarks.rows import Row, compared, rounds
from depura import VP, Direct, EpsDenoiser, Kind, Noise, TimeLabel, diffpure
from toys import TanhNet, rand

pytestmark = pytest.mark.slow
SMALL = "--width 8 --blocks 1 --steps 2 --batch 2 --repeats 1 --threads 1 --no-compile"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run writes."""
    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("speed") / "runs" / "speed.json"
    speed.main(["--out", str(out), *SMALL.split()])
    torch.set_num_threads(threads)
    return json.loads(out.read_text())


def test_every_section_has_rows_of_finite_ratios(written: dict[str, Any]) -> None:
    assert {row["section"] for row in written["rows"]} == {*speed.SECTIONS, "profile", "noise", "draws"}
    for row in written["rows"]:
        assert set(row) == {field.name for field in fields(Row)}
        assert math.isfinite(row["ratio"])
        assert row["value"] > 0 or row["section"] == "profile"
    assert written["settings"]["parameters"] == sum(p.numel() for p in speed.ddpmpp(8, 1).parameters())
    assert written["machine"]["threads"] == 1


def test_results_that_should_agree_do(written: dict[str, Any]) -> None:
    far = {(row["section"], row["name"], row["than"]): row["deviation"] for row in written["rows"]}
    assert far["gradients", "Direct", "2 bare calls"] == 0
    assert far["gradients", "StoredState(segment=1)", "2 bare calls"] < 1e-5
    assert far["gradients", "StraightThrough", "2 bare calls"] > 1e-3
    assert far["anchors", "depura, plain float32", "plain PyTorch loop"] < 1e-3
    assert far["anchors", "exact gradient, plain float32", "full graph of the plain PyTorch loop"] < 1e-4
    assert 1e-3 < far["precision", "bfloat16, channels-last", speed.PLAIN] < 2
    assert far["precision", "channels-last", speed.PLAIN] < 1e-3


def test_shares_of_the_time_add_up(written: dict[str, Any]) -> None:
    rows = [row for row in written["rows"] if row["section"] == "profile"]
    for title in (speed.PLAIN, "default fast"):
        parts = [row["value"] for row in rows if row["name"].endswith(title)]
        assert len(parts) == 3
        whole = next(row["against"] for row in rows if row["name"].endswith(title))
        assert sum(parts) == pytest.approx(whole)


def test_the_plain_loop_walks_as_depura_does() -> None:
    network, images, noise = TanhNet(3), rand(2, 3, 4, 4), Noise(5, (0, 1))
    denoiser = EpsDenoiser(network, label=TimeLabel(VP()))
    ours = diffpure(denoiser, t_star=0.1, n_steps=4, gradient=Direct())
    theirs = plain_loop(network, images, noise, t_star=0.1, n_steps=4)
    torch.testing.assert_close(ours(images, noise), theirs, rtol=0, atol=1e-12)


def test_the_scheduler_loop_starts_at_its_first_level() -> None:
    """One step from index 0: x0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar)."""
    images, noise = rand(2, 3, 4, 4), Noise(5, (0, 1))
    labels: list[float] = []

    class Constant(nn.Module):
        def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            labels.append(float(label[0]))
            return torch.full_like(x, 0.25)

    out = diffusers_loop(Constant(), images, noise, n_noise=10, n_steps=1)
    x, spread = 2 * images - 1, math.sqrt(1e-4 / (1 - 1e-4))
    expected = x + spread * (noise(x, kind=Kind.FORWARD) - 0.25)
    # diffusers has abar in float32: 1 - abar = 1e-4 to 3e-8, its root 0.01 to 1.5e-6, and a normal draw before it.
    torch.testing.assert_close(2 * out - 1, expected, rtol=0, atol=1e-5)
    diffusers_loop(Constant(), images, noise, n_noise=40, n_steps=4)
    assert labels == [0, 30, 20, 10, 0]


def test_calls_are_timed_in_turn_and_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = {"a": iter([2.0, 9.0, 4.0]), "b": iter([1.0, 3.0, 1.0])}

    def seconds(call: Any) -> float:
        return next(clock[call()])

    def call(name: str) -> Any:
        def run() -> str:
            order.append(name)
            return name

        return run

    monkeypatch.setattr(timing, "seconds", seconds)
    times = rounds({"a": call("a"), "b": call("b")}, repeats=3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert times == {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}
    row = compared("s", "a", "b", times, share=2, note="n")
    # Ratios of the rounds are 1, 1.5 and 2.
    assert (row.value, row.against, row.ratio, row.spread, row.note) == (2.0, 1.0, 1.5, 0.5, "n")


def test_the_page_has_the_numbers_and_figures(tmp_path: Path) -> None:
    row = Row("noise", "noise of a step", "one call", 0.001, 0.5, 0.002, spread=0.0001, note="small")
    large = Row("memory", "the graph", "half of it", 3 * 2**20, 2 * 2**20, 2.0, unit="bytes")
    contents = {
        "machine": {"processor": "P", "cores": 2, "threads": 1, "instructions": "AVX2", "torch": "2"},
        "settings": {"parameters": 9864771, "batch": 8, "steps": 10, "repeats": 5},
        "rows": [asdict(row), asdict(large)],
    }
    file, page = tmp_path / "speed.json", tmp_path / "performance.md"
    file.write_text(json.dumps(contents))
    page.write_text(f"# Speed\n\n{speed_page.BEGIN}\nold\n{speed_page.END}\n\nAfter.\n")
    speed_page.main([str(file), "--page", str(page)])
    text = page.read_text()
    assert "| noise of a step | one call | 0.002 ± 0.0001 |  | small |" in text
    assert "| the graph: 3 MiB | half of it: 2 MiB | 2 |  |  |" in text
    assert "9,864,771 parameters" in text
    assert text.startswith("# Speed\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    figure = tmp_path / "figures" / "speed-noise.svg"
    drawn = figure.read_bytes()
    speed_page.main([str(file), "--page", str(page)])
    assert page.read_text() == text
    assert figure.read_bytes() == drawn
    again, newer = tmp_path / "again.json", replace(row, ratio=0.004)
    again.write_text(json.dumps(contents | {"rows": [asdict(newer)]}))
    speed_page.main([str(file), str(again), "--page", str(page)])
    assert "| noise of a step | one call | 0.004 ± 0.0001 |  | small |" in page.read_text()
    assert "the graph: 3 MiB" in page.read_text()
    again.write_text(json.dumps(contents | {"settings": {**contents["settings"], "steps": 20}}))  # type: ignore[dict-item]
    with pytest.raises(SystemExit):
        speed_page.main([str(file), str(again), "--page", str(page)])
    page.write_text("no marks")
    with pytest.raises(SystemExit):
        speed_page.main([str(file), "--page", str(page)])
