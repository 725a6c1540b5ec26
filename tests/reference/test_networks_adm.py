"""AdmUNet against recorded runs of guided-diffusion and the layout of its published file."""

from typing import Any

import pytest
import torch
from tests.networks import Case, Listing, cases, check, check_layout, listing, on_meta
from torch import Tensor, nn

from depura import InputError
from depura.networks.adm import AdmUNet, settings_of

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
