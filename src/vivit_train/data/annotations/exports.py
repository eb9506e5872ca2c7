"""Turns the exports of annotation tools into splits: labels of whole videos, or of ranges of their frames."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.annotations.build import Draft, Row, class_names, make_splits
from vivit_train.data.annotations.files import below, find_files, open_root, raise_listed
from vivit_train.data.annotations.hold_out import check_percent, held_out_count, order_key
from vivit_train.data.annotations.lookup import Videos
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.data.video.scan import probe
from vivit_train.data.video.urls import is_url, url_problem
from vivit_train.utils.arguments import shown
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.text import nfc, plural, shorten_list

SLACK = 2  # Tools may count a few frames more than a video shows, as headers do.
MAX_FRAMES = 10**9  # A year of video at 30 frames per second has about as many.


class Annotation(NamedTuple):
    """A label of a video.

    Attributes:
        where: The place in the file, for messages.
        video: The video as the tool names it: a file name, a path or a URL.
        labels: The labels.
        frames: The first frame and the frame after the last one, from 0; None if the whole video has the labels.
        span_s: The same in seconds; None if it is not stated.
    """

    where: str
    video: str
    labels: tuple[str, ...]
    frames: tuple[int, int] | None = None
    span_s: tuple[float, float] | None = None


class Skipped(NamedTuple):
    """A part of an export that becomes no clip.

    Attributes:
        noun: What it is, such as "task"; see `plural`.
        why: The reason, in words that follow the noun.
    """

    noun: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How the exports of a tool become splits; the readers describe the attributes.

    Attributes:
        tool: The name of the tool, for messages.
        expected_layout: A description of the expected files, for messages.
        classes: The classes that a model knows, or a class file.
        val_percent: The percentage of the videos to hold out if there is no validation file.
        seed: The seed of that split.
        max_missing: The share of a split's videos that may be missing.
        multi_label: Whether a video may have any number of labels.
        fps: The frame rate that the tool counted frames with; None to count the frames of the video itself.
    """

    tool: str
    expected_layout: str
    classes: StrPath | Sequence[str] | None
    val_percent: float
    seed: int
    max_missing: float
    multi_label: bool
    fps: float | None


def frame_number(value: Any) -> int:
    """Converts a frame number of an export, which may be text.

    Raises:
        TypeError, ValueError: If it is no number from 0 to `MAX_FRAMES`.
    """
    number = int(value[:20]) if isinstance(value, str) else value
    if not 0 <= number < MAX_FRAMES:  # NaN is not, either
        raise ValueError(f"{shown(value)} is no frame number")
    return int(number)


def read_exports(
    root: StrPath,
    files: Mapping[str, StrPath | None],
    read: Callable[[Path], Iterator[Annotation | Skipped]],
    options: ExportOptions,
) -> Splits:
    """Returns the splits of a data set; without a validation file, a part of the training videos is held out.

    All segments of a video are in the same split.

    Args:
        root: The folder of the videos.
        files: The export of each split: "train", "val" and "test".
        read: A function that yields the annotations in a file, and what it skips.
        options: See `ExportOptions`.

    Raises:
        UserError: If a file is missing or malformed, or if the checks of `make_splits` fail.
    """
    top, expected_layout = open_root(root, options.expected_layout)
    train, val, test = files["train"], files["val"], files["test"]
    found = find_files(top, expected_layout, train, val or train or "", test, options.classes)
    _check_kinds(found.values(), options.tool, expected_layout)
    finder = VideoFinder(top)
    notices: list[str] = []
    tables = {}
    for split, file in found.items():
        if split == "val" and not val:
            continue
        parts = list(read(file))
        annotations = [part for part in parts if isinstance(part, Annotation)]
        notices += _skipped_notice(file, Counter(part for part in parts if isinstance(part, Skipped)))
        tables[split] = _rows(annotations, file, finder, options, notices)
    if not val:
        tables |= _hold_out(tables["train"], options)
        if tables["train"] and not tables["val"]:
            raise UserError(
                f"{found['train']}: no video can be held out for validation, as each class is in one video only. "
                "Annotate more videos, or set data.val=<another export>"
            )
        notices.append(f"no validation file: {options.val_percent:g}% of the videos held out, seed {options.seed}")
    given, named_by = class_names(top, expected_layout, options.classes or ())
    reference = tables["train"] + tables["val"] if not val else tables["train" if train else "val"]
    names = given or tuple(sorted({label for row in reference for label in row.labels}))
    return make_splits(
        Draft(
            tables=tables,
            files=found,
            classes={"": names},
            ids={"": {name: i for i, name in enumerate(names)}},
            source=f"{options.tool} {shorten_list(dict.fromkeys(found.values()))}{named_by}",
            expected_layout=expected_layout,
            max_missing=options.max_missing,
            may_lack_clips=options.classes is not None,
            multi_label=options.multi_label,
            notices=notices,
            read_as=_read_as(tables, options),
            held_out=not val,
        )
    )


def _skipped_notice(file: Path, skipped: Counter[Skipped]) -> list[str]:
    """Returns the notice about what a reader has skipped in a file, if it has skipped anything."""
    texts = [f"{plural(count, part.noun)} {part.why}" for part, count in skipped.items()]
    return [f"{file}: skipped {shorten_list(texts)}"] if texts else []


def _check_kinds(files: Iterable[Path], tool: str, expected_layout: str) -> None:
    for file in files:
        if file.suffix.lower() in (".zip", ".csv", ".tsv"):
            raise UserError(
                f"{file}: data={tool} reads no {file.suffix} files: unpack archives, and read tables with "
                f"data=csv\n{expected_layout}"
            )


