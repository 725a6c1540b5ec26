"""A purification method of one's own: guidance is a function from the state to a displacement.

This one pulls the estimate of the clean image toward the input by the squared distance, image by image. Its gradient
with respect to the input (which enters twice) is exact without a further line.
"""

from dataclasses import dataclass

import torch

import depura


@dataclass(frozen=True)
class TowardInput:
    """Displacement - strength * d/dx |x0 - x_in|^2."""

    strength: float

    def __call__(self, at: depura.State) -> torch.Tensor:
        return self.strength * depura.minus_gradient((at.x0 - at.x_in).square().flatten(1).sum(1), at.x)


data = depura.load_digits("test").first(4)
plain = depura.diffpure(depura.digits_denoiser(), t_star=0.3, n_steps=6, t_end=0.0, solver=depura.Ancestral())
guided = plain.with_(guidance=TowardInput(0.02))
noise = depura.Noise(0, data.ids)

for name, purifier in {"plain": plain, "guided": guided}.items():
    images = data.images.clone().requires_grad_()
    clean = purifier(images, noise)
    (gradient,) = torch.autograd.grad(clean.sum(), images)
    change = float((clean - data.images).detach().abs().mean())
    print(f"{name:7s} mean change {change:.3f}, gradient norm {float(gradient.norm()):.2f}")
