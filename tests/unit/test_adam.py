"""Adam of attacks, against torch's optimiser."""

from __future__ import annotations

import torch

from depura.attacks.adam import AdamAverages
from toys import rand


def test_it_is_torchs_adam_image_by_image() -> None:
    """Torch descends; the second image has no usable gradient in step 2 and keeps its averages, as if not asked."""
    start, rate = rand(2, 3, 4, seed=1), 0.01
    gradients = [rand(2, 3, 4, seed=2 + k) - 0.5 for k in range(5)]
    theirs = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=rate, maximize=True)
    ours, adam = start.clone(), AdamAverages(start)
    for k, gradient in enumerate(gradients):
        theirs.grad = gradient.clone()
        optimiser.step()
        finite = torch.tensor([True, k != 2])[:, None, None]
        broken = torch.where(finite, gradient, torch.nan)
        ours = torch.where(finite, ours + rate * adam.direction(broken, finite), ours)
    torch.testing.assert_close(ours[0], theirs.detach()[0], rtol=1e-12, atol=1e-14)
    assert bool(ours.isfinite().all())
    assert not torch.allclose(ours[1], theirs.detach()[1])
