"""Finds the columns of path and label in tables that other tools have written, by their header or their types."""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from vivit_train.data.annotations.files import IS_VIDEO, VIDEO_PATTERN
from vivit_train.data.video.urls import is_url
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import printable, shorten_list

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", " ": "space"}
# The usual names of columns, the clearest first, with _ for blanks and hyphens.
PATH_NAMES = (
    *("path", "video_path", "file_path", "filepath", "clip_path", "relative_path", "rel_path", "full_path"),
    *("filename", "file_name", "video_name", "video_file", "file", "video", "clip", "clip_name", "fname", "url"),
    *("uri", "frame_dir", "frames_path", "name"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "target", "category", "action", "activity", "tag", "tags", "y"),
    *("label_id", "class_id", "label_idx", "class_idx", "category_id", "label_name", "class_name", "classname"),
    "choice",  # of Label Studio
)
# A clip is a whole video, and a file holds one split, so columns of these names cannot be ignored.
END_NAMES = ("end", "stop", "end_time", "time_end", "end_frame", "frame_end", "end_s", "end_sec", "t_end")
SPLIT_NAMES = ("split", "subset", "partition", "fold", "set", "usage")
_COMMENT = re.compile(r"(?:^|\s)#\s[^\"]*$|^#$")
_HAS_VIDEO = re.compile(rf"{VIDEO_PATTERN}\b", re.IGNORECASE)


class Line(NamedTuple):
    """A line of an annotation file: its number from 1, and its text without surrounding blanks and comments."""

    number: int
    text: str


@dataclass(frozen=True)
class Columns:
    """The form of a table.

    Attributes:
        separator: The character between the cells.
        width: The number of cells of a row.
        path: The position of the path.
        label: The position of the label.
        names: The names in the header; empty if the table has none.
    """

    separator: str
    width: int
    path: int
    label: int
    names: tuple[str, ...] = ()

    def described(self) -> str:
        """Returns the form of the table for a message."""
        path, label = (
            f"{self.names[i]!r}" if self.names else f"{i + 1} of {self.width}" for i in (self.path, self.label)
        )
        return f"path in column {path}, label in column {label}, separator {SEPARATORS[self.separator]}"

    def cells(self, line: str) -> tuple[str, str] | None:
        """Returns the path and the label of a row, or None if it has another number of cells."""
        cells = split_cells(line, self.separator)
        return (cells[self.path], cells[self.label]) if len(cells) == self.width else None


def split_cells(line: str, separator: str) -> list[str]:
    """Returns the cells of a row without surrounding blanks; a single cell if it cannot be parsed."""
    if '"' not in line and separator != " " and len(line) < csv.field_size_limit():
        return [cell.strip() for cell in line.split(separator)]  # three times as fast
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        return [cell.strip() for cell in cells]
    except csv.Error:
        return [line]


def content_lines(lines: Sequence[str]) -> list[Line]:
    """Returns the lines that are neither empty nor comments, without `# comments` at their end.

    A "#" within a path is not a comment, so what follows it may not be a path.
    """
    found = []
    for number, text in enumerate(lines, 1):
        comment = _COMMENT.search(text) if "#" in text else None
        if comment and (comment.start() == 0 or not _HAS_VIDEO.search(comment[0])):
            text = text[: comment.start()].rstrip()
        elif text.startswith("#") and not _HAS_VIDEO.search(text):
            text = ""
        if text:
            found.append(Line(number, text))
    return found


def header_columns(line: str) -> Columns | None:
    """Returns the columns of a table whose first line names the path and the label, or None."""
    for separator in SEPARATORS:
        names = split_cells(line, separator)
        known = [re.sub(r"[\s-]+", "_", name.casefold()) for name in names]
        path = next((known.index(name) for name in PATH_NAMES if name in known), None)
        label = next((known.index(name) for name in LABEL_NAMES if name in known), None)
        if path is not None and label is not None:
            return Columns(separator, len(names), path, label, tuple(names))
    return None


