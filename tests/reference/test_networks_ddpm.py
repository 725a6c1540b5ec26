"""The DDPM U-Net against recorded runs of the published code, the listings of its full-size layouts, and diffusers."""

import pytest
import torch
from diffusers import UNet2DModel
from tests.networks import Case, cases, check, check_layout, listing, on_meta
from torch import Tensor, nn

from depura.models.networks.ddpm import DdpmUNet, settings_of
from toys import randn

RECORDED = cases("ddpm-unet")


def ours(said: dict) -> dict:
    """The settings of a case in our words."""
    sizes = [said["image_size"] >> level for level in range(len(said["ch_mult"]))]
    return {
        "width": said["ch"],
        "multipliers": tuple(said["ch_mult"]),
        "blocks": said["num_res_blocks"],
        "attention": tuple(level for level, size in enumerate(sizes) if size in said["attn_resolutions"]),
        "channels": said["in_channels"],
        "dropout": said["dropout"],
    }


def run(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return network(inputs["x"], inputs["t"])


@pytest.mark.parametrize("case", RECORDED)
def test_agrees_with_published_code(case: Case) -> None:
    check(case, run, DdpmUNet(**ours(case.settings)))


@pytest.mark.parametrize("case", RECORDED)
def test_settings_are_read_off_shapes(case: Case) -> None:
    settings = settings_of(case.shapes, dropout=case.settings["dropout"])
    assert settings == ours(case.settings)
    check_layout(case, on_meta(lambda: DdpmUNet(**settings)))


@pytest.mark.parametrize(
    ("name", "parameters", "entries"), [("cifar10", 35_746_307, 328), ("celebahq-256", 113_673_219, 450)]
)
def test_full_size_layouts(name: str, parameters: int, entries: int) -> None:
    published = listing(f"ddpm-{name}")
    settings = settings_of(published.shapes, dropout=published.settings["dropout"])
    assert settings == ours(published.settings)
    network = on_meta(lambda: DdpmUNet(**settings))
    check_layout(published, network)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == entries


def diffusers_name(key: str, levels: int) -> str:
    """The name that diffusers has for a weight of the DDPM U-Net."""
    words = key.split(".")
    if words[0] == "temb":
        return f"time_embedding.linear_{int(words[2]) + 1}.{words[3]}"
    if words[0] in {"norm_out", "conv_out"}:
        return key.replace("norm_out", "conv_norm_out")
    if words[0] == "mid":
        where = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}[words[1]]
        path, rest = f"mid_block.{where}", words[2:]
    elif words[0] in {"down", "up"}:
        level = int(words[1]) if words[0] == "down" else levels - 1 - int(words[1])
        path = f"{words[0]}_blocks.{level}"
        if words[2] in {"downsample", "upsample"}:
            return f"{path}.{words[2]}rs.0.conv.{words[4]}"
        path, rest = f"{path}.{ {'block': 'resnets', 'attn': 'attentions'}[words[2]] }.{words[3]}", words[4:]
    else:
        return key
    renamed = {
        "temb_proj": "time_emb_proj",
        "nin_shortcut": "conv_shortcut",
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    }
    return ".".join([path, renamed.get(rest[0], rest[0]), *rest[1:]])


def test_agrees_with_diffusers() -> None:
    """The configuration of google/ddpm-cifar10-32, narrower, with random weights under our names."""
    levels = 4
    theirs = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    network = DdpmUNet(width=32, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.0).double().eval()
    weights = {
        key: value + 0.1 * randn(*value.shape, seed=n) for n, (key, value) in enumerate(network.state_dict().items())
    }
    network.load_state_dict(weights)
    named = {diffusers_name(key, levels): value for key, value in weights.items()}
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert set(named) == set(shapes)
    theirs.double().load_state_dict({key: value.reshape(shapes[key]) for key, value in named.items()})
    theirs.eval()
    # diffusers takes features of the label in single precision: at label 0 they are exact.
    x = randn(2, 3, 16, 16, seed=9).requires_grad_()
    cotangent = randn(2, 3, 16, 16, seed=10)
    found = network(x, torch.zeros(2))
    expected = theirs(x, torch.zeros(2)).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    grads = [torch.autograd.grad((y * cotangent).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)
    label = torch.tensor([1.0, 500.25])
    torch.testing.assert_close(network(x, label), theirs(x, label).sample, rtol=0, atol=1e-3)
