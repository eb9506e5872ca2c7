"""Frames of a video file: exactly those asked for, or one `VideoError`. Nothing else knows a decoder.

decord reads the files in which it finds the right frames; PyAV reads the others. decord counts frames where it
should compare time stamps (dmlc/decord, src/video/video_reader.cc: IndexKeyframes, SkipFramesImpl). So in open
GOPs, behind edit lists and among B-frames of AVI files it returns wrong frames without an error, or never returns.
PyAV and torchcodec are sought by time.
"""

import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import groupby
from stat import S_ISDIR
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vivit_train.errors import UserError, VideoError, reason

DECODERS = ("auto", "decord", "pyav", "torchcodec")
LONG = 2000  # frames; decord reads every packet of a file at each opening, PyAV only those that it decodes
CACHE_BYTES = 64 << 20
HUNG = 75  # exit code of a process whose decoder did not come back: EX_TEMPFAIL of sysexits.h

# Containers in which a seek finds the key frame it is sent to. In FLV, WMV and MPEG-TS it may land behind it.
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a player shows of a video.

    Attributes:
        num_frames: frames shown; an edit list may hide some that are stored.
        fps: frames per second: the header's, or the mean where the frames contradict it.
        width: in pixels, after rotation; pixels count as square.
        height: likewise.
        rotation: degrees by which stored frames are turned counter-clockwise to be shown: 0, 90, 180 or 270.
        codec: FFmpeg's name, such as "h264".
        seek_safe: whether decord finds the right frames.
        reason: why not; "" where it does.
        steps: from each frame to the next one, in units: unsigned integers [num_frames - 1], as small as will do.
        unit_s: seconds.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    rotation: int
    codec: str
    seek_safe: bool
    reason: str
    steps: NDArray[np.unsignedinteger[Any]]
    unit_s: float

    @property
    def times(self) -> NDArray[np.int64]:
        """When each frame is shown, in units from the first: [num_frames]."""
        return np.concatenate(([0], np.cumsum(self.steps, dtype=np.int64)))

    @property
    def times_s(self) -> NDArray[np.float64]:
        return np.multiply(self.times, self.unit_s, dtype=np.float64)


class _Scan(NamedTuple):
    """What one pass over a file finds. Times are in the stream's own unit."""

    info: VideoInfo
    start: int | None  # when the first frame is shown; None: frames must be counted from the file's start
    keys: NDArray[np.int64]  # times of the key frames, ascending, hidden ones too

    @property
    def num_bytes(self) -> int:
        return 1500 + self.info.steps.nbytes + self.keys.nbytes  # what a short video takes, and its tables


_Reader = Callable[[str, _Scan, NDArray[np.int64], tuple[int, int]], NDArray[np.uint8]]
UNKNOWN = -(2**63)  # a packet's time


def probe(path: StrPath) -> VideoInfo:
    """Number, size and times of a video's frames, from its packets: of the frames, only the first is decoded.

    Where packets do not tell which frames are shown, all are decoded and counted. The results used last are kept,
    up to `CACHE_BYTES`: all of EPIC-KITCHENS-100, about 2 bytes a frame, or forty thousand short videos.

    Raises:
        VideoError: the file is missing, damaged or no video.
    """
    return _scan_file(path).info


def read_frames(
    path: StrPath,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    short_side: int | None = None,
    decoder: str = "auto",
) -> NDArray[np.uint8]:
    """The frames asked for, upright, in the order asked for: uint8 RGB [T, H, W, 3].

    Args:
        path: the video.
        indices: T frame numbers in [0, num_frames), in any order; they may repeat.
        short_side: a larger short side is scaled down to this, the long side in proportion.
        decoder: one of `DECODERS`. "auto" takes decord for short videos where it is right, PyAV for all others.
            "pyav" reads every video; "decord" and "torchcodec" refuse those where they would return other frames.
            torchcodec scales bilinearly, the others bicubically.

    Raises:
        VideoError: the file is missing, damaged before the last of these frames, no video, or refused.
        UserError: there is no such decoder, or it is not installed.
        ValueError: there are no indices, or the video has no such frame.
    """
    read, scan = _reader(decoder), _scan_file(path)
    info, asked = scan.info, np.asarray(indices, dtype=np.int64)
    if not (asked.size and asked.min() >= 0 and asked.max() < info.num_frames):
        raise ValueError(f"frames {asked.tolist()} asked of {path}, which has frames 0 to {info.num_frames - 1}")
    shrink = min(1.0, (short_side or np.inf) / min(info.width, info.height))
    size = round(info.width * shrink), round(info.height * shrink)
    wanted, places = np.unique(asked, return_inverse=True)
    frames = None
    if decoder == "auto" and info.seek_safe and info.num_frames <= LONG:
        with suppress(UserError):  # decord is missing, or cannot read it
            frames = _read_decord(os.fspath(path), scan, wanted, size)
    frames = read(os.fspath(path), scan, wanted, size) if frames is None else frames
    return frames if np.array_equal(asked, wanted) else frames[places]


