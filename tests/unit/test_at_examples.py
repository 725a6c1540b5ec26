"""A defence at the examples of an attack: what its answers depend on, its gradient there, and the way to them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import depura
from depura.attacks.ensembles import AtRadii
from depura.audit.audit import audit_gradient
from depura.audit.checks import Check, Light, in_deployed_dtype
from depura.defence import Defence, Vote
from depura.diffusion.schedules import VP, uniform_steps
from depura.diffusion.solvers import Ancestral
from depura.evaluation import units
from depura.evaluation.diagnostics import nothing
from depura.evaluation.examples import Attacked, along_the_way, by_gradients, in_contexts, price
from depura.evaluation.executors import InProcess
from depura.evaluation.header import header
from depura.evaluation.originals import Originals
from depura.evaluation.runner import compute, run
from depura.evaluation.scoring import score
from depura.evaluation.study_file import StudySource
from depura.evaluation.units import others
from depura.noise import Noise, Stream
from depura.purifiers.purifier import DiffusionPurifier
from depura.records.directory import RunDirectory
from toys import TanhClassifier, rand

B, K = 8, 8
IMAGES = rand(B, 1, 4, 4, seed=1, dtype=torch.float32)
IDS = tuple(range(10, 10 + B))


class Plain(nn.Module):
    """A smooth classifier of 4 x 4 images into three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TanhClassifier(16).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Remembers(Plain):
    """Answers an image as it answered the first one that was near it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for row in x:
            near = [s for s in self.seen if float((s - row.detach()).norm()) < 0.9]
            if not near and len(self.seen) < 50:
                self.seen.append(row.detach().clone())
            rows.append(near[0].to(row) + 1e-3 * row if near else row)
        return self.inner(torch.stack(rows))


class AfterMany(Plain):
    """Another function after 100 images."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return self.inner(x if self.count <= 100 else 1 - x)


