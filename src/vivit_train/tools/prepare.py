"""`vivit prepare`: re-encode a dataset's videos for fast training, at training size and with short closed GOPs.

The frames are those that `probe` and `read_frames` find in the source, at the same times and rotated upright.
Child processes encode the files, so that a video that crashes or hangs the decoder does not affect the others.
"""

import csv
import hashlib
import io
import logging
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress

from vivit_train.data.annotations.files import below, find_videos, list_videos, raise_listed, shown_endings, walk
from vivit_train.tools.encode import Settings, encode
from vivit_train.utils.errors import UserError
from vivit_train.utils.process_pool import Failure, run_isolated, usable_cores
from vivit_train.utils.text import csv_cell, plural, printable, shorten_list

log = logging.getLogger(__name__)

ABOUT_SOURCE = ("source", "bytes_before", "source_mtime_ns", "settings")
# `bytes_after` is the last column: a row that a killed run cut short does not match the size of its file.
FIELDS = (*ABOUT_SOURCE, "target", "frames", "seconds", "sha256", "bytes_after")
ANNOTATIONS = {".csv", ".tsv", ".txt", ".json"}
OWN_TABLE = re.compile(r"(manifest|failed)(-\d+of\d+)?\.csv")
S_PER_BYTE = 1e-5  # Large files get extra time: the limit is for videos that hang, not for long ones.
LINE_EVERY_S = 30.0  # This is the interval of the progress lines if the output is not a terminal.
Row = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One video to re-encode.

    Attributes:
        source: Path of the source video.
        target: Path of the re-encoded video.
        partial: Path of the hidden temporary file next to `target`. Readers of the folder ignore hidden files.
        source_name: Path relative to the source folder, with forward slashes, as in the tables.
        target_name: Path relative to the target folder, with forward slashes, as in the tables.
        num_bytes: Size of the source in bytes.
        mtime_ns: Modification time of the source in nanoseconds.
    """

    source: str
    target: str
    partial: str
    source_name: str
    target_name: str
    num_bytes: int
    mtime_ns: int

    @staticmethod
    def of(path: str, source: Path, target: Path) -> "Job":
        name = below(source, path)
        made = _target_name(name)
        try:
            status = os.stat(path)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:  # This may be a broken link; the process that reads it reports the error.
            size = mtime_ns = 0
        folder, file = os.path.split(os.path.join(target, made))
        return Job(path, os.path.join(folder, file), _partial(folder, made), name, made, size, mtime_ns)

    def about(self, settings: Settings) -> Row:
        """Return the manifest columns that change whenever the source or the settings change."""
        values = (self.source_name, str(self.num_bytes), str(self.mtime_ns), str(settings))
        return dict(zip(ABOUT_SOURCE, values, strict=True))

    def is_done(self, row: Row, settings: Settings) -> bool:
        """Return whether a row of a manifest matches this source, these settings and the existing target."""
        is_same = row.items() >= self.about(settings).items() and os.path.isfile(self.target)
        return is_same and row["bytes_after"] == str(os.path.getsize(self.target))


def plan(source: Path, target: Path, listed: Path | None, shard: tuple[int, int]) -> list[Job]:
    """List the videos below `source` that this shard re-encodes, each with its target path below `target`.

    Raises:
        UserError: One folder is inside the other, there are no videos, or two videos would get the same name.
    """
    if not source.is_dir():
        raise UserError(f"no folder {source}")
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise UserError(f"{source} and {target}: neither folder may be inside the other")
    there = find_videos(source)
    paths = there if listed is None else _read_list(listed, source)
    if not paths:
        raise UserError(f"no videos below {source}" if listed is None else f"{listed} lists no videos")
    # This maps each target to its sources. It covers all videos, as this list may be one of several.
    sources: dict[str, list[str]] = {}
    for path in sorted({*there, *paths}):
        sources.setdefault(_target_name(below(source, path)), []).append(below(source, path))
    targets = [_target_name(below(source, path)) for path in paths]
    if clashes := [f"{', '.join(sources[name])} -> {name}" for name in targets if len(sources[name]) > 1]:
        raise_listed(
            "videos that would get the same name",
            sorted(set(clashes)),
            "Nothing was written. Rename all but one of them.",
        )
    return [Job.of(path, source, target) for path in paths[shard[0] :: shard[1]]]


def _target_name(source_name: str) -> str:
    return os.path.splitext(source_name)[0] + ".mp4"


def _read_list(file: Path, source: Path) -> list[str]:
    """Read a list of videos: one path per line, absolute or relative to `source`."""
    try:
        text = file.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"--list {file}: {error.strerror}") from None
    # Other line separators may be part of a file name.
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    paths = sorted({os.path.normpath(os.path.join(source, line)) for line in lines if line})
    if wrong := [path for path in paths if not (Path(path).is_relative_to(source) and os.path.isfile(path))]:
        raise_listed(f"{file} lists paths that are not files below {source}", wrong, "Expected one path per line.")
    return paths


def read_shard(text: str | None) -> tuple[int, int]:
    """Parse a shard such as "2/8" into (2, 8). Shards count from 0."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {text}: expected I/N with I from 0 to N - 1, such as 0/8 to 7/8")
    return int(match[1]), int(match[2])


