"""The networks and preconditioners of EDM against recorded runs of the published code and its files' layouts."""

import math
from typing import Any

import pytest
import torch
from tests.networks import Case, Listing, cases, check, check_layout, listing, on_meta
from torch import Tensor, nn

from depura import EdmDenoiser, InputError
from depura.models.networks.adm import AdmUNet
from depura.models.networks.edm import DhariwalUNet, SongUNet, dhariwal_settings, song_settings
from depura.models.networks.preconditioned import (
    EdmPreconditioned,
    IddpmPreconditioned,
    VePreconditioned,
    VpPreconditioned,
)

CASES = cases("edm-")


def built(published: Listing) -> nn.Module:
    """The network, from its shapes, in the preconditioner that the case names."""
    said = published.settings
    shapes = {key.removeprefix("model."): shape for key, shape in published.shapes.items()}
    if said["model_type"] == "SongUNet":
        assert dhariwal_settings(shapes) is None
        settings = song_settings(shapes)
        assert settings is not None
        model: nn.Module = SongUNet(**settings)
    else:
        assert song_settings(shapes) is None
        settings = dhariwal_settings(shapes, head_width=said.get("override_channels_per_head", 64))
        assert settings is not None
        model = DhariwalUNet(**settings)
    if said["precond"] == "EDMPrecond":
        return EdmPreconditioned(model, sigma_data=said.get("sigma_data", 0.5))
    if said["precond"] == "VPPrecond":
        names = {"beta_slope": "beta_d", "beta_min": "beta_min", "steps": "M"}
        return VpPreconditioned(model, **{ours: said[theirs] for ours, theirs in names.items() if theirs in said})
    if said["precond"] == "VEPrecond":
        return VePreconditioned(model)
    names = {"ratio_floor": "C_1", "offset": "C_2", "steps": "M"}
    return IddpmPreconditioned(model, **{ours: said[theirs] for ours, theirs in names.items() if theirs in said})


