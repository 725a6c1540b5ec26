"""Classifiers and denoisers by name, without the libraries that publish some (test_model_libraries.py has those)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests import checkpoints as made
from torch import Tensor, nn

import depura
from depura import digits_denoiser, load_classifier, load_denoiser
from depura._check import InputError
from depura.models.by_name import classifier, denoiser
from toys import rand

MINE = """
import torch

def module():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))

def plain():
    return lambda images: images.flatten(1)[:, :2]

def number():
    return 7

nothing = None
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own."""
    (tmp_path / "mine_to_name.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_to_name", raising=False)
    return "mine_to_name"


def test_the_bundled_one() -> None:
    images = depura.load_digits("test").images[:4]
    assert torch.equal(depura.classifier("digits")(images), depura.digits_classifier()(images))


def test_a_function_of_ones_own(mine: str) -> None:
    found = classifier(f"{mine}:module")
    assert isinstance(found, nn.Module)
    assert not any(part.training for part in found.modules())
    x = rand(3, 1, 2, 2, seed=1)
    assert torch.equal(classifier(f"{mine}:plain")(x), x.flatten(1)[:, :2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "to return a callable from images to logits, got int"),
        ("nothing", "a function without arguments, got .* of type NoneType"),
        ("other", "something importable, got 'mine_to_name:other'"),
    ],
)
def test_other_functions_are_refused(mine: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^classifier: expected .*{message}"):
        classifier(f"{mine}:{name}")


@pytest.mark.parametrize("name", ["resnet50", "timm:", ":resnet50", ""])
def test_other_forms_are_refused(name: str) -> None:
    libraries = "torchvision:NAME, timm:NAME, robustbench:NAME"
    forms = f"'digits', a checkpoint file, {libraries}, MODULE:FUNCTION or FILE.py:FUNCTION"
    with pytest.raises(InputError, match=f"^classifier: expected {forms}, got '{name}'"):
        classifier(name)
    with pytest.raises(InputError, match=r"^--classifier: expected"):
        classifier(name, where="--classifier")


def test_nothing_after_the_at_is_refused() -> None:
    with pytest.raises(InputError, match="a word after the @, got 'timm:resnet18@'"):
        classifier("timm:resnet18@")


def test_a_file_is_loaded(tmp_path: Path) -> None:
    torch.save(made.network("cifar-resnet").state_dict(), tmp_path / "net.pth")
    found = classifier(str(tmp_path / "net.pth"))
    x = rand(2, 3, 32, 32, seed=1).float()
    assert torch.equal(found(x), load_classifier(tmp_path / "net.pth")(x))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for ask in (classifier, denoiser):
        with pytest.raises(InputError, match=r"a checkpoint file, got .*net\.pth, which is not there"):
            ask(str(tmp_path / "net.pth"))


def test_denoisers_by_name(tmp_path: Path) -> None:
    x = 2 * rand(2, 1, 8, 8, seed=1).float() - 1
    assert torch.equal(denoiser("digits")(x, 0.5), digits_denoiser()(x, 0.5))
    torch.save(made.network("ddpm").state_dict(), tmp_path / "net.pth")
    y = 2 * rand(2, 3, 16, 16, seed=1).float() - 1
    assert torch.equal(denoiser(str(tmp_path / "net.pth"))(y, 0.5), load_denoiser(tmp_path / "net.pth")(y, 0.5))
    with pytest.raises(InputError, match=r"^denoiser: expected 'digits', a checkpoint file, .*, got 'ddpm'"):
        denoiser("ddpm")


@pytest.mark.parametrize("extra", ["torchvision", "timm", "robustbench"])
def test_a_missing_library_names_the_extra(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(InputError, match=rf"expected {extra} to be installed, got .*pip install 'depura\[{extra}\]'"):
        classifier(f"{extra}:resnet50")


def test_a_library_of_another_torch_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm says beside a torchvision whose compiled part does not load."""
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(InputError, match=r"a timm that works with this torch, got operator torchvision::nms does not"):
        classifier("timm:resnet18")


def test_a_plain_function_is_a_classifier_of_a_defence() -> None:
    """Logits l and -2 l for l = the mean: gradient of their difference 3 / pixels everywhere."""

    def plain(images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, -2 * mean], dim=1)

    x = rand(2, 1, 4, 4, seed=1).requires_grad_()
    logits = depura.Defence(None, plain)(x)
    (grad,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
    torch.testing.assert_close(grad, torch.full_like(x, 3 / 16), rtol=0, atol=1e-12)
