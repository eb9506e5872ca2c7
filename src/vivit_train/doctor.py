"""`vivit doctor`: one pass over the files of a data set that says what is wrong with them, before training does.

Each file is looked at in a child process, so that one that crashes or hangs the decoder costs that child. What was
found is appended to files.jsonl at once; a file is looked at again only when it, or what is read of it, changes.
"""

import base64
import csv
import hashlib
import io
import json
import math
import multiprocessing
import os
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vivit_train.data.clip import centre_clip, frame_step
from vivit_train.data.decode import probe, read_frames
from vivit_train.data.manifest import Manifest, Splits, some
from vivit_train.errors import UserError, VideoError, reason

if TYPE_CHECKING:  # each child imports this file: nothing here that takes long
    from omegaconf import DictConfig

# kind -> what it means. Clips of these are left out of the clean lists:
BAD = {
    "missing": "no such file",
    "empty": "0 bytes",
    "truncated": "the end is missing: copy or download it again",
    "no video": "no video stream in it",
    "unreadable": "FFmpeg cannot read it",
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
    "slow seek": "decord would return wrong frames: read by PyAV, more slowly",
}
KINDS = BAD | COPIES | REMARKS
TO_ENCODE = ("length", "variable rate", "rotated", "slow seek")

# Clips per split, as in data/README.md.
PUBLISHED = {
    "kinetics400": {"train": 246_535, "val": 19_906},
    "something_something_v2": {"train": 168_913, "val": 24_777, "test": 27_157},
    "epic_kitchens100": {"train": 67_217, "val": 9_668},
    "hmdb51": {"train": 3_570, "val": 1_530},
}
UCF101 = {fold: {"train": train, "val": 13_320 - train} for fold, train in ((1, 9_537), (2, 9_586), (3, 9_624))}
# Of a fingerprint's 448 bits. Measured on 120 clips of two static cameras: a clip and its re-encoding at CRF 28
# and half the size differ by 4 to 26, two clips by 57 or more.
SAME_BITS = 32
SHOWN = 8  # videos of each kind that the report shows


class Settings(NamedTuple):
    """What is read of each file: the clip of validation and five more frames, or all."""

    frames: int
    stride: int
    fps: float | None
    short_side: int
    every_frame: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What one state of a file tells: a line of files.jsonl.

    Attributes:
        settings: what was read of it.
        kind: one of BAD, "" where it can be read; detail: why.
        promised: frames according to the header, promised_s: its seconds; 0 where it says nothing.
        uneven: how its frames' times vary, "" where they do not; unsafe: why seeking in it is slow, likewise.
        gop: mean number of frames per key frame.
        decode_ms: for the clip of validation.
        fingerprint: of its pictures and motion, see `fingerprint`.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
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
    gop: float = 0
    decode_ms: float = 0
    fingerprint: str = ""


class Problem(NamedTuple):
    """A row of problems.csv. `other`: the video that this one is a copy of."""

    path: str
    split: str
    kind: str
    detail: str
    other: str = ""


class Failure(NamedTuple):
    """What comes back instead of a result from a child that died, hung, or met an error."""

    kind: str
    detail: str


