"""Recorded runs of the released APGD, untargeted and targeted: every iterate, loss and best point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.climb import Oscillation
from depura.attacks.losses import cross_entropy, dlr
from depura.attacks.threat import Ball
from depura.noise import Kind, Noise
from published import arrays, cases, read

LOSSES = {"ce": cross_entropy, "dlr": dlr}


@dataclass
class Watched:
    """The classifier of a case, under its recorded noise if there is some; keeps the points of its gradients."""

    data: Mapping[str, Tensor]
    noise: Tensor | None = None
    copies: int = 1

    def __post_init__(self) -> None:
        self.points: list[Tensor] = []

    def __call__(self, images: Tensor, *_: Noise) -> Tensor:
        if images.requires_grad:
            self.points.append(images.detach()[:: self.copies].clone())
            if self.noise is not None:
                # Rows are images times copies; the recording is [evaluation, copy, image].
                drawn = self.noise[len(self.points) - 1].transpose(0, 1).flatten(0, 1)
                images = images + drawn
        h = torch.tanh(images.flatten(1) @ self.data["W1"].T + self.data["b1"])
        return h @ self.data["W2"].T + self.data["b2"]


@dataclass
class Starts:
    """Stands in for the noise of the starts: recorded draws by step."""

    draws: list[Tensor]

    def uniform(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        return self.draws[step]

    __call__ = uniform


class ReleasedBall(Ball):
    """Divides by lengths plus 1e-12, as released, which shortens steps along tiny gradients. Ours does not."""

    def project(self, x: Tensor, origin: Tensor) -> Tensor:
        if self.norm == "linf":
            return super().project(x, origin)
        length = (x - origin).flatten(1).norm(dim=1)
        factor = length.clamp(max=self.eps) / (length + 1e-12)
        return (origin + factor[:, None, None, None] * (x - origin)).clamp(0, 1)

    def unit(self, gradient: Tensor) -> Tensor:
        if self.norm == "linf":
            return gradient.sign()
        return gradient / (gradient.flatten(1).norm(dim=1) + 1e-12)[:, None, None, None]


def ball(case: dict) -> Ball:
    return ReleasedBall({"Linf": "linf", "L2": "l2"}[case["configuration"]["norm"]], case["configuration"]["eps"])


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("path", cases("attack-apgd-linf", "attack-apgd-l2"))
def test_every_iterate_and_loss(path: Path, loss: str) -> None:
    case, data = read(path), arrays(path)
    subset = data[f"{loss}_subset"].long()
    x, y = data["x"][subset], data["y"][subset].long()
    n = case["configuration"]["n_iter"]
    attack = APGD(ball(case), n_steps=n, loss=LOSSES[loss], common=0, released_check=True)
    model = Watched(data)
    found = attack(model, x, y, init=Starts([data[f"{loss}_draw0"]]))  # type: ignore[arg-type]
    torch.testing.assert_close(torch.stack(model.points), data[f"{loss}_iterates"], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.loss, data[f"{loss}_losses"], rtol=0, atol=1e-9)
    torch.testing.assert_close(found.images[1], data[f"{loss}_x_best"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", cases("attack-apgd-linf", "attack-apgd-l2"))
def test_checks_come_when_the_released_ones_do(path: Path) -> None:
    case, data = read(path), arrays(path)
    rule = Oscillation(ball(case), case["configuration"]["n_iter"], 0.75, released=True)
    assert list(rule.checks()) == data["ce_checkpoints"][:, 0].long().tolist()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("path", cases("attack-apgd-eot"))
def test_randomised_models_until_the_first_check(path: Path, loss: str) -> None:
    """Up to there iterates follow the mean gradient, as ours do; then the released code judges by the last draw."""
    case, data = read(path), arrays(path)
    subset = data[f"{loss}_subset"].long()
    x, y = data["x"][subset], data["y"][subset].long()
    settings = case["configuration"]
    noise = settings["model_noise"] * data[f"{loss}_noise"]
    attack = APGD(ball(case), n_steps=settings["n_iter"], eot=settings["eot_iter"], loss=LOSSES[loss], common=0)
    model = Watched(data, noise, settings["eot_iter"])
    attack(model, x, y, init=Starts([data[f"{loss}_draw0"]]))  # type: ignore[arg-type]
    until = int(data[f"{loss}_checkpoints"][0, 0]) + 2
    ours, theirs = torch.stack(model.points)[:until], data[f"{loss}_iterates"][:until]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", cases("attack-apgdt"))
def test_targeted(path: Path) -> None:
    case, data = read(path), arrays(path)
    settings, x, y = case["configuration"], data["x"], data["y"].long()
    n, runs = settings["n_iter"], int(data["runs"])
    starts: list[Tensor] = []
    for k in range(runs):
        whole = torch.zeros_like(x)
        whole[data[f"run{k}_subset"].long()] = data[f"run{k}_draw0"]
        starts.append(whole)
    one_run = {"n_steps": n, "common": 0, "released_check": True}
    for k in range(runs):
        subset = data[f"run{k}_subset"].long()
        attack = TargetedAPGD(ball(case), n_targets=k + 1, **one_run)
        model = Watched(data)
        found = attack(model, x[subset], y[subset], init=Starts([start[subset] for start in starts]))  # type: ignore[arg-type]
        rows = found.loss[k * (n + 1) : (k + 1) * (n + 1)]
        torch.testing.assert_close(rows.amax(0), data[f"run{k}_loss_best"], rtol=0, atol=1e-9)
        points = torch.stack(model.points[k * (n + 1) : (k + 1) * (n + 1)])
        best = points[rows.argmax(0), torch.arange(len(subset))]
        torch.testing.assert_close(best, data[f"run{k}_x_best"], rtol=0, atol=1e-9)
