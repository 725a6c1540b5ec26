"""Agreement with recorded runs of published attack loops (tests/data/published, and DEPURA_PUBLISHED).

None has a class here: each is PGD on a defence with a certain route and rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from depura.attacks.losses import cross_entropy
from depura.attacks.pgd import PGD
from depura.attacks.queries import Queries, mean
from depura.attacks.threat import Ball
from depura.defence import Defence, MeanLogit
from depura.diffusion.solvers import Ancestral, Euler
from depura.gradients import GradientRoute, StoredState, StraightThrough
from depura.methods.diffpure import diffpure, released_start
from depura.methods.gradual import gradual
from depura.noise import Kind
from published import TIME, arrays, cases, classifier, denoiser, read


@dataclass(frozen=True)
class Tape:
    """Stands in for the model's `Noise`: recorded draws of several purifications of each image.

    Attributes:
        draws: by kind, round and step: (draw, image, C, H, W).
        rows: image and draw of each row of a batch.
        round: of the walk.
    """

    draws: Mapping[tuple[Kind, int, int], Tensor]
    rows: tuple[tuple[int, int], ...]
    round: int = 0

    def __call__(self, like: Tensor, *, kind: Kind, step: int = 0) -> Tensor:
        recorded = self.draws[kind, self.round, step]
        found = torch.stack([recorded[draw, image] for image, draw in self.rows])
        assert found.shape == like.shape
        return found

    @property
    def images(self) -> tuple[int, ...]:
        return tuple(image for image, _ in self.rows)

    def take(self, rows: Sequence[int]) -> Tape:
        return replace(self, rows=tuple(self.rows[r] for r in rows))

    def expand(self, draws: Sequence[int]) -> Tape:
        return replace(self, rows=tuple((image, draw) for image, _ in self.rows for draw in draws))

    def split(self, n: int) -> Tape:
        return replace(self, rows=tuple((image, draw * n + i) for image, draw in self.rows for i in range(n)))

    def later(self, rounds: int, *, ahead: Iterable[int] = ()) -> Tape:
        return replace(self, round=self.round + rounds)


def tape(draws: Tensor, lengths: Sequence[int]) -> Tape:
    """Of draws (draw, number in order of use, image, C, H, W): for each round the noising, then one for each step."""
    found, at = {}, 0
    for number, n in enumerate(lengths):
        found[Kind.FORWARD, number, 0] = draws[:, at]
        found |= {(Kind.REVERSE, number, k): draws[:, at + 1 + k] for k in range(n)}
        at += 1 + n
    assert at == draws.shape[1]
    return Tape(found, tuple((image, 0) for image in range(draws.shape[2])))


def attacked(attack: PGD, defence: Defence, data: dict[str, Tensor], noise: Tape) -> list[Tensor]:
    """The iterates, from the clean images to the result."""
    seen: list[Tensor] = []

    def model(images: Tensor, tape: Tape) -> Tensor:
        seen.append(images.detach()[:: attack.eot])
        return defence(images, tape)  # type: ignore[arg-type]

    found = attack(model, data["x"], data["y"].long(), eot=noise)  # type: ignore[arg-type]
    return [*seen, found.images[0]]


def gradient(defence: Defence, data: dict[str, Tensor], noise: Tape, x: Tensor, draws: range) -> Tensor:
    queries = Queries("test", defence, data["x"], data["y"].long(), noise=noise)  # type: ignore[arg-type]
    return mean(queries.gradient(x, cross_entropy, draws=draws).gradients)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def proportional(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max())


# --- Lee and Kim ------------------------------------------------------------------------------------------------------


def lee_kim(path: Path, route: GradientRoute) -> tuple[dict, dict[str, Tensor], Defence, Tape]:
    """Settings, arrays, the defence and its noise; draw (iteration * eot + copy)."""
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    depths = [int(n) for n in facts["max_timesteps"].split(",")]
    counts = [int(n) for n in facts["num_denoising_steps"].split(",")]
    solver = {"ddpm": Ancestral(), "ddim": Euler()}[facts["sampling"]]
    purifier = gradual(denoiser(case, data), depths=depths, n_steps=counts, solver=solver, gradient=route)
    return facts, data, Defence(purifier, classifier(data)), tape(data["draws"].flatten(0, 1), counts)


ROUTES = {"attack-leekim-bpda": StraightThrough(), "attack-pgdeot-linf": StoredState()}


@pytest.mark.parametrize("path", cases(*ROUTES))
def test_pgd_of_lee_and_kim(path: Path) -> None:
    facts, data, defence, noise = lee_kim(path, ROUTES[path.stem[:-2]])
    n, m = len(data["draws"]), facts["eot"]
    for i in range(n):
        here = gradient(defence, data, noise, data["iterates"][i], range(i * m, (i + 1) * m))
        proportional(here, data["gradients"][i])
    ball = Ball("linf", facts["eps"])
    attack = PGD(
        ball, n_steps=n, step_size=facts["step_size"], eot=m, loss=cross_entropy, random_start=facts["random_start"]
    )
    for ours, theirs in zip(attacked(attack, defence, data, noise), data["iterates"][: n + 1], strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("path", cases("attack-pgdeot-l2"))
def test_l2_steps_go_along_the_gradient_and_gain_more_than_the_published_sign(path: Path) -> None:
    """The released loop steps by the sign of the gradient in an l2 ball, too; that is not copied (docs/deviations.md).

    Both first steps end on the sphere, so that the lengths are the same.
    """
    facts, data, defence, noise = lee_kim(path, StoredState())
    x, m, eps = data["x"], facts["eot"], facts["eps"]
    first = gradient(defence, data, noise, x, range(m))
    proportional(first, data["gradients"][0])
    theirs = data["iterates"][1]
    length = (theirs - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full_like(length, eps), rtol=0, atol=1e-12)
    attack = PGD(Ball("l2", eps), n_steps=1, step_size=eps, eot=m, loss=cross_entropy, random_start=False)
    ours = attacked(attack, defence, data, noise)[-1]
    unit = data["gradients"][0] / data["gradients"][0].flatten(1).norm(dim=1)[:, None, None, None]
    assert float(((x + eps * unit) - (x + eps * unit).clamp(0, 1)).abs().max()) == 0, "the box does not act"
    close(ours, x + eps * unit)

    queries = Queries("test", defence, x, data["y"].long(), noise=noise)  # type: ignore[arg-type]
    clean, by_sign, along = (queries.losses(at, cross_entropy, draws=range(m)).mean(1) for at in (x, theirs, ours))
    assert bool((by_sign > clean).all())
    assert bool((along > by_sign).all())


# --- DiffPure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", cases("attack-bpda-eot"))
def test_bpda_of_diffpure(path: Path) -> None:
    """PGD through the identity on the mean logits of R purifications.

    The recorded gradient is by a purified copy, averaged over R copies, of a mean over the batch of B. Our identity is
    that of the walk, without the scale of its last level, which is 5e-7 below 1 as the walk ends at t = 1e-5.
    """
    case, data = read(path), arrays(path)
    facts = case["configuration"]
    copies, n = facts["eot_attack_reps"], facts["euler_steps"]
    calls = [
        data[f"call{number:03d}_draws"].unflatten(1, (copies, -1)).transpose(0, 1)
        for number, line in enumerate(case["draws_order"])
        if "iteration" in line and "copies of the batch" in line and f"call{number:03d}_draws" in data
    ]
    noise = tape(torch.cat(calls), [n])
    t_star = facts["t_steps"] / 1000
    purifier = diffpure(denoiser(case, data, label=TIME), t_star=t_star, n_steps=n, start=released_start(t_star))
    defence = Defence(purifier, classifier(data), rule=MeanLogit(copies)).with_(gradient=StraightThrough())
    for i in range(len(calls)):
        here = gradient(defence, data, noise, data["iterates"][i], range(i, i + 1))
        proportional(here, purifier.steps[-1].scale_next * copies * len(data["x"]) * data["gradients"][i])
    steps = min(len(calls), len(data["iterates"]) - 1)
    ball = Ball("linf", facts["adv_eps"])
    attack = PGD(ball, n_steps=steps, step_size=facts["adv_eta"], loss=cross_entropy, random_start=False)
    for ours, theirs in zip(attacked(attack, defence, data, noise), data["iterates"][: steps + 1], strict=True):
        close(ours, theirs)
