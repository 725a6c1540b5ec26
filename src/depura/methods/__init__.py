"""Purification methods, one paper per file, each a short composition of the parts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(  # pyright: ignore[reportUnknownVariableType]
    __name__,
    submodules=[
        "adbm",
        "agdm",
        "baselines",
        "diffpure",
        "diffpure_ddpm",
        "diffpure_langevin",
        "entry",
        "gdmp",
        "gradual",
        "likelihood",
        "mimicdiffusion",
        "smoothing",
        "table",
    ],
)
