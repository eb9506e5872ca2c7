"""From folders or annotation files to one typed table of clips per split. No video is opened here.

Each reader turns its own layout into lists of `Row`; `make_splits` makes the checks that all of them share.
The readers for people's own videos are here, those of published data sets in published.py.
"""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from vivit_train.errors import UserError

StrPath = str | os.PathLike[str]
Strings = NDArray[Any]  # of numpy's StringDType
Classes = dict[str, tuple[str, ...]]  # head -> names of its classes; "" is the head where there is only one

VIDEO_EXTENSIONS = ("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp")
MAX_CLASSES = 100_000  # a larger id is a frame count or a time stamp in the label's place
SHOWN = 5  # problems that a message names before it only counts

_VIDEO = rf"\.(?:{'|'.join(VIDEO_EXTENSIONS)})"
_IS_VIDEO = re.compile(rf"[^.].*{_VIDEO}", re.IGNORECASE)
_LABEL = r'"(?:[^"]|"")+"|(?![\d.-]+(?:\s+[\d.-]+)+$)[^",\t]+'  # several numbers would be several columns
_PATH_LABEL = re.compile(rf'("(?:[^"]|"")+"|[^"]*{_VIDEO})\s*[\s,]\s*({_LABEL})', re.IGNORECASE)
_HEADER = re.compile(r"[^./\\]*[^./\\\d]")  # words only: nothing like a path, no id at the end
_ID = re.compile(r"-?\d+")
_NAME_ID = re.compile(r".+,\s*\d+")  # as in the class file of Moments in Time
PLACES = ("{}", "annotations/{}")  # below root, where an annotation file is looked for

FOLDER_TREE = """Expected in {root}, with a folder per class:
  train/<class>/<video>.mp4     or, to have it split:     <class>/<video>.mp4
  val/<class>/<video>.mp4
  test/<class>/<video>.mp4      (optional)"""
CSV_TREE = """Expected in {root}:
  train.csv, val.csv     one `path label` a row, separated by a space, comma or tab
  <path>                 the videos; an absolute path stands for itself"""


