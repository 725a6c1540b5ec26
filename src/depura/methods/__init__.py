"""Purification methods, one paper per file, each a short composition of the parts."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__, submodules=[file.stem for file in Path(__file__).parent.glob("[a-z]*.py")]
)
