"""Fast denoisers: the plain one to rounding, in value and in gradient; what is recorded, copied and refused."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depura
from depura import Clipped, Defence, DiffusionPurifier, Direct, EpsDenoiser, Fast, InputError, Noise, StoredState
from depura.audit import audit
from depura.audit.audit import audit_gradient
from depura.audit.checks import Light
from depura.diffusion.exact import GaussianDenoiser
from depura.diffusion.schedules import VP, TimeLabel, uniform_steps
from depura.models.networks.adapters import OfClass
from depura.models.networks.edm import SongUNet
from depura.models.networks.preconditioned import EdmPreconditioned
from depura.models.networks.score_sde import NcsnPP
from depura.noise import Stream
from depura.purifiers.fast import Deviation, deviation
from depura.records.describe import describe
from toys import TanhNet, rand, randn

SIGMA = 0.4


def unet() -> EpsDenoiser:
    """A U-Net with attention, small, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NcsnPP(width=8, multipliers=(1, 2), blocks=1, attention=(1,)).eval().requires_grad_(False)
    return EpsDenoiser(network, label=TimeLabel(VP()))


def state(batch: int = 2, *, seed: int = 3) -> Tensor:
    return randn(batch, 3, 8, 8, seed=seed, dtype=torch.float32)


def pulled(denoiser: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
    """The gradient of a fixed linear function of the estimate."""
    leaf = x.clone().requires_grad_()
    weights = randn(*x.shape, seed=4, dtype=x.dtype)
    return torch.autograd.grad((denoiser(leaf, SIGMA) * weights).sum(), leaf)[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def purifier(denoiser: Any, *, route: Any = None) -> DiffusionPurifier:
    steps = uniform_steps(VP(), t_start=0.1, n_steps=3)
    return DiffusionPurifier(denoiser, steps=steps, solver=depura.Ancestral(), gradient=route)


def test_with_everything_off_it_is_the_plain_denoiser() -> None:
    plain, x = unet(), state()
    same = Fast(plain, dtype=None, channels_last=False, compiled=False)
    assert torch.equal(same(x, SIGMA), plain(x, SIGMA))
    assert torch.equal(pulled(same, x), pulled(plain, x))


def test_the_memory_layout_changes_rounding_only() -> None:
    plain, x = unet(), state()
    seen: list[bool] = []
    fast = Fast(plain, dtype=None, compiled=False)
    plain.network.all_modules[2].register_forward_pre_hook(  # copied with the network
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    out = fast(x, SIGMA)
    assert seen == [True]
    assert out.is_contiguous()
    assert 0 < relative(pulled(fast, x), pulled(plain, x)) < 1e-5
    torch.testing.assert_close(out, plain(x, SIGMA), rtol=0, atol=1e-5)


def test_bfloat16_is_bfloat16_inside_and_float32_outside() -> None:
    """Against the convolution of rounded numbers in float64."""
    convolution = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    convolution.weight.data = randn(3, 3, 3, 3, seed=5, dtype=torch.float32)

    class OnImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = convolution

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            assert x.dtype == label.dtype == torch.float32
            return self.convolution(x)

    denoiser = EpsDenoiser(OnImages(), label=TimeLabel(VP()))
    x = state()
    fast = Fast(denoiser, compiled=False)
    out = fast(x, SIGMA)

    def rounded(t: Tensor) -> Tensor:
        return t.bfloat16().double()

    eps = nn.functional.conv2d(rounded(denoiser.scale(SIGMA) * x), rounded(convolution.weight.data), padding=1)
    expected = torch.sub(x, rounded(eps).float(), alpha=SIGMA)  # rounded once, as the denoiser does
    assert out.dtype == torch.float32
    # Sums in another order may round the other way: one unit in the last of bfloat16's eight bits.
    assert bool(((out - expected).abs() <= SIGMA * eps.abs() * 2**-7 + 1e-6).all())
    assert float((out == expected).float().mean()) > 0.9
    assert float((out == denoiser(x, SIGMA)).float().mean()) < 0.1
    assert convolution.weight.dtype == torch.float32


def test_bfloat16_stays_near_the_plain_denoiser_and_its_gradient() -> None:
    plain, x = unet(), state()
    fast = Fast(plain, compiled=False)
    assert 1e-6 < relative(fast(x, SIGMA), plain(x, SIGMA)) < 1e-2
    gradient = pulled(fast, x)
    assert gradient.dtype == torch.float32
    assert 1e-6 < relative(gradient, pulled(plain, x)) < 2e-2


def test_the_gradient_of_a_walk_is_that_of_the_fast_walk() -> None:
    images, noise = rand(2, 3, 8, 8, dtype=torch.float32), Noise(0, (0, 1))

    def gradient(route: Any) -> Tensor:
        leaf = images.clone().requires_grad_()
        walk = purifier(Fast(unet(), compiled=False), route=route)
        return torch.autograd.grad(walk(leaf, noise).square().sum(), leaf)[0]

    exact = gradient(Direct())
    assert relative(gradient(StoredState(segment=1)), exact) < 1e-5
    assert relative(gradient(StoredState(budget=0)), exact) < 1e-5


def test_float64_and_meta_go_to_the_plain_denoiser() -> None:
    fast = Fast(unet(), compiled=False)
    fast(state(), SIGMA)
    double = fast.double()
    x = state().double()
    assert torch.equal(double(x, SIGMA), unet().double()(x, SIGMA))
    empty = Fast(unet()).to("meta")
    assert empty(torch.empty(2, 3, 8, 8, device="meta"), SIGMA).shape == (2, 3, 8, 8)


def test_weights_are_read_again_after_a_move() -> None:
    fast, x = Fast(unet(), compiled=False), state()
    before = fast(x, SIGMA)
    with torch.no_grad():
        for weight in fast.parameters():
            weight.mul_(1.1)
    assert torch.equal(fast(x, SIGMA), before)  # a copy, as is said
    fast.to("cpu")
    assert not torch.equal(fast(x, SIGMA), before)


def test_a_move_that_changes_nothing_makes_nothing_anew() -> None:
    """Every unit of work moves its defence to the device: what is compiled must outlive that."""
    fast, x = Fast(unet(), compiled=False), state()
    fast(x, SIGMA)
    made = fast.network_alone
    purifier(fast).to("cpu")
    assert fast.network_alone is made
    fast.double().float()
    assert fast.network_alone is not made


def test_a_purifier_around_it_takes_its_images_and_is_described() -> None:
    plain = purifier(unet())
    fast = plain.over(lambda denoiser: Fast(denoiser, compiled=False))
    fast(rand(2, 3, 8, 8, dtype=torch.float32), Noise(0, (0, 1)))
    said, was = describe(fast)["denoiser"], describe(plain)["denoiser"]
    assert said["denoiser"] == was
    assert {k: v for k, v in said.items() if k not in ("type", "denoiser")} == {
        "precision": "bfloat16",
        "channels_last": True,
        "compiled": False,
        "cuda_graphs": False,
    }
    assert sum(p.numel() for p in fast.parameters()) == sum(p.numel() for p in plain.parameters())
    assert not fast.same_function(plain)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_compute_the_same(again: Callable[[Fast], Fast]) -> None:
    fast, x = Fast(EpsDenoiser(TanhNet(3).float(), label=TimeLabel(VP())), compiled=False), state()
    expected = fast(x, SIGMA)
    other = again(fast)
    assert torch.equal(other(x, SIGMA), expected)
    assert other.denoiser is not fast.denoiser


def test_networks_are_found_inside() -> None:
    x = state()
    clipped = Clipped(unet())
    assert torch.equal(Fast(clipped, dtype=None, channels_last=False, compiled=False)(x, SIGMA), clipped(x, SIGMA))
    near = Fast(clipped, compiled=False)(3 * x, SIGMA)
    assert float(near.abs().max()) == 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        karras = EdmPreconditioned(SongUNet(resolution=8, width=16, multipliers=(1, 2), blocks=1, attention=()))
    karras.eval().requires_grad_(False)
    assert 0 < relative(Fast(karras, compiled=False)(x, SIGMA), karras(x, SIGMA)) < 1e-2
    assert isinstance(Fast(karras, compiled=False).network_alone.network, SongUNet)


def test_the_network_of_a_class_is_found_behind_its_preconditioner() -> None:
    """Compiled with the noise level as a number it would be compiled again for each: what is fast takes labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = SongUNet(resolution=8, width=16, multipliers=(1, 2), blocks=1, attention=(), classes=3)
        for p in unet.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    plain, x = Clipped(OfClass(EdmPreconditioned(unet).eval().requires_grad_(False), 2)), state()
    fast = Fast(plain, compiled=False)
    assert 0 < relative(fast(x, SIGMA), plain(x, SIGMA)) < 1e-2
    assert isinstance(fast.network_alone.network, SongUNet)
    other = Clipped(OfClass(plain.denoiser.network, 1))
    assert not torch.equal(other(x, SIGMA), plain(x, SIGMA))


def test_the_remark_says_how_the_network_runs() -> None:
    graphs = Fast(unet(), cuda_graphs=True)
    assert graphs.remark == "The network runs in bfloat16, channels-last, compiled, from CUDA graphs"
    assert Fast(unet(), dtype=None, compiled=False).remark == "The network runs channels-last"
    assert Fast(unet(), dtype=None, channels_last=False, compiled=False).remark == ""
    plain = purifier(unet())
    assert plain.remarks == ()
    assert plain.over(lambda d: Fast(d, compiled=False)).remarks == ("The network runs in bfloat16, channels-last",)


@pytest.mark.slow
@pytest.mark.parametrize(("close", "light"), [(2.0, Light.GREEN), (0.0, Light.AMBER)])
def test_an_audit_says_by_how_much_it_changes_images(
    close: float, light: Light, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CLOSE", close)
    images = rand(2, 3, 8, 8, dtype=torch.float32)
    plain = purifier(unet())
    fast = plain.over(lambda denoiser: Fast(denoiser, compiled=False))

    def judge(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]

    found = {check.name: check for check in audit_gradient(Defence(fast, judge), images, seed=5).checks}
    noise = Noise(5, (0, 1), stream=Stream.PROBE)
    assert str(deviation(fast, images, noise)) in found["fast network"].sentence
    assert found["fast network"].light is light
    assert found["precision"].sentence == "Computed in float64."
    assert "fast network" not in {check.name for check in audit_gradient(Defence(plain, judge), images).checks}


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(InputError, match="EpsDenoiser"):
        Fast(GaussianDenoiser(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)))
    with pytest.raises(InputError, match=r"torch\.bfloat16"):
        Fast(unet(), dtype=torch.float64)
    with pytest.raises(InputError, match="compiled=True"):
        Fast(unet(), compiled=False, cuda_graphs=True)


def test_where_compiling_fails_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: nn.Module, **_: Any) -> Callable[..., Tensor]:
        def call(*_: Any, **__: Any) -> Tensor:
            raise RuntimeError("no such instruction\nand forty lines more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setenv("CXX", shutil.which("true") or "true")
    fast, x = Fast(unet()), state()
    with pytest.warns(UserWarning, match=r"without torch\.compile, because RuntimeError: no such instruction\.$"):
        out = fast(x, SIGMA)
    assert torch.equal(out, Fast(unet(), compiled=False)(x, SIGMA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fast(x, SIGMA), out)
    with pytest.raises(InputError, match="divisible"):
        Fast(unet())(x[..., :7], SIGMA)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    x = state()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler"):
        out = Fast(unet())(x, SIGMA)
    assert torch.equal(out, Fast(unet(), compiled=False)(x, SIGMA))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_it_is_the_same_function() -> None:
    plain = EpsDenoiser(TanhNet(3).float(), label=TimeLabel(VP()))
    fast, x = Fast(plain, dtype=None), state()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Fast:")
        out, gradient = fast(x, SIGMA), pulled(fast, x)
    torch.testing.assert_close(out, plain(x, SIGMA), rtol=0, atol=1e-5)
    assert relative(gradient, pulled(plain, x)) < 1e-5


def test_the_deviation_is_that_of_purified_images() -> None:
    images, noise = rand(2, 3, 8, 8, dtype=torch.float32), Noise(0, (0, 1))
    plain = purifier(unet())
    assert deviation(plain, images, noise) == Deviation(0.0, 0.0)
    fast = plain.over(lambda denoiser: Fast(denoiser, compiled=False))
    found = deviation(fast, images, noise)
    far = sorted((255 * (fast(images, noise) - plain(images, noise)).abs()).flatten().tolist())
    assert found.largest == far[-1]
    assert found.median == far[(len(far) - 1) // 2]
    assert 0 < found.median < found.largest < 2
    assert "/255 (median)" in str(found)
