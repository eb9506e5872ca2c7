from collections.abc import Callable
from pathlib import Path

import pytest
from videos import KINDS, Numbered


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Numbered]:
    """Makes a video of one of the KINDS, once."""
    folder = tmp_path_factory.mktemp("videos")
    made: dict[str, Numbered] = {}

    def make(kind: str) -> Numbered:
        if kind not in made:
            name, maker = KINDS[kind]
            path: Path = folder / name
            made[kind] = Numbered(path, maker(path))
        return made[kind]

    return make
