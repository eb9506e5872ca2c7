"""From folders or annotation files to one typed table of clips per split. No video is opened here.

Each reader turns its own layout into lists of `Row`; `make_splits` makes the checks that all of them share.
The readers for people's own videos are here, those of published data sets in published.py.
"""

import csv
import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.source import folder_and_name, is_picture, is_url, listing, members, url_problem
from vivit_train.errors import UserError, VideoError, reason
from vivit_train.names import printable

StrPath = str | os.PathLike[str]
Strings = NDArray[Any]  # of numpy's StringDType
Target = NDArray[np.int64] | NDArray[np.bool]
Classes = dict[str, tuple[str, ...]]  # head -> names of its classes; "" is the head where there is only one

VIDEO_EXTENSIONS = (
    *("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp", "3g2", "asf"),
    *("divx", "f4v", "gif", "m2ts", "mts", "mxf", "ogv", "rm", "rmvb", "vob"),
)
MAX_CLASSES = 100_000  # a larger id is a frame count or a time stamp in the label's place
SEPARATOR = ";"  # of the labels of a clip, where it may have several
SHOWN = 5  # problems that a message names before it only counts

_VIDEO = rf"\.(?:{'|'.join(VIDEO_EXTENSIONS)})"
_FOREIGN = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as Python reads them in names
_IS_VIDEO = re.compile(rf"[^.].*{_VIDEO}", re.IGNORECASE | re.DOTALL)
# several numbers would be several columns; a comma with nothing behind it is an empty label, as "" is
_LABEL = r'"(?:[^"]|"")*"|(?<=,)|(?![\d.-]+(?:\s+[\d.-]+)+$)[^",\t]+'
_PATH_LABEL = re.compile(rf'("(?:[^"]|"")+"|[^"]*{_VIDEO}|[^"]*/)\s*[\s,]\s*({_LABEL})', re.IGNORECASE)
_HEADER = re.compile(r"[^./\\]*[^./\\\d]")  # words only: nothing like a path, no id at the end
_ID = re.compile(r"-?\d+")
_NAME_ID = re.compile(r".+,\s*\d+")  # as in the class file of Moments in Time
PLACES = ("{}", "annotations/{}")  # below root, where an annotation file is looked for

FOLDER_TREE = """Expected in {root}, with a folder per class:
  train/<class>/<video>.mp4     or, to have it split:     <class>/<video>.mp4
  val/<class>/<video>.mp4
  test/<class>/<video>.mp4      (optional)
or in tars, as train/<any>.tar with members <class>/<video>.mp4; in a class without video files, each folder of
pictures is a video"""
CSV_TREE = """Expected in {root}:
  train.csv, val.csv     one `path label` a row, separated by a space, comma or tab;
                         with data.reader.multi_label=true `path label;label`
  <path>                 the videos; an absolute path stands for itself, so does a URL (s3://bucket/a.mp4).
                         In a tar: shards/000.tar/run/a.mp4. A folder of pictures: frames/a/, or in quotes"""