def prepare(
    source: Path,
    target: Path,
    settings: Settings,
    *,
    workers: int | None = None,
    shard: str | None = None,
    listed: Path | None = None,
    timeout_s: float = 3600,
) -> None:
    """Re-encode every video below `source` to `target` and copy the annotation files next to them.

    `target`/manifest.csv lists the videos in `target` with their checksums. `target`/failed.csv lists the videos
    that could not be read, with the reason. A video that the manifest already lists with the same source and
    settings is skipped. Each shard writes its own tables, such as manifest-2of8.csv. A run without shards merges
    the manifests.

    Args:
        source: Folder of the source videos.
        target: Folder of the re-encoded videos.
        settings: Settings of the encoder.
        workers: Number of processes. None means one per core.
        shard: Part to process, as "I/N" with I from 0 to N - 1. None means all videos.
        listed: File that lists the videos to process, one path per line. None means all videos.
        timeout_s: Time limit per video in seconds, plus 10 s per MB.

    Raises:
        UserError: The folders or options are wrong, or none of the videos could be re-encoded.
    """
    source, target = Path(os.path.abspath(source)), Path(os.path.abspath(target))
    part, parts = read_shard(shard)
    jobs = plan(source, target, listed, (part, parts))
    target.mkdir(parents=True, exist_ok=True)
    ending = f"-{part}of{parts}.csv" if parts > 1 else ".csv"
    manifest, failures = target / f"manifest{ending}", target / f"failed{ending}"
    if part == 0:
        _copy_annotations(source, target)
        others = list_videos(source)[1]
        if left_out := Counter({ending: n for ending, n in others.items() if ending not in ANNOTATIONS}):
            endings = shown_endings(left_out)
            log.info(f"files without a video extension are ignored in {printable(source)}: {endings}")
    _clear(target, {job.target_name for job in jobs})

    tables = [path for path in sorted(target.iterdir()) if path.name.startswith("manifest") and _is_own(path)]
    known = [row for table in tables for row in _read_rows(table)]
    rows: dict[str, Row] = {}  # By target. Rows of other runs stay, unless another shard keeps them.
    at = {job.target_name: job for job in jobs}
    for row in known:
        job = at.get(row["target"])
        if job is not None and job.is_done(row, settings):
            rows[row["target"]] = row
        elif job is None and parts == 1 and (target / row["target"]).is_file():
            rows.setdefault(row["target"], row)
    todo = [job for job in jobs if job.target_name not in rows]
    log.info(f"{plural(len(jobs), 'video')}: {len(jobs) - len(todo)} done, {len(todo)} to re-encode, {settings}")

    failed: list[Row] = []
    made: list[Row] = []
    _write_rows(manifest, FIELDS, rows.values())
    limits = {job: timeout_s + S_PER_BYTE * job.num_bytes for job in todo}
    try:
        with (
            manifest.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file,
            closing(run_isolated(partial(make, settings=settings), limits, workers or usable_cores())) as results,
            _progress(len(todo), sum(job.num_bytes for job in todo)) as step,
        ):
            writer = csv.DictWriter(file, FIELDS)
            for job, result in results:
                if isinstance(result, Failure):
                    failed.append({"source": job.source_name, "reason": result.detail})
                    _discard(job.partial)
                else:
                    made.append(result)
                    writer.writerow(result)
                    file.flush()
                step(job.num_bytes, len(failed))
    except KeyboardInterrupt:
        text = f"interrupted with {len(made)} of {len(todo)} re-encoded; run the same command to continue"
        raise UserError(text) from None
    finally:
        if len(made) + len(failed) < len(todo):
            _clear(target, {job.target_name for job in todo})
        rows |= {row["target"]: row for row in made}
        _write_rows(manifest, FIELDS, (rows[name] for name in sorted(rows)))
        failures.unlink(missing_ok=True)
        if failed:
            # No program reads this table, so its cells can be escaped for spreadsheets.
            cells = [{key: csv_cell(text) for key, text in row.items()} for row in failed]
            _write_rows(failures, ("source", "reason"), sorted(cells, key=lambda row: row["source"]))
    before, after = (sum(int(row[key]) for row in made) / 1e6 for key in ("bytes_before", "bytes_after"))
    log.info(f"{plural(len(made), 'video')} re-encoded: {before:.1f} MB became {after:.1f} MB")
    _renamed(jobs)
    if listed is not None:
        log.info(f"Only the videos listed in {listed} were processed.")
    if failed:
        first = shorten_list((f"{row['source']}: {row['reason']}" for row in failed), 3)
        videos = plural(len(jobs), "video")
        text = f"{len(failed)} of {videos} could not be re-encoded; {failures} lists the reasons: {first}"
        if len(failed) == len(jobs):
            raise UserError(text)
        log.info(text)


