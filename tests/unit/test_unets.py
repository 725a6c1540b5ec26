"""What holds for every U-Net of the published families, whatever its settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.networks import on_meta
from torch import Tensor, nn

from depura import InputError
from depura.models.networks.blocks import Shapes
from depura.models.networks.ddpm import DdpmUNet, settings_of
from depura.models.networks.score_sde import NcsnPP, ScoreSdeDdpm, ddpm_settings, ncsnpp_settings
from depura.training.loop import seeded
from toys import rand, randn

SMALL: dict[str, Callable[[], nn.Module]] = {
    "NcsnPP": lambda: NcsnPP(width=8, multipliers=(1, 2), blocks=1, attention=(1,), channels=2),
    "NcsnPP, filters, input branch": lambda: NcsnPP(
        width=8, multipliers=(1, 2), blocks=1, channels=2, fir=True, residual_input=True, unit_range=True
    ),
    "NcsnPP, Fourier, copies": lambda: NcsnPP(
        width=8, multipliers=(2, 1), blocks=1, channels=2, fourier=True, skip_input=True, skip_output=True
    ),
    "ScoreSdeDdpm": lambda: ScoreSdeDdpm(width=32, multipliers=(2, 1), blocks=1, channels=2),
    "ScoreSdeDdpm, means": lambda: ScoreSdeDdpm(width=32, multipliers=(2, 1), blocks=1, channels=2, convolve=False),
    "DdpmUNet": lambda: DdpmUNet(width=32, multipliers=(2, 1), blocks=1, channels=2),
}
# Weights of their own in every run would fail a finite difference now and then.
every = pytest.mark.parametrize("build", [partial(seeded, build, 0) for build in SMALL.values()], ids=SMALL.keys())


def shapes_of(network: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


@st.composite
def levels(draw: st.DrawFn, unit: int) -> dict[str, Any]:
    multipliers = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    attention = draw(st.sets(st.integers(0, len(multipliers) - 1)))
    return {
        "width": unit * draw(st.integers(1, 3)),
        "multipliers": tuple(multipliers),
        "blocks": draw(st.integers(1, 2)),
        "attention": tuple(sorted(attention)),
        "channels": draw(st.integers(1, 4)),
        "dropout": 0.1,
    }


@settings(max_examples=12, deadline=None)
@given(levels(32))
def test_ddpm_settings_come_back(said: dict[str, Any]) -> None:
    assert settings_of(shapes_of(on_meta(lambda: DdpmUNet(**said)))) == said


@settings(max_examples=12, deadline=None)
@given(levels(32), st.booleans(), st.booleans(), st.integers(1, 30))
def test_score_sde_ddpm_settings_come_back(
    common: dict[str, Any], convolve: bool, unit_range: bool, scales: int
) -> None:
    said = {**common, "unit_range": unit_range, "scales": scales}
    said["convolve"] = convolve or len(common["multipliers"]) == 1
    shapes = shapes_of(on_meta(lambda: ScoreSdeDdpm(**said)))
    assert ddpm_settings(shapes, unit_range=unit_range) == said
    assert ncsnpp_settings(shapes) is None
    assert settings_of(shapes) is None


@settings(max_examples=12, deadline=None)
@given(levels(4), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([None, "residual_input", "skip_input"]))
def test_ncsnpp_settings_come_back(
    common: dict[str, Any], fourier: bool, fir: bool, skip_output: bool, pyramid: str | None
) -> None:
    several = len(common["multipliers"]) > 1  # with one level there are no pyramids to see
    said = {**common, "fourier": fourier, "unit_range": fir, "scales": 1000}
    said |= {"residual_input": False, "skip_input": False, "skip_output": skip_output and several}
    if pyramid and several:
        said[pyramid] = True
    said["fir"] = fir or said["residual_input"]
    shapes = shapes_of(on_meta(lambda: NcsnPP(**said)))
    assert ncsnpp_settings(shapes, fir=said["fir"], unit_range=said["unit_range"]) == said
    assert ddpm_settings(shapes) is None
    assert settings_of(shapes) is None


@pytest.mark.parametrize("read", [settings_of, ddpm_settings, ncsnpp_settings])
def test_parts_of_networks_and_other_names_are_no_networks(read: Callable[[Shapes], object]) -> None:
    assert read({}) is None
    assert read({"conv1.weight": (16, 3, 3, 3), "all_modules.x.weight": (1,), "all_modules": (2,)}) is None
    for build in SMALL.values():
        shapes = shapes_of(on_meta(build))
        without_first = {key: shape for key, shape in shapes.items() if shape[1:] != (2, 3, 3)}
        without_blocks = {key: shape for key, shape in shapes.items() if "Dense_0" not in key and "block" not in key}
        assert len(without_blocks) < len(without_first) < len(shapes)
        assert read(without_first) is None
        assert read(without_blocks) is None


@every
def test_runs_without_memory(build: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        y = build()(torch.empty(3, 2, 8, 12), torch.empty(3))
    assert y.is_meta
    assert y.shape == (3, 2, 8, 12)


@every
def test_second_derivatives(build: Callable[[], nn.Module]) -> None:
    network = build().double().eval()
    x, v = randn(1, 2, 4, 4, seed=1).requires_grad_(), randn(1, 2, 4, 4, seed=2)
    label = torch.tensor([0.7], dtype=torch.float64)

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(network(x, label).square().sum(), x, create_graph=True)[0]

    (second,) = torch.autograd.grad((gradient(x) * v).sum(), x)
    h = 1e-5
    difference = (gradient(x + h * v) - gradient(x - h * v)) / (2 * h)
    assert second.abs().max() > 1e-3
    torch.testing.assert_close(second, difference, rtol=1e-5, atol=1e-6 * float(second.abs().max()))


@every
def test_images_of_a_batch_do_not_mix(build: Callable[[], nn.Module]) -> None:
    network = build().double().eval()
    x, label = rand(2, 2, 4, 4, seed=3), torch.tensor([1, 800])
    together = network(x, label)
    alone = torch.cat([network(x[k : k + 1], label[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert (network(x, label.double()) == together).all()
    assert (network(x, label.flip(0)) - together).abs().max() > 1e-4


@every
def test_inputs_that_do_not_fit_are_refused(build: Callable[[], nn.Module]) -> None:
    network = on_meta(build)
    good, label = torch.empty(2, 2, 4, 4, device="meta"), torch.empty(2, device="meta")
    for x in (good[:, :1], good[..., :3], good[:, :, :3], good[0]):
        with pytest.raises(InputError, match="divisible by 2"):
            network(x, label)
    for wrong in (label[:1], label[:, None], label[0]):
        with pytest.raises(InputError, match="one label per image"):
            network(good, wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NcsnPP(width=6), "divisible by 4"),
        (lambda: NcsnPP(width=0), "width"),
        (lambda: NcsnPP(blocks=0), "blocks"),
        (lambda: NcsnPP(multipliers=()), "multipliers"),
        (lambda: NcsnPP(multipliers=(1, 0)), "multipliers"),
        (lambda: NcsnPP(attention=(16,)), "attention at levels 0 .. 3"),
        (lambda: NcsnPP(residual_input=True), "fir"),
        (lambda: NcsnPP(residual_input=True, skip_input=True, fir=True), "skip_input"),
        (lambda: ScoreSdeDdpm(width=48), "divisible by 32"),
        (lambda: ScoreSdeDdpm(attention=(-1,)), "attention at levels"),
        (lambda: DdpmUNet(width=40), "divisible by 32"),
        (lambda: DdpmUNet(attention=(32,)), "attention at levels"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        on_meta(build)


def ddpm_names(levels: int, blocks: int) -> list[str]:
    """Where `DdpmUNet` has the entries of `all_modules` of a network with attention in the middle only."""
    places = ["temb.dense.0", "temb.dense.1", "conv_in"]
    for level in range(levels):
        places += [f"down.{level}.block.{n}" for n in range(blocks)]
        places += [f"down.{level}.downsample"] * (level < levels - 1)
    places += ["mid.block_1", "mid.attn_1", "mid.block_2"]
    for level in reversed(range(levels)):
        places += [f"up.{level}.block.{n}" for n in range(blocks + 1)]
        places += [f"up.{level}.upsample"] * (level > 0)
    return [*places, "norm_out", "conv_out"]


def ddpm_entry(places: list[str], key: str, value: Tensor) -> tuple[str, Tensor]:
    _, n, *rest = key.split(".")
    place = places[int(n)]
    if len(rest) == 1:
        return f"{place}.{rest[0]}", value
    if "sample" in place:
        return f"{place}.conv.{rest[1]}", value
    attention = {"GroupNorm_0": "norm", "NIN_0": "q", "NIN_1": "k", "NIN_2": "v", "NIN_3": "proj_out"}
    block = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "temb_proj", "GroupNorm_1": "norm2"}
    names = attention if "attn" in place else {**block, "Conv_1": "conv2", "NIN_0": "nin_shortcut"}
    value = value.T[:, :, None, None] if rest[1] == "W" else value
    return f"{place}.{names[rest[0]]}.{ {'W': 'weight', 'b': 'bias'}.get(rest[1], rest[1]) }", value


def test_the_two_ddpm_networks_are_one_where_only_the_middle_has_attention() -> None:
    settings = {"width": 32, "multipliers": (2, 1, 3), "blocks": 2, "attention": ()}
    older = ScoreSdeDdpm(**settings).double().eval()
    network = DdpmUNet(**settings).double().eval()
    weights = {
        key: value + 0.1 * randn(*value.shape, seed=n) for n, (key, value) in enumerate(older.state_dict().items())
    }
    older.load_state_dict(weights)
    places = ddpm_names(levels=3, blocks=2)
    network.load_state_dict(dict(ddpm_entry(places, key, value) for key, value in weights.items() if key != "sigmas"))
    x, label = randn(2, 3, 8, 8, seed=1), torch.tensor([3.25, 910.0])
    assert network(x, label).std() > 0.1
    torch.testing.assert_close(older(x, label), network(x, label), rtol=0, atol=1e-11)


def test_table_of_noise_levels() -> None:
    """From 50 to 0.01 by factors of 5000^(1/4)."""
    table = ScoreSdeDdpm(width=32, multipliers=(1,), blocks=1, attention=(), scales=5).sigmas
    expected = torch.tensor([50.0, 5.946035575, 0.707106781, 0.0840896415, 0.01], dtype=torch.float64)
    torch.testing.assert_close(table, expected, rtol=1e-8, atol=0)
