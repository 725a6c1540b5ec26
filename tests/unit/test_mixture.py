"""Training on several sources: shares, addresses, and pictures that are held out in whatever compression."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from depura import ImageSet, InputError
from depura.noise import Kind, Noise, Stream
from depura.training.mixture import Mixture, split_held_out, without_copies


def source(n: int, *, seed: int = 0, classes: int = 3, size: int = 16, first: int = 0) -> ImageSet:
    """Coarse random pictures, so that small copies of two of them differ."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    labels = torch.arange(n) % classes
    return ImageSet(f"s{seed}", images, labels, tuple(range(first, first + n)), tuple("abcdef"[:classes]))


def drawn(mixture: Mixture, n: int, *, step: int = 0) -> Tensor:
    return mixture.rows(Noise(3, tuple(range(n)), draws=step, stream=Stream.TRAIN))


def test_each_source_has_its_share_and_each_of_its_images_is_as_likely() -> None:
    mixture = Mixture.of([source(5), source(40, seed=1), source(10, seed=2)], [2, 1, 1])
    rows = drawn(mixture, 20_000)
    shares = torch.bincount(mixture.source[rows], minlength=3) / len(rows)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]), rtol=0, atol=0.012)  # 3 s.e.
    counts = torch.bincount(rows, minlength=55) / len(rows)
    torch.testing.assert_close(counts[:5], torch.full((5,), 0.1), rtol=0, atol=0.008)
    torch.testing.assert_close(counts[5:45], torch.full((40,), 0.25 / 40), rtol=0, atol=0.0025)


def test_without_weights_every_image_is_as_likely() -> None:
    mixture = Mixture.of([source(30), source(10, seed=1)])
    assert mixture.weights == (0.75, 0.25)
    rows = drawn(mixture, 20_000)
    assert float((rows < 30).double().mean()) == pytest.approx(0.75, abs=0.01)


def test_a_row_depends_on_its_address_alone() -> None:
    mixture = Mixture.of([source(5), source(40, seed=1)], [1, 1])
    whole = drawn(mixture, 64, step=7)
    assert torch.equal(drawn(mixture, 64, step=7), whole)
    assert torch.equal(mixture.rows(Noise(3, (5, 60), draws=7, stream=Stream.TRAIN)), whole[[5, 60]])
    assert not torch.equal(drawn(mixture, 64, step=8), whole)


def test_one_source_is_drawn_from_as_before_there_were_several() -> None:
    """Weights that cards name can be made again."""
    noise = Noise(3, tuple(range(50)), draws=2, stream=Stream.TRAIN)
    assert torch.equal(Mixture.of([source(7)]).rows(noise), noise.bits((50,), kind=Kind.T_STAR) % 7)


def test_labels_are_those_of_the_sources_or_their_numbers() -> None:
    a, b = source(4), source(6, seed=1, classes=5)
    mixture = Mixture.of([a, b])
    assert torch.equal(mixture.labels, torch.cat([a.labels, b.labels]))
    assert mixture.n_classes == 5
    marked = mixture.labelled_by_source()
    assert marked.labels.tolist() == [0] * 4 + [1] * 6
    assert marked.n_classes == 2


def test_the_last_images_are_held_out() -> None:
    rest, kept = split_held_out(source(10, first=100), 3)
    assert rest.ids == tuple(range(100, 107))
    assert kept.ids == (107, 108, 109)
    with pytest.raises(InputError, match="9"):
        split_held_out(source(10), 10)


def jpeg(image: Tensor) -> Tensor:
    buffer = io.BytesIO()
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=50)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def test_copies_in_another_compression_are_found_and_others_stay() -> None:
    whole = source(60, size=32)
    compressed = whole._replace(images=torch.stack([jpeg(image) for image in whole.images]))
    assert not torch.equal(compressed.images, whole.images)
    _, kept = split_held_out(whole, 20)
    assert without_copies(compressed, kept).ids == tuple(range(40))
    strangers = source(30, seed=9, size=32)
    assert without_copies(strangers, kept).ids == strangers.ids


def test_a_copy_with_another_label_is_another_picture() -> None:
    whole = source(6)
    assert len(without_copies(whole._replace(labels=(whole.labels + 1) % 3), whole).images) == 6


@pytest.mark.parametrize(
    ("weights", "said"),
    [([1.0], "one weight for each of 2"), ([1.0, 0.0], "weight"), ([1.0, float("nan")], "weight")],
)
def test_unusable_weights(weights: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Mixture.of([source(4), source(4, seed=1)], weights)


def test_sources_of_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3, 16, 16\)"):
        Mixture.of([source(4), source(4, size=8)])
    with pytest.raises(InputError, match="at least one"):
        Mixture.of([])
