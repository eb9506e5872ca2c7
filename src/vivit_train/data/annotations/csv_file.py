"""Reads custom annotation files, which have a path and a label in each row."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vivit_train.data.annotations.build import (
    MAX_CLASSES,
    NUMERIC_ID,
    Draft,
    Row,
    class_names,
    make_splits,
    split_labels,
)
from vivit_train.data.annotations.files import (
    VIDEO_PATTERN,
    Listings,
    below,
    find_files,
    open_root,
    raise_listed,
    read_lines,
    unquote,
)
from vivit_train.data.annotations.table import SEPARATOR, Splits, StrPath
from vivit_train.data.video.urls import is_url, url_problem
from vivit_train.utils.text import plural, shorten_list

# Several numbers are not a label, because they would be several columns. A comma at the end means an empty label,
# like "".
_LABEL = r'"(?:[^"]|"")*"|(?<=,)|(?![\d.-]+(?:\s+[\d.-]+)+$)[^",\t]+'
_PATH_LABEL = re.compile(rf'("(?:[^"]|"")+"|[^"]*{VIDEO_PATTERN}|[^"]*/)\s*[\s,]\s*({_LABEL})', re.IGNORECASE)
_HEADER = re.compile(r"[^./\\]*[^./\\\d]")  # words only, with no path separator and no id at the end
CSV_TREE = """Expected in {root}:
  train.csv, val.csv     one `path label` per row, separated by a space, comma or tab;
                         with data.reader.multi_label=true `path label;label`
  <path>                 the videos: relative to this folder, absolute, or a URL (s3://bucket/a.mp4);
                         in a tar: shards/000.tar/run/a.mp4;
                         a folder of pictures: frames/a/, or a path in quotes"""


def read_csv(
    root: StrPath,
    *,
    train: StrPath | None,
    val: StrPath,
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
    multi_label: bool = False,
) -> Splits:
    """Reads files with one `path label` per row, separated by a space, comma or tab, with or without a header.

    The path ends in a video extension or in / (a folder of pictures), or is in quotes; storage.py describes the
    supported paths. The label is an id or a name, in quotes if it contains a comma. A first row that contains only
    words is a header. Files are searched in root, in root/annotations and at the path as given.

    The classes come from `classes`, or else from a classes.txt in root or next to the annotation file, or else
    from the training labels: names in sorted order, or ids from 0 to the largest.

    Args:
        root: The folder that the paths are relative to.
        train, val, test: The annotation files. train=None, for evaluation only, needs `classes`.
        classes: A file with one name per line, the first of which is class 0, or with columns `id,name`; or the
            names themselves. Classes given in this way may have no training clips.
        max_missing: The share of a split's videos that may be missing. Their rows are dropped with a notice.
        multi_label: Whether a video may have any number of labels: `path a;b`, or `path ""` for none.

    Raises:
        UserError: If a file is missing or malformed, a label is unknown, a video is listed under different labels,
            a class has no training clips, or too many videos are missing.
    """
    top, expected_layout = open_root(root, CSV_TREE)
    files = find_files(top, expected_layout, train, val, test, classes)
    listings = Listings()
    tables = _read_tables(files, top, listings, multi_label)
    beside = [top / "classes.txt", files["val"].with_name("classes.txt")]
    given, named_by = class_names(top, expected_layout, classes or next(filter(Path.is_file, beside), ()))
    written = {split: {label for row in table for label in row.labels} for split, table in tables.items()}
    bare = [str(files[split]) for split, labels in written.items() if tables[split] and not labels]
    if bare:
        raise_listed("no row has a label", bare, f"Training and evaluation need labels.\n{expected_layout}")
    every = set().union(*written.values())
    names, ids = _class_ids(given, written["train" if train else "val"], every)
    return make_splits(
        Draft(
            tables=tables,
            files=files,
            classes={"": names},
            ids={"": ids},
            source=f"csv {shorten_list(files.values())}{named_by}",
            expected_layout=expected_layout,
            max_missing=max_missing,
            may_lack_clips=classes is not None,
            multi_label=multi_label,
            notices=[*listings.notices, *_unsplit_labels(every)],
        )
    )


def _unsplit_labels(labels: set[str]) -> Iterator[str]:
    """Yields a notice if labels look like several labels of a video."""
    if several := [label for label in sorted(labels) if SEPARATOR in label]:
        count = plural(len(several), "label")
        advice = f"set data.reader.multi_label=true to split at {SEPARATOR!r}"
        yield f"kept {count} containing {SEPARATOR!r} unsplit: {shorten_list(several, 2)}; {advice}"


def _class_ids(
    given: tuple[str, ...], reference: set[str], labels: set[str]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the class names, and the class ids of the labels.

    Args:
        given: The class names by id; empty if the labels define the classes.
        reference: The labels that define the classes: those for training, or for validation in an evaluation.
        labels: The labels of all splits. Labels that are not in the result are unknown.
    """
    if not all(map(NUMERIC_ID.fullmatch, reference)):
        names = given or tuple(sorted(reference))
        return names, {name: i for i, name in enumerate(names)}
    # Python cannot parse integers with thousands of digits, and no class id has 19 digits.
    numbers = {
        label: int(label) if len(label) < 19 else MAX_CLASSES for label in filter(NUMERIC_ID.fullmatch, labels)
    }
    largest = max((numbers[label] for label in reference if numbers[label] < MAX_CLASSES), default=0)
    names = given or tuple(map(str, range(largest + 1)))
    return names, {label: i for label, i in numbers.items() if 0 <= i < len(names)}


def _read_tables(
    files: Mapping[str, Path], root: Path, listings: Listings, multi_label: bool
) -> dict[str, list[Row]]:
    """Reads the rows of all annotation files.

    Raises:
        UserError: If a row is malformed.
    """
    problems: list[str] = []
    tables = {split: _read_rows(file, root, listings, problems, multi_label) for split, file in files.items()}
    if problems:
        labels = (
            f'labels with {SEPARATOR!r} between them, all of them in quotes if one has a comma, or "" for none'
            if multi_label
            else "one label, in quotes if it has a comma"
        )
        raise_listed(
            "malformed rows",
            problems,
            "Expected a path that ends in a video extension (in / for a folder of pictures) or is in quotes, "
            f"then a space, comma or tab, then {labels}.",
        )
    return tables


def _read_rows(
    file: Path, root: Path, listings: Listings, problems: list[str], multi_label: bool = False
) -> list[Row]:
    """Reads the rows of an annotation file, and appends malformed rows to `problems`."""
    top = str(root)  # joining strings is three times as fast as joining a Path
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        if match := _PATH_LABEL.fullmatch(line):
            written, label = map(unquote, match.groups())
            written = written.removeprefix("file://")
            if is_url(written) and (problem := url_problem(written)):
                problems.append(f"{file}:{number}: {problem}")
                continue
            path = written.rstrip("/") if is_url(written) else os.path.normpath(os.path.join(top, written))
            labels = split_labels(label) if multi_label else (label,)
            if "" in labels or len(set(labels)) < len(labels):
                what = "an empty label" if "" in labels else "a duplicate label"
                problems.append(f"{file}:{number}: {line[:120]!r} ({what})")
            found = listings.find(path)
            path = found or path
            rows.append(Row(path, below(top, path), labels, f"{file}:{number}", found is not None))
        elif line and not (number == 1 and _HEADER.fullmatch(line)):
            problems.append(f"{file}:{number}: {line[:120]!r}")
    return rows
