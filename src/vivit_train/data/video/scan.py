"""Finds the presentation times of a video's frames and its display properties, and caches them."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av import Packet, VideoCodecContext, VideoFrame
from av.video.stream import VideoStream

from vivit_train.data.video import index, storage
from vivit_train.data.video.color import wide_color
from vivit_train.data.video.container import MAX_PIXELS, open_video, video_streams
from vivit_train.data.video.display import SQUARE, DisplayShape, pixel_aspect
from vivit_train.data.video.index import MAX_FPS, MIN_FPS, Scan, Timeline
from vivit_train.data.video.packets import check_complete, decord_fault, display_times, read_packets
from vivit_train.utils.errors import VideoError, reason

CACHE_BYTES = 64 << 20
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoInfo(Timeline):
    """The display properties of a video, as a player shows it.

    Attributes:
        width: The width in pixels after rotation, with square pixels.
        height: The height in pixels after rotation.
        shape: The shape of the first stored frame, with square pixels or not.
        interlaced: Whether the first frame consists of two fields that were taken one after the other.
        wide_color: "PQ", "HLG" or "BT.2020" if an ordinary screen cannot show the stored colors, otherwise "".
        num_streams: The number of video streams in the file, without cover pictures.
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
    shape: DisplayShape
    interlaced: bool
    wide_color: str
    num_streams: int
    codec: str
    seek_safe: bool
    reason: str
    sequential_only: bool
    header_num_frames: int
    promised_s: float
    gop: float

    @property
    def rotation(self) -> int:
        """The counterclockwise rotation of stored frames for display, in degrees: 0, 90, 180 or 270."""
        return self.shape.rotation

    @property
    def mirrored(self) -> bool:
        """Whether left and right of stored frames are exchanged for display, before the rotation."""
        return self.shape.mirrored


class _FirstFrame(NamedTuple):
    """What the first frame of a video shows; see `VideoInfo`."""

    shape: DisplayShape
    codec: str
    interlaced: bool = False
    wide_color: str = ""
    num_streams: int = 1


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
    scan, first = scan_file(path), _first_frame(os.fspath(path), storage.state(os.fspath(path)))
    decord_unsafe = scan.decord_unsafe or (
        "rotated: decord misplaces the rows of scaled frames" if first.shape.rotation else ""
    )
    width, height = first.shape.size
    return VideoInfo(
        num_frames=scan.timeline.num_frames,
        fps=scan.timeline.fps,
        pts_deltas=scan.timeline.pts_deltas,
        time_base=scan.timeline.time_base,
        width=width,
        height=height,
        **first._asdict(),
        seek_safe=not decord_unsafe,
        reason=decord_unsafe,
        sequential_only=scan.start is None and not scan.is_folder,
        header_num_frames=scan.header_num_frames,
        promised_s=scan.promised_s,
        gop=scan.gop,
    )


def scan_file(path: StrPath, stored: Path | None = None) -> Scan:
    """Returns the scan of a video from the cache, from the database `stored` or from its packets.

    Raises:
        VideoError: If the file is missing, damaged or no video.
    """
    return SCANS.get(os.fspath(path), stored)


