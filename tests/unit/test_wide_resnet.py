"""Wide residual networks: both layouts against a plain functional transcription, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_resnet import seeded
from torch import Tensor
from torch.nn import functional as F

from depura._check import InputError
from depura.models.networks.wide_resnet import DmWideResNet, WideResNet, wide_resnet_settings
from toys import randn


def transcription(
    w: dict[str, Tensor],
    x: Tensor,
    n: int,
    act: Callable[[Tensor], Tensor] = lambda h: h.clamp(min=0),
    border: tuple[int, int, int, int] = (1, 1, 1, 1),
) -> Tensor:
    """Both layouts, the second by the first one's names; `border` is what convolutions of stride 2 see around."""

    def active(h: Tensor, name: str) -> Tensor:
        gain = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * gain
        return act(h * gain[:, None, None] + shift[:, None, None])

    h = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(n):
            at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            first = active(h, f"{at}.bn1")
            seen = F.pad(first, border if stride == 2 else (1, 1, 1, 1))
            inner = active(F.conv2d(seen, w[f"{at}.conv1.weight"], stride=stride), f"{at}.bn2")
            inner = F.conv2d(inner, w[f"{at}.conv2.weight"], padding=1)
            if h.shape[1] == inner.shape[1]:
                h = h + inner
            else:
                h = inner + F.conv2d(first, w[f"{at}.convShortcut.weight"], stride=stride)
    h = active(h, "bn1").flatten(2).mean(2) @ w["fc.weight"].T
    return h + w.get("fc.bias", torch.zeros(()))


@pytest.mark.parametrize(("width", "sub_block", "bias"), [(1, True, True), (2, False, False)])
def test_against_a_transcription(width: int, sub_block: bool, bias: bool) -> None:
    """In evaluation; in training the dropout halves the inner path or doubles it, place by place."""
    network = seeded(WideResNet(depth=16, width=width, n_classes=5, dropout=0.5, sub_block=sub_block, bias=bias))
    x = randn(2, 3, 16, 16, seed=1)
    with torch.no_grad():
        expected = transcription(network.state_dict(), x, 2)
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)
        for part in network.modules():
            part.training = not isinstance(part, torch.nn.BatchNorm2d)
        assert not torch.allclose(network(x), expected, atol=1e-3)


NAMES = {
    r"^init_conv": "conv1",
    r"^layer\.(\d)\.block": lambda found: f"block{int(found[1]) + 1}.layer",
    "batchnorm_0": "bn1",
    "batchnorm_1": "bn2",
    "conv_1": "conv2",
    "conv_0": "conv1",
    "shortcut": "convShortcut",
    "^batchnorm": "bn1",
    "^logits": "fc",
}
"""Names of the second layout, as patterns, and what they are in the first one."""


@pytest.mark.parametrize("swish", [True, False])
def test_the_second_layout_against_a_transcription(swish: bool) -> None:
    network, x = seeded(DmWideResNet(depth=16, width=1, n_classes=5, swish=swish)), randn(2, 3, 16, 16, seed=1)
    renamed = {}
    for name, value in network.state_dict().items():
        for pattern, ours in NAMES.items():
            name = re.sub(pattern, ours, name)
        renamed[name] = value
    act = (lambda h: h / (1 + (-h).exp())) if swish else (lambda h: h.clamp(min=0))
    with torch.no_grad():
        expected = transcription(renamed, x, 2, act, (0, 1, 0, 1))
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "given",
    [
        {"depth": 10, "width": 1, "n_classes": 3, "dropout": 0.3, "sub_block": True, "bias": False, "channels": 1},
        {"depth": 22, "width": 2, "n_classes": 7, "dropout": 0.0, "sub_block": False, "bias": True, "channels": 3},
    ],
)
def test_settings_come_back(given: dict[str, Any]) -> None:
    shapes = {name: tuple(value.shape) for name, value in WideResNet(**given).state_dict().items()}
    assert wide_resnet_settings(shapes, dropout=given["dropout"]) == given


def test_nothing_is_computed_with_the_second_first_stage() -> None:
    network, x = seeded(WideResNet(depth=10, width=1, sub_block=True)), randn(1, 3, 8, 8, seed=1)
    network(x).sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {name for name in dict(network.named_parameters()) if name.startswith("sub_block1.")}
    assert without


@pytest.mark.parametrize("network", [WideResNet, DmWideResNet])
def test_what_is_refused(network: type[WideResNet] | type[DmWideResNet]) -> None:
    name = network.__name__
    with pytest.raises(InputError, match=rf"^{name}: expected a depth of 6 n \+ 4, such as 28 or 70, got 20"):
        network(depth=20)
    with pytest.raises(InputError, match=f"^{name}: expected depth"):
        network(depth=4)
    with pytest.raises(InputError, match=f"^{name}: expected width"):
        network(width=0)
