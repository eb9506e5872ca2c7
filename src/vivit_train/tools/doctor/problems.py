"""Turn the reports on single files into a list of problems by kind and a selection of clips to leave out."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.look_alikes import VideoFingerprint, similar
from vivit_train.data.sampling import frame_step
from vivit_train.tools.doctor.inspect_files import FileReport, Settings
from vivit_train.utils.text import plural, printable

# These dictionaries map each kind of problem to its meaning. Clips with a problem in BAD are left out of all clean
# lists.
BAD = {
    "missing": "the file does not exist",
    "empty": "the file has 0 bytes",
    "truncated": "the end of the file is missing: copy or download it again",
    "no video": "the file has no video stream",
    "unreadable": "the file cannot be read as a video",
    "damaged": "some frames cannot be decoded",
    "crash": "the decoder crashed",
    "hang": "the decoder did not finish in time",
}
# Copies are left out of the training list only. Complete validation and test sets keep scores comparable.
COPIES = {
    "shared": "the same video is in two splits",
    "duplicate": "the same video is in one split twice",
}
# Clips with these problems stay in the clean lists.
REMARKS = {
    "similar, shared": "the video looks like one in another split: compare them by eye",
    "similar": "the video looks like another one in the same split",
    "short": "the video has fewer frames than a clip needs",
    "length": "the header states the wrong length",
    "variable rate": "frames are not evenly spaced in time",
    "rotated": "frames are stored rotated",
    "mirrored": "frames are stored mirrored and shown as a player does: `vivit prepare` stores them upright",
    "non-square pixels": "frames are stretched: data.square_pixels=false keeps the stored pixels",
    "interlaced": "frames mix two moments: de-interlace them with `vivit prepare`",
    "HDR": "colors are converted to BT.709, which takes time: convert them once with `vivit prepare`",
    "several streams": "the default video stream is read: copy another one with ffmpeg -map",
    "size changes": "frames are scaled to the size of the first one: `vivit prepare` makes them equal",
    "slow seek": "seeking is slow: consider `vivit prepare`",
    "not for decord": "decord would misread it; data.decoder=auto reads it correctly",
}
KINDS = BAD | COPIES | REMARKS
NOT_LISTED = re.compile("[\r\n\ud800-\udfff]")  # A line of a UTF-8 list cannot contain these characters.
TO_ENCODE = ("length", "slow seek", "interlaced", "HDR", "size changes")


class Problem(NamedTuple):
    """A row of problems.csv.

    Attributes:
        path: Path of the video.
        split: Split of the video.
        kind: Kind of the problem, a key of `KINDS`.
        detail: Details of the problem.
        other: Path of the video that this one copies or resembles. It is "" for problems of a single video.
    """

    path: str
    split: str
    kind: str
    detail: str
    other: str = ""


def find_problems(
    manifests: Mapping[str, ClipTable],
    classes: Sequence[str],
    entries: Mapping[str, FileReport],
    settings: Settings,
) -> tuple[list[Problem], dict[str, set[int]]]:
    """Return all problems sorted by kind, and for each split the rows that its clean list leaves out."""
    found: dict[Problem, None] = {}  # A file with many segments is reported only once.
    left_out: dict[str, set[int]] = {split: set() for split in manifests}
    first: dict[object, tuple[str, int]] = {}
    listings = {split: sorted(manifest.paths.tolist()) for split, manifest in manifests.items()}
    # Training comes last, so that of two copies in different splits the training clip is left out.
    for split in sorted(manifests, key=("val", "test", "train").index):
        manifest = manifests[split]
        for row, path in enumerate(manifest.paths.tolist()):
            entry = entries[path]
            span = None if manifest.spans_s is None else tuple(manifest.spans_s[row].tolist())
            remarks = _remarks(entry, span, settings)
            found |= dict.fromkeys(Problem(path, split, *remark) for remark in remarks)
            if any(kind in BAD for kind, _ in remarks):
                left_out[split].add(row)
            if not entry.sha256 or entry.kind == "empty":
                continue
            before, at = first.setdefault((entry.sha256, span), (split, row))
            other = str(manifests[before].paths[at])
            # The configuration itself reads one list for two splits, as with data.val=test; a notice says so.
            is_same_list = before != split and other == path and listings[before] == listings[split]
            if (before, at) != (split, row) and not is_same_list:
                labels = [m.label_string(i, classes) for m, i in ((manifest, row), (manifests[before], at))]
                differ = (
                    f", but labeled {labels[1]!r} there and {labels[0]!r} here" if labels[0] != labels[1] else ""
                )
                kind = "duplicate" if before == split else "shared"
                detail = printable(f"same content as {before} video {other}{differ}")
                found[Problem(path, split, kind, detail, other)] = None
                left_out[split] |= {row} if split == "train" else set()
    found |= dict.fromkeys(_alike(manifests, entries))
    return sorted(found, key=lambda problem: list(KINDS).index(problem.kind)), left_out


def _alike(manifests: Mapping[str, ClipTable], entries: Mapping[str, FileReport]) -> Iterator[Problem]:
    """Yield a problem for videos that look alike. In a large group, each video is named but not every pair."""
    splits_of: dict[str, list[str]] = {}
    for split, manifest in manifests.items():
        for path in dict.fromkeys(manifest.paths.tolist()):
            splits_of.setdefault(path, []).append(split)
    named: set[tuple[str, str]] = set()
    one_each = {entry.sha256: entry for entry in entries.values()}.values()  # Equal files are reported as such.
    looks = [VideoFingerprint(entry.path, entry.fingerprint, entry.seconds) for entry in one_each]
    for one, other, bits in similar(looks):
        kind = "similar, shared" if set(splits_of[one]) != set(splits_of[other]) else "similar"
        pair = {(one, kind), (other, kind)}
        if not pair <= named:
            named |= pair
            where = ", ".join(splits_of[other])
            detail = f"fingerprint differs in {bits} of 448 bits from that of {where} video {other}"
            yield Problem(one, splits_of[one][0], kind, printable(detail), other)


def _remarks(entry: FileReport, span: tuple[float, float] | None, settings: Settings) -> list[tuple[str, str]]:
    """Return the kind and the details of each problem of one clip."""
    if entry.kind:
        return [(entry.kind, entry.detail)]
    if NOT_LISTED.search(entry.path):
        return [("unreadable", "a line break or invalid UTF-8 in the file name cannot be listed: rename the file")]
    remarks = []
    start, end = span or (0.0, entry.seconds)
    frames = round((min(end, entry.seconds) - start) * entry.fps) if span else entry.num_frames
    needed = math.floor((settings.frames - 1) * frame_step(settings.stride, settings.fps, entry.fps)) + 1
    if frames <= 0:
        remarks.append(("truncated", f"the video ends at {entry.seconds} s, but a segment starts at {start} s"))
    elif frames < needed:
        remarks.append(("short", f"{plural(frames, 'frame')}; a clip needs {needed}"))
    n, seconds = entry.promised, entry.promised_s
    if n and abs(n - entry.num_frames) > max(2, 0.02 * n):
        remarks.append(("length", f"the header states {plural(n, 'frame')}, but {entry.num_frames:,} are shown"))
    # The duration of the last frame is a guess, hence the tolerance of one frame.
    elif seconds and abs(seconds - entry.seconds) > max(0.5, 0.05 * seconds) + 1 / entry.fps:
        remarks.append(("length", f"the header states {seconds} s, but the frames last {entry.seconds} s"))
    by_kind = {
        "variable rate": entry.uneven,
        "slow seek" if entry.sequential_only else "not for decord": entry.unsafe,
        "rotated": f"by {entry.rotation} degrees" if entry.rotation else "",
        "mirrored": "left and right are exchanged before any rotation" if entry.mirrored else "",
        "non-square pixels": f"{entry.pixel_aspect} times as wide as high" if entry.pixel_aspect != "1" else "",
        "interlaced": "the first frame has two fields" if entry.interlaced else "",
        "HDR": entry.wide_color,
        "several streams": f"{entry.num_streams} video streams" if entry.num_streams > 1 else "",
        "size changes": entry.resized,
    }
    return remarks + [(kind, detail) for kind, detail in by_kind.items() if detail]
