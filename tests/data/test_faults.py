"""Whatever a file holds: frames of the right shape or a VideoError, soon; nothing leaks; a hang names its file."""

import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import SHARED
from torch.utils.data import DataLoader, Dataset
from videos import Numbered, encode, engines, read_number

from vivit_train.data import decode
from vivit_train.data.decode import HUNG, deadline, probe, read_frames
from vivit_train.errors import VideoError

Make = Callable[[str], Numbered]
ODD = sorted((SHARED / "videos" / "odd").glob("*/*"))
FORMATS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4"}
LIES = (0, 1, 1000, 2**31 - 1, 2**32 - 1)
MP4_FIELDS = {  # box -> offsets of 32-bit fields behind its name
    b"mvhd": (12, 16),  # time scale, duration
    b"tkhd": (20, 40, 44, 76, 80),  # duration, matrix (rotation), width, height
    b"elst": (4, 8, 12),  # entries, duration, start
    b"mdhd": (12, 16),
    b"stts": (4, 8, 12),  # entries, frames, duration of each
    b"ctts": (4, 8, 12),
    b"stss": (4, 8),  # key frames
    b"stsz": (4, 8, 12),  # size of all, frames, size of the first
    b"stco": (4, 8),  # chunks, place of the first
    b"avcC": (0, 6),
}
AVI_FIELDS = {b"avih": (4, 20, 36, 40), b"strh": (24, 28, 36), b"idx1": (0, 12, 16)}


def overwritten(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + value.to_bytes(4) + data[at + 4 :]


def zoo(folder: Path) -> list[Path]:
    """Files that a crawl may hold: cut, overwritten, flipped, without video, with headers that lie."""
    draw, files = random.Random(0), {}
    for suffix, codec in FORMATS.items():
        encode(folder / f"whole.{suffix}", codec, 40, (96, 64), g="12")
        encode(folder / f"one.{suffix}", codec, 1, (96, 64))
        data = (folder / f"whole.{suffix}").read_bytes()
        for tenth in range(10):
            files[f"cut{tenth}.{suffix}"] = data[: len(data) * tenth // 10 + 1]
        for start in (0, len(data) // 3, len(data) // 2, len(data) - 200):
            files[f"zeros{start}.{suffix}"] = data[:start] + bytes(200) + data[start + 200 :]
        for flips in (1, 3, 10, 30, 100, 1000):
            flipped = bytearray(data)
            for _ in range(flips):
                flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            files[f"flips{flips}.{suffix}"] = bytes(flipped)
        files[f"empty.{suffix}"] = b""
        files[f"text.{suffix}"] = b"This is not a video.\n" * 20
        files[f"noise.{suffix}"] = draw.randbytes(5000)
        files[f"twice.{suffix}"] = data + data
        for box, offsets in {"mp4": MP4_FIELDS, "avi": AVI_FIELDS}.get(suffix, {}).items():
            at = data.find(box)
            for offset in offsets if at >= 0 else ():
                for lie in LIES:
                    files[f"{box.decode()}{offset}_{lie}.{suffix}"] = overwritten(data, at + 4 + offset, lie)
        with av.open(str(folder / f"audio.{suffix}"), "w") as out:
            stream = out.add_stream("libopus" if suffix == "webm" else "aac", rate=48000)
            for _ in range(4):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
                sound.sample_rate = 48000
                out.mux(stream.encode(sound))
            out.mux(stream.encode(None))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


# Reads the first, the last and spread frames of each path; prints what became of it.
READ_ALL = """
import json, sys
import numpy as np
from vivit_train.data.decode import deadline, probe, read_frames
from vivit_train.errors import VideoError
engine, seconds, *paths = sys.argv[1:]
for path in paths:
    results = []
    with deadline(float(seconds), path):
        try:
            info = probe(path)
            last = info.num_frames - 1
            side = min(64, info.width, info.height)
        except VideoError as error:
            results.append(error.reason)
        else:
            for indices in ([0], [last], np.linspace(0, last, 7).astype(int)):
                try:
                    frames = read_frames(path, indices, short_side=64, decoder=engine)
                    shape = len(frames), min(frames.shape[1:3]), frames.shape[3], str(frames.dtype)
                    results.append(True if shape == (len(indices), side, 3, "uint8") else str(shape))
                except VideoError as error:
                    results.append(error.reason)
    print(json.dumps([path, results]), flush=True)
"""


def read_all(engine: str, paths: list[Path], seconds: float) -> dict[str, list[bool | str]]:
    """By name: for each of its readings, True where the shape was right, or why there was none."""
    command = [sys.executable, "-c", READ_ALL, engine, str(seconds), *map(str, paths)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    return {Path(path).name: results for path, results in map(json.loads, child.stdout.splitlines())}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("auto", "pyav"))) for name in engines()]
)
def test_frames_or_a_video_error_soon(engine: str, bad_files: list[Path]) -> None:
    found = read_all(engine, bad_files, 20)
    assert found.keys() == {path.name for path in bad_files}
    for name, results in found.items():
        assert all(result is True or "(" not in result[:1] for result in results), name
        if name.startswith(("empty", "text", "noise", "audio", "cut0")):
            assert len(results) == 1, name
        if name.startswith(("whole", "one")) and engine in ("auto", "pyav"):
            assert results == [True] * 3, name


@pytest.mark.slow
@pytest.mark.skipif(not ODD, reason="no ../shared beside this clone")
@pytest.mark.parametrize("engine", engines())
def test_odd_files_too(engine: str) -> None:
    found = read_all(engine, ODD, 60)
    for name, results in found.items():
        assert name == "corrupted.mp4" or results == [True] * 3 or engine in ("decord", "torchcodec"), (
            name,
            results,
        )


