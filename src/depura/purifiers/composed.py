"""Purifiers made of purifiers: at another resolution, one after another, averaged, pinned, or drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from depura import _check
from depura.image_ops import bilinear
from depura.noise import Kind, Noise
from depura.purifiers.base import Cleaner, Leaf, Moment
from depura.records.kinds import GradientMode


class Wrapping(Cleaner):
    """Around one purifier."""

    def __init__(self, purifier: Cleaner) -> None:
        """Wrap the purifier.

        Args:
            purifier: what is wrapped.
        """
        super().__init__()
        self.purifier = purifier

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Those of the purifier inside."""
        return self.purifier.leaves

    @property
    def n_steps(self) -> int:
        """Those of the purifier inside."""
        return self.purifier.n_steps

    @property
    def n_rounds(self) -> int:
        """Those of the purifier inside."""
        return self.purifier.n_rounds


class Several(Cleaner):
    """Around several purifiers."""

    def __init__(self, purifiers: Sequence[Cleaner]) -> None:
        """Hold the purifiers.

        Args:
            purifiers: what is composed.
        """
        super().__init__()
        self.purifiers = nn.ModuleList(purifiers)

    @property
    def parts(self) -> tuple[Cleaner, ...]:
        """The purifiers, in order."""
        return tuple(part for part in self.purifiers if isinstance(part, Cleaner))

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Those of all purifiers."""
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same (see `Cleaner.same_walk`)."""
        if not isinstance(other, type(self)) or len(self.parts) != len(other.parts):
            return False
        return all(a.same_walk(b) for a, b in zip(self.parts, other.parts, strict=True))


class Resized(Wrapping):
    """A purifier of another resolution: bilinear to `size`, purify, bilinear back; both in the gradient.

    DiffPure on ImageNet: 224 -> 256 -> 224, align_corners=False, no antialiasing.
    """

    def __init__(self, purifier: Cleaner, *, size: int) -> None:
        """Wrap the purifier.

        Args:
            purifier: works on size x size images.
            size: its resolution.
        """
        super().__init__(purifier)
        self.size = _check.integer("Resized", "size", size, low=1)

    def map(self, change: Callable[[Leaf], Leaf]) -> Resized:
        """A copy with every leaf changed."""
        return Resized(self.purifier.map(change), size=self.size)

    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """Purify images of any resolution, (B, C, H, W) -> (B, C, H, W)."""
        larger = bilinear(images, (self.size, self.size))
        return bilinear(self.purifier.purify(larger, noise, n_rounds=n_rounds), images.shape[2:])

    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """What the leaves are given (see `Cleaner.given`)."""
        return self.purifier.given(bilinear(images, (self.size, self.size)), noise)

    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """The walk, at the purifier's resolution (see `Cleaner.trajectory`)."""
        return self.purifier.walk(bilinear(images, (self.size, self.size)), noise)

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same (see `Cleaner.same_walk`)."""
        return isinstance(other, Resized) and self.size == other.size and self.purifier.same_walk(other.purifier)


class Sequential(Several):
    """Purifiers one after another, each on the result of the one before (with rounds of noise of its own).

    Each takes what it is given for the image being purified. Gradual noise schedules are of this kind, and so is one
    method behind another.
    """

    def __init__(self, *purifiers: Cleaner) -> None:
        """Compose.

        Args:
            *purifiers: at least one, in order; together at most 256 rounds.

        Raises:
            InputError: none, or too many rounds.
        """
        super().__init__(purifiers)
        if not purifiers:
            _check.fail("Sequential", "at least one purifier", "none")
        _check.integer("Sequential", "rounds of all purifiers together", self.n_rounds, low=1, high=256)

    @property
    def n_steps(self) -> int:
        """Steps of all purifiers."""
        return sum(part.n_steps for part in self.parts)

    @property
    def n_rounds(self) -> int:
        """Those of all purifiers."""
        return sum(part.n_rounds for part in self.parts)

    def map(self, change: Callable[[Leaf], Leaf]) -> Sequential:
        """A copy with every leaf changed."""
        return Sequential(*(part.map(change) for part in self.parts))

    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """Purify, (B, C, H, W) -> (B, C, H, W)."""
        n_rounds = self.n_rounds if n_rounds is None else n_rounds
        for part in self.parts:
            images = part.purify(images, noise, n_rounds=n_rounds)
            noise = noise.later(part.n_rounds)
        return images

    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """What the leaves are given (see `Cleaner.given`)."""
        for part, seen, tape in self._stages(images, noise):
            yield from part.given(seen, tape)

    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """The walks, one after another (see `Cleaner.trajectory`); `round` counts through."""
        for part, seen, tape in self._stages(images, noise):
            for moment in part.walk(seen, tape):
                yield moment._replace(round=tape.round - noise.round + moment.round)

    def _stages(self, images: Tensor, noise: Noise) -> Iterator[tuple[Cleaner, Tensor, Noise]]:
        """Every purifier with what it is given, computed without gradients."""
        for part in self.parts:
            yield part, images, noise
            with torch.no_grad():
                images = part.purify(images, noise)
            noise = noise.later(part.n_rounds)


class Pinned(Wrapping):
    """A purifier whose noise is fixed, the same for every image, draw and call: a deterministic defence.

    The attacker knows the noise too. What remains of a defence's accuracy under attack when its noise is pinned is not
    owed to randomness; and an attack that does not break a pinned defence has a wrong gradient or a poor optimiser
    (Carlini et al. 2019, arXiv:1902.06705). Votes over a pinned purifier are unanimous.
    """

    def __init__(self, purifier: Cleaner, *, seed: int = 0) -> None:
        """Wrap the purifier.

        Args:
            purifier: whose noise is fixed.
            seed: of the fixed noise.

        Raises:
            InputError: a purifier that is differentiated by the grafted route, which tells images apart by their noise.
        """
        super().__init__(purifier)
        self.seed = _check.integer("Pinned", "seed", seed, high=2**64 - 1)
        if any(leaf.gradient.mode == GradientMode.GRAFTED for leaf in purifier.leaves):
            _check.fail("Pinned", "a gradient route that takes images one by one", "Grafted", "Take StoredState.")

    def map(self, change: Callable[[Leaf], Leaf]) -> Pinned:
        """A copy with every leaf changed."""
        return Pinned(self.purifier.map(change), seed=self.seed)

    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """Purify, (B, C, H, W) -> (B, C, H, W)."""
        return self.purifier.purify(images, self._tape(noise), n_rounds=n_rounds)

    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """What the leaves are given (see `Cleaner.given`)."""
        return self.purifier.given(images, self._tape(noise))

    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """The walk (see `Cleaner.trajectory`)."""
        return self.purifier.walk(images, self._tape(noise))

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same (see `Cleaner.same_walk`)."""
        return isinstance(other, Pinned) and self.seed == other.seed and self.purifier.same_walk(other.purifier)

    def _tape(self, noise: Noise) -> Noise:
        return Noise(self.seed, images=(0,) * len(noise), round=noise.round)


