from pathlib import Path

import pytest

from depura import InputError
from depura.evaluation.study_file import StudySource, read_settings


def build(
    *,
    eps: float = 0.1,
    n: int = 3,
    name: str = "a",
    curve: tuple[float, ...] = (),
    flag: bool = False,
    top: int | None = 1,
) -> None: ...


def test_settings_are_read_by_annotation() -> None:
    texts = {"eps": "8/255", "n": "7", "name": "b", "curve": "0.1,1/5", "flag": "true", "top": "none"}
    expected = {"eps": 8 / 255, "n": 7, "name": "b", "curve": (0.1, 0.2), "flag": True, "top": None}
    assert read_settings(build, texts) == expected
    assert read_settings(build, {"top": "4", "flag": "False"}) == {"top": 4, "flag": False}


@pytest.mark.parametrize(
    "texts",
    [{"eps": "x"}, {"eps": "1/0"}, {"n": "1.5"}, {"flag": "maybe"}, {"curve": "1,x"}, {"other": "1"}, {"n": ""}],
)
def test_unreadable_settings_are_refused(texts: dict[str, str]) -> None:
    with pytest.raises(InputError, match="-S"):
        read_settings(build, texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not there"),
        ("x = 1", "function named study"),
        ("def study(): return 3", "return a Study, got int"),
    ],
)
def test_what_is_not_a_study_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "s.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=message):
        StudySource(file).load()
