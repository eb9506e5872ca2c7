"""Videos for the tests, made with PyAV: every frame carries its own number, so that a wrong frame shows itself.

The number is drawn as 12 black or white blocks, 4 across and 3 down, lowest bit first: big enough to survive
any codec, scaling and the trip through RGB.
"""

import ctypes
import multiprocessing
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vivit_train.tools.doctor.inspect_files import FileReport, Settings, inspect_file

ROWS, COLUMNS = 3, 4
OPEN_GOP = "open-gop=1:keyint=24:min-keyint=24:scenecut=0:bframes=3"


@dataclass(frozen=True)
class Numbered:
    """A video and the number that each frame shown by a player must carry."""

    path: Path
    numbers: Sequence[int]


def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height, width]: the luma plane of frame `number`."""
    y, x = np.mgrid[:height, :width]
    bit = (y * ROWS // height) * COLUMNS + x * COLUMNS // width
    return np.where(number >> bit & 1, 235, 16).astype(np.uint8)


def read_number(frame: NDArray[Any]) -> int:
    """The number that an RGB frame [H, W, 3] carries."""
    height, width = frame.shape[:2]
    y = (np.arange(ROWS) + 0.5) * height / ROWS
    x = (np.arange(COLUMNS) + 0.5) * width / COLUMNS
    white = frame[y.astype(int)[:, None], x.astype(int)].mean(-1) > 128
    return int((white.ravel() << np.arange(ROWS * COLUMNS)).sum())


def encode(
    path: Path,
    codec: str = "libx264",
    frames: int = 72,
    size: tuple[int, int] = (160, 96),
    pix_fmt: str = "yuv420p",
    times: Iterable[int] | None = None,
    rotation: int = 0,
    container: dict[str, str] | None = None,
    **options: str,
) -> list[int]:
    """Write frames 0, 1, ... at 30 per second, or at `times` (in 1/30 s); returns the numbers.

    Frames are shown turned counter-clockwise by `rotation`, and are then `size` and upright.
    """
    with av.open(str(path), "w", options=container or {}) as out:
        stream: Any = out.add_stream(codec, rate=30, options={k.replace("_", "-"): v for k, v in options.items()})
        stream.width, stream.height = reversed(size) if rotation % 180 else size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 30)
        if "g" in options:
            stream.codec_context.gop_size = int(options["g"])
        if "bf" in options:
            stream.codec_context.max_b_frames = int(options["bf"])
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in zip(range(frames), times or range(frames), strict=False):
            luma = np.ascontiguousarray(np.rot90(draw(number, *size), -rotation // 90))
            frame = av.VideoFrame.from_ndarray(luma, format="gray").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return list(range(frames))


def remux(source: Path, path: Path, first: int = 0) -> None:
    """Copy the stream without encoding, from the key frame before frame `first` on, with `first` at time 0.

    What comes before time 0 is there to be decoded and not shown: mp4 says so in an edit list.
    """
    with av.open(str(source)) as inp, av.open(str(path), "w") as out:
        stream = inp.streams.video[0]
        copy = out.add_stream_from_template(stream)
        assert stream.time_base is not None
        zero = round(first / 30 / stream.time_base)
        packets = [packet for packet in inp.demux(stream) if packet.size]
        keys = [i for i, p in enumerate(packets) if p.is_keyframe and p.pts is not None and p.pts <= zero]
        for packet in packets[keys[-1] :]:
            assert packet.pts is not None
            assert packet.dts is not None
            packet.pts, packet.dts, packet.stream = packet.pts - zero, packet.dts - zero, copy
            out.mux(packet)


def cut(path: Path, first: int, frames: int, **options: Any) -> list[int]:
    """Frames `first` on of a video, cut without encoding."""
    source = path.with_name(f"source_of_{path.name}.mp4")
    encode(source, frames=frames, **options)
    remux(source, path, first)
    return list(range(first, frames))


def h264(path: Path, **kwargs: Any) -> list[int]:
    return encode(path, **{"g": "24", "bf": "3"} | kwargs)


def open_gop(path: Path) -> list[int]:
    return encode(path, x264_params=OPEN_GOP)


def hevc(path: Path, **kwargs: Any) -> list[int]:
    return encode(path, "libx265", x265_params="log-level=none:keyint=24", **kwargs)


def trimmed(path: Path) -> list[int]:
    """The first half of a video, its edit list ending there."""
    encode(path, g="24", bf="3")
    data = bytearray(path.read_bytes())
    duration = data.index(b"elst") + 12
    data[duration : duration + 4] = struct.pack(">I", struct.unpack_from(">I", data, duration)[0] // 2)
    path.write_bytes(data)
    return list(range(36))


def av1(path: Path) -> list[int]:
    """In a process of its own: as root, SVT-AV1's threads take real-time priority, keep it and keep running."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        return child.submit(encode, path, "libsvtav1", preset="12", g="24").result()