def check_other_columns(file: Path, columns: Columns, lines: Sequence[Line]) -> None:
    """Checks that a table with a header has no column that changes what its rows mean.

    Raises:
        UserError: There are ranges of time or several splits.
    """
    names = [re.sub(r"[\s-]+", "_", name.casefold()) for name in columns.names]
    if ends := [name for name in columns.names if re.sub(r"[\s-]+", "_", name.casefold()) in END_NAMES]:
        raise UserError(
            f"{printable(file)}: data=csv reads whole videos, but the column {printable(ends[0])!r} ends a part "
            "of one: cut the parts out, for example with ffmpeg -ss and -to, or remove the columns if each row is "
            "about a whole video"
        )
    for i in (i for i, name in enumerate(names) if name in SPLIT_NAMES):
        values = sorted(
            {cells[i] for line in lines if len(cells := split_cells(line.text, columns.separator)) > i}
        )
        if len(values) > 1:
            raise UserError(
                f"{printable(file)}: the column {printable(columns.names[i])!r} has {shorten_list(values)}, but a "
                "file holds one split: write one for each, and name them with data.train=, data.val=, data.test="
            )


def typed_columns(
    file: Path, lines: Sequence[Line], exists: Callable[[str], bool], *, is_plain: bool
) -> Columns | None:
    """Returns the columns of a table without a header by the types of its cells, or None if it is no such table.

    Args:
        file: The file, for messages.
        lines: The rows.
        exists: A function that tells whether a path exists.
        is_plain: Whether the rows can be read as `path label`, too, with a separator in the path.

    Raises:
        UserError: If there is a column of paths, but several may be the label.
    """
    for separator in SEPARATORS:
        # The first row alone rules out most separators, and splitting all rows of a large file takes seconds.
        first = split_cells(lines[0].text, separator)
        width, candidates = len(first), [i for i, cell in enumerate(first) if are_paths([cell])]
        if width < 2 or not candidates or (is_plain and candidates == [0]):
            continue
        table = [split_cells(line.text, separator) for line in lines]
        if any(len(row) != width for row in table):
            continue
        by_column = list(zip(*table, strict=True))
        paths = [i for i, cells in enumerate(by_column) if are_paths(cells)]
        if len(paths) > 1:
            paths = [i for i in paths if exists(by_column[i][0])]
        if len(paths) != 1:
            continue
        is_numbered = paths[0] > 0 and width > 2 and _counts_up(by_column[0])
        if is_plain and not (
            paths[0] > 0 and (exists(by_column[paths[0]][0]) or (is_numbered and separator != " "))
        ):
            continue
        others = [i for i in range(width) if i != paths[0] and not (is_numbered and i == 0)]
        is_frames = not IS_VIDEO.fullmatch(by_column[paths[0]][0])
        return Columns(separator, width, paths[0], _label_column(file, by_column, others, is_frames))
    return None


def _label_column(file: Path, by_column: Sequence[Sequence[str]], others: Sequence[int], is_frames: bool) -> int:
    """Returns the column of the label among those that are not the path; see `typed_columns`.

    Folders of pictures have the columns `path frames label`, as in mmaction2.

    Raises:
        UserError: If several columns may be the label.
    """
    words = [i for i in others if not all(map(_is_number, by_column[i]))]
    numbers = [list(map(float, by_column[i])) for i in others if i not in words]
    pairs = [zip(*two, strict=True) for two in combinations(numbers, 2)]
    if any(all(start < end for start, end in pair) for pair in pairs):  # The start and the end of a clip.
        words = []
    if len(others) == 1 or (is_frames and not words and len(others) == 2):
        return others[-1]
    if len(words) == 1:
        return words[0]
    shown = shorten_list(f"column {i + 1} ({shorten_list(by_column[i], 2)})" for i in others)
    raise UserError(
        f"{printable(file)}: which column is the label? There are {shown}. Add a first line with the names of the "
        "columns, such as path,label"
    )


def are_paths(cells: Sequence[str]) -> bool:
    """Returns whether all cells are videos by their extension or URL, or all are folders, with a / in each."""
    if all(IS_VIDEO.fullmatch(cell) or is_url(cell) for cell in cells):
        return True
    return all(("/" in cell or "\\" in cell) and not IS_VIDEO.fullmatch(cell) for cell in cells)


def _counts_up(cells: Sequence[str]) -> bool:
    """Returns whether the cells are the numbers of the rows, from 0 or 1, as pandas writes them."""
    return any(all(cell == str(i) for i, cell in enumerate(cells, first)) for first in (0, 1))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def whole_numbers(labels: Iterator[str]) -> dict[str, str]:
    """Returns the ids that are written as numbers with a point, such as 3.0, as whole numbers.

    It is empty unless all labels are numbers, since "1.0" may be the name of a version.
    """
    known = set(labels)
    if not all(re.fullmatch(r"-?\d{1,18}(\.0*)?", label) for label in known):
        return {}
    return {label: label.partition(".")[0] for label in known if "." in label}
