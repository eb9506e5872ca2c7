"""`vivit prepare`: re-encode a dataset's videos for fast training, at training size and with short closed GOPs.

The frames are those that `probe` and `read_frames` find in the source, at the same times and rotated upright.
Child processes encode the files, so that a video that crashes or hangs the decoder does not affect the others.
"""

import csv
import hashlib
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from vivit_train.data.annotations.files import below, list_videos, raise_listed, shown_endings, walk
from vivit_train.tools.encode import Settings, encode
from vivit_train.tools.encode_jobs import Job, partial_path, plan, read_shard, short_hash
from vivit_train.tools.manifest import (
    FIELDS,
    MANIFEST,
    OWN_TABLE,
    Row,
    read_rows,
    write_failures,
    write_rows,
)
from vivit_train.utils.errors import UserError, interrupted
from vivit_train.utils.process_pool import Failure, run_isolated, usable_cores
from vivit_train.utils.progress import progress
from vivit_train.utils.text import plural, printable, shorten_list

log = logging.getLogger(__name__)

ANNOTATIONS = {".csv", ".tsv", ".txt", ".json"}
S_PER_BYTE = 1e-5  # Large files get extra time: the limit is for videos that hang, not for long ones.


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
        UserError: The folders or options are wrong, the target holds videos of others, or none of the videos could
            be re-encoded.
    """
    source, target = Path(os.path.abspath(source)), Path(os.path.abspath(target))
    part, parts = read_shard(shard)
    jobs = plan(source, target, listed, (part, parts))
    target.mkdir(parents=True, exist_ok=True)
    _check_inside(target, {os.path.dirname(job.target) for job in jobs})
    ending = f"-{part}of{parts}.csv" if parts > 1 else ".csv"
    manifest, failures = target / f"manifest{ending}", target / f"failed{ending}"
    is_new = not any(MANIFEST.fullmatch(path.name) for path in target.iterdir())
    if is_new and (found := [job.target for job in jobs if os.path.lexists(job.target)]):
        raise_listed("videos that vivit prepare has not made", found, "Choose another folder for DST.")
    if part == 0:
        _copy_annotations(source, target, is_new=is_new)
        _log_ignored_files(source)
    _clear(target, {job.target_name for job in jobs})
    rows = _finished_rows(target, jobs, settings, keeps_others=parts == 1)
    todo = [job for job in jobs if job.target_name not in rows]
    log.info(f"{plural(len(jobs), 'video')}: {len(jobs) - len(todo)} done, {len(todo)} to re-encode, {settings}")

    results = _encode_all(todo, settings, workers or usable_cores(), timeout_s)
    made, failed = _write_results(results, todo, rows, manifest, failures)
    before, after = (sum(int(row[key]) for row in made) / 1e6 for key in ("bytes_before", "bytes_after"))
    log.info(f"{plural(len(made), 'video')} re-encoded: {before:.1f} MB became {after:.1f} MB")
    _log_renamed(jobs)
    if listed is not None:
        log.info(f"Only the videos listed in {listed} were processed.")
    if failed:
        _report_failures(failures, failed, len(jobs))


def _check_inside(target: Path, folders: Iterable[str]) -> None:
    """Raise a UserError if a link in `target`, which may come from a stranger, leads to files elsewhere."""
    top = os.path.realpath(target)
    if outside := sorted(path for path in folders if not Path(os.path.realpath(path)).is_relative_to(top)):
        raise_listed(f"folders of {target} that are links to elsewhere", outside, "Replace them with folders.")


def _finished_rows(target: Path, jobs: list[Job], settings: Settings, *, keeps_others: bool) -> dict[str, Row]:
    """Return the rows of all manifests in `target` whose videos are done, by the name of the target.

    Args:
        target: Folder of the re-encoded videos.
        jobs: Videos of this run.
        settings: Settings of the encoder.
        keeps_others: Whether to return existing videos of other runs, too. Otherwise another shard lists them.
    """
    tables = [path for path in sorted(target.iterdir()) if MANIFEST.fullmatch(path.name) and path.is_file()]
    at = {job.target_name: job for job in jobs}
    rows: dict[str, Row] = {}
    for row in (row for table in tables for row in read_rows(table)):
        job = at.get(row["target"])
        if job is not None and job.is_done(row, settings):
            rows[row["target"]] = row
        elif job is None and keeps_others and (target / row["target"]).is_file():
            rows.setdefault(row["target"], row)
    return rows


def _write_results(
    results: Generator[tuple[Job, Row | Failure], None, None],
    todo: list[Job],
    rows: dict[str, Row],
    manifest: Path,
    failures: Path,
) -> tuple[list[Row], list[Row]]:
    """Write each result to the manifest as soon as it is there, and both tables at the end or when interrupted.

    Args:
        results: Videos with their results, from `_encode_all`.
        todo: Videos to re-encode.
        rows: Rows of the other videos by the name of the target.
        manifest: Table of the videos in its folder.
        failures: Table of the videos that could not be read.

    Returns:
        The rows of the re-encoded videos, and the rows of the failed ones.

    Raises:
        UserError: Ctrl-C was pressed.
    """
    made: list[Row] = []
    failed: list[Row] = []
    write_rows(manifest, FIELDS, rows.values())
    try:
        with (
            manifest.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file,
            closing(results),
        ):
            writer = csv.DictWriter(file, FIELDS)
            for job, result in results:
                if isinstance(result, Failure):
                    failed.append({"source": job.source_name, "reason": result.detail})
                else:
                    made.append(result)
                    writer.writerow(result)
                    file.flush()
    except KeyboardInterrupt:
        text = f"{len(made)} of {len(todo)} are re-encoded; run the same command to continue"
        raise interrupted(text) from None
    finally:
        if len(made) + len(failed) < len(todo):
            _clear(manifest.parent, {job.target_name for job in todo})
        whole = rows | {row["target"]: row for row in made}
        write_rows(manifest, FIELDS, (whole[name] for name in sorted(whole)))
        write_failures(failures, failed)
    return made, failed


def _encode_all(
    todo: list[Job], settings: Settings, workers: int, timeout_s: float
) -> Generator[tuple[Job, Row | Failure], None, None]:
    """Re-encode videos in child processes, show the progress, and yield each video with its result."""
    limits = {job: timeout_s + S_PER_BYTE * job.num_bytes for job in todo}
    num_failed = num_bytes = 0
    with (
        closing(run_isolated(partial(make, settings=settings), limits, workers)) as results,
        progress("re-encoding", sum(job.num_bytes for job in todo)) as step,
    ):
        for done, (job, result) in enumerate(results, 1):
            if isinstance(result, Failure):
                num_failed += 1
                _discard(job.partial)
            yield job, result
            num_bytes += job.num_bytes
            step(num_bytes, f"{done:,} of {plural(len(todo), 'video')}, {num_failed} failed")


def _report_failures(table: Path, failed: list[Row], num_videos: int) -> None:
    """Log how many videos failed, or raise a UserError if all did."""
    first = shorten_list((f"{row['source']}: {row['reason']}" for row in failed), 3)
    videos = plural(num_videos, "video")
    text = f"{len(failed)} of {videos} could not be re-encoded; {table} lists the reasons: {first}"
    if len(failed) == num_videos:
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


def _discard(path: str) -> None:
    with suppress(OSError):  # The first error is reported already, and the other videos continue.
        os.unlink(path)


def _clear(target: Path, names: set[str]) -> None:
    """Delete the temporary files that killed runs left of these videos. Files of other shards may be in use."""
    known = set(map(short_hash, names))
    for folder, _, files in os.walk(target):
        for file in files:
            match = re.fullmatch(r"\.([0-9a-f]{16})\.\d+\.part", file)
            if match and match[1] in known:
                _discard(os.path.join(folder, file))


def _log_ignored_files(source: Path) -> None:
    others = list_videos(source)[1]
    if ignored := Counter({ending: n for ending, n in others.items() if ending not in ANNOTATIONS}):
        endings = shown_endings(ignored)
        log.info(f"files without a video extension are ignored in {printable(source)}: {endings}")


def _copy_annotations(source: Path, target: Path, *, is_new: bool) -> None:
    """Copy the annotation files; into a folder that is new to `vivit prepare`, only those that it lacks."""
    copied = 0
    for folder, _, files in walk(source):
        for name in files:
            path, place = Path(folder, name), target / Path(folder, name).relative_to(source)
            if path.suffix.lower() not in ANNOTATIONS or name.startswith("."):
                continue
            if folder == str(source) and OWN_TABLE.fullmatch(name):
                log.info(f"{printable(path)} is not copied: `vivit prepare` writes a table with this name")
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(source.resolve()):
                log.info(f"{printable(path)} is not copied: it is a link to a file outside of {printable(source)}")
                continue
            if is_new and os.path.lexists(place):
                log.info(f"{printable(path)} is not copied: {printable(place)} exists")
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            _check_inside(target, [str(place.parent)])
            made = Path(partial_path(str(place.parent), below(source, str(path))))
            try:
                _discard(str(made))
                shutil.copy2(path, made)
                made.replace(place)
                copied += 1
            except OSError as error:
                log.info(f"{printable(path)} is not copied: {error.strerror or error}")
            finally:
                _discard(str(made))
    if copied:
        log.info(f"{plural(copied, 'annotation file')} ({', '.join(sorted(ANNOTATIONS))}) copied")


def _log_renamed(jobs: list[Job]) -> None:
    endings = sorted({os.path.splitext(job.source_name)[1] for job in jobs} - {".mp4"})
    if endings:
        log.info(
            f"Videos with the extension {', '.join(endings)} are .mp4 files now. data=folder and the published "
            "datasets find them without changes. For data=csv, change the extensions in the lists."
        )
