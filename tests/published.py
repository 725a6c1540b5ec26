"""Recorded runs of published code: reading them, their closed-form networks, and their noise in the place of ours."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.diffusion.denoisers import EpsDenoiser, EpsVarianceDenoiser
from depura.diffusion.schedules import VP, DiscreteLinear, IndexLabel, LabelRule, TimeLabel
from depura.noise import Kind

FOLDERS = [Path(__file__).parent / "data" / "published", *map(Path, filter(None, [os.environ.get("DEPURA_PUBLISHED")]))]
"""The project's selection, and a folder with more cases of the same form if there is one."""


def cases(*prefixes: str) -> list[object]:
    """Parameters of a test: the recorded cases of all folders whose names begin so; the fuller recording of each."""
    found = {
        path.stem: path
        for folder in FOLDERS
        for prefix in prefixes
        for path in sorted(folder.glob(f"{prefix}-[ab].json"))
    }
    return [pytest.param(path, id=name) for name, path in sorted(found.items())]


def read(path: Path) -> dict:
    """What a case says about itself."""
    return json.loads(path.read_text(encoding="utf-8"))


def arrays(path: Path) -> dict[str, Tensor]:
    """Its arrays, in double precision."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name].astype(np.float64)) for name in file.files}


INDEX, TIME = IndexLabel(DiscreteLinear()), TimeLabel(VP())


@dataclass(frozen=True)
class Network:
    """The closed-form noise prediction of a case: one Gaussian (mu, s) or four (means), at the level of a label."""

    data: Mapping[str, Tensor]
    discrete: bool
    learned_variance: bool

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        if self.discrete:
            betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
            a = float(np.prod(1 - betas[: round(float(label[0])) + 1]))
        else:
            t = float(label[0]) / 999
            a = math.exp(-9.95 * t * t - 0.1 * t)
        if "mu" in self.data:
            centre, variance = self.data["mu"], a * self.data["s"] ** 2 + 1 - a
        else:
            variance = a * 0.15**2 + 1 - a
            squared = ((x[:, None] - math.sqrt(a) * self.data["means"]) ** 2).sum((2, 3, 4))
            share = torch.softmax(-squared / (2 * variance), dim=1)
            centre = torch.einsum("bk,kchw->bchw", share, self.data["means"])
        eps = math.sqrt(1 - a) * (x - math.sqrt(a) * centre) / variance
        return torch.cat([eps, torch.tanh(0.7 * x + 0.1)], dim=1) if self.learned_variance else eps


def network(case: dict, data: Mapping[str, Tensor]) -> Network:
    """The network of a case."""
    return Network(data, discrete="abar[label]" in case["network"], learned_variance="2C channels" in case["network"])


def classifier(data: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The classifier of a recorded attack: two dense layers with a tanh between them."""

    def logits(images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ data["W1"].T + data["b1"]) @ data["W2"].T + data["b2"]

    return logits


def denoiser(
    case: dict, data: Mapping[str, Tensor], *, label: LabelRule = INDEX, variance: bool = False
) -> EpsDenoiser:
    """Its denoiser. Most published codes hand over the index, also to networks that were made for 999 t."""
    return (EpsVarianceDenoiser if variance else EpsDenoiser)(network(case, data), label=label)


@dataclass(frozen=True)
class Recorded:
    """Stands in for `Noise`: hands out the recorded draws, by kind, round and step."""

    draws: Mapping[tuple[Kind, int, int], Tensor]
    round: int = 0

    def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        found = self.draws[kind, self.round, step]
        assert found.shape == like.shape
        return found

    def later(self, rounds: int, *, ahead: Iterable[int] = ()) -> Recorded:
        """Some rounds later; all draws are there already."""
        return replace(self, round=self.round + rounds)

    def take(self, rows: list[int]) -> Recorded:
        """The draws of some rows."""
        return replace(self, draws={key: draw[rows] for key, draw in self.draws.items()})


def one_walk(forward: Tensor, reverse: Tensor) -> Recorded:
    """Draws of a single round: the noising, and one for each step."""
    steps = {(Kind.REVERSE, 0, k): reverse[k] for k in range(len(reverse))}
    return Recorded({(Kind.FORWARD, 0, 0): forward} | steps)


def tanh_classifier(data: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The classifier of the recorded attacks, logits = W2 tanh(W1 x + b1) + b2."""
    return lambda x: torch.tanh(x.flatten(1) @ data["W1"].T + data["b1"]) @ data["W2"].T + data["b2"]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative distance in the l2 norm."""
    return float((ours - theirs).norm() / theirs.norm())
