"""Faults planted in somebody's own module are seen by the audit, which names the part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depura
from depura import Defence, wrap
from slow import slow

DIGITS = depura.load_digits("test").first(3)


class Half(torch.autograd.Function):
    """The identity, with half of its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return grad_outputs[0] / 2


class Block(nn.Module):
    """A smooth block, with a fault in it."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1) if fault == "train mode" else nn.Identity()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x))
        if self.fault == "no_grad":
            with torch.no_grad():
                h = h + torch.sin(3 * x)
        if self.fault == "detach":
            h = h + torch.sin(3 * x).detach()
        if self.fault == "private generator":
            h = h + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        if self.fault == "batch mean":
            h = h + x.mean()
        if self.fault == "wrong backward":
            apply: Any = Half.apply
            h = apply(h)
        if self.fault == "in-place":
            h = torch.exp(h)
            h.mul_(2)
        return self.norm(h)


class Mine(nn.Module):
    """A purifier around the block."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.block = Block(fault)
        self.train(fault == "train mode")

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.2 * self.block(x) + 0.05 * torch.randn_like(x)
        return x


def audited(fault: str) -> depura.Audit:
    defence = Defence(wrap(Mine(fault), network="block"), depura.digits_classifier())
    return depura.audit_gradient(defence, DIGITS.images)


def test_a_sound_module_is_not_blamed() -> None:
    audit = audited("")
    assert audit.light.name == "GREEN"
    assert not audit.faults


@pytest.mark.parametrize(
    ("fault", "red"),
    [
        ("no_grad", "differences"),
        slow("detach", "differences"),
        ("private generator", "replay"),
        slow("batch mean", "batch"),
        slow("wrong backward", "differences"),
        ("train mode", "batch"),
        ("in-place", "gradient"),
    ],
)
def test_a_fault_is_named(fault: str, red: str) -> None:
    audit = audited(fault)
    assert audit.light.name == "RED"
    assert red in {check.name for check in audit.checks if check.light.name == "RED"}
    assert any("block" in found.part for found in audit.faults)


def test_code_that_mixes_its_batch_may_go_one_by_one() -> None:
    """Guidance by a mean over the batch, as in released code: the audit says what to do, and that helps."""

    def guided(x: Tensor) -> Tensor:
        return x - 0.1 * (x - x.mean())

    def audited_with(**settings: bool) -> depura.Audit:
        return depura.audit_gradient(Defence(wrap(guided, **settings), depura.digits_classifier()), DIGITS.images)

    (fault,) = audited_with().faults
    assert fault.sentence.endswith("Or say isolate=True: images then go through it one by one.")
    assert not audited_with(isolate=True).faults
