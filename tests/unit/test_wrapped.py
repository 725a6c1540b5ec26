"""Somebody's own module as a purifier: the same numbers alone and in a batch, the exact gradient, what is refused."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor, nn
from torch.nn import functional as F

import depura
import foreign
from benchmarks.memory import peak_bytes
from depura import Defence, Direct, InputError, Noise, StraightThrough, wrap, wrap_defence
from depura.evaluation.counting import counted
from depura.purifiers.addressed import Observed, addressed
from depura.records.describe import describe
from slow import slow_among

DIGITS = depura.load_digits("test").first(5)
X, NOISE = DIGITS.images, Noise(3, DIGITS.ids)

OPERATORS = {
    "randn_like": torch.randn_like,
    "randn": lambda x: torch.randn(x.shape),
    "randn, out": lambda x: torch.randn(x.shape, out=torch.empty(x.shape)),
    "normal_": lambda x: torch.empty_like(x).normal_(1, 2),
    "normal of a mean": lambda x: torch.normal(x, 0.1),
    "normal of numbers": lambda x: torch.normal(0.0, 2.0, x.shape),
    "rand_like": torch.rand_like,
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1, 1),
    "bernoulli": lambda x: torch.bernoulli(x),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "dropout": lambda x: F.dropout(x, 0.5, True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "dropout2d": lambda x: F.dropout2d(x, 0.5, True),
    "randint": lambda x: torch.randint(0, 9, (len(x),)),
    "random_": lambda x: torch.empty(len(x), dtype=torch.long).random_(3, 7),
    "exponential_": lambda x: torch.empty_like(x).exponential_(2.0),
}
"""Random operators of torch, of images (B, C, H, W)."""


def drawn(draw: Any, x: Tensor, noise: Noise) -> Tensor:
    with addressed(noise, Observed()):
        return draw(x)


@pytest.mark.parametrize("draw", OPERATORS.values(), ids=OPERATORS)
def test_an_image_has_its_own_numbers(draw) -> None:
    """Alone and in a batch, whatever was drawn before; other images and draws have others."""
    x = torch.rand(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    noise = Noise(0, tuple(range(10, 16)))
    torch.manual_seed(1)
    whole = drawn(draw, x, noise)
    torch.manual_seed(2)
    assert torch.equal(drawn(draw, x[4:5], noise.take([4]))[0], whole[4])
    assert torch.equal(drawn(draw, x, noise), whole)
    assert not torch.equal(drawn(draw, x, noise.draw(1)), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) > 1


@pytest.mark.parametrize(
    ("draw", "mean", "std"),
    [
        (lambda x: torch.randn_like(x), 0.0, 1.0),
        (lambda x: torch.empty_like(x).normal_(1, 2), 1.0, 2.0),
        (lambda x: torch.rand_like(x), 0.5, 12**-0.5),
        (lambda x: torch.empty_like(x).uniform_(-2, 4), 1.0, 6 * 12**-0.5),
        (lambda x: torch.empty_like(x).bernoulli_(0.3), 0.3, 0.21**0.5),
        (lambda x: torch.empty_like(x).exponential_(2.0), 0.5, 0.5),
        (lambda x: torch.randint(0, 11, x.shape).double(), 5.0, 10**0.5),
        (lambda x: F.dropout(torch.ones_like(x), 0.2, True), 1.0, 0.5),
    ],
)
def test_numbers_have_their_distribution(draw, mean: float, std: float) -> None:
    """Mean and deviation of 40,000 numbers, to five standard errors of the mean."""
    values = drawn(draw, torch.zeros(4, 100, 100), Noise(0, (0, 1, 2, 3))).double()
    error = 5 * std / values.numel() ** 0.5
    assert float(values.mean()) == pytest.approx(mean, abs=error)
    assert float(values.std()) == pytest.approx(std, abs=2 * error + 0.02 * std)


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    seen = Observed()
    with addressed(NOISE, seen):
        torch.randn(3), random.random(), np.random.rand(), torch.randperm(4), np.random.default_rng().random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert seen.sources == {"numpy", "random"}
    assert seen.whole == {"randn", "randperm"}


def test_a_seeded_generator_gives_the_same_path_again() -> None:
    """As of a Brownian tree: the same seed and offset, the same numbers, of each image its own."""

    def path(seed: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    with addressed(NOISE, Observed()):
        first, other, again = path(1, (5, 8)), path(2, (5, 8)), path(1, (5, 8))
        generator = torch.Generator().manual_seed(1)
        moved = [torch.randn((5, 8), generator=generator) for _ in range(2)]
    assert torch.equal(first, again)
    assert torch.equal(first, moved[0])
    assert not torch.equal(moved[0], moved[1])
    assert not torch.equal(first, other)
    with addressed(NOISE.take([2]), Observed()):
        assert torch.equal(path(1, (1, 8))[0], first[2])


def test_a_backward_pass_goes_along_the_same_path() -> None:
    """Code that asks its generator again in its backward pass, as an adjoint does, is given the same numbers."""
    asked: list[Tensor] = []

    class Path(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, seed: int) -> Tensor:
            ctx.seed = seed
            asked.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
            return x * asked[-1]

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            asked.append(torch.randn(X[:1].shape, generator=torch.Generator().manual_seed(ctx.seed)))
            return grad_outputs[0] * asked[-1], None

    def purify(x: Tensor) -> Tensor:
        apply: Any = Path.apply
        return apply(x, int(np.random.randint(0, 2**31 - 1)))

    purifier = wrap(purify)
    purified = purifier(X, NOISE)
    asked.clear()
    found = gradient(purifier)
    expected = 2 * purified * torch.where(X > 0, purified / X, 0)
    assert torch.allclose(torch.where(X > 0, found, 0), expected, rtol=1e-4, atol=1e-5)
    assert len({tuple(numbers[:1].flatten().tolist()) for numbers in asked}) == len(X)


def test_code_that_seeds_torch_itself_draws_the_same_every_time() -> None:
    def fixed(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return x + torch.randn_like(x)

    purifier = wrap(fixed)
    assert torch.equal(purifier(X, NOISE), purifier(X, NOISE.draw(5)))
    assert purifier.observed.sources == {"torch.manual_seed"}


PURIFIERS = {
    "loop": (foreign.loop, {}),
    "diffusers": (foreign.diffusers, {"range": (-1, 1), "network": "unet"}),
    "sde": (foreign.sde, {}),
    "vp sde": (foreign.vp_sde, {}),
    "langevin": (foreign.langevin, {}),
    "random depth": (foreign.random_depth, {}),
    "chatty": (foreign.chatty, {"call": "image_editing_sample", "range": (-1, 1), "n_results": 3}),
    "guided": (foreign.guided, {}),
    "dropped": (foreign.dropped, {}),
    "runner": (foreign.runner, {"call": "purify"}),
}


def gradient(purifier: Any, x: Tensor = X, noise: Noise = NOISE) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(purifier(leaf, noise).square().sum(), leaf)[0]


@pytest.mark.parametrize("name", slow_among(PURIFIERS, {"sde", "vp sde", "random depth", "chatty", "runner"}))
def test_a_wrapped_purifier_is_repeatable_and_exact(name: str) -> None:
    """The same alone, in another order and again; its gradient is that of the full graph and of finite differences."""
    make, settings = PURIFIERS[name]
    purifier = wrap(make(), **settings)
    purified = purifier(X, NOISE)
    assert purified.shape == X.shape
    assert torch.equal(purifier(X, NOISE), purified)
    assert torch.allclose(purifier(X[3:], NOISE.take([3, 4])), purified[3:], atol=1e-5)
    assert torch.allclose(purifier(X.flip(0), NOISE.take([4, 3, 2, 1, 0])).flip(0), purified, atol=1e-5)
    assert not torch.allclose(purifier(X, NOISE.draw(1)), purified, atol=1e-2)
    exact, full = gradient(purifier), gradient(purifier.with_(gradient=Direct()))
    assert torch.allclose(exact, full, rtol=1e-4, atol=1e-5)
    direction = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    ahead, behind = (purifier.purify(X + h * direction, NOISE).double().square().sum() for h in (1e-2, -1e-2))
    if make is not foreign.guided:  # whose mask jumps
        slope = float((exact * direction).sum())
        assert float((ahead - behind) / 2e-2) == pytest.approx(slope, rel=0.05, abs=0.05)


def test_our_chain_and_the_foreign_one_are_one_function() -> None:
    """A wrapped loop against depura's own parts given the same numbers: value and gradient to rounding."""

    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = depura.digits_denoiser()

        def forward(self, x: Tensor) -> Tensor:
            noises = [torch.randn_like(x) for _ in range(5)]
            steps = depura.diffusion.schedules.steps_at(
                depura.diffusion.schedules.EDM(), (0.5, 0.375, 0.25, 0.125, 0.0)
            )

            def told(like: Tensor, *, kind: Any, step: int = 0) -> Tensor:
                return noises[0] if kind is depura.Kind.FORWARD else noises[1 + step]

            state = 2 * x - 1 + steps[0].sigma * noises[0]
            for step in steps:
                state = depura.Ancestral().step(self.denoiser, state, step, told).x_next  # type: ignore[arg-type]
            return (state + 1) / 2

    ours, theirs = wrap(Ours(), network="denoiser"), wrap(foreign.loop(), network="unet")
    assert torch.allclose(ours(X, NOISE), theirs(X, NOISE), atol=1e-5)
    assert torch.allclose(gradient(ours), gradient(theirs), rtol=1e-3, atol=1e-4)


