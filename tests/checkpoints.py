"""Checkpoint files as they are published, made by the tests: tiny random networks in the real wrappings."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depura.models.checkpoints.families import FAMILIES, Family
from depura.models.networks.edm import DhariwalUNet, SongUNet

TINY: dict[str, dict[str, Any]] = {
    "score-sde": {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (1,)},
    "score-sde-ddpm": {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)},
    "adm": {
        "width": 64,
        "multipliers": (1, 1),
        "blocks": 1,
        "attention": (1,),
        "head_width": 64,
        "residual_resampling": True,
    },
    "improved-diffusion": {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "heads": 4},
    "ddpm": {"width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (1,)},
    "edm": {
        "preconditioner": "EDMPrecond",
        "network": "SongUNet",
        "constants": {},
        "resolution": 16,
        "width": 16,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (1,),
        "fourier": False,
        "residual": False,
        "filter": (1, 1),
        "noise_multiplier": 1,
        "classes": None,
        "augment": 9,
        "channels": 3,
        "outputs": 3,
    },
    "wide-resnet": {"depth": 10, "width": 1},
    "dm-wide-resnet": {"depth": 10, "width": 1},
    "cifar-bottleneck": {"n_blocks": (1, 1, 1, 1), "widths": (8, 8, 16, 16)},
    "cifar-resnet": {"n_blocks": (1, 1, 1)},
    "attribute": {"widths": (8, 16), "hidden": 16},
    "vit": {"depth": 1, "width": 8},
}
"""Settings of a small network of each family."""


def family(name: str) -> Family:
    """A family by its name."""
    return next(found for found in FAMILIES if found.name == name)


def network(name: str, seed: int = 0) -> nn.Module:
    """A small network of a family; every parameter is random, also those that begin at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = family(name).network(**TINY[name])
        for parameter in built.parameters():
            nn.init.normal_(parameter, std=0.05)
    return built.eval()


def prefixed(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Names as torch's data parallelism leaves them."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def score_sde_file(path: Path, *, seed: int = 0) -> nn.Module:
    """A file of score_sde: averages without names, another model, an optimizer. Returns the averaged network."""
    averaged, last = network("score-sde", seed), network("score-sde", seed + 1)
    optimizer = torch.optim.Adam(last.parameters())
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "model": prefixed(last.state_dict()),
            "ema": {
                "decay": 0.9999,
                "num_updates": 7,
                "shadow_params": [p.detach() for p in averaged.parameters() if p.requires_grad],
            },
            "step": 7,
        },
        path,
    )
    return averaged


@contextmanager
def _modules_of_edm() -> Iterator[Any]:
    """The modules that a pickle of EDM names, so that one can be written; they are gone afterwards."""
    made = {
        name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("a test ran the code of a pickle")

    class EasyDict(dict):
        """A dict."""

    for thing, module in ((_reconstruct_persistent_obj, "torch_utils.persistence"), (EasyDict, "dnnlib.util")):
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(made[module], thing.__name__, thing)
    sys.modules.update(made)
    try:
        yield types.SimpleNamespace(rebuild=_reconstruct_persistent_obj, EasyDict=EasyDict)
    finally:
        for name in made:
            del sys.modules[name]


def edm_pickle(path: Path, *, settings: dict[str, Any] | None = None) -> nn.Module:
    """A file of EDM: every module is pickled with its source by `torch_utils.persistence`. Returns the network."""
    net = network("edm")
    with _modules_of_edm() as edm:

        class Persistent:
            """Pickled as EDM pickles a module."""

            def __init__(self, module: nn.Module, name: str) -> None:
                self.module, self.name = module, name

            def __reduce__(self) -> Any:
                state = dict(self.module.__dict__)
                if self.name == "EDMPrecond":
                    state["_init_args"], state["_init_kwargs"] = (), edm.EasyDict(settings or {"img_resolution": 16})
                children = state["_modules"]
                state["_modules"] = type(children)((name, _as_pickled(child)) for name, child in children.items())
                for key in [key for key, value in state.items() if callable(value)]:
                    del state[key]
                source = "raise SystemExit('the source in the pickle was run')"
                meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.name, "state": state}
                return edm.rebuild, (meta,)

        def _as_pickled(module: nn.Module) -> Any:
            if isinstance(module, nn.ModuleDict | nn.ModuleList | nn.Sequential):
                copied = type(module)()
                copied.__dict__["_modules"].update({n: _as_pickled(child) for n, child in module._modules.items()})
                return copied
            names = {SongUNet: "SongUNet", DhariwalUNet: "DhariwalUNet"}
            return Persistent(module, names.get(type(module), type(module).__name__))

        content = {
            "ema": Persistent(net, "EDMPrecond"),
            "loss_fn": Persistent(nn.Identity(), "EDMLoss"),
            "augment_pipe": None,
            "dataset_kwargs": edm.EasyDict(path="cifar10.zip", resolution=16),
        }
        path.write_bytes(pickle.dumps(content))
    return net
