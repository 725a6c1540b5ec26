"""Studies without weights: priced like the same study with weights, never run, and the study handed in left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import depura
from depura.cli import app
from depura.data.imageset import ImageSet
from depura.diffusion.denoisers import EpsDenoiser, EpsVarianceDenoiser
from depura.evaluation.counting import Counts, bytes_per_row, evaluations
from depura.evaluation.meta_device import is_weightless, without_weights
from depura.evaluation.runner import run
from depura.models.networks.blocks import attend
from depura.models.networks.resnet import CifarResNet
from depura.models.networks.small import SmallClassifier, SmallUNet
from depura.planning.operations import Estimate, operations, shares
from slow import slow

SIZE = 8


class WithAttention(nn.Module):
    """A U-Net, attention and a norm: what the published networks consist of; two outputs per channel if asked for."""

    def __init__(self, *, outputs: int = 3) -> None:
        super().__init__()
        self.unet = SmallUNet(channels=3, width=8, inner=8)
        self.norm = nn.GroupNorm(1, 3)
        self.head = nn.Conv2d(3, outputs, 1)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.unet(x, label / 1000))
        tokens = h.flatten(2)[:, None]
        return self.head(h + attend(tokens, tokens, tokens).reshape(h.shape))


def classifier(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallClassifier(channels=3, width=8)


def purifiers() -> dict[str, depura.Purifier]:
    label = depura.IndexLabel(depura.DiscreteLinear())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        d, learned = (
            EpsDenoiser(WithAttention(), label=label),
            EpsVarianceDenoiser(WithAttention(outputs=6), label=label),
        )
    return {
        "diffpure": depura.Resized(depura.diffpure(d, n_steps=3), size=12),
        "gradual": depura.gradual(d, depths=(2, 2, 3)),
        "gdmp-imagenet": depura.gdmp_imagenet(learned, n_noise=3),
        "mimic": depura.mimicdiffusion(d, steps=depura.ddpm_steps(depura.DiscreteLinear(), n_noise=1000, n_steps=5)),
        "agdm": depura.agdm(d, guide=classifier(7), scale=1.0, n_noise=3),
    }


def small(purifier: depura.Purifier, *, device: str = "cpu", relaxed: float | None = None) -> depura.Study:
    """A study on grey images, its networks and images on a device."""
    defence = depura.Defence(purifier, classifier(1), rule=depura.Vote(2)).to(device)
    levels = torch.tensor([0.4, 0.5, 0.6], device=device)[:, None, None, None]
    images = levels.expand(3, 3, SIZE, SIZE).contiguous()
    data = ImageSet("grey", images, torch.zeros(3, dtype=torch.int64), (0, 1, 2), tuple("0123456789"))
    attack = depura.PGD(depura.Ball("linf", 0.1), n_steps=2, eot=2)
    rows = depura.attack_suite(defence, attack, relaxed=relaxed, without=("transfer", "bpda"))
    draws = {"report_draws": 4, "select_draws": 2}
    return depura.Study(name="small", data=data, defence=defence, rows=rows, reference=False, **draws)


@pytest.fixture(autouse=True, scope="module")
def short_probe():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depura.planning.timing.PROBE_SECONDS", 0.0)
        patch.setattr("depura.planning.operations.PROBE_SECONDS", 0.0)
        yield


@pytest.mark.parametrize("name", ["diffpure", slow("gdmp-imagenet"), slow("mimic"), slow("agdm")])
def test_without_weights_evaluations_and_graphs_are_the_same(name: str) -> None:
    relaxed = 0.1 if name == "mimic" else None
    with_weights = depura.plan(small(purifiers()[name], relaxed=relaxed))
    without = depura.plan(small(purifiers()[name], device="meta", relaxed=relaxed))
    assert [p[:5] for p in without] == [p[:5] for p in with_weights]
    assert [p.memory for p in without] == [p.memory for p in with_weights]
    assert max(p.memory for p in without) > 0
    assert {p.rate for p in with_weights} == {None}
    assert all(p.rate is not None and p.seconds > 0 for p in without)


def test_batch_norms_without_weights_keep_two_numbers_a_feature() -> None:
    """The one difference between graphs with and without weights."""
    image = torch.full((1, 3, SIZE, SIZE), 0.5)
    network = CifarResNet(n_blocks=1)
    known = bytes_per_row(depura.Defence(None, network), image)
    features = sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert bytes_per_row(depura.Defence(None, network.to("meta")), image.to("meta")) == known + 2 * 4 * features


@pytest.mark.parametrize(
    ("name", "gradient"), [("diffpure", False), ("gradual", False), ("gradual", True), slow("mimic", True)]
)
def test_operations_of_a_walk_are_those_of_its_steps(name: str, gradient: bool) -> None:
    """Counted on two steps and multiplied, or on the whole walk as it is run."""
    study = without_weights(small(purifiers()[name]))
    defence = study.defence.with_(gradient=depura.StoredState(segment=1))
    images = torch.full((1, 3, SIZE, SIZE), 0.5, device="meta")
    noise = depura.Noise(0, (0,))
    counts = evaluations(defence, images, noise, gradient=gradient)
    estimated = Estimate(study, 1.0).operations(defence, counts, gradient=gradient)

    def whole() -> None:
        if gradient:
            leaf = images.clone().requires_grad_()
            torch.autograd.grad(defence(leaf, noise).sum(), leaf)
        else:
            with torch.no_grad():
                defence(images, noise)

    assert estimated == pytest.approx(operations(whole), rel=1e-3)


def test_operations_of_a_convolution_by_hand() -> None:
    """2 images, 3 to 5 features, 3 x 3, 8 x 8 pixels: a multiplication and an addition per weight and result pixel."""
    x, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(5, 3, 3, 3, device="meta")
    by_hand = 2 * 2 * 5 * 8 * 8 * 3 * 3 * 3
    assert operations(lambda: F.conv2d(x, weight, padding=1)) == by_hand
    leaf = x.requires_grad_()
    assert operations(lambda: torch.autograd.grad(F.conv2d(leaf, weight, padding=1).sum(), leaf)) == 2 * by_hand


def test_shares_of_steps_of_two_kinds() -> None:
    """31 steps of one evaluation and 69 that also pull one back."""
    assert shares(Counts(100, 69), Counts(1, 0), Counts(1, 1)) == (31, 69)
    assert shares(Counts(100, 100), Counts(1, 1), Counts(1, 1)) == (100, 0)
    assert shares(Counts(12, 0), Counts(3, 0), Counts(3, 0)) == (4, 0)


def test_weights_that_are_there_stay(tmp_path: Path) -> None:
    """A classifier with weights behind a denoiser without: planned without weights, the classifier left as it is."""
    study = small(purifiers()["diffpure"])
    study.defence.purifier.to("meta")  # type: ignore[union-attr]
    assert is_weightless(study)
    depura.plan(study)
    assert all(not p.is_meta for p in study.defence.classifier.parameters())  # type: ignore[union-attr]
    copied = without_weights(study)
    assert copied.defence is copied.rows[-1].evaluated
    assert copied.rows[-1].attacked is copied.rows[-1].evaluated
    assert not is_weightless(small(purifiers()["diffpure"]))


@pytest.mark.parametrize("part", ["networks", "images"])
def test_a_run_without_weights_is_refused(tmp_path: Path, part: str) -> None:
    study = small(purifiers()["diffpure"], device="meta" if part == "networks" else "cpu")
    images = torch.arange(3.0, device="meta" if part == "images" else "cpu")[:, None, None, None] / 3
    images = images.expand(3, 3, SIZE, SIZE).contiguous()
    study = replace(study, data=study.data._replace(images=images))  # type: ignore[attr-defined]
    with pytest.raises(depura.InputError, match="which can only be planned"):
        run(study, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_estimates(tmp_path: Path) -> None:
    file = tmp_path / "study.py"
    file.write_text(
        "import test_meta_device\n\n\ndef study():\n"
        "    return test_meta_device.small(test_meta_device.purifiers()['diffpure'], device='meta')\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        planned = CliRunner().invoke(app, ["plan", str(file)])
        refused = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run")])
    assert planned.exit_code == 0, planned.output
    assert "time is estimated from operations" in planned.output
    assert refused.exit_code == 2
    assert "which can only be planned" in " ".join(refused.output.split())
