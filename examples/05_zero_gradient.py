"""Why MimicDiffusion's exact gradient is zero, and what an attacker then does (docs/mimicdiffusion.md)."""

import torch

import depura

torch.set_num_threads(1)
data = depura.load_digits("test").first(16)
noise = depura.Noise(0, data.ids)
# In 50 steps; on 8x8 pixels this rho keeps the published displacement per pixel, 0.3662, of 32x32 images.
purifier = depura.mimicdiffusion(
    depura.digits_denoiser(),
    steps=depura.ddpm_steps(depura.DiscreteLinear(), n_noise=1000, n_steps=50),
    start=depura.from_unit_noise,
    released=True,
    rho=3000 * (8 * 8) / (32 * 32),
)
defence = depura.Defence(purifier, depura.digits_classifier())

print("Piecewise constant: images whose purification changes when their darker pixels move by")
double = depura.mimicdiffusion(
    depura.digits_denoiser().double(), steps=purifier.steps, start=purifier.start, released=True, rho=187.5
)
images = data.images.double()
with torch.no_grad():
    for nudge in (1e-9, 1e-7, 1e-5, 1e-3):
        moved = double(images + nudge * (images < 0.5), noise) != double(images, noise)
        print(f"  {nudge:.0e}  {float(moved.flatten(1).any(1).double().mean()):.1%}")


def accuracy(images: torch.Tensor) -> float:
    """On four draws that no attack has seen."""
    rows, draws = images.repeat_interleave(4, dim=0), noise.expand(range(100, 104))
    with torch.no_grad():
        return float((defence(rows, draws).argmax(1) == data.labels.repeat_interleave(4)).double().mean())


print(f"Accuracy, clean: {accuracy(data.images):.1%}")
attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=10, eot=2)
routes = {"exact": depura.StoredState(), "relaxed": depura.Relaxed(0.5), "BPDA": depura.StraightThrough()}
for name, route in routes.items():
    found = attack(defence.with_(gradient=route), data.images, data.labels, init=noise, eot=noise)
    zero = float(found.gradients.zero.double().mean())
    print(f"Accuracy, attacked through {name:8s} {accuracy(found.images[-1]):.1%}  (zero gradients {zero:.0%})")
