"""Frames of a video file: exactly those asked for, or one `VideoError`. Nothing else knows decord or PyAV.

decord reads the files in which it finds the right frames; PyAV reads the others. decord counts frames where it
should compare time stamps (dmlc/decord, src/video/video_reader.cc: IndexKeyframes, SkipFramesImpl). So in open
GOPs, behind edit lists and among B-frames of AVI files it returns wrong frames without an error, or never returns.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
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

from vivit_train.errors import VideoError

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
        times_s: when each frame is shown, in seconds from the first: float64 [num_frames].
    """

    num_frames: int
    fps: float
    width: int
    height: int
    rotation: int
    codec: str
    seek_safe: bool
    reason: str
    times_s: NDArray[np.float64]


class _Packet(NamedTuple):
    pts: int | None  # when its frame is shown, in the stream's own unit, as all times below that do not end in _s
    end: int  # when the next one is shown
    is_key: bool
    is_clean: bool  # False for a key frame across which later frames refer to earlier ones, as in open GOPs
    is_hidden: bool  # to be decoded and not shown: outside the edit list


class _Scan(NamedTuple):
    """What one pass over a file finds."""

    info: VideoInfo
    frames: dict[int, int]  # number of the frame shown at each time, ascending; empty: count from the file's start
    keys: list[int]  # times of the key frames, ascending, hidden ones too


def probe(path: StrPath) -> VideoInfo:
    """Number, size and times of a video's frames, from its packets: of the frames, only the first is decoded.

    Where packets do not tell which frames are shown, all are decoded and counted. Results are kept for 4096 files.

    Raises:
        VideoError: the file is missing, damaged or no video.
    """
    return _scan_file(path).info


def read_frames(
    path: StrPath, indices: Sequence[int] | NDArray[np.int64], *, short_side: int | None = None
) -> NDArray[np.uint8]:
    """The frames asked for, upright, in the order asked for: uint8 RGB [T, H, W, 3].

    Args:
        path: the video.
        indices: T frame numbers in [0, num_frames), in any order; they may repeat.
        short_side: a larger short side is scaled down to this, the long side in proportion.

    Raises:
        VideoError: the file is missing, damaged before the last of these frames, or no video.
        ValueError: there are no indices, or the video has no such frame.
    """
    scan = _scan_file(path)
    info, asked = scan.info, np.asarray(indices, dtype=np.int64)
    if not (asked.size and asked.min() >= 0 and asked.max() < info.num_frames):
        raise ValueError(f"frames {asked.tolist()} asked of {path}, which has frames 0 to {info.num_frames - 1}")
    shrink = min(1.0, (short_side or np.inf) / min(info.width, info.height))
    size = round(info.width * shrink), round(info.height * shrink)
    wanted, places = np.unique(asked, return_inverse=True)
    frames = _read_decord(os.fspath(path), info, wanted, size) if info.seek_safe else None
    if frames is None:
        frames = _read_pyav(os.fspath(path), scan, wanted.tolist(), size)
    return frames if np.array_equal(asked, wanted) else frames[places]


