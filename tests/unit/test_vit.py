"""The Vision Transformer against the paper's equations written out and against torch's own layer; what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import depura
from depura._check import InputError
from depura.models.checkpoints import identify
from depura.models.networks.vit import SmallViT, vit_settings
from depura.training.classifier import Model, model
from depura.training.loop import save_weights
from depura.training.mixture import Mixture
from toys import rand, randn

TINY = {"image_size": 6, "patch": 2, "channels": 2, "n_classes": 3, "depth": 2, "width": 8, "heads": 2}


def seeded(network: SmallViT) -> SmallViT:
    """Weights of plausible size, from seeds; also those of the head, which begin at zero."""
    with torch.no_grad():
        for k, value in enumerate(network.parameters()):
            value.copy_(randn(*value.shape, seed=k) * (0.3 if value.ndim == 1 else value.shape[-1] ** -0.5))
    return network.double().eval()


def transcription(w: dict[str, Tensor], image: Tensor, *, patch: int, heads: int) -> Tensor:
    """Logits (K,) of one image (C, H, H): equations 1 to 8, patch by patch and head by head."""

    def norm(rows: Tensor, name: str) -> Tensor:
        centred = rows - rows.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(rows: Tensor, name: str) -> Tensor:
        return rows @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    corners = range(0, image.shape[1], patch)
    cut = [image[:, i : i + patch, j : j + patch].flatten() for i in corners for j in corners]
    kernel = w["patch_embed.proj.weight"].flatten(1)
    z = torch.stack([kernel @ piece for piece in cut]) + w["patch_embed.proj.bias"] + w["pos_embed"][0]
    width = z.shape[1]
    each = width // heads
    for k in range(sum(name.endswith("norm1.weight") for name in w)):
        at = f"blocks.{k}"
        qkv = linear(norm(z, f"{at}.norm1"), f"{at}.attn.qkv")
        results = []
        for head in range(heads):
            q, key, value = (qkv[:, part * width + head * each :][:, :each] for part in range(3))
            likeness = (q @ key.T / math.sqrt(each)).exp()
            results.append(likeness / likeness.sum(1, keepdim=True) @ value)
        z = z + linear(torch.cat(results, dim=1), f"{at}.attn.proj")
        hidden = linear(norm(z, f"{at}.norm2"), f"{at}.mlp.fc1")
        z = z + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{at}.mlp.fc2")
    return linear(norm(z, "norm").mean(0, keepdim=True), "head")[0]


@pytest.mark.parametrize(
    ("size", "patch", "channels", "depth", "width", "heads"),
    [(8, 2, 1, 2, 16, 4), (32, 4, 3, 3, 24, 4), (9, 3, 2, 1, 6, 1)],
)
def test_against_a_transcription(size: int, patch: int, channels: int, depth: int, width: int, heads: int) -> None:
    settings = {"image_size": size, "patch": patch, "channels": channels, "depth": depth, "width": width}
    network = seeded(SmallViT(**settings, heads=heads))
    x = randn(3, channels, size, size, seed=1)
    with torch.no_grad():
        expected = [transcription(network.state_dict(), image, patch=patch, heads=heads) for image in x]
        torch.testing.assert_close(network(x), torch.stack(expected), rtol=0, atol=1e-10)


def test_a_block_against_the_layer_of_torch() -> None:
    """In training, where torch's layer computes what it says, without its fused path."""
    network, tokens = seeded(SmallViT(**TINY)), randn(2, 9, 8, seed=1)
    layer = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    theirs = {
        "attn.qkv.": "self_attn.in_proj_",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "linear1",
        "mlp.fc2": "linear2",
    }
    state = network.blocks[1].state_dict()
    for name, other in theirs.items():
        state = {key.replace(name, other): value for key, value in state.items()}
    layer.load_state_dict(state)
    torch.testing.assert_close(network.blocks[1](tokens), layer.train()(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("depth", "width", "size", "patch"), [(6, 96, 32, 4), (4, 64, 32, 4), (3, 12, 8, 2)])
def test_number_of_parameters(depth: int, width: int, size: int, patch: int) -> None:
    """Per block 12 width^2 in matrices, 9 width in biases and 4 width in norms; patches, positions, norm and head."""
    network = SmallViT(depth=depth, width=width, image_size=size, patch=patch)
    embedding = width * (3 * patch**2 + 1) + (size // patch) ** 2 * width
    expected = depth * (12 * width**2 + 13 * width) + embedding + 2 * width + 10 * (width + 1)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert expected == {96: 683_050, 64: 207_946}.get(width, expected)


def test_images_of_a_batch_do_not_meet() -> None:
    """To the bit where the others of a batch change; alone, where libraries may add in another order, to 1e-12."""
    network, x, others = seeded(SmallViT(**TINY)), randn(5, 2, 6, 6, seed=1), randn(5, 2, 6, 6, seed=2)
    mixed = torch.cat([x[:2], others[2:]])
    for f in (network, lambda images: torch.autograd.grad(network(images.requires_grad_()).exp().sum(), images)[0]):
        assert torch.equal(f(x.clone())[:2], f(mixed.clone())[:2])
        assert not torch.equal(f(x.clone())[2:], f(mixed.clone())[2:])
        torch.testing.assert_close(f(x[:1].clone()), f(x.clone())[:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_do_not_depend_on_the_mode(dtype: torch.dtype) -> None:
    """To the bit: with a graph, without one, in inference mode, with frozen weights, and in training."""
    network, x = seeded(SmallViT(depth=2, width=96)).to(dtype), randn(3, 3, 32, 32, seed=1).to(dtype)
    with_graph = network(x.clone().requires_grad_())
    assert with_graph.requires_grad
    with torch.no_grad():
        assert torch.equal(network(x), with_graph)
    with torch.inference_mode():
        assert torch.equal(network(x), with_graph)
    assert torch.equal(network.train()(x), with_graph)
    assert torch.equal(network.eval().requires_grad_(False)(x), with_graph)


def test_gradients_of_first_and_second_order_against_difference_quotients() -> None:
    network, x = seeded(SmallViT(**TINY)), randn(1, 2, 6, 6, seed=1).requires_grad_()
    position = network.pos_embed
    f = lambda image, at: functional_call(network, {"pos_embed": at}, (image,))  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, position), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, position), fast_mode=True)


def test_under_transforms_and_checkpoints() -> None:
    """Gradients image by image, a derivative along a direction, and recomputation."""
    network, x, v = seeded(SmallViT(**TINY)), randn(3, 2, 6, 6, seed=1), randn(3, 2, 6, 6, seed=2)
    of_one = lambda image: network(image[None]).exp().sum()  # noqa: E731
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(leaf).exp().sum(), leaf)
    torch.testing.assert_close(vmap(grad(of_one))(x), expected, rtol=0, atol=1e-12)
    _, along = jvp(network, (x,), (v,))
    torch.testing.assert_close(along, (network(x + 1e-5 * v) - network(x - 1e-5 * v)) / 2e-5, rtol=0, atol=1e-8)
    (again,) = torch.autograd.grad(checkpoint(network, leaf, use_reentrant=False).exp().sum(), leaf)
    assert torch.equal(again, expected)