@dataclass(frozen=True, eq=False, slots=True)
class LabelSets:
    """Any number of classes for each clip: as large as the labels there are, not as the classes there could be.

    Attributes:
        class_ids: those of the first clip, ascending, then those of the second, ....
        ends: where each clip's end, [n].
        num_classes: that a clip could have.
    """

    class_ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    num_classes: int

    @classmethod
    def of(cls, sets: Sequence[set[int]], num_classes: int) -> "LabelSets":
        class_ids = np.fromiter((class_id for one in sets for class_id in sorted(one)), np.int32)
        return cls(class_ids, np.cumsum([len(one) for one in sets], dtype=np.int64), num_classes)

    def take(self, rows: NDArray[np.int64]) -> "LabelSets":
        return self.of([set(self[row].tolist()) for row in rows], self.num_classes)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many classes each clip has."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        """The classes of a clip."""
        return self.class_ids[self.ends[row - 1] if row else 0 : self.ends[row]]


@dataclass(frozen=True, eq=False, slots=True)
class Manifest:
    """The clips of one split. Columns, not objects, so that 500,000 rows stay small and workers share them.

    Attributes:
        paths: absolute path of each clip's video, or its URL; what else it may lead to is in source.py.
        labels: classes of each, [n, heads], indices into the names in `Splits.classes`; where a clip may have any
            number of classes, `LabelSets`.
        ids: name of each in predictions: the path relative to root, the YouTube id, ....
        spans_s: start and end of each within its video in seconds, [n, 2]; None where every clip is a whole video.
    """

    paths: Strings
    labels: NDArray[np.int64] | LabelSets
    ids: Strings
    spans_s: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Manifest":
        """These rows, in this order."""
        spans_s = None if self.spans_s is None else self.spans_s[rows]
        labels = self.labels.take(rows) if isinstance(self.labels, LabelSets) else self.labels[rows]
        return Manifest(self.paths[rows], labels, self.ids[rows], spans_s)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have any number of classes."""
        return isinstance(self.labels, LabelSets)

    def labels_of(self, row: int) -> tuple[int, ...]:
        """A clip's class in each head; or all its classes, which may be none."""
        return tuple(self.labels[row].tolist())

    def written(self, row: int, names: Sequence[str]) -> str:
        """A clip's label as data=csv has it: its class in the first head; or all its classes."""
        labels = self.labels_of(row)
        return SEPARATOR.join(names[label] for label in (labels if self.multi_label else labels[:1]))

    def target(self, row: int) -> Target:
        """What a model is to say of a clip: its class in each head, [heads]; or of each class whether the clip has
        it, [classes]."""
        if not isinstance(self.labels, LabelSets):
            return self.labels[row]
        has_K = np.zeros(self.labels.num_classes, np.bool)
        has_K[self.labels[row]] = True
        return has_K

    def class_counts(self, classes: Classes) -> list[NDArray[np.int64]]:
        """How many clips each class has, by head."""
        columns = [self.labels.class_ids] if isinstance(self.labels, LabelSets) else self.labels.T
        return [
            np.bincount(column, minlength=len(names))
            for column, names in zip(columns, classes.values(), strict=True)
        ]

    def groups(self, row: int) -> Sequence[tuple[int, ...]]:
        """What is balanced, and limited, with the clip: the labels of all heads together, as one; or each of its
        classes, of which having none is one too."""
        labels = self.labels_of(row)
        return [(label,) for label in labels] or [()] if self.multi_label else [labels]

    def label_counts(self) -> NDArray[np.int64]:
        """How many clips have each clip's labels; of several groups (see `groups`), the smallest's: [n]."""
        groups = [self.groups(row) for row in range(len(self))]
        counts = Counter(group for several in groups for group in several)
        return np.array([min(counts[group] for group in several) for several in groups], np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Splits:
    """The clips of a data set.

    Attributes:
        classes: the names by head; the position is the id.
        train: empty where the reader was told that there are no training annotations.
        test: None where there is none.
        source: where this came from, in one line.
        notices: what a person should know, such as how many videos are missing; part of `summary()`.
        missing: by split, the videos that are listed and not there.
    """

    classes: Classes
    train: Manifest
    val: Manifest
    test: Manifest | None
    source: str
    notices: tuple[str, ...] = ()
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have any number of classes, all of one head."""
        return self.val.multi_label

    def summary(self) -> str:
        """Source, classes, counts per split and notices, for a person to read."""
        lines = [f"source   {printable(self.source)}"]
        for head, names in self.classes.items():
            shown = names if len(names) <= 10 else (*names[:4], "...", names[-1])
            lines.append(printable(f"{head or 'classes':<8} {len(names)}: {', '.join(shown)}"))
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                counts = split.class_counts(self.classes)
                spread = "; ".join(
                    f"{c.min()} to {c.max()} per {printable(head or 'class')}"
                    for head, c in zip(self.classes, counts, strict=True)
                )
                if isinstance(split.labels, LabelSets):
                    sizes = split.labels.sizes
                    spread += f"; {sizes.sum() / max(len(sizes), 1):.1f} classes per clip, "
                    spread += f"{np.count_nonzero(sizes == 0)} clips of none"
                lines.append(f"{name:<8} {len(split)} clips, {spread}")
        return "\n".join(lines + [f"note     {printable(notice)}" for notice in self.notices])


def read_folder(
    root: StrPath,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    val_percent: float = 20,
    seed: int = 0,
) -> Splits:
    """Read root/{train,val[,test]}/<class>/**/<video>, or split root/<class>/**/<video> by percentage.

    In a class without video files, each folder of pictures is a video. <class>/<video> may be in tars.

    The split takes `val_percent` of each class, with at least one clip on either side. It depends on nothing
    but the seed and the clips' paths below root.

    Args:
        root: the data set's folder.
        train, val, test: the split folders, where they are not called "train", "val" and "test".
        classes: for evaluation: names that a model knows already. No training clips are needed or read then,
            and where there are no split folders every clip is one to evaluate.
        val_percent: share of each class to hold out, where there are no split folders.
        seed: of that split.

    Raises:
        UserError: a folder is missing or has no videos, a class has no training clips, or there is only one.
    """
    top, tree = open_root(root, FOLDER_TREE)
    notices: list[str] = []
    has_splits = (top / "train").is_dir() and ((top / "val").is_dir() or bool(_subfolders(top / "train")))
    if train or val or test or has_splits:
        folders = {"train": top / (train or "train"), "val": top / (val or "val")}
        if test or (top / "test").is_dir():
            folders["test"] = top / (test or "test")
        if classes:
            del folders["train"]
        absent = [str(folder) for folder in folders.values() if not folder.is_dir()]
        if absent:
            there = printable(", ".join(_subfolders(top))) or "none"
            advice = "Name the split folders with data.train=, data.val= and data.test= (data.val=test is fine)."
            fail("missing folders", absent, f"Folders in {printable(top)}: {there}. {advice}\n{tree}")
        clips = {split: _clips_by_class(folder, tree, notices) for split, folder in folders.items()}
        source = f"folders {some(folders.values())}"
    elif classes:
        folders, clips, source = {"val": top}, {"val": _clips_by_class(top, tree, notices)}, f"folder {top}"
    else:
        if not 0 < val_percent < 100:
            raise UserError(f"data.reader.val_percent is {val_percent}; it must lie between 0 and 100")
        folders = {"train": top, "val": top}
        clips = {"train": {}, "val": {}}
        for name, paths in _clips_by_class(top, tree, notices).items():
            # by hash, not by a generator: the same on every machine and version, whatever clips come later
            paths.sort(
                key=lambda path: hashlib.sha256(
                    f"{seed}/{below(top, path)}".encode(errors="surrogateescape")
                ).digest()
            )
            count = min(max(round(len(paths) * val_percent / 100), 1), max(len(paths) - 1, 0))
            clips["val"][name], clips["train"][name] = sorted(paths[:count]), sorted(paths[count:])
        source = f"folder {top}, split here by class: {val_percent:g}% to val, seed {seed}"

    empty = [str(folders["train"] / name) for name, paths in clips.get("train", {}).items() if not paths]
    if empty:
        fail(
            "class folders without videos",
            empty,
            f"Fill or delete them. Looked for {', '.join(VIDEO_EXTENSIONS)}.",
        )
    tables = {
        split: [Row(path, below(top, path), (name,), path) for name, paths in classes.items() for path in paths]
        for split, classes in clips.items()
    }
    names = tuple(classes or clips["train"])
    ids = {name: i for i, name in enumerate(names)}
    lacking = classes is not None
    return make_splits(
        tables, folders, {"": names}, {"": ids}, source, tree, may_lack_clips=lacking, notices=notices
    )


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
    """Read files with a `path label` a row, separated by a space, comma or tab, with or without a header.

    A row is a path that ends in a video extension, or in / (a folder of pictures), or stands in quotes, a
    separator, and the label: an id or a name, in quotes where it has a comma. A first row of words only is a
    header. What a path may lead to, see source.py. Files are looked up in root, in root/annotations and as given.

    Classes are those of `classes`, else of a classes.txt in root or beside the annotation file, else the
    training labels: names in sorted order, or ids from 0 to the largest.

    Args:
        root: folder that the paths are relative to.
        train, val, test: annotation files. With train=None, for evaluation only, `classes` is needed.
        classes: file with a name a line, the first being class 0, or with columns `id,name`; or the names
            themselves. These may lack training clips.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.
        multi_label: a video may have any number of classes: `path a;b`, or `path ""` where it has none of them.

    Raises:
        UserError: a file is missing or malformed, a label is unknown, a video is listed under different labels, a
            class has no training clips, or too many videos are missing.
    """
    top, tree = open_root(root, CSV_TREE)
    files = find_files(top, tree, train, val, test, classes)
    problems: list[str] = []
    listings = Listings()
    tables = {split: _read_rows(file, top, listings, problems, multi_label) for split, file in files.items()}
    if problems:
        advice = (
            "Expected a path that ends in a video extension (in / for a folder of pictures) or stands in quotes, "
            "then a space, comma or tab, then"
        )
        labels = (
            f'labels with {SEPARATOR!r} between them, all of them in quotes where one has a comma, or "" for none'
            if multi_label
            else "one label, in quotes where it has a comma"
        )
        fail("malformed rows", problems, f"{advice} {labels}.")

    beside = [top / "classes.txt", files["val"].with_name("classes.txt")]
    names, named_by = class_names(top, tree, classes or next(filter(Path.is_file, beside), ()))
    written = {split: {label for row in table for label in row.labels} for split, table in tables.items()}
    reference = written["train" if train else "val"]
    bare = [str(files[split]) for split, labels in written.items() if tables[split] and not labels]
    if bare:
        fail("no row has a label", bare, f"Nothing could be learned from it, nor scored.\n{tree}")
    notices = []
    if several := [label for label in sorted(set().union(*written.values())) if SEPARATOR in label]:
        advice = f"data.reader.multi_label=true has a class on each side of the {SEPARATOR!r}"
        notices.append(f"{len(several)} labels are taken as one class each: {some(several, 2)}; {advice}")
    if all(map(_ID.fullmatch, reference)):
        numeric = filter(_ID.fullmatch, set().union(*written.values()))
        # of thousands of digits Python reads none; 19 are no class either
        numbers = {label: int(label) if len(label) < 19 else MAX_CLASSES for label in numeric}
        largest = max((numbers[label] for label in reference if numbers[label] < MAX_CLASSES), default=0)
        names = names or tuple(map(str, range(largest + 1)))
        ids = {label: i for label, i in numbers.items() if 0 <= i < len(names)}
    else:
        names = names or tuple(sorted(reference))
        ids = {name: i for i, name in enumerate(names)}
    return make_splits(
        tables,
        files,
        {"": names},
        {"": ids},
        f"csv {some(files.values())}{named_by}",
        tree,
        max_missing,
        may_lack_clips=classes is not None,
        notices=[*listings.notices, *notices],
        multi_label=multi_label,
    )


class Row(NamedTuple):
    """A line of an annotation file; `labels` as written, one for each head."""

    path: str
    id: str
    labels: tuple[str, ...]
    where: str  # for messages: file:line, or the video itself
    found: bool = True
    span_s: tuple[float, float] | None = None  # start and end in seconds, where the clip is part of its video


def make_splits(
    tables: Mapping[str, list[Row]],
    files: Mapping[str, Path],
    classes: Classes,
    ids: Mapping[str, Mapping[str, int]],
    source: str,
    tree: str,
    max_missing: float = 0,
    may_lack_clips: bool = False,
    may_differ: bool = False,
    notices: Sequence[str] = (),
    multi_label: bool = False,
) -> Splits:
    """Check what every data set must satisfy, and make the tables.

    Args:
        tables: the rows of each split; files: where they came from.
        ids: head -> label as written -> class id.
        source, tree: of the data, in one line, and the layout that was expected, for messages.
        max_missing: share of a split's rows that may lack their video.
        may_lack_clips: classes without training clips are fine.
        may_differ: a clip that is listed under two labels is worth a notice, not an error.
        multi_label: a row's labels are those of one head, any number of them.
    """
    notices = list(notices)
    bare = [str(files[split]) for split, rows in tables.items() if not rows]
    if bare:
        fail("no clips", bare, f"A split needs at least one.\n{tree}")

    problems: list[str] = []
    missing: dict[str, list[str]] = {}
    too_many: list[str] = []
    for split, rows in tables.items():
        first: dict[object, Row] = {}
        differing: list[str] = []
        for row in rows:
            heads = [ids[""]] * len(row.labels) if multi_label else ids.values()
            for label, head_ids in zip(row.labels, heads, strict=True):
                if label not in head_ids:
                    problems.append(f"{row.where}: unknown label {label!r}")
            before = first.setdefault((row.path, row.span_s), row)
            if row.labels != before.labels and not (multi_label and set(row.labels) == set(before.labels)):
                differing.append(
                    f"{row.where}: {row.path} is {label_text(row)}, but {label_text(before)} in {before.where}"
                )
        if differing and may_differ:
            notices.append(f"{files[split]}: {len(differing)} clips have two labels; kept. {differing[0]}")
        elif differing:
            problems += differing
        if len(first) < len(rows):
            notices.append(f"{files[split]}: {len(rows) - len(first)} rows repeat an earlier one; kept")
        missing[split] = lost = list(dict.fromkeys(row.path for row in rows if not row.found))
        rows_lost = sum(not row.found for row in rows)
        if lost:
            clips_are = "segments have their video" if rows[0].span_s else "videos found"
            text = (
                f"{files[split]}: {len(rows) - rows_lost:,} of {len(rows):,} {clips_are}; "
                f"first missing: {some(lost, 2)}"
            )
            (too_many if rows_lost > min(max_missing * len(rows), len(rows) - 1) else notices).append(text)
    if problems:
        numbered = all(map(_ID.fullmatch, next(iter(ids.values()))))
        known = [
            f"ids from 0 to {len(names) - 1}" if numbered else f"one of {some(names)}"
            for names in classes.values()
        ]
        once = "all labels of a video in one row" if multi_label else "one label per video"
        advice = f"Expected {'; '.join(known)}, and {once}.\nClasses are from {printable(source)}."
        fail("wrong labels", problems, advice)
    for names in classes.values():
        if len(names) < 2 and not multi_label:
            raise UserError(
                f"only one class, {names[0]!r}, in {printable(source)}; a classifier needs at least two.\n{tree}"
            )
    if too_many:
        advice = f"Check the data set's root, or allow more: data.reader.max_missing is {max_missing:g}."
        fail("too many missing videos", too_many, f"{advice}\n{tree}")

    manifests = {split: make_manifest(rows, classes, ids, multi_label) for split, rows in tables.items()}
    manifests.setdefault("train", make_manifest([], classes, ids, multi_label))
    for split, rows in tables.items():
        counts = manifests[split].class_counts(classes)
        for head, (name, names) in enumerate(classes.items()):
            empty = np.flatnonzero(counts[head] == 0).tolist()
            if empty and split == "train" and not may_lack_clips:
                own = slice(None) if multi_label else slice(head, head + 1)
                listed = Counter(ids[name][label] for row in rows for label in row.labels[own])
                lines = [f"class {i} ({names[i]}): {listed[i]} rows, 0 videos found" for i in empty]
                advice = "Ids run from 0 without gaps. Empty on purpose: data.reader.classes=<file of names>."
                fail(f"classes without clips in {files[split]}", lines, advice)
            if empty:
                listed_names = some([names[i] for i in empty])
                kind = f"{name} classes" if name else "classes"
                notices.append(f"{split} has no clips of {len(empty)} of {len(names)} {kind}: {listed_names}")
    clips = {split: set(manifest.ids.tolist()) for split, manifest in manifests.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(clips[one] & clips.get(other, set()))
        if both:
            notices.append(f"{one} and {other} share {len(both)} clips: {some(both)}")
    test = manifests.get("test")
    return Splits(classes, manifests["train"], manifests["val"], test, source, tuple(notices), missing)


def label_text(row: Row) -> str:
    return ", ".join(map(repr, row.labels)) or "without a label"


def make_manifest(
    rows: list[Row], classes: Classes, ids: Mapping[str, Mapping[str, int]], multi_label: bool = False
) -> Manifest:
    rows = [row for row in rows if row.found]
    foreign = [ascii(row.path) for row in rows if _FOREIGN.search(row.path)]
    if foreign:
        fail("file names that are not UTF-8", foreign, "Rename them.")
    labels: NDArray[np.int64] | LabelSets
    if multi_label:
        labels = LabelSets.of([{ids[""][label] for label in row.labels} for row in rows], len(classes[""]))
    else:
        found = [[known[label] for label, known in zip(row.labels, ids.values(), strict=True)] for row in rows]
        labels = np.array(found, np.int64).reshape(-1, len(ids))
    has_spans = any(row.span_s for row in rows)
    return Manifest(
        paths=np.array([row.path for row in rows], np.dtypes.StringDType()),
        labels=labels,
        ids=np.array([row.id for row in rows], np.dtypes.StringDType()),
        spans_s=np.array([row.span_s for row in rows], np.float64) if has_spans else None,
    )


class Listings:
    """Which files are there, from one listing of each folder: a stat per file takes minutes on network disks.

    Attributes:
        notices: folders that cannot be listed. What they may hold is taken to be there.
    """

    def __init__(self) -> None:
        self.names: dict[str, frozenset[str] | None] = {}
        self.notices: list[str] = []

    def have(self, path: str) -> bool:
        folder, name = folder_and_name(path)
        if folder not in self.names:
            self.names[folder] = self.list(folder)
        names = self.names[folder]
        return names is None or name in names

    def list(self, folder: str) -> frozenset[str] | None:
        try:
            return listing(folder)
        except VideoError as error:
            self.notices.append(f"{folder}: {error.reason}; the videos in it are taken to be there")
            return None


def _split(labels: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in labels.split(SEPARATOR)) if labels else ()


def _read_rows(
    file: Path, root: Path, listings: Listings, problems: list[str], multi_label: bool = False
) -> list[Row]:
    top = str(root)  # joins three times as fast as a Path
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        if match := _PATH_LABEL.fullmatch(line):
            written, label = map(_unquote, match.groups())
            written = written.removeprefix("file://")
            if is_url(written) and (problem := url_problem(written)):
                problems.append(f"{file}:{number}: {problem}")
                continue
            path = written.rstrip("/") if is_url(written) else os.path.normpath(os.path.join(top, written))
            labels = _split(label) if multi_label else (label,)
            if "" in labels or len(set(labels)) < len(labels):
                what = "an empty label" if "" in labels else "a label twice"
                problems.append(f"{file}:{number}: {line[:120]!r} ({what})")
            rows.append(Row(path, below(top, path), labels, f"{file}:{number}", listings.have(path)))
        elif line and not (number == 1 and _HEADER.fullmatch(line)):
            problems.append(f"{file}:{number}: {line[:120]!r}")
    return rows


def class_names(root: Path, tree: str, classes: StrPath | Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names, and words for `source` that say which file they are from."""
    if isinstance(classes, Mapping):
        raise UserError(f"the model has the heads {some(classes)}, but this data has one label per video")
    if not isinstance(classes, str | os.PathLike):
        return tuple(classes), ""
    file = find_file(root, tree, "classes", classes)
    return read_classes(file), f", classes {file}"


def read_classes(file: Path) -> tuple[str, ...]:
    """Names by id: one a line, or `name,id`, or columns `id,name` or `id,key,...`, or JSON {name: id}."""
    names = "\n".join(read_lines(file)).rstrip().split("\n")
    header = names[0].replace(" ", "").lower()
    expected = "one name a line, none empty or twice; the first line is class 0"
    form, pairs = "", []
    if file.suffix.lower() == ".json":
        known = read_json(file)
        form, pairs = (
            "{name: id}",
            [(str(i), name) for name, i in known.items()] if isinstance(known, dict) else [],
        )
    elif header == "id,name":
        form, pairs = "id,name", [line.partition(",")[::2] for line in names[1:]]
    elif header.startswith("id,key,"):
        try:
            rows = list(filter(None, csv.reader(names[1:])))
        except csv.Error as error:
            raise UserError(f"{file} cannot be read as `id,key,...`: {reason(error)}") from None
        form, pairs = "id,key,...", [(row[0], "".join(row[1:2])) for row in rows]
    elif all(map(_NAME_ID.fullmatch, names)):
        form, pairs = "name,id", [line.rpartition(",")[::-2] for line in names]
    if form:
        by_id = {number.strip(): _unquote(name.strip()) for number, name in pairs}
        names = [by_id.get(str(i), "") for i in range(len(pairs))]
        expected = f"`{form}` with ids 0 to {len(pairs) - 1}, each once"
        if not names:
            raise UserError(f"no classes in {file}; expected {expected}")
    count = Counter(names)
    wrong = [f"class {i}: {name!r}" for i, name in enumerate(names) if not name or count[name] > 1]
    if wrong:
        fail(f"wrong class names in {file}", wrong, f"Expected {expected}.")
    return tuple(names)


def read_json(file: Path) -> Any:
    try:
        return json.loads("\n".join(read_lines(file)))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}; is the file complete?") from None
    except RecursionError:
        raise UserError(f"{file} is nested too deeply for annotations") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise UserError(f"{file}: not JSON that can be read: {reason(error)}") from None


