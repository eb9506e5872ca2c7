"""The command `vivit predict`. Like cli.py, it imports its tools only when it is called."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vivit_train.utils.errors import UserError

log = logging.getLogger(__name__)

EXAMPLES = (
    "vivit predict runs/mine video.mp4",
    "vivit predict runs/mine videos --views 4x3 --csv predictions.csv --json predictions.json",
    "find videos -name '*.mp4' | vivit predict runs/mine - | cut -f 1,2",
    "vivit predict hf://google/vivit-b-16x2-kinetics400 'clips/*.mp4' https://example.org/a.mp4",
)
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="Checkpoint, folder of a run, folder of a Hugging Face ViViT, or hf://user/name."
    ),
]
Videos = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO...",
        help="Videos, folders, patterns, URLs, tars, lists and tables of videos (.csv, .tsv, .txt), or - for a "
        "list on stdin.",
    ),
]
Views = Annotated[
    str, typer.Option(help="Temporal clips x spatial crops (1 or 3) of each video; their logits are averaged.")
]
Top = Annotated[int, typer.Option(min=1, help="Number of classes to show.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a JSON file.")]
Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a CSV file, a row per video.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Labels = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Class names, one per line, for weights without names.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto: cuda if available, otherwise cpu.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Number of processes that read videos. Default: one per core.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Clips times crops per forward pass. Default: as in training.")
]
Trusted = Annotated[
    list[str] | None, typer.Option(help="Your own package that defines the model. May be repeated.")
]
PrivateUrls = Annotated[
    bool, typer.Option("--allow-private-urls", help="Read URLs that lead to this machine or a local network.")
]


@contextmanager
def wrong_words() -> Iterator[None]:
    """Ends the command with a message and exit code 2 if its words are wrong; 1 stands for unreadable videos."""
    try:
        yield
    except UserError as error:
        log.error(f"error: {error}")
        raise typer.Exit(2) from None


def predict(
    checkpoint: Checkpoint,
    videos: Videos,
    views: Views = "1x1",
    top: Top = 5,
    json: Json = None,
    csv: Csv = None,
    overwrite: Overwrite = False,
    labels: Labels = None,
    device: Device = "auto",
    workers: WorkersOption = None,
    batch_size: BatchSize = None,
    trusted: Trusted = None,
    allow_private_urls: PrivateUrls = False,
) -> None:
    """Predict the classes of videos, most probable first.

    On a terminal, the output is a table; in a pipe, a line per video, with tabs between names and probabilities.

    Unreadable videos are listed at the end, and the exit code is 1. It is 2 if the command itself is wrong.
    """
    with wrong_words():
        from vivit_train.tools.predict.run import Loading, Outputs
        from vivit_train.tools.predict.run import predict as run
        from vivit_train.tools.predict.sources import find_clips
        from vivit_train.training.evaluation import parse_views
        from vivit_train.video_model import load

        parse_views(views)
        outputs = Outputs(json, csv, overwrite)
        outputs.check()
        clips = find_clips(videos)
        model = load(checkpoint, labels=labels, device=device, trusted=trusted or ())
    loading = Loading(batch_size, "auto" if workers is None else workers, allow_private_urls)
    if not run(model, checkpoint, clips, views=views, top=top, loading=loading, outputs=outputs):
        raise typer.Exit(1)
