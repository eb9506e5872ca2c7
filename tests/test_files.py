"""A file is replaced only by a complete one."""

from pathlib import Path

import pytest

from vivit_train.utils.files import replacing


def test_a_complete_file_replaces_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with replacing(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_one_that_is_not_complete(error: type[BaseException], tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def stopped(part: Path) -> None:
        part.write_text("ne")
        raise error

    with pytest.raises(error), replacing(file) as part:
        stopped(part)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
