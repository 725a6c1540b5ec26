"""Folders of the diffusers library: a U-Net (`UNet2DModel`) and the scheduler that it was trained with."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from depura import _check
from depura.diffusion.denoisers import Denoiser, EpsDenoiser, VDenoiser
from depura.diffusion.schedules import Cosine, Discrete, DiscreteLinear, IndexLabel
from depura.models.networks.adapters import DiffusersNetwork

PREFIX = "diffusers:"
"""How names begin that the diffusers library is to fetch."""


def is_diffusers(path: str | Path) -> bool:
    """Whether a name means a model of the diffusers library: "diffusers:NAME", or a folder with a config.json."""
    return str(path).startswith(PREFIX) or any((folder / "config.json").is_file() for folder in _places(Path(path)))


def load_diffusers(name: str, options: Mapping[str, Any]) -> Denoiser:
    """A denoiser of a diffusers folder, or of "diffusers:NAME", which that library fetches or has fetched.

    For instance google/ddpm-cifar10-32 or google/ddpm-ema-celebahq-256. It follows the scheduler's prediction type and
    noise levels, and takes no options; other models and schedulers that are not known here are refused.
    """
    if options:
        _check.fail("load_denoiser", "no options for a diffusers model", ", ".join(options), "Leave them out.")
    library = _library(name)
    fetched = name.startswith(PREFIX)
    try:
        if fetched:
            folder, scheduler = name.removeprefix(PREFIX), library.DDPMScheduler.load_config(name.removeprefix(PREFIX))
        else:
            folder, scheduler = _folder(Path(name))
        unet = library.UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)  # otherwise it warns
    except _check.InputError:
        raise
    except Exception as error:  # diffusers raises many kinds over what is missing, damaged or out of reach
        what = "a model that diffusers can fetch" if fetched else "a whole folder of a diffusers UNet2DModel"
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _check.InputError(f"load_denoiser: expected {what}, got {name} ({first}). Check the name.") from error
    label = IndexLabel(_schedule(scheduler, name))
    network = DiffusersNetwork(unet)
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        _check.fail("load_denoiser", "prediction_type epsilon or v_prediction", f"{kind!r} in {name}")
    denoiser = EpsDenoiser(network, label=label) if kind == "epsilon" else VDenoiser(network, label=label)
    return denoiser.eval().requires_grad_(False)


def _library(name: str) -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise _check.InputError(
            f"load_denoiser: expected the diffusers library for {name}, got none ({error}). Install it: "
            "pip install 'depura[diffusers]'."
        ) from error


def _places(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "unet"


def _folder(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The folder of the U-Net, and the scheduler's settings."""
    folder = next(place for place in _places(path) if (place / "config.json").is_file())
    kind = _json(folder / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        _check.fail("load_denoiser", "a folder of a diffusers UNet2DModel", f"{folder}, which holds a {kind}")
    for place in (path, path / "scheduler", folder):
        if (place / "scheduler_config.json").is_file():
            return str(folder), _json(place / "scheduler_config.json")
    return _check.fail("load_denoiser", f"scheduler_config.json in {path} or its folder scheduler", "none")


def _json(path: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _check.InputError(f"load_denoiser: expected JSON, got {path} ({error}). Check the file.") from error
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _schedule(scheduler: Mapping[str, Any], name: str) -> Discrete:
    n = scheduler.get("num_train_timesteps", 1000)
    kind = scheduler.get("beta_schedule", "linear")
    if kind == "linear" and scheduler.get("trained_betas") is None:
        return DiscreteLinear(n, scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02))
    if kind == "squaredcos_cap_v2":
        return Cosine(n)
    return _check.fail("load_denoiser", "beta_schedule linear or squaredcos_cap_v2", f"{kind!r} in {name}")
