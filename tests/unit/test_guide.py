"""TRADES and adversarial training against transcriptions, closed forms, and what an attack must keep to."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import depura
from depura.noise import Kind, Noise, Stream
from depura.training.classifier import Model, ShiftedCrossEntropy, begun, model, train_classifier
from depura.training.guide import AdversarialTraining, LogitDistance, Trades, divergence, noised, noised_to
from depura.training.loop import Recipe
from depura.training.mixture import Mixture, augmented

B, SIZE, K = 6, 4, 3
NOISE = Noise(5, tuple(range(B)), draws=2, stream=Stream.TRAIN)


def generated(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = generated(B, 1, SIZE, SIZE), torch.tensor([0, 1, 2, 0, 1, 2])


def linear(seed: int = 1) -> nn.Sequential:
    """W x + b, so steep that the two directions of the divergence lead an attack to different places."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, K)).double()
    with torch.no_grad():
        net[1].weight.copy_(4 * generated(K, SIZE * SIZE, seed=seed) - 2)
        net[1].bias.copy_(generated(K, seed=seed + 1))
    return net


def curved() -> nn.Sequential:
    """A net whose loss has no closed form."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 8), nn.Tanh(), nn.Linear(8, K)).double()
    with torch.no_grad():
        for seed, p in enumerate(net.parameters()):
            p.copy_(2 * generated(*p.shape, seed=10 + seed) - 1)
    return net


def by_hand(weight: Tensor, bias: Tensor, *, eps: float, step: float, n_steps: int, beta: float) -> Tensor:
    """TRADES for W x + b, image by image and class by class, the inner gradient in closed form.

    d KL(p || q) / d x' = W^T (q - p) for a linear model.
    """
    total = weight.new_zeros(())
    moved = augmented(X, NOISE).flatten(1)
    starts = 1e-3 * NOISE(X, kind=Kind.ATTACK).flatten(1)
    for x, start, y in zip(moved, starts, Y.tolist(), strict=True):

        def probabilities(image: Tensor) -> Tensor:
            z = (weight @ image + bias).exp()
            return z / z.sum()

        attacked = torch.stack([(x + start), x - eps, torch.zeros_like(x)]).max(0).values
        attacked = torch.stack([attacked, x + eps, torch.ones_like(x)]).min(0).values
        for _ in range(n_steps):
            slope = weight.T @ (probabilities(attacked) - probabilities(x))
            moved_to = attacked + step * slope.sign()
            attacked = torch.tensor(
                [max(0.0, o - eps, min(1.0, o + eps, v)) for v, o in zip(moved_to.tolist(), x.tolist(), strict=True)],
                dtype=x.dtype,
            )
        p, q = probabilities(x), probabilities(attacked)
        total = total - p[y].log() + beta * sum(p[k] * (p[k].log() - q[k].log()) for k in range(K))
    return total / B


def test_trades_equals_its_formula_and_so_does_its_gradient() -> None:
    """Through p(x) and p(x'), x' being a constant."""
    net, settings = linear(), {"eps": 0.2, "n_steps": 4, "beta": 6.0}
    weight, bias = net[1].weight, net[1].bias
    expected = by_hand(weight, bias, step=0.08, **settings)
    found = Trades(net, step_size=0.08, **settings)(X, Y, NOISE)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    theirs = torch.autograd.grad(expected, [weight, bias])
    for mine, other in zip(torch.autograd.grad(found, [weight, bias]), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_the_divergence_is_that_of_the_attacked_from_the_clean_distribution() -> None:
    """sum p log(p / q), p clean: not the other way round, and per image."""
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.1, 0.8]])
    expected = 0.7 * math.log(7) + 0.2 * math.log(2) + 0.1 * math.log(0.1 / 0.8)
    found = divergence(torch.cat([p, q]).log(), torch.cat([q, q]).log())
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-6)


def test_the_loss_is_a_mean_over_images() -> None:
    loss = Trades(curved(), eps=0.1, step_size=0.03)
    rows = [[0, 1], [2, 3, 4, 5]]
    parts = [loss(X[r], Y[r], NOISE.take(r)).item() * len(r) for r in rows]
    assert sum(parts) / B == pytest.approx(loss(X, Y, NOISE).item(), rel=1e-10)


def test_the_distance_of_logits_has_a_closed_form_on_a_binary_linear_model() -> None:
    """c = (0, w.x + b): D = (w.d)^2 / 2 is largest at a corner of the box, and CE has its logistic form."""
    w, eps, beta = 2 * generated(SIZE * SIZE, seed=3) - 1, 0.05, 6.0
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.zeros_like(w), w]))
        net[1].bias.zero_()
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    loss = LogitDistance(net, shift=0, eps=eps, step_size=eps / 4, n_steps=20, beta=beta)
    x = (0.5 + 0.3 * (X - 0.5)).detach()  # the ball lies in [0, 1]
    logit, reach = x.flatten(1) @ w, eps * w.abs().sum()
    expected = nn.functional.softplus((1 - 2 * y) * logit) + beta * reach.square() / 2
    torch.testing.assert_close(loss(x, y, NOISE), expected.mean(), rtol=1e-9, atol=0)


def test_images_are_noised_to_a_given_time() -> None:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) n, abar of a linear beta(t) from 0.1 to 20; t = 0 changes nothing."""
    times = [0.0, 0.01, 0.05, 0.1, 0.5, 1.0]
    found = noised_to(X, NOISE, times=times)
    n = NOISE(X, kind=Kind.FORWARD)
    for i, t in enumerate(times):
        abar = math.exp(-0.1 * t - 19.9 * t**2 / 2)
        x_t = math.sqrt(abar) * (2 * X[i] - 1) + math.sqrt(1 - abar) * n[i]
        torch.testing.assert_close(2 * found[i] - 1, x_t, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eps", [0.02, 0.3])
def test_the_inner_attacks_stay_where_they_may_and_gain_with_steps(eps: float) -> None:
    net = curved()
    x = torch.cat([X[:3], X[3:].round()])
    gains: dict[str, list[Tensor]] = {"trades": [], "at": []}
    for n_steps in (1, 3, 10):
        settings = {"eps": eps, "step_size": eps / 4, "n_steps": n_steps}
        found = {
            "trades": Trades(net, **settings).attack(x, NOISE),
            "at": AdversarialTraining(net, **settings).attack(x, Y, NOISE),
        }
        for name, attacked in found.items():
            assert float((attacked - x).abs().max()) <= eps + 1e-12
            assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
            assert not attacked.requires_grad
            with torch.no_grad():
                gain = divergence(net(x), net(attacked)) if name == "trades" else -net(attacked).log_softmax(1)
            gains[name].append(gain if name == "trades" else gain.gather(1, Y[:, None])[:, 0])
    start = X.new_zeros(B), -net(x).detach().log_softmax(1).gather(1, Y[:, None])[:, 0]
    for name, before in zip(gains, start, strict=True):
        one, three, ten = gains[name]
        assert (ten > before).all()
        assert float(one.mean()) < float(three.mean()) < float(ten.mean())


def test_on_a_linear_binary_model_adversarial_training_finds_the_worst_corner() -> None:
    """CE of (0, w.x + b) is largest in the box at x -/+ eps sign(w), clipped: closed form."""
    w = 2 * generated(SIZE * SIZE, seed=3) - 1
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.zeros_like(w), w]))
        net[1].bias.zero_()
    y, eps = torch.tensor([0, 1, 0, 1, 0, 1]), 0.15
    found = AdversarialTraining(net, eps=eps, step_size=eps / 4, n_steps=10).attack(X, y, NOISE)
    towards = (1 - 2 * y)[:, None, None, None] * w.sign().view(1, 1, SIZE, SIZE)
    assert torch.equal(found, (X + eps * towards).clamp(0, 1))
    logit = (X.flatten(1) * w).sum(1)
    value = AdversarialTraining(net, eps=eps, step_size=eps / 4)(X, y, NOISE)
    moved = augmented(X, NOISE)
    worst = ((moved + eps * towards).clamp(0, 1).flatten(1) * w).sum(1)
    expected = torch.log1p(torch.exp((1 - 2 * y) * worst)).mean()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    assert not torch.equal(worst, logit)


