"""The draws of the papers, against the Mersenne Twister and its shuffle written out here."""

import math

import numpy as np
import pytest
import torch

import depura
from depura import InputError


def twister(seed: int) -> "list[int]":
    """The state after seeding by a number (Matsumoto and Nishimura, 2002)."""
    state = [seed]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)
    return state


class Words:
    """Its 32-bit outputs."""

    def __init__(self, seed: int) -> None:
        self.state, self.at = twister(seed), 624

    def __call__(self) -> int:
        if self.at == 624:
            for i in range(624):
                y = (self.state[i] & 0x80000000) | (self.state[(i + 1) % 624] & 0x7FFFFFFF)
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
            self.at = 0
        y = self.state[self.at]
        self.at += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)


def drawn(n: int, images: int, seed: int) -> tuple[int, ...]:
    """Shuffle 0 .. n-1 from the end, partners by rejection under a mask of bits, and take the first."""
    word, rows = Words(seed), list(range(n))
    for i in range(n - 1, 0, -1):
        mask = 2 ** math.ceil(math.log2(i + 1)) - 1
        j = word() & mask
        while j > i:
            j = word() & mask
        rows[i], rows[j] = rows[j], rows[i]
    return tuple(rows[:images])


@pytest.mark.parametrize(("n", "images", "seed"), [(10_000, 512, 0), (10_000, 64, 7), (50_000, 16, 31), (7, 7, 3)])
def test_draws_of_the_papers(n: int, images: int, seed: int) -> None:
    assert depura.subset(n, images, seed=seed) == drawn(n, images, seed)


def test_diffpures_draws_hold_some_images_twice() -> None:
    for n, images, seeds, distinct in ((10_000, 64, range(8), 504), (50_000, 16, range(32), 510)):
        rows = depura.diffpure_subset(n, images, seeds=seeds)
        assert len(rows) == len(set(rows)) == distinct
        assert set(rows) == {row for seed in seeds for row in depura.subset(n, images, seed=seed)}
        assert rows[:images] == depura.subset(n, images, seed=seeds[0])


@pytest.mark.parametrize(("n", "images", "seed"), [(10, 11, 0), (10, 0, 0), (0, 1, 0), (10, 1, -1), (10, 1, 2**32)])
def test_what_cannot_be_drawn_is_refused(n: int, images: int, seed: int) -> None:
    with pytest.raises(InputError):
        depura.subset(n, images, seed=seed)


def test_take_keeps_ids_and_order() -> None:
    digits = depura.load_digits("test")
    some = digits.take(np.array([4, 0, 9])).take([2, 0])
    assert some.ids == (digits.ids[9], digits.ids[4])
    assert torch.equal(some.images, digits.images[[9, 4]])
    assert torch.equal(some.labels, digits.labels[[9, 4]])
    for rows in ([], [1, 1], [500], [-1]):
        with pytest.raises(InputError, match=r"ImageSet\.take"):
            digits.take(rows)
