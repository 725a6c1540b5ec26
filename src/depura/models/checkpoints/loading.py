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
    matched = match(Path(path), options, where="load_denoiser")
    if not matched.family.denoises:
        got = f"{path}, a classifier: {matched.family.title}"
        _check.fail("load_denoiser", "a denoiser", got, "Use load_classifier.")
    return _ready(matched)


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
    matched = match(Path(path), options, where="load_classifier")
    if matched.family.denoises:
        got = f"{path}, a denoiser: {matched.family.title}"
        _check.fail("load_classifier", "a classifier", got, "Use load_denoiser.")
    like = matched.identity.like
    if not matched.identity.options and any(PUBLISHED[name].options for name in like):
        _check.fail(
            "load_classifier",
            "to be told how images are normalised",
            f"{path}, of a layout that is published with and without a normalisation",
            f"Give like={' or '.join(like)}, or mean and std; on the command line convert the file first (depura "
            f"checkpoint convert FILE --set like={like[0]} --out NEW.safetensors).",
        )
    return _ready(matched)


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
    matched = match(source, options, where="convert")
    identity = matched.identity
    _check.writable_folder("convert", target.parent)
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    about = {
        "family": identity.family,
        "settings": identity.settings,
        "options": identity.options,
        "parameters": identity.parameters,
        "weights": identity.entry,
        "source": source.name,
        "source_sha256": digest.hexdigest(),
        "licence": identity.licence,
    }
    tensors = {name: tensor.contiguous().clone() for name, tensor in _filled(matched).state_dict().items()}
    _atomic.write(target, save(tensors, metadata={"depura": json.dumps(about)}))
    _atomic.write(target.with_suffix(".json"), f"{json.dumps(about, indent=1)}\n".encode())
    return identity


def _filled(matched: Matched) -> nn.Module:
    """The network with its weights, which are not copied; those that a file may lack are as they are built."""
    network = matched.network
    expected = network.state_dict()
    taken = {name: matched.tensors[name].to(expected[name].dtype) for name in expected if name in matched.tensors}
    network.load_state_dict(taken, strict=False, assign=True)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        network = matched.family.network(**matched.identity.settings)
        network.load_state_dict(taken, strict=False)
    return network


def _ready(matched: Matched) -> Any:
    ready = matched.family.ready(_filled(matched), **matched.identity.options)
    return ready.eval().requires_grad_(False)