def cells(line: str) -> list[str]:
    """Those of a line of CSV; an empty one in their place where one is longer than csv reads, 128 KiB."""
    try:  # by line, so that a stray quote spoils one row, not all after it
        return next(csv.reader([line]), [])
    except csv.Error:
        return [""]


def read_lines(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    lines = re.split(r"\r\n|\n|\r", text)
    if "\0" in text:
        number = next(i for i, line in enumerate(lines, 1) if "\0" in line)
        raise UserError(f"{file}:{number}: has a zero byte, which no text has: is the file damaged?")
    return [line.strip() for line in lines]


def open_root(root: StrPath, tree: str) -> tuple[Path, str]:
    if is_url(os.fspath(root)):
        raise UserError(
            f"data.root={root} is a URL, and annotation files are read from the disk only: "
            "data=csv data.root=FOLDER, with the URLs of the videos in them"
        )
    path = Path(os.path.abspath(os.path.expanduser(root)))
    tree = tree.format(root=printable(path))
    if not path.is_dir():
        raise UserError(f"no folder {printable(path)}: set the data set's root.\n{tree}")
    return path, tree


def find_files(
    root: Path,
    tree: str,
    train: StrPath | None,
    val: StrPath,
    test: StrPath | None,
    classes: StrPath | Sequence[str] | None,
    places: Sequence[str] = PLACES,
) -> dict[str, Path]:
    if not val:
        raise UserError(f"no validation annotations: data.val=<file> is needed.\n{tree}")
    if not train and not classes:
        raise UserError(
            "without training annotations (data.train=null) the classes must come from data.reader.classes=<file>"
        )
    wanted = {"train": train, "val": val, "test": test}
    return {split: find_file(root, tree, split, file, places) for split, file in wanted.items() if file}


def find_file(root: Path, tree: str, what: str, file: StrPath, places: Sequence[str] = PLACES) -> Path:
    """The first there of `places`, names below root with {} for the file, and of the file as given."""
    # root first: a train.csv in the working folder may be another data set's
    below_root = () if os.path.isabs(file) else [root / place.replace("{}", os.fspath(file)) for place in places]
    candidates = [*below_root, Path(os.path.abspath(os.path.expanduser(file)))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    endings = ("csv", "tsv", "txt", "json")
    patterns = [f"{folder}*.{ending}" for folder in ("", "annotations/") for ending in endings]
    there = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))]
    raise UserError(
        f"no {what} file {printable(file)}; looked for {some(candidates)}\n"
        f"Annotation files in {printable(root)}: {some(there) or 'none'}.\n{tree}"
    )


