"""The direction of imports, and where grad mode may be touched."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "depura"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = {
    "_check": set(),
    "_atomic": set(),
    "_memory": set(),
    "_pickles": {"_check"},
    "records": {"records"},
    "noise": {"_check"},
    "schedules": {"_check"},
    "denoisers": {"_check", "schedules"},
    "exact": {"_check", "schedules"},
    "solvers": {"_check", "noise", "schedules"},
    "guidance": {"_check", "noise", "schedules"},
    "predictions": {"records.kinds"},
    "gradients": {"_check", "_memory", "records.kinds", "schedules", "gradients"},
    "starts": {"_check", "noise", "schedules"},
    "rules": {"_check"},
    "cleaner": {"_check", "noise", "schedules", "denoisers", "gradients"},
    "purifier": {"_check", "noise", "schedules", "denoisers", "solvers", "guidance", "gradients", "starts", "cleaner"},
    "optimised": {"_check", "noise", "schedules", "denoisers", "gradients", "guidance", "cleaner"},
    "filters": {"_check"},
    "compression": {"_check"},
    "similarity": {"filters"},
    "composed": {"_check", "records.kinds", "noise", "filters", "cleaner"},
    "fast": {"_check", "noise", "denoisers", "networks", "cleaner"},
    "defence": {"_check", "records.kinds", "predictions", "noise", "cleaner", "rules"},
    "methods": {
        "_check",
        "records.names",
        "predictions",
        "noise",
        "schedules",
        "denoisers",
        "exact",
        "solvers",
        "guidance",
        "gradients",
        "filters",
        "compression",
        "similarity",
        "starts",
        "cleaner",
        "purifier",
        "optimised",
        "composed",
    },
    "attacks": {"_check", "_memory", "predictions", "noise", "attacks"},
    "audit": {
        "_check",
        "records.kinds",
        "noise",
        "schedules",
        "denoisers",
        "guidance",
        "gradients",
        "solvers",
        "rules",
        "cleaner",
        "purifier",
        "composed",
        "optimised",
        "defence",
        "fast",
        "audit",
    },
    "evaluation": {
        "_check",
        "predictions",
        "noise",
        "schedules",
        "denoisers",
        "guidance",
        "gradients",
        "solvers",
        "rules",
        "cleaner",
        "purifier",
        "composed",
        "defence",
        "attacks",
        "audit",
        "records",
        "evaluation",
    },
    "evaluation.statistics": set(),
    "evaluation.error_rates": {"evaluation.statistics"},
    "evaluation.precision": {"_check", "evaluation.statistics"},
    "judging": {
        "_check",
        "records",
        "evaluation.statistics",
        "evaluation.error_rates",
        "evaluation.precision",
        "judging",
    },
    "reports": {"_atomic", "_check", "records", "evaluation.statistics", "judging", "reports"},
    "networks": {"_check", "networks"},
    "checkpoints": {"_atomic", "_check", "_pickles", "schedules", "denoisers", "networks", "data", "checkpoints"},
    "data": {"_atomic", "_check", "_pickles", "denoisers", "networks", "data"},
    "models": {"_check", "denoisers", "networks", "data", "checkpoints"},
    "reproduction": {"attacks", "checkpoints", "data", "denoisers", "evaluation", "models", "networks"},
    "training": {
        "_atomic",
        "_check",
        "predictions",
        "noise",
        "schedules",
        "denoisers",
        "networks",
        "data",
        "fast",
        "training",
    },
}
"""What each part may import of depura. Parts that are not listed (the command line, the demo, the public names) may
import anything."""

GRAD_MODE = {
    "_memory.py",
    "gradients/routes.py",
    "gradients/stored.py",
    "gradients/adjoint.py",
    "gradients/relaxed.py",
    "gradients/grafted.py",
    "gradients/deviated.py",
    "guidance.py",
    "purifier.py",
    "composed.py",
    "fast.py",
    "optimised.py",
    "cleaner.py",
    "rules.py",
    "attacks/eot.py",
    "attacks/stadv.py",
    "attacks/external.py",
    "evaluation/fitting.py",
    "evaluation/nothing.py",
    "evaluation/indicators.py",
    "evaluation/header.py",
    "evaluation/scoring.py",
    "evaluation/operations.py",
    "evaluation/timing.py",
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


def part_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def rule_for(part: str) -> set[str] | None:
    return LAYERS.get(part, LAYERS.get(part.partition(".")[0]))


def imports_of(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "depura"]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "depura":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("depura").lstrip(".") for name in found]


def allowed(name: str, rule: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in rule)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    rule = rule_for(part)
    if rule is None:
        assert part.partition(".")[0] in {"", "cli", "demo", "__init__", "__main__"}, (
            f"{part} has no layer: give it one"
        )
        return
    wrong = [name for name in imports_of(file) if not allowed(name, rule)]
    assert not wrong, f"{part} may not import {wrong}"


@pytest.mark.parametrize("file", sorted((SOURCE / "methods").glob("[a-z]*.py")), ids=lambda f: f.stem)
def test_methods_do_not_import_each_other(file: Path) -> None:
    assert not [name for name in imports_of(file) if name.startswith("methods.")]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_grad_mode_is_touched_in_few_places(file: Path) -> None:
    name = file.relative_to(SOURCE).as_posix()
    if name in GRAD_MODE or name.split("/")[0] in {"training", "cli"}:
        return
    words = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    assert not words & {"no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "detach", "detach_"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_randomness_is_drawn_in_one_place(file: Path) -> None:
    """torch.randint seeds Noise.fresh, manual_seed initial weights and, on a fork of the generator, attacks of other
    libraries; nothing else draws from a global generator."""
    drawing = {"randn", "randn_like", "rand", "rand_like", "randint", "randperm", "normal_", "uniform_", "manual_seed"}
    found = {n.attr for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Attribute)} & drawing
    expected = {
        "noise.py": {"randint"},
        "training/loop.py": {"manual_seed"},
        "attacks/external.py": {"manual_seed"},
    }
    assert found == expected.get(file.relative_to(SOURCE).as_posix(), set())


def test_nothing_is_unpickled() -> None:
    """One file reads pickles, by a list of what they may name; torch reads tensors only."""
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text
        assert "import pickle" not in text or file.name == "_pickles.py"
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "torch.load":
                assert {k.arg: ast.unparse(k.value) for k in call.keywords}["weights_only"] == "True"


def test_rules_name_parts_that_exist() -> None:
    parts = {part_of(f) for f in FILES} | {part_of(f).partition(".")[0] for f in FILES}
    assert set(LAYERS) <= parts
    assert {(SOURCE / name).exists() for name in GRAD_MODE} == {True}
