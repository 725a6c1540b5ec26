"""The bundled data and weights are what their cards say."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import depura
from depura.training.classifier import accuracy

FOLDER = Path(depura.__file__).parent / "data"
WEIGHTS = ("digits-classifier", "digits-denoiser")


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
    assert (FOLDER / "digits.npz").stat().st_size < 60_000
    assert sum((FOLDER / f"{name}.safetensors").stat().st_size for name in WEIGHTS) < 350_000


@pytest.mark.parametrize("name", WEIGHTS)
def test_cards_name_the_hash_of_their_weights(name: str) -> None:
    digest = hashlib.sha256((FOLDER / f"{name}.safetensors").read_bytes()).hexdigest()
    assert f"`{digest}`" in (FOLDER / f"{name}.md").read_text()


def test_the_classifier_is_as_accurate_as_its_card_says() -> None:
    test = depura.load_digits("test")
    measured = 100 * accuracy(depura.digits_classifier(), test.images, test.labels)
    assert f"accuracy, digits-test: {measured:.2f} %" in (FOLDER / "digits-classifier.md").read_text()


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
