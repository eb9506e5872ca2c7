"""What happens when in a long or live video: labels of sliding windows, averaged and merged into segments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.video.scan import timeline
from vivit_train.data.video.urls import private_urls
from vivit_train.data.watchdog import LoaderDiedError
from vivit_train.data.windows import Windows, place_windows
from vivit_train.training.evaluation import parse_views
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.video_model import VideoModel, clip_table

Shares = NDArray[np.float64]
Report = Callable[[float, float], None]


@dataclass(frozen=True)
class Segment:
    """A part of a video with one label.

    Attributes:
        start_s: The start in seconds.
        end_s: The end in seconds.
        head: The head of the label; a single head has the name "".
        name: The name of the class.
        probability: The mean probability of the class in the segment.
    """

    start_s: float
    end_s: float
    head: str
    name: str
    probability: float


@dataclass(frozen=True)
class Segmentation:
    """The segments of a video.

    Attributes:
        video: The path or the URL of the video.
        duration_s: The length of the video in seconds.
        window_s: The length of a window in seconds.
        step_s: The usual distance between two windows in seconds.
        segments: The segments by head and start.
        notes: What the user should know about the result.
    """

    video: str
    duration_s: float
    window_s: float
    step_s: float
    segments: Sequence[Segment]
    notes: Sequence[str] = ()


def segment_video(
    model: VideoModel,
    video: str,
    *,
    window_s: float | None = None,
    step_s: float | None = None,
    views: str = "1x1",
    allow_private_urls: bool = False,
    report: Report = lambda done_s, total_s: None,
) -> Segmentation:
    """Returns the segments of a long video, which is decoded once, in order, while the model computes.

    Args:
        model: The model.
        video: The path or the URL of the video.
        window_s: The length of a window in seconds; None is the time that a clip of the training spans.
        step_s: The distance between two windows in seconds; None is half of a window.
        views: "1x1" or, for three spatial crops of each window, "1x3".
        allow_private_urls: See `VideoDataModule`.
        report: A function that is called with the seconds of video that are done, and all of them.

    Raises:
        VideoError: The video cannot be read to its end.
        UserError: The views or the window do not fit the model.
    """
    data = model.data_for(clip_table([video]), views=one_clip(views), allow_private_urls=allow_private_urls)
    with private_urls(allow_private_urls):
        windows = place_windows(timeline(video, data.video_reader.index_db), data.sampling, window_s, step_s)
    shares, done = [], 0
    try:
        with data.translate_worker_errors():
            for batch in data.window_loader(video, windows):
                for _, path, why in batch["errors"]:
                    raise VideoError(path, why)
                shares.append(model.shares(batch["video"]))
                done += len(shares[-1])
                report(float(windows.starts_s[done - 1]) + windows.window_s, windows.duration_s)
    except LoaderDiedError as error:
        if video not in error.videos:
            raise
        raise VideoError(video, error.why) from error
    steps_s = np.diff(windows.starts_s)
    step_s = float(steps_s[0]) if len(steps_s) else windows.window_s
    found = merge(np.concatenate(shares), windows, model.classes, multi_label=model.multi_label)
    return Segmentation(video, windows.duration_s, windows.window_s, step_s, found)


def one_clip(views: str) -> str:
    """Returns the views of a window, which is a single clip.

    Raises:
        UserError: There are several clips.
    """
    if parse_views(views)[0] > 1:
        raise UserError(f"views={views}: a window is one clip, so only 1x1 and 1x3 are possible")
    return views


def merge(
    shares_WK: Shares, windows: Windows, classes: Mapping[str, Sequence[str]], *, multi_label: bool
) -> list[Segment]:
    """Merges the probabilities of windows into segments, by head and start.

    Between the starts of two windows, the probabilities are a weighted mean: the weight of a window falls linearly
    with the distance of its middle, to zero at the length of a window. Parts in a row with the same most probable
    class are a segment; one shorter than a window joins its more probable neighbor. For a multi-label model, a
    segment of a class is parts in a row in which its probability is above 0.5.

    Args:
        shares_WK: The probabilities of each window; those of several heads are concatenated.
        windows: The windows.
        classes: The class names by head.
        multi_label: Whether each class has an independent probability.
    """
    starts_s = windows.starts_s
    edges_s = np.append(starts_s, max(windows.duration_s, float(starts_s[-1])))
    middles_s = (edges_s[:-1] + edges_s[1:])[:, None] / 2
    distance_PW = np.abs(middles_s - (starts_s + windows.window_s / 2)) / windows.window_s
    weight_PW = np.maximum(1 - distance_PW, 0) + 1e-9 * np.eye(len(starts_s))  # A live stream may have gaps.
    smooth_PK = weight_PW @ shares_WK / weight_PW.sum(1, keepdims=True)
    ends = np.cumsum([len(names) for names in classes.values()])[:-1]
    found = []
    for (head, names), head_PK in zip(classes.items(), np.split(smooth_PK, ends, axis=1), strict=True):
        best_P = without_short_runs(head_PK, edges_s, windows.window_s)
        on_PK = head_PK > 0.5 if multi_label else np.eye(len(names), dtype=bool)[best_P]
        runs = [(first, end, k) for k in range(len(names)) for first, end in runs_of(on_PK[:, k])]
        for first, end, k in sorted(runs):
            share = np.average(head_PK[first:end, k], weights=np.diff(edges_s)[first:end] + 1e-9)
            found.append(Segment(float(edges_s[first]), float(edges_s[end]), head, names[k], float(share)))
    return found


def without_short_runs(shares_PK: Shares, edges_s: Shares, shortest_s: float) -> NDArray[np.int64]:
    """Returns the most probable class of each part, [P], without runs that are shorter than `shortest_s`.

    The parts of such a run get the class of the neighbor that is more probable there, the shortest run first.

    Args:
        shares_PK: The probabilities of each part.
        edges_s: The start of each part and the end of the last one in seconds, [P + 1].
        shortest_s: The length in seconds.
    """
    best_P = shares_PK.argmax(1)
    while True:
        firsts = np.flatnonzero(np.diff(best_P, prepend=-1))
        ends = np.append(firsts[1:], len(best_P))
        lengths_s = edges_s[ends] - edges_s[firsts]
        run = int(lengths_s.argmin())
        if len(firsts) == 1 or lengths_s[run] > shortest_s - 1e-6:
            return best_P
        first, end = firsts[run], ends[run]
        around = [best_P[place] for place in (first - 1, end) if 0 <= place < len(best_P)]
        best_P[first:end] = max(around, key=lambda k: float(shares_PK[first:end, k].mean()))


def runs_of(on_P: NDArray[np.bool]) -> list[tuple[int, int]]:
    """Returns the first position of each run of true values, and the position after its last one."""
    changes = np.flatnonzero(np.diff(on_P.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(end)) for first, end in changes.reshape(-1, 2)]
