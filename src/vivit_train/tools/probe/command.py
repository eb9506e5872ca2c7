"""The command `vivit probe`. Like cli.py, it imports its tools only when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from vivit_train.tools.usage import Videos

EXAMPLES = (
    "vivit probe videos init=imagenet",
    "vivit probe data=csv data.root=videos data.train=train.csv data.val=test.csv init.path=FILE",
)


def probe(
    videos: Videos = None,
    out: Annotated[Path | None, typer.Option(help="New folder. Default: probe/<data name>/1, 2, ...")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds of cross-validation.")] = 10,
    group: Annotated[
        str, typer.Option(help="Clips that stay in one fold: source, none, column:NAME, ... as in crossval.")
    ] = "source",
) -> None:
    """Get a first honest number for a dataset in minutes: heads on the frozen features of pretrained weights.

    A table compares them with chance, appearance alone and motion alone. Cross-validation within the training
    clips chooses three heads, whose mean is OUT/checkpoints/best.ckpt. Features are stored in
    features/<data name>.
    """
    from vivit_train.tools.probe.run import probe as run

    run(videos, out, folds, group)
