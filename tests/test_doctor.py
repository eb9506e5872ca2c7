"""`vivit doctor`: every kind of bad video found with its reason; a crash costs one file; nothing is done twice."""

import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers import Happened
from matplotlib.image import imsave
from videos import encode, h264, look_or_die, open_gop

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.video import scan, storage
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.tools.doctor.inspect_files import FileReport, Settings, fingerprint, inspect_file, inspect_files
from vivit_train.tools.doctor.problems import Problem, find_problems
from vivit_train.tools.doctor.run import counts_notes, examine, read_splits
from vivit_train.tools.overrides import compose_words
from vivit_train.utils.errors import UserError

SMALL = ["data.frames=4", "data.stride=2", "data.short_side=36"]
SCRIPT = "<script>alert(1)<script>.mp4"


def reencode(source: Path, target: Path) -> None:
    """The same pictures by another encoder at other bytes, half as large again."""
    info = probe(source)
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=round(info.fps), options={"crf": "25"})
        stream.width = stream.height = 54
        stream.pix_fmt = "yuv420p"
        for pixels in read_frames(source, range(info.num_frames)):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(54, 54, "yuv420p")))
        out.mux(stream.encode(None))


def sound(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@dataclass
class Examined:
    """A data set with one file of each kind of trouble, after the doctor."""

    root: Path
    out: Path
    problems: list[Problem]

    def again(self, workers: int = 1) -> list[Problem]:
        cfg = compose_words(["data=folder", f"data.root={self.root}", *SMALL], self.out)
        return examine(cfg, self.out, workers, timeout_s=30, every_frame=True)

    def of(self, name: str) -> dict[str, Problem]:
        return {problem.kind: problem for problem in self.problems if os.path.basename(problem.path) == name}

    @property
    def state(self) -> list[str]:
        return (self.out / "files.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def sick(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    root = tmp_path_factory.mktemp("sick") / "videos"
    shutil.copytree(videos, root)
    one, two, *_ = sorted((root / "train").iterdir())
    val_one, val_two = (sorted((root / "val" / c.name).iterdir())[0] for c in (one, two))
    shutil.copy(val_one, one / "shared.mp4")
    shutil.copy(sorted(two.iterdir())[0], two / "zz_twice.mp4")
    reencode(val_two, two / "similar.mp4")
    (one / "empty.mp4").touch()
    (one / SCRIPT).write_text("this is text")
    (one / "missing.mp4").symlink_to(root / "nowhere.mp4")
    sound(one / "sound.mp4")
    (one / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(one / "fifo.mp4")
    for name in ("crash", "hang", "bug"):
        (one / f"{name}.mp4").write_text(name)
    h264(one / "late.mp4")
    h264(one / "fast.mp4", container={"movflags": "faststart"})
    for name in ("late", "fast"):  # without its index, and with it
        data = (one / f"{name}.mp4").read_bytes()
        (one / f"{name}.mp4").write_bytes(data[: len(data) * 6 // 10])
    h264(one / "damaged.mp4")
    data = bytearray((one / "damaged.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    (one / "damaged.mp4").write_bytes(data)
    h264(one / "one_frame.mp4", frames=1)
    open_gop(one / "open.mp4")
    encode(one / "slow.avi", "mpeg4", g="12", bf="2")
    h264(one / "turned.mp4", rotation=90, size=(96, 96))
    h264(one / "uneven.mp4", times=[i + i * i // 20 for i in range(72)])
    examined = Examined(root, root.with_name("out"), [])
    examined.out.mkdir()
    deadly = [str(one / f"{name}.mp4") for name in ("crash", "hang", "bug")]
    settings = Settings(4, 2, None, 36, every_frame=True)
    inspect_files(deadly, examined.out / "files.jsonl", settings, 2, timeout_s=2, entry=look_or_die)
    examined.problems = examined.again(workers=2)
    return examined


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("empty.mp4", "empty", "0 bytes"),
        (SCRIPT, "unreadable", "not a video file"),
        ("missing.mp4", "missing", "does not exist"),
        ("loop.mp4", "unreadable", "symbolic links"),
        ("sound.mp4", "no video", "no video stream"),
        ("late.mp4", "truncated", "its index (moov) is missing"),
        ("fast.mp4", "truncated", "of 72 frames"),
        ("damaged.mp4", "damaged", "damaged"),
        ("crash.mp4", "crash", "exit code 3"),
        ("hang.mp4", "hang", "no answer within 2 s"),
        ("bug.mp4", "unreadable", "ValueError: told to"),
        ("one_frame.mp4", "short", "1 frame; a clip needs 7"),
        ("open.mp4", "not for decord", "open GOP"),
        ("slow.avi", "slow seek", "AVI with B-frames"),
        ("turned.mp4", "rotated", "by 90 degrees"),
        ("uneven.mp4", "variable rate", "from 33 to 267 ms between frames"),
        ("shared.mp4", "shared", "same content as val video"),
        ("zz_twice.mp4", "duplicate", "same content as train video"),
    ],
)
@pytest.mark.fault("vivit prepare and vivit doctor")
def test_each_kind_of_trouble_is_named_with_its_reason(
    sick: Examined, name: str, kind: str, reason: str, happened: Happened
) -> None:
    assert kind in sick.of(name), sick.of(name)
    assert reason in sick.of(name)[kind].detail
    happened(f"The doctor finds `{name}`", f"{kind}: {sick.of(name)[kind].detail}")


def test_a_named_pipe_holds_nothing_up(sick: Examined) -> None:
    """Opening one waits for another program to write to it."""
    (kind,) = sick.of("fifo.mp4")
    assert kind in ("empty", "unreadable")


def test_a_re_encoded_copy_in_another_split_is_found(sick: Examined) -> None:
    pairs = {
        frozenset(map(os.path.basename, (p.path, p.other))): p.detail
        for p in sick.problems
        if p.kind == "similar, shared"
    }
    (pair,) = [names for names in pairs if "similar.mp4" in names]
    assert "0000.mp4" in pair


def test_good_videos_have_no_problem(sick: Examined, videos: Path) -> None:
    """But for those that others are copies of."""
    good = {str(sick.root / path.relative_to(videos)) for path in videos.rglob("*.mp4")}
    named = [problem for problem in sick.problems if problem.path in good and not problem.other]
    assert not named


@pytest.mark.parametrize(("gap", "words"), [(0, ""), (3, ""), (100, "from 33 to 3367 ms between frames")])
def test_one_long_gap_makes_a_variable_rate(gap: int, words: str, tmp_path: Path) -> None:
    h264(tmp_path / "gap.mp4", times=[i + gap * (i >= 36) for i in range(72)])
    assert inspect_file(str(tmp_path / "gap.mp4"), Settings(4, 2, None, 36)).uneven == words


def test_the_clean_lists_load_and_hold_the_good_clips(sick: Examined, videos: Path) -> None:
    splits = read_csv(sick.out / "clean", train="train.csv", val="val.csv", test="test.csv", max_missing=0)
    names = {os.path.basename(path) for path in splits.train.paths.tolist()}
    expected = {"similar.mp4", "one_frame.mp4", "open.mp4", "slow.avi", "turned.mp4", "uneven.mp4"}
    assert {name for name in names if not name[0].isdigit()} == expected
    for split, manifest in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        assert manifest is not None
        there = sorted((videos / split).rglob("*.mp4"))
        assert {str(sick.root / path.relative_to(videos)) for path in there} <= set(manifest.paths.tolist())
        for path, (label,) in zip(manifest.paths.tolist(), manifest.labels.tolist(), strict=True):
            assert splits.classes[""][label] == Path(path).parent.name


def test_training_on_the_clean_lists_scans_no_file_again(
    sick: Examined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the doctor has found is read instead, in loader processes too, and gives the same clips."""
    import torch  # not above: the doctor's children import this file

    from vivit_train.data.datamodule import VideoDataModule

    def clips(root: Path, num_workers: int) -> list[dict[str, Any]]:
        scan.SCANS.clear()
        small = {"frames": 4, "short_side": 36, "crop": 32, "global_batch_size": 1, "augment_on": "worker"}
        lists = {split: f"{split}.csv" for split in ("train", "val", "test")}
        data = VideoDataModule("clean", str(root), read_csv, **lists, **small, num_workers=num_workers)  # type: ignore[arg-type]
        return [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]

    clean, lists_only = sick.out / "clean", tmp_path / "lists"
    shutil.copytree(clean, lists_only, ignore=shutil.ignore_patterns("timelines.sqlite"))
    scanned = clips(lists_only, num_workers=0)
    assert not any(clip["errors"] for clip in scanned)
    monkeypatch.setattr(scan, "scan_packets", lambda path: pytest.fail(f"{path} is scanned"))
    for found in (clips(clean, num_workers=0), clips(clean, num_workers=1)):
        assert len(found) == len(scanned)
        for one, other in zip(found, scanned, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one if torch.is_tensor(one[key]))


@pytest.mark.fault("Strangers' files")
def test_the_report_escapes_names_and_shows_pictures(sick: Examined, happened: Happened) -> None:
    page = (sick.out / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    happened(f"A video is called `{SCRIPT}`", "the doctor's report shows the name, escaped")
    assert page.count("data:image/png;base64,") > 5
    rows = list(csv.DictReader((sick.out / "problems.csv").open()))
    assert [row["kind"] for row in rows] == [problem.kind for problem in sick.problems]
    to_encode = {os.path.basename(line) for line in (sick.out / "re-encode.txt").read_text().splitlines()}
    assert to_encode == {"slow.avi"}
    assert re.search(r"<pre>vivit prepare \S+ small --list \S+re-encode\.txt</pre>", page)
    assert "Seeking is slow: consider <code>vivit prepare</code>." in page


def test_nothing_is_looked_at_twice(sick: Examined) -> None:
    """After a run that was killed while it wrote; but for what has changed."""
    before = sick.state
    assert len({json.loads(line)["path"] for line in before}) == len(before)
    good = [line for line in before if json.loads(line)["kind"] == ""]
    bad = [line for line in before if line not in good]
    changed, *unchanged, cut_off = good[:6]
    os.utime(json.loads(changed)["path"], ns=(1, 1))
    kept = [*bad, changed, *unchanged]
    (sick.out / "files.jsonl").write_text("\n".join([*kept, cut_off[:100]]))
    (sick.out / "clean/timelines.sqlite").unlink()
    assert sick.again() == sick.problems
    assert sick.state[: len(kept)] == kept
    again = [json.loads(line)["path"] for line in sick.state[len(kept) :]]
    assert sorted(again) == sorted(json.loads(line)["path"] for line in [changed, *good[5:]])
    with sqlite3.connect(sick.out / "clean/timelines.sqlite") as database:
        rows = database.execute("SELECT path, version, size FROM scans").fetchall()
    index_db = {os.fsdecode(path): state for path, *state in rows}
    assert index_db.keys() >= {json.loads(line)["path"] for line in good}
    assert index_db == {path: list(storage.state(path)[:2]) for path in index_db}


def test_missing_videos_of_a_list_are_counted_not_fatal(videos: Path, tmp_path: Path) -> None:
    there = sorted(str(path) for path in videos.glob("train/*/0000.mp4"))
    rows = [f'"{path}",{i % 2}' for i, path in enumerate(there)]
    (tmp_path / "train.csv").write_text("\n".join([*rows, *(f"gone{i}.mp4 0" for i in range(20))]))
    (tmp_path / "val.csv").write_text("\n".join(rows))
    cfg = compose_words(["data=csv", f"data.root={tmp_path}", "data.name=hmdb51"], tmp_path)
    splits = read_splits(cfg)
    assert any("8 of 28 videos found" in notice for notice in splits.notices)
    notes = counts_notes(cfg, splits, {"train": splits.train})
    assert "8 of the 3,570 published train videos of hmdb51" in notes
    assert "train: 4 clips per class (balanced)" in notes


def test_segments_are_short_or_behind_the_end_by_themselves(videos: Path, tmp_path: Path) -> None:

    path = str(next(videos.rglob("*.mp4")))  # 12 frames in a second
    entries = {path: inspect_file(path, Settings(4, 2, None, 36))}
    spans = np.array([[0, 1], [0, 0.25], [3, 4]])
    paths = np.array([path] * 3, np.dtypes.StringDType())
    manifest = ClipTable(paths, np.zeros((3, 1), np.int64), paths, spans)
    problems, left_out = find_problems({"val": manifest}, ["a"], entries, Settings(4, 2, None, 36))
    assert [problem.kind for problem in problems] == ["truncated", "short"]
    assert left_out == {"val": {2}}


def test_one_list_for_two_splits_shares_no_video(videos: Path) -> None:
    settings = Settings(4, 2, None, 36)
    folder = videos / "test"
    some = sorted(map(str, folder.rglob("*.mp4")))[:2]
    entries = {path: inspect_file(path, settings) for path in some}
    paths = np.array(some, np.dtypes.StringDType())
    manifest = ClipTable(paths, np.zeros((2, 1), np.int64), paths)
    problems, _ = find_problems({"val": manifest, "test": manifest}, ["a"], entries, settings)
    assert not [problem for problem in problems if "shared" in problem.kind]
    one = manifest.select(np.array([0]))
    problems, _ = find_problems({"val": manifest, "test": one}, ["a"], entries, settings)
    assert [(problem.kind, problem.path) for problem in problems if problem.kind == "shared"] == [
        ("shared", some[0])
    ]


def test_a_fingerprint_sees_motion_and_not_nothing(videos: Path) -> None:
    assert fingerprint(np.zeros((4, 64, 64, 3), np.uint8)) == ""
    frames = read_frames(next(videos.rglob("*.mp4")), [1, 4, 7, 10])
    assert fingerprint(frames) != fingerprint(frames[::-1])


def command(*arguments: str) -> Sequence[str]:
    return [
        sys.executable,
        "-m",
        "vivit_train.tools.cli",
        "doctor",
        "data=folder",
        *arguments,
        *SMALL,
        "--workers=1",
    ]


@pytest.mark.slow
@pytest.mark.fault("vivit prepare and vivit doctor")
def test_killed_and_run_again_it_goes_on(videos: Path, tmp_path: Path, happened: Happened) -> None:
    arguments = command(f"data.root={videos}", "--out=out")
    state = tmp_path / "out" / "files.jsonl"
    killed = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (state.exists() and state.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    first = state.read_text().splitlines()[:3]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "of 48 files are reused from" in result.stdout
    assert state.read_text().splitlines()[:3] == first
    last = result.stdout.splitlines()[-1].split()
    assert last[:2] == ["vivit", "train"]
    assert f"data.root={tmp_path / 'out/clean'}" in last
    assert "data.frames=4" in last
    happened("SIGKILL to `vivit doctor`", "the same command goes on behind the files that it had seen")


def test_a_data_set_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        examine(compose_words(["data=folder", "data.root=/nowhere"], tmp_path), tmp_path / "out", 1)


def test_listed_videos_that_are_not_there_are_problems(videos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        paths = sorted(videos.glob(f"{split}/*/*.mp4"))
        lines = [f'"{path}",{path.parent.name}' for path in paths]
        (tmp_path / f"{split}.csv").write_text("\n".join([*lines, f"gone/{split}.mp4,recede"]))
    cfg = compose_words(["data=csv", f"data.root={tmp_path}", *SMALL], tmp_path)
    problems = examine(cfg, tmp_path / "out", 1)
    missing = [(problem.split, problem.path) for problem in problems if problem.kind == "missing"]
    assert missing == [(split, str(tmp_path / f"gone/{split}.mp4")) for split in ("train", "val")]


def test_of_many_that_look_alike_each_is_named_and_not_each_pair() -> None:
    seen = FileReport("", num_frames=48, fps=24, seconds=2, fingerprint="ff" * 56)
    entries = {f"{i}.mp4": replace(seen, path=f"{i}.mp4", sha256=str(i)) for i in range(30)}
    paths = np.array(list(entries), np.dtypes.StringDType())
    manifest = ClipTable(paths, np.zeros((30, 1), np.int64), paths)
    problems, left_out = find_problems({"train": manifest}, ["a"], entries, Settings(4, 2, None, 36))
    assert {problem.kind for problem in problems} == {"similar"}
    assert {path for problem in problems for path in (problem.path, problem.other)} == set(entries)
    assert len(problems) < 60
    assert left_out == {"train": set()}


def test_tar_members_frame_folders_and_urls_are_looked_at_too(videos: Path, tmp_path: Path) -> None:
    one, two, three = sorted(videos.glob("train/*/0000.mp4"))[:3]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(one, "a/one.mp4")
        tar.add(one, "a/again.mp4")
    (tmp_path / "frames").mkdir()
    for i, pixels in enumerate(read_frames(two, range(12))):
        imsave(tmp_path / f"frames/{i}.png", pixels)
    lines = [
        "all.tar/a/one.mp4,0",
        "all.tar/a/again.mp4,0",
        "all.tar/a/gone.mp4,0",
        '"frames",1',
        f"file://{three},1",
    ]
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text(
            "\n".join(lines if split == "train" else [f"{one},0", f"{three},1"])
        )
    cfg = compose_words(["data=csv", f"data.root={tmp_path}", *SMALL], tmp_path)
    problems = examine(cfg, tmp_path / "out", 1)
    kinds = {(os.path.basename(p.path), p.kind) for p in problems if p.split == "train"}
    assert kinds == {
        ("one.mp4", "shared"),
        ("again.mp4", "shared"),
        ("gone.mp4", "missing"),
        (three.name, "shared"),
    }
    entries = {Path(entry["path"]).name: entry for entry in map(json.loads, (tmp_path / "out/files.jsonl").open())}
    assert (entries["frames"]["num_frames"], entries["frames"]["kind"]) == (12, "")
    splits = read_csv(
        tmp_path / "out/clean", train="train.csv", val="val.csv", classes="classes.txt", max_missing=0
    )
    assert [os.path.basename(path) for path in splits.train.paths.tolist()] == ["frames"]
