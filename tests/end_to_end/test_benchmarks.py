"""The benchmark of gradients runs, says what it should, and measures what it says. Its times are nobody's promise."""

import json
import math
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch

from benchmarks import gradients, published
from benchmarks.gradients import T_STAR, Problem, Row
from benchmarks.memory import peak_bytes
from depura import Direct, Kind, StoredState, StraightThrough
from depura.gradients import Adjoint
from depura.records.kinds import GradientMode

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
EXACT = ("full graph", "StoredState(segment=1)", "StoredState(budget=half)", "StoredState(budget=all)")
OTHERS = ("Adjoint", "StraightThrough", "torchsde sdeint_adjoint")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a tiny run."""
    out = tmp_path_factory.mktemp("bench") / "runs" / "gradients.json"
    small = "--width 8 --steps 4 --batch 2 --memory-steps 1,4 --repeats 1 --threads 1"
    tf32 = torch.backends.cudnn.allow_tf32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks.gradients", "--out", str(out), *small.split()])
        patch.setattr(gradients, "BARE_CALLS", 1)
        gradients.main()
    torch.backends.cudnn.allow_tf32 = tf32
    return json.loads(out.read_text())


def test_every_row_has_every_field(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert set(row) == {field.name for field in fields(Row)}
        assert row["peak_bytes"] > 0
    timed = [row for row in rows if row["time_ratio"] is not None]
    assert sorted(row["route"] for row in timed) == sorted(EXACT + OTHERS)
    for row in timed:
        assert all(math.isfinite(row[name]) for name in ("time_ratio", "b", "rel_error", "cosine"))
    assert [row["steps"] for row in rows if row["note"] == "memory only"] == [1, 4]


def test_exact_rows_keep_the_error_limits(rows: list[dict[str, Any]]) -> None:
    judged = [row for row in rows if row["error_limit"] is not None]
    assert [(row["route"], row["dtype"]) for row in judged] == [
        *((name, "float32") for name in EXACT),
        ("StoredState(segment=1)", "float64"),
    ]
    for row in judged:
        assert row["error_limit"] == {"float32": 1e-5, "float64": 1e-12}[row["dtype"]]
        assert row["rel_error"] <= row["error_limit"]
    for row in rows:
        if row["route"] in OTHERS:
            assert row["rel_error"] > 1e-3


def test_calls_and_memory_tell_the_routes_apart(rows: list[dict[str, Any]]) -> None:
    by_route = {row["route"]: row for row in rows if row["time_ratio"] is not None}
    calls = {name: row["calls"] for name, row in by_route.items()}
    assert calls["full graph"] == calls["StoredState(budget=all)"] == calls["StraightThrough"] == 4
    assert calls["StoredState(segment=1)"] == 8
    assert 4 < calls["StoredState(budget=half)"] < 8
    peaks = {name: row["peak_bytes"] for name, row in by_route.items()}
    assert peaks["StoredState(segment=1)"] < peaks["StoredState(budget=half)"] < peaks["StoredState(budget=all)"]


def test_the_peak_is_that_of_the_allocator() -> None:
    kilobyte, kept = 1024, torch.zeros(256)

    def f() -> None:
        a = torch.zeros(256 * 8)  # 8 KiB
        b = a + kept.repeat(8)  # 8 + 8 + 8 KiB: the peak
        del a
        (b[:256] * 2).sum()

    assert 24 * kilobyte <= peak_bytes(f, device=CPU) <= 25 * kilobyte

    x = torch.rand(1, 4, 16, 16, requires_grad=True)  # 4 KiB
    tanhs = 5

    def g() -> None:
        y = x
        for _ in range(tanhs):
            y = torch.tanh(y)
        torch.autograd.grad(y, x, torch.ones_like(y))

    # Each tanh keeps its result; beside them are the ones, and the cotangents before and after the second tanh back.
    assert peak_bytes(g, device=CPU) == 4 * (tanhs + 3) * kilobyte


def test_the_walk_of_torchsde_is_ours() -> None:
    n = 5
    problem = Problem.random(width=8, batch=2, device=CPU).in_double()
    purifier = problem.purifier(n, Direct())
    path = published.Increments(problem.images.flatten(1))
    for step in purifier.steps:
        z = problem.noise(problem.images, kind=Kind.REVERSE, step=step.index)
        path.known.append(math.sqrt(step.t - step.t_next) * z.flatten(1))
    theirs = published.purify(
        problem.network, problem.images, problem.noise, t_star=T_STAR, n_steps=n, path=path, adjoint=False
    )
    # diffusers computes the features of the time in float32, and t goes through 1 - (1 - t) there.
    torch.testing.assert_close(purifier(problem.images, problem.noise), theirs, rtol=0, atol=1e-6)


def test_the_gradient_goes_through_the_network() -> None:
    problem = Problem.random(width=8, batch=2, device=CPU)
    found = {route.mode: problem.by_route(4, route)() for route in (StoredState(), StraightThrough(), Adjoint())}
    assert all(bool(g.isfinite().all()) for g in found.values())
    exact = found[GradientMode.EXACT]
    for mode in (GradientMode.BPDA, GradientMode.ADJOINT):
        assert (found[mode] - exact).norm() > 0.1 * exact.norm()
