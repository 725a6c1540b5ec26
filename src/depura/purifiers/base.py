"""What cleans images: one purifier, or several composed. The evaluation knows no more of a purifier than this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import MethodType
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from depura import _check
from depura.diffusion.denoisers import Denoiser
from depura.diffusion.schedules import Step
from depura.gradients import FromEnd, GradientRoute
from depura.noise import Noise

C = TypeVar("C", bound="Cleaner")
L = TypeVar("L", bound="Leaf")


class Moment(NamedTuple):
    """One step of a walk, as `Cleaner.trajectory` shows it.

    Attributes:
        x: state before the step, x0 + sigma n coordinates.
        x0: the clean image as estimated there.
        x_next: state after the step.
        step: row of the step table.
        round: number of the round.
    """

    x: Tensor
    x0: Tensor
    x_next: Tensor
    step: Step
    round: int


class Cleaner(nn.Module, ABC):
    """Images (B, C, H, W) in [0, 1] to cleaned images; a tree whose leaves walk.

    Weights are frozen and stay in evaluation mode; gradients are with respect to images.
    """

    @property
    @abstractmethod
    def leaves(self) -> tuple[Leaf, ...]:
        """The walks that it is composed of, in order."""

    @property
    @abstractmethod
    def n_rounds(self) -> int:
        """Rounds of noise that one purification uses, one after another."""

    @abstractmethod
    def map(self: C, change: Callable[[Leaf], Leaf]) -> C:
        """A copy with every leaf changed; weights are shared."""

    @abstractmethod
    def purify(self, images: Tensor, noise: Noise, *, n_rounds: int | None = None) -> Tensor:
        """As `forward`, for images that are results themselves and may leave [0, 1].

        Args:
            images: (B, C, H, W), nominally in [0, 1].
            noise: the randomness; its round is the first one used.
            n_rounds: of the whole purification that this is a part of (they share a gradient route's memory); default
                its own.

        Returns:
            (B, C, H, W), nominally in [0, 1].
        """

    @abstractmethod
    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """Every leaf with the images and noise that it is given when `images` are purified, in order."""

    @abstractmethod
    def walk(self, images: Tensor, noise: Noise) -> Iterator[Moment]:
        """As `trajectory`, for images that are results themselves and may leave [0, 1]."""

    @abstractmethod
    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same, however it is differentiated: the same denoiser, equal parts."""

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Purify.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness, one image id per row; default `Noise.fresh`.

        Returns:
            (B, C, H, W), nominally in [0, 1]; differentiable by the gradient route.

        Raises:
            InputError: images of another range, shape or dtype.
        """
        return self.purify(images, self._door(images, noise))

    def trajectory(self, images: Tensor, noise: Noise | None = None) -> Iterator[Moment]:
        """The walk of `forward`, step by step, without gradients.

        Args:
            images: (B, C, H, W) in [0, 1].
            noise: the randomness; the same noise gives the walk of `forward`.

        Returns:
            One `Moment` per step.
        """
        noise = self._door(images, noise)
        return self.walk(images.detach(), noise)

    def with_(self: C, **changes: Any) -> C:
        """A copy with some parts of every leaf replaced; weights are shared.

        Args:
            **changes: arguments of the leaves' constructors.

        Returns:
            The copy.

        Raises:
            InputError: a name that a constructor does not know.
        """
        return self.map(lambda leaf: leaf.with_(**changes))

    def over(self: C, wrap: Callable[[Denoiser], Denoiser]) -> C:
        """A copy whose denoisers are wrapped (for counting, casting and the like)."""
        return self.map(lambda leaf: leaf.over(wrap))

    def coarser(self: C, share: int) -> C:
        """A copy that takes one step for every `share` steps: a surrogate (Lee and Kim 2023, arXiv:2303.09051)."""
        return self.map(lambda leaf: leaf.coarser(share))

    def one_step(self: C, where: float) -> C:
        """A copy with a single step, the one at `where` (0 first .. 1 last) of the table, in one round."""
        return self.map(lambda leaf: leaf.one_step(where))

    @property
    def route(self) -> GradientRoute:
        """How the walk is differentiated (the first one, where there are several)."""
        return self.leaves[0].gradient

    @property
    def remarks(self) -> tuple[str, ...]:
        """What its parts say that a reader of results must know (`remark`, such as that a method is reconstructed)."""
        said = [getattr(part, "remark", "") for leaf in self.leaves for part in leaf.parts().values()]
        return tuple(dict.fromkeys(text for text in said if isinstance(text, str) and text))

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """Steps of one purification, over all rounds."""

    def train(self: C, mode: bool = True) -> C:
        """Purifiers stay in evaluation mode, whatever is asked."""
        super().train(False)
        return self

    def _door(self, images: Tensor, noise: Noise | None) -> Noise:
        _check.images(type(self).__name__, images)
        return Noise.fresh(len(images)) if noise is None else noise


class Leaf(Cleaner):
    """A walk of its own, differentiated by its `gradient`."""

    denoiser: Denoiser
    gradient: GradientRoute
    steps: tuple[Step, ...]
    image_shape: tuple[int, int, int] | None = None

    @property
    def width(self) -> int:
        """Images that the walk's state consists of, one after another in its channels; the first is the one walked."""
        return 1

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Arguments of the constructor."""

    @abstractmethod
    def advance(self, noise: Noise, x: Tensor, x_in: Tensor, step: Step) -> Tensor:
        """The next state, from the state, the image being purified ([-1, 1] units) and the row of the step table."""

    @abstractmethod
    def differential(self, noise: Noise) -> FromEnd:
        """The walk as Euler's method on a differential equation (see `depura.gradients.Advance`)."""

    @abstractmethod
    def coarser(self, share: int) -> Any:
        """A copy that takes one step for every `share` steps."""

    @abstractmethod
    def one_step(self, where: float) -> Any:
        """A copy with a single step."""

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Itself."""
        return (self,)

    def map(self, change: Callable[[Leaf], Leaf]) -> Any:
        """The changed leaf."""
        return change(self)

    def given(self, images: Tensor, noise: Noise) -> Iterator[tuple[Leaf, Tensor, Noise]]:
        """Itself, with what it is given."""
        yield self, images, noise

    def fits(self, images: Tensor) -> None:
        """Check, also inside a composition, that the denoiser takes such images.

        Args:
            images: (B, C, H, W).

        Raises:
            InputError: another shape than `image_shape`, or another dtype than the weights'.
        """
        where = type(self).__name__
        _check.image_shape(where, images, self.image_shape)
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        if weight is not None and weight.dtype != images.dtype:
            _check.fail(where, f"images of the denoiser's dtype {weight.dtype}", f"{images.dtype}", "Convert them.")

    def with_(self: L, **changes: Any) -> L:
        """A copy with some parts replaced; weights are shared.

        Args:
            **changes: arguments of the constructor.

        Returns:
            The copy.

        Raises:
            InputError: a name that the constructor does not know.
        """
        parts = self.parts()
        unknown = sorted(set(changes) - set(parts))
        if unknown:
            where = f"{type(self).__name__}.with_"
            _check.fail(where, f"names among {', '.join(parts)}", ", ".join(unknown))
        return type(self)(**(parts | changes))

    def over(self: L, wrap: Callable[[Denoiser], Denoiser]) -> L:
        """A copy whose denoiser is wrapped."""
        return self.with_(denoiser=wrap(self.denoiser))

    def same_walk(self, other: nn.Module | None) -> bool:
        """Whether another purifier computes the same, however it is differentiated: the same denoiser, equal parts."""
        if not isinstance(other, type(self)):
            return False
        ours, theirs = self.parts(), other.parts()
        return all(_equal(ours[name], theirs[name]) for name in ours if name != "gradient")


@dataclass(frozen=True)
class Walk:
    """One round of a leaf with its noise fixed: what a gradient route folds (a `depura.gradients.Advance`).

    Attributes:
        leaf: whose walk it is.
        noise: in its round.
        rounds: walks that one purification consists of.
    """

    leaf: Leaf
    noise: Noise
    rounds: int = 1

    @property
    def images(self) -> tuple[int, ...]:
        """Image id of each row."""
        return self.noise.images

    @property
    def width(self) -> int:
        """Images in a state."""
        return self.leaf.width

    def __call__(self, x: Tensor, x_in: Tensor, step: Step, /) -> Tensor:
        """The next state."""
        return self.leaf.advance(self.noise, x, x_in, step)

    def take(self, rows: Sequence[int], /) -> Walk:
        """The walk of some rows of the batch."""
        return Walk(self.leaf, self.noise.take(rows), self.rounds)

    def differential(self) -> FromEnd:
        """Its steps from their later ends."""
        return self.leaf.differential(self.noise)


def modules_in(part: Any) -> tuple[nn.Module, ...]:
    """Networks inside a part that is not a module itself: fields of a dataclass, methods of a module, partial calls.

    Guidance by a network holds one; who composes the part must move, freeze and describe it like its own.
    """
    if isinstance(part, nn.Module):
        return (part,)
    inner: list[Any] = []
    if is_dataclass(part) and not isinstance(part, type):
        inner = [getattr(part, f.name) for f in fields(part)]
    elif isinstance(part, partial):
        inner = [part.func, *part.args, *part.keywords.values()]  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(part, MethodType):
        inner = [part.__self__]
    return tuple(dict.fromkeys(module for value in inner for module in modules_in(value)))


def freeze(module: nn.Module) -> None:
    """Weights without gradients, in evaluation mode."""
    module.requires_grad_(False)
    module.eval()


def _equal(a: Any, b: Any) -> bool:
    """Equality of parts; parts that cannot be compared (tensors inside) are equal only if they are one object."""
    try:
        return a is b or bool(a == b)
    except (RuntimeError, ValueError):
        return False