@dataclass(frozen=True, eq=False, slots=True)
class Manifest:
    """The clips of one split. Columns, not objects, so that 500,000 rows stay small and workers share them.

    Attributes:
        paths: absolute path of each clip's video.
        labels: classes of each, [n, heads], indices into the names in `Splits.classes`.
        ids: name of each in predictions: the path relative to root, the YouTube id, ....
        spans_s: start and end of each within its video in seconds, [n, 2]; None where every clip is a whole video.
    """

    paths: Strings
    labels: NDArray[np.int64]
    ids: Strings
    spans_s: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> "Manifest":
        """These rows, in this order."""
        spans_s = None if self.spans_s is None else self.spans_s[rows]
        return Manifest(self.paths[rows], self.labels[rows], self.ids[rows], spans_s)

    def label_counts(self) -> NDArray[np.int64]:
        """How many clips have the labels (of all heads together) of each clip: [n]."""
        _, which, counts = np.unique(self.labels, axis=0, return_inverse=True, return_counts=True)
        return counts[which.reshape(-1)]


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

    def summary(self) -> str:
        """Source, classes, counts per split and notices, for a person to read."""
        lines = [f"source   {self.source}"]
        for head, names in self.classes.items():
            shown = names if len(names) <= 10 else (*names[:4], "...", names[-1])
            lines.append(f"{head or 'classes':<8} {len(names)}: {', '.join(shown)}")
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                counts = [
                    np.bincount(split.labels[:, i], minlength=len(c)) for i, c in enumerate(self.classes.values())
                ]
                spread = "; ".join(
                    f"{c.min()} to {c.max()} per {head or 'class'}"
                    for head, c in zip(self.classes, counts, strict=True)
                )
                lines.append(f"{name:<8} {len(split)} clips, {spread}")
        return "\n".join(lines + [f"note     {notice}" for notice in self.notices])


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
            there = ", ".join(_subfolders(top)) or "none"
            advice = "Name the split folders with data.train=, data.val= and data.test= (data.val=test is fine)."
            fail("missing folders", absent, f"Folders in {top}: {there}. {advice}\n{tree}")
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
            paths.sort(key=lambda path: hashlib.sha256(f"{seed}/{below(top, path)}".encode()).digest())
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
) -> Splits:
    """Read files with a `path label` a row, separated by a space, comma or tab, with or without a header.

    A row is a path that ends in a video extension or stands in quotes, a separator, and the label: an id or a
    name, in quotes where it has a comma. A first row of words only is a header. Files are looked up in root,
    in root/annotations and as given.

    Classes are those of `classes`, else of a classes.txt in root or beside the annotation file, else the
    training labels: names in sorted order, or ids from 0 to the largest.

    Args:
        root: folder that the paths are relative to.
        train, val, test: annotation files. With train=None, for evaluation only, `classes` is needed.
        classes: file with a name a line, the first being class 0, or with columns `id,name`; or the names
            themselves. These may lack training clips.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.

    Raises:
        UserError: a file is missing or malformed, a label is unknown, a video has two labels, a class has no
            training clips, or too many videos are missing.
    """
    top, tree = open_root(root, CSV_TREE)
    files = find_files(top, tree, train, val, test, classes)
    problems: list[str] = []
    listings = Listings()
    tables = {split: _read_rows(file, top, listings, problems) for split, file in files.items()}
    if problems:
        advice = (
            "Expected a path that ends in a video extension or stands in quotes, then a space, comma or tab, then"
        )
        fail("malformed rows", problems, f"{advice} one label, in quotes where it has a comma.")

    beside = [top / "classes.txt", files["val"].with_name("classes.txt")]
    names, named_by = class_names(top, tree, classes or next(filter(Path.is_file, beside), ()))
    reference = {row.labels[0] for row in tables["train" if train else "val"]}
    if all(map(_ID.fullmatch, reference)):
        labels = {row.labels[0] for table in tables.values() for row in table}
        numbers = {label: int(label) for label in labels if _ID.fullmatch(label)}
        largest = max((numbers[label] for label in reference if numbers[label] < MAX_CLASSES), default=0)
        names = names or tuple(map(str, range(largest + 1)))
        ids = {label: i for label, i in numbers.items() if 0 <= i < len(names)}
    else:
        names = names or tuple(sorted(reference))
        ids = {name: i for i, name in enumerate(names)}
    source = f"csv {some(files.values())}{named_by}"
    lacking = classes is not None
    return make_splits(tables, files, {"": names}, {"": ids}, source, tree, max_missing, may_lack_clips=lacking)


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
) -> Splits:
    """Check what every data set must satisfy, and make the tables.

    Args:
        tables: the rows of each split; files: where they came from.
        ids: head -> label as written -> class id.
        source, tree: of the data, in one line, and the layout that was expected, for messages.
        max_missing: share of a split's rows that may lack their video.
        may_lack_clips: classes without training clips are fine.
        may_differ: a clip that is listed under two labels is worth a notice, not an error.
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
            for label, head_ids in zip(row.labels, ids.values(), strict=True):
                if label not in head_ids:
                    problems.append(f"{row.where}: unknown label {label!r}")
            before = first.setdefault((row.path, row.span_s), row)
            if row.labels != before.labels:
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
        fail(
            "wrong labels",
            problems,
            f"Expected {'; '.join(known)}, and one label per video.\nClasses are from {source}.",
        )
    for names in classes.values():
        if len(names) < 2:
            raise UserError(f"only one class, {names[0]!r}, in {source}; a classifier needs at least two.\n{tree}")
    if too_many:
        advice = f"Check the data set's root, or allow more: data.reader.max_missing is {max_missing:g}."
        fail("too many missing videos", too_many, f"{advice}\n{tree}")

    manifests = {split: make_manifest(rows, ids) for split, rows in tables.items()}
    manifests.setdefault("train", make_manifest([], ids))
    for split, rows in tables.items():
        for head, (name, names) in enumerate(classes.items()):
            empty = np.flatnonzero(
                np.bincount(manifests[split].labels[:, head], minlength=len(names)) == 0
            ).tolist()
            if empty and split == "train" and not may_lack_clips:
                listed = Counter(ids[name][row.labels[head]] for row in rows)
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
    return ", ".join(map(repr, row.labels))


def make_manifest(rows: list[Row], ids: Mapping[str, Mapping[str, int]]) -> Manifest:
    rows = [row for row in rows if row.found]
    labels = [[known[label] for label, known in zip(row.labels, ids.values(), strict=True)] for row in rows]
    has_spans = any(row.span_s for row in rows)
    return Manifest(
        paths=np.array([row.path for row in rows], np.dtypes.StringDType()),
        labels=np.array(labels, np.int64).reshape(-1, len(ids)),
        ids=np.array([row.id for row in rows], np.dtypes.StringDType()),
        spans_s=np.array([row.span_s for row in rows], np.float64) if has_spans else None,
    )


class Listings(dict[str, frozenset[str]]):
    """Folder -> names in it, from one listing each: a stat per file takes minutes on network disks."""

    def __missing__(self, folder: str) -> frozenset[str]:
        self[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
        return self[folder]


def _read_rows(file: Path, root: Path, listings: Listings, problems: list[str]) -> list[Row]:
    top = str(root)  # joins three times as fast as a Path
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        if match := _PATH_LABEL.fullmatch(line):
            written, label = map(_unquote, match.groups())
            path = os.path.normpath(os.path.join(top, written))
            folder, name = os.path.split(path)
            rows.append(Row(path, below(top, path), (label,), f"{file}:{number}", name in listings[folder]))
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
        rows = list(filter(None, csv.reader(names[1:])))
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


def read_lines(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text)]


def open_root(root: StrPath, tree: str) -> tuple[Path, str]:
    path = Path(os.path.abspath(os.path.expanduser(root)))
    tree = tree.format(root=path)
    if not path.is_dir():
        raise UserError(f"no folder {path}: set the data set's root.\n{tree}")
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
        f"no {what} file {file}; looked for {some(candidates)}\n"
        f"Annotation files in {root}: {some(there) or 'none'}.\n{tree}"
    )


def _clips_by_class(folder: Path, tree: str, notices: list[str]) -> dict[str, list[str]]:
    classes = {name: find_videos(folder / name) for name in _subfolders(folder)}
    loose = [name for name in sorted(os.listdir(folder)) if _IS_VIDEO.fullmatch(name)]
    if not classes:
        found = f"only loose videos: {some(loose)}" if loose else "the folder is empty or has no videos"
        raise UserError(f"no class folders in {folder}; {found}\n{tree}")
    if loose:
        notices.append(f"{len(loose)} videos in {folder} are in no class folder and are ignored: {some(loose)}")
    return classes


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def find_videos(folder: Path) -> list[str]:
    """Videos anywhere below `folder`, sorted. Hidden files and folders are passed over."""
    videos = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos += [os.path.join(parent, name) for name in files if _IS_VIDEO.fullmatch(name)]
    return sorted(videos)


def below(root: StrPath, path: str) -> str:
    """Relative to root, with forward slashes, where the path is below it."""
    return path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def some(things: Iterable[object], shown: int = SHOWN) -> str:
    items = list(map(str, things))
    more = f", ... ({len(items)} in all)" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def fail(headline: str, problems: Sequence[str], advice: str) -> NoReturn:
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n  ".join([f"{headline} ({len(problems)}):", *problems[:SHOWN], *more]) + f"\n{advice}")
