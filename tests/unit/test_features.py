"""Activations of a layer equal those computed by hand, and are differentiable as the network is."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import depura
from depura.models.networks.small import SmallClassifier


def network(*, in_place: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = nn.ReLU(inplace=True) if in_place else nn.Tanh()
        layers = [nn.Conv2d(1, 3, 3), middle, nn.Flatten(), nn.Linear(48, 5)]
        return nn.Sequential(*layers).double()


def images(n: int = 4, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, size, size, dtype=torch.float64, generator=generator)


def test_a_layer_is_what_it_gives_flattened() -> None:
    net, x = network(), images()
    convolved = F.conv2d(x, net[0].weight, net[0].bias)
    assert torch.equal(depura.Features(net, "0")(x), convolved.flatten(1))
    assert torch.equal(depura.Features(net, "1")(x), convolved.tanh().flatten(1))
    assert torch.equal(depura.Features(net, "3")(x), net(x))


def test_a_layer_that_follows_in_place_changes_nothing() -> None:
    net, x = network(in_place=True), images().requires_grad_()
    found = depura.Features(net, "0")(x)
    assert torch.equal(found, F.conv2d(x, net[0].weight, net[0].bias).flatten(1))
    assert (found < 0).any()
    assert torch.autograd.gradcheck(depura.Features(net, "0"), (images(1).requires_grad_(),))


def test_inner_layers_are_named_by_their_path() -> None:
    inner = nn.ModuleDict({"first": network()})
    whole = nn.Sequential(inner["first"], nn.Softmax(1))
    assert torch.equal(depura.Features(whole, "0.3")(images()), network()(images()))


def test_features_are_differentiable_twice() -> None:
    f = depura.Features(network(), "1")
    x = images(1).requires_grad_()
    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))


def test_the_network_is_shared_and_left_as_it_was() -> None:
    net = network()
    f = depura.Features(net, "1")
    f(images())
    assert not net[1]._forward_hooks
    with torch.no_grad():
        net[0].bias += 1
    assert torch.equal(f(images()), net[:2](images()).flatten(1))
    copied = copy.deepcopy(f)
    with torch.no_grad():
        copied.network[0].bias += 1
    assert not torch.equal(copied(images()), f(images()))


def test_hooks_are_removed_where_the_network_fails() -> None:
    net = network()
    with pytest.raises(RuntimeError):
        depura.Features(net, "1")(images(size=7))
    assert not net[1]._forward_hooks
    assert depura.Features(net, "1")(images()).shape == (4, 48)


class Nested(nn.Module):
    """Asks for its own features, of other images, while it is running."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth = network()[0], 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.depth == 0:
            self.depth = 1
            h = h + depura.Features(self, "first")(x * 2).view_as(h)
            self.depth = 0
        return h


def test_calls_may_be_nested() -> None:
    net, x = Nested(), images()
    assert torch.equal(depura.Features(net, "first")(x), net.first(x).flatten(1))
    assert torch.equal(net(x), net.first(x) + net.first(2 * x))


def test_calls_may_run_in_several_threads() -> None:
    """The second thread's call begins and ends while the first is between the layer and the end of the network."""
    net, results = network(), {}
    reached, done = threading.Event(), threading.Event()

    def hold(module: nn.Module, args: object, output: Tensor) -> None:
        if threading.current_thread().name == "slow":
            reached.set()
            done.wait(10)

    net[2].register_forward_hook(hold)
    f = depura.Features(net, "1")
    slow = threading.Thread(name="slow", target=lambda: results.update(slow=f(images(2))))
    slow.start()
    assert reached.wait(10)
    results["fast"] = f(images(3))
    done.set()
    slow.join()
    assert torch.equal(results["slow"], net[:2](images(2)).flatten(1))
    assert torch.equal(results["fast"], net[:2](images(3)).flatten(1))


class Twice(nn.Module):
    """Calls one layer twice, another never, and a third gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.never, self.pair = nn.Tanh(), nn.Tanh(), nn.LSTM(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.act(self.act(x))[:, 0])[0]


@pytest.mark.parametrize(
    ("layer", "said"),
    [("act", "got 2"), ("never", "got 0"), ("pair", "got tuple")],
)
def test_layers_without_one_row_per_image(layer: str, said: str) -> None:
    with pytest.raises(depura.InputError, match=said) as caught:
        depura.Features(Twice(), layer)(images().float())
    assert repr(layer) in str(caught.value)


def test_layers_that_sum_over_the_batch_are_refused() -> None:
    with pytest.raises(depura.InputError, match="one row per image"):
        depura.Features(nn.Sequential(nn.Flatten(0, 1), nn.Flatten()), "0")(images().expand(-1, 3, -1, -1))


def test_an_unknown_layer_is_refused_with_names_close_to_it() -> None:
    with pytest.raises(depura.InputError, match=r"submodule of SmallClassifier, got 'conv9'\. Close to it: .*conv3"):
        depura.Features(SmallClassifier(), "conv9")
    with pytest.raises(depura.InputError, match="Close to it: 0, 1, 2"):
        depura.Features(network(), "layer4.1.bn2")


def test_the_small_classifiers_features_feed_its_linear_layer() -> None:
    net, x = SmallClassifier(width=8).double(), images(size=8)
    h = 2 * x - 1
    for layer, stride in ((net.conv1, 1), (net.conv2, 2), (net.conv3, 2)):
        h = F.conv2d(h, layer.weight, layer.bias, stride=stride, padding=1)
        h = h * torch.sigmoid(h)
    expected = h.flatten(2).mean(2)
    assert expected.shape == (4, 16)
    torch.testing.assert_close(net.features(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net(x), expected @ net.head.weight.T + net.head.bias, rtol=1e-12, atol=1e-12)
