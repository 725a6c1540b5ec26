"""Defences as they were before anything was computed, to tell what they answer from what they remember."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from depura.defence import Defence
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.records.names import STUDY_MODULE


class Originals:
    """Copies of what a study judges, taken before it is run.

    Weights are shared with the study; everything else, such as lists that a module keeps, is copied. A copy does not
    reach what is kept outside of the objects, as in a variable of a file: a study that comes from a file is loaded anew
    besides, with the files beside it that it imports.

    Attributes:
        source: where the study comes from; None for one that was made in Python.
    """

    def __init__(self, study: Study, source: StudySource | None = None) -> None:
        """Copy.

        Args:
            study: the study, before it is run.
            source: where it comes from.
        """
        self.source = source
        self._kept: dict[str, Defence] = {}
        for name, defence in study.audits.items():
            try:
                self._kept[name] = _copied(defence)
            except Exception:  # whatever a foreign object raises when it is copied
                continue

    def of(self, name: str, device: str) -> dict[str, Callable[[], Defence]]:
        """Ways to a defence as it was, by what each is called in sentences.

        Args:
            name: of the unit of its audit: "audit", or "audit-" and the method.
            device: where to compute.

        Returns:
            For each way a function that makes another copy.
        """
        ways: dict[str, Callable[[], Defence]] = {}
        if name in self._kept:
            ways["as it was before the run"] = partial(_on, self._kept[name], device)
        loaded = None if self.source is None else _loaded_anew(self.source)
        if loaded is not None:
            ways["loaded anew"] = partial(_on, loaded.audits[name], device)
        return ways


def _loaded_anew(source: StudySource) -> Study | None:
    """A study with its file, and the files beside it that it imports, run once more; None where that does not work.

    The modules that are known stay what they were.
    """
    folder = source.path.resolve().parent
    known = {
        name: module
        for name, module in list(sys.modules.items())
        if name.startswith(STUDY_MODULE) or _lies_in(name, module, folder)
    }
    for name in known:
        del sys.modules[name]
    try:
        return source.load()
    except Exception:  # such as an operator that somebody registers, which can be done once
        return None
    finally:
        sys.modules.update(known)


def _lies_in(name: str, module: ModuleType | None, folder: Path) -> bool:
    """Whether a module is a file of a folder; depura's own are left alone, and None stands for one that is barred."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or name.partition(".")[0] in ("depura", "__main__"):
        return False
    return Path(file).resolve().parent == folder


def _copied(defence: Defence) -> Defence:
    return copy.deepcopy(defence, {id(weight): weight for weight in defence.parameters()})


def _on(defence: Defence, device: str) -> Defence:
    return _copied(defence).to(device)
