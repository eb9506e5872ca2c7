"""Reads Kinetics-400, -600 and -700."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from vivit_train.data.annotations.build import Draft, Row, class_names, make_splits
from vivit_train.data.annotations.files import cells, find_files, open_root, read_lines
from vivit_train.data.annotations.lookup import Problems, Videos, bare, read_columns, unusual_number
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import shorten_list

KINETICS_TREE = """Expected in {root}:
  train.csv, val.csv     columns label,youtube_id,time_start,time_end; or in annotations/
  train/**/<youtube_id>_<start>_<end>.mp4, such as train/abseiling/0wR5jVB-WPk_000417_000427.mp4
  val/**/...             or both below videos/, or anywhere below the root; or <youtube_id>.mp4"""
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_SECONDS = re.compile(r"\d{1,9}")


def read_kinetics(
    root: StrPath,
    *,
    train: StrPath | None = "train.csv",
    val: StrPath = "val.csv",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    num_classes: int | None = None,
    max_missing: float = 0.1,
) -> Splits:
    """Reads Kinetics-400, -600 or -700 from CSV files with a header label,youtube_id,time_start,time_end[,...].

    Videos are named <youtube_id>_<start>_<end>, with six digits for each time, or only <youtube_id>. The classes
    are the training labels in alphabetical order, which is the published order.

    Args:
        root: The data set's folder.
        train, val, test: The annotation files, which are searched in root, in root/annotations and at the path as
            given. With `num_classes`, names such as kinetics400/train.csv or kinetics-400_train.csv are searched
            too. If there is no val.csv, validate.csv is used. train=None, for evaluation only, needs `classes`, or
            `num_classes` labels in the other files.
        classes: A label map (a name or `id,name` per line), or the names. Classes may have no training clips.
        num_classes: The published number of classes. Another number gives a notice.
        max_missing: The share of a split's videos that may be missing. Their rows are dropped with a notice.

    Raises:
        UserError: If a file is missing or malformed, a label is unknown, a class has no training clips, or too
            many videos are missing.
    """
    top, expected_layout = open_root(root, KINETICS_TREE)
    places = _places(num_classes)
    if val == "val.csv" and not any((top / place.format(val)).is_file() for place in places):
        val = "validate.csv" if any((top / place.format("validate.csv")).is_file() for place in places) else val
    files = find_files(
        top, expected_layout, train, val, test, classes or ("the labels" if num_classes else None), places
    )
    videos, problems = Videos(top), Problems("the columns of the header, and times in whole seconds")
    tables = {split: list(_kinetics_rows(file, split, videos, problems)) for split, file in files.items()}
    problems.check()

    source, notices = f"kinetics {shorten_list(files.values())}", list[str]()
    if classes:
        names, named_by = class_names(top, expected_layout, classes)
        source += named_by
    else:
        names, notices = _listed_classes(tables, files, num_classes)
    return make_splits(
        Draft(
            tables=tables,
            files=files,
            classes={"": names},
            ids={"": _class_ids(names, {row.labels[0] for row in chain(*tables.values())})},
            source=source,
            expected_layout=expected_layout,
            max_missing=max_missing,
            may_lack_clips=classes is not None,
            may_differ=True,
            notices=notices,
        )
    )


def _listed_classes(
    tables: Mapping[str, list[Row]], files: Mapping[str, Path], num_classes: int | None
) -> tuple[tuple[str, ...], list[str]]:
    """Returns the labels in alphabetical order and a notice if their number is not the published one.

    Raises:
        UserError: If there are no training annotations and the others do not have the published number of labels.
    """
    listed = tables.get("train", [*chain(*tables.values())])
    names = tuple(sorted({row.labels[0] for row in listed}))
    notices = unusual_number(names, num_classes, files.get("train", files["val"]))
    if notices and "train" not in files:
        raise UserError(f"{notices[0]}; without data.train, data.reader.classes=<file> must define them")
    return names, notices


def is_kinetics(file: Path) -> bool:
    """Returns whether a file is a list of Kinetics, by its header."""
    return {*_COLUMNS} <= set(cells(read_lines(file)[0]))


def _class_ids(names: Sequence[str], labels: set[str]) -> dict[str, int]:
    """Returns the class ids of the labels that are known, with or without parentheses."""
    known = {bare(name): i for i, name in enumerate(names)}
    return {label: known[bare(label)] for label in labels if bare(label) in known}


def _places(num_classes: int | None) -> list[str]:
    """Returns the places below root to search, with the usual file names and those in the published archives."""
    prefixes, folders = [""], ["", "annotations/"]
    if num_classes:
        prefixes += [f"kinetics-{num_classes}_", f"kinetics_{num_classes}_"]
        folders += [f"kinetics{num_classes}/", f"kinetics{num_classes}_2020/"]
    return [f"{folder}{prefix}{{}}" for prefix in prefixes for folder in folders]


def _kinetics_rows(file: Path, split: str, videos: "Videos", problems: "Problems") -> Iterator[Row]:
    """Yields the rows of an annotation file, and records malformed rows in `problems`."""
    for where, line, (label, youtube_id, start, end) in read_columns(file, _COLUMNS):
        if label and youtube_id and _SECONDS.fullmatch(start) and _SECONDS.fullmatch(end):
            stem = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
            folders = (split, label, label.replace(" ", "_"))
            found = videos.find(stem, folders) or videos.find(youtube_id, folders)
            yield videos.row(found, (split, f"{stem}.mp4"), youtube_id, (label,), where)
        else:
            problems.add(where, line)
