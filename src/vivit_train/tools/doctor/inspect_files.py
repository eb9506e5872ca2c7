"""Inspect files one by one in child processes and keep the results, so that no file is inspected twice."""

import base64
import hashlib
import io
import json
import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vivit_train.data.look_alikes import POSITIONS, fingerprint
from vivit_train.data.sampling import center_clip, frame_step
from vivit_train.data.video import storage, urls
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.index import SCANNED_BY
from vivit_train.data.video.scan import other_size, packed_scan, probe
from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import VideoError, interrupted
from vivit_train.utils.files import read_text
from vivit_train.utils.process_pool import Failure, run_isolated
from vivit_train.utils.progress import tracked
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)


MAX_BYTES = 1 << 32  # The results for a million files have about 2 GB.
S_PER_BYTE = 1e-7  # Large files get this much extra time.
# The report on a file takes these fields from `VideoInfo`.
SAME_NAMES = (
    *("num_frames", "fps", "width", "height", "rotation", "mirrored", "interlaced", "wide_color", "num_streams"),
    "codec",
)


class Settings(NamedTuple):
    """The settings for reading a file: by default, the validation clip and six more frames are decoded.

    Attributes:
        frames: Number of frames of the validation clip.
        stride: Distance between frames of the clip, in frames of the video. It is unused if `fps` is set.
        fps: Frames of the clip per second of video, or None to use `stride`.
        short_side: Short side of the decoded frames in pixels.
        every_frame: Whether to decode all frames.
        allow_private_urls: Whether URLs may lead to private network addresses.
    """

    frames: int
    stride: int
    fps: float | None
    short_side: int
    every_frame: bool = False
    allow_private_urls: bool = False


@dataclass(frozen=True, slots=True)
class FileReport:
    """The results for one version of a file; a line of files.jsonl.

    Attributes:
        path: Path or URL of the file.
        size: Size of the file in bytes.
        version: Version of the file, as `storage.state` defines it.
        settings: Settings of the inspection and versions of the libraries.
        kind: A key of `problems.BAD`, or "" if the file can be read.
        detail: Reason why the file cannot be read.
        sha256: SHA-256 of the content, in hex.
        num_frames: Number of frames that are shown.
        fps: Mean frame rate.
        seconds: Duration in seconds.
        width: Width in pixels, as shown.
        height: Height in pixels, as shown.
        rotation: Counterclockwise rotation for display, in degrees.
        mirrored: Whether left and right are exchanged for display.
        pixel_aspect: Width of a stored pixel divided by its height, such as "4/3".
        interlaced: Whether the first frame is interlaced.
        wide_color: "PQ", "HLG" or "BT.2020" if the colors are converted for display, otherwise "".
        num_streams: Number of video streams.
        resized: Size of the first frame and another size that follows, or "" if no other is found.
        codec: Name of the codec.
        promised: Number of frames that the header states, or 0 if it states none.
        promised_s: Duration in seconds that the header states, or 0 if it states none.
        uneven: Range of the frame intervals if they vary, otherwise "".
        unsafe: Reason why decord would misread the file, otherwise "".
        sequential_only: Whether decoding always has to start at the first frame.
        gop: Mean number of frames per key frame.
        decode_ms: Time to decode the validation clip, in milliseconds.
        fingerprint: Fingerprint of the frames and their motion; see `fingerprint`.
        scan: Result of `packed_scan` in base64.
    """

    path: str
    size: int = 0
    version: int = 0
    settings: str = ""
    kind: str = ""
    detail: str = ""
    sha256: str = ""
    num_frames: int = 0
    fps: float = 0
    seconds: float = 0
    width: int = 0
    height: int = 0
    rotation: int = 0
    mirrored: bool = False
    pixel_aspect: str = "1"
    interlaced: bool = False
    wide_color: str = ""
    num_streams: int = 1
    resized: str = ""
    codec: str = ""
    promised: int = 0
    promised_s: float = 0
    uneven: str = ""
    unsafe: str = ""
    sequential_only: bool = False
    gop: float = 0
    decode_ms: float = 0
    fingerprint: str = ""
    scan: str = ""


def inspect_file(path: str, settings: Settings) -> FileReport:
    """Inspect one file. The caller fills in the size, the version and the settings."""
    with urls.private_urls(settings.allow_private_urls):
        return _inspect(path, settings)


