"""The study behind `depura judge`: somebody's own purifier or defence, named by a setting, on images that are named."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

from depura import _check
from depura.attacks.apgd import APGD
from depura.attacks.threat import Ball, Norm
from depura.data.digits import load_digits
from depura.data.sources import load_images
from depura.defence import Defence, Rule
from depura.evaluation import profiles
from depura.evaluation.demo import EPS
from depura.evaluation.rescoring import rule_named
from depura.evaluation.study import Study, attack_suite
from depura.models.by_name import DIGITS, foreign
from depura.models.by_name import classifier as classifier_named
from depura.noise import Noise, Stream
from depura.purifiers.purifier import Purifier
from depura.purifiers.wrapped import Wrapped
from depura.wrapping import wrap, wrap_defence


def study(
    *,
    purifier: str,
    classifier: str = "",
    data: str = DIGITS,
    images: int = 64,
    eps: float | None = None,
    norm: str = "linf",
    split: str = "",
    labels: str = "",
    channels: int | None = None,
    resize: int | None = None,
    crop: int | None = None,
    network: str | None = None,
    n_steps: str = "",
    set: str = "",
    call: str = "",
    range: tuple[float, ...] = (0.0, 1.0),
    n_results: int = 1,
    combine: str = "mean",
    result: int | None = None,
    isolate: bool | None = None,
    rule: str = "single",
    draws: int = 1,
    attack_steps: int = 20,
    eot: int = 4,
    seed: int = 0,
) -> Study:
    """A short attack on a named purifier or defence; a profile takes the place of its rows.

    Args:
        purifier: MODULE:NAME or FILE.py:NAME: a module, function or object, or what makes it without arguments; a
            purifier of depura's or a `Defence` is taken as it is.
        classifier: its name (see `depura.classifier`), or FILE.py:NAME; none where `purifier` gives logits.
        data: `digits`, or a file or folder of labelled images.
        images: how many, the first ones.
        eps: radius; default 0.2 for the digits, 8/255 else (0.5 for l2).
        norm: "linf", "l2" or "l1".
        split: part of the data set.
        labels: which labels.
        channels: that images are to have.
        resize: short side of pictures.
        crop: side of their middle.
        network: dotted name of the network inside the purifier.
        n_steps: name of the argument that is the number of steps.
        set: arguments of the call as a JSON object, such as {"n_steps": 20}.
        call: the method that is called.
        range: of the pixels that it takes and gives.
        n_results: results for each image.
        combine: "mean" or "apart".
        result: which of several, where it gives a tuple or list: -1 the last.
        isolate: whether images go through it one by one.
        rule: "single", "vote", "mean-prob" or "mean-logit".
        draws: purifications per prediction, of a rule of several.
        attack_steps: gradient steps of the adaptive attack.
        eot: draws per gradient.
        seed: of all noise.

    Returns:
        The study.

    Raises:
        InputError: a name that cannot be had, or a value that is none of these.
    """
    where = "judge"
    thing = foreign("--purifier", purifier)
    arguments: dict[str, Any] = {
        "network": network,
        "n_steps": n_steps or None,
        "set": _arguments(set),
        "call": call,
        "range": (range[0], range[-1]),
        "n_results": n_results,
        "combine": combine,
        "result": result,
        "isolate": isolate,
    }
    labelled = (
        load_digits("train" if split == "train" else "test").first(images)
        if data == DIGITS
        else load_images(
            Path(data),
            split=split or None,
            labels=labels or None,
            images=images,
            channels=channels,
            resize=resize,
            crop=crop,
        )
    )
    if isinstance(thing, Defence):
        defence = thing
    else:
        if isinstance(thing, Purifier) and not classifier:
            _check.fail(where, "a classifier for a purifier", "none", "Name one with --classifier.")
        behind = classifier_named(classifier, where="--classifier") if classifier else None
        defence = _defence(thing, behind, rule_named(rule, draws), arguments)
        core = defence.core
        noise = Noise(0, labelled.ids[:1], stream=Stream.PROBE)
        if isinstance(core, Wrapped) and core is not thing and core.why_no_gradient(labelled.images[:1], noise):
            defence = _defence(thing, behind, rule_named(rule, draws), arguments | {"differentiable": False})
    default = EPS if data == DIGITS else 8 / 255
    radius = eps if eps is not None else 0.5 if norm == "l2" else default
    if norm not in get_args(Norm):
        _check.fail(where, f"a norm among {', '.join(get_args(Norm))}", repr(norm))
    ball = Ball(cast(Norm, norm), radius)
    strong = APGD(ball, n_steps=attack_steps, eot=eot)
    rows = (
        attack_suite(defence, strong)
        if defence.differentiable
        else profiles.quick(defence, ball, n_classes=len(labelled.classes), n_values=labelled.images[0].numel()).rows
    )
    return Study(
        name=f"judge-{purifier.rpartition(':')[2]}".replace("_", "-").replace(".", "-"),
        data=labelled,
        defence=defence,
        rows=rows,
        seed=seed,
    )


def _defence(thing: Any, classifier: Any, rule: Rule, settings: dict[str, Any]) -> Defence:
    """A defence of what was named: whole where there is no classifier."""
    if classifier is None:
        return wrap_defence(thing, rule=rule, **settings)
    return Defence(thing if isinstance(thing, Purifier) else wrap(thing, **settings), classifier, rule=rule)


def _arguments(text: str) -> dict[str, Any]:
    arguments: Any = None
    with suppress(json.JSONDecodeError):
        arguments = json.loads(text) if text else {}
    if not isinstance(arguments, dict):
        _check.fail("judge", 'set as a JSON object, such as {"n_steps": 20}', repr(text))
    return cast("dict[str, Any]", arguments)
