"""Pictures in folders, tables and datasets, against the arrays that were written and sums done by hand."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.layouts import encoded, png16
from torch.utils.data import TensorDataset

import depura
from depura import InputError
from depura.data.pictures import Frame, decode


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours and some noise."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    noise = np.random.RandomState(seed).randint(0, 60, shape)
    ramp = np.add.outer(np.arange(height), 2 * np.arange(width)) % 190
    return (noise + (ramp[..., None] if channels > 1 else ramp)).astype(np.uint8)


def as_image(pixels: np.ndarray) -> torch.Tensor:
    planes = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    return torch.from_numpy(planes.astype(np.float32)) / 255


def triangle(length: int, size: int) -> np.ndarray:
    """Bilinear resizing with antialiasing as a matrix: a triangle as wide as the step, at least one pixel, normed."""
    step = length / size
    wide = max(step, 1.0)
    centres = (np.arange(size) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(length)[None] + 0.5 - centres[:, None]) / wide)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (75, 30), (24, 50), (16, 19)])
def test_resize_and_crop_are_the_sums_by_hand(height: int, width: int) -> None:
    """Short side 24, long side 24 * long / short rounded down, the middle 20 x 20 (an odd rest rounds to even)."""
    pixels = picture(height, width)
    short = min(height, width)
    new = (24, 24 * width // short) if height == short else (24 * height // short, 24)
    exact = np.einsum("hi,ijc,wj->hwc", triangle(height, new[0]), pixels.astype(np.float64), triangle(width, new[1]))
    top, left = (round((side - 20) / 2) for side in new)
    middle = torch.from_numpy(exact[top : top + 20, left : left + 20].transpose(2, 0, 1)).float() / 255
    got = decode(encoded(pixels), source="x", frame=Frame(resize=24, crop=20))
    assert got.shape == (3, 20, 20)
    assert (got - middle).abs().max() < 1.01 / 255  # Pillow rounds to 8 bits after each direction
    float_resize = torch.nn.functional.interpolate(
        as_image(pixels)[None], size=new, mode="bilinear", antialias=True, align_corners=False
    )[0, :, top : top + 20, left : left + 20]
    assert (got - float_resize).abs().max() < 1.01 / 255


def test_the_middle_is_where_torchvision_cuts_it() -> None:
    """5 rows of 8 leave 3, half of which rounds to 2; 5 of 6 leave 1, which rounds to 0."""
    pixels = picture(8, 6)
    assert torch.equal(decode(encoded(pixels), source="x", frame=Frame(crop=5)), as_image(pixels[2:7, 0:5]))


def test_channels_change_only_when_asked() -> None:
    grey, colour = picture(4, 5, 1), picture(4, 5)
    assert torch.equal(decode(encoded(grey), source="x"), as_image(grey))
    assert torch.equal(decode(encoded(grey), source="x", frame=Frame(channels=3)), as_image(grey).repeat(3, 1, 1))
    luma = as_image(colour)[0] * 0.299 + as_image(colour)[1] * 0.587 + as_image(colour)[2] * 0.114
    torch.testing.assert_close(decode(encoded(colour), source="x", frame=Frame(channels=1))[0], luma)
    with pytest.raises(InputError, match="channels=2"):
        decode(encoded(colour), source="x", frame=Frame(channels=2))


def broken_files() -> dict[str, tuple[bytes, str]]:
    jpeg = encoded(picture(30, 30), "JPEG")
    buffers = {mode: io.BytesIO() for mode in ("RGBA", "I;16", "CMYK")}
    Image.new("RGBA", (4, 4)).save(buffers["RGBA"], "PNG")
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(buffers["I;16"], "PNG")
    Image.new("CMYK", (4, 4)).save(buffers["CMYK"], "JPEG")
    return {
        "truncated": (jpeg[: len(jpeg) // 2], "truncated or damaged"),
        "text": (b"hello", "truncated or damaged"),
        "empty": (b"", "truncated or damaged"),
        "transparent": (buffers["RGBA"].getvalue(), "mode RGBA"),
        "grey, 16 bits": (buffers["I;16"].getvalue(), "16 bits"),
        "colour, 16 bits": (png16(), "16 bits"),
        "inks": (buffers["CMYK"].getvalue(), "mode CMYK"),
        "small": (encoded(picture(3, 9)), "at least 4 x 4"),
    }


@pytest.mark.parametrize("kind", broken_files())
def test_pictures_that_would_change_silently_are_refused(kind: str) -> None:
    data, message = broken_files()[kind]
    with pytest.raises(InputError, match=f"the-file.*{message}|{message}.*the-file"):
        decode(data, source="the-file", frame=Frame(crop=4))


def test_inks_become_colours_when_asked() -> None:
    data, _ = broken_files()["inks"]
    assert torch.equal(decode(data, source="x", frame=Frame(channels=3)), torch.ones(3, 4, 4))


def tree(folder: Path, n: int = 2, size: tuple[int, int] = (8, 8)) -> dict[str, np.ndarray]:
    """Classes b, a and c; c holds a folder of its own."""
    written: dict[str, np.ndarray] = {}
    for i, name in enumerate(["b/2.png", "b/10.PNG", "a/z.png", "c/x/1.png", "c/0.png"][: n + 3]):
        written[name] = picture(*size, seed=i)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(written[name]))
    (folder / "b" / "notes.txt").write_text("no picture")
    return written


ORDER = ["a/z.png", "b/10.PNG", "b/2.png", "c/0.png", "c/x/1.png"]


def test_class_folders_go_by_name(tmp_path: Path) -> None:
    written = tree(tmp_path)
    data = depura.load_images(tmp_path)
    assert data.classes == ("a", "b", "c")
    assert data.labels.tolist() == [0, 1, 1, 2, 2]
    assert data.ids == (0, 1, 2, 3, 4)
    assert torch.equal(data.images, torch.stack([as_image(written[name]) for name in ORDER]))


def test_parts_are_told_by_their_names(tmp_path: Path) -> None:
    tree(tmp_path / "train")
    written = tree(tmp_path / "val", 0)
    data = depura.load_images(tmp_path)
    assert (data.name, data.classes) == (f"{tmp_path.name}-val", ("a", "b"))
    assert torch.equal(data.images[0], as_image(written["a/z.png"]))
    assert len(depura.load_images(tmp_path, split="train").images) == 5
    with pytest.raises(InputError, match=r"\['train', 'val'\].*'test'"):
        depura.load_images(tmp_path, split="test")


def test_only_the_chosen_pictures_are_decoded(tmp_path: Path) -> None:
    written = tree(tmp_path)
    (tmp_path / ORDER[0]).write_bytes(b"no picture")
    data = depura.load_images(tmp_path, rows=(4, 1, 0), images=2)
    assert data.ids == (4, 1)
    assert torch.equal(data.images, torch.stack([as_image(written[ORDER[i]]) for i in (4, 1)]))
    with pytest.raises(InputError, match=r"a/z\.png"):
        depura.load_images(tmp_path)


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "a" / "z.png").write_bytes(encoded(picture(9, 8)))
    with pytest.raises(InputError, match=r"one size, 3 x 9 x 8 like .*z\.png, got .*10\.PNG of 3 x 8 x 8"):
        depura.load_images(tmp_path)
    assert depura.load_images(tmp_path, resize=8, crop=8).images.shape == (5, 3, 8, 8)
    (tmp_path / "a" / "z.png").write_bytes(encoded(picture(8, 8, 1)))
    with pytest.raises(InputError, match="channels= for one number"):
        depura.load_images(tmp_path)
    assert depura.load_images(tmp_path, channels=3).images.shape == (5, 3, 8, 8)
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="none in d"):
        depura.load_images(tmp_path)
    with pytest.raises(InputError, match="pictures without labels"):
        depura.load_images(tmp_path / "b")
    (tmp_path / "d").rmdir()
    with pytest.raises(InputError, match="rows from 0 to 4, got 7"):
        depura.load_images(tmp_path, rows=[7], channels=3)


ATTRIBUTES = "4\nSmiling Eyeglasses\n3.jpg  1 -1\n1.jpg -1 -1\n2.jpg  1  1\n10.jpg -1  1\n"


def test_attributes_of_celeba_hq(tmp_path: Path) -> None:
    """Pictures go by name (1, 10, 2, 3), also with another ending than in the table; class 1 has the attribute."""
    (tmp_path / "list_attr_celeba-hq.txt").write_text(ATTRIBUTES)
    (tmp_path / "images").mkdir()
    written = [picture(6, 6, seed=i) for i in range(4)]
    for name, pixels in zip(("1", "10", "2", "3"), written, strict=True):
        (tmp_path / "images" / f"{name}.png").write_bytes(encoded(pixels))
    smiling = depura.load_images(tmp_path, labels="Smiling")
    assert smiling.labels.tolist() == [0, 0, 1, 1]
    assert smiling.classes == ("not Smiling", "Smiling")
    assert torch.equal(smiling.images, torch.stack([as_image(pixels) for pixels in written]))
    glasses = depura.load_images(tmp_path / "list_attr_celeba-hq.txt", labels="Eyeglasses", resize=3, rows=[3, 2])
    assert (glasses.labels.tolist(), glasses.ids, glasses.images.shape) == ([0, 1], (3, 2), (2, 3, 3, 3))
    (tmp_path / "list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 1\n3.jpg 2\n10.jpg 1\n")
    part = depura.load_images(tmp_path, labels="Eyeglasses", split="val")
    assert (part.labels.tolist(), part.ids) == ([1, 1], (1, 2))
    assert torch.equal(part.images[1], as_image(written[2]))
    assert depura.load_images(tmp_path, labels="Eyeglasses").ids == (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ATTRIBUTES, "an attribute of.*Smiling, Eyeglasses.*None"),
        (ATTRIBUTES.replace("4\n", "5\n", 1), "number of pictures"),
        (ATTRIBUTES[:-3], "a name and 2 times"),
        (ATTRIBUTES.replace("3.jpg  1", "3.jpg 7"), "a name and 2 times"),
        (ATTRIBUTES.replace("3.jpg", "2.jpg"), "every picture once"),
        (ATTRIBUTES.replace("3.jpg", "4.jpg"), r"none for .*3\.png"),
        ("", "number of pictures"),
    ],
)
def test_tables_of_attributes_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list_attr_celeba.txt").write_text(text)
    (tmp_path / "3.png").write_bytes(encoded(picture(6, 6)))
    with pytest.raises(InputError, match=message):
        depura.load_images(tmp_path, labels="Smiling" if "None" not in message else None)


def parquet_folder(folder: Path, columns: dict[str, Any], names: list[str] | None = None, label: str = "label") -> None:
    """Two shards of test, one of train, row groups of two."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table(columns)
    if names is not None:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    (folder / "data").mkdir(parents=True)
    for name, part in (
        ("test-00000-of-00002", table.slice(0, 3)),
        ("test-00001-of-00002", table.slice(3)),
        ("train-00000-of-00001-0123456789abcdef", table.slice(0, 1)),
    ):
        parquet.write_table(part, folder / "data" / f"{name}.parquet", row_group_size=2)


