"""Checkpoint files in their published wrappings: identified, loaded unchanged, converted; bad ones refused, unrun."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import checkpoints as made
from tests.networks import listing
from torch import Tensor, nn

import depura
from depura.models.checkpoints import PUBLISHED, convert, identify
from depura.models.checkpoints.families import FAMILIES
from depura.models.networks.adm import AdmUNet
from depura.models.networks.edm import SongUNet
from depura.models.networks.preconditioned import EdmPreconditioned
from depura.models.networks.wrappers import CIFAR10, CIFAR100, IMAGENET
from depura.models.weights import read_safetensors

DENOISERS = [name for name in made.TINY if made.family(name).denoises]
CLASSIFIERS = [name for name in made.TINY if not made.family(name).denoises]
LISTINGS = {
    "score-sde-cifar10": "score-sde-cifar10-ddpmpp-deep",
    "adm-imagenet256": "guided-diffusion-256-uncond",
    "ddpm-celebahq256": "ddpm-celebahq-256",
    "ddpm-cifar10": "ddpm-cifar10",
    "edm-cifar10-uncond-vp": "edm-cifar10-32x32-uncond",
    "edm-cifar10-cond-vp": "edm-cifar10-32x32-cond",
    "edm-cifar10-uncond-ve": "edm-cifar10-32x32-uncond-ncsnpp",
    "wrn-28-10": "robustbench-wrn-28-10",
    "wrn-70-16-dropout": "robustbench-wrn-70-16",
    "dmwrn-28-10": "robustbench-dmwrn-28-10",
    "dmwrn-70-16": "robustbench-dmwrn-70-16",
    "cifar10-resnet50": "diffpure-cifar-resnet50",
    "cifar10-resnet20": "akamaster-resnet20",
    "celebahq-attribute": "diffpure-attribute-256",
}


def states(found: nn.Module, net: nn.Module) -> bool:
    """Whether the parameters are the same, in the same order."""
    pairs = zip(found.parameters(), net.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def images(size: int = 16) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def saved(path: Path, name: str, wrap: Callable[[dict[str, Tensor]], Any] = dict) -> nn.Module:
    net = made.network(name)
    torch.save(wrap(net.state_dict()), path)
    return net


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "flat": dict,
    "data parallel": made.prefixed,
    "state_dict": lambda state: {"epoch": 3, "valacc": 0.9, "state_dict": made.prefixed(state)},
    "model_state_dict, two prefixes": lambda state: {"model_state_dict": made.prefixed(state, "module.0.")},
    "list": lambda state: [state, {"state": {}, "param_groups": []}, 3, 4],
    "ema": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "ema": state},
    "list with averages": lambda state: [
        made.prefixed({k: v + 1 for k, v in state.items()}),
        {"state": {}, "param_groups": []},
        3,
        4,
        state,
    ],
}


OWN = ("small-unet", "small-classifier", "vit")
"""Families that depura itself trains."""


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_of_every_family(name: str, tmp_path: Path) -> None:
    net = saved(tmp_path / "file.pt", name)
    said = identify(tmp_path / "file.pt")
    assert (said.family, said.denoises) == (name, True)
    assert said.parameters == sum(p.numel() for p in net.parameters() if p.requires_grad)
    denoiser = depura.load_denoiser(tmp_path / "file.pt")
    assert isinstance(denoiser, nn.Module)
    assert states(denoiser, net)
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert not denoiser.training
    x = 2 * images() - 1
    assert denoiser(x, 0.5).shape == x.shape


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_every_family(name: str, tmp_path: Path) -> None:
    net = saved(tmp_path / "file.pt", name)
    assert identify(tmp_path / "file.pt").family == name
    classifier = depura.load_classifier(tmp_path / "file.pt")
    assert states(classifier, net)
    size = 8 if name == "attribute" else 32
    assert classifier(images(size)).shape == (2, 2 if name == "attribute" else 10)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings(wrapping: str, tmp_path: Path) -> None:
    net = saved(tmp_path / "file.pt", "ddpm", WRAPPINGS[wrapping])
    assert states(depura.load_denoiser(tmp_path / "file.pt"), net)


def test_the_legacy_format_of_torch(tmp_path: Path) -> None:
    net = made.network("ddpm")
    torch.save(net.state_dict(), tmp_path / "file.pth", _use_new_zipfile_serialization=False)
    assert "legacy" in identify(tmp_path / "file.pth").kind
    assert states(depura.load_denoiser(tmp_path / "file.pth"), net)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    net = saved(tmp_path / "file.pt", "ddpm", lambda state: {k: v.half() for k, v in state.items()})
    found = depura.load_denoiser(tmp_path / "file.pt")
    assert states(found, net.half().float())


def test_averages_are_taken_by_position(tmp_path: Path) -> None:
    averaged = made.score_sde_file(tmp_path / "checkpoint_8.pth")
    said = identify(tmp_path / "checkpoint_8.pth")
    assert said.averaged
    assert states(depura.load_denoiser(tmp_path / "checkpoint_8.pth"), averaged)


def test_averages_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made.score_sde_file(tmp_path / "file.pth")
    content = torch.load(tmp_path / "file.pth", weights_only=True)
    for wrong, words in (
        (content["ema"]["shadow_params"][:-1], "moving averages, one per trained tensor"),
        (content["ema"]["shadow_params"][::-1], "moving average 0 to be of all_modules.0.weight"),
    ):
        torch.save({**content, "ema": {"shadow_params": wrong}}, tmp_path / "wrong.pth")
        with pytest.raises(depura.InputError, match=words):
            identify(tmp_path / "wrong.pth")


def test_a_pickle_of_edm_is_read_without_its_code(tmp_path: Path) -> None:
    net = made.edm_pickle(tmp_path / "edm.pkl")
    said = identify(tmp_path / "edm.pkl")
    assert (said.family, said.kind, said.entry) == ("edm", "pickled modules", "ema")
    found = depura.load_denoiser(tmp_path / "edm.pkl")
    x = images()
    assert torch.equal(found(x, 0.7), net(x, 0.7))


def test_constants_of_a_pickle_are_kept(tmp_path: Path) -> None:
    made.edm_pickle(tmp_path / "edm.pkl", settings={"img_resolution": 16, "sigma_data": 0.25, "use_fp16": False})
    found = depura.load_denoiser(tmp_path / "edm.pkl")
    assert isinstance(found, EdmPreconditioned)
    assert found.sigma_data == 0.25


@pytest.mark.parametrize("name", ["score-sde", "edm", "wide-resnet", "attribute"])
def test_conversion_and_back(name: str, tmp_path: Path) -> None:
    source = tmp_path / "file.pth"
    if name == "score-sde":
        net = made.score_sde_file(source)
    elif name == "edm":
        net = made.edm_pickle(source)
    else:
        net = saved(source, name, made.prefixed)
    load = depura.load_denoiser if made.family(name).denoises else depura.load_classifier
    convert(source, tmp_path / "out.safetensors")
    assert states(load(tmp_path / "out.safetensors"), net)
    said = json.loads((tmp_path / "out.json").read_text())
    assert (said["family"], said["source"]) == (name, "file.pth")
    assert identify(tmp_path / "out.safetensors").settings == identify(source).settings | {
        key: list(value) for key, value in identify(source).settings.items() if isinstance(value, tuple)
    }


def test_options_are_kept_in_a_converted_file(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "wide-resnet")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    convert(tmp_path / "file.pt", tmp_path / "out.safetensors", mean=mean, std=std)
    found = depura.load_classifier(tmp_path / "out.safetensors")
    assert torch.equal(found.mean.flatten(), torch.tensor(mean))
    assert torch.equal(found.std.flatten(), torch.tensor(std))


def test_class_conditional_networks_need_a_class(tmp_path: Path) -> None:
    settings = {**made.TINY["adm"], "classes": 5}
    net = AdmUNet(**settings)
    nn.init.normal_(net.out[2].weight, std=0.1)
    torch.save(net.state_dict(), tmp_path / "file.pt")
    with pytest.raises(depura.InputError, match="class_index"):
        depura.load_denoiser(tmp_path / "file.pt")
    x = images()
    of = [depura.load_denoiser(tmp_path / "file.pt", class_index=k)(x, 0.5) for k in (1, 2)]
    assert not torch.equal(*of)
    eps = net(x / 1.25**0.5, torch.full((2,), found_label(0.5)), classes=torch.tensor([2, 2]))
    assert torch.allclose(of[1], x - 0.5 * eps[:, :3], atol=1e-4)


def found_label(sigma: float) -> float:
    return depura.IndexLabel(depura.DiscreteLinear())(sigma)


def test_learned_variances_are_asked_for(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "adm")
    x = images()
    plain = depura.load_denoiser(tmp_path / "file.pt")(x, 0.5)
    both = depura.load_denoiser(tmp_path / "file.pt", learned_variance=True)(x, 0.5)
    assert both.shape == (2, 6, 16, 16)
    assert torch.equal(both[:, :3], plain)


def test_score_networks_on_unit_range_become_denoisers(tmp_path: Path) -> None:
    """D = 2 E[v | noisy v] - 1 with v in [0, 1]: Tweedie's formula in the network's own units."""
    settings = {**made.TINY["score-sde"], "fourier": True, "fir": True, "residual_input": True, "unit_range": True}
    net = made.family("score-sde").network(**settings).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.save(net.state_dict(), tmp_path / "file.pt")
    u, sigma = 2 * images() - 1, 0.6
    found = depura.load_denoiser(tmp_path / "file.pt")(u, sigma)
    v, s = (u + 1) / 2, sigma / 2
    expected = 2 * (v + s**2 * net(v, torch.full((2,), s))) - 1
    assert torch.allclose(found, expected, atol=1e-6)


def test_labels_of_improved_diffusion_count_as_if_there_were_a_thousand(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "improved-diffusion")
    found = depura.load_denoiser(tmp_path / "file.pt")
    schedule = depura.Cosine(4000)
    assert isinstance(found, depura.EpsDenoiser)
    assert [round(found.label(schedule.sigma(i)), 9) for i in (0, 100, 3999)] == [0.0, 25.0, 999.75]


@pytest.mark.parametrize(
    ("name", "constants"), [("cifar-resnet", IMAGENET), ("cifar-bottleneck", CIFAR10), ("dm-wide-resnet", CIFAR10)]
)
def test_published_normalisation(name: str, constants: Any, tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", name)
    found = depura.load_classifier(tmp_path / "file.pt")
    assert torch.equal(found.mean.flatten(), torch.tensor(constants[0]))
    assert torch.equal(found.std.flatten(), torch.tensor(constants[1]))


def test_cifar100_has_constants_of_its_own(tmp_path: Path) -> None:
    net = made.family("dm-wide-resnet").network(depth=10, width=1, n_classes=100)
    torch.save(net.state_dict(), tmp_path / "file.pt")
    assert torch.equal(depura.load_classifier(tmp_path / "file.pt").mean.flatten(), torch.tensor(CIFAR100[0]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_built_without_memory(name: str) -> None:
    file = PUBLISHED[name]
    ready = file.build()
    assert all(p.is_meta for p in ready.parameters())
    assert file.licence
    assert file.address.startswith(("https://", "http://"))
    if name in LISTINGS:
        published = listing(LISTINGS[name])
        assert sum(p.numel() for p in ready.parameters()) == published.parameters
        settings = made.family(file.family).settings_of(published.shapes)
        assert settings is not None
        assert all(settings[key] == value for key, value in file.settings.items())


def test_every_family_has_a_published_file() -> None:
    assert {file.family for file in PUBLISHED.values()} | {"score-sde-ddpm", *OWN} == {
        family.name for family in FAMILIES
    }


def test_what_depura_trains_is_loaded(tmp_path: Path) -> None:
    """The bundled files, in half precision, say what their tensors do not."""
    folder = Path(depura.__file__).parent / "models"
    x, sigma = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 0.3
    loaded = depura.load_denoiser(folder / "digits-denoiser.safetensors")
    assert torch.equal(loaded(x, sigma), depura.digits_denoiser()(x, sigma))
    assert identify(folder / "digits-denoiser.safetensors").family == "small-unet"
    for name, bundled in (("classifier", depura.digits_classifier), ("guide", depura.digits_guide)):
        assert torch.equal(depura.load_classifier(folder / f"digits-{name}.safetensors")(x), bundled()(x))
    bare = tmp_path / "bare.safetensors"
    save_file(depura.digits_denoiser().network.state_dict(), bare)  # type: ignore[union-attr]
    with pytest.raises(depura.InputError, match="sigma_data"):
        depura.load_denoiser(bare)
    own = json.loads(read_safetensors(folder / "digits-denoiser.safetensors")[1]["depura"])
    again = depura.load_denoiser(bare, sigma_data=own["sigma_data"])
    assert torch.equal(again(x, sigma), loaded(x, sigma))
    convert(folder / "digits-denoiser.safetensors", tmp_path / "converted.safetensors")
    assert torch.equal(depura.load_denoiser(tmp_path / "converted.safetensors")(x, sigma), loaded(x, sigma))


def test_a_layout_with_two_normalisations_must_be_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "file.pt", "wide-resnet")
    monkeypatch.setitem(PUBLISHED, "one", PUBLISHED["wrn-28-10"]._replace(settings=made.TINY["wide-resnet"]))
    depura.load_classifier(tmp_path / "file.pt")
    monkeypatch.setitem(PUBLISHED, "two", PUBLISHED["wrn-70-16-dropout"]._replace(settings=made.TINY["wide-resnet"]))
    with pytest.raises(depura.InputError, match=r"like=one or two, or mean and std"):
        depura.load_classifier(tmp_path / "file.pt")
    told = depura.load_classifier(tmp_path / "file.pt", like="two")
    assert torch.equal(told.mean.flatten(), torch.tensor(CIFAR10[0]))


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch legacy", "inside ema"])
def test_code_in_a_file_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    witness, file = tmp_path / "witness", tmp_path / "file.pkl"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Attack(witness)))
    elif form == "inside ema":
        file.write_bytes(pickle.dumps({"ema": Attack(witness)}))
    else:
        torch.save({"state_dict": Attack(witness)}, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(depura.InputError, match=r"Nothing (of it )?was run"):
        identify(file)
    assert not witness.exists()


def test_a_pickled_module_of_unknown_code_is_refused(tmp_path: Path) -> None:
    torch.save({"net": nn.Linear(2, 2)}, tmp_path / "origin.t7")
    with pytest.raises(depura.InputError, match=r"only running its code would restore.*Save its state_dict"):
        identify(tmp_path / "origin.t7")


def truncated(path: Path) -> None:
    made.score_sde_file(path)
    path.write_bytes(path.read_bytes()[:-2000])


def truncated_legacy(path: Path) -> None:
    torch.save(made.network("ddpm").state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_pickle(path: Path) -> None:
    made.edm_pickle(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def optimizer(path: Path) -> None:
    torch.save(torch.optim.Adam(made.network("ddpm").parameters()).state_dict(), path)


def other_network(path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(3, 3), "classifier.bias": torch.zeros(3)}, path)


def lacking(path: Path) -> None:
    state = made.network("ddpm").state_dict()
    torch.save({k: v for k, v in state.items() if k != "mid.attn_1.q.weight"}, path)


def misshapen(path: Path) -> None:
    state = made.network("adm").state_dict()
    state["middle_block.0.in_layers.2.weight"] = torch.zeros(64, 64, 5, 5)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (truncated, "truncated or damaged.*Download it again"),
        (truncated_legacy, "truncated or damaged"),
        (truncated_pickle, "truncated, damaged"),
        (optimizer, "the state of an optimizer.*Take the file of the model"),
        (other_network, "a network of a known family .*whose tensors begin features.0.weight"),
        (lacking, "nearest is DDPM U-Net.*it lacks mid.attn_1.q.weight"),
        (misshapen, "nearest is ADM U-Net.*first differing tensor is middle_block.0.in_layers.2.weight.*is expected"),
        (lambda path: path.write_bytes(b""), "which is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "a web page"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n"), "begins with"),
        (lambda path: path.mkdir(), "the folder"),
        (lambda path: None, "No such file"),
        (lambda path: torch.save([1, 2], path), "a list without a network's tensors"),
        (lambda path: torch.save({"a": 1, "b": torch.zeros(2)}, path), "which has a, b"),
        (lambda path: torch.save(3, path), "which holds a int"),
    ],
    ids=range(16),
)
def test_bad_files_are_refused(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    make(tmp_path / "file.pt")
    with pytest.raises(depura.InputError, match=words) as error:
        identify(tmp_path / "file.pt")
    assert "file.pt" in str(error.value)


def test_a_denoiser_is_no_classifier_and_the_other_way(tmp_path: Path) -> None:
    saved(tmp_path / "denoiser.pt", "ddpm")
    saved(tmp_path / "classifier.pt", "cifar-resnet")
    with pytest.raises(depura.InputError, match="Use load_denoiser"):
        depura.load_classifier(tmp_path / "denoiser.pt")
    with pytest.raises(depura.InputError, match="Use load_classifier"):
        depura.load_denoiser(tmp_path / "classifier.pt")


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "ddpm")
    with pytest.raises(depura.InputError, match=r"options of DDPM U-Net.*head_width"):
        identify(tmp_path / "file.pt", head_width=8)
    with pytest.raises(depura.InputError, match="like to be one of score-sde-cifar10"):
        identify(tmp_path / "file.pt", like="nothing")


def test_conversion_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "ddpm")
    with pytest.raises(depura.InputError, match=r"ending in \.safetensors"):
        convert(tmp_path / "file.pt", tmp_path / "out.pt")
    lacking(tmp_path / "bad.pt")
    with pytest.raises(depura.InputError, match="it lacks"):
        convert(tmp_path / "bad.pt", tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pt", "file.pt"]


def test_a_converted_file_whose_tensors_are_others_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "ddpm")
    convert(tmp_path / "file.pt", tmp_path / "out.safetensors")
    said = json.loads((tmp_path / "out.json").read_text())
    save_file({"conv_in.weight": torch.zeros(2)}, tmp_path / "wrong.safetensors", {"depura": json.dumps(said)})
    with pytest.raises(depura.InputError, match=r"says it is.*Convert it again"):
        identify(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("change", [{"settings": {"width": 32}}, {"settings": {"colour": "red"}}, {"settings": 3}])
def test_a_converted_file_with_other_settings_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "ddpm")
    convert(tmp_path / "file.pt", tmp_path / "out.safetensors")
    said = json.loads((tmp_path / "out.json").read_text()) | change
    save_file(made.network("ddpm").state_dict(), tmp_path / "wrong.safetensors", {"depura": json.dumps(said)})
    with pytest.raises(depura.InputError, match="Convert it again"):
        identify(tmp_path / "wrong.safetensors")


def test_options_of_other_types_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "file.pt", "adm")
    for options in ({"head_width": "wide"}, {"head_width": 0}, {"head_width": 7}):
        with pytest.raises(depura.InputError):
            identify(tmp_path / "file.pt", **options)
    saved(tmp_path / "classifier.pt", "cifar-resnet")
    with pytest.raises(depura.InputError):
        depura.load_classifier(tmp_path / "classifier.pt", mean="abc", std="abc")


def test_plain_safetensors_are_identified_by_their_tensors(tmp_path: Path) -> None:
    net = made.network("ddpm")
    save_file(net.state_dict(), tmp_path / "file.safetensors")
    assert states(depura.load_denoiser(tmp_path / "file.safetensors"), net)


def test_nothing_is_kept_open(tmp_path: Path) -> None:
    """Weights of a mapped file survive its removal."""
    net = saved(tmp_path / "file.pt", "ddpm")
    found = depura.load_denoiser(tmp_path / "file.pt")
    (tmp_path / "file.pt").unlink()
    assert states(found, net)
    buffer = io.BytesIO()
    torch.save(found.state_dict(), buffer)
    assert buffer.tell() > 0


def test_a_network_of_edm_knows_its_settings() -> None:
    settings = dict(made.TINY["edm"])
    for key in ("preconditioner", "network", "constants"):
        del settings[key]
    assert isinstance(made.network("edm").model, SongUNet)
    assert made.network("edm").model.state_dict().keys() == SongUNet(**settings).state_dict().keys()
