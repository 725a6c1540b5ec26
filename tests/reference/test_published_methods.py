"""Agreement with recorded runs of other methods' published code (tests/data/published, and DEPURA_PUBLISHED)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from depura.diffusion.guidance import State
from depura.diffusion.schedules import VP, DiscreteLinear, ddpm_steps
from depura.diffusion.solvers import Ancestral, Euler, from_unit_noise, posterior_variance
from depura.gradients import Direct, StoredState
from depura.image_ops import minus_mse, ssim
from depura.methods.gdmp import gdmp, gdmp_imagenet, released_start
from depura.methods.gradual import gradual
from depura.methods.mimicdiffusion import Mimic, constant, mimicdiffusion, through_network
from depura.noise import Kind
from depura.purifiers.purifier import DiffusionPurifier, Purifier
from published import FOLDERS, Recorded, arrays, cases, denoiser, read, relative


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def value_and_gradient(purifier: Purifier, data: dict[str, Tensor], noise: Recorded) -> tuple[Tensor, Tensor]:
    x = data["x"].clone().requires_grad_()
    out = purifier(x, noise)  # type: ignore[arg-type]
    return out.detach(), torch.autograd.grad((out * data["v"]).sum(), x)[0]


# --- Lee and Kim ------------------------------------------------------------------------------------------------------


def in_rounds(draws: Tensor, lengths: list[int]) -> Recorded:
    """Draws in the order of the published code: for each round the noising, then one for each step."""
    found, at = {}, 0
    for number, n in enumerate(lengths):
        found[Kind.FORWARD, number, 0] = draws[at]
        found |= {(Kind.REVERSE, number, k): draws[at + 1 + k] for k in range(n)}
        at += 1 + n
    assert at == len(draws)
    return Recorded(found)


@pytest.mark.parametrize("route", [StoredState(), Direct()], ids=["stored", "direct"])
@pytest.mark.parametrize("path", cases("leekim-gradual", "leekim-single", "leekim-surrogate", "mimic-plain"))
def test_gradual(path: Path, route) -> None:
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    depths = [int(n) for n in facts["max_timesteps"].split(",")]
    counts = [int(n) for n in facts["num_denoising_steps"].split(",")]
    solver = {"ddpm": Ancestral(), "ddim": Euler()}[facts["sampling"].split()[0]]
    purifier = gradual(denoiser(case, data), depths=depths, n_steps=counts, solver=solver, gradient=route)
    assert purifier.n_steps == len(data["index"])
    out, gradient = value_and_gradient(purifier, data, in_rounds(data["draws"], counts))
    close(out, data["out"])
    assert relative(gradient, data["grad"]) <= 1e-8


@pytest.mark.parametrize("path", cases("leekim-gradual", "leekim-surrogate"))
def test_gradual_visits_the_recorded_indices(path: Path) -> None:
    case, data = read(path), arrays(path)
    depths = [int(n) for n in case["configuration"]["max_timesteps"].split(",")]
    counts = [int(n) for n in case["configuration"]["num_denoising_steps"].split(",")]
    leaves = gradual(denoiser(case, data), depths=depths, n_steps=counts).components
    rows = [row for leaf in leaves for _ in range(leaf.n_rounds) for row in leaf.steps]  # type: ignore[attr-defined]
    assert [row.t for row in rows] == data["index"].tolist()
    assert [row.t_next for row in rows] == data["index_next"].tolist()


# --- GDMP -------------------------------------------------------------------------------------------------------------


def gdmp_noise(draws: Tensor, rounds: int, n: int) -> Recorded:
    """For each round the noising, then for each step the reference's noise and the step's."""
    found = {}
    for number in range(rounds):
        at = number * (1 + 2 * n)
        found[Kind.FORWARD, number, 0] = draws[at]
        found |= {(Kind.GUIDANCE, number, k): draws[at + 1 + 2 * k] for k in range(n)}
        found |= {(Kind.REVERSE, number, k): draws[at + 2 + 2 * k] for k in range(n)}
    return Recorded(found)


def gdmp_of(case: dict, data: dict[str, Tensor], *, rounds: int, batch_ref: int) -> DiffusionPurifier:
    facts = case["configuration"]
    purifier = gdmp(
        denoiser(case, data),
        n_noise=facts["purify_step"],
        rounds=rounds,
        similarity={"MSE": minus_mse, "SSIM": ssim}[facts["guide_mode"]],
        guide_scale=facts["guide_scale"],
        ptb=facts["ptb"],
        batch_ref=batch_ref,
        start=released_start(facts["purify_step"]),
    )
    return purifier if facts["variance"] == "fixedlarge" else purifier.with_(solver=Ancestral())


@pytest.mark.parametrize("path", cases("gdmp-mse", "gdmp-ssim"))
def test_gdmp(path: Path) -> None:
    """After every round, and the first image alone: the published strength is that of the batch it runs in."""
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    noise = gdmp_noise(data["draws"], facts["rounds"], facts["purify_step"])
    for number in range(facts["rounds"]):
        together = gdmp_of(case, data, rounds=number + 1, batch_ref=facts["batch"])
        close(together(data["x"], noise), data["out_rounds"][number])  # type: ignore[arg-type]
        alone = gdmp_of(case, data, rounds=number + 1, batch_ref=1)
        close(alone(data["x"][:1], noise.take([0])), data["out_b1_rounds"][number])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", cases("gdmp-mse"))
def test_gdmp_guidance(path: Path) -> None:
    """The guidance itself at the recorded states, which the published code gives before its factor Sigma."""
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    n = facts["purify_step"]
    purifier = gdmp_of(case, data, rounds=1, batch_ref=facts["batch"])
    noise = gdmp_noise(data["draws"], facts["rounds"], n)
    assert purifier.guidance is not None
    for k, row in enumerate(purifier.steps):
        x = (data["states"][k] / row.scale).requires_grad_()
        moved = purifier.guidance(State(x, x, 2 * data["x"] - 1, row, noise, 1.0))  # type: ignore[arg-type]
        # With variance 1 in our coordinates: scale_next times the gradient by x_t.
        close(moved / row.scale_next, data["guidance"][k])


@pytest.mark.parametrize("path", cases("gdmp-imagenet"))
def test_gdmp_imagenet(path: Path) -> None:
    """Respaced chain, learned variance that also weights the guidance, reference not diffused."""
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    purifier = gdmp_imagenet(
        denoiser(case, data, variance=True),
        n_noise=facts["purify_step"],
        n_kept=int(facts["respacing"]),
        similarity={"MSE": minus_mse, "SSIM": ssim}[facts["guide_mode"]],
        guide_scale=facts["guide_scale"],
        ptb=facts["ptb"],
        batch_ref=facts["batch"],
    )
    assert [row.t for row in purifier.steps] == data["original_index"].tolist()
    noise = in_rounds(data["draws"], [facts["purify_step"]])
    close(purifier(data["x"], noise), data["out"])  # type: ignore[arg-type]


def test_ssim() -> None:
    data = arrays(FOLDERS[0] / "gdmp-ssim-function.json")
    a = data["a"].clone().requires_grad_()
    values = ssim(a, data["b"])
    (gradient,) = torch.autograd.grad(values.mean(), a)
    torch.testing.assert_close(values.detach(), data["ssim_per_image"], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, data["grad"], rtol=0, atol=1e-12)


# --- MimicDiffusion ---------------------------------------------------------------------------------------------------


def mimic_noise(draws: Tensor) -> Recorded:
    """The first draw is discarded by the published code; the second is the start; then one for each step."""
    return in_rounds(draws[1:], [len(draws) - 2])


def mimic_of(case: dict, data: dict[str, Tensor], *, batch_ref: int) -> DiffusionPurifier:
    """The released code's walk; its window counts steps (21 to 89), whatever their number."""
    facts = case["configuration"]
    n = int(facts["num_denoising_steps"])
    steps = ddpm_steps(DiscreteLinear(), n_noise=1000, n_steps=n)
    guided = [row.sigma for row in steps if 20 < row.index < 90]
    return mimicdiffusion(
        denoiser(case, data),
        steps=steps,
        released=True,
        rho=facts["rho_scale"],
        batch_ref=batch_ref,
        window=(min(guided), max(guided)),
        start=from_unit_noise,
    )


