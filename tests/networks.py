"""Recorded runs of published networks, and listings of their full-size layouts: reading them and comparing with them.

Recorded runs are looked for in tests/data/networks and in the folders that DEPURA_NETWORKS names; each is a pair of
NAME.json (what was run, how exactly it must be met) and NAME.safetensors (weights, inputs, outputs).
"""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(__file__).parent / "data" / "networks"
FOLDERS = [DATA, *map(Path, filter(None, os.environ.get("DEPURA_NETWORKS", "").split(os.pathsep)))]
"""The project's selection, and folders with more cases of the same form if there are any."""

Layout = list[tuple[str, tuple[int, ...], str, str]]
"""Key, shape, dtype and kind (parameter; parameter, not trainable; buffer) of every entry, in the published order."""

Run = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""How to call a network with the inputs of a case (x, t, sigma, class_labels ... as the case has them)."""


@dataclass(frozen=True)
class Listing:
    """The layout of a published network and the settings it was built with, in the published words."""

    name: str
    settings: dict[str, Any]
    parameters: int
    layout: Layout

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: shape for key, shape, _, _ in self.layout}

    @property
    def trained(self) -> list[str]:
        """Names of the parameters that require gradients, which is the order of lists of averaged weights."""
        return [key for key, _, _, kind in self.layout if kind == "parameter"]


@dataclass(frozen=True)
class Case(Listing):
    """A recorded run: also weights, inputs and outputs."""

    path: Path
    evaluations: list[dict[str, Any]]

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights under their published names and in the published order."""
        return {key: self.arrays[f"state/{key}"] for key, *_ in self.layout}

    def inputs(self, evaluation: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        """What went in, floating point in `dtype`, and the cotangent v."""
        found = {n: self.arrays[evaluation["inputs"] + n] for n in (*evaluation["input_tensors"], "v")}
        return {n: a.to(dtype) if a.is_floating_point() else a for n, a in found.items()}


def _layout(entries: Iterable[Any]) -> Layout:
    return [(key, tuple(shape), dtype, kind) for key, shape, dtype, kind in entries]


def cases(*prefixes: str) -> list[Any]:
    """Parameters of a test: the recorded cases of all folders whose names begin so."""
    found = {
        path.stem: path
        for folder in FOLDERS
        for prefix in prefixes
        for path in sorted(folder.glob(f"{prefix}*.json"))
        if path.with_suffix(".safetensors").is_file()
    }
    return [pytest.param(_case(path), id=name) for name, path in sorted(found.items())]


def _case(path: Path) -> Case:
    said = json.loads(path.read_text(encoding="utf-8"))
    return Case(
        path.stem, said["constructor"], said["parameter_count"], _layout(said["state"]), path, said["evaluations"]
    )


def listing(name: str) -> Listing:
    """The layout of a full-size network, by the name of its file without `keys-`."""
    with gzip.open(DATA / f"keys-{name}.json.gz", "rt", encoding="utf-8") as file:
        said = json.load(file)
    return Listing(name, said["constructor"], said["parameter_count"], _layout(said["entries"]))


def layout(network: nn.Module) -> Layout:
    """The layout of a network of ours, on any device."""
    kinds = {n: "parameter" if p.requires_grad else "parameter, not trainable" for n, p in network.named_parameters()}
    return [
        (key, tuple(value.shape), str(value.dtype).removeprefix("torch."), kinds.get(key, "buffer"))
        for key, value in network.state_dict().items()
    ]


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build()


def check_layout(published: Listing, network: nn.Module) -> None:
    """Same entries in the same order, of the same shapes, dtypes and kinds; same number and order of parameters."""
    assert layout(network) == published.layout
    assert sum(p.numel() for p in network.parameters()) == published.parameters
    assert [n for n, p in network.named_parameters() if p.requires_grad] == published.trained


def check(case: Case, run: Run, network: nn.Module) -> None:
    """Compare outputs and input gradients of every evaluation, in double and in single precision."""
    network.load_state_dict(case.state, strict=True)
    network.eval()
    _check(case, run, copy.deepcopy(network).double(), torch.float64, "float64", "64")
    _check(case, run, network, torch.float32, "float32", "")


def _check(case: Case, run: Run, network: nn.Module, dtype: torch.dtype, tolerance: str, suffix: str) -> None:
    for evaluation in case.evaluations:
        inputs = case.inputs(evaluation, dtype)
        cotangent = inputs.pop("v")
        x = inputs["x"].requires_grad_()
        y = run(network, inputs)
        (grad,) = torch.autograd.grad((y * cotangent).sum(), x)
        for name, found in (("y", y), ("grad_x", grad)):
            expected = case.arrays[f"{evaluation['outputs']}{name}{suffix}"]
            assert found.dtype == dtype
            assert found.shape == expected.shape
            far = (found - expected).abs().max().item()
            limit = evaluation["tolerance"][tolerance][name]
            assert far <= limit, f"{case.name}, {evaluation['note']}, {name} in {tolerance}: {far:.2g} > {limit:.2g}"
