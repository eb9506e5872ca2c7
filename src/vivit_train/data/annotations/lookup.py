"""Finds the videos of published data sets by name, and collects the problems of their annotations."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vivit_train.data.annotations.build import Draft, Row, make_splits
from vivit_train.data.annotations.files import below, cells, find_videos, raise_listed, read_lines
from vivit_train.data.annotations.table import Classes, Splits
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import nfc, shorten_list

_TIME = re.compile(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d+)?)")


def bare(name: str) -> str:
    """Returns a name without parentheses, which one of the two published label maps of Kinetics-400 omits."""
    return re.sub(r"[()]", "", name)


def seconds(time: str) -> float:
    """Converts HH:MM:SS.xx to seconds; NaN if the text has another format."""
    match = _TIME.fullmatch(time)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else float("nan")


def official_lists(name: str, train: str | None, val: str, test: str | None, fold: int) -> dict[str, str]:
    """Returns the official list, "train" or "test", that each split uses.

    Raises:
        UserError: If there is no official list or fold of that name.
    """
    lists = {split: part for split, part in (("train", train), ("val", val), ("test", test)) if part}
    wrong = [f"data.{split}={part}" for split, part in lists.items() if part not in ("train", "test")]
    if wrong:
        raise UserError(f"{shorten_list(wrong)}: the official lists of {name} are `train` and `test`")
    if fold not in (1, 2, 3):
        raise UserError(f"data.reader.fold={fold}: {name} has the splits 1, 2 and 3")
    return lists


def unusual_number(names: Sequence[str], published: int | None, file: Path) -> list[str]:
    """Returns a notice if the number of classes differs from the published one."""
    if published in (None, len(names)):
        return []
    return [f"{file}: {len(names)} classes, not the published {published}; class ids cover only these classes"]


class Videos:
    """An index by name of all videos below a folder, which is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.by_stem: dict[str, list[str]] = {}
        for path in find_videos(root):
            self.by_stem.setdefault(nfc(os.path.splitext(os.path.basename(path))[0]), []).append(path)

    def find(self, stem: str, wanted: Sequence[str] = (), known: Collection[str] = ()) -> str | None:
        """Returns the path of the video with this name, or None.

        Args:
            stem: The file name without its extension.
            wanted: The folder names that the path should contain. The path with most of them wins.
            known: The folder names with a meaning, for example classes. A path that contains one of them that is
                not in `wanted` belongs to another video.
        """
        paths = self.by_stem.get(nfc(stem), [])
        if known:
            paths = [path for path in paths if all(f not in known or f in wanted for f in self.folders(path))]
        if len(paths) > 1:
            return max(paths, key=lambda path: sum(folder in wanted for folder in self.folders(path)))
        return paths[0] if paths else None

    def folders(self, path: str) -> list[str]:
        """Returns the names of the folders between root and a video."""
        return nfc(below(self.root, path)).split("/")[:-1]

    def row(
        self,
        found: str | None,
        expected: tuple[str, ...],
        clip: str,
        labels: tuple[str, ...],
        where: str,
        span_s: tuple[float, float] | None = None,
    ) -> Row:
        """Returns the row of a video.

        Args:
            found: The path of the video, or None if it is missing.
            expected: The parts of the path below root at which a missing video is expected.
            clip: The name of the clip in predictions.
            labels: The label for each head.
            where: The place of the row, for messages.
            span_s: The start and the end of the clip in seconds; None if the clip is the whole video.
        """
        path = os.path.join(self.root, *expected) if found is None else found
        return Row(path, clip, labels, where, found is not None, span_s)


class Problems:
    """A collection of malformed rows, which are reported together after all files are read."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.rows: list[str] = []

    def add(self, where: str, row: str) -> None:
        """Records a malformed row."""
        self.rows.append(f"{where}: {row[:120]!r}")

    def check(self) -> None:
        """Raises a UserError if there are malformed rows."""
        if self.rows:
            raise_listed("malformed rows", self.rows, f"Expected {self.expected}.")


def read_columns(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Reads a CSV file with a header.

    Args:
        file: The path of the file.
        needed: The names of the columns to read.

    Yields:
        The place of the row as file:line, the line, and the values of the columns `needed`. The values are empty
        if the row does not have as many cells as the header.

    Raises:
        UserError: If a column is missing.
    """
    lines = read_lines(file)
    header = cells(lines[0])
    absent = [name for name in needed if name not in header]
    if absent:
        raise UserError(
            f"{file}:1: no column {', '.join(absent)} in the header {','.join(header)!r}\n"
            f"Expected the header {','.join(needed)}[,...]. Test files published without labels cannot be scored."
        )
    columns = [header.index(name) for name in needed]
    for number, line in enumerate(lines[1:], 2):
        values = cells(line)
        if values:
            is_whole = len(values) == len(header)
            yield f"{file}:{number}", line, [values[i] for i in columns] if is_whole else [""] * len(columns)


def official_splits(
    tables: Mapping[str, list[Row]],
    files: Mapping[str, Path],
    names: Classes,
    source: str,
    expected_layout: str,
    max_missing: float,
    notices: Sequence[str] = (),
) -> Splits:
    """Calls `make_splits` for published classes, which may lack clips; clips with two labels give a notice."""
    return make_splits(
        Draft(
            tables=tables,
            files=files,
            classes=names,
            ids={head: {name: i for i, name in enumerate(by_id)} for head, by_id in names.items()},
            source=source,
            expected_layout=expected_layout,
            max_missing=max_missing,
            may_lack_clips=True,
            may_differ=True,
            notices=list(notices),
        )
    )
