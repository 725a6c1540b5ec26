"""The judge: studies, streams, runs, records and statistics. Attacks and the purification core meet only here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__, submodules=["demo", "profiles"]
)
