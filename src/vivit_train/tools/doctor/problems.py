"""What looks at the files tell together: problems by kind, and which clips are better left out."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.sampling import frame_step
from vivit_train.tools.doctor.inspect_files import SAME_BITS, FileReport, Settings
from vivit_train.utils.text import printable

# kind -> what it means. Clips of these are left out of the clean lists:
BAD = {
    "missing": "no such file",
    "empty": "0 bytes",
    "truncated": "the end is missing: copy or download it again",
    "no video": "no video stream in it",
    "unreadable": "it cannot be read as a video",
    "damaged": "some frames cannot be decoded",
    "crash": "the process that decoded it died",
    "hang": "the decoder did not come back",
}
# Training clips of these too. Validation and test sets stay whole, to be comparable.
COPIES = {
    "shared": "the same video in two splits",
    "duplicate": "the same video twice in a split",
}
# Clips of these stay in.
REMARKS = {
    "similar, shared": "looks like a video of another split: see for yourself",
    "similar": "looks like another video of its split",
    "short": "fewer frames than a clip needs",
    "length": "the header states another length than the frames have",
    "variable rate": "frames are not evenly spaced in time",
    "rotated": "frames are stored turned",
    "slow seek": "each reading starts at its first frame: `vivit prepare` ends that",
    "not for decord": "decord would return wrong frames or none; data.decoder=auto returns the right ones",
}
KINDS = BAD | COPIES | REMARKS
NOT_LISTED = re.compile("[\r\n\ud800-\udfff]")  # in a line of a list that is UTF-8
TO_ENCODE = ("length", "slow seek")


class Problem(NamedTuple):
    """A row of problems.csv. `other`: the video that this one is a copy of."""

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
    """All problems, by kind, and the rows of each split that its clean list leaves out."""
    found: dict[Problem, None] = {}  # a file with many segments has its problems once
    left_out: dict[str, set[int]] = {split: set() for split in manifests}
    first: dict[object, tuple[str, int]] = {}
    for split in sorted(manifests, key=("val", "test", "train").index):  # of copies, the training clip goes
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
            if (before, at) != (split, row):
                other = str(manifests[before].paths[at])
                labels = [m.written(i, classes) for m, i in ((manifest, row), (manifests[before], at))]
                differ = (
                    f", but there it is {labels[1]!r} and here {labels[0]!r}" if labels[0] != labels[1] else ""
                )
                kind = "duplicate" if before == split else "shared"
                found[Problem(path, split, kind, printable(f"also {before}'s {other}{differ}"), other)] = None
                left_out[split] |= {row} if split == "train" else set()
    found |= dict.fromkeys(_alike(manifests, entries))
    return sorted(found, key=lambda problem: list(KINDS).index(problem.kind)), left_out


def _alike(manifests: Mapping[str, ClipTable], entries: Mapping[str, FileReport]) -> Iterator[Problem]:
    """Videos that look like another one. Of a thousand that look alike not all pairs, but each of them."""
    splits_of: dict[str, list[str]] = {}
    for split, manifest in manifests.items():
        for path in dict.fromkeys(manifest.paths.tolist()):
            splits_of.setdefault(path, []).append(split)
    named: set[tuple[str, str]] = set()
    for one, other, bits in similar(entries):
        kind = "similar, shared" if set(splits_of[one]) != set(splits_of[other]) else "similar"
        pair = {(one, kind), (other, kind)}
        if not pair <= named:
            named |= pair
            detail = f"{bits} of 448 bits differ from {', '.join(splits_of[other])}'s {other}"
            yield Problem(one, splits_of[one][0], kind, printable(detail), other)


def _remarks(entry: FileReport, span: tuple[float, float] | None, settings: Settings) -> list[tuple[str, str]]:
    """Kind and detail of what is wrong with one clip."""
    if entry.kind:
        return [(entry.kind, entry.detail)]
    if NOT_LISTED.search(entry.path):
        return [("unreadable", "a line break in its name, which no list can hold: rename it")]
    remarks = []
    start, end = span or (0.0, entry.seconds)
    frames = round((min(end, entry.seconds) - start) * entry.fps) if span else entry.num_frames
    needed = math.floor((settings.frames - 1) * frame_step(settings.stride, settings.fps, entry.fps)) + 1
    if frames <= 0:
        remarks.append(("truncated", f"ends at {entry.seconds} s; a segment starts at {start} s"))
    elif frames < needed:
        remarks.append(("short", f"{frames} frames; a clip takes {needed}"))
    n, seconds = entry.promised, entry.promised_s  # how long the last frame stays is a guess
    if n and abs(n - entry.num_frames) > max(2, 0.02 * n):
        remarks.append(("length", f"the header says {n} frames, {entry.num_frames} are shown"))
    elif seconds and abs(seconds - entry.seconds) > max(0.5, 0.05 * seconds) + 1 / entry.fps:
        remarks.append(("length", f"the header says {seconds} s, the frames take {entry.seconds} s"))
    by_kind = {
        "variable rate": entry.uneven,
        "slow seek" if entry.sequential_only else "not for decord": entry.unsafe,
    }
    if entry.rotation:
        by_kind["rotated"] = f"by {entry.rotation} degrees"
    return remarks + [(kind, detail) for kind, detail in by_kind.items() if detail]


def similar(entries: Mapping[str, FileReport]) -> Iterator[tuple[str, str, int]]:
    """Pairs of files, of other bytes but of the same length within a tenth, that look alike; bits that differ."""
    from rich.progress import track

    one_each = list({entry.sha256: entry for entry in entries.values() if entry.fingerprint}.values())
    if not one_each:
        return
    bits = np.unpackbits([np.frombuffer(bytes.fromhex(entry.fingerprint), np.uint8) for entry in one_each], axis=1)
    ones = bits.sum(1, dtype=np.int64)
    order = np.argsort(ones, kind="stable")  # prints that differ by few bits have nearly as many ones
    signs, ends = (
        bits[order] * np.float32(2) - 1,
        np.searchsorted(ones[order], ones[order] + SAME_BITS, side="right"),
    )
    for start in track(range(0, len(order), 256), "comparing", disable=len(order) < 20_000):
        stop = min(start + 256, len(order))
        differing = (bits.shape[1] - signs[start:stop] @ signs[start : ends[stop - 1]].T) / 2
        for i, j in np.argwhere(differing <= SAME_BITS).tolist():
            one, other = one_each[order[start + i]], one_each[order[start + j]]
            if i < j and abs(one.seconds - other.seconds) <= 0.1 * max(one.seconds, other.seconds):
                yield *sorted((one.path, other.path)), int(differing[i, j])
