"""Finds the videos that the words of a command name: files, folders, patterns, URLs, tars, lists and tables."""

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vivit_train.data.annotations.columns import (
    PATH_NAMES,
    SEPARATORS,
    are_paths,
    content_lines,
    split_cells,
)
from vivit_train.data.annotations.files import (
    IS_VIDEO,
    file_names,
    find_videos,
    picture_folders,
    raise_listed,
    read_lines,
)
from vivit_train.data.video.storage import is_picture, members
from vivit_train.data.video.urls import is_url
from vivit_train.utils.errors import UserError

TABLES = (".csv", ".tsv", ".txt")
STARTS = ("start", "start_s", "start_time", "time_start", "t_start", "begin")
ENDS = ("end", "end_s", "end_time", "time_end", "t_end", "stop")


class Clip(NamedTuple):
    """A video, or a part of it.

    Attributes:
        path: The path or the URL.
        span_s: The start and the end in seconds; None for the whole video.
    """

    path: str
    span_s: tuple[float, float] | None = None


def find_clips(words: Sequence[str]) -> list[Clip]:
    """Returns the clips that words name, each once, in their order.

    A file that does not exist is a clip as well; reading it fails.

    Args:
        words: Each is a video file, a folder with videos below it, a folder of pictures, a pattern such as
            "videos/*.mp4", a URL, a tar with videos, a list or table of videos (.csv, .tsv, .txt), or "-" for a
            list on stdin.

    Raises:
        UserError: A word names no video, or a table cannot be read.
    """
    found = dict.fromkeys(clip for word in words for clip in clips_of(word))
    if not found:
        raise UserError(f"no video in {', '.join(words)}")
    return list(found)


def clips_of(word: str) -> Iterator[Clip]:
    """Yields the clips that a word names."""
    if word == "-":
        yield from (Clip(line) for line in map(str.strip, sys.stdin) if line)
    elif is_url(word):
        yield Clip(word)
    elif os.path.isdir(word):
        yield from map(Clip, videos_in(Path(word)))
    elif os.path.isfile(word):
        yield from clips_of_file(word)
    elif glob.has_magic(word):
        if not (names := sorted(glob.glob(word, recursive=True))):
            raise UserError(f"no file matches {word}")
        for name in names:
            yield from map(Clip, videos_in(Path(name))) if os.path.isdir(name) else clips_of_file(name)
    else:
        yield Clip(word)


def clips_of_file(file: str) -> Iterator[Clip]:
    """Yields the clips that a file names: those in a list, table or tar, or the file itself."""
    ending = os.path.splitext(file)[1].lower()
    if ending in TABLES:
        yield from clips_of_table(Path(file))
    elif ending == ".tar":
        yield from (Clip(f"{file}/{name}") for name in members(file) if IS_VIDEO.fullmatch(os.path.basename(name)))
    else:
        yield Clip(file)


def videos_in(folder: Path) -> list[str]:
    """Returns the videos below a folder, or its folders of pictures.

    Raises:
        UserError: There are neither, or a folder cannot be read.
    """
    if videos := find_videos(folder):
        return videos
    if any(map(is_picture, file_names(folder))):
        return [str(folder)]
    if pictures := picture_folders(folder):
        return pictures
    raise UserError(f"no videos in the folder {folder}")


def clips_of_table(file: Path) -> Iterator[Clip]:
    """Yields the clips of a list with one video per line, or of a table with a column of paths.

    A header may name the columns, among them the start and the end of a clip in seconds; labels are ignored. Paths
    are relative to the folder of the file or, if there is no such file, to the working directory.

    Raises:
        UserError: The file is not text, or a row has no path or no usable times.
    """
    lines = content_lines(read_lines(file))
    if not lines:
        raise UserError(f"{file} is empty; expected one video per line, or a table with a column of paths")
    separator, path, times = columns_of(file, [line.text for line in lines])
    has_header = path_column(split_cells(lines[0].text, separator) if separator else [lines[0].text]) is not None
    problems = []
    for line in lines[has_header:]:
        cells = split_cells(line.text, separator) if separator else [line.text.strip('"')]
        try:
            span_s = (float(cells[times[0]]), float(cells[times[1]])) if times else None
            if span_s and not 0 <= span_s[0] < span_s[1]:
                raise ValueError("the clip ends before it starts")
            yield Clip(located(file, cells[path]), span_s)
        except (ValueError, IndexError):
            problems.append(f"{file}:{line.number}: {line.text}")
    if problems:
        raise_listed(
            f"invalid rows in {file}", problems, "Expected a path, and start and end in seconds if named."
        )


def columns_of(file: Path, lines: Sequence[str]) -> tuple[str, int, tuple[int, int] | None]:
    """Returns the separator, "" for none, and the positions of the path and of the times.

    Raises:
        UserError: No column is known to hold the paths.
    """
    for separator in SEPARATORS:
        names = split_cells(lines[0], separator)
        if (path := path_column(names)) is not None:
            known = [name.casefold() for name in names]
            start, end = (next((known.index(n) for n in some if n in known), None) for some in (STARTS, ENDS))
            return separator, path, None if start is None or end is None else (start, end)
    for separator in SEPARATORS:
        table = [split_cells(line, separator) for line in lines]
        if len(table[0]) > 1 and all(len(row) == len(table[0]) for row in table):
            paths = [i for i, cells in enumerate(zip(*table, strict=True)) if are_paths(cells)]
            if len(paths) == 1:
                return separator, paths[0], None
    if not are_plain(lines):
        raise UserError(
            f"{file}: no column of videos found; expected one video per line, or a first line that names the "
            "column `path`"
        )
    return "", 0, None


def path_column(names: Sequence[str]) -> int | None:
    """Returns the position of the column of paths in a header, or None if this is no header."""
    known = [re.sub(r"[\s-]+", "_", name.casefold()) for name in names]
    return next((known.index(name) for name in PATH_NAMES if name in known), None)


def are_plain(lines: Iterable[str]) -> bool:
    """Returns whether each line is the path or the URL of a video, or a folder."""
    return all(IS_VIDEO.fullmatch(line.strip('"')) or is_url(line) or os.path.isdir(line) for line in lines)


def located(file: Path, path: str) -> str:
    """Returns the path of a video that a table in `file` names."""
    if is_url(path) or os.path.isabs(path):
        return path
    beside = os.path.join(os.path.dirname(file), path)
    return path if os.path.exists(path) and not os.path.exists(beside) else beside
