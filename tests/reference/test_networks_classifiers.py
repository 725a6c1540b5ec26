"""Published classifiers: layouts entry by entry, and recorded runs of the published code number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from depura.models.networks.attribute import AttributeNet
from depura.models.networks.attribute import settings_of as attribute_settings
from depura.models.networks.blocks import Shapes
from depura.models.networks.resnet import (
    CifarBottleneckResNet,
    CifarResNet,
    cifar_bottleneck_settings,
    cifar_resnet_settings,
)
from depura.models.networks.wide_resnet import DmWideResNet, WideResNet, dm_wide_resnet_settings, wide_resnet_settings
from depura.models.networks.wrappers import CIFAR10, CIFAR100, Normalised
from networks import Case, cases, check, check_layout, listing, on_meta

Family = tuple[Callable[..., nn.Module], Callable[..., dict[str, Any] | None]]

FAMILIES: dict[str, Family] = {
    "robustbench-wrn": (WideResNet, wide_resnet_settings),
    "robustbench-dmwrn": (DmWideResNet, dm_wide_resnet_settings),
    "diffpure-wrn": (WideResNet, wide_resnet_settings),
    "diffpure-resnet": (CifarBottleneckResNet, cifar_bottleneck_settings),
    "diffpure-cifar-resnet50": (CifarBottleneckResNet, cifar_bottleneck_settings),
    "diffpure-attribute": (AttributeNet, attribute_settings),
    "akamaster-resnet20": (CifarResNet, cifar_resnet_settings),
}
LISTINGS = {
    "akamaster-resnet20": 269_722,
    "diffpure-attribute-256": 23_038_017,
    "diffpure-cifar-resnet50": 23_520_842,
    "robustbench-dmwrn-28-10": 36_479_194,
    "robustbench-dmwrn-70-16": 266_796_506,
    "robustbench-wrn-28-10": 36_479_194,
    "robustbench-wrn-28-10-subblock": 38_119_866,
    "robustbench-wrn-70-16": 266_796_506,
}


def family(name: str) -> Family:
    return next(found for prefix, found in FAMILIES.items() if name.startswith(prefix))


def settings(case: Case, read: Callable[..., dict[str, Any] | None], shapes: Shapes) -> dict[str, Any]:
    """Read off the shapes; the activation, which they do not tell, from the case."""
    given = {"swish": case.settings["activation_fn"] == "Swish"} if "activation_fn" in case.settings else {}
    found = read(shapes, **given)
    assert found is not None
    return found


@pytest.mark.parametrize("name", LISTINGS)
def test_full_size_layouts(name: str) -> None:
    published = listing(name)
    build, read = family(name)
    found = read(published.shapes)
    assert found is not None
    network = on_meta(lambda: build(**found))
    check_layout(published, network)
    assert sum(p.numel() for p in network.parameters()) == LISTINGS[name]


@pytest.mark.parametrize("name", LISTINGS)
def test_settings_are_read_by_one_family_only(name: str) -> None:
    shapes = listing(name).shapes
    readers = {read for _, read in FAMILIES.values()}
    assert {read for read in readers if read(shapes) is not None} == {family(name)[1]}


@pytest.mark.parametrize("case", cases("robustbench-", "diffpure-", "akamaster-"))
def test_recorded_runs(case: Case) -> None:
    build, read = family(case.name)
    plain = {key.removeprefix("module."): value for key, value in case.state.items()}
    network = build(**settings(case, read, {key: tuple(value.shape) for key, value in plain.items()}))
    if not any("num_batches_tracked" in key for key in plain):
        ours = network.state_dict()
        plain |= {key: ours[key] for key in ours if "num_batches_tracked" in key}
    else:
        check_layout(case, network)
    check(case, lambda around, inputs: around(inputs["x"]), _Whole(case, network, plain))


class _Whole(nn.Module):
    """A network with the normalisation of its case around it, which loads the case's entries into the network."""

    def __init__(self, case: Case, network: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.network, self.state = network, state
        self.around = network
        constants = _constants(case)
        if constants is not None:
            self.around = Normalised(network, mean=constants[0], std=constants[1])

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(self.state, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.around(x)


def _constants(case: Case) -> tuple[Any, Any] | None:
    if "mean" in case.settings:
        constants = tuple(case.settings["mean"]), tuple(case.settings["std"])
        assert constants in (CIFAR10, CIFAR100)
        return constants
    return CIFAR10 if case.name.startswith(("diffpure-wrn", "diffpure-resnet")) else None


def test_no_settings_of_other_weights() -> None:
    """No network at all, and the ResNet-18 for CIFAR that has the names of both ResNets and a fourth stage."""
    resnet_18 = {f"layer{k}.0.conv{c}.weight": (64, 64, 3, 3) for k in (1, 2, 3, 4) for c in (1, 2)}
    resnet_18 |= {"conv1.weight": (64, 3, 3, 3), "linear.weight": (10, 512)}
    for shapes in ({"0.weight": (8, 3, 3, 3), "1.weight": (2, 8)}, resnet_18):
        assert [read(shapes) for _, read in FAMILIES.values()] == [None] * len(FAMILIES)
