"""Report the demo's result: does the model recognize motion or only single frames?

    python -m vivit_train.tools.demo_report runs/demo

The report reads the predictions of three evaluations of one checkpoint: with the frames in their order (RUN),
reversed (RUN/reversed) and shuffled (RUN/shuffled). A reversed clip of one class looks like a clip of the partner
class. A shuffled clip looks like neither.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vivit_train.data.synthetic import CLASSES, PARTNER
from vivit_train.data.video.decode import read_frames
from vivit_train.utils.files import read_records
from vivit_train.utils.plots import CAPTION, confusion_axis, drawn, save
from vivit_train.utils.startup import prepare_process
from vivit_train.utils.text import percent

log = logging.getLogger("vivit_train.tools.demo_report")  # run as a module, its name would be __main__

ORDERS = {"forward": ".", "reversed": "reversed", "shuffled": "shuffled"}


def read_predictions(run: Path) -> list[tuple[str, str, str]]:
    """Return (id, label, prediction) for every test video."""
    rows = read_records(run / "predictions.csv")
    return [(row["id"], row["label"], row["prediction"]) for row in rows]


def draw(path: Path, predictions: dict[str, list[tuple[str, str, str]]], root: Path) -> None:
    """Draw a film strip per class and, below, the confusion matrix of the test videos for each frame order."""
    figure = Figure(figsize=(13, 10.5), dpi=90, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    axes = halves[0].subplots(4, 2)
    for axis, label in zip(axes.flat, CLASSES, strict=True):
        name, _, prediction = next(row for row in predictions["forward"] if row[1] == label)
        frames_THWC = read_frames(root / name, np.arange(2, 22, 3))
        apart = np.pad(frames_THWC, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)
        axis.imshow(np.concatenate(list(apart), axis=1))
        axis.set(xticks=[], yticks=[])
        axis.set_title(drawn(f"{label}: predicted {prediction}", CAPTION), fontsize=10, loc="left")
    for axis, (order, rows) in zip(halves[1].subplots(1, 3), predictions.items(), strict=True):
        labels = np.array([CLASSES.index(label) for _, label, _ in rows])
        guesses = np.array([CLASSES.index(prediction) for *_, prediction in rows])
        confusion_axis(
            axis, labels, guesses, CLASSES, f"{order}: {percent(float(np.mean(labels == guesses)), 1)} correct"
        )
    save(figure, path)


def main(run: Path) -> None:
    predictions = {order: read_predictions(run / folder) for order, folder in ORDERS.items()}
    right = {
        order: float(np.mean([label == guess for _, label, guess in rows])) for order, rows in predictions.items()
    }
    partner = float(np.mean([PARTNER[label] == guess for _, label, guess in predictions["reversed"]]))
    log.info(
        f"frames in order:  {percent(right['forward'], 1)} of {len(predictions['forward'])} test videos correct"
    )
    log.info(
        f"frames reversed:  {percent(partner, 1)} predicted as the partner (left as right, approach as recede)"
    )
    log.info(f"frames shuffled:  {percent(right['shuffled'], 1)} correct")
    draw(run / "demo.png", predictions, Path("data/demo"))
    log.info(
        f"See {run}/report.html (what it does well), {run}/demo.png (results), {run}/curves.png (training) and\n"
        f"{run}/contact_sheet.png (training clips).\n"
        "Try next:\n"
        f"  python eval.py ckpt_path={run}/checkpoints/best.ckpt eval.views=4x1   # more clips per video\n"
        "  python train.py model=vivit_st                                        # another of the four models\n"
        "  python train.py data=folder data.root=DIR init=imagenet               # your videos, in class folders"
    )


if __name__ == "__main__":
    prepare_process()
    main(Path(sys.argv[1]))
