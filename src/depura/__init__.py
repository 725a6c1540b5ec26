"""depura: diffusion-based adversarial purification, and an honest account of how much it helps.

Parts are objects that compose: a `DiffusionPurifier` is a denoiser, a step table, a solver, perhaps guidance, a start
and a gradient route; a `Defence` is a purifier, a classifier and the deployed rule; a `Study` judges a defence.

Names are listed in `__init__.pyi`, by subject, and imported when they are first used: `import depura` loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(  # pyright: ignore[reportUnknownVariableType]
    __name__, __file__
)
