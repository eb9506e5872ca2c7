"""`vivit prepare`: a data set's videos once more, quick to read: the size that training takes, short closed GOPs.

The frames are those that `probe` and `read_frames` find in the source, at their times, turned upright. Files are
made in child processes, so that one that crashes or hangs takes no other along.
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

from vivit_train.data.annotations.files import (
    below,
    find_videos,
    list_videos,
    raise_listed,
    shorten,
    shown_endings,
    walk,
)
from vivit_train.tools.encode import Settings, encode
from vivit_train.utils.errors import UserError
from vivit_train.utils.process_pool import Failure, run_isolated, usable_cores
from vivit_train.utils.text import csv_cell, printable

log = logging.getLogger(__name__)

ABOUT_SOURCE = ("source", "bytes_before", "source_mtime_ns", "settings")
FIELDS = (*ABOUT_SOURCE, "target", "frames", "seconds", "sha256", "bytes_after")  # last: what shows a torn row
ANNOTATIONS = {".csv", ".tsv", ".txt", ".json"}
OWN_TABLE = re.compile(r"(manifest|failed)(-\d+of\d+)?\.csv")
S_PER_BYTE = 1e-5  # that a video may take besides its time limit: this ends what hangs, not what is long
LINE_EVERY_S = 30.0  # progress where the output is no terminal
Row = dict[str, str]


@dataclass(frozen=True)
class Job:
    """A video to make.

    Attributes:
        source_name, target_name: as in tables: relative, with forward slashes.
        partial: where it is made, beside `target`, and hidden, so that readers pass over it.
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
        except OSError:  # a broken link: its process will say so
            size = mtime_ns = 0
        folder, file = os.path.split(os.path.join(target, made))
        return Job(path, os.path.join(folder, file), _partial(folder, made), name, made, size, mtime_ns)

    def about(self, settings: Settings) -> Row:
        """What a manifest says of the source: another source or other settings say something else."""
        values = (self.source_name, str(self.num_bytes), str(self.mtime_ns), str(settings))
        return dict(zip(ABOUT_SOURCE, values, strict=True))

    def is_done(self, row: Row, settings: Settings) -> bool:
        """Whether a manifest's row speaks of this source, these settings, and the target that is there."""
        is_same = row.items() >= self.about(settings).items() and os.path.isfile(self.target)
        return is_same and row["bytes_after"] == str(os.path.getsize(self.target))


def plan(source: Path, target: Path, listed: Path | None, shard: tuple[int, int]) -> list[Job]:
    """The videos below `source` that this shard makes, each with its place below `target`.

    Raises:
        UserError: one folder is within the other, there are no videos, or two would get the same name.
    """
    if not source.is_dir():
        raise UserError(f"no folder {source}")
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise UserError(f"{source} and {target}: neither may be within the other")
    there = find_videos(source)
    paths = there if listed is None else _read_list(listed, source)
    if not paths:
        raise UserError(f"no videos below {source}" if listed is None else f"{listed} lists no videos")
    sources: dict[str, list[str]] = {}  # by target; of all, as a list may be one of several
    for path in sorted({*there, *paths}):
        sources.setdefault(_target_name(below(source, path)), []).append(below(source, path))
    targets = [_target_name(below(source, path)) for path in paths]
    if clashes := [f"{', '.join(sources[name])} -> {name}" for name in targets if len(sources[name]) > 1]:
        raise_listed(
            "videos that would get one name", sorted(set(clashes)), "Nothing was written. Rename all but one."
        )
    return [Job.of(path, source, target) for path in paths[shard[0] :: shard[1]]]


def _target_name(source_name: str) -> str:
    return os.path.splitext(source_name)[0] + ".mp4"


def _read_list(file: Path, source: Path) -> list[str]:
    """Paths below `source`, one a line, absolute or relative to it."""
    try:
        text = file.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"--list {file}: {error.strerror}") from None
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]  # other separators may be part of a name
    paths = sorted({os.path.normpath(os.path.join(source, line)) for line in lines if line})
    if wrong := [path for path in paths if not (Path(path).is_relative_to(source) and os.path.isfile(path))]:
        raise_listed(f"{file} lists what is no file below {source}", wrong, "Expected one path a line.")
    return paths


