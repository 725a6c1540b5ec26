"""The published algorithms, transcribed step by step in the papers' own coordinates x_t (images in [-1, 1], scaled).

Straight loops of plain tensor operations, written from the papers' formulas and sharing nothing with depura but the
noise that they are handed. Guidance that is a gradient is taken with its graph, so that autograd differentiates the
whole; x must therefore require a gradient. A network is told (x_t, label), label being a number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from depura.noise import Kind, Noise, Stream

Eps = Callable[[Tensor, float], Tensor]
"""A noise prediction from x_t and the label."""
Energy = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One number per image from x_t, the estimate of x0 and the input."""

ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)).tolist()
"""The discrete schedule of DDPM."""
ABAR_ADBM = np.cumprod(1 - np.linspace(1e-6, 0.02, 1000)).tolist()
"""That of ADBM's sampler."""
COSINE = np.cos((np.arange(4001) / 4000 + 0.008) / 1.008 * np.pi / 2) ** 2
ABAR_COSINE = np.cumprod(1 - np.minimum(1 - COSINE[1:] / COSINE[:-1], 0.999)).tolist()
"""That of improved-diffusion's CIFAR-10 networks."""


def abar_of(t: float) -> float:
    """The continuous schedule."""
    return math.exp(-9.95 * t * t - 0.1 * t)


def noised(u: Tensor, abar: float, noise: Noise) -> Tensor:
    """sqrt(abar) u + sqrt(1 - abar) n."""
    return math.sqrt(abar) * u + math.sqrt(1 - abar) * noise(u, kind=Kind.FORWARD)


def slope(energy: Tensor, by: Tensor) -> Tensor:
    """Gradient of each image's number by that image, with its graph."""
    return torch.autograd.grad(energy.sum(), by, create_graph=True)[0]


def pairs(indices: Sequence[int], abar: Sequence[float]) -> list[tuple[int, int, float, float]]:
    """(k, index, abar, abar after the step) along the indices, to abar = 1."""
    after = [abar[i] for i in indices[1:]] + [1.0]
    return [(k, i, abar[i], after[k]) for k, i in enumerate(indices)]


# --- DiffPure ---------------------------------------------------------------------------------------------------------


def time_label(t: float) -> float:
    """What score_sde networks are told."""
    return 999 * t


def fractional_label(t: float) -> float:
    """The index, between two where need be, at which the discrete schedule has the continuous one's noise level."""
    levels = 0.5 * np.log((1 - np.array(ABAR)) / np.array(ABAR))
    abar = abar_of(t)
    return float(np.interp(0.5 * math.log((1 - abar) / abar), levels, np.arange(1000)))


def truncated_label(t: float) -> float:
    """The released code's index."""
    return float(math.floor(1000 * t + 1e-6))


def diffpure(
    eps: Eps,
    x: Tensor,
    noise: Noise,
    *,
    t_star: float,
    n: int,
    label: Callable[[float], float] = time_label,
    start: float | None = None,
    ode: bool = False,
    energy: Energy | None = None,
) -> Tensor:
    """x <- x + h (beta / 2 x + beta (s - grad energy)) + sqrt(beta h) z; half the score and no z for the ODE."""
    u = 2 * x - 1
    x_t = noised(u, abar_of(t_star) if start is None else start, noise)
    times = [t_star - k * t_star / n for k in range(n)] + [1e-5]
    for k in range(n):
        t, h = times[k], times[k] - times[k + 1]
        beta, abar = 0.1 + 19.9 * t, abar_of(t)
        predicted = eps(x_t, label(t))
        score = -predicted / math.sqrt(1 - abar)
        if energy is not None:
            x0 = (x_t - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)
            score = score - slope(energy(x_t, x0, u), x_t)
        if ode:
            x_t = x_t + h * (beta / 2 * x_t + beta / 2 * score)
        else:
            z = noise(u, kind=Kind.REVERSE, step=k)
            x_t = x_t + h * (beta / 2 * x_t + beta * score) + math.sqrt(beta * h) * z
    return (x_t + 1) / 2