def _clips_by_class(folder: Path, tree: str, notices: list[str]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    for name in _subfolders(folder):
        classes[name], left_out = list_videos(folder / name)
        if not classes[name]:
            classes[name] = _picture_folders(folder / name)
            left_out = Counter({ending: n for ending, n in left_out.items() if not is_picture(f"0{ending}")})
        others += left_out
    for tar in sorted(folder.glob("*.tar")):
        for member in members(str(tar)):
            name, _, rest = member.partition("/")
            if _IS_VIDEO.fullmatch(posixpath.basename(rest)):
                classes.setdefault(name, []).append(f"{tar}/{member}")
            else:
                others[_ending(member)] += 1
    classes = {name: classes[name] for name in sorted(classes)}
    loose = [name for name in sorted(os.listdir(folder)) if _IS_VIDEO.fullmatch(name)]
    if not classes:
        found = f"only loose videos: {some(loose)}" if loose else "the folder is empty or has no videos"
        raise UserError(f"no class folders in {printable(folder)}; {found}\n{tree}")
    if loose:
        notices.append(f"{len(loose)} videos in {folder} are in no class folder and are ignored: {some(loose)}")
    if others:
        notices.append(f"no videos by their names, so left out of {folder}: {shown_endings(others)}")
    return classes


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def find_videos(folder: Path) -> list[str]:
    """Videos anywhere below `folder`, sorted. Hidden files and folders are passed over."""
    return list_videos(folder)[0]


def list_videos(folder: Path) -> tuple[list[str], Counter[str]]:
    """Those of `find_videos`, and of the files that by their names are none how many end in what."""
    videos, others = [], Counter[str]()
    for parent, _, files in walk(folder):
        for name in files:
            if _IS_VIDEO.fullmatch(name):
                videos.append(os.path.join(parent, name))
            elif not name.startswith("."):
                others[_ending(name)] += 1
    return sorted(videos), others


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def shown_endings(counts: Counter[str]) -> str:
    most_first = sorted((-n, ending) for ending, n in counts.items())
    return some(f"{-n:,} {ending or 'without an ending'}" for n, ending in most_first)


def _picture_folders(folder: Path) -> list[str]:
    """Folders below `folder` that have pictures in them and no folders, sorted."""
    return sorted(
        parent
        for parent, folders, files in walk(folder)
        if parent != str(folder) and not folders and any(map(is_picture, files))
    )


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, through links, but not into hidden folders nor round in circles."""
    for parent, folders, files in os.walk(str(folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(parent, name)]
        yield parent, folders, files


def _leads_back(parent: str, name: str) -> bool:
    path = os.path.join(parent, name)
    return os.path.islink(path) and Path(parent).resolve().is_relative_to(Path(path).resolve())


def below(root: StrPath, path: str) -> str:
    """Relative to root, with forward slashes, where the path is below it."""
    return path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def some(things: Iterable[object], shown: int = SHOWN) -> str:
    """The first of them, for a message."""
    items = list(map(printable, things))
    more = f", ... ({len(items)} in all)" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def fail(headline: str, problems: Sequence[str], advice: str) -> NoReturn:
    """Raises a UserError with the first of the problems, a line each."""
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    shown = map(printable, problems[:SHOWN])
    raise UserError("\n  ".join([f"{printable(headline)} ({len(problems)}):", *shown, *more]) + f"\n{advice}")
