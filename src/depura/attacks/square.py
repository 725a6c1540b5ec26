"""Square: random search with square-shaped changes, by the loss alone.

Andriushchenko et al. 2020 (arXiv:1912.00049). Needs no gradient, so that it is a check of attacks that do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress, check_finish
from depura.attacks.losses import Loss, comparable, margin
from depura.attacks.numbers import numbered
from depura.attacks.queries import Queries, mean
from depura.attacks.threat import Ball, only, per_image
from depura.noise import Kind, Noise


class Moves(Protocol):
    """How a random search begins and what it tries."""

    def n_uniforms(self, shape: Sequence[int]) -> tuple[int, int]:
        """Uniform numbers per image (C, H, W) that the start takes, and that a proposal takes."""
        ...

    def start(self, ball: Ball, images: Tensor, u: Tensor) -> Tensor:
        """Where the search begins, (B, C, H, W), with uniform numbers u (B, n)."""
        ...

    def propose(self, ball: Ball, images: Tensor, best: Tensor, share: float, u: Tensor) -> Tensor:
        """A point to try next to the best so far, (R, C, H, W), that alters about a share of the pixels."""
        ...


@dataclass(frozen=True)
class FlatSquares:
    """Add +-2 eps to every channel of a square, and return to the ball; begin with vertical stripes of +-eps.

    The uniform numbers are: the signs of the stripes, (C, W); then for a proposal row, column and C signs.
    """

    def n_uniforms(self, shape: Sequence[int]) -> tuple[int, int]:
        """Uniform numbers that the start takes, and that a proposal takes."""
        return shape[0] * shape[2], 2 + shape[0]

    def side(self, shape: Sequence[int], share: float) -> int:
        """Side of the square, in pixels."""
        return min(max(round((share * shape[1] * shape[2]) ** 0.5), 1), *shape[1:])

    def start(self, ball: Ball, images: Tensor, u: Tensor) -> Tensor:
        """Stripes."""
        stripes = signs(u).reshape(len(images), images.shape[1], 1, images.shape[3])
        return ball.project(images + ball.eps * stripes, images)

    def propose(self, ball: Ball, images: Tensor, best: Tensor, share: float, u: Tensor) -> Tensor:
        """One more square."""
        square = _Window.of(images, self.side(images.shape[1:], share), u[:, :2]).inside()
        return ball.project(best + 2 * ball.eps * (signs(u[:, 2:])[:, :, None, None] * square), images)


@dataclass(frozen=True)
class Bumps:
    """Move what one window carries of the change to another, there add a bump, and fill up to the radius.

    A bump is two halves of opposite sign, each highest in its middle, side by side or one above the other. The start
    tiles the image with bumps of a fifth of its shorter side.

    The uniform numbers are: for every tile, row by row, orientation and C signs; then for a proposal row and column of
    the window that grows, row and column of the window that is emptied, orientation and C signs.

    Attributes:
        offset: rows above and columns left of the first tile. By default the tiles are centred; the released code
            leaves (H - 5 (H div 5)) div 2, which for 8 pixels is 1 and pushes the last tiles over the border.
    """

    offset: int | None = None

    def __post_init__(self) -> None:
        if self.offset is not None:
            _check.integer("Bumps", "offset", self.offset)

    def n_uniforms(self, shape: Sequence[int]) -> tuple[int, int]:
        """Uniform numbers that the start takes, and that a proposal takes."""
        tile = self._tile(shape)
        return (shape[1] // tile) * (shape[2] // tile) * (1 + shape[0]), 5 + shape[0]

    def side(self, shape: Sequence[int], share: float) -> int:
        """Side of the windows, in pixels: odd, unless the image is smaller."""
        return min(max(round((share * shape[1] * shape[2]) ** 0.5), 3) | 1, *shape[1:])

    def start(self, ball: Ball, images: Tensor, u: Tensor) -> Tensor:
        """Tiles."""
        b, c, h, w = images.shape
        tile = self._tile((c, h, w))
        down, across = h // tile, w // tile
        top, left = ((n % tile) // 2 if self.offset is None else self.offset for n in (h, w))
        each = u.reshape(b, down * across, 1 + c)
        delta = torch.zeros_like(images)
        for number in range(down * across):
            row, column = top + number // across * tile, left + number % across * tile
            there = delta[:, :, row : row + tile, column : column + tile]
            sign = signs(each[:, number, 1:])[:, :, None, None]
            shape = _oriented(bump(tile, like=images), each[:, number, 0]) * sign
            there += shape[:, :, : there.shape[2], : there.shape[3]]
        return _at_radius(ball, images, delta)

    def propose(self, ball: Ball, images: Tensor, best: Tensor, share: float, u: Tensor) -> Tensor:
        """Mass from the second window to the first."""
        delta, c = best - images, images.shape[1]
        side = self.side(images.shape[1:], share)
        grows, empties = _Window.of(images, side, u[:, :2]), _Window.of(images, side, u[:, 2:4])
        first, second = grows.inside(), empties.inside()
        inside = delta * first
        shape = grows.place(_oriented(bump(side, like=images), u[:, 4])) * signs(u[:, 5:])[:, :, None, None]
        shape = shape + inside / (1e-12 + _per_channel(inside))
        free = (ball.eps**2 - delta.flatten(1).square().sum(1)).clamp_min(0) / c
        size = (per_image(free) + _per_channel(delta * (first | second)) ** 2).sqrt()
        shape = shape / (1e-12 + _per_channel(shape)) * size
        return _at_radius(ball, images, torch.where(first, shape, delta * ~second))

    def _tile(self, shape: Sequence[int]) -> int:
        return max(min(shape[1:]) // 5, 1)


def bump(side: int, *, like: Tensor) -> Tensor:
    """A bump of norm 1, (side, side): the upper half positive, the lower negative, each of norm 1 before scaling.

    Args:
        side: in pixels.
        like: dtype and device.

    Returns:
        The bump. In a half of p x side pixels the height at (i, j) is the sum of 1 / (k + 1)^2 over k from
        max(|i - p div 2|, |j - side div 2|) to max(p, side) div 2.
    """
    upper = side // 2
    parts = [_half(upper, side, like), -_half(side - upper, side, like)]
    whole = torch.cat(parts)
    return whole / whole.square().sum().sqrt()


def signs(u: Tensor) -> Tensor:
    """-1 below 1/2, else 1."""
    return torch.where(u < 0.5, -1.0, 1.0).to(u.dtype)


class _Window(NamedTuple):
    """Squares, one per image: rows and columns of all pixels counted from the square's corner."""

    rows: Tensor
    columns: Tensor
    side: int

    @classmethod
    def of(cls, images: Tensor, side: int, u: Tensor) -> _Window:
        """Everywhere with equal chance, for uniform numbers (R, 2)."""
        counted: list[Tensor] = []
        for n, number in zip(images.shape[2:], u.unbind(1), strict=True):
            corner = ((n - side + 1) * number).floor().clamp_max(n - side).long()
            counted.append(torch.arange(n, device=images.device)[None, :] - corner[:, None])
        return cls(counted[0], counted[1], side)

    def inside(self) -> Tensor:
        """Which pixels are in the square, (R, 1, H, W)."""
        rows, columns = ((k >= 0) & (k < self.side) for k in (self.rows, self.columns))
        return rows[:, None, :, None] & columns[:, None, None, :]

    def place(self, shape: Tensor) -> Tensor:
        """Put (R, 1, side, side) in the square, 0 outside, (R, 1, H, W)."""
        rows, columns = (k.clamp(0, self.side - 1) for k in (self.rows, self.columns))
        image = torch.arange(len(shape), device=shape.device)[:, None, None]
        return shape[image, 0, rows[:, :, None], columns[:, None, :]][:, None] * self.inside()


