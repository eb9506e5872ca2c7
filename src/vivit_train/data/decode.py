"""Frames of a video file: exactly those asked for, or one `VideoError`. Nothing else knows a decoder.

PyAV reads every file, and of those measured none slower than decord (docs/benchmarks.md, "Decoding"). decord and
torchcodec read by name, and refuse the files in which they would find other frames. decord counts frames where it
should compare time stamps (dmlc/decord, src/video/video_reader.cc: IndexKeyframes, SkipFramesImpl). So in open
GOPs, behind edit lists and among B-frames of AVI files it returns wrong frames without an error, or never returns.
PyAV and torchcodec are sought by time.
"""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import av
import numpy as np
from av import Packet, VideoCodecContext, VideoFrame
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vivit_train.data import source, timelines
from vivit_train.data.timelines import MAX_FPS, Scan, Timeline
from vivit_train.errors import UserError, VideoError, reason

DECODERS = ("auto", "decord", "pyav", "torchcodec")
CACHE_BYTES = 64 << 20
RGB: Any = VideoFormat("rgb24")  # looked up by name for each frame, it takes a tenth of the conversion
# Files of video, whatever they are called: no lists of other files (ffconcat, m3u8, dash, sdp, numbered pictures).
# Those of sound alone open, too, and are refused as such.
FORMATS = (
    "mov,matroska,avi,flv,live_flv,kux,asf,mpegts,mpegtsraw,mpeg,mpegvideo,ogg,gif,apng,mxf,ivf,h264,hevc,vvc,obu,av1,"
    "m4v,h261,h263,vc1,dv,nut,nsv,rm,swf,gxf,lxf,cavsvideo,mjpeg,smjpeg,yuv4mpegpipe,wtv,ivr,nuv,amv,webm,wav,mp3,flac,aac"
)
OPENING = {
    "codec_whitelist": "none",  # at each opening FFmpeg would decode a frame, to learn what we see anyway
    "format_whitelist": FORMATS,
    "protocol_whitelist": "file,subfile",  # what source.py gives it
}
MAX_PIXELS = 16384 * 8640  # of a frame: 16k, of which one takes half a gigabyte

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
        in_order: whether each reading starts at the first frame and counts, which is slow; `reason` says why.
        promised_frames: according to the header; 0 where it says nothing.
        promised_s: seconds, likewise.
        gop: mean number of stored frames per key frame.
    """

    width: int
    height: int
    rotation: int
    codec: str
    seek_safe: bool
    reason: str
    in_order: bool
    promised_frames: int
    promised_s: float
    gop: float


class _Shape(NamedTuple):
    """Of the frames as they are shown."""

    width: int
    height: int
    rotation: int

    @classmethod
    def of(cls, frame: VideoFrame) -> "_Shape":
        rotation = round(frame.rotation / 90) * 90 % 360
        size = (frame.height, frame.width) if rotation % 180 else (frame.width, frame.height)
        return cls(*size, rotation)

    def scaled(self, short_side: int | None) -> tuple[int, int]:
        """Width and height with a short side of at most so much."""
        shrink = min(1.0, (short_side or np.inf) / min(self.width, self.height))
        return round(self.width * shrink), round(self.height * shrink)


Box = tuple[int, int, int, int]  # top, left, height, width
Cut = Callable[[int, int], Box]  # of the frames' height and width
_Reader = Callable[[str, Scan, NDArray[np.int64], int | None, Cut | None], NDArray[np.uint8]]
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
    return _scan_file(path, stored).timeline


def packed_scan(path: StrPath) -> bytes:
    """What `timelines.write` takes of a video.

    Raises:
        VideoError: the file is missing, damaged or no video.
    """
    return timelines.pack(_scan_file(path))


def probe(path: StrPath) -> VideoInfo:
    """All that is known of a video once its packets are scanned and its first frame is decoded.

    Raises:
        VideoError: the file is missing, damaged or no video.
    """
    scan, (shape, codec) = _scan_file(path), _first_frame(os.fspath(path), source.state(os.fspath(path)))
    fault = scan.fault or ("rotated: decord misplaces the rows of scaled frames" if shape.rotation else "")
    return VideoInfo(
        num_frames=scan.timeline.num_frames,
        fps=scan.timeline.fps,
        steps=scan.timeline.steps,
        unit_s=scan.timeline.unit_s,
        width=shape.width,
        height=shape.height,
        rotation=shape.rotation,
        codec=codec,
        seek_safe=not fault,
        reason=fault,
        in_order=scan.start is None and not scan.is_folder,
        promised_frames=scan.promised_frames,
        promised_s=scan.promised_s,
        gop=scan.gop,
    )


def read_frames(
    path: StrPath,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    short_side: int | None = None,
    decoder: str = "auto",
    cut: Cut | None = None,
) -> NDArray[np.uint8]:
    """The frames asked for, upright, in the order asked for: uint8 RGB [T, H, W, 3].

    Args:
        path: the video.
        indices: T frame numbers in [0, num_frames), in any order; they may repeat.
        short_side: a larger short side is scaled down to this, the long side in proportion.
        decoder: one of `DECODERS`. "auto" is "pyav", which reads every video. "decord" and "torchcodec" refuse
            those where they would return other frames. torchcodec scales bilinearly, the others bicubically.
        cut: what is wanted of the frames, once they are scaled; None: all. The rest is not copied.

    Raises:
        VideoError: the file is missing, damaged before the last of these frames, no video, or refused.
        UserError: there is no such decoder, or it is not installed.
        ValueError: there are no indices, or the video has no such frame.
    """
    read, scan = _reader(decoder), _scan_file(path)
    asked, num_frames = np.asarray(indices, dtype=np.int64), scan.timeline.num_frames
    if not (asked.size and asked.min() >= 0 and asked.max() < num_frames):
        raise ValueError(f"frames {asked.tolist()} asked of {path}, which has frames 0 to {num_frames - 1}")
    wanted, places = np.unique(asked, return_inverse=True)
    frames = read(os.fspath(path), scan, wanted, short_side, cut)
    return frames if np.array_equal(asked, wanted) else frames[places]


def import_decoder(name: str) -> None:
    """Imports a decoder: in the main process, before workers start, it costs once and says at once what is amiss.

    Raises:
        UserError: there is no such decoder, or it is not installed.
    """
    _reader(name)
    if name in ("decord", "torchcodec"):
        _torchcodec() if name == "torchcodec" else _decord()


def _reader(decoder: str) -> _Reader:
    readers = dict(zip(DECODERS, (_read_pyav, _read_decord, _read_pyav, _read_torchcodec), strict=True))
    if decoder not in readers:
        raise UserError(f"data.decoder={decoder} is none of {', '.join(DECODERS)}")
    return readers[decoder]


def _scan_file(path: StrPath, stored: Path | None = None) -> Scan:
    found = source.state(os.fspath(path))
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
            scan = (timelines.read(stored, *state) if stored else None) or _scan(state[0])
            self.num_bytes += scan.num_bytes
        self.kept[state] = scan
        while self.num_bytes > CACHE_BYTES:
            self.num_bytes -= self.kept.pop(next(iter(self.kept))).num_bytes
        return scan


_scans = _Scans()


def _scan(path: str, why_count: str = "") -> Scan:
    """Scan a file. `why_count`: why frames must be counted by decoding them, if that is known."""
    if source.state(path).is_folder:
        return _scan_pictures(path)
    pts, durations, is_key, is_hidden = array("q"), array("q"), bytearray(), bytearray()
    decoded: list[int | None] = []
    is_open = began = False
    with _open(path, leave_open=True) as (container, stream):
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
                    is_open = is_open or not _is_clean(codec, memoryview(packet))
            if why_count:
                decoded += (frame.pts for frame in context.decode(packet))
            elif codec == "mpeg4" and not began:  # which tells once it decodes whether it has B-frames
                began = bool(context.decode(packet))
        unit_s, promised, duration = float(stream.time_base or 0), stream.frames, stream.duration or 0
        promised_s = duration * unit_s
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
    if len(shown) < num_frames or not unit_s:
        shown, unit_s = np.arange(num_frames), 1 / rate
    steps = np.diff(shown)
    mean = (num_frames - 1) / (float(shown[-1] - shown[0]) * unit_s) if num_frames > 1 else rate
    # in decoding order, a key frame of an open GOP comes before frames that are shown before it
    is_open = is_open or bool((np.searchsorted(stored, time[key]) != np.flatnonzero(key)).any())
    fault = why_count or _decord_fault(bool(hidden.any()), is_open, is_short, codec)
    fps = rate if abs(rate / mean - 1) < 0.02 else mean
    if not 0 < fps <= MAX_FPS:
        raise VideoError(path, f"claims {fps:,.6g} frames per second: its header is damaged", kind="damaged")
    compact = steps.astype(np.min_scalar_type(int(steps.max(initial=0))))
    return Scan(
        Timeline(num_frames=num_frames, fps=fps, steps=compact, unit_s=unit_s),
        start=None if why_count else int(shown[0]),
        keys=keys,
        fault=fault,
        promised_frames=promised,
        promised_s=promised_s,
        gop=len(time) / max(int(key.sum()), 1),
    )


def _shape_of(path: str) -> _Shape:
    return _first_frame(path, source.state(path))[0]


@lru_cache(maxsize=10_000)
def _first_frame(path: str, state: source.State) -> tuple[_Shape, str]:
    """Its shape and codec. `state`: of the file, which may change."""
    if state.is_folder:
        picture, codec = _picture(path, source.pictures(path)[0])
        return _Shape.of(picture), codec
    scan = _scan_file(path)
    with _open(path, reuse=scan.start is not None) as (container, stream):
        if scan.start is not None:
            container.seek(int(scan.keys[0]), stream=stream)
        for frame in container.decode(stream):
            return _Shape.of(frame), stream.codec_context.codec.canonical_name
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


def _is_clean(codec: str, key_packet: memoryview) -> bool:
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


class _Opened(NamedTuple):
    path: str
    state: source.State
    stack: ExitStack  # closes it
    container: InputContainer
    stream: VideoStream


_left_open: list[_Opened] = []  # the file that was scanned last, unless another was opened since


def _take_left_open() -> _Opened | None:
    with suppress(IndexError):  # of several threads one gets it
        return _left_open.pop()
    return None


def _close_left_open() -> None:
    if opened := _take_left_open():
        opened.stack.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_left_open)  # parent and child would share its position


@contextmanager
def _open(
    path: str, *, leave_open: bool = False, reuse: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream for PyAV; what FFmpeg raises meanwhile becomes a `VideoError`.

    Args:
        leave_open: for what is opened next: after a scan that is mostly the same file, to be read.
        reuse: a file that was left open will do, wherever in it that was.
    """
    state, opened = source.state(path), _take_left_open()
    if opened and not (reuse and opened[:2] == (path, state)):
        opened.stack.close()
        opened = None
    opened = opened or _open_anew(path, state)
    with opened.stack as stack:
        try:
            yield opened.container, opened.stream
        except av.FFmpegError as error:
            raise VideoError(path, f"damaged ({error.strerror})", kind="damaged") from error
        if leave_open:
            _left_open.append(opened._replace(stack=stack.pop_all()))


