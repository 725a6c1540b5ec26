"""The layout of records, and the names that they call things by."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.records import DEFENCE, ByHand, edited, method

import depura
from depura.methods import mimicdiffusion
from depura.models.by_name import module_of
from depura.records import names
from depura.records.directory import RecordError, RunDirectory, Unit
from depura.records.kinds import NOT_FINITE, AttackKind, GradientMode
from depura.records.names import ALIASES, current_name, name_of_path, record_name, recorded_as, renamed, short_name
from depura.records.older import OLDEST
from depura.records.schema import (
    LAYOUT,
    PARTS,
    AddedAttack,
    AuditCheck,
    AuditFault,
    AuditLight,
    Curve,
    Extension,
    Header,
    LayoutError,
    Plan,
    PlannedRow,
    PublishedFigure,
    RescoredFrom,
    Source,
    UnitFacts,
    json_schema,
    read_facts,
    read_header,
)

BY_HAND = ByHand([2, 0, 1], ids=[5, 6, 7])
ROWS = [BY_HAND.row(name) for name in ("undefended", "adaptive", "bpda")]
PLAIN = BY_HAND.header(ROWS)
SOURCE = Source(
    file="study.py", settings=(("n_steps", "20"),), profile="quick", attacks=(AddedAttack(name="fab", steps=50),)
)
WHOLE = BY_HAND.header(
    [BY_HAND.row(f"{name}-adaptive", "adaptive", method=name, images=2) for name in ("a", "b")],
    methods=[method("a", note="A toy."), method("b", baseline=True, defence={**DEFENCE, "purifier": None})],
    audits=["audit-a", "audit-b"],
    curve=Curve(eps=(0.05, 0.2), images=1, rows=("a-adaptive",)),
    source=SOURCE,
    published=(PublishedFigure(clean=89.0, attack="AutoAttack", source="a paper"),),
    rescored_from=RescoredFrom(name="a", k=3, report=4, rules=("depura.Vote",), warning="Careful."),
    left_out="images",
    extensions=(Extension(command="depura extend", source=SOURCE, images=1, rows=2, units=4),),
)
"""A header with every part that may be left out."""


def rewritten(path: Path, raw: Any) -> Path:
    """A folder with a study.json of this value."""
    path.mkdir(parents=True)
    (path / "study.json").write_text(json.dumps(raw))
    return path


# --- written and read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [PLAIN, WHOLE], ids=["plain", "whole"])
def test_a_header_comes_back_as_it_was_written(tmp_path: Path, header: Header) -> None:
    directory = RunDirectory.create(tmp_path / "run", header)
    assert directory.header == header
    assert RunDirectory.open(tmp_path / "run").header == header
    assert read_header(json.loads(json.dumps(header.as_json()))) == header
    assert directory.raw == header.as_json()
    assert directory.raw["schema"] == LAYOUT
    assert "layout" not in directory.raw


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    check = AuditCheck(name="zeros", light=AuditLight.AMBER, sentence="Some.", measured=0.25)
    fault = AuditFault(part="a part", sentence="Look there.")
    units = [
        BY_HAND.attacked("adaptive", 1),
        BY_HAND.null("null-defence", 0, evaluations=120),
        BY_HAND.audit("audit", "AMBER", checks=[check, check.model_copy(update={"measured": None})], faults=[fault]),
    ]
    units += [Unit({}, BY_HAND.facts("bpda", rows_at_once=12))]
    directory = RunDirectory.create(tmp_path / "run", BY_HAND.header(ROWS, audits=["audit"]))
    for unit in units:
        directory.commit(unit)
        assert RunDirectory.open(directory.path).load(unit.facts.unit).facts == unit.facts
        assert read_facts(unit.facts.as_json(), layout=LAYOUT) == unit.facts


def test_what_is_absent_is_not_written_with_a_unit(tmp_path: Path) -> None:
    """Equal results give equal bytes, also when the layout has gained a part that they have not."""
    directory = RunDirectory.create(tmp_path / "run", PLAIN)
    directory.commit(BY_HAND.attacked("adaptive", 1))
    with np.load(directory.file("adaptive_eps0.1_00000-00003")) as stored:
        facts = json.loads(stored["meta"].tobytes())
    assert not {"audit", "identity", "clean", "rows_at_once"} & set(facts)
    assert None not in facts.values()


def test_parts_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PLAIN.name = "another"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_plan_is_a_part() -> None:
    row = PlannedRow(row="adaptive", eps=0.1, images=3, forward=10, backward=5, seconds=1.5, memory=2**20)
    plan = Plan(study="by-hand", workers=2, rows=(row,), rate=1e9)
    assert plan.as_json()["schema"] == LAYOUT
    assert Plan.model_validate(plan.as_json()) == plan


# --- other layouts ----------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, raw: Any) -> str:
    """The sentence that a folder with this study.json is refused with."""
    with pytest.raises(RecordError) as caught:
        RunDirectory.open(rewritten(tmp_path / "run", raw))
    said = str(caught.value)
    assert said.startswith(f"run directory {tmp_path / 'run'}: ")
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_a_newer_layout_is_refused_with_the_word_to_update(tmp_path: Path) -> None:
    said = refused(tmp_path, {**PLAIN.as_json(), "schema": LAYOUT + 1, "weather": "fine"})
    assert f"expected layout {LAYOUT} or before, got {LAYOUT + 1}: it was made by a newer depura. Update." in said


def test_a_layout_that_is_too_old_is_refused_with_the_word_what_to_use(tmp_path: Path) -> None:
    said = refused(tmp_path, {**PLAIN.as_json(), "schema": OLDEST - 1})
    assert f"expected layout {OLDEST} or later, got {OLDEST - 1}. Use the depura that made it." in said


@pytest.mark.parametrize("layout", ["6", 6.0, True, None, [6]])
def test_a_layout_that_is_no_number_is_refused(tmp_path: Path, layout: Any) -> None:
    said = refused(tmp_path, {**PLAIN.as_json(), "schema": layout})
    assert f"expected the header of a run with its layout ('schema'), got {layout!r}" in said


@pytest.mark.parametrize("raw", [[], "a run", 6, None, {}])
def test_what_is_no_header_is_refused(tmp_path: Path, raw: Any) -> None:
    assert "expected" in refused(tmp_path, raw)


def test_a_header_of_the_layout_before_that_lacks_parts_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, {"schema": OLDEST, "name": "by-hand"})
    assert f"expected the header of a run of layout {OLDEST}, got one without '" in said


# --- damaged parts ----------------------------------------------------------------------------------------------------

GONE = object()
WRONG: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "no seed": (("seed",), GONE, "at seed: field required"),
    "seed in words": (("seed",), "seven", "at seed: input should be a valid integer"),
    "no rows": (("rows",), GONE, "at rows: field required, got none."),
    "rows that are none": (("rows",), {"adaptive": {}}, "at rows: input should be a valid tuple"),
    "unknown kind": (("rows", 1, "kind"), "clever", "at rows.1.kind: input should be '', 'undefended'"),
    "unknown mode": (("rows", 2, "mode"), "G2", "at rows.2.mode: input should be 'exact'"),
    "unknown judged": (
        ("rows", 0, "judged"),
        "all",
        "at rows.0.judged: input should be 'defence', 'bare' or 'other'",
    ),
    "no attack": (("rows", 0, "attack"), GONE, "at rows.0.attack: field required"),
    "no methods": (("methods",), [], "at methods: tuple should have at least 1 item"),
    "no rule": (("methods", 0, "rule"), GONE, "at methods.0.rule: field required"),
    "no draws": (("draws", "report"), GONE, "at draws.report: field required"),
    "half a unit": (("units", 3, "last"), GONE, "at units.3.last: field required"),
    "labels in words": (("data", "labels", 1), "cat", "at data.labels.1: input should be a valid integer"),
    "box of three": (("threat_model", "box"), [0, 1, 2], "at threat_model.box: "),
    "radius in words": (("threat_model", "eps"), "large", "at threat_model.eps: input should be a valid number"),
    "unknown part": (("weather",), "fine", "at weather: extra inputs are not permitted, got 'fine'"),
    "unknown part of a row": (("rows", 0, "route"), "G6", "at rows.0.route: extra inputs are not permitted, got 'G6'"),
    "unknown part of the data": (("data", "source"), "web", "at data.source: extra inputs are not permitted"),
}


def damaged(raw: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A JSON value with one part set or taken out."""
    copy = json.loads(json.dumps(raw))
    part = copy
    for key in path[:-1]:
        part = part[key]
    if value is GONE:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return copy


