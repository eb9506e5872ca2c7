"""Chooses the frames of a clip with index arithmetic, without I/O.

A clip has `frames` frames that are `step` source frames apart. `step` is the stride, or `video_fps / fps` for a
stride in time, which need not be an integer. If a video is shorter than the clip, the clip starts it again,
repeats its last frame or is padded with black frames. Alternatively, a clip has one frame from each of `frames`
equal segments of the whole video.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
PAD_INDEX = -1  # the frame number of a black padding frame


@dataclass(frozen=True)
class Sampling:
    """Samples clips from a video.

    Attributes:
        frames: The number of frames per clip.
        stride: The distance between two frames of a clip, in source frames.
        fps: The number of clip frames per second of video, which replaces `stride`; None uses `stride`.
        kind: "window" takes frames at the stride. "segments" takes one frame from each of `frames` equal segments
            of the video (TSN), at random in training and from the middle in evaluation.
        padding: What fills the window of a shorter video: "wrap" starts the video again, "repeat_last" repeats its
            last frame, and "black" appends black frames.
    """

    frames: int = 32
    stride: int = 2
    fps: float | None = None
    kind: Literal["window", "segments"] = "window"
    padding: Literal["wrap", "repeat_last", "black"] = "wrap"

    @property
    def num_random(self) -> int:
        """The number of random numbers that a training clip needs."""
        return 1 if self.kind == "window" else self.frames

    def random(self, num_frames: int, video_fps: float, rand: Sequence[float]) -> Indices:
        """Returns the frame numbers of a training clip, int64 [frames].

        Args:
            num_frames: The number of frames of the video.
            video_fps: The frame rate of the video.
            rand: `num_random` random numbers in [0, 1).
        """
        if self.kind == "segments":
            return segment_clip(num_frames, self.frames, np.array(rand))
        step = frame_step(self.stride, self.fps, video_fps)
        return random_clip(num_frames, self.frames, step, rand[0], self.padding)

    def uniform(self, num_frames: int, video_fps: float, clips: int) -> Indices:
        """Returns the frame numbers of the evaluation clips, int64 [clips, frames]."""
        if self.kind == "segments":
            places = (np.arange(clips) + 0.5) / clips
            return np.stack([segment_clip(num_frames, self.frames, place) for place in places])
        step = frame_step(self.stride, self.fps, video_fps)
        return np.stack(uniform_clips(num_frames, self.frames, step, clips, self.padding))

    def span_s(self, video_fps: float) -> float:
        """Returns the seconds of video that a window spans, with the time until the frame after its last one."""
        return self.frames * frame_step(self.stride, self.fps, video_fps) / video_fps

    def coverage(self, num_frames: int, video_fps: float, clips: int) -> float:
        """Returns the share of a video, 0 to 1, within the windows of `clips` evaluation clips."""
        if self.kind == "segments":
            return 1.0
        width = math.ceil(self.frames * frame_step(self.stride, self.fps, video_fps) - 1e-6)
        covered = np.zeros(num_frames, np.bool)
        for start in self.uniform(num_frames, video_fps, clips)[:, 0].tolist():
            covered[start : start + width] = True
        return float(covered.mean())


def segment_clip(num_frames: int, frames: int, rand: float | NDArray[np.float64]) -> Indices:
    """Returns one frame number from each of `frames` equal segments, at the fraction `rand` in [0, 1) of each."""
    return np.floor((np.arange(frames) + rand) * num_frames / frames).astype(np.int64)


def frame_step(stride: int, fps: float | None, video_fps: float) -> float:
    """Returns the distance between two frames of a clip, in source frames.

    Args:
        stride: The distance in source frames, used if `fps` is None.
        fps: The number of clip frames per second of video, or None.
        video_fps: The frame rate of the source.
    """
    return float(stride) if fps is None else video_fps / fps


def clip_at(start: float, num_frames: int, frames: int, step: float, padding: str = "wrap") -> Indices:
    """Returns the frame numbers of the clip that starts at `start`, int64 [frames].

    All numbers are less than `num_frames`; `padding` defines the numbers after the end of the video.
    """
    positions = np.floor(start + step * np.arange(frames) + 1e-6).astype(np.int64)
    if padding == "black":
        return np.where(positions < num_frames, positions, PAD_INDEX)
    return positions % num_frames if padding == "wrap" else np.minimum(positions, num_frames - 1)


def random_clip(num_frames: int, frames: int, step: float, rand: float, padding: str = "wrap") -> Indices:
    """Returns a training window; `rand` in [0, 1) chooses its start uniformly among the valid ones.

    As in the authors' training, a start is valid if the clip's last frame exists: 0 to L - (n - 1)s - 1. A video
    that is shorter starts at its first frame.
    """
    last_start = max(0, num_frames - 1 - int((frames - 1) * step + 1e-6))
    return clip_at(int(rand * (last_start + 1)), num_frames, frames, step, padding)


def center_clip(num_frames: int, frames: int, step: float, padding: str = "wrap") -> Indices:
    """Returns the window in the middle of the video, which validation uses."""
    return clip_at(max(0, int(num_frames - frames * step)) // 2, num_frames, frames, step, padding)


def uniform_clips(num_frames: int, frames: int, step: float, clips: int, padding: str = "wrap") -> list[Indices]:
    """Returns `clips` windows spread evenly over the video, as in the authors' evaluation.

    The starts are `int(linspace(0, max(0, L - n*s), k))` (scenic's test sampling) for L frames of video and k
    clips of n frames at step s. A single clip is the center clip.
    """
    if clips == 1:
        return [center_clip(num_frames, frames, step, padding)]
    last_start = max(0, int(num_frames - frames * step))
    starts = np.linspace(0, last_start, clips).astype(int)
    return [clip_at(int(start), num_frames, frames, step, padding) for start in starts]
