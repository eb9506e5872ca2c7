"""Scans a video's packets for the presentation times of its frames, and probes its display properties."""

import os
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av import Packet, VideoCodecContext, VideoFrame

from vivit_train.data.video import index, storage
from vivit_train.data.video.container import MAX_PIXELS, open_video
from vivit_train.data.video.index import MAX_FPS, Scan, Timeline
from vivit_train.utils.errors import VideoError, reason

CACHE_BYTES = 64 << 20
# In these containers, a seek lands on the requested key frame. In FLV, WMV and MPEG-TS, it may land after it.
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoInfo(Timeline):
    """The display properties of a video, as a player shows it.

    Attributes:
        width: The width in pixels after rotation. Pixels are taken as square.
        height: The height in pixels after rotation.
        rotation: The counterclockwise rotation of stored frames for display, in degrees: 0, 90, 180 or 270.
        codec: The codec's name in FFmpeg, for example "h264".
        seek_safe: Whether decord finds the right frames.
        reason: The reason why decord does not find the right frames; "" if it does.
        sequential_only: Whether each read must count frames from the start, which is slow; `reason` says why.
        header_num_frames: The number of frames according to the header; 0 if the header has none.
        promised_s: The duration according to the header, in seconds; 0 if the header has none.
        gop: The mean number of stored frames per key frame.
    """

    width: int
    height: int
    rotation: int
    codec: str
    seek_safe: bool
    reason: str
    sequential_only: bool
    header_num_frames: int
    promised_s: float
    gop: float


class StreamShape(NamedTuple):
    """The width and height of displayed frames in pixels, and their counterclockwise rotation in degrees."""

    width: int
    height: int
    rotation: int

    @classmethod
    def of(cls, frame: VideoFrame) -> "StreamShape":
        """Returns the shape of a decoded frame after rotation."""
        rotation = round(frame.rotation / 90) * 90 % 360
        size = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
        return cls(*size, rotation)

    def scaled(self, short_side: int | None) -> tuple[int, int]:
        """Returns the width and height after scaling the short side down to at most `short_side` pixels."""
        shrink = min(1.0, (short_side or np.inf) / min(self.width, self.height))
        return round(self.width * shrink), round(self.height * shrink)


UNKNOWN = -(2**63)  # the pts of a packet that has none
PICTURES = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG": "png", b"RIFF": "webp"}  # first bytes -> FFmpeg's decoder
PICTURES_PER_SECOND = 30.0  # the assumed frame rate of a folder of pictures


def timeline(path: StrPath, stored: Path | None = None) -> Timeline:
    """Returns the timeline of a video from its packets, without decoding frames.

    If the packets do not show which frames are displayed, all frames are decoded and counted. A cache of
    `CACHE_BYTES` keeps the most recently used results. It has room for all of EPIC-KITCHENS-100, at about 2 bytes
    per frame, or for forty thousand short videos.

    Args:
        path: The path of the video.
        stored: A database from `index.write`. Its scan is used if the file has not changed since.

    Raises:
        VideoError: If the file is missing, damaged or no video.
    """
    return scan_file(path, stored).timeline


def packed_scan(path: StrPath) -> bytes:
    """Returns the packed scan of a video, as `index.write` stores it.

    Raises:
        VideoError: If the file is missing, damaged or no video.
    """
    return index.pack(scan_file(path))


def probe(path: StrPath) -> VideoInfo:
    """Scans a video's packets, decodes its first frame and returns its display properties.

    Raises:
        VideoError: If the file is missing, damaged or no video.
    """
    scan, (shape, codec) = scan_file(path), _first_frame(os.fspath(path), storage.state(os.fspath(path)))
    decord_unsafe = scan.decord_unsafe or (
        "rotated: decord misplaces the rows of scaled frames" if shape.rotation else ""
    )
    return VideoInfo(
        num_frames=scan.timeline.num_frames,
        fps=scan.timeline.fps,
        pts_deltas=scan.timeline.pts_deltas,
        time_base=scan.timeline.time_base,
        width=shape.width,
        height=shape.height,
        rotation=shape.rotation,
        codec=codec,
        seek_safe=not decord_unsafe,
        reason=decord_unsafe,
        sequential_only=scan.start is None and not scan.is_folder,
        header_num_frames=scan.header_num_frames,
        promised_s=scan.promised_s,
        gop=scan.gop,
    )


