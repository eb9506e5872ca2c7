"""The folder of a run: only one process writes there, and a refused start leaves it as it was.

Hydra imports this module at startup, so it must not import anything heavy.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vivit_train.utils.errors import UserError
from vivit_train.utils.files import MAX_BYTES
from vivit_train.utils.lock import NAME, FolderLock, shown_path
from vivit_train.utils.rank import is_first_rank

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"
FAILED = b'"failed": true'
# A run, an evaluation or a sweep leaves some of these in its folder.
TRACES = (OUTCOME, "checkpoints", "metrics.csv", "metrics.json", "summary.csv", ".hydra")
# A start may change these before its configuration, data and checkpoint are checked.
WRITTEN = (".hydra/*.yaml", "*.log", "*.txt", OUTCOME)


def best_checkpoint(folder: Path) -> Path | None:
    """Returns the best checkpoint in the folder of a run or of its checkpoints, or None if there is none."""
    files = (folder / "checkpoints/best.ckpt", folder / "best.ckpt")
    return next((file for file in files if file.is_file()), None)


class RunFolder:
    """Locks a folder and protects an earlier run in it, until this one begins or is refused.

    As a context manager, it puts everything back that a start without `begin` has changed, and then releases the
    lock. A folder without an earlier run keeps what was written. Rank 0 does this for all ranks.

    Args:
        folder: The folder. It is created if it does not exist.
        config: The configuration of the run. An earlier run is refused unless this one resumes it;
            overwrite=true moves it to FOLDER.1, FOLDER.2, ..., and nothing is deleted. None: there is no earlier
            run, since the folder is that of a job in a sweep.

    Raises:
        UserError: The folder holds an earlier run, another process uses it, or a link or pipe in it is in the way.
    """

    def __init__(self, folder: str | Path, config: Mapping[Any, Any] | None) -> None:
        if not isinstance(folder, str | Path) or not str(folder):
            raise UserError("run_dir: must be the path of a folder")
        self.path = Path(os.path.realpath(folder))
        self.aside: Path | None = None
        self.before: dict[str, bytes | int | None] | None = None  # None: nothing is put back.
        if not is_first_rank():
            return
        self.lock = FolderLock(self.path)
        held = [name for name in TRACES if (self.path / name).exists()]
        # A start that failed in its checks leaves only these. The corrected command may use the folder.
        if config is None or set(held) <= {OUTCOME, ".hydra"}:
            return
        if not resumes(self.path, config) and not config.get("overwrite"):
            self.lock.release(restore=True)
            ways = "resume=auto goes on with it, " if "resume" in config else ""
            raise UserError(
                f"{shown_path(folder)} holds an earlier run ({', '.join(held)}): {ways}hydra.run.dir=DIR "
                "(for a sweep: hydra.sweep.dir=DIR; in Python: run_dir=DIR) chooses another folder, and "
                "overwrite=true moves the earlier run aside"
            )
        if not resumes(self.path, config) and (inside := used_by(config, self.path)):
            self.lock.release(restore=True)
            raise UserError(
                f"overwrite=true would move {shown_path(folder)} aside, but {' and '.join(inside)} is in it: "
                "choose another folder with hydra.run.dir=DIR"
            )
        self.before = dict(self.files()) if resumes(self.path, config) else {}
        if not resumes(self.path, config):
            self.aside = self.move_aside()

    def begin(self) -> None:
        """Says that everything is checked: from here on, what the run writes stays."""
        self.before = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not is_first_rank():
            return
        refused = self.before is not None
        if refused:
            self.put_back(completed=kind is None)
        self.lock.release(restore=refused)

    def put_back(self, *, completed: bool) -> None:
        """Restores what the folder held.

        Args:
            completed: Whether the earlier run turned out to be complete. Its outcome then stays, if it said
                otherwise.
        """
        before = self.before or {}
        for name, content in dict(self.files()).items():
            file = self.path / name
            earlier = before.get(name)
            if name not in before:
                file.unlink()
            elif isinstance(earlier, int):
                os.truncate(file, min(earlier, file.stat().st_size))
            elif content != earlier and not (completed and name == OUTCOME and FAILED in (earlier or b"")):
                file.write_bytes(earlier or b"")
        if self.aside:
            if (self.path / ".hydra").is_dir():
                (self.path / ".hydra").rmdir()
            for file in self.aside.iterdir():
                file.rename(self.path / file.name)
            self.aside.rmdir()

    def files(self) -> Iterator[tuple[str, bytes | int | None]]:
        """Yields the name of each file that a start may create, and the contents of those that it may change.

        Of a file larger than `MAX_BYTES`, which only a log can be, it yields the length.
        """
        changed = {file for pattern in WRITTEN for file in self.path.glob(pattern)}
        for file in (*self.path.iterdir(), *self.path.glob(".hydra/*")):
            if file.is_file() and file.name != NAME:
                size = file.stat().st_size if file in changed else None
                content = file.read_bytes() if size is not None and size <= MAX_BYTES else size
                yield str(file.relative_to(self.path)), content

    def move_aside(self) -> Path:
        """Moves the contents of the folder, except its lock, to a new folder beside it; returns that folder."""
        aside = next(path for n in count(1) if not (path := Path(f"{self.path}.{n}")).exists())
        aside.mkdir()
        for file in self.path.iterdir():
            if file.name != NAME:
                file.rename(aside / file.name)
        log.info(f"the earlier run in {self.path} is now in {aside}")
        return aside


def used_by(config: Mapping[Any, Any], folder: Path) -> list[str]:
    """Returns the keys of a configuration that name something in a folder, with their values."""
    nodes = [("", config), *((f"{name}.", config.get(name) or {}) for name in ("init", "data"))]
    paths = {f"{prefix}{key}": node.get(key) for prefix, node in nodes for key in ("ckpt_path", "path", "root")}
    given = {key: path for key, path in paths.items() if isinstance(path, str) and path}
    return [f"{key}={path}" for key, path in given.items() if is_in(Path(os.path.realpath(path)), folder)]


def is_in(path: Path, folder: Path) -> bool:
    """Returns whether a path is a folder or something in it."""
    return folder in (path, *path.parents)


def resumes(folder: Path, config: Mapping[Any, Any]) -> bool:
    """Returns whether a configuration goes on with the run in a folder; only those of training do."""
    if "resume" not in config:
        return False
    ckpt_path = config.get("ckpt_path")
    own = ckpt_path not in (None, "last") and folder in Path(os.path.realpath(str(ckpt_path))).parents
    return config["resume"] == "auto" or ckpt_path == "last" or own
