"""Reads exactly the requested frames of a video, or raises a `VideoError`. All decoder code is in this module.

PyAV reads every file, and it was at least as fast as decord on all measured files (docs/benchmarks.md,
"Decoding"). The other decoders, decord and torchcodec, are optional. They refuse files in which they would return
wrong frames.

decord counts frames when it should compare time stamps (dmlc/decord, src/video/video_reader.cc: IndexKeyframes,
SkipFramesImpl). With open GOPs, after edit lists and with B-frames in AVI files, it therefore returns wrong frames
without an error, or it never returns. PyAV and torchcodec seek by time stamp.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from pkgutil import resolve_name
from typing import Any, Literal

import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vivit_train.data.video import storage
from vivit_train.data.video.container import close_last_container, open_video
from vivit_train.data.video.display import DisplayShape
from vivit_train.data.video.frame_buffer import CropFn, FrameBuffer
from vivit_train.data.video.index import Scan, Timeline
from vivit_train.data.video.resize import Resize
from vivit_train.data.video.scan import (
    StrPath,
    VideoInfo,
    display_shape,
    probe,
    read_picture,
    scan_file,
    shape_of_first,
)
from vivit_train.utils.errors import UserError, VideoError, reason

DECODERS = ("auto", "decord", "pyav", "torchcodec")
_Reader = Callable[[str, Scan, NDArray[np.int64], int | None, CropFn | None], NDArray[np.uint8]]


def read_frames(
    path: StrPath,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    short_side: int | None = None,
    decoder: str = "auto",
    cut: CropFn | None = None,
    square_pixels: bool = True,
    resize: Resize = "fast",
) -> NDArray[np.uint8]:
    """Returns the requested frames in the given order, as a player shows them, as uint8 RGB [T, H, W, 3].

    Args:
        path: The path of the video.
        indices: T frame numbers in [0, num_frames), in any order. They may repeat.
        short_side: The largest length of the short side, in pixels. Larger frames are scaled down in proportion.
        decoder: One of `DECODERS`, or the dotted path of a function of your own. "auto" means "pyav", which reads
            every video. "decord" and "torchcodec" refuse videos of which they would return wrong frames.
            torchcodec scales bilinearly, the others bicubically.
        cut: A function that chooses the crop box of the scaled frames. Pixels outside the box are not copied. None
            returns the whole frames.
        square_pixels: Whether frames whose pixels are not square are stretched. Decoders of your own decide this
            themselves.
        resize: "fast" scales frames while their colors are converted. "authors" converts whole frames to RGB and
            resizes them as the authors' code does, smaller ones too; only "pyav" can do this.

    Raises:
        VideoError: If the file is missing, is damaged before the last of these frames, is no video, or is refused.
        UserError: If the decoder does not exist, is not installed, or cannot resize in this way.
        ValueError: If there are no indices, or if the video has no frame with one of these numbers.
    """
    read, scan = _reader(decoder, square_pixels, resize), scan_file(path)
    asked, num_frames = np.asarray(indices, dtype=np.int64), scan.timeline.num_frames
    if not (asked.size and asked.min() >= 0 and asked.max() < num_frames):
        raise ValueError(f"frames {asked.tolist()} requested from {path}, which has frames 0 to {num_frames - 1}")
    wanted, places = np.unique(asked, return_inverse=True)
    frames = read(os.fspath(path), scan, wanted, short_side, cut)
    return frames if np.array_equal(asked, wanted) else frames[places]


def import_decoder(name: str, resize: Resize = "fast") -> None:
    """Imports a decoder in the main process, so that workers need not import it and errors appear immediately.

    Raises:
        UserError: If the decoder does not exist, is not installed, or cannot resize in this way.
    """
    _reader(name, square_pixels=True, resize=resize)
    if name in ("decord", "torchcodec"):
        _torchcodec() if name == "torchcodec" else _decord()


def _reader(decoder: str, square_pixels: bool, resize: Resize) -> _Reader:
    pyav: _Reader = partial(_read_pyav, resize=resize)
    readers: dict[str, Any] = dict(zip(DECODERS, (pyav, _read_decord, pyav, _read_torchcodec), strict=True))
    if resize != "fast" and readers.get(decoder) is not pyav:
        raise UserError(f"data.resize={resize}: data.decoder={decoder} resizes itself; set data.decoder=auto")
    if decoder in readers:
        return partial(readers[decoder], square_pixels=square_pixels)
    if "." not in decoder:
        raise UserError(f"data.decoder={decoder} is none of {', '.join(DECODERS)}")
    try:
        theirs: _Reader = resolve_name(decoder)
        inspect.signature(theirs).bind("path", None, None, None, None)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"data.decoder={decoder}: no such function ({reason(error)})") from error
    except TypeError as error:
        raise UserError(
            f"data.decoder={decoder}: a decoder takes path, scan, wanted, short_side and cut ({reason(error)})"
        ) from error
    return theirs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=close_last_container)  # parent and child would share the file position


def _read_pictures(
    folder: str,
    scan: Scan,
    wanted: NDArray[np.int64],
    short_side: int | None,
    cut: CropFn | None,
    resize: Resize,
) -> NDArray[np.uint8]:
    """Reads the frames `wanted` from a folder of pictures; see `_read_pyav`."""
    paths, num_frames, first = storage.pictures(folder), scan.timeline.num_frames, display_shape(folder)
    if len(paths) != num_frames:
        raise VideoError(folder, f"the folder has {len(paths)} pictures now and had {num_frames} a moment ago")
    shown = FrameBuffer(len(wanted), lambda _: first, short_side, cut, resize)
    for place, number in enumerate(wanted.tolist()):
        picture, _ = read_picture(folder, paths[number])
        if (shape := DisplayShape.of(picture)) != first:
            (width, height), size = first.size, "x".join(map(str, shape.size))
            why = f"{os.path.basename(paths[number])} is {size}, but the first picture is {width}x{height}"
            raise VideoError(folder, why)
        shown.put(place, picture)
    return shown.frames


def _read_pyav(
    path: str,
    scan: Scan,
    wanted: NDArray[np.int64],
    short_side: int | None,
    cut: CropFn | None,
    square_pixels: bool = True,
    resize: Resize = "fast",
) -> NDArray[np.uint8]:
    """Reads the frames `wanted` (ascending) as uint8 [T, height, width, 3].

    It seeks to the key frame before each group of frames and identifies the frames by their pts.
    """
    if scan.is_folder:
        return _read_pictures(path, scan, wanted, short_side, cut, resize)
    times, keys = wanted, np.zeros_like(wanted)  # if frames are counted, their numbers replace the pts
    if scan.start is not None:
        times = scan.start + scan.timeline.times[wanted]
        keys = scan.keys[np.searchsorted(scan.keys, times, side="right") - 1]

    shown = FrameBuffer(
        len(wanted), lambda frame: shape_of_first(path, frame, stream, square_pixels), short_side, cut, resize
    )

    def take(decoded: Iterable[tuple[int | None, VideoFrame]], missing: dict[int, int]) -> None:
        last = max(missing)
        for time, frame in decoded:
            if frame.is_corrupt:  # frames that refer to it are damaged too, but the decoder does not mark them
                raise VideoError(path, "damaged (the decoder marks a frame as corrupt)", kind="damaged")
            if time in missing:
                shown.put(missing.pop(time), frame)
            if time is not None and time >= last:
                break

    with open_video(path, reuse=scan.start is not None) as (container, stream):
        groups = zip(keys.tolist(), times.tolist(), range(len(wanted)), strict=True)
        for key, group in groupby(groups, itemgetter(0)):
            missing = {time: place for _, time, place in group}
            if scan.start is None:
                take(enumerate(container.decode(stream)), missing)
            else:
                take(_decode_from(container, stream, key, missing), missing)
                if missing:  # a seek may land after the target if B-frames refer across short GOPs
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
    """Yields the frames with these pts and some others, each with its pts, starting at a key frame.

    H.264 marks frames that no other frame refers to, and the unneeded ones of these are not decoded. HEVC also
    marks frames to which a higher temporal layer may refer, and other codecs have hardly any marked frames, so no
    frames are skipped for them.
    """
    context = stream.codec_context
    skipped: Literal["NONREF", "DEFAULT"] = "NONREF" if context.codec.canonical_name == "h264" else "DEFAULT"
    awaited = set(times)
    container.seek(key, stream=stream)
    for packet in container.demux(stream):
        context.skip_frame = "DEFAULT" if packet.pts in awaited else skipped
        yield from ((frame.pts, frame) for frame in context.decode(packet))
        awaited.discard(packet.pts)
        if not awaited:  # flushing returns the frames that the decoder still buffers
            yield from ((frame.pts, frame) for frame in context.decode(None))
            return


@cache
def _decord() -> Any:
    try:
        import decord
    except (ImportError, OSError) as error:
        raise UserError(
            "data.decoder=decord cannot be imported: pip install decord (decord2 on ARM), or set data.decoder=pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read_decord(
    path: str,
    scan: Scan,
    wanted: NDArray[np.int64],
    short_side: int | None,
    cut: CropFn | None,
    square_pixels: bool = True,
) -> NDArray[np.uint8]:
    """Reads the frames `wanted` with decord; see `_read_pyav`."""
    decord = _decord()
    _check_file(path, scan, "decord")
    info, size = probe(path), display_shape(path, square_pixels).scaled(short_side)
    _check_plain(path, info, "decord")
    if not info.seek_safe:
        raise VideoError(path, f"decord would return wrong frames ({info.reason}); data.decoder=auto reads it")
    try:
        # Each call opens a new reader, because a reader that is kept decodes ahead without limit and is unusable
        # after the first error.
        reader = decord.VideoReader(f"file:{path}", decord.cpu(0), *size, num_threads=1)
        found_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        _compare(path, "decord", found_s - found_s[:1], info, np.arange(info.num_frames))
        return _box_of(reader.get_batch(wanted).asnumpy(), cut)
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        why = reason(error)
    finally:
        reader = None
    # The error is not chained, because its traceback would keep the reader alive, and a fork that inherits a
    # reader hangs when it frees it.
    raise VideoError(path, f"decord cannot read it ({why})")


@cache
def _torchcodec() -> Any:
    try:
        import torchcodec.decoders
        import torchcodec.transforms
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"data.decoder=torchcodec cannot be imported: pip install 'vivit-train[torchcodec]' ({reason(error)})"
        ) from error
    if torchcodec.ffmpeg_major_version is None:
        raise UserError("data.decoder=torchcodec finds no FFmpeg 4 to 9 on this system: apt install ffmpeg")
    return torchcodec


def _read_torchcodec(
    path: str,
    scan: Scan,
    wanted: NDArray[np.int64],
    short_side: int | None,
    cut: CropFn | None,
    square_pixels: bool = True,
) -> NDArray[np.uint8]:
    """Reads the frames `wanted` with torchcodec; see `_read_pyav`."""
    torchcodec = _torchcodec()
    _check_file(path, scan, "torchcodec")
    if scan.start is None:
        raise VideoError(
            path, f"torchcodec may return wrong frames ({scan.decord_unsafe}); data.decoder=auto reads it"
        )
    _check_plain(path, probe(path), "torchcodec")
    shape = display_shape(path, square_pixels)
    size = shape.scaled(short_side)
    scale = (
        []
        if size == shape.turned(shape.stored_width, shape.stored_height)
        else [torchcodec.transforms.Resize(size[::-1])]
    )
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


def _box_of(frames: NDArray[np.uint8], cut: CropFn | None) -> NDArray[np.uint8]:
    top, left, height, width = cut(*frames.shape[1:3]) if cut else (0, 0, *frames.shape[1:3])
    return frames[:, top : top + height, left : left + width]


def _check_file(path: str, scan: Scan, decoder: str) -> None:
    if scan.is_folder or not storage.is_plain(path):
        raise VideoError(path, f"{decoder} reads only files on the disk; data.decoder=auto reads it")


def _check_plain(path: str, info: VideoInfo, decoder: str) -> None:
    why = "mirrored" if info.mirrored else info.wide_color and f"{info.wide_color} colors"
    if why:
        raise VideoError(
            path, f"{decoder} would show it otherwise than a player ({why}); data.decoder=auto reads it"
        )


def _compare(
    path: str, decoder: str, found_s: NDArray[np.floating[Any]], times: Timeline, numbers: NDArray[np.int64]
) -> None:
    """Checks that a decoder returned the right frames, by comparing its times with those of the scan.

    Args:
        path: The path of the video.
        decoder: The name of the decoder.
        found_s: The times of the frames that the decoder returned, in seconds from the first frame, [n].
        times: The timeline of the video.
        numbers: The frame numbers that were requested, [n].

    Raises:
        VideoError: If a time differs by half of the smallest frame distance or more.
    """
    tolerance_s = times.time_base * float(times.pts_deltas.min() if times.pts_deltas.size else 1) / 2
    if not (found_s.shape == numbers.shape and (np.abs(found_s - times.times_s[numbers]) < tolerance_s).all()):
        raise VideoError(
            path, f"{decoder} finds other frames than the packets contain; data.decoder=auto reads it"
        )
