"""Timelines of videos, as a packet scan finds them, and the database that stores scans for later runs.

The database is an SQLite file with a row per video. Only the requested rows are read.
"""

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.files import replacing

NAME = "timelines.sqlite"
MIN_FPS = 1e-4  # A header with a frame every three hours, or fewer, is damaged.
MAX_FPS = 1000.0  # Files of high-speed cameras play at 1,000 fps at most, so a header with more is damaged.
MAX_BYTES = 1 << 26  # An unpacked scan has at most this size, which is enough for a video of a week.
DAMAGE = (zlib.error, ValueError, TypeError, RecursionError)  # the errors that a damaged scan causes
STORED: dict[str, Any] = {
    **{"num_frames": int, "fps": float, "time_base": float, "start": int | None, "decord_unsafe": str},
    **{
        "header_num_frames": int,
        "promised_s": float,
        "gop": float,
        "is_folder": bool,
        "width": int,
        "height": int,
        "resized": str,
    },
}
# This string identifies everything that affects the result of a scan. Increase the number after "scan" with any
# change to `scan_packets` in scan.py.
SCANNED_BY = "scan 2, " + ", ".join(
    f"{library} {'.'.join(map(str, av.library_versions[library]))}" for library in ("libavformat", "libavcodec")
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """The presentation times of a video's frames.

    Attributes:
        num_frames: The number of frames shown. An edit list may hide some of the stored frames.
        fps: The number of frames per second, from the header or, if the frames contradict it, their mean rate.
        pts_deltas: The time from each frame to the next in units of `time_base`, [num_frames - 1], in the smallest
            unsigned integer type that fits.
        time_base: The unit of `pts_deltas`, in seconds.
    """

    num_frames: int
    fps: float
    pts_deltas: NDArray[np.unsignedinteger[Any]]
    time_base: float

    @property
    def times(self) -> NDArray[np.int64]:
        """The time of each frame since the first frame, in units of `time_base`, [num_frames]."""
        return np.concatenate(([0], np.cumsum(self.pts_deltas, dtype=np.int64)))

    @property
    def times_s(self) -> NDArray[np.float64]:
        """The time of each frame since the first frame, in seconds, [num_frames]."""
        return np.multiply(self.times, self.time_base, dtype=np.float64)


class Scan(NamedTuple):
    """The result of one pass over a file's packets.

    Attributes:
        timeline: The presentation times of the frames.
        start: The pts of the first frame. None means that frames must be counted from the start of the file.
        keys: The pts of all key frames, including hidden ones, in ascending order.
        decord_unsafe: The reason why decord would return wrong frames, as far as packets tell; "" if there is
            none.
        header_num_frames: The number of frames according to the header; 0 if the header has none.
        promised_s: The duration according to the header, in seconds; 0 if the header has none.
        gop: The mean number of stored frames per key frame.
        is_folder: Whether the video is a folder of pictures.
        width: The width of the first stored frame in pixels; 0 if unknown.
        height: The height of the first stored frame in pixels; 0 if unknown.
        resized: The first size and another one that follows, if frames were counted; "" if all are equal.
    """

    timeline: Timeline
    start: int | None
    keys: NDArray[np.int64]
    decord_unsafe: str
    header_num_frames: int
    promised_s: float
    gop: float
    is_folder: bool = False
    width: int = 0
    height: int = 0
    resized: str = ""

    @property
    def num_bytes(self) -> int:
        """The approximate memory that the scan takes: a constant and its two tables."""
        return 1500 + self.timeline.pts_deltas.nbytes + self.keys.nbytes


def pack(scan: Scan) -> bytes:
    """Returns the compressed scan, about 100 bytes if the frames are evenly spaced."""
    times, keys = scan.timeline, scan.keys
    numbers = [times.num_frames, times.fps, times.time_base, times.pts_deltas.itemsize]
    head = json.dumps([*numbers, *scan._replace(timeline=None, keys=None)], separators=(",", ":"))  # type: ignore[arg-type]
    pts_deltas, key_steps = (
        times.pts_deltas.astype(f"<u{times.pts_deltas.itemsize}"),
        np.diff(keys, prepend=0).astype("<i8"),
    )
    return zlib.compress(head.encode() + b"\n" + pts_deltas.tobytes() + key_steps.tobytes())


def unpack(packed: bytes) -> Scan:
    """Returns the scan from its compressed form.

    Raises:
        zlib.error, ValueError, TypeError, RecursionError: If the data is damaged or is not a scan.
    """
    stream = zlib.decompressobj()
    head, _, tables = stream.decompress(packed, MAX_BYTES).partition(b"\n")
    if stream.unconsumed_tail:
        raise ValueError("the unpacked data is larger than any scan")
    num_frames, fps, time_base, itemsize, timeline, start, keys, *others = json.loads(head)
    numbers = {"num_frames": num_frames, "fps": fps, "time_base": time_base, "start": start}
    names = [name for name in Scan._fields if name not in ("timeline", "start", "keys")]
    numbers |= dict(zip(names, others, strict=False))
    if timeline is not None or keys is not None or itemsize not in (1, 2, 4, 8):
        raise ValueError("the data is not a scan")
    for name, hint in STORED.items():
        if name in numbers and not conforms(numbers[name], hint):
            raise ValueError(f"{name} is invalid")
    end = itemsize * (num_frames - 1)
    if num_frames < 1 or len(tables) < end or not (fps > 0 and time_base > 0):
        raise ValueError("the numbers contradict each other")
    pts_deltas = np.frombuffer(tables[:end], f"<u{itemsize}").astype(f"u{itemsize}")
    times = np.cumsum(np.frombuffer(tables[end:], "<i8"), dtype=np.int64)
    return Scan(
        Timeline(num_frames=num_frames, fps=fps, pts_deltas=pts_deltas, time_base=time_base), start, times, *others
    )


def write(file: Path, rows: Iterable[tuple[str, int, int, bytes]]) -> None:
    """Writes the database. An existing one stays readable and is replaced when the new one is complete.

    Args:
        file: The path of the database.
        rows: The path of each video, as it will be looked up, its version and size as in `storage.State`, and its
            packed scan. If a path occurs several times, the last row counts.

    Raises:
        UserError: If the database cannot be written.
    """
    file = file.absolute()
    try:
        # No other process has this file open, and some network disks do not support locks.
        with (
            replacing(file) as part,
            closing(sqlite3.connect(f"{part.as_uri()}?nolock=1", uri=True)) as database,
            database,
        ):
            database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE made (scanned_by TEXT);"
                "CREATE TABLE scans (path BLOB PRIMARY KEY, version INT, size INT, packed BLOB) WITHOUT ROWID"
            )
            database.execute("INSERT INTO made VALUES (?)", (SCANNED_BY,))
            # Not all file names are valid text.
            by_bytes = ((os.fsencode(path), *others) for path, *others in rows)
            database.executemany("INSERT OR REPLACE INTO scans VALUES (?, ?, ?, ?)", by_bytes)
    except sqlite3.Error as error:
        raise UserError(f"{file} cannot be written ({reason(error)})") from error


