"""The bundled data and weights are what their cards say."""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import depura
from depura.training.classifier import accuracy

FOLDER = Path(depura.__file__).parent / "models"
WEIGHTS = ("digits-classifier", "digits-denoiser", "digits-guide")


def test_images_equal_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    train, test = depura.load_digits("train"), depura.load_digits("test")
    assert (len(train.images), len(test.images)) == (1297, 500)
    assert sorted(train.ids + test.ids) == list(range(1797))
    for part in (train, test):
        rows = np.array(part.ids)
        assert np.array_equal(part.images[:, 0].numpy() * 16, original.images[rows])
        assert np.array_equal(part.labels.numpy(), original.target[rows])


def test_the_split_is_the_documented_one() -> None:
    assert depura.load_digits("test").ids == tuple(sorted(np.random.RandomState(0).permutation(1797)[:500].tolist()))


def test_everything_bundled_is_small() -> None:
    assert (FOLDER.parent / "data" / "digits.npz").stat().st_size < 60_000
    assert sum((FOLDER / f"{name}.safetensors").stat().st_size for name in WEIGHTS) < 410_000


@pytest.mark.parametrize("name", WEIGHTS)
def test_cards_name_the_hash_of_their_weights(name: str) -> None:
    digest = hashlib.sha256((FOLDER / f"{name}.safetensors").read_bytes()).hexdigest()
    assert f"`{digest}`" in (FOLDER / f"{name}.md").read_text()


@pytest.mark.parametrize("name", ["digits-classifier", "digits-guide"])
def test_classifiers_are_as_accurate_as_their_cards_say(name: str) -> None:
    test = depura.load_digits("test")
    network = {"digits-classifier": depura.digits_classifier, "digits-guide": depura.digits_guide}[name]()
    measured = 100 * accuracy(network, test.images, test.labels)
    assert f"\n- accuracy, digits-test: {measured:.2f} %" in (FOLDER / f"{name}.md").read_text()


def test_the_guide_withstands_what_its_card_says_and_the_plain_classifier_does_not() -> None:
    """On 100 digits, by a loop of ten lines: a share that is the card's to three standard errors, and a wide margin."""
    test, eps = depura.load_digits("test").first(100), 0.2
    card = (FOLDER / "digits-guide.md").read_text()
    line = r"\n- accuracy under PGD \(linf, eps 0\.2, 50 steps\), digits-test: ([\d.]+) %"
    said = float(re.findall(line, card)[0]) / 100
    right = {}
    for network in (depura.digits_guide(), depura.digits_classifier()):
        noise = depura.Noise(1, test.ids)
        start = test.images + eps * (2 * noise.uniform(test.images, kind=depura.Kind.ATTACK) - 1)
        x = start.clamp(0, 1)
        for _ in range(50):
            x.requires_grad_()
            (slope,) = torch.autograd.grad(depura.margin(network(x), test.labels).sum(), x)
            moved = x.detach() + 0.01 * slope.sign()
            x = moved.clamp(test.images - eps, test.images + eps).clamp(0, 1)
        right[network] = accuracy(network, x, test.labels)
    guide, plain = right.values()
    assert abs(guide - said) < 3 * math.sqrt(said * (1 - said) / 100)
    assert guide - plain > 0.4


def test_the_denoiser_beats_the_best_linear_one() -> None:
    """The comparison is the posterior mean of a Gaussian with the training images' mean and variances."""
    train, test = (2 * depura.load_digits(split).images - 1 for split in ("train", "test"))
    linear = depura.GaussianDenoiser(train.mean(0), train.std(0))
    noise = depura.Noise(0, tuple(range(len(test))))
    for sigma in (0.2, 0.3, 0.5):
        x = test + sigma * noise(test, kind=depura.Kind.FORWARD)
        with torch.no_grad():
            errors = [float((d(x, sigma) - test).square().mean()) for d in (depura.digits_denoiser(), linear)]
        assert errors[0] < 0.8 * errors[1]
