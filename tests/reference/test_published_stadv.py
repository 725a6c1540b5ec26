"""Agreement with recorded runs of DiffPure's spatial attack (tests/data/published, and DEPURA_PUBLISHED)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from depura.attacks.flow import Flow, sampled
from depura.attacks.stadv import StAdv
from published import arrays, cases, classifier, read


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("path", cases("attack-stadv"))
def test_stadv(path: Path) -> None:
    """Every sampled image and objective, the last iterate, and the best one that the released code does not return."""
    case, data = read(path), arrays(path)
    facts, seen = case["configuration"], list[Tensor]()
    classify, copies = classifier(data), facts["eot_iter"]

    def model(images: Tensor) -> Tensor:
        noise = data["noise"][len(seen)].transpose(0, 1).flatten(0, 1) if facts["model_noise"] else 0.0
        seen.append(images.detach()[::copies])
        return classify(images + facts["model_noise"] * noise)

    flow = Flow(facts["bound"])
    attack = StAdv(flow, n_steps=facts["num_iterations"], rate=facts["lr"], eot=copies)
    assert attack._weight() == pytest.approx(facts["regulariser_weight"])
    got = attack(model, data["x"], data["y"].long())
    for images, grid in zip(seen, data["grids"][:-1], strict=True):
        close(images, sampled(data["x"], grid))
    objective = data["losses"].mean(1)
    close(got.loss, objective)
    close(got.images[0], data["x_adv"])
    best = objective.argmax(0)
    assert best.tolist() == case["best_vs_last"]["iteration_of_best_average_loss"]
    close(got.images[1], torch.stack([sampled(data["x"], data["grids"][i])[b] for b, i in enumerate(best)]))
    assert bool(flow.contains(got.images[0], data["x"]).all())
