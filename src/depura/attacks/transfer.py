"""Transfer: candidates that are made on another model and tried on the one under attack."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depura import _check
from depura.attacks.attack import Attack, Candidates, Cost, Told, part_of
from depura.attacks.eot import Model, RandomModel
from depura.attacks.losses import Loss, comparable, margin
from depura.attacks.queries import Queries, common
from depura.attacks.threat import Threat
from depura.noise import Noise, Stream


@dataclass(frozen=True)
class Transfer:
    """Candidates of an attack on a source, proposed against the model.

    Papernot et al. 2016 (arXiv:1605.07277). Sources of use are the bare classifier, the same defence with other steps
    or another strength, and another network. The model is asked for nothing but the ranking, if one is wanted; what
    the attack spends on the source is `attack.cost`, and what its gradients told is about the source and left out.

    Attributes:
        attack: what is run on the source.
        source: images to logits; called as source(images), or as source(images, noise) where `stream` is given.
        stream: of the source's noise, at the seed and image ids of `init`; default a source without noise. With the
            model's own stream, `Stream.EOT`, a source that walks as the model does walks on the same noise.
        keep: how many candidates are kept, those of the largest mean loss on the model; default all, unranked.
        eot: draws of the common tape on which candidates are ranked.
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

    def at(self, eps: float) -> Transfer:
        """The same attack at another radius."""
        return replace(self, attack=self.attack.at(eps))

    def __call__(
        self,
        model: Model | RandomModel,
        images: Tensor,
        labels: Tensor,
        *,
        init: Noise | None = None,
        eot: Noise | None = None,
        rows: int | None = None,
        told: Told | None = None,
    ) -> Candidates:
        """Attack.

        Args:
            model: images to logits; called as model(images) where `eot` is None, else as model(images, noise).
            images: (B, C, H, W) in [0, 1].
            labels: (B,), the true classes.
            init: randomness of the attack and, on its own stream, of the source; default `Noise.fresh`.
            eot: randomness of the model, for the ranking. Without it the model's own randomness, if any, is used.
            rows: images times draws put through the source or the model at once; default all.
            told: called with the share of the work that is done.

        Returns:
            The candidates, those of the largest loss first where they are ranked. Losses and finishing steps are those
            on the source; evaluations are those of the model.

        Raises:
            InputError: images or labels that are not usable.
        """
        queries = Queries("Transfer", model, images, labels, noise=eot, rows=rows)
        init = Noise.fresh(len(images)) if init is None else init
        ranked = 0 if self.keep is None else self.cost.forwards
        made = sum(self.attack.cost[:2])
        found = self.attack(
            self.source,
            images,
            labels,
            init=init,
            eot=None if self.stream is None else init.on(self.stream),
            rows=rows,
            told=part_of(told, before=0, own=made, whole=max(1, made + ranked)),
        )
        proposed = found.images if self.keep is None else self._best(queries, found.images, self.keep)
        if told is not None:
            told(1.0)
        return Candidates(images=proposed, loss=found.loss, spent=queries.spent, finished=found.finished)

    def _best(self, queries: Queries, candidates: Tensor, keep: int) -> Tensor:
        """The `keep` candidates of the largest mean loss, (keep, B, C, H, W), on the same draws for all."""
        draws = common(self.eot)
        losses = torch.stack([queries.losses(c, self.loss, draws=draws).double().mean(1) for c in candidates])
        order = torch.sort(comparable(losses), dim=0, descending=True, stable=True).indices[:keep]
        return candidates[order, torch.arange(candidates.shape[1], device=candidates.device)]
