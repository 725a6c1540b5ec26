"""A study: which images, which defences, which attacks, how many draws. A value; the machine is not part of it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from depura import _check
from depura.attacks.apgd import APGD
from depura.attacks.attack import Attack
from depura.attacks.ensembles import AtRadii
from depura.attacks.square import Square
from depura.attacks.threat import Ball, Threat
from depura.data.imageset import ImageSet
from depura.defence import Defence, MeanLogit, MeanProb, Single, Vote
from depura.gradients import Relaxed, StoredState, StraightThrough
from depura.noise import Noise, Stream
from depura.purifiers.purifier import Purifier
from depura.records.describe import describe, weights_sha256
from depura.records.kinds import AttackKind, GradientMode


class Published(NamedTuple):
    """A published figure, by its authors' protocol, which is not this library's.

    Attributes:
        clean: accuracy without an attack, in percent; None where it is not stated.
        robust: accuracy under the attack, in percent; None where it is not stated.
        attack: of the authors, and how it was judged where that is known.
        source: where the figure is from.
        note: what a reader must know of it; "unverified" where the source itself was not read.
    """

    clean: float | None
    robust: float | None
    attack: str
    source: str
    note: str = ""

    @property
    def figures(self) -> str:
        """The two numbers in words."""
        parts = [("clean", self.clean), ("robust", self.robust)]
        return ", ".join(f"{name} {value:g}" for name, value in parts if value is not None) or "no figure"


class NeededFile(NamedTuple):
    """A file that a study is to be given.

    Attributes:
        parameter: of the study, which takes its path.
        name: of the file, as published.
        address: where it is.
        licence: under which it may be used.
        note: what a user must know.
    """

    parameter: str
    name: str
    address: str
    licence: str
    note: str = ""


REFERENCE_IMAGES = 16
"""Images that the reference attack is run on, the first ones."""

REFERENCE_STEPS, REFERENCE_EOT, REFERENCE_COMMON = 10, 4, 8
"""Steps of the reference attack, its draws per gradient, and the draws that its points are compared on."""

REFERENCE_QUERIES = 200
"""Queries of the attack without gradients on a classifier by itself."""

OWN_RULES = (Single, Vote, MeanProb, MeanLogit)
"""Rules whose gradient is known to lead an attack; through others the reference attack takes the mean probability."""

_OF_WHAT_IS_JUDGED = (
    AttackKind.ADAPTIVE,
    AttackKind.RELAXED,
    AttackKind.BPDA,
    AttackKind.TARGETED,
    AttackKind.SELECTIVE,
    AttackKind.ONE_STEP,
    AttackKind.BUDGET,
    AttackKind.BLACK_BOX,
    AttackKind.RANDOM,
    AttackKind.PINNED,
    AttackKind.TINY,
)
"""Kinds that say that the attack asks, or differentiates, what is judged."""

_KIND_OF_MODE = {
    GradientMode.BPDA: AttackKind.BPDA,
    GradientMode.RELAXED: AttackKind.RELAXED,
    GradientMode.NONE: AttackKind.BLACK_BOX,
}
"""What an attack that is called adaptive is, where its gradient is not that of the defence."""

RESERVED = ("null-", "audit")
"""How names of units begin that are no rows."""

AUDITED = 2
"""Images that gradients are audited on."""


@dataclass(frozen=True)
class AttackRun:
    """One line of the table: an attack, what it differentiates, and what is judged.

    Attributes:
        name: short, of letters, digits and dashes; it names the files of its units.
        title: for people.
        attack: the attack.
        attacked: what the attacker differentiates.
        evaluated: what the examples are scored on.
        kind: what sort of attack it is: a `depura.AttackKind` or its text, such as "adaptive"; empty for none.
        method: in a study that compares methods, the short name (letters, digits, dashes) of the one that is judged;
            empty where there is one defence, and for rows that judge an undefended classifier.
        images: how many images it is run on, the first ones; None for all.
    """

    name: str
    title: str
    attack: Attack
    attacked: Defence
    evaluated: Defence
    kind: str = AttackKind.OTHER
    method: str = ""
    images: int | None = None

    def __post_init__(self) -> None:
        kinds = [kind.value for kind in AttackKind]
        if self.kind not in kinds:
            named = ", ".join(kind for kind in kinds if kind)
            _check.fail(f"row {self.name!r}", f"a kind that is empty or among {named}", repr(self.kind))
        object.__setattr__(self, "kind", AttackKind(self.kind))
        if self.kind is AttackKind.UNDEFENDED and self.evaluated.core is not None:
            advice = "Judge the classifier by itself, or call the row transfer."
            _check.fail(f"row {self.name!r}", "kind undefended of a classifier by itself", "a purifier", advice)
        taken = inspect.signature(self.attack).parameters.values()
        if not any(p.name == "progress" or p.kind is inspect.Parameter.VAR_KEYWORD for p in taken):
            _check.fail(
                f"row {self.name!r}",
                "an attack that is called with init=, eot=, rows= and progress=",
                f"{type(self.attack).__name__}, which takes no progress=",
                "Derive it from depura.Attack, which has that call.",
            )

    @cached_property
    def mode(self) -> GradientMode:
        """How the attack differentiates what is judged, read off the two defences so that it cannot be mislabelled."""
        cost = self.attack.cost
        blind = cost.gradients == 0 and not cost.surrogates
        if blind and cost.forwards == 0:
            return GradientMode.NONE
        if same_function(self.attacked, self.evaluated):
            return GradientMode.NONE if blind else self.attacked.mode
        return GradientMode.SURROGATE if _is_surrogate(self.attacked, self.evaluated) else GradientMode.TRANSFER

    @property
    def true_kind(self) -> AttackKind:
        """The kind that the two defences have: an attack that does not differentiate what is judged is not adaptive."""
        kind, mode = AttackKind(self.kind), self.mode
        if kind in _OF_WHAT_IS_JUDGED and mode is GradientMode.TRANSFER:
            return AttackKind.TRANSFER
        if kind in _OF_WHAT_IS_JUDGED and mode is GradientMode.SURROGATE:
            return AttackKind.SURROGATE
        return _KIND_OF_MODE.get(mode, kind) if kind is AttackKind.ADAPTIVE else kind


def same_function(a: Defence, b: Defence) -> bool:
    """Whether two defences compute the same, however they are differentiated.

    They have the same purifier, classifier (the same object, or one of the same class and weights) and rule.
    """
    if a is b:
        return True
    if isinstance(a.classifier, Purifier) or isinstance(b.classifier, Purifier):
        return _same_purifier(a.core, b.core) and _same_purifier(a.purifier, b.purifier) and a.rule == b.rule
    return _same_purifier(a.purifier, b.purifier) and _same_rest(a, b)


def _same_purifier(a: Purifier | None, b: Purifier | None) -> bool:
    if a is None or b is None:
        return a is b
    if a is b or a.same_function(b):
        return True
    if _denoisers(a) == _denoisers(b):
        return False
    # A network that was loaded twice is two objects. Functions made by functions may differ and have one name.
    described = [json.dumps(_without_gradient(describe(its)), sort_keys=True) for its in (a, b)]
    return described[0] == described[1] and "<locals>" not in described[0] and "<lambda>" not in described[0]


def _same_rest(a: Defence, b: Defence) -> bool:
    """Whether classifiers and rules are the same."""
    if a.rule is not b.rule and a.rule != b.rule:
        return False
    ours, theirs = a.classifier, b.classifier
    if ours is theirs:
        return True
    if not isinstance(ours, nn.Module) or not isinstance(theirs, nn.Module) or type(ours) is not type(theirs):
        return False
    return repr(ours) == repr(theirs) and weights_sha256(ours) == weights_sha256(theirs)


def _is_surrogate(a: Defence, b: Defence) -> bool:
    """Whether one defence is the other with another number of steps of the same denoisers."""
    if a.core is None or b.core is None:
        return False
    rest = a.rule == b.rule if a.core is a.classifier and b.core is b.classifier else _same_rest(a, b)
    return rest and _denoisers(a.core) == _denoisers(b.core)


def _denoisers(purifier: Purifier) -> set[int]:
    """The denoisers of a purifier, as objects."""
    return {id(component.denoiser) for component in purifier.components}


def _without_gradient(described: Any) -> Any:
    if isinstance(described, dict):
        parts = cast("dict[str, Any]", described)
        return {key: _without_gradient(value) for key, value in parts.items() if key != "gradient"}
    if isinstance(described, list):
        return [_without_gradient(value) for value in cast("list[Any]", described)]
    return described


class UnitKey(NamedTuple):
    """A piece of work that is committed at once.

    Attributes:
        row: name of a row, or "null-" and the name of the first row judged on the same defence, or "audit", with a dash
            and the name of the method where methods are compared.
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
        defence: what is deployed; where methods are compared, the one whose gradient is audited unless another is asked
            for.
        rows: the table, all at one radius. Rows that name their methods make the study a comparison of these.
        seed: of all noise.
        select_draws: draws on which an image's candidates are compared.
        report_draws: draws on which the chosen one is reported.
        unit_images: images per unit of work.
        curve_eps: further radii for the accuracy-against-eps curve.
        curve_images: how many images the further radii are run on (the first ones).
        curve_rows: names of the rows that are run at the further radii; none given, all.
        pictures: images per unit of work whose trajectory is kept for the report: those with the most errors, and
            half of them (rounded down) those with the fewest.
        memory: bytes of graph in one call of an attack; it decides how draws are split into calls, and so the last
            bits of sums, which is why it belongs to the study.
        baselines: methods that the others must beat to be worth their cost, by name.
        notes: what a reader must know of a method (such as "reconstructed from the paper"), by its name.
        kept: units of a smaller run of this study, recorded already: their boundaries stay, further images are divided
            from the last of them on.
        published: figures of others for the same defence, shown beside the study's own.
        files: what the study is to be given to be run and not only planned.
        reference: whether a short attack of depura's own runs beside the rows of each defence (`references`). Without
            it, and without an attack at further radii or without gradients, results are called unchecked.
        references: these attacks, made from the rest: `APGD` through the defence by the exact gradient, on the first
            images. None where the threat model is no l_p ball.
    """

    name: str
    data: ImageSet
    defence: Defence
    rows: tuple[AttackRun, ...]
    seed: int = 0
    select_draws: int = 16
    report_draws: int = 64
    unit_images: int = 16
    curve_eps: tuple[float, ...] = ()
    curve_images: int = 32
    curve_rows: tuple[str, ...] = ()
    pictures: int = 2
    memory: int = 4 * 2**30
    baselines: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict[str, str])
    kept: tuple[UnitKey, ...] = ()
    published: tuple[Published, ...] = ()
    files: tuple[NeededFile, ...] = ()
    reference: bool = True
    references: tuple[AttackRun, ...] = field(init=False, default=(), compare=False)

    def __post_init__(self) -> None:
        where = f"Study {self.name!r}"
        _check.images(where, self.data.images)
        _check.labels(where, self.data.labels, n_images=len(self.data.images))
        if len(set(self.data.ids)) != len(self.data.images):
            _check.fail(where, f"{len(self.data.images)} distinct image ids", f"{len(set(self.data.ids))}")
        _distinct(where, self.data)
        for name, low in (
            ("select_draws", 1),
            ("report_draws", 1),
            ("unit_images", 1),
            ("curve_images", 1),
            ("pictures", 0),
            ("memory", 1),
        ):
            _check.integer(where, name, getattr(self, name), low=low)
        for eps in self.curve_eps:
            _check.number(where, "curve_eps", eps, low=0.0)
        _check.integer(where, "seed", self.seed, high=2**64 - 1)
        names = [row.name for row in self.rows]
        if not names or len(set(names)) != len(names):
            _check.fail(where, "rows of distinct names, at least one", f"{names}")
        for name in names:
            if not _plain(name) or name.startswith(RESERVED):
                begin = " or ".join(RESERVED)
                _check.fail(
                    where, f"row names of letters, digits and dashes that do not begin with {begin}", repr(name)
                )
        if len({row.attack.ball for row in self.rows}) != 1:
            _check.fail(where, "rows of one threat model", "several", "Put other radii in curve_eps.")
        written = [f"{eps:.6g}" for eps in (self.ball.eps, *self.curve_eps)]
        if len(set(written)) != len(written):
            _check.fail(where, "curve_eps without the rows' own radius and without repetition", f"{written[1:]}")
        unknown = sorted(set(self.curve_rows) - set(names))
        if unknown:
            _check.fail(where, f"curve_rows among {', '.join(names)}", ", ".join(map(repr, unknown)))
        for row in self.rows:
            if row.images is not None:
                _check.integer(where, f"images of row {row.name!r}", row.images, low=1)
        self._check_methods(where)
        object.__setattr__(self, "references", self._references() if self.reference else ())
        own = [row.name for row in self.references]
        taken = sorted({name for name in own if name in names or own.count(name) > 1})
        if taken:
            _check.fail(where, "row names other than that of depura's own attack", taken[0], "Rename the row.")

    def _check_methods(self, where: str) -> None:
        """Each method is one defence of its own, and every row that judges one says which."""
        methods = self.methods
        for row in self.rows:
            if row.method and row.evaluated is not methods[row.method]:
                _check.fail(
                    where, f"rows of method {row.method!r} to judge one Defence object", f"another in row {row.name!r}"
                )
            if methods and not row.method and row.evaluated.core is not None:
                _check.fail(where, "the method of every row that judges a purifier", f"none in row {row.name!r}")
        for name, defence in methods.items():
            if not _plain(name):
                _check.fail(where, "method names of letters, digits and dashes", repr(name))
            shared = next((other for other, its in methods.items() if its is defence and other != name), None)
            if shared is not None:
                _check.fail(where, "a Defence object of its own for each method", f"one for {name!r} and {shared!r}")
        if methods and not any(defence is self.defence for defence in methods.values()):
            _check.fail(where, "as defence one of the methods that are judged", "another")
        unknown = sorted({*self.baselines, *self.notes} - set(methods))
        if unknown:
            known = ", ".join(methods) or "none, as no row has one"
            _check.fail(where, f"baselines and notes of its methods ({known})", ", ".join(map(repr, unknown)))

    @property
    def methods(self) -> dict[str, Defence]:
        """The methods that are compared and what is judged of each, in the order of the rows."""
        found: dict[str, Defence] = {}
        for row in self.rows:
            if row.method:
                found.setdefault(row.method, row.evaluated)
        return found

    @property
    def audits(self) -> dict[str, Defence]:
        """What is audited before anything is attacked, by the name of its unit."""
        return {f"audit-{name}": its for name, its in self.methods.items()} or {"audit": self.defence}

    @property
    def all_rows(self) -> tuple[AttackRun, ...]:
        """The rows, and the reference attacks beside them."""
        return (*self.rows, *self.references)

    @property
    def rounded_draws(self) -> range:
        """The report draws on which examples are scored once more after rounding to 8 bits."""
        return range(min(self.select_draws, self.report_draws))

    @property
    def ball(self) -> Threat:
        """The threat model of the table."""
        return self.rows[0].attack.ball

    def null_of(self, row: AttackRun) -> str:
        """Name of the null baseline of a row: shared by all rows judged on the same defence."""
        return "null-" + next(other.name for other in self.all_rows if other.evaluated is row.evaluated)

    def nulls(self) -> tuple[str, ...]:
        """Names of the distinct null baselines, in the order of the rows."""
        return tuple(dict.fromkeys(self.null_of(row) for row in self.all_rows))

    def noise(self, stream: Stream, ids: Sequence[int]) -> Noise:
        """Noise of the study for some images; streams share no draws.

        Args:
            stream: what it is for: attacks start on `Stream.INIT` and average their gradients over `Stream.EOT`;
                candidates are compared on `Stream.SELECT`, and what is chosen is reported on `Stream.REPORT`.
            ids: of the images.

        Returns:
            One row for each image.
        """
        return Noise(self.seed, tuple(ids), stream=stream)

    def row(self, name: str) -> AttackRun:
        """The row of a name; for a null baseline, the first row it belongs to."""
        return next(row for row in self.all_rows if row.name == name.removeprefix("null-"))

    def units(self) -> tuple[UnitKey, ...]:
        """All pieces of work, in a fixed order."""
        n, eps = len(self.data.images), self.ball.eps
        keys = [self._kept(name, eps, n) or [UnitKey(name, eps, 0, min(AUDITED, n))] for name in self.audits]
        keys = [key for its in keys for key in its]
        keys += [key for name in self.nulls() for key in self._chunks(name, eps, n)]
        keys += [key for row in self.all_rows for key in self._chunks(row.name, eps, self.n_images(row))]
        for other in self.curve_eps:
            for row in self.rows:
                if row.name in self.curve_rows or not self.curve_rows:
                    keys += self._chunks(row.name, other, min(self.curve_images, self.n_images(row)))
        return tuple(dict.fromkeys(keys))

    def n_images(self, row: AttackRun) -> int:
        """How many images a row is run on, the first ones."""
        n = len(self.data.images)
        return n if row.images is None else min(row.images, n)

    def _chunks(self, row: str, eps: float, n: int) -> list[UnitKey]:
        kept = self._kept(row, eps, n)
        starts = range(kept[-1].last if kept else 0, n, self.unit_images)
        return [*kept, *(UnitKey(row, eps, first, min(first + self.unit_images, n)) for first in starts)]

    def _references(self) -> tuple[AttackRun, ...]:
        """Depura's own attack on each defence that is judged, and one without gradients on the bare classifier."""
        if not isinstance(self.ball, Ball):
            return ()
        made: list[AttackRun] = []
        undefended = [row for row in self.rows if row.kind == AttackKind.UNDEFENDED]
        asked = any(row.mode is GradientMode.NONE for row in undefended)
        if undefended and not asked and self.ball.norm != "l1":
            bare = undefended[0].evaluated
            square = bare_square(self.ball)
            title = "a short attack of depura's own on the classifier alone, without gradients"
            kind, n = AttackKind.REFERENCE, REFERENCE_IMAGES
            made.append(AttackRun("reference-bare", title, square, bare, bare, kind, images=n))
        for unit, defence in self.audits.items():
            method = unit.removeprefix("audit").removeprefix("-")
            if not defence.differentiable:
                continue
            random = defence.core is not None
            attack = AtRadii(
                APGD(
                    self.ball,
                    n_steps=REFERENCE_STEPS,
                    eot=REFERENCE_EOT if random else 1,
                    common=REFERENCE_COMMON if random else 0,
                )
            )
            name = f"{method}-reference" if method else "reference"
            title = "a short attack of depura's own through the whole defence, by the exact gradient"
            against = _differentiable(defence)
            made.append(
                AttackRun(name, title, attack, against, defence, AttackKind.REFERENCE, method, REFERENCE_IMAGES)
            )
        return tuple(made)

    def _kept(self, row: str, eps: float, n: int) -> list[UnitKey]:
        return [key for key in self.kept if (key.row, key.eps) == (row, eps) and key.last <= n]


