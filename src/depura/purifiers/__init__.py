"""Purifiers: the reverse process of a diffusion model, an optimisation, and compositions of them."""

from pathlib import Path

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__, submodules=[file.stem for file in Path(__file__).parent.glob("[a-z]*.py")]
)
