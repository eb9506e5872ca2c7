"""Predicts the classes of videos in batches, and shows and writes the predictions."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vivit_train.data.annotations.table import ClipTable
from vivit_train.predictions import Prediction
from vivit_train.tools.predict.fiftyone import check_clips, labels_of, write_labels
from vivit_train.tools.predict.output import (
    check_free,
    print_line,
    print_table,
    report_failures,
    write_csv,
    write_json,
)
from vivit_train.tools.predict.sources import Clip
from vivit_train.training.evaluation import parse_views
from vivit_train.utils.errors import interrupted
from vivit_train.utils.progress import progress
from vivit_train.utils.text import plural
from vivit_train.video_model import VideoModel, clip_table

WHOLE = (0.0, math.inf)  # the span of a whole video among clips of videos


@dataclass(frozen=True)
class Outputs:
    """Where predictions are written.

    Attributes:
        json: The JSON file, or None.
        csv: The CSV file, or None.
        fiftyone: The JSON file for FiftyOne, or None.
        overwrite: Whether existing files may be replaced.
    """

    json: Path | None = None
    csv: Path | None = None
    fiftyone: Path | None = None
    overwrite: bool = False

    @property
    def files(self) -> list[Path]:
        """The files to write."""
        return [file for file in (self.json, self.csv, self.fiftyone) if file is not None]

    def check(self) -> None:
        """Check before any work that the files can be written; raises a UserError otherwise."""
        check_free(self.files, self.overwrite)


def predict_labels(
    source: Callable[[], VideoModel],
    checkpoint: str,
    clips: Sequence[Clip],
    top: int,
    outputs: Outputs,
    **loading: Any,
) -> bool:
    """Predict the clips, show and write the predictions, and list the videos that failed.

    On a terminal, a table appears at the end. Otherwise, each prediction is a line of text as soon as it is known.
    If the work is interrupted, the predictions so far are kept.

    Args:
        source: A function that returns the model.
        checkpoint: The name of the checkpoint.
        clips: The clips.
        top: The number of classes to show.
        outputs: The files to write.
        loading: Arguments of `VideoModel.batches`.

    Returns:
        Whether all videos could be read.

    Raises:
        UserError: An output file exists, the views are invalid, or the loader processes cannot go on.
        StoppedError: Ctrl-C.
    """
    outputs.check()
    if outputs.fiftyone:
        check_clips([clip.span_s for clip in clips])
    parse_views(loading["views"], "--views ")
    model = source()
    spans_s = [clip.span_s or WHOLE for clip in clips] if any(clip.span_s for clip in clips) else None
    table = clip_table([clip.path for clip in clips], spans_s)
    done: list[Prediction] = []
    on_terminal = sys.stdout.isatty()
    start_s = time.monotonic()
    try:
        collect(model, table, top, done, None if on_terminal else print_line, **loading)
    except KeyboardInterrupt:
        where = f"; their predictions are in {', '.join(map(str, outputs.files))}" if outputs.files else ""
        raise interrupted(f"{len(done)} of {plural(len(clips), 'video')} are done{where}") from None
    finally:
        write_files(outputs, done, model, {"checkpoint": checkpoint, "views": loading["views"]})
        if on_terminal and done:
            print_table(done)
    seconds = time.monotonic() - start_s
    words = [f"{plural(len(done), 'video')} in {seconds:.1f} s, {len(done) / seconds:.3g} per second"]
    words += [f"written: {', '.join(map(str, outputs.files))}"] if outputs.files else []
    typer.echo("; ".join(words), err=True)
    failures = [prediction for prediction in done if prediction.failed]
    if failures:
        report_failures(failures, len(done))
    return not failures


def collect(
    model: VideoModel,
    table: ClipTable,
    top: int,
    done: list[Prediction],
    show: Callable[[Prediction], None] | None,
    **loading: Any,
) -> None:
    """Append the prediction of each clip to `done`, and show it, as soon as it is known."""
    failed = 0
    with progress("predicting", len(table), " videos") as step:
        for prediction in model.stream(table, top=top, **loading):
            done.append(prediction)
            if show is not None:
                show(prediction)
            failed += prediction.failed
            step(len(done), f"{failed} failed" if failed else "")


def write_files(outputs: Outputs, done: Sequence[Prediction], model: VideoModel, about: Mapping[str, str]) -> None:
    """Write the files that are asked for; `about` states the checkpoint and the views."""
    if outputs.json:
        write_json(outputs.json, done, about)
    if outputs.csv:
        write_csv(outputs.csv, done, list(model.classes))
    if outputs.fiftyone:
        write_labels(outputs.fiftyone, labels_of(done, model.classes if model.multi_label else None))
