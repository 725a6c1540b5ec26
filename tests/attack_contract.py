"""What every attack must do, whatever its algorithm: one function that a test calls with the attack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from depura.attacks.attack import Attack, Candidates
from depura.defence import Defence
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.noise import Kind, Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from toys import TanhClassifier, rand, randn, tanh_eps

B = 5
INIT = Noise(1, images=tuple(range(100, 100 + B)), stream=Stream.INIT)
EOT = Noise(1, images=tuple(range(100, 100 + B)), stream=Stream.EOT)


def random_defence(shape: tuple[int, int, int], n_classes: int = 5) -> Defence:
    """A smooth randomised defence of images of any shape."""
    steps = uniform_steps(VP(), t_start=0.2, n_steps=2)
    purifier = DiffusionPurifier(tanh_eps(shape[0]), steps=steps, solver=Ancestral())
    return Defence(purifier, TanhClassifier(shape[0] * shape[1] * shape[2], n_classes))


def bare(shape: tuple[int, int, int], n_classes: int = 5) -> Defence:
    """Its classifier alone: deterministic."""
    return random_defence(shape, n_classes).with_(purifier=None)


def labelled(model: Defence, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """B images, of which all but the last have for a label what the model takes them for."""
    images = rand(B, *shape, seed=1)
    with torch.no_grad():
        labels = model(images, EOT).argmax(1)
    labels[-1] = (labels[-1] + 1) % 5
    return images, labels


def keeps_the_contract(
    attack: Attack, *, randomised: bool = True, shape: tuple[int, int, int] = (1, 4, 4), tolerance: float = 1e-9
) -> Candidates:
    """Check an attack in float64; any batch split and order, any call size, the ball, the counts, the progress.

    Args:
        attack: small enough to be run five times.
        randomised: against a randomised defence, else against a bare classifier.
        shape: of the images.
        tolerance: of pixels, between splits.

    Returns:
        What it found of five images.
    """
    model = random_defence(shape) if randomised else bare(shape)
    images, labels = labelled(model, shape)
    before, state = images.clone(), torch.get_rng_state()
    progress: list[float] = []
    whole = attack(model, images, labels, init=INIT, eot=EOT, progress=progress.append)

    def same(part: Candidates, rows: list[int]) -> None:
        torch.testing.assert_close(part.images, whole.images[:, rows], rtol=0, atol=tolerance)
        torch.testing.assert_close(part.loss, whole.loss[:, rows], rtol=0, atol=1e-6, equal_nan=True)
        assert part.spent.tolist() == whole.spent[rows].tolist()
        assert part.finished.tolist() == whole.finished[rows].tolist()

    for rows in ([3, 0, 4], [2]):
        part = attack(model, images[rows], labels[rows], init=INIT.take(rows), eot=EOT.take(rows))
        same(part, rows)
    same(attack(model, images, labels, init=INIT, eot=EOT, rows=3), list(range(B)))
    assert torch.equal(images, before), "the images that were given are left as they are"
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it is"
    assert whole.images.shape == (attack.n_candidates, B, *shape)
    assert whole.images.dtype == images.dtype
    assert not whole.images.requires_grad
    for candidate in whole.images:
        assert bool(attack.ball.contains(candidate, images).all())
    assert whole.loss.shape[1] == B
    assert bool((whole.spent <= torch.tensor(attack.cost[:2])).all()), "no image costs more than the price"
    if getattr(attack, "finish", None) is None and isinstance(getattr(attack, "eot", 1), int):
        assert bool((whole.spent == torch.tensor(attack.cost[:2])).all()), "the price is exact if nothing may end early"
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    single = attack(model.float(), images.float(), labels, init=INIT, eot=EOT)
    assert single.images.dtype == torch.float32
    other = attack.at(attack.ball.eps / 2)
    assert other.ball.eps == attack.ball.eps / 2
    assert type(other) is type(attack)
    return whole


Break = Callable[[Tensor, Noise], Tensor]
"""(logits (R, K), noise of the rows) -> logits, some of them not finite."""


class Breaking(nn.Module):
    """A classifier of five classes, of images with or without noise, whose logits are then broken.

    Every row is computed by itself, by products and sums of its own: who else is in the batch changes no bit of it.
    """

    def __init__(self, shape: tuple[int, int, int], broken: Break, *, randomised: bool) -> None:
        super().__init__()
        n = shape[0] * shape[1] * shape[2]
        self.enter = nn.Parameter(randn(n, 6, seed=3) / n**0.5 * 3, requires_grad=False)
        self.leave = nn.Parameter(randn(6, 5, seed=4), requires_grad=False)
        self.broken, self.randomised = broken, randomised

    def forward(self, images: Tensor, noise: Noise) -> Tensor:
        x = images + 0.1 * noise(images, kind=Kind.FORWARD) if self.randomised else images
        hidden = torch.tanh(((x - 0.5).flatten(1)[:, :, None] * self.enter).sum(1))
        return self.broken((hidden[:, :, None] * self.leave).sum(1), noise)

    def coarser(self, share: int) -> Breaking:
        """A surrogate for warm starts: itself."""
        return self


def unbroken(logits: Tensor, noise: Noise) -> Tensor:
    """Logits as they are."""
    return logits


def draws_of(noise: Noise) -> tuple[int, ...]:
    """A draw number for each row."""
    return (noise.draws,) * len(noise) if isinstance(noise.draws, int) else noise.draws


def where(
    image: int, value: float = torch.nan, *, draws: Callable[[int], bool] = lambda _: True, column: int | None = None
) -> Break:
    """Logits of one image that are broken on some draws, all of them or those of one class."""

    def broken(logits: Tensor, noise: Noise) -> Tensor:
        rows = torch.tensor([i == image and draws(d) for i, d in zip(noise.images, draws_of(noise), strict=True)])
        classes = torch.tensor([column in (None, k) for k in range(logits.shape[1])])
        return torch.where(rows[:, None] & classes, value, logits)

    return broken


def bears_what_is_not_finite(
    attack: Attack, broken: Break, *, row: int, randomised: bool = True, shape: tuple[int, int, int] = (1, 4, 4)
) -> Candidates:
    """Check an attack on a model that breaks down on one image of the batch; its candidates are images all the same.

    Args:
        attack: small enough to be run twice.
        broken: breaks logits of the image of that row.
        row: of the batch.
        randomised: whether the model's answers are random.
        shape: of the images.

    Returns:
        What it found.
    """
    whole = Breaking(shape, unbroken, randomised=randomised)
    images = rand(B, *shape, seed=1)
    with torch.no_grad():
        labels = whole(images, EOT).argmax(1)
    expected = attack(whole, images, labels, init=INIT, eot=EOT)
    found = attack(Breaking(shape, broken, randomised=randomised), images, labels, init=INIT, eot=EOT)
    assert bool(found.images.isfinite().all())
    for candidate in found.images:
        assert bool(attack.ball.contains(candidate, images).all())
    others = [k for k in range(B) if k != row]
    assert torch.equal(found.images[:, others], expected.images[:, others]), "other images are attacked as ever"
    assert found.finished[others].tolist() == expected.finished[others].tolist()
    assert found.spent[others].tolist() == expected.spent[others].tolist()
    return found