# leaks


def state() -> tuple[float, int]:
    """This process's memory in MB, and its open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("times", [500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [*(engine for engine in engines() if engine != "auto"), "bad"])
def test_nothing_grows(case: str, times: int, tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", frames=12, size=(64, 48), g="6")
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 20)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    bad = [tmp_path / name for name in ("text.mp4", "cut.mkv", "missing.mp4")]

    def use(i: int) -> None:
        decode._scans.kept.clear()
        decode._scans.num_bytes = 0
        if case != "bad":
            assert len(read_frames(tmp_path / "a.mp4", [1, 11], decoder=case)) == 2
        else:
            with pytest.raises(VideoError):
                probe(bad[i % len(bad)])

    for i in range(100):
        use(i)
    memory, files = state()
    for i in range(times):
        use(i)
    more_memory, more_files = state()
    assert more_files <= files
    assert more_memory - memory < 5


@pytest.fixture
def no_scans(monkeypatch: pytest.MonkeyPatch) -> decode._Scans:
    monkeypatch.setattr(decode, "_scans", decode._Scans())
    return decode._scans


def test_a_long_video_is_scanned_once_and_kept_in_two_bytes_a_frame(
    tmp_path: Path, no_scans: decode._Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "one.mp4", "mpeg4", 1, (32, 32))
    with av.open(str(tmp_path / "one.mp4")) as inp, av.open(str(tmp_path / "long.mp4"), "w") as out:
        template = inp.streams.video[0]
        stream = out.add_stream_from_template(template)
        content = bytes(next(inp.demux(template)))
        for i in range(60_000):
            packet = av.Packet(content)
            packet.pts = packet.dts = i * 512
            packet.time_base, packet.stream, packet.is_keyframe = template.time_base, stream, i % 60 == 0
            out.mux(packet)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        info = probe(tmp_path / "long.mp4")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert info.num_frames == 60_000
    assert held - before < 2.5 * 60_000
    assert peak - before < 120 * 60_000
    monkeypatch.setattr(decode, "_scan", lambda path: pytest.fail("scanned again"))
    assert len(read_frames(tmp_path / "long.mp4", [59_999, 3])) == 2
    assert probe(tmp_path / "long.mp4") is info


def test_scans_are_kept_as_far_as_memory_allows(
    numbered: Make, tmp_path: Path, no_scans: decode._Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(50)]
    for path in paths:
        path.hardlink_to(numbered("h264").path)
    probe(numbered("h264").path)
    tracemalloc.start()
    try:
        infos = [probe(path) for path in paths]
        traced = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    each = no_scans.num_bytes / 51
    assert 0.5 < traced / 50 / each < 1.1
    assert [probe(path) for path in paths] == infos
    monkeypatch.setattr(decode, "CACHE_BYTES", int(10.5 * each))
    probe(paths[0])
    assert [path for path, *_ in no_scans.kept] == [str(path) for path in [*paths[41:], paths[0]]]
    assert no_scans.num_bytes == pytest.approx(10 * each)


# hangs

NATIVE_SLEEP = "import ctypes; ctypes.CDLL(None).sleep(1000)"
DECORD = "import decord; decord.VideoReader({path!r}, num_threads=1).get_batch([0, 149, 299, 449])"


@pytest.mark.skipif(sys.platform == "win32", reason="its C library has no sleep")
@pytest.mark.parametrize("call", [NATIVE_SLEEP, DECORD], ids=["sleep", "decord"])
def test_a_hang_ends_the_process_and_names_the_file(call: str, numbered: Make, tmp_path: Path) -> None:
    if call is DECORD and "decord" not in engines():
        pytest.skip("no decord")
    path, log = str(numbered("cut_450_packets_300_shown").path), tmp_path / "hung.txt"
    code = f"from vivit_train.data.decode import deadline\nwith deadline(1, {path!r}, {str(log)!r}): "
    started = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", code + call.format(path=path)], capture_output=True, text=True, timeout=60
    )
    assert child.returncode == HUNG, child.stderr
    assert time.monotonic() - started > 1
    line = f"cannot read video {path}: its decoder has not come back after 1 s\n"
    assert (log.read_text(), child.stderr) == (line, line)


class Hangs(Dataset[int]):
    def __init__(self, log: Path) -> None:
        self.log = log

    def __getitem__(self, row: int) -> int:
        with deadline(0.5, f"videos/{row}.mp4", self.log):
            if row == 2:
                ctypes.CDLL(None).sleep(1000)
        return row


@pytest.mark.skipif(sys.platform == "win32", reason="its C library has no sleep")
def test_a_hang_in_a_worker_is_an_error_of_its_loader(tmp_path: Path) -> None:
    log = tmp_path / "hung.txt"
    loader = DataLoader(Hangs(log), batch_size=None, sampler=range(4), num_workers=1, prefetch_factor=1)
    with pytest.raises(RuntimeError, match=r"worker .*exited unexpectedly"):
        list(loader)
    assert log.read_text() == "cannot read video videos/2.mp4: its decoder has not come back after 0.5 s\n"


def test_a_deadline_that_is_met_does_nothing(numbered: Make, tmp_path: Path) -> None:
    log = tmp_path / "hung.txt"
    for seconds in (0, 0.2):
        with deadline(seconds, "a.mp4", log):
            assert read_number(read_frames(numbered("h264").path, [9])[0]) == 9
    with pytest.raises(VideoError), deadline(0.2, "a.mp4", log):
        probe(tmp_path / "missing.mp4")
    time.sleep(0.3)
    assert not log.exists()
