"""torchvision, timm and RobustBench: their models by name, against what the libraries themselves compute.

Weights are random: what is checked is that the published preprocessing is around the network, that gradients pass, and
that the classifier works in a defence.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depura
from depura._check import InputError
from depura.models.networks.wide_resnet import DmWideResNet, WideResNet, wide_resnet_settings
from depura.models.networks.wrappers import CIFAR10, IMAGENET, Normalised, Padded, ResizedInput
from toys import rand, tanh_eps

pytestmark = pytest.mark.models

DECLARED: list[Any] = []
"""Declarations of operators, which last as long as the object."""


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """torchvision, also where its compiled operators are of another build of torch than the installed one.

    A wheel for GPUs does not load them beside a torch for CPUs, and its import then stops at the fake kernels of two
    operators for detection that nothing declares. They are declared here; classification needs neither.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        DECLARED.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            DECLARED[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


@pytest.fixture(scope="module")
def timm(torchvision: Any) -> Any:
    """timm, which imports torchvision."""
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def robustbench(timm: Any) -> Any:
    """RobustBench 1.1.1 asks for pyautoattack and imports autoattack, which is the same code by its older name."""
    pyautoattack = pytest.importorskip("pyautoattack")
    sys.modules.setdefault("autoattack", pyautoattack)
    sys.modules.setdefault("autoattack.state", sys.modules["pyautoattack.state"])
    return pytest.importorskip("robustbench")


def images(*shape: int) -> Tensor:
    return rand(*shape, seed=1, dtype=torch.float32)


def inner(classifier: Any) -> nn.Module:
    assert isinstance(classifier, Normalised)
    assert torch.equal(classifier.mean.flatten(), torch.tensor(IMAGENET[0]))
    assert torch.equal(classifier.std.flatten(), torch.tensor(IMAGENET[1]))
    assert not any(part.training for part in classifier.modules())
    return classifier.network


def same(ours: nn.Module, theirs: Any, x: Tensor) -> None:
    """Logits and input gradients agree, and would not without the preprocessing."""
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(found), theirs(expected)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6 * z.abs().max().item())
    assert not torch.allclose(y, inner(ours)(x), rtol=1e-2)
    (grad,), (wanted,) = torch.autograd.grad(y[:, 0].sum(), found), torch.autograd.grad(z[:, 0].sum(), expected)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    assert (grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["resnet50", "wide_resnet50_2"])
def test_torchvision(torchvision: Any, name: str) -> None:
    made = depura.classifier(f"torchvision:{name}@none")
    assert type(inner(made)) is torchvision.models.ResNet
    for weights in ("IMAGENET1K_V1", "IMAGENET1K_V2"):
        prepare = torchvision.models.get_model_weights(name)[weights].transforms(crop_size=64, resize_size=64)
        same(made, lambda x, prepare=prepare: inner(made)(prepare(x)), images(2, 3, 64, 64))


def test_timm(timm: Any) -> None:
    made = depura.classifier("timm:deit_small_patch16_224@none")
    network = inner(made)
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(network)).transforms[-1]
    assert "Normalize" in repr(prepare)
    same(made, lambda x: network(prepare(x)), images(2, 3, 224, 224))


def test_a_transformer_of_timm_is_loaded(timm: Any, tmp_path: Path) -> None:
    """Its weights under its own names; with another number of heads they mean another network."""
    settings = {"img_size": 12, "patch_size": 3, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 2}
    theirs = timm.models.VisionTransformer(**settings, class_token=False, global_pool="avg", fc_norm=False).eval()
    for k, p in enumerate(theirs.parameters()):
        p.data = 0.3 * rand(*p.shape, seed=k, dtype=torch.float32) - 0.1
    torch.save(theirs.state_dict(), tmp_path / "file.pt")
    ours, x = depura.load_classifier(tmp_path / "file.pt", heads=2), images(2, 3, 12, 12)
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()), rtol=1e-10, atol=1e-10)
    others = depura.load_classifier(tmp_path / "file.pt").double()(x.double())
    assert not torch.allclose(others, theirs(x.double()), rtol=1e-4)


