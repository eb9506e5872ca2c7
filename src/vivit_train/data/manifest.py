"""From folders or annotation files to one typed table of clips per split. No video is opened here.

Each reader turns its own layout into lists of `_Row`; `_splits` makes the checks that all of them share.
"""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from vivit_train.errors import UserError

StrPath = str | os.PathLike[str]
Strings = NDArray[Any]  # of numpy's StringDType

VIDEO_EXTENSIONS = ("mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "wmv", "flv", "ts", "3gp")
MAX_CLASSES = 100_000  # a larger id is a frame count or a time stamp in the label's place
SHOWN = 5  # problems that a message names before it only counts

_VIDEO = rf"\.(?:{'|'.join(VIDEO_EXTENSIONS)})"
_IS_VIDEO = re.compile(rf"[^.].*{_VIDEO}", re.IGNORECASE)
_LABEL = r'"(?:[^"]|"")+"|(?![\d.-]+(?:\s+[\d.-]+)+$)[^",\t]+'  # several numbers would be several columns
_PATH_LABEL = re.compile(rf'("(?:[^"]|"")+"|[^"]*{_VIDEO})\s*[\s,]\s*({_LABEL})', re.IGNORECASE)
_HEADER = re.compile(r"[^./\\]*[^./\\\d]")  # words only: nothing like a path, no id at the end
_ID = re.compile(r"-?\d+")

FOLDER_TREE = """Expected in {root}, with a folder per class:
  train/<class>/<video>.mp4     or, to have it split:     <class>/<video>.mp4
  val/<class>/<video>.mp4
  test/<class>/<video>.mp4      (optional)"""
CSV_TREE = """Expected in {root}:
  train.csv, val.csv     one `path label` a row, separated by a space, comma or tab
  <path>                 the videos; an absolute path stands for itself"""
KINETICS_TREE = """Expected in {root}:
  train.csv, val.csv     columns label,youtube_id,time_start,time_end; or in annotations/
  train/**/<youtube_id>_<start>_<end>.mp4, such as train/abseiling/0wR5jVB-WPk_000417_000427.mp4
  val/**/...             or both below videos/, or anywhere below the root"""


@dataclass(frozen=True, eq=False, slots=True)
class Manifest:
    """The clips of one split. Columns, not objects, so that 500,000 rows stay small and workers share them.

    Attributes:
        paths: absolute path of each video.
        labels: class of each, an index into `Splits.classes`.
        ids: name of each in predictions: the path relative to root, or the YouTube id.
    """

    paths: Strings
    labels: NDArray[np.int64]
    ids: Strings

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, slots=True)
class Splits:
    """The clips of a data set.

    Attributes:
        classes: their names; the position is the id.
        train: empty where the reader was told that there are no training annotations.
        test: None where there is none.
        source: where this came from, in one line.
        notices: what a person should know, such as how many videos are missing; part of `summary()`.
    """

    classes: tuple[str, ...]
    train: Manifest
    val: Manifest
    test: Manifest | None
    source: str
    notices: tuple[str, ...] = ()

    def summary(self) -> str:
        """Source, classes, counts per split and notices, for a person to read."""
        names = self.classes if len(self.classes) <= 10 else (*self.classes[:4], "...", self.classes[-1])
        lines = [f"source   {self.source}", f"classes  {len(self.classes)}: {', '.join(names)}"]
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            if split is not None:
                counts = np.bincount(split.labels, minlength=len(self.classes))
                lines.append(f"{name:<8} {len(split)} clips, {counts.min()} to {counts.max()} per class")
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
    top, tree = _root(root, FOLDER_TREE)
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
            _fail("missing folders", absent, f"Folders in {top}: {there}. {advice}\n{tree}")
        clips = {split: _clips_by_class(folder, tree, notices) for split, folder in folders.items()}
        source = f"folders {_some(folders.values())}"
    elif classes:
        folders, clips, source = {"val": top}, {"val": _clips_by_class(top, tree, notices)}, f"folder {top}"
    else:
        if not 0 < val_percent < 100:
            raise UserError(f"data.reader.val_percent is {val_percent}; it must lie between 0 and 100")
        folders = {"train": top, "val": top}
        clips = {"train": {}, "val": {}}
        for name, paths in _clips_by_class(top, tree, notices).items():
            # by hash, not by a generator: the same on every machine and version, whatever clips come later
            paths.sort(key=lambda path: hashlib.sha256(f"{seed}/{_below(top, path)}".encode()).digest())
            count = min(max(round(len(paths) * val_percent / 100), 1), max(len(paths) - 1, 0))
            clips["val"][name], clips["train"][name] = sorted(paths[:count]), sorted(paths[count:])
        source = f"folder {top}, split here by class: {val_percent:g}% to val, seed {seed}"

    empty = [str(folders["train"] / name) for name, paths in clips.get("train", {}).items() if not paths]
    if empty:
        _fail(
            "class folders without videos",
            empty,
            f"Fill or delete them. Looked for {', '.join(VIDEO_EXTENSIONS)}.",
        )
    tables = {
        split: [_Row(path, _below(top, path), name, path) for name, paths in classes.items() for path in paths]
        for split, classes in clips.items()
    }
    names = tuple(classes or clips["train"])
    index = {name: i for i, name in enumerate(names)}
    return _splits(
        tables, folders, names, index, source, tree, may_lack_clips=classes is not None, notices=notices
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
    top, tree = _root(root, CSV_TREE)
    files = _find_files(top, tree, train, val, test, classes)
    problems: list[str] = []
    listings = _Listings()
    tables = {split: _read_rows(file, top, listings, problems) for split, file in files.items()}
    if problems:
        advice = (
            "Expected a path that ends in a video extension or stands in quotes, then a space, comma or tab, then"
        )
        _fail("malformed rows", problems, f"{advice} one label, in quotes where it has a comma.")

    beside = [top / "classes.txt", files["val"].with_name("classes.txt")]
    names, named_by = _class_names(top, tree, classes or next(filter(Path.is_file, beside), ()))
    reference = {row.label for row in tables["train" if train else "val"]}
    if all(map(_ID.fullmatch, reference)):
        labels = {row.label for table in tables.values() for row in table}
        ids = {label: int(label) for label in labels if _ID.fullmatch(label)}
        largest = max((ids[label] for label in reference if ids[label] < MAX_CLASSES), default=0)
        names = names or tuple(map(str, range(largest + 1)))
        index = {label: i for label, i in ids.items() if 0 <= i < len(names)}
    else:
        names = names or tuple(sorted(reference))
        index = {name: i for i, name in enumerate(names)}
    source = f"csv {_some(files.values())}{named_by}"
    return _splits(tables, files, names, index, source, tree, max_missing, may_lack_clips=classes is not None)


def read_kinetics(
    root: StrPath,
    *,
    train: StrPath | None = "train.csv",
    val: StrPath = "val.csv",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.1,
) -> Splits:
    """Read Kinetics as published: label,youtube_id,time_start,time_end[,split,...] with a header.

    A split's videos are found by name, with any video extension, anywhere below the first of root/<split>,
    root/videos/<split>, root/videos and root that exists. Classes are the training labels in alphabetical
    order, as published.

    Args:
        root: the data set's folder.
        train, val, test: annotation files, looked up in root, in root/annotations and as given. With
            train=None, for evaluation only, `classes` is needed.
        classes: a published label map, a name a line or `id,name`; or the names. They may lack training clips.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.

    Raises:
        UserError: as `read_csv`.
    """
    top, tree = _root(root, KINETICS_TREE)
    files = _find_files(top, tree, train, val, test, classes)
    problems: list[str] = []
    tables: dict[str, list[_Row]] = {}
    indexed: dict[Path, dict[str, str]] = {}
    for split, file in files.items():
        places = (top / split, top / "videos" / split, top / "videos", top)
        folder = next(filter(Path.is_dir, places))
        if folder not in indexed:  # reversed, so that of several copies the first in sorted order stays
            stems = ((os.path.splitext(os.path.basename(path))[0], path) for path in reversed(_videos(folder)))
            indexed[folder] = dict(stems)
        tables[split] = _read_kinetics_rows(file, folder, indexed[folder], problems)
    if problems:
        _fail("malformed rows", problems, "Expected the columns of the header, and times in whole seconds.")

    source = f"kinetics {_some(files.values())}"
    if classes:
        names, named_by = _class_names(top, tree, classes)
        source += named_by
        ids = {_bare(name): i for i, name in enumerate(names)}
        labels = {row.label for table in tables.values() for row in table}
        index = {label: ids[_bare(label)] for label in labels if _bare(label) in ids}
    else:
        names = tuple(sorted({row.label for row in tables["train"]}))
        index = {name: i for i, name in enumerate(names)}
    return _splits(tables, files, names, index, source, tree, max_missing, may_lack_clips=classes is not None)


class _Row(NamedTuple):
    path: str
    id: str
    label: str
    where: str  # for messages: file:line, or the video itself
    found: bool = True


def _splits(
    tables: dict[str, list[_Row]],
    files: dict[str, Path],
    names: tuple[str, ...],
    index: dict[str, int],
    source: str,
    tree: str,
    max_missing: float = 0,
    may_lack_clips: bool = False,
    notices: Sequence[str] = (),
) -> Splits:
    """Check what every data set must satisfy, and make the tables. `index` maps labels as written to ids."""
    notices = list(notices)
    bare = [str(files[split]) for split, rows in tables.items() if not rows]
    if bare:
        _fail("no clips", bare, f"A split needs at least one.\n{tree}")

    problems: list[str] = []
    missing: list[str] = []
    for split, rows in tables.items():
        first: dict[str, _Row] = {}
        for row in rows:
            if row.label not in index:
                problems.append(f"{row.where}: unknown label {row.label!r}")
            before = first.setdefault(row.path, row)
            if row.label != before.label:
                problems.append(
                    f"{row.where}: {row.path} is {row.label!r}, but {before.label!r} in {before.where}"
                )
        if len(first) < len(rows):
            notices.append(f"{files[split]}: {len(rows) - len(first)} rows repeat an earlier one; kept")
        lost = [row.path for row in rows if not row.found]
        if lost:
            text = (
                f"{files[split]}: {len(rows) - len(lost)} of {len(rows)} videos found; missing: {_some(lost, 2)}"
            )
            (missing if len(lost) > min(max_missing * len(rows), len(rows) - 1) else notices).append(text)
    if problems:
        known = f"ids from 0 to {len(names) - 1}" if all(map(_ID.fullmatch, index)) else f"one of {_some(names)}"
        _fail("wrong labels", problems, f"Expected {known}, and one label per video.\nClasses are from {source}.")
    if len(names) < 2:
        raise UserError(f"only one class, {names[0]!r}, in {source}; a classifier needs at least two.\n{tree}")
    if missing:
        advice = f"Check the data set's root, or allow more: data.reader.max_missing is {max_missing:g}."
        _fail("too many missing videos", missing, f"{advice}\n{tree}")

    manifests = {split: _manifest(rows, index) for split, rows in tables.items()}
    manifests.setdefault("train", _manifest([], index))
    for split, rows in tables.items():
        counts = np.bincount(manifests[split].labels, minlength=len(names))
        empty = np.flatnonzero(counts == 0).tolist()
        if empty and split == "train" and not may_lack_clips:
            listed = Counter(index[row.label] for row in rows)
            lines = [f"class {i} ({names[i]}): {listed[i]} rows, 0 videos found" for i in empty]
            advice = (
                "Ids run from 0 without gaps. For classes empty on purpose: data.reader.classes=<file of names>."
            )
            _fail(f"classes without clips in {files[split]}", lines, advice)
        if empty:
            some = _some([names[i] for i in empty])
            notices.append(f"{split} has no clips of {len(empty)} of {len(names)} classes: {some}")
    ids = {split: set(manifest.ids.tolist()) for split, manifest in manifests.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(ids[one] & ids.get(other, set()))
        if both:
            notices.append(f"{one} and {other} share {len(both)} clips: {_some(both)}")
    return Splits(names, manifests["train"], manifests["val"], manifests.get("test"), source, tuple(notices))


def _manifest(rows: list[_Row], index: dict[str, int]) -> Manifest:
    rows = [row for row in rows if row.found]
    paths = np.array([row.path for row in rows], np.dtypes.StringDType())
    labels = np.array([index[row.label] for row in rows], np.int64)
    return Manifest(paths, labels, np.array([row.id for row in rows], np.dtypes.StringDType()))


class _Listings(dict[str, frozenset[str]]):
    """Folder -> names in it, from one listing each: a stat per file takes minutes on network disks."""

    def __missing__(self, folder: str) -> frozenset[str]:
        self[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
        return self[folder]


def _read_rows(file: Path, root: Path, listings: _Listings, problems: list[str]) -> list[_Row]:
    top = str(root)  # joins three times as fast as a Path
    rows = []
    for number, line in enumerate(_lines(file), 1):
        if match := _PATH_LABEL.fullmatch(line):
            written, label = map(_unquote, match.groups())
            path = os.path.normpath(os.path.join(top, written))
            folder, name = os.path.split(path)
            rows.append(_Row(path, _below(top, path), label, f"{file}:{number}", name in listings[folder]))
        elif line and not (number == 1 and _HEADER.fullmatch(line)):
            problems.append(f"{file}:{number}: {line[:120]!r}")
    return rows


def _read_kinetics_rows(file: Path, folder: Path, indexed: dict[str, str], problems: list[str]) -> list[_Row]:
    lines = _lines(file)
    header = next(csv.reader(lines[:1]), [])
    needed = ("label", "youtube_id", "time_start", "time_end")
    absent = [name for name in needed if name not in header]
    if absent:
        advice = "Test files published without labels cannot be scored."
        raise UserError(
            f"{file}:1: no column {', '.join(absent)} in {','.join(header)!r}\n"
            f"Expected the header {','.join(needed)}[,...]. {advice}"
        )
    columns = [header.index(name) for name in needed]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        values = next(csv.reader([line]), [])  # by line, so that a stray quote spoils one row, not all after it
        label, youtube_id, start, end = (values[i] for i in columns) if len(values) == len(header) else [""] * 4
        if label and youtube_id and start.isdecimal() and end.isdecimal():
            stem = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
            path = indexed.get(stem) or os.path.join(folder, f"{stem}.mp4")
            rows.append(_Row(path, youtube_id, label, f"{file}:{number}", stem in indexed))
        elif line:
            problems.append(f"{file}:{number}: {line[:120]!r}")
    return rows


def _class_names(root: Path, tree: str, classes: StrPath | Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names, and words for `source` that say which file they are from."""
    if not isinstance(classes, str | os.PathLike):
        return tuple(classes), ""
    file = _find(root, tree, "classes", classes)
    return _read_classes(file), f", classes {file}"


def _read_classes(file: Path) -> tuple[str, ...]:
    names = "\n".join(_lines(file)).rstrip().split("\n")
    expected = "one name a line, none empty or twice; the first line is class 0"
    if names[0].replace(" ", "").lower() == "id,name":
        rows = [line.split(",", 1) for line in names[1:]]
        by_id = {row[0].strip(): _unquote(row[-1].strip()) for row in rows if len(row) == 2}
        names = [by_id.get(str(i), "") for i in range(len(rows))]
        expected = f"`id,name` with ids 0 to {len(rows) - 1}, each once"
    count = Counter(names)
    wrong = [f"class {i}: {name!r}" for i, name in enumerate(names) if not name or count[name] > 1]
    if wrong:
        _fail(f"wrong class names in {file}", wrong, f"Expected {expected}.")
    return tuple(names)


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text)]


def _root(root: StrPath, tree: str) -> tuple[Path, str]:
    path = Path(os.path.abspath(os.path.expanduser(root)))
    tree = tree.format(root=path)
    if not path.is_dir():
        raise UserError(f"no folder {path}: set the data set's root.\n{tree}")
    return path, tree


def _find_files(
    root: Path,
    tree: str,
    train: StrPath | None,
    val: StrPath,
    test: StrPath | None,
    classes: StrPath | Sequence[str] | None,
) -> dict[str, Path]:
    if not val:
        raise UserError(f"no validation annotations: data.val=<file> is needed.\n{tree}")
    if not train and not classes:
        raise UserError(
            "without training annotations (data.train=null) the classes must come from data.reader.classes=<file>"
        )
    wanted = {"train": train, "val": val, "test": test}
    return {split: _find(root, tree, split, file) for split, file in wanted.items() if file}


def _find(root: Path, tree: str, what: str, file: StrPath) -> Path:
    # root first: a train.csv in the working folder may be another data set's
    places = [root / file, root / "annotations" / file, Path(os.path.abspath(os.path.expanduser(file)))]
    for place in places:
        if place.is_file():
            return place
    patterns = [f"{folder}*.{ending}" for folder in ("", "annotations/") for ending in ("csv", "tsv", "txt")]
    there = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))]
    raise UserError(
        f"no {what} file {file}; looked for {', '.join(map(str, places))}\n"
        f"Annotation files in {root}: {_some(there) or 'none'}.\n{tree}"
    )


def _clips_by_class(folder: Path, tree: str, notices: list[str]) -> dict[str, list[str]]:
    classes = {name: _videos(folder / name) for name in _subfolders(folder)}
    loose = [name for name in sorted(os.listdir(folder)) if _IS_VIDEO.fullmatch(name)]
    if not classes:
        found = f"only loose videos: {_some(loose)}" if loose else "the folder is empty or has no videos"
        raise UserError(f"no class folders in {folder}; {found}\n{tree}")
    if loose:
        notices.append(f"{len(loose)} videos in {folder} are in no class folder and are ignored: {_some(loose)}")
    return classes


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _videos(folder: Path) -> list[str]:
    """Videos anywhere below `folder`, sorted. Hidden files and folders are passed over."""
    videos = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos += [os.path.join(parent, name) for name in files if _IS_VIDEO.fullmatch(name)]
    return sorted(videos)


def _below(root: StrPath, path: str) -> str:
    """Relative to root, with forward slashes, where the path is below it."""
    return path.removeprefix(os.path.join(root, "")).replace(os.sep, "/")


def _bare(name: str) -> str:
    """For comparison: of the two published maps of Kinetics-400 one drops the parentheses in names."""
    return re.sub(r"[()]", "", name)


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') else text


def _some(things: Iterable[object], shown: int = SHOWN) -> str:
    items = list(map(str, things))
    more = f", ... ({len(items)} in all)" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def _fail(headline: str, problems: Sequence[str], advice: str) -> NoReturn:
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n  ".join([f"{headline} ({len(problems)}):", *problems[:SHOWN], *more]) + f"\n{advice}")
