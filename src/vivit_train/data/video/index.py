"""When videos show their frames, as a scan of their packets finds it; and a file that keeps it for later runs.

The file is an SQLite database with a row per video, of which nothing is read but the row that is asked for.
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

NAME = "timelines.sqlite"
MAX_FPS = 1000.0  # a header that claims more is damaged: a high-speed camera's file plays at 1,000 at most
MAX_BYTES = 1 << 26  # of a scan once it is unpacked: a video of a week
DAMAGE = (zlib.error, ValueError, TypeError, RecursionError)  # of a packed scan
STORED: dict[str, Any] = {
    **{"num_frames": int, "fps": float, "time_base": float, "start": int | None, "decord_unsafe": str},
    **{"header_num_frames": int, "promised_s": float, "gop": float, "is_folder": bool},
}
# What may change the outcome of a scan. The first number is ours: raise it with any change to decode.py's `_scan`.
SCANNED_BY = "scan 1, " + ", ".join(
    f"{library} {'.'.join(map(str, av.library_versions[library]))}" for library in ("libavformat", "libavcodec")
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Timeline:
    """When a video shows its frames.

    Attributes:
        num_frames: frames shown; an edit list may hide some that are stored.
        fps: frames per second: the header's, or the mean where the frames contradict it.
        pts_deltas: from each frame to the next, in units of `time_base`: [num_frames - 1], the smallest unsigned
            integers that hold them.
        time_base: of a unit, in seconds.
    """

    num_frames: int
    fps: float
    pts_deltas: NDArray[np.unsignedinteger[Any]]
    time_base: float

    @property
    def times(self) -> NDArray[np.int64]:
        """When each frame is shown, in units from the first: [num_frames]."""
        return np.concatenate(([0], np.cumsum(self.pts_deltas, dtype=np.int64)))

    @property
    def times_s(self) -> NDArray[np.float64]:
        return np.multiply(self.times, self.time_base, dtype=np.float64)


class Scan(NamedTuple):
    """What one pass over a file's packets finds. Times are in the stream's own unit."""

    timeline: Timeline
    start: int | None  # when the first frame is shown; None: frames must be counted from the file's start
    keys: NDArray[np.int64]  # times of the key frames, ascending, hidden ones too
    decord_unsafe: str  # why decord would return other frames, as far as packets tell
    header_num_frames: int
    promised_s: float
    gop: float
    is_folder: bool = False  # of pictures

    @property
    def num_bytes(self) -> int:
        return (
            1500 + self.timeline.pts_deltas.nbytes + self.keys.nbytes
        )  # what a short video takes, and its tables


def pack(scan: Scan) -> bytes:
    """All of a scan, in about 100 bytes where its frames are evenly spaced."""
    times, keys = scan.timeline, scan.keys
    numbers = [times.num_frames, times.fps, times.time_base, times.pts_deltas.itemsize]
    head = json.dumps([*numbers, *scan._replace(timeline=None, keys=None)], separators=(",", ":"))  # type: ignore[arg-type]
    pts_deltas, key_steps = (
        times.pts_deltas.astype(f"<u{times.pts_deltas.itemsize}"),
        np.diff(keys, prepend=0).astype("<i8"),
    )
    return zlib.compress(head.encode() + b"\n" + pts_deltas.tobytes() + key_steps.tobytes())


def unpack(packed: bytes) -> Scan:
    """What was packed.

    Raises:
        zlib.error, ValueError, TypeError, RecursionError: it is damaged, or something else.
    """
    stream = zlib.decompressobj()
    head, _, tables = stream.decompress(packed, MAX_BYTES).partition(b"\n")
    if stream.unconsumed_tail:
        raise ValueError("it unpacks to more than any scan")
    num_frames, fps, time_base, itemsize, timeline, start, keys, *others = json.loads(head)
    numbers = {"num_frames": num_frames, "fps": fps, "time_base": time_base, "start": start}
    names = [name for name in Scan._fields if name not in ("timeline", "start", "keys")]
    numbers |= dict(zip(names, others, strict=False))
    if timeline is not None or keys is not None or itemsize not in (1, 2, 4, 8):
        raise ValueError("it is no scan")
    for name, hint in STORED.items():
        if name in numbers and not conforms(numbers[name], hint):
            raise ValueError(f"its {name} is none")
    end = itemsize * (num_frames - 1)
    if num_frames < 1 or len(tables) < end or not (fps > 0 and time_base > 0):
        raise ValueError("its numbers contradict each other")
    pts_deltas = np.frombuffer(tables[:end], f"<u{itemsize}").astype(f"u{itemsize}")
    times = np.cumsum(np.frombuffer(tables[end:], "<i8"), dtype=np.int64)
    return Scan(
        Timeline(num_frames=num_frames, fps=fps, pts_deltas=pts_deltas, time_base=time_base), start, times, *others
    )


def write(file: Path, rows: Iterable[tuple[str, int, int, bytes]]) -> None:
    """Makes the database; one that is there is replaced once it is whole, and can be read meanwhile.

    Args:
        rows: of each video its path, as it will be asked for, version and size as in `source.State`, and packed
            scan. Of several with one path the last counts.

    Raises:
        UserError: it cannot be written.
    """
    part = Path(f"{os.path.abspath(file)}.part")
    part.unlink(missing_ok=True)
    try:
        # Nobody else has this file open, and some network disks have no locks.
        with closing(sqlite3.connect(f"{part.as_uri()}?nolock=1", uri=True)) as database, database:
            database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE made (scanned_by TEXT);"
                "CREATE TABLE scans (path BLOB PRIMARY KEY, version INT, size INT, packed BLOB) WITHOUT ROWID"
            )
            database.execute("INSERT INTO made VALUES (?)", (SCANNED_BY,))
            by_bytes = ((os.fsencode(path), *others) for path, *others in rows)  # not all names are text
            database.executemany("INSERT OR REPLACE INTO scans VALUES (?, ?, ?, ?)", by_bytes)
    except sqlite3.Error as error:
        raise UserError(f"{part} cannot be written ({reason(error)})") from error
    part.replace(file)


def read(file: Path, path: str, version: int, size: int) -> Scan | None:
    """The scan of a video in this state, None where there is none. Takes 15 µs.

    A database that is missing, damaged or made by other libraries has none: `why_unused` says so.
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
    """Whether a scan contradicts itself: one that a stranger stored would give other frames than asked for."""
    pts_deltas, start, keys = scan.timeline.pts_deltas, scan.start, scan.keys
    if not 0 < scan.timeline.fps <= MAX_FPS or not 1e-12 < scan.timeline.time_base < 1e6:
        return False
    if len(pts_deltas) and (int(pts_deltas.min()) < 1 or float(pts_deltas.max()) * len(pts_deltas) >= 2**62):
        return False
    if start is None:  # frames are counted
        return True
    return abs(start) < 2**62 and len(keys) > 0 and int(keys[0]) <= start and bool((np.diff(keys) > 0).all())


