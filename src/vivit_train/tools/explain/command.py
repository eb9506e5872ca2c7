"""The command `vivit explain`. Like cli.py, it imports its tools only when it is called."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vivit_train.tools.predict.command import Checkpoint, Device, Frames, Labels, ModelOption, Trusted, wrong_words

EXAMPLES = (
    "vivit explain runs/mine video.mp4",
    "vivit explain runs/mine a.mp4 b.mp4 --class running --out why",
)
Videos = Annotated[list[str], typer.Argument(metavar="VIDEO", help="Paths or URLs of videos.")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the page and the heat maps.")]
ClassName = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="Class to explain. Default: the predicted one.")
]
MethodOption = Annotated[
    Literal["gradient", "rollout"],
    typer.Option(help="gradient depends on the class; rollout (attention alone) does not."),
]


def explain(
    checkpoint: Checkpoint,
    videos: Videos,
    out: Out = Path("explain"),
    class_name: ClassName = None,
    method: MethodOption = "gradient",
    labels: Labels = None,
    model: ModelOption = None,
    frames: Frames = None,
    device: Device = "auto",
    trusted: Trusted = None,
) -> None:
    """Show where and when a model looks: a heat map over the playing clip, as a page and as videos.

    The folder gets index.html and a heat map (.mp4) per video. If a video is unreadable, the exit code is 1.
    """
    with wrong_words():
        from vivit_train.loading import load
        from vivit_train.tools.explain.run import explain as run

        stated: dict[str, Any] = {"labels": labels, "model": model, "frames": frames}
        loaded = load(checkpoint, **stated, device=device, trusted=trusted or ())
        all_read = run(loaded, checkpoint, videos, out, class_name=class_name, method=method)
    if not all_read:
        raise typer.Exit(1)
