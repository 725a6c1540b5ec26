"""The layout of records: what study.json and the units of a run hold, and what an audit and a plan say.

This is the only place that names the keys. `Header` and `UnitFacts` are read by `read_header` and `read_facts`, which
also read the layouts before (`depura.records.older`), and written by their `as_json`. `depura schema` prints all of it
as JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from depura.records.kinds import AttackKind, ChoiceKind, GradientMode, Word
from depura.records.names import current_name, renamed
from depura.records.older import OLDEST, upgraded_facts, upgraded_header

LAYOUT = 7
"""Version of the layout; raised when it changes."""

Description = JsonValue
"""An object in JSON, as `depura.records.describe.describe` gives it: {"type": name, ...}, a name, or a plain value."""


class LayoutError(ValueError):
    """What was read has not the layout of a record; the message says where, and what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="constants")

    def as_json(self) -> dict[str, Any]:
        """As a JSON value, for writing and for comparing."""
        return self.model_dump(mode="json", by_alias=True)


class Judged(Word):
    """What the examples of a row are scored on.

    Attributes:
        DEFENCE: the defence that the study is about; of a comparison, one of its methods.
        BARE: the classifier without a purifier.
        OTHER: something else, such as the defence under one fixed noise.
    """

    DEFENCE = "defence"
    BARE = "bare"
    OTHER = "other"


class AddedAttack(_Part):
    """An attack of the catalogue that was added to the rows of a study.

    Attributes:
        name: in the catalogue.
        steps: of the attack; None for its own.
        eot: draws per step; None for what is usual.
    """

    name: str
    steps: int | None = None
    eot: int | None = None

    @property
    def row(self) -> str:
        """Name of its row."""
        parts = [f"{word}{value}" for word, value in (("steps", self.steps), ("eot", self.eot)) if value is not None]
        return "-".join([self.name, *parts])


class Source(_Part):
    """The Python file that a study was made by. Reading a record never runs it.

    Attributes:
        file: its path, as it was given; or a module and a function, as module:function.
        settings: (name, text) pairs that were given with -S.
        profile: name of the profile; empty for none.
        attacks: that were added to the study's own rows.
        draws: report draws in the place of the study's own, where a run of layout 5 was extended to more; else None.
    """

    file: str
    settings: tuple[tuple[str, str], ...] = ()
    profile: str = ""
    attacks: tuple[AddedAttack, ...] = ()
    draws: int | None = None


class Choice(_Part):
    """How the images were chosen.

    Attributes:
        kind: how.
        size: images that the data set, or the part of it that was read, has; None where that is not known.
        seed: of a draw.
    """

    kind: ChoiceKind
    size: int | None = None
    seed: int | None = None


class Data(_Part):
    """The images.

    Attributes:
        name: of the data set.
        ids: of the images, which address noise and records.
        labels: their classes, by number.
        classes: names of the classes.
        shape: (C, H, W).
        images: description of the tensor of all images, with its digest.
        outputs: logits that the classifiers give; None in records that do not say.
        choice: how the images were chosen; None in records that do not say.
    """

    name: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    shape: tuple[int, ...] = ()
    images: Description
    outputs: int | None = None
    choice: Choice | None = None

    def class_name(self, label: int) -> str:
        """Name of a class by its number; the number where it has none, and words where a prediction is not finite."""
        if label < 0:
            return "not finite"
        return self.classes[label] if label < len(self.classes) else f"class {label}"


class ThreatModel(_Part):
    """What the attacker may do and knows.

    Attributes:
        norm: of the ball, or "flow", or "perceptual".
        eps: radius of the table.
        box: range of pixels.
        targeted: whether a certain wrong class is the goal.
        quantised: whether examples are files of 8 bits.
        knows: in words.
        family: "l_p", "spatial" or "perceptual".
        queries: how many are allowed, in words.
        resubmissions: of one image, in words.
        stateful_detection: whether queries are watched.
        time_per_image: in words.
    """

    norm: str
    eps: float
    box: tuple[float, float] = (0, 1)
    targeted: bool = False
    quantised: bool = False
    knows: str
    family: str
    queries: str
    resubmissions: str
    stateful_detection: bool = False
    time_per_image: str