@pytest.mark.parametrize("what", WRONG)
def test_what_is_missing_or_wrong_in_a_header_is_named_by_its_place(tmp_path: Path, what: str) -> None:
    path, value, said = WRONG[what]
    raw = damaged(PLAIN.as_json(), path, value)
    assert f"header: {said}" in refused(tmp_path, raw)
    with pytest.raises(LayoutError, match=r"^header: at "):
        read_header(raw)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("device",), GONE, "unit: at device: field required"),
        (("eps",), "large", "unit: at eps: input should be a valid number"),
        (("evaluations", "score"), [1], "unit: at evaluations.score.1: field required"),
        (("clean", "predictions"), GONE, "unit: at clean.predictions: field required"),
        (("audit", "light"), "BLUE", "unit: at audit.light: input should be 'GREEN', 'AMBER' or 'RED'"),
        (("weather",), "fine", "unit: at weather: extra inputs are not permitted, got 'fine'"),
        (("audit", "weather"), "fine", "unit: at audit.weather: extra inputs are not permitted"),
    ],
)
def test_what_is_missing_or_wrong_in_facts_is_named_by_its_place(
    path: tuple[str | int, ...], value: Any, said: str
) -> None:
    audit, null = BY_HAND.audit().facts, BY_HAND.null("null-defence").facts
    whole = null.model_copy(update={"audit": audit.audit, "identity": audit.identity}).as_json()
    assert read_facts(whole, layout=LAYOUT).as_json() == whole
    with pytest.raises(LayoutError) as caught:
        read_facts(damaged(whole, path, value), layout=LAYOUT)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