class Averaged(Wrapping):
    """The mean of several purifications of an image, with noise of their own, folded into the batch.

    Draw d uses purifications d * n .. d * n + n - 1. To average predictions instead of images give the `Defence` a rule
    (`MeanLogit`, `MeanProb`, `Vote`).
    """

    def __init__(self, purifier: Cleaner, *, n_paths: int) -> None:
        """Wrap the purifier.

        Args:
            purifier: makes one path.
            n_paths: how many.
        """
        super().__init__(purifier)
        self.n_paths = _check.integer("Averaged", "n_paths", n_paths, low=1)

    def map(self, change: Callable[[Leaf], Leaf]) -> Averaged:
        """A copy with every leaf changed."""
        return Averaged(self.purifier.map(change), n_paths=self.n_paths)

    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """Purify, (B, C, H, W) -> (B, C, H, W)."""
        n = self.n_paths
        paths = self.purifier.purify(images.repeat_interleave(n, dim=0), noise.split(n), n_rounds=n_rounds)
        return paths.reshape(len(images), n, *paths.shape[1:]).mean(1)

    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """What the leaves are given (see `Cleaner.given`)."""
        return self.purifier.given(images.repeat_interleave(self.n_paths, dim=0), noise.split(self.n_paths))

    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """The first path of each image (see `Cleaner.trajectory`)."""
        n = self.n_paths
        return self.purifier.walk(images, noise.split(n).take(range(0, n * len(images), n)))

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same (see `Cleaner.same_walk`)."""
        return isinstance(other, Averaged) and self.n_paths == other.n_paths and self.purifier.same_walk(other.purifier)


class Mixed(Several):
    """One of several purifiers, drawn afresh for each image and draw, all equally likely: for random settings.

    Rows of a batch that draw the same purifier go through it together.
    """

    def __init__(self, *purifiers: Cleaner) -> None:
        """Compose.

        Args:
            *purifiers: at least one, all of the same numbers of steps and rounds.

        Raises:
            InputError: none, or of different lengths.
        """
        super().__init__(purifiers)
        lengths = sorted({(part.n_rounds, part.n_steps) for part in purifiers})
        if len(lengths) != 1:
            _check.fail("Mixed", "purifiers of one number of rounds and steps", f"{lengths}")

    @property
    def n_rounds(self) -> int:
        """Those of one purifier."""
        return self.parts[0].n_rounds

    @property
    def n_steps(self) -> int:
        """Steps of one purification."""
        return self.parts[0].n_steps

    def map(self, change: Callable[[Leaf], Leaf]) -> Mixed:
        """A copy with every leaf changed."""
        return Mixed(*(part.map(change) for part in self.parts))

    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """Purify, (B, C, H, W) -> (B, C, H, W)."""
        groups = self._groups(images, noise)
        done = [part.purify(images[rows], noise.take(rows), n_rounds=n_rounds) for part, rows in groups]
        return _in_order(done, groups)

    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """What the leaves are given (see `Cleaner.given`)."""
        for part, rows in self._groups(images, noise):
            yield from part.given(images[rows], noise.take(rows))

    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """The walk of each image (see `Cleaner.trajectory`); `step` is the row of the first image's table."""
        groups = self._groups(images, noise)
        for moments in zip(*(part.walk(images[rows], noise.take(rows)) for part, rows in groups), strict=True):
            first = next(m for m, (_, rows) in zip(moments, groups, strict=True) if 0 in rows)
            x, x0, x_next = (_in_order([m[k] for m in moments], groups) for k in range(3))
            yield Moment(x, x0, x_next, first.step, first.round)

    def _groups(self, images: Tensor, noise: Noise) -> list[tuple[Cleaner, list[int]]]:
        """Each purifier that was drawn, with its rows."""
        n = len(self.parts)
        share = noise.uniform(torch.empty(len(images), dtype=torch.float64), kind=Kind.T_STAR)
        picked = (share * n).long().clamp(max=n - 1)
        rows = [[row for row in range(len(images)) if picked[row] == k] for k in range(n)]
        return [(part, chosen) for part, chosen in zip(self.parts, rows, strict=True) if chosen]


def _in_order(pieces: Sequence[Tensor], groups: Sequence[tuple[Cleaner, list[int]]]) -> Tensor:
    """Rows of the groups' results, put back in the order of the batch."""
    order = torch.tensor([row for _, rows in groups for row in rows], device=pieces[0].device)
    return torch.cat(list(pieces))[order.argsort()]
