"""Reads custom annotation files, which have a path and a label in each row."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from vivit_train.data.annotations.columns import (
    Columns,
    Line,
    check_other_columns,
    content_lines,
    header_columns,
    split_cells,
    typed_columns,
    whole_numbers,
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
from vivit_train.data.annotations.kinetics import is_kinetics, read_kinetics
from vivit_train.data.annotations.table import SEPARATOR, Splits, StrPath
from vivit_train.data.video.urls import is_url, url_problem
from vivit_train.utils.errors import UserError
from vivit_train.utils.memory import collection_paused
from vivit_train.utils.text import nfc, plural, shorten_list

# Several numbers, before a word or not, are not a label, because they would be several columns. A comma at the end
# means an empty label, like "".
_LABEL = r'"(?:[^"]|"")*"|(?<=,)|(?![\d.-]+(?:\s+[\d.-]+)+(?:\s|$))[^",\t]+'
_PATH_LABEL = re.compile(rf'("(?:[^"]|"")+"|[^"]*{VIDEO_PATTERN}|[^"]*/)\s*[\s,]\s*({_LABEL})', re.IGNORECASE)
_PATH = re.compile(rf'"(?:[^"]|"")+"|[^"]*{VIDEO_PATTERN}|[^"]*/', re.IGNORECASE)  # a row without a label
_HEADER = re.compile(r"[^./\\]*[^./\\\d]")  # words only, with no path separator and no id at the end
_DRIVE = re.compile(r"[A-Za-z]:\\")
CSV_TREE = """Expected in {root}:
  train.csv, val.csv     one `path label` per row, separated by a space, comma or tab; or a table whose first line
                         names the columns path and label;
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
    first_id: int = 0,
) -> Splits:
    """Reads files with one `path label` per row, separated by a space, comma or tab, with or without a header.

    The path ends in a video extension or in / (a folder of pictures), or is in quotes; storage.py describes the
    supported paths. The label is an id or a name, in quotes if it contains a comma. A first row that contains only
    words is a header. Tables of other tools are read as columns.py describes, and lists of Kinetics as by
    `read_kinetics`. Files are searched in root, in root/annotations and at the path as given.

    The classes come from `classes`, or else from a classes.txt in root or next to the annotation file, or else
    from the training labels: names in sorted order, or ids from 0 to the largest.

    Args:
        root: The folder that the paths are relative to.
        train, val, test: The annotation files. train=None, for evaluation only, needs `classes`.
        classes: A file with one name per line, the first of which is class 0, or with columns `id,name`; or the
            names themselves. Classes given in this way may have no training clips.
        max_missing: The share of a split's videos that may be missing. Their rows are dropped with a notice.
        multi_label: Whether a video may have any number of labels: `path a;b`, or `path ""` for none.
        first_id: The id of the first class in the files, 0 or 1.

    Raises:
        UserError: If a file is missing or malformed, a label is unknown or contradictory, a class has no training
            clips, or too many videos are missing.
    """
    top, expected_layout = open_root(root, CSV_TREE)
    files = find_files(top, expected_layout, train, val, test, classes)
    if is_kinetics(files["val"]):
        return read_kinetics(top, train=train, val=val, test=test, classes=classes, max_missing=max_missing)
    reader = RowReader(top, multi_label)
    tables = reader.tables(files)
    given, named_by = class_names(top, expected_layout, classes or _classes_beside(top, files["val"]))
    reference, labels = _labels_of(tables, files, expected_layout)
    names, ids, hint = _class_ids(given, reference, labels, first_id)
    draft = Draft(
        tables=tables,
        files=files,
        classes={"": names},
        ids={"": ids},
        source=f"csv {shorten_list(files.values())}{named_by}",
        expected_layout=expected_layout,
        max_missing=max_missing,
        may_lack_clips=classes is not None,
        multi_label=multi_label,
        notices=[*reader.notices(), *_unsplit_labels(labels), *_odd_labels(labels)],
        hint=hint + reader.path_hint(),
        read_as=reader.decisions(first_id, has_ids=all(map(NUMERIC_ID.fullmatch, ids))),
        first_id=first_id,
    )
    return with_lists(make_splits(draft), top, files)


