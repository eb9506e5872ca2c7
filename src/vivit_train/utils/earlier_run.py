"""Protects an earlier run: a new one is refused in its folder, and a refused start leaves the folder as it was.

Hydra imports this module at startup, so it must not import anything heavy.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from vivit_train.utils.errors import UserError
from vivit_train.utils.files import MAX_BYTES

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"
FAILED = b'"failed": true'
# A run, an evaluation or a sweep leaves some of these in its folder.
TRACES = (OUTCOME, "checkpoints", "metrics.csv", "metrics.json", "summary.csv", ".hydra")
# A start writes these before its configuration, data and checkpoint are checked.
WRITTEN = (".hydra/*.yaml", "*.log", OUTCOME, "recipe_differences.txt", "data_changes.txt")


@dataclass(frozen=True)
class Before:
    """What a folder held before a start.

    Attributes:
        files: The contents of the files that the start may change. A log longer than `MAX_BYTES` has its length.
        aside: The folder that the earlier run was moved to, if it was.
    """

    files: Mapping[str, bytes | int] = field(default_factory=dict)
    aside: Path | None = None


# The folders that this process has checked, until their run begins.
_before: dict[str, Before] = {}


def protect(folder: str | Path, config: Mapping[Any, Any]) -> None:
    """Checks that a folder holds no earlier run, unless this one resumes it; overwrite=true moves it aside.

    It is moved to FOLDER.1, FOLDER.2, ...; nothing is deleted.

    Raises:
        UserError: The folder holds an earlier run.
    """
    path = Path(os.path.realpath(folder))
    held = [name for name in TRACES if (path / name).exists()]
    # A start that failed in its checks leaves only these. The corrected command may use the folder.
    if set(held) <= {OUTCOME, ".hydra"} or resumes(path, config):
        _before[str(path)] = Before(written_in(path))
    elif config.get("overwrite"):
        _before[str(path)] = Before(aside=move_aside(path))
    else:
        ways = "resume=auto goes on with it, " if "resume" in config else ""
        raise UserError(
            f"{folder} holds an earlier run ({', '.join(held)}): {ways}hydra.run.dir=DIR (for a sweep: "
            "hydra.sweep.dir=DIR; in Python: run_dir=DIR) chooses another folder, and overwrite=true moves the "
            "earlier run aside"
        )


def allow(folder: str | Path) -> None:
    """Marks a folder as new, for a start that has already written to it."""
    _before.setdefault(os.path.realpath(folder), Before())


def begin(folder: str | Path) -> None:
    """Says that everything is checked: from here on, what the run writes to its folder stays."""
    _before.pop(os.path.realpath(folder), None)


def resumes(folder: Path, config: Mapping[Any, Any]) -> bool:
    """Returns whether a configuration goes on with the run in a folder; only those of training do."""
    if "resume" not in config:
        return False
    ckpt_path = config.get("ckpt_path")
    own = ckpt_path not in (None, "last") and folder in Path(os.path.realpath(str(ckpt_path))).parents
    return config["resume"] == "auto" or ckpt_path == "last" or own


@contextmanager
def protected(folder: str | Path, config: Mapping[Any, Any]) -> Iterator[None]:
    """Calls `protect` and `put_back` around a run, unless the command that called it does this.

    Raises:
        UserError: The folder holds an earlier run.
    """
    if os.path.realpath(folder) in _before:
        yield
        return
    protect(folder, config)
    try:
        yield
    finally:
        put_back(folder)


def put_back(folder: str | Path, *, completed: bool = False) -> None:
    """Restores a folder with an earlier run if no run has begun there since `protect`.

    A new folder keeps what was written.

    Args:
        folder: The folder.
        completed: Whether the earlier run turned out to be complete. Its outcome then stays, if it said otherwise.
    """
    path = Path(os.path.realpath(folder))
    before = _before.pop(str(path), Before())
    if not before.files and not before.aside:
        return
    for name, content in written_in(path).items():
        if name not in before.files:
            (path / name).unlink()
            continue
        earlier = before.files[name]
        if isinstance(earlier, int):
            os.truncate(path / name, min(earlier, (path / name).stat().st_size))
        elif content != earlier and not (completed and name == OUTCOME and FAILED in earlier):
            (path / name).write_bytes(earlier)
    if before.aside:
        if (path / ".hydra").is_dir():
            (path / ".hydra").rmdir()
        for file in before.aside.iterdir():
            file.rename(path / file.name)
        before.aside.rmdir()


def written_in(folder: Path) -> dict[str, bytes | int]:
    """Returns the contents of the files in a folder that a start may change, but of long logs only the length."""
    files = (file for pattern in WRITTEN for file in folder.glob(pattern) if file.is_file())
    sizes = {file: file.stat().st_size for file in files}
    return {
        str(file.relative_to(folder)): file.read_bytes() if size <= MAX_BYTES else size
        for file, size in sizes.items()
    }


def move_aside(folder: Path) -> Path:
    """Moves the contents of a folder, except its lock, to a new folder beside it; returns that folder."""
    aside = next(path for n in count(1) if not (path := Path(f"{folder}.{n}")).exists())
    aside.mkdir()
    for file in folder.iterdir():
        if file.name != ".lock":
            file.rename(aside / file.name)
    log.info(f"the earlier run in {folder} is now in {aside}")
    return aside
