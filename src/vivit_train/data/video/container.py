"""Opens a video with FFmpeg: which formats it may have, and the one file that stays open between two readings."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, NamedTuple

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from vivit_train.data.video import storage
from vivit_train.utils.errors import VideoError, reason

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


class _Opened(NamedTuple):
    path: str
    state: storage.State
    stack: ExitStack  # closes it
    container: InputContainer
    stream: VideoStream


_last_container: list[_Opened] = []  # the file that was scanned last, unless another was opened since


def _take_last_container() -> _Opened | None:
    with suppress(IndexError):  # of several threads one gets it
        return _last_container.pop()
    return None


def close_last_container() -> None:
    if opened := _take_last_container():
        opened.stack.close()


@contextmanager
def open_video(
    path: str, *, leave_open: bool = False, reuse: bool = False
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its video stream for PyAV; what FFmpeg raises meanwhile becomes a `VideoError`.

    Args:
        leave_open: for what is opened next: after a scan that is mostly the same file, to be read.
        reuse: a file that was left open will do, wherever in it that was.
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
            raise VideoError(path, f"damaged ({error.strerror})", kind="damaged") from error
        if leave_open:
            _last_container.append(opened._replace(stack=stack.pop_all()))


def _open_anew(path: str, state: storage.State) -> _Opened:
    with ExitStack() as stack:
        container = stack.enter_context(_container(path, stack.enter_context(storage.opened(path))))
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
