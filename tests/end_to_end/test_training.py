"""Training is a function of its recipe: again, or stopped and gone on, it gives the same bytes."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depura
from depura import InputError, load_digits
from depura.data.weights import read_safetensors
from depura.networks.small import SmallClassifier
from depura.noise import Kind, Noise, Stream
from depura.training.denoiser import EdmLoss, data_std, train_denoiser
from depura.training.guide import Trades, train_guide
from depura.training.loop import Recipe, save_weights, seeded

RECIPE = Recipe(n_steps=12, batch=8, seed=3)


class StopError(Exception):
    """Stands for a kill."""


def weights(folder: Path, name: str, **options: object) -> bytes:
    denoiser, about = train_denoiser(load_digits("train"), RECIPE, **options)  # type: ignore[arg-type]
    save_weights(denoiser.network, folder / name, about)  # type: ignore[arg-type]
    return (folder / name).read_bytes()


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    a = weights(tmp_path, "a")
    torch.manual_seed(99)
    b = weights(tmp_path, "b")
    torch.set_rng_state(state)
    assert a == b


def test_a_width_is_that_of_the_network(tmp_path: Path) -> None:
    denoiser, about = train_denoiser(load_digits("train"), RECIPE, width=8)
    assert {p.shape[0] for p in denoiser.network.parameters() if p.ndim == 4} == {1, 8, 16}  # type: ignore[union-attr]
    assert about["architecture"] == {"channels": 1, "width": 8, "inner": 16, "embed": 32}
    with pytest.raises(InputError, match="multiple of 8"):
        train_denoiser(load_digits("train"), RECIPE, width=12)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    weights(tmp_path, "a")
    assert torch.equal(state, torch.get_rng_state())


class Judge(nn.Module):
    """Has all that makes resuming hard: running statistics, counters, dropout, a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(36, 10)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.full((10,), 0.5), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        h = self.drop(self.norm(self.conv(images)).relu())
        return self.head(h.flatten(1)) + self.frozen


def guide_weights(folder: Path, name: str, **options: object) -> bytes:
    network = seeded(Judge, RECIPE.seed)
    loss = partial(Trades, eps=0.1, n_steps=2)
    made, about = train_guide(load_digits("train"), RECIPE, network=network, loss=loss, **options)  # type: ignore[arg-type]
    assert made is network
    save_weights(made, folder / name, about)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("made", [weights, guide_weights])
def test_stopped_and_gone_on_gives_the_same_bytes(tmp_path: Path, made: Callable[..., bytes]) -> None:
    """Wherever torch's generator stands."""
    whole = made(tmp_path, "whole")

    def stop(step: int, loss: float) -> None:
        if step == 8:
            raise StopError

    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(StopError):
        made(tmp_path, "part", checkpoint=checkpoint, every=5, progress=stop)
    assert checkpoint.exists()
    seen: list[int] = []
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = made(tmp_path, "part", checkpoint=checkpoint, every=5, progress=lambda step, _: seen.append(step))
    assert again == whole
    assert seen == list(range(6, 13))


def test_buffers_are_kept_exactly_and_parameters_are_averaged(tmp_path: Path) -> None:
    guide_weights(tmp_path, "w")
    stored, _ = read_safetensors(tmp_path / "w")
    assert stored["norm.num_batches_tracked"].item() == 2 * RECIPE.n_steps  # clean and attacked images, per step
    assert {key: str(t.dtype) for key, t in stored.items() if key.startswith("norm.")} == {
        "norm.weight": "torch.float16",
        "norm.bias": "torch.float16",
        "norm.running_mean": "torch.float32",
        "norm.running_var": "torch.float32",
        "norm.num_batches_tracked": "torch.int64",
    }
    assert stored["unused"].tolist() == [1, 1, 1]
    assert stored["frozen"].tolist() == [0.5] * 10


@pytest.mark.parametrize("change", ["recipe", "loss", "network"])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, change: str) -> None:
    checkpoint, data = tmp_path / "state.safetensors", load_digits("train")

    def fit(*, seed: int = 3, eps: float = 0.1, width: int = 8) -> None:
        loss, network = partial(Trades, eps=eps, n_steps=1), SmallClassifier(width=width)
        recipe = Recipe(n_steps=6, batch=8, seed=seed)
        train_guide(data, recipe, network=network, loss=loss, checkpoint=checkpoint, every=5)

    fit()
    assert checkpoint.exists()
    fit()
    with pytest.raises(depura.InputError, match="same recipe, loss and network"):
        fit(**{"recipe": {"seed": 4}, "loss": {"eps": 0.2}, "network": {"width": 16}}[change])  # type: ignore[arg-type]


def start_guide(out: Path) -> subprocess.Popen[bytes]:
    """Of a few digits, as measuring takes longer than training here."""
    data = load_digits("test").first(20)
    np.savez(out.parent / "few.npz", image=data.images.numpy(), label=data.labels.numpy())
    words = shlex.split("train guide --data few.npz --steps 200 --batch 16 --attack-steps 2 --every 3 --out")
    return subprocess.Popen(
        [sys.executable, "-m", "depura", *words, str(out)], cwd=out.parent, stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_guide_killed_and_given_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start_guide(whole).wait(120) == 0
    process, deadline = start_guide(killed), time.monotonic() + 120
    checkpoint = killed / "few-guide.checkpoint.safetensors"
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= int(read_safetensors(checkpoint)[1]["step"]) < 200
    assert not (killed / "few-guide.safetensors").exists()
    assert start_guide(killed).wait(120) == 0
    for name in ("few-guide.safetensors", "few-guide.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in killed.iterdir() if not p.name.endswith(".partial")} == {p.name for p in whole.iterdir()}


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
