"""Several attacks as one, and AutoAttack's two ensembles.

Croce and Hein 2020 (arXiv:2003.01690). What the released ensemble does on a randomised model must not be repeated: it
leaves images alone that one lucky draw got wrong, keeps points by the last draw only, and returns images that were
never broken unperturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depura import _check
from depura.attacks.apgd import APGD, TargetedAPGD
from depura.attacks.attack import Attack, Candidates, Cost, Gradients, Progress, part_of
from depura.attacks.fab import FAB
from depura.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from depura.attacks.queries import Queries
from depura.attacks.square import Square
from depura.attacks.threat import Ball, Threat, per_image
from depura.noise import Noise


@dataclass(frozen=True)
class Together(Attack):
    """Every attack on every image; all their candidates are proposed, and the judge picks.

    Attributes:
        attacks: of one threat model, at least one. Attack k starts from round k of the start's noise.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        _one_ball("Together", self.attacks)

    @property
    def ball(self) -> Threat:
        """Threat model."""
        return self.attacks[0].ball

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return sum(attack.n_candidates for attack in self.attacks)

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return Cost.total([attack.cost for attack in self.attacks])

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Attack k starts from round k of `init`."""
        return _each(self.attacks, queries, images, init, progress)


@dataclass(frozen=True)
class AtRadii(Attack):
    """An attack at several radii up to its own; all candidates are proposed, as they lie in the largest ball.

    Where a defence answers large changes otherwise than small ones, as one that detects attacks, the way to an example
    at the full radius may lead through answers that help nobody.

    Attributes:
        attack: the attack, at the full radius.
        shares: of that radius, rising, in (0, 1]. Run k starts from round k of the start's noise.
    """

    attack: Attack
    shares: tuple[float, ...] = (0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        for share in self.shares:
            _check.number("AtRadii", "a share of the radius", share, low=0.0, high=1.0, low_open=True)
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            _check.fail("AtRadii", "shares that rise, at least one", f"{self.shares}")

    @property
    def ball(self) -> Threat:
        """Threat model."""
        return self.attack.ball

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return self.attack.n_candidates * len(self.shares)

    @property
    def cost(self) -> Cost:
        """Evaluations per image."""
        return self.attack.cost.times(len(self.shares))

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Run k starts from round k of `init`, on the same draws as the others."""
        return _each([self.attack.at(share * self.ball.eps) for share in self.shares], queries, images, init, progress)


