"""Training is a function of its recipe: again, or stopped and gone on, it gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import depura
from depura.noise import Kind, Noise, Stream
from depura.training.denoiser import EdmLoss, data_std, train_denoiser
from depura.training.loop import Recipe, save_weights

RECIPE = Recipe(n_steps=12, batch=8, seed=3)


class StopError(Exception):
    """Stands for a kill."""


def weights(folder: Path, name: str, **options: object) -> bytes:
    denoiser, about = train_denoiser(depura.load_digits("train"), RECIPE, **options)  # type: ignore[arg-type]
    save_weights(denoiser.network, folder / name, about)  # type: ignore[arg-type]
    return (folder / name).read_bytes()


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    a = weights(tmp_path, "a")
    torch.manual_seed(99)
    b = weights(tmp_path, "b")
    torch.set_rng_state(state)
    assert a == b


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    weights(tmp_path, "a")
    assert torch.equal(state, torch.get_rng_state())


def test_stopped_and_gone_on_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(tmp_path, "whole")
    monkeypatch.setattr("depura.training.loop.train.__kwdefaults__", {"checkpoint": None, "every": 5, "progress": None})

    def stop(step: int, loss: float) -> None:
        if step == 8:
            raise StopError

    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(StopError):
        weights(tmp_path, "part", checkpoint=checkpoint, progress=stop)
    assert checkpoint.exists()
    seen: list[int] = []
    assert weights(tmp_path, "part", checkpoint=checkpoint, progress=lambda step, _: seen.append(step)) == whole
    assert seen == list(range(6, 13))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depura.training.loop.train.__kwdefaults__", {"checkpoint": None, "every": 5, "progress": None})
    checkpoint = tmp_path / "state.safetensors"
    train_denoiser(depura.load_digits("train"), RECIPE, checkpoint=checkpoint)
    other = Recipe(n_steps=12, batch=8, seed=4)
    with pytest.raises(depura.InputError, match="same recipe"):
        train_denoiser(depura.load_digits("train"), other, checkpoint=checkpoint)


def test_the_loss_is_edms_weighted_denoising_error() -> None:
    """Against lambda(sigma) |D - x0|^2 with D from the adapter, image by image."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    raw = lambda x, label: network(x) * (1 + label[:, None, None, None])  # noqa: E731
    x0 = depura.load_digits("test").images[:5].double() * 2 - 1
    noise = Noise(1, tuple(range(5)), stream=Stream.TRAIN)
    n = noise(x0, kind=Kind.FORWARD)
    sigma = torch.tensor([0.05, 0.2, 0.5, 1.0, 3.0], dtype=torch.float64)
    found = EdmLoss(raw, sigma_data=0.75).at(x0, sigma, n)  # type: ignore[arg-type]
    expected = []
    for i, s in enumerate(sigma.tolist()):
        denoised = depura.EdmDenoiser(raw, sigma_data=0.75)(x0[i : i + 1] + s * n[i : i + 1], s)
        expected.append((s**2 + 0.75**2) / (s * 0.75) ** 2 * (denoised - x0[i : i + 1]).square().mean())
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-9, atol=0)


def test_the_data_spread_is_that_of_all_pixels() -> None:
    images = depura.load_digits("train").images
    assert data_std(images) == round(float((2 * images.double() - 1).flatten().std()), 2)
