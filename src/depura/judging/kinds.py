"""Kinds of attack that an evaluation should run, in words."""

from __future__ import annotations

WORDS = {
    "undefended": "the attack on the undefended classifier (is it strong enough to say anything?)",
    "transfer": "examples transferred from another model",
    "bpda": "BPDA",
    "surrogate": "a surrogate of fewer steps",
    "adaptive": "an adaptive attack through the whole defence",
    "targeted": "targeted attacks",
    "selective": "an attack that looks at its draws one by one (selective)",
    "black-box": "attacks without gradients (black-box)",
    "random": "random search",
    "one-step": "an attack of one step",
    "pinned": "the defence with its noise pinned (which an attacker then knows)",
    "tiny": "the last step of the walk alone",
}
"""By kind of row (see `depura.evaluation.study.KINDS`), from blind to exact."""
