"""Plots of data and results, saved as PNG files in one style."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.intervals import wilson
from vivit_train.utils.text import percent, printable, shorten

if TYPE_CHECKING:  # A sweep draws plots without importing torch.
    from torch import Tensor
log = logging.getLogger(__name__)
Ids = NDArray[np.integer]
NAME, CAPTION = 40, 120  # Names and captions are shortened to this many characters.
BLUE, ORANGE, GRAY = "#2563eb", "#d97706", "#6b7280"
LOG_FROM, MOST_CHOICES, MOST_TICKS = 20, 6, 6  # of the chart of a sweep
COLORS = (BLUE, ORANGE, "#059669", "#7c3aed", "#db2777", "#0891b2")
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#9ca3af",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": "#374151",
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.titlesize": 11,
    "font.size": 9,
    "grid.color": "#e5e7eb",
    "legend.edgecolor": "white",
    "text.color": "#111827",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
}
styled = rc_context(STYLE)  # a decorator
ACCURACY = {
    "val/top1": "top-1",
    "val/top5": "top-5",
    "val/action_top1": "action top-1",
    "val/action_top5": "action top-5",
    "val/map": "mAP",
}


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


@contextmanager
def optional_picture(path: Path) -> Iterator[None]:
    """Turns an error while a picture is drawn into a warning, because it must not end a training."""
    try:
        yield
    except (OSError, UserError):  # such as a full disk, which ends it with a message of its own
        raise
    except Exception as error:
        log.warning(f"{path} could not be drawn, but the run continues: {reason(error)}")


@styled
def contact_sheet(
    path: Path,
    video_BTCHW: "Tensor",
    captions: Sequence[str],
    frame_numbers_BT: "Tensor",
    times_BT: "Tensor",
    title: str = "",
) -> None:
    """Draws one row per clip with up to eight of its frames, each with its frame number and its time in the video.

    An arrow marks the first frame after the video has started again, because it is shorter than the clip.

    Args:
        path: The output file.
        video_BTCHW: Float pixels in [0, 1].
        captions: One caption per clip, with one or two lines.
        frame_numbers_BT: The frame numbers in the video; negative for padding.
        times_BT: The times of the frames in seconds.
        title: A heading, or "".
    """
    rows, frames = len(video_BTCHW), video_BTCHW.shape[1]
    columns = np.linspace(0, frames - 1, min(8, frames)).astype(int)
    height, width = video_BTCHW.shape[-2:]
    wide, high = 1.5, 1.45 * height / width  # inches of a frame, without the margins around it
    above = 0.22 * max(caption.count("\n") + 1 for caption in captions)
    row_height, first = high + above + 0.3, 0.4 if title else 0.1
    figure = Figure(figsize=(wide * len(columns) + 0.2, row_height * rows + first), dpi=100)
    # one axis, in inches from the top left: an axis for each frame would take seconds to draw
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.text(0.1, 0.22, drawn(title, CAPTION), fontsize=10, weight="bold", va="center")
    for b in range(rows):
        top = first + b * row_height
        for i, line in enumerate(captions[b].split("\n")):
            style: dict[str, Any] = {"color": GRAY} if i else {"weight": "bold"}
            axis.text(0.1, top + 0.12 + 0.2 * i, drawn(line, CAPTION), fontsize=8, va="center", **style)
        before = -1
        for column, t in enumerate(columns):
            left, pixels_HWC = 0.1 + wide * column, video_BTCHW[b, t].permute(1, 2, 0).clamp(0, 1).numpy()
            box = (left, left + wide - 0.05, top + above + high, top + above)
            axis.imshow(pixels_HWC, extent=box, aspect="auto")
            number, time_s = int(frame_numbers_BT[b, t]), float(times_BT[b, t])
            restarts, before = 0 <= number < before, number
            text = "padding" if number < 0 else f"{'↺ ' if restarts else ''}{number} · {time_s:.2f} s"
            color = ORANGE if restarts or number < 0 else "#374151"
            middle = left + (wide - 0.05) / 2
            axis.text(middle, top + above + high + 0.09, text, fontsize=7, ha="center", va="center", color=color)
    axis.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))  # imshow changes them
    save(figure, path)


@styled
def reconstructions(path: Path, clips: "Sequence[Sequence[Tensor]]", captions: Sequence[str], title: str) -> None:
    """Draws up to eight frames of each clip in three rows: as they are, masked, and reconstructed.

    Args:
        path: The output file.
        clips: The three versions of each clip, float pixels in [0, 1], [T, C, H, W].
        captions: The name of each clip.
        title: The title.
    """
    kinds = ("clip", "masked", "reconstructed")
    frames, _, height, width = clips[0][0].shape
    columns = np.linspace(0, frames - 1, min(8, frames)).astype(int)
    wide, beside, gap = 1.15, 1.0, 0.04  # inches of a frame, of the names of the rows, and between frames
    high = wide * height / width
    block = 0.3 + 3 * (high + gap) + 0.12
    figure = Figure(figsize=(beside + (wide + gap) * len(columns) + 0.1, 0.45 + block * len(clips)), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")
    axis.text(0.1, 0.22, drawn(title, CAPTION), fontsize=10, weight="bold", va="center")
    for number, (versions, caption) in enumerate(zip(clips, captions, strict=True)):
        top = 0.45 + block * number
        axis.text(beside, top + 0.15, drawn(caption, CAPTION), fontsize=8, color=GRAY, va="center")
        for row, (kind, video_TCHW) in enumerate(zip(kinds, versions, strict=True)):
            upper = top + 0.3 + row * (high + gap)
            axis.text(beside - 0.08, upper + high / 2, kind, fontsize=8, ha="right", va="center")
            for column, t in enumerate(columns):
                left, pixels_HWC = beside + (wide + gap) * column, video_TCHW[t].permute(1, 2, 0).numpy()
                axis.imshow(pixels_HWC, extent=(left, left + wide, upper + high, upper), aspect="auto")
    axis.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))  # imshow changes them
    save(figure, path)


@styled
def learning_curves(path: Path, history: Sequence[Mapping[str, float]], chance: float = math.nan) -> None:
    """Draws validation accuracy, from 0 to 1, if there is one, and losses by epoch, and marks the best epoch.

    Args:
        path: The output file.
        history: One row per epoch with "epoch" and the logged metrics by name.
        chance: The score of a model that knows only how frequent the classes are; NaN draws no line.
    """
    has_accuracy = any(name in ACCURACY for row in history for name in row)
    figure = Figure(figsize=(10 if has_accuracy else 6, 3.8), dpi=110)
    figure.subplots_adjust(left=0.05 if has_accuracy else 0.08, right=0.98, bottom=0.13, top=0.91, wspace=0.13)
    axes = figure.subplots(1, 2, width_ratios=(3, 2)) if has_accuracy else [figure.subplots()]
    loss_axis(axes[-1], history)
    if has_accuracy:
        accuracy_axis(axes[0], history, chance)
    axes[0].set_title(f"{axes[0].get_title('left')}, {drawn(path.resolve().parent.name)}")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", fontsize=8)
    save(figure, path)


def loss_axis(axis: Axes, history: Sequence[Mapping[str, float]]) -> None:
    """Draws the losses by epoch; see `learning_curves`."""
    lines(axis, history, {"train/loss": "training", "val/loss": "validation"})
    axis.set(title="loss", ylim=(0, None))
    if best := best_row(history):
        axis.axvline(best["epoch"], color=GRAY, linewidth=1, linestyle=":")


def accuracy_axis(axis: Axes, history: Sequence[Mapping[str, float]], chance: float = math.nan) -> None:
    """Draws the validation accuracy from 0 to 1, chance, and the best epoch; see `learning_curves`."""
    lines(axis, history, ACCURACY)
    axis.set(title="validation accuracy", ylim=(0, 1))
    if not math.isnan(chance):
        axis.axhline(chance, color=GRAY, linestyle="--", linewidth=1, label=f"chance {chance:.2f}")
    if best := best_row(history):
        mark_best(axis, best)


def lines(axis: Axes, history: Sequence[Mapping[str, float]], labels: Mapping[str, str]) -> None:
    """Draws a line for each metric that was logged."""
    for name, label in labels.items():
        points = [(row["epoch"], row[name]) for row in history if name in row]
        if points:
            marker = "o" if len(points) < 50 else ""
            axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1.5)
    axis.set(xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def best_row(history: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """Returns the first row with the highest val/score, whose weights are best.ckpt; None without validation."""
    scored = [row for row in history if not math.isnan(row.get("val/score", math.nan))]
    return max(scored, key=lambda row: row["val/score"]) if scored else None


def mark_best(axis: Axes, row: Mapping[str, float]) -> None:
    """Marks the best epoch, with the 95 % interval of its score if this is a share of the videos."""
    epoch, score = row["epoch"], row["val/score"]
    text = f"best: {score:.3f} in epoch {epoch:g}"
    if "val/n" in row and "val/map" not in row:
        low, high = interval_bar(axis, epoch, score, row["val/n"])
        text += f" (95 % CI {low:.2f} to {high:.2f})"
    axis.scatter([epoch], [score], s=90, marker="*", color=BLUE, zorder=3, label=text)


def interval_bar(axis: Axes, x: float, score: float, n: float, **style: Any) -> tuple[float, float]:
    """Draws the 95 % interval of a share of n videos as a bar, and returns its ends."""
    low, high = map(float, wilson(score * n, n))
    below, above = max(score - low, 0), max(high - score, 0)  # `score` may be rounded, and an end of its interval.
    axis.errorbar(x, score, [[below], [above]], color=BLUE, capsize=3, linewidth=1, **style)
    return low, high


@styled
def confusion(path: Path, label_N: Ids, prediction_N: Ids, classes: Sequence[str], title: str) -> None:
    """Draws a confusion matrix: how often each true class (row) was predicted as each class (column).

    Args:
        path: The output file.
        label_N: The true class ids.
        prediction_N: The predicted class ids; negative if a video could not be read.
        classes: The class names.
        title: The title.
    """
    side = min(12.0, 4.0 + 0.38 * len(classes))
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    confusion_axis(figure.subplots(), label_N, prediction_N, classes)
    figure.suptitle("\n".join(drawn(line, CAPTION) for line in title.split("; ")), x=0.02, ha="left", fontsize=10)
    save(figure, path)


def confusion_axis(axis: Axes, label_N: Ids, prediction_N: Ids, classes: Sequence[str], title: str = "") -> None:
    """Draws row-normalized shares as colors, with counts for up to 20 classes and names for up to 40.

    Unreadable videos have a column of their own. Up to 12 classes also have percentages.
    """
    K, failed = len(classes), bool((prediction_N < 0).any())
    counts = np.zeros((K, K + failed))
    np.add.at(counts, (label_N, np.where(prediction_N < 0, K, prediction_N)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.set(title=drawn(title, CAPTION), xlabel="predicted", ylabel="true")
    axis.grid(False)
    if K <= 40:
        names = list(map(drawn, classes))
        axis.set_xticks(range(K + failed), names + ["unreadable"] * failed, rotation=60, ha="right")
        axis.set_yticks(range(K), names)
    if K <= 20:
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = shares[row, column]
            narrow = percent(share).replace(" ", "")  # A cell of the smallest chart has no place for the blank.
            text = f"{int(counts[row, column])}" + (f"\n{narrow}" if K <= 12 else "")
            color = "white" if share > 0.5 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


@styled
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
    axis.barh(rows, precision_K[order], height=0.8, color=BLUE)
    axis.scatter(
        share_K[order], rows, s=80, marker="|", color="black", label="chance: share of videos with the class"
    )
    axis.set(xlabel="average precision", xlim=(0, 1), yticks=[])
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    if len(order) <= 40:
        axis.set_yticks(rows, [drawn(classes[k]) for k in order])
    figure.suptitle("\n".join(drawn(line, CAPTION) for line in title.split("; ")), x=0.02, ha="left", fontsize=10)
    figure.legend(loc="outside lower right", fontsize=8)
    save(figure, path)


@styled
def scores_by_choice(
    path: Path,
    choices: Mapping[str, Sequence[str]],
    scores: Sequence[float],
    counts: Sequence[int | None],
    metric: str,
) -> None:
    """Draws the scores of jobs, from 0 to 1, against each of their choices.

    Numbers are on a continuous axis, which is logarithmic from a ratio of `LOG_FROM` on; other choices are
    categories. A line connects the means of equal numbers, and a star marks the best job.

    Args:
        path: The output file.
        choices: The value of each job by the name of the choice, as text.
        scores: The score of each job.
        counts: The number of videos of which the score is a share, for its 95 % interval; None draws none.
        metric: The name of the score.
    """
    shown = list(choices)[:MOST_CHOICES]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(0.6 + 4.2 * columns, 0.5 + 3.3 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, name in zip(axes, shown, strict=False):
        choice_axis(axis, choices[name], np.array(scores), counts)
        axis.set(xlabel=drawn(name), ylim=(0, 1))
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(drawn(metric))
    best = int(np.argmax(scores))
    said = f"best: {scores[best]:.3f} of {len(scores)} jobs"
    more = f"; {len(choices) - len(shown)} more choices in summary.csv" if len(choices) > len(shown) else ""
    bars = "; bars are 95 % intervals over the videos" if any(counts) else ""
    figure.suptitle(said + bars + more, x=0.02, ha="left", fontsize=10)
    save(figure, path)


def choice_axis(
    axis: Axes, texts: Sequence[str], scores: NDArray[np.float64], counts: Sequence[int | None]
) -> None:
    """Draws the scores of jobs against one choice; see `scores_by_choice`."""
    values = numbers(texts)
    if values is None:
        names = list(dict.fromkeys(texts))
        values = np.array([names.index(text) for text in texts], float)
        axis.set_xticks(range(len(names)), [drawn(name, 20) for name in names], rotation=30, ha="right")
        axis.set_xlim(-0.5, len(names) - 0.5)
    else:
        if values.min() > 0 and values.max() / values.min() >= LOG_FROM:
            axis.set_xscale("log")
        places = np.unique(values)
        if len(places) <= MOST_TICKS:
            axis.set_xticks(places, [f"{place:g}" for place in places])
            axis.minorticks_off()
        axis.plot(
            places, [scores[values == place].mean() for place in places], color=BLUE, alpha=0.35, linewidth=1.5
        )
    for x, score, n in zip(values, scores, counts, strict=True):
        if n:
            interval_bar(axis, x, score, n, alpha=0.6)
    axis.scatter(values, scores, s=18, color=BLUE, zorder=3, clip_on=False)
    best = int(np.argmax(scores))
    axis.scatter([values[best]], [scores[best]], s=110, marker="*", color=ORANGE, zorder=4, clip_on=False)


def numbers(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """Returns texts as numbers, or None if one of them is no finite number."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
