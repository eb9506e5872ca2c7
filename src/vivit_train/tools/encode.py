"""Re-encode one video: downscaled, as a player shows it, and fast to seek and decode."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import numpy as np
from av import VideoFrame
from av.filter import Graph
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vivit_train.data.video.color import to_bt709, wide_color
from vivit_train.data.video.container import OPENING, best_video_stream, ffmpeg_reason
from vivit_train.data.video.display import DisplayShape
from vivit_train.data.video.scan import VideoInfo, probe
from vivit_train.utils.errors import UserError, VideoError, reason

# x264 parameters for fast decoding: CAVLC decodes faster than CABAC, and three of four frames are B-frames that no
# other frame refers to, so that a reader can skip them (docs/benchmarks.md, "What `vivit prepare` writes").
QUICK_TO_READ = "cabac=0:bframes=3:b-adapt=0:b-pyramid=none"
RGB, BT709, LIMITED = 0, 1, 1  # These are values of FFmpeg's enums for color spaces and ranges.


@dataclass(frozen=True)
class Settings:
    """The settings of the encoder.

    Attributes:
        short_side: Length of the short side in pixels, an even number. Smaller videos keep their size.
        gop: GOP size, the number of frames from one key frame to the next.
        crf: Constant rate factor of x264. A lower value means higher quality and larger files.
    """

    short_side: int = 256
    gop: int = 32
    crf: int = 23

    def __post_init__(self) -> None:
        if self.short_side < 2 or self.short_side % 2 or self.gop < 1 or not 0 <= self.crf <= 51:
            raise UserError(f"{self}: the short side must be even, gop at least 1 and crf between 0 and 51")

    def __str__(self) -> str:
        return f"short_side={self.short_side} gop={self.gop} crf={self.crf}"


def encode(source: str, target: str, settings: Settings) -> VideoInfo:
    """Re-encode the video `source` to `target` as H.264 in MP4, without audio.

    The frames are upright and progressive, in BT.709 if the source is HDR, and their pixels are square.

    Returns:
        The information that `probe` finds about `target`.

    Raises:
        VideoError: The source is missing, damaged or not a video.
    """
    info = probe(source)
    count = _encode(source, target, info, settings, skip=0)
    if count > info.num_frames:  # The reader does not show frames before the first key frame, so skip them.
        count = min(_encode(source, target, info, settings, skip=count - info.num_frames), info.num_frames)
    if count != info.num_frames:
        raise VideoError(source, f"only {count} of its {info.num_frames} frames can be decoded")
    made = probe(target)
    if made.num_frames != count or not made.seek_safe:
        raise VideoError(source, f"the re-encoded copy shows {made.num_frames} of {count} frames {made.reason}")
    return made


def _encode(source: str, target: str, info: VideoInfo, settings: Settings, skip: int) -> int:
    """Encode as many frames as the reader shows, after the first `skip`; return the number of decoded frames."""
    shrink = min(1.0, settings.short_side / min(info.width, info.height))
    width, height = (max(2, min(round(side * shrink / 2), side // 2) * 2) for side in (info.width, info.height))
    stored = info.shape.turned(width, height)
    to_size = partial(
        VideoReformatter().reformat,
        width=stored[0],
        height=stored[1],
        format="yuv420p",
        dst_color_range=LIMITED,
        interpolation="BICUBIC",
        threads=1,
    )
    count = 0
    try:
        with (
            av.open(f"file:{source}", options=OPENING, metadata_errors="ignore") as container,
            av.open(f"file:{target}", "w", format="mp4", options={"movflags": "+faststart"}) as out,
        ):
            stream = best_video_stream(container)
            assert stream is not None  # `probe` has found a video stream.
            read = stream.codec_context
            read.thread_count = 1  # One process per core already runs in parallel.
            encoder = out.add_stream("libx264", rate=Fraction(info.fps).limit_denominator(100_000))
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            gop = f"keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0:open-gop=0"
            params = f"{gop}:{QUICK_TO_READ}"
            encoder.options = {"crf": str(settings.crf), "preset": "medium", "threads": "1", "x264-params": params}
            write = encoder.codec_context
            write.time_base, ticks = _clock(info, stream.time_base)
            # Readers assume BT.601 for untagged video, so RGB sources are converted to that.
            write.colorspace, space = (2, 5) if read.colorspace == RGB else (read.colorspace, read.colorspace)
            write.color_range = LIMITED
            write.color_primaries, write.color_trc = read.color_primaries, read.color_trc
            if info.wide_color:
                write.colorspace, write.color_primaries, write.color_trc = BT709, BT709, BT709
            for frame in _progressive(container.decode(stream)):
                if skip <= count < skip + info.num_frames:
                    if wide_color(frame):
                        rgb = VideoFrame.from_ndarray(to_bt709(frame, *stored))
                        small = to_size(rgb, dst_colorspace=BT709)
                    else:
                        small = to_size(frame, dst_colorspace=space)
                    upright = _turn(small, info.shape) if info.rotation or info.mirrored else small
                    upright.pts, upright.time_base = ticks[count - skip], write.time_base
                    upright.pict_type = PictureType.NONE  # The encoder chooses the frame type.
                    out.mux(encoder.encode(upright))
                count += 1
            out.mux(encoder.encode(None))
    except av.error.InvalidDataError as error:
        raise VideoError(source, f"damaged{ffmpeg_reason(error)}", kind="damaged") from error
    except av.FFmpegError as error:  # This may also be a write error of the target disk.
        raise VideoError(source, reason(error)) from error
    return count


def _clock(info: VideoInfo, unit: Fraction | None) -> tuple[Fraction, list[int]]:
    """Return a time base and the timestamps of the frames in it. A fine enough time base of the source is kept."""
    unit, rate = unit or Fraction(1, 90_000), Fraction(info.fps).limit_denominator(1001)
    times_s, even = info.times_s, np.arange(info.num_frames)
    if 0 < unit * rate < 0.1 and (abs(times_s - even / float(rate)) < float(unit)).all():
        return 1 / rate, even.tolist()  # Matroska rounds to milliseconds, which would change the rate in MP4.
    ticks = np.rint(times_s / float(unit)).astype(np.int64)
    if (np.diff(ticks) > 0).all():
        return unit, ticks.tolist()
    return Fraction(1, 90_000), np.rint(times_s * 90_000).astype(np.int64).tolist()


def _progressive(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield as many frames, with FFmpeg's bwdif filter applied to the interlaced ones."""
    graph, source = None, ""
    for frame in frames:
        if graph is not None and _source(frame) != source:
            yield from _rest(graph)
            graph = None
        if graph is None and frame.interlaced_frame:
            source = _source(frame)
            graph = _deinterlacer(source)
        if graph is None:
            yield frame
        else:
            graph.vpush(frame)
            yield from _ready(graph)
    if graph is not None:
        yield from _rest(graph)


