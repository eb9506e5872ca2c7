"""Builds the clip tables of all splits from annotation rows, and reports all problems of a kind in one message."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.files import find_file, raise_listed, read_classes
from vivit_train.data.annotations.table import SEPARATOR, Classes, ClipTable, LabelSets, Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import loose_name, nfc, plural, printable, shorten_list

MAX_CLASSES = 100_000  # A larger id is probably a frame count or a time stamp in the wrong column.
_FOREIGN = re.compile("[\udc80-\udcff]")  # surrogates, by which Python represents bytes that are not UTF-8
NUMERIC_ID = re.compile(r"-?\d+")


class LabelError(UserError):
    """Labels that are unknown or contradict each other."""


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


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The annotations of a data set as a reader has found them, before the checks that all data sets share.

    Attributes:
        tables: The rows of each split.
        files: The annotation file or folder of each split, for messages.
        classes: The class names of each head.
        ids: The mapping from labels as written to class ids, for each head.
        source: The origin of the data in one line, for messages.
        expected_layout: A description of the expected files, for messages.
        max_missing: The share of a split's rows whose videos may be missing.
        may_lack_clips: Whether classes may have no training clips.
        may_differ: Whether a clip that is listed under two labels gives a notice instead of an error.
        multi_label: Whether each row has any number of labels, all of a single head.
        notices: The notices of the reader, to which the checks append theirs.
        hint: What the reader has noticed that may explain invalid labels or missing videos, for their messages.
        read_as: What the reader has decided about the form of the files, in one line.
        first_id: The id of the first class as written, if labels are ids.
        held_out: Whether the validation rows are a part of the training rows that the reader holds out.
    """

    tables: Mapping[str, list[Row]]
    files: Mapping[str, Path]
    classes: Classes
    ids: Mapping[str, Mapping[str, int]]
    source: str
    expected_layout: str
    max_missing: float = 0
    may_lack_clips: bool = False
    may_differ: bool = False
    multi_label: bool = False
    notices: list[str] = field(default_factory=list)
    hint: str = ""
    read_as: str = ""
    first_id: int = 0
    held_out: bool = False


def make_splits(draft: Draft) -> Splits:
    """Checks the requirements that all data sets share, and builds the splits.

    Raises:
        UserError: If a split has no clips, a label is unknown or contradictory, there is only one class, a class
            has no training clips, or too many videos are missing.
    """
    draft = with_composed_labels(draft)
    check_empty_splits(draft)
    invalid_labels: list[str] = []
    too_many_missing: list[str] = []
    for split in draft.tables:
        invalid_labels += label_problems(draft, split)
        too_many_missing += missing_videos(draft, split)
    if invalid_labels:
        raise_invalid_labels(draft, invalid_labels)
    check_number_of_classes(draft)
    if too_many_missing:
        advice = f"Check the data set's root, or allow more; data.reader.max_missing is {draft.max_missing:g}."
        raise_listed(
            "too many missing videos", too_many_missing, with_hint(f"{advice}\n{draft.expected_layout}", draft)
        )
    manifests = {split: make_manifest(rows, draft) for split, rows in draft.tables.items()}
    manifests.setdefault("train", make_manifest([], draft))
    for split in draft.tables:
        check_coverage(draft, split, manifests[split])
    draft.notices.extend(shared_clips(manifests))
    draft.notices.extend(similar_names(draft.classes))
    return Splits(
        draft.classes,
        manifests["train"],
        manifests["val"],
        manifests.get("test"),
        draft.source,
        tuple(draft.notices),
        {split: missing_paths(rows) for split, rows in draft.tables.items()},
        draft.read_as,
        draft.held_out,
    )


def with_composed_labels(draft: Draft) -> Draft:
    """Returns the draft with all labels in Unicode's composed form, on both sides of the comparison."""
    tables = {
        split: [
            row if all(map(str.isascii, row.labels)) else row._replace(labels=tuple(map(nfc, row.labels)))
            for row in rows
        ]
        for split, rows in draft.tables.items()
    }
    ids = {head: {nfc(label): i for label, i in by_label.items()} for head, by_label in draft.ids.items()}
    return replace(draft, tables=tables, ids=ids)


