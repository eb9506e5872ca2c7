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


def sweep_panels(path: Path, jobs: Sequence[tuple[Mapping[str, str], float]]) -> None:
    """Draws the scores of a sweep's jobs against each of their choices, with the best job as a star.

    Args:
        path: The output file.
        jobs: The choices of each job by name, and its score. A choice with more than six numeric values gets a
            numeric axis, which is logarithmic if the values span more than a factor of 20. Any other choice gets a
            categorical axis.
    """
    names = list(dict.fromkeys(name for chosen, _ in jobs for name in chosen)) or ["job"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(0.6 + 3.6 * columns, 0.5 + 3.1 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    score_N = np.array([score for _, score in jobs])
    best = int(score_N.argmax())
    for axis, name in zip(axes, names, strict=False):
        texts = [chosen.get(name, "") for chosen, _ in jobs]
        kinds = sorted(set(texts), key=lambda text: (number(text) is None, number(text) or 0.0, text))
        numbers = [number(text) for text in kinds]
        if len(kinds) > 6 and None not in numbers:
            x_N = np.array([number(text) for text in texts], float)
            if x_N.min() > 0 and x_N.max() > 20 * x_N.min():
                axis.set_xscale("log")
        else:
            x_N = np.array([kinds.index(text) for text in texts], float)
            labels = [drawn(text) if n is None else f"{n:.3g}" for text, n in zip(kinds, numbers, strict=True)]
            axis.set_xticks(range(len(kinds)), labels, rotation=20 if max(map(len, labels)) > 10 else 0)
            axis.set_xlim(-0.5, len(kinds) - 0.5)
        axis.scatter(x_N, score_N, s=36, color="tab:blue", alpha=0.6, linewidths=0)
        axis.scatter(x_N[best], score_N[best], s=170, marker="*", color="tab:orange", zorder=3)
        axis.set_xlabel(drawn(name))
        axis.margins(y=0.1)
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel("val/score")
    figure.suptitle(f"{len(jobs)} jobs, best val/score {score_N[best]:.3f}", fontsize=11)
    save(figure, path)


def number(text: str) -> float | None:
    """Returns the number that a text represents, or None if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return None


def growth_curves(
    path: Path,
    curves: Mapping[tuple[str, str], Sequence[tuple[int, float, float, float]]],
    orders: Mapping[str, str],
    title: str,
) -> None:
    """Draws time and memory (rows) against frames and crop (columns) on logarithmic axes.

    Dashed lines show the expected number of operations, scaled to the last measured time.

    Args:
        path: The output file.
        curves: Points of (value, seconds, bytes, operations) by axis and model.
        orders: The expected growth of the operations of each model, as text.
        title: The title of the figure.
    """
    figure = Figure(figsize=(10, 7.2), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, axis in enumerate(dict.fromkeys(axis for axis, _ in curves)):
        for number, (model, order) in enumerate(orders.items()):
            values, seconds, sizes, operations = zip(*curves.get((axis, model)) or [(0,) * 4], strict=True)
            if not any(values):
                continue
            color = f"C{number}"
            panels[0, column].plot(
                values, seconds, color=color, marker="o", markersize=4, label=f"{model}: {order}"
            )
            expected = [seconds[-1] * count / operations[-1] for count in operations]
            panels[0, column].plot(values, expected, color=color, linestyle="--", linewidth=1)
            panels[1, column].plot(values, [size / 1e9 for size in sizes], color=color, marker="o", markersize=4)
        for row in range(2):
            panels[row, column].set(xscale="log", yscale="log")
            panels[row, column].grid(alpha=0.3, which="both")
        ticks = sorted({point[0] for (name, _), points in curves.items() if name == axis for point in points})
        panels[1, column].set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        panels[1, column].minorticks_off()
        panels[1, column].set_xlabel({"frames": "frames", "crop": "crop (pixels per side)"}[axis])
    panels[0, 0].set_ylabel("seconds per step")
    panels[1, 0].set_ylabel("peak memory (GB)")
    panels[0, 0].legend(title="dashed: expected operations", fontsize=8, title_fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)
