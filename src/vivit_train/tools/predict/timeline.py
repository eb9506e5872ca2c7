"""Writes the segments of long videos: CSV, SRT subtitles, Label Studio JSON and a page for each video."""

import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import typer

from vivit_train.data.video.scan import timeline
from vivit_train.data.video.urls import is_url, private_urls
from vivit_train.live import segment_live
from vivit_train.predictions import Prediction
from vivit_train.segments import Segment, Segmentation, one_clip, segment_video
from vivit_train.tools.predict.fiftyone import address, detections, write_labels
from vivit_train.tools.predict.output import check_free, opened, report_failures
from vivit_train.tools.predict.page import page
from vivit_train.tools.predict.sources import Clip
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.progress import Step, progress
from vivit_train.utils.text import csv_cell, file_stem, percent, printable
from vivit_train.video_model import VideoModel

ENDINGS = (".csv", ".srt", ".json", ".html")


def output_stems(clips: Sequence[Clip]) -> list[str]:
    """Return the name of each video's output files, without their endings; equal names are numbered."""
    taken: dict[str, int] = {}
    stems = []
    for clip in clips:
        stem = file_stem(os.path.splitext(os.path.basename(clip.path.rstrip("/")))[0])
        taken[stem] = taken.get(stem, 0) + 1
        stems.append(stem if taken[stem] == 1 else f"{stem}-{taken[stem]}")
    return stems


@dataclass(frozen=True)
class Timelines:
    """How timelines are made, and where they are written; see `segment_video`."""

    out: Path
    overwrite: bool
    views: str
    window_s: float | None
    step_s: float | None
    allow_private_urls: bool
    fiftyone: Path | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `segment_video` and `segment_live` about windows."""
        return {"window_s": self.window_s, "step_s": self.step_s, "views": one_clip(self.views)}

    def check(self, clips: Sequence[Clip]) -> None:
        """Check before any work that the clips are whole videos, and that their files can be written.

        Raises:
            UserError: They are parts of videos, a file exists, or the views have several clips.
        """
        if parts := [clip for clip in clips if clip.span_s]:
            raise UserError(f"{parts[0].path}: a timeline shows a whole video; leave out its start and end")
        one_clip(self.views)
        stems = output_stems(clips)
        files = [self.out / f"{stem}{ending}" for stem in stems for ending in ENDINGS]
        check_free([*files, *([self.fiftyone] if self.fiftyone else [])], self.overwrite)


def predict_timelines(source: Callable[[], VideoModel], clips: Sequence[Clip], wanted: Timelines) -> bool:
    """Segment each video, show and write its segments, and list the videos that failed.

    Args:
        source: A function that returns the model.
        clips: The videos.
        wanted: How the timelines are made.

    Returns:
        Whether all videos could be read.

    Raises:
        UserError: An output file exists, or the windows or the views do not fit the model.
    """
    wanted.check(clips)
    model, failures, labels = source(), [], {}
    private = wanted.allow_private_urls
    for clip, stem in zip(clips, output_stems(clips), strict=True):
        try:
            with progress(printable(os.path.basename(clip.path)), 1.0) as step:

                def report(done_s: float, total_s: float, step: Step = step) -> None:
                    step(min(done_s / total_s, 1.0), "")

                result = segment_video(
                    model, clip.path, **wanted.settings, allow_private_urls=private, report=report
                )
            with private_urls(private):
                times_s = timeline(clip.path).times_s
        except VideoError as error:
            failures.append(Prediction(clip.path, error=error.reason))
            continue
        write_timeline(result, wanted.out / stem, times_s)
        labels[address(clip.path)] = detections(result.segments, frame_ranges(result, times_s))
    if wanted.fiftyone:
        write_labels(wanted.fiftyone, labels)
    if failures:
        report_failures(failures, len(clips))
    return not failures


def predict_live(
    source: Callable[[], VideoModel], streams: Sequence[str], seconds: float, wanted: Timelines
) -> bool:
    """Segment a camera or a live stream while it runs, and show and write the segments.

    Args:
        source: A function that returns the model.
        streams: The URL or the device; exactly one.
        seconds: The duration.
        wanted: How the timeline is made.

    Returns:
        Whether the stream could be read.

    Raises:
        UserError: There are several streams, an output file exists, or the windows do not fit the model.
    """
    if len(streams) > 1:
        raise UserError(f"--live reads one stream, not {len(streams)}")
    (url,) = streams
    wanted.check([Clip(url)])
    model = source()
    try:
        with progress(printable(url), seconds, " s") as step:
            result = segment_live(model, url, seconds, **wanted.settings, report=step)
    except VideoError as error:
        report_failures([Prediction(url, error=error.reason)], 1)
        return False
    write_timeline(result, wanted.out / output_stems([Clip(url)])[0])
    return True


def write_timeline(result: Segmentation, stem: Path, times_s: Any = None) -> None:
    """Show the segments of a video and write its files.

    Args:
        result: The segments.
        stem: The path of the files without their endings.
        times_s: The times of the frames in seconds, [num_frames]; None for a live stream, which is not kept.
    """
    show(result)
    for note in result.notes:
        typer.echo(f"note: {printable(note)}", err=True)
    files = {".csv": csv_text(result), ".srt": srt(result)}
    if times_s is not None:
        files[".json"] = json.dumps([task(result, times_s)], indent=2) + "\n"
    files[".html"] = page(result, None if times_s is None else link(result.video, stem.parent))
    for ending, text in files.items():
        with opened(Path(f"{stem}{ending}")) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    typer.echo(f"written: {', '.join(f'{stem}{ending}' for ending in files)}", err=True)


def show(result: Segmentation) -> None:
    """Show segments as a table on a terminal, or as lines with tabs in a pipe."""
    if not sys.stdout.isatty():
        for one in result.segments:
            head = [printable(one.head)] if one.head else []
            times = [f"{one.start_s:.3f}", f"{one.end_s:.3f}"]
            words = [printable(result.video), *times, *head, printable(one.name), f"{one.probability:.4f}"]
            typer.echo("\t".join(words))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(printable(result.video)), title_justify="left")
    for name, justify in (("start", "right"), ("end", "right"), ("class", "left"), ("probability", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in result.segments:
        table.add_row(
            clock(one.start_s), clock(one.end_s), Text(printable(label_of(one))), percent(one.probability, 1)
        )
    Console().print(table)


def label_of(segment: Segment) -> str:
    """Return the class of a segment, after its head if it has a name."""
    return f"{segment.head}: {segment.name}" if segment.head else segment.name


def clock(seconds: float, comma: str = ".") -> str:
    """Return a time as hh:mm:ss.mmm."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{comma}{rest % 1000:03}"


