"""On a GPU: the same noise, and results that differ from the CPU's by rounding only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import depura
from depura.attacks.ensembles import standard
from depura.evaluation.counting import counted
from depura.evaluation.demo import digits_purifier, study
from depura.evaluation.units import run_unit
from depura.purifiers.fast import deviation
from depura.purifiers.purifier import FixedNoiseSteps

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DATA = depura.load_digits("test").first(7)
NOISE = depura.Noise(3, DATA.ids)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 rounds to 10 bits; the comparison is of float32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def results(device: str, dtype: torch.dtype, route: depura.GradientRoute) -> tuple[torch.Tensor, torch.Tensor]:
    purifier = digits_purifier().to(device, dtype).with_(gradient=route)
    images = DATA.images.to(device, dtype).requires_grad_()
    out = purifier(images, NOISE)
    weights = torch.arange(out[0].numel(), device=device, dtype=dtype).reshape(out.shape[1:]) / 64
    (gradient,) = torch.autograd.grad((out * weights).sum(), images)
    return out.detach().cpu(), gradient.cpu()


ROUTES = [
    depura.StoredState(),
    depura.StoredState(segment=1),
    depura.StoredState(segment=2, offload=True),
    depura.StoredState(budget=200_000),
    depura.Direct(),
    depura.StraightThrough(),
    depura.Relaxed(),
    depura.Grafted(),
]


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype, near: float, route: depura.GradientRoute) -> None:
    for found, expected in zip(results("cuda", dtype, route), results("cpu", dtype, route), strict=True):
        torch.testing.assert_close(found, expected, rtol=near, atol=near)


def test_the_batch_does_not_matter_on_cuda() -> None:
    purifier, images = digits_purifier().to("cuda", torch.float64), DATA.images.to("cuda", torch.float64)
    whole = purifier(images, NOISE)
    for k in range(len(images)):
        torch.testing.assert_close(purifier(images[k : k + 1], NOISE.take([k])), whole[k : k + 1], rtol=0, atol=1e-12)


def test_the_adjoint_on_cuda() -> None:
    """Of a walk that it is defined for."""

    def gradient(device: str) -> torch.Tensor:
        denoiser = depura.digits_denoiser().to(device, torch.float64)
        purifier = depura.diffpure(denoiser, t_star=0.05, n_steps=50, gradient=depura.Adjoint())
        leaf = DATA.images.to(device, torch.float64).requires_grad_()
        return torch.autograd.grad(purifier(leaf, NOISE).square().sum(), leaf)[0].cpu()

    there, here = gradient("cuda"), gradient("cpu")
    assert float((there - here).norm() / here.norm()) < 1e-6


def test_recomputation_is_told_apart_on_cuda() -> None:
    """Backward passes run in threads of their own there."""
    model = depura.Defence(digits_purifier().with_(gradient=depura.StoredState(segment=1)), depura.digits_classifier())
    model, counts = counted(model.to("cuda"))
    images = DATA.images.to("cuda").requires_grad_()
    used = depura.graph_bytes(lambda: torch.autograd.grad(model(images, NOISE).sum(), images))
    n = len(images) * len(digits_purifier().steps)
    assert (counts.forward, counts.backward, counts.recomputed) == (n, n, n)
    assert used > 0


def test_running_out_of_memory_on_cuda_is_survived() -> None:
    """With room for a few rows only, an attack goes on with fewer at once."""
    attack = depura.PGD(depura.Ball("linf", 0.1), n_steps=1, eot=64)
    model = depura.Defence(digits_purifier().with_(gradient=depura.Direct()), depura.digits_classifier()).to("cuda")
    images, labels = DATA.images.to("cuda"), DATA.labels.to("cuda")
    whole = attack(model, images, labels, init=NOISE, eot=NOISE)
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.5 * needed, 32 * 2**20) / total)
    try:
        cramped = attack(model, images, labels, init=NOISE, eot=NOISE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(cramped.loss, whole.loss, rtol=1e-3, atol=1e-3)


def test_a_unit_of_a_study_runs_on_cuda() -> None:
    """A unit is recorded on the CPU side whole; null predictions, which no attack amplifies, agree with the CPU's."""
    small = replace(study(images=4, attack_steps=2, eot=2, report_draws=8, curve=(), n_steps=3), unit_images=4)
    for key in small.units():
        there = run_unit(small, key, device="cuda")
        assert there.facts.device == "cuda"
        assert all(isinstance(a, np.ndarray) for a in there.arrays.values())
        if key.row.startswith("null-"):
            here = run_unit(small, key, device="cpu")
            assert np.mean(here.arrays["predictions"] == there.arrays["predictions"]) > 0.9


def test_a_run_may_be_computed_on_cuda(tmp_path: Path) -> None:
    small = study(images=3, attack_steps=1, eot=1, report_draws=2, curve=(), n_steps=1)
    assert all(p.seconds >= 0 for p in depura.plan(small, device="cuda"))
    directory = depura.run(small, tmp_path / "r", device="cuda")
    assert {unit.facts.device for unit in directory.units()} == {"cuda"}


