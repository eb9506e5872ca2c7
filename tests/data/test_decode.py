"""The frame that comes back is the frame that was asked for, or there is a VideoError, soon."""

import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import wave
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from videos import KINDS, NOT_FOR_DECORD, NOT_FOR_TORCHCODEC, Numbered, encode, engines, read_number, remux

from vivit_train.data.video import decode
from vivit_train.data.video.decode import import_decoder, read_frames
from vivit_train.data.video.scan import probe, timeline
from vivit_train.utils.errors import UserError, VideoError

Make = Callable[[str], Numbered]
SHARED = Path(__file__).parents[3] / "shared" / "videos"
REAL = sorted([*SHARED.glob("odd/*/*"), *SHARED.glob("ut_interaction/*/*.avi")])
BROKEN = {"corrupted.mp4"}


@pytest.fixture(params=engines())
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def selections(num_frames: int) -> list[list[int]]:
    """In order, windows of stride 2 (clamped), spread over the video, at random with repeats, both ends."""
    draw = random.Random(0)
    starts = [draw.randrange(num_frames) for _ in range(4)]
    return [
        list(range(min(num_frames, 40))),
        *[[min(start + 2 * i, num_frames - 1) for i in range(12)] for start in starts],
        [int(i) for i in np.linspace(0, num_frames - 1, 8)],
        [draw.randrange(num_frames) for _ in range(12)],
        [num_frames - 1],
        [num_frames - 1, 0, num_frames - 1],
    ]


REFUSED = {"decord": NOT_FOR_DECORD, "torchcodec": NOT_FOR_TORCHCODEC}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_asked_for(kind: str, engine: str, numbered: Make) -> None:
    path, numbers = numbered(kind).path, numbered(kind).numbers
    assert probe(path).num_frames == len(numbers)
    if kind in REFUSED.get(engine, ()):
        with pytest.raises(VideoError, match=r"data\.decoder=auto reads it"):
            read_frames(path, np.linspace(0, len(numbers) - 1, 9).astype(int), decoder=engine)
        return
    for indices in selections(len(numbers)):
        frames = read_frames(path, indices, decoder=engine)
        assert frames.dtype == np.uint8
        assert [read_number(frame) for frame in frames] == [numbers[i] for i in indices]


@pytest.mark.parametrize("kind", KINDS)
def test_probe_knows_where_decord_is_wrong(kind: str, numbered: Make) -> None:
    info = probe(numbered(kind).path)
    assert info.seek_safe == (kind not in NOT_FOR_DECORD)
    assert bool(info.reason) == (kind in NOT_FOR_DECORD)


def textured(number: int) -> np.ndarray:
    """uint8 [96, 160, 3]: a picture that moves by a few pixels a frame, so that frames refer to each other."""
    y, x = np.mgrid[:96, :160]
    waves = [np.sin((x + 3 * number) / 5) + np.cos((y - 2 * number) / (7 + channel)) for channel in range(3)]
    return np.stack([np.clip(128 + 60 * wave, 0, 255) for wave in waves], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("pyramid", ["none", "normal"])
def test_frames_that_are_skipped_change_nothing(pyramid: str, tmp_path: Path) -> None:
    """Bit by bit what decoding everything in order gives; also where each frame that is skipped is damaged."""
    path, options = tmp_path / "a.mp4", {"x264-params": f"bframes=4:b-pyramid={pyramid}:b-adapt=0:keyint=50:ref=4"}
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for number in range(120):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(textured(number), format="rgb24")))
        out.mux(stream.encode(None))
    count, truth = in_order(path, set(range(120)))
    assert count == 120
    clips = [range(120)] + [range(start, start + 32 * stride, stride) for stride in (2, 3) for start in range(7)]
    for clip in clips:
        assert np.array_equal(read_frames(path, clip), np.stack([truth[i] for i in clip]))

    data, unused = bytearray(path.read_bytes()), set()
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and not packet.is_keyframe and bytes(packet)[4] >> 5 == 0:  # nal_ref_idc
                at = data.index(bytes(packet))
                data[at + 5 : at + packet.size] = bytes(packet.size - 5)
                unused.add(round(packet.pts * packet.time_base * 30))
    assert len(unused) > 40
    path.write_bytes(data)
    others = sorted(set(range(120)) - unused)
    assert np.array_equal(read_frames(path, others), np.stack([truth[i] for i in others]))


