"""The direction of imports, and where grad mode may be touched."""

import ast
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "depura"
FILES = sorted(SOURCE.rglob("*.py"))

FLOORS = (
    ("_check", "_atomic"),
    ("records",),
    ("noise", "statistics", "image_ops", "data"),
    ("diffusion",),
    ("gradients", "models"),
    ("purifiers",),
    ("defence",),
    ("wrapping",),
    ("methods", "attacks", "audit", "training"),
    ("evaluation",),
    ("planning",),
    ("analysis",),
    ("reports",),
    ("cli", "__init__"),
    ("__main__",),
)
"""Rooms (folders and files of the package) from the ground up. A room may import itself and rooms on lower floors."""

ONLY = {
    "records": {"records", "_check", "_atomic"},
    "statistics": {"_check"},
    "data": {"_check", "_atomic"},
    "analysis": {"_check", "records", "statistics"},
    "reports": {"_check", "_atomic", "records", "statistics", "analysis"},
}
"""Rooms that may import less than what is below them. Analysis and reports read records and compute no image."""

GRAD_MODE = {
    "gradients/routes.py",
    "gradients/stored.py",
    "gradients/adjoint.py",
    "gradients/relaxed.py",
    "gradients/grafted.py",
    "gradients/deviated.py",
    "diffusion/guidance.py",
    "purifiers/fast.py",
    "purifiers/optimisation.py",
    "purifiers/purifier.py",
    "purifiers/wrapped.py",
    "defence.py",
    "attacks/queries.py",
    "attacks/low_frequency.py",
    "attacks/stadv.py",
    "attacks/external.py",
    "evaluation/data_checks.py",
    "evaluation/diagnostics.py",
    "evaluation/examples.py",
    "evaluation/header.py",
    "evaluation/scoring.py",
    "planning/operations.py",
    "evaluation/counting.py",
    "evaluation/replay.py",
    "evaluation/units.py",
    "records/describe.py",
    "audit/audit.py",
    "audit/checks.py",
    "audit/derivatives.py",
    "audit/modules.py",
    "audit/parts.py",
    "audit/probes.py",
    "audit/subject.py",
    "_check.py",
}
"""Files that may mention no_grad, enable_grad or detach, besides training and the command line."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def room_of(module: str) -> str:
    return module.partition(".")[0] or "__init__"


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file: Path) -> list[str]:
    """Names that a file imports of depura, without the leading "depura."."""
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "depura"]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "depura":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("depura").lstrip(".") for name in found]


def attributes_of(file: Path) -> set[str]:
    return {node.attr for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute)}


def floor_of(room: str) -> int:
    (number,) = (k for k, rooms in enumerate(FLOORS) if room in rooms)
    return number


def test_every_room_has_a_floor() -> None:
    assert {room_of(module_of(file)) for file in FILES} == {room for rooms in FLOORS for room in rooms}


def test_few_files_stand_outside_a_room() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= 8


def test_imports_go_one_way() -> None:
    wrong = []
    for file in FILES:
        room = room_of(module_of(file))
        others = {room_of(name) for name in imports_of(file)} - {room}
        upward = {other for other in others if floor_of(other) >= floor_of(room)}
        if upward:
            wrong.append(f"{name_of(file)}: {room} may not import {upward}, which are not on a lower floor")
        if not others <= ONLY.get(room, others):
            wrong.append(f"{name_of(file)}: {room} may import {ONLY[room]} only, got {others}")
    assert not wrong


def test_methods_do_not_import_each_other() -> None:
    """All may import what an entry is; the table imports them all."""
    files = [file for file in (SOURCE / "methods").glob("[a-z]*.py") if file.stem != "table"]
    others = {
        file.stem: {name.split(".")[1] for name in imports_of(file) if name.startswith("methods.")} for file in files
    }
    assert others
    assert {name: found for name, found in others.items() if not found <= {"entry"}} == {}


def test_grad_mode_is_touched_in_few_places() -> None:
    words = {"no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "detach", "detach_"}
    touching = {name_of(file) for file in FILES if attributes_of(file) & words}
    assert {name for name in touching - GRAD_MODE if name.split("/")[0] not in {"training", "cli"}} == set()


def test_randomness_is_drawn_in_one_place() -> None:
    """torch.randint seeds Noise.fresh, manual_seed initial weights and, on a fork of the generator, attacks of other
    libraries and wrapped code, whose unseeded generators numpy's randint seeds; nothing else draws from a global
    generator."""
    drawing = {"randn", "randn_like", "rand", "rand_like", "randint", "randperm", "normal_", "uniform_", "manual_seed"}
    found = {name_of(file): attributes_of(file) & drawing for file in FILES}
    assert {name: words for name, words in found.items() if words} == {
        "noise.py": {"randint"},
        "training/loop.py": {"manual_seed"},
        "attacks/external.py": {"manual_seed"},
        "purifiers/addressed.py": {"manual_seed", "randint"},
    }


def test_nothing_is_unpickled() -> None:
    """One file reads pickles, by a list of what they may name; torch reads tensors only."""
    for file in FILES:
        assert "allow_pickle=True" not in file.read_text(encoding="utf-8")
        names = {alias.name for n in ast.walk(tree_of(file)) if isinstance(n, ast.Import) for alias in n.names}
        assert "pickle" not in names or name_of(file) == "data/pickles.py"
        for call in (node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "torch.load":
                assert {k.arg: ast.unparse(k.value) for k in call.keywords}["weights_only"] == "True"


def test_the_list_of_grad_mode_names_files_that_exist() -> None:
    assert {(SOURCE / name).exists() for name in GRAD_MODE} == {True}