def run(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    classes, augment = inputs.get("class_labels"), inputs.get("augment_labels")
    if classes is not None and set(classes.unique().tolist()) == {0, 1}:
        classes = classes.argmax(dim=1)
    return network(inputs["x"], inputs["sigma"], classes, augment)


@pytest.mark.parametrize("case", CASES)
def test_recorded_runs(case: Case) -> None:
    network = built(case)
    check_layout(case, network)
    for key, value in network.state_dict().items():
        if key.endswith("resample_filter"):
            assert torch.equal(value, case.state[key])
    check(case, run, network)


@pytest.mark.parametrize("case", [c for c in CASES if "iddpm" in str(c.id)])
def test_table_of_noise_levels(case: Case) -> None:
    """As published, before any weights are loaded; theirs was computed in single precision."""
    torch.testing.assert_close(built(case).state_dict()["u"], case.state["u"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cond", "uncond", "uncond-ncsnpp"])
def test_full_size_layouts(name: str) -> None:
    published = listing(f"edm-cifar10-32x32-{name}")
    check_layout(published, on_meta(lambda: built(published)))


def test_full_size_settings_and_counts() -> None:
    counts = {"cond": 55_735_299, "uncond": 55_733_891, "uncond-ncsnpp": 56_397_827}
    for name, count in counts.items():
        network = on_meta(lambda name=name: built(listing(f"edm-cifar10-32x32-{name}")))
        assert sum(p.numel() for p in network.parameters()) == count
    shapes = {key.removeprefix("model."): s for key, s in listing("edm-cifar10-32x32-uncond-ncsnpp").shapes.items()}
    assert song_settings(shapes) == {
        "resolution": 32,
        "width": 128,
        "multipliers": (2, 2, 2),
        "blocks": 4,
        "attention": (1,),
        "classes": None,
        "augment": 9,
        "channels": 3,
        "fourier": True,
        "residual": True,
        "filter": (1, 3, 3, 1),
        "noise_multiplier": 2,
        "outputs": 3,
    }


def test_other_families_are_left_alone() -> None:
    for name in ("guided-diffusion-256-uncond", "ddpm-cifar10"):
        shapes = listing(name).shapes
        assert song_settings(shapes) is None
        assert dhariwal_settings(shapes) is None


SMALL: dict[str, Any] = {"resolution": 16, "width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}


def adm_as_dhariwal(adm: AdmUNet, dhariwal: DhariwalUNet) -> dict[str, Tensor]:
    """The weights of one under the names of the other, with the channels of qkv in its order."""
    state: dict[str, Tensor] = {}

    def copy(to: str, of: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{to}.{kind}"] = adm.state_dict()[f"{of}.{kind}"]

    copy("map_layer0", "time_embed.0")
    copy("map_layer1", "time_embed.2")
    names = {
        "norm0": "in_layers.0",
        "conv0": "in_layers.2",
        "affine": "emb_layers.1",
        "norm1": "out_layers.0",
        "conv1": "out_layers.3",
    }

    def copy_block(to: str, residual: str, attention: str | None) -> None:
        for ours, theirs in names.items():
            copy(f"{to}.{ours}", f"{residual}.{theirs}")
        if f"{to}.skip.weight" in dhariwal.state_dict():
            copy(f"{to}.skip", f"{residual}.skip_connection")
        if f"{to}.qkv.weight" in dhariwal.state_dict():
            assert attention is not None
            copy(f"{to}.norm2", f"{attention}.norm")
            copy(f"{to}.proj", f"{attention}.proj_out")
            state[f"{to}.proj.weight"] = state[f"{to}.proj.weight"][..., None]
            for kind in ("weight", "bias"):
                value = adm.state_dict()[f"{attention}.qkv.{kind}"]
                heads = dhariwal.get_submodule(to).heads
                by_head = value.reshape(heads, 3, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
                state[f"{to}.qkv.{kind}"] = by_head[..., None] if kind == "weight" else by_head

    copy("enc.16x16_conv", "input_blocks.0.0")
    for k, to in enumerate(name for name in dhariwal.enc if not name.endswith("conv")):
        copy_block(f"enc.{to}", f"input_blocks.{k + 1}.0", f"input_blocks.{k + 1}.1")
    copy_block("dec.8x8_in0", "middle_block.0", "middle_block.1")
    copy_block("dec.8x8_in1", "middle_block.2", None)
    for k, to in enumerate(name for name in dhariwal.dec if "_block" in name):
        copy_block(f"dec.{to}", f"output_blocks.{k}.0", f"output_blocks.{k}.1")
    copy_block("dec.16x16_up", "output_blocks.1.2", None)
    copy("out_norm", "out.0")
    copy("out_conv", "out.2")
    return {key: state.get(key, value) for key, value in dhariwal.state_dict().items()}


def test_adm_and_dhariwal_are_one_network() -> None:
    """With 128 features and more the two have the same 32 groups."""
    torch.manual_seed(0)
    size: dict[str, Any] = {**SMALL, "width": 128}
    dhariwal = DhariwalUNet(**size, head_width=64, outputs=6).double().eval()
    size.pop("resolution")
    adm = AdmUNet(**size, head_width=64, residual_resampling=True).double().eval()
    state = adm_as_dhariwal(adm, dhariwal)
    kept = [key for key in state if state[key] is dhariwal.state_dict()[key]]
    assert all(key.endswith("resample_filter") for key in kept)
    dhariwal.load_state_dict(state)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([3.0, 700.5], dtype=torch.float64)
    torch.testing.assert_close(dhariwal(x, label), adm(x, label), rtol=0, atol=1e-12)


def test_edm_preconditioned_is_the_denoiser_around_the_network() -> None:
    torch.manual_seed(0)
    model = SongUNet(**SMALL).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = EdmPreconditioned(model, sigma_data=0.7)
    for sigma in (0.01, 0.5, 30.0):
        torch.testing.assert_close(ours(x, sigma), EdmDenoiser(model, sigma_data=0.7)(x, sigma))
    each = ours(x, torch.tensor([0.3, 4.0]).double())
    torch.testing.assert_close(each, torch.cat([ours(x[:1], 0.3), ours(x[1:], 4.0)]))


@pytest.mark.parametrize("wrapped", [EdmPreconditioned, VpPreconditioned, VePreconditioned, IddpmPreconditioned])
def test_without_a_network_and_without_noise_nothing_happens(wrapped: Any) -> None:
    """Where F is 0, D is skip * x; at little noise skip is 1 in all of them."""

    class Nought(nn.Module):
        def forward(self, x: Tensor, label: Tensor, classes: None, augment: None) -> Tensor:
            assert label.dtype == torch.float64
            return torch.zeros_like(x)

    x = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)
    out = wrapped(Nought())(x, 1e-4)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x, rtol=1e-6, atol=0)


def test_labels_of_preconditioners_by_hand() -> None:
    def label(wrapped: Any, sigma: float) -> float:
        return wrapped(nn.Identity()).coefficients(torch.tensor([sigma], dtype=torch.float64))[3].item()

    assert label(EdmPreconditioned, math.e**2) == pytest.approx(0.5)
    assert label(VePreconditioned, 2 * math.e**3) == pytest.approx(3.0)
    assert label(VpPreconditioned, math.sqrt(math.expm1(0.5 * 19.9 + 0.1))) == pytest.approx(999.0)
    assert label(VpPreconditioned, math.sqrt(math.expm1(0.5 * 19.9 / 4 + 0.1 / 2))) == pytest.approx(499.5)
    assert label(IddpmPreconditioned, 1e9) == 999.0
    assert label(IddpmPreconditioned, 1e-9) == -1.0


@pytest.mark.parametrize(
    ("build", "last_exponent", "sine_first"),
    [(SongUNet, 15, True), (DhariwalUNet, 16, False)],
    ids=["song", "dhariwal"],
)
def test_augmentations_add_to_the_features(build: Any, last_exponent: int, sine_first: bool) -> None:
    """An augmentation whose weights are the difference of two labels' features turns one label into the other."""
    torch.manual_seed(0)
    network = build(**SMALL, augment=2).double().eval()

    def features(label: float) -> Tensor:
        phases = [label * 10000 ** (-k / (15 if sine_first else 16)) for k in range(16)]
        sines, cosines = [math.sin(p) for p in phases], [math.cos(p) for p in phases]
        return torch.tensor(sines + cosines if sine_first else cosines + sines, dtype=torch.float64)

    network.map_augment.weight.data[:, 0] = features(3.0) - features(1.5)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label, augment = torch.full((2,), 1.5).double(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    expected = network(x, torch.tensor([3.0, 1.5]).double())
    torch.testing.assert_close(network(x, label, augment=augment), expected, rtol=0, atol=1e-12)
    assert (expected - network(x, label))[0].abs().max() > 1e-3


def test_the_residual_encoder_passes_its_side_branch_on() -> None:
    """What reaches the third level is of the second: with the image's own channels its convolution would not fit."""
    network = SongUNet(**{**SMALL, "multipliers": (1, 2, 2)}, residual=True, filter=(1, 3, 3, 1))
    assert network(torch.zeros(1, 3, 16, 16), torch.zeros(1)).shape == (1, 3, 16, 16)
    assert network.state_dict()["enc.4x4_aux_residual.weight"].shape == (64, 32, 3, 3)


def test_fourier_frequencies_before_loading_are_as_wide_as_published() -> None:
    freqs = SongUNet(**{**SMALL, "width": 128}, fourier=True).state_dict()["map_noise.freqs"]
    assert freqs.shape == (64,)
    assert abs(freqs.mean().item()) < 1e-5
    assert 15 < freqs.std().item() < 16.1


def test_what_does_not_fit_is_refused() -> None:
    x, label = torch.zeros(1, 3, 16, 16), torch.zeros(1)
    for build in (SongUNet, DhariwalUNet):
        network = build(**SMALL)
        with pytest.raises(InputError, match="unconditional"):
            network(x, label, classes=torch.tensor([1]))
        with pytest.raises(InputError, match="no augmentations"):
            network(x, label, augment=torch.zeros(1, 9))
        with pytest.raises(InputError, match="divisible by 2"):
            network(x[..., :15], label)
        with pytest.raises(InputError, match="augmentations of 9"):
            build(**SMALL, augment=9)(x, label, augment=torch.zeros(1, 8))
        for wrong in ({"resolution": 15}, {"attention": (2,)}, {"multipliers": ()}, {"width": 2}, {"blocks": 0}):
            with pytest.raises(InputError, match=build.__name__):
                build(**{**SMALL, **wrong})


def test_small_levels_of_dhariwal_have_no_attention() -> None:
    network = DhariwalUNet(**{**SMALL, "attention": (0, 1)})
    assert {key.split(".")[1] for key in network.state_dict() if ".qkv." in key} == {
        "8x8_block0",
        "8x8_block1",
        "8x8_in0",
    }