def test_a_decoder_that_is_not_there_is_the_users_error(numbered: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data\.decoder=opencv is none of auto, decord, pyav, torchcodec"):
        read_frames(numbered("h264").path, [0], decoder="opencv")
    for module, name, advice in (
        ("decord", "decord", "pip install decord"),
        ("torchcodec.decoders", "torchcodec", r"pip install 'vivit-train\[torchcodec\]'"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        getattr(decode, f"_{name}").cache_clear()
        for use in (import_decoder, lambda name: read_frames(numbered("h264").path, [0], decoder=name)):
            with pytest.raises(UserError, match=advice):
                use(name)
    for name in ("auto", "pyav"):
        import_decoder(name)  # does without
    assert read_number(read_frames(numbered("h264").path, [5])[0]) == 5
    decode._decord.cache_clear()


def test_probe(numbered: Make) -> None:
    info = probe(numbered("starts_at_5s_mkv").path)
    assert (info.num_frames, info.fps, info.width, info.height, info.rotation) == (72, 30, 160, 96, 0)
    assert info.codec == "h264"
    np.testing.assert_allclose(info.times_s, np.arange(72) / 30, atol=1e-3)

    vfr = probe(numbered("vfr").path)
    np.testing.assert_allclose(vfr.times_s, [(i + i * i // 20) / 30 for i in range(72)], atol=1e-3)
    assert vfr.fps == pytest.approx(71 / vfr.times_s[-1], rel=0.02)

    for kind in ("mpeg4_b_avi", "mpeg_ts", "cut", "h264_avi"):
        times_s = probe(numbered(kind).path).times_s
        np.testing.assert_allclose(times_s, np.arange(len(times_s)) / 30, atol=1e-3)
    assert probe(numbered("rotated_90").path).rotation == 90
    assert probe(numbered("av1").path).codec == "av1"


def test_probe_tells_what_the_header_promises(numbered: Make) -> None:
    """`trimmed` stores 72 frames and shows 36; the header of an mkv tells no number of frames."""
    promised = {"h264": (72, 72 / 30, 24), "h264_mkv": (0, 72 / 30, 24), "trimmed": (72, 36 / 30, 24)}
    promised["gop_2"] = 72, 72 / 30, 2
    for kind, (frames, seconds, gop) in promised.items():
        info = probe(numbered(kind).path)
        assert (info.header_num_frames, info.gop) == (frames, gop), kind
        assert info.promised_s == pytest.approx(seconds, abs=0.05), kind


def test_probe_sees_that_a_file_has_changed(tmp_path: Path) -> None:
    for frames in (5, 9):
        encode(tmp_path / "a.mp4", frames=frames)
        os.utime(tmp_path / "a.mp4", ns=(frames, frames))
        assert probe(tmp_path / "a.mp4").num_frames == frames


@pytest.mark.parametrize(
    ("kind", "size"), [("odd_size", (341, 257)), ("h264", (160, 96)), ("rotated_90", (160, 96))]
)
def test_short_side(kind: str, size: tuple[int, int], engine: str, numbered: Make) -> None:
    path, engine = numbered(kind).path, engine if kind not in REFUSED.get(engine, ()) else "auto"
    for short_side, want in ((None, size), (300, size), (48, (round(48 * size[0] / size[1]), 48))):
        frames = read_frames(path, [7, 3], short_side=short_side, decoder=engine)
        assert frames.shape == (2, want[1], want[0], 3)
        assert [read_number(frame) for frame in frames] == [7, 3]


@pytest.mark.parametrize("kind", ["odd_size", "rotated_90"])
def test_a_cut_is_a_part_of_the_frames(kind: str, engine: str, numbered: Make) -> None:
    engine, sizes = engine if kind not in REFUSED.get(engine, ()) else "auto", []

    def cut(height: int, width: int) -> tuple[int, int, int, int]:
        sizes.append((height, width))
        return 5, 9, 20, 13

    read = partial(read_frames, numbered(kind).path, [7, 3], short_side=48, decoder=engine)
    whole = read()
    assert np.array_equal(read(cut=cut), whole[:, 5:25, 9:22])
    assert sizes == [whole.shape[1:3]]


def test_all_engines_give_the_same_pixels(engine: str, numbered: Make) -> None:
    for short_side in (None, 128):
        read = partial(read_frames, numbered("odd_size").path, [1, 5, 30], short_side=short_side)
        limit = 4 if engine == "torchcodec" and short_side else 0.5  # bilinear, across edges from black to white
        assert np.abs(read(decoder=engine).astype(int) - read(decoder="pyav")).mean() < limit


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_frames_whose_references_were_cut_away_do_not_count(
    start: int, suffix: str, numbered: Make, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(numbered("open_gop").path)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        second_key = [i for i, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second_key + start :]:
            packet.stream = copy
            out.mux(packet)
    first = 24 if start == 0 else 48
    assert probe(path).num_frames == 72 - first
    assert [read_number(frame) for frame in read_frames(path, range(72 - first))] == list(range(first, 72))


def test_wrong_indices_are_the_callers_error(numbered: Make) -> None:
    for indices in ([72], [-1, 0], []):
        with pytest.raises(ValueError, match="which has frames 0 to 71"):
            read_frames(numbered("h264").path, indices)


def damaged_files(numbered: Make, folder: Path) -> dict[str, tuple[str, str]]:
    """Bad files, and the kind and a part of the reason of each VideoError."""
    whole = folder / "whole.mp4"
    encode(whole, frames=200, g="48", bf="3", container={"movflags": "faststart"})
    data, plain = whole.read_bytes(), numbered("h264").path.read_bytes()
    middle = len(data) // 2
    with wave.open(str(folder / "audio.wav"), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16000))
    (folder / "directory.mp4").mkdir()
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"This is not a video.\n" * 20,
        "random.mp4": random.Random(0).randbytes(5000),
        "no_moov.mp4": plain[: len(plain) // 3],
        "truncated.mp4": data[: len(data) * 6 // 10],
        "zeros.mp4": data[:middle] + bytes(2000) + data[middle + 2000 :],
    }.items():
        (folder / name).write_bytes(content)
    return {
        "missing.mp4": ("missing", "file does not exist"),
        "directory.mp4": ("unreadable", "is a directory"),
        "empty.mp4": ("empty", "file is empty (0 bytes)"),
        "text.mp4": ("unreadable", "not a video file that FFmpeg can read"),
        "random.mp4": ("unreadable", "not a video file that FFmpeg can read"),
        "no_moov.mp4": ("unreadable", "not a video file that FFmpeg can read"),
        "audio.wav": ("no video", "no video stream"),
        "truncated.mp4": ("truncated", "of 200 frames"),
        "zeros.mp4": ("damaged", "damaged"),
    }


CHILD = """
import json, pickle, sys
import numpy as np
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.utils.errors import VideoError
reasons = {}
for path in sys.argv[1:]:
    try:
        last = probe(path).num_frames - 1
        for indices in (np.linspace(0, last, 4), np.linspace(0, last, 32), np.arange(last + 1)):
            read_frames(path, indices.astype(int))
    except VideoError as error:
        reasons[path] = pickle.loads(pickle.dumps(error)).kind, error.reason
print(json.dumps(reasons))
assert "decord" not in sys.modules  # which takes memory, and is used by name only
"""


def test_damage_is_a_video_error_and_no_hang(numbered: Make, tmp_path: Path) -> None:
    """In a process of its own: where decord hangs, no signal handler runs."""
    expected = damaged_files(numbered, tmp_path)
    fine = str(numbered("cut_450_packets_300_shown").path)  # decord would not return from this one
    paths = [fine, *(str(tmp_path / name) for name in expected)]
    child = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    reasons = {Path(path).name: reason for path, reason in json.loads(child.stdout).items()}
    assert reasons.keys() == expected.keys()
    for name, (kind, reason) in expected.items():
        assert reasons[name][0] == kind, name
        assert reason in reasons[name][1], name
    assert child.stderr == ""


def test_after_damage_frames_keep_their_times(tmp_path: Path, engine: str) -> None:
    path = tmp_path / "damaged.mkv"
    encode(path, frames=200, g="24", bf="3", container={"cluster_time_limit": "800"})
    data = bytearray(path.read_bytes())
    cluster = data.index(b"\x1f\x43\xb6\x75", len(data) // 2)
    data[cluster : cluster + 20] = random.Random(0).randbytes(20)
    path.write_bytes(data)
    info = probe(path)
    assert 150 < info.num_frames < 200
    last_gop = range(info.num_frames - 8, info.num_frames)
    try:
        numbers = [read_number(frame) for frame in read_frames(path, last_gop, decoder=engine)]
    except VideoError:
        assert engine in REFUSED  # it sees that its frames are others
        return
    assert numbers == [round(info.times_s[i] * 30) for i in last_gop] == list(range(192, 200))


@pytest.mark.parametrize("fault", ["count", "times", "error"])
def test_decord_is_not_believed_where_it_finds_other_frames(
    fault: str, numbered: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    decord = pytest.importorskip("decord")

    class Faulty(decord.VideoReader):
        def __len__(self) -> int:
            return super().__len__() - (fault == "count")

        def get_frame_timestamp(self, idx: np.ndarray) -> np.ndarray:
            return super().get_frame_timestamp(idx) * (2 if fault == "times" else 1)

        def get_batch(self, indices: np.ndarray) -> None:
            if fault == "error":
                raise decord.DECORDError("no")
            pytest.fail("decord was believed")

    monkeypatch.setattr(decord, "VideoReader", Faulty)
    assert [read_number(frame) for frame in read_frames(numbered("h264").path, [50, 3])] == [50, 3]
    with pytest.raises(
        VideoError, match="decord cannot read it" if fault == "error" else "decord finds other frames"
    ):
        read_frames(numbered("h264").path, [50, 3], decoder="decord")


def read_last(path: Path) -> int:
    return read_number(read_frames(path, [probe(path).num_frames - 1])[0])


def test_an_error_keeps_no_reader(numbered: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that inherits one would hang."""
    decord = pytest.importorskip("decord")
    readers = []

    class Faulty(decord.VideoReader):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            readers.append(weakref.ref(self))

        def get_batch(self, indices: np.ndarray) -> None:
            raise decord.DECORDError("no")

    monkeypatch.setattr(decord, "VideoReader", Faulty)
    gc.disable()
    try:
        with pytest.raises(VideoError) as caught:
            read_frames(numbered("h264").path, [5], decoder="decord")
        assert [reader() for reader in readers] == [None], caught
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_workers_read_after_their_parent(numbered: Make) -> None:
    paths = [numbered(kind).path for kind in ("h264", "open_gop")]
    want = [read_last(path) for path in paths]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(read_last, paths * 4).get(timeout=60) == want * 4


def opened_below(folder: Path) -> list[str]:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [path.name for path in (link.resolve() for link in links) if path.is_relative_to(folder)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open files")
def test_what_a_scan_leaves_open_is_read_and_closed(tmp_path: Path) -> None:
    a, b = tmp_path / "a.mp4", tmp_path / "b.avi"
    encode(a, frames=30, g="12", bf="2")
    encode(b, "mpeg4", frames=20, g="6")
    for path in (a, b):  # one at most
        assert timeline(path).num_frames == (30 if path == a else 20)
        assert opened_below(tmp_path) == [path.name]
    assert [read_number(frame) for frame in read_frames(b, [13, 2])] == [13, 2]
    assert opened_below(tmp_path) == []

    timeline(f"{tmp_path}/./b.avi")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(opened_below, (tmp_path,)) == []
    assert read_number(read_frames(f"{tmp_path}/./b.avi", [7])[0]) == 7

    timeline(f"{tmp_path}/./a.mp4")  # and then it is another file
    encode(tmp_path / "new.mp4", frames=9)
    os.replace(tmp_path / "new.mp4", a)
    assert [read_number(frame) for frame in read_frames(f"{tmp_path}/./a.mp4", range(9))] == list(range(9))
    timeline(f"{tmp_path}/././a.mp4")
    (tmp_path / "text.mp4").write_text("This is not a video.")
    with pytest.raises(VideoError):
        timeline(tmp_path / "text.mp4")
    assert opened_below(tmp_path) == []


def test_remuxing_keeps_the_numbers(numbered: Make, tmp_path: Path) -> None:
    """MPEG-TS is read exactly, and so is what `-c copy` makes of it."""
    remux(numbered("h264").path, tmp_path / "a.ts")
    assert read_last(tmp_path / "a.ts") == 71


def in_order(path: Path, wanted: set[int]) -> tuple[int, dict[int, np.ndarray]]:
    """The number of frames and the wanted ones, decoded from the start, apart from `decode`."""
    kept, number = {}, -1
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                rgb = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
                kept[number] = np.rot90(rgb, frame.rotation // 90)
    return number + 1, kept


@pytest.mark.skipif(not REAL, reason="no real videos here")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (number % 3 > 0))
        for number, path in enumerate(path for path in REAL if path.name not in BROKEN)
    ],
    ids=lambda path: path.name,
)
def test_real_files(path: Path) -> None:
    num_frames = probe(path).num_frames
    start = random.Random(path.name).randrange(num_frames)
    indices = [min(start + 2 * i, num_frames - 1) for i in range(8)] + [num_frames - 1, 0, num_frames // 2]
    frames = read_frames(path, indices, square_pixels=False)
    count, truth = in_order(path, set(indices))
    assert count == num_frames
    limit = 4 if "10bits" in path.name else 1  # decord's older FFmpeg places 10-bit colour half a pixel elsewhere
    for i, frame in zip(indices, frames, strict=True):
        assert np.abs(frame.astype(int) - truth[i]).mean() < limit, i


@pytest.mark.parametrize("path", [path for path in REAL if path.name in BROKEN], ids=lambda path: path.name)
def test_real_broken_files(path: Path) -> None:
    with pytest.raises(VideoError, match="damaged"):
        read_frames(path, range(probe(path).num_frames))