def scan_file(path: StrPath, stored: Path | None = None) -> Scan:
    """Returns the scan of a video from the cache, from the database `stored` or from its packets."""
    found = storage.state(os.fspath(path))
    if not (found.size or found.is_folder):
        raise VideoError(os.fspath(path), "file is empty (0 bytes)", kind="empty")
    return _scans.get((os.fspath(path), found.version, found.size), stored)


class _Scans:
    """A cache of the most recently used scans, by path, version and size of the file."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, int], Scan] = {}  # the most recently used scan comes last
        self.num_bytes = 0

    def get(self, state: tuple[str, int, int], stored: Path | None) -> Scan:
        scan = self.kept.pop(state, None)
        if scan is None:
            scan = (index.read(stored, *state) if stored else None) or _scan(state[0])
            self.num_bytes += scan.num_bytes
        self.kept[state] = scan
        while self.num_bytes > CACHE_BYTES:
            self.num_bytes -= self.kept.pop(next(iter(self.kept))).num_bytes
        return scan


_scans = _Scans()


def _scan(path: str, why_count: str = "") -> Scan:
    """Scans a file.

    Args:
        path: The path of the video.
        why_count: The reason why frames must be counted by decoding them; "" if none is known yet.
    """
    if storage.state(path).is_folder:
        return _scan_pictures(path)
    pts, durations, is_key, is_hidden = array("q"), array("q"), bytearray(), bytearray()
    decoded: list[int | None] = []
    is_open = began = False
    with open_video(path, leave_open=True) as (container, stream):
        context = stream.codec_context
        codec = context.codec.canonical_name
        why_count = why_count or _why_count(container.format.name, codec)
        for packet in container.demux(stream):
            if packet.size:
                pts.append(UNKNOWN if (at := packet.pts) is None else at)
                durations.append(packet.duration or 0)
                is_key.append(packet.is_keyframe)
                # The edit list hides the frame, which is decoded but not shown.
                is_hidden.append(packet.is_discard)
                if packet.is_keyframe:
                    is_open = is_open or not _is_idr(codec, memoryview(packet))
            if why_count:
                decoded += (frame.pts for frame in context.decode(packet))
            elif codec == "mpeg4" and not began:  # `has_b_frames` is known only after the first frame is decoded
                began = bool(context.decode(packet))
        time_base, promised, duration = float(stream.time_base or 0), stream.frames, stream.duration or 0
        promised_s = duration * time_base
        # The container's duration is that of its longest stream.
        if not promised_s and not container.streams.audio:
            promised_s = (container.duration or 0) / av.time_base
        rate = float(stream.average_rate or stream.guessed_rate or 25)  # FFmpeg's default is 25 fps
        why_not = _why_count(container.format.name, codec, context.has_b_frames)
    time, length = np.frombuffer(pts, np.int64), np.frombuffer(durations, np.int64)
    key, hidden = np.frombuffer(is_key, np.bool_), np.frombuffer(is_hidden, np.bool_)
    has_time = time != UNKNOWN
    stored, keys = np.sort(time[has_time]), np.sort(time[key & has_time])
    if len(stored) < len(time) or not np.diff(stored).all() or not len(keys):
        why_not = why_not or "packets without a unique pts, or no key frame"
    if why_not and not why_count:
        return _scan(path, why_not)

    # A trimmed file may also contain fewer packets than its header claims, but then its duration is not shorter.
    is_short = len(time) < promised
    if is_short and len(stored) and (time + length)[has_time].max() - stored[0] < duration:
        raise VideoError(path, f"ends after {len(time)} of {promised} frames", kind="truncated")
    if why_count:
        shown = np.unique(np.array([pts for pts in decoded if pts is not None], np.int64))
        num_frames = len(decoded)
    else:  # frames before the first key frame refer to frames that were cut away, so they are not shown
        shown = stored[stored >= keys[0]]
        shown = np.setdiff1d(shown, time[hidden]) if hidden.any() else shown
        num_frames = len(shown)
    if num_frames == 0:
        raise VideoError(path, "no frame can be decoded")
    if len(shown) < num_frames or not time_base:
        shown, time_base = np.arange(num_frames), 1 / rate
    pts_deltas = np.diff(shown)
    mean = (num_frames - 1) / (float(shown[-1] - shown[0]) * time_base) if num_frames > 1 else rate
    # In decoding order, the key frame of an open GOP precedes frames that are displayed before it.
    is_open = is_open or bool((np.searchsorted(stored, time[key]) != np.flatnonzero(key)).any())
    decord_unsafe = why_count or _decord_fault(bool(hidden.any()), is_open, is_short, codec)
    fps = rate if abs(rate / mean - 1) < 0.02 else mean
    if not 0 < fps <= MAX_FPS:
        raise VideoError(path, f"claims {fps:,.6g} frames per second; the header is damaged", kind="damaged")
    compact = pts_deltas.astype(np.min_scalar_type(int(pts_deltas.max(initial=0))))
    return Scan(
        Timeline(num_frames=num_frames, fps=fps, pts_deltas=compact, time_base=time_base),
        start=None if why_count else int(shown[0]),
        keys=keys,
        decord_unsafe=decord_unsafe,
        header_num_frames=promised,
        promised_s=promised_s,
        gop=len(time) / max(int(key.sum()), 1),
    )


def stream_shape(path: str) -> StreamShape:
    """Returns the shape of a video's first frame."""
    return _first_frame(path, storage.state(path))[0]


