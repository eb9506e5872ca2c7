"""Chooses the frames and the size of a clip from the videos' lengths and the device, and says what clips cover."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.sampling import Sampling
from vivit_train.data.video.scan import timeline
from vivit_train.utils.errors import VideoError
from vivit_train.utils.text import plural

SAMPLE = 64  # The median of so many clips is within a few percent of that of all of them.
LIMIT_S = 5.0  # Scans of long videos that are not stored may take seconds each.


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


def sample_lengths(clips: ClipTable, index_db: Path | None, seed: int) -> list[tuple[int, float]]:
    """Returns the number of frames and the frame rate of each clip in a random sample.

    Unreadable videos are left out. The sample is smaller if scanning it takes longer than `LIMIT_S`.

    Args:
        clips: The training clips.
        index_db: The database of stored scans; see `timeline`.
        seed: The seed of the sample.
    """
    lengths: list[tuple[int, float]] = []
    end_s = time.monotonic() + LIMIT_S
    for row in np.random.default_rng(seed).permutation(len(clips))[:SAMPLE].tolist():
        if lengths and time.monotonic() > end_s:
            break
        try:
            times = timeline(clips.paths[row], index_db)
        except VideoError:
            continue
        span_s = None if clips.spans_s is None else clips.spans_s[row, 1] - clips.spans_s[row, 0]
        num_frames = times.num_frames if span_s is None else min(times.num_frames, round(span_s * times.fps))
        lengths.append((num_frames, times.fps))
    return lengths


def median_frames(clips: ClipTable, index_db: Path | None, seed: int) -> tuple[int, int]:
    """Returns the median length, in frames, of a random sample of clips, and the size of the sample.

    The median is 0 if none can be read. See `sample_lengths` for the arguments.
    """
    lengths = sample_lengths(clips, index_db, seed)
    return int(np.median([num_frames for num_frames, _ in lengths])) if lengths else 0, len(lengths)


def coverage(sampling: Sampling, views: int, lengths: list[tuple[int, float]]) -> str:
    """Returns a sentence: the seconds that a clip spans, and the share of a median video that the test covers.

    Args:
        sampling: The way clips are sampled from a video.
        views: The number of clips that the test takes from each video.
        lengths: The number of frames and the frame rate of some videos; at least one.
    """
    num_frames, fps = (float(np.median(column)) for column in zip(*lengths, strict=True))
    seconds, clips = num_frames / fps, plural(views, "test clip")
    share = sampling.coverage(max(1, round(num_frames)), fps, views)
    span_s = seconds if sampling.kind == "segments" else sampling.span_s(fps)
    covers = "covers" if views == 1 else "cover"
    return (
        f"a clip spans {span_s:.2f} s at {fps:.4g} fps; {clips} {covers} {share:.0%} of a video of {seconds:.3g} s"
    )


def stride_for(num_frames: int, frames: int) -> int:
    """Returns the largest stride at which a clip of `frames` frames fits a video of `num_frames`, or 1."""
    return max(1, num_frames // frames)
