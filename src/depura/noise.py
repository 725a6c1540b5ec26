"""Addressable Gaussian noise: every draw is a pure function of its address.

The address is (seed, image id, draw, stream, kind, round, step, element). The bits come from Philox4x32-10, the
counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011:

    key     = seed (64 bits)
    counter = (element // 4, image id, draw, stream << 28 | kind << 24 | round << 16 | step)      4 x 32 bits

The packing is one to one, so no two addresses share bits. A draw therefore depends on nothing else: not on the batch,
its order, the device, the worker, or what was drawn before. The global generators are never touched.

Draw numbers are two blocks, [0, 2^31) and [2^31, 2^32). A draw that is divided (`Noise.split`) stays in its block.
Attacks search on draws of the lower block and compare points on draws of the upper one, so the two share no draw,
however many purifications a deployed rule makes of each.

Integer operations are exact, so the bits (and uniforms) are identical on every device. Normals are made from pairs of
words by Box and Muller's transform in float64 and then rounded to the asked dtype. log, cos and sin of different maths
libraries may differ in the last bit of float64; in float32 that changes a value only where the float64 value lies
within such an error of a rounding boundary (about one value in 10^8, by one unit in the last place).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from depura import _check

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
BLOCK = 2**31
"""Draw numbers in each of the two blocks; the upper one begins here."""
_AT_ONCE = 2**19
"""Numbers that are made ahead: enough that operations are long, few enough that they stay in a processor's cache."""


class Kind(IntEnum):
    """What a draw is for. Different kinds never share bits."""

    FORWARD = 0
    REVERSE = 1
    GUIDANCE = 2
    T_STAR = 3
    AUGMENT = 4
    ATTACK = 5
    FOREIGN = 6


_Form = tuple[Kind, torch.Size, torch.dtype, torch.device]
"""Draws that are kept are told apart by it."""


class Stream(IntEnum):
    """Who draws. Scoring, attacking and deploying never share bits (evaluation on streams of its own)."""

    DEPLOY = 0
    INIT = 1
    EOT = 2
    SELECT = 3
    REPORT = 4
    NULL = 5
    PROBE = 6
    TRAIN = 7
    VERIFY = 8


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], *, n_rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four 32-bit words from a 128-bit counter and a 64-bit key.

    Salmon et al. 2011, section 3.3. 32-bit words live in int64 tensors; the 64-bit product of two of them wraps in
    int64 without losing bits.

    Args:
        counter: four int64 tensors of values in [0, 2^32), broadcastable against each other.
        key: two integers in [0, 2^32).
        n_rounds: rounds; 10 is the published safe choice.

    Returns:
        Four int64 tensors of values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(n_rounds):
        # The low words are masked where they are used, one round later.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high2 = p1 >> 32, p0 >> 32
        # In place where the shapes are already those of the result.
        c0 = high0.bitwise_xor_(c1) if high0.shape == c1.shape else high0 ^ c1
        c2 = high2.bitwise_xor_(c3) if high2.shape == c3.shape else high2 ^ c3
        c0, c2 = c0.bitwise_xor_(k0).bitwise_and_(_MASK), c2.bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


