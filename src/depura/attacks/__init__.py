"""Attacks. They know only a callable from images to logits, return candidates, and never judge themselves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__, submodules=["catalogue", "ensembles", "libraries"]
)
