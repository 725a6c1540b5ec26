"""The generator against published vectors, a second implementation and the normal law; addresses and nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depura import noise as noise_module
from depura._check import InputError, InputTypeError
from depura.noise import Kind, Noise, Stream, philox4x32
from toys import rand

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Random123's kat_vectors for philox4x32-10: counter, key, result."""


def plain_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in unbounded Python integers, after the paper's figure."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        high0, low0 = divmod(a * 0xD2511F53, 2**32)
        high1, low1 = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high1 ^ b ^ k, low1, high0 ^ d ^ m, low0
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def like(b: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.zeros(b, *(shape or (2, 3, 3)), dtype=dtype)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_published_vectors(counter: str, key: str, result: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([w]) for w in words(counter))
    k0, k1 = words(key)
    got = philox4x32((c0, c1, c2, c3), (k0, k1))
    assert tuple(int(w) for w in got) == words(result)
    assert plain_philox(words(counter), (k0, k1)) == words(result)


def test_second_implementation_on_random_counters() -> None:
    generator = np.random.RandomState(3)
    counters = generator.randint(0, 2**32, size=(200, 4), dtype=np.uint64).astype(np.int64)
    for key in [(0, 0), (1, 0), (0xFFFFFFFF, 5), (123456789, 0x80000000)]:
        c0, c1, c2, c3 = torch.from_numpy(counters).unbind(1)
        got = torch.stack(philox4x32((c0, c1, c2, c3), key), dim=1).tolist()
        assert got == [list(plain_philox(tuple(int(v) for v in row), key)) for row in counters]


def test_counter_layout() -> None:
    """counter = (element // 4, image, draw, stream << 28 | kind << 24 | round << 16 | step), key = seed low, high."""
    seed = 0x0123456789ABCDEF
    noise = Noise(seed, images=(7, 2**32 - 1), draws=(3, 2**31), stream=Stream.SELECT, round=200)
    got = noise.bits((2, 1, 3, 3), kind=Kind.GUIDANCE, step=40000)
    tag = (3 << 28) | (2 << 24) | (200 << 16) | 40000
    for row, (image, draw) in enumerate([(7, 3), (2**32 - 1, 2**31)]):
        expected = [
            plain_philox((element // 4, image, draw, tag), (0x89ABCDEF, 0x01234567))[element % 4]
            for element in range(9)
        ]
        assert got[row].flatten().tolist() == expected


def test_box_muller_from_bits() -> None:
    noise = Noise(11, images=(0, 5, 9), draws=4)
    bits = noise.bits((3, 40), kind=Kind.REVERSE, step=8).numpy().reshape(-1, 2, 2)
    u = (bits + 0.5) / 2.0**32
    radius = np.sqrt(-2 * np.log(u[:, :, 0]))
    expected = np.stack([radius * np.cos(2 * np.pi * u[:, :, 1]), radius * np.sin(2 * np.pi * u[:, :, 1])], axis=-1)
    got = noise(torch.zeros(3, 40, dtype=torch.float64), kind=Kind.REVERSE, step=8)
    np.testing.assert_allclose(got.numpy().ravel(), expected.ravel(), rtol=0, atol=5e-15)


def test_uniform_from_bits() -> None:
    noise = Noise(11, images=(0, 5))
    bits = noise.bits((2, 7), kind=Kind.ATTACK, step=2).numpy()
    got = noise.uniform(torch.zeros(2, 7, dtype=torch.float64), kind=Kind.ATTACK, step=2)
    np.testing.assert_array_equal(got.numpy(), (bits + 0.5) / 2**32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_are_the_rounded_float64(dtype: torch.dtype) -> None:
    noise = Noise(5, images=tuple(range(4)))
    exact = noise(like(4, 1, 20, 20), kind=Kind.FORWARD).numpy()
    got = noise(like(4, 1, 20, 20, dtype=dtype), kind=Kind.FORWARD)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.numpy(), exact.astype(got.numpy().dtype))


def test_a_draw_does_not_depend_on_its_company() -> None:
    ids, draws = (40, 3, 999, 0, 17, 2**32 - 1, 3), (0, 1, 0, 5, 2, 0, 2)
    batch = Noise(2, images=ids, draws=draws)
    together = batch(like(7), kind=Kind.REVERSE, step=3)
    for row in range(7):
        alone = Noise(2, images=(ids[row],), draws=draws[row])(like(1), kind=Kind.REVERSE, step=3)
        assert torch.equal(alone[0], together[row])
    order = [6, 0, 3, 3, 1]
    assert torch.equal(batch.take(order)(like(5), kind=Kind.REVERSE, step=3), together[order])
    first = Noise(2, images=(40,))
    small, large = first(like(1, 5), kind=Kind.REVERSE), first(like(1, 50), kind=Kind.REVERSE)
    assert torch.equal(small, large[:, :5])


def test_expand_split_draw_and_streams_address_the_same_draws() -> None:
    noise = Noise(2, images=(8, 1), draws=(4, 6))

    def one(image: int, draw: int, stream: Stream = Stream.DEPLOY, round: int = 0) -> torch.Tensor:
        return Noise(2, images=(image,), draws=draw, stream=stream, round=round)(like(1), kind=Kind.FORWARD)[0]

    expanded = noise.expand([9, 2, 3])(like(6), kind=Kind.FORWARD)
    assert torch.equal(expanded, torch.stack([one(i, d) for i in (8, 1) for d in (9, 2, 3)]))
    divided = noise.split(3)(like(6), kind=Kind.FORWARD)
    assert torch.equal(divided, torch.stack([one(i, d * 3 + j) for i, d in ((8, 4), (1, 6)) for j in range(3)]))
    single = Noise(2, images=(8, 1), draws=5).split(2)(like(4), kind=Kind.FORWARD)
    assert torch.equal(single, torch.stack([one(i, d) for i in (8, 1) for d in (10, 11)]))
    assert torch.equal(noise.draw(7)(like(2), kind=Kind.FORWARD), torch.stack([one(8, 7), one(1, 7)]))
    moved = noise.on(Stream.NULL).in_round(3)(like(2), kind=Kind.FORWARD)
    assert torch.equal(moved, torch.stack([one(8, 4, Stream.NULL, 3), one(1, 6, Stream.NULL, 3)]))


@pytest.mark.parametrize(
    ("draw", "n", "first"),
    [
        (0, 3, 0),
        (7, 3, 21),
        (2**31 - 1, 1, 2**31 - 1),
        (2**30 - 1, 2, 2**31 - 2),
        (2**31, 1, 2**31),
        (2**31, 3, 2**31),
        (2**31 + 7, 3, 2**31 + 21),
        (2**32 - 1, 1, 2**32 - 1),
        (2**31 + 2**30 - 1, 2, 2**32 - 2),
    ],
)
def test_a_divided_draw_stays_in_its_block(draw: int, n: int, first: int) -> None:
    """Among them the last draws of both blocks that can be divided."""
    assert Noise(0, images=(5,), draws=draw).split(n).draws == tuple(range(first, first + n))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_blocks_and_draws_stay_apart_when_they_are_divided(n: int, m: int, data: st.DataObject) -> None:
    """Divided once, and once more, as a vote over averaged purifications does; in plain integers."""
    half = 2**31
    within = st.integers(0, half // (n * m) - 1)
    numbers = st.one_of(within, within.map(lambda d: half + d))
    draws = data.draw(st.lists(numbers, min_size=1, max_size=6, unique=True))
    once = Noise(0, images=(0,) * len(draws), draws=tuple(draws)).split(n)
    twice = once.split(m)
    assert isinstance(once.draws, tuple)
    assert isinstance(twice.draws, tuple)
    for divided, parts in ((once.draws, n), (twice.draws, n * m)):
        assert len(set(divided)) == len(draws) * parts, "two draws share a sub-draw"
        owners = [draw for draw in draws for _ in range(parts)]
        assert all((number >= half) == (draw >= half) for number, draw in zip(divided, owners, strict=True))
    lower = [k for k, draw in enumerate(draws) if draw < half]
    assert [once.draws[k * n : (k + 1) * n] for k in lower] == [
        tuple(range(draws[k] * n, (draws[k] + 1) * n)) for k in lower
    ]


def test_every_field_of_the_address_changes_every_draw() -> None:
    base = Noise(2, images=(8,), draws=1)
    draws = {"base": base(like(1), kind=Kind.REVERSE, step=1)}
    for name, change in [
        ("seed, low word", {"seed": 3}),
        ("seed, high word", {"seed": 2 + 2**32}),
        ("image", {"images": (9,)}),
        ("draw", {"draws": 2}),
        ("round", {"round": 1}),
    ]:
        draws[name] = replace(base, **change)(like(1), kind=Kind.REVERSE, step=1)
    draws |= {f"{s!r}": base.on(s)(like(1), kind=Kind.REVERSE, step=1) for s in Stream if s != Stream.DEPLOY}
    draws |= {f"{k!r}": base(like(1), kind=k, step=1) for k in Kind if k != Kind.REVERSE}
    draws |= {f"step {s}": base(like(1), kind=Kind.REVERSE, step=s) for s in (0, 2, 65535)}
    values = torch.stack(list(draws.values())).flatten(1)
    assert len(values.unique()) == values.numel(), "two addresses, or two elements of one, share a draw"


def test_streams_kinds_rounds_and_steps_never_share_bits() -> None:
    words_seen: set[tuple[int, ...]] = set()
    addresses = [(s, k, r, i) for s in Stream for k in Kind for r in (0, 1, 255) for i in (0, 1, 255, 256, 65535)]
    for stream, kind, number, step in addresses:
        noise = Noise(0, images=(0, 1), stream=stream, round=number)
        words_seen |= {tuple(b) for b in noise.bits((2, 4), kind=kind, step=step).tolist()}
    assert len(words_seen) == 2 * len(addresses)


def test_normality() -> None:
    n = 200_000
    x = Noise(1, images=(0,))(torch.zeros(1, n, dtype=torch.float64), kind=Kind.REVERSE)[0].numpy()
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-3
    for moment, exact, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]:
        assert abs((x**moment).mean() - exact) < 4 * (variance / n) ** 0.5, f"moment {moment}"
    for lag in range(1, 9):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4 / n**0.5, f"lag {lag}"
        assert abs((x[lag:] ** 2 * x[:-lag] ** 2).mean() - 1) < 4 * 8**0.5 / n**0.5, f"lag {lag}, squares"


@pytest.mark.slow
def test_normality_across_addresses() -> None:
    """One element at many addresses: images, draws, steps and seeds are as random as elements are."""
    n, one = 20_000, torch.zeros(1, 1, dtype=torch.float64)
    column = torch.zeros(n, 1, dtype=torch.float64)
    by_image = Noise(1, images=tuple(range(n)))(column, kind=Kind.FORWARD)[:, 0]
    by_draw = Noise(1, images=(0,) * n, draws=tuple(range(n)))(column, kind=Kind.FORWARD)[:, 0]
    by_step = torch.cat([Noise(1, images=(0,))(one, kind=Kind.FORWARD, step=s)[0] for s in range(2000)])
    by_seed = torch.cat([Noise(s, images=(0,))(one, kind=Kind.FORWARD)[0] for s in range(2000)])
    for x in (by_image, by_draw, by_step, by_seed):
        assert scipy.stats.kstest(x.numpy(), "norm").pvalue > 1e-3
        assert abs(float((x[1:] * x[:-1]).mean())) < 4 / len(x) ** 0.5
    assert abs(float((by_image[1:] * by_draw[1:]).mean())) < 4 / n**0.5


def test_global_generators_are_left_alone() -> None:
    def states() -> tuple[bytes, str, str]:
        return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())

    before = states()
    noise = Noise(3, images=(1, 2))
    noise(like(2), kind=Kind.FORWARD)
    noise.uniform(like(2), kind=Kind.ATTACK)
    noise.expand([1, 2]).split(2).take([0, 1]).bits((2, 5), kind=Kind.FORWARD)
    assert states() == before
    Noise.fresh(2)
    after = states()
    assert after[0] != before[0], "fresh draws from torch's generator"
    assert after[1:] == before[1:]


def test_fresh_follows_manual_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(12)
        first, second = Noise.fresh(3), Noise.fresh(3)
        torch.manual_seed(12)
        again = Noise.fresh(3)
    assert first == again
    assert first.seed != second.seed
    assert first.images == (0, 1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Noise(-1, images=(0,)), r"Noise: expected seed from 0 to 18446744073709551615, got -1"),
        (lambda: Noise(2**64, images=(0,)), r"Noise: expected seed .* got 18446744073709551616"),
        (lambda: Noise(0, images=()), r"Noise: expected at least one image id, got none"),
        (lambda: Noise(0, images=(0, -1)), r"Noise: expected image ids in \[0, 2\^32\), got -1 to 0"),
        (lambda: Noise(0, images=(2**32,)), r"Noise: expected image ids in \[0, 2\^32\), got 4294967296"),
        (lambda: Noise(0, images=(0,), draws=-1), r"Noise: expected draw numbers in \[0, 2\^32\), got -1"),
        (lambda: Noise(0, images=(0,), draws=2**32), r"Noise: expected draw numbers in \[0, 2\^32\)"),
        (lambda: Noise(0, images=(0, 1), draws=(1,)), r"Noise: expected one draw number for each of 2 images, got 1"),
        (lambda: Noise(0, images=(0,), round=256), r"Noise: expected round from 0 to 255, got 256"),
        (lambda: Noise(0, images=(0,))(like(2), kind=Kind.FORWARD), r"Noise: expected a batch of 1 rows.* got 2"),
        (lambda: Noise(0, images=(0,)).bits((3, 1), kind=Kind.FORWARD), r"Noise: expected a batch of 1 rows.* got 3"),
        (lambda: Noise(0, images=(0,)).uniform(like(2), kind=Kind.FORWARD), r"Noise: expected a batch of 1 rows"),
        (lambda: Noise(0, images=(0,))(like(1), kind=Kind.FORWARD, step=65536), r"expected step .*65535, got 65536"),
        (lambda: Noise(0, images=(0,))(like(1), kind=Kind.FORWARD, step=-1), r"expected step .*65535, got -1"),
        (lambda: Noise(0, images=(0,)).draw(-2), r"Noise: expected draw numbers"),
        (
            lambda: Noise(0, images=(0, 1), draws=(3, 2**30)).split(2),
            r"Noise\.split: expected draws below number 1073741824 of their block, .* into 2 .* got number 1073741824",
        ),
        (lambda: Noise(0, images=(0,), draws=2**31 + 2**30).split(2), r"Noise\.split: expected draws below number"),
        (lambda: Noise(0, images=(0,)).split(2**31 + 1), r"Noise\.split: expected draws below number 0 "),
        (lambda: Noise(0, images=(0,)).split(0), r"Noise\.split: expected sub-draws at least 1, got 0"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_seed_that_is_no_whole_number_is_a_type_error() -> None:
    with pytest.raises(InputTypeError, match=r"expected seed to be a whole number, got float 1\.5"):
        Noise(1.5, images=(0,))  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_draws() -> None:
    noise = Noise(77, images=tuple(range(16)), draws=3, round=2)
    kwargs = {"kind": Kind.REVERSE, "step": 12}
    bits = noise.bits((16, 3, 32, 32), device="cuda", **kwargs).cpu()
    assert torch.equal(bits, noise.bits((16, 3, 32, 32), **kwargs))
    cpu = rand(16, 3, 32, 32)
    exact = noise(cpu, **kwargs)
    assert float((noise(cpu.cuda(), **kwargs).cpu() - exact).abs().max()) <= 5e-15
    single = noise(cpu.float().cuda(), **kwargs).cpu()
    assert float((single - exact.float()).abs().max()) <= 5e-7
    assert float((single != exact.float()).double().mean()) <= 1e-4


def test_addresses_are_taken_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from the host between two steps would make the host wait for the device."""
    noise, x = Noise(3, (900001, 900002), draws=(7, 900003)), like(2)
    first = noise(x, kind=Kind.REVERSE, step=0)
    kept = first.clone()

    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("a tensor from the host")

    monkeypatch.setattr(torch, "tensor", refuse)
    monkeypatch.setattr(torch, "as_tensor", refuse)
    later = [noise.later(r)(x, kind=Kind.REVERSE, step=k) for r in range(2) for k in range(3)]
    assert torch.equal(later[0], kept)
    assert len({tuple(z.flatten().tolist()) for z in later}) == 6


@pytest.mark.parametrize("at_once", [1, 2 * 3 * 20, 5 * 3 * 20, 2**19])
def test_draws_that_are_made_ahead_are_the_same(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and back, in other shapes and kinds, for other rows, in later rounds, and at steps that nobody told."""
    monkeypatch.setattr(noise_module, "_AT_ONCE", at_once)
    plain, x = Noise(3, (8, 5, 9), draws=(0, 1, 0)), torch.zeros(3, 1, 4, 5)
    steps = [3, 4, 6, 7, 11, 12, 13]
    ahead = plain.later(0, ahead=steps)
    assert ahead == plain
    for kind in (Kind.REVERSE, Kind.GUIDANCE, Kind.FORWARD):
        for step in [*steps, *reversed(steps), 5, 0]:
            assert torch.equal(ahead(x, kind=kind, step=step), plain(x, kind=kind, step=step))
            wide = x.expand(-1, 3, -1, -1).double()
            assert torch.equal(ahead(wide, kind=kind, step=step), plain(wide, kind=kind, step=step))
    for change in (lambda n: n.take([2, 0]), lambda n: n.later(2), lambda n: n.draw(4), lambda n: n.on(Stream.EOT)):
        some, like = change(ahead), x[: len(change(ahead))]
        for step in steps:
            assert torch.equal(
                some(like, kind=Kind.REVERSE, step=step), change(plain)(like, kind=Kind.REVERSE, step=step)
            )


def test_draws_ahead_are_made_in_one_call_and_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    philox = noise_module.philox4x32

    def counting(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return philox(*args, **more)

    monkeypatch.setattr(noise_module, "philox4x32", counting)
    noise, x = Noise(3, (8, 5)).later(0, ahead=range(6)), torch.zeros(2, 1, 4, 4)
    first = noise(x, kind=Kind.REVERSE, step=2)
    kept = first.clone()
    first.zero_()
    for step in range(6):
        noise(x, kind=Kind.REVERSE, step=step)
    assert torch.equal(noise(x, kind=Kind.REVERSE, step=2), kept)
    assert len(calls) == 1
