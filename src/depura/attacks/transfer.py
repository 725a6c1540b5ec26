"""Transfer: candidates that are made on another model and tried on the one under attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, Progress, part_of
from depura.attacks.losses import Loss, comparable, margin
from depura.attacks.queries import Model, Queries, RandomModel, common
from depura.attacks.threat import Threat
from depura.noise import Noise, Stream


@dataclass(frozen=True)
class Transfer(Attack):
    """Candidates of an attack on a source, proposed against the model.

    Papernot et al. 2016 (arXiv:1605.07277). Sources of use are the bare classifier, the same defence with other steps
    or another strength, and another network. The model is asked for nothing but the ranking, if one is wanted; what
    the attack spends on the source is `attack.cost`, and statistics of its gradients are about the source and left out.

    Attributes:
        attack: what is run on the source.
        source: images to logits; called as source(images), or as source(images, noise) where `stream` is given.
        stream: of the source's noise, at the seed and image ids of `init`; default a source without noise. With the
            model's own stream, `Stream.EOT`, a source with the model's step table meets the same noise.
        keep: how many candidates are kept, those of the largest mean loss on the model; default all, unranked.
        eot: common random numbers on which candidates are ranked.
        loss: by which.
    """

    attack: Attack
    source: Model | RandomModel
    stream: Stream | None = None
    keep: int | None = None
    eot: int = 16
    loss: Loss = margin

    def __post_init__(self) -> None:
        if not callable(self.source):
            what = type(self.source).__name__
            raise _check.InputTypeError(
                f"Transfer: expected source to be a callable from images to logits, got {what}."
            )
        if self.keep is not None:
            _check.integer("Transfer", "keep", self.keep, low=1, high=self.attack.n_candidates)
        _check.integer("Transfer", "eot", self.eot, low=1)

    @property
    def ball(self) -> Threat:
        """Threat model: the attack's."""
        return self.attack.ball

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return self.attack.n_candidates if self.keep is None else self.keep

    @property
    def cost(self) -> Cost:
        """Evaluations of the model per image: those of the ranking."""
        if self.keep is None:
            return Cost(gradients=0, forwards=0, at_once=1)
        return Cost(gradients=0, forwards=self.attack.n_candidates * self.eot, at_once=self.eot)

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Attack the source, and rank what was found on the model, if asked to.

        The source's noise is that of `init` on its own stream. Losses and finishing steps are those on the source;
        evaluations are those of the model.
        """
        ranked = 0 if self.keep is None else self.cost.forwards
        made = sum(self.attack.cost[:2])
        found = self.attack(
            self.source,
            images,
            queries.labels,
            init=init,
            eot=None if self.stream is None else init.on(self.stream),
            rows=queries.rows,
            progress=part_of(progress, before=0, own=made, whole=max(1, made + ranked)),
        )
        proposed = found.images if self.keep is None else self._best(queries, found.images, self.keep)
        progress(1.0)
        return Candidates(images=proposed, loss=found.loss, spent=queries.spent, finished=found.finished)

    def _best(self, queries: Queries, candidates: Tensor, keep: int) -> Tensor:
        """The `keep` candidates of the largest mean loss, (keep, B, C, H, W), on the same draws for all."""
        draws = common(self.eot)
        losses = torch.stack([queries.losses(c, self.loss, draws=draws).double().mean(1) for c in candidates])
        order = torch.sort(comparable(losses), dim=0, descending=True, stable=True).indices[:keep]
        return candidates[order, torch.arange(candidates.shape[1], device=candidates.device)]
