"""Which frames make a clip: pure index arithmetic, no I/O.

A clip is `frames` positions `step` source frames apart. `step` is the stride itself, or, for a stride in
time, `video_fps / fps` (not necessarily whole). Videos shorter than the clip's extent loop, stand still at their
last frame, or go black. Or a clip is one frame from each of `frames` equal segments of the whole video.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
PAD_INDEX = -1  # the number of a frame that no video has


@dataclass(frozen=True)
class Sampling:
    """How clips are taken from a video.

    Attributes:
        frames, stride: of a clip, in source frames.
        fps: a stride in time instead: frames of the clip per second of video.
        kind: "window", frames at that stride; or "segments", one frame from each of `frames` equal parts of the
            video (TSN): random in training, in the middle in a test.
        short: a video shorter than its window starts again ("loop"), repeats its last frame ("edge"), or is
            followed by black ones ("pad").
    """

    frames: int = 32
    stride: int = 2
    fps: float | None = None
    kind: Literal["window", "segments"] = "window"
    short: Literal["loop", "edge", "pad"] = "loop"

    @property
    def num_random(self) -> int:
        """Random numbers that a training clip needs."""
        return 1 if self.kind == "window" else self.frames

    def random(self, num_frames: int, video_fps: float, rand: Sequence[float]) -> Indices:
        """A training clip; `rand` are `num_random` numbers in [0, 1)."""
        if self.kind == "segments":
            return segment_clip(num_frames, self.frames, np.array(rand))
        step = frame_step(self.stride, self.fps, video_fps)
        return random_clip(num_frames, self.frames, step, rand[0], self.short)

    def uniform(self, num_frames: int, video_fps: float, clips: int) -> Indices:
        """The clips of a test, [clips, frames]."""
        if self.kind == "segments":
            places = (np.arange(clips) + 0.5) / clips
            return np.stack([segment_clip(num_frames, self.frames, place) for place in places])
        step = frame_step(self.stride, self.fps, video_fps)
        return np.stack(uniform_clips(num_frames, self.frames, step, clips, self.short))


def segment_clip(num_frames: int, frames: int, rand: float | NDArray[np.float64]) -> Indices:
    """One frame from each of `frames` equal segments, at the share `rand` in [0, 1) of each."""
    return np.floor((np.arange(frames) + rand) * num_frames / frames).astype(np.int64)


def frame_step(stride: int, fps: float | None, video_fps: float) -> float:
    """Source frames between two frames of a clip.

    Args:
        stride: step in frames, used where `fps` is None.
        fps: frames of the clip per second of video, or None.
        video_fps: frames per second of the source.
    """
    return float(stride) if fps is None else video_fps / fps


def clip_at(start: float, num_frames: int, frames: int, step: float, short: str = "loop") -> Indices:
    """The frame numbers from `start` on, past the end as `short` says: int64 [frames], < num_frames."""
    positions = np.floor(start + step * np.arange(frames) + 1e-6).astype(np.int64)
    if short == "pad":
        return np.where(positions < num_frames, positions, PAD_INDEX)
    return positions % num_frames if short == "loop" else np.minimum(positions, num_frames - 1)


def random_clip(num_frames: int, frames: int, step: float, rand: float, short: str = "loop") -> Indices:
    """A training window; `rand` in [0, 1) chooses its start uniformly among the possible ones."""
    last_start = max(0, int(num_frames - frames * step))
    return clip_at(int(rand * (last_start + 1)), num_frames, frames, step, short)


def center_clip(num_frames: int, frames: int, step: float, short: str = "loop") -> Indices:
    """The one clip of validation: the window in the middle."""
    return clip_at(max(0, int(num_frames - frames * step)) // 2, num_frames, frames, step, short)


def uniform_clips(num_frames: int, frames: int, step: float, clips: int, short: str = "loop") -> list[Indices]:
    """`clips` windows spread evenly over the video, as the authors test.

    Starts are `int(linspace(0, max(0, L - n*s), k))` (scenic's test sampling); one clip is the centre one.
    """
    if clips == 1:
        return [center_clip(num_frames, frames, step, short)]
    last_start = max(0, int(num_frames - frames * step))
    starts = np.linspace(0, last_start, clips).astype(int)
    return [clip_at(int(start), num_frames, frames, step, short) for start in starts]