def examine(
    cfg: "DictConfig",
    out: Path,
    workers: int,
    *,
    every_frame: bool = False,
    timeout_s: float | None = None,
    look: Callable[..., Look] | None = None,
    overrides: Sequence[str] = (),
) -> list[Problem]:
    """Looks at every file that `cfg.data` lists, says what it found, and returns the problems.

    Leaves files.jsonl, problems.csv, report.html, re-encode.txt and, for data with one label per video,
    clean/{train,val[,test]}.csv and clean/classes.txt.

    Args:
        workers: child processes.
        every_frame: decode all frames of each file.
        timeout_s: what a file may take, besides a second per 10 MB; as `data.timeout_s` if None.
        look: `look_at`, or what tests put in its place.
        overrides: of the command line, for the command that is printed at the end.

    Raises:
        UserError: the data set's lists cannot be read.
    """
    splits, data = read_splits(cfg), cfg.data
    settings = Settings(data.frames, data.stride, data.fps, data.short_side, every_frame)
    if data.get("sampling") == "segments":  # one frame from each: a video is long enough with as many frames
        settings = settings._replace(stride=1, fps=None)
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    manifests = {split: manifest for split, manifest in named.items() if manifest}
    out.mkdir(parents=True, exist_ok=True)
    print(splits.summary(), flush=True)
    paths = list(dict.fromkeys(str(path) for manifest in manifests.values() for path in manifest.paths))
    limit_s = data.timeout_s if timeout_s is None else timeout_s
    looks = look_at_all(paths, out / "files.jsonl", look or look_at, settings, workers, limit_s)

    (names, *_) = splits.classes.values()
    problems, left_out = find_problems(manifests, names, looks, settings)
    listed = [(path, split) for split, paths in splits.missing.items() for path in paths]
    problems += [Problem(path, split, "missing", "listed, and not on the disk") for path, split in listed]
    with open(out / "problems.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([Problem._fields, *problems])
    to_encode = dict.fromkeys(problem.path for problem in problems if problem.kind in TO_ENCODE)
    _write(out / "re-encode.txt", to_encode)
    clean = write_clean(out / "clean", splits, manifests, left_out, str(data.name))
    kept = ", ".join(f"{split} {len(m) - len(left_out[split]):,} of {len(m):,}" for split, m in manifests.items())
    command = " ".join(["python train.py", clean, *map(shlex.quote, filter(_is_kept, overrides))])
    advice = f"train on the clean lists:\n  {command}" if clean else "no clean lists: segments or several labels"
    notes = [*counts_notes(cfg, splits, manifests), f"clean: {kept}", f"to re-encode: {len(to_encode):,} files"]
    shown = [p for kind in KINDS for p in [p for p in problems if p.kind == kind][:SHOWN]]
    faces = dict.fromkeys((path for p in shown for path in (p.path, p.other) if path), float(limit_s))
    strips = {
        path: strip for path, strip in in_children(look_again, faces, workers) if isinstance(strip, np.ndarray)
    }
    page = report(str(data.name), splits, manifests, looks, problems, strips, [*splits.notices, *notes, advice])
    (out / "report.html").write_text(page, encoding="utf-8", errors="surrogateescape")

    count = Counter(problem.kind for problem in problems)
    for kind in filter(count.get, KINDS):
        examples = some([os.path.basename(p.path) for p in problems if p.kind == kind], 3)
        print(f"{count[kind]:>7,}  {kind:<16} {KINDS[kind]}: {examples}")
    print("\n".join(f"note     {note}" for note in notes))
    print(f"report   {out / 'report.html'}, and beside it problems.csv, re-encode.txt, clean/")
    print(advice)
    return problems


def _is_kept(override: str) -> bool:
    """Whether an override says something else than where the data is."""
    return not override.startswith(
        ("data=", *(f"data.{key}" for key in ("root=", "train=", "val=", "test=", "reader")))
    )


def read_splits(cfg: "DictConfig") -> Splits:
    """The data set's clips. Missing videos are notices, however many they are."""
    from hydra.utils import instantiate

    reader = instantiate(cfg.data.reader, _convert_="all")
    lists = {split: cfg.data[split] for split in ("train", "val", "test")}
    allow = {"max_missing": 1.0} if "max_missing" in cfg.data.reader else {}
    return reader(cfg.data.root, **lists, **allow)


# One file.


def look_at(path: str, settings: Settings) -> Look:
    """All that a file by itself can tell."""
    try:
        status = os.stat(path)
        look = Look(path, status.st_size, status.st_mtime_ns)
        sha256, has_index = _digest(path)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        return Look(path, kind="missing" if gone else "unreadable", detail=error.strerror or reason(error))
    look = replace(look, sha256=sha256)
    try:
        info = probe(path)
        promised, promised_s, gop = _stored(path)
    except VideoError as error:
        kinds = {"0 bytes": "empty", "ends after": "truncated", "no video stream": "no video"}
        kind = next((kind for words, kind in kinds.items() if words in error.reason), "unreadable")
        if kind == "unreadable" and not has_index:
            return replace(look, kind="truncated", detail=f"its index (moov) is missing; {error.reason}")
        return replace(look, kind=kind, detail=error.reason)
    n, step = info.num_frames, frame_step(settings.stride, settings.fps, info.fps)
    look = replace(
        look,
        **{name: getattr(info, name) for name in ("num_frames", "fps", "width", "height", "rotation", "codec")},
        seconds=round(float(info.times_s[-1]) + 1 / info.fps, 3),
        promised=promised,
        promised_s=round(promised_s, 3),
        uneven=_uneven(info.times_s),
        unsafe=info.reason,
        gop=round(gop, 1),
    )
    try:
        frames = read_frames(path, [*(n * np.arange(1, 8, 2) // 8), 0, n - 1], short_side=64)
        start = time.perf_counter()
        read_frames(path, centre_clip(n, settings.frames, step), short_side=settings.short_side)
        look = replace(look, decode_ms=round(1000 * (time.perf_counter() - start), 1))
        for first in range(0, n if settings.every_frame else 0, 64):
            read_frames(path, range(first, min(first + 64, n)), short_side=64)
    except VideoError as error:
        return replace(look, kind="damaged", detail=error.reason)
    return replace(look, fingerprint=fingerprint(frames[:4]))


def look_again(path: str) -> NDArray[np.uint8] | None:
    """Four frames side by side for the report, or None where that cannot be had."""
    try:
        n = probe(path).num_frames
        return np.concatenate(list(read_frames(path, n * np.arange(1, 8, 2) // 8, short_side=90)), axis=1)
    except VideoError:
        return None


def _digest(path: str) -> tuple[str, bool]:
    """sha256 of its bytes; and False for an MP4 or MOV without "moov", which is written last."""
    digest, head, has_index, tail = hashlib.sha256(), b"", False, b""
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            head, has_index, tail = head or chunk[4:8], has_index or b"moov" in tail + chunk, chunk[-3:]
    return digest.hexdigest(), has_index or head != b"ftyp"


def _stored(path: str) -> tuple[int, float, float]:
    """Frames and seconds that the header promises, 0 where it says nothing; and frames per key frame."""
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert stream is not None  # `probe` has read it
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        if not seconds and not container.streams.audio:  # the file's length is that of its longest stream
            seconds = (container.duration or 0) / av.time_base
        return stream.frames, seconds, len(keys) / max(sum(keys), 1)


def _uneven(times_s: NDArray[np.float64]) -> str:
    """The range of steps in time, if more than one in twenty is far from the usual."""
    steps = np.diff(times_s)
    if len(steps) < 2 or np.mean(abs(steps / np.median(steps) - 1) > 0.5) <= 0.05:
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


# Many files.


def look_at_all(
    paths: Sequence[str],
    state: Path,
    look: Callable[..., Look],
    settings: Settings,
    workers: int,
    timeout_s: float,
) -> dict[str, Look]:
    """A look at each file, from `state` where it is there already; what is new is appended as it comes."""
    from rich.progress import track

    known, looks, todo = _read_state(state), {}, {}
    for path in paths:
        try:
            status = os.stat(path)
            now = (str(settings), status.st_size, status.st_mtime_ns)
        except OSError:
            now = (str(settings), 0, 0)
        before = known.get(path)
        if before and (before.settings, before.size, before.mtime_ns) == now:
            looks[path] = before
        else:
            todo[path] = timeout_s + now[1] / 1e7
            looks[path] = Look(path, now[1], now[2])
    if known:
        print(f"{len(paths) - len(todo):,} of {len(paths):,} files are known from {state}")
    done = 0
    with open(state, "a", encoding="ascii") as file:
        try:
            results = in_children(partial(look, settings=settings), todo, workers)
            for path, found in track(results, "looking", len(todo), disable=not todo):
                if isinstance(found, Failure):
                    found = replace(looks[path], kind=found.kind, detail=found.detail)
                looks[path] = replace(found, settings=str(settings))
                file.write(json.dumps(asdict(looks[path])) + "\n")
                file.flush()
                done += 1
        except KeyboardInterrupt:
            raise UserError(
                f"interrupted; {done:,} of {len(todo):,} looks are kept in {state}: the same command goes on"
            ) from None
    return looks


def _read_state(state: Path) -> dict[str, Look]:
    """The last look at each file. A line that was cut off is ended, and does not count."""
    looks = {}
    text = state.read_text("ascii") if state.exists() else ""
    if text and not text.endswith("\n"):
        state.write_text(text[: text.rfind("\n") + 1], "ascii")
    for line in text.splitlines():
        try:
            look = Look(**json.loads(line))
            looks[look.path] = look
        except (ValueError, TypeError):  # cut off, or another version's
            continue
    return looks


class _Child:
    """A process that does `task` for one file at a time, until it dies or hangs over one."""

    def __init__(self, task: Callable[[str], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # forked decoders can hang
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, task), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()  # until it is ready: a slow start is no file's fault

    def ask(self, path: str, seconds: float) -> Any:
        """The task's result, or a `Failure`."""
        try:
            self.pipe.send(path)
            if self.pipe.poll(seconds):
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Failure("crash", f"the decoder's process died: {name}")
        self.end()
        return Failure("hang", f"no answer within {seconds:.0f} s")

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _serve(pipe: Connection, task: Callable[[str], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    parent = multiprocessing.parent_process()
    assert parent is not None
    # a decoder that hangs must not outlive a parent that was killed
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    pipe.send("ready")
    while True:
        path = pipe.recv()
        try:
            pipe.send(task(path))
        except Exception as error:
            pipe.send(Failure("unreadable", f"{type(error).__name__}: {reason(error)}"))


def in_children(task: Callable[[str], Any], items: Mapping[str, float], workers: int) -> Iterator[tuple[str, Any]]:
    """`task` of each item as it is done, or a `Failure` where the child died over it or took too long."""
    todo, done, lock, ending = iter(items.items()), Queue[Any](), threading.Lock(), threading.Event()
    children: list[_Child] = []

    def drive() -> None:
        child = None
        try:
            while not ending.is_set():
                with lock:
                    item = next(todo, None)
                if item is None:
                    break
                if child is None or not child.process.is_alive():
                    child = _Child(task)
                    children.append(child)
                done.put((item[0], child.ask(*item)))
        except BaseException as error:  # a child that cannot start
            done.put(error)

    for _ in range(min(workers, len(items))):
        threading.Thread(target=drive, daemon=True).start()
    try:
        for _ in items:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        ending.set()
        for child in children:
            child.end()


# What the looks tell together.


def find_problems(
    manifests: Mapping[str, Manifest], classes: Sequence[str], looks: Mapping[str, Look], settings: Settings
) -> tuple[list[Problem], dict[str, set[int]]]:
    """All problems, by kind, and the rows of each split that its clean list leaves out."""
    found: dict[Problem, None] = {}  # a file with many segments has its problems once
    left_out: dict[str, set[int]] = {split: set() for split in manifests}
    first: dict[object, tuple[str, int]] = {}
    for split in sorted(manifests, key=("val", "test", "train").index):  # of copies, the training clip goes
        manifest = manifests[split]
        for row, path in enumerate(manifest.paths.tolist()):
            look = looks[path]
            span = None if manifest.spans_s is None else tuple(manifest.spans_s[row].tolist())
            remarks = _remarks(look, span, settings)
            found |= dict.fromkeys(Problem(path, split, *remark) for remark in remarks)
            if any(kind in BAD for kind, _ in remarks):
                left_out[split].add(row)
            if not look.sha256 or look.kind == "empty":
                continue
            before, at = first.setdefault((look.sha256, span), (split, row))
            if (before, at) != (split, row):
                other = str(manifests[before].paths[at])
                labels = [classes[m.labels[i, 0]] for m, i in ((manifest, row), (manifests[before], at))]
                differ = (
                    f", but there it is {labels[1]!r} and here {labels[0]!r}" if labels[0] != labels[1] else ""
                )
                kind = "duplicate" if before == split else "shared"
                found[Problem(path, split, kind, f"also {before}'s {other}{differ}", other)] = None
                left_out[split] |= {row} if split == "train" else set()
    splits_of: dict[str, list[str]] = {}
    for split, manifest in manifests.items():
        for path in dict.fromkeys(manifest.paths.tolist()):
            splits_of.setdefault(path, []).append(split)
    for one, other, bits in similar(looks):
        is_shared = set(splits_of[one]) != set(splits_of[other])
        detail = f"{bits} of 448 bits differ from {', '.join(splits_of[other])}'s {other}"
        kind = "similar, shared" if is_shared else "similar"
        found[Problem(one, splits_of[one][0], kind, detail, other)] = None
    return sorted(found, key=lambda problem: list(KINDS).index(problem.kind)), left_out


def _remarks(look: Look, span: tuple[float, float] | None, settings: Settings) -> list[tuple[str, str]]:
    """Kind and detail of what is wrong with one clip."""
    if look.kind:
        return [(look.kind, look.detail)]
    if len(look.path.splitlines()) > 1:
        return [("unreadable", "a line break in its name, which no list can hold: rename it")]
    remarks = []
    start, end = span or (0.0, look.seconds)
    frames = round((min(end, look.seconds) - start) * look.fps) if span else look.num_frames
    needed = math.floor((settings.frames - 1) * frame_step(settings.stride, settings.fps, look.fps)) + 1
    if frames <= 0:
        remarks.append(("truncated", f"ends at {look.seconds} s; a segment starts at {start} s"))
    elif frames < needed:
        remarks.append(("short", f"{frames} frames; a clip takes {needed}"))
    n, seconds = look.promised, look.promised_s
    if n and abs(n - look.num_frames) > max(2, 0.02 * n):
        remarks.append(("length", f"the header says {n} frames, {look.num_frames} are shown"))
    elif seconds and abs(seconds - look.seconds) > max(0.5, 0.05 * seconds):
        remarks.append(("length", f"the header says {seconds} s, the frames take {look.seconds} s"))
    by_kind = {"variable rate": look.uneven, "slow seek": look.unsafe}
    if look.rotation:
        by_kind["rotated"] = f"by {look.rotation} degrees"
    return remarks + [(kind, detail) for kind, detail in by_kind.items() if detail]


def similar(looks: Mapping[str, Look]) -> Iterator[tuple[str, str, int]]:
    """Pairs of files, of other bytes but of the same length within a tenth, that look alike; bits that differ."""
    from rich.progress import track

    one_each = list({look.sha256: look for look in looks.values() if look.fingerprint}.values())
    if not one_each:
        return
    bits = np.unpackbits([np.frombuffer(bytes.fromhex(look.fingerprint), np.uint8) for look in one_each], axis=1)
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


def counts_notes(cfg: "DictConfig", splits: Splits, manifests: Mapping[str, Manifest]) -> list[str]:
    """How many clips there are of those published, and how evenly they fall to the classes."""
    name, notes = str(cfg.data.name), []
    published = PUBLISHED.get(name, {})
    if name == "ucf101":
        published = UCF101.get(int(cfg.data.reader.fold), {})
    for split, manifest in manifests.items():
        if split in published:
            notes.append(
                f"{len(manifest):,} of the {published[split]:,} {split} videos that {name} was published with"
            )
        for head, (which, names) in enumerate(splits.classes.items()):
            counts = np.bincount(manifest.labels[:, head], minlength=len(names))
            fewest, most = int(counts.argmin()), int(counts.argmax())
            ratio = f"{counts[most] / counts[fewest]:.1f} to 1" if counts[fewest] else "some have none"
            notes.append(
                f"{split}: {counts[fewest]:,} ({names[fewest]}) to {counts[most]:,} ({names[most]}) clips per "
                f"{which or 'class'}, {ratio}"
            )
    return notes


# What is written.


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="surrogateescape")


def write_clean(
    out: Path, splits: Splits, manifests: Mapping[str, Manifest], left_out: Mapping[str, set[int]], name: str
) -> str:
    """Lists that data=csv reads, with the classes' ids as they were; returns the overrides that read them."""
    if len(splits.classes) > 1 or any(manifest.spans_s is not None for manifest in manifests.values()):
        return ""  # a list of `path label` has neither segments nor two labels
    (names,) = splits.classes.values()
    out.mkdir(exist_ok=True)
    _write(out / "classes.txt", ["id,name", *(f"{i},{_quoted(name)}" for i, name in enumerate(names))])
    words = [f"data=csv data.root={shlex.quote(os.path.abspath(out))}"]
    for split, manifest in manifests.items():
        rows = [row for row in range(len(manifest)) if row not in left_out[split]]
        _write(out / f"{split}.csv", (f"{_quoted(manifest.paths[row])},{manifest.labels[row, 0]}" for row in rows))
        if split == "train" and len(np.unique(manifest.labels[rows])) < len(names):
            words.append("data.reader.classes=classes.txt")  # given so, classes may lack training clips
        if split == "test":
            words.append("data.test=test.csv")
    if "train" not in manifests:
        words.append("data.train=null data.reader.classes=classes.txt")
    return " ".join([*words, *([f"recipe={name}"] if name in PUBLISHED else [])])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def report(
    title: str,
    splits: Splits,
    manifests: Mapping[str, Manifest],
    looks: Mapping[str, Look],
    problems: Sequence[Problem],
    strips: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """The page: notes, histograms, and a table with a contact sheet per kind of problem."""
    parts = [f"<h1>{escape(title)}: {len(looks):,} files</h1>", f"<p>{escape(splits.source)}</p>"]
    parts += [f"<li>{escape(note)}</li>" for note in notes]
    parts.append(f"<h2>Histograms</h2><img src='{_histograms(looks, splits, manifests)}'>")
    for kind, meaning in KINDS.items():
        rows = [problem for problem in problems if problem.kind == kind]
        if rows:
            parts.append(f"<h2>{kind}: {len(rows):,}</h2><p>{escape(meaning)}</p><table>")
            for path, split, _, detail, other in rows[:SHOWN]:
                images = "<br>".join(f"<img src='{_png(strips[p])}'>" for p in (path, other) if p in strips)
                cells = [escape(split), escape(path), escape(detail), images]
                parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
            more = f"<p>and {len(rows) - SHOWN:,} more in problems.csv</p>" if len(rows) > SHOWN else ""
            parts.append(f"</table>{more}")
    style = (
        "body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0;vertical-align:top}img{max-width:100%}"
    )
    return (
        f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title><style>{style}</style>"
        + "\n".join(parts)
    )


def _histograms(looks: Mapping[str, Look], splits: Splits, manifests: Mapping[str, Manifest]) -> str:
    from matplotlib.figure import Figure

    good = [look for look in looks.values() if look.kind not in BAD]
    figure = Figure(figsize=(12, 9), dpi=80, layout="constrained")
    panels = figure.subplots(3, 3).ravel()
    columns: dict[str, list[float]] = {
        "short side, pixels": [min(look.width, look.height) for look in good],
        "width / height": [look.width / look.height for look in good],
        "frames per second": [look.fps for look in good],
        "seconds": [look.seconds for look in good],
        "frames": [look.num_frames for look in good],
        "frames per key frame": [look.gop for look in good],
        "ms to decode a clip": [look.decode_ms for look in good],
    }
    for axis, (name, values) in zip(panels, columns.items(), strict=False):
        axis.hist(values, bins=40)
        axis.set(title=f"{name}: median {np.median(values):g}" if values else name, ylabel="files")
    for axis, (head, names) in zip(panels[len(columns) :], splits.classes.items(), strict=False):
        for split, manifest in manifests.items():
            column = list(splits.classes).index(head)
            axis.plot(np.sort(np.bincount(manifest.labels[:, column], minlength=len(names)))[::-1], label=split)
        axis.set(title=f"clips per {head or 'class'}", xlabel="classes, the largest first", ylim=(0, None))
        axis.legend()
    for axis in panels[len(columns) + len(splits.classes) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return _data_url(buffer)


def _png(pixels: NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return _data_url(buffer)


def _data_url(png: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