# name -> file name and maker. Where decord would return wrong frames or none, the name is in NOT_FOR_DECORD too.
KINDS: dict[str, tuple[str, Callable[[Path], list[int]]]] = {
    "h264": ("a.mp4", h264),
    "h264_mkv": ("a.mkv", h264),
    "fragmented": ("fragmented.mp4", lambda p: h264(p, container={"movflags": "frag_keyframe+empty_moov"})),
    "gop_1": ("gop1.mp4", lambda p: h264(p, g="1")),
    "gop_2": ("gop2.mp4", lambda p: h264(p, g="2")),
    "long_gop": ("long.mp4", lambda p: encode(p, frames=300)),
    "ten_bit": ("ten.mp4", lambda p: h264(p, pix_fmt="yuv420p10le")),
    "odd_size": ("odd.mp4", lambda p: h264(p, size=(341, 257), pix_fmt="yuv444p", frames=40)),
    "one_frame": ("one.mp4", lambda p: h264(p, frames=1)),
    "two_frames": ("two.mp4", lambda p: h264(p, frames=2)),
    "colon in the name": ("12:30 ü,%d.mp4", h264),
    "vfr": ("vfr.mp4", lambda p: h264(p, times=[i + i * i // 20 for i in range(72)])),
    "vfr_mkv": ("vfr.mkv", lambda p: h264(p, times=[i + i * i // 20 for i in range(72)])),
    "starts_at_5s": ("offset.mp4", lambda p: h264(p, times=range(150, 222))),
    "starts_at_5s_mkv": ("offset.mkv", lambda p: h264(p, times=range(150, 222))),
    "vp8": ("vp8.webm", lambda p: encode(p, "libvpx", g="24", cpu_used="5", auto_alt_ref="1", lag_in_frames="16")),
    "vp9": ("vp9.webm", lambda p: encode(p, "libvpx-vp9", g="24", cpu_used="8", auto_alt_ref="1")),
    "mpeg4_avi": ("mpeg4.avi", lambda p: encode(p, "mpeg4", g="12")),
    "mjpeg_avi": ("mjpeg.avi", lambda p: encode(p, "mjpeg", pix_fmt="yuvj420p")),
    "open_gop": ("open.mp4", open_gop),
    "open_gop_mkv": ("open.mkv", open_gop),
    "hevc": ("hevc.mp4", hevc),
    "hevc_ten_bit": ("hevc10.mp4", lambda p: hevc(p, pix_fmt="yuv420p10le")),
    "av1": ("av1.mp4", av1),
    "cut": ("cut.mp4", lambda p: cut(p, 40, 100, g="24", bf="3")),
    "cut_open_gop": ("cut_open.mp4", lambda p: cut(p, 40, 100, x264_params=OPEN_GOP)),
    "cut_450_packets_300_shown": (
        "cut_long.mp4",
        lambda p: cut(p, 150, 450, x264_params="keyint=500:scenecut=0:bframes=3"),
    ),
    "trimmed": ("trimmed.mp4", trimmed),
    "mpeg4_b_avi": ("mpeg4b.avi", lambda p: encode(p, "mpeg4", g="24", bf="2")),
    "mpeg4_b_mp4": ("mpeg4b.mp4", lambda p: encode(p, "mpeg4", g="24", bf="2")),
    "h264_avi": ("h264.avi", h264),
    "wmv": ("wmv2.wmv", lambda p: encode(p, "wmv2", g="12")),
    "flv": ("a.flv", lambda p: h264(p, g="2")),
    "mpeg_ts": ("a.ts", h264),
    "mpeg_ps": ("a.mpg", lambda p: encode(p, "mpeg2video", g="12", bf="2")),
    "raw_h264": ("raw.h264", h264),
    "rotated_90": ("r90.mp4", lambda p: h264(p, rotation=90)),
    "rotated_180": ("r180.mp4", lambda p: h264(p, rotation=180)),
    "rotated_270": ("r270.mp4", lambda p: h264(p, rotation=270)),
}
NOT_FOR_DECORD = list(KINDS)[list(KINDS).index("open_gop") :]
# torchcodec is not trusted where frames must be counted, and sees itself that it is wrong in some cuts.
NOT_FOR_TORCHCODEC = ["cut_open_gop", *NOT_FOR_DECORD[NOT_FOR_DECORD.index("mpeg4_b_avi") : -3]]


def engines() -> list[str]:
    """The decoders that can be used here; "auto" is "pyav"."""
    libraries = [f"libavcodec.so.{version}" for version in range(58, 64)]
    found = ["pyav"] + ["decord"] * (find_spec("decord") is not None)
    return found + ["torchcodec"] * (find_spec("torchcodec") is not None and any(map(_loads, libraries)))


def _loads(library: str) -> bool:
    """torchcodec takes seconds to import, and says only then that it misses FFmpeg."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def look_or_die(path: str, settings: Settings) -> FileReport:
    """A decoder that does not survive every file. It is here because the child processes import its module."""
    if "crash" in path:
        os._exit(3)
    if "hang" in path:
        time.sleep(60)
    if "bug" in path:
        raise ValueError("told to")
    return inspect_file(path, settings)