class OurVpSde(nn.Module):
    """DiffPure of depura's own parts, on the numbers that `foreign.VpSde` draws."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = depura.digits_denoiser()
        self.steps = depura.diffpure(self.denoiser, t_star=0.1, n_steps=5).steps

    def forward(self, x: Tensor) -> Tensor:
        start, clock = torch.randn_like(x), torch.tensor([0.9, 1 - 1e-5])
        path = torchsde.BrownianInterval(clock[0], clock[1], tuple(x.flatten(1).shape), dtype=x.dtype)
        times = [*itertools.accumulate([0.02] * 4, lambda at, step: at + step, initial=clock[0]), clock[1]]
        moves = [path(a, b).reshape(x.shape) / (b - a) ** 0.5 for a, b in itertools.pairwise(times)]

        def drawn(like: Tensor, *, kind: Any, step: int = 0) -> Tensor:
            return start if kind is depura.Kind.FORWARD else moves[step]

        state = depura.from_input(2 * x - 1, self.steps[0], drawn)  # type: ignore[arg-type]
        for step in self.steps:
            state = depura.EulerMaruyamaVP().step(self.denoiser, state, step, drawn).x_next  # type: ignore[arg-type]
        return (self.steps[-1].scale_next * state + 1) / 2


def test_our_reverse_sde_and_that_of_torchsde_are_one_function() -> None:
    """The same Brownian path: value and gradient agree to rounding."""
    ours, theirs = wrap(OurVpSde(), network="denoiser"), wrap(foreign.vp_sde(), network="model")
    assert torch.allclose(ours(X, NOISE), theirs(X, NOISE), atol=1e-5)
    assert torch.allclose(gradient(ours), gradient(theirs), rtol=1e-3, atol=1e-4)


def test_network_calls_are_counted_and_checkpointed() -> None:
    defence = Defence(wrap(foreign.loop(), n_steps=4), depura.digits_classifier())
    model, counts = counted(defence)
    leaf = X.clone().requires_grad_()
    torch.autograd.grad(model(leaf, NOISE).sum(), leaf)
    assert (counts.forward, counts.backward) == (20, 20)
    assert defence.core is not None
    assert defence.core.network_name == "unet"


@pytest.mark.slow
def test_peak_memory_is_that_of_one_call_and_the_states() -> None:
    """By the allocator: of 20 steps, against the graph of one call of the network and an image for each step."""
    module, cpu = foreign.diffusers(), torch.device("cpu")
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = Noise(0, tuple(range(16)))

    def one_call() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(module.unet(leaf, torch.full((16,), 10)).sample.sum(), leaf)

    wrapped = wrap(module, network="unet", range=(-1, 1), n_steps=20)
    gradient(wrapped, x, noise)  # what is made once
    whole = peak_bytes(lambda: gradient(wrapped, x, noise), device=cpu)
    states = 20 * x.numel() * x.element_size()
    assert whole <= 1.3 * (peak_bytes(one_call, device=cpu) + states)
    full = wrapped.with_(gradient=Direct())
    assert peak_bytes(lambda: gradient(full, x, noise), device=cpu) > 5 * whole


def test_surrogates_of_fewer_steps_where_there_is_a_number_of_steps() -> None:
    purifier = wrap(foreign.loop(), set={"n_steps": 6})
    assert (purifier.n_steps, purifier.shortens) == (6, True)
    assert purifier.coarser(3).n_steps == 2
    assert torch.equal(purifier.with_(n_steps=2)(X, NOISE), wrap(foreign.loop(), n_steps=2)(X, NOISE))
    fixed = wrap(foreign.sde())
    assert not fixed.shortens
    with pytest.raises(InputError, match="expected a callable with a number of steps, got one without"):
        fixed.coarser(5)


def test_an_attribute_can_be_set_for_the_call() -> None:
    runner = foreign.runner()
    short = wrap(runner, call="purify", set={"args": {"n": 1}})
    assert torch.equal(short(X, NOISE), wrap(foreign.Runner(1), call="purify")(X, NOISE))
    assert runner.args == {"n": 4}


def test_results_are_averaged_or_taken_apart() -> None:
    module = foreign.chatty()
    settings: dict[str, Any] = {"call": "image_editing_sample", "range": (-1, 1), "n_results": 3}
    mean, apart = wrap(module, **settings), wrap(module, combine="apart", **settings)
    single = torch.stack([apart(X, NOISE.draw(d)) for d in range(3)])
    assert torch.allclose(single.mean(0), mean(X, NOISE), atol=1e-6)
    calls = module.calls
    Defence(apart, depura.digits_classifier(), rule=depura.Vote(3))(X, NOISE)
    assert module.calls == calls + len(X), "one call makes one vote of three"


def test_one_of_several_results_is_said() -> None:
    """Code that gives the image of every round, or something besides."""

    def rounds(x: Tensor) -> list[Tensor]:
        return [x, x / 2, x / 4]

    assert torch.equal(wrap(rounds, result=-1)(X, NOISE), X / 4)
    assert torch.equal(wrap(lambda x: ("info", x / 2, x.mean()))(X, NOISE), X / 2)
    logits = depura.digits_classifier()
    last = wrap_defence(lambda x: (x.flatten(1), logits(x)), result=1)
    assert torch.equal(last(X, NOISE), logits(X))


def test_printing_files_and_state_are_seen(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    purifier = wrap(foreign.chatty(), call="image_editing_sample", range=(-1, 1), n_results=3)
    purifier(X, NOISE)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())
    assert purifier.observed.files == len(X)
    assert purifier.observed.printed > 0
    assert purifier.observed.state == {"calls"}
    wrap(foreign.chatty(), call="image_editing_sample", range=(-1, 1), n_results=3, quiet=False)(X, NOISE)
    assert "purifying 1 images" in capsys.readouterr().out


def test_modes_of_wrapped_modules_are_kept() -> None:
    left_on = foreign.dropped()
    defence = Defence(wrap(left_on), depura.digits_classifier())
    defence.eval()
    assert left_on.dropout.training
    assert not foreign.loop().training
    audit = depura.audit_gradient(defence, X[:2])
    modes = next(check for check in audit.checks if check.name == "modes")
    assert "training mode" in modes.sentence


def test_a_whole_defence() -> None:
    defence = wrap_defence(foreign.whole())
    logits = defence(X, NOISE)
    parts = Defence(wrap(foreign.whole().purifier), depura.digits_classifier())
    assert torch.allclose(logits, parts(X, NOISE), atol=1e-4)
    assert torch.allclose(gradient(defence), gradient(parts), rtol=1e-3, atol=1e-3)
    vote = wrap_defence(foreign.whole(), rule=depura.Vote(3))
    assert torch.equal(vote(X, NOISE), vote(X, NOISE))
    with pytest.raises(InputError, match="expected a purifier, which gives images, got a defence that gives logits"):
        gradient(defence.with_(gradient=StraightThrough()))


def test_code_without_a_gradient_takes_bpda() -> None:
    defence = Defence(wrap(foreign.no_gradient(), differentiable=False), depura.digits_classifier())
    assert defence.mode is depura.GradientMode.BPDA
    assert bool(gradient(defence).any())
    audit = depura.audit_gradient(defence, X[:2])
    check = next(check for check in audit.checks if check.name == "gradient")
    assert "grad mode is off when unet is called" in check.sentence
    assert audit.light.name == "AMBER"
    suite = depura.profiles.quick(defence, depura.Ball("linf", 0.2))
    assert {str(row.kind) for row in suite.rows} == {"undefended", "unchanged", "transfer", "bpda", "black-box"}


def test_records_say_what_was_wrapped_and_how() -> None:
    one, two = (describe(wrap(foreign.loop(), n_steps=n)) for n in (4, 5))
    assert one["thing"] == "foreign.Loop"
    assert one["type"] == "depura.Wrapped"
    assert len(one["weights_sha256"]) == 64
    assert one["arguments"] == {"n_steps": 4}
    assert {key for key in one if one[key] != two[key]} == {"arguments"}
    assert describe(wrap(foreign.loop(), n_steps=4)) == one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrap(3), "expected a module, a function or an object that can be called, got int"),
        (lambda: wrap(foreign.loop(), network="net"), r"expected network to name a module inside \(unet\), got 'net'"),
        (lambda: wrap(foreign.runner(), call="clean"), "expected call to name a method of Runner, got 'clean'"),
        (lambda: wrap(foreign.loop(), set={"steps": 3})(X, NOISE), r"set= to name arguments \(x, n_steps\)"),
        (lambda: wrap(lambda x: x[:2])(X, NOISE), r"expected images of shape \(5, C, H, W\), got \(2, 1, 8, 8\)"),
        (lambda: wrap(lambda x: torch.cat([x, x]))(X[:1], NOISE.take([0])), "say n_results=2"),
        (lambda: wrap(lambda x: [x, x])(X, NOISE), "expected one batch of images, got 2 of them. Say which"),
        (lambda: wrap(lambda x: [x, x], result=2)(X, NOISE), "expected result= from -2 to 1, got 2"),
        (lambda: wrap(lambda x: "picture")(X, NOISE), "expected a tensor of results, got str"),
        (lambda: wrap(lambda x: x.to("cuda"))(X, NOISE), "got code that asks for CUDA"),
        (lambda: wrap(lambda x: x + np.load("w.npy"))(X, NOISE), "say scratch=False, or give it an absolute path"),
        (lambda: wrap(foreign.loop(), range=(1, 0)), r"expected range=\(low, high\) with low < high"),
        (lambda: wrap(foreign.loop(), combine="vote"), "expected combine among mean, apart, got 'vote'"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(make, message: str) -> None:
    if "CUDA" in message and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(InputError, match=message):
        make()


class _Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("form", [lambda z: {"logits": z}, lambda z: (z, None), _Answer, lambda z: [z]])
def test_classifiers_may_answer_as_libraries_do(form) -> None:
    plain = depura.digits_classifier()
    assert torch.equal(Defence(None, lambda x: form(plain(x)))(X), Defence(None, plain)(X))


def test_classifiers_in_half_precision_and_in_place() -> None:
    half = depura.digits_classifier().bfloat16()
    logits = Defence(None, half)(X)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, depura.digits_classifier()(X), atol=0.5)
    before = X.clone()
    Defence(None, lambda x: depura.digits_classifier()(x.mul_(0.5)))(X)
    assert torch.equal(X, before)


def test_probabilities_are_noticed() -> None:
    plain = depura.digits_classifier()
    names = [
        {check.name for check in depura.audit_gradient(Defence(None, classify), X[:2]).checks}
        for classify in (plain, lambda x: plain.to(x.dtype)(x).softmax(1))
    ]
    assert "probabilities" not in names[0]
    assert "probabilities" in names[1]


def test_one_score_is_no_classification() -> None:
    with pytest.raises(InputError, match="of at least two classes"):
        Defence(None, lambda x: x.flatten(1)[:, :1])(X)


def test_networks_behind_functions_are_called_by_their_class() -> None:
    """As released code has it: a function, a configuration, and an object that is no module."""

    class Diffusion:
        def __init__(self) -> None:
            self.model = foreign.Digits()

    @torch.no_grad()
    def purify(x: Tensor, diffusion: Diffusion) -> Tensor:
        for sigma in (0.3, 0.2):
            x = diffusion.model(x + sigma * torch.randn_like(x), noise_level=sigma)["clean"]
        return x

    purifier = wrap(functools.partial(purify, diffusion=Diffusion()), differentiable=False)
    purifier(X, NOISE)
    assert purifier.network_name == "Digits"
    assert purifier.why_no_gradient(X, NOISE).startswith("grad mode is off when Digits is called")


@pytest.mark.parametrize(
    ("make", "settings"), [(foreign.loop, {}), (foreign.diffusers, {"range": (-1, 1)})], ids=["loop", "diffusers"]
)
def test_its_network_runs_in_fewer_bits(make, settings) -> None:
    """`Fast` around the network of somebody's own code, whatever that takes and gives."""
    plain = wrap(make(), network="unet", **settings)
    fast = plain.over(functools.partial(depura.Fast, compiled=False))
    difference = (fast(X, NOISE) - plain(X, NOISE)).abs().max()
    assert 1e-5 < float(difference) < 0.1
    assert fast(X, NOISE).dtype == X.dtype
    cosine = F.cosine_similarity(gradient(fast).flatten(), gradient(plain).flatten(), dim=0)
    assert float(cosine) > 0.95
    assert fast.remarks == ("The network runs in bfloat16, channels-last",)
    with pytest.raises(InputError, match=r"of wrapped code, name it: depura.wrap\(..., network=...\)"):
        wrap(make(), **settings).over(depura.Fast)


def test_of_two_networks_of_one_class_the_repeated_one_is_found() -> None:
    """Both behind a function: one is called at every step, the other once."""
    often, once = foreign.Digits(), foreign.Digits()

    def purify(x: Tensor) -> Tensor:
        for sigma in (0.3, 0.2):
            x = often(x + sigma * torch.randn_like(x), noise_level=sigma)["clean"]
        return once(x, noise_level=0.1)["clean"]

    defence, counts = counted(Defence(wrap(purify), depura.digits_classifier()))
    defence(X, NOISE)
    assert counts.forward == 2 * len(X)


def test_a_network_in_fewer_bits_answers_in_the_form_and_the_dtype_of_the_plain_one() -> None:
    class Answer(NamedTuple):
        clean: Tensor
        steps: Tensor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Answer:
            return Answer(self.layer(x), torch.arange(3))

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> Tensor:
            answer = self.net(x)
            assert isinstance(answer, Answer)
            assert (answer.clean.dtype, answer.steps.dtype) == (x.dtype, torch.int64)
            return answer.clean

    wrap(Mine(), network="net").over(functools.partial(depura.Fast, compiled=False))(X, NOISE)
