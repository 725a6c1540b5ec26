"""What images were chosen from and how: told by positions, by loaders, and by the pixels of the bundled digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import depura
from depura.analysis.words import images_text
from depura.data.imageset import ImageSet
from depura.data.origins import choice_of, others_of
from depura.data.subsets import some_others
from depura.records.kinds import ChoiceKind
from depura.records.schema import Choice

TEST = depura.load_digits("test")


def by_hand(rows: list[int], name: str = "mine") -> ImageSet:
    return ImageSet(name, TEST.images[rows], TEST.labels[rows], tuple(range(len(rows))), TEST.classes)


def npz(path: Path, n: int, ids: list[int] | None = None) -> Path:
    images = np.random.RandomState(1).rand(n, 6, 6, 3).astype(np.float32)
    arrays = {"image": images, "label": np.arange(n) % 3}
    np.savez(path, **arrays, **({} if ids is None else {"ids": np.array(ids)}))
    return path


@pytest.mark.parametrize(
    ("data", "choice"),
    [
        (TEST, ("all", 500, None)),
        (TEST.first(16), ("first", 500, None)),
        (TEST.draw(24, seed=3), ("drawn", 500, 3)),
        (TEST.draw(24, seed=3).first(5), ("drawn", 500, 3)),
        (TEST.draw(24, seed=1234), ("drawn", 500, 1234)),
        (TEST.draw(24, seed=1234).take([1, 0]), ("other", 500, None)),
        (TEST.take(depura.subset(500, 24, seed=7)), ("drawn", 500, 7)),
        (TEST.take([4, 1, 3]), ("other", 500, None)),
        (TEST.first(200).take([4, 1, 3]), ("other", 500, None)),
        (by_hand([0, 1, 2]), ("first", 500, None)),
        (by_hand([0, 1, 3]), ("other", 500, None)),
        (by_hand([4, 1, 3])._replace(origin=TEST.first(3).origin), ("other", 500, None)),
        (depura.load_digits("train").first(9), ("first", 1297, None)),
    ],
)
def test_digits_are_known_by_their_pixels(data: ImageSet, choice: tuple[str, int, int | None]) -> None:
    assert choice_of(data) == choice


def test_digits_of_both_parts_are_of_all_digits() -> None:
    train = depura.load_digits("train")
    mixed = by_hand([0, 1])._replace(images=torch.cat([TEST.images[:1], train.images[:1]]))
    assert choice_of(mixed) == ("other", 1797, None)


@pytest.mark.parametrize(
    "images", [TEST.images[:3] * 0.9, torch.rand(3, 3, 8, 8), torch.empty(3, 1, 8, 8, device="meta")]
)
def test_of_other_images_that_somebody_put_together_nothing_is_known(images: torch.Tensor) -> None:
    data = by_hand([0, 1, 2], "digits-test")._replace(images=images)
    assert choice_of(data) is None
    assert others_of(data) is None
    assert choice_of(data.first(2)) is None
    assert choice_of(data.draw(2, seed=1)) is None


def test_a_file_knows_what_was_taken_of_it(tmp_path: Path) -> None:
    file = npz(tmp_path / "images.npz", 30)
    assert choice_of(depura.load_images(file)) == ("all", 30, None)
    assert choice_of(depura.load_npz(file).first(4)) == ("first", 30, None)
    few = depura.load_images(file, images=4)
    assert choice_of(few) == ("first", 30, None)
    assert choice_of(depura.load_images(file, rows=depura.subset(30, 9, seed=2))) == ("drawn", 30, 2)
    assert choice_of(depura.load_images(file, rows=[3, 1])) == ("other", 30, None)
    assert choice_of(depura.load_images(npz(tmp_path / "some.npz", 4, [7, 2, 9, 4]))) is None
    assert choice_of(depura.load_images(npz(tmp_path / "some.npz", 4, [7, 2, 9, 4]), images=2)) is None


def test_others_are_the_rest_of_what_is_at_hand(tmp_path: Path) -> None:
    file = npz(tmp_path / "images.npz", 30)
    whole = depura.load_images(file)
    assert others_of(whole) is None
    for data in (whole.take([3, 1, 8]), depura.load_images(file, rows=[3, 1, 8])):
        others = others_of(data)
        assert others is not None
        assert sorted(others.positions) == [k for k in range(30) if k not in (3, 1, 8)]
        assert torch.equal(others.images, whole.images[list(others.positions)])
        assert torch.equal(others.labels, whole.labels[list(others.positions)])
    grey = others_of(depura.load_images(file, rows=[3, 1, 8], channels=1))
    assert grey is not None
    assert grey.images.shape == (27, 1, 6, 6)
    digits = others_of(by_hand([5, 6, 9]))
    assert digits is not None
    assert len(digits.positions) == 400
    assert not {5, 6, 9} & set(digits.positions)


def test_images_that_were_changed_or_labelled_anew_have_no_others(tmp_path: Path) -> None:
    data = depura.load_images(npz(tmp_path / "images.npz", 30), images=4)
    assert others_of(data) is not None
    assert others_of(data._replace(images=data.images * 0.9)) is None
    assert others_of(data._replace(images=data.images[:, :, :3, :3])) is None
    assert others_of(data._replace(labels=data.labels.flip(0))) is None
    assert choice_of(data._replace(images=data.images * 0.9)) == ("first", 30, None)


def test_a_dataset_of_torch_says_how_many_it_has() -> None:
    items = [(torch.full((1, 4, 4), k / 20), k % 2) for k in range(12)]
    assert choice_of(depura.from_dataset(items, images=5)) == ("first", 12, None)
    assert choice_of(depura.from_dataset(items, rows=[4, 2])) == ("other", 12, None)


def test_a_draw_is_that_of_subset() -> None:
    drawn = TEST.draw(24, seed=3)
    assert drawn.ids == tuple(TEST.ids[k] for k in depura.subset(500, 24, seed=3))
    assert torch.equal(drawn.images, TEST.take(depura.subset(500, 24, seed=3)).images)
    with pytest.raises(depura.InputError, match=r"ImageSet.draw: expected .*500"):
        TEST.draw(501)


def test_others_are_the_same_each_time_and_none_of_the_chosen() -> None:
    found = some_others(50, [3, 4], most=10)
    assert found == some_others(50, [4, 3], most=10)
    assert len(set(found)) == 10
    assert set(some_others(50, [3, 4], most=99)) == set(range(50)) - {3, 4}
    assert some_others(2, [0, 1]) == ()


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (None, "16 images"),
        (Choice(kind=ChoiceKind.ALL, size=16), "16 images, all there are"),
        (Choice(kind=ChoiceKind.ALL, size=30), "16 images, the first of 30"),
        (Choice(kind=ChoiceKind.FIRST, size=360), "16 images, the first of 360"),
        (Choice(kind=ChoiceKind.DRAWN, size=360, seed=3), "16 images drawn at random of 360 (seed 3)"),
        (Choice(kind=ChoiceKind.OTHER, size=360), "16 of 360 images, chosen by other means"),
        (Choice(kind=ChoiceKind.UNKNOWN), "16 images (what they were chosen from is not known)"),
    ],
)
def test_the_choice_in_words(choice: Choice | None, text: str) -> None:
    assert images_text(16, choice) == text
