"""Clean a batch of images: a denoiser, a step table and a solver make a purifier."""

import torch

import depura

data = depura.load_digits("test").first(8)

purifier = depura.DiffusionPurifier(
    depura.digits_denoiser(),
    steps=depura.uniform_steps(depura.VP(), t_start=0.09, n_steps=5),
    solver=depura.Ancestral(),
)

# Randomness is a value: the same seed and image ids give the same result, in any batch.
noise = depura.Noise(seed=0, images=data.ids)
with torch.no_grad():
    clean = purifier(data.images, noise)
    again = purifier(data.images[2:3], noise.take([2]))

print(f"mean change {float((clean - data.images).abs().mean()):.3f}")
print(f"image 2 alone and in the batch differ by {float((clean[2:3] - again).abs().max()):.1e}")

# The reverse process, step by step.
for moment in purifier.trajectory(data.images, noise):
    print(f"sigma {moment.step.sigma:.3f} -> {moment.step.sigma_next:.3f}, estimate at {float(moment.x0.mean()):.3f}")
