"""The networks of score_sde against recorded runs of the published code, the full-size listing, and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import UNet2DModel
from tests.networks import Case, cases, check, check_layout, listing, on_meta
from torch import Tensor, nn

from depura.models.networks.score_sde import NcsnPP, ScoreSdeDdpm, ddpm_settings, ncsnpp_settings
from toys import randn

PLUS = cases("score-sde-ddpmpp", "score-sde-ncsnpp")
PLAIN = cases("score-sde-ddpm-")


def levels(said: dict) -> dict:
    """The settings of a case in our words."""
    sizes = [said["image_size"] >> level for level in range(len(said["ch_mult"]))]
    return {
        "width": said["nf"],
        "multipliers": tuple(said["ch_mult"]),
        "blocks": said["num_res_blocks"],
        "attention": tuple(level for level, size in enumerate(sizes) if size in said["attn_resolutions"]),
        "channels": said["num_channels"],
        "unit_range": not said["centered"],
        "dropout": said["dropout"],
        "scales": said["num_scales"],
    }


def plus(said: dict) -> dict:
    return {
        **levels(said),
        "fourier": said["embedding_type"] == "fourier",
        "fir": said["fir"],
        "residual_input": said["progressive_input"] == "residual",
        "skip_input": said["progressive_input"] == "input_skip",
        "skip_output": said["progressive"] == "output_skip",
    }


def run(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return network(inputs["x"], inputs["sigma" if "sigma" in inputs else "t"])


@pytest.mark.parametrize("case", PLUS)
def test_ncsnpp_agrees_with_published_code(case: Case) -> None:
    check(case, run, NcsnPP(**plus(case.settings)))


@pytest.mark.parametrize("case", PLAIN)
def test_ddpm_agrees_with_published_code(case: Case) -> None:
    said = case.settings
    check(case, run, ScoreSdeDdpm(**levels(said), convolve=said["resamp_with_conv"]))


@pytest.mark.parametrize("case", PLUS)
def test_ncsnpp_settings_are_read_off_shapes(case: Case) -> None:
    settings = ncsnpp_settings(case.shapes, dropout=case.settings["dropout"])
    assert settings == plus(case.settings)
    check_layout(case, on_meta(lambda: NcsnPP(**settings)))
    assert ddpm_settings(case.shapes) is None


@pytest.mark.parametrize("case", PLAIN)
def test_ddpm_settings_are_read_off_shapes(case: Case) -> None:
    said = case.settings
    settings = ddpm_settings(case.shapes, unit_range=not said["centered"])
    assert settings == {**levels(said), "convolve": said["resamp_with_conv"]}
    check_layout(case, on_meta(lambda: ScoreSdeDdpm(**settings)))
    assert ncsnpp_settings(case.shapes) is None


def test_full_size_layout() -> None:
    published = listing("score-sde-cifar10-ddpmpp-deep")
    settings = ncsnpp_settings(published.shapes)
    assert settings == plus(published.settings)
    network = on_meta(lambda: NcsnPP(**settings))
    check_layout(published, network)
    assert sum(p.numel() for p in network.parameters()) == 106_632_579
    assert sum(p.requires_grad for p in network.parameters()) == 956


def diffusers_places(levels: int, blocks: int, attention: int) -> list[str]:
    """Where diffusers has the entries of `all_modules` of a network with both pyramids, in their order."""
    places = ["time_proj", "time_embedding.linear_1", "time_embedding.linear_2", "conv_in"]
    for level in range(levels):
        for n in range(blocks):
            places.append(f"down_blocks.{level}.resnets.{n}")
            places += [f"down_blocks.{level}.attentions.{n}"] * (level == attention)
        if level < levels - 1:
            places += [f"down_blocks.{level}.{part}" for part in ("resnet_down", "skip_conv")]
    places += ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
    for level in reversed(range(levels)):
        at = f"up_blocks.{levels - 1 - level}"
        places += [f"{at}.resnets.{n}" for n in range(blocks + 1)]
        places += [f"{at}.attentions.0"] * (level == attention)
        places += [f"{at}.{part}" for part in ("skip_norm", "skip_conv", "resnet_up")] * (level > 0)
    return [*places, "conv_norm_out", "conv_out"]


def diffusers_entry(places: list[str], key: str, value: Tensor) -> tuple[str, Tensor]:
    """Name and value that diffusers has for a weight."""
    _, n, *rest = key.split(".")
    place = places[int(n)]
    if place == "time_proj":
        return "time_proj.weight", value
    if len(rest) == 1:
        return f"{place}.{rest[0]}", value
    if rest[0].startswith("NIN"):
        name = f"{place}.{['to_q', 'to_k', 'to_v', 'to_out.0'][int(rest[0][-1])]}"
        return (f"{name}.weight", value.T) if rest[1] == "W" else (f"{name}.bias", value)
    if place.endswith("skip_conv"):
        return f"{place}.{rest[1]}", value
    block = {
        "GroupNorm_0": "group_norm" if "attentions" in place else "norm1",
        "Conv_0": "conv1",
        "Dense_0": "time_emb_proj",
        "GroupNorm_1": "norm2",
        "Conv_1": "conv2",
        "Conv_2": "conv_shortcut",
    }
    return f"{place}.{block[rest[0]]}.{rest[1]}", value


def test_ncsnpp_agrees_with_diffusers() -> None:
    """The configuration of google/ncsnpp-church-256, smaller. diffusers fixes 32 groups around attention: 128 wide."""
    theirs = UNet2DModel(
        sample_size=16,
        center_input_sample=True,
        time_embedding_type="fourier",
        block_out_channels=(16, 64, 128),
        layers_per_block=1,
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"),
        mid_block_scale_factor=math.sqrt(2),
        attention_head_dim=None,
        norm_num_groups=None,
        norm_eps=1e-6,
    ).double()
    network = NcsnPP(
        width=16,
        multipliers=(1, 4, 8),
        blocks=1,
        attention=(2,),
        fourier=True,
        fir=True,
        skip_input=True,
        skip_output=True,
        unit_range=True,
    ).double()
    weights = {
        key: value + 0.1 * randn(*value.shape, seed=n) for n, (key, value) in enumerate(network.state_dict().items())
    }
    network.load_state_dict(weights)
    weights.pop("sigmas")
    places = diffusers_places(levels=3, blocks=1, attention=2)
    theirs.load_state_dict(dict(diffusers_entry(places, key, value) for key, value in weights.items()))
    network.eval()
    theirs.eval()
    x, sigma = randn(2, 3, 16, 16, seed=1).requires_grad_(), torch.tensor([0.03, 7.0], dtype=torch.float64)
    found, expected = network(x, sigma), theirs(x, sigma).sample
    assert (expected * sigma[:, None, None, None]).std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    grads = [torch.autograd.grad((y * randn(*x.shape, seed=2)).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