def bare_square(ball: Ball) -> Square:
    """The attack without gradients on a classifier by itself; it costs no denoiser evaluation."""
    return Square(ball, n_queries=REFERENCE_QUERIES, eot=1, renew=None, common=1)


def _distinct(where: str, data: ImageSet) -> None:
    """Refuse an image that is there twice: it would count twice, and intervals would be too narrow."""
    if data.images.is_meta:
        return
    first: dict[bytes, int] = {}
    twice: list[str] = []
    for image, identity in zip(data.images.cpu().numpy(), data.ids, strict=True):
        other = first.setdefault(hashlib.sha256(image.tobytes()).digest(), identity)
        if other != identity:
            twice.append(f"{identity} is {other} again")
    if twice:
        more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
        _check.fail(
            where, "distinct images", f"copies: image {', image '.join(twice[:3])}{more}", "Take each image once."
        )


def _differentiable(defence: Defence) -> Defence:
    """A defence with the exact gradient; a rule that is not depura's own becomes the mean probability of its draws."""
    own = isinstance(defence.rule, OWN_RULES)
    through = defence if own else defence.with_(rule=MeanProb(defence.rule.n_draws))
    exact = through.core is None or through.mode is GradientMode.EXACT
    return through if exact else through.with_(gradient=StoredState())


