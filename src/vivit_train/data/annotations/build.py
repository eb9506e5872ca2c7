"""Builds the clip tables of all splits from annotation rows, and reports all problems in one message."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.files import (
    IS_VIDEO,
    ending_of,
    find_file,
    list_videos,
    picture_folders,
    raise_listed,
    read_classes,
    shorten,
    shown_endings,
    subfolders,
)
from vivit_train.data.annotations.table import SEPARATOR, Classes, ClipTable, LabelSets, Splits, StrPath
from vivit_train.data.video.storage import is_picture, members
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural, printable

MAX_CLASSES = 100_000  # A larger id is probably a frame count or a time stamp in the wrong column.
_FOREIGN = re.compile("[\udc80-\udcff]")  # surrogates, by which Python represents bytes that are not UTF-8
NUMERIC_ID = re.compile(r"-?\d+")


class Row(NamedTuple):
    """A row of an annotation file.

    Attributes:
        path: The absolute path or the URL of the video.
        id: The name of the clip in predictions.
        labels: The labels as written, one per head or, for multi-label data, any number.
        where: The place of the row for messages: file:line, or the path of the video.
        found: Whether the video exists.
        span_s: The start and the end of the clip in seconds; None if the clip is the whole video.
    """

    path: str
    id: str
    labels: tuple[str, ...]
    where: str
    found: bool = True
    span_s: tuple[float, float] | None = None


def make_splits(
    tables: Mapping[str, list[Row]],
    files: Mapping[str, Path],
    classes: Classes,
    ids: Mapping[str, Mapping[str, int]],
    source: str,
    expected_layout: str,
    max_missing: float = 0,
    may_lack_clips: bool = False,
    may_differ: bool = False,
    notices: Sequence[str] = (),
    multi_label: bool = False,
) -> Splits:
    """Checks the requirements that all data sets share, and builds the splits.

    Args:
        tables: The rows of each split.
        files: The annotation file or folder of each split, for messages.
        classes: The class names of each head.
        ids: The mapping from labels as written to class ids, for each head.
        source: The origin of the data in one line, for messages.
        expected_layout: A description of the expected files, for messages.
        max_missing: The share of a split's rows whose videos may be missing.
        may_lack_clips: Whether classes may have no training clips.
        may_differ: Whether a clip that is listed under two labels gives a notice instead of an error.
        notices: Notices that the reader has already collected.
        multi_label: Whether each row has any number of labels, all of a single head.

    Raises:
        UserError: If a split has no clips, a label is unknown or contradictory, there is only one class, a class
            has no training clips, or too many videos are missing.
    """
    notices = list(notices)
    bare = [str(files[split]) for split, rows in tables.items() if not rows]
    if bare:
        raise_listed("no clips", bare, f"A split needs at least one.\n{expected_layout}")

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
            notices.append(
                f"{files[split]}: kept {plural(len(differing), 'clip')} with two labels. {differing[0]}"
            )
        elif differing:
            problems += differing
        if len(first) < len(rows):
            notices.append(f"{files[split]}: kept {plural(len(rows) - len(first), 'duplicate row')}")
        missing[split] = lost = list(dict.fromkeys(row.path for row in rows if not row.found))
        rows_lost = sum(not row.found for row in rows)
        if lost:
            clips_are = "segments have their video" if rows[0].span_s else "videos found"
            text = (
                f"{files[split]}: {len(rows) - rows_lost:,} of {len(rows):,} {clips_are}; "
                f"first missing: {shorten(lost, 2)}"
            )
            (too_many if rows_lost > min(max_missing * len(rows), len(rows) - 1) else notices).append(text)
    if problems:
        numbered = all(map(NUMERIC_ID.fullmatch, next(iter(ids.values()))))
        known = [
            f"ids from 0 to {len(names) - 1}" if numbered else f"one of {shorten(names)}"
            for names in classes.values()
        ]
        once = "all labels of a video in one row" if multi_label else "one label per video"
        advice = f"Expected {'; '.join(known)}, and {once}.\nClasses are from {printable(source)}."
        raise_listed("invalid labels", problems, advice)
    for names in classes.values():
        if len(names) < 2 and not multi_label:
            raise UserError(
                f"only one class, {names[0]!r}, in {printable(source)}; a classifier needs at least two.\n"
                f"{expected_layout}"
            )
    if too_many:
        advice = f"Check the data set's root, or allow more; data.reader.max_missing is {max_missing:g}."
        raise_listed("too many missing videos", too_many, f"{advice}\n{expected_layout}")

    manifests = {split: make_manifest(rows, classes, ids, multi_label) for split, rows in tables.items()}
    manifests.setdefault("train", make_manifest([], classes, ids, multi_label))
    for split, rows in tables.items():
        counts = manifests[split].class_counts(classes)
        for head, (name, names) in enumerate(classes.items()):
            empty = np.flatnonzero(counts[head] == 0).tolist()
            if empty and split == "train" and not may_lack_clips:
                own = slice(None) if multi_label else slice(head, head + 1)
                listed = Counter(ids[name][label] for row in rows for label in row.labels[own])
                lines = [f"class {i} ({names[i]}): {plural(listed[i], 'row')}, 0 videos found" for i in empty]
                advice = (
                    "Ids must run from 0 without gaps. Empty classes need data.reader.classes=<file of names>."
                )
                raise_listed(f"classes without clips in {files[split]}", lines, advice)
            if empty:
                listed_names = shorten([names[i] for i in empty])
                kind = f"{name} classes" if name else "classes"
                notices.append(f"{split} has no clips of {len(empty)} of {len(names)} {kind}: {listed_names}")
    clips = {split: set(manifest.ids.tolist()) for split, manifest in manifests.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(clips[one] & clips.get(other, set()))
        if both:
            notices.append(f"{one} and {other} share {plural(len(both), 'clip')}: {shorten(both)}")
    test = manifests.get("test")
    return Splits(classes, manifests["train"], manifests["val"], test, source, tuple(notices), missing)


def label_text(row: Row) -> str:
    """Returns the labels of a row for a message."""
    return ", ".join(map(repr, row.labels)) or "without a label"


def make_manifest(
    rows: list[Row], classes: Classes, ids: Mapping[str, Mapping[str, int]], multi_label: bool = False
) -> ClipTable:
    """Returns the clip table of the rows whose videos exist.

    Raises:
        UserError: If a file name is not UTF-8.
    """
    rows = [row for row in rows if row.found]
    foreign = [ascii(row.path) for row in rows if _FOREIGN.search(row.path)]
    if foreign:
        raise_listed("file names that are not UTF-8", foreign, "Rename them.")
    labels: NDArray[np.int64] | LabelSets
    if multi_label:
        labels = LabelSets.of([{ids[""][label] for label in row.labels} for row in rows], len(classes[""]))
    else:
        found = [[known[label] for label, known in zip(row.labels, ids.values(), strict=True)] for row in rows]
        labels = np.array(found, np.int64).reshape(-1, len(ids))
    has_spans = any(row.span_s for row in rows)
    return ClipTable(
        paths=np.array([row.path for row in rows], np.dtypes.StringDType()),
        labels=labels,
        ids=np.array([row.id for row in rows], np.dtypes.StringDType()),
        spans_s=np.array([row.span_s for row in rows], np.float64) if has_spans else None,
    )


def split_labels(labels: str) -> tuple[str, ...]:
    """Splits a multi-label cell into its labels."""
    return tuple(label.strip() for label in labels.split(SEPARATOR)) if labels else ()


def class_names(root: Path, expected_layout: str, classes: StrPath | Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Returns the class names, and a text for `source` that names their file.

    Args:
        root: The data set's folder.
        expected_layout: A description of the expected files, for messages.
        classes: A class file, or the names themselves.

    Raises:
        UserError: If the file is missing or malformed, or if the names are those of several heads.
    """
    if isinstance(classes, Mapping):
        raise UserError(f"the model has the heads {shorten(classes)}, but this data has one label per video")
    if not isinstance(classes, str | os.PathLike):
        return tuple(classes), ""
    file = find_file(root, expected_layout, "classes", classes)
    return read_classes(file), f", classes {file}"


