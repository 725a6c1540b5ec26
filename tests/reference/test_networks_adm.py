"""AdmUNet against recorded runs of guided-diffusion, the layout of its published file, and diffusers."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from tests.networks import Case, Listing, cases, check, check_layout, listing, on_meta
from torch import Tensor, nn

from depura import InputError
from depura.models.networks.adm import AdmUNet, settings_of

CASES = cases("guided-diffusion-")


def heads(published: Listing) -> dict[str, Any]:
    """What the shapes do not tell."""
    width = published.settings["num_head_channels"]
    return {"heads": published.settings["num_heads"]} if width == -1 else {"head_width": width}


def built(published: Listing, **more: Any) -> nn.Module:
    """The network, from its shapes and the heads."""
    settings = settings_of(published.shapes, **heads(published))
    assert settings is not None
    return AdmUNet(**settings, **more)


def run(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return network(inputs["x"], inputs["t"], classes=inputs.get("class_index"))


@pytest.mark.parametrize("case", CASES)
def test_recorded_runs(case: Case) -> None:
    network = built(case)
    check_layout(case, network)
    check(case, run, network)


def test_full_size_layout_and_settings() -> None:
    published = listing("guided-diffusion-256-uncond")
    settings = settings_of(published.shapes)
    assert settings == {
        "width": 256,
        "multipliers": (1, 1, 2, 2, 4, 4),
        "blocks": 2,
        "attention": (3, 4, 5),
        "heads": 4,
        "head_width": 64,
        "classes": None,
        "scale_shift": True,
        "residual_resampling": True,
        "channels": 3,
        "outputs": 6,
    }
    network = on_meta(lambda: AdmUNet(**settings))
    assert sum(p.numel() for p in network.parameters()) == 552_814_086
    check_layout(published, network)
    image = torch.empty(1, 3, 256, 256, device="meta")
    assert network(image, torch.zeros(1, device="meta")).shape == (1, 6, 256, 256)


@pytest.mark.parametrize(
    "settings",
    [
        {"multipliers": (1, 2, 2, 2), "blocks": 3, "attention": (1, 2), "width": 128},
        {"multipliers": (1, 2), "blocks": 1, "attention": (), "width": 32, "scale_shift": False, "outputs": 3},
        {"multipliers": (0.5, 1, 1), "blocks": 2, "attention": (0,), "width": 64, "classes": 7, "channels": 1},
        {"multipliers": (2,), "blocks": 2, "attention": (0,), "width": 32, "head_width": 32},
        {"multipliers": (1, 3), "blocks": 1, "attention": (1,), "width": 64, "residual_resampling": True},
    ],
    ids=lambda s: "-".join(map(str, s["multipliers"])),
)
def test_settings_are_read_off_the_shapes(settings: dict[str, Any]) -> None:
    network = on_meta(lambda: AdmUNet(**settings))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    override = {"head_width": settings["head_width"]} if "head_width" in settings else {}
    found = settings_of(shapes, **override)
    assert found is not None
    assert {name: found[name] for name in settings} == settings
    again = on_meta(lambda: AdmUNet(**found))
    assert {key: tuple(value.shape) for key, value in again.state_dict().items()} == shapes


def test_improved_diffusion_cifar_10() -> None:
    """The count follows from the layers: each has (inputs * taps + 1) * outputs weights."""
    settings: dict[str, Any] = {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 3, "attention": (1, 2), "heads": 4}
    network = on_meta(lambda: AdmUNet(**settings))

    def block(a: int, b: int) -> int:
        skip = (a + 1) * b if a != b else 0
        return 2 * a + (9 * a + 1) * b + 513 * 2 * b + 2 * b + (9 * b + 1) * b + skip

    def attention(c: int) -> int:
        return 2 * c + (c + 1) * 3 * c + (c + 1) * c

    resampling = 3 * (9 * 256 + 1) * 256
    down = 28 * 128 + 3 * block(128, 128) + (9 * 128 + 1) * 128 + block(128, 256) + 8 * block(256, 256)
    down += 6 * attention(256) + 2 * (9 * 256 + 1) * 256
    middle = 2 * block(256, 256) + attention(256)
    up = 11 * block(512, 256) + block(384, 256) + 8 * attention(256) + resampling
    up += block(384, 128) + 3 * block(256, 128)
    ends = 129 * 512 + 513 * 512 + 2 * 128 + (9 * 128 + 1) * 6
    assert sum(p.numel() for p in network.parameters()) == down + middle + up + ends


def test_other_families_are_left_alone() -> None:
    assert settings_of(listing("ddpm-cifar10").shapes) is None
    assert settings_of(listing("edm-cifar10-32x32-cond").shapes) is None
    assert settings_of({}) is None


def small(**more: Any) -> AdmUNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 2, **more}
    return AdmUNet(**settings).double().eval()


def as_diffusers(adm: AdmUNet, blocks: int, levels: int) -> dict[str, Tensor]:
    """The weights of a network with convolutions between levels, and attention in the last, in diffusers' layout."""
    state: dict[str, Tensor] = {}

    def copy(to: str, of: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{to}.{kind}"] = adm.state_dict()[f"{of}.{kind}"]

    def copy_step(to: str, number: int, step: str, *, attends: bool) -> None:
        names = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3")
        theirs = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
        for name, other in zip(names, theirs, strict=True):
            copy(f"{to}.resnets.{number}.{other}", f"{step}.0.{name}")
        if f"{step}.0.skip_connection.weight" in adm.state_dict():
            copy(f"{to}.resnets.{number}.conv_shortcut", f"{step}.0.skip_connection")
        if attends:
            copy_attention(f"{to}.attentions.{number}", f"{step}.1")

    def copy_attention(to: str, of: str) -> None:
        copy(f"{to}.group_norm", f"{of}.norm")
        copy(f"{to}.to_out.0", f"{of}.proj_out")
        state[f"{to}.to_out.0.weight"] = state[f"{to}.to_out.0.weight"][..., 0]
        heads = adm.get_submodule(of).heads
        for kind in ("weight", "bias"):
            value = adm.state_dict()[f"{of}.qkv.{kind}"]
            parts = value.flatten(1) if kind == "weight" else value[:, None]
            for name, part in zip("qkv", parts.unflatten(0, (heads, 3, -1)).unbind(1), strict=True):
                rows = part.flatten(0, 1)
                state[f"{to}.to_{name}.{kind}"] = rows if kind == "weight" else rows[:, 0]

    copy("time_embedding.linear_1", "time_embed.0")
    copy("time_embedding.linear_2", "time_embed.2")
    state["class_embedding.weight"] = adm.state_dict()["label_emb.weight"]
    copy("conv_in", "input_blocks.0.0")
    copy("conv_norm_out", "out.0")
    copy("conv_out", "out.2")
    for level in range(levels):
        last = level == levels - 1
        down, up = 1 + level * (blocks + 1), (levels - 1 - level) * (blocks + 1)
        for k in range(blocks):
            copy_step(f"down_blocks.{level}", k, f"input_blocks.{down + k}", attends=last)
        if not last:
            copy(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{down + blocks}.0.op")
        there = f"up_blocks.{levels - 1 - level}"
        for k in range(blocks + 1):
            copy_step(there, k, f"output_blocks.{up + k}", attends=last)
        if level > 0:
            copy(f"{there}.upsamplers.0.conv", f"output_blocks.{up + blocks}.{2 if last else 1}.conv")
    for number, of in enumerate(("middle_block.0", "middle_block.2")):
        for name, other in (("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj")):
            copy(f"mid_block.resnets.{number}.{other}", f"{of}.{name}")
        copy(f"mid_block.resnets.{number}.norm2", f"{of}.out_layers.0")
        copy(f"mid_block.resnets.{number}.conv2", f"{of}.out_layers.3")
    copy_attention("mid_block.attentions.0", "middle_block.1")
    return state


@pytest.mark.parametrize("scale_shift", [False, True], ids=["added", "scale-shift"])
def test_as_diffusers_has_it(scale_shift: bool) -> None:
    """diffusers computes the label's features in single precision."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"width": 64, "multipliers": (1, 1, 2), "blocks": 2, "attention": (2,), "head_width": 32}
    ours = AdmUNet(**size, classes=5, scale_shift=scale_shift).double().eval()
    theirs = UNet2DModel(
        sample_size=8,
        out_channels=6,
        flip_sin_to_cos=True,
        freq_shift=0,
        block_out_channels=(64, 64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_eps=1e-5,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=5,
    )
    theirs.double().eval().load_state_dict(as_diffusers(ours, blocks=2, levels=3))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label, classes = torch.tensor([1.0, 7.5], dtype=torch.float64), torch.tensor([4, 0])
    expected = theirs(x, label, class_labels=classes).sample
    torch.testing.assert_close(ours(x, label, classes=classes), expected, rtol=0, atol=1e-6)


def test_second_derivatives_go_through_attention() -> None:
    """Against central differences of the gradient, which the published attention cannot be differentiated to."""
    network = small()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    label = torch.tensor([300.0], dtype=torch.float64)

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(network(x, label).square().sum(), x, create_graph=True)[0]

    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(network(at, label).square().sum(), at, create_graph=True)
    (product,) = torch.autograd.grad((g * direction).sum(), at)
    h = 1e-5
    expected = (gradient(x + h * direction) - gradient(x - h * direction)).detach() / (2 * h)
    assert (product - expected).norm() < 1e-6 * expected.norm()


def test_labels_may_be_whole_numbers() -> None:
    network = small()
    x = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).reshape(2, 3, 8, 8)
    whole = network(x, torch.tensor([3, 999]))
    assert torch.equal(whole, network(x, torch.tensor([3.0, 999.0], dtype=torch.float64)))
    assert not torch.equal(whole[:1], network(x[:1], torch.tensor([4])))


def test_what_does_not_fit_is_refused() -> None:
    x, label = torch.zeros(1, 3, 8, 8, dtype=torch.float64), torch.zeros(1)
    with pytest.raises(InputError, match="network is conditional"):
        small(classes=4)(x, label)
    with pytest.raises(InputError, match="it is unconditional"):
        small()(x, label, classes=torch.tensor([1]))
    with pytest.raises(InputError, match="divisible by 2"):
        small()(x[..., :7], label)
    for wrong in ({"width": 40}, {"multipliers": ()}, {"attention": (2,)}, {"heads": 3}, {"head_width": 48}):
        with pytest.raises(InputError, match="AdmUNet"):
            small(**wrong)
