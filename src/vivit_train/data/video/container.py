"""Opens videos with FFmpeg, restricts their formats, and keeps one file open between a scan and a read."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, NamedTuple

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from vivit_train.data.video import storage
from vivit_train.utils.errors import VideoError

# The allowed formats, whatever the file extension. Formats that refer to other files (ffconcat, m3u8, dash, sdp,
# numbered pictures) are excluded. Audio formats are included so that an audio file gets its own error message.
FORMATS = (
    "mov,matroska,avi,flv,live_flv,kux,asf,mpegts,mpegtsraw,mpeg,mpegvideo,ogg,gif,apng,mxf,ivf,h264,hevc,vvc,obu,av1,"
    "m4v,h261,h263,vc1,dv,nut,nsv,rm,swf,gxf,lxf,cavsvideo,mjpeg,smjpeg,yuv4mpegpipe,wtv,ivr,nuv,amv,webm,wav,mp3,flac,aac"
)
OPENING = {
    "codec_whitelist": "none",  # keeps FFmpeg from decoding a frame on each open just to probe the stream
    "format_whitelist": FORMATS,
    "protocol_whitelist": "file,subfile",  # the protocols that storage.py uses
}
MAX_PIXELS = 16384 * 8640  # the largest frame, 16k, which takes half a gigabyte


class _Opened(NamedTuple):
    """An open video and its video stream."""

    path: str
    state: storage.State
    stack: ExitStack  # closes the container and the file
    container: InputContainer
    stream: VideoStream


_last_container: list[_Opened] = []  # at most one item: the file that was left open


def _take_last_container() -> _Opened | None:
    with suppress(IndexError):  # another thread may have taken it first
        return _last_container.pop()
    return None


def close_last_container() -> None:
    """Closes the file that was left open, if there is one."""
    if opened := _take_last_container():
        opened.stack.close()


@contextmanager
def open_video(
    path: str, *, leave_open: bool = False, reuse: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a file and yields its container and its video stream.

    Args:
        path: The path of the video.
        leave_open: Whether to keep the file open for the next call, because a scan usually precedes a read.
        reuse: Whether a file that was left open may be used, at whatever position it has.

    Raises:
        VideoError: If the file cannot be opened or has no video stream, or if FFmpeg raises an error inside the
            context.
    """
    state, opened = storage.state(path), _take_last_container()
    if opened and not (reuse and opened[:2] == (path, state)):
        opened.stack.close()
        opened = None
    opened = opened or _open_anew(path, state)
    with opened.stack as stack:
        try:
            yield opened.container, opened.stream
        except av.FFmpegError as error:
            raise VideoError(path, f"damaged{ffmpeg_reason(error)}", kind="damaged") from error
        if leave_open:
            _last_container.append(opened._replace(stack=stack.pop_all()))


def _open_anew(path: str, state: storage.State) -> _Opened:
    with ExitStack() as stack:
        container = stack.enter_context(_container(path, stack.enter_context(storage.opened(path))))
        stream = best_video_stream(container)
        if stream is None:
            raise VideoError(path, "no video stream", kind="no video")
        if stream.codec_context is None:
            raise VideoError(path, "FFmpeg has no decoder for the codec")
        for other in container.streams:
            other.discard = Discard.none if other is stream else Discard.all
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        # Workers provide the parallelism, and PyAV's threads can hang after a fork.
        stream.codec_context.thread_count = 1
        return _Opened(path, state, stack.pop_all(), container, stream)


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Returns the video streams of a file, without cover pictures and thumbnails."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def best_video_stream(container: InputContainer) -> VideoStream | None:
    """Returns the video stream that a player shows: FFmpeg's choice, which prefers the default stream."""
    streams, best = video_streams(container), container.streams.best("video")
    if isinstance(best, VideoStream) and best in streams:
        return best
    defaults = [stream for stream in streams if stream.disposition & Disposition.default]
    return next(iter(defaults or streams), None)


def ffmpeg_reason(error: av.FFmpegError) -> str:
    """Returns FFmpeg's reason in parentheses, or "" if it only says that the data is invalid."""
    return "" if isinstance(error, av.error.InvalidDataError) else f" ({error.strerror})"


def _container(path: str, file: str | BinaryIO) -> InputContainer:
    try:
        return av.open(file, "r", options=OPENING, metadata_errors="ignore")
    except av.FFmpegError as error:
        raise VideoError(path, f"not a video file that FFmpeg can read{ffmpeg_reason(error)}") from error
    except ValueError as error:
        raise VideoError(path, "its name contains a zero byte") from error
