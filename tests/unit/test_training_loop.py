"""Schedules, time budgets, curves and ranks of the training loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from depura import InputError, load_digits
from depura.noise import Kind, Noise
from depura.training import loop
from depura.training.loop import CONSTANT, COSINE, UNDECIDED, History, Recipe, Report, seeded, train
from depura.training.mixture import Mixture
from depura.training.ranks import Ranks

DATA = Mixture.of([load_digits("train")])


class StopError(Exception):
    """Stands for a kill."""


class Squared:
    """Distance of a linear map's outputs to the images, noise at the input: any loss that has noise will do."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        noisy = images + noise(images, kind=Kind.FORWARD)
        return (self.network(noisy.flatten(1)) - images.flatten(1)).square().mean()


class Clock:
    """A clock that advances by a set time whenever it is looked at."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 1000.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def fit(recipe: Recipe, **options: object) -> tuple[dict[str, Tensor], History]:
    network = seeded(lambda: nn.Linear(64, 64), recipe.seed)
    history = train(network, Squared(network), DATA, recipe, **options)  # type: ignore[arg-type]
    return network.state_dict(), history


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_cosine_and_the_constant_schedule() -> None:
    cosine = Recipe(100, rate=2.0, warmup=10)
    assert [cosine.rate_at(step) for step in (0, 9)] == pytest.approx([0.2, 2 * 0.5 * (1 + 0.9603)], rel=1e-3)
    assert cosine.rate_at(50) == pytest.approx(1.0)
    flat = replace(cosine, schedule=CONSTANT, decay=0.2)
    assert [flat.rate_at(step) for step in (4, 9, 50, 80)] == pytest.approx([1.0, 2.0, 2.0, 2.0])
    assert [flat.rate_at(step) for step in (85, 90, 99)] == pytest.approx([1.5, 1.0, 0.1])
    assert flat.rate_at(85, 170) == pytest.approx(2.0)
    assert Recipe(10, schedule=CONSTANT, decay=0.0, warmup=0, rate=1.0).rate_at(9) == 1.0


def test_a_budget_says_how_many_steps_once_the_decay_would_fill_the_rest() -> None:
    recipe = Recipe(UNDECIDED, schedule=CONSTANT, decay=0.25, minutes=1.0)
    assert recipe.decided(50, 44.9) is None
    assert recipe.decided(60, 45.0) == 80
    assert recipe.decided(0, 100.0) == 1
    assert replace(recipe, n_steps=70).decided(60, 45.0) == 70
    assert replace(recipe, minutes=None).decided(60, 1e9) is None


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_time_budget_gives_the_weights_of_the_steps_that_it_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Also where training was stopped after the number of steps had been decided, and went on by a slower clock."""
    recipe = Recipe(UNDECIDED, batch=8, warmup=5, schedule=CONSTANT, minutes=1.0)
    monkeypatch.setattr(loop, "time", Clock(0.4))
    seen: list[Report] = []
    checkpoint = tmp_path / "state.safetensors"

    def stop(report: Report) -> None:
        seen.append(report)
        # A checkpoint after that of the decision.
        if killed and sum(report.n_steps < UNDECIDED for report in seen) > 27:
            raise StopError

    if killed:
        with pytest.raises(StopError):
            fit(recipe, checkpoint=checkpoint, every=20, progress=stop)
        monkeypatch.setattr(loop, "time", Clock(3.0))
    found, history = fit(recipe, checkpoint=checkpoint, every=20, progress=seen.append)
    undecided = [report for report in seen if report.n_steps == UNDECIDED]
    assert 60 < len(undecided) < history.n_steps < 200
    assert 0.7 < undecided[-1].step / history.n_steps <= 0.75 + 1e-9
    assert all(a.left >= b.left for a, b in pairwise(undecided))
    expected, again = fit(Recipe(history.n_steps, batch=8, warmup=5, schedule=CONSTANT))
    assert again.n_steps == history.n_steps
    assert same(found, expected)
    other, _ = fit(Recipe(history.n_steps + 1, batch=8, warmup=5, schedule=CONSTANT))
    assert not same(found, other)


def test_a_budget_needs_a_schedule_that_need_not_know_its_end() -> None:
    with pytest.raises(InputError, match=r"constant-then-decay.*cosine"):
        Recipe(10, minutes=1.0)
    with pytest.raises(InputError, match="minutes"):
        Recipe(10, minutes=0.0, schedule=CONSTANT)
    with pytest.raises(InputError, match="schedule"):
        Recipe(10, schedule="linear")


def test_curves_are_of_averaged_weights_and_survive_a_stop(tmp_path: Path) -> None:
    recipe = Recipe(20, batch=8)

    def watch(network: nn.Module, report: Report) -> Mapping[str, float]:
        assert not network.training
        assert isinstance(network, nn.Linear)
        return {"weight": float(network.weight.detach().double().sum())}

    whole, history = fit(recipe, every=5, watch=watch)
    assert [point["step"] for point in history.curve] == [5, 10, 15, 20]
    assert history.curve[-1]["weight"] == pytest.approx(float(whole["weight"].double().sum()), rel=1e-12)
    losses: list[float] = []

    def stop(report: Report) -> None:
        losses.append(report.loss)
        if report.step == 13:
            raise StopError

    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(StopError):
        fit(recipe, every=5, watch=watch, checkpoint=checkpoint, progress=stop)
    again, gone_on = fit(recipe, every=5, watch=watch, checkpoint=checkpoint)
    assert same(again, whole)
    timeless = [[{k: v for k, v in p.items() if k != "seconds"} for p in s.curve] for s in (history, gone_on)]
    assert timeless[0] == timeless[1]
    assert history.curve[1]["loss"] == pytest.approx(sum(losses[5:10]) / 5)
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(gone_on.curve))


def _rank(number: int, n: int, port: int, recipe: Recipe, path: str) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": f"{number}", "WORLD_SIZE": f"{n}"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    weights, _ = fit(recipe, checkpoint=Path(path) / "state.safetensors", every=7)
    ranks, gradient = Ranks.here(), torch.full((2, 3), float(number))
    ranks.average([None, gradient])  # Adam would not see a sum in the place of the mean
    mean = gradient.mean()
    torch.save({**weights, "mean": mean, "agreed": torch.tensor(ranks.agreed(number + 7))}, f"{path}/{number}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """Each on half of every batch: the same weights up to the order of sums, and in both the same bits."""
    recipe = Recipe(15, batch=8)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(2, port, recipe, str(tmp_path)), nprocs=2)
    alone, _ = fit(recipe)
    a, b = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (0, 1))
    assert same(a, b)
    assert (float(a["mean"]), int(a["agreed"])) == (0.5, 7)
    for key, value in alone.items():
        torch.testing.assert_close(a[key], value, rtol=1e-4, atol=1e-6)
    half, _ = fit(replace(recipe, batch=4))
    assert not torch.allclose(half["weight"], alone["weight"], rtol=1e-4, atol=1e-6)


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    assert Ranks(1, 3).share(9) == [1, 4, 7]
    with pytest.raises(InputError, match="3 processes share evenly"):
        Ranks(0, 3).share(8)


def test_a_cosine_is_the_default() -> None:
    assert Recipe(5).schedule == COSINE