def _source(frame: VideoFrame) -> str:
    """Return the options of a filter graph's source that takes frames like this one."""
    color = f"colorspace={frame.colorspace}:range={frame.color_range}"
    return f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:{color}"


def _deinterlacer(source: str) -> Graph:
    """Return a filter graph that de-interlaces frames as `source` describes and passes on progressive ones."""
    graph = Graph()
    graph.threads = 1  # One process per core already runs in parallel.
    filters = ("buffer", source), ("bwdif", "mode=send_frame:deint=interlaced"), ("buffersink", None)
    graph.link_nodes(*(graph.add(name, options) for name, options in filters))
    graph.configure()
    return graph


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    """Yield the frames that a filter graph has finished."""
    with suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.vpull()


def _rest(graph: Graph) -> Iterator[VideoFrame]:
    """Yield the frames that a filter graph holds when its input ends."""
    graph.vpush(None)
    yield from _ready(graph)


def _turn(frame: VideoFrame, shape: DisplayShape) -> VideoFrame:
    """Mirror and rotate a yuv420p frame for display, plane by plane."""
    w, h = frame.width, frame.height
    flat = frame.to_ndarray().reshape(-1)
    planes: list[NDArray[np.uint8]] = np.split(flat, [w * h, w * h * 5 // 4])
    shapes = [(h, w), (h // 2, w // 2), (h // 2, w // 2)]
    turned = [shape.upright(plane.reshape(size)) for plane, size in zip(planes, shapes, strict=True)]
    picture = np.concatenate([plane.reshape(-1) for plane in turned]).reshape(-1, turned[0].shape[1])
    return VideoFrame.from_ndarray(picture, format="yuv420p")
