"""The command `vivit crossval`. Like cli.py, it imports its tools only when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from vivit_train.tools.usage import Videos
from vivit_train.utils.errors import UserError

EXAMPLES = (
    "vivit crossval videos --folds 5 --seeds 3 --out crossval",
    "vivit crossval data=csv data.root=videos --group column:person   # leave one person out",
    "vivit crossval data=csv data.root=videos --group 'person(\\d+)' --out crossval   # by the names of the files",
    "vivit crossval videos init=imagenet --probe   # heads on frozen features, in minutes",
)


def crossval(
    videos: Videos = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the runs.")] = Path("crossval"),
    folds: Annotated[int | None, typer.Option(min=2, help="Number of folds. Default: one per group.")] = None,
    group: Annotated[
        str,
        typer.Option(
            help="Clips that stay in one fold: source (by the names of files and folders), none, column:NAME (a "
            "column of the tables of data=csv), a CSV file with the header path,group, or a regular expression "
            "with a group that is searched in the path."
        ),
    ] = "source",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each fold, with seeds 0, 1, ...")] = 1,
    val_percent: Annotated[
        float | None,
        typer.Option(min=1, max=50, help="Percentage of training clips that choose the checkpoint. Default: 10."),
    ] = None,
    with_test: Annotated[
        bool, typer.Option("--with-test", help="Also divide the clips of the data's own test split.")
    ] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Each run is a vivit probe: heads on frozen features, in minutes.")
    ] = False,
) -> None:
    """Estimate the accuracy on unseen clips: train on all folds but one, test on it, and average.

    The same command goes on where it was stopped. Other words are overrides of the training runs. With few clips,
    they train a head on frozen features where train.py does: see docs/small-data.md.
    """
    from vivit_train.tools.crossval.run import Choices
    from vivit_train.tools.crossval.run import crossval as run
    from vivit_train.tools.overrides import OF_RUN, OF_TRAINING, compose_videos, to_overrides

    if probe and val_percent is not None:
        raise UserError("--val-percent: a probe has no checkpoints to choose from: leave out one of the two")
    overrides = to_overrides(videos)
    if seed := next((word for word in overrides if word.startswith("seed=")), None):
        raise UserError(f"{seed} has no effect here: --seeds N trains with the seeds 0 to N - 1")
    unused = OF_TRAINING if probe else OF_RUN
    cfg = compose_videos(videos, Path("."), "vivit crossval", unused)
    choices = Choices(folds, group, seeds, val_percent or 10, with_test, probe)
    run(cfg, out, overrides, choices)