def attack_suite(
    defence: Defence,
    attack: Attack,
    *,
    blind: Attack | None = None,
    method: str = "",
    relaxed: float | None = None,
    without: Collection[str] = (),
) -> tuple[AttackRun, ...]:
    """The rows of an honest first look.

    Args:
        defence: what is deployed.
        attack: the adaptive attack; with the straight-through route it is also the BPDA attack.
        blind: the attack on the bare classifier; default `attack`.
        method: the defence's short name in a comparison of methods; row names begin with it.
        relaxed: width tau of the smoothed sign (see `depura.gradients.Relaxed`): adds a row attacked through smooth
            stand-ins, for defences whose exact gradient may be zero.
        without: kinds of rows to leave out. Where several methods share a classifier one undefended row is enough.

    Returns:
        Undefended; defended, under the examples made against the bare classifier (transfer); defended, under the
        adaptive attack through the defence's own gradient route; relaxed, if asked for; defended, under BPDA. Of a
        whole defence (`depura.wrap_defence`) there is no bare classifier: adaptive, and relaxed, alone.

    Raises:
        InputError: a bare classifier, or kinds that are not in the suite.
    """
    blind = attack if blind is None else blind
    bare = defence.with_(purifier=None, rule=Single())
    if defence.core is None:
        _check.fail("attack_suite", "a defence with a purifier", "a bare classifier", "As a method take bare_suite.")
    behind = "purified; examples made against the bare classifier"
    through = "purified; adaptive attack through the whole defence"
    rows = [AttackRun("adaptive", through, attack, defence, defence, "adaptive")]
    if defence.purifier is not None:
        rows = [
            AttackRun("undefended", "no defence", blind, bare, bare, "undefended"),
            AttackRun("transfer", behind, blind, bare, defence, "transfer"),
            *rows,
        ]
    if relaxed is not None:
        smooth = defence.with_(gradient=Relaxed(relaxed))
        title = f"purified; adaptive attack, relaxed gradient (smooth stand-ins, tau {relaxed:g})"
        rows.append(AttackRun("relaxed", title, attack, smooth, defence, "relaxed"))
    if defence.purifier is not None:
        title = "purified; BPDA attack (purifier taken for the identity)"
        rows.append(AttackRun("bpda", title, attack, defence.with_(gradient=StraightThrough()), defence, "bpda"))
    kinds = [str(row.kind) for row in rows]
    unknown = sorted(set(without) - set(kinds))
    if unknown:
        _check.fail("attack_suite", f"without to name rows among {', '.join(kinds)}", ", ".join(map(repr, unknown)))
    return tuple(_of(method, row) for row in rows if row.kind not in without)


