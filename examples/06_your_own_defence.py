"""Somebody's own purifier, as it is: audited, attacked and judged. Runs in a minute on a processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import depura


class MyPurifier(nn.Module):
    """A chain of noising and denoising that draws its own noise, as research code does. It knows nothing of depura."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = depura.digits_denoiser()

    def forward(self, x: Tensor, n_steps: int = 4) -> Tensor:
        x = 2 * x - 1
        for k in range(n_steps):
            sigma = 0.4 * (1 - k / n_steps)
            x = self.unet(x + sigma * torch.randn_like(x), sigma)
        return (x + 1) / 2


def main() -> None:
    """Audit the gradient, attack through it, and run a small study."""
    purifier = depura.wrap(MyPurifier().eval(), network="unet", n_steps=4)
    defence = depura.Defence(purifier, depura.digits_classifier())
    data = depura.load_digits("test").first(4)

    audit = depura.audit_gradient(defence, data.images[:2])
    print(audit.verdict)
    print(next(check.sentence for check in audit.checks if check.name == "wrapped code"))

    ball = depura.Ball("linf", 0.2)
    attack = depura.APGD(ball, n_steps=5, eot=2)
    study = depura.Study(
        name="my-purifier",
        data=data,
        defence=defence,
        rows=depura.attack_suite(defence, attack),
        report_draws=8,
    )
    for row in study.rows:
        print(f"{row.name}: {row.title}")
    found = attack(
        defence, data.images, data.labels, init=depura.Noise(0, data.ids), eot=depura.Noise(1, data.ids)
    ).images[0]
    wrong = defence(found, depura.Noise(2, data.ids)).argmax(1) != data.labels
    print(f"{int(wrong.sum())} of {len(data.labels)} images are misclassified on fresh noise after five steps")


if __name__ == "__main__":
    main()
