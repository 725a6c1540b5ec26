"""Every public door refuses what it cannot use, in one form of sentence: "X: expected .., got ..", with advice."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

import depura
from depura import _check
from depura._check import InputError, InputTypeError
from depura.attacks.pgd import PGD
from depura.attacks.threat import Ball
from depura.defence import Defence, MeanProb, Single, Vote
from depura.diffusion.denoisers import EdmDenoiser
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.gradients import StoredState
from depura.methods.diffpure import diffpure
from depura.methods.diffpure_ddpm import diffpure_ddpm
from depura.noise import Noise
from depura.purifiers.composed import Resized
from depura.purifiers.purifier import DiffusionPurifier
from toys import TanhClassifier, rand, tanh_eps

STEPS = uniform_steps(VP(), t_start=0.2, n_steps=2)
X, Y = rand(2, 1, 4, 4), torch.tensor([0, 2])
NOISE = Noise(0, images=(0, 1))


def purifier(**changes) -> DiffusionPurifier:
    return DiffusionPurifier(tanh_eps(), **({"steps": STEPS, "solver": Ancestral()} | changes))


def attack(images=X, labels=Y, model=None, **parts):
    model = Defence(None, TanhClassifier(16)) if model is None else model
    return PGD(Ball("linf", 0.1), **({"n_steps": 1} | parts))(model, images, labels, init=NOISE)


def spoiled(value: float) -> torch.Tensor:
    x = X.clone()
    x[1, 0, 2, 3] = value
    return x


IMAGES = [
    ("minus one to one", 2 * X - 1, r"expected images in \[0, 1\], got values in \[-.*\(x \+ 1\) / 2"),
    ("0 to 255", 255 * X, r"expected images in \[0, 1\], got values in \[.*pass x / 255"),
    ("a little outside", 1.5 * X, r"expected images in \[0, 1\], got values in \[0\.\d\d, 1\.\d\d\]"),
    ("NaN", spoiled(math.nan), r"expected finite images, got NaN or infinite values"),
    ("infinite", spoiled(math.inf), r"expected finite images, got NaN or infinite values"),
    ("no batch axis", X[0], r"expected images of shape \(B, C, H, W\), got shape \(1, 4, 4\).*unsqueeze"),
    ("flat", X.flatten(1), r"expected images of shape \(B, C, H, W\), got shape \(2, 16\)"),
    ("empty", X[:0], r"expected at least one image, got an empty batch of shape \(0, 1, 4, 4\)"),
    ("8 bit", (255 * X).to(torch.uint8), r"expected images of a floating-point dtype, got torch.uint8.*/ 255"),
    ("array", X.numpy(), r"expected images as a torch.Tensor, got ndarray"),
]

DOORS = {
    "DiffusionPurifier": lambda x: purifier()(x, NOISE),
    "DiffusionPurifier.trajectory": lambda x: next(purifier().trajectory(x, NOISE)),
    "Resized": lambda x: Resized(purifier(), size=4)(x, NOISE),
    "Resized.trajectory": lambda x: next(Resized(purifier(), size=4).trajectory(x, NOISE)),
    "Defence": lambda x: Defence(purifier(), TanhClassifier(16))(x, NOISE),
    "Defence of a vote": lambda x: Defence(purifier(), TanhClassifier(16), rule=Vote(2))(x, NOISE),
    "bare Defence": lambda x: Defence(None, TanhClassifier(16))(x, NOISE),
    "PGD": lambda x: attack(x),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("images", "message"), [pytest.param(x, m, id=name) for name, x, m in IMAGES])
def test_images(door: str, images, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DOORS[door](images)
    assert re.match(r"(DiffusionPurifier|Resized|Defence|PGD): expected .+, got .+\.", str(caught.value))


def test_small_overshoots_are_let_through() -> None:
    """Attacks and resizing overshoot [0, 1] by rounding."""
    for x in (X.clone().index_fill_(0, torch.tensor([0]), 1 + 5e-4), X - float(X.min()) - 5e-4):
        assert purifier()(x, NOISE).shape == X.shape


CASES = [
    # composition
    (
        "no steps",
        lambda: purifier(steps=()),
        r"DiffusionPurifier: expected at least one step, got an empty step table\. Make one",
    ),
    ("no rounds", lambda: purifier(rounds=0), r"DiffusionPurifier: expected rounds from 1 to 256, got 0"),
    ("rounds", lambda: purifier(rounds=257), r"DiffusionPurifier: expected rounds from 1 to 256, got 257"),
    ("size", lambda: Resized(purifier(), size=0), r"Resized: expected size at least 1, got 0"),
    (
        "with_",
        lambda: purifier().with_(sovler=1),
        r"DiffusionPurifier.with_: expected names among denoiser.*, got sovler",
    ),
    ("segment", lambda: StoredState(0), r"StoredState: expected segment at least 1, got 0"),
    ("eta", lambda: Ancestral(1.5), r"Ancestral: expected eta in \[0, 1\], got 1.5"),
    ("eta below", lambda: Ancestral(-0.1), r"Ancestral: expected eta in \[0, 1\], got -0.1"),
    (
        "sigma_data",
        lambda: EdmDenoiser(lambda x, c: x, sigma_data=-1.0),
        r"EdmDenoiser: expected sigma_data in .* got -1",
    ),
    ("single", lambda: Single(2), r"Single: expected n_draws = 1, got 2\. Use Vote or MeanProb"),
    ("vote", lambda: Vote(0), r"Vote: expected n_draws at least 1, got 0"),
    ("mean", lambda: MeanProb(0), r"MeanProb: expected n_draws at least 1, got 0"),
    # DiffPure
    *(
        (f"t_star {t}", lambda t=t: diffpure(tanh_eps(), t_star=t), rf"diffpure: expected t_star in \(0, 1\], got {t}")
        for t in (0.0, -0.1, 1.5, math.nan, math.inf)
    ),
    ("n_steps", lambda: diffpure(tanh_eps(), n_steps=0), r"uniform_steps: expected n_steps from 1 to 65535, got 0"),
    ("t_end", lambda: diffpure(tanh_eps(), t_end=0.01), r"uniform_steps: expected t_end below .* got 0.01\. Use fewer"),
    ("n_noise", lambda: diffpure_ddpm(tanh_eps(), n_noise=0), r"ddpm_steps: expected n_noise from 1 to 1000, got 0"),
    ("strides", lambda: diffpure_ddpm(tanh_eps(), n_steps=30), r"ddpm_steps: expected n_steps that divides .* got 30"),
    # calls
    (
        "channels",
        lambda: purifier(image_shape=(3, 4, 4))(X),
        r"\(channels, height, width\) = \(3, 4, 4\), got \(1, 4, 4\)",
    ),
    (
        "noise",
        lambda: purifier()(X, Noise(0, images=(0,))),
        r"Noise: expected a batch of 1 rows.* got 2\. Use Noise.take",
    ),
    (
        "noise of a vote",
        lambda: Defence(purifier(), TanhClassifier(16), rule=Vote(3))(X, Noise(0, images=(0, 1, 2))),
        r"Noise: expected a batch of 9 rows.* got 6",
    ),
    (
        "dtype",
        lambda: purifier()(X.float(), NOISE),
        r"DiffusionPurifier: expected images of .* dtype torch.float64, got torch.float32",
    ),
    (
        "denoiser's shape",
        lambda: DiffusionPurifier(lambda x, s: x[:, :, :2], steps=STEPS, solver=Ancestral())(X, NOISE),
        r"DiffusionPurifier: expected a denoiser that gives the shape \(2, 1, 4, 4\), got \(2, 1, 2, 4\)",
    ),
    (
        "classifier's shape",
        lambda: Defence(None, lambda x: x)(X),
        r"Defence: expected a classifier giving logits \(2, K\), got shape \(2, 1, 4, 4\)",
    ),
    (
        "classifier's batch",
        lambda: Defence(purifier(), lambda x: x.flatten(1)[:1])(X, NOISE),
        r"Defence: expected a classifier giving logits \(2, K\), got shape \(1, 16\)",
    ),
    # threat model and attacks
    (
        "eps",
        lambda: Ball("linf", -0.1),
        r"Ball: expected eps in \[0, inf\), got -0.1\. It is a radius in \[0, 1\] units",
    ),
    ("eps NaN", lambda: Ball("l2", math.nan), r"Ball: expected eps in \[0, inf\), got nan"),
    ("norm", lambda: Ball("l3", 0.1), r"Ball: expected norm among linf, l2, l1, got 'l3'"),
    ("attack steps", lambda: PGD(Ball("l2", 0.1), n_steps=0), r"PGD: expected n_steps from 1 to 65535, got 0"),
    ("eot", lambda: PGD(Ball("l2", 0.1), eot=0), r"PGD: expected eot at least 1, got 0"),
    ("step size", lambda: PGD(Ball("l2", 0.1), step_size=0.0), r"PGD: expected step_size in \(0, inf\), got 0.0"),
    ("label", lambda: attack(labels=torch.tensor([0, 3])), r"PGD: expected labels from 0 to 2, got labels from 0 to 3"),
    ("label -1", lambda: attack(labels=torch.tensor([0, -1])), r"PGD: expected labels from 0, got labels from -1 to 0"),
    ("labels", lambda: attack(labels=Y[:1]), r"PGD: expected labels of shape \(2,\), one per image, got shape \(1,\)"),
    (
        "one-hot",
        lambda: attack(labels=torch.eye(3)[Y].long()),
        r"PGD: expected labels of shape \(2,\).* got shape \(2, 3\)",
    ),
    ("init", lambda: PGD(Ball("l2", 0.1))(TanhClassifier(16), X, Y, init=Noise(0, images=(1,))), r"Noise: .* got 2"),
    (
        "no gradient",
        lambda: attack(model=lambda x: TanhClassifier(16)(x).detach()),
        r"PGD: expected logits with a gradient path to the images, got logits without one\. Look for a detach",
    ),
]


@pytest.mark.parametrize(("call", "message"), [pytest.param(c, m, id=name) for name, c, m in CASES])
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert re.match(r"\w+(\.\w+)?: expected .+, got .+\.", str(caught.value))
    assert isinstance(caught.value, ValueError)


TYPES = [
    (
        "float labels",
        lambda: attack(labels=Y.double()),
        r"PGD: expected labels as an integer tensor, got torch.float64",
    ),
    ("list labels", lambda: attack(labels=[0, 2]), r"PGD: expected labels as an integer tensor, got list"),
    ("t_star", lambda: diffpure(tanh_eps(), t_star="0.1"), r"diffpure: expected t_star to be a number, got str"),
    ("t_star true", lambda: diffpure(tanh_eps(), t_star=True), r"diffpure: expected t_star to be a number, got bool"),
    ("rounds", lambda: purifier(rounds=2.0), r"DiffusionPurifier: expected rounds to be a whole number, got float 2.0"),
    ("eps", lambda: Ball("linf", "8/255"), r"Ball: expected eps to be a number, got str"),
    ("eot", lambda: PGD(Ball("linf", 0.1), eot=1.5), r"PGD: expected eot to be a whole number, got float 1.5"),
    ("seed", lambda: Noise("0", images=(0,)), r"Noise: expected seed to be a whole number, got str"),
]


@pytest.mark.parametrize(("call", "message"), [pytest.param(c, m, id=name) for name, c, m in TYPES])
def test_wrong_types(call, message: str) -> None:
    with pytest.raises(InputTypeError, match=message) as caught:
        call()
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_labels_of_every_integer_type_that_is_let_in_can_be_used(dtype: torch.dtype) -> None:
    expected = attack(labels=Y).images
    assert torch.equal(attack(labels=Y.to(dtype)).images, expected)


def test_labels_validator() -> None:
    with pytest.raises(
        InputError, match=r"who: expected labels from 0 to 9, got labels from 0 to 10\. Check the label map"
    ):
        _check.labels("who", torch.tensor([0, 10]), n_images=2, n_classes=10)
    assert _check.labels("who", Y, n_images=2, n_classes=3) is Y


def test_writable_folder(tmp_path: Path) -> None:
    made = _check.writable_folder("who", tmp_path / "a" / "b")
    assert made.is_dir()
    assert list(made.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"who: expected a folder that can be written, got .*file"):
        _check.writable_folder("who", tmp_path / "file")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: depura.VP(beta_min=0.0), "VP: expected beta_min"),
        (lambda: depura.VP(beta_min=2.0, beta_max=1.0), "VP: expected beta_max"),
        (lambda: depura.VE(sigma_min=0.0), "VE: expected sigma_min"),
        (lambda: depura.VE(sigma_min=2.0, sigma_max=1.0), "VE: expected sigma_max"),
        (lambda: depura.DiscreteLinear(n=1), "DiscreteLinear: expected n at least 2"),
        (lambda: depura.DiscreteLinear(beta_last=1.5), "DiscreteLinear: expected beta_last"),
        (lambda: depura.Cosine(n=0), "Cosine: expected n at least 2"),
        (lambda: depura.Cosine(s=-1.0), "Cosine: expected s"),
    ],
)
def test_schedules_that_are_none(make, said: str) -> None:
    with pytest.raises(depura.InputError, match=said):
        make()