def read_shard(text: str | None) -> tuple[int, int]:
    """ "2/8" -> (2, 8); shards count from 0."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/8 to 7/8")
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
    """Make every video below `source` again below `target`, and copy the annotation files beside them.

    `target`/manifest.csv names what is there with its checksum, failed.csv what could not be read and why. What
    the manifest has of the same source and settings is not made again. Each shard has tables of its own, such as
    manifest-2of8.csv; a run without shards gathers them.

    Args:
        workers: processes; None: one for each core.
        shard: "i/n", one of n parts; listed: a file that names the videos to make, a path a line.
        timeout_s: what a video may take, besides 10 s per MB.

    Raises:
        UserError: the folders or options are wrong, or not one video could be made.
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
            log.info(f"no videos by their names, so left out of {printable(source)}: {shown_endings(left_out)}")
    _clear(target, {job.target_name for job in jobs})

    tables = [path for path in sorted(target.iterdir()) if path.name.startswith("manifest") and _is_own(path)]
    known = [row for table in tables for row in _read_rows(table)]
    rows: dict[str, Row] = {}  # by target: of other runs too, unless another shard keeps them
    at = {job.target_name: job for job in jobs}
    for row in known:
        job = at.get(row["target"])
        if job is not None and job.is_done(row, settings):
            rows[row["target"]] = row
        elif job is None and parts == 1 and (target / row["target"]).is_file():
            rows.setdefault(row["target"], row)
    todo = [job for job in jobs if job.target_name not in rows]
    log.info(f"{len(jobs)} videos: {len(jobs) - len(todo)} are done, {len(todo)} to make, {settings}")

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
        text = f"interrupted; {len(made)} of {len(todo)} are made: the same command goes on"
        raise UserError(text) from None
    finally:
        if len(made) + len(failed) < len(todo):
            _clear(target, {job.target_name for job in todo})
        rows |= {row["target"]: row for row in made}
        _write_rows(manifest, FIELDS, (rows[name] for name in sorted(rows)))
        failures.unlink(missing_ok=True)
        if failed:
            cells = [{key: csv_cell(text) for key, text in row.items()} for row in failed]  # nothing reads it back
            _write_rows(failures, ("source", "reason"), sorted(cells, key=lambda row: row["source"]))
    before, after = (sum(int(row[key]) for row in made) / 1e6 for key in ("bytes_before", "bytes_after"))
    log.info(f"{len(made)} made: {before:.1f} MB became {after:.1f} MB")
    _renamed(jobs)
    if listed is not None:
        log.info(f"Of the videos, only those that {listed} lists were looked at.")
    if failed:
        first = shorten((f"{row['source']}: {row['reason']}" for row in failed), 3)
        text = f"{len(failed)} of {len(jobs)} videos could not be made, listed in {failures}: {first}"
        if len(failed) == len(jobs):
            raise UserError(text)
        log.info(text)


def make(job: Job, settings: Settings) -> Row:
    """Make a video, which has its name once it is whole, and its row of the manifest.

    Raises:
        VideoError: the source is missing, damaged or no video.
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
    """Where a target is made. Its own name may be as long as any can be."""
    return os.path.join(folder, f".{_short(name)}.{os.getpid()}.part")


def _short(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]


def _discard(path: str) -> None:
    with suppress(OSError):  # what went wrong before is said, and the others go on
        os.unlink(path)


def _clear(target: Path, names: set[str]) -> None:
    """Delete what killed runs left behind of these videos; other shards may be at work on theirs."""
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
                log.info(f"{printable(path)} is not copied: a table of this command has its name")
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
        log.info(f"{copied} annotation files ({', '.join(sorted(ANNOTATIONS))}) copied")


def _is_own(path: Path) -> bool:
    return OWN_TABLE.fullmatch(path.name) is not None


def _read_rows(table: Path) -> list[Row]:
    """Whole rows: the last one of a killed run may lack its end."""
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
    """Gives a function to call after each video with its bytes and the failures so far. Shows a bar with the time
    left; where the output is no terminal, a line every half minute."""
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
            f"Videos that ended in {', '.join(endings)} end in .mp4 now. data=folder and the published data sets "
            f"find them as they are. In the files of data=csv, write .mp4: sed -i -E "
            rf"""'s/({pattern})([[:space:],"])/.mp4\2/' FILE"""
        )