def test_starts_are_those_of_the_papers() -> None:
    """Small and normal for TRADES, uniform in the ball for adversarial training: seen after a step of no length."""
    still, inside = 1e-12, torch.full((B, 1, 20, 20), 0.5, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(400, K)).double()
    trades = Trades(net, eps=0.2, step_size=still, n_steps=1).attack(inside, NOISE) - inside
    uniform = AdversarialTraining(net, eps=0.2, step_size=still, n_steps=1).attack(inside, Y, NOISE) - inside
    assert float(trades.std()) == pytest.approx(1e-3, rel=0.05)
    assert float(uniform.abs().max()) == pytest.approx(0.2, rel=0.01)
    assert float(uniform.std()) == pytest.approx(0.2 / math.sqrt(3), rel=0.05)


def test_the_attack_looks_at_the_network_in_evaluation_mode_and_leaves_it_as_it_was() -> None:
    modes: list[bool] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.frozen = curved(), nn.BatchNorm2d(1).double()

        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            assert not self.frozen.training
            return self.net(self.frozen(x))

    net = Watched().train()
    net.frozen.eval()
    for loss, looks, trained in (
        (Trades(net, eps=0.1, n_steps=3), 4, 2),
        (AdversarialTraining(net, eps=0.1, n_steps=3), 3, 1),
    ):
        modes.clear()
        loss(X, Y, NOISE).backward()
        assert modes == [False] * looks + [True] * trained
        assert net.training
        assert net.net.training
        assert not net.frozen.training


