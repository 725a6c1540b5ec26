"""Purifiers: the reverse process of a diffusion model, an optimisation, and compositions of them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__, submodules=["composed", "fast", "optimisation", "purifier"]
)
