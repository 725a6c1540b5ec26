"""Agreement with recorded runs of Square's published code (tests/data/published, and DEPURA_PUBLISHED)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from depura.attacks.square import Bumps, Square
from depura.attacks.threat import Ball
from published import arrays, cases, read, tanh_classifier


@dataclass
class Replay:
    """Stands in for `Noise`: the recorded uniform numbers in the order of their use.

    Positions are shared by all images there, and the last row and column are never covered; the numbers are moved to
    where our squares, which may lie anywhere, come to lie where the recorded ones are.
    """

    blocks: list[Tensor]
    sides: list[int]
    extent: int
    norm: str
    used: list[int] = field(default_factory=lambda: [0])
    rows: int = 0

    def take(self, rows: list[int]) -> Replay:
        return replace(self, rows=len(rows))

    def later(self, rounds: int) -> Replay:
        assert rounds == 0
        return self

    def next(self) -> Tensor:
        self.used[0] += 1
        return self.blocks[self.used[0] - 1]

    def shared(self) -> Tensor:
        block = self.next()
        assert block.shape == (1,)
        return block.expand(self.rows, 1)

    def position(self, side: int) -> Tensor:
        corner = ((self.extent - side) * self.shared()).floor()
        return (corner + 0.5) / (self.extent - side + 1)

    def uniform(self, like: Tensor, *, kind: object, step: int) -> Tensor:
        if step == 0 and self.norm == "linf":
            return self.next().reshape(like.shape)
        if step == 0:
            parts: list[Tensor] = []
            while sum(p.shape[1] for p in parts) < like.shape[1]:
                parts += [self.shared(), self.next().reshape(self.rows, -1)]
        elif self.norm == "linf":
            side = self.sides[step - 1]
            parts = [self.position(side), self.position(side), self.next()[None].expand(self.rows, -1)]
        else:
            side = self.sides[step - 1]
            parts = [self.position(side) for _ in range(4)]
            parts += [self.shared(), self.next().reshape(self.rows, -1)]
        return torch.cat(parts, dim=1).reshape(like.shape)


@pytest.mark.parametrize("path", cases("attack-square-linf", "attack-square-l2"))
def test_a_search_goes_the_same_way(path: Path) -> None:
    case, data = read(path), arrays(path)
    settings, n_images = case["configuration"], len(data["x"])
    norm, shape = settings["norm"].lower(), settings["image_shape"]
    # The corner of the recorded tiles: what five tiles would leave free.
    moves = Bumps(offset=(shape[1] - 5 * (shape[1] // 5)) // 2) if norm == "l2" else None
    attack = Square(
        Ball(norm, settings["eps"]),
        n_queries=settings["n_queries"],
        p_init=settings["p_init"],
        renew=None,
        moves=moves,
        finish=1.0,
        common=1,
    )
    blocks = list(data["uniforms"].split([int(n) for n in data["uniform_sizes"]]))
    sides = [int(n) for n in data["square_side"]]
    ours = attack.proposer
    assert [ours.side(shape, attack.share(i)) for i in range(attack.n_queries)] == sides  # type: ignore[attr-defined]
    replay = Replay(blocks, sides, shape[1], norm)
    found = attack(tanh_classifier(data), data["x"], data["y"].long(), init=replay)  # type: ignore[arg-type]
    assert replay.used == [len(blocks)], "all recorded numbers were used"
    torch.testing.assert_close(found.images[0], data["x_best"], rtol=0, atol=1e-9)
    tolerance = 1e-9 if norm == "linf" else 1e-5
    torch.testing.assert_close(-found.loss, data["margins"], rtol=0, atol=tolerance, equal_nan=True)
    best = torch.where(found.loss.isnan(), -torch.inf, found.loss).amax(0)
    torch.testing.assert_close(-best, data["final_margin"], rtol=0, atol=1e-9)
    finished = torch.where(found.finished < 0, attack.n_queries, found.finished)
    assert (finished + 1).tolist() == data["n_queries"].tolist()
    assert found.images.shape == (1, n_images, *shape)
