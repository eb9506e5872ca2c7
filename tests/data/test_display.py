"""Frames look as FFmpeg itself shows them: upright, with square pixels, in BT.709."""

import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image
from videos import engines

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.video.color import to_bt709
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.tools.doctor import inspect_files, problems
from vivit_train.tools.encode import Settings, encode
from vivit_train.utils.errors import VideoError

ONE = 1 << 16
# EXIF orientation -> the part (a, b, c, d) of the display matrix, and what FFmpeg's command line inserts for it.
MATRICES: dict[str, tuple[tuple[int, int, int, int], list[tuple[str, str]]]] = {
    "as stored": ((1, 0, 0, 1), []),
    "hflip": ((-1, 0, 0, 1), [("hflip", "")]),
    "turned by 180": ((-1, 0, 0, -1), [("hflip", ""), ("vflip", "")]),
    "vflip": ((1, 0, 0, -1), [("vflip", "")]),
    "transpose": ((0, 1, 1, 0), [("transpose", "cclock_flip")]),
    "clockwise": ((0, 1, -1, 0), [("transpose", "clock")]),
    "anti-transpose": ((0, -1, -1, 0), [("transpose", "clock_flip")]),
    "counterclockwise": ((0, -1, 1, 0), [("transpose", "cclock")]),
}
ASPECTS = (Fraction(1), Fraction(4, 3), Fraction(8, 9))
# name -> pixel format, color space, primaries, transfer, range: FFmpeg's numbers
COLORS: dict[str, tuple[str, int, int, int, int]] = {
    "untagged": ("yuv420p", 2, 2, 2, 0),
    "BT.601": ("yuv420p", 5, 6, 6, 1),
    "BT.709": ("yuv420p", 1, 1, 1, 1),
    "BT.709, full range": ("yuv420p", 1, 1, 1, 2),
    "BT.2020": ("yuv420p10le", 9, 9, 14, 1),
    "PQ": ("yuv420p10le", 9, 9, 16, 1),
    "HLG": ("yuv420p10le", 9, 9, 18, 1),
}
WIDE = ("BT.2020", "PQ", "HLG")
SIZE = (96, 64)


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: smooth, colorful and unlike itself when turned or mirrored."""
    y, x = np.mgrid[:height, :width]
    waves = 40 * np.sin(x / 9 + number)
    rgb = np.stack([230 * x / width, 230 * y / height + 10, 150 * (1 - x / width) + waves], -1)
    return rgb.clip(0, 255).astype(np.uint8)


def make(
    path: Path,
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1),
    aspect: Fraction = Fraction(1),
    color: str = "untagged",
    frames: int = 3,
    size: tuple[int, int] = SIZE,
    **options: str,
) -> Path:
    """Writes a video with this display matrix, pixel aspect and color."""
    pix_fmt, space, primaries, transfer, color_range = COLORS[color]
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=30, options={"crf": "8"} | options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        context = stream.codec_context
        context.sample_aspect_ratio, context.colorspace, context.color_range = aspect, space, color_range
        context.color_primaries, context.color_trc = primaries, transfer
        a, b, c, d = (ONE * value for value in matrix)
        if matrix != (1, 0, 0, 1):
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number in range(frames):
            drawn = picture(number, *size)
            if color in WIDE:  # BT.709 has no colors as saturated as these, and FFmpeg clips them in YUV
                drawn = drawn // 2 + 64
            frame = av.VideoFrame.from_ndarray(drawn).reformat(format=pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 30)
            frame.colorspace, frame.color_range = space, color_range
            frame.color_primaries, frame.color_trc = primaries, transfer
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def by_ffmpeg(path: Path, *filters: tuple[str, str]) -> list[NDArray[np.uint8]]:
    """The frames that FFmpeg's filters give, uint8 RGB [H, W, 3], decoded and filtered apart from the package."""
    with av.open(str(path)) as container:
        return list(filtered(container, container.streams.video[0], filters))


