"""Searching, choosing and reporting share no draw, and scores refuse the draws of an attack."""

import pytest
import torch

import depura
from depura.evaluation.scoring import choose, for_scoring, score
from toys import Streams

IDS = (3, 8)
NAMES = ("init", "eot", "select", "report", "null")


def test_the_streams_are_five_and_differ() -> None:
    noises = [getattr(Streams(5), name)(IDS) for name in NAMES]
    assert len({n.stream for n in noises}) == 5
    draws = [n(torch.empty(2, 16), kind=depura.Kind.REVERSE) for n in noises]
    for i in range(5):
        for j in range(i):
            assert not torch.isclose(draws[i], draws[j]).any()


@pytest.mark.parametrize("name", ["select", "report", "null"])
def test_scoring_streams_may_score(name: str) -> None:
    assert for_scoring(getattr(Streams(0), name)(IDS)).stream.name == name.upper()


@pytest.mark.parametrize("name", ["init", "eot"])
def test_attack_streams_may_not(name: str) -> None:
    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1])
    defence = depura.Defence(None, depura.digits_classifier())
    noise = getattr(Streams(0), name)(IDS)
    with pytest.raises(depura.InputError, match=f"got the {name} stream"):
        score(defence, images, labels, noise, draws=range(2))
    with pytest.raises(depura.InputError, match=f"got the {name} stream"):
        choose(defence, images[None], labels, noise, draws=range(2))


def test_scores_equal_draws_made_one_by_one() -> None:
    data = depura.load_digits("test").first(3)
    purifier = depura.diffpure(depura.digits_denoiser(), t_star=0.3, n_steps=2, t_end=0.0, solver=depura.Ancestral())
    defence = depura.Defence(purifier, depura.digits_classifier())
    noise = Streams(1).report(data.ids)
    found = score(defence, data.images, data.labels, noise, draws=range(4, 9))
    with torch.no_grad():
        logits = torch.stack([defence(data.images, noise.draw(k)) for k in range(4, 9)], dim=1)
    assert torch.equal(found.predictions, logits.argmax(2))
    own = logits.gather(2, data.labels[:, None, None].expand(-1, 5, 1))[..., 0]
    others = logits.scatter(2, data.labels[:, None, None].expand(-1, 5, 1), -torch.inf).amax(2)
    torch.testing.assert_close(found.margins, (others - own).mean(1).double(), rtol=1e-4, atol=1e-4)


def test_the_candidate_with_most_errors_is_chosen_and_ties_go_by_margin() -> None:
    """A 'classifier' that reads its two logits from two pixels."""
    defence = depura.Defence(None, lambda x: x[:, 0, 0, :2])
    low, high, none = torch.tensor([0.4, 0.5]), torch.tensor([0.1, 0.9]), torch.tensor([0.9, 0.1])
    candidates = torch.stack([none, low, high])[:, None, None, None, :]
    choice = choose(defence, candidates, torch.tensor([0]), Streams(0).select((0,)), draws=range(3))
    assert choice.errors.tolist() == [[0], [3], [3]]
    assert choice.which.tolist() == [2]
    assert choice.margins.tolist() == pytest.approx([0.8])
    assert torch.equal(choice.images[0, 0, 0], high)
