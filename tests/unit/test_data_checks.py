"""What is measured of a study's images: purification errors and margins, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import depura
from depura.data.imageset import Known
from depura.data.origins import others_of
from depura.diffusion.exact import MixtureDenoiser
from depura.diffusion.solvers import Ancestral
from depura.evaluation.data_checks import bare_margins, purification_errors
from depura.evaluation.diagnostics import nothing
from depura.noise import Noise, Stream
from toys import rand


def noise(n: int) -> Noise:
    return Noise(0, tuple(range(n)), stream=Stream.NULL)


def errors(purifier: depura.Purifier, images: Tensor, others: Tensor | None = None) -> dict[str, Tensor]:
    return purification_errors(purifier, images, others, noise(len(images)), draw=3)


def test_a_blur_changes_neighbours_as_convolution_says() -> None:
    """Without noise the error is the mean square of what the filter changes; moved images repeat their border."""
    images = rand(3, 1, 8, 8, seed=1, dtype=torch.float64)
    blur = depura.blur_only(std=0.7)
    found = errors(blur, images, images[:2] * 0.5)
    filtered = blur.purify(images, noise(3))
    assert torch.allclose(found["error"], (filtered - images).square().mean((1, 2, 3)), rtol=1e-12)
    assert torch.allclose(found["error_mirrored"], found["error"], rtol=1e-9)  # a symmetric filter
    assert torch.allclose(found["error_others"], found["error"][:2] / 4, rtol=1e-9)  # and a linear one
    columns, rows = [1, 2, 3, 4, 5, 6, 7, 7], [1, 2, 3, 4, 5, 6, 7, 7]
    assert torch.equal(found["error_left"], errors(blur, images[..., columns])["error"])
    assert torch.equal(found["error_up"], errors(blur, images[:, :, rows])["error"])


def test_noise_that_is_left_is_no_error() -> None:
    """The product of two draws has the expectation 0; the square of one has the variance, 0.01."""
    images = rand(400, 1, 8, 8, seed=2, dtype=torch.float64)
    found = errors(depura.noise_only(std=0.1), images)["error"]
    assert abs(float(found.mean())) < 4 * 0.01 / np.sqrt(400 * 64)
    assert float(found.std()) == pytest.approx(0.01 / 8, rel=0.2)  # of a mean of 64 products
    assert errors(nothing(), images)["error"].abs().max() < 1e-12


def test_a_denoiser_of_points_is_exact_on_them_and_far_off_beside_them() -> None:
    digits = depura.load_digits("test").first(24)
    images = digits.images.double()
    known = MixtureDenoiser(2 * images[:8] - 1, std=0.0)
    purifier = depura.diffpure(known, t_star=0.05, n_steps=1, t_end=0.0, solver=Ancestral())
    found = errors(purifier, images[:8], images[8:])
    assert found["error"].max() < 1e-6
    assert len(found["error_others"]) == 8
    nearest = torch.cdist(images[8:16].flatten(1), images[:8].flatten(1)).amin(1).square() / 64
    assert bool((found["error_others"] > 0.5 * nearest).all())


def test_a_pixel_that_is_not_finite_makes_its_error_unknown() -> None:
    def lost(x: Tensor, sigma: float) -> Tensor:
        return torch.where(x.amax((1, 2, 3), keepdim=True) > 50, torch.nan, x)

    images = rand(3, 1, 4, 4, seed=1)
    step = depura.diffpure(lost, t_star=0.05, n_steps=1, t_end=0.0, solver=Ancestral())
    assert errors(step, images)["error"].isfinite().all()
    images[1, 0, 0, 0] = 60.0
    assert errors(step, images)["error"].isfinite().tolist() == [True, False, True]


WEIGHTS = torch.linspace(-1, 1, 64, dtype=torch.float64)


def linear(images: Tensor) -> Tensor:
    """Two classes; the margin of class 1 is -2 w x."""
    decision = images.flatten(1).double() @ WEIGHTS
    return torch.stack([-decision, decision], 1)


@pytest.mark.parametrize(("norm", "moves"), [("linf", 0.05 * WEIGHTS.abs().sum()), ("l2", 0.05 * WEIGHTS.norm())])
def test_margins_of_a_linear_classifier_rise_by_half_the_radius_times_the_dual_norm(norm: str, moves: Tensor) -> None:
    images = 0.3 + 0.4 * rand(6, 1, 8, 8, seed=3, dtype=torch.float64)  # no step reaches a wall
    labels = torch.arange(6) % 2
    others = Known(images[:4] * 0.5 + 0.25, labels[:4], (6, 7, 8, 9))
    defence = depura.Defence(depura.blur_only(std=1.0), linear)
    found = bare_margins(defence, depura.Ball(norm, 0.1), images, labels, others)  # type: ignore[arg-type]
    plain = -2 * (2 * labels - 1) * (images.flatten(1) @ WEIGHTS)
    assert torch.allclose(found["margin"], plain)
    assert torch.allclose(found["stepped_margin"], plain + 2 * moves)
    assert torch.allclose(found["stepped_margin_others"], found["margin_others"] + 2 * moves)
    assert len(found["margin_others"]) == 4


def test_a_classifier_without_a_gradient_has_the_margins_of_the_images_as_they_are() -> None:
    images, labels = rand(5, 1, 8, 8, seed=3), torch.zeros(5, dtype=torch.int64)
    defence = depura.Defence(None, lambda x: linear(x.detach()))
    others = Known(images, labels, tuple(range(5)))
    assert set(bare_margins(defence, depura.Ball("linf", 0.1), images, labels, others)) == {"margin", "margin_others"}
    assert bare_margins(defence, depura.Ball("linf", 0.1), images, labels, None) == {}
    whole = depura.wrap_defence(lambda x: linear(x).float())
    assert bare_margins(whole, depura.Ball("linf", 0.1), images, labels, others) == {}


def test_the_largest_margins_are_improbable_as_a_draw() -> None:
    """Of 200 digits the 12 of the largest margins; p of scipy's test at most that of 12 among the first 60 of 412."""
    digits = depura.load_digits("test")
    pool = digits.first(200)
    logits = depura.digits_classifier()(pool.images)
    rest = logits.scatter(1, pool.labels[:, None], -1e9).amax(1)
    leads = logits.gather(1, pool.labels[:, None])[:, 0] - rest
    defence = depura.Defence(None, depura.digits_classifier())

    def p(data: depura.ImageSet) -> float:
        found = bare_margins(defence, depura.Ball("linf", 0.2), data.images, data.labels, others_of(data))
        return float(stats.mannwhitneyu(found["margin"], found["margin_others"], alternative="less").pvalue)

    assert p(pool.take(leads.topk(12).indices.tolist())) < 1e-6
    assert p(digits.draw(12, seed=1)) > 0.01
