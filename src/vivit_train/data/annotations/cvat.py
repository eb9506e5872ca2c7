"""Reads exports of CVAT: tags and tracks of a video as segments.

https://docs.cvat.ai/docs/manual/advanced/xml_format describes "CVAT for video 1.1" and "CVAT for images 1.1", and
the backup of a task has a JSON file of the same content.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vivit_train.data.annotations.exports import (
    Annotation,
    ExportOptions,
    Skipped,
    frame_number,
    read_exports,
)
from vivit_train.data.annotations.files import read_lines
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.utils.arguments import shown
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.text import shorten_list

CVAT_TREE = """Expected in {root}:
  annotations.xml        an export as "CVAT for video 1.1" or "CVAT for images 1.1", or the backup of a task:
                         annotations.json and task.json; data.train=FILE, and data.val=FILE if there is another
  **/<video>             the videos, anywhere below this folder, with the names that they were uploaded with"""
NEVER_SHOWN = Skipped("track", "that is never in the picture")
SHAPE = Skipped("shape", "of a single frame, which is no tag")
# Exports of frames, by the keys of their JSON.
OF_FRAMES = {"Datumaro": {"items", "categories"}, "COCO": {"images", "annotations", "categories"}}
_FRAME = re.compile(r"(?:.*\D)?(\d+)(?:\.\w+)?")


def read_cvat(
    root: StrPath,
    *,
    train: StrPath | None = "annotations.xml",
    val: StrPath | None = None,
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    val_percent: float = 20,
    seed: int = 0,
    max_missing: float = 0.05,
    multi_label: bool = False,
    fps: float | None = None,
) -> Splits:
    """Reads exports of CVAT.

    A track is a segment from its first frame to the one before it leaves the picture. Frames in a row with the
    same tag are a segment, too. Shapes of single frames, tracks that are never in the picture and videos without
    an annotation are skipped, and a notice counts them.

    Args:
        root: The folder of the videos.
        train, val, test: The exports, of a task or of a project. Without `val`, a part of the training videos is
            held out.
        classes: A file with one class name per line, or the names. These classes may have no clips.
        val_percent: The percentage of the videos to hold out.
        seed: The seed of that split.
        max_missing: The share of a split's clips whose videos may be missing. They are dropped with a notice.
        multi_label: Whether a segment may have several labels.
        fps: The frame rate at which CVAT counted, if it is not that of the videos.

    Raises:
        UserError: If a file is missing or malformed, a label is unknown or contradictory, or too many videos are
            missing.
    """
    options = ExportOptions(
        tool="cvat",
        expected_layout=CVAT_TREE,
        classes=classes,
        val_percent=val_percent,
        seed=seed,
        max_missing=max_missing,
        multi_label=multi_label,
        fps=fps,
    )
    return read_exports(root, {"train": train, "val": val, "test": test}, _annotations, options)


def _annotations(file: Path) -> Iterator[Annotation | Skipped]:
    """Yields the annotations of an export, and what is skipped.

    Raises:
        UserError: If the file is no export of CVAT.
    """
    text = "\n".join(read_lines(file))
    if file.suffix.lower() == ".json":
        yield from _json_annotations(file, parse_json(text, file))
        return
    try:
        top = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        line, _ = error.position
        raise UserError(f"{file} is not XML in line {line}. Export the task as CVAT for video 1.1") from None
    if top.tag != "annotations":
        raise UserError(f"{file}: <{top.tag}> instead of <annotations>. Export the task as CVAT for video 1.1")
    videos, annotated = _videos(file, top), set[str]()
    for track in top.iter("track"):
        shapes = [
            (_whole(file, shape, "frame", number), shape.get("outside") == "1")
            for shape in track
            if (number := shape.get("frame"))
        ]
        where = f"{file}: track {track.get('id')}"
        annotated.add(video := _of_task(videos, track, where))
        ranges = list(_shown(shapes))
        yield from (Annotation(where, video, (track.get("label", ""),), frames) for frames in ranges)
        if not ranges:
            yield NEVER_SHOWN
    for part in _tag_annotations(file, top, videos):
        annotated.add(part.video)
        yield part
    yield from (SHAPE for image in top.iter("image") for part in image if part.tag != "tag")
    yield from (Skipped("video", "without a label") for video in videos.values() if video not in annotated)


def _videos(file: Path, top: ElementTree.Element) -> dict[str | None, str]:
    """Returns the video of each task by its id; the key None is the only task.

    Raises:
        UserError: If the file names no video.
    """
    tasks = [task for task in top.iter("task") if task.find("name") is not None]
    source = top.findtext("./meta/source")
    videos: dict[str | None, str] = {}
    for task in tasks:
        name = task.findtext("source") or (source if len(tasks) == 1 else None) or task.findtext("name") or ""
        videos[task.findtext("id")] = name
    if source and not videos:
        videos[None] = source
    if not videos:
        raise UserError(f"{file}: no <source> and no <task> in <meta>. Export the task as CVAT for video 1.1")
    return videos


def _of_task(videos: Mapping[str | None, str], element: ElementTree.Element, where: str) -> str:
    if len(videos) == 1:
        return next(iter(videos.values()))
    task = element.get("task_id")
    if task not in videos:
        raise UserError(f"{where} names no task, but there are {shorten_list(videos.values())}")
    return videos[task]


def _tag_annotations(
    file: Path, top: ElementTree.Element, videos: Mapping[str | None, str]
) -> Iterator[Annotation]:
    """Yields a segment for all frames in a row with the same tag."""
    frames: dict[tuple[str, str], list[int]] = {}
    for image in top.iter("image"):
        match = _FRAME.fullmatch(image.get("name", ""))
        frame = _whole(file, image, "name", match[1]) if match else _whole(file, image, "id", image.get("id"))
        for tag in image.iter("tag"):
            video = _of_task(videos, image, f"{file}: image {image.get('id')}")
            frames.setdefault((video, tag.get("label", "")), []).append(frame)
    for (video, label), numbers in frames.items():
        for run in _runs(numbers):
            yield Annotation(f"{file}: tag {label} at frame {run[0]}", video, (label,), run)


def _json_annotations(file: Path, content: Any) -> Iterator[Annotation | Skipped]:
    """Yields the annotations of annotations.json in the backup of a task, whose video task.json names.

    Raises:
        UserError: If the file has another structure.
    """
    for name, keys in OF_FRAMES.items():
        if isinstance(content, Mapping) and keys <= content.keys():
            raise UserError(
                f"{file} is an export as {name}, which names pictures and not the video that they are from. In "
                "CVAT, choose Export task dataset, the format CVAT for video 1.1, and set "
                "data.train=annotations.xml from its archive"
            )
    jobs = content if isinstance(content, list) else [content]
    beside = file.with_name("task.json")
    task = parse_json("\n".join(read_lines(beside)), beside) if beside.is_file() else {}
    video = str(task.get("name", "")) if isinstance(task, Mapping) else ""
    try:
        tracks = [track for job in jobs for track in job["tracks"]]
        tags = [tag for job in jobs for tag in job["tags"]]
        if not video:
            raise UserError(
                f"{file}: no task.json beside it, which names the video; keep both files of the backup"
            )
        for number, track in enumerate(tracks):
            shapes = [(frame_number(shape["frame"]), bool(shape["outside"])) for shape in track["shapes"]]
            ranges, label = list(_shown(shapes)), str(track["label"])
            yield from (Annotation(f"{file}: track {number}", video, (label,), frames) for frames in ranges)
            if not ranges:
                yield NEVER_SHOWN
        by_label: dict[str, list[int]] = {}
        for tag in tags:
            by_label.setdefault(str(tag["label"]), []).append(frame_number(tag["frame"]))
        yield from (SHAPE for job in jobs for _ in job.get("shapes") or ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        text = f"{file}: expected the tags and tracks of the backup of a task ({reason(error)})"
        raise UserError(f"{text}. Or export the task as CVAT for video 1.1") from None
    for label, numbers in by_label.items():
        for run in _runs(numbers):
            yield Annotation(f"{file}: tag {label} at frame {run[0]}", video, (label,), run)


def _shown(shapes: Sequence[tuple[int, bool]]) -> Iterator[tuple[int, int]]:
    """Yields the ranges of frames in which a track is in the picture, from its shapes: (frame, is outside)."""
    start: int | None = None
    for frame, is_outside in sorted(shapes):
        if is_outside and start is not None:
            yield start, frame
            start = None
        elif not is_outside and start is None:
            start = frame
    if start is not None:
        yield start, max(frame for frame, _ in shapes) + 1


def _runs(frames: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the ranges of frames without a gap."""
    ordered = sorted(set(frames))
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
            yield ordered[start], ordered[i - 1] + 1
            start = i


def _whole(file: Path, element: ElementTree.Element, key: str, text: str | None) -> int:
    """Returns the frame number that an attribute of an element states.

    Raises:
        UserError: If it states none.
    """
    try:
        return frame_number(text or "none")
    except ValueError:
        raise UserError(f"{file}: <{element.tag}> has no number {key}, but {shown(text)}") from None