class ScanCache:
    """A cache of the most recently used scans, by path, version and size of the file.

    Args:
        max_bytes: The largest total size of the scans.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.kept: dict[tuple[str, int, int], Scan] = {}  # the most recently used scan comes last

    def get(self, path: str, stored: Path | None = None) -> Scan:
        """Returns the scan of a video; see `scan_file`."""
        found = storage.state(path)
        if not (found.size or found.is_folder):
            raise VideoError(path, "file is empty (0 bytes)", kind="empty")
        key = (path, found.version, found.size)
        scan = self.kept.pop(key, None)
        if scan is None:
            scan = (index.read(stored, *key) if stored else None) or scan_packets(path)
            self.num_bytes += scan.num_bytes
        self.kept[key] = scan
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self.kept.pop(next(iter(self.kept))).num_bytes
        return scan

    def clear(self) -> None:
        """Forgets all scans."""
        self.kept.clear()
        self.num_bytes = 0


SCANS = ScanCache()


def scan_packets(path: str) -> Scan:
    """Reads all packets of a video and returns its scan, without any cache.

    Raises:
        VideoError: If the file is missing, damaged or no video.
    """
    if storage.state(path).is_folder:
        return _scan_pictures(path)
    packets = read_packets(path)
    if not packets.why_count and (why_count := packets.ambiguity()):
        packets = read_packets(path, why_count)
    check_complete(path, packets)
    shown, time_base = display_times(path, packets)
    pts_deltas = np.diff(shown)
    num_frames, rate = len(shown), packets.rate
    mean = (num_frames - 1) / (float(shown[-1] - shown[0]) * time_base) if num_frames > 1 else rate
    fps = rate if abs(rate / mean - 1) < 0.02 else mean
    if not MIN_FPS <= fps <= MAX_FPS:
        raise VideoError(path, f"claims {fps:,.6g} frames per second; the header is damaged", kind="damaged")
    compact = pts_deltas.astype(np.min_scalar_type(int(pts_deltas.max(initial=0))))
    return Scan(
        Timeline(num_frames=num_frames, fps=fps, pts_deltas=compact, time_base=time_base),
        start=None if packets.why_count else int(shown[0]),
        keys=packets.keys,
        decord_unsafe=packets.why_count or decord_fault(packets),
        header_num_frames=packets.promised,
        promised_s=packets.promised_s,
        gop=len(packets.pts) / max(int(packets.is_key.sum()), 1),
        width=packets.width,
        height=packets.height,
        resized=packets.resized,
    )


def display_shape(path: str, square_pixels: bool = True) -> DisplayShape:
    """Returns the shape of a video's first frame, by default as shown with square pixels."""
    shape = _first_frame(path, storage.state(path)).shape
    return shape if square_pixels else shape._replace(pixel_aspect=SQUARE)


def shape_of_first(path: str, frame: VideoFrame, stream: VideoStream, square_pixels: bool) -> DisplayShape:
    """Returns the shape of a video's first frame, by default as shown with square pixels.

    Args:
        path: The path of the video.
        frame: A decoded frame, which usually has the shape of the first one.
        stream: The stream that it belongs to.
        square_pixels: See `read_frames`.
    """
    scan = scan_file(path)
    if (frame.width, frame.height) != (
        scan.width,
        scan.height,
    ):  # The size changes, or the header has another one.
        return display_shape(path, square_pixels)
    return DisplayShape.of(frame, pixel_aspect(path, stream) if square_pixels else SQUARE)


def other_size(path: str, tries: int = 8) -> str:
    """Returns words on a frame of another size than the first one, or "" if none is found.

    If frames were counted, the scan tells. Otherwise, this decodes up to `tries` evenly spread key frames.

    Raises:
        VideoError: If the file is missing, damaged or no video.
    """
    scan = scan_file(path)
    if scan.start is None:
        return scan.resized
    first = _first_frame(path, storage.state(path)).shape[:2]
    places = np.unique(np.linspace(0, len(scan.keys) - 1, min(tries, len(scan.keys))).astype(int))
    with open_video(path, reuse=True) as (container, stream):
        for key in scan.keys[places].tolist():
            container.seek(key, stream=stream)
            frame = next(container.decode(stream), None)
            if frame and (frame.width, frame.height) != first:
                return f"from {first[0]}x{first[1]} to {frame.width}x{frame.height}"
    return ""


@lru_cache(maxsize=10_000)
def _first_frame(path: str, state: storage.State) -> _FirstFrame:
    """Returns the properties of the first frame; `state` makes the cache notice changed files."""
    if state.is_folder:
        picture, codec = read_picture(path, storage.pictures(path)[0])
        return _FirstFrame(DisplayShape.of(picture), codec)
    scan = scan_file(path)
    with open_video(path, reuse=scan.start is not None) as (container, stream):
        if scan.start is not None:
            container.seek(int(scan.keys[0]), stream=stream)
        for frame in container.decode(stream):
            shape = DisplayShape.of(frame, pixel_aspect(path, stream))
            codec, streams = stream.codec_context.codec.canonical_name, len(video_streams(container))
            return _FirstFrame(shape, codec, frame.interlaced_frame, wide_color(frame), streams)
    raise VideoError(path, "no frame can be decoded")


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
