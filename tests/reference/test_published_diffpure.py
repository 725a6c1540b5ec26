"""Agreement with recorded runs of DiffPure's published code (tests/data/published, and DEPURA_PUBLISHED)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.diffusion.denoisers import EpsDenoiser
from depura.diffusion.schedules import VP, DiscreteLinear, Step, TableLabel, TimeLabel, TruncatedLabel, steps_at
from depura.diffusion.solvers import Ancestral, AncestralLarge, EulerMaruyamaVP, EulerVP
from depura.gradients import Adjoint, Direct, StoredState
from depura.methods.diffpure import diffpure, diffpure_ode, released_start
from depura.methods.diffpure_ddpm import diffpure_adm, diffpure_ddpm
from depura.methods.diffpure_langevin import diffpure_langevin
from depura.noise import Kind
from depura.purifiers.purifier import DiffusionPurifier, FixedNoiseSteps
from published import TIME, Recorded, arrays, cases, denoiser, network, one_walk, read, relative


def recorded_steps(data: dict[str, Tensor]) -> tuple[Step, ...]:
    """The recorded grid, with the recorded labels."""
    steps = steps_at(VP(), (1 - data["tprime"]).tolist())
    return tuple(replace(s, label=label) for s, label in zip(steps, data["label"].tolist(), strict=True))


def sde(path: Path) -> tuple[dict, dict[str, Tensor], DiffusionPurifier, Recorded]:
    case, data = read(path), arrays(path)
    steps = recorded_steps(data)
    purifier = DiffusionPurifier(
        EpsDenoiser(network(case, data), label=TimeLabel(VP())).with_label(TableLabel(steps)),
        steps=steps,
        solver=EulerMaruyamaVP(),
        start=released_start(case["configuration"]["tstar"]),
    )
    return case, data, purifier, one_walk(data["e_forward"], data["dW"] / data["h"].sqrt()[:, None, None, None, None])


@pytest.mark.parametrize("path", cases("diffpure-sde", "diffpure-sde-guided"))
def test_sde_states_and_output(path: Path) -> None:
    _, data, purifier, noise = sde(path)
    moments = list(purifier.trajectory(data["x"], noise))  # type: ignore[arg-type]
    assert len(moments) == len(data["dW"])
    for moment, state in zip(moments, data.get("states", []), strict="states" in data):
        torch.testing.assert_close(moment.step.scale_next * moment.x_next, state, rtol=0, atol=1e-9)
    torch.testing.assert_close(purifier(data["x"], noise), data["out"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("route", [StoredState(), StoredState(7), Direct()], ids=str)
@pytest.mark.parametrize("path", cases("diffpure-sde", "diffpure-sde-guided"))
def test_sde_gradient(path: Path, route) -> None:
    _, data, purifier, noise = sde(path)
    x = data["x"].clone().requires_grad_()
    out = purifier.with_(gradient=route)(x, noise)
    (gradient,) = torch.autograd.grad((out * data["v"]).sum(), x)
    exact = data["grad_full"]
    assert float((gradient - exact).norm() / exact.norm()) <= 1e-8


@pytest.mark.parametrize("path", cases("diffpure-sde", "diffpure-sde-guided"))
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
    purifier = DiffusionPurifier(
        EpsDenoiser(network(case, data), label=labels.__getitem__), steps=steps, solver=EulerMaruyamaVP()
    )
    increments = (data["dW_adjoint"] / (-data["tprime_adjoint"].diff()).sqrt()[:, None, None, None, None]).flip(0)
    walk = FixedNoiseSteps(purifier, one_walk(data["e_forward"], increments))  # type: ignore[arg-type]
    final = (2 * data["out"] - 1) / end.scale_next
    # out = (scale x + 1) / 2 at the end; at the start x = (sqrt(abar) (2 images - 1) + ...) / scale.
    _, cotangent = Adjoint().solve_back(walk.differential(), final, 0.5 * end.scale_next * data["v"], steps)
    abar = DiscreteLinear().scale(case["configuration"]["t_steps"] - 1)
    gradient = 2 * abar / start.scale * cotangent
    published = data["grad_adjoint"]
    assert float((gradient - published).norm() / published.norm()) <= 1e-8


@pytest.mark.parametrize("path", cases("diffpure-sde", "diffpure-sde-guided"))
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


@pytest.mark.parametrize("path", cases("diffpure-sde", "diffpure-sde-guided"))
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


@pytest.mark.parametrize("path", cases("diffpure-sde", "diffpure-sde-guided"))
def test_own_grid_gives_the_recorded_output(path: Path) -> None:
    """`diffpure` itself, on its own grid, with real labels."""
    case, data, _, noise = sde(path)
    if case["configuration"]["score_type"] != "score_sde":
        pytest.skip("the published integer labels depend on rounding")
    t_star, n = case["configuration"]["tstar"], case["configuration"]["euler_steps"]
    denoiser = EpsDenoiser(network(case, data), label=TimeLabel(VP()))
    purifier = diffpure(denoiser, t_star=t_star, n_steps=n, start=released_start(t_star))
    torch.testing.assert_close(purifier(data["x"], noise), data["out"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", cases("diffpure-ddpm", "diffpure-guided"))
def test_ddpm(path: Path) -> None:
    """Small, large and learned variance."""
    case, data = read(path), arrays(path)
    n = case["configuration"]["t_steps"]
    if "guided" in case["case"]:
        purifier = diffpure_adm(denoiser(case, data, variance=True), n_noise=n)
    else:
        solver = {"fixedsmall": Ancestral(), "fixedlarge": AncestralLarge()}[case["configuration"]["var_type"]]
        purifier = diffpure_ddpm(denoiser(case, data), n_noise=n, solver=solver)
    assert [s.t for s in purifier.steps] == data["index"].tolist()
    noise = one_walk(data["draws"][0], data["draws"][1:])
    if "states" in data:
        moments = list(purifier.trajectory(data["x"], noise))  # type: ignore[arg-type]
        states = [m.step.scale * m.x for m in moments] + [moments[-1].step.scale_next * moments[-1].x_next]
        for ours, theirs in zip(states, data["states"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(purifier(data["x"], noise), data["out"], rtol=0, atol=1e-9)  # type: ignore[arg-type]


def gradient_of(purifier: DiffusionPurifier, data: dict[str, Tensor], noise: Recorded) -> tuple[Tensor, Tensor]:
    """Output, and gradient of its product with the recorded cotangent."""
    x = data["x"].clone().requires_grad_()
    out = purifier(x, noise)  # type: ignore[arg-type]
    return out.detach(), torch.autograd.grad((out * data["v"]).sum(), x)[0]


@pytest.mark.parametrize("path", cases("diffpure-ode"))
def test_ode(path: Path) -> None:
    case, data = read(path), arrays(path)
    n = case["configuration"]["euler_steps"]
    t_star = case["configuration"]["t_steps"] / 1000
    purifier = diffpure_ode(denoiser(case, data, label=TIME), t_star=t_star, n_steps=n, start=released_start(t_star))
    out, gradient = gradient_of(purifier, data, Recorded({(Kind.FORWARD, 0, 0): data["e_forward"]}))
    torch.testing.assert_close(out, data["out"], rtol=0, atol=1e-9)
    assert relative(gradient, data["grad_full"]) <= 1e-8


@pytest.mark.parametrize("path", cases("diffpure-ode"))
def test_ode_adjoint_gradient(path: Path) -> None:
    """Solved back from the recorded final state on the recorded backward grid, shifted by 1e-5."""
    case, data = read(path), arrays(path)
    steps = steps_at(VP(), data["t_grid_adjoint"].flip(0).tolist())
    purifier = DiffusionPurifier(denoiser(case, data, label=TIME), steps=steps, solver=EulerVP())
    walk = FixedNoiseSteps(purifier, Recorded({}))  # type: ignore[arg-type]
    start, end = steps[0], steps[-1]
    final = (2 * data["out"] - 1) / end.scale_next
    _, cotangent = Adjoint().solve_back(walk.differential(), final, 0.5 * end.scale_next * data["v"], steps)
    abar = DiscreteLinear().scale(case["configuration"]["t_steps"] - 1)
    assert relative(2 * abar / start.scale * cotangent, data["grad_adjoint"]) <= 1e-8


@pytest.mark.parametrize("path", cases("diffpure-ldsde"))
def test_langevin(path: Path) -> None:
    """Both paths of the input are in the gradient: the start and the anchor, which the published adjoint drops."""
    case, data = read(path), arrays(path)
    n = case["configuration"]["steps"]
    purifier = diffpure_langevin(
        denoiser(case, data, label=TIME), t_star=case["configuration"]["t_steps"] / 1000, n_steps=n
    )
    increments = data["dW"] / data["tau"].diff().sqrt()[:, None, None, None, None]
    out, gradient = gradient_of(purifier, data, one_walk(data["x"], increments))
    torch.testing.assert_close(out, data["out"], rtol=0, atol=1e-9)
    assert relative(gradient, data["grad_full"]) <= 1e-8
    assert relative(data["grad_adjoint"], data["grad_full"]) > 0.1


def test_cases_are_there() -> None:
    kinds = ("sde", "sde-guided", "ddpm", "guided", "ode", "ldsde")
    assert all(f"diffpure-{kind}-b" in {p.id for p in cases(f"diffpure-{kind}")} for kind in kinds)
