"""Somebody's own purifier or defence, as it is: `depura.wrap` and `depura.wrap_defence`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from depura import _check
from depura.defence import Defence, Rule
from depura.gradients import GradientRoute
from depura.purifiers.wrapped import Wrapped


def wrap(
    thing: Callable[..., Any],
    *,
    network: str | None = None,
    n_steps: int | str | None = None,
    set: Mapping[str, Any] | None = None,
    call: str = "",
    range: tuple[float, float] = (0.0, 1.0),
    range_out: tuple[float, float] | None = None,
    n_results: int = 1,
    combine: str = "mean",
    result: int | None = None,
    isolate: bool | None = None,
    gradient: GradientRoute | None = None,
    differentiable: bool = True,
    quiet: bool = True,
    scratch: bool = True,
    image_shape: tuple[int, int, int] | None = None,
) -> Wrapped:
    """Make a purifier of somebody's own module, function or object, without a change to its code.

    It may draw its noise as it likes, loop over its network, differentiate inside, print, and write files. For a whole
    defence, which gives logits, see `wrap_defence`.

    Args:
        thing: what takes images (B, C, H, W) and gives purified images of the same number.
        network: dotted name of the network that it calls again and again, such as "unet" or "runner.model": its calls
            are checkpointed, so that the exact gradient needs the memory of one, and they are counted. Default: found
            by itself, as the largest submodule that is called repeatedly; "" for none.
        n_steps: its number of steps, or the name of the argument (in `set`) that is: then surrogates of fewer steps
            can be made. Default: `n_steps` where `set` has it.
        set: arguments of the call, or attributes of the object, and their values.
        call: the method that is called, such as "image_editing_sample"; default: the object itself.
        range: of the pixels that it takes, such as (-1, 1); depura's own are in [0, 1].
        range_out: of the pixels that it gives; default `range`.
        n_results: results for each image that come back stacked in the batch; images are then purified one by one.
        combine: "mean": their mean is the purified image. "apart": each is a draw of its own; with the rule
            `depura.Vote(n_results)` one call makes one prediction.
        result: which of several is the result, where it gives a tuple or list: 0 the first, -1 the last. Default: the
            only batch of images in it; the first of a defence's.
        isolate: whether images go through it one by one. Default: where it draws numbers that cannot be divided by
            image. False: never; numpy and Python's `random` then are the same for all images of a batch.
        gradient: how it is differentiated; default exact, in constant memory where the network is known. `Direct()`
            keeps the whole graph, `StraightThrough()` is BPDA, `Relaxed(tau)` takes smooth stand-ins.
        differentiable: False for code without a gradient path, such as a pipeline under no_grad: attacks then take
            BPDA, scores and transfer, and reports say that there is no exact gradient.
        quiet: drop what it prints.
        scratch: run it in a working folder of its own, which is deleted after the call.
        image_shape: (C, H, W) that it takes, checked if given.

    Returns:
        The purifier.

    Raises:
        InputError: not callable, a network or method that is not there, or an argument that is none of these.
    """
    return _wrapped(
        thing,
        "images",
        network=network,
        n_steps=n_steps,
        set=set,
        call=call,
        range=range,
        range_out=range_out,
        n_results=n_results,
        combine=combine,
        result=result,
        isolate=isolate,
        gradient=gradient,
        differentiable=differentiable,
        quiet=quiet,
        scratch=scratch,
        image_shape=image_shape,
    )


def wrap_defence(thing: Callable[..., Any], *, rule: Rule | None = None, **settings: Any) -> Defence:
    """Make a `Defence` of somebody's own module, function or object that purifies and classifies, as it is.

    Nothing of it can be taken out: there is no undefended classifier, no transfer from it, and no BPDA.

    Args:
        thing: what takes images (B, C, H, W) and gives logits (B, K).
        rule: how a prediction is made from several calls; default one call.
        **settings: as for `wrap`, but `range_out`. Without a gradient path (`differentiable=False`) only scores are
            left to attacks.

    Returns:
        The defence.

    Raises:
        InputError: as of `wrap`, or a setting that it does not have.
    """
    check_settings("wrap_defence", settings, without=("range_out",))
    return Defence(None, _wrapped(thing, "logits", **settings), rule=rule)


def check_settings(where: str, settings: Iterable[str], *, without: Sequence[str] = ()) -> None:
    """Check that names are settings of `wrap`.

    Args:
        where: who asks, for messages.
        settings: the names.
        without: settings that cannot be had here.

    Raises:
        InputError: another name.
    """
    known = [name for name in list(inspect.signature(wrap).parameters)[1:] if name not in without]
    unknown = sorted(name for name in settings if name not in known)
    if unknown:
        _check.fail(where, f"settings among {', '.join(known)}", ", ".join(map(repr, unknown)))


def _wrapped(
    thing: Any,
    gives: str,
    *,
    n_steps: int | str | None = None,
    set: Mapping[str, Any] | None = None,
    range: tuple[float, float] = (0.0, 1.0),
    range_out: tuple[float, float] | None = None,
    call: str = "",
    **others: Any,
) -> Wrapped:
    """A `Wrapped`, by the names of `wrap`; its number of steps is a number, or the name of one of its arguments."""
    if not callable(thing) and not call:
        advice = "Name the method that takes images: call='purify'." if not isinstance(thing, (str, Path)) else ""
        _check.fail("wrap", "a module, a function or an object that can be called", type(thing).__name__, advice)
    arguments = dict(set or {})
    if isinstance(n_steps, int):
        arguments["n_steps"] = n_steps
    name = n_steps if isinstance(n_steps, str) else "n_steps" if "n_steps" in arguments else ""
    return Wrapped(
        thing,
        gives=gives,
        call=call,
        arguments=arguments,
        steps_argument=name,
        pixels=range,
        pixels_out=range_out,
        **others,
    )