def cells(pictures: list[np.ndarray], kind: str = "PNG") -> list[dict[str, Any]]:
    return [{"bytes": encoded(pixels, kind), "path": None} for pixels in pictures]


def test_parquet_of_cifar10_and_its_shards(tmp_path: Path) -> None:
    written = [picture(32, 32, seed=i) for i in range(7)]
    parquet_folder(tmp_path, {"img": cells(written), "label": [3, 1, 0, 2, 1, 3, 0]}, ["a", "b", "c", "d"])
    for path in (tmp_path, tmp_path / "data"):
        data = depura.load_images(path)
        assert data.classes == ("a", "b", "c", "d")
        assert data.labels.tolist() == [3, 1, 0, 2, 1, 3, 0]
        assert data.ids == tuple(range(7))
        assert torch.equal(data.images, torch.stack([as_image(pixels) for pixels in written]))
    some = depura.load_images(tmp_path, rows=[6, 0, 4, 3])
    assert (some.ids, some.labels.tolist()) == ((6, 0, 4, 3), [0, 3, 1, 2])
    assert torch.equal(some.images, torch.stack([as_image(written[i]) for i in (6, 0, 4, 3)]))
    shard = depura.load_images(tmp_path / "data" / "test-00001-of-00002.parquet")
    assert (shard.ids, shard.labels.tolist()) == ((0, 1, 2, 3), [2, 1, 3, 0])
    assert len(depura.load_images(tmp_path, split="train").images) == 1
    (tmp_path / "data" / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"all 2 shards .*no number \[0\]"):
        depura.load_images(tmp_path)