@pytest.mark.parametrize("path", cases("mimic"))
def test_mimicdiffusion(path: Path) -> None:
    """A batch, and its first image alone, which the published code guides harder by the batch's size."""
    case, data = read(path), arrays(path)
    noise = mimic_noise(data["draws"])
    released = mimic_of(case, data, batch_ref=case["configuration"]["batch"])
    assert [row.t for row in released.steps] == data["index"].tolist()
    close(released(data["x"], noise), data["out"])  # type: ignore[arg-type]
    alone = mimic_of(case, data, batch_ref=1)
    close(alone(data["x"][:1], noise.take([0])), data["out_b1"])  # type: ignore[arg-type]


@pytest.mark.parametrize("path", cases("mimic"))
def test_mimicdiffusion_with_gradients_on(path: Path) -> None:
    """With tracking the published guidance goes through the network from its second step on: the paper's Jacobian."""
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    first = int(data["guided"].nonzero()[0])

    def jacobian(at: State, distance) -> Tensor:
        return (constant if at.step.index == first else through_network)(at, distance)

    released = mimic_of(case, data, batch_ref=facts["batch"])
    assert isinstance(released.guidance, Mimic)
    tracked = released.with_(guidance=replace(released.guidance, jacobian=jacobian))
    theirs = data["out_gradmode"]
    torch.testing.assert_close(tracked(data["x"], mimic_noise(data["draws"])), theirs, rtol=0, atol=1e-9)  # type: ignore[arg-type]


# --- schedules --------------------------------------------------------------------------------------------------------


def test_schedules() -> None:
    data = arrays(FOLDERS[0] / "schedules.json")
    schedule, steps = DiscreteLinear(), range(1000)
    np.testing.assert_allclose(schedule.betas(), data["beta"], rtol=1e-14)
    np.testing.assert_allclose([schedule.abar(i) for i in steps], data["abar"], rtol=1e-14)
    np.testing.assert_allclose([schedule.sigma(float(i)) for i in steps], data["sigma"], rtol=1e-12)
    np.testing.assert_allclose([VP().scale((i + 1) / 1000) ** 2 for i in steps], data["abar_continuous"], rtol=1e-13)
    np.testing.assert_allclose([VP().sigma((i + 1) / 1000) for i in steps], data["sigma_continuous"], rtol=1e-12)
    np.testing.assert_allclose([posterior(i) for i in range(1, 1000)], data["posterior_variance"][1:], rtol=1e-9)


def posterior(i: int) -> float:
    """Posterior variance at an index, in x_t coordinates."""
    (row, *_) = ddpm_steps(DiscreteLinear(), n_noise=i + 1)
    return posterior_variance(row) * row.scale_next**2
