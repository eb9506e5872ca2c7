"""The videos that one run of `vivit prepare` re-encodes, and where the results go."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vivit_train.data.annotations.files import MAX_BYTES, below, find_videos, raise_listed
from vivit_train.tools.encode import Settings
from vivit_train.tools.manifest import ABOUT_SOURCE, Row
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import read_text


@dataclass(frozen=True)
class Job:
    """One video to re-encode.

    Attributes:
        source: Path of the source video.
        target: Path of the re-encoded video.
        partial: Path of the hidden temporary file next to `target`. Readers of the folder ignore hidden files.
        source_name: Path relative to the source folder, with forward slashes, as in the tables.
        target_name: Path relative to the target folder, with forward slashes, as in the tables.
        num_bytes: Size of the source in bytes.
        mtime_ns: Modification time of the source in nanoseconds.
    """

    source: str
    target: str
    partial: str
    source_name: str
    target_name: str
    num_bytes: int
    mtime_ns: int

    @staticmethod
    def of(path: str, source: Path, target: Path) -> "Job":
        name = below(source, path)
        made = _target_name(name)
        try:
            status = os.stat(path)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:  # This may be a broken link; the process that reads it reports the error.
            size = mtime_ns = 0
        folder, file = os.path.split(os.path.join(target, made))
        return Job(path, os.path.join(folder, file), partial_path(folder, made), name, made, size, mtime_ns)

    def about(self, settings: Settings) -> Row:
        """Return the manifest columns that change whenever the source or the settings change."""
        values = (self.source_name, str(self.num_bytes), str(self.mtime_ns), str(settings))
        return dict(zip(ABOUT_SOURCE, values, strict=True))

    def is_done(self, row: Row, settings: Settings) -> bool:
        """Return whether a row of a manifest matches this source, these settings and the existing target."""
        is_same = row.items() >= self.about(settings).items() and os.path.isfile(self.target)
        return is_same and row["bytes_after"] == str(os.path.getsize(self.target))


def plan(source: Path, target: Path, listed: Path | None, shard: tuple[int, int]) -> list[Job]:
    """List the videos below `source` that this shard re-encodes, each with its target path below `target`.

    Raises:
        UserError: One folder is inside the other, there are no videos, or two videos would get the same name.
    """
    if not source.is_dir():
        raise UserError(f"no folder {source}")
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise UserError(f"{source} and {target}: neither folder may be inside the other")
    there = find_videos(source)
    paths = there if listed is None else _read_list(listed, source)
    if not paths:
        raise UserError(f"no videos below {source}" if listed is None else f"{listed} lists no videos")
    # This maps each target to its sources. It covers all videos, as this list may be one of several.
    sources: dict[str, list[str]] = {}
    for path in sorted({*there, *paths}):
        sources.setdefault(_target_name(below(source, path)), []).append(below(source, path))
    targets = [_target_name(below(source, path)) for path in paths]
    if clashes := [f"{', '.join(sources[name])} -> {name}" for name in targets if len(sources[name]) > 1]:
        raise_listed(
            "videos that would get the same name",
            sorted(set(clashes)),
            "Nothing was written. Rename all but one of them.",
        )
    return [Job.of(path, source, target) for path in paths[shard[0] :: shard[1]]]


def _target_name(source_name: str) -> str:
    return os.path.splitext(source_name)[0] + ".mp4"


def _read_list(file: Path, source: Path) -> list[str]:
    """Read a list of videos: one path per line, absolute or relative to `source`."""
    text = read_text(file, MAX_BYTES, errors="surrogateescape").removeprefix("\ufeff")
    # Other line separators may be part of a file name.
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    paths = sorted({os.path.normpath(os.path.join(source, line)) for line in lines if line})
    if wrong := [path for path in paths if not (Path(path).is_relative_to(source) and os.path.isfile(path))]:
        raise_listed(f"{file} lists paths that are not files below {source}", wrong, "Expected one path per line.")
    return paths


def read_shard(text: str | None) -> tuple[int, int]:
    """Parse a shard such as "2/8" into (2, 8). Shards count from 0."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {text}: expected I/N with I from 0 to N - 1, such as 0/8 to 7/8")
    return int(match[1]), int(match[2])


def partial_path(folder: str, name: str) -> str:
    """Return the path of a target's temporary file. Its name is a hash, as file names have a maximum length."""
    return os.path.join(folder, f".{short_hash(name)}.{os.getpid()}.part")


def short_hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