class LaterFacts(UnitFacts):
    """Facts with a part that is not known here."""

    weather: str = "fine"


def test_a_whole_unit_with_unknown_facts_is_refused_in_one_sentence(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", PLAIN)
    unit = BY_HAND.attacked("adaptive", 1)
    directory.commit(unit._replace(facts=LaterFacts(**unit.facts.model_dump())))
    name = unit.facts.unit
    with pytest.raises(RecordError) as caught:
        directory.load(name)
    said = str(caught.value)
    assert said.startswith(
        f"unit {directory.file(name)}: unit: at weather: extra inputs are not permitted, got 'fine'."
    )
    assert "\n" not in said


# --- JSON Schema ------------------------------------------------------------------------------------------------------


def references(value: Any) -> Iterator[str]:
    """All $ref in a JSON value."""
    if isinstance(value, dict):
        for key, its in value.items():
            if key == "$ref":
                yield its
            yield from references(its)
    elif isinstance(value, list):
        for its in value:
            yield from references(its)


def test_the_schema_names_every_key_that_is_written() -> None:
    whole = json.loads(json.dumps(json_schema(), allow_nan=False))
    assert whole.pop("layout") == LAYOUT
    assert set(whole) == set(PARTS) == {"header", "unit", "audit", "plan"}
    assert set(whole["header"]["properties"]) == set(WHOLE.as_json())
    assert set(whole["unit"]["properties"]) == set(BY_HAND.audit().facts.as_json())
    for part in whole.values():
        assert part["type"] == "object"
        assert part["additionalProperties"] is False
        used = set(references(part))
        assert {ref.removeprefix("#/$defs/") for ref in used} == set(part.get("$defs", {}))
    kinds = whole["header"]["$defs"]["AttackKind"]["enum"]
    assert kinds == [kind.value for kind in AttackKind]
    assert whole["header"]["$defs"]["GradientMode"]["enum"] == [mode.value for mode in GradientMode]


def test_records_are_valid_by_their_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    validators = {}
    for name in PARTS:
        jsonschema.Draft202012Validator.check_schema(schema[name])
        validators[name] = jsonschema.Draft202012Validator(schema[name])
    for k, header in enumerate((PLAIN, WHOLE)):
        directory = RunDirectory.create(tmp_path / str(k), header)
        raw = json.loads((directory.path / "study.json").read_text())
        assert [*validators["header"].iter_errors(raw)] == []
    for what, (path, value, _) in WRONG.items():
        assert [*validators["header"].iter_errors(damaged(PLAIN.as_json(), path, value))], what
    audit = BY_HAND.audit(checks=[AuditCheck(name="zeros", light=AuditLight.RED, sentence="Some.")])
    units = [audit, BY_HAND.null("null-defence"), BY_HAND.attacked("adaptive", 1)]
    directory = RunDirectory.create(tmp_path / "units", BY_HAND.header(ROWS, audits=["audit"]))
    for unit in units:
        directory.commit(unit)
        with np.load(directory.file(unit.facts.unit)) as stored:
            facts = json.loads(stored["meta"].tobytes())
        del facts["sha256"], facts["study"], facts["types"]  # of the file
        assert [*validators["unit"].iter_errors(facts)] == []
        assert [*validators["unit"].iter_errors({**facts, "weather": "fine"})]
    assert audit.facts.audit is not None
    assert [*validators["audit"].iter_errors(audit.facts.audit.as_json())] == []


# --- small helpers of the parts ---------------------------------------------------------------------------------------


def test_classes_are_named_and_what_is_no_class_is_told_in_words() -> None:
    """Three classes; a classifier may have more logits than the data have classes."""
    data = edited(PLAIN, "data", "classes", to=["cat", "dog", "eel"]).data
    assert [data.class_name(label) for label in (0, 2)] == ["cat", "eel"]
    assert [data.class_name(label) for label in (3, 9)] == ["class 3", "class 9"]
    assert data.class_name(NOT_FINITE) == "not finite"


def test_a_row_attacks_the_defence_unless_it_is_left_out() -> None:
    kinds = {kind: BY_HAND.row("its", kind.value).attacks_defence for kind in AttackKind}
    without = (AttackKind.UNDEFENDED, AttackKind.UNCHANGED, AttackKind.REFERENCE, AttackKind.PINNED, AttackKind.TINY)
    assert kinds == {kind: kind not in without for kind in AttackKind}


def test_parts_of_a_header_are_found_by_name() -> None:
    assert (PLAIN.compares, WHOLE.compares) == (False, True)
    assert WHOLE.method("b").baseline
    assert [WHOLE.method(name).is_bare for name in "ab"] == [False, True]
    assert WHOLE.method("a").part("purifier") == DEFENCE["purifier"]
    assert method(defence="study.Mine").part("purifier") is None
    assert not method(defence="study.Mine").is_bare
    assert PLAIN.row("bpda").mode is GradientMode.BPDA
    assert PLAIN.row("bpda").setting("n_steps") == 20
    assert PLAIN.row("bpda").setting("n_queries") is None
    assert edited(PLAIN, "rows", 2, "attack", to="study.Mine").row("bpda").setting("n_steps") is None
    assert f"{GradientMode.DEVIATED} {AttackKind.BLACK_BOX}" == "exact-deviated black-box"


# --- names ------------------------------------------------------------------------------------------------------------


def outer() -> Any:
    def inner() -> None: ...

    return inner


def of_module(name: str, code: str) -> types.ModuleType:
    """A module that is not imported from a file."""
    module = types.ModuleType(name)
    exec(code, module.__dict__)
    return module


def test_things_are_called_by_their_names_and_not_by_their_files() -> None:
    assert record_name(depura.Vote) == "depura.Vote"
    assert record_name(depura.from_input) == "depura.from_input"
    assert record_name(depura.Defence.with_) == "depura.Defence.with_"
    inner = of_module("depura.methods.some", "def outer():\n def inner(): pass\n return inner\n").outer()
    assert record_name(inner) == "depura.outer.<locals>.inner"
    assert record_name(outer()) == f"{__name__}.outer.<locals>.inner"
    assert record_name(torch.nn.Linear) == "torch.nn.modules.linear.Linear"
    assert record_name(math.exp) == "math.exp"
    assert record_name(torch.sigmoid) == "torch._VariableFunctionsClass.sigmoid"
    alike = of_module("depurable.some", "class Vote: pass\n")
    assert record_name(alike.Vote) == "depurable.some.Vote"


def test_what_a_study_file_defines_does_not_name_the_file(tmp_path: Path) -> None:
    """Loaded as `depura run` loads it."""
    made: dict[str, list[str]] = {}
    for name in ("first.py", "another-name.py"):
        file = tmp_path / name
        file.write_text("class Mine: pass\n\ndef study():\n    return lambda: 0\n")
        module = module_of("--study", file)
        made[name] = [record_name(its) for its in (module.Mine, module.study, module.study())]
    assert made["first.py"] == made["another-name.py"]
    assert made["first.py"] == ["study.Mine", "study.study", "study.study.<locals>.<lambda>"]


def test_a_thing_may_have_a_name_of_its_own() -> None:
    @recorded_as("depura.this.one")
    def function() -> int:
        return 3

    assert record_name(function) == "depura.this.one"
    assert function() == 3
    assert record_name(mimicdiffusion.through_network) == "depura.mimicdiffusion.through_network"
    assert record_name(depura.purifiers.optimisation.through_network) == "depura.through_network"

    class Named:
        record_name = "depura.Named"

    class Below(Named):
        """A name is not inherited: this is another thing."""

    assert record_name(Named) == "depura.Named"
    assert record_name(Below).endswith(".Below")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("depura.rules.Vote", "depura.Vote"),
        ("depura.attacks.pgd.PGD", "depura.PGD"),
        ("depura.attacks.losses.margin", "depura.margin"),
        ("depura.attacks.ensembles._Part", "depura._Part"),
        ("depura.attacks.ensembles._Part.made", "depura._Part.made"),
        ("depura.methods.gdmp.diffused", "depura.diffused"),
        ("depura.methods.mimicdiffusion.through_network", "depura.mimicdiffusion.through_network"),
        ("depura.methods.gdmp.guide_m.<locals>.scale", "depura.guide_m.<locals>.scale"),
        ("depura.methods.gdmp.guide_m.<locals>.scale.<locals>.by", "depura.guide_m.<locals>.scale.<locals>.by"),
        ("depura.starts.make.<locals>.Start", "depura.make.<locals>.Start"),
        ("depura.purifier.Purifier", "depura.DiffusionPurifier"),
        ("depura.composed.Pinned", "depura.FixedNoise"),
        ("depura.composed.Averaged.with_", "depura.Averaged.with_"),
        ("depura.composed.Averaged.with_.<locals>.start", "depura.Averaged.with_.<locals>.start"),
        ("depura.attacks.eot.<lambda>", "depura.<lambda>"),
        ("_study_digits.Mine", "study.Mine"),
        ("_study_digits-2.Mine", "study.Mine"),
        ("_study_digits.study.<locals>.<lambda>", "study.study.<locals>.<lambda>"),
        ("depura.Vote", "depura.Vote"),
        ("torch.nn.modules.linear.Linear", "torch.nn.modules.linear.Linear"),
        ("depurable.rules.Vote", "depurable.rules.Vote"),
        ("one of depura.rules.Vote", "one of depura.rules.Vote"),
        ("depura", "depura"),
        ("linf", "linf"),
        ("", ""),
    ],
)
def test_names_in_older_records_are_those_of_today(before: str, now: str) -> None:
    assert name_of_path(before) == now
    assert current_name(now) == now


