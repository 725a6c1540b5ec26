"""Attacks of other libraries as sources of candidates: what they return is proposed here and judged elsewhere.

A library is given an ordinary module. Its own verdicts (success flags, robust accuracy) are not looked at, as most of
them rest on one draw of a randomised model. How each library is called is in `depura.attacks.libraries`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, History, Progress
from depura.attacks.library_model import ModelForLibraries
from depura.attacks.queries import Model, Queries, RandomModel
from depura.attacks.threat import Ball
from depura.gradients.stored import unless_out_of_memory
from depura.noise import Kind, Noise

ROUNDING = 1e-5
"""How far outside the ball (also relative to its radius) and outside [0, 1] counts as a library's rounding."""

Source = Callable[[Tensor, Tensor], Tensor]
"""An attack of a library on one model: images (B, C, H, W) and labels (B,) to images of the same shape."""

Make = Callable[[ModelForLibraries], Source]
"""An attack of a library, given the model."""

UNPRICED = Cost(gradients=0, forwards=0, at_once=1)
"""The price of an attack of which nobody has said what it costs: a plan counts nothing for it."""


@dataclass(frozen=True)
class External(Attack):
    """An attack of another library; each run proposes one candidate, whatever the library thinks of it.

    Unlike depura's own attacks, what it finds for an image depends in general on the batch: libraries draw their
    randomness for a whole batch, leave out images by a single draw, and do not say which images they ask about. With
    `images_at_once` 1 every image is attacked by itself and depends on nothing else, at the price of speed.

    The global generators of torch (CPU and CUDA), numpy and Python are seeded from `init` while a library runs, and
    afterwards they are as they were before.

    Attributes:
        ball: threat model; `make` reads it off its model (`model.ball`), so that `at` reaches the library.
        make: called with a `ModelForLibraries` once per run and batch, gives a function from images and labels to
            images; see `depura.attacks.libraries` for ready ones.
        name: what messages call it.
        n_runs: runs, each with randomness of its own.
        images_at_once: images in one call of the library; default all.
        price: evaluations per image of one run, as far as they are known beforehand (see `priced`).
    """

    ball: Ball
    make: Make
    name: str
    n_runs: int = 1
    images_at_once: int | None = None
    price: Cost = UNPRICED

    def __post_init__(self) -> None:
        _check.integer("External", "n_runs", self.n_runs, low=1, high=65536)
        if self.images_at_once is not None:
            _check.integer("External", "images_at_once", self.images_at_once, low=1)

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return self.n_runs

    @property
    def title(self) -> str:
        """What messages call the attack."""
        return f"External {self.name}"

    @property
    def cost(self) -> Cost:
        """Evaluations per image, as far as `price` says; what was really spent is told by the candidates."""
        return self.price._replace(
            gradients=self.n_runs * self.price.gradients, forwards=self.n_runs * self.price.forwards
        )

    def priced(
        self, model: Model | RandomModel, images: Tensor, labels: Tensor, *, eot: Noise | None = None
    ) -> External:
        """The same attack with the price that some images show, by attacking them once.

        Args:
            model: as in a call.
            images: (B, C, H, W); a few will do.
            labels: (B,).
            eot: as in a call.

        Returns:
            The attack. Others may cost more, where the library leaves images alone that it takes for beaten.
        """
        init = Noise(0, tuple(range(len(images))))
        spent = replace(self, n_runs=1)(model, images, labels, init=init, eot=eot).spent.amax(0)
        return replace(self, price=Cost(int(spent[0]), int(spent[1]), self.price.at_once))

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Let the library attack.

        `init` seeds it, by its first image in a batch: run r uses step r. Each call of a batch has the next draw
        number; without noise the model's own randomness is used, which is seeded with the library. Out of memory, a run
        begins again with half as many rows. `spent` is the mean over the images that the library had together, rounded
        up: a row is counted as differentiated each time that it is, else as without a gradient.
        """
        labels, eot, rows = queries.labels, queries.noise, queries.rows
        size = len(images) if self.images_at_once is None else self.images_at_once
        found = torch.empty(self.n_runs, *images.shape, dtype=images.dtype, device=images.device)
        spent = torch.zeros(len(images), 2, dtype=torch.int64, device=images.device)
        for begin in range(0, len(images), size):
            chosen = range(begin, min(begin + size, len(images)))
            part, n = slice(begin, chosen.stop), len(chosen)
            noise, first = None if eot is None else eot.take(chosen), 0
            for run in range(self.n_runs):
                seed = int(init.take(chosen).bits((n, 1), kind=Kind.ATTACK, step=run)[0, 0])
                ask = partial(ModelForLibraries, queries.model, images[part], labels[part], ball=self.ball, seed=seed)
                result, asked = self._run(partial(ask, noise=noise, first=first), images[part], labels[part], rows)
                found[run, part] = _settled(self.title, result, images[part], self.ball)
                spent[part] += spent.new_tensor([-(-asked.gradients // n), -(-asked.forwards // n)])
                first, rows = asked.draws, asked.rows
                progress((begin * self.n_runs + (run + 1) * n) / (len(images) * self.n_runs))
        return History(len(images), 0).candidates(found, spent)

    def _run(
        self, ask: Callable[..., ModelForLibraries], images: Tensor, labels: Tensor, rows: int | None
    ) -> tuple[Tensor, ModelForLibraries]:
        """What the library returns, and the model that it asked."""

        def once(rows: int | None) -> tuple[Tensor, ModelForLibraries]:
            asked = ask(rows=rows)
            with _seeded(asked.seed), torch.enable_grad():
                return self.make(asked)(images.detach().clone(), labels.clone()), asked

        while rows is None or rows > 1:
            done = unless_out_of_memory(partial(once, rows))
            if done is not None:
                return done
            rows = ((len(images) if rows is None else rows) + 1) // 2
        return once(1)


def _settled(where: str, found: object, images: Tensor, ball: Ball) -> Tensor:
    """What a library returned, in the ball: projected where it is outside by rounding, refused where by more."""
    if not isinstance(found, Tensor) or found.shape != images.shape:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        _check.fail(where, f"a tensor of shape {tuple(images.shape)} from the library", got, "See what `make` returns.")
    found = found.detach().to(images)
    if not bool(found.isfinite().all()):
        _check.fail(where, "finite images from the library", "NaN or infinite values", "Its steps broke down.")
    distance = float(ball.distance(found.double(), images.double()).max())
    outside = float((found - found.clamp(0, 1)).abs().max())
    if distance > ball.eps * (1 + ROUNDING) + ROUNDING or outside > ROUNDING:
        _check.fail(
            where,
            f"images within {ball} and in [0, 1] from the library",
            f"distance {distance:.6g}, and {outside:.2g} outside [0, 1]",
            "Give it the norm and the radius of model.ball.",
        )
    return ball.project(found, images)


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """The global generators of torch, numpy and Python begin at a seed, and afterwards are what they were."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would also seed CUDA devices that are not initialised, and so are not forked.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
