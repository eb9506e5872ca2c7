"""A stored scan is the scan itself, is used for the file that it was made of, and no loss where it is unusable."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave
from videos import Numbered, encode, read_number

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.video import index, scan, storage
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.index import Scan, Timeline
from vivit_train.data.video.scan import packed_scan, timeline

Make = Callable[[str], Numbered]


def same(one: Scan, other: Scan) -> bool:
    (times, start, keys, *rest), (other_times, other_start, other_keys, *other_rest) = one, other
    arrays = [(times.pts_deltas, other_times.pts_deltas), (keys, other_keys)]
    numbers = [(t.num_frames, t.fps, t.time_base) for t in (times, other_times)]
    return (
        numbers[0] == numbers[1]
        and [start, *rest] == [other_start, *other_rest]
        and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)
    )


def row(path: Path) -> tuple[str, int, int, bytes]:
    return (str(path), *storage.state(str(path))[:2], packed_scan(path))


def forget(monkeypatch: pytest.MonkeyPatch, *, forbid: bool = True) -> None:
    """As in a new process; there, scanning may be a failure."""
    scan.SCANS.clear()
    if forbid:
        monkeypatch.setattr(scan, "scan_packets", lambda path: pytest.fail(f"{path} is scanned"))


def test_a_scan_survives_packing_exactly() -> None:
    draw = np.random.default_rng(0)
    for size in (1, 2, 4, 8):
        for _ in range(50):
            num_frames, num_keys = int(draw.integers(1, 400)), int(draw.integers(0, 40))
            pts_deltas = draw.integers(0, 256**size, num_frames - 1, f"u{size}", endpoint=False)
            scan = Scan(
                Timeline(
                    num_frames=num_frames,
                    fps=draw.lognormal(3),
                    pts_deltas=pts_deltas,
                    time_base=draw.random() / 90_000,
                ),
                start=None if draw.random() < 0.5 else int(draw.integers(-(2**62), 2**62)),
                keys=np.sort(draw.integers(-(2**62), 2**62, num_keys)),
                decord_unsafe=str(draw.choice(["", "H.264 in AVI: ü\n"])),
                header_num_frames=int(draw.integers(2**40)),
                promised_s=draw.lognormal(),
                gop=draw.lognormal(),
                is_folder=bool(draw.integers(2)),
            )
            assert same(index.unpack(index.pack(scan)), scan)


def test_an_evenly_spaced_video_takes_few_bytes() -> None:
    for step in (1, 512, 90_000):
        times = Timeline(
            num_frames=3000, fps=29.97, pts_deltas=np.full(2999, step, np.uint32), time_base=1 / 90_000
        )
        keys = np.arange(0, 3000, 12) * step
        assert len(index.pack(Scan(times, 0, keys, "", 3000, 100.1, 12.0))) < 200


def test_what_is_stored_is_used_instead_of_a_scan(
    numbered: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all kinds: B-frames, uneven, hidden and counted frames, a folder of pictures, a name that is no text."""
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        imsave(tmp_path / f"pictures/{i}.png", np.full((16, 24, 3), 60 * i, np.uint8))
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff?#%.mp4"))
    shutil.copyfile(numbered("h264").path, strange)
    kinds = ("h264", "vfr_mkv", "trimmed", "cut", "open_gop", "mpeg4_b_avi")
    paths = [tmp_path / "pictures", strange, *(numbered(kind).path for kind in kinds)]
    scans = [scan.scan_file(path) for path in paths]
    frames = [
        read_frames(path, [-1 + scan.timeline.num_frames, 1]) for path, scan in zip(paths, scans, strict=True)
    ]
    file = tmp_path / "100% #1?.sqlite"
    index.write(file, map(row, paths))
    forget(monkeypatch)
    for path, stored, shown in zip(paths, scans, frames, strict=True):
        assert timeline(path, file).num_frames == stored.timeline.num_frames
        assert same(scan.scan_file(path), stored)
        assert np.array_equal(read_frames(path, [-1 + stored.timeline.num_frames, 1]), shown)
    timeline(paths[0], tmp_path / "nowhere.sqlite")  # known to this process meanwhile
    with pytest.raises(pytest.fail.Exception, match="is scanned"):
        timeline(numbered("gop_2").path, file)


def test_a_file_that_has_changed_is_scanned_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for frames in (5, 9):
        encode(tmp_path / "a.mp4", frames=frames)
        os.utime(tmp_path / "a.mp4", ns=(frames, frames))
        if frames == 5:
            index.write(tmp_path / "a.sqlite", [row(tmp_path / "a.mp4")])
    forget(monkeypatch, forbid=False)
    assert timeline(tmp_path / "a.mp4", tmp_path / "a.sqlite").num_frames == 9
    assert read_number(read_frames(tmp_path / "a.mp4", [8])[0]) == 8


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"", "no such table"),
        (lambda data: b"path label\n" * 1000, "not a database"),
        (lambda data: data[: len(data) // 2], "malformed"),
        (lambda data: data.replace(b"libavcodec ", b"libavcodec 9"), "made by scan"),
        (lambda data: data[:8192] + bytes(len(data) - 8192), ""),  # seen at the row itself
        (lambda data: data.replace(b"x\x9c", b"x\x9d"), ""),
    ],
    ids=["empty", "text", "cut off", "other libraries", "hole", "row"],
)
def test_a_damaged_database_costs_a_scan_and_a_note(
    damage: Callable[[bytes], bytes], why: str, numbered: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered("h264").path
    path_, version, size, packed = row(path)
    others = [(f"/videos/{i}.mp4", i, i, packed) for i in range(300)]
    index.write(tmp_path / index.NAME, [*others, (path_, version, size, packed)])
    damaged = damage((tmp_path / index.NAME).read_bytes())
    (tmp_path / index.NAME).write_bytes(damaged)
    assert index.read(tmp_path / index.NAME, path_, version, size) is None
    forget(monkeypatch, forbid=False)
    assert timeline(path, tmp_path / index.NAME).num_frames == 72

    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text(f'"{path}",0\n"{numbered("gop_2").path}",1')
    data = VideoDataModule("test", str(tmp_path), read_csv, train="train.csv", val="val.csv", num_workers=0)
    notes = [notice for notice in data.splits.notices if index.NAME in notice]
    assert len(notes) == bool(why)
    assert all(why in note for note in notes)