def with_hint(advice: str, draft: Draft) -> str:
    """Returns the advice of an error message, with what the reader has noticed."""
    return f"{draft.hint}\n{advice}" if draft.hint else advice


def check_empty_splits(draft: Draft) -> None:
    """Raises a UserError if a split has no rows."""
    empty = [str(draft.files[split]) for split, rows in draft.tables.items() if not rows]
    if empty:
        raise_listed("no clips", empty, f"A split needs at least one.\n{draft.expected_layout}")


def label_problems(draft: Draft, split: str) -> list[str]:
    """Returns the unknown and contradictory labels of a split; duplicate rows give a notice."""
    rows, file = draft.tables[split], draft.files[split]
    problems: list[str] = []
    first: dict[object, Row] = {}
    differing: list[str] = []
    for row in rows:
        heads = [draft.ids[""]] * len(row.labels) if draft.multi_label else draft.ids.values()
        for label, ids in zip(row.labels, heads, strict=True):
            if label not in ids:
                near = next((name for name in ids if loose_name(name) == loose_name(label)), None)
                differs = f", which differs from {near!r} only in case or blanks" if near else ""
                problems.append(f"{row.where}: unknown label {label!r}{differs}")
        before = first.setdefault((row.path, row.span_s), row)
        if row.labels != before.labels and not (draft.multi_label and set(row.labels) == set(before.labels)):
            differing.append(
                f"{row.where}: {row.path} is {label_text(row)}, but {label_text(before)} in {before.where}"
            )
    if differing and draft.may_differ:
        draft.notices.append(f"{file}: kept {plural(len(differing), 'clip')} with two labels. {differing[0]}")
    else:
        problems += differing
    if len(first) < len(rows):
        draft.notices.append(f"{file}: kept {plural(len(rows) - len(first), 'duplicate row')}")
    return problems


def raise_invalid_labels(draft: Draft, problems: Sequence[str]) -> NoReturn:
    """Raises a LabelError that lists the invalid labels and describes the valid ones."""
    numbered = all(map(NUMERIC_ID.fullmatch, next(iter(draft.ids.values()))))
    known = [
        f"ids from {draft.first_id} to {draft.first_id + len(names) - 1}"
        if numbered
        else f"one of {shorten_list(names)}"
        for names in draft.classes.values()
    ]
    once = "all labels of a video in one row" if draft.multi_label else "one label per video"
    advice = f"Expected {'; '.join(known)}, and {once}.\nClasses are from {printable(draft.source)}."
    if draft.may_lack_clips and (unused := sorted(unused_names(draft))):
        advice = f"Names of no row: {shorten_list(map(repr, unused))}.\n{advice}"
    raise_listed("invalid labels", problems, with_hint(advice, draft), LabelError)


def unused_names(draft: Draft) -> set[str]:
    """Returns the classes of the first head that no row has, which may be the invalid labels spelled otherwise."""
    (head, names), *_ = draft.classes.items()
    ids = draft.ids[head]
    labels = {label for rows in draft.tables.values() for row in rows for label in row.labels}
    return {names[i] for i in set(range(len(names))) - {ids[label] for label in labels if label in ids}}


def missing_videos(draft: Draft, split: str) -> list[str]:
    """Returns a problem if more videos of a split are missing than `max_missing` allows; fewer give a notice."""
    rows = draft.tables[split]
    paths, rows_lost = missing_paths(rows), sum(not row.found for row in rows)
    if not paths:
        return []
    clips_are = "segments have their video" if rows[0].span_s else "videos found"
    text = (
        f"{draft.files[split]}: {len(rows) - rows_lost:,} of {len(rows):,} {clips_are}; "
        f"first missing: {shorten_list(paths, 2)}"
    )
    if rows_lost > min(draft.max_missing * len(rows), len(rows) - 1):
        return [text]
    draft.notices.append(text)
    return []