def _half(height: int, width: int, like: Tensor) -> Tensor:
    """Half of a bump, norm 1."""
    reach = max(height, width) // 2
    heights = [sum(1 / (k + 1) ** 2 for k in range(distance, reach + 1)) for distance in range(reach + 1)]
    i, j = torch.arange(height)[:, None], torch.arange(width)[None, :]
    distance = torch.maximum((i - height // 2).abs(), (j - width // 2).abs())
    half = torch.tensor(heights, dtype=like.dtype)[distance].to(like.device)
    return half / half.square().sum().sqrt() if height else half


def _oriented(shape: Tensor, u: Tensor) -> Tensor:
    """The bump for each image, transposed where u (R,) is above 1/2: (R, 1, side, side)."""
    return torch.where(per_image(u) > 0.5, shape.T, shape)


def _per_channel(x: Tensor) -> Tensor:
    """Norm of each channel, (R, C, 1, 1)."""
    return x.square().sum((2, 3), keepdim=True).sqrt()


def _at_radius(ball: Ball, images: Tensor, delta: Tensor) -> Tensor:
    """The image changed by eps in the direction of delta, in [0, 1]."""
    size = delta.flatten(1).square().sum(1).sqrt()
    return ball.project((images + ball.eps * delta / (per_image(size) + 1e-12)).clamp(0, 1), images)


HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10000 queries the altered share of the pixels is halved."""


@dataclass(frozen=True)
class Square(Attack):
    """Keep a proposed point where it has a larger loss than the best so far.

    Against a randomised model the loss is the mean over `eot` draws, and both points are compared on the same draws.
    On draws that never changed, a search of thousands of queries would fit those draws, not the model: every `renew`
    queries they are replaced, and the best point is asked again on the new ones. The candidates are the best point of
    the end and, if draws are renewed, of the best points at the renewals (and the start) the one with the largest mean
    loss on draws that had no part in its choice.

    The recorded losses are those of the start and of the point proposed at each query.

    Attributes:
        ball: threat model.
        n_queries: points tried after the start.
        p_init: share of the pixels that a proposal alters at first, in (0, 1].
        eot: draws per point.
        loss: what is maximised.
        renew: queries between renewals of the draws. None: none, as suits a deterministic model.
        moves: what is proposed; default FlatSquares for linf, Bumps for l2.
        finish: leave an image alone whose best point is misclassified in at least this share of `common` draws of
            common random numbers, in (0, 1]. Asked at renewals (without them, before each query), and only where all
            draws that the best point was last asked on were wrong. Default: go on to the end.
        common: draws of common random numbers.
    """

    ball: Ball
    n_queries: int = 5000
    p_init: float = 0.8
    eot: int = 1
    loss: Loss = margin
    renew: int | None = 20
    moves: Moves | None = None
    finish: float | None = None
    common: int = 32

    def __post_init__(self) -> None:
        if self.moves is None:
            only("Square", self.ball, "linf", "l2")
        _check.integer("Square", "n_queries", self.n_queries, low=1, high=2**23 - 1)
        _check.number("Square", "p_init", self.p_init, low=0.0, high=1.0, low_open=True)
        _check.integer("Square", "eot", self.eot, low=1)
        if self.renew is not None:
            _check.integer("Square", "renew", self.renew, low=1)
        check_finish("Square", self.finish)
        _check.integer("Square", "common", self.common, low=1)

    @property
    def proposer(self) -> Moves:
        """What is proposed."""
        if self.moves is not None:
            return self.moves
        return FlatSquares() if self.ball.norm == "linf" else Bumps()

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1 if self.renew is None else 2

    @property
    def cost(self) -> Cost:
        """Evaluations per image: of the start, the proposals and the renewals, and the most that `finish` can ask."""
        renewals = 0 if self.renew is None else (self.n_queries - 1) // self.renew
        forwards = (1 + self.n_queries + renewals) * self.eot
        if self.finish is None:
            return Cost(gradients=0, forwards=forwards, at_once=self.eot)
        chances = 1 + (self.n_queries - 1) // (self.renew or 1)
        return Cost(0, forwards=forwards + chances * self.common, at_once=max(self.eot, self.common))

    def share(self, query: int) -> float:
        """Share of the pixels that the proposal of a query, counted from 0, alters: halved along the way."""
        done = query * 10000 // self.n_queries
        return self.p_init / 2 ** sum(done > mark for mark in HALVINGS)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Try squares.

        The start uses step 0 of `init` and query i number i + 1, of which the lower 16 bits are the step and the others
        are added to the round. After the r-th renewal draws r * eot to (r + 1) * eot - 1 are used.
        """
        moves = self.proposer
        n_start, n_proposal = moves.n_uniforms(images.shape[1:])
        history = History(len(images), 1 + self.n_queries)
        search = _Search(self, queries, images, init, history)
        search.begin(moves.start(self.ball, images, search.uniforms(0, n_start)))
        for i in range(self.n_queries):
            if self.renew is not None and i and i % self.renew == 0:
                search.renew()
            if self.finish is not None and i % (self.renew or 1) == 0:
                search.leave(self.finish)
            if not len(search.at):
                break
            origin, best, u = images[search.at], search.best[search.at], search.uniforms(i + 1, n_proposal)
            search.compare(moves.propose(self.ball, origin, best, self.share(i), u))
            progress((i + 1) / self.n_queries)
        progress(1.0)
        found = [search.best] if self.renew is None else [search.best, search.renewed]
        return history.candidates(torch.stack(found), queries.spent)


class _Search:
    """The state of a search.

    Attributes:
        at: (R,), the images that it goes on for.
        best: (B, C, H, W).
        renewed: (B, C, H, W), of the points that draws were renewed for the one with the largest loss on them.
    """

    def __init__(self, attack: Square, queries: Queries, images: Tensor, init: Noise, history: History) -> None:
        """Begin.

        Args:
            attack: what is wanted.
            queries: the model.
            images: (B, C, H, W).
            init: randomness of the proposals.
            history: told of every point that is compared.
        """
        self.at = torch.arange(len(images), device=images.device)
        self._attack, self._queries, self._history, self._init = attack, queries, history, init
        self._draws = range(attack.eot)
        self.best = self.renewed = images.clone()
        self._value = self._renewed_value = images.new_full((len(images),), -torch.inf)
        # Whether all draws of the best point were wrong, and it has not been evaluated on common random numbers.
        self._promising = torch.zeros_like(self.at, dtype=torch.bool)

    def uniforms(self, number: int, n: int) -> Tensor:
        """Uniform numbers for the images in question, (R, n)."""
        noise, step = numbered(self._init.take(self.at), number)
        return noise.uniform(self.best.new_empty(len(self.at), n), kind=Kind.ATTACK, step=step)

    def begin(self, x: Tensor) -> None:
        """The start."""
        self.compare(x)
        self.renewed, self._renewed_value = self.best.clone(), self._value.clone()

    def compare(self, x: Tensor) -> None:
        """Keep points x, (R, C, H, W), where they are better."""
        value, wrong = self._ask(x)
        self._history.add(value, at=self.at)
        better = value > self._value[self.at]
        at = self.at[better]
        self.best[at], self._value[at], self._promising[at] = x[better], value[better], wrong[better]

    def renew(self) -> None:
        """Ask for the best points on new draws."""
        self._draws = range(self._draws.stop, self._draws.stop + self._attack.eot)
        best = self.best[self.at]
        value, wrong = self._ask(best)
        self._value[self.at], self._promising[self.at] = comparable(value), wrong
        better = value > self._renewed_value[self.at]
        at = self.at[better]
        self.renewed[at], self._renewed_value[at] = best[better], value[better]

    def leave(self, share: float) -> None:
        """Leave the images alone of which at least a share of common draws is wrong."""
        at, n_draws = self.at, self._attack.common
        beaten = self._queries.beaten(self.best[at], self._promising[at], share=share, n_draws=n_draws, at=at)
        self._promising[at] = False
        self._history.finish(at[beaten])
        self.at = at[~beaten]

    def _ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and whether all draws are wrong, (R,)."""
        answers = self._queries.answers(x, self._attack.loss, draws=self._draws, at=self.at)
        return mean(answers.losses), answers.wrong.all(1)
