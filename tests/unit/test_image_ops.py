"""JPEG against libjpeg, through Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import depura
from depura import InputError, Jpeg, Noise, Relaxed, jpeg_only
from depura.image_ops import CHROMINANCE, LUMINANCE


def scene(n: int = 20, *, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Smooth shapes with edges and a little grain, in 255ths."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    edges = (torch.rand(n, 1, 3, 3, generator=generator) > 0.5).float()
    shapes = torch.nn.functional.interpolate(edges, size=(height, width), mode="nearest")
    grain = 0.02 * torch.randn(n, channels, height, width, generator=generator)
    return (255 * (0.7 * smooth + 0.3 * shapes + grain)).round().clamp(0, 255) / 255


def by_libjpeg(images: Tensor, quality: int, subsampled: bool) -> Tensor:
    decoded = []
    for image in images:
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)
        options = {} if len(image) == 1 else {"subsampling": 2 if subsampled else 0}
        picture.save(buffer, format="JPEG", quality=quality, **options)
        array = np.array(Image.open(buffer))
        decoded.append(torch.from_numpy(array.reshape(*image.shape[1:], len(image))).permute(2, 0, 1))
    return torch.stack(decoded).float() / 255


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize("size", [(32, 32), (27, 21)])
@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("subsampled", [True, False])
def test_colour_is_decoded_as_libjpeg_does(size: tuple[int, int], quality: int, subsampled: bool) -> None:
    """Nearer to it, by far, than either is to the original, but for a level of rounding."""
    images = scene(height=size[0], width=size[1])
    found, expected = Jpeg(quality, subsampled)(images), by_libjpeg(images, quality, subsampled)
    assert rms(found - expected) < 0.25 * rms(images - expected) + 0.5 / 255


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
def test_grey_is_decoded_as_libjpeg_does(quality: int) -> None:
    """Some coefficients near the middle between two steps go the other way, since libjpeg's are whole numbers."""
    images = scene(channels=1)
    found, expected = Jpeg(quality)(images), by_libjpeg(images, quality, False)
    assert rms(found - expected) < 0.15 * rms(images - expected) + 0.5 / 255


@pytest.mark.parametrize("quality", [1, 30, 50, 75, 100])
def test_quantisation_is_that_of_libjpeg(quality: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="JPEG", quality=quality)
    tables = Image.open(buffer).quantization  # type: ignore[attr-defined]
    for number, ours in ((0, LUMINANCE), (1, CHROMINANCE)):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        mine = [min(max((q * scale + 50) // 100, 1), 255) for row in ours for q in row]
        assert sorted(mine) == sorted(tables[number])


def test_results_are_whole_255ths_and_do_not_depend_on_the_batch() -> None:
    images = scene()
    found = Jpeg(60)(images)
    torch.testing.assert_close(255 * found, (255 * found).round(), rtol=0, atol=1e-4)
    assert torch.equal(found[3:4], Jpeg(60)(images[3:4]))


def test_before_a_classifier_its_exact_gradient_is_zero_and_the_relaxed_one_is_not() -> None:
    """What passes rounding by is a linear map near the identity: it keeps colours that no rounding changes."""
    images = scene(2).double()
    for route, size in ((None, 0.0), (Relaxed(), 1.0)):
        purifier = jpeg_only(quality=90, subsampled=False, gradient=route)
        x = images.clone().requires_grad_()
        found = purifier(x, Noise(0, (0, 1)))
        torch.testing.assert_close(found.detach(), Jpeg(90, False)(images), rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert float(gradient.abs().max()) == pytest.approx(size, abs=0.01)
    assert jpeg_only().n_steps == 1


@pytest.mark.parametrize("quality", [0, 101])
def test_unusable_settings(quality: int) -> None:
    with pytest.raises(InputError, match="quality"):
        jpeg_only(quality=quality)
    with pytest.raises(InputError, match="1 or 3 channels"):
        Jpeg()(torch.zeros(1, 2, 8, 8))
    assert depura.Jpeg is Jpeg
