"""A study: which images, which defence, which attacks, how many draws. A value; the machine is not part of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor

from depura import _check
from depura.attacks.ball import Ball
from depura.attacks.eot import RandomModel
from depura.attacks.pgd import Candidates, Cost
from depura.defence import Defence
from depura.gradients import StraightThrough
from depura.noise import Noise
from depura.rules import Single


class LabelledImages(Protocol):
    """What a study needs of a data set (`depura.data.imageset.ImageSet` is one)."""

    @property
    def name(self) -> str:
        """What it is."""
        ...

    @property
    def images(self) -> Tensor:
        """(N, C, H, W), float in [0, 1]."""
        ...

    @property
    def labels(self) -> Tensor:
        """(N,), int64."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """(N,), distinct; they address noise and records."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...


class Attack(Protocol):
    """A frozen dataclass of hyper-parameters that proposes candidates."""

    @property
    def ball(self) -> Ball:
        """Threat model."""
        ...

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        ...

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        ...

    def __call__(
        self,
        model: RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
    ) -> Candidates:
        """Propose candidates (see `depura.attacks.pgd.PGD`)."""
        ...

    def at(self, eps: float) -> Attack:
        """The same attack at another radius."""
        ...


@dataclass(frozen=True)
class Row:
    """One line of the table: an attack, what it differentiates, and what is judged.

    Attributes:
        name: short, of letters, digits and dashes; it names the files of its units.
        title: for people.
        attack: the attack.
        against: what the attacker differentiates.
        judged: what the examples are scored on.
    """

    name: str
    title: str
    attack: Attack
    against: Defence
    judged: Defence

    @property
    def route(self) -> str:
        """Code of what is differentiated, read off the two defences so that it cannot be mislabelled.

        G0 bare classifier; the gradient route's own code (G2 BPDA, G5 adjoint, G6 exact, G7 grafted, G8 relaxed) where
        the attack goes through the purification that is judged; G4 surrogate where it goes through another one.
        """
        if self.against.purifier is None or self.against.purifier.same_walk(self.judged.purifier):
            return self.against.route
        return "G4"


class UnitKey(NamedTuple):
    """A piece of work that is committed at once.

    Attributes:
        row: name of a row, or "null-" and the name of the first row judged on the same defence.
        eps: radius.
        first: position of the unit's first image in the data set.
        last: position after its last image.
    """

    row: str
    eps: float
    first: int
    last: int

    @property
    def name(self) -> str:
        """The unit's file name without ending."""
        return f"{self.row}_eps{self.eps:.6g}_{self.first:05d}-{self.last:05d}"


