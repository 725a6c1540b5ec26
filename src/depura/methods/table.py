"""The named methods: the one table that the command line, the comparison studies and the documentation read."""

from __future__ import annotations

from depura.methods import (
    adbm,
    agdm,
    baselines,
    diffpure,
    diffpure_ddpm,
    diffpure_langevin,
    gdmp,
    gradual,
    likelihood,
    mimicdiffusion,
    smoothing,
)
from depura.methods.entry import Method

_FURTHER = (diffpure_ddpm.CELEBA_SETTING, diffpure.ODE, diffpure_ddpm.ADM, diffpure_langevin.LANGEVIN, diffpure.RANDOM)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        diffpure.METHOD._replace(settings=(*diffpure.METHOD.settings, *_FURTHER)),
        mimicdiffusion.METHOD,
        agdm.METHOD,
        gdmp.METHOD,
        gradual.METHOD,
        likelihood.LIKELIHOOD,
        likelihood.SCOREOPT,
        smoothing.METHOD,
        adbm.METHOD,
        baselines.METHOD,
    )
}
"""By name. A method is added by its line here; its entry stands at the end of its own file."""
