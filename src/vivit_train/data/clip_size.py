"""Chooses the frames and the size of a clip for videos of one's own, from their length and the device."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.video.scan import timeline
from vivit_train.utils.errors import VideoError

SAMPLE = 64  # The median of so many clips is within a few percent of that of all of them.


@dataclass(frozen=True)
class ClipSize:
    """The size of a clip.

    Attributes:
        frames: The number of frames.
        short_side: The length of the resized short side, in pixels.
        crop: The side of the square that the model sees, in pixels.
    """

    frames: int
    short_side: int
    crop: int


# Two CPU cores train a ViT-Ti on 240 small clips for 40 epochs in about 20 minutes (docs/benchmarks.md, "The first
# hour"). The large size is the paper's.
SMALL, LARGE = ClipSize(8, 128, 112), ClipSize(32, 256, 224)


def median_frames(clips: ClipTable, index_db: Path | None, seed: int) -> tuple[int, int]:
    """Returns the median length, in frames, of a random sample of clips, and the size of the sample.

    Unreadable videos are left out. The median is 0 if none can be read.

    Args:
        clips: The training clips.
        index_db: The database of stored scans; see `timeline`.
        seed: The seed of the sample.
    """
    lengths = []
    for row in np.random.default_rng(seed).permutation(len(clips))[:SAMPLE].tolist():
        try:
            times = timeline(clips.paths[row], index_db)
        except VideoError:
            continue
        span_s = None if clips.spans_s is None else clips.spans_s[row, 1] - clips.spans_s[row, 0]
        lengths.append(times.num_frames if span_s is None else min(times.num_frames, round(span_s * times.fps)))
    return int(np.median(lengths)) if lengths else 0, len(lengths)


def stride_for(num_frames: int, frames: int) -> int:
    """Returns the largest stride at which a clip of `frames` frames fits a video of `num_frames`, or 1."""
    return max(1, num_frames // frames)