def _open_anew(path: str, state: source.State) -> _Opened:
    with ExitStack() as stack:
        container = stack.enter_context(_container(path, stack.enter_context(source.opened(path))))
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise VideoError(path, "no video stream", kind="no video")
        if stream.codec_context is None:
            raise VideoError(path, "FFmpeg has no decoder for its codec")
        for other in container.streams:
            other.discard = Discard.none if other is stream else Discard.all
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.codec_context.thread_count = 1  # workers are the parallelism; PyAV's threads can hang after a fork
        return _Opened(path, state, stack.pop_all(), container, stream)


def _container(path: str, file: str | BinaryIO) -> InputContainer:
    try:
        return av.open(file, "r", options=OPENING, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise VideoError(path, f"not a video file that FFmpeg can read ({error.strerror})") from error
    except ValueError as error:  # a name with a zero byte
        raise VideoError(path, f"not a video file that FFmpeg can read ({reason(error)})") from error


def _scan_pictures(folder: str) -> Scan:
    paths = source.pictures(folder)
    if not paths:
        raise VideoError(folder, "is a directory, and there are no pictures in it")
    steps = np.ones(len(paths) - 1, np.uint8)
    times = Timeline(num_frames=len(paths), fps=PICTURES_PER_SECOND, steps=steps, unit_s=1 / PICTURES_PER_SECOND)
    return Scan(times, None, np.empty(0, np.int64), "", 0, 0, gop=1, is_folder=True)


def _read_pictures(
    folder: str, scan: Scan, wanted: NDArray[np.int64], short_side: int | None, cut: Cut | None
) -> NDArray[np.uint8]:
    """As `_read_pyav`, of a folder."""
    paths, num_frames, first = source.pictures(folder), scan.timeline.num_frames, _shape_of(folder)
    if len(paths) != num_frames:
        raise VideoError(folder, f"has {len(paths)} pictures, and had {num_frames} a moment ago")
    shown = _Shown(len(wanted), short_side, cut)
    for place, number in enumerate(wanted.tolist()):
        picture, _ = _picture(folder, paths[number])
        if _Shape.of(picture) != first:
            shape = f"{picture.width}x{picture.height}, the first picture {first.width}x{first.height}"
            raise VideoError(folder, f"{os.path.basename(paths[number])} is {shape}")
        shown.put(place, picture)
    return shown.frames


def _picture(folder: str, path: str) -> tuple[VideoFrame, str]:
    """A picture of a folder, and its codec, which its first bytes tell."""
    name, data = os.path.basename(path), source.read(path)
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


class _Shown:
    """The frames of one reading, uint8 [n, H, W, 3], all of the size and the turn of the first that is put in."""

    def __init__(self, n: int, short_side: int | None, cut: Cut | None) -> None:
        self.n, self.short_side, self.cut = n, short_side, cut or (lambda height, width: (0, 0, height, width))
        self.frames = np.empty((0, 0, 0, 3), np.uint8)
        self.reformat = VideoReformatter().reformat

    def put(self, place: int, frame: VideoFrame) -> None:
        if not self.frames.size:
            shape = _Shape.of(frame)
            width, height = shape.scaled(self.short_side)
            self.stored = (height, width) if shape.rotation % 180 else (width, height)
            top, left, box_height, box_width = self.cut(height, width)
            self.turns, self.box = shape.rotation // 90, np.s_[top : top + box_height, left : left + box_width]
            self.frames = np.empty((self.n, box_height, box_width, 3), np.uint8)
        rgb = self.reformat(frame, *self.stored, RGB, interpolation=Interpolation.BICUBIC, threads=1)  # as decord
        (plane,), (width, height) = rgb.planes, self.stored
        rows = np.ndarray((height, width, 3), np.uint8, memoryview(plane), strides=(plane.line_size, 3, 1))
        self.frames[place] = (np.rot90(rows, self.turns) if self.turns else rows)[self.box]


def _read_pyav(
    path: str, scan: Scan, wanted: NDArray[np.int64], short_side: int | None, cut: Cut | None
) -> NDArray[np.uint8]:
    """Frames `wanted` (ascending), uint8 [T, height, width, 3]: each from the key frame before it, by time."""
    if scan.is_folder:
        return _read_pictures(path, scan, wanted, short_side, cut)
    shown = _Shown(len(wanted), short_side, cut)
    times, keys = wanted, np.zeros_like(wanted)  # counted frames: their numbers stand for their times
    if scan.start is not None:
        times = scan.start + scan.timeline.times[wanted]
        keys = scan.keys[np.searchsorted(scan.keys, times, side="right") - 1]

    def take(decoded: Iterable[tuple[int | None, VideoFrame]], missing: dict[int, int]) -> None:
        last = max(missing)
        for time, frame in decoded:
            if frame.is_corrupt:  # what refers to it shows the damage too, unmarked
                raise VideoError(path, "damaged (the decoder marks a frame as corrupt)", kind="damaged")
            if time in missing:
                shown.put(missing.pop(time), frame)
            if time is not None and time >= last:
                break

    with _open(path, reuse=scan.start is not None) as (container, stream):
        groups = zip(keys.tolist(), times.tolist(), range(len(wanted)), strict=True)
        for key, group in groupby(groups, itemgetter(0)):
            missing = {time: place for _, time, place in group}
            if scan.start is None:
                take(enumerate(container.decode(stream)), missing)
            else:
                take(_decode_from(container, stream, key, missing), missing)
                if missing:  # where GOPs are shorter than B-frames reach, a seek may land behind
                    container.seek(int(scan.keys[0]), stream=stream)
                    stream.codec_context.skip_frame = "DEFAULT"
                    take(((frame.pts, frame) for frame in container.decode(stream)), missing)
            if missing:
                number, num_frames = wanted[min(missing.values())], scan.timeline.num_frames
                raise VideoError(path, f"frame {number} of {num_frames} cannot be decoded", kind="damaged")
    return shown.frames


def _decode_from(
    container: InputContainer, stream: VideoStream, key: int, times: Iterable[int]
) -> Iterator[tuple[int | None, VideoFrame]]:
    """The frames of these times, some others, and their times, from a key frame on.

    Of the others, H.264 marks those that no frame refers to: they are not decoded. HEVC marks frames to which
    those of a higher temporal layer may refer; in the other codecs there are hardly any.
    """
    context = stream.codec_context
    skipped: Literal["NONREF", "DEFAULT"] = "NONREF" if context.codec.canonical_name == "h264" else "DEFAULT"
    awaited = set(times)
    container.seek(key, stream=stream)
    for packet in container.demux(stream):
        context.skip_frame = "DEFAULT" if packet.pts in awaited else skipped
        yield from ((frame.pts, frame) for frame in context.decode(packet))
        awaited.discard(packet.pts)
        if not awaited:  # what the decoder holds back comes without feeding it more
            yield from ((frame.pts, frame) for frame in context.decode(None))
            return


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


def _read_decord(
    path: str, scan: Scan, wanted: NDArray[np.int64], short_side: int | None, cut: Cut | None
) -> NDArray[np.uint8]:
    """The same by decord."""
    decord = _decord()
    _check_file(path, scan, "decord")
    info, size = probe(path), _shape_of(path).scaled(short_side)
    if not info.seek_safe:
        raise VideoError(path, f"decord would return wrong frames ({info.reason}); data.decoder=auto reads it")
    try:
        # A new reader for each call: one that is kept decodes ahead without bound, and dies at the first error.
        reader = decord.VideoReader(f"file:{path}", decord.cpu(0), *size, num_threads=1)
        found_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        _compare(path, "decord", found_s - found_s[:1], info, np.arange(info.num_frames))
        return _box_of(reader.get_batch(wanted).asnumpy(), cut)
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
    path: str, scan: Scan, wanted: NDArray[np.int64], short_side: int | None, cut: Cut | None
) -> NDArray[np.uint8]:
    """The same by torchcodec."""
    torchcodec = _torchcodec()
    _check_file(path, scan, "torchcodec")
    if scan.start is None:
        raise VideoError(path, f"torchcodec may return wrong frames ({scan.fault}); data.decoder=auto reads it")
    shape = _shape_of(path)
    size = shape.scaled(short_side)
    scale = [] if size == (shape.width, shape.height) else [torchcodec.transforms.Resize(size[::-1])]
    try:
        reader = torchcodec.decoders.VideoDecoder(
            f"file:{path}", dimension_order="NHWC", num_ffmpeg_threads=1, transforms=scale
        )
        batch = reader.get_frames_at(wanted.tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(path, f"torchcodec cannot read it ({reason(error)})") from error
    found_s = batch.pts_seconds.numpy() - reader.metadata.begin_stream_seconds
    _compare(path, "torchcodec", found_s, scan.timeline, wanted)
    return _box_of(batch.data.numpy(), cut)


def _box_of(frames: NDArray[np.uint8], cut: Cut | None) -> NDArray[np.uint8]:
    top, left, height, width = cut(*frames.shape[1:3]) if cut else (0, 0, *frames.shape[1:3])
    return frames[:, top : top + height, left : left + width]


def _check_file(path: str, scan: Scan, decoder: str) -> None:
    if scan.is_folder or not source.is_plain(path):
        raise VideoError(path, f"{decoder} reads files on the disk only; data.decoder=auto reads it")


def _compare(
    path: str, decoder: str, found_s: NDArray[np.floating[Any]], times: Timeline, numbers: NDArray[np.int64]
) -> None:
    """Whether a decoder's times are those of these frames: nearer to them than to the next."""
    tolerance_s = times.unit_s * float(times.steps.min() if times.steps.size else 1) / 2
    if not (found_s.shape == numbers.shape and (np.abs(found_s - times.times_s[numbers]) < tolerance_s).all()):
        raise VideoError(
            path, f"{decoder} finds other frames in it than its packets hold; data.decoder=auto reads it"
        )