METHODS = {
    "ode": lambda d: depura.diffpure_ode(d, t_star=0.09, n_steps=5),
    "langevin": lambda d: depura.diffpure_langevin(d, n_steps=3),
    "random t*": lambda d: depura.diffpure_random(d, t_star=0.09, n_steps=3),
    "mimicdiffusion": lambda d: depura.mimicdiffusion(
        d, steps=depura.ddpm_steps(depura.DiscreteLinear(), n_noise=1000, n_steps=20), released=True, rho=187.5
    ),
    "agdm": lambda d: depura.agdm(
        d, guide=depura.digits_guide(), features=depura.digits_guide().features, scale=10.0, n_noise=90, n_steps=3
    ),
    "gdmp": lambda d: depura.gdmp(d, n_noise=90, n_steps=3, rounds=2, batch_ref=4800),
    "gdmp, SSIM": lambda d: depura.gdmp(d, n_noise=90, n_steps=3, similarity=depura.ssim, batch_ref=480000),
    "gradual": lambda d: depura.gradual(d, depths=(30, 30, 90), n_steps=(2, 2, 3)),
    "likelihood": lambda d: depura.likelihood(d, n_steps=2),
    "scoreopt": lambda d: depura.scoreopt(d, n_steps=2, proximity=1.0),
    "one step": lambda d: depura.one_step(d, std=0.15),
    "adbm": lambda d: depura.adbm(d, n_noise=90, n_steps=3),
    "averaged": lambda d: depura.Averaged(depura.one_step(d, std=0.15), n_paths=3),
    "blur": lambda d: depura.blur_only(std=0.7),
}


ATTACKS = {
    "apgd": lambda b: depura.APGD(b, n_steps=4, eot=2, common=3, finish=0.9),
    "targeted apgd": lambda b: depura.TargetedAPGD(b, n_steps=3, n_targets=2, eot=2, common=3),
    "selective": lambda b: depura.Selective(b, n_steps=2, eot=3),
    "square": lambda b: depura.Square(b, n_queries=6, eot=2),
    "spsa": lambda b: depura.SPSA(b, n_steps=2, n_pairs=3),
    "random": lambda b: depura.RandomPoints(b, n_points=4, eot=2),
    "standard": lambda b: standard(b, n_steps=4, n_targets=3, n_queries=8),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_cuda_agree_with_the_cpu(name: str, norm: str) -> None:
    """In float64; few steps, so that rounding decides no sign."""
    found: list[torch.Tensor] = []
    for device in ("cuda", "cpu"):
        purifier = None if name == "standard" else digits_purifier(n_steps=3)
        model = depura.Defence(purifier, depura.digits_classifier()).to(device, torch.float64)
        images, labels = DATA.images.to(device, torch.float64), DATA.labels.to(device)
        attack = ATTACKS[name](depura.Ball(norm, 0.05))
        made = attack(model, images, labels, init=NOISE.on(depura.Stream.INIT), eot=NOISE.on(depura.Stream.EOT))
        assert made.images.device.type == device
        found.append(made.images.cpu())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-8)


def method_results(name: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    purifier = METHODS[name](depura.digits_denoiser()).to(device, torch.float64)
    images = DATA.images.to(device, torch.float64).requires_grad_()
    out = purifier(images, replace(NOISE, draws=tuple(range(len(NOISE)))))
    (gradient,) = torch.autograd.grad(out.square().sum(), images)
    return out.detach().cpu(), gradient.cpu()


@pytest.mark.parametrize("name", METHODS)
def test_methods_on_cuda_agree_with_the_cpu(name: str) -> None:
    for found, expected in zip(method_results(name, "cuda"), method_results(name, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_walk_never_waits_for_the_device() -> None:
    purifier, images = digits_purifier().to("cuda"), DATA.images.cuda()
    with torch.no_grad():
        purifier(images, NOISE)  # what is made once is made
        walk = FixedNoiseSteps(purifier.components[0], NOISE)
        x = 2 * images - 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in purifier.components[0].steps:
                (x,) = walk((x,), x, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("graphs", [False, True], ids=["compiled", "graphs"])
def test_fast_purification_on_the_device(graphs: bool) -> None:
    plain = digits_purifier().to("cuda")
    images = DATA.images.cuda()
    fast = plain.over(lambda denoiser: depura.Fast(denoiser, cuda_graphs=graphs))
    found = deviation(fast, images, NOISE)
    assert 0 < found.median < 2
    assert deviation(fast, images, NOISE) == found
    leaf = images.clone().requires_grad_()
    gradients = [torch.autograd.grad(p(leaf, NOISE).square().sum(), leaf)[0] for p in (fast, plain)]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 0.1
