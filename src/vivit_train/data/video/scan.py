"""When each frame of a video is shown, from its packets, without decoding it; and what a player shows of it."""

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
# Containers in which a seek finds the key frame it is sent to. In FLV, WMV and MPEG-TS it may land behind it.
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoInfo(Timeline):
    """What a player shows of a video.

    Attributes:
        width: in pixels, after rotation; pixels count as square.
        height: likewise.
        rotation: degrees by which stored frames are turned counter-clockwise to be shown: 0, 90, 180 or 270.
        codec: FFmpeg's name, such as "h264".
        seek_safe: whether decord finds the right frames.
        reason: why not; "" where it does.
        sequential_only: each reading starts at the first frame and counts, which is slow; `reason` says why.
        header_num_frames: according to the header; 0 where it says nothing.
        promised_s: seconds, likewise.
        gop: mean number of stored frames per key frame.
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
    """Of the frames as they are shown."""

    width: int
    height: int
    rotation: int

    @classmethod
    def of(cls, frame: VideoFrame) -> "StreamShape":
        rotation = round(frame.rotation / 90) * 90 % 360
        size = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
        return cls(*size, rotation)

    def scaled(self, short_side: int | None) -> tuple[int, int]:
        """Width and height with a short side of at most so much."""
        shrink = min(1.0, (short_side or np.inf) / min(self.width, self.height))
        return round(self.width * shrink), round(self.height * shrink)


UNKNOWN = -(2**63)  # a packet's time
PICTURES = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG": "png", b"RIFF": "webp"}  # first bytes -> FFmpeg's decoder
PICTURES_PER_SECOND = 30.0  # of a folder of pictures, which cannot say it


def timeline(path: StrPath, stored: Path | None = None) -> Timeline:
    """Number and times of a video's frames, from its packets; no frame is decoded.

    Where packets do not tell which frames are shown, all are decoded and counted. The results used last are kept,
    up to `CACHE_BYTES`: all of EPIC-KITCHENS-100, about 2 bytes a frame, or forty thousand short videos.

    Args:
        path: the video.
        stored: a database of `timelines.write`; what it has of the file as it is now need not be found again.

    Raises:
        VideoError: the file is missing, damaged or no video.
    """
    return scan_file(path, stored).timeline


def packed_scan(path: StrPath) -> bytes:
    """What `timelines.write` takes of a video.

    Raises:
        VideoError: the file is missing, damaged or no video.
    """
    return index.pack(scan_file(path))


def probe(path: StrPath) -> VideoInfo:
    """All that is known of a video once its packets are scanned and its first frame is decoded.

    Raises:
        VideoError: the file is missing, damaged or no video.
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
    found = storage.state(os.fspath(path))
    if not (found.size or found.is_folder):
        raise VideoError(os.fspath(path), "file is empty (0 bytes)", kind="empty")
    return _scans.get((os.fspath(path), found.version, found.size), stored)


