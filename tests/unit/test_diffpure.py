"""DiffPure's presets have the published settings."""

import pytest
import torch

import depura
from depura.diffusion.schedules import TruncatedLabel
from depura.methods import diffpure as method
from depura.methods import diffpure_ddpm


def nothing(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return x


@pytest.mark.parametrize(
    ("preset", "n_steps"), [(method.CIFAR10_LINF, 100), (method.CIFAR10_L2, 75), (method.CIFAR10_RESNET50, 125)]
)
def test_cifar_presets(preset: method.Preset, n_steps: int) -> None:
    purifier = preset.purifier(nothing)
    assert isinstance(purifier, depura.DiffusionPurifier)
    assert len(purifier.steps) == n_steps
    assert purifier.steps[0].t == n_steps / 1000
    assert purifier.steps[-1].t_next == 1e-5
    assert isinstance(purifier.solver, depura.EulerMaruyamaVP)
    assert [s.label for s in purifier.steps] == pytest.approx([999 * s.t for s in purifier.steps], abs=1e-9)
    assert isinstance(purifier.gradient, depura.StoredState)


def test_imagenet_works_at_256_and_tells_the_network_its_own_index() -> None:
    purifier = method.IMAGENET.purifier(nothing)
    assert isinstance(purifier, depura.Resized)
    assert (purifier.size, len(purifier.purifier.steps)) == (256, 150)
    labels = [s.label for s in purifier.purifier.steps]
    # The same noise level lies up to half an index higher in the discrete schedule.
    beyond = [label - (1000 * s.t - 1) for label, s in zip(labels, purifier.purifier.steps, strict=True)]
    assert 0 <= min(beyond) <= max(beyond) < 0.5
    truncated = [TruncatedLabel(depura.VP())(s.sigma) for s in purifier.purifier.steps]
    assert truncated == [float(150 - k) for k in range(150)]
    assert purifier(torch.full((1, 3, 224, 224), 0.5)).shape == (1, 3, 224, 224)


def test_celeba_takes_500_ancestral_steps_to_a_clean_end() -> None:
    purifier = diffpure_ddpm.CELEBA.purifier(nothing)
    assert isinstance(purifier, depura.DiffusionPurifier)
    assert purifier.solver == depura.Ancestral()
    assert [s.label for s in purifier.steps] == [float(i) for i in range(499, -1, -1)]
    assert purifier.steps[-1].sigma_next == 0
    assert purifier.steps[0].sigma == pytest.approx(3.4241, abs=5e-5)


def test_the_two_forward_noisings_differ_as_documented() -> None:
    start = method.released_start(0.1)
    assert start.schedule.scale(start.t) ** 2 == pytest.approx(0.897018, abs=5e-7)
    assert depura.VP().scale(0.1) ** 2 == pytest.approx(0.896282, abs=5e-7)