def attack_suites(
    purifiers: Mapping[str, Purifier],
    classifier: Callable[[Tensor], Tensor],
    attack: Attack,
    *,
    blind: Attack | None = None,
    relaxed: Mapping[str, float] | None = None,
) -> tuple[AttackRun, ...]:
    """The rows of a comparison of purifiers before one classifier.

    Args:
        purifiers: what is compared, by name.
        classifier: what all of them stand before.
        attack: the adaptive attack.
        blind: the attack on the bare classifier; default `attack`.
        relaxed: widths of the smoothed sign, for methods whose exact gradient may be zero.

    Returns:
        The `attack_suite` of each, one after another; the undefended row once, before all others.

    Raises:
        InputError: no purifier, or widths for others than these.
    """
    if not purifiers:
        _check.fail("attack_suites", "at least one purifier", "none")
    widths = relaxed or {}
    unknown = sorted(set(widths) - set(purifiers))
    if unknown:
        _check.fail("attack_suites", f"relaxed for methods among {', '.join(purifiers)}", ", ".join(map(repr, unknown)))
    rows: list[AttackRun] = []
    for name, purifier in purifiers.items():
        defence = Defence(purifier, classifier)
        without = ("undefended",) if rows else ()
        rows += attack_suite(defence, attack, blind=blind, method=name, relaxed=widths.get(name), without=without)
    return tuple(rows)


