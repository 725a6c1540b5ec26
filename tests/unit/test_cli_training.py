"""What training reads where a data set has parts: the training part, and never test images in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import layouts
from tests.layouts import pixels

from depura import ImageSet, InputError
from depura.cli.training import sources


def trained_on(path: Path) -> ImageSet:
    return sources([f"{path}"], [], None, 0).train[0]


def cifar(folder: Path) -> Path:
    return layouts.cifar10_python(folder, pixels(18), np.arange(18) % 10)


def pictures(folder: Path) -> None:
    for name in "ab":
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8)).save(folder / name / "1.png")


def test_the_training_part_is_read(tmp_path: Path) -> None:
    folder = cifar(tmp_path)
    assert trained_on(folder).name == "cifar10-train"
    assert len(trained_on(folder).images) == 15
    pictures(tmp_path / "tree" / "train")
    pictures(tmp_path / "tree" / "val")
    assert trained_on(tmp_path / "tree").name == "tree-train"


def test_data_without_parts_are_read_whole(tmp_path: Path) -> None:
    pictures(tmp_path / "tree")
    assert len(trained_on(tmp_path / "tree").images) == 2
    folder = cifar(tmp_path)
    assert len(trained_on(folder / "data_batch_2").images) == 3
    np.savez(tmp_path / "own.npz", image=np.zeros((2, 8, 8, 3), dtype=np.uint8), label=np.arange(2))
    assert len(trained_on(tmp_path / "own.npz").images) == 2


def test_a_damaged_training_part_is_not_replaced_by_the_test_part(tmp_path: Path) -> None:
    folder = cifar(tmp_path)
    batch = folder / "data_batch_4"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_4.*truncated"):
        trained_on(folder)
    batch.unlink()
    with pytest.raises(InputError, match="no data_batch_4"):
        trained_on(folder)
    for i in (1, 2, 3, 5):
        (folder / f"data_batch_{i}").unlink()
    with pytest.raises(InputError, match=r"one of \['test'\].*'train'"):
        trained_on(folder)
