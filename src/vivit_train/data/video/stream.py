"""Decodes a video once, in order: a file frame by frame, or a camera or another live stream while it runs."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vivit_train.data.video.container import FORMATS, best_video_stream, open_video
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.display import SQUARE, DisplayShape, pixel_aspect
from vivit_train.data.video.frame_buffer import FrameBuffer
from vivit_train.data.video.resize import Resize
from vivit_train.data.video.scan import StrPath, scan_file, shape_of_first
from vivit_train.utils.errors import VideoError, reason

CAMERA = "/dev/video"
# A playlist may lead to other hosts, but not to files of this machine.
LIVE = {
    "protocol_whitelist": "http,https,tls,tcp,udp,rtp,rtmp,srt,crypto,httpproxy",
    "format_whitelist": f"{FORMATS},hls,rtsp,sdp,rtp,mpjpeg,jpeg_pipe",
    "rtsp_transport": "tcp",
}
ANSWER_S = 15.0  # A stream that sends nothing for so long has ended.


def stream_frames(
    path: StrPath,
    wanted: NDArray[np.int64],
    *,
    short_side: int | None = None,
    square_pixels: bool = True,
    resize: Resize = "fast",
) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames with these ascending numbers as `read_frames` returns them, uint8 RGB [H, W, 3].

    The video is decoded once, from its start to the last of these frames.

    Args:
        path: The path of the video.
        wanted: The numbers of the frames, ascending and in [0, num_frames).
        short_side, square_pixels, resize: See `read_frames`.

    Raises:
        VideoError: The file is missing, is damaged before the last of these frames, or is no video.
    """
    path, scan = str(path), scan_file(path)
    if scan.is_folder:
        for number in wanted.tolist():
            yield read_frames(path, [number], short_side=short_side, resize=resize)[0]
        return
    times = wanted if scan.start is None else scan.start + scan.timeline.times[wanted]
    targets = iter(zip(times.tolist(), wanted.tolist(), strict=True))
    target, number = next(targets, (None, 0))
    with open_video(path, reuse=scan.start is not None) as (container, stream):
        if scan.start is not None:
            container.seek(int(scan.keys[0]), stream=stream)
        shown = FrameBuffer(
            1, lambda frame: shape_of_first(path, frame, stream, square_pixels), short_side, None, resize
        )
        for found, frame in timed(container.decode(stream), counted=scan.start is None):
            if target is None:
                return
            if frame.is_corrupt:
                raise VideoError(path, "damaged (the decoder marks a frame as corrupt)", kind="damaged")
            if found is not None and found > target:
                break
            if found == target:
                shown.put(0, frame)
                yield shown.frames[0].copy()
                target, number = next(targets, (None, 0))
    if target is not None:
        raise VideoError(path, f"frame {number} of {scan.timeline.num_frames} cannot be decoded", kind="damaged")


def timed(frames: Iterable[VideoFrame], counted: bool) -> Iterator[tuple[int | None, VideoFrame]]:
    """Yields each frame with its pts, or with its number."""
    for number, frame in enumerate(frames):
        yield (number if counted else frame.pts), frame


@contextmanager
def open_live(url: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a live stream and yields its container and its video stream.

    Args:
        url: The URL of a stream (rtsp, http, udp, ...), or the device of a camera, such as /dev/video0.

    Raises:
        VideoError: The stream cannot be opened or has no video.
    """
    with translate_live_errors(url):
        container = live_container(url)
    with container:
        stream = best_video_stream(container)
        if stream is None or stream.codec_context is None:
            raise VideoError(url, "no video that FFmpeg can decode", kind="no video")
        yield container, stream


@contextmanager
def translate_live_errors(url: str) -> Iterator[None]:
    """Converts FFmpeg's errors about a live stream to a `VideoError`."""
    try:
        yield
    except av.error.ExitError as error:  # The time limit of `live_container` is over.
        raise VideoError(url, f"sent nothing for {ANSWER_S:.0f} s") from error
    except (av.FFmpegError, ValueError) as error:
        why = "it is a file: leave out --live" if Path(url).is_file() else reason(error)
        raise VideoError(url, f"cannot be read as a live stream: {why}") from error


def live_frames(
    url: str, container: InputContainer, stream: VideoStream, seconds: float, *, short_side: int, resize: Resize
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yields the frames of a live stream as they arrive, each with its time in seconds since the first one.

    Args:
        url: The URL, for messages.
        container, stream: The open stream.
        seconds: The duration, after which nothing is yielded any more. The stream may end before.
        short_side: The largest length of the short side, in pixels.
        resize: See `read_frames`.

    Raises:
        VideoError: The stream is damaged, or nothing comes for `ANSWER_S`.
    """
    shown = FrameBuffer(1, lambda frame: live_shape(url, frame, stream), short_side, None, resize)
    first_s, end_s = None, time.monotonic() + seconds
    with translate_live_errors(url):
        for frame in container.decode(stream):
            first_s = (frame.time or 0.0) if first_s is None else first_s
            now_s = (frame.time or 0.0) - first_s
            if now_s > seconds or time.monotonic() > end_s:
                return
            shown.put(0, frame)
            yield now_s, shown.frames[0].copy()


def live_shape(url: str, frame: VideoFrame, stream: VideoStream) -> DisplayShape:
    """Returns the shape of the frames of a live stream, as a player shows them."""
    return DisplayShape.of(frame, pixel_aspect(url, stream) if stream.sample_aspect_ratio else SQUARE)


def live_container(url: str) -> InputContainer:
    """Opens the container of a live stream, which has to answer within `ANSWER_S` at any time."""
    is_camera = url.startswith(CAMERA)
    options = {} if is_camera else LIVE
    return av.open(
        url, "r", format="v4l2" if is_camera else None, options=options, metadata_errors="ignore", timeout=ANSWER_S
    )