def bare_suite(defence: Defence, attack: Attack, *, method: str) -> tuple[AttackRun, ...]:
    """The one row of a classifier judged by itself, such as an adversarially trained one: a baseline of a comparison.

    Args:
        defence: a classifier without a purifier.
        attack: the attack, straight on it.
        method: its short name in the comparison.

    Returns:
        The row, of kind "adaptive".

    Raises:
        InputError: a defence with a purifier, or no name.
    """
    if defence.core is not None:
        _check.fail("bare_suite", "a defence without a purifier", "one with a purifier", "For it take attack_suite.")
    if not method:
        _check.fail("bare_suite", "the name of a method", "an empty one")
    return (
        _of(
            method, AttackRun("adaptive", "no purifier; attack on the classifier", attack, defence, defence, "adaptive")
        ),
    )


def _of(method: str, row: AttackRun) -> AttackRun:
    """A row as a method's own; one that judges the undefended classifier takes only the name."""
    if not method:
        return row
    return replace(row, name=f"{method}-{row.name}", method="" if row.kind == "undefended" else method)


def _plain(name: str) -> bool:
    """Whether a name is of letters, digits and dashes."""
    return all(c.isalnum() or c == "-" for c in name)


def with_eps(row: AttackRun, eps: float) -> AttackRun:
    """The same row at another radius."""
    return replace(row, attack=row.attack.at(eps))