def with_lists(splits: Splits, root: Path, files: Mapping[str, Path]) -> Splits:
    """Returns the splits with the annotation file that each comes from, for `read_column`."""
    of = {split: ((str(root), str(file)),) for split, file in files.items()}
    return replace(splits, **{split: replace(getattr(splits, split), lists=lists) for split, lists in of.items()})


def read_column(root: str, file: str, name: str) -> dict[str, str]:
    """Returns the cells of another column of a table by the paths of the videos, as `read_csv` gives them.

    Args:
        root: The folder that the paths are relative to.
        file: The annotation file.
        name: The name of the column in the header.

    Raises:
        UserError: The file has no such column, or the column has no value for a video, or several.
    """
    lines = content_lines(read_lines(Path(file)))
    columns = header_columns(lines[0].text) if lines else None
    if columns is None:
        raise UserError(
            f"{file} has no column {name!r}: its first line does not name the columns, as in path,label,{name}"
        )
    if name not in columns.names:
        raise UserError(f"{file} has no column {name!r}: it has {', '.join(columns.names)}")
    reader, found, problems = RowReader(Path(root), False, labeled=False), dict[str, str](), list[str]()
    for number, text in lines[1:]:
        cells = split_cells(text, columns.separator)
        row = (
            reader.row(f"{file}:{number}", text, cells[columns.path], "") if len(cells) == columns.width else None
        )
        if row is None or not row.found:
            continue  # Training has no such clip either.
        cell = cells[columns.names.index(name)]
        if not cell:
            problems.append(f"{row.where}: {row.id}, no {name}")
        elif found.setdefault(row.path, cell) != cell:
            problems.append(f"{row.where}: {row.id}, {name} {cell} and {found[row.path]}")
    if problems:
        raise_listed(
            f"the column {name!r} does not tell the {name} of each video", problems, "Fill in one for each."
        )
    return found


def _classes_beside(root: Path, file: Path) -> Path | tuple[()]:
    """Returns the file classes.txt in root or next to the annotation file, or () if there is none."""
    return next(filter(Path.is_file, (root / "classes.txt", file.with_name("classes.txt"))), ())


def _labels_of(
    tables: Mapping[str, list[Row]], files: Mapping[str, Path], expected_layout: str
) -> tuple[set[str], set[str]]:
    """Returns the labels that define the classes, for training or else for validation, and those of all splits.

    Raises:
        UserError: If a split has rows but no labels.
    """
    written = {split: {label for row in table for label in row.labels} for split, table in tables.items()}
    bare = [str(files[split]) for split, labels in written.items() if tables[split] and not labels]
    if bare:
        raise_listed("no row has a label", bare, f"Training and evaluation need labels.\n{expected_layout}")
    return written["train" if "train" in written else "val"], set().union(*written.values())


def _unsplit_labels(labels: set[str]) -> Iterator[str]:
    """Yields a notice if labels look like several labels of a video."""
    if several := [label for label in sorted(labels) if SEPARATOR in label]:
        count = plural(len(several), "label")
        advice = f"set data.reader.multi_label=true to split at {SEPARATOR!r}"
        yield f"kept {count} containing {SEPARATOR!r} unsplit: {shorten_list(several, 2)}; {advice}"


def _odd_labels(labels: set[str]) -> Iterator[str]:
    """Yields a notice if a label may stand for a missing one, as pandas writes it."""
    if odd := sorted(label for label in labels if label.casefold() in ("nan", "<na>", "n/a")):
        yield f"is {shorten_list(odd)} a class? It is what pandas writes for a missing label"