def read(file: Path, path: str, version: int, size: int) -> Scan | None:
    """Returns the stored scan of a video with this version and size, or None. It takes 15 µs.

    A database that is missing, damaged or made by other library versions gives None; `why_unused` returns the
    reason.
    """
    database = _database(file, os.getpid())
    if database is None:
        return None
    asked = os.fsencode(path), version, size
    try:
        (found,) = database.execute("SELECT packed FROM scans WHERE (path, version, size) = (?, ?, ?)", asked)
        scan = unpack(*found)
        return scan if is_possible(scan) else None
    except (sqlite3.Error, *DAMAGE):
        return None


def is_possible(scan: Scan) -> bool:
    """Returns whether a scan is consistent. An inconsistent scan from an untrusted database gives wrong frames."""
    pts_deltas, start, keys = scan.timeline.pts_deltas, scan.start, scan.keys
    if not MIN_FPS <= scan.timeline.fps <= MAX_FPS or not 1e-12 < scan.timeline.time_base < 1e6:
        return False
    if len(pts_deltas) and (int(pts_deltas.min()) < 1 or float(pts_deltas.max()) * len(pts_deltas) >= 2**62):
        return False
    if start is None:  # frames are counted, so `keys` is not used
        return True
    return abs(start) < 2**62 and len(keys) > 0 and int(keys[0]) <= start and bool((np.diff(keys) > 0).all())


def find(root: Path) -> Path | None:
    """Returns the database in a data set's folder, or None if there is none."""
    file = root / NAME
    return file if file.is_file() else None


def why_unused(file: Path) -> str:
    """Returns the reason why a database cannot be used, or "" if it can."""
    try:
        _opened(file).close()
    except (sqlite3.Error, ValueError) as error:
        return reason(error)
    return ""


@lru_cache(maxsize=8)
def _database(file: Path, process: int) -> sqlite3.Connection | None:
    """Returns a connection of this process, since SQLite connections must not be used after a fork."""
    try:
        return _opened(file)
    except (sqlite3.Error, ValueError):
        return None


def _opened(file: Path) -> sqlite3.Connection:
    # "immutable" avoids locks, which are unnecessary because the file is never modified, only replaced.
    database = sqlite3.connect(f"{Path(os.path.abspath(file)).as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        database.execute("PRAGMA trusted_schema=OFF")  # An untrusted file may define views that call functions.
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
        kinds = database.execute("SELECT type, sql FROM sqlite_schema WHERE name IN ('made', 'scans')")
        if any(kind != "table" or "VIRTUAL" in str(sql).upper() for kind, sql in kinds):
            raise ValueError("it was not written by vivit doctor")
        ((scanned_by,),) = database.execute("SELECT scanned_by FROM made LIMIT 2")
        if scanned_by != SCANNED_BY:
            raise ValueError(f"made by {scanned_by}, but this is {SCANNED_BY}")
    except (sqlite3.Error, ValueError):
        database.close()
        raise
    return database
