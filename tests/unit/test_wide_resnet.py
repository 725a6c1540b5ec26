"""Wide residual networks: the first layout against a plain functional transcription, and what both refuse.

The second layout is compared with recorded runs (tests/reference/test_networks_classifiers.py).
"""

from __future__ import annotations

import pytest
import torch
from test_resnet import seeded
from torch import Tensor
from torch.nn import functional as F

from depura._check import InputError
from depura.networks.wide_resnet import DmWideResNet, WideResNet
from toys import randn


def transcription(w: dict[str, Tensor], x: Tensor, n: int) -> Tensor:
    def active(h: Tensor, name: str) -> Tensor:
        gain = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        return (h * gain[:, None, None] + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * gain)[:, None, None]).clamp(
            0
        )

    h = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(n):
            at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            first = active(h, f"{at}.bn1")
            inner = active(F.conv2d(first, w[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn2")
            inner = F.conv2d(inner, w[f"{at}.conv2.weight"], padding=1)
            if h.shape[1] == inner.shape[1]:
                h = h + inner
            else:
                h = inner + F.conv2d(first, w[f"{at}.convShortcut.weight"], stride=stride)
    h = active(h, "bn1").flatten(2).mean(2) @ w["fc.weight"].T
    return h + w.get("fc.bias", torch.zeros(()))


@pytest.mark.parametrize(("width", "sub_block", "bias"), [(1, True, True), (2, False, False)])
def test_against_a_transcription(width: int, sub_block: bool, bias: bool) -> None:
    network = seeded(WideResNet(depth=16, width=width, n_classes=5, dropout=0.3, sub_block=sub_block, bias=bias))
    x = randn(2, 3, 16, 16, seed=1)
    with torch.no_grad():
        expected = transcription(network.state_dict(), x, 2)
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)
        network.train()
        network.apply(lambda m: m.train(not isinstance(m, torch.nn.BatchNorm2d)))
        assert not torch.allclose(network(x), expected, atol=1e-3)


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