class _Scans:
    """The scans used last, by the state of their file."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, int], Scan] = {}  # the one used last at its end
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
    """Scan a file. `why_count`: why frames must be counted by decoding them, if that is known."""
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
                is_hidden.append(packet.is_discard)  # to be decoded and not shown: outside the edit list
                if packet.is_keyframe:
                    is_open = is_open or not _is_idr(codec, memoryview(packet))
            if why_count:
                decoded += (frame.pts for frame in context.decode(packet))
            elif codec == "mpeg4" and not began:  # which tells once it decodes whether it has B-frames
                began = bool(context.decode(packet))
        time_base, promised, duration = float(stream.time_base or 0), stream.frames, stream.duration or 0
        promised_s = duration * time_base
        if not promised_s and not container.streams.audio:  # the file's length is that of its longest stream
            promised_s = (container.duration or 0) / av.time_base
        rate = float(stream.average_rate or stream.guessed_rate or 25)  # FFmpeg's own default
        why_not = _why_count(container.format.name, codec, context.has_b_frames)
    time, length = np.frombuffer(pts, np.int64), np.frombuffer(durations, np.int64)
    key, hidden = np.frombuffer(is_key, np.bool_), np.frombuffer(is_hidden, np.bool_)
    has_time = time != UNKNOWN
    stored, keys = np.sort(time[has_time]), np.sort(time[key & has_time])
    if len(stored) < len(time) or not np.diff(stored).all() or not len(keys):
        why_not = why_not or "packets without times of their own, or without a key frame"
    if why_not and not why_count:
        return _scan(path, why_not)

    # A trimmed file, too, may hold fewer packets than its header promises, but not a shorter time.
    is_short = len(time) < promised
    if is_short and len(stored) and (time + length)[has_time].max() - stored[0] < duration:
        raise VideoError(path, f"ends after {len(time)} of {promised} frames", kind="truncated")
    if why_count:
        shown = np.unique(np.array([pts for pts in decoded if pts is not None], np.int64))
        num_frames = len(decoded)
    else:  # frames before the first key frame are not shown: those they refer to were cut away
        shown = stored[stored >= keys[0]]
        shown = np.setdiff1d(shown, time[hidden]) if hidden.any() else shown
        num_frames = len(shown)
    if num_frames == 0:
        raise VideoError(path, "no frame of it can be decoded")
    if len(shown) < num_frames or not time_base:
        shown, time_base = np.arange(num_frames), 1 / rate
    pts_deltas = np.diff(shown)
    mean = (num_frames - 1) / (float(shown[-1] - shown[0]) * time_base) if num_frames > 1 else rate
    # in decoding order, a key frame of an open GOP comes before frames that are shown before it
    is_open = is_open or bool((np.searchsorted(stored, time[key]) != np.flatnonzero(key)).any())
    decord_unsafe = why_count or _decord_fault(bool(hidden.any()), is_open, is_short, codec)
    fps = rate if abs(rate / mean - 1) < 0.02 else mean
    if not 0 < fps <= MAX_FPS:
        raise VideoError(path, f"claims {fps:,.6g} frames per second: its header is damaged", kind="damaged")
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
    return _first_frame(path, storage.state(path))[0]


@lru_cache(maxsize=10_000)
def _first_frame(path: str, state: storage.State) -> tuple[StreamShape, str]:
    """Its shape and codec. `state`: of the file, which may change."""
    if state.is_folder:
        picture, codec = read_picture(path, storage.pictures(path)[0])
        return StreamShape.of(picture), codec
    scan = scan_file(path)
    with open_video(path, reuse=scan.start is not None) as (container, stream):
        if scan.start is not None:
            container.seek(int(scan.keys[0]), stream=stream)
        for frame in container.decode(stream):
            return StreamShape.of(frame), stream.codec_context.codec.canonical_name
    raise VideoError(path, "no frame of it can be decoded")


def _why_count(container: str, codec: str, has_b_frames: bool = False) -> str:
    """Why packets do not tell which frames are shown; "" where they do."""
    if container not in INDEXED:
        return f"{container} files have no dependable index"
    if container == "avi" and (has_b_frames or codec in ("h264", "hevc")):
        return "AVI with B-frames: it stores when frames are decoded, not when they are shown"
    if codec == "mpeg4" and has_b_frames:
        return "MPEG-4 with B-frames, which may share packets"
    return ""


def _is_idr(codec: str, key_packet: memoryview) -> bool:
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


def _decord_fault(is_cut: bool, is_open: bool, is_short: bool, codec: str) -> str:
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
    return ""


def _scan_pictures(folder: str) -> Scan:
    paths = storage.pictures(folder)
    if not paths:
        raise VideoError(folder, "is a directory, and there are no pictures in it")
    pts_deltas = np.ones(len(paths) - 1, np.uint8)
    times = Timeline(
        num_frames=len(paths), fps=PICTURES_PER_SECOND, pts_deltas=pts_deltas, time_base=1 / PICTURES_PER_SECOND
    )
    return Scan(times, None, np.empty(0, np.int64), "", 0, 0, gop=1, is_folder=True)


def read_picture(folder: str, path: str) -> tuple[VideoFrame, str]:
    """A picture of a folder, and its codec, which its first bytes tell."""
    name, data = os.path.basename(path), storage.read(path)
    codec = next((codec for start, codec in PICTURES.items() if data.startswith(start)), None)
    if codec is None:
        raise VideoError(folder, f"{name} is no picture that is read here ({', '.join(PICTURES.values())})")
    context = VideoCodecContext.create(codec, "r")
    assert isinstance(context, VideoCodecContext)
    context.thread_count = 1
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}  # half a JPEG is an error too
    try:
        (frame,) = context.decode(Packet(data))
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(folder, f"{name} is damaged ({reason(error)})", kind="damaged") from error
    return frame, codec
