"""Noise levels against printed tables, numpy formulas and diffusers; step tables against the published grids."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from diffusers import DDPMScheduler, EDMEulerScheduler

from depura._check import InputError
from depura.diffusion.schedules import (
    EDM,
    VE,
    VP,
    Cosine,
    DiscreteLinear,
    IndexLabel,
    SigmaLabel,
    Step,
    TableLabel,
    TimeLabel,
    TruncatedLabel,
    ddpm_steps,
    karras_steps,
    log_snr_steps,
    steps_at,
    uniform_steps,
    unit_scale,
    vp_scale,
)

TABLE = """
0.001  0    0.999900  0.999890  0.0100   0.0100
0.010  9    0.998105  0.998007  0.0436   0.0435
0.030  29   0.988400  0.988116  0.1083   0.1077
0.036  35   0.983976  0.983640  0.1276   0.1266
0.050  49   0.971016  0.970567  0.1728   0.1702
0.075  74   0.939121  0.938503  0.2546   0.2467
0.100  99   0.897018  0.896282  0.3388   0.3209
0.125  124  0.846180  0.845380  0.4264   0.3922
0.150  149  0.788321  0.787513  0.5182   0.4601
0.200  199  0.659039  0.658362  0.7193   0.5839
0.400  399  0.195146  0.195538  2.0309   0.8971
0.500  499  0.078587  0.079064  3.4241   0.9599
0.800  799  0.001532  0.001584  25.53    0.9992
"""
"""t, index i = 1000 t - 1, abar_i, abar(t), sigma_i = sqrt((1 - abar_i) / abar_i), sqrt(1 - abar_i)."""


def agrees(value: float, printed: str) -> bool:
    """Whether a number rounds to its printed digits."""
    digits = len(printed.split(".")[1])
    return abs(value - float(printed)) <= 0.5000001 * 10.0**-digits


@pytest.mark.parametrize("row", TABLE.strip().splitlines())
def test_printed_table(row: str) -> None:
    t, index, abar_i, abar_t, sigma_i, std_i = row.split()
    discrete, continuous = DiscreteLinear(), VP()
    i = float(index)
    assert int(index) == round(1000 * float(t)) - 1
    assert agrees(discrete.abar(int(index)), abar_i)
    assert agrees(discrete.scale(i) ** 2, abar_i)
    assert agrees(continuous.scale(float(t)) ** 2, abar_t)
    assert agrees(discrete.sigma(i), sigma_i)
    assert agrees(discrete.sigma(i) * discrete.scale(i), std_i)
    assert agrees(1 / (1 + continuous.sigma(float(t)) ** 2), abar_t)


def test_discrete_linear_against_numpy_and_diffusers() -> None:
    schedule = DiscreteLinear()
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ours = np.array([schedule.abar(i) for i in range(1000)])
    np.testing.assert_allclose(ours, abar, rtol=1e-12)
    some = [*range(0, 1000, 9), 998]
    np.testing.assert_allclose([schedule.sigma(float(i)) for i in some], np.sqrt(1 / abar - 1)[some], rtol=1e-11)
    np.testing.assert_allclose([schedule.scale(float(i)) for i in some], np.sqrt(abar)[some], rtol=1e-12)
    theirs = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)
    assert schedule.abar(-1) == 1
    assert schedule.sigma(-1) == 0
    assert schedule.scale(-1) == 1


@pytest.mark.parametrize("n", [1000, 4000])
def test_cosine_against_its_curve_and_diffusers(n: int) -> None:
    schedule = Cosine(n=n)
    indices = np.array([*range(0, n - 1, n // 80), n - 3, n - 2, n - 1])
    ours = np.array([schedule.abar(int(i)) for i in indices])
    curve = np.cos(((indices + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    # The cap of beta at 0.999 acts at the very last index only, where the curve touches 0.
    np.testing.assert_allclose(ours[:-1], curve[:-1], rtol=1e-9)
    assert ours[-1] == pytest.approx(ours[-2] * 0.001, rel=1e-12)
    theirs = DDPMScheduler(num_train_timesteps=n, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double().numpy()
    np.testing.assert_allclose(ours, theirs[indices], rtol=2e-3, atol=2e-6)


def test_vp_in_closed_form() -> None:
    t = np.linspace(1e-5, 1, 400)
    abar = np.exp(-9.95 * t**2 - 0.1 * t)
    schedule = VP()
    np.testing.assert_allclose([schedule.scale(float(v)) for v in t], np.sqrt(abar), rtol=1e-14)
    np.testing.assert_allclose(
        [schedule.sigma(float(v)) for v in t], np.sqrt(np.expm1(9.95 * t**2 + 0.1 * t)), rtol=1e-13
    )
    np.testing.assert_allclose([schedule.beta(float(v)) for v in t], 0.1 + 19.9 * t, rtol=1e-15)
    # beta is minus the slope of log abar
    h = 1e-6
    slope = [(math.log(schedule.scale(v + h)) - math.log(schedule.scale(v - h))) / h for v in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(slope, [-schedule.beta(v) for v in (0.1, 0.5, 0.9)], rtol=1e-6)
    other = VP(beta_min=0.2, beta_max=5.0)
    assert other.scale(0.5) ** 2 == pytest.approx(math.exp(-0.5 * 4.8 * 0.25 - 0.2 * 0.5), rel=1e-14)


@pytest.mark.parametrize(
    ("sigma", "t"), [(0.25, ".0732"), (0.4, ".1172"), (0.5, ".1448"), (0.6, ".1708"), (1, ".2590"), (2, ".3972")]
)
def test_vp_time_of_a_level(sigma: float, t: str) -> None:
    assert agrees(VP().t(sigma), t)
    assert VP().t(sigma) == pytest.approx((math.sqrt(0.01 + 39.8 * math.log(1 + sigma**2)) - 0.1) / 19.9, rel=1e-13)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (VP(), [1e-5, 1e-3, 0.05, 0.1, 0.15, 0.5, 1.0]),
        (VP(beta_min=0.2, beta_max=5.0), [1e-4, 0.3, 1.0]),
        (VE(), [0.0, 0.3, 1.0]),
        (VE(sigma_min=0.002, sigma_max=80), [0.0, 0.5, 1.0]),
        (EDM(), [0.0, 0.002, 80.0]),
        (DiscreteLinear(), [-1.0, 0.0, 0.25, 1.0, 99.0, 99.5, 998.9, 999.0]),
        (Cosine(), [-1.0, 0.0, 0.5, 500.0, 999.0]),
        (Cosine(n=4000), [0.0, 1234.25, 3999.0]),
    ],
)
def test_time_and_level_are_inverse(schedule, times: list[float]) -> None:
    for t in times:
        assert schedule.t(schedule.sigma(t)) == pytest.approx(t, rel=1e-8, abs=1e-12)
    levels = [schedule.sigma(t) for t in times]
    assert levels == sorted(levels)
    assert len(set(levels)) == len(levels)


def test_ve_and_edm() -> None:
    schedule = VE(sigma_min=0.01, sigma_max=50)
    np.testing.assert_allclose([schedule.sigma(t) for t in (0.0, 0.5, 1.0)], [0.01, math.sqrt(0.5), 50], rtol=1e-14)
    assert [schedule.scale(t) for t in (0.0, 1.0)] == [1, 1]
    assert [EDM().sigma(3.5), EDM().t(3.5), EDM().scale(3.5)] == [3.5, 3.5, 1]


def test_scales() -> None:
    assert vp_scale(0) == 1
    assert vp_scale(math.sqrt(3)) == pytest.approx(0.5, rel=1e-15)
    assert unit_scale(17.0) == 1


def test_fractional_indices_are_interpolated_in_log_sigma() -> None:
    schedule = DiscreteLinear()
    a, b = schedule.sigma(40.0), schedule.sigma(41.0)
    assert schedule.sigma(40.25) == pytest.approx(a**0.75 * b**0.25, rel=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiscreteLinear().sigma(1000.0), "expected an index from 0 to 999, or -1 for no noise, got 1000"),
        (lambda: DiscreteLinear().sigma(-0.5), "expected an index from 0 to 999"),
        (lambda: DiscreteLinear().t(1e-5), "expected a noise level from 0.01 to 157.4, got 1e-05"),
        (lambda: Cosine().t(1e9), "expected a noise level from .* got 1e"),
        (lambda: steps_at(VP(), [0.1]), r"steps_at: expected at least two times \(one step\), got 1"),
        (lambda: steps_at(VP(), []), r"steps_at: expected at least two times \(one step\), got 0"),
        (lambda: steps_at(VP(), [0.1, 0.2]), "steps_at: expected times from noisy to clean, got noise levels 0.34"),
        (lambda: steps_at(VP(), [0.1, 0.1]), "steps_at: expected times from noisy to clean"),
        (lambda: steps_at(EDM(), [1.0, -0.1]), "steps_at: expected times from noisy to clean"),
        (lambda: steps_at(EDM(), [1.0, math.nan]), "steps_at: expected times from noisy to clean"),
        (
            lambda: uniform_steps(VP(), t_start=0.0, n_steps=3),
            r"uniform_steps: expected t_start in \(0, inf\), got 0.0",
        ),
        (lambda: uniform_steps(VP(), t_start=0.1, n_steps=0), "uniform_steps: expected n_steps from 1 to 65535, got 0"),
        (lambda: uniform_steps(VP(), t_start=0.1, n_steps=10, t_end=0.01), "expected t_end below .* = 0.01, got 0.01"),
        (lambda: uniform_steps(VP(), t_start=0.1, n_steps=10, t_end=-1.0), r"expected t_end in \[0, inf\), got -1.0"),
        (lambda: karras_steps(sigma_max=1.0, n_steps=0), "karras_steps: expected n_steps from 1 to 65535, got 0"),
        (lambda: karras_steps(sigma_max=0.001, n_steps=4), r"expected sigma_max in \(0.002, inf\), got 0.001"),
        (lambda: karras_steps(sigma_max=1.0, n_steps=4, sigma_min=0.0), r"expected sigma_min in \(0, inf\), got 0.0"),
        (lambda: log_snr_steps(VP(), t_start=0.1, n_steps=0), "log_snr_steps: expected n_steps from 1 to 65535, got 0"),
        (lambda: log_snr_steps(VP(), t_start=0.0, n_steps=3), r"expected sigma\(t_start\) in \(0.02, inf\), got 0.0"),
        (lambda: log_snr_steps(EDM(), t_start=1.0, n_steps=3, sigma_min=0.0), r"sigma_min in \(0, inf\), got 0.0"),
        (lambda: log_snr_steps(DiscreteLinear(), t_start=99.0, n_steps=3, sigma_min=0.001), "a noise level from 0.01"),
        (lambda: ddpm_steps(DiscreteLinear(), n_noise=100, n_steps=7), "n_steps that divides n_noise = 100, got 7"),
        (lambda: ddpm_steps(DiscreteLinear(), n_noise=1001), "expected n_noise from 1 to 1000, got 1001"),
        (lambda: ddpm_steps(DiscreteLinear(), n_noise=0), "expected n_noise from 1 to 1000, got 0"),
        (lambda: ddpm_steps(DiscreteLinear(), n_noise=10, n_steps=20), "expected n_steps from 1 to 10, got 20"),
        (lambda: TableLabel(ddpm_steps(DiscreteLinear(), n_noise=5))(0.5), "TableLabel: expected one of the table's 5"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("t_star", "n"), [(0.075, 75), (0.1, 100), (0.125, 125), (0.15, 150)])
def test_published_grid_of_diffpure(t_star: float, n: int) -> None:
    """Steps of 1e-3 from 1 - t* in reversed time until 1 - 1e-5: the last one is cut to 0.99e-3."""
    clock, end, times = 1 - t_star, 1 - 1e-5, []
    while clock < end - 1e-9:
        times.append(1 - clock)
        clock = min(clock + 1e-3, end)
    steps = uniform_steps(VP(), t_start=t_star, n_steps=n, t_end=1e-5)
    assert len(steps) == len(times) == n
    np.testing.assert_allclose([s.t for s in steps], times, rtol=0, atol=1e-12)
    np.testing.assert_allclose([s.t - s.t_next for s in steps[:-1]], 1e-3, rtol=0, atol=1e-12)
    assert steps[-1].t - steps[-1].t_next == pytest.approx(0.99e-3, abs=1e-12)
    assert steps[0].t == t_star
    assert steps[-1].t_next == 1e-5


def consistent(steps: tuple[Step, ...]) -> None:
    assert [s.index for s in steps] == list(range(len(steps)))
    for a, b in itertools.pairwise(steps):
        assert (a.t_next, a.sigma_next, a.scale_next) == (b.t, b.sigma, b.scale)
    for s in steps:
        assert s.sigma_next < s.sigma


def test_step_tables_fit_together() -> None:
    schedule = VP()
    steps = uniform_steps(schedule, t_start=0.3, n_steps=7)
    consistent(steps)
    assert steps[-1].t_next == steps[-1].sigma_next == 0
    assert steps[-1].scale_next == 1
    for s in steps:
        assert (s.sigma, s.scale) == (schedule.sigma(s.t), schedule.scale(s.t))
    consistent(karras_steps(sigma_max=5.0, n_steps=6))
    consistent(ddpm_steps(DiscreteLinear(), n_noise=30))
    ended = steps_at(schedule, [0.3, 0.2, 0.1], end=0.0)
    consistent(ended)
    assert (ended[-1].t_next, ended[-1].sigma_next, ended[-1].scale_next) == (0.1, 0, 1)
    assert steps_at(schedule, [0.3, 0.2])[-1].sigma_next == schedule.sigma(0.2)


@pytest.mark.parametrize(("sigma_max", "n"), [(80.0, 18), (0.5, 5), (3.0, 1)])
def test_karras_steps(sigma_max: float, n: int) -> None:
    steps = karras_steps(sigma_max=sigma_max, n_steps=n)
    levels = np.array([s.sigma for s in steps] + [steps[-1].sigma_next])
    i = np.arange(n)
    expected = (sigma_max ** (1 / 7) + i / max(n - 1, 1) * (0.002 ** (1 / 7) - sigma_max ** (1 / 7))) ** 7
    np.testing.assert_allclose(levels, [*expected, 0], rtol=1e-12)
    if n > 1:
        scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=sigma_max, rho=7.0)
        scheduler.set_timesteps(n)
        np.testing.assert_allclose(levels, scheduler.sigmas.double().numpy(), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("schedule", "t_start", "label"),
    [(VP(), 0.1, None), (EDM(), 2.0, SigmaLabel(0.5)), (DiscreteLinear(), 99.0, IndexLabel(DiscreteLinear()))],
    ids=["VP", "EDM", "discrete"],
)
def test_log_snr_steps(schedule, t_start: float, label, n: int) -> None:
    """Levels a geometric series from the start to 0.03, then 0; times, scales and labels those of the levels."""
    steps = log_snr_steps(schedule, t_start=t_start, n_steps=n, sigma_min=0.03, label=label)
    consistent(steps)
    assert steps[0].t == t_start
    levels = np.array([s.sigma for s in steps])
    np.testing.assert_allclose(levels, np.geomspace(schedule.sigma(t_start), 0.03, n), rtol=1e-10)
    assert (steps[-1].sigma_next, steps[-1].scale_next) == (0, 1)
    vp = not isinstance(schedule, EDM)
    np.testing.assert_allclose([s.scale for s in steps], 1 / np.sqrt(1 + levels**2) if vp else 1, rtol=1e-12)
    expected = [s.t for s in steps] if label is None else [label(s.sigma) for s in steps]
    assert [s.label for s in steps] == expected
    if n > 2 and isinstance(schedule, EDM):
        scheduler = EDMEulerScheduler(sigma_min=0.03, sigma_max=2.0, sigma_schedule="exponential")
        scheduler.set_timesteps(n)
        np.testing.assert_allclose([*levels, 0], scheduler.sigmas.double().numpy(), rtol=1e-5)


@pytest.mark.parametrize(("n_noise", "n_steps"), [(100, None), (100, 5), (1000, 50), (500, 500), (7, 1), (36, 12)])
def test_ddpm_strides(n_noise: int, n_steps: int | None) -> None:
    steps = ddpm_steps(DiscreteLinear(), n_noise=n_noise, n_steps=n_steps)
    stride = n_noise // (n_steps or n_noise)
    visited = np.arange(n_noise - 1, -1, -stride)
    assert [s.t for s in steps] == visited.tolist()
    assert [s.label for s in steps] == visited.tolist()
    assert visited[-1] == stride - 1
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose([s.sigma for s in steps], np.sqrt(1 / abar[visited] - 1), rtol=1e-11)
    assert (steps[-1].sigma_next, steps[-1].scale_next) == (0, 1)


def test_time_labels() -> None:
    schedule = VP()
    rule = TimeLabel(schedule)
    for t in (1e-3, 0.1, 0.7):
        assert rule(schedule.sigma(t)) == pytest.approx(999 * t, rel=1e-11)
    assert TimeLabel(schedule, factor=1.0)(schedule.sigma(0.2)) == pytest.approx(0.2, rel=1e-11)
    steps = uniform_steps(schedule, t_start=0.1, n_steps=100, t_end=1e-5, label=rule)
    np.testing.assert_allclose([s.label for s in steps], 999 * np.linspace(0.1, 0.001, 100), rtol=1e-10)


def test_index_labels() -> None:
    schedule = DiscreteLinear()
    rule = IndexLabel(schedule)
    assert [rule(schedule.sigma(float(i))) for i in (0, 1, 99, 500, 999)] == [0, 1, 99, 500, 999]
    assert rule(schedule.sigma(99.5)) == pytest.approx(99.5, rel=1e-10)
    assert rule(schedule.sigma(0.0) / 10) == 0, "below the schedule"
    assert rule(1e4) == 999, "above the schedule"
    # A discrete network on the continuous clock: index 1000 t - 1, up to the schedules' small difference.
    assert rule(VP().sigma(0.1)) == pytest.approx(99, abs=0.5)


@pytest.mark.parametrize("n", [75, 100, 125, 150])
def test_truncated_labels_are_the_integer_part_of_1000_t(n: int) -> None:
    steps = uniform_steps(VP(), t_start=n / 1000, n_steps=n, t_end=1e-5, label=TruncatedLabel(VP()))
    assert [s.label for s in steps] == list(range(n, 0, -1))
    assert TruncatedLabel(VP())(VP().sigma(0.0999)) == 99


def test_table_labels_give_back_the_table() -> None:
    steps = uniform_steps(VP(), t_start=0.1, n_steps=10, t_end=1e-5, label=lambda sigma: 1000 * sigma)
    rule = TableLabel(steps)
    assert [rule(s.sigma) for s in steps] == [s.label for s in steps]
    with pytest.raises(InputError, match="TableLabel"):
        rule(steps[3].sigma * (1 + 1e-12))