def import_decoder(name: str) -> None:
    """Imports a decoder: in the main process, before workers start, it costs once and says at once what is amiss.

    Raises:
        UserError: there is no such decoder, or it is not installed.
    """
    _reader(name)
    if name in ("decord", "torchcodec") or (name == "auto" and find_spec("decord")):
        _torchcodec() if name == "torchcodec" else _decord()


def _reader(decoder: str) -> _Reader:
    readers = dict(zip(DECODERS, (_read_pyav, _read_decord, _read_pyav, _read_torchcodec), strict=True))
    if decoder not in readers:
        raise UserError(f"data.decoder={decoder} is none of {', '.join(DECODERS)}")
    return readers[decoder]


@contextmanager
def deadline(seconds: float, path: StrPath, log: StrPath | None = None) -> Iterator[None]:
    """Ends this process, with exit code `HUNG`, where reading a video takes longer.

    A decoder that hangs lets no signal through and cannot be stopped, but other threads run. What they say is the
    text of a `VideoError`, one line, on stderr and at the end of the file `log`.

    Args:
        seconds: 0 for no limit.
    """

    def give_up() -> None:
        line = f"{VideoError(os.fspath(path), f'its decoder has not come back after {seconds:g} s')}\n"
        try:
            os.write(2, line.encode(errors="backslashreplace"))
            if log is not None:
                with open(log, "a", errors="backslashreplace") as file:
                    file.write(line)
        finally:
            os._exit(HUNG)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _scan_file(path: StrPath) -> _Scan:
    try:
        status = os.stat(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise VideoError(os.fspath(path), "file does not exist" if missing else reason(error)) from error
    if S_ISDIR(status.st_mode) or not status.st_size:
        raise VideoError(
            os.fspath(path), "is a directory" if S_ISDIR(status.st_mode) else "file is empty (0 bytes)"
        )
    return _scans.get(os.fspath(path), status.st_mtime_ns, status.st_size)


class _Scans:
    """The scans used last, by the state of their file."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, int], _Scan] = {}  # the one used last at its end
        self.num_bytes = 0

    def get(self, *state: *tuple[str, int, int]) -> _Scan:
        scan = self.kept.pop(state, None)
        if scan is None:
            scan = _scan(state[0])
            self.num_bytes += scan.num_bytes
        self.kept[state] = scan
        while self.num_bytes > CACHE_BYTES:
            self.num_bytes -= self.kept.pop(next(iter(self.kept))).num_bytes
        return scan


_scans = _Scans()


def _scan(path: str, why_count: str = "") -> _Scan:
    """Scan a file. `why_count`: why frames must be counted by decoding them, if that is known."""
    pts, is_key, is_shared, is_hidden = array("q"), bytearray(), bytearray(), bytearray()
    decoded, first, end = [], None, 0
    with _open(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        why_count = why_count or _why_count(container.format.name, codec, stream.codec_context.has_b_frames)
        for packet in container.demux(stream):
            if packet.size:
                pts.append(UNKNOWN if packet.pts is None else packet.pts)
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
                is_key.append(packet.is_keyframe)
                is_shared.append(packet.is_keyframe and not _is_clean(codec, bytes(packet)))
                is_hidden.append(packet.is_discard)  # to be decoded and not shown: outside the edit list
            if why_count or first is None:
                for frame in packet.decode():
                    first = first or frame
                    decoded.append(frame.pts)
        unit_s, promised, duration = float(stream.time_base or 0), stream.frames, stream.duration or 0
        rate = float(stream.average_rate or stream.guessed_rate or 25)  # FFmpeg's own default
    time, (key, shared, hidden) = np.array(pts, np.int64), np.array([is_key, is_shared, is_hidden], np.bool_)
    stored, keys = np.unique(time[time != UNKNOWN]), np.unique(time[key & (time != UNKNOWN)])
    if not why_count and (len(stored) < len(time) or not len(keys)):
        return _scan(path, "packets without times of their own, or without a key frame")

    # A trimmed file, too, may hold fewer packets than its header promises, but not a shorter time.
    if len(time) < promised and len(stored) and end - stored[0] < duration:
        raise VideoError(path, f"ends after {len(time)} of {promised} frames")
    if why_count:
        shown = np.unique(np.array([pts for pts in decoded if pts is not None], np.int64))
        num_frames = len(decoded)
    else:  # frames before the first key frame are not shown: those they refer to were cut away
        shown = np.setdiff1d(stored[stored >= keys[0]], time[hidden])
        num_frames = len(shown)
    if first is None or num_frames == 0:
        raise VideoError(path, "no frame of it can be decoded")
    if len(shown) < num_frames or not unit_s:
        shown, unit_s = np.arange(num_frames), 1 / rate
    steps = np.diff(shown)
    mean = (num_frames - 1) / (float(shown[-1] - shown[0]) * unit_s) if num_frames > 1 else rate
    rotation = round(first.rotation / 90) * 90 % 360
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    # in decoding order, a key frame of an open GOP comes before frames that are shown before it
    is_open = key & (shared | (np.searchsorted(np.sort(time), time) != np.arange(len(time))))
    is_short = len(time) < promised
    fault = why_count or _decord_fault(bool(hidden.any()), bool(is_open.any()), is_short, codec, rotation)
    fps = rate if abs(rate / mean - 1) < 0.02 else mean
    compact = steps.astype(np.min_scalar_type(int(steps.max(initial=0))))
    info = VideoInfo(num_frames, fps, width, height, rotation, codec, not fault, fault, compact, unit_s)
    return _Scan(info, None if why_count else int(shown[0]), keys)


def _why_count(container: str, codec: str, has_b_frames: bool) -> str:
    """Why packets do not tell which frames are shown; "" where they do."""
    if container not in INDEXED:
        return f"{container} files have no dependable index"
    if container == "avi" and (has_b_frames or codec in ("h264", "hevc")):
        return "AVI with B-frames: it stores when frames are decoded, not when they are shown"
    if codec == "mpeg4" and has_b_frames:
        return "MPEG-4 with B-frames, which may share packets"
    return ""


def _is_clean(codec: str, key_packet: bytes) -> bool:
    """Whether a key frame is an IDR, across which nothing may refer. Codecs that have no IDR pass.

    Reads the types of its NAL units (H.264 and H.265, section 7.3.1), each of which follows 4 bytes of length.
    """
    if codec not in ("h264", "hevc"):
        return True
    at = 0
    while at + 4 < len(key_packet):
        kind = key_packet[at + 4] & 31 if codec == "h264" else key_packet[at + 4] >> 1 & 63
        if kind in ((5,) if codec == "h264" else (19, 20)):
            return True
        at += 4 + int.from_bytes(key_packet[at : at + 4])
    return False


def _decord_fault(is_cut: bool, is_open: bool, is_short: bool, codec: str, rotation: int) -> str:
    """Why decord would return wrong frames, or none; "" where it returns the right ones."""
    if is_cut:
        return "edit list: some frames are not shown"
    if is_open:
        return "open GOP: frames refer to others across a key frame"
    if is_short:
        return (
            "fewer frames than its header promises: decord believes it, and may end the process for want of memory"
        )
    if codec == "av1":
        return "AV1, for which decord has no decoder"
    if rotation:
        return "rotated: decord misplaces the rows of scaled frames"
    return ""


@contextmanager
def _open(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream for PyAV; what FFmpeg raises meanwhile becomes a `VideoError`."""
    try:
        container = av.open(f"file:{path}", metadata_errors="ignore")  # "file:", as names may contain colons
    except av.FFmpegError as error:
        raise VideoError(path, f"not a video file that FFmpeg can read ({error.strerror})") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise VideoError(path, "no video stream")
        if stream.codec_context is None:
            raise VideoError(path, "FFmpeg has no decoder for its codec")
        stream.codec_context.thread_count = 1  # workers are the parallelism; PyAV's threads can hang after a fork
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise VideoError(path, f"damaged ({error.strerror})") from error


def _read_pyav(path: str, scan: _Scan, wanted: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames `wanted` (ascending), uint8 [T, height, width, 3]: each from the key frame before it, by time."""
    width, height = reversed(size) if scan.info.rotation % 180 else size
    frames = np.empty((len(wanted), size[1], size[0], 3), np.uint8)
    to_rgb = partial(VideoReformatter().reformat, width=width, height=height, format="rgb24", threads=1)
    times, keys = wanted, np.zeros_like(wanted)  # counted frames: their numbers stand for their times
    if scan.start is not None:
        times = scan.start + scan.info.times[wanted]
        keys = scan.keys[np.searchsorted(scan.keys, times, side="right") - 1]

    def decode_from(key: int, missing: dict[int, int]) -> None:
        last = max(missing)
        if scan.start is not None:
            container.seek(key, stream=stream)
        for count, frame in enumerate(container.decode(stream)):
            time = count if scan.start is None else frame.pts
            if time in missing:
                rgb = to_rgb(frame, interpolation="BICUBIC").to_ndarray()  # decord's interpolation
                frames[missing.pop(time)] = np.rot90(rgb, scan.info.rotation // 90)
            if time is not None and time >= last:
                break

    with _open(path) as (container, stream):
        for key, group in groupby(
            zip(keys.tolist(), times.tolist(), range(len(wanted)), strict=True), lambda g: g[0]
        ):
            missing = {time: place for _, time, place in group}
            decode_from(key, missing)
            if (
                missing and scan.start is not None
            ):  # where GOPs are shorter than B-frames reach, a seek may land behind
                decode_from(int(scan.keys[0]), missing)
            if missing:
                number = wanted[min(missing.values())]
                raise VideoError(path, f"frame {number} of {scan.info.num_frames} cannot be decoded")
    return frames


@cache
def _decord() -> Any:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise UserError(
            "data.decoder=decord: pip install decord, or decord2 on ARM; or data.decoder=pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read_decord(path: str, scan: _Scan, wanted: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The same by decord."""
    decord, info = _decord(), scan.info
    if not info.seek_safe:
        raise VideoError(path, f"decord would return wrong frames ({info.reason}); data.decoder=auto reads it")
    try:
        # A new reader for each call: one that is kept decodes ahead without bound, and dies at the first error.
        reader = decord.VideoReader(f"file:{path}", decord.cpu(0), *size, num_threads=1)
        found_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        _compare(path, "decord", found_s - found_s[:1], info, np.arange(info.num_frames))
        return reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        why = reason(error)
    finally:
        reader = None
    # Not from that error: its traceback would keep the reader, and a fork that inherits one hangs when freeing it.
    raise VideoError(path, f"decord cannot read it ({why})")


@cache
def _torchcodec() -> Any:
    try:
        import torchcodec.decoders
        import torchcodec.transforms
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"data.decoder=torchcodec: pip install 'vivit-train[torchcodec]' ({reason(error)})"
        ) from error
    if torchcodec.ffmpeg_major_version is None:
        raise UserError("data.decoder=torchcodec: it finds no FFmpeg 4 to 9 on this system: apt install ffmpeg")
    return torchcodec


def _read_torchcodec(
    path: str, scan: _Scan, wanted: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The same by torchcodec."""
    torchcodec, info = _torchcodec(), scan.info
    if scan.start is None:
        raise VideoError(path, f"torchcodec may return wrong frames ({info.reason}); data.decoder=auto reads it")
    scale = [] if size == (info.width, info.height) else [torchcodec.transforms.Resize(size[::-1])]
    try:
        reader = torchcodec.decoders.VideoDecoder(
            f"file:{path}", dimension_order="NHWC", num_ffmpeg_threads=1, transforms=scale
        )
        batch = reader.get_frames_at(wanted.tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(path, f"torchcodec cannot read it ({reason(error)})") from error
    found_s = batch.pts_seconds.numpy() - reader.metadata.begin_stream_seconds
    _compare(path, "torchcodec", found_s, info, wanted)
    return batch.data.numpy()


def _compare(
    path: str, decoder: str, found_s: NDArray[np.floating[Any]], info: VideoInfo, numbers: NDArray[np.int64]
) -> None:
    """Whether a decoder's times are those of these frames: nearer to them than to the next."""
    tolerance_s = info.unit_s * float(info.steps.min() if info.steps.size else 1) / 2
    if not (found_s.shape == numbers.shape and (np.abs(found_s - info.times_s[numbers]) < tolerance_s).all()):
        raise VideoError(
            path, f"{decoder} finds other frames in it than its packets hold; data.decoder=auto reads it"
        )
