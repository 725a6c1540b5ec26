"""On a GPU: the same noise, and results that differ from the CPU's by rounding only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import depura
from depura.demo import digits_purifier, study
from depura.evaluation.runner import run_unit

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


@pytest.mark.parametrize("route", [depura.StoredState(), depura.Direct(), depura.StraightThrough()], ids=str)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_cuda_agrees_with_the_cpu(dtype: torch.dtype, near: float, route: depura.GradientRoute) -> None:
    for found, expected in zip(results("cuda", dtype, route), results("cpu", dtype, route), strict=True):
        torch.testing.assert_close(found, expected, rtol=near, atol=near)


def test_the_batch_does_not_matter_on_cuda() -> None:
    purifier, images = digits_purifier().to("cuda", torch.float64), DATA.images.to("cuda", torch.float64)
    whole = purifier(images, NOISE)
    for k in range(len(images)):
        torch.testing.assert_close(purifier(images[k : k + 1], NOISE.take([k])), whole[k : k + 1], rtol=0, atol=1e-12)


def test_a_unit_of_a_study_runs_on_cuda() -> None:
    """A unit is recorded on the CPU side whole; null predictions, which no attack amplifies, agree with the CPU's."""
    small = replace(study(images=4, attack_steps=2, eot=2, report_draws=8, curve=(), n_steps=3), unit_images=4)
    for key in small.units():
        there = run_unit(small, key, device="cuda")
        assert there.meta["device"] == "cuda"
        assert all(isinstance(a, np.ndarray) for a in there.arrays.values())
        if key.row.startswith("null-"):
            here = run_unit(small, key, device="cpu")
            assert np.mean(here.arrays["predictions"] == there.arrays["predictions"]) > 0.9


def test_a_run_may_be_computed_on_cuda(tmp_path: Path) -> None:
    small = study(images=3, attack_steps=1, eot=1, report_draws=2, curve=(), n_steps=1)
    assert all(p.seconds >= 0 for p in depura.plan(small, device="cuda"))
    directory = depura.run(small, tmp_path / "r", device="cuda")
    assert {unit.meta["device"] for unit in directory.units()} == {"cuda"}