@dataclass(frozen=True)
class InTurn(Attack):
    """Attacks one after another on a deterministic model: an image that one of them breaks is left to it.

    The candidate of an image is the first that is misclassified, else the one of the largest margin. A candidate whose
    logits are not finite is misclassified.

    Attributes:
        attacks: of one threat model, at least one. Attack k starts from round k of the start's noise.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        _one_ball("InTurn", self.attacks)

    @property
    def ball(self) -> Threat:
        """Threat model."""
        return self.attacks[0].ball

    @property
    def n_candidates(self) -> int:
        """Candidates per image."""
        return 1

    @property
    def cost(self) -> Cost:
        """Evaluations per image; each candidate is looked at once more."""
        total = Cost.total([attack.cost for attack in self.attacks])
        return total._replace(forwards=total.forwards + sum(attack.n_candidates for attack in self.attacks))

    def search(self, queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
        """Attack k starts from round k of `init`, on the images that are left."""
        if not queries.deterministic(images):
            _check.fail(
                "InTurn",
                "a deterministic model, whose broken images stay broken",
                "one whose logits change from draw to draw",
                "Attack it with rand(ball), or pin its noise with FixedNoise.",
            )
        best = images.clone()
        best_margin = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        active = torch.arange(len(images), device=images.device)
        finished = torch.full_like(active, -1)
        parts: list[_Part] = []
        for k, attack in enumerate(self.attacks):
            share = _share(progress, self.attacks, k)
            if len(active) > 0:
                part = attack(
                    queries.model,
                    images[active],
                    queries.labels[active],
                    init=init.in_round(k).take(active),
                    eot=None if queries.noise is None else queries.noise.take(active),
                    rows=queries.rows,
                    progress=share,
                )
                parts.append(_Part(k, active, part))
                for candidate in part.images:
                    margins = queries.losses(candidate, margin, draws=range(1), at=active)[:, 0]
                    margins = torch.where(margins.isnan(), torch.inf, margins)  # no class, so it is broken
                    better = margins > best_margin[active]
                    best[active] = torch.where(per_image(better), candidate, best[active])
                    best_margin[active] = torch.where(better, margins, best_margin[active])
                finished[active[best_margin[active] > 0]] = k
                active = active[best_margin[active] <= 0]
            else:
                share(1.0)
        return _in_turn(best[None], parts, len(self.attacks), queries.spent, finished)


class _Part(NamedTuple):
    """What attack number k found of some images."""

    k: int
    at: Tensor
    found: Candidates


def standard(ball: Ball, *, n_steps: int = 100, n_targets: int = 9, n_queries: int = 5000) -> InTurn:
    """AutoAttack's ensemble for deterministic models: APGD on the cross entropy, then targeted APGD, FAB and Square.

    Croce and Hein 2020, section 5. With fewer than four classes targeted APGD climbs the margin, as the targeted DLR
    loss needs four. In l1 it is the two APGD alone: FAB and Square are for linf and l2. A randomised model is refused.

    Args:
        ball: threat model.
        n_steps: of APGD and FAB.
        n_targets: classes aimed at, the likeliest first; at most the number of wrong classes.
        n_queries: of Square.

    Returns:
        The attack.
    """
    loss = targeted_dlr if n_targets >= 3 else targeted_margin
    ascents = (
        APGD(ball, n_steps=n_steps, loss=cross_entropy, common=0, finish=1.0),
        TargetedAPGD(ball, n_steps=n_steps, n_targets=n_targets, loss=loss, common=0, finish=1.0),
    )
    if ball.norm == "l1":
        return InTurn(ascents)
    fab = FAB(ball, n_steps=n_steps, n_targets=n_targets)
    return InTurn((*ascents, fab, Square(ball, n_queries=n_queries, renew=None, finish=1.0, common=1)))


def rand(ball: Ball, *, n_steps: int = 100, eot: int = 20) -> Together:
    """AutoAttack's ensemble for randomised models, APGD on the cross entropy and on the DLR loss, without its defects.

    Every image is attacked to the end; iterates are compared by the mean over all draws, candidates on common
    random numbers; the worst point found is proposed whether or not any draw was wrong.

    Args:
        ball: threat model.
        n_steps: of each APGD.
        eot: draws per gradient.

    Returns:
        The attack.
    """
    return Together(tuple(APGD(ball, n_steps=n_steps, eot=eot, loss=loss) for loss in (cross_entropy, dlr)))


def _one_ball(where: str, attacks: Sequence[Attack]) -> None:
    if not attacks or any(attack.ball != attacks[0].ball for attack in attacks):
        _check.fail(where, "attacks of one threat model, at least one", f"{[attack.ball for attack in attacks]}")


def _share(progress: Progress, attacks: Sequence[Attack], k: int) -> Progress:
    """Progress of attack k: attacks count by their evaluations."""
    work = [max(1, attack.cost.gradients + attack.cost.forwards) for attack in attacks]
    return part_of(progress, before=sum(work[:k]), own=work[k], whole=sum(work))


def _each(attacks: Sequence[Attack], queries: Queries, images: Tensor, init: Noise, progress: Progress) -> Candidates:
    """What several attacks find of the same images; attack k starts from round k of `init`."""
    found: list[Candidates] = []
    for k, attack in enumerate(attacks):
        found.append(
            attack(
                queries.model,
                images,
                queries.labels,
                init=init.in_round(k),
                eot=queries.noise,
                rows=queries.rows,
                progress=_share(progress, attacks, k),
            )
        )
    return _together(found)


def _together(parts: Sequence[Candidates]) -> Candidates:
    """What several attacks found of the same images: candidates and steps one after another."""
    cheap = [part.surrogate for part in parts if part.surrogate is not None]
    lengths = torch.tensor([len(part.loss) for part in parts], device=parts[0].loss.device)
    begins = lengths.cumsum(0) - lengths
    ends = torch.stack([torch.where(part.finished >= 0, part.finished + begins[k], -1) for k, part in enumerate(parts)])
    return Candidates(
        images=torch.cat([part.images for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
        spent=torch.stack([part.spent for part in parts]).sum(0),
        finished=torch.where((ends >= 0).all(0), ends.amax(0), -1),
        gradients=_joined([(part.gradients, part.spent) for part in parts]),
        surrogate=torch.stack(cheap).sum(0) if cheap else None,
    )


def _in_turn(images: Tensor, parts: Sequence[_Part], n_attacks: int, spent: Tensor, finished: Tensor) -> Candidates:
    """What attacks found of fewer and fewer images, one row of losses and gradients for each attack."""
    n, device = images.shape[1], images.device

    def whole(values: Tensor, at: Tensor) -> Tensor:
        full = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
        full[at] = values.double()
        return full

    rows = torch.full((3, n_attacks, n), torch.nan, dtype=torch.float64, device=device)
    taken: list[tuple[Gradients | None, Tensor]] = []
    cheap: Tensor | None = None
    for k, at, found in parts:
        rows[0, k] = whole(_largest(found.loss), at)
        spent = spent.index_add(0, at, found.spent)
        if found.surrogate is not None:
            cheap = (torch.zeros_like(spent) if cheap is None else cheap).index_add(0, at, found.surrogate)
        seen = found.gradients
        if seen is not None:
            shares = [whole(values, at).nan_to_num(0.0) for values in (seen.zero, seen.bad, seen.zero_pixels)]
            rows[1, k] = whole(seen.agreement.nanmean(0), at)
            rows[2, k] = whole(_largest(seen.spread), at)
            own = torch.zeros_like(spent).index_add(0, at, found.spent)
            taken.append((Gradients(shares[0], shares[1], shares[2], rows[1, k : k + 1], rows[2, k : k + 1]), own))
    gradients = _joined(taken)
    if gradients is not None:
        gradients = gradients._replace(agreement=rows[1], spread=rows[2])
    return Candidates(images, rows[0].to(images.dtype), spent, finished, gradients, cheap)


def _largest(values: Tensor) -> Tensor:
    """Largest of each column that is a number, (steps, B) -> (B,); NaN where none is."""
    found = values.nan_to_num(nan=-torch.inf).amax(0) if len(values) else torch.full_like(values.sum(0), -torch.inf)
    return torch.where(found.isneginf(), torch.nan, found)


def _joined(parts: Sequence[tuple[Gradients | None, Tensor]]) -> Gradients | None:
    """Statistics of the gradients of several attacks; shares are weighted by the gradients taken of an image."""
    known = [(seen, spent[:, 0].double()) for seen, spent in parts if seen is not None]
    if not known:
        return None
    weights = torch.stack([weight for _, weight in known])
    weights = weights / weights.sum(0).clamp_min(1)
    zero, bad, pixels = ((torch.stack([seen[i] for seen, _ in known]) * weights).sum(0) for i in range(3))
    agreement, spread = (torch.cat([seen[i] for seen, _ in known]) for i in (3, 4))
    return Gradients(zero, bad, pixels, agreement, spread)