def langevin(eps: Eps, x: Tensor, noise: Noise, *, t_star: float = 0.1) -> Tensor:
    """dx = -lambda / 2 (-s(x, 0.01) + (x - x_in) / sigma^2) dtau + sqrt(lambda) eta dW; not noised before."""
    u = 2 * x - 1
    rate, eta, variance, abar = 1e-2, 5.0, 1e-3, abar_of(0.01)
    clock = [1 - t_star + 0.01 * k for k in range(round(t_star / 0.01))] + [1 - 1e-5]
    x_t = u
    for k in range(len(clock) - 1):
        dtau = clock[k + 1] - clock[k]
        score = -eps(x_t, 999 * 0.01) / math.sqrt(1 - abar)
        drift = -rate / 2 * (-score + (x_t - u) / variance)
        z = noise(u, kind=Kind.REVERSE, step=k)
        x_t = x_t + drift * dtau + math.sqrt(rate) * eta * math.sqrt(dtau) * z
    return (x_t + 1) / 2


def ddpm(eps: Eps, x: Tensor, noise: Noise, *, n: int, large: bool = False) -> Tensor:
    """Ho et al., algorithm 2: x <- (x - beta / sqrt(1 - abar) eps) / sqrt(1 - beta) + sd z, no z at the last."""
    u = 2 * x - 1
    x_t = noised(u, ABAR[n - 1], noise)
    for k, i, abar, before in pairs(range(n - 1, -1, -1), ABAR):
        beta = 1e-4 + (0.02 - 1e-4) * i / 999
        variance = beta if large else beta * (1 - before) / (1 - abar)
        x_t = (x_t - beta / math.sqrt(1 - abar) * eps(x_t, float(i))) / math.sqrt(1 - beta)
        if i > 0:
            x_t = x_t + math.sqrt(variance) * noise(u, kind=Kind.REVERSE, step=k)
    return (x_t + 1) / 2


def posterior(
    net: Eps,
    u: Tensor,
    ref: Tensor,
    noise: Noise,
    indices: Sequence[int],
    *,
    variance: str,
    start: float | None = None,
    guide: Callable[[Tensor, Tensor, float, int], Tensor] | None = None,
    clip: bool = True,
) -> Tensor:
    """Guided-diffusion's p_sample: posterior mean from the (clipped) x0, plus variance * guide(x, x0, abar, k).

    `variance` is "small" (posterior), "large" (beta) or "learned"; a variance of zero, at index 0, is put at that of
    the step before. Betas are those of the chain of kept indices.
    """
    c = u.shape[1]
    x_t = noised(u, ABAR[indices[0]] if start is None else start, noise)
    steps = pairs(indices, ABAR)
    small = [(1 - a / after) * (1 - after) / (1 - a) for _, _, a, after in steps]
    if variance != "small":
        small[-1] = small[-2]
    for k, i, abar, before in steps:
        out = net(x_t, float(i))
        beta = 1 - abar / before
        x0 = (x_t - math.sqrt(1 - abar) * out[:, :c]) / math.sqrt(abar)
        if clip:
            x0 = x0.clamp(-1, 1)
        mean = math.sqrt(before) * beta / (1 - abar) * x0 + math.sqrt(1 - beta) * (1 - before) / (1 - abar) * x_t
        if variance == "learned":
            share = (out[:, c:] + 1) / 2
            spread = torch.exp(share * math.log(beta) + (1 - share) * math.log(small[k]))
        else:
            # Fixed-large too has the posterior variance of the step before at index 0.
            large = variance == "large" and k < len(steps) - 1
            spread = torch.tensor(beta if large else small[k], dtype=u.dtype)
        if guide is not None:
            mean = mean + spread * guide(x_t, x0, abar, k)
        x_t = mean
        if k < len(steps) - 1:
            x_t = x_t + spread.sqrt() * noise(u, kind=Kind.REVERSE, step=k)
    return x_t


def adm(net: Eps, x: Tensor, noise: Noise, *, n: int) -> Tensor:
    """DiffPure's ADM runner: learned variance, x0 clipped."""
    u = 2 * x - 1
    return (posterior(net, u, u, noise, range(n - 1, -1, -1), variance="learned") + 1) / 2


# --- Lee and Kim ------------------------------------------------------------------------------------------------------