class WithGraph(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(1 - x if torch.is_grad_enabled() else x)


class InBatches(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(1 - x if len(x) > 4 else x)


class FirstOfAll(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + (x[:1].sum() - x.sum((1, 2, 3)))[:, None] * torch.arange(3, dtype=x.dtype)


class Wrong(torch.autograd.Function):
    """The identity, whose derivative has lost its sign here and there."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.sin(997 * x).sign()


class WrongInSingle(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(Wrong.apply(x) if x.dtype == torch.float32 else x)


class WrongInLargeBatches(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(Wrong.apply(x) if x.dtype == torch.float32 and len(x) > 4 else x)


class WrongFarOff(Plain):
    """Right at the images and wrong at what an attack made of them."""

    def forward(self, x: Tensor) -> Tensor:
        known = torch.cdist(x.flatten(1).double(), IMAGES.flatten(1).double()).amin(1) < 0.3
        return self.inner(torch.where(known[:, None, None, None], x, Wrong.apply(x)))


class LooksUp(Plain):
    """What is far from all images is answered as the nearest of them."""

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.cdist(x.flatten(1), IMAGES.to(x).flatten(1))
        near = IMAGES.to(x)[distance.argmin(1)]
        far = distance.amin(1) > 0.4
        return self.inner(torch.where(far[:, None, None, None], near + 1e-3 * x, x))


class ByStream(DiffusionPurifier):
    """Purifies by its denoiser where it is reported, and does nothing where it is attacked."""

    def first(self, image: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        state = super().first(image, noise)
        return state if noise.stream is not Stream.EOT else (1 - image,)


def constant(x: Tensor, sigma: float) -> Tensor:
    """Half of the state."""
    return 0.5 * x


def noisy(kind: type[DiffusionPurifier] = DiffusionPurifier) -> DiffusionPurifier:
    return kind(constant, steps=uniform_steps(VP(), t_start=0.05, n_steps=1), solver=Ancestral())


def attacked(defence: Defence, *, examples: Tensor | None = None) -> Attacked:
    """As a unit of an attack hands it on: examples, and labels of the report draws by the defence as it is by then.

    Labels are those that the defence gives most, so that its examples are right.
    """
    examples = (IMAGES + 0.2 * (rand(B, 1, 4, 4, seed=2, dtype=torch.float32) - 0.5).sign()).clamp(0, 1)
    noise = Noise(0, IDS, stream=Stream.REPORT)
    labels = defence(examples, noise).detach().argmax(1)
    predictions = score(defence, examples, labels, noise, draws=range(K)).predictions
    return Attacked(IMAGES, examples, labels, IDS, predictions, noise)


def contexts(defence: Defence) -> dict[str, Light]:
    """Worst lights of the checks of contexts, by name, after an attack that asked the defence about the images."""
    original = copy.deepcopy(defence)
    for k in range(4):
        defence((IMAGES + 1e-3 * k).clamp(0, 1), Noise(k, IDS))
    checks = in_contexts(defence, {"as it was before the run": lambda: copy.deepcopy(original)}, attacked(defence))
    return worst(checks)


def worst(checks: list[Check]) -> dict[str, Light]:
    found: dict[str, Light] = {}
    for check in checks:
        found[check.name] = max(check.light, found.get(check.name, Light.GREEN))
    return found


NAMES = {"history", "recorded labels", "batch size", "order", "grad mode", "streams"}


@pytest.mark.parametrize("rule", [None, Vote(3)])
@pytest.mark.parametrize("purifier", [nothing, noisy])
def test_an_honest_defence_answers_the_same_in_every_context(
    purifier: Callable[[], DiffusionPurifier], rule: Vote | None
) -> None:
    found = contexts(Defence(purifier(), Plain(), rule=rule))
    assert found == dict.fromkeys(NAMES, Light.GREEN)


@pytest.mark.parametrize(
    ("classifier", "names"),
    [
        (Remembers, {"history", "recorded labels"}),
        (AfterMany, {"history", "recorded labels"}),
        (WithGraph, {"grad mode"}),
        (InBatches, {"batch size"}),
        (FirstOfAll, {"order", "batch size"}),
    ],
)
def test_what_the_answers_depend_on_is_named(classifier: type[nn.Module], names: set[str]) -> None:
    found = contexts(Defence(nothing(), classifier()))
    assert names <= {name for name, light in found.items() if light is Light.RED}, found


def test_a_defence_that_looks_at_who_draws_is_found() -> None:
    found = contexts(Defence(noisy(ByStream), Plain()))
    assert found["streams"] is Light.RED
    assert found["history"] is Light.GREEN


def gradients(classifier: nn.Module) -> dict[str, Light]:
    defence = Defence(nothing(), classifier)
    return worst(by_gradients(defence, attacked(defence), rand(2, 1, 4, 4, seed=5).float(), seed=0, device="cpu"))


def test_an_honest_gradient_holds_at_examples() -> None:
    found = gradients(Plain())
    assert found == dict.fromkeys(("differences at examples", "deployed gradient", "own derivatives"), Light.GREEN)


def test_a_gradient_that_is_wrong_in_single_precision_is_found_before_anything_is_attacked() -> None:
    """In float64, which the other checks compute in, it is right."""
    audit = audit_gradient(Defence(nothing(), WrongInSingle()), IMAGES[:2], ids=IDS[:2])
    assert {check.name for check in audit.checks if check.light is Light.RED} == {"deployed gradient"}
    (own,) = (check for check in audit.checks if check.name == "own derivatives")
    assert own.light is Light.AMBER
    assert "autograd function Wrong" in own.sentence


@pytest.mark.parametrize(
    ("classifier", "name"),
    [
        (WrongInSingle, "deployed gradient"),
        (WrongInLargeBatches, "deployed gradient"),
        (WrongFarOff, "differences at examples"),
    ],
)
def test_a_gradient_that_is_wrong_at_examples_is_found(classifier: type[nn.Module], name: str) -> None:
    found = gradients(classifier())
    assert found[name] is Light.RED
    assert found["own derivatives"] is Light.AMBER
    if classifier is not WrongInSingle:  # two images, in a batch of two, are right
        audit = audit_gradient(Defence(nothing(), classifier()), IMAGES[:2], ids=IDS[:2])
        assert audit.light is not Light.RED


def test_hooks_that_change_a_gradient_are_listed() -> None:
    class Hooked(Plain):
        def forward(self, x: Tensor) -> Tensor:
            h = x * 1
            if h.requires_grad:
                h.register_hook(lambda g: 1.0 * g)
            return self.inner(h)

    classifier = Hooked()
    classifier.inner.register_full_backward_hook(lambda *of: None)
    audit = audit_gradient(Defence(nothing(), classifier), IMAGES[:2], ids=IDS[:2])
    (own,) = (check for check in audit.checks if check.name == "own derivatives")
    assert own.light is Light.AMBER
    assert "hook on a tensor, set in test_at_examples" in own.sentence.replace("tests.unit.", "")
    assert "backward hook on classifier.inner (TanhClassifier)" in own.sentence


def test_what_watches_derivatives_leaves_no_trace() -> None:
    apply, hook = torch.autograd.Function.__dict__["apply"], Tensor.register_hook
    audit_gradient(Defence(nothing(), Plain()), IMAGES[:2], ids=IDS[:2])
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert Tensor.register_hook is hook


@pytest.mark.parametrize(("classifier", "light"), [(Plain, Light.GREEN), (LooksUp, Light.AMBER)])
def test_jumps_on_the_way_to_an_example_are_found(classifier: type[nn.Module], light: Light) -> None:
    defence = Defence(nothing(), classifier())
    found = along_the_way(defence, attacked(defence), seed=0, device="cpu")
    assert found.light is light, found


def test_examples_that_are_their_images_have_no_way() -> None:
    defence = Defence(nothing(), LooksUp())
    still = attacked(defence)._replace(examples=IMAGES)
    assert along_the_way(defence, still, seed=0, device="cpu").light is Light.GREEN


def study(classifier: nn.Module | None = None, n: int = B, images: int = B) -> depura.Study:
    defence = Defence(nothing(), Plain() if classifier is None else classifier)
    labels = defence(IMAGES, Noise(0, IDS)).argmax(1) if classifier is None else torch.zeros(B, dtype=torch.int64)
    classes = tuple(map(str, range(3)))
    data = depura.ImageSet("small", IMAGES[:images], labels[:images], IDS[:images], classes)
    rows = depura.attack_suite(defence, depura.PGD(depura.Ball("linf", 0.1), n_steps=2))
    return depura.Study("small", data, defence, rows, select_draws=2, report_draws=4, pictures=0, unit_images=n)


def test_a_defence_is_looked_at_again_once(tmp_path: Path) -> None:
    """In the first unit of the adaptive attack, and nowhere else."""
    directory = run(study(n=4), tmp_path / "run")
    looked = {unit.facts.unit: unit.facts for unit in directory.units() if unit.facts.at_examples}
    assert list(looked) == ["adaptive_eps0.1_00000-00004"]
    (facts,) = looked.values()
    assert {check.name for check in facts.at_examples} > NAMES
    assert facts.evaluations.checks[0] > 0
    assert facts.evaluations.checks[1] > 0


def test_an_error_in_another_context_is_said_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*of: object) -> list[Check]:
        raise RuntimeError("made for calls of 16 images")

    monkeypatch.setattr(units, "in_contexts", unable)
    made = study()
    found = units.run_unit(made, next(key for key in made.units() if key.row == "adaptive"))
    (history,) = (check for check in found.facts.at_examples if check.name == "history")
    assert history.light.value == "AMBER"
    assert history.sentence == "This could not be looked at: RuntimeError: made for calls of 16 images."
    assert "differences at examples" in {check.name for check in found.facts.at_examples}
    assert len(found.arrays["adversarial"]) == B


def test_other_images_are_drawn_from_those_that_were_not_attacked() -> None:
    small = study(n=4)
    drawn = {tuple(others(depura.Study(**{**_settings(small), "seed": seed}), IDS[:4])) for seed in range(8)}
    assert len(drawn) > 2
    assert {place for places in drawn for place in places} <= set(range(4, 8))


def _settings(made: depura.Study) -> dict[str, object]:
    return {"name": made.name, "data": made.data, "defence": made.defence, "rows": made.rows}


STUDY = """
def study():
    defence = depura.Defence(nothing(), Remembers())
    labels = Plain()(IMAGES).argmax(1)
    data = depura.ImageSet("small", IMAGES, labels, IDS, tuple("012"))
    rows = depura.attack_suite(defence, depura.PGD(depura.Ball("linf", 0.2), n_steps=3))
    return depura.Study("global", data, defence, rows, select_draws=2, report_draws=4, pictures=0, reference=False)
"""

GLOBAL = '''
import depura, torch
from depura.evaluation.diagnostics import nothing
from tests.unit.test_at_examples import IDS, IMAGES, Plain

SEEN = []

class Remembers(Plain):
    """Keeps what it saw in a variable of the file, which no copy of it resets."""
    def forward(self, x):
        rows = []
        for row in x:
            near = [s for s in SEEN if float((s - row.detach()).norm()) < 0.9]
            if not near and len(SEEN) < 50:
                SEEN.append(row.detach().clone())
            rows.append(near[0].to(row) + 1e-3 * row if near else row)
        return self.inner(torch.stack(rows))

'''


BESIDE = """
import depura
from answers_from_memory import Remembers
from depura.evaluation.diagnostics import nothing
from tests.unit.test_at_examples import IDS, IMAGES, Plain
"""


@pytest.mark.parametrize("beside", [False, True], ids=["in the study file", "in a file beside it"])
def test_what_is_kept_in_a_variable_of_a_file_is_found_by_loading_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    file = tmp_path / "remembers.py"
    file.write_text((BESIDE if beside else GLOBAL) + STUDY)
    if beside:
        (tmp_path / "answers_from_memory.py").write_text(GLOBAL)
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "a_module_that_is_barred", None)
    source = StudySource(file)
    made = source.load()
    directory = RunDirectory.create(tmp_path / "run", header(made, command="", source=source))
    before = dict(sys.modules)
    compute(made, directory, made.units(), InProcess(made, directory, source=source), despite_audit=True)
    assert {name for name in before if sys.modules.get(name) is not before[name]} == set()
    (checks,) = (unit.facts.at_examples for unit in directory.units() if unit.facts.at_examples)
    history = [check for check in checks if check.name == "history"]
    assert [check.light.value for check in history] == ["GREEN", "RED"]
    assert "loaded anew" in history[1].sentence


def test_what_cannot_be_copied_is_said() -> None:
    class Stubborn(Plain):
        def __deepcopy__(self, memo: object) -> Plain:
            raise TypeError("no copies")

    assert Originals(study(Stubborn())).of("audit", "cpu") == {}
    ways = Originals(study()).of("audit", "cpu")
    assert list(ways) == ["as it was before the run"]


def test_an_original_shares_weights_and_nothing_else() -> None:
    made = study(Remembers())
    originals = Originals(made)
    made.defence(IMAGES, Noise(0, IDS))
    anew = originals.of("audit", "cpu")["as it was before the run"]()
    assert isinstance(made.defence.classifier, Remembers)
    assert isinstance(anew.classifier, Remembers)
    assert made.defence.classifier.seen
    assert not anew.classifier.seen
    ours, theirs = (list(its.parameters()) for its in (made.defence.classifier, anew.classifier))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_an_attack_at_smaller_radii_proposes_what_lies_in_the_ball() -> None:
    """A detector that looks up what moves by more than 0.2 leaves nothing to an attack at the full radius alone."""
    defence, ball = Defence(nothing(), LooksUp()), depura.Ball("linf", 0.2)
    labels = defence(IMAGES, Noise(0, IDS)).argmax(1)
    attack = depura.APGD(ball, n_steps=5, common=0)
    several = AtRadii(attack, shares=(0.25, 0.5, 1.0))
    found = several(defence, IMAGES, labels, init=Noise(0, IDS), eot=Noise(1, IDS))
    assert len(found.images) == several.n_candidates == 3 * attack.n_candidates
    farthest = torch.stack([ball.distance(x, IMAGES) for x in found.images]).amax(1)
    assert bool((farthest[:2] <= 0.05 + 1e-6).all())
    assert bool((farthest <= 0.2 + 1e-6).all())
    assert int(found.spent[:, 0].max()) == several.cost.gradients
    assert several.at(0.1).ball.eps == 0.1
    with pytest.raises(depura.InputError, match="shares that rise"):
        AtRadii(attack, shares=(1.0, 0.5))


def test_the_price_of_the_checks_is_what_they_cost(tmp_path: Path) -> None:
    """Of a purifier of two evaluations, by the counts of a run."""
    defence = Defence(noisy().with_(steps=uniform_steps(VP(), t_start=0.05, n_steps=2)), Plain())
    data = depura.ImageSet("small", IMAGES, torch.arange(B) % 3, IDS, ("0", "1", "2"))
    rows = depura.attack_suite(defence, depura.PGD(depura.Ball("linf", 0.1), n_steps=2))
    made = depura.Study("priced", data, defence, rows, select_draws=2, report_draws=4, pictures=0, reference=False)
    directory = run(made, tmp_path / "run")
    (facts,) = (unit.facts for unit in directory.units() if unit.facts.at_examples)
    forwards, gradients = price(B, 4, ways=1, exact=True)
    assert facts.evaluations.checks == (2 * (forwards + gradients), 2 * gradients)


def test_of_a_gradient_that_moves_nothing_no_direction_is_asked() -> None:
    """Below the rounding of the logits float32 may give zero, or another direction; a large one may not."""
    logits, exact = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 1, 4, 4, dtype=torch.float64)
    tiny = in_deployed_dtype(torch.zeros_like(exact), 1e-12 * exact, logits, torch.float32)
    assert tiny.light is Light.GREEN
    assert in_deployed_dtype(-1e-12 * exact, 1e-12 * exact, logits, torch.float32).light is Light.GREEN
    assert in_deployed_dtype(-exact, exact, logits, torch.float32).light is Light.RED
    assert in_deployed_dtype(exact, 1e-12 * exact.roll(1, 3), logits, torch.float32).light is Light.GREEN
    turned = 1e-12 * torch.cat([exact[:, :, :2], -exact[:, :, 2:]], dim=2)
    assert in_deployed_dtype(exact, turned, logits, torch.float32).light is Light.RED
    assert in_deployed_dtype(torch.zeros_like(exact), exact, logits, torch.float32).light is Light.RED
