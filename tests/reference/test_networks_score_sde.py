"""The networks of score_sde against recorded runs of the published code and the listing of its full-size layout."""

import pytest
from tests.networks import Case, cases, check, check_layout, listing, on_meta
from torch import Tensor, nn

from depura.networks.score_sde import NcsnPP, ScoreSdeDdpm, ddpm_settings, ncsnpp_settings

PLUS = cases("score-sde-ddpmpp", "score-sde-ncsnpp")
PLAIN = cases("score-sde-ddpm-")


def levels(said: dict) -> dict:
    """The settings of a case in our words."""
    sizes = [said["image_size"] >> level for level in range(len(said["ch_mult"]))]
    return {
        "width": said["nf"],
        "multipliers": tuple(said["ch_mult"]),
        "blocks": said["num_res_blocks"],
        "attention": tuple(level for level, size in enumerate(sizes) if size in said["attn_resolutions"]),
        "channels": said["num_channels"],
        "unit_range": not said["centered"],
        "dropout": said["dropout"],
        "scales": said["num_scales"],
    }


def plus(said: dict) -> dict:
    return {
        **levels(said),
        "fourier": said["embedding_type"] == "fourier",
        "fir": said["fir"],
        "residual_input": said["progressive_input"] == "residual",
        "skip_input": said["progressive_input"] == "input_skip",
        "skip_output": said["progressive"] == "output_skip",
    }


def run(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return network(inputs["x"], inputs["sigma" if "sigma" in inputs else "t"])


@pytest.mark.parametrize("case", PLUS)
def test_ncsnpp_agrees_with_published_code(case: Case) -> None:
    check(case, run, NcsnPP(**plus(case.settings)))


@pytest.mark.parametrize("case", PLAIN)
def test_ddpm_agrees_with_published_code(case: Case) -> None:
    said = case.settings
    check(case, run, ScoreSdeDdpm(**levels(said), convolve=said["resamp_with_conv"]))


@pytest.mark.parametrize("case", PLUS)
def test_ncsnpp_settings_are_read_off_shapes(case: Case) -> None:
    settings = ncsnpp_settings(case.shapes, dropout=case.settings["dropout"])
    assert settings == plus(case.settings)
    check_layout(case, on_meta(lambda: NcsnPP(**settings)))
    assert ddpm_settings(case.shapes) is None


@pytest.mark.parametrize("case", PLAIN)
def test_ddpm_settings_are_read_off_shapes(case: Case) -> None:
    said = case.settings
    settings = ddpm_settings(case.shapes, unit_range=not said["centered"])
    assert settings == {**levels(said), "convolve": said["resamp_with_conv"]}
    check_layout(case, on_meta(lambda: ScoreSdeDdpm(**settings)))
    assert ncsnpp_settings(case.shapes) is None


def test_full_size_layout() -> None:
    published = listing("score-sde-cifar10-ddpmpp-deep")
    settings = ncsnpp_settings(published.shapes)
    assert settings == plus(published.settings)
    network = on_meta(lambda: NcsnPP(**settings))
    check_layout(published, network)
    assert sum(p.numel() for p in network.parameters()) == 106_632_579
    assert sum(p.requires_grad for p in network.parameters()) == 956