def test_parquet_of_cifar100_and_imagenet(tmp_path: Path) -> None:
    """JPEGs of several sizes; only the row groups and pictures that are asked for are read."""
    sizes = [(30, 40), (50, 25), (25, 25), (26, 44)]
    jpegs = cells([picture(*size, seed=i) for i, size in enumerate(sizes)], "JPEG")
    jpegs[1]["bytes"] = b"broken"
    columns = {"image": jpegs, "fine_label": [5, 6, 7, 8], "coarse_label": [1, 0, 1, 0]}
    parquet_folder(tmp_path, columns)
    data = depura.load_images(tmp_path, rows=[3, 0], resize=20, crop=16, labels="coarse_label")
    assert (data.images.shape, data.labels.tolist(), data.classes) == ((2, 3, 16, 16), [0, 1], ("0", "1"))
    with Image.open(io.BytesIO(jpegs[3]["bytes"])) as opened:
        by_hand = np.asarray(opened.resize((33, 20), Image.Resampling.BILINEAR))[2:18, 8:24]  # (33 - 16) / 2 -> 8
    assert torch.equal(data.images[0], as_image(by_hand))
    assert depura.load_images(tmp_path, rows=[3]).labels.tolist() == [8]
    with pytest.raises(InputError, match=r"row 1 of .*test-00000-of-00002\.parquet"):
        depura.load_images(tmp_path, rows=[3, 1])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b""] * 4, "label": [0] * 4}, "a column image or img"),
        ({"image": [b""] * 4, "target": [0] * 4}, "a column label or fine_label"),
        ({"image": [b""] * 4, "label": [0, 1, None, 0]}, "class numbers in the column label"),
        ({"image": [b""] * 4, "label": [0, 1, -1, 0]}, "unlabelled"),
        ({"image": [b""] * 4, "label": ["a"] * 4}, "class numbers in the column label"),
        ({"image": [{"bytes": None, "path": "x.png"}] * 4, "label": [0] * 4}, "an encoded picture in row 0"),
        ({"image": [b""] * 4, "label": [0] * 4}, "row 0"),
    ],
)
def test_tables_without_pictures_or_labels_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    parquet_folder(tmp_path, columns)
    with pytest.raises(InputError, match=message):
        depura.load_images(tmp_path)