class Method(_Part):
    """A defence that is judged.

    Attributes:
        name: where methods are compared; empty in a study of one defence.
        baseline: whether the others must beat it to be worth their cost.
        note: what a reader must know of it.
        defence: purifier, classifier and rule, described.
        rule: the deployed rule, described.
    """

    name: str = ""
    baseline: bool = False
    note: str = ""
    defence: Description
    rule: Description

    @property
    def is_bare(self) -> bool:
        """Whether it has no purifier."""
        return isinstance(self.defence, dict) and self.defence.get("purifier") is None

    def part(self, name: str) -> Description:
        """A part of the defence, such as "purifier" or "classifier", described; None where it has none."""
        return self.defence.get(name) if isinstance(self.defence, dict) else None


class RowFacts(_Part):
    """One line of the table: an attack, how it differentiates, and what is judged.

    Attributes:
        name: short; it names the files of its units.
        title: for people.
        kind: what sort of attack it is, as the two defences have it and not as the study says.
        method: the method that is judged; empty in a study of one defence, and of a classifier that all methods share.
        mode: how it differentiates what is judged.
        null: name of its clean baseline: the same draws without an attack.
        images: how many it is run on, the first ones.
        judged: what its examples are scored on.
        attack: the attack, described.
    """

    name: str
    title: str
    kind: AttackKind
    method: str = ""
    mode: GradientMode
    null: str
    images: int
    judged: Judged
    attack: Description

    @property
    def attacks_defence(self) -> bool:
        """Whether it attacks what the study is about, and counts among the attacks that the headline is made of."""
        left_out = (AttackKind.UNCHANGED, AttackKind.REFERENCE)
        return self.judged is Judged.DEFENCE and self.kind not in left_out

    def setting(self, name: str) -> Description:
        """A setting of the attack, such as "n_steps"; None where it has none of that name."""
        return self.attack.get(name) if isinstance(self.attack, dict) else None


class DrawCounts(_Part):
    """How many draws each image is scored on.

    Attributes:
        select: for choosing among the candidates of an attack.
        report: for the numbers that are reported.
    """

    select: int
    report: int


class Curve(_Part):
    """Which rows were run at further radii.

    Attributes:
        eps: the radii.
        images: on how many images, the first ones.
        rows: names of the rows.
    """

    eps: tuple[float, ...] = ()
    images: int = 0
    rows: tuple[str, ...] = ()


class UnitEntry(_Part):
    """A piece of work that is committed at once.

    Attributes:
        unit: its name.
        row: name of the row, of its clean baseline or of an audit.
        eps: radius.
        first: position of the first image.
        last: position after the last image.
    """

    unit: str
    row: str
    eps: float
    first: int
    last: int


class RescoredFrom(_Part):
    """What a rescored run was made of.

    Attributes:
        name: of the rule that takes the place of the old one; None where only the number of draws changed.
        k: purifications per prediction of that rule.
        report: report draws of the run that the examples are from.
        rules: the rules that were attacked, described.
        warning: what a reader must know; empty where the rule that is judged was attacked.
    """

    name: str | None = None
    k: int | None = None
    report: int
    rules: tuple[Description, ...]
    warning: str = ""


class Extension(_Part):
    """A step by which a run grew.

    Attributes:
        command: what extended it.
        source: of the study before.
        images: before.
        rows: before.
        units: before.
    """

    command: str
    source: Source | None = None
    images: int
    rows: int
    units: int


class PublishedFigure(_Part):
    """What others published of the same defence.

    Attributes:
        clean: accuracy without an attack, in percent.
        robust: accuracy under the attack, in percent.
        attack: theirs.
        source: where the figure is from.
        note: what a reader must know of it.
    """

    clean: float | None = None
    robust: float | None = None
    attack: str
    source: str
    note: str = ""