def _with_whole_ids(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Returns the rows with ids such as 3.0, which pandas writes in a column with gaps, as whole numbers."""
    whole = whole_numbers(label for rows in tables.values() for row in rows for label in row.labels)
    if not whole:
        return tables
    return {
        split: [row._replace(labels=tuple(whole.get(label, label) for label in row.labels)) for row in rows]
        for split, rows in tables.items()
    }


def _class_ids(
    given: tuple[str, ...], reference: set[str], labels: set[str], first_id: int
) -> tuple[tuple[str, ...], dict[str, int], str]:
    """Returns the class names, the class ids of the labels, and a hint for messages if ids seem to start at 1.

    Args:
        given: The class names by id; empty if the labels define the classes.
        reference: The labels that define the classes.
        labels: The labels of all splits. Labels that are not in the result are unknown.
        first_id: The id of the first class in the files.
    """
    if not all(map(NUMERIC_ID.fullmatch, reference)):
        names = given or tuple(sorted(set(map(nfc, reference))))
        return names, {name: i for i, name in enumerate(names)}, ""
    # Python cannot parse integers with thousands of digits, and no class id has 19 digits.
    numbers = {
        label: int(label) if len(label) < 19 else MAX_CLASSES for label in filter(NUMERIC_ID.fullmatch, labels)
    }
    largest = max((numbers[label] for label in reference if numbers[label] < MAX_CLASSES), default=first_id)
    names = given or tuple(map(str, range(first_id, largest + 1)))
    hint = ""
    if first_id == 0 and min(numbers.values(), default=0) == 1:
        hint = "The ids start at 1 and not at 0; if 1 is the first class, set data.reader.first_id=1."
    return names, {label: i - first_id for label, i in numbers.items() if 0 <= i - first_id < len(names)}, hint


def path_and_label(line: str) -> tuple[str, str] | None:
    """Returns the cells of a row `path label`, or None if it has another form."""
    match = _PATH_LABEL.fullmatch(line)
    if match is None or match[2].startswith(("| ", "; ")):
        return None
    return unquote(match[1]), unquote(match[2])


class RowReader:
    """Reads the rows of annotation files, and collects what is wrong with them and what it decides.

    Attributes:
        problems: The malformed rows.
        read_as: The form of each file.
    """

    def __init__(self, root: Path, multi_label: bool, labeled: bool = True) -> None:
        self.root, self.listings, self.multi_label, self.labeled = str(root), Listings(), multi_label, labeled
        self.problems: list[str] = []
        self.read_as: dict[str, str] = {}
        self.backslashes, self.drives = 0, 0

    def tables(self, files: Mapping[str, Path]) -> dict[str, list[Row]]:
        """Returns the rows of each split.

        Raises:
            UserError: If a row is malformed, or if the columns cannot be told.
        """
        with collection_paused():
            tables = {split: self.rows(file) for split, file in files.items()}
        self.raise_problems()
        return _with_whole_ids(tables)

    def rows(self, file: Path) -> list[Row]:
        """Returns the rows of a file, and appends malformed rows to `problems`.

        Raises:
            UserError: If the columns cannot be told.
        """
        written = read_lines(file)
        lines = content_lines(written)
        if lines and lines[0].text.startswith(("{", "[{")):
            raise UserError(
                f"{file} looks like JSON, but data=csv reads rows of `path label` or a table; exports of Label "
                "Studio and CVAT are read with data=labelstudio and data=cvat"
            )
        columns, body = self.columns_of(file, lines)
        form = columns.described() if columns else "rows of `path label`"
        comments = sum(map(bool, written)) - len(lines)
        ignored = f", {plural(comments, 'comment')}" if comments else ""
        self.read_as[file.name] = form + (", a header" if len(body) < len(lines) else "") + ignored
        found = []
        for number, line in body:
            where = f"{file}:{number}"
            pair = columns.cells(line) if columns and columns.separator not in " ," else None
            if pair is None and (columns is None or (columns.width == 2 and columns.path == 0)):
                pair = path_and_label(line)
            if pair is None and columns:
                pair = columns.cells(line)
            if pair is None and not self.labeled and _PATH.fullmatch(line):
                pair = (unquote(line), "")
            if pair is None or not pair[0]:
                self.problems.append(f"{where}: {line[:120]!r}")
            elif row := self.row(where, line, *pair):
                found.append(row)
        return found

    def columns_of(self, file: Path, lines: list[Line]) -> tuple[Columns | None, list[Line]]:
        """Returns the columns of a table, or None for rows of `path label`, and the lines without the header."""
        if not lines:
            return None, lines
        columns = header_columns(lines[0].text)
        is_header = columns is not None or (lines[0].number == 1 and _HEADER.fullmatch(lines[0].text) is not None)
        body = lines[is_header:]
        if not self.labeled and all(_PATH.fullmatch(line.text) for line in body):
            return None, body
        is_plain = all(path_and_label(line.text) for line in body)
        if columns and columns.separator == " " and is_plain:
            return None, body  # A path or the name of a column has blanks.
        if columns:
            check_other_columns(file, columns, body)
        if columns or not body:
            return columns, body

        def exists(path: str) -> bool:
            return self.listings.find(os.path.join(self.root, path)) is not None

        return typed_columns(file, body, exists, is_plain=is_plain), body

    def row(self, where: str, line: str, written: str, label: str) -> Row | None:
        """Returns a row, or None and a problem if its path or its label is invalid."""
        written = written.removeprefix("file://")
        if is_url(written) and (problem := url_problem(written)):
            self.problems.append(f"{where}: {problem}")
            return None
        path = written.rstrip("/") if is_url(written) else os.path.normpath(os.path.join(self.root, written))
        found = self.listings.find(path)
        if found is None and "\\" in written:
            self.backslashes += 1
            self.drives += bool(_DRIVE.match(written))
            path = os.path.normpath(os.path.join(self.root, written.replace("\\", "/")))
            found = self.listings.find(path)
        labels = () if not self.labeled else split_labels(label) if self.multi_label else (label,)
        if "" in labels or len(set(labels)) < len(labels):
            what = "an empty label" if "" in labels else "a duplicate label"
            self.problems.append(f"{where}: {line[:120]!r} ({what})")
        path = found or path
        return Row(path, below(self.root, path), labels, where, found is not None)

    def raise_problems(self) -> None:
        """Raises a UserError if there are malformed rows."""
        if not self.problems:
            return
        labels = (
            f'labels with {SEPARATOR!r} between them, all of them in quotes if one has a comma, or "" for none'
            if self.multi_label
            else "one label, in quotes if it has a comma"
        )
        raise_listed(
            "malformed rows",
            self.problems,
            "Expected a path that ends in a video extension (in / for a folder of pictures) or is in quotes, "
            f"then a space, comma or tab, then {labels}; or a first line with the names of columns: path,label.",
        )

    def notices(self) -> list[str]:
        """Returns the notices about folders and names of files."""
        near = self.listings.near_miss_notice()
        return [*self.listings.notices, *([near] if near else [])]

    def path_hint(self) -> str:
        """Returns what may explain missing videos, or ""."""
        drives = "Paths on a drive of Windows do not exist here; make them relative to data.root."
        near = self.listings.near_miss_notice()
        return "\n".join([*([drives] if self.drives else []), *([f"There are {near}."] if near else [])])

    def decisions(self, first_id: int, *, has_ids: bool) -> str:
        """Returns in one line how the files were read."""
        forms = set(self.read_as.values())
        parts = [*forms] if len(forms) == 1 else [f"{name}: {form}" for name, form in self.read_as.items()]
        if self.backslashes:
            parts.append(r"\ in paths is /")
        return "; ".join([*parts, f"ids from {first_id}" if has_ids else "labels are names"])