def filtered(container: Any, stream: Any, filters: tuple[tuple[str, str], ...]) -> Iterator[NDArray[np.uint8]]:
    graph = None
    for frame in container.decode(stream):
        if graph is None:
            aspect = stream.sample_aspect_ratio or 1
            color = f"colorspace={frame.colorspace}:range={frame.color_range}:time_base=1/30"
            source = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:pixel_aspect={aspect}"
            graph = Graph()
            nodes = [graph.add("buffer", f"{source}:{color}"), *(graph.add(*one) for one in filters)]
            graph.link_nodes(*nodes, graph.add("format", "rgb24"), graph.add("buffersink"))
            graph.configure()
        graph.vpush(frame)
        yield graph.vpull().to_ndarray()


SQUARED = ("scale", "w=iw*sar:h=ih:flags=bicubic")
TO_BT709 = ("colorspace", "all=bt709:iall=bt2020:itrc=bt2020-10:format=yuv420p")  # of BT.2020 without HDR


def difference(one: Any, other: Any) -> float:
    """The mean difference, of 255, of the worst frame."""
    return max(float(np.abs(a.astype(int) - b).mean()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("color", [color for color in COLORS if color not in ("PQ", "HLG")])
def test_frames_are_those_that_ffmpeg_shows(color: str, tmp_path: Path) -> None:
    """Of all combinations of display matrices, pixel aspects and colors."""
    for (name, (matrix, turns)), aspect in product(MATRICES.items(), ASPECTS):
        path = make(tmp_path / "a.mp4", matrix, aspect, color)
        mapping = [TO_BT709] if color in WIDE else []
        want = by_ffmpeg(path, *mapping, *turns, SQUARED)
        got = read_frames(path, range(3))
        assert got.shape[1:] == want[0].shape, (name, aspect)
        assert difference(got, want) < 2, (name, aspect)
        info = probe(path)
        assert (info.height, info.width) == got.shape[1:3]
        assert info.wide_color == (color if color in WIDE else "")
        assert info.mirrored == (name in ("hflip", "vflip", "transpose", "anti-transpose"))
        plain = read_frames(path, range(3), square_pixels=False)
        assert difference(plain, by_ffmpeg(path, *mapping, *turns)) < 2, (name, aspect)
        path.unlink()


def by_command(path: Path, color: str) -> NDArray[np.uint8]:
    """The frames that the command `ffmpeg` shows, uint8 RGB, one after another: it turns and mirrors by itself."""
    filters = [*([TO_BT709] if color in WIDE else []), SQUARED, ("setsar", "1")]
    graph = ",".join("=".join(one) for one in filters)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", graph, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    return np.frombuffer(subprocess.check_output(command), np.uint8)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the command ffmpeg is not installed")
@pytest.mark.parametrize(
    ("color", "aspect"),
    [
        pytest.param(color, aspect, marks=() if (color, aspect) == ("BT.601", ASPECTS[1]) else pytest.mark.slow)
        for color, aspect in product([color for color in COLORS if color not in ("PQ", "HLG")], ASPECTS)
    ],
)
def test_frames_are_those_of_the_command_ffmpeg(color: str, aspect: Fraction, tmp_path: Path) -> None:
    """For all eight display matrices: three turns, two flips, two transposes, and none."""
    for name, (matrix, _) in MATRICES.items():
        path = make(tmp_path / "a.mp4", matrix, aspect, color)
        got = read_frames(path, range(3))
        assert difference(got, by_command(path, color).reshape(got.shape)) < 2, name
        path.unlink()


@pytest.mark.parametrize("color", ["PQ", "HLG"])
def test_hdr_is_mapped_to_an_ordinary_screen(color: str, tmp_path: Path) -> None:
    """Black, reference white (203 cd/m² of PQ, 75% of HLG) and light between and above, with all grays gray."""
    code = {"PQ": 0.5807, "HLG": 0.75}[color]
    levels = np.array([0, code / 2, code, (1 + code) / 2, 1])
    luma = np.repeat(np.rint(64 + 876 * levels), 16)[None].repeat(16, 0).astype(np.uint16)
    planes = np.concatenate([luma.ravel(), np.full(luma.size // 2, 512, np.uint16)]).reshape(24, -1)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p10le")
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = (9, 1, 9, COLORS[color][3])
    shown = to_bt709(frame, 80, 16)[8, 8::16].astype(int)
    assert np.abs(shown - shown[:, :1]).max() <= 2
    black, gray, white, bright, brightest = shown[:, 0].tolist()
    assert black == 0
    assert 20 < gray < 110
    assert 180 < white < 230
    assert white < bright < brightest
    assert brightest >= 254


def test_pixels_that_no_video_has_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", aspect=Fraction(50))
    with pytest.raises(VideoError, match=r"50 times as wide as high.*data\.square_pixels=false"):
        read_frames(path, [0])
    assert read_frames(path, [0], square_pixels=False).shape == (1, 64, 96, 3)


@pytest.mark.parametrize("color", ["untagged", "BT.709, full range", "PQ"])
def test_prepared_copies_look_the_same(color: str, tmp_path: Path) -> None:
    for name, aspect in product(MATRICES, ASPECTS[:2]):
        source = make(tmp_path / "a.mp4", MATRICES[name][0], aspect, color)
        encode(str(source), str(tmp_path / "b.mp4"), Settings(crf=8))
        info, want = probe(tmp_path / "b.mp4"), read_frames(source, range(3))
        assert (info.height, info.width) == want.shape[1:3]
        assert (info.rotation, info.mirrored, info.wide_color, info.interlaced) == (0, False, "", False)
        assert difference(read_frames(tmp_path / "b.mp4", range(3)), want) < 4, (name, aspect)
        source.unlink()
        (tmp_path / "b.mp4").unlink()


def test_interlaced_video_is_deinterlaced_by_prepare(tmp_path: Path) -> None:
    """A bar that moves by 8 pixels a field has combed edges as stored, and none in the copy."""
    source, size, frames = tmp_path / "a.mp4", (160, 96), 12
    with av.open(str(source), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"x264-params": "tff=1", "crf": "8"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            gray = np.full(size[::-1], 40, np.uint8)
            for field in (0, 1):
                start = 8 * (2 * number % 16 + field)
                gray[field::2, start : start + 24] = 200
            frame = av.VideoFrame.from_ndarray(gray, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert probe(source).interlaced
    info = encode(str(source), str(tmp_path / "b.mp4"), Settings(crf=8))
    assert (info.num_frames, info.interlaced) == (frames, False)

    def combs(path: Path) -> float:
        rows = read_frames(path, range(frames)).astype(int)[..., 0]
        return float(np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:]).mean())

    assert combs(tmp_path / "b.mp4") < combs(source) / 4


def two_sizes(path: Path, change: int = 6, frames: int = 12) -> Path:
    """A VP8 video of 96x64 pixels that has twice the size from frame `change` on, as video calls record."""
    small, large = path.with_name("small.webm"), path.with_name("large.webm")
    parts = []
    for part, size in ((small, (96, 64)), (large, (192, 128))):
        with av.open(str(part), "w") as out:
            stream: Any = out.add_stream("libvpx", rate=30, options={"cpu-used": "5", "crf": "4", "b": "4M"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number, *size))
                frame.pts, frame.time_base = number, Fraction(1, 30)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        with av.open(str(part)) as container:
            parts.append([packet for packet in container.demux(video=0) if packet.size])
    with av.open(str(small)) as template, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(template.streams.video[0])
        for number, packet in enumerate([*parts[0][:change], *parts[1][: frames - change]]):
            packet.pts = packet.dts = round(number * 1000 / 30)
            packet.time_base, packet.stream = Fraction(1, 1000), copy
            out.mux(packet)
    return path


def test_a_size_that_changes_midway_is_scaled_to_the_first(tmp_path: Path) -> None:
    path = two_sizes(tmp_path / "a.webm")
    assert (probe(path).width, probe(path).height) == (96, 64)
    want = [picture(number % 6, 96, 64) for number in range(12)]
    for indices in (range(12), [9, 2], [10]):
        assert difference(read_frames(path, indices), [want[i] for i in indices]) < 12
    encode(str(path), str(tmp_path / "b.mp4"), Settings(crf=8))
    assert difference(read_frames(tmp_path / "b.mp4", range(12)), want) < 12


def test_of_several_streams_the_default_one_is_read(tmp_path: Path) -> None:
    parts = [make(tmp_path / f"{i}.mp4", size=size) for i, size in enumerate([(192, 128), (96, 64)])]
    for chosen in (0, 1):
        path = tmp_path / f"both_{chosen}.mkv"
        with av.open(str(path), "w") as out:
            inputs = [av.open(str(part)) for part in parts]
            copies = [out.add_stream_from_template(one.streams.video[0]) for one in inputs]
            for i, copy in enumerate(copies):
                copy.disposition = Disposition.default if i == chosen else Disposition(0)
            packets = [[packet for packet in one.demux(video=0) if packet.size] for one in inputs]
            for pair in zip(*packets, strict=True):
                for packet, copy in zip(pair, copies, strict=True):
                    packet.stream = copy
                    out.mux(packet)
            for one in inputs:
                one.close()
        info = probe(path)
        assert (info.width, info.num_streams) == ((192, 96)[chosen], 2)
        assert read_frames(path, [1]).shape[2] == (192, 96)[chosen]


def test_the_doctor_names_each_kind(tmp_path: Path) -> None:
    """With what is done about it, and which of them `vivit prepare` mends."""
    files = {
        "mirrored": make(tmp_path / "mirrored.mp4", (-1, 0, 0, 1)),
        "rotated": make(tmp_path / "rotated.mp4", (0, 1, -1, 0)),
        "non-square pixels": make(tmp_path / "wide.mp4", aspect=Fraction(4, 3)),
        "HDR": make(tmp_path / "hdr.mp4", color="PQ"),
        "size changes": two_sizes(tmp_path / "resized.webm"),
        "": make(tmp_path / "plain.mp4"),
    }
    settings = inspect_files.Settings(frames=3, stride=1, fps=None, short_side=64)
    entries = {str(path): inspect_files.inspect_file(str(path), settings) for path in files.values()}
    manifest = ClipTable(np.array(list(entries)), np.zeros((len(entries), 1), np.int64), np.array(list(entries)))
    found, _ = problems.find_problems({"train": manifest}, ["a"], entries, settings)
    of_frames = {
        "mirrored",
        "rotated",
        "non-square pixels",
        "HDR",
        "size changes",
        "interlaced",
        "several streams",
    }
    named = {(problem.kind, problem.path): problem.detail for problem in found if problem.kind in of_frames}
    assert set(named) == {(kind, str(path)) for kind, path in files.items() if kind}
    assert named["size changes", str(files["size changes"])] == "from 96x64 to 192x128"
    assert named["non-square pixels", str(files["non-square pixels"])] == "4/3 times as wide as high"
    assert {"interlaced", "HDR", "size changes"} <= set(problems.TO_ENCODE)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_other_decoders_refuse_what_they_would_show_otherwise(decoder: str, tmp_path: Path) -> None:
    if decoder not in engines():
        pytest.skip(f"{decoder} cannot be used here")
    for i, (matrix, color) in enumerate([((-1, 0, 0, 1), "untagged"), ((1, 0, 0, 1), "HLG")]):
        path = make(tmp_path / f"{i}.mp4", matrix, color=color)
        with pytest.raises(VideoError, match=r"than a player.*data\.decoder=auto reads it"):
            read_frames(path, [0], decoder=decoder)
    wide = make(tmp_path / "wide.mp4", aspect=Fraction(4, 3))
    for square_pixels in (True, False):
        read = partial(read_frames, wide, [2, 0], square_pixels=square_pixels)
        assert difference(read(decoder=decoder), read()) < 4


def test_a_photo_with_exif_is_turned(tmp_path: Path) -> None:
    """PyAV raises an error for the side data of its frame."""
    image = Image.fromarray(picture(0, *SIZE))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "0.jpg", quality=95, exif=exif)
    (shown,) = read_frames(tmp_path, [0])
    assert shown.shape == (96, 64, 3)
    assert np.abs(shown.astype(int) - np.rot90(picture(0, *SIZE), -1)).mean() < 3