def test_a_step_of_training_lowers_the_loss() -> None:
    """By the rate times the squared length of the gradient, to first order; each weight has its part in it."""
    network, rate = seeded(SmallViT(image_size=8, patch=2, channels=1, depth=2, width=16)), 1e-4
    x, y = randn(20, 1, 8, 8, seed=1), torch.arange(20) % 10
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    before = F.cross_entropy(network(x), y)
    before.backward()
    lengths = {name: float(p.grad.pow(2).sum()) for name, p in network.named_parameters() if p.grad is not None}
    assert lengths.keys() == dict(network.named_parameters()).keys()
    assert min(lengths.values()) > 0
    optimiser.step()
    fallen = float((before - F.cross_entropy(network(x), y)).detach())
    assert fallen == pytest.approx(rate * sum(lengths.values()), rel=0.02)


def test_all_classes_are_as_likely_before_training() -> None:
    network = SmallViT(**TINY)
    assert torch.equal(network(torch.rand(2, 2, 6, 6)), torch.zeros(2, 3))
    assert 0.01 < float(network.pos_embed.std().detach()) < 0.03


def images(height: int, width: int | None = None, channels: int = 1) -> Mixture:
    """A data set of two classes."""
    pixels = rand(4, channels, height, width or height, seed=0).float()
    return Mixture.of([depura.ImageSet("random", pixels, torch.tensor([0, 1, 0, 1]), (0, 1, 2, 3), ("a", "b"))])