def missing_paths(rows: Sequence[Row]) -> list[str]:
    """Returns the path of each missing video once."""
    return list(dict.fromkeys(row.path for row in rows if not row.found))


def check_number_of_classes(draft: Draft) -> None:
    """Raises a UserError if a head has only one class."""
    for names in draft.classes.values():
        if len(names) < 2 and not draft.multi_label:
            raise UserError(
                f"only one class, {names[0]!r}, in {printable(draft.source)}; a classifier needs at least two.\n"
                f"{draft.expected_layout}"
            )


def check_coverage(draft: Draft, split: str, manifest: ClipTable) -> None:
    """Raises a UserError if a class has no training clips and needs some; otherwise this gives a notice."""
    counts = manifest.class_counts(draft.classes)
    for head, (name, names) in enumerate(draft.classes.items()):
        empty = np.flatnonzero(counts[head] == 0).tolist()
        if empty and split == "train" and not draft.may_lack_clips:
            own = slice(None) if draft.multi_label else slice(head, head + 1)
            rows = Counter(draft.ids[name][label] for row in draft.tables[split] for label in row.labels[own])
            lines = [f"class {i} ({names[i]}): {plural(rows[i], 'row')}, 0 videos found" for i in empty]
            advice = "Ids must run from 0 without gaps. Empty classes need data.reader.classes=<file of names>."
            raise_listed(f"classes without clips in {draft.files[split]}", lines, with_hint(advice, draft))
        if empty:
            kind = f"{name} classes" if name else "classes"
            listed = shorten_list([names[i] for i in empty])
            draft.notices.append(f"{split} has no clips of {len(empty)} of {len(names)} {kind}: {listed}")


def shared_clips(manifests: Mapping[str, ClipTable]) -> Iterator[str]:
    """Yields a notice for each two splits that share clips."""
    clips = {split: set(manifest.ids.tolist()) for split, manifest in manifests.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(clips[one] & clips.get(other, set()))
        if both and one == "val" and clips[one] == clips[other]:
            why = "that choose the best checkpoint, so its test score is too good"
            yield f"{one} and {other} are the same {plural(len(both), 'clip')} {why}"
        elif both:
            yield f"{one} and {other} share {plural(len(both), 'clip')}: {shorten_list(both)}"


def similar_names(classes: Classes) -> Iterator[str]:
    """Yields a notice if names of classes differ only in case or blanks."""
    for names in classes.values():
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(loose_name(name), []).append(name)
        pairs = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
        if pairs:
            yield f"classes whose names differ only in case or blanks: {shorten_list(pairs)}; are they one class?"


def label_text(row: Row) -> str:
    """Returns the labels of a row for a message."""
    return ", ".join(map(repr, row.labels)) or "without a label"


def make_manifest(rows: Sequence[Row], draft: Draft) -> ClipTable:
    """Returns the clip table of the rows whose videos exist.

    Raises:
        UserError: If a file name is not UTF-8.
    """
    rows = [row for row in rows if row.found]
    foreign = [ascii(row.path) for row in rows if _FOREIGN.search(row.path)]
    if foreign:
        raise_listed("file names that are not UTF-8", foreign, "Rename them.")
    labels: NDArray[np.int64] | LabelSets
    if draft.multi_label:
        sets = [{draft.ids[""][label] for label in row.labels} for row in rows]
        labels = LabelSets.of(sets, len(draft.classes[""]))
    else:
        heads = draft.ids.values()
        found = [[ids[label] for label, ids in zip(row.labels, heads, strict=True)] for row in rows]
        labels = np.array(found, np.int64).reshape(len(rows), len(heads))
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
        raise UserError(f"the model has the heads {shorten_list(classes)}, but this data has one label per video")
    if not isinstance(classes, str | os.PathLike):
        return tuple(classes), ""
    file = find_file(root, expected_layout, "classes", classes)
    return read_classes(file), f", classes {file}"
