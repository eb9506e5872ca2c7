"""The commands `vivit features` and `vivit search`. Like cli.py, it imports its tools only when it is called."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vivit_train.tools.predict.command import (
    BatchSize,
    Device,
    Frames,
    ModelOption,
    Overwrite,
    PrivateUrls,
    Trusted,
    Videos,
    WorkersOption,
    wrong_words,
)
from vivit_train.utils.errors import UserError

EXAMPLES = (
    "vivit features runs/mine videos",
    "vivit features runs/mine videos --level frame --views 4x1 --out frames.npz",
    "vivit features vit_base_patch14_dinov2.lvd142m table.csv --half",
)
SEARCH_EXAMPLES = (
    "vivit search features.safetensors video.mp4",
    "vivit search features.safetensors videos/a.mp4 --top 50 --out near.html",
)
Weights = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="Checkpoint, folder of a run, hf://user/name, or any weights to start from (docs/weights.md).",
    ),
]
Out = Annotated[Path, typer.Option(metavar="FILE", help="File to write: .safetensors, or .npz for numpy.")]
LevelOption = Annotated[
    Literal["clip", "frame", "token"],
    typer.Option(help="One vector per clip, per frame (time index) or per token of a clip."),
]
Views = Annotated[
    str,
    typer.Option(
        help="Temporal clips x spatial crops of each video. Clips are averaged, or frames follow in order."
    ),
]
Half = Annotated[bool, typer.Option("--half", help="Store float16.")]
Features = Annotated[Path, typer.Argument(metavar="FEATURES", help="File that vivit features wrote.")]
Query = Annotated[
    str, typer.Argument(metavar="VIDEO", help="Name in FEATURES, which needs no model, or another video.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(metavar="CKPT", help="The model of FEATURES, if it is no longer where it was."),
]
Page = Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")]
Top = Annotated[int, typer.Option(min=1, help="Number of clips to show.")]


def features(
    checkpoint: Weights,
    videos: Videos,
    out: Out = Path("features.safetensors"),
    level: LevelOption = "clip",
    views: Views = "1x1",
    half: Half = False,
    overwrite: Overwrite = False,
    model: ModelOption = None,
    frames: Frames = None,
    device: Device = "auto",
    workers: WorkersOption = None,
    batch_size: BatchSize = None,
    trusted: Trusted = None,
    allow_private_urls: PrivateUrls = False,
) -> None:
    """Write the embeddings of videos: what the model knows about them before its head.

    A killed run goes on where it stopped if the same command is repeated, and gives the same file.

    Unreadable videos are listed at the end, and the exit code is 1. It is 2 if the command itself is wrong.
    """
    with wrong_words():
        from vivit_train.loading import load
        from vivit_train.tools.features.run import Wanted, write_embeddings
        from vivit_train.tools.predict.output import check_inputs
        from vivit_train.tools.predict.sources import find_clips

        clips = find_clips(videos)
        check_inputs({"--out": out}, (checkpoint, *videos, *(clip.path for clip in clips)))
        wanted = Wanted(out, level, views, half, overwrite)
        stated: dict[str, Any] = {"model": model, "frames": frames, "head": False}
        source = partial(load, checkpoint, **stated, device=device, trusted=trusted or ())
        loading = {"batch_size": batch_size, "allow_private_urls": allow_private_urls}
        loading |= {} if workers is None else {"num_workers": workers}
        is_fine = write_embeddings(source, checkpoint, clips, wanted, **loading)
    if not is_fine:
        raise typer.Exit(1)


def search(
    features: Features,
    video: Query,
    out: Page = Path("search.html"),
    top: Top = 12,
    checkpoint: CheckpointOption = None,
    device: Device = "auto",
    trusted: Trusted = None,
    allow_private_urls: PrivateUrls = False,
) -> None:
    """Find the clips that are nearest to a video, by the cosine similarity of their embeddings.

    On a terminal, the output is a table; in a pipe, a line per clip, with a tab between similarity and name.

    The page shows them as thumbnails.
    """
    with wrong_words():
        from vivit_train.loading import load
        from vivit_train.tools.features.file import read_features
        from vivit_train.tools.features.nearest import row_of
        from vivit_train.tools.features.nearest import search as run
        from vivit_train.video_model import VideoModel

        if checkpoint and row_of(read_features(features), video) is not None:
            raise UserError(f"--checkpoint has no effect, because {video} is in {features}: leave it out")

        def source(stated: str | None) -> VideoModel:
            name = checkpoint or stated
            if name is None:
                raise UserError(f"{features} does not name its model: add --checkpoint CKPT")
            return load(name, device=device, trusted=trusted or (), head=False)

        run(features, video, source, out, top=top, allow_private_urls=allow_private_urls)
