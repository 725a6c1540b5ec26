"""Folders of the diffusers library as denoisers: they say what the library's own pipeline says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import depura


def unet() -> UNet2DModel:
    """The architecture of google/ddpm-cifar10-32, narrower."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
        ).eval()


def pipeline(folder: Path, *, whole: bool, **settings: Any) -> tuple[UNet2DModel, DDPMScheduler]:
    """A folder as the library writes it: a pipeline with `unet` and `scheduler`, or both flat, as on the hub."""
    net, scheduler = unet(), DDPMScheduler(clip_sample=False, **settings)
    if whole:
        DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(folder)
    else:
        net.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    return net, scheduler


@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "flat"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_denoisers_say_what_the_scheduler_says(tmp_path: Path, whole: bool, kind: str, betas: str) -> None:
    net, scheduler = pipeline(tmp_path, whole=whole, prediction_type=kind, beta_schedule=betas)
    denoiser = depura.load_denoiser(tmp_path)
    net = net.double()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for index in (30, 400):
        abar = float(scheduler.alphas_cumprod[index])
        sigma = ((1 - abar) / abar) ** 0.5
        with torch.no_grad():
            said = net(x * abar**0.5, torch.tensor([index, index])).sample
            expected = scheduler.step(said, index, x * abar**0.5).pred_original_sample
            found = denoiser.double()(x, sigma)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), (found - expected).abs().max()


def test_the_command_line_takes_a_folder(tmp_path: Path) -> None:
    pipeline(tmp_path, whole=True)
    found = depura.models.by_name.denoiser(str(tmp_path))
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(found(x, 0.5), depura.load_denoiser(tmp_path)(x, 0.5))
    assert not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "scheduler_config.json").unlink(), "scheduler_config.json in"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected JSON"),
        (lambda folder: next(folder.glob("*.safetensors")).write_bytes(b"short"), "a whole folder of a diffusers"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "a whole folder of a diffusers"),
        (lambda folder: change(folder / "config.json", _class_name="AutoencoderKL"), "which holds a AutoencoderKL"),
        (lambda folder: change(folder / "scheduler_config.json", beta_schedule="sigmoid"), "beta_schedule linear or"),
        (lambda folder: change(folder / "scheduler_config.json", prediction_type="sample"), "prediction_type epsilon"),
    ],
    ids=range(7),
)
def test_other_folders_are_refused(break_it: Any, words: str, tmp_path: Path) -> None:
    pipeline(tmp_path, whole=False)
    break_it(tmp_path)
    with pytest.raises(depura.InputError, match=words):
        depura.load_denoiser(tmp_path)


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_options_are_refused(tmp_path: Path) -> None:
    pipeline(tmp_path, whole=False)
    with pytest.raises(depura.InputError, match="no options for a diffusers model, got heads"):
        depura.load_denoiser(tmp_path, heads=2)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline(tmp_path, whole=False)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(depura.InputError, match=r"pip install 'depura\[diffusers\]'"):
        depura.load_denoiser(tmp_path)
