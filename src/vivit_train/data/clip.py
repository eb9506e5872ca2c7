"""Which frames make a clip: pure index arithmetic, no I/O.

A clip is `frames` positions `step` source frames apart. `step` is the stride itself, or, for a stride in
time, `video_fps / fps` (not necessarily whole). Videos shorter than the clip's extent loop.
"""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def frame_step(stride: int, fps: float | None, video_fps: float) -> float:
    """Source frames between two frames of a clip.

    Args:
        stride: step in frames, used where `fps` is None.
        fps: frames of the clip per second of video, or None.
        video_fps: frames per second of the source.
    """
    return float(stride) if fps is None else video_fps / fps


def clip_at(start: float, num_frames: int, frames: int, step: float) -> Indices:
    """The clip's frame numbers from `start` on, looping past the end: int64 [frames] in [0, num_frames)."""
    positions = np.floor(start + step * np.arange(frames) + 1e-6).astype(np.int64)
    return positions % num_frames


def random_clip(num_frames: int, frames: int, step: float, u: float) -> Indices:
    """A training window; `u` in [0, 1) chooses its start uniformly among the possible ones."""
    last_start = max(0, int(num_frames - frames * step))
    return clip_at(int(u * (last_start + 1)), num_frames, frames, step)


def centre_clip(num_frames: int, frames: int, step: float) -> Indices:
    """The one clip of validation: the window in the middle."""
    return clip_at(max(0, int(num_frames - frames * step)) // 2, num_frames, frames, step)


def spread_clips(num_frames: int, frames: int, step: float, clips: int) -> list[Indices]:
    """`clips` windows spread evenly over the video, as the authors test.

    Starts are `int(linspace(0, max(0, L - n*s), k))` (scenic's test sampling); one clip is the centre one.
    """
    if clips == 1:
        return [centre_clip(num_frames, frames, step)]
    last_start = max(0, int(num_frames - frames * step))
    starts = np.linspace(0, last_start, clips).astype(int)
    return [clip_at(int(start), num_frames, frames, step) for start in starts]
