"""The bundled data and models: 1,797 handwritten digits of 8x8 pixels, two classifiers and a denoiser trained on them.

The images are those of `sklearn.datasets.load_digits`: the test part of E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, licensed CC BY 4.0 (see digits.md beside this
file). Pixels count 0 .. 16 strokes and are divided by 16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depura.data.imageset import ImageSet
from depura.data.weights import read_safetensors
from depura.denoisers import EdmDenoiser
from depura.networks.small import SmallClassifier, SmallUNet

SHAPE = (1, 8, 8)
"""Channels, height and width."""

_FOLDER = Path(__file__).parent


def load_digits(split: str) -> ImageSet:
    """The digits of one side of the fixed split (500 test images, 1,297 training images).

    The test images are the first 500 entries of `numpy.random.RandomState(0).permutation(1797)`, sorted; their numbers
    are stored in the file.

    Args:
        split: "train" or "test".

    Returns:
        The images with their numbers in the full set as ids.

    Raises:
        KeyError: another split.
    """
    with np.load(_FOLDER / "digits.npz", allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"], file["test"]
    rows = {"test": test, "train": np.setdiff1d(np.arange(len(images)), test)}[split]
    return ImageSet(
        name=f"digits-{split}",
        images=torch.from_numpy(images[rows].astype(np.float32) / 16)[:, None],
        labels=torch.from_numpy(labels[rows].astype(np.int64)),
        ids=tuple(int(r) for r in rows),
        classes=tuple("0123456789"),
    )


def digits_classifier() -> SmallClassifier:
    """The bundled classifier: [0, 1] images (B, 1, 8, 8) to logits (B, 10). Card: digits-classifier.md."""
    return _classifier("digits-classifier")


def digits_guide() -> SmallClassifier:
    """The bundled robust classifier, as `digits_classifier`, for guidance. Card: digits-guide.md."""
    return _classifier("digits-guide")


def digits_denoiser() -> EdmDenoiser:
    """The bundled denoiser of [-1, 1] images (B, 1, 8, 8). Card: digits-denoiser.md."""
    tensors, metadata = _read("digits-denoiser")
    network = SmallUNet(**metadata["architecture"])
    network.load_state_dict(tensors)
    return EdmDenoiser(network.eval(), sigma_data=metadata["sigma_data"])


def _classifier(name: str) -> SmallClassifier:
    tensors, metadata = _read(name)
    network = SmallClassifier(**metadata["architecture"])
    network.load_state_dict(tensors)
    return network.eval()


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights (stored in half precision) as float32, and what the file says about itself."""
    stored, metadata = read_safetensors(_FOLDER / f"{name}.safetensors")
    return {key: tensor.float() for key, tensor in stored.items()}, json.loads(metadata["depura"])
