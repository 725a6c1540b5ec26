"""The CIFAR residual network against a plain functional transcription."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from depura._check import InputError
from depura.models.networks.resnet import CifarBottleneckResNet, CifarResNet
from toys import randn


def seeded(network: CifarResNet) -> CifarResNet:
    """Weights and running statistics of plausible size, from seeds."""
    with torch.no_grad():
        for k, (name, value) in enumerate(network.state_dict().items()):
            if value.is_floating_point():
                drawn = randn(*value.shape, seed=k) if value.ndim else randn(1, seed=k)[0]
                value.copy_(drawn.abs() + 0.5 if "var" in name else 0.2 * drawn)
    return network.double().eval()


def transcription(w: dict[str, Tensor], x: Tensor, n_blocks: int) -> Tensor:
    def norm(h: Tensor, name: str) -> Tensor:
        gain = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        return h * gain[:, None, None] + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * gain)[:, None, None]

    h = norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(n_blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = norm(F.conv2d(h, w[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").clamp(min=0)
            inner = norm(F.conv2d(inner, w[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if stride == 2:
                zeros = torch.zeros(len(h), h.shape[1] // 2, *inner.shape[2:], dtype=h.dtype)
                h = torch.cat([zeros, h[:, :, ::2, ::2], zeros], dim=1)
            h = (inner + h).clamp(min=0)
    return h.flatten(2).mean(2) @ w["linear.weight"].T + w["linear.bias"]


@pytest.mark.parametrize(("n_blocks", "size"), [(1, 8), (3, 32), (2, 9)])
def test_against_a_transcription(n_blocks: int, size: int) -> None:
    network = seeded(CifarResNet(n_blocks=n_blocks))
    x = randn(2, 3, size, size, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), transcription(network.state_dict(), x, n_blocks), rtol=0, atol=1e-10)


def test_size_and_names_of_resnet_20() -> None:
    network = CifarResNet()
    assert sum(p.numel() for p in network.parameters()) == 269_722
    names = set(network.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.2.bn2.weight", "linear.bias"} <= names
    assert not any("shortcut" in name or "downsample" in name for name in names)


def test_blocks_of_each_stage() -> None:
    network, x = seeded(CifarResNet(n_blocks=(1, 2, 1), n_classes=4)), randn(2, 3, 8, 8, seed=1)
    assert sum(p.numel() for p in network.parameters()) == 93_850 - 6 * 65
    assert network(x).shape == (2, 4)
    with pytest.raises(InputError, match="CifarResNet: expected n_blocks of 3 stages, got 2"):
        CifarResNet(n_blocks=(1, 2))
    with pytest.raises(InputError, match="CifarResNet: expected n_blocks"):
        CifarResNet(n_blocks=(1, 0, 1))
    with pytest.raises(InputError, match="CifarBottleneckResNet: expected four widths"):
        CifarBottleneckResNet(widths=(8, 8))
