"""Training is a function of its recipe: again, or stopped and gone on, it gives the same bytes."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import depura
from depura import InputError, load_digits
from depura.cli import app
from depura.models.networks.small import SmallClassifier
from depura.models.weights import read_safetensors
from depura.noise import Kind, Noise, Stream
from depura.training.card import TIME
from depura.training.classifier import Model, model, train_classifier
from depura.training.denoiser import Design, EdmLoss, data_std, train_denoiser
from depura.training.guide import Trades
from depura.training.loop import Recipe, Report, save_weights, seeded
from depura.training.mixture import Mixture
from processes import Depura
from slow import slow

RECIPE = Recipe(n_steps=12, batch=8, seed=3)


class StopError(Exception):
    """Stands for a kill."""


def weights(folder: Path, name: str, **options: object) -> bytes:
    made = train_denoiser(load_digits("train"), RECIPE, **options)  # type: ignore[arg-type]
    save_weights(made.weights, folder / name, made.about)
    return (folder / name).read_bytes()


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    a = weights(tmp_path, "a")
    torch.manual_seed(99)
    b = weights(tmp_path, "b")
    torch.set_rng_state(state)
    assert a == b


def test_a_width_is_that_of_the_network(tmp_path: Path) -> None:
    made = train_denoiser(load_digits("train"), RECIPE, design=Design(width=8))
    assert {p.shape[0] for p in made.weights.parameters() if p.ndim == 4} == {1, 8, 16}
    assert made.about["architecture"] == {"channels": 1, "width": 8, "inner": 16, "embed": 32}
    with pytest.raises(InputError, match="multiple of 8"):
        Design(width=12)


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
    made = Model(network, network, {})
    given = train_classifier(load_digits("train"), RECIPE, start=made, loss=loss, **options)  # type: ignore[arg-type]
    assert given.model is network
    save_weights(network, folder / name, given.about)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("made", [weights, guide_weights])
def test_stopped_and_gone_on_gives_the_same_bytes(tmp_path: Path, made: Callable[..., bytes]) -> None:
    """Wherever torch's generator stands."""
    whole = made(tmp_path, "whole")

    def stop(report: Report) -> None:
        if report.step == 8:
            raise StopError

    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(StopError):
        made(tmp_path, "part", checkpoint=checkpoint, every=5, progress=stop)
    assert checkpoint.exists()
    seen: list[int] = []
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = made(tmp_path, "part", checkpoint=checkpoint, every=5, progress=lambda report: seen.append(report.step))
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
        recipe, made = Recipe(n_steps=6, batch=8, seed=seed), Model(network, network, {})
        train_classifier(data, recipe, start=made, loss=loss, checkpoint=checkpoint, every=5)

    fit()
    assert checkpoint.exists()
    fit()
    with pytest.raises(depura.InputError, match="same recipe, loss and network"):
        fit(**{"recipe": {"seed": 4}, "loss": {"eps": 0.2}, "network": {"width": 16}}[change])  # type: ignore[arg-type]


def guide(folder: Path) -> list[str]:
    """Of a few digits, as measuring takes longer than training here."""
    data = load_digits("test").first(12)
    np.savez(folder / "few.npz", image=data.images.numpy(), label=data.labels.numpy())
    return shlex.split("train guide --data few.npz --steps 60 --batch 8 --attack-steps 2 --every 3 --out")


def card(path: Path) -> list[str]:
    """A card's lines without the one that depends on the clock."""
    lines = path.read_text().splitlines()
    rest = [line for line in lines if not line.startswith(TIME)]
    assert len(rest) == len(lines) - 1
    return rest


