"""Agreement with recorded runs of FAB's published code (tests/data/published, and DEPURA_PUBLISHED)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from depura.attacks.fab import FAB
from depura.attacks.threat import Ball
from published import arrays, cases, read, tanh_classifier

KINDS = ["untargeted", "targeted"]


@dataclass
class Restarts:
    """Stands in for `Noise`: hands out the recorded draws in the order of their use."""

    draws: Tensor
    sizes: list[int]

    def take(self, rows: list[int]) -> Restarts:
        assert len(rows) == self.sizes.pop(0), "as many images are left as in the recorded run"
        return self

    def __call__(self, like: Tensor, **address: object) -> Tensor:
        now, self.draws = self.draws[: like.numel()], self.draws[like.numel() :]
        return now.reshape(like.shape)

    uniform = __call__


def attack(case: dict, kind: str, **changes: object) -> FAB:
    settings = case["configuration"]
    whole = FAB(
        Ball(settings["norm"].lower(), settings["eps"]),
        n_steps=settings["n_iter"],
        n_restarts=settings["n_restarts"],
        n_targets=settings["n_target_classes"] if kind == "targeted" else 0,
        alpha_max=settings["alpha_max"],
        eta=settings["eta"],
        beta=settings["beta"],
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", cases("attack-fab-linf", "attack-fab-l2"))
def test_one_run_finds_the_same_closest_points(path: Path, kind: str) -> None:
    """With no radius to speak of, so that all closest points are inside."""
    case, data = read(path), arrays(path)
    norm = case["configuration"]["norm"].lower()
    classify, seen = tanh_classifier(data), []

    def model(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return classify(x)

    single = attack(case, kind, ball=Ball(norm, 100.0), n_restarts=1, n_targets=1 if kind == "targeted" else 0)
    found = single(model, data["x"], data["y"].long())
    torch.testing.assert_close(found.images[0], data[f"{kind}_adv_single_run"], rtol=0, atol=1e-8)
    distance = Ball(norm, 1.0).distance(found.images[0], data["x"])
    torch.testing.assert_close(distance, data[f"{kind}_norms"], rtol=0, atol=1e-8)
    if f"{kind}_model_calls" in data:
        # Two questions of the model's determinism and one of the order of its classes come first; we ask for the
        # gradients of all nine other classes one by one, the recorded code in one call.
        per_step = 10 if kind == "untargeted" else 2
        steps = [seen[3:][k + j] for k in range(0, len(seen) - 3, per_step) for j in (0, per_step - 1)]
        torch.testing.assert_close(torch.stack(steps), data[f"{kind}_model_calls"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", cases("attack-fab-linf", "attack-fab-l2"))
def test_a_full_call_finds_the_same_points_inside_the_ball(path: Path, kind: str) -> None:
    case, data = read(path), arrays(path)
    whole, labels = attack(case, kind), data["y"].long()
    restarts = Restarts(data[f"{kind}_restart_draws"], [int(n) for n in data[f"{kind}_restart_draw_images"]])
    found = whole(tanh_classifier(data), data["x"], labels, init=restarts)  # type: ignore[arg-type]
    assert not restarts.sizes
    assert not len(restarts.draws)
    theirs = data[f"{kind}_perturb"]
    broken = (theirs != data["x"]).flatten(1).any(1)
    assert 0 < int(broken.sum()) < len(broken)
    assert (found.finished >= 0).tolist() == broken.tolist()
    torch.testing.assert_close(found.images[0][broken], theirs[broken], rtol=0, atol=1e-8)
    # Where the recorded code hands back the image itself, we hand back another point of the ball.
    rest = found.images[0][~broken]
    assert bool(whole.ball.contains(rest, data["x"][~broken]).all())
    assert bool((rest != data["x"][~broken]).flatten(1).any(1).all())