@pytest.mark.parametrize(
    ("name", "size", "patch", "depth", "width"),
    [("vit", 32, 4, 6, 96), ("vit-2-16", 8, 2, 2, 16), ("vit-1-8", 16, 4, 1, 8), ("vit-1-8", 14, 2, 1, 8)],
)
def test_names(name: str, size: int, patch: int, depth: int, width: int) -> None:
    made = model(name, images(size), seed=0)
    shapes = {key: tuple(value.shape) for key, value in made.weights.state_dict().items()}
    given = {
        "image_size": size,
        "patch": patch,
        "channels": 1,
        "n_classes": 2,
        "depth": depth,
        "width": width,
        "heads": 4,
    }
    assert vit_settings(shapes) == made.about["settings"] == given
    assert made.about["family"] == "vit"


@pytest.mark.parametrize("name", ["vit-6", "vit-0-96", "vit-6-0", "vit-6-98", "vit-6-96-4", "vit6"])
def test_names_of_no_transformer(name: str) -> None:
    with pytest.raises(InputError, match=r"--network.*vit or vit-D-W"):
        model(name, images(8), seed=0)


def test_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """With its normalisation and its number of heads, which its tensors do not tell."""
    made: Model = model("vit-2-16", images(8), seed=0)
    assert isinstance(made.weights, SmallViT)
    seeded(made.weights).float()
    save_weights(made.weights, tmp_path / "file.safetensors", made.about)
    said, x = identify(tmp_path / "file.safetensors"), rand(3, 1, 8, 8, seed=3).float()
    assert (said.family, said.denoises) == ("vit", False)
    assert said.parameters == sum(p.numel() for p in made.weights.parameters())
    with torch.no_grad():
        expected = made.network(x)
    assert torch.equal(depura.load_classifier(tmp_path / "file.safetensors")(x), expected)
    torch.save(made.weights.state_dict(), tmp_path / "bare.pt")
    bare = {
        heads: depura.load_classifier(tmp_path / "bare.pt", heads=heads, **made.about["options"])(x) for heads in (2, 4)
    }  # type: ignore[arg-type]
    assert torch.equal(bare[4], expected)
    assert not torch.allclose(bare[2], expected, atol=1e-3)


@pytest.mark.parametrize("given", [TINY, {**TINY, "image_size": 12, "patch": 3, "heads": 4, "depth": 11}])
def test_settings_come_back(given: dict[str, int]) -> None:
    shapes = {name: tuple(value.shape) for name, value in SmallViT(**given).state_dict().items()}
    assert vit_settings(shapes, heads=given["heads"]) == given
    assert vit_settings({**shapes, "cls_token": (1, 1, 8)}) is None
    assert vit_settings({name: shape for name, shape in shapes.items() if name != "pos_embed"}) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"patch": 5}, r"expected an image_size divisible by the patch, 5, got 32\. Resize the images"),
        ({"width": 98}, "expected a width divisible by the number of heads, 4, got 98"),
        *(({name: 0}, f"expected {name} at least 1, got 0") for name in TINY),
        ({"width": 96.0}, "expected width to be a whole number, got float"),
    ],
)
def test_sizes_that_are_refused(given: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError if "float" not in words else TypeError, match=f"^SmallViT: {words}"):
        SmallViT(**given)


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (1, 1, 32, 32), (1, 3, 32, 64), (3, 32, 32)])
def test_images_that_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^SmallViT: expected images \(B, 3, 32, 32\), got .* resize them"):
        SmallViT(depth=1)(torch.zeros(shape))


def test_data_that_are_refused() -> None:
    with pytest.raises(InputError, match="--network: expected square images for vit, got 8x12"):
        model("vit", images(8, 12), seed=0)
    with pytest.raises(InputError, match="expected an image_size divisible by the patch, 4, got 30"):
        model("vit", images(30), seed=0)
