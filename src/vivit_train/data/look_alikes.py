"""Finds videos that look alike, such as two encodings of one video, by fingerprints of four of their frames."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.data.video.storage import is_plain
from vivit_train.utils.errors import VideoError
from vivit_train.utils.process_pool import Failure, run_isolated, usable_cores
from vivit_train.utils.progress import tracked
from vivit_train.utils.text import plural, printable

log = logging.getLogger(__name__)

# Fingerprints that differ in at most this many of their 448 bits count as similar. On 120 clips of two static
# cameras, a clip differs from its re-encoding at CRF 28 and half the size in 4 to 26 bits, and from other clips in
# 57 or more.
SAME_BITS = 32
POSITIONS = np.arange(1, 8, 2)  # The four frames, in eighths of a video.
TIMEOUT_S = 60.0
MOST_VIDEOS = 2000  # Of more, a run does not look for pairs, which takes about a second per 100 videos.
SHOWN = 3  # pairs in a warning


class VideoFingerprint(NamedTuple):
    """The fingerprint of a video.

    Attributes:
        path: Path of the video.
        fingerprint: See `fingerprint`; "" if there is none.
        seconds: Duration in seconds.
    """

    path: str
    fingerprint: str
    seconds: float


def fingerprint(frames_THWC: NDArray[np.uint8]) -> str:
    """Returns a 448-bit fingerprint in hex that is robust to scaling and re-encoding; "" for featureless frames.

    Each frame is averaged over a grid of 8 x 9 cells. For each of the four frames, 64 bits tell in which cells the
    brightness increases to the right. For each pair of consecutive frames, 64 bits tell in which cells it
    increases over time. The latter separate different actions in front of a static camera.
    """
    grid = frames_THWC.mean(-1)
    for axis, cells in ((1, 8), (2, 9)):
        edges = np.arange(cells + 1) * grid.shape[axis] // cells
        widths = np.maximum(np.diff(edges), 1).reshape([-1 if i == axis else 1 for i in range(3)])
        grid = np.add.reduceat(grid, edges[:-1], axis=axis) / widths
    bits = np.concatenate([np.diff(grid, axis=2) > 2, np.diff(grid, axis=0)[:, :, :8] > 2])
    return np.packbits(bits).tobytes().hex() if bits.sum() >= 1.5 * SAME_BITS else ""


def fingerprint_of(path: str) -> VideoFingerprint:
    """Returns the fingerprint of a video, which is empty if the video cannot be read."""
    try:
        info = probe(path)
        frames = read_frames(path, info.num_frames * POSITIONS // 8, short_side=64)
    except VideoError:
        return VideoFingerprint(path, "", 0.0)
    return VideoFingerprint(path, fingerprint(frames), float(info.times_s[-1]) + 1 / info.fps)


def look_alikes(paths: Sequence[str]) -> list[list[str]]:
    """Returns the groups of videos that look alike. Four frames of each video are decoded, in child processes."""
    ordered = fingerprints_of(paths)
    group_of = {look.path: [look.path] for look in ordered}
    for one, other, _ in similar(ordered):
        group, more = group_of[one], group_of[other]
        if group is not more:
            group += more
            group_of |= dict.fromkeys(more, group)
    groups = {id(group): sorted(group) for group in group_of.values() if len(group) > 1}
    return sorted(groups.values())


def across_splits(paths_of: Mapping[str, Sequence[str]], what: str = "splits") -> str:
    """Returns a warning about videos of different splits that look alike, with the first pairs, or "".

    Args:
        paths_of: The paths of the videos by split. Files are compared, at most `MOST_VIDEOS`.
        what: What `paths_of` divides the videos into, for the warning.
    """
    paths = list(dict.fromkeys(path for of_split in paths_of.values() for path in of_split if is_plain(path)))
    if len(paths) > MOST_VIDEOS:
        return ""
    splits_of: dict[str, list[str]] = {path: [] for path in paths}
    for split, of_split in paths_of.items():
        for path in splits_of.keys() & set(of_split):
            splits_of[path].append(split)
    pairs = [
        (f"{one} ({splits_of[one][0]}) and {other} ({splits_of[other][0]}), {bits} of 448 bits differ")
        for one, other, bits in similar(fingerprints_of(paths))
        if not {*splits_of[one]} & {*splits_of[other]}
    ]
    if not pairs:
        return ""
    more = f"\n  and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    listed = "".join(f"\n  {printable(pair)}" for pair in pairs[:SHOWN])
    return (
        f"{plural(len(pairs), 'pair')} of videos in different {what} look alike, as two encodings of one do, so "
        f"that scores may be too good. `vivit doctor` lists the videos to leave out:{listed}{more}"
    )


def fingerprints_of(paths: Sequence[str]) -> list[VideoFingerprint]:
    """Returns the fingerprints of the videos that can be read, in child processes."""
    paths = [path for path in paths if not is_plain(path) or (os.path.isfile(path) and os.path.getsize(path))]
    with closing(run_isolated(fingerprint_of, dict.fromkeys(paths, TIMEOUT_S), usable_cores())) as results:
        found = tracked(results, "looking for videos that look alike", len(paths))
        looks = {path: look for path, look in found if not isinstance(look, Failure)}
    return [looks[path] for path in paths if path in looks]


def similar(looks: Iterable[VideoFingerprint]) -> Iterator[tuple[str, str, int]]:
    """Yields pairs of videos that look alike, with the number of differing bits of their fingerprints.

    Only videos whose durations differ by at most 10% are compared.
    """
    seen = [look for look in looks if look.fingerprint]
    if not seen:
        return
    bits = np.unpackbits([np.frombuffer(bytes.fromhex(look.fingerprint), np.uint8) for look in seen], axis=1)
    ones = bits.sum(1, dtype=np.int64)
    order = np.argsort(ones, kind="stable")  # Similar fingerprints have similar numbers of ones.
    signs, ends = (
        bits[order] * np.float32(2) - 1,
        np.searchsorted(ones[order], ones[order] + SAME_BITS, side="right"),
    )
    starts = range(0, len(order), 256)
    for start in tracked(starts, "comparing videos", len(starts)):
        stop = min(start + 256, len(order))
        differing = (bits.shape[1] - signs[start:stop] @ signs[start : ends[stop - 1]].T) / 2
        for i, j in np.argwhere(differing <= SAME_BITS).tolist():
            one, other = seen[order[start + i]], seen[order[start + j]]
            if i < j and abs(one.seconds - other.seconds) <= 0.1 * max(one.seconds, other.seconds):
                yield *sorted((one.path, other.path)), int(differing[i, j])
