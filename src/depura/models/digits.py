"""The bundled networks: three classifiers of the digits and a denoiser; cards lie beside their weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from depura.diffusion.denoisers import EdmDenoiser
from depura.models.networks.small import SmallClassifier, SmallUNet
from depura.models.weights import read_safetensors

N = TypeVar("N", bound=nn.Module)

_FOLDER = Path(__file__).parent


def digits_classifier() -> SmallClassifier:
    """The bundled classifier: [0, 1] images (B, 1, 8, 8) to logits (B, 10). Card: digits-classifier.md."""
    return _network("digits-classifier", SmallClassifier)[0]


def digits_guide() -> SmallClassifier:
    """The bundled robust classifier, as `digits_classifier`, for guidance. Card: digits-guide.md."""
    return _network("digits-guide", SmallClassifier)[0]


def digits_agdm_guide() -> SmallClassifier:
    """The bundled guide of AGDM, trained by its objective on noised images. Card: digits-agdm-guide.md."""
    return _network("digits-agdm-guide", SmallClassifier)[0]


def digits_denoiser() -> EdmDenoiser:
    """The bundled denoiser of [-1, 1] images (B, 1, 8, 8). Card: digits-denoiser.md."""
    network, metadata = _network("digits-denoiser", SmallUNet)
    return EdmDenoiser(network, sigma_data=metadata["sigma_data"])


def _network(name: str, build: Callable[..., N]) -> tuple[N, dict[str, Any]]:
    """A network with its weights (stored in half precision) as float32, and what the file says about itself."""
    stored, texts = read_safetensors(_FOLDER / f"{name}.safetensors")
    metadata = json.loads(texts["depura"])
    network = build(**metadata["architecture"])
    network.load_state_dict({key: tensor.float() for key, tensor in stored.items()})
    return network.eval(), metadata
