"""Disjoint streams of noise, so that searching, choosing, reporting and verifying never share a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depura import _check
from depura.noise import Noise, Stream

SCORING = (Stream.SELECT, Stream.REPORT, Stream.NULL, Stream.VERIFY)
"""The streams that scores may be computed on."""


@dataclass(frozen=True)
class Streams:
    """The noise of a study. Streams differ in the counter of the generator, so they cannot overlap.

    Attributes:
        seed: the study's seed.
    """

    seed: int

    def init(self, ids: Sequence[int]) -> Noise:
        """Where attacks start."""
        return Noise(self.seed, tuple(ids), stream=Stream.INIT)

    def eot(self, ids: Sequence[int]) -> Noise:
        """What attacks average their gradients over."""
        return Noise(self.seed, tuple(ids), stream=Stream.EOT)

    def select(self, ids: Sequence[int]) -> Noise:
        """What candidates are compared on."""
        return Noise(self.seed, tuple(ids), stream=Stream.SELECT)

    def report(self, ids: Sequence[int]) -> Noise:
        """What is reported; touched once, after everything is chosen."""
        return Noise(self.seed, tuple(ids), stream=Stream.REPORT)

    def probe(self, ids: Sequence[int]) -> Noise:
        """What gradients are compared on."""
        return Noise(self.seed, tuple(ids), stream=Stream.PROBE)

    def null(self, ids: Sequence[int]) -> Noise:
        """What unattacked images are scored on."""
        return Noise(self.seed, tuple(ids), stream=Stream.NULL)

    def verify(self, ids: Sequence[int]) -> Noise:
        """What recorded examples are scored on anew, to see whether their record holds."""
        return Noise(self.seed, tuple(ids), stream=Stream.VERIFY)


def for_scoring(noise: Noise) -> Noise:
    """Refuse any noise but that of the scoring streams.

    Args:
        noise: what a score is about to be computed on.

    Returns:
        The same noise.

    Raises:
        InputError: it belongs to an attack or to deployment.
    """
    if noise.stream not in SCORING:
        _check.fail(
            "score",
            "noise of the select, report, null or verify stream",
            f"the {noise.stream.name.lower()} stream",
            "A score on draws that an attack has seen says nothing.",
        )
    return noise
