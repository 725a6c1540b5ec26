"""From a checkpoint file to a denoiser or a classifier that is ready for use, or to a file of plain tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from depura import _atomic, _check
from depura.diffusion.denoisers import Denoiser
from depura.models.checkpoints.diffusers_models import is_diffusers, load_diffusers
from depura.models.checkpoints.identification import Identified, Matched, match
from depura.models.checkpoints.published import PUBLISHED


def load_denoiser(path: str | Path, **options: Any) -> Denoiser:
    """A denoiser from a published checkpoint file, unchanged, or from a folder of the diffusers library.

    Args:
        path: a file of any family that `identify` knows, as published or converted; a folder of a diffusers
            `UNet2DModel` with its scheduler; or "diffusers:NAME", which diffusers fetches.
        **options: what weights do not tell: `learned_variance` and `class_index` (ADM), `heads`, `like` ...

    Returns:
        The denoiser, in [-1, 1] units, on the CPU, in evaluation mode and without gradients of its weights.

    Raises:
        InputError: not readable, of no known family, or a classifier.
    """
    if is_diffusers(path):
        return load_diffusers(str(path), options)
    found = match(Path(path), options, where="load_denoiser")
    if not found.family.denoises:
        _check.fail(
            "load_denoiser", "a denoiser", f"{path}, a classifier: {found.family.title}", "Use load_classifier."
        )
    return _ready(found)


def load_classifier(path: str | Path, **options: Any) -> nn.Module:
    """A classifier of images in [0, 1] from a published checkpoint file, unchanged.

    Args:
        path: a file of any family that `identify` knows, as published or converted.
        **options: what weights do not tell: `mean` and `std`, where it was trained with others than the published ones;
            `like`, a name in `PUBLISHED`.

    Returns:
        The classifier, (B, C, H, W) to logits, on the CPU, in evaluation mode and without gradients of its weights.

    Raises:
        InputError: not readable, of no known family, a denoiser, or of a layout that is published with different
            normalisations.
    """
    found = match(Path(path), options, where="load_classifier")
    if found.family.denoises:
        _check.fail(
            "load_classifier", "a classifier", f"{path}, a denoiser: {found.family.title}", "Use load_denoiser."
        )
    _check_told(found)
    return _ready(found)


def convert(path: str | Path, out: str | Path, **options: Any) -> Identified:
    """Write a checkpoint's weights as safetensors, and what is known of it as JSON beside them.

    The new file is loaded as the old one is, with the options that were given; it cannot carry code.

    Args:
        path: the file.
        out: where to write, ending in .safetensors; the JSON has the same name ending in .json.
        **options: as for loading; they are kept in the file.

    Returns:
        What the file is.

    Raises:
        InputError: as `identify`, or a name that does not end so, or a place that cannot be written.
    """
    source, target = Path(path), Path(out)
    if target.suffix != ".safetensors":
        _check.fail("convert", "an output name ending in .safetensors", f"{target}")
    found = match(source, options, where="convert")
    _check.writable_folder("convert", target.parent)
    said = {
        "family": found.family.name,
        "settings": found.said.settings,
        "options": found.options,
        "parameters": found.said.parameters,
        "weights": found.said.entry,
        "source": source.name,
        "source_sha256": _sha256(source),
        "licence": found.family.licence,
    }
    text = json.dumps(said, indent=1)
    network = _filled(found)
    tensors = {name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    _atomic.write(target, save(tensors, metadata={"depura": json.dumps(said)}))
    _atomic.write(target.with_suffix(".json"), f"{text}\n".encode())
    return found.said


def _filled(found: Matched) -> nn.Module:
    """The network with its weights, which are not copied; those that a file may lack are as they are built."""
    expected = found.network.state_dict()
    taken = {name: found.tensors[name].to(expected[name].dtype) for name in expected if name in found.tensors}
    found.network.load_state_dict(taken, strict=False, assign=True)
    if not any(tensor.is_meta for tensor in (*found.network.parameters(), *found.network.buffers())):
        return found.network
    network = found.family.network(**found.said.settings)
    network.load_state_dict(taken, strict=False)
    return network


def _ready(found: Matched) -> Any:
    network = _filled(found)
    return found.family.ready(network, **found.options).eval().requires_grad_(False)


def _check_told(found: Matched) -> None:
    """Refuse a layout that is published with another normalisation than its family, unless it is said which."""
    if found.options or not any(PUBLISHED[name].options for name in found.said.like):
        return
    names = " or ".join(found.said.like)
    _check.fail(
        "load_classifier",
        "to be told how images are normalised",
        f"{found.said.path}, of a layout that is published with and without a normalisation",
        f"Give like={names}, or mean and std; on the command line convert the file first (depura checkpoint convert "
        f"FILE --set like={found.said.like[0]} --out NEW.safetensors).",
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
