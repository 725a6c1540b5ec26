"""Files in the published layouts of data sets, written from their descriptions."""

import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COARSE_OF_FINE = np.arange(100) % 20


def pixels(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3072) bytes: red, green and blue planes of 32 rows of 32."""
    return np.random.RandomState(seed).randint(0, 256, (n, 3072)).astype(np.uint8)


def python2(value: Any) -> bytes:
    """The pickle of protocol 2 that Python 2 and an old numpy write: strings of 8 bits, arrays by reconstruction."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, Sequence):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\n" + _opcodes(value.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
    kind += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(_opcodes, value.shape)) + b"t"
    return array + b"(K\x01" + shape + kind + b"\x89" + _opcodes(value.tobytes()) + b"tb"


def python3(value: Any) -> bytes:
    """What Python 3 writes with protocol 2."""
    return pickle.dumps(value, 2)


NAMES10 = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
FINE = [b"fine_%d" % i for i in range(100)]
COARSE = [b"coarse_%d" % i for i in range(20)]


def cifar10_python(folder: Path, images: np.ndarray, labels: np.ndarray, write: Any = python2) -> Path:
    """Six batches, the last sixth of the images being the test batch."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    n = len(images) // 6
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        batch = {
            b"batch_label": name.encode(),
            b"labels": [int(label) for label in labels[i * n : (i + 1) * n]],
            b"data": images[i * n : (i + 1) * n],
            b"filenames": [b"picture_%d.png" % k for k in range(n)],
        }
        (folder / name).write_bytes(write(batch))
    meta = {b"num_cases_per_batch": n, b"label_names": NAMES10, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(write(meta))
    (folder / "readme.html").write_text("<meta>")
    return folder


def cifar10_binary(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """As `cifar10_python`: a byte of label and the pixels, record by record."""
    folder = folder / "cifar-10-batches-bin"
    folder.mkdir()
    n = len(images) // 6
    records = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(b"".join(records[i * n : (i + 1) * n]))
    (folder / "batches.meta.txt").write_bytes(b"\n".join(NAMES10) + b"\n\n")
    return folder


def cifar100_python(folder: Path, images: np.ndarray, fine: np.ndarray) -> Path:
    """Train and test file with both labels, half of the images each."""
    folder = folder / "cifar-100-python"
    folder.mkdir()
    n = len(images) // 2
    for name, part in (("train", slice(0, n)), ("test", slice(n, 2 * n))):
        batch = {
            b"filenames": [b"picture_%d.png" % k for k in range(n)],
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": [int(label) for label in fine[part]],
            b"coarse_labels": [int(label) for label in COARSE_OF_FINE[fine[part]]],
            b"data": images[part],
        }
        (folder / name).write_bytes(python2(batch))
    (folder / "meta").write_bytes(python2({b"fine_label_names": FINE, b"coarse_label_names": COARSE}))
    return folder


def cifar100_binary(folder: Path, images: np.ndarray, fine: np.ndarray) -> Path:
    """As `cifar100_python`: a byte of coarse and a byte of fine label before the pixels."""
    folder = folder / "cifar-100-binary"
    folder.mkdir()
    n = len(images) // 2
    records = [bytes([COARSE_OF_FINE[y], y]) + x.tobytes() for x, y in zip(images, fine, strict=True)]
    (folder / "train.bin").write_bytes(b"".join(records[:n]))
    (folder / "test.bin").write_bytes(b"".join(records[n:]))
    (folder / "fine_label_names.txt").write_bytes(b"\n".join(FINE) + b"\n")
    (folder / "coarse_label_names.txt").write_bytes(b"\n".join(COARSE) + b"\n")
    return folder


def archive(folder: Path) -> Path:
    """The folder as NAME.tar.gz beside it."""
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return path


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind)
    return buffer.getvalue()


def png16(height: int = 4, width: int = 4) -> bytes:
    """A PNG file of 16 bits a channel, RGB, which Pillow would read as one of 8 bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\x00" + bytes(range(6 * width))) * height
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