class Lines(list[str]):
    """A list of lines as a file for `csv.writer`."""

    def write(self, line: str) -> None:
        self.append(line)


def csv_text(result: Segmentation) -> str:
    """Return a table with one row per segment."""
    has_heads = any(one.head for one in result.segments)
    lines = Lines()
    writer = csv.writer(lines)
    writer.writerow(["start_s", "end_s", *(["head"] if has_heads else []), "class", "probability"])
    for one in result.segments:
        head = [csv_cell(one.head)] if has_heads else []
        times = [f"{one.start_s:.3f}", f"{one.end_s:.3f}"]
        writer.writerow([*times, *head, csv_cell(one.name), f"{one.probability:.4f}"])
    return "".join(lines)


def srt(result: Segmentation) -> str:
    """Return the segments as SubRip subtitles, in the order of their starts."""
    ordered = sorted(result.segments, key=lambda one: one.start_s)
    blocks = [
        f"{number}\n{clock(one.start_s, ',')} --> {clock(one.end_s, ',')}\n{printable(label_of(one))}\n"
        for number, one in enumerate(ordered, 1)
    ]
    return "\n".join(blocks)


def task(result: Segmentation, times_s: Any) -> dict[str, Any]:
    """Return a task of Label Studio with timeline labels, whose frames count from 1.

    The annotation is a draft to correct by hand. Label Studio shows a file if its folder of local files
    (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT) is the working directory of this process.
    """
    regions = [
        {
            "id": f"segment{number}",
            "type": "timelinelabels",
            "from_name": one.head or "label",
            "to_name": "video",
            "value": {
                "ranges": [{"start": start, "end": end}],
                "timelinelabels": [one.name],
            },
        }
        for number, (one, (start, end)) in enumerate(
            zip(result.segments, frame_ranges(result, times_s), strict=True), 1
        )
    ]
    video = result.video if is_url(result.video) else f"/data/local-files/?d={quote(below_here(result.video))}"
    return {"data": {"video": video}, "annotations": [{"result": regions}]}


def frame_ranges(result: Segmentation, times_s: Any) -> list[tuple[int, int]]:
    """Return the first and the last frame of each segment, counted from 1, from the times of all frames."""
    starts = np.searchsorted(times_s, [one.start_s - 1e-6 for one in result.segments]).tolist()
    ends = np.searchsorted(times_s, [one.end_s - 1e-6 for one in result.segments]).tolist()
    return [(start + 1, max(end, start + 1)) for start, end in zip(starts, ends, strict=True)]


def below_here(path: str) -> str:
    """Return a path relative to the working directory, or the name of a file elsewhere."""
    relative = os.path.relpath(path)
    return os.path.basename(path) if relative.startswith("..") else relative.replace(os.sep, "/")


def link(video: str, folder: Path) -> str:
    """Return the address of a video for a page in a folder: a URL as it is, a file by its relative path."""
    if is_url(video):
        return video
    return quote(os.path.relpath(video, folder).replace(os.sep, "/").encode(errors="surrogateescape"))