def test_the_attack_leaves_no_gradients_of_weights() -> None:
    net = curved()
    Trades(net, eps=0.1).attack(X, NOISE)
    AdversarialTraining(net, eps=0.1).attack(X, Y, NOISE)
    assert all(p.grad is None for p in net.parameters())


def test_noise_hides_the_image_as_diffusion_does_at_a_uniform_time() -> None:
    """x_t = sqrt(abar) x0 + sqrt(1 - abar) n, t uniform up to the given one, in units of [0, 1]."""
    n, up_to = 400, 0.3
    noise = Noise(0, tuple(range(n)), stream=Stream.TRAIN)
    ones = torch.ones(n, 1, 8, 8, dtype=torch.float64)
    white, black = (2 * noised(value * ones, noise, up_to=up_to) - 1 for value in (1, 0))
    scale = (white - black) / 2
    assert torch.allclose(scale, scale[:, :1, :1, :1].expand_as(scale))
    torch.testing.assert_close((white - scale) / (1 - scale**2).sqrt(), noise(ones, kind=Kind.FORWARD))
    log_abar = 2 * scale[:, 0, 0, 0].log()
    t = ((0.1**2 - 2 * 19.9 * log_abar).sqrt() - 0.1) / 19.9
    for k in range(1, 10):
        assert float((t < k / 10 * up_to).double().mean()) == pytest.approx(k / 10, abs=0.07)
    assert 0 < float(t.min()) < float(t.max()) < up_to


def test_clean_and_attacked_images_stand_behind_the_same_noise() -> None:
    """Else the divergence would not vanish where x' = x."""
    loss = Trades(curved(), eps=1e-9, step_size=1e-9, beta=1e6, noise_up_to=0.5)
    plain = Trades(curved(), eps=1e-9, step_size=1e-9, beta=0.0, noise_up_to=0.5)
    assert loss(X, Y, NOISE).item() == pytest.approx(plain(X, Y, NOISE).item(), rel=1e-6)
    without = Trades(curved(), eps=1e-9, step_size=1e-9, beta=0.0)
    assert plain(X, Y, NOISE).item() != pytest.approx(without(X, Y, NOISE).item(), rel=1e-3)