def clips_by_class(folder: Path, expected_layout: str, notices: list[str]) -> dict[str, list[str]]:
    """Returns the paths of the videos in each class folder, and appends notices about ignored files.

    Raises:
        UserError: If there are no class folders.
    """
    classes: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    for name in subfolders(folder):
        classes[name], left_out = list_videos(folder / name)
        if not classes[name]:
            classes[name] = picture_folders(folder / name)
            left_out = Counter({ending: n for ending, n in left_out.items() if not is_picture(f"0{ending}")})
        others += left_out
    for tar in sorted(folder.glob("*.tar")):
        for member in members(str(tar)):
            name, _, rest = member.partition("/")
            if IS_VIDEO.fullmatch(posixpath.basename(rest)):
                classes.setdefault(name, []).append(f"{tar}/{member}")
            else:
                others[ending_of(member)] += 1
    classes = {name: classes[name] for name in sorted(classes)}
    loose = [name for name in sorted(os.listdir(folder)) if IS_VIDEO.fullmatch(name)]
    if not classes:
        found = f"only loose videos: {shorten(loose)}" if loose else "the folder is empty or has no videos"
        raise UserError(f"no class folders in {printable(folder)}; {found}\n{expected_layout}")
    if loose:
        count = plural(len(loose), "video")
        notices.append(f"ignored {count} in {folder} outside of class folders: {shorten(loose)}")
    if others:
        notices.append(f"ignored files in {folder} without a video extension: {shown_endings(others)}")
    return classes
