"""The bundled networks: two classifiers of the digits and a denoiser; cards lie beside their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from depura.diffusion.denoisers import EdmDenoiser
from depura.models.networks.small import SmallClassifier, SmallUNet
from depura.models.weights import read_safetensors

_FOLDER = Path(__file__).parent


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
