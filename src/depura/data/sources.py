"""Labelled images from any of the usual places: one function for files and folders, one for datasets of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from depura import _check
from depura.data import cifar, folders, parquet
from depura.data.imageset import ImageSet, Origin, checked_rows, load_npz
from depura.data.pictures import PICTURES, Frame, from_bytes, with_channels
from depura.data.table import WHERE, Request, Table

LAYOUTS = (
    "an NPZ file, CIFAR-10 or CIFAR-100 as published (folder, archive or batch), Parquet files, a folder of one folder "
    "for each class, or pictures with a table of attributes"
)


def load_images(
    path: str | Path,
    *,
    split: str | None = None,
    labels: str | None = None,
    rows: Sequence[int] | None = None,
    images: int | None = None,
    channels: int | None = None,
    resize: int | None = None,
    crop: int | None = None,
) -> ImageSet:
    """Read labelled images from a file or folder; what it is is told from its contents.

    Taken are: NPZ (see `load_npz`); CIFAR-10 and CIFAR-100 as published, Python and binary version, as folder, archive
    or single batch; Parquet files of encoded pictures in the layout of Hugging Face (extra `data`); a folder of one
    folder for each class; CelebA-HQ pictures with a table of attributes. Rows are chosen first, and only their
    pictures are decoded. Pickles are read without running them. Nothing is normalised.

    Args:
        path: the file or folder.
        split: the part, where there are several: train, test, validation or whatever they are called. Default: the
            only one, else test, validation or val.
        labels: which labels, where there are several: `fine_label` (default) or `coarse_label` of CIFAR-100, a column
            of a Parquet file, an array of an NPZ file, an attribute of CelebA-HQ.
        rows: positions in the part, in the order wanted, as of `subset`; default: all.
        images: the first so many of them (fewer if there are fewer).
        channels: makes grey images of 1 channel have so many, or RGB images grey (1); default: as they are.
        resize: pictures: length of their short side in pixels (bilinear with antialiasing; 256 for ImageNet).
        crop: pictures: side of the square cut from their middle (224 for ImageNet).

    Returns:
        The images; ids are their positions in the part (CelebA-HQ: among all pictures).

    Raises:
        InputError: nothing there, of no known layout, damaged, incomplete, unlabelled, or of several sizes.
    """
    source = Path(path)
    frame = Frame(resize, crop, channels).checked(WHERE)
    if not source.exists():
        _check.fail(WHERE, "a file or folder of images", f"{source}, which is not there", "Check the path.")
    inside = [source / name for name in cifar.FOLDERS if (source / name).is_dir()]  # as torchvision keeps them
    if len(inside) > 1:
        _check.fail(WHERE, f"one data set in {source}", f"{[folder.name for folder in inside]}", "Name one of them.")
    request = Request(inside[0] if inside else source, split, labels, frame)
    table = _npz(request) or cifar.table(request)
    if table is not None and (resize is not None or crop is not None):
        _check.fail(WHERE, "resize= and crop= for pictures only", f"{source}, which holds arrays of pixels")
    data = (table or _pictures(request)).choose(rows, images)
    origin = data.origin
    if origin is not None and origin.known is not None:
        others = with_channels(origin.known.images, channels, source=f"{source}")
        origin = origin._replace(known=origin.known._replace(images=others))
    return data._replace(images=with_channels(data.images, channels, source=f"{source}"), origin=origin)


def from_dataset(
    dataset: Any,
    *,
    name: str = "",
    rows: Sequence[int] | None = None,
    images: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """Take labelled images out of a `torch.utils.data.Dataset`, or anything else with a length and items.

    Args:
        dataset: items are (image, label, ...): the image a float tensor (C, H, W) in [0, 1], an 8-bit array (H, W),
            (H, W, 1) or (H, W, 3), or an 8-bit grey or RGB picture of Pillow; the label a whole number.
        name: what it is; default: the name of its class.
        rows: which items, in this order; default: all. Others are not asked for.
        images: the first so many of them.
        channels: as for `load_images`.

    Returns:
        The images; ids are their positions in the dataset, classes its attribute `classes` where it has one.

    Raises:
        InputError: no length, or items of another kind, of several sizes, or without a label.
    """
    where = "from_dataset"
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        got = f"{type(dataset).__name__} without"
        _check.fail(where, "a dataset with a length and items by number", got, "Collect its items in a list first.")
    chosen = tuple(range(len(dataset))) if rows is None else checked_rows(rows, len(dataset), where=where)
    if images is not None:
        chosen = chosen[: _check.integer(where, "images", images, low=1)]
    if not chosen:
        _check.fail(where, "a dataset with items", f"{type(dataset).__name__} of length 0")
    tensors: list[Tensor] = []
    labels: list[int] = []
    for row in chosen:
        image, label = _item(dataset[row], row, channels, where)
        if tensors and image.shape != tensors[0].shape:
            wanted = f"images of one shape, {tuple(tensors[0].shape)} as item {chosen[0]}"
            _check.fail(where, wanted, f"{tuple(image.shape)} in item {row}", "Resize them.")
        tensors.append(image)
        labels.append(label)
    known: Any = getattr(dataset, "classes", None)
    classes = tuple(str(c) for c in (known if known is not None else range(max(labels) + 1)))
    numbers = _check.labels(where, torch.tensor(labels), n_images=len(tensors), n_classes=len(classes))
    origin = Origin(len(dataset), chosen)
    return ImageSet(name or type(dataset).__name__, torch.stack(tensors), numbers, chosen, classes, origin)


def is_data_set(path: Path) -> bool:
    """Whether `load_images` is to read a path, that is, whether it is more than loose pictures and NPZ files.

    True for files with the endings or names of data sets, and for folders that hold something, but no picture or NPZ
    file except in folders of their own.
    """
    if path.suffix.lower() in (*PICTURES, ".npz") and not path.is_dir():
        return False
    if path.is_dir():
        held = list(path.iterdir())
        return bool(held) and not any(p.suffix.lower() in (*PICTURES, ".npz") for p in held)
    endings = (".parquet", *cifar.ARCHIVES)
    return path.is_file() and (path.name.endswith(endings) or cifar.layout_of([path.name]) is not None)


def _npz(request: Request) -> Table | None:
    if request.path.suffix.lower() != ".npz":
        return None
    request.without_parts()
    data = load_npz(request.path, labels=request.labels or "label")

    def read(rows: Sequence[int]) -> Tensor:
        return data.images[list(rows)]

    ids = np.asarray(data.ids, dtype=np.int64)
    return Table(data.name, data.labels.numpy(), data.classes, ids, read, at_hand=True, whole=data.origin is not None)


def _pictures(request: Request) -> Table:
    """A data set that is kept as encoded pictures."""
    path = request.path
    table = parquet.table(request) or folders.attributes(request)
    if table is None and request.labels is not None:
        got = f"{request.labels!r} of {path}"
        _check.fail(WHERE, "labels= only where there are several labels", got, "Leave it out.")
    table = table or folders.tree(request)
    if table is None:
        files = list(path.iterdir()) if path.is_dir() else [path]
        unlabelled = any(p.suffix.lower() in PICTURES for p in files)
        got = f"{path}{', pictures without labels' if unlabelled else ''}"
        _check.fail(WHERE, LAYOUTS, got, "Put pictures into one folder for each class." if unlabelled else "")
    return table


def _item(item: Any, row: int, channels: int | None, where: str) -> tuple[Tensor, int]:
    """The image, (C, H, W) in [0, 1], and the label of one item."""
    if not isinstance(item, (tuple, list)) or len(cast("Sequence[Any]", item)) < 2:
        _check.fail(where, f"(image, label) in item {row}", type(cast("object", item)).__name__)
    pair = cast("Sequence[Any]", item)
    image, label = pair[0], pair[1]
    if isinstance(label, Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, np.integer):
        label = int(cast("Any", label))
    if isinstance(label, bool) or not isinstance(label, int):
        _check.fail(where, f"a whole number as label of item {row}", f"{type(label).__name__}")
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            got = f"mode {image.mode}"
            _check.fail(where, f"an 8-bit grey or RGB picture in item {row}", got, "Convert it to RGB first.")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        pixels = cast("NDArray[Any]", image)
        array: Any = pixels if pixels.ndim == 3 else pixels[..., None]
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
            got = f"{array.dtype} of shape {pixels.shape}"
            _check.fail(where, f"an array of 8-bit pixels (H, W), (H, W, 1) or (H, W, 3) in item {row}", got)
        image = from_bytes(array.transpose(2, 0, 1))
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        got = f"{image.dtype} of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        _check.fail(where, f"a float tensor (C, H, W) in [0, 1], 8-bit pixels or a picture in item {row}", got)
    checked = _check.images(f"{where}, item {row}", image[None].to(torch.float32))[0]
    return with_channels(checked, channels, source=f"item {row}", where=where), label
