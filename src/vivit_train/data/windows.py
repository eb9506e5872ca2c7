"""Sliding windows over a long video, which is decoded once and in order."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from vivit_train.data.dataset import Sample, VideoReader, to_torch
from vivit_train.data.sampling import Indices, Sampling, clip_at, frame_step
from vivit_train.data.transforms import ResizeMode, crop_views
from vivit_train.data.video.index import Timeline
from vivit_train.data.video.stream import stream_frames
from vivit_train.utils.errors import UserError, VideoError


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a video.

    Attributes:
        frames: The frame numbers of each window, int64 [windows, frames].
        starts_s: The start of each window in seconds, ascending, [windows].
        window_s: The length of a window in seconds.
        duration_s: The length of the video in seconds.
    """

    frames: Indices
    starts_s: NDArray[np.float64]
    window_s: float
    duration_s: float

    def __len__(self) -> int:
        return len(self.starts_s)


def window_length(sampling: Sampling, fps: float, window_s: float | None) -> float:
    """Returns the length of a window in seconds: `window_s`, or the time that a clip of the training spans.

    Raises:
        UserError: The clips of the training span whole videos, and `window_s` is None.
    """
    if window_s is not None:
        return window_s
    if sampling.kind == "segments":
        raise UserError("the clips of this model span whole videos of any length: state the --window in seconds")
    return sampling.span_s(fps)


def place_windows(times: Timeline, sampling: Sampling, window_s: float | None, step_s: float | None) -> Windows:
    """Places windows at even distances over a video, and one more that ends with it.

    Args:
        times: The timeline of the video.
        sampling: The way the model's clips are sampled. The frames of a window are spread evenly over it.
        window_s: The length of a window in seconds; None is the time that a clip of the training spans.
        step_s: The distance between two windows in seconds; None is half of a window.

    Raises:
        UserError: The model's clips have no length of their own.
    """
    seconds = window_length(sampling, times.fps, window_s)
    is_default = window_s is None
    step = (
        frame_step(sampling.stride, sampling.fps, times.fps)
        if is_default
        else seconds * times.fps / sampling.frames
    )
    length, move = step * sampling.frames, max(1.0, (step_s or seconds / 2) * times.fps)
    last = max(0, times.num_frames - math.ceil(length - 1e-6))
    starts = np.floor(np.arange(0, last + 1e-6, move) + 1e-6)
    if starts[-1] < last:
        starts = np.append(starts, last)
    middle = step / 2 if sampling.kind == "segments" else 0.0
    rows = [clip_at(start + middle, times.num_frames, sampling.frames, step, "wrap") for start in starts.tolist()]
    times_s = times.times_s
    return Windows(np.stack(rows), times_s[starts.astype(int)], seconds, float(times_s[-1]) + 1 / times.fps)


class WindowDataset(IterableDataset[Sample]):
    """A data set of the windows of one video, each with its spatial views, uint8 [V, T, C, crop, crop].

    If the video cannot be read to the end, the last sample has nothing but "errors".

    Args:
        path: The path of the video.
        windows: Its windows.
        short_side, crop, resize_mode: See `EvalDataset`.
        crops: The number of spatial crops, 1 or 3.
        video_reader: Reports the video that a loader process reads.
    """

    def __init__(
        self,
        path: str,
        windows: Windows,
        *,
        short_side: int,
        crop: int,
        resize_mode: ResizeMode,
        crops: int,
        video_reader: VideoReader,
    ) -> None:
        self.path, self.windows, self.video_reader = path, windows, video_reader
        self.short_side, self.crop, self.resize_mode, self.crops = short_side, crop, resize_mode, crops

    def __iter__(self) -> Iterator[Sample]:
        wanted = np.unique(self.windows.frames)
        try:
            with replace(self.video_reader, timeout_s=0).watchdog(self.path):  # A long video takes long.
                frames = stream_frames(
                    self.path,
                    wanted,
                    short_side=self.short_side,
                    square_pixels=self.video_reader.square_pixels,
                    resize=self.video_reader.resize,
                )
                yield from self.samples(zip(wanted.tolist(), frames, strict=False))
        except VideoError as error:
            yield {"errors": [(0, error.path, error.reason)]}

    def samples(self, frames: Iterable[tuple[int, NDArray[np.uint8]]]) -> Iterator[Sample]:
        """Yields each window when its frames have arrived, and keeps only the frames that are still needed."""
        kept: dict[int, Tensor] = {}
        waiting = 0
        lowest, highest = self.windows.frames.min(1).tolist(), self.windows.frames.max(1).tolist()
        for number, frame_HWC in frames:
            kept[number] = self.views(frame_HWC)
            while waiting < len(self.windows) and highest[waiting] <= number:
                video = torch.stack([kept[one] for one in self.windows.frames[waiting].tolist()], dim=1)
                yield {"video": video, "index": waiting, "errors": []}
                waiting += 1
            first = lowest[waiting] if waiting < len(self.windows) else math.inf
            for old in [one for one in kept if one < first]:
                del kept[old]

    def views(self, frame_HWC: NDArray[np.uint8]) -> Tensor:
        """Returns the spatial views of a frame, uint8 [V, C, crop, crop]."""
        frame_TCHW = to_torch(frame_HWC[None])
        how = self.resize_mode, self.crops, self.video_reader.resize
        crops = crop_views(frame_TCHW, self.crop, self.short_side, *how)
        return torch.cat(crops)