class Header(_Part):
    """What a run directory says of its study: study.json.

    Attributes:
        layout: version of the layout, "schema" in the file.
        command: how to repeat it.
        source: the file it was made by; None of runs made from Python.
        name: of the study.
        seed: of all noise.
        data: the images.
        threat_model: what the attacker may do and knows.
        methods: what is judged, one or several.
        rows: the attacks.
        draws: how many.
        memory: bytes of graph in one call of an attack.
        curve: further radii.
        units: the pieces of work.
        published: figures of others.
        versions: of the libraries, by name.
        code: digest of depura's source files that numbers depend on.
        rescored_from: of a run of rescored examples.
        left_out: what is missing of a published record, in words; empty of a whole one.
        extensions: steps by which the run grew.
    """

    layout: int = Field(default=LAYOUT, alias="schema")
    command: str = ""
    source: Source | None = None
    name: str
    seed: int
    data: Data
    threat_model: ThreatModel
    methods: tuple[Method, ...] = Field(min_length=1)
    rows: tuple[RowFacts, ...]
    draws: DrawCounts
    memory: int
    curve: Curve
    units: tuple[UnitEntry, ...]
    published: tuple[PublishedFigure, ...] = ()
    versions: dict[str, str]
    code: str
    rescored_from: RescoredFrom | None = None
    left_out: str = ""
    extensions: tuple[Extension, ...] = ()

    @property
    def compares(self) -> bool:
        """Whether methods are compared."""
        return self.methods[0].name != ""

    @property
    def eps(self) -> float:
        """Radius of the table."""
        return self.threat_model.eps

    def method(self, name: str) -> Method:
        """A method by its name."""
        return next(method for method in self.methods if method.name == name)

    def row(self, name: str) -> RowFacts:
        """A row by its name."""
        return next(row for row in self.rows if row.name == name)


class Evaluations(_Part):
    """Evaluations of the denoiser, in images: forward, backward.

    Attributes:
        attack: of the attack.
        score: of scoring its examples.
        checks: of the checks at its examples.
    """

    attack: tuple[int, int]
    score: tuple[int, int]
    checks: tuple[int, int] = (0, 0)


class CleanCost(_Part):
    """What predictions of clean images cost.

    Attributes:
        predictions: how many there were.
        evaluations: of the denoiser for them.
    """

    predictions: int
    evaluations: int


class AuditLight(str, Enum):
    """What a check of a gradient says."""

    GREEN = "GREEN"
    AMBER = "AMBER"
    RED = "RED"


class AuditCheck(_Part):
    """One check of a gradient.

    Attributes:
        name: in one or two words.
        light: what it says.
        sentence: expected, measured, what to do.
        measured: the number behind it; None where there is none, or none that is finite.
    """

    name: str
    light: AuditLight
    sentence: str
    measured: float | None = None


class AuditFault(_Part):
    """A part that is to blame.

    Attributes:
        part: its name.
        sentence: expected, measured, what to look for.
    """

    part: str
    sentence: str


class Audit(_Part):
    """The audit of a gradient.

    Attributes:
        light: the worst of its checks.
        verdict: a sentence.
        checks: in order.
        faults: the parts to blame.
    """

    light: AuditLight
    verdict: str
    checks: tuple[AuditCheck, ...]
    faults: tuple[AuditFault, ...] = ()

    def check(self, name: str) -> AuditCheck | None:
        """A check by its name; None where it was not made."""
        return next((check for check in self.checks if check.name == name), None)


class Identity(_Part):
    """What changes behind a purifier that does nothing.

    Attributes:
        images: how many were tried.
        predictions: how many labels change.
        logits: largest change of a logit, over the largest logit.
    """

    images: int
    predictions: int
    logits: float


