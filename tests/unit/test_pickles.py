"""Pickles are read by a list of names; whatever else they ask for is refused before anything runs."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from depura import InputError
from depura.data import pickles


class Runs:
    """Pickles into a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read(protocol: int) -> None:
    plain = {"a": [1, 2.5, None, True], "b": ("x", 2**70)}
    assert pickles.read(pickle.dumps(plain, protocol), {}, where="file") == plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_calls_are_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    data = pickle.dumps(["before", Runs(f"touch {witness}"), "after"], protocol)
    with pytest.raises(InputError, match=rf"file: .*{os.system.__module__}\.system.*Nothing of it was run"):
        pickles.read(data, {}, where="file")
    assert not witness.exists()
    pickle.loads(data)
    assert witness.exists()  # so that the refusal was of something


def test_what_is_on_the_list_is_called_and_stands_in() -> None:
    data = pickle.dumps(OrderedDict(a=1), 2)
    assert pickles.read(data, {("collections", "OrderedDict"): dict}, where="file") == {"a": 1}
    with pytest.raises(InputError, match=r"collections\.OrderedDict"):
        pickles.read(data, {("collections", "deque"): dict}, where="file")


def test_a_dotted_name_is_not_looked_up_in_what_is_allowed() -> None:
    data = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."
    with pytest.raises(InputError, match=r"OrderedDict\.fromkeys"):
        pickles.read(data, {("collections", "OrderedDict"): dict}, where="file")


def test_no_state_is_set_on_functions() -> None:
    def kept(*args: object) -> tuple[object, ...]:
        return args

    data = b"\x80\x02cmodule\nname\n}X\x01\x00\x00\x00aK\x01sb."
    with pytest.raises(InputError, match="state for a function"):
        pickles.read(data, {("module", "name"): kept}, where="file")
    assert not vars(kept)


def test_persistent_ids_are_refused_unless_something_reads_them() -> None:
    data = b"\x80\x02X\x01\x00\x00\x00aQ."
    with pytest.raises(InputError, match="outside it"):
        pickles.read(data, {}, where="file")
    assert pickles.read(data, {}, where="file", persistent=lambda pid: [pid]) == ["a"]


def test_half_a_pickle_is_refused_at_every_length() -> None:
    data = pickle.dumps({"a": [1, 2, 3], "b": "text"}, 2)
    for n in range(len(data)):
        with pytest.raises(InputError, match="truncated"):
            pickles.read(data[:n], {}, where="file")


def test_strings_of_python_2_are_bytes_where_asked() -> None:
    data = b"\x80\x02U\x02\xff\x00."
    assert pickles.read(data, {}, where="file", encoding="bytes") == b"\xff\x00"
    with pytest.raises(InputError, match="UnicodeDecodeError"):
        pickles.read(data, {}, where="file")
