"""Plots of data and results, saved as PNG files."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vivit_train.utils.text import printable, shorten

if TYPE_CHECKING:  # A sweep draws plots without importing torch.
    from torch import Tensor
Ids = NDArray[np.integer]
NAME, CAPTION = 40, 120  # Names and captions are shortened to this many characters.


def drawn(text: str, length: int = NAME) -> str:
    """Escapes and shortens text for matplotlib.

    The text may contain names, in which a "$" must not start a formula.
    """
    return shorten(printable(text), length).replace("$", r"\$")


def save(figure: Figure, path: Path | BytesIO) -> None:
    """Writes a figure as PNG. Characters that the font lacks appear as boxes, without warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.savefig(path, format="png")


def contact_sheet(
    path: Path, video_BTCHW: "Tensor", captions: Sequence[str], frame_numbers_BT: "Tensor", times_BT: "Tensor"
) -> None:
    """Draws one row per clip with up to eight of its frames, each with its frame number and its time in the video.

    Args:
        path: The output file.
        video_BTCHW: Float pixels in [0, 1].
        captions: One caption per clip.
        frame_numbers_BT: The frame numbers in the video; negative for padding.
        times_BT: The times of the frames in seconds.
    """
    rows, frames = len(video_BTCHW), video_BTCHW.shape[1]
    columns = np.linspace(0, frames - 1, min(8, frames)).astype(int)
    height, width = video_BTCHW.shape[-2:]
    wide, high = 1.5, 1.45 * height / width  # inches of a frame, without the margins around it
    figure = Figure(figsize=(wide * len(columns) + 0.2, (high + 0.45) * rows + 0.1), dpi=100)
    # one axis, in inches from the top left: an axis for each frame would take seconds to draw
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    for b in range(rows):
        top = 0.1 + b * (high + 0.45)
        axis.text(0.1, top + 0.12, drawn(captions[b], CAPTION), fontsize=8, va="center")
        for column, t in enumerate(columns):
            left, pixels_HWC = 0.1 + wide * column, video_BTCHW[b, t].permute(1, 2, 0).clamp(0, 1).numpy()
            axis.imshow(
                pixels_HWC, extent=(left, left + wide - 0.05, top + 0.22 + high, top + 0.22), aspect="auto"
            )
            number, time_s = int(frame_numbers_BT[b, t]), float(times_BT[b, t])
            text = "padding" if number < 0 else f"{number} · {time_s:.2f} s"
            axis.text(left + (wide - 0.05) / 2, top + high + 0.31, text, fontsize=7, ha="center", va="center")
    axis.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))  # imshow changes them
    save(figure, path)


def learning_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draws losses and validation accuracy by epoch.

    Args:
        path: The output file.
        history: One row per epoch with "epoch" and the logged metrics by name.
    """
    figure = Figure(figsize=(9, 3.4), dpi=100)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.15, top=0.91, wspace=0.18)
    accuracy = ("val/top1", "val/top5", "val/action_top1", "val/action_top5", "val/map")
    panels = (("loss", ("train/loss", "val/loss")), ("accuracy", accuracy))
    for axis, (title, names) in zip(figure.subplots(1, 2), panels, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o", markersize=3)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    save(figure, path)


def confusion(path: Path, label_N: Ids, prediction_N: Ids, classes: Sequence[str], title: str) -> None:
    """Draws a confusion matrix: how often each true class (row) was predicted as each class (column)."""
    side = min(12.0, 3.0 + 0.38 * len(classes))
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    confusion_axis(figure.subplots(), label_N, prediction_N, classes, title)
    save(figure, path)


def confusion_axis(axis: Axes, label_N: Ids, prediction_N: Ids, classes: Sequence[str], title: str) -> None:
    """Draws row-normalized shares as colors, with counts for up to 20 classes and names for up to 40."""
    K = len(classes)
    counts = np.zeros((K, K))
    np.add.at(counts, (label_N, prediction_N), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.set(title=drawn(title, CAPTION), xlabel="predicted", ylabel="true")
    if K <= 40:
        names = list(map(drawn, classes))
        axis.set_xticks(range(K), names, rotation=60, ha="right")
        axis.set_yticks(range(K), names)
    if K <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=8, color=color
            )


def average_precision_bars(
    path: Path, precision_K: NDArray[np.float64], share_K: NDArray[np.float64], classes: Sequence[str], title: str
) -> None:
    """Draws the average precision of each class, best first, with names for up to 40 classes.

    A marker shows the share of videos that have the class, which is the average precision of random guessing.
    Classes that no video has (NaN) are left out.
    """
    order = [k for k in np.argsort(-precision_K) if not np.isnan(precision_K[k])]
    rows = np.arange(len(order))
    figure = Figure(figsize=(8, min(12.0, 1.8 + 0.22 * len(order))), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.barh(rows, precision_K[order], height=0.8, color="tab:blue")
    axis.scatter(
        share_K[order], rows, s=80, marker="|", color="black", label="chance: share of videos with the class"
    )
    axis.set(title=drawn(title, CAPTION), xlabel="average precision", xlim=(0, 1), yticks=[])
    axis.invert_yaxis()
    if len(order) <= 40:
        axis.set_yticks(rows, [drawn(classes[k]) for k in order])
    figure.legend(loc="outside lower right", fontsize=8)
    save(figure, path)
