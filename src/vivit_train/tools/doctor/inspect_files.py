"""What one file after the other shows, in child processes; what is seen is kept, and not looked for again."""

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

from vivit_train.data.sampling import center_clip, frame_step
from vivit_train.data.video import storage, urls
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.index import SCANNED_BY
from vivit_train.data.video.scan import packed_scan, probe
from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import UserError, VideoError
from vivit_train.utils.process_pool import Failure, run_isolated

log = logging.getLogger(__name__)


S_PER_BYTE = 1e-7  # that a file may take besides its time limit
# Of a fingerprint's 448 bits. Measured on 120 clips of two static cameras: a clip and its re-encoding at CRF 28
# and half the size differ by 4 to 26, two clips by 57 or more.
SAME_BITS = 32


class Settings(NamedTuple):
    """What is read of each file: the clip of validation and five more frames, or all."""

    frames: int
    stride: int
    fps: float | None
    short_side: int
    every_frame: bool = False
    allow_private_urls: bool = False


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one state of a file tells: a line of files.jsonl.

    Attributes:
        size, version: of the state: bytes, and what `source.state` says.
        settings: what was read of it, and by which libraries.
        kind: one of `problems.BAD`, "" where it can be read; detail: why.
        promised, promised_s: frames and seconds according to the header; 0 where it says nothing.
        uneven: how its frames' times vary, "" where they do not; unsafe: why decord is not to read it, likewise.
        sequential_only: whether all readings start at its first frame.
        gop: mean number of frames per key frame.
        decode_ms: for the clip of validation.
        fingerprint: of its pictures and motion, see `fingerprint`.
        scan: see `packed_scan`, in base 64.
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
    """All that a file by itself can tell, but for its state."""
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
        **{name: getattr(info, name) for name in ("num_frames", "fps", "width", "height", "rotation", "codec")},
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
        frames = read_frames(path, [*(n * np.arange(1, 8, 2) // 8), 0, n - 1], short_side=64)
        start = time.perf_counter()
        read_frames(path, center_clip(n, settings.frames, step), short_side=settings.short_side)
        entry = replace(entry, decode_ms=round(1000 * (time.perf_counter() - start), 1))
        for first in range(0, n if settings.every_frame else 0, 64):
            read_frames(path, range(first, min(first + 64, n)), short_side=64)
    except VideoError as error:
        return replace(entry, kind="damaged", detail=error.reason)
    return replace(entry, fingerprint=fingerprint(frames[:4]))


def strip(path: str) -> NDArray[np.uint8]:
    """Four of its frames side by side, uint8 RGB [H, W, 3].

    Raises:
        VideoError: it cannot be read.
    """
    n = probe(path).num_frames
    return np.concatenate(list(read_frames(path, n * np.arange(1, 8, 2) // 8, short_side=90)), axis=1)


def _digest(path: str) -> str:
    """sha256 of its bytes, or of those of all its pictures."""
    sha256 = hashlib.sha256()
    for file in storage.pictures(path) if storage.state(path).is_folder else [path]:
        with _opened(file) as data:
            hashlib.file_digest(data, lambda: sha256)
    return sha256.hexdigest()


def _opened(file: str) -> Any:
    """Its bytes, piece by piece where they are many."""
    if storage.is_plain(file):
        return open(file, "rb")
    return storage.opened(file) if urls.is_url(file) else io.BytesIO(storage.read(file))


def _lacks_index(path: str) -> bool:
    """Whether it is an MP4 or MOV file without "moov", which is written last."""
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[4:8] == b"ftyp" and data.find(b"moov") < 0


def _uneven(times_s: NDArray[np.float64]) -> str:
    """The range of steps in time, if more than one in twenty is far from the usual, or the mean, by which data.fps
    goes, is another, as gaps make it."""
    steps = np.diff(times_s)
    if len(steps) < 2:
        return ""
    off = abs(steps / np.median(steps) - 1)
    if np.mean(off > 0.5) <= 0.05 and abs(steps.mean() / np.median(steps) - 1) < 0.1:
        return ""
    return f"from {1000 * steps.min():.0f} to {1000 * steps.max():.0f} ms between frames"


def fingerprint(frames_THWC: NDArray[np.uint8]) -> str:
    """448 bits in hex that survive scaling and encoding; "" where there is too little to see.

    4 x 64 say where a picture gets brighter to the right, on a grid of 8 x 9 means; 3 x 64 where it does so from
    one of the four frames to the next: a camera on a tripod gives one picture for many actions.
    """
    grid = frames_THWC.mean(-1)
    for axis, cells in ((1, 8), (2, 9)):
        edges = np.arange(cells + 1) * grid.shape[axis] // cells
        widths = np.maximum(np.diff(edges), 1).reshape([-1 if i == axis else 1 for i in range(3)])
        grid = np.add.reduceat(grid, edges[:-1], axis=axis) / widths
    bits = np.concatenate([np.diff(grid, axis=2) > 2, np.diff(grid, axis=0)[:, :, :8] > 2])
    return np.packbits(bits).tobytes().hex() if bits.sum() >= 1.5 * SAME_BITS else ""


def inspect_files(
    paths: Sequence[str],
    file: Path,
    settings: Settings,
    workers: int,
    timeout_s: float,
    entry: Callable[..., FileReport] = inspect_file,
) -> dict[str, FileReport]:
    """A look at each file, from `file` where it is there already; what is new is appended to it as it comes.

    Args:
        workers: child processes.
        timeout_s: what a file may take, besides a second per 10 MB.
        look: (path, settings=settings) -> what is seen.

    Raises:
        UserError: interrupted by Ctrl-C.
    """
    from rich.progress import track

    with ThreadPool(32) as threads:  # servers and network disks answer many at a time
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
        log.info(f"{len(paths) - len(todo):,} of {len(paths):,} files are known from {file}")
    done = 0
    with (
        open(file, "a", encoding="ascii") as lines,
        closing(run_isolated(partial(entry, settings=settings), todo, workers)) as results,
    ):
        try:
            for path, found in track(results, "looking", len(todo), disable=not todo):
                seen = (
                    FileReport(path, kind=found.kind, detail=found.detail) if isinstance(found, Failure) else found
                )
                now = entries[path]
                entries[path] = replace(seen, size=now.size, version=now.version, settings=now.settings)
                lines.write(json.dumps(asdict(entries[path])) + "\n")
                lines.flush()
                done += 1
        except KeyboardInterrupt:
            raise UserError(
                f"interrupted; {done:,} of {len(todo):,} looks are kept in {file}: the same command goes on"
            ) from None
    return entries


def _unseen(settings: str, allow_private_urls: bool, path: str) -> FileReport:
    """Of the file, only its state."""
    try:
        with urls.private_urls(allow_private_urls):
            state = storage.state(path)
    except VideoError:  # a look will say why
        return FileReport(path, settings=settings)
    return FileReport(path, state.size, state.version, settings)


def _read(file: Path) -> dict[str, FileReport]:
    """The last look at each file. A line that was cut off is ended; neither it nor one of other types counts."""
    entries = {}
    text = file.read_text("ascii") if file.exists() else ""
    if text and not text.endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1], "ascii")
    for line in text.splitlines():
        try:
            stored = json.loads(line)
            if "in_order" in stored:  # the name of before 2026-11-28
                stored["sequential_only"] = stored.pop("in_order")
            entry = FileReport(**stored)
            base64.b64decode(entry.scan, validate=True)
            if all(conforms(getattr(entry, field.name), field.type) for field in fields(FileReport)):
                entries[entry.path] = entry
        except (ValueError, TypeError, AttributeError, RecursionError):  # cut off, or another version's
            continue
    return entries