def _inspect(path: str, settings: Settings) -> FileReport:
    try:
        info = probe(path)
    except VideoError as error:
        if error.kind == "unreadable" and _lacks_index(path):
            return FileReport(path, kind="truncated", detail=f"its index (moov) is missing; {error.reason}")
        return FileReport(path, kind=error.kind, detail=error.reason)
    n, step = info.num_frames, frame_step(settings.stride, settings.fps, info.fps)
    entry = FileReport(
        path,
        sha256=_digest(path),
        **{name: getattr(info, name) for name in SAME_NAMES},
        pixel_aspect=str(info.shape.pixel_aspect),
        seconds=round(float(info.times_s[-1]) + 1 / info.fps, 3),
        promised=info.header_num_frames,
        promised_s=round(info.promised_s, 3),
        uneven=_uneven(info.times_s),
        unsafe=info.reason,
        sequential_only=info.sequential_only,
        gop=round(info.gop, 1),
        scan=base64.b64encode(packed_scan(path)).decode(),
    )
    try:
        entry = replace(entry, resized=other_size(path))
        frames = read_frames(path, [*(n * POSITIONS // 8), 0, n - 1], short_side=64)
        start = time.perf_counter()
        read_frames(path, center_clip(n, settings.frames, step), short_side=settings.short_side)
        entry = replace(entry, decode_ms=round(1000 * (time.perf_counter() - start), 1))
        for first in range(0, n if settings.every_frame else 0, 64):
            read_frames(path, range(first, min(first + 64, n)), short_side=64)
    except VideoError as error:
        return replace(entry, kind="damaged", detail=error.reason)
    return replace(entry, fingerprint=fingerprint(frames[:4]))


def strip(path: str) -> NDArray[np.uint8]:
    """Return four frames of a video side by side, as uint8 RGB [H, W, 3].

    Raises:
        VideoError: The video cannot be read.
    """
    n = probe(path).num_frames
    return np.concatenate(list(read_frames(path, n * POSITIONS // 8, short_side=90)), axis=1)


def _digest(path: str) -> str:
    """Return the SHA-256 of a file, or of all images of a folder."""
    sha256 = hashlib.sha256()
    for file in storage.pictures(path) if storage.state(path).is_folder else [path]:
        with _opened(file) as data:
            hashlib.file_digest(data, lambda: sha256)
    return sha256.hexdigest()


def _opened(file: str) -> Any:
    """Open a file as a binary stream."""
    if storage.is_plain(file):
        return open(file, "rb")
    return storage.opened(file) if urls.is_url(file) else io.BytesIO(storage.read(file))


def _lacks_index(path: str) -> bool:
    """Return whether a file is MP4 or MOV and lacks the "moov" box, which is usually written last."""
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[4:8] == b"ftyp" and data.find(b"moov") < 0


def _uneven(times_s: NDArray[np.float64]) -> str:
    """Return the range of the frame intervals if the frame rate varies, otherwise "".

    It varies if more than 5% of the intervals differ from the median by more than half of it, or if gaps move the
    mean, on which data.fps relies, by 10%.
    """
    steps = np.diff(times_s)
    if len(steps) < 2:
        return ""
    off = abs(steps / np.median(steps) - 1)
    if np.mean(off > 0.5) <= 0.05 and abs(steps.mean() / np.median(steps) - 1) < 0.1:
        return ""
    return f"from {1000 * steps.min():.0f} to {1000 * steps.max():.0f} ms between frames"


def inspect_files(
    paths: Sequence[str],
    file: Path,
    settings: Settings,
    workers: int,
    timeout_s: float,
    entry: Callable[..., FileReport] = inspect_file,
) -> dict[str, FileReport]:
    """Inspect each file, or reuse its result from `file`. Each new result is appended to `file` at once.

    Args:
        paths: Files to inspect.
        file: JSON Lines file with the results.
        settings: Settings for reading a file.
        workers: Number of child processes.
        timeout_s: Time limit per file in seconds, plus 1 s per 10 MB.
        entry: Function that inspects a file, called as `entry(path, settings=settings)`.

    Raises:
        StoppedError: Ctrl-C interrupts the inspection.
    """
    with ThreadPool(32) as threads:  # Servers and network disks handle many requests at a time.
        described = f"{settings}, {SCANNED_BY}"
        unseen = threads.map(partial(_unseen, described, settings.allow_private_urls), paths)
    known, entries, todo = _read(file), {}, {}
    for path, now in zip(paths, unseen, strict=True):
        before = known.get(path)
        if before and (before.settings, before.size, before.version) == (now.settings, now.size, now.version):
            entries[path] = before
        else:
            entries[path], todo[path] = now, timeout_s + S_PER_BYTE * now.size
    if known:
        log.info(f"results for {len(paths) - len(todo):,} of {plural(len(paths), 'file')} are reused from {file}")
    done = 0
    with (
        open(file, "a", encoding="ascii") as lines,
        closing(run_isolated(partial(entry, settings=settings), todo, workers)) as results,
    ):
        try:
            for path, found in tracked(results, "checking files", len(todo)):
                seen = (
                    FileReport(path, kind=found.kind, detail=found.detail) if isinstance(found, Failure) else found
                )
                now = entries[path]
                entries[path] = replace(seen, size=now.size, version=now.version, settings=now.settings)
                lines.write(json.dumps(asdict(entries[path])) + "\n")
                lines.flush()
                done += 1
        except KeyboardInterrupt:
            raise interrupted(
                f"the results for {done:,} of {plural(len(todo), 'file')} are saved in {file}; "
                "run the same command to continue"
            ) from None
    return entries


def _unseen(settings: str, allow_private_urls: bool, path: str) -> FileReport:
    """Return a report with only the size and the version of a file."""
    try:
        with urls.private_urls(allow_private_urls):
            state = storage.state(path)
    except VideoError:  # The inspection reports the reason.
        return FileReport(path, settings=settings)
    return FileReport(path, state.size, state.version, settings)


def _read(file: Path) -> dict[str, FileReport]:
    """Read the last result for each file.

    An incomplete last line is removed from the file. Lines that do not hold a report are ignored.
    """
    entries = {}
    text = read_text(file, MAX_BYTES, errors="replace") if file.exists() else ""
    if text and not text.endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1], "utf-8")
    for line in text.splitlines():
        try:
            stored = json.loads(line)
            if "in_order" in stored:  # The field had this name until 2026-11-28.
                stored["sequential_only"] = stored.pop("in_order")
            entry = FileReport(**stored)
            base64.b64decode(entry.scan, validate=True)
            if all(conforms(getattr(entry, field.name), field.type) for field in fields(FileReport)):
                entries[entry.path] = entry
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue  # The line is damaged or from another version.
    return entries
