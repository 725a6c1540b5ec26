"""Gradients of previews in closed form; what of a defence a preview knows; rows that it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depura
from depura._check import InputError
from depura.attacks.apgd import APGD
from depura.attacks.preview import SIGMAS, can_preview, preview, previews
from depura.attacks.queries import Queries
from depura.attacks.threat import Ball
from depura.defence import Defence, Single, Vote
from depura.diffusion.denoisers import EpsVarianceDenoiser
from depura.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from depura.diffusion.schedules import VP, TimeLabel, uniform_steps
from depura.diffusion.solvers import Ancestral, AncestralLearned, Euler
from depura.evaluation.counting import counted
from depura.evaluation.profiles import SuiteRuns
from depura.evaluation.study import same_function
from depura.noise import Kind, Noise, Stream
from depura.purifiers.composed import Resized, Sequential
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.kinds import AttackKind, GradientMode
from depura.wrapping import wrap_defence
from toys import rand, randn, tanh_eps

SHAPE = (1, 4, 4)
B, M = 3, 40
IMAGES = 0.2 + 0.6 * rand(B, *SHAPE, seed=1)
LABELS = torch.zeros(B, dtype=torch.int64)
EOT = Noise(5, images=(7, 8, 9), stream=Stream.EOT)
W = randn(*SHAPE, seed=2)
LEVELS = (0.2, 0.5, 0.9)


class Linear(nn.Module):
    """Logit 1 less logit 0 is <W, x>."""

    def forward(self, images: Tensor) -> Tensor:
        z = (images * W).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], dim=1)


def deployed(denoiser, **settings) -> DiffusionPurifier:
    steps = uniform_steps(VP(), t_start=0.1, n_steps=4)
    return DiffusionPurifier(denoiser, **({"steps": steps, "solver": Ancestral()} | settings))


def gradients(model: Defence, draws: range) -> Tensor:
    """(B, m, C, H, W), of the margin, which is <W, preview>."""
    return Queries("test", model, IMAGES, LABELS, noise=EOT).gradient(IMAGES, depura.margin, draws=draws).gradients


def levels(draws: range) -> np.ndarray:
    """Which level each draw has, (B, m): a uniform number of its own cut into equal parts."""
    drawn = [EOT.draw(d).uniform(torch.empty(B, dtype=torch.float64), kind=Kind.T_STAR).numpy() for d in draws]
    return (np.stack(drawn, axis=1) * len(LEVELS)).astype(int)


def test_the_gradient_behind_a_gaussian_in_closed_form() -> None:
    """x0 = mean + k (x_in + sigma n - mean), k = std^2 / (std^2 + sigma^2); images in [0, 1] have the slope k, too."""
    std = 0.2 + 0.5 * rand(*SHAPE, seed=3)
    defence = Defence(deployed(GaussianDenoiser(randn(*SHAPE, seed=4), std)), Linear(), rule=Vote(5))
    got = gradients(preview(defence, sigmas=LEVELS), range(M)).numpy()
    which = levels(range(M))
    assert set(which.flatten()) == {0, 1, 2}
    assert len({tuple(row) for row in which}) == B, "each image draws its own"
    for b in range(B):
        for d in range(M):
            s, sigma = std.numpy(), LEVELS[which[b, d]]
            np.testing.assert_allclose(got[b, d], s**2 / (s**2 + sigma**2) * W.numpy(), rtol=1e-12)


def test_the_gradient_behind_a_mixture_in_closed_form() -> None:
    """dD/dx = Cov[x0 | x] / sigma^2, the covariance by numpy; the noise is the purifier's own, afresh in each draw."""
    means, std = randn(4, *SHAPE, seed=5), 0.4
    got = gradients(preview(Defence(deployed(MixtureDenoiser(means, std=std)), Linear()), sigmas=LEVELS), range(6))
    mu, which = means.flatten(1).numpy(), levels(range(6))
    for d in range(6):
        n = EOT.draw(d)(IMAGES, kind=Kind.FORWARD).flatten(1).numpy()
        for b in range(B):
            sigma = LEVELS[which[b, d]]
            x = 2 * IMAGES[b].flatten().numpy() - 1 + sigma * n[b]
            variance = std**2 + sigma**2
            r = np.exp(-((x - mu) ** 2).sum(1) / (2 * variance))
            r /= r.sum()
            shrunk = mu + std**2 / variance * (x - mu)  # E[x0 | x, component]
            centred = shrunk - r @ shrunk
            within = std**2 * sigma**2 / variance
            covariance = within * np.eye(16) + (centred * r[:, None]).T @ centred
            expected = covariance @ W.flatten().numpy() / sigma**2
            np.testing.assert_allclose(got[b, d].flatten().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_an_attack_on_previews_finds_the_best_direction_in_closed_form() -> None:
    """All slopes k are positive, so that in linf the best example is that of the bare classifier."""
    std = 0.2 + 0.5 * rand(*SHAPE, seed=3)
    defence = Defence(deployed(GaussianDenoiser(torch.zeros(SHAPE, dtype=torch.float64), std)), Linear())
    found = APGD(Ball("linf", 0.05), n_steps=30, eot=4)(preview(defence), IMAGES, LABELS, eot=EOT).images
    nearest = (found - IMAGES - 0.05 * W.sign()).flatten(2).abs().amax(2).amin(0)
    assert float(nearest.max()) < 1e-9


def test_a_preview_knows_the_denoiser_and_the_classifier_alone() -> None:
    """Purifiers and rules that differ have the same previews; another denoiser has others."""
    denoiser, classifier = tanh_eps(), Linear()
    first = preview(Defence(deployed(denoiser), classifier, rule=Vote(7)))
    steps = uniform_steps(VP(), t_start=0.3, n_steps=9)
    second = preview(Defence(deployed(denoiser, steps=steps, solver=Euler(), rounds=3), classifier))
    twice = preview(Defence(Sequential(deployed(denoiser), deployed(denoiser, steps=steps)), classifier))
    other = preview(Defence(deployed(tanh_eps(seed=3)), classifier))
    assert same_function(first, second)
    assert same_function(first, twice)
    assert not same_function(first, other)
    assert first.rule == Single()
    assert first.purifier is not None
    assert [part.steps[0].sigma for part in first.purifier.components] == list(SIGMAS)
    judged, counts = counted(first)
    judged(IMAGES, EOT)
    assert counts.forward == B, "one evaluation of the denoiser for each image"


def test_previews_at_the_denoiser_s_resolution() -> None:
    purifier = Resized(deployed(tanh_eps()), size=8)
    got = preview(Defence(purifier, Linear())).purifier
    assert isinstance(got, Resized)
    assert got.size == 8
    large = Resized(previews(next(iter(purifier.components)).denoiser), size=8)
    assert torch.equal(got(IMAGES, EOT), large(IMAGES, EOT))


class Both(nn.Module):
    """A network that predicts noise, and variances that previews have no use for."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([torch.tanh(x), 7 + x], dim=1)


def test_learned_variances_are_left_out() -> None:
    denoiser = EpsVarianceDenoiser(Both(), label=TimeLabel(VP()))
    defence = Defence(deployed(denoiser, solver=AncestralLearned()), Linear())
    got = preview(defence, sigmas=(0.5,)).purifier
    assert got is not None
    x = 2 * IMAGES - 1 + 0.5 * EOT(IMAGES, kind=Kind.FORWARD)
    x0 = denoiser(x, 0.5)[:, :1]
    torch.testing.assert_close(got(IMAGES, EOT), (x0 + 1) / 2, rtol=0, atol=1e-14)


def test_what_has_no_preview() -> None:
    bare = Defence(None, Linear())
    two = Defence(Sequential(deployed(tanh_eps()), deployed(tanh_eps(seed=5))), Linear())
    own = wrap_defence(lambda x: torch.stack([x.flatten(1).sum(1), 0 * x.flatten(1).sum(1)], dim=1))
    theirs = Defence(depura.wrap(lambda x: x + 0.1 * torch.randn_like(x)), Linear())
    for defence, said in ((bare, "one without"), (two, "2 of them"), (own, "one without"), (theirs, "0 of them")):
        assert not can_preview(defence)
        with pytest.raises(InputError, match=said):
            preview(defence)
    for sigmas in ((), (0.0,), (0.2, -1.0)):
        with pytest.raises(InputError, match="previews"):
            previews(tanh_eps(), sigmas=sigmas)
    assert (depura.preview, depura.previews) == (preview, previews)


def test_the_row_of_a_suite_is_one_of_transfer() -> None:
    """Made on another reverse process of the denoiser; with another rule on another model altogether."""
    ball, purifier = Ball("linf", 0.1), deployed(tanh_eps())
    for rule, mode in ((Single(), GradientMode.SURROGATE), (Vote(3), GradientMode.TRANSFER)):
        defence = Defence(purifier, Linear(), rule=rule)
        row = SuiteRuns(defence, ball).preview(APGD(ball, n_steps=3, eot=4))
        assert row is not None
        assert (row.name, row.true_kind, row.mode) == ("preview", AttackKind.TRANSFER, mode)
        assert row.evaluated is defence
        assert same_function(row.attacked, preview(defence))
    two = Defence(Sequential(deployed(tanh_eps()), deployed(tanh_eps(seed=5))), Linear())
    assert SuiteRuns(two, ball).preview(APGD(ball)) is None