def _scan_file(path: StrPath) -> _Scan:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise VideoError(os.fspath(path), "file does not exist") from error
    except OSError as error:
        raise VideoError(os.fspath(path), error.strerror or str(error)) from error
    if S_ISDIR(status.st_mode):
        raise VideoError(os.fspath(path), "is a directory")
    if status.st_size == 0:
        raise VideoError(os.fspath(path), "file is empty (0 bytes)")
    return _scan(os.fspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _scan(path: str, mtime_ns: int, num_bytes: int, why_count: str = "") -> _Scan:
    """Scan one state of a file. `why_count`: why frames must be counted by decoding them, if that is known."""
    packets, decoded, first = [], [], None
    with _open(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        why_count = why_count or _why_count(container.format.name, codec, stream.codec_context.has_b_frames)
        for packet in container.demux(stream):
            if packet.size:
                end, is_key = (packet.pts or 0) + (packet.duration or 0), packet.is_keyframe
                is_clean = not is_key or _is_clean(codec, bytes(packet))
                packets.append(_Packet(packet.pts, end, is_key, is_clean, packet.is_discard))
            if why_count or first is None:
                for frame in packet.decode():
                    first = first or frame
                    decoded.append(frame.pts)
        unit, promised, duration = float(stream.time_base or 0), stream.frames, stream.duration or 0
        rate = float(stream.average_rate or stream.guessed_rate or 25)  # FFmpeg's own default
    stored = sorted({packet.pts for packet in packets if packet.pts is not None})
    keys = sorted(packet.pts for packet in packets if packet.is_key and packet.pts is not None)
    if not why_count and (len(stored) < len(packets) or not keys):
        return _scan(path, mtime_ns, num_bytes, "packets without times of their own, or without a key frame")

    # A trimmed file, too, may hold fewer packets than its header promises, but not a shorter time.
    if len(packets) < promised and stored and max(packet.end for packet in packets) - stored[0] < duration:
        raise VideoError(path, f"ends after {len(packets)} of {promised} frames")
    if why_count:
        shown = sorted({time for time in decoded if time is not None})
        num_frames = len(decoded)
    else:  # frames before the first key frame are not shown: those they refer to were cut away
        hidden = {packet.pts for packet in packets if packet.is_hidden}
        shown = [time for time in stored if time not in hidden and time >= keys[0]]
        num_frames = len(shown)
    if first is None or num_frames == 0:
        raise VideoError(path, "no frame of it can be decoded")
    times_s = (np.array(shown) - shown[0]) * unit if len(shown) == num_frames else np.arange(num_frames) / rate
    times_s.setflags(write=False)  # every caller gets the same array
    mean = (num_frames - 1) / float(times_s[-1]) if num_frames > 1 else rate
    rotation = round(first.rotation / 90) * 90 % 360
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    reason = why_count or _decord_fault(packets, codec, rotation)
    fps = rate if abs(rate / mean - 1) < 0.02 else mean
    info = VideoInfo(num_frames, fps, width, height, rotation, codec, not reason, reason, times_s)
    return _Scan(info, {} if why_count else {time: number for number, time in enumerate(shown)}, keys)


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


def _decord_fault(packets: list[_Packet], codec: str, rotation: int) -> str:
    """Why decord would return wrong frames, or none; "" where it returns the right ones."""
    rank = {pts: number for number, pts in enumerate(sorted(packet.pts or 0 for packet in packets))}
    if any(packet.is_hidden for packet in packets):
        return "edit list: some frames are not shown"
    if any(p.is_key and (not p.is_clean or rank[p.pts or 0] != number) for number, p in enumerate(packets)):
        return "open GOP: frames refer to others across a key frame"
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


def _read_pyav(path: str, scan: _Scan, wanted: list[int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames `wanted` (ascending), uint8 [T, height, width, 3]: each from the key frame before it, by time."""
    width, height = reversed(size) if scan.info.rotation % 180 else size
    frames = np.empty((len(wanted), size[1], size[0], 3), np.uint8)
    place = {number: i for i, number in enumerate(wanted)}
    times = list(scan.frames)
    to_rgb = partial(VideoReformatter().reformat, width=width, height=height, format="rgb24", threads=1)

    def key_before(number: int) -> int | None:
        return scan.keys[bisect_right(scan.keys, times[number]) - 1] if times else None

    def decode_from(key: int | None, missing: set[int]) -> None:
        last = max(missing)
        if key is not None:
            container.seek(key, stream=stream)
        for count, frame in enumerate(container.decode(stream)):
            number = count if key is None else scan.frames.get(frame.pts, -1)  # type: ignore[arg-type]
            if number in missing:
                rgb = to_rgb(frame, interpolation="BICUBIC").to_ndarray()  # decord's interpolation
                frames[place[number]] = np.rot90(rgb, scan.info.rotation // 90)
                missing.remove(number)
            if number >= last:
                break

    with _open(path) as (container, stream):
        for key, numbers in groupby(wanted, key_before):
            missing = set(numbers)
            decode_from(key, missing)
            if missing and key is not None:  # where GOPs are shorter than B-frames reach, a seek may land behind
                decode_from(scan.keys[0], missing)
            if missing:
                raise VideoError(path, f"frame {min(missing)} of {scan.info.num_frames} cannot be decoded")
    return frames


@cache
def _decord() -> Any:
    """The module, or None: it has no build for some platforms."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read_decord(
    path: str, info: VideoInfo, wanted: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.uint8] | None:
    """The same by decord; None where it is missing, fails, or sees other frames than `probe`."""
    decord = _decord()
    if decord is None:
        return None
    try:
        # A new reader for each call: one that is kept decodes ahead without bound, and dies at the first error.
        reader = decord.VideoReader(f"file:{path}", decord.cpu(0), *size, num_threads=1)
        if len(reader) != info.num_frames:
            return None
        start_s = reader.get_frame_timestamp(np.arange(info.num_frames))[:, 0]
        if not np.allclose(start_s - start_s[0], info.times_s, atol=1e-3):
            return None
        return reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError):
        return None
