"""Somebody's own purifier, as it is: audited, attacked and judged. Runs in a minute on a processor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import depura
from depura.reports.page import write_reports


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
    """Audit the gradient, run a small study, and write its report."""
    purifier = depura.wrap(MyPurifier().eval(), network="unet", n_steps=4)
    defence = depura.Defence(purifier, depura.digits_classifier())
    data = depura.load_digits("test").first(4)
    audit = depura.audit_gradient(defence, data.images[:2])
    print(audit.verdict)
    print(next(check.sentence for check in audit.checks if check.name == "wrapped code"))

    attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=5, eot=2)
    rows = depura.attack_suite(defence, attack)
    study = depura.Study(name="my-purifier", data=data, defence=defence, rows=rows, report_draws=8)
    with tempfile.TemporaryDirectory() as folder:  # give it a folder of your own to keep the record
        summary, _ = write_reports(depura.run(study, Path(folder) / "run"))
    print(summary.headline)


if __name__ == "__main__":
    main()