def undisturbed_and_killed(words: list[str], folder: Path, name: str) -> list[Path]:
    """A command that was left alone, and one that was killed after its first checkpoint and given again: folders whose
    weights, cards (but for the clock) and files are equal."""
    whole, killed = folder / "whole", folder / "killed"
    checkpoint = killed / f"{name}.checkpoint.safetensors"
    process, deadline = Depura([*words, killed], folder), time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.poll() == -signal.SIGKILL
    assert json.loads(read_safetensors(checkpoint)[1]["story"])["step"] >= 3
    assert not (killed / f"{name}.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out in (whole, killed):
            assert CliRunner().invoke(app, [*words, str(out)]).exit_code == 0
    assert (killed / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()
    assert card(killed / f"{name}.md") == card(whole / f"{name}.md")
    assert {p.name for p in killed.iterdir() if not p.name.endswith(".partial")} == {p.name for p in whole.iterdir()}
    return [whole, killed]


@pytest.mark.slow
def test_a_guide_killed_and_given_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    undisturbed_and_killed(guide(tmp_path), tmp_path, "few-guide")


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


SMALLEST = {"resolution": 8, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": ()}


def test_half_of_the_images_are_mirrored_before_noise_comes_to_them() -> None:
    """A network that says nothing: the loss is that of the images or of their mirror images, noise as drawn."""
    silent = lambda x, label, *marks: torch.zeros_like(x)  # noqa: E731
    images = load_digits("test").images[:1].double()
    plain, flipping = (EdmLoss(silent, sigma_data=0.75, flip=flip) for flip in (False, True))
    values = {True: 0, False: 0}
    for step in range(40):
        noise = Noise(1, (0,), draws=step, stream=Stream.TRAIN)
        found = float(flipping(images, torch.zeros(1), noise))
        as_it_is, mirrored = (float(plain(x, torch.zeros(1), noise)) for x in (images, images.flip(3)))
        assert as_it_is != mirrored
        assert found in (as_it_is, mirrored)
        values[found == mirrored] += 1
    assert min(values.values()) > 10


def test_the_network_is_told_of_all_sources_but_the_first() -> None:
    told: list[Tensor] = []

    def network(x: Tensor, label: Tensor, classes: None, marks: Tensor) -> Tensor:
        assert classes is None
        told.append(marks)
        return torch.zeros_like(x)

    noise = Noise(1, tuple(range(4)), stream=Stream.TRAIN)
    EdmLoss(network, sigma_data=0.75, sources=3)(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), noise)
    assert told[0].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize("bfloat16", [False, slow(True)])
def test_a_song_unet_is_trained_stored_and_loaded(tmp_path: Path, bfloat16: bool) -> None:
    """On two sources; the file alone gives the same estimates, in half precision's accuracy."""
    digits = load_digits("train")
    mixture = Mixture.of([digits, digits._replace(images=1 - digits.images)], [1, 1])
    recipe = Recipe(n_steps=30, batch=16, rate=3e-3, warmup=5)
    made = train_denoiser(mixture, recipe, design=Design(SMALLEST, flip=True, bfloat16=bfloat16))
    save_weights(made.weights, tmp_path / "w.safetensors", made.about)
    loaded = depura.load_denoiser(tmp_path / "w.safetensors")
    x = 2 * load_digits("test").images[:4] - 1
    for sigma in (0.1, 1.0):
        torch.testing.assert_close(loaded(x, sigma), made.model(x, sigma), rtol=0, atol=1e-6)
        assert not torch.allclose(loaded(x, sigma), x, atol=1e-2)
    marked = made.model(x, 1.0, augment=torch.ones(4, 1))  # type: ignore[call-arg]
    assert not torch.allclose(marked, made.model(x, 1.0), atol=1e-4)
    first, last = (point["loss"] for point in (made.history.curve[0], made.history.curve[-1]))
    assert first == last  # one checkpoint: the mean over all steps
    assert last < 1.0


def test_bfloat16_changes_training_a_little() -> None:
    digits, recipe = load_digits("train"), Recipe(n_steps=5, batch=8)
    plain, half = (train_denoiser(digits, recipe, design=Design(SMALLEST, bfloat16=b)) for b in (False, True))
    a, b = (torch.cat([p.detach().flatten() for p in made.weights.parameters()]) for made in (plain, half))
    assert {p.dtype for p in half.weights.parameters()} == {torch.float32}
    assert 0 < float((a - b).norm() / a.norm()) < 0.02


@pytest.mark.parametrize(
    ("name", "family"),
    [("small", "small-classifier"), ("resnet8", "cifar-resnet"), ("wrn-10-1", "wide-resnet"), ("vit-1-8", "vit")],
)
def test_classifiers_by_name_are_trained_stored_and_loaded(tmp_path: Path, name: str, family: str) -> None:
    data = Mixture.of([load_digits("train")])
    recipe = Recipe(n_steps=20, batch=32, rate=1e-2, warmup=2)
    made = train_classifier(data, recipe, start=model(name, data, seed=0))
    save_weights(made.weights, tmp_path / "w.safetensors", made.about)
    x = load_digits("test").images[:50]
    assert depura.models.checkpoints.identify(tmp_path / "w.safetensors").family == family
    loaded = depura.load_classifier(tmp_path / "w.safetensors")
    torch.testing.assert_close(loaded(x), made.model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet21", "resnet2", "wrn-28", "wrn-27-10", "vgg"])
def test_names_of_no_classifier(name: str) -> None:
    with pytest.raises(InputError, match=r"--network.*resnetD"):
        model(name, Mixture.of([load_digits("train")]), seed=0)


def denoiser(folder: Path) -> list[str]:
    """On two sources with held-out images, by the constant schedule."""
    data = load_digits("test").first(60)
    for name, images in (("exact", data.images), ("rough", (4 * data.images).round() / 4)):
        np.savez(folder / f"{name}.npz", image=images.numpy(), label=data.labels.numpy())
    words = "train denoiser --data exact.npz --weight 2 --data rough.npz --weight 1 --held-out 8 --width 8"
    return shlex.split(f"{words} --schedule constant-then-decay --steps 60 --batch 8 --every 10 --out")


@pytest.mark.slow
def test_a_denoiser_killed_and_given_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    _, killed = undisturbed_and_killed(denoiser(tmp_path), tmp_path, "exact-denoiser")
    said = card(killed / "exact-denoiser.md")
    assert any("52 images" in line and "67% of each batch" in line for line in said)
    assert any("held-out" in line and "sigma 0.3" in line for line in said)
    curve = json.loads((killed / "exact-denoiser.curve.json").read_text())["curve"]
    assert [point["step"] for point in curve] == list(range(10, 61, 10))
    assert curve[-1]["sigma 0.3"] < curve[0]["sigma 0.3"]
    with Image.open(killed / "denoiser.samples.png") as picture:
        assert picture.size == (8 * 8, 4 * 8)