def test_a_broken_picture_is_named_by_its_row_in_its_shard(tmp_path: Path) -> None:
    pictures = cells([picture(8, 8)] * 7)
    pictures[5]["bytes"] = pictures[5]["bytes"][:-30]
    parquet_folder(tmp_path, {"img": pictures, "label": [0] * 7})
    with pytest.raises(InputError, match=r"row 2 of .*test-00001-of-00002\.parquet \(.*truncated"):
        depura.load_images(tmp_path)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    parquet_folder(tmp_path, {"img": cells([picture(8, 8)] * 4), "label": [0] * 4})
    path = tmp_path / "data" / "train-00000-of-00001-0123456789abcdef.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="readable Parquet file"):
        depura.load_images(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"depura\[data\]"):
        depura.load_images(tmp_path)


class Listed(list[Any]):
    """A dataset with classes."""

    classes = ("x", "y")


GREY, COLOUR = picture(4, 4, 1), picture(4, 4)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: as_image(COLOUR), as_image(COLOUR)),
        (lambda: as_image(COLOUR).double(), as_image(COLOUR)),
        (lambda: COLOUR, as_image(COLOUR)),
        (lambda: GREY, as_image(GREY)),
        (lambda: GREY[..., None], as_image(GREY)),
        (lambda: Image.fromarray(COLOUR), as_image(COLOUR)),
        (lambda: Image.fromarray(GREY), as_image(GREY)),
    ],
)
def test_items_of_datasets(make: Callable[[], Any], expected: torch.Tensor) -> None:
    dataset = Listed([(make(), 1, "more"), (None, None), (make(), np.int64(0)), (make(), torch.tensor(1))])
    data = depura.from_dataset(dataset, rows=[3, 0, 2, 1], images=3)
    assert (data.name, data.ids, data.classes, data.labels.tolist()) == ("Listed", (3, 0, 2), ("x", "y"), [1, 1, 0])
    assert torch.equal(data.images, expected.expand(3, *expected.shape))


