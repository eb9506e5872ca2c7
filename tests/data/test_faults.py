"""Whatever a file holds: frames of the right shape or a VideoError, soon; nothing leaks; a hang names its file."""

import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from helpers import SHARED, Happened
from videos import Numbered, encode, engines, read_number
from zoo import zoo

from vivit_train.data.video import scan
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe, timeline
from vivit_train.data.watchdog import deadline
from vivit_train.utils.errors import VideoError

Make = Callable[[str], Numbered]
ODD = sorted((SHARED / "videos" / "odd").glob("*/*"))

# Reads the first, the last and spread frames of each path; prints what became of it.
READ_ALL = """
import json, sys
import numpy as np
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe, timeline
from vivit_train.data.watchdog import deadline
from vivit_train.utils.errors import VideoError
engine, seconds, *paths = sys.argv[1:]
for path in paths:
    results = []
    with deadline(float(seconds)):
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


@pytest.mark.fault("Videos")
def test_frames_that_refer_to_a_damaged_one_are_not_delivered(tmp_path: Path, happened: Happened) -> None:
    path = tmp_path / "video.mkv"
    encode(path, "libx264", 40, (96, 64), g="12", bf="0")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][16]
        at, content = packet.pos, bytes(packet)
    data = bytearray(path.read_bytes())
    start = data.index(content[-12:], at)
    data[start : start + 8] = bytes(b ^ 0xFF for b in data[start : start + 8])
    path.write_bytes(data)
    assert [read_number(frame) for frame in read_frames(path, [4, 15, 24, 39])] == [4, 15, 24, 39]
    for frame in (16, 20, 23):
        with pytest.raises(VideoError, match="damaged") as error:
            read_frames(path, [frame])
    happened(
        "Eight bytes of one frame of an H.264 video are flipped",
        f"that frame and those that refer to it: {error.value.reason}; all others are the right ones",
    )


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
@pytest.mark.parametrize("times", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    [*(pytest.param(e, marks=[pytest.mark.slow] * (e != "pyav")) for e in engines() if e != "auto"), "bad"],
)
def test_nothing_grows(case: str, times: int, tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", frames=12, size=(64, 48), g="6")
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 20)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    bad = [tmp_path / name for name in ("text.mp4", "cut.mkv", "missing.mp4")]

    def use(i: int) -> None:
        scan.SCANS.clear()
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


def test_a_long_video_is_scanned_once_and_kept_in_two_bytes_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        info = timeline(tmp_path / "long.mp4")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert info.num_frames == 60_000
    assert held - before < 2.5 * 60_000
    assert peak - before < 120 * 60_000
    monkeypatch.setattr(scan, "scan_packets", lambda path: pytest.fail("scanned again"))
    assert len(read_frames(tmp_path / "long.mp4", [59_999, 3])) == 2
    assert timeline(tmp_path / "long.mp4") is info


def test_scans_are_kept_as_far_as_memory_allows(numbered: Make, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.mp4") for i in range(50)]
    for path in paths:
        Path(path).hardlink_to(numbered("h264").path)
    cache = scan.ScanCache()
    each = cache.get(paths[0]).num_bytes
    tracemalloc.start()
    try:
        scans = [cache.get(path) for path in paths[1:]]
        traced = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 < traced / 49 / each < 1.1
    assert cache.num_bytes == 50 * each
    assert all(cache.get(path) is kept for path, kept in zip(paths[1:], scans, strict=True))
    small = scan.ScanCache(max_bytes=int(10.5 * each))
    for path in [*paths, paths[0]]:
        small.get(path)
    assert [path for path, *_ in small.kept] == [*paths[41:], paths[0]]
    assert small.num_bytes == 10 * each


# hangs

NATIVE_SLEEP = "import ctypes; ctypes.CDLL(None).sleep(1000)"
SLEEP_WITH_GIL = "import ctypes; ctypes.PyDLL(None).sleep(1000)"
DECORD = "import decord; decord.VideoReader({path!r}, num_threads=1).get_batch([0, 149, 299, 449])"


@pytest.mark.fault("Videos")
@pytest.mark.skipif(sys.platform == "win32", reason="its C library has no sleep")
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(NATIVE_SLEEP, id="sleep", marks=pytest.mark.slow),
        pytest.param(SLEEP_WITH_GIL, id="sleep with GIL"),
        pytest.param(DECORD, id="decord", marks=pytest.mark.slow),
    ],
)
def test_a_hang_ends_its_process(call: str, numbered: Make, happened: Happened) -> None:
    if call is DECORD and "decord" not in engines():
        pytest.skip("no decord")
    code = "from vivit_train.data.watchdog import deadline\nwith deadline(1): "
    started = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", code + call.format(path=str(numbered("cut_450_packets_300_shown").path))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 1
    assert time.monotonic() - started > 1
    assert "Timeout (0:00:01)!" in child.stderr
    assert 'File "<string>", line 2 in <module>' in child.stderr
    outcome = "the process ends at its time limit and shows on stderr where it hung"
    happened(f"A native call that never returns: `{call.partition('; ')[2]}`", outcome)


def test_a_deadline_that_is_met_does_nothing(numbered: Make, tmp_path: Path) -> None:
    for seconds in (0, 0.2):
        with deadline(seconds):
            assert read_number(read_frames(numbered("h264").path, [9])[0]) == 9
    with pytest.raises(VideoError), deadline(0.2):
        probe(tmp_path / "missing.mp4")
    time.sleep(0.3)  # the deadline of either would have ended this process by now