def make(job: Job, settings: Settings) -> Row:
    """Re-encode one video and return its row of the manifest. The target appears only once it is complete.

    Raises:
        VideoError: The source is missing, damaged or not a video.
    """
    os.makedirs(os.path.dirname(job.target), exist_ok=True)
    made = encode(job.source, job.partial, settings)
    with open(job.partial, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    row = job.about(settings) | {
        "target": job.target_name,
        "frames": str(made.num_frames),
        "seconds": f"{made.num_frames / made.fps:.3f}",
        "bytes_after": str(os.path.getsize(job.partial)),
        "sha256": checksum,
    }
    os.replace(job.partial, job.target)
    return row


def _partial(folder: str, name: str) -> str:
    """Return the path of a target's temporary file. Its name is a hash, as file names have a maximum length."""
    return os.path.join(folder, f".{_short(name)}.{os.getpid()}.part")


def _short(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]


def _discard(path: str) -> None:
    with suppress(OSError):  # The first error is reported already, and the other videos continue.
        os.unlink(path)


def _clear(target: Path, names: set[str]) -> None:
    """Delete the temporary files that killed runs left of these videos. Files of other shards may be in use."""
    known = set(map(_short, names))
    for folder, _, files in os.walk(target):
        for file in files:
            match = re.fullmatch(r"\.([0-9a-f]{16})\.\d+\.part", file)
            if match and match[1] in known:
                _discard(os.path.join(folder, file))


def _copy_annotations(source: Path, target: Path) -> None:
    copied = 0
    for folder, _, files in walk(source):
        for name in files:
            path, place = Path(folder, name), target / Path(folder, name).relative_to(source)
            if path.suffix.lower() not in ANNOTATIONS or name.startswith("."):
                continue
            if folder == str(source) and OWN_TABLE.fullmatch(name):
                log.info(f"{printable(path)} is not copied: `vivit prepare` writes a table with this name")
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            made = Path(_partial(str(place.parent), below(source, str(path))))
            try:
                shutil.copy2(path, made)
                made.replace(place)
                copied += 1
            except OSError as error:
                log.info(f"{printable(path)} is not copied: {error.strerror or error}")
            finally:
                _discard(str(made))
    if copied:
        log.info(f"{plural(copied, 'annotation file')} ({', '.join(sorted(ANNOTATIONS))}) copied")


def _is_own(path: Path) -> bool:
    return OWN_TABLE.fullmatch(path.name) is not None


def _read_rows(table: Path) -> list[Row]:
    """Read the complete rows of a table. The last row of a killed run may be cut off."""
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [row for row in csv.DictReader(file) if set(row) == set(FIELDS) and None not in row.values()]


def _write_rows(table: Path, fields: tuple[str, ...], rows: Iterable[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    partial = table.with_name(f".{table.name}.{os.getpid()}.part")
    partial.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")
    partial.replace(table)


@contextmanager
def _progress(count: int, num_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """Show the progress: a bar on a terminal, otherwise one line every half minute.

    Yields:
        A function to call after each video, with its size in bytes and the number of failures so far.
    """
    live = sys.stdout.isatty()
    start = logged = time.monotonic()
    done = bytes_done = 0

    def step(more_bytes: int, failed: int) -> None:
        nonlocal done, bytes_done, logged
        done, bytes_done, now = done + 1, bytes_done + more_bytes, time.monotonic()
        bar.update(task, advance=more_bytes, description=f"{done}/{count}, {failed} failed")
        if not live and (done == count or now - logged > LINE_EVERY_S):
            logged, minutes = now, (now - start) / 60
            left = minutes * (num_bytes - bytes_done) / max(bytes_done, 1)
            log.info(f"{done}/{count}, {failed} failed, {minutes:.1f} min, {left:.0f} min left")

    with Progress(disable=not live) as bar:
        task = bar.add_task(f"0/{count}", total=num_bytes)
        yield step


def _renamed(jobs: list[Job]) -> None:
    endings = sorted({os.path.splitext(job.source_name)[1] for job in jobs} - {".mp4"})
    if endings:
        pattern = "|".join(map(re.escape, endings))
        log.info(
            f"Videos with the extension {', '.join(endings)} are .mp4 files now. data=folder and the published "
            f"datasets find them without changes. For data=csv, change the extension in the lists: sed -i -E "
            rf"""'s/({pattern})([[:space:],"])/.mp4\2/' FILE"""
        )