@lru_cache(maxsize=10_000)
def _first_frame(path: str, state: storage.State) -> tuple[StreamShape, str]:
    """Returns the shape of the first frame and the codec; `state` makes the cache notice changed files."""
    if state.is_folder:
        picture, codec = read_picture(path, storage.pictures(path)[0])
        return StreamShape.of(picture), codec
    scan = scan_file(path)
    with open_video(path, reuse=scan.start is not None) as (container, stream):
        if scan.start is not None:
            container.seek(int(scan.keys[0]), stream=stream)
        for frame in container.decode(stream):
            return StreamShape.of(frame), stream.codec_context.codec.canonical_name
    raise VideoError(path, "no frame can be decoded")


def _why_count(container: str, codec: str, has_b_frames: bool = False) -> str:
    """Returns the reason why packets do not show which frames are displayed, or "" if they do."""
    if container not in INDEXED:
        return f"{container} files have no reliable index"
    if container == "avi" and (has_b_frames or codec in ("h264", "hevc")):
        return "AVI with B-frames: the file stores decoding times, not presentation times"
    if codec == "mpeg4" and has_b_frames:
        return "MPEG-4 with B-frames: several frames may share a packet"
    return ""


def _is_idr(codec: str, key_packet: memoryview) -> bool:
    """Returns whether a key frame is an IDR frame, across which no frame may refer; True for codecs without IDR.

    It reads the types of the NAL units (H.264 and H.265, section 7.3.1), each of which follows a 4-byte length.
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


def _decord_fault(is_cut: bool, is_open: bool, is_short: bool, codec: str) -> str:
    """Returns the reason why decord would return wrong frames or none, or "" if it returns the right ones."""
    if is_cut:
        return "edit list: some frames are not shown"
    if is_open:
        return "open GOP: frames refer to others across a key frame"
    if is_short:
        return "fewer frames than the header claims: decord trusts the header and may run out of memory"
    if codec == "av1":
        return "AV1: decord has no decoder for it"
    return ""


def _scan_pictures(folder: str) -> Scan:
    """Returns the scan of a folder of pictures, whose frames are evenly spaced."""
    paths = storage.pictures(folder)
    if not paths:
        raise VideoError(folder, "is a directory without pictures")
    pts_deltas = np.ones(len(paths) - 1, np.uint8)
    times = Timeline(
        num_frames=len(paths), fps=PICTURES_PER_SECOND, pts_deltas=pts_deltas, time_base=1 / PICTURES_PER_SECOND
    )
    return Scan(times, None, np.empty(0, np.int64), "", 0, 0, gop=1, is_folder=True)


def read_picture(folder: str, path: str) -> tuple[VideoFrame, str]:
    """Decodes a picture of a folder and returns it with its codec, which its first bytes identify."""
    name, data = os.path.basename(path), storage.read(path)
    codec = next((codec for start, codec in PICTURES.items() if data.startswith(start)), None)
    if codec is None:
        raise VideoError(folder, f"{name} is not a supported picture ({', '.join(PICTURES.values())})")
    context = VideoCodecContext.create(codec, "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    # "explode" makes a truncated JPEG an error too.
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    try:
        (frame,) = context.decode(Packet(data))
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(folder, f"{name} is damaged ({reason(error)})", kind="damaged") from error
    return frame, codec