def why_unused(file: Path) -> str:
    """Why nothing is read from a database; "" where it is read."""
    try:
        _opened(file).close()
    except (sqlite3.Error, ValueError) as error:
        return reason(error)
    return ""


@lru_cache(maxsize=8)
def _database(file: Path, process: int) -> sqlite3.Connection | None:
    """Opened in this process: SQLite forbids to use what a parent had open."""
    try:
        return _opened(file)
    except (sqlite3.Error, ValueError):
        return None


def _opened(file: Path) -> sqlite3.Connection:
    # "immutable": without locks, as it is only ever replaced
    database = sqlite3.connect(f"{Path(os.path.abspath(file)).as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        database.execute("PRAGMA trusted_schema=OFF")  # a stranger's may have views and functions for tables
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
        kinds = database.execute("SELECT type, sql FROM sqlite_schema WHERE name IN ('made', 'scans')")
        if any(kind != "table" or "VIRTUAL" in str(sql).upper() for kind, sql in kinds):
            raise ValueError("it is no database of the doctor's")
        ((scanned_by,),) = database.execute("SELECT scanned_by FROM made LIMIT 2")
        if scanned_by != SCANNED_BY:
            raise ValueError(f"made by {scanned_by}, and this is {SCANNED_BY}")
    except (sqlite3.Error, ValueError):
        database.close()
        raise
    return database