class UnitFacts(UnitEntry):
    """What a unit says beside its arrays: which piece of work it is, and more.

    Attributes:
        device: kind of device it was computed on.
        evaluations: of the denoiser.
        rows_at_once: rows that an attack put through at once, at most.
        clean: of a clean baseline, what its predictions cost.
        audit: of an audit.
        identity: of an audit.
        at_examples: of the first attack through a defence, checks of the defence at the examples that were found.
    """

    device: str
    evaluations: Evaluations
    rows_at_once: int | None = None
    clean: CleanCost | None = None
    audit: Audit | None = None
    identity: Identity | None = None
    at_examples: tuple[AuditCheck, ...] = ()


class PlannedRow(_Part):
    """What a row costs at one radius.

    Attributes:
        row: its name.
        eps: radius.
        images: how many.
        forward: evaluations of the denoiser.
        backward: evaluations that are differentiated.
        seconds: on one worker.
        memory: bytes of graph of one call of the attack.
    """

    row: str
    eps: float
    images: int
    forward: int
    backward: int
    seconds: float
    memory: int


class Plan(_Part):
    """What a study costs, before it is run.

    Attributes:
        layout: version of the layout, "schema" in the file.
        study: its name.
        workers: processes that share the work.
        rows: the prices.
        rate: operations a second that the seconds are estimated with; None where they are measured.
    """

    layout: int = Field(default=LAYOUT, alias="schema")
    study: str
    workers: int
    rows: tuple[PlannedRow, ...]
    rate: float | None = None


PARTS: dict[str, type[_Part]] = {"header": Header, "unit": UnitFacts, "audit": Audit, "plan": Plan}
"""What `depura schema` prints, by name."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a record: {"layout": version, "header": ..., "unit": ..., "audit": ..., "plan": ...}."""
    return {"layout": LAYOUT, **{name: part.model_json_schema(by_alias=True) for name, part in PARTS.items()}}


def read_header(raw: Any) -> Header:
    """A header from the JSON value of study.json, of this layout or one before, with every name as it is now.

    A `LayoutError`: a newer layout, one too old, or no header.
    """
    if not isinstance(raw, dict):
        raise LayoutError("expected a JSON object with the header of a run, got another value")
    found: dict[str, Any] = dict(raw)  # pyright: ignore[reportUnknownArgumentType]
    layout = layout_of(found)
    if layout < LAYOUT:
        try:
            found = upgraded_header(found, layout)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise LayoutError(f"expected the header of a run of layout {layout}, got one without {error}") from error
    parts = {key: renamed(found[key], current_name) for key in ("methods", "rows", "rescored_from") if key in found}
    return _checked(Header, {**found, "schema": LAYOUT, **parts}, "header")


def layout_of(raw: Mapping[str, Any]) -> int:
    """The layout that study.json says it has, from `OLDEST` to `LAYOUT`; any other raises `LayoutError`."""
    layout = raw.get("schema")
    if not isinstance(layout, int) or isinstance(layout, bool):
        raise LayoutError(f"expected the header of a run with its layout ('schema'), got {layout!r}")
    if layout > LAYOUT:
        raise LayoutError(f"expected layout {LAYOUT} or before, got {layout}: it was made by a newer depura. Update")
    if layout < OLDEST:
        raise LayoutError(f"expected layout {OLDEST} or later, got {layout}. Use the depura that made it")
    return layout


def read_facts(raw: Any, *, layout: int) -> UnitFacts:
    """The facts of a unit from the JSON value in its file, without digests; `LayoutError` if not of the layout."""
    try:
        found = upgraded_facts(raw) if layout == OLDEST else raw
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise LayoutError(f"expected the facts of a unit of layout {layout}, got some without {error}") from error
    return _checked(UnitFacts, found, "unit")


def _checked(part: Any, value: Any, what: str) -> Any:
    try:
        return part.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(k) for k in first["loc"]) or what
        said = first["msg"][:1].lower() + first["msg"][1:]
        got = "none" if first["type"] == "missing" else repr(str(first["input"])[:60])
        raise LayoutError(f"{what}: at {where}: {said}, got {got}") from error