@dataclass(frozen=True)
class Noise:
    """The noise of one batch: row b belongs to image `images[b]` and draw `draws[b]`.

    Equal addresses give equal noise, alone or in a batch, on one worker or ten.

    Attributes:
        seed: master seed, in [0, 2^64).
        images: one id per row of the batch, each in [0, 2^32). The id of an image is its identity in its data set.
        draws: one draw number per row, or a single number for all rows, each in [0, 2^32).
        stream: who draws.
        round: which round of a multi-round purifier, in [0, 256).
    """

    seed: int
    images: tuple[int, ...]
    draws: int | tuple[int, ...] = 0
    stream: Stream = Stream.DEPLOY
    round: int = 0
    _ahead: tuple[int, ...] = field(default=(), repr=False, compare=False)
    _made: dict[_Form, tuple[tuple[int, ...], Tensor]] = field(
        default_factory=dict[_Form, tuple[tuple[int, ...], Tensor]], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check.integer("Noise", "seed", self.seed, high=2**64 - 1)
        _check.integer("Noise", "round", self.round, high=255)
        if not self.images:
            _check.fail("Noise", "at least one image id", "none")
        draws = (self.draws,) if isinstance(self.draws, int) else self.draws
        if not isinstance(self.draws, int) and len(draws) != len(self.images):
            _check.fail("Noise", f"one draw number for each of {len(self.images)} images", f"{len(draws)}")
        for name, values in (("image ids", self.images), ("draw numbers", draws)):
            if set(map(type, values)) != {int}:
                kinds = ", ".join(sorted({kind.__name__ for kind in map(type, values)}))
                raise _check.InputTypeError(
                    f"Noise: expected {name} of type int, got {kinds}. Convert them with int()."
                )
            if min(values) < 0 or max(values) > _MASK:
                _check.fail("Noise", f"{name} in [0, 2^32)", f"{min(values)} to {max(values)}")

    @classmethod
    def fresh(cls, batch: int) -> Noise:
        """Noise with a seed from torch's global generator, so that `torch.manual_seed` works for casual use.

        Every public function that draws also takes a `Noise`; only where none is given is this called, and only here
        does depura advance the global generator (by one integer).

        Args:
            batch: number of rows.

        Returns:
            Noise for image ids 0 .. batch-1.
        """
        return cls(seed=int(torch.randint(0, 2**63 - 1, ()).item()), images=tuple(range(batch)))

    def __len__(self) -> int:
        return len(self.images)

    def on(self, stream: Stream) -> Noise:
        """The same addresses in another stream."""
        return replace(self, stream=stream)

    def in_round(self, number: int) -> Noise:
        """The same addresses in another round."""
        return replace(self, round=number)

    def later(self, rounds: int, *, ahead: Iterable[int] = ()) -> Noise:
        """The same addresses, some rounds later.

        Args:
            rounds: how many.
            ahead: steps at which a reverse process draws, in the order in which it does (or the reverse). The draws of
                several of them are made in one call and kept until later ones are; they are the same to the last bit.

        Returns:
            The noise.
        """
        return replace(self, round=self.round + rounds, _ahead=tuple(ahead))

    def draw(self, number: int) -> Noise:
        """The same images, all at draw `number`."""
        return replace(self, draws=number)

    def take(self, rows: Iterable[int] | Tensor) -> Noise:
        """The noise of some rows of the batch, in the given order; numbers, or a tensor of them (R,)."""
        rows = cast("list[int]", rows.tolist()) if isinstance(rows, Tensor) else list(rows)
        draws = self.draws if isinstance(self.draws, int) else tuple(self.draws[r] for r in rows)
        return replace(self, images=tuple(self.images[r] for r in rows), draws=draws)

    def expand(self, draws: Sequence[int]) -> Noise:
        """Several draws per image, folded into the batch: row b becomes rows b*m .. b*m+m-1 (as repeat_interleave).

        Args:
            draws: m draw numbers; each image is given all of them.

        Returns:
            Noise of len(self) * m rows.
        """
        return replace(
            self, images=tuple(image for image in self.images for _ in draws), draws=tuple(draws) * len(self.images)
        )

    def split(self, n: int) -> Noise:
        """Divide each draw into n sub-draws of the same block, folded into the batch (for votes).

        Draw d of the lower block becomes d*n .. d*n+n-1. Draw 2^31 + d becomes 2^31 + d*n .. 2^31 + d*n+n-1. Different
        draws have different sub-draws.

        Args:
            n: sub-draws per draw.

        Returns:
            Noise of len(self) * n rows.

        Raises:
            InputError: no sub-draws, or a sub-draw beyond the block of its draw.
        """
        _check.integer("Noise.split", "sub-draws", n, low=1)
        draws = torch.tensor((self.draws,) * len(self) if isinstance(self.draws, int) else self.draws)
        first = draws // BLOCK * BLOCK
        place = draws - first
        most = int(place.max())
        if most >= BLOCK // n:
            _check.fail(
                "Noise.split",
                f"draws below number {BLOCK // n} of their block, as each is divided into {n} and a block has 2^31",
                f"number {most}",
                "Use fewer draws.",
            )
        divided = (first + place * n)[:, None] + torch.arange(n)
        images = tuple(image for image in self.images for _ in range(n))
        return replace(self, images=images, draws=tuple(cast("list[int]", divided.flatten().tolist())))

    def bits(self, shape: Sequence[int], *, kind: Kind, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """Uniform 32-bit words.

        Args:
            shape: (B, ...), with B = len(self).
            kind: what the draw is for.
            step: step of the reverse process, in [0, 65536).
            device: where to make them.

        Returns:
            int64 tensor of the given shape, values in [0, 2^32); the same on every device.
        """
        words = self._words(shape, kind, (step,), torch.device(device))
        n = math.prod(shape[1:])
        return torch.stack(words, dim=3).flatten(2)[..., :n].reshape(tuple(shape))

    def uniform(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        """Uniform draws in (0, 1), of the shape, dtype and device of `like` (float32 rounding may reach 1).

        Args:
            like: tensor of shape (B, ...).
            kind: what the draw is for.
            step: step of the reverse process.

        Returns:
            Tensor like `like`.
        """
        words = self.bits(like.shape, kind=kind, step=step, device=like.device)
        return ((words.to(torch.float64) + 0.5) * 2.0**-32).to(like.dtype).to(like.device)

    def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        """Standard normal draws, of the shape, dtype and device of `like`.

        Args:
            like: tensor of shape (B, ...), with B = len(self).
            kind: what the draw is for.
            step: step of the reverse process, in [0, 65536).

        Returns:
            Tensor like `like`; independent N(0, 1). On the meta device, where there are no values, its shape alone.
        """
        if like.is_meta:
            _ = self._words(like.shape, kind, (step,), like.device)
            return torch.empty_like(like)
        if kind not in (Kind.REVERSE, Kind.GUIDANCE) or step not in self._ahead:
            return self._normal(like, kind, (step,))[0]
        form = (kind, like.shape, like.dtype, like.device)
        steps, draws = self._made.get(form, ((), like))
        if step not in steps:
            n = max(1, _AT_ONCE // max(1, like.numel()))
            first = self._ahead.index(step) // n * n
            steps = self._ahead[first : first + n]
            draws = self._normal(like, kind, steps)
            self._made[form] = (steps, draws)
        return draws[steps.index(step)].clone()

    def _normal(self, like: Tensor, kind: Kind, steps: tuple[int, ...]) -> Tensor:
        """The draws of some steps, (len(steps), *like.shape)."""
        words = self._words(like.shape, kind, steps, like.device)
        u0, u1, u2, u3 = (w.to(torch.float64).add_(0.5).mul_(2.0**-32) for w in words)
        blocks = torch.empty(*u0.shape, 4, dtype=u0.dtype, device=u0.device)
        for first, radius, angle in ((0, u0, u1), (2, u2, u3)):
            r, a = radius.log_().mul_(-2.0).sqrt_(), angle.mul_(2.0 * math.pi)
            torch.mul(r, torch.cos(a), out=blocks[..., first])
            torch.mul(r, a.sin_(), out=blocks[..., first + 1])
        normal = blocks.flatten(2)[..., : math.prod(like.shape[1:])].reshape(len(steps), *like.shape)
        return normal.to(like.dtype).to(like.device)

    def _words(
        self, shape: Sequence[int], kind: Kind, steps: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four words for each block of four of the n elements of a row, each of shape (len(steps), B, ceil(n / 4))."""
        if shape[0] != len(self.images):
            rows = f"a batch of {len(self.images)} rows, one per image id"
            _check.fail("Noise", rows, f"{shape[0]}", "Use Noise.take or expand.")
        for step in steps:
            _check.integer("Noise", "step", step, high=65535)
        if device.type == "meta":  # shapes alone, which a hundred operations would take long to find
            words = torch.empty(len(steps), shape[0], (math.prod(shape[1:]) + 3) // 4, dtype=torch.int64, device=device)
            return words, words, words, words
        if device.type == "mps":  # which has no float64
            device = torch.device("cpu")
        block = torch.arange((math.prod(shape[1:]) + 3) // 4, device=device)
        image = _column(self.images, device)
        draws = _column((self.draws,) if isinstance(self.draws, int) else self.draws, device)
        where = int(self.stream) << 28 | int(kind) << 24 | self.round << 16
        tag = torch.cat([torch.full((1, 1, 1), where | step, device=device) for step in steps])
        key = (self.seed & _MASK, self.seed >> 32)
        return philox4x32((block, image, draws, tag), key)


@lru_cache(maxsize=32)
def _column(values: tuple[int, ...], device: torch.device) -> Tensor:
    """(B, 1). Kept for the next step: a copy from the host makes it wait for the device. Not to be written to."""
    return torch.tensor(values, device=device)[:, None]
