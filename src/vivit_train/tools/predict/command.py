"""The command `vivit predict`. Like cli.py, it imports its tools only when it is called."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vivit_train.utils.errors import NOTHING_DONE, UserError

log = logging.getLogger(__name__)

EXAMPLES = (
    "vivit predict runs/mine video.mp4",
    "vivit predict runs/mine videos --views 4x3 --csv predictions.csv --json predictions.json",
    "find videos -name '*.mp4' | vivit predict runs/mine - | cut -f 1,2",
    "vivit predict runs/mine long.mp4 --timeline --out timelines",
    "vivit predict runs/mine rtsp://camera.example.org/1 --live 60",
    "vivit predict hf://google/vivit-b-16x2-kinetics400 'clips/*.mp4' https://example.org/a.mp4",
)
DAY = 86_400.0  # seconds
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="Checkpoint, folder of a run, folder of a Hugging Face ViViT, or hf://user/name."
    ),
]
Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO",
        help="Videos, folders, patterns, URLs, tars, lists and tables of videos (.csv, .tsv, .txt), or - for a "
        "list on stdin.",
    ),
]
Views = Annotated[
    str, typer.Option(help="Temporal clips x spatial crops (1 or 3) of each video; their logits are averaged.")
]
Top = Annotated[int | None, typer.Option(min=1, help="Number of classes to show. Default: 5.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a JSON file.")]
Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a CSV file, a row per video.")]
FiftyOne = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a JSON file for FiftyOne.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Labels = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Class names, one per line, for weights without names.")
]
ModelOption = Annotated[
    Literal["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"] | None,
    typer.Option(help="The model, if a checkpoint of the authors fits two of them."),
]
Frames = Annotated[
    int | None,
    typer.Option(min=1, help="Frames of a clip, if a checkpoint of the authors leaves their number open."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto: cuda if available, otherwise cpu.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, max=512, help="Number of processes that read videos. Default: one per core.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Clips times crops per forward pass. Default: as in training.")
]
Trusted = Annotated[
    list[str] | None, typer.Option(help="Your own package that defines the model. May be repeated.")
]
PrivateUrls = Annotated[
    bool, typer.Option("--allow-private-urls", help="Read URLs that lead to this machine or a local network.")
]
Timeline = Annotated[
    bool,
    typer.Option(
        "--timeline",
        help="Segments of long videos: sliding windows, written as CSV, SRT, Label Studio JSON and a page.",
    ),
]
Live = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=1000 * DAY,
        metavar="SECONDS",
        help="A timeline of a camera (/dev/video0) or a stream (rtsp://...), read for so many seconds.",
    ),
]
Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder of the timelines. Default: timelines.")]
Window = Annotated[
    float | None,
    typer.Option(min=0.01, max=DAY, metavar="SECONDS", help="Length of a window. Default: as in training."),
]
Move = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=DAY, metavar="SECONDS", help="Distance between two windows. Default: half a window."
    ),
]


@contextmanager
def wrong_words() -> Iterator[None]:
    """Ends the command with a message and exit code 2 if its words are wrong; 1 stands for unreadable videos."""
    try:
        yield
    except UserError as error:
        if type(error) is not UserError:  # A video, or a loader process that has died.
            raise
        log.error(f"error: {error}")
        raise typer.Exit(NOTHING_DONE) from None


def refuse_unused(options: Mapping[str, object], *, timeline: bool) -> None:
    """Refuses options that the command would not use.

    Raises:
        UserError: One of them is given.
    """
    if odd := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise UserError(f"{', '.join(odd)} has no effect with{'' if timeline else 'out'} --timeline: leave it out")


def predict(
    checkpoint: Checkpoint,
    videos: Videos,
    views: Views = "1x1",
    top: Top = None,
    json: Json = None,
    csv: Csv = None,
    fiftyone: FiftyOne = None,
    overwrite: Overwrite = False,
    labels: Labels = None,
    model: ModelOption = None,
    frames: Frames = None,
    device: Device = "auto",
    workers: WorkersOption = None,
    batch_size: BatchSize = None,
    trusted: Trusted = None,
    allow_private_urls: PrivateUrls = False,
    timeline: Timeline = False,
    live: Live = None,
    out: Out = None,
    window: Window = None,
    step: Move = None,
) -> None:
    """Predict the classes of videos, most probable first, or the timeline of long ones.

    On a terminal, the output is a table; in a pipe, a line per video, with tabs between names and probabilities.

    Unreadable videos are listed at the end, and the exit code is 1. It is 2 if the command itself is wrong.
    """
    of_labels = {"top": top, "json": json, "csv": csv, "workers": workers, "batch_size": batch_size}
    of_timeline = {"out": out, "window": window, "step": step}
    with wrong_words():
        refuse_unused(of_labels if timeline or live else of_timeline, timeline=bool(timeline or live))
        if overwrite and not (timeline or live or json or csv or fiftyone):
            raise UserError("--overwrite has no effect without --json, --csv, --fiftyone or --timeline")
        from vivit_train.loading import load
        from vivit_train.tools.predict.output import check_inputs
        from vivit_train.tools.predict.run import Outputs, predict_labels
        from vivit_train.tools.predict.sources import find_clips
        from vivit_train.tools.predict.timeline import Timelines, predict_live, predict_timelines

        stated: dict[str, Any] = {"labels": labels, "model": model, "frames": frames}
        source = partial(load, checkpoint, **stated, device=device, trusted=trusted or ())
        clips = [] if live else find_clips(videos)
        files = {"--json": json, "--csv": csv, "--fiftyone": fiftyone}
        check_inputs(files, (checkpoint, *videos, labels, *(clip.path for clip in clips)))
        wanted = Timelines(out or Path("timelines"), overwrite, views, window, step, allow_private_urls, fiftyone)
        if live:
            refuse_unused({"fiftyone": fiftyone}, timeline=True)
            is_fine = predict_live(source, videos, live, wanted)
        elif timeline:
            is_fine = predict_timelines(source, clips, wanted)
        else:
            outputs = Outputs(json, csv, fiftyone, overwrite)
            loading = {"views": views, "batch_size": batch_size, "allow_private_urls": allow_private_urls}
            loading |= {} if workers is None else {"num_workers": workers}
            is_fine = predict_labels(source, checkpoint, clips, top or 5, outputs, **loading)
    if not is_fine:
        raise typer.Exit(1)
