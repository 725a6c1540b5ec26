"""Words that records use: kinds of attack, gradient modes, and labels of what was predicted."""

from __future__ import annotations

from enum import Enum


class Word(str, Enum):
    """A word of a fixed list; equal to its text, printed as its text."""

    def __str__(self) -> str:
        """The text."""
        return str(self.value)


class AttackKind(Word):
    """What sort of attack a row is. Reports put rows of a kind under one heading, and checks compare kinds.

    Attributes:
        OTHER: not said.
        UNDEFENDED: the attack on the classifier without a purifier.
        UNCHANGED: images are returned as they are.
        RANDOM: random points of the ball.
        TRANSFER: examples that were made against another model than the one that is judged.
        BPDA: the purifier is differentiated as if it were the identity.
        SURROGATE: the gradient of a reverse process of fewer steps.
        ADAPTIVE: the gradient of the whole defence.
        RELAXED: as ADAPTIVE, with smooth functions in the place of those whose derivative is zero.
        TARGETED: towards one wrong class after another.
        SELECTIVE: along the draws that can be broken together.
        BLACK_BOX: no gradients.
        ONE_STEP: the adaptive attack cut to one step.
        BUDGET: the adaptive attack with more steps, draws or restarts.
        PINNED: the defence under one fixed noise, attacked and judged.
        TINY: the defence cut to the last step of its reverse process, attacked and judged.
        REFERENCE: a short attack of depura's own, beside the rows of a study.
    """

    OTHER = ""
    UNDEFENDED = "undefended"
    UNCHANGED = "unchanged"
    RANDOM = "random"
    TRANSFER = "transfer"
    BPDA = "bpda"
    SURROGATE = "surrogate"
    ADAPTIVE = "adaptive"
    RELAXED = "relaxed"
    TARGETED = "targeted"
    SELECTIVE = "selective"
    BLACK_BOX = "black-box"
    ONE_STEP = "one-step"
    BUDGET = "budget"
    PINNED = "pinned"
    TINY = "tiny"
    REFERENCE = "reference"


class GradientMode(Word):
    """How an attack differentiates what is judged.

    Attributes:
        EXACT: the derivative of the loss through everything that is judged.
        DEVIATED: as EXACT, of the loss and DiffAttack's deviated reconstruction.
        RELAXED: smooth functions in the place of those whose derivative is zero.
        BPDA: the purifier's Jacobian is taken to be the identity.
        SURROGATE: the gradient of a reverse process of fewer steps.
        ADJOINT: DiffPure's continuous adjoint.
        GRAFTED: the Jacobian of one draw for all draws.
        TRANSFER: the gradient of another model than the one that is judged.
        NONE: the attack uses no gradient.
    """

    EXACT = "exact"
    DEVIATED = "exact-deviated"
    RELAXED = "relaxed"
    BPDA = "bpda"
    SURROGATE = "surrogate"
    ADJOINT = "adjoint"
    GRAFTED = "grafted"
    TRANSFER = "transfer"
    NONE = "none"


NOT_FINITE = -1
"""Label of a prediction with a logit or a purified pixel that is not finite. It is no class, so it is never right."""


class ChoiceKind(Word):
    """How the images of a study were chosen.

    Attributes:
        ALL: all that there are.
        FIRST: the first ones.
        DRAWN: a draw that can be made again by its seed.
        OTHER: by other means.
        UNKNOWN: what they were chosen from is not known.
    """

    ALL = "all"
    FIRST = "first"
    DRAWN = "drawn"
    OTHER = "other"
    UNKNOWN = "unknown"