def test_a_loss_names_its_settings() -> None:
    net = curved()
    assert repr(Trades(net, eps=0.1)) == (
        f"Trades(shift=1, flip=False, eps=0.1, step_size={2 / 255}, n_steps=10, noise_up_to=0.0, beta=6.0)"
    )
    assert repr(ShiftedCrossEntropy(net)) == "ShiftedCrossEntropy(shift=1, flip=False)"


@pytest.mark.parametrize("loss", [Trades, AdversarialTraining])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eps": 0.0}, r"eps in \(0, 1\]"),
        ({"eps": 8.0}, r"eps in \(0, 1\].*8/255"),
        ({"eps": math.nan}, "eps"),
        ({"step_size": 0.0}, "step_size"),
        ({"n_steps": 0}, "n_steps at least 1"),
        ({"noise_up_to": 1.5}, r"noise_up_to in \[0, 1\]"),
    ],
)
def test_unusable_settings(loss: type[Trades], settings: dict[str, float], said: str) -> None:
    with pytest.raises(depura.InputError, match=said):
        loss(linear(), **settings)  # type: ignore[arg-type]


def test_a_shift_below_zero_is_refused() -> None:
    with pytest.raises(depura.InputError, match="shift"):
        Trades(linear(), shift=-1)


def test_images_are_moved_by_whole_pixels_and_half_of_them_mirrored() -> None:
    """A bright pixel left of the middle tells both where it went and which side it is on."""
    noise = Noise(1, tuple(range(2000)), stream=Stream.TRAIN)
    images = torch.zeros(2000, 1, 9, 9)
    images[:, 0, 4, 3] = 1.0
    for shift, flip in ((0, True), (2, False), (2, True)):
        found = augmented(images, noise, shift=shift, flip=flip)
        assert torch.equal(found.sum((1, 2, 3)), torch.ones(2000))
        rows, columns = (found[:, 0].sum(d).argmax(1) for d in (2, 1))
        counts = torch.bincount(rows, minlength=9)
        assert set(counts.nonzero().flatten().tolist()) == set(range(4 - shift, 5 + shift))
        assert float(counts.max()) < 1.2 * 2000 / (2 * shift + 1)
        share = float((columns - 3 - 2 * (columns > 4)).double().abs().le(shift).double().mean())
        assert share == 1.0
        mean = float(columns.double().mean())
        assert mean == pytest.approx(4.0 if flip else 3.0, abs=0.15)


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(depura.InputError, match="beta"):
        Trades(linear(), beta=-1.0)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Conv2d(1, 10, 3), r"logits \(B, K\).*shape \(1, 10, 6, 6\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), r"at least 10 classes.*\(1, 9\)"),
    ],
)
def test_networks_that_give_no_logits(network: nn.Module, said: str) -> None:
    with pytest.raises(depura.InputError, match=said):
        train_classifier(
            depura.load_digits("train"),
            Recipe(n_steps=1),
            start=Model(network, network, {}),
            loss=partial(Trades, eps=0.2),
        )


def test_training_begins_with_the_weights_of_a_file(tmp_path: Path) -> None:
    """And goes on from them: no step leaves them; the file says so; another network's are refused."""
    data = depura.load_digits("train").first(16)
    mixture = Mixture.of([data])
    trained = depura.digits_guide()
    path = tmp_path / "guide.safetensors"
    save_file({name: tensor.half() for name, tensor in trained.state_dict().items()}, path)
    start = begun(model("small", mixture, seed=3), path)
    again = begun(model("small", mixture, seed=4), path)
    assert start.about["start"] == again.about["start"]
    images = data.images
    with torch.no_grad():
        torch.testing.assert_close(start.network.eval()(images), trained(images), rtol=0, atol=1e-2)
    with pytest.raises(depura.InputError, match=r"--start: expected weights of the network"):
        begun(model("resnet8", mixture, seed=3), path)
    with pytest.raises(depura.InputError, match="expected a readable safetensors file"):
        begun(model("small", mixture, seed=3), tmp_path / "none.safetensors")