def test_a_description_is_renamed_throughout() -> None:
    before = {"type": "depura.rules.Vote", "parts": [{"type": "depura.rules.Single"}, "depura.starts.from_input", 3]}
    now = {"type": "depura.Vote", "parts": [{"type": "depura.Single"}, "depura.from_input", 3]}
    assert renamed(before, name_of_path) == now
    assert renamed({"depura.rules.Vote": None}, name_of_path) == {"depura.rules.Vote": None}  # a key is no name


def test_a_name_that_was_changed_is_read_as_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.ALIASES, "depura.DiffusionPurifier", "depura.ReverseProcess")
    before = PLAIN.methods[0].part("purifier")
    now = read_header(PLAIN.as_json()).methods[0].part("purifier")
    assert (before["type"], now["type"]) == ("depura.DiffusionPurifier", "depura.ReverseProcess")


@pytest.mark.parametrize(
    ("described", "word"),
    [
        ({"type": "depura.Vote", "n_draws": 3}, "Vote"),
        ("depura.margin", "margin"),
        ("depura.mimicdiffusion.through_network", "through_network"),
        ({"type": "study.make.<locals>.Mine"}, "Mine"),
        ("word", "word"),
        ({"n_draws": 3}, ""),
        (None, ""),
        (3, ""),
        ([{"type": "depura.Vote"}], ""),
        ({"type": 3}, ""),
    ],
)
def test_short_names_are_the_last_words(described: Any, word: str) -> None:
    assert short_name(described) == word


