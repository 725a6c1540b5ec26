"""Agreement with recorded runs of DiffPure's published code (tests/reference/published, and DEPURA_PUBLISHED)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.denoisers import EpsDenoiser
from depura.gradients import Adjoint, Direct, StoredState
from depura.methods.diffpure import diffpure, diffpure_ddpm, released_start
from depura.noise import Kind
from depura.purifier import Purifier, _Walk
from depura.schedules import VP, DiscreteLinear, IndexLabel, Step, TableLabel, TimeLabel, TruncatedLabel, steps_at
from depura.solvers import EulerMaruyamaVP

FOLDERS = [Path(__file__).parent / "published", *map(Path, filter(None, [os.environ.get("DEPURA_PUBLISHED")]))]


def cases(prefix: str) -> list[object]:
    """Recorded cases of all folders, each once; of the DDPM runner only those with the small variance."""
    found = {path.stem: path for folder in reversed(FOLDERS) for path in sorted(folder.glob(f"{prefix}*.json"))}
    kept = {n: p for n, p in found.items() if read(p)["configuration"].get("var_type", "fixedsmall") == "fixedsmall"}
    return [pytest.param(path, id=name) for name, path in sorted(kept.items())]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name].astype(np.float64)) for name in file.files}


@dataclass(frozen=True)
class Network:
    """The closed-form noise prediction of a case: one Gaussian (mu, s) or four (means), at the level of a label."""

    data: dict[str, Tensor]
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


@dataclass(frozen=True)
class Recorded:
    """Stands in for `Noise`: hands out the recorded draws."""

    forward: Tensor
    reverse: Tensor

    def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        return {Kind.FORWARD: lambda: self.forward, Kind.REVERSE: lambda: self.reverse[step]}[kind]()

    def later(self, rounds: int) -> Recorded:
        assert rounds == 0
        return self


def network(case: dict, data: dict[str, Tensor]) -> Network:
    return Network(data, discrete="abar[label]" in case["network"], learned_variance="2C channels" in case["network"])


def recorded_steps(data: dict[str, Tensor]) -> tuple[Step, ...]:
    """The recorded grid, with the recorded labels."""
    steps = steps_at(VP(), (1 - data["tprime"]).tolist())
    return tuple(replace(s, label=label) for s, label in zip(steps, data["label"].tolist(), strict=True))


def sde(path: Path) -> tuple[dict, dict[str, Tensor], Purifier, Recorded]:
    case, data = read(path), arrays(path)
    steps = recorded_steps(data)
    purifier = Purifier(
        EpsDenoiser(network(case, data), label=TimeLabel(VP())).with_label(TableLabel(steps)),
        steps=steps,
        solver=EulerMaruyamaVP(),
        start=released_start(case["configuration"]["tstar"]),
    )
    return case, data, purifier, Recorded(data["e_forward"], data["dW"] / data["h"].sqrt()[:, None, None, None, None])


@pytest.mark.parametrize("path", cases("diffpure-sde"))
def test_sde_states_and_output(path: Path) -> None:
    _, data, purifier, noise = sde(path)
    moments = list(purifier.trajectory(data["x"], noise))  # type: ignore[arg-type]
    assert len(moments) == len(data["states"])
    for moment, state in zip(moments, data["states"], strict=True):
        torch.testing.assert_close(moment.step.scale_next * moment.x_next, state, rtol=0, atol=1e-9)
    torch.testing.assert_close(purifier(data["x"], noise), data["out"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("route", [StoredState(), StoredState(7), Direct()], ids=str)
@pytest.mark.parametrize("path", cases("diffpure-sde"))
def test_sde_gradient(path: Path, route) -> None:
    _, data, purifier, noise = sde(path)
    x = data["x"].clone().requires_grad_()
    out = purifier.with_(gradient=route)(x, noise)
    (gradient,) = torch.autograd.grad((out * data["v"]).sum(), x)
    exact = data["grad_full"]
    assert float((gradient - exact).norm() / exact.norm()) <= 1e-8


@pytest.mark.parametrize("path", cases("diffpure-sde"))
def test_adjoint_gradient(path: Path) -> None:
    """Solved back from the recorded final state, on the recorded backward grid (shifted by 1e-5) and path."""
    case, data = read(path), arrays(path)
    times = (1 - data["tprime_adjoint"]).flip(0)
    rule = TimeLabel(VP()) if case["configuration"]["score_type"] == "score_sde" else TruncatedLabel(VP())
    steps = steps_at(VP(), times.tolist())
    start, end = steps[0], steps[-1]
    labels = dict(zip([s.sigma_next for s in steps], data["label_adjoint"].flip(0).tolist(), strict=True))
    if case["configuration"]["score_type"] == "score_sde":
        assert all(abs(rule(sigma) - label) < 1e-9 for sigma, label in labels.items())
    purifier = Purifier(
        EpsDenoiser(network(case, data), label=labels.__getitem__), steps=steps, solver=EulerMaruyamaVP()
    )
    increments = (data["dW_adjoint"] / (-data["tprime_adjoint"].diff()).sqrt()[:, None, None, None, None]).flip(0)
    walk = _Walk(purifier, Recorded(data["e_forward"], increments))  # type: ignore[arg-type]
    final = (2 * data["out"] - 1) / end.scale_next
    # out = (scale x + 1) / 2 at the end; at the start x = (sqrt(abar) (2 images - 1) + ...) / scale.
    _, cotangent = Adjoint().solve_back(walk.differential(), final, 0.5 * end.scale_next * data["v"], steps)
    abar = DiscreteLinear().scale(case["configuration"]["t_steps"] - 1)
    gradient = 2 * abar / start.scale * cotangent
    published = data["grad_adjoint"]
    assert float((gradient - published).norm() / published.norm()) <= 1e-8


@pytest.mark.parametrize("path", cases("diffpure-sde"))
def test_adjoint_differs_from_exact_as_published(path: Path) -> None:
    """On the walk's own grid the error is that of the published adjoint to a tenth (the shift is 1 % of a step)."""
    _, data, purifier, noise = sde(path)
    purifier = purifier.with_(denoiser=purifier.denoiser.with_label(TimeLabel(VP())), gradient=Adjoint())  # type: ignore[operator]
    x = data["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((purifier(x, noise) * data["v"]).sum(), x)
    exact, published = data["grad_full"], data["grad_adjoint"]
    ours, theirs = float((gradient - exact).norm()), float((published - exact).norm())
    assert ours > 1e-4 * float(exact.norm()), "an adjoint that is exact is not the continuous one"
    assert abs(ours - theirs) <= 0.1 * theirs


@pytest.mark.parametrize("path", cases("diffpure-sde"))
def test_own_grid_and_labels_are_the_recorded_ones(path: Path) -> None:
    case, data = read(path), arrays(path)
    t_star, n = case["configuration"]["tstar"], case["configuration"]["euler_steps"]
    real = case["configuration"]["score_type"] == "score_sde"
    rule = TimeLabel(VP()) if real else TruncatedLabel(VP())
    steps = diffpure(lambda x, sigma: x, t_star=t_star, n_steps=n, label=rule).steps
    times = [steps[0].t, *(s.t_next for s in steps)]
    np.testing.assert_allclose(times, 1 - data["tprime"].numpy(), rtol=0, atol=1e-12)
    labels = np.array([s.label for s in steps])
    if real:
        np.testing.assert_allclose(labels, data["label"].numpy(), rtol=0, atol=1e-9)
    else:
        # The recorded integer part hangs on the last bit of an accumulated time: at most one index lower.
        assert set((labels - data["label"].numpy()).tolist()) <= {0.0, 1.0}
    np.testing.assert_allclose([VP().beta(s.t) for s in steps], data["beta"].numpy(), rtol=1e-12)


@pytest.mark.parametrize("path", cases("diffpure-sde"))
def test_own_grid_gives_the_recorded_output(path: Path) -> None:
    """`diffpure` itself, on its own grid, with real labels."""
    case, data, _, noise = sde(path)
    if case["configuration"]["score_type"] != "score_sde":
        pytest.skip("the published integer labels depend on rounding")
    t_star, n = case["configuration"]["tstar"], case["configuration"]["euler_steps"]
    denoiser = EpsDenoiser(network(case, data), label=TimeLabel(VP()))
    purifier = diffpure(denoiser, t_star=t_star, n_steps=n, start=released_start(t_star))
    torch.testing.assert_close(purifier(data["x"], noise), data["out"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", cases("diffpure-ddpm"))
def test_ddpm(path: Path) -> None:
    case, data = read(path), arrays(path)
    purifier = diffpure_ddpm(
        EpsDenoiser(network(case, data), label=IndexLabel(DiscreteLinear())), n_noise=case["configuration"]["t_steps"]
    )
    assert [s.t for s in purifier.steps] == data["index"].tolist()
    noise = Recorded(data["draws"][0], data["draws"][1:])
    moments = list(purifier.trajectory(data["x"], noise))  # type: ignore[arg-type]
    states = [m.step.scale * m.x for m in moments] + [moments[-1].step.scale_next * moments[-1].x_next]
    for ours, theirs in zip(states, data["states"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(purifier(data["x"], noise), data["out"], rtol=0, atol=1e-9)


def test_cases_are_there() -> None:
    assert {p.id for p in cases("diffpure-")} >= {"diffpure-sde-b", "diffpure-sde-guided-b", "diffpure-ddpm-a"}