def gradual(eps: Eps, x: Tensor, noise: Noise, *, schedule: Sequence[tuple[int, int]]) -> Tensor:
    """For each (max_t, n): noise to index max_t - 1, then DDIM of eta 1 at .., 2 s - 1, s - 1 with s = max_t // n."""
    u = 2 * x - 1
    for number, (max_t, n) in enumerate(schedule):
        tape = noise.in_round(number)
        x_t = noised(u, ABAR[max_t - 1], tape)
        for k, i, a, b in pairs([max_t // n * j - 1 for j in range(n, 0, -1)], ABAR):
            predicted = eps(x_t, float(i))
            x0 = (x_t - math.sqrt(1 - a) * predicted) / math.sqrt(a)
            c1 = math.sqrt((1 - a / b) * (1 - b) / (1 - a))
            c2 = math.sqrt(1 - b - c1**2)
            x_t = math.sqrt(b) * x0 + c1 * tape(u, kind=Kind.REVERSE, step=k) + c2 * predicted
        u = x_t
    return (u + 1) / 2


# --- GDMP -------------------------------------------------------------------------------------------------------------


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each image."""
    return ((a - b) ** 2).mean(dim=(1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity with an 11 x 11 Gaussian window of 1.5 pixels, zeros outside; per image.

    The window as a matrix from pixels to local means.
    """
    size = a.shape[2]
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    row = np.array([[weights[j - i + 5] if abs(j - i) <= 5 else 0.0 for j in range(size)] for i in range(size)])
    window = torch.from_numpy(np.kron(row, row))

    def local(image: Tensor) -> Tensor:
        return image.flatten(2) @ window.T

    ma, mb = local(a), local(b)
    va, vb, both = local(a**2) - ma**2, local(b**2) - mb**2, local(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    index = ((2 * ma * mb + c1) * (2 * both + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return index.mean(dim=(1, 2))


def gdmp(
    net: Eps,
    x: Tensor,
    noise: Noise,
    *,
    indices: Sequence[int],
    rounds: int,
    guide_scale: float,
    ptb: float,
    batch: int,
    structural: bool = False,
    fresh: bool = True,
    variance: str = "large",
    start: float | None = None,
) -> Tensor:
    """mean += Sigma s grad S(x_t, ref_t), s = sqrt(1 - abar) / (m sqrt(abar)), m = ptb 2 / 255 / 3 / guide_scale."""
    ref = 2 * x - 1
    u = ref
    m = ptb * 2 / 255 / 3 / guide_scale
    for number in range(rounds):
        tape = noise.in_round(number)

        def guide(x_t: Tensor, x0: Tensor, abar: float, k: int, tape: Noise = tape) -> Tensor:
            n = tape(ref, kind=Kind.GUIDANCE, step=k)
            target = math.sqrt(abar) * ref + math.sqrt(1 - abar) * n if fresh else ref
            alike = ssim(x_t, target) if structural else -mse(x_t, target)
            return math.sqrt(1 - abar) / (m * math.sqrt(abar)) * slope(alike / batch, x_t)

        u = posterior(net, u, ref, tape, indices, variance=variance, start=start, guide=guide)
    return ((u + 1) / 2).clamp(0, 1)


# --- MimicDiffusion ---------------------------------------------------------------------------------------------------


def soft_sign(v: Tensor, tau: float | None) -> Tensor:
    """The sign; with tau, differentiated as tanh(v / tau) is."""
    if tau is None:
        return torch.sign(v)
    smooth = torch.tanh(v / tau)
    return torch.sign(v).detach() + smooth - smooth.detach()


def interpolation(n: int, m: int) -> Tensor:
    """Linear interpolation of n pixels to m, half-pixel centres, edges repeated; (m, n)."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for j in range(m):
        place = min(max((j + 0.5) * n / m - 0.5, 0.0), n - 1.0)
        low = min(math.floor(place), n - 2)
        matrix[j, low] += 1 - (place - low)
        matrix[j, low + 1] += place - low
    return matrix


def majority(v: Tensor, mode: str, tau: float | None) -> Tensor:
    """U^T sign(U v) / 16 for U the fourfold interpolation."""
    n = v.shape[2]
    u = interpolation(n, 4 * n) if mode == "bilinear" else torch.eye(n, dtype=v.dtype).repeat_interleave(4, dim=0)
    return u.T @ soft_sign(u @ v @ u.T, tau) @ u / 16


def mimic_signs(x0: Tensor, ref: Tensor, mode: str, tau: float | None) -> Tensor:
    """Half the long-range and half the short-range gradient by x0."""
    return 0.5 * (soft_sign(x0 - ref, tau) + majority(x0 - ref, mode, tau))


def mimic_step(
    eps: Eps,
    x_t: Tensor,
    ref: Tensor,
    z: Tensor,
    at: tuple[int, float, float],
    *,
    kappa: float,
    released: bool,
    tau: float | None = None,
) -> Tensor:
    """x_j = sqrt(abar_j) x0 + c1 z + c2 eps - kappa (d x0 / d y)^T signs, y = x_i / sqrt(abar_i).

    `at` is the index i, abar_i and abar_j. As released the noise prediction is held constant, so that d x0 / d y = 1.
    """
    i, a, b = at
    predicted = eps(x_t, float(i))
    x0 = (x_t - math.sqrt(1 - a) * predicted) / math.sqrt(a)
    c1 = math.sqrt((1 - a / b) * (1 - b) / (1 - a))
    c2 = math.sqrt(1 - b - c1**2)
    x_next = math.sqrt(b) * x0 + c1 * z + c2 * predicted
    if not 109 <= i <= 789:
        return x_next
    signs = kappa * mimic_signs(x0, ref, "nearest" if released else "bilinear", tau)
    if released:
        return x_next - signs
    return x_next - math.sqrt(a) * torch.autograd.grad(x0, x_t, signs, create_graph=True)[0]


def mimic(
    eps: Eps, x: Tensor, noise: Noise, *, n: int = 100, batch: int = 16, released: bool, tau: float | None = None
) -> Tensor:
    """From x_T ~ N(0, I) along 999, 989 .. 9; the input is looked at by the guidance only."""
    ref = 2 * x - 1
    kappa = 6000 / (batch * x.shape[2] * x.shape[3])
    x_t = noise(ref, kind=Kind.FORWARD).requires_grad_()
    for k, i, a, b in pairs([1000 // n * j - 1 for j in range(n, 0, -1)], ABAR):
        z = noise(ref, kind=Kind.REVERSE, step=k)
        x_t = mimic_step(eps, x_t, ref, z, (i, a, b), kappa=kappa, released=released, tau=tau)
    return (x_t + 1) / 2


def mimic_edm(net: Callable[[Tensor, float], Tensor], x: Tensor, noise: Noise, *, n: int, batch: int) -> Tensor:
    """Karras et al., algorithm 1, from 80 n; the guidance, a step of x_t, is sqrt(1 + sigma'^2) times as long here."""
    ref = 2 * x - 1
    kappa = 6000 / (batch * x.shape[2] * x.shape[3])
    levels = [(80 ** (1 / 7) + k / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for k in range(n)] + [0.0]
    low, high = (math.sqrt((1 - ABAR[i]) / ABAR[i]) for i in (109, 789))

    def denoise(y: Tensor, s: float) -> Tensor:
        v = s**2 + 0.25
        return 0.25 / v * y + s * 0.5 / math.sqrt(v) * net(y / math.sqrt(v), math.log(s) / 4)

    y = (80 * noise(ref, kind=Kind.FORWARD)).requires_grad_()
    for s, after in itertools.pairwise(levels):
        x0 = denoise(y, s)
        d = (y - x0) / s
        y_next = y + (after - s) * d
        if after > 0:
            y_next = y + (after - s) * (d + (y_next - denoise(y_next, after)) / after) / 2
        if low <= s <= high:
            (through,) = torch.autograd.grad(x0, y, kappa * mimic_signs(x0, ref, "bilinear", None), create_graph=True)
            y_next = y_next - math.sqrt(1 + after**2) * through
        y = y_next
    return (y + 1) / 2


# --- AGDM -------------------------------------------------------------------------------------------------------------


def agdm_energy(
    features: Callable[[Tensor], Tensor],
    scale: float,
    *,
    on_state: bool = False,
    classifier: Callable[[Tensor], Tensor] | None = None,
) -> Energy:
    """s MSE(c(x), c(x_adv)) - s log p(y | x), y what the head says of x_adv; networks see [0, 1]."""

    def energy(x_t: Tensor, x0: Tensor, ref: Tensor) -> Tensor:
        seen, target = ((x_t if on_state else x0) + 1) / 2, (ref + 1) / 2
        total = scale * ((features(seen) - features(target)) ** 2).flatten(1).mean(1)
        if classifier is not None:
            label = classifier(target).argmax(1, keepdim=True)
            total = total - scale * torch.log_softmax(classifier(seen), 1).gather(1, label)[:, 0]
        return total

    return energy


def agdm(eps: Eps, x: Tensor, noise: Noise, *, n: int = 70, energy: Energy) -> Tensor:
    """x_{t-1} ~ N(mu - Sigma grad energy, Sigma), Sigma the posterior variance."""
    u = 2 * x - 1

    def guide(x_t: Tensor, x0: Tensor, abar: float, k: int) -> Tensor:
        return -slope(energy(x_t, x0, u), x_t)

    steps = range(n - 1, -1, -1)
    return (posterior(eps, u, u, noise, steps, variance="small", guide=guide, clip=False) + 1) / 2


# --- few steps, optimisation, baselines -------------------------------------------------------------------------------


def adbm(eps: Eps, x: Tensor, noise: Noise, *, start: int = 99) -> Tensor:
    """DDIM at 99, 79, 59, 39, 19 with x0 clipped, betas from 1e-6; the result clamped."""
    u = 2 * x - 1
    x_t = noised(u, ABAR_ADBM[start], noise)
    for _, i, a, b in pairs([99, 79, 59, 39, 19], ABAR_ADBM):
        x0 = ((x_t - math.sqrt(1 - a) * eps(x_t, float(i))) / math.sqrt(a)).clamp(-1, 1)
        x_t = math.sqrt(b) * x0 + math.sqrt(1 - b) * (x_t - math.sqrt(a) * x0) / math.sqrt(1 - a)
    return ((x_t + 1) / 2).clamp(0, 1)


def one_step(eps: Eps, x: Tensor, noise: Noise, *, index: int, abar: Sequence[float] = ABAR) -> Tensor:
    """x0 of the input noised to an index, clipped."""
    u, a = 2 * x - 1, abar[index]
    x_t = noised(u, a, noise)
    x0 = (x_t - math.sqrt(1 - a) * eps(x_t, float(index))) / math.sqrt(a)
    return (x0.clamp(-1, 1) + 1) / 2


def draws_of(noise: Noise) -> list[int]:
    """The draw number of each row."""
    return [noise.draws] * len(noise) if isinstance(noise.draws, int) else list(noise.draws)


def level(noise: Noise, draw: int, k: int) -> float:
    """sigma ~ U(0.4, 0.6) of step k, one for each draw number."""
    tape = Noise(noise.seed, images=(0,), draws=draw, stream=Stream.DEPLOY, round=noise.round)
    return 0.4 + 0.2 * float(tape.uniform(torch.zeros(1, dtype=torch.float64), kind=Kind.AUGMENT, step=k))


def likelihood(
    denoise: Callable[[Tensor, float], Tensor],
    x: Tensor,
    noise: Noise,
    *,
    n: int = 5,
    residual: bool = False,
    proximity: float = 0.0,
) -> Tensor:
    """Adam of rate 0.1, image by image, on mean (D(z + sigma n) - z)^2; with `residual` no Jacobian of D."""
    cleaned = []
    for row, draw in enumerate(draws_of(noise)):
        ref = 2 * x[row : row + 1] - 1
        z, m, v = ref, torch.zeros_like(ref), torch.zeros_like(ref)
        for k in range(1, n + 1):
            sigma = level(noise, draw, k - 1)
            x0 = denoise(z + sigma * noise.take([row])(ref, kind=Kind.REVERSE, step=k - 1), sigma)
            g = 2 * (z - x0) / z.numel() if residual else slope(((x0 - z) ** 2).mean(), z)
            g = g + proximity * 2 * (z - ref) / z.numel()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            z = z - 0.1 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        cleaned.append(((z + 1) / 2).clamp(0, 1))
    return torch.cat(cleaned)


def resized(inner: Callable[[Tensor, Noise], Tensor], x: Tensor, noise: Noise, *, size: int) -> Tensor:
    """Linear interpolation to size x size and back."""
    up, down = interpolation(x.shape[2], size), interpolation(size, x.shape[2])
    return down @ inner(up @ x @ up.T, noise) @ down.T


def blurred(x: Tensor, noise: Noise, *, std: float) -> Tensor:
    """Gaussian of three standard deviations' radius, edges repeated: as a matrix over rows, and over columns."""
    size, radius = x.shape[2], round(3 * std)
    weights = [math.exp(-(o**2) / (2 * std**2)) for o in range(-radius, radius + 1)]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
            matrix[i, min(max(i + offset, 0), size - 1)] += weight / sum(weights)
    return matrix @ x @ matrix.T


def convolution(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """Smooth features of images: tanh of a convolution."""
    return lambda images: torch.tanh(F.conv2d(images, weight, padding=1))