NO_PART = ("analysis", "audit", "cli", "data", "evaluation", "models", "planning", "reports", "statistics", "training")
"""Parts of depura whose things no record names, or (models.networks) names with a digest of their weights."""

ALIKE = {
    # An entry of the list of methods, and what a header says of a method: a record names neither.
    "depura.Method": {"depura.methods.entry.Method", "depura.records.schema.Method"},
    # Entries of tables of published settings: a study takes numbers from them, and holds none of them.
    "depura.Preset": {"depura.methods.diffpure.Preset", "depura.methods.diffpure_ddpm.Preset"},
    # Functions that make a depura.FromInputUnder, which is what a purifier holds and a record names.
    "depura.released_start": {
        "depura.methods.adbm.released_start",
        "depura.methods.diffpure.released_start",
        "depura.methods.gdmp.released_start",
    },
}
"""Public things of one name that no record names."""


def test_no_two_things_that_a_record_can_name_have_one_name() -> None:
    found: dict[str, set[str]] = {}
    for info in pkgutil.walk_packages(depura.__path__, "depura."):
        if info.name.split(".")[1] in NO_PART or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, its in vars(module).items():
            own = (inspect.isclass(its) or inspect.isfunction(its)) and its.__module__ == info.name
            if own and not name.startswith("_"):
                found.setdefault(record_name(its), set()).add(f"{info.name}.{its.__qualname__}")
    assert {name: its for name, its in found.items() if len(its) > 1} == ALIKE
    assert "depura.Vote" in found
    assert set(ALIASES.values()) <= set(found)
    # Records of layout 5 called things by their paths: each is read as what it is called now.
    # The class that all purifiers derive from has the name that the diffusion purifier had; no record names it.
    paths = {path: name for name, its in found.items() for path in its if name != "depura.Purifier"}
    assert {path: name_of_path(path) for path in paths} == paths
