"""`vivit prepare`: the frame numbers drawn in the pictures, killed processes, and what is told of bad files."""

import csv
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
from helpers import Happened
from videos import KINDS, encode, h264, read_number

from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.tools.encode import Settings
from vivit_train.tools.encode import encode as encode_file
from vivit_train.tools.prepare import prepare
from vivit_train.utils.errors import UserError

SETTINGS = Settings(short_side=64, gop=16)
HARD = ["odd_size", "vfr", "vfr_mkv", "open_gop", "cut", "cut_open_gop", "trimmed", "mpeg4_b_avi", "mjpeg_avi"]
HARD += ["ten_bit", "h264_mkv", "mpeg_ts", "rotated_90", "rotated_180", "rotated_270", "one_frame"]


def vivit(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "vivit_train.tools.cli", *map(str, arguments)]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def made(target: Path) -> list[str]:
    """All files below, hidden ones too."""
    return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())


def is_whole(path: Path, numbers: Sequence[int]) -> bool:
    frames = read_frames(path, range(probe(path).num_frames))
    return [read_number(frame) for frame in frames] == list(numbers)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of two videos, 12 frames each, and an annotation file."""
    for name in ("a/0.mp4", "a/1.avi", "b/0.mp4", "b/deep/2.mkv"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        encode(tmp_path / "in" / name, codec, frames=12)
    (tmp_path / "in/train.csv").write_text("a/0.mp4 0\n")
    return tmp_path / "in"


@pytest.mark.parametrize("kind", HARD if sys.platform == "linux" else KINDS)
def test_the_frames_shown_are_the_same_at_the_same_times(kind: str, tmp_path: Path) -> None:
    name, make = KINDS[kind]
    numbers = make(tmp_path / name)
    before, after = probe(tmp_path / name), encode_file(str(tmp_path / name), f"{tmp_path}/out.mp4", SETTINGS)
    assert is_whole(tmp_path / "out.mp4", numbers)
    assert after.fps == pytest.approx(before.fps, rel=1e-6)
    np.testing.assert_allclose(after.times_s, before.times_s, atol=1e-3)  # Matroska rounds to milliseconds
    assert after.seek_safe
    assert after.rotation == 0
    assert min(after.width, after.height) == 64
    assert (after.width > after.height) == (before.width > before.height)


def test_gops_are_short_and_closed_and_the_sound_is_gone(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        video: Any = out.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 96, 80, "yuv420p"
        sound: Any = out.add_stream("aac", rate=16_000)
        for _ in range(50):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((80, 96), np.uint8), format="gray")))
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        noise.sample_rate = 16_000
        out.mux([*video.encode(None), *sound.encode(noise), *sound.encode(None)])
    encode_file(str(tmp_path / "in.mp4"), f"{tmp_path}/out.mp4", Settings(gop=16))
    with av.open(str(tmp_path / "out.mp4")) as made:
        assert [stream.type for stream in made.streams] == ["video"]
        stream = made.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (96, 80)  # smaller than 256: nothing is enlarged
        is_key = [packet.is_keyframe for packet in made.demux(stream) if packet.size]
    assert [i for i, key in enumerate(is_key) if key] == [0, 16, 32, 48]


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuv444p"])
def test_colours_are_kept(pix_fmt: str, tmp_path: Path) -> None:
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[:, :80], picture[:, 80:] = (200, 60, 30), (20, 90, 220)
    with av.open(str(tmp_path / "in.avi"), "w") as out:
        codec = "mjpeg" if pix_fmt == "yuvj420p" else "ffv1"
        stream: Any = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 96, pix_fmt
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    encode_file(f"{tmp_path}/in.avi", f"{tmp_path}/out.mp4", Settings(crf=10))
    before, after = (read_frames(tmp_path / name, [0])[0].astype(int) for name in ("in.avi", "out.mp4"))
    assert abs(before - after)[:, [20, 140]].max() <= 6


def test_a_tree_is_mirrored_and_a_second_run_does_nothing(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out"
    (source / "a/0.srt").touch()
    prepare(source, target, SETTINGS, workers=2)
    assert f"files without a video extension are ignored in {source}: 1 .srt" in caplog.messages
    videos = ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/deep/2.mp4"]
    assert made(target) == [*videos, "manifest.csv", "train.csv"]
    assert any("For data=csv, change the extensions in the lists." in line for line in caplog.messages)
    table = rows(target / "manifest.csv")
    assert [row["target"] for row in table] == videos
    for row in table:
        path = target / row["target"]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (row["frames"], row["seconds"]) == ("12", "0.400")
        assert int(row["bytes_after"]) == path.stat().st_size
        assert int(row["bytes_before"]) == (source / row["source"]).stat().st_size

    def again(**changes: Any) -> list[str]:
        """What another run makes."""
        before = {name: (target / name).stat().st_mtime_ns for name in videos if (target / name).exists()}
        settings = changes.pop("settings", SETTINGS)
        prepare(source, target, settings, workers=2, **changes)
        return [name for name in videos if before.get(name) != (target / name).stat().st_mtime_ns]

    assert again() == []
    (target / "a/0.mp4").unlink()
    with (target / "b/0.mp4").open("r+b") as file:
        file.truncate(100)
    half = f".{hashlib.sha256(b'b/0.mp4').hexdigest()[:16]}.99999.part"
    (target / "b" / half).touch()  # of a run that was killed
    assert again() == ["a/0.mp4", "b/0.mp4"]
    os.utime(source / "a/1.avi", (1, 1))
    assert again() == ["a/1.mp4"]
    with (target / "manifest.csv").open("r+") as file:  # killed while it wrote the last row
        file.truncate((target / "manifest.csv").stat().st_size - 4)
    assert again() == ["b/deep/2.mp4"]
    assert again(settings=Settings(short_side=64, gop=8)) == videos
    assert made(target) == [*videos, "manifest.csv", "train.csv"]
    assert rows(target / "manifest.csv")[1]["source"] == "a/1.avi"


@pytest.mark.slow
def test_shards_partition_the_videos_and_a_last_run_gathers_their_tables(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out"
    for i in range(3):
        prepare(source, target, SETTINGS, workers=1, shard=f"{i}/3")
    parts = [[row["target"] for row in rows(target / f"manifest-{i}of3.csv")] for i in range(3)]
    assert sorted(chain(*parts)) == ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/deep/2.mp4"]
    caplog.clear()
    prepare(source, target, SETTINGS)
    assert caplog.messages[1] == "4 videos: 4 done, 0 to re-encode, short_side=64 gop=16 crf=23"
    assert len(rows(target / "manifest.csv")) == 4


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "1/0"])
def test_a_wrong_shard_is_refused(shard: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--shard"):
        prepare(source, tmp_path / "out", SETTINGS, shard=shard)


def test_a_list_chooses(source: Path, tmp_path: Path) -> None:
    target, listed = tmp_path / "out", tmp_path / "re-encode.txt"
    listed.write_text(f"a/1.avi\n\n{source}/b/deep/2.mkv\n")
    prepare(source, target, SETTINGS, listed=listed)
    assert made(target) == ["a/1.mp4", "b/deep/2.mp4", "manifest.csv", "train.csv"]
    listed.write_text("a/7.avi\n/etc/passwd\n")
    with pytest.raises(UserError, match=r"lists paths that are not files below(.|\n)*7.avi"):
        prepare(source, target, SETTINGS, listed=listed)


def test_what_cannot_be_read_is_listed_with_its_reason(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out"
    (source / "a/bad.mp4").write_text("this is text")
    (source / "a/empty.mp4").touch()
    (source / "b/gone.mp4").symlink_to("nowhere")
    prepare(source, target, SETTINGS, workers=2)
    reasons = {row["source"]: row["reason"] for row in rows(target / "failed.csv")}
    assert list(reasons) == ["a/bad.mp4", "a/empty.mp4", "b/gone.mp4"]
    assert "not a video" in reasons["a/bad.mp4"]
    assert "empty" in reasons["a/empty.mp4"]
    assert "3 of 7 videos could not be re-encoded" in caplog.messages[-1]
    for name in ("a/bad.mp4", "a/empty.mp4", "b/gone.mp4"):
        assert not (target / name).exists()
        (source / name).unlink()
    prepare(source, target, SETTINGS)
    assert not (target / "failed.csv").exists()


@pytest.mark.fault("vivit prepare and vivit doctor")
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_process_that_dies_is_named_and_the_others_go_on(
    source: Path, tmp_path: Path, happened: Happened
) -> None:
    encode(source / "a/long.mp4", frames=500, size=(320, 256), preset="ultrafast")

    def kill() -> None:
        while not ((tmp_path / "out/a/1.mp4").exists() and list(tmp_path.glob("out/a/.*.part"))):
            time.sleep(0.01)
        for process in multiprocessing.active_children():
            process.kill()

    Thread(target=kill, daemon=True).start()
    prepare(source, tmp_path / "out", SETTINGS, workers=1)
    assert rows(tmp_path / "out/failed.csv") == [{"source": "a/long.mp4", "reason": "its process died (SIGKILL)"}]
    videos = ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/deep/2.mp4"]
    assert made(tmp_path / "out") == [*videos, "failed.csv", "manifest.csv", "train.csv"]
    happened(
        "SIGKILL to a process of `vivit prepare`",
        "its video is in failed.csv with this reason; the others are made",
    )


def test_names_may_be_as_long_as_any(source: Path, tmp_path: Path) -> None:
    name, longer = "n" * 251, "m" * 252
    encode(source / f"{name}.mp4", frames=2)
    encode(source / f"{longer}.ts", frames=12)  # in .mp4 one letter more than there can be
    encode(source / "last.mp4", frames=2)
    prepare(source, tmp_path / "out", SETTINGS)
    assert {f"{name}.mp4", "last.mp4"} <= set(made(tmp_path / "out"))
    (row,) = rows(tmp_path / "out/failed.csv")
    assert row["source"] == f"{longer}.ts"
    assert "File name too long" in row["reason"]


def test_a_video_that_takes_too_long_fails(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    encode(tmp_path / "in/long.mp4", frames=500, size=(320, 256), preset="ultrafast")
    with pytest.raises(UserError, match=r"1 of 1 video could not be re-encoded(.|\n)*long.mp4: no answer within"):
        prepare(tmp_path / "in", tmp_path / "out", SETTINGS, timeout_s=-1)
    assert made(tmp_path / "out") == ["failed.csv", "manifest.csv"]


def test_two_videos_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    h264(source / "b/0.mkv", frames=2)
    (tmp_path / "one.txt").write_text("b/0.mkv\n")
    for listed in (None, tmp_path / "one.txt"):
        with pytest.raises(UserError, match=r"b/0.mkv, b/0.mp4 -> b/0.mp4"):
            prepare(source, tmp_path / "out", SETTINGS, listed=listed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [".", "out", ".."])
def test_one_folder_within_the_other_is_refused(target: str, source: Path) -> None:
    with pytest.raises(UserError, match="neither folder may be inside the other"):
        prepare(source, source / target, SETTINGS)


@pytest.mark.fault("vivit prepare and vivit doctor")
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_leaves_nothing_half_made(
    how: signal.Signals, tmp_path: Path, happened: Happened
) -> None:
    (tmp_path / "in").mkdir()
    encode(tmp_path / "in/long.mp4", frames=500, size=(320, 256), preset="ultrafast")
    command = vivit("prepare", tmp_path / "in", tmp_path / "out", "--workers", 1)
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert not (tmp_path / "out/long.mp4").exists()
    if how == signal.SIGINT:
        assert made(tmp_path / "out") == ["manifest.csv"]
        happened("Ctrl-C in `vivit prepare`", "no half-made video, no traceback")
        return
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "out") == ["long.mp4", "manifest.csv"]
    assert probe(tmp_path / "out/long.mp4").num_frames == 500
    happened("SIGKILL to `vivit prepare`", "no half-made video; the same command makes what is left")


def test_the_command_fails_where_nothing_could_be_made(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.mp4").write_text("this is text")
    done = subprocess.run(
        vivit("prepare", tmp_path / "in", tmp_path / "out"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: 1 of 1 video could not be re-encoded; " in done.stderr
