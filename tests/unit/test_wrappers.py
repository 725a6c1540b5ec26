"""What stands between an image in [0, 1] and a network, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from depura._check import InputError
from depura.models.networks.attribute import AttributeNet
from depura.models.networks.wrappers import Normalised, Padded, ResizedInput, TwoLogits
from toys import rand, randn


def test_normalised() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    wrapped, x = Normalised(nn.Identity(), mean=mean, std=std).double(), rand(2, 3, 8, 8, seed=1)
    shifted = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(wrapped(x), shifted, rtol=0, atol=1e-6)
    assert not torch.equal(wrapped(x), shifted)  # its constants are those of float32
    with pytest.raises(InputError, match="Normalised: expected as many means"):
        Normalised(nn.Identity(), mean=(0.4,), std=(0.2, 0.2))
    with pytest.raises(InputError, match="Normalised: expected std"):
        Normalised(nn.Identity(), mean=(0.4,), std=(0.0,))


def test_resized_by_hand() -> None:
    """2 -> 4 pixels with corners not aligned: weights 3/4 and 1/4, ends repeated; the gradient is the transpose."""
    weights = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    x, v = rand(2, 3, 2, 2, seed=1).requires_grad_(), randn(2, 3, 4, 4, seed=2)
    y = ResizedInput(nn.Identity(), size=4)(x)
    torch.testing.assert_close(y, weights @ x @ weights.T, rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad((y * v).sum(), x)
    torch.testing.assert_close(grad, weights.T @ v @ weights, rtol=0, atol=1e-12)


def test_resized_to_a_smaller_size() -> None:
    """4 -> 2: without antialiasing the mean of the two pixels next to each centre, with it a wider one."""
    x = rand(1, 1, 4, 4, seed=3)
    plain = ResizedInput(nn.Identity(), size=(2, 4))(x)
    torch.testing.assert_close(plain, x.reshape(1, 1, 2, 2, 4).mean(3), rtol=0, atol=1e-12)
    wide = torch.tensor([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]], dtype=torch.float64) / 7
    averaged = ResizedInput(nn.Identity(), size=(2, 4), antialias=True)(x)
    torch.testing.assert_close(averaged, wide @ x, rtol=0, atol=1e-12)
    nearest = ResizedInput(nn.Identity(), size=2, mode="nearest")(x)
    assert torch.equal(nearest, x[:, :, ::2, ::2])


def test_what_resized_refuses() -> None:
    with pytest.raises(InputError, match="ResizedInput: expected mode 'bilinear', 'bicubic' or 'nearest', got 'area'"):
        ResizedInput(nn.Identity(), size=4, mode="area")
    with pytest.raises(InputError, match="ResizedInput: expected antialias with mode"):
        ResizedInput(nn.Identity(), size=4, mode="nearest", antialias=True)
    with pytest.raises(InputError, match="ResizedInput: expected size"):
        ResizedInput(nn.Identity(), size=(4, 0))


def test_a_border_is_zero_before_normalisation() -> None:
    x = rand(1, 3, 2, 2, seed=1)
    y = Padded(Normalised(nn.Identity(), mean=(0.5,) * 3, std=(0.25,) * 3), width=1)(x)
    assert y.shape == (1, 3, 4, 4)
    torch.testing.assert_close(y[..., 1:3, 1:3], 4 * x - 2, rtol=0, atol=1e-12)
    assert torch.equal(y[..., 0, :], torch.full((1, 3, 4), -2.0, dtype=torch.float64))
    assert torch.equal(y[..., :, 3], torch.full((1, 3, 4), -2.0, dtype=torch.float64))


def test_two_logits() -> None:
    class One(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum((1, 2, 3))[:, None]

    x = rand(3, 1, 2, 2, seed=1)
    total = x.sum((1, 2, 3))
    assert torch.equal(TwoLogits(One())(x), torch.stack([total, -total], dim=1))


def test_spread_of_an_attribute_network_is_over_groups_of_four() -> None:
    """8 images are the groups (0, 2, 4, 6) and (1, 3, 5, 7): each alone gives the same logits."""
    network = AttributeNet(widths=(4, 6), hidden=5, batch_statistics=True).double()
    for k, parameter in enumerate(network.parameters()):
        parameter.data = randn(*parameter.shape, seed=k)
    x = randn(8, 3, 8, 8, seed=1)
    together = network(x)
    torch.testing.assert_close(network(x[::2]), together[::2], rtol=0, atol=1e-12)
    torch.testing.assert_close(network(x[1::2]), together[1::2], rtol=0, atol=1e-12)
    assert not torch.allclose(network(x[:4]), together[:4], atol=1e-3)
    with pytest.raises(InputError, match="AttributeNet: expected a batch that 4 divides"):
        network(x[:6])
    with pytest.raises(InputError, match="AttributeNet: expected images of 8x8, got"):
        network(F.pad(x, (0, 1)))
