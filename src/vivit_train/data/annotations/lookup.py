"""Finds the videos of published data sets by name, and collects the problems of their annotations."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vivit_train.data.annotations.build import Row, make_splits
from vivit_train.data.annotations.files import below, cells, find_videos, raise_listed, read_lines, shorten
from vivit_train.data.annotations.table import Classes, Splits
from vivit_train.utils.errors import UserError

_TIME = re.compile(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d+)?)")


def bare(name: str) -> str:
    """For comparison: of the two published maps of Kinetics-400 one drops the parentheses in names."""
    return re.sub(r"[()]", "", name)


def seconds(time: str) -> float:
    """Of HH:MM:SS.xx; not-a-number where it is none."""
    match = _TIME.fullmatch(time)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else float("nan")


def official_lists(name: str, train: str | None, val: str, test: str | None, fold: int) -> dict[str, str]:
    """Split -> which of the official lists serves."""
    lists = {split: part for split, part in (("train", train), ("val", val), ("test", test)) if part}
    wrong = [f"data.{split}={part}" for split, part in lists.items() if part not in ("train", "test")]
    if wrong:
        raise UserError(f"{shorten(wrong)}: the official lists of {name} are `train` and `test`")
    if fold not in (1, 2, 3):
        raise UserError(f"data.reader.fold={fold}: {name} has the splits 1, 2 and 3")
    return lists


def unusual_number(names: Sequence[str], published: int | None, file: Path) -> list[str]:
    """A notice where there are not as many classes as published."""
    if published in (None, len(names)):
        return []
    return [f"{file}: {len(names)} classes, not the published {published}; ids count those here alone"]


class Videos:
    """The videos below a folder by name, from one listing of it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.by_stem: dict[str, list[str]] = {}
        for path in find_videos(root):
            self.by_stem.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)

    def find(self, stem: str, wanted: Sequence[str] = (), known: Collection[str] = ()) -> str | None:
        """The video of that name; of several the one below most of the folders `wanted`.

        `known` folders mean something: a video below one of them that is not wanted is another one.
        """
        paths = self.by_stem.get(stem, [])
        if known:
            paths = [path for path in paths if all(f not in known or f in wanted for f in self.folders(path))]
        if len(paths) > 1:
            return max(paths, key=lambda path: sum(folder in wanted for folder in self.folders(path)))
        return paths[0] if paths else None

    def folders(self, path: str) -> list[str]:
        return below(self.root, path).split("/")[:-1]

    def row(
        self,
        found: str | None,
        expected: tuple[str, ...],
        clip: str,
        labels: tuple[str, ...],
        where: str,
        span_s: tuple[float, float] | None = None,
    ) -> Row:
        """Of a video that was found, or is missing from its `expected` place below root."""
        path = os.path.join(self.root, *expected) if found is None else found
        return Row(path, clip, labels, where, found is not None, span_s)


class Problems:
    """Malformed rows, collected so that all files are read before the first complaint."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.rows: list[str] = []

    def add(self, where: str, row: str) -> None:
        self.rows.append(f"{where}: {row[:120]!r}")

    def check(self) -> None:
        if self.rows:
            raise_listed("malformed rows", self.rows, f"Expected {self.expected}.")


def read_columns(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """file:line, the line, and the values of the columns `needed`, all empty where the row has other columns."""
    lines = read_lines(file)
    header = cells(lines[0])
    absent = [name for name in needed if name not in header]
    if absent:
        raise UserError(
            f"{file}:1: no column {', '.join(absent)} in {','.join(header)!r}\n"
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
    """`make_splits` where classes are published: some may lack clips, and two labels are the publisher's."""
    ids = {head: {name: i for i, name in enumerate(by_id)} for head, by_id in names.items()}
    described = (tables, files, names, ids, source, expected_layout, max_missing)
    return make_splits(*described, may_lack_clips=True, may_differ=True, notices=notices)
