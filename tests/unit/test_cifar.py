"""CIFAR-10 and CIFAR-100 in their published versions, against the arrays that were written."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import layouts
from tests.layouts import pixels

import depura
from depura import InputError

LABELS10 = np.arange(18) * 7 % 10
FINE = np.arange(8) * 37 % 100


def expected(images: np.ndarray) -> torch.Tensor:
    """Pixel (c, h, w) is byte 1024 c + 32 h + w."""
    out = torch.empty(len(images), 3, 32, 32)
    for c in range(3):
        for h in range(32):
            out[:, c, h] = torch.from_numpy(images[:, 1024 * c + 32 * h : 1024 * c + 32 * h + 32].astype(np.float32))
    return out / 255


@pytest.mark.parametrize("write", [layouts.python2, layouts.python3], ids=["python2", "python3"])
def test_cifar10_python(tmp_path: Path, write: Any) -> None:
    images = pixels(18)
    folder = layouts.cifar10_python(tmp_path, images, LABELS10, write)
    check_cifar10(folder, images)


def test_cifar10_binary(tmp_path: Path) -> None:
    images = pixels(18)
    folder = layouts.cifar10_binary(tmp_path, images, LABELS10)
    check_cifar10(folder, images)


def check_cifar10(folder: Path, images: np.ndarray) -> None:
    classes = tuple(name.decode() for name in layouts.NAMES10)
    single = next(path for path in folder.iterdir() if path.name.startswith("data_batch_3"))
    for path in (folder, folder.parent, layouts.archive(folder)):
        test = depura.load_images(path)
        assert (test.name, test.classes, test.ids) == ("cifar10-test", classes, (0, 1, 2))
        assert torch.equal(test.images, expected(images[15:]))
        assert test.labels.tolist() == LABELS10[15:].tolist()
        train = depura.load_images(path, split="train", rows=[14, 0, 7], images=2)
        assert (train.name, train.ids) == ("cifar10-train", (14, 0))
        assert torch.equal(train.images, expected(images[[14, 0]]))
        assert train.labels.tolist() == LABELS10[[14, 0]].tolist()
    batch = depura.load_images(single)
    assert torch.equal(batch.images, expected(images[6:9]))
    assert batch.classes == classes


@pytest.mark.parametrize("write", [layouts.cifar100_python, layouts.cifar100_binary])
def test_cifar100(tmp_path: Path, write: Any) -> None:
    images = pixels(8)
    folder = write(tmp_path, images, FINE)
    for path in (folder, layouts.archive(folder)):
        test = depura.load_images(path)
        assert torch.equal(test.images, expected(images[4:]))
        assert test.labels.tolist() == FINE[4:].tolist()
        assert test.classes == tuple(name.decode() for name in layouts.FINE)
        train = depura.load_images(path, split="train", labels="coarse_label")
        assert train.labels.tolist() == (FINE[:4] % 20).tolist()
        assert train.classes == tuple(name.decode() for name in layouts.COARSE)
    assert depura.load_images(folder, labels="fine_label").sha256() == test.sha256()


def test_a_batch_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'witness'}",)

    folder = layouts.cifar10_python(tmp_path, pixels(18), LABELS10)
    data = {b"data": Runs(), b"labels": [1]}
    (folder / "test_batch").write_bytes(pickle.dumps(data, 2))
    with pytest.raises(InputError, match=r"test_batch: .*\.system.*Nothing of it was run"):
        depura.load_images(folder)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    "data",
    [
        pixels(3).astype(np.int64),
        pixels(3).view(np.int8),
        pixels(3).astype(np.float32),
        pixels(2),
        pixels(3)[:, :3071],
        np.asfortranarray(pixels(3)),
        np.array([b"x", None, 3], dtype=object),
        pixels(3).reshape(3, 3, 32, 32),
        [1, 2, 3],
    ],
    ids=["int64", "int8", "float", "fewer", "narrow", "fortran", "objects", "four axes", "list"],
)
def test_other_arrays_are_refused(tmp_path: Path, data: Any) -> None:
    folder = layouts.cifar10_python(tmp_path, pixels(18), LABELS10)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": data, b"labels": [1, 2, 3]}, 2))
    with pytest.raises(InputError, match="test_batch"):
        depura.load_images(folder)


def test_an_array_with_too_little_data_is_refused(tmp_path: Path) -> None:
    """Four rows are announced and labelled, three are there."""
    folder = layouts.cifar10_python(tmp_path, pixels(18), LABELS10)
    three = layouts.python2({b"data": pixels(3), b"labels": [1, 2, 3, 4]})
    shape = b"(K\x03J\x00\x0c\x00\x00t"
    assert three.count(shape) == 1
    (folder / "test_batch").write_bytes(three.replace(shape, b"(K\x04J\x00\x0c\x00\x00t"))
    with pytest.raises(InputError, match=r"test_batch.*shape \(4, 3072\) .* 9216 bytes"):
        depura.load_images(folder)


@pytest.mark.parametrize("labels", [[1, 2, 10], [1, 2, -1], [1, 2.0, 3], [1, 2, 2**70], [1, True, 2], "123", None])
def test_other_labels_are_refused(tmp_path: Path, labels: Any) -> None:
    folder = layouts.cifar10_python(tmp_path, pixels(18), LABELS10)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": pixels(3), b"labels": labels}, 2))
    with pytest.raises(InputError, match="labels"):
        depura.load_images(folder)


def test_files_that_lack_something_are_refused(tmp_path: Path) -> None:
    python = layouts.cifar10_python(tmp_path, pixels(18), LABELS10)
    binary = layouts.cifar100_binary(tmp_path, pixels(8), FINE)
    packed = layouts.archive(binary)

    def refused(path: Path, match: str, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            depura.load_images(path, **options)

    refused(tmp_path, "one data set")
    for path in (python / "test_batch", binary / "test.bin"):
        path.write_bytes(path.read_bytes()[:-1])
        refused(path.parent, f"{path.name}.*truncated")
        path.unlink()
        refused(path.parent, "no test|one of.*train", split="test")
    (python / "data_batch_4").unlink()
    refused(python, "no data_batch_4", split="train")
    refused(binary, "fine_label", split="train", labels="label")
    refused(binary, "pictures only", split="train", resize=256)
    refused(python / "data_batch_1", "has parts", split="train")
    packed.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    refused(packed, "readable archive")
    (binary / "fine_label_names.txt").write_text("one\ntwo\n")
    refused(binary / "train.bin", "100 names")
    refused(tmp_path / "none", "not there")