def test_in_a_defence(timm: Any) -> None:
    """A purifier of two steps at another size, before a ResNet and before a DeiT that resizes to 224 itself."""
    purifier = depura.diffpure(tanh_eps(3).float(), n_steps=2)
    resized = ResizedInput(depura.classifier("timm:deit_small_patch16_224@none"), size=224)
    for classifier in (depura.classifier("torchvision:resnet18@none"), resized):
        defence = depura.Defence(depura.Resized(purifier, size=80), classifier)
        x = images(1, 3, 64, 64).requires_grad_()
        logits = defence(x)
        assert logits.shape == (1, 1000)
        (grad,) = torch.autograd.grad(logits[:, 0].sum(), x)
        assert grad.isfinite().all()
        assert (grad != 0).float().mean() > 0.9


def test_names_that_the_libraries_do_not_know(timm: Any) -> None:
    with pytest.raises(InputError, match=r"a classifier of torchvision, got 'resnet5'\. Close to it: .*resnet50"):
        depura.classifier("torchvision:resnet5")
    with pytest.raises(InputError, match="a classifier of torchvision, got 'maskrcnn_resnet50_fpn'"):
        depura.classifier("torchvision:maskrcnn_resnet50_fpn")
    with pytest.raises(InputError, match=r"weights of resnet18 \(IMAGENET1K_V1, or none\), got .*@IMAGENET1K_V2"):
        depura.classifier("torchvision:resnet18@IMAGENET1K_V2")
    with pytest.raises(InputError, match=r"a classifier of timm, got 'deit_smal_patch16_224'.*deit_small_patch16_224"):
        depura.classifier("timm:deit_smal_patch16_224")
    with pytest.raises(InputError, match="nothing or none after the @, got 'timm:resnet18@V1'"):
        depura.classifier("timm:resnet18@V1")


def test_weights_come_from_where_the_libraries_keep_them(
    torchvision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of random weights under the published name in torch's cache; its checksum is not the published one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    cache = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    cache.parent.mkdir(parents=True)
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), cache)
    x = images(1, 3, 64, 64)
    made = depura.classifier("torchvision:resnet18")
    torch.testing.assert_close(inner(made)(x), network.eval()(x))
    cache.write_bytes(b"")
    with pytest.raises(InputError, match="expected the weights of torchvision:resnet18, got "):
        depura.classifier("torchvision:resnet18")


def test_robustbench(robustbench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Standard entry, from a file of random weights where the library keeps it, is our network of these weights."""
    network = WideResNet(depth=28, width=10).eval()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(buffer + 0.1 * rand(*buffer.shape, seed=1, dtype=torch.float32))
    file = tmp_path / "models" / "cifar10" / "Linf" / "Standard.pt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": network.state_dict()}, file)
    monkeypatch.chdir(tmp_path)
    made = depura.classifier("robustbench:Standard")
    assert type(made).__module__.startswith("robustbench.")
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(made(x), network(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"a classifier of robustbench \(L2\), got 'Gowal2021'\. Close to it"):
        depura.classifier("robustbench:Gowal2021@L2")
    with pytest.raises(InputError, match="Linf or L2 after the @"):
        depura.classifier("robustbench:Standard@L1")


def test_networks_of_robustbench(robustbench: Any) -> None:
    """Both layouts, small, against the library's own classes: also the border of zeros of the second."""
    where = "robustbench.model_zoo.architectures"
    dm_wide_resnet, wide_resnet = (importlib.import_module(f"{where}.{n}") for n in ("dm_wide_resnet", "wide_resnet"))
    theirs = wide_resnet.WideResNet(depth=16, widen_factor=1, sub_block1=True, bias_last=False).eval()
    settings = wide_resnet_settings({name: tuple(value.shape) for name, value in theirs.state_dict().items()})
    assert settings is not None
    ours = WideResNet(**settings).eval()
    ours.load_state_dict(theirs.state_dict())
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-6)
    padded = dm_wide_resnet.DMWideResNet(depth=10, width=1, mean=CIFAR10[0], std=CIFAR10[1], padding=2).eval()
    network = DmWideResNet(depth=10, width=1, swish=False).eval()
    network.load_state_dict({name: value for name, value in padded.state_dict().items() if name not in ("mean", "std")})
    around = Padded(Normalised(network, mean=CIFAR10[0], std=CIFAR10[1]), width=2)
    torch.testing.assert_close(around(x[..., 2:-2, 2:-2]), padded(x[..., 2:-2, 2:-2]), rtol=1e-4, atol=1e-6)