@dataclass(frozen=True)
class Study:
    """Everything that decides the numbers, and nothing that does not.

    Attributes:
        name: what the study is called.
        data: the images.
        defence: what is deployed.
        rows: the table, all at one radius.
        seed: of all noise.
        select_draws: draws on which an image's candidates are compared.
        report_draws: draws on which the chosen one is reported.
        unit_images: images per unit of work.
        curve_eps: further radii for the accuracy-against-eps curve.
        curve_images: how many images the further radii are run on (the first ones).
        pictures: images per unit of work whose walk is kept for the report.
        memory: bytes of graph in one call of an attack; it decides how draws are split into calls, and so the last
            bits of sums, which is why it belongs to the study.
    """

    name: str
    data: LabelledImages
    defence: Defence
    rows: tuple[Row, ...]
    seed: int = 0
    select_draws: int = 16
    report_draws: int = 64
    unit_images: int = 16
    curve_eps: tuple[float, ...] = ()
    curve_images: int = 32
    pictures: int = 2
    memory: int = 4 * 2**30

    def __post_init__(self) -> None:
        where = f"Study {self.name!r}"
        _check.images(where, self.data.images)
        _check.labels(where, self.data.labels, n_images=len(self.data.images))
        if len(set(self.data.ids)) != len(self.data.images):
            _check.fail(where, f"{len(self.data.images)} distinct image ids", f"{len(set(self.data.ids))}")
        for field, low in (
            ("select_draws", 1),
            ("report_draws", 1),
            ("unit_images", 1),
            ("curve_images", 1),
            ("pictures", 0),
            ("memory", 1),
        ):
            _check.integer(where, field, getattr(self, field), low=low)
        for eps in self.curve_eps:
            _check.number(where, "curve_eps", eps, low=0.0)
        _check.integer(where, "seed", self.seed, high=2**64 - 1)
        names = [row.name for row in self.rows]
        if not names or len(set(names)) != len(names):
            _check.fail(where, "rows of distinct names, at least one", f"{names}")
        for name in names:
            if not all(c.isalnum() or c == "-" for c in name) or name.startswith("null-"):
                _check.fail(where, "row names of letters, digits and dashes that do not begin with null-", repr(name))
        if len({row.attack.ball for row in self.rows}) != 1:
            _check.fail(where, "rows of one threat model", "several", "Put other radii in curve_eps.")
        written = [f"{eps:.6g}" for eps in (self.ball.eps, *self.curve_eps)]
        if len(set(written)) != len(written):
            _check.fail(where, "curve_eps without the rows' own radius and without repetition", f"{written[1:]}")

    @property
    def ball(self) -> Ball:
        """The threat model of the table."""
        return self.rows[0].attack.ball

    def null_of(self, row: Row) -> str:
        """Name of the null baseline of a row: shared by all rows judged on the same defence."""
        return "null-" + next(other.name for other in self.rows if other.judged is row.judged)

    def nulls(self) -> tuple[str, ...]:
        """Names of the distinct null baselines, in the order of the rows."""
        return tuple(dict.fromkeys(self.null_of(row) for row in self.rows))

    def row(self, name: str) -> Row:
        """The row of a name; for a null baseline, the first row it belongs to."""
        return next(row for row in self.rows if row.name == name.removeprefix("null-"))

    def units(self) -> tuple[UnitKey, ...]:
        """All pieces of work, in a fixed order."""
        n, eps = len(self.data.images), self.ball.eps
        keys = [key for name in (*self.nulls(), *(r.name for r in self.rows)) for key in self._chunks(name, eps, n)]
        for other in self.curve_eps:
            for row in self.rows:
                keys += self._chunks(row.name, other, min(self.curve_images, n))
        return tuple(dict.fromkeys(keys))

    def _chunks(self, row: str, eps: float, n: int) -> list[UnitKey]:
        starts = range(0, n, self.unit_images)
        return [UnitKey(row, eps, first, min(first + self.unit_images, n)) for first in starts]


def ladder(defence: Defence, attack: Attack, *, blind: Attack | None = None) -> tuple[Row, ...]:
    """The four rows of an honest first look.

    Args:
        defence: what is deployed.
        attack: the adaptive attack; with the straight-through route it is also the BPDA attack.
        blind: the attack on the bare classifier; default `attack`.

    Returns:
        Undefended; defended, under the examples made against the bare classifier (transfer); defended, under the
        adaptive attack through the defence's own gradient route; defended, under BPDA.
    """
    blind = attack if blind is None else blind
    bare = defence.with_(purifier=None, rule=Single())
    if defence.purifier is None:
        _check.fail("ladder", "a defence with a purifier", "a bare classifier")
    bpda = defence.with_(gradient=StraightThrough())
    return (
        Row("undefended", "no defence", blind, bare, bare),
        Row("transfer", "purified; examples made against the bare classifier", blind, bare, defence),
        Row("adaptive", "purified; adaptive attack through the whole defence", attack, defence, defence),
        Row("bpda", "purified; BPDA attack (purifier taken for the identity)", attack, bpda, defence),
    )


def with_eps(row: Row, eps: float) -> Row:
    """The same row at another radius."""
    return replace(row, attack=row.attack.at(eps))