def test_a_dataset_of_torch() -> None:
    images, labels = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 1, 0])
    data = depura.from_dataset(TensorDataset(images, labels), name="mine", channels=4)
    assert torch.equal(data.images, images.repeat(1, 4, 1, 1))
    assert (data.labels.tolist(), data.classes, data.name) == (labels.tolist(), ("0", "1", "2"), "mine")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter([1]), "with a length"),
        ([], "length 0"),
        ([as_image(COLOUR)], "image, label.* in item 0"),
        ([(as_image(COLOUR), 1.0)], "label of item 0"),
        ([(as_image(COLOUR), None)], "label of item 0"),
        ([(as_image(COLOUR) * 255, 1)], "item 0.*255"),
        ([(torch.from_numpy(COLOUR), 1)], "item 0.*uint8"),
        ([(COLOUR.astype(np.uint16), 1)], "item 0.*uint16"),
        ([(Image.fromarray(COLOUR).convert("RGBA"), 1)], "item 0.*RGBA"),
        ([(COLOUR, 0), (GREY, 0)], "one shape.*item 1"),
        (Listed([(COLOUR, 2)]), "labels from 0 to 1"),
    ],
)
def test_other_items_are_refused(dataset: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        depura.from_dataset(dataset)


def test_npz_keeps_ids_and_takes_other_labels(tmp_path: Path) -> None:
    images = np.stack([picture(4, 4, seed=i) for i in range(3)])
    arrays = {"image": images, "label": np.array([1, 0, 1]), "coarse": np.array([0, 0, 2]), "ids": np.array([8, 5, 2])}
    np.savez(tmp_path / "a.npz", **arrays)
    data = depura.load_images(tmp_path / "a.npz", rows=[2, 0])
    assert (data.ids, data.labels.tolist(), data.images.shape) == ((2, 8), [1, 1], (2, 3, 4, 4))
    assert depura.load_images(tmp_path / "a.npz", labels="coarse", channels=1).labels.tolist() == [0, 0, 2]
    for wrong in ({"ids": np.array([8, 8, 2])}, {"ids": np.array([1.0, 2, 3])}, {"label": np.array([0.5, 1, 1])}):
        np.savez(tmp_path / "b.npz", **(arrays | wrong))
        with pytest.raises(InputError, match="load_npz"):
            depura.load_images(tmp_path / "b.npz")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_formats_without_loss_are_read(kind: str) -> None:
    pixels, file = picture(9, 7), io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert torch.equal(decode(file.getvalue(), source="x"), as_image(pixels))


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PPM", "PCX"])
def test_no_other_parser_is_called_whatever_the_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's parser of EPS starts Ghostscript."""
    file = io.BytesIO()
    Image.fromarray(picture(9, 7)).save(file, format=kind)

    def opened(*_: object, **__: object) -> object:
        raise AssertionError(kind)

    Image.init()
    monkeypatch.setitem(Image.OPEN, kind, (opened, lambda _: True))
    with pytest.raises(InputError, match="readable PNG, JPEG"):
        decode(file.getvalue(), source="a.png")


def test_a_file_of_several_pictures_is_refused() -> None:
    file, page = io.BytesIO(), Image.fromarray(picture(9, 7))
    page.save(file, format="TIFF", save_all=True, append_images=[page])
    with pytest.raises(InputError, match="a file of one picture"):
        decode(file.getvalue(), source="a.tiff")
