"""Reads the JSON exports of Label Studio: choices per video, and timeline labels as segments.

https://labelstud.io/guide/export and https://labelstud.io/tags/timelinelabels describe the format.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivit_train.data.annotations.exports import (
    Annotation,
    ExportOptions,
    Skipped,
    frame_number,
    read_exports,
)
from vivit_train.data.annotations.files import read_lines
from vivit_train.data.annotations.lookup import Problems
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.data.video.urls import is_url
from vivit_train.utils.arguments import shown
from vivit_train.utils.errors import UserError
from vivit_train.utils.json_file import parse_json

LABELSTUDIO_TREE = """Expected in {root}:
  export.json            an export as JSON or JSON-MIN, of choices per video or of timeline labels;
                         data.train=FILE, and data.val=FILE if another file holds the validation videos
  **/<video>             the videos, anywhere below this folder, with the names that they were uploaded with"""
_KEYS = ("choices", "taxonomy", "timelinelabels", "labels")


def read_labelstudio(
    root: StrPath,
    *,
    train: StrPath | None = "export.json",
    val: StrPath | None = None,
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    val_percent: float = 20,
    seed: int = 0,
    max_missing: float = 0.05,
    multi_label: bool = False,
    fps: float | None = None,
) -> Splits:
    """Reads exports of Label Studio.

    Tasks without a label, cancelled annotations and results of other tags are skipped, and a notice counts them.

    Args:
        root: The folder of the videos.
        train, val, test: The exports. Without `val`, a part of the training videos is held out.
        classes: A file with one class name per line, or the names. These classes may have no clips.
        val_percent: The percentage of the videos to hold out.
        seed: The seed of that split.
        max_missing: The share of a split's clips whose videos may be missing. They are dropped with a notice.
        multi_label: Whether a video may have any number of choices.
        fps: The `frameRate` of the Video tag in the labeling interface, if it differs from that of the videos.

    Raises:
        UserError: If a file is missing or malformed, a label is unknown or contradictory, or too many videos are
            missing.
    """
    options = ExportOptions(
        tool="labelstudio",
        expected_layout=LABELSTUDIO_TREE,
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
        UserError: If the file has another structure.
    """
    tasks = parse_json("\n".join(read_lines(file)), file)
    if not isinstance(tasks, list):
        raise UserError(
            f"{file}: expected a list of tasks; export the project as JSON, not as {type(tasks).__name__}"
        )
    problems = Problems(
        'tasks with {"data": {"video": ...}, "annotations": [{"result": [...]}]}, as Label Studio exports'
    )
    for number, task in enumerate(tasks, 1):
        where = f"{file}: task {task.get('id', number) if isinstance(task, Mapping) else number}"
        try:
            found = list(_task_annotations(where, task))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            problems.add(where, str(task))
            continue
        yield from found
        if not any(isinstance(part, Annotation) for part in found):
            yield Skipped("task", "without a label")
    problems.check()


def _task_annotations(where: str, task: Mapping[str, Any]) -> Iterator[Annotation | Skipped]:
    """Yields the annotations of a task of an export as JSON or, with the labels beside the data, as JSON-MIN."""
    if "annotations" not in task and "completions" not in task:
        yield from _minimal_annotations(where, task)
        return
    video = _video(task["data"])
    for annotation in task.get("annotations") or task.get("completions") or []:
        if annotation.get("was_cancelled"):
            yield Skipped("annotation", "that was cancelled")
            continue
        for result in annotation["result"]:
            value = result.get("value", {})
            keys = [key for key in _KEYS if key in value and result.get("type", key) in _KEYS]
            for key in keys:
                yield from _value_annotations(where, video, value, _names(value[key]))
            if not keys:
                yield Skipped("result", f"of the type {shown(result.get('type'))}")


def _minimal_annotations(where: str, task: Mapping[str, Any]) -> Iterator[Annotation]:
    video = _video(task)
    for value in task.values():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for one in value:
                for key in _KEYS:
                    if key in one:
                        yield from _value_annotations(where, video, one, _names(one[key]))
        elif isinstance(value, Mapping) and "choices" in value:
            yield Annotation(where, video, _names(value["choices"]))
    for key in ("choice", "choices", "label"):
        if isinstance(task.get(key), str) and task[key]:
            yield Annotation(where, video, (task[key],))


def _value_annotations(
    where: str, video: str, value: Mapping[str, Any], labels: tuple[str, ...]
) -> Iterator[Annotation]:
    """Yields the annotations of one region, whose ranges count frames from 1, or which is stated in seconds.

    A region without a label yields nothing.
    """
    if not labels:
        return
    if "ranges" in value:
        for span in value["ranges"]:
            start, end = map(frame_number, (span["start"], span["end"]))
            yield Annotation(where, video, labels, (max(start, 1) - 1, end))
    elif "start" in value and "end" in value:
        start_s, end_s = float(value["start"]), float(value["end"])
        if not 0 <= start_s <= end_s < float("inf"):
            raise ValueError("a segment that ends before it starts")
        yield Annotation(where, video, labels, None, (start_s, end_s))
    else:
        yield Annotation(where, video, labels)


def _names(labels: Any) -> tuple[str, ...]:
    """Returns the names of labels; those of a taxonomy are paths, whose last part is the name."""
    names = tuple(one[-1] if isinstance(one, list) else one for one in labels)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("labels that are no text")
    return names


def _video(data: Mapping[str, Any]) -> str:
    """Returns the video of a task: the value "video", or else the first one that is a path or a URL.

    Raises:
        LookupError: If there is none.
    """
    known = [data.get("video"), data.get("video_url"), data.get("url"), *data.values()]
    paths = [one for one in known if isinstance(one, str) and ("/" in one or "." in one or is_url(one))]
    return paths[0]