def _read_as(tables: Mapping[str, list[Row]], options: ExportOptions) -> str:
    if not any(row.span_s for rows in tables.values() for row in rows):
        return "labels of whole videos"
    rate = f"frames counted at {options.fps:g} per second" if options.fps else "frames counted in each video"
    return f"labels of segments, {rate}"


def _rows(
    annotations: Sequence[Annotation],
    file: Path,
    finder: "VideoFinder",
    options: ExportOptions,
    notices: list[str],
) -> list[Row]:
    """Returns the rows of a file. If it has segments, labels of whole videos are not read.

    Raises:
        UserError: If a range of frames is not within its video, or if a video has several labels and should not.
    """
    has_segments = any(a.frames or a.span_s for a in annotations)
    kept = [a for a in annotations if bool(a.frames or a.span_s) == has_segments]
    if len(kept) < len(annotations):
        count = plural(len(annotations) - len(kept), "label")
        notices.append(f"{file}: ignored {count} of whole videos, as there are labels of segments")
    rows, problems = [], []
    for annotation in kept:
        try:
            path = finder.find(annotation.video)
        except UserError as error:
            problems.append(f"{annotation.where}: {error}")
            continue
        expected = path or os.path.join(finder.root, os.path.basename(annotation.video))
        if "" in annotation.labels:
            problems.append(f"{annotation.where}: {annotation.video} has an empty label")
            continue
        if len(annotation.labels) != 1 and not options.multi_label:
            problems.append(
                f"{annotation.where}: {annotation.video} has the labels {shorten_list(annotation.labels)}"
            )
            continue
        try:
            # The rate of a missing video is unknown; its rows are only counted, so any rate will do.
            span_s = annotation.span_s or _span(expected, annotation.frames, options.fps if path else 1.0)
        except UserError as error:
            problems.append(f"{annotation.where}: {error}")
            continue
        name = below(finder.root, expected)
        clip = f"{name}@{span_s[0]:.2f}-{span_s[1]:.2f}" if has_segments else name
        span = span_s if has_segments else None
        rows.append(Row(expected, clip, annotation.labels, annotation.where, path is not None, span))
    if problems:
        advice = (
            "One label per video or segment is expected, within the video; data.reader.multi_label=true allows"
        )
        raise_listed(f"invalid annotations in {file}", problems, f"{advice} several labels.")
    return rows


def _span(path: str, frames: tuple[int, int] | None, fps: float | None) -> tuple[float, float]:
    """Returns the times in seconds at which a range of frames starts and ends.

    Raises:
        UserError: If the video cannot be read, or if the range is empty or not within it.
    """
    if frames is None:
        return (0.0, 0.0)
    start, stop = frames
    if fps and start < stop:
        return start / fps, stop / fps
    if fps:
        raise UserError(f"frames {start} to {stop - 1} end before they start")
    times_s = _times_s(path)
    if not 0 <= start < stop or start >= len(times_s) or stop > 1.05 * len(times_s) + SLACK:
        raise UserError(
            f"frames {start} to {stop - 1} are not within {path}, which has {len(times_s)} frames; if the frames "
            "were counted at another rate, set data.reader.fps"
        )
    step_s = float(times_s[-1]) / max(len(times_s) - 1, 1)
    end_s = float(times_s[stop]) if stop < len(times_s) else float(times_s[-1]) + step_s
    return float(times_s[start]), end_s


@cache
def _times_s(path: str) -> NDArray[np.float64]:
    try:
        return probe(path).times_s
    except VideoError as error:
        raise UserError(
            f"{error}; its frames cannot be counted. data.reader.fps=<frame rate> needs no count"
        ) from None


def _hold_out(rows: Sequence[Row], options: ExportOptions) -> dict[str, list[Row]]:
    """Splits rows into train and val by video, class by class, so that each class has a video on either side."""
    check_percent(options.val_percent)
    held: set[str] = set()
    videos_of: dict[tuple[str, ...], dict[str, None]] = {}
    for row in rows:
        videos_of.setdefault(row.labels, {})[row.path] = None
    for _, videos in sorted(videos_of.items()):
        wanted = held_out_count(len(videos), options.val_percent) - len(held & videos.keys())
        left = sorted(videos.keys() - held, key=lambda path: order_key(options.seed, os.path.basename(path)))
        held |= {*left[: min(wanted, len(left) - 1)]} if wanted > 0 else set()
    sides = {"train": [row for row in rows if row.path not in held]}
    return sides | {"val": [row for row in rows if row.path in held]}


class VideoFinder:
    """Finds the videos that a tool names, whose uploads have other paths than the files in root."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.videos = Videos(root)
        self.names = Counter(os.path.basename(path) for paths in self.videos.by_stem.values() for path in paths)

    def find(self, video: str) -> str | None:
        """Returns the path or the URL of a video, or None if it does not exist.

        Raises:
            UserError: If it is a URL that is refused.
        """
        local = parse_qs(video.partition("?")[2]).get("d") if "?d=" in video else None
        if is_url(video) and not local:
            if problem := url_problem(video):
                raise UserError(problem)
            return video
        written = nfc(unquote(local[0] if local else video)).replace("\\", "/")
        folder, name = os.path.split(written)
        # Label Studio puts eight hexadecimal digits and a hyphen before the name of an upload.
        for candidate in (name, name[9:] if name[8:9] == "-" else name):
            stem = os.path.splitext(candidate)[0]
            found = self.videos.find(stem, folder.split("/"))
            if found:
                return found
        return None
