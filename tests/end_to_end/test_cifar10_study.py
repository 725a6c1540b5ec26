"""studies/cifar10.py with tiny networks and noise for images: its tables run, are published and made a page of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from depura import InputError, Noise, load_npz
from depura.analysis.summary import summarise
from depura.evaluation.runner import run
from depura.evaluation.study import Study
from depura.evaluation.study_file import StudySource
from depura.evaluation.without_images import publish, published_header
from depura.models.networks.edm import SongUNet
from depura.models.networks.preconditioned import EdmPreconditioned
from depura.records.directory import RunDirectory
from depura.reports import page
from depura.training.classifier import model
from depura.training.loop import save_weights, seeded
from depura.training.mixture import Mixture
from experiments import results

STUDY = Path(__file__).parents[2] / "studies" / "cifar10.py"
SMALL = {"attack_steps": "1", "eot": "1", "draws": "2", "images": "2"}
UNET = {"resolution": 32, "width": 8, "multipliers": (1, 1), "blocks": 1, "attention": (), "channels": 3, "augment": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data, classifier, denoiser and guide, by the names of the study's settings."""
    folder = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)
    np.savez(folder / "test.npz", image=rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), label=np.arange(4) + 6)
    data = load_npz(folder / "test.npz")
    unet = EdmPreconditioned(seeded(lambda: SongUNet(**UNET), 0), sigma_data=0.5)
    kind = {"preconditioner": "EDMPrecond", "network": "SongUNet", "constants": {"sigma_data": 0.5}}
    save_weights(unet, folder / "denoiser.safetensors", {"family": "edm", "settings": {**kind, **UNET}, "options": {}})
    for name, seed in (("classifier", 1), ("guide", 2)):
        made = model("resnet8", Mixture.of([data]), seed=seed)
        save_weights(made.weights, folder / f"{name}.safetensors", made.about)
    names = ("classifier", "denoiser", "guide")
    return {"data": f"{folder / 'test.npz'}", **{name: f"{folder / f'{name}.safetensors'}" for name in names}}


def loaded(files: dict[str, str], profile: str = "", **settings: str) -> Study:
    return StudySource(STUDY, tuple({**files, **SMALL, **settings}.items()), profile).load()


@pytest.mark.slow
def test_all_methods_answer(files: dict[str, str]) -> None:
    study = loaded(files, table="methods", images="1")
    for defence in study.methods.values():
        with torch.no_grad():
            assert defence(study.data.images, Noise(0, study.data.ids)).shape == (1, 10)


def test_all_that_is_asked_for_is_compared(files: dict[str, str]) -> None:
    study = loaded(files, table="methods", images="1")
    assert [*study.methods] == [
        "diffpure-few",
        "diffpure-sde",
        "diffpure-ode",
        "mimic",
        "mimic-released",
        "agdm",
        "gdmp",
        "gradual",
        "likelihood",
        "noise",
        "jpeg",
        "trades",
    ]
    assert [*loaded(files, table="steps").methods] == ["s1", "s2", "s5", "s10", "s20"]
    assert {"t10", "t50", "t75", "t100"} <= set(loaded(files, table="depths").methods)
    assert [*loaded(files, table="methods", only="jpeg gdmp").methods] == ["jpeg", "gdmp"]
    kinds = {row.kind for row in loaded(files).rows}
    assert kinds == {"undefended", "transfer", "adaptive", "bpda", "surrogate", "black-box"}
    assert {row.kind for row in loaded(files, table="transfer").rows} == {"undefended", "transfer"}


def test_a_profile_judges_few_step_diffpure(files: dict[str, str]) -> None:
    study = loaded(files, "smoke", threat="l2", t_star="0.03", n_steps="3")
    assert (study.ball.norm, study.ball.eps) == ("l2", 0.5)
    steps = study.defence.purifier.components[0].steps  # type: ignore[union-attr]
    assert len(steps) == 3
    assert steps[-1].sigma_next == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"table": "all"}, "table among few, transfer, methods"),
        ({"threat": "l1"}, "threat among linf, l2"),
        ({"only": "gdmp nothing", "table": "methods"}, "nothing"),
    ],
)
def test_unknown_settings(files: dict[str, str], settings: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        loaded(files, **settings)


def test_files_may_be_named_by_the_environment(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: files[name] for name in ("denoiser", "guide")}
    for name in ("DEPURA_CIFAR10", "DEPURA_RESNET20"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="DEPURA_RESNET20"):
        StudySource(STUDY, tuple(own.items())).load()
    monkeypatch.setenv("DEPURA_CIFAR10", files["data"])
    monkeypatch.setenv("DEPURA_RESNET20", files["classifier"])
    assert torch.equal(StudySource(STUDY, tuple(own.items())).load().data.images, load_npz(files["data"]).images)


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_the_page_is_made_of_published_records(files: dict[str, str], tmp_path: Path) -> None:
    """Of one record of each table; with every method in the table and every record's headline."""
    records = []
    for table, only in (("few", ""), ("methods", "noise jpeg trades diffpure-few"), ("depths", "t75 t10")):
        study = loaded(files, table=table, only=only, images="1", n_steps="1")
        rows = tuple(row for row in study.rows if row.kind != "black-box")  # which takes minutes
        study = replace(study, rows=rows, reference=False)
        made = run(study, tmp_path / "runs" / table, command="depura run x")
        record = RunDirectory.create(tmp_path / "records" / f"cifar10-{table}", published_header(made))
        publish(made, study, record)
        page.write_reports(record)
        records.append(results.Record(record.path, summarise(record)))
    text = results.page(records)
    for record in records:
        assert record.summary.headline in text
        assert f"../records/{record.path.name}/report.md" in text
    for name in ("noise", "jpeg", "trades", "diffpure-few"):
        assert f"| {name}" in text
    for heading in (
        "Few-step DiffPure under a suite of attacks, linf 8/255",
        "All methods, linf 8/255",
        "by depth t*",
        "What surprised",
    ):
        assert heading in text
    assert "| 0.075 | 1 |" in text
    assert "transferred examples are held best at t* = 0.0" in text
    assert "through its exact gradient" in text
    assert "Others' settings" in text
    assert "70.64" in text
