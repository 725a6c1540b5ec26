"""The judge: studies, streams, runs, records and statistics. Attacks and the purification core meet only here."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__, submodules=[file.stem for file in Path(__file__).parent.glob("[a-z]*.py")]
)
