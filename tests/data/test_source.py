"""A video is the same frames wherever it is: on the disk, in a tar, on a URL, as pictures."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from trees import error, has, rows, write
from videos import Numbered, draw, encode, engines, read_number

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.video import storage, urls
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.run import train
from vivit_train.utils.errors import UserError, VideoError

Make = Callable[[str], Numbered]
ODD_NAME = "12:30 ü,,%d"  # FFmpeg's protocols have colons and commas of their own


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """A folder on memory:// of this test's own."""
    yield f"memory://{tmp_path.name}"
    MemoryFileSystem.store.clear()


def upload(url: str, data: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return url


def make_tar(tar: Path, members: dict[str, Path], **options: Any) -> Path:
    with tarfile.open(tar, options.pop("mode", "w"), **options) as archive:
        for name, path in members.items():
            archive.add(path, name)
    return tar


def picture(path: Path, number: int, codec: str = "mjpeg", size: tuple[int, int] = (160, 96)) -> Path:
    """Draws a frame's number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height = size
    context.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24", "libwebp": "yuv420p"}[codec]
    context.time_base = Fraction(1, 30)
    frame = av.VideoFrame.from_ndarray(draw(number, *size), format="gray").reformat(format=context.pix_fmt)
    path.write_bytes(b"".join(map(bytes, [*context.encode(frame), *context.encode(None)])))
    return path


def pictures(folder: Path, numbers: Sequence[int], **options: Any) -> Path:
    for i, number in enumerate(numbers):
        picture(folder / f"img_{i + 1}.jpg", number, **options)  # without leading zeros: 10 sorts before 2
    return folder


@pytest.fixture
def everywhere(numbered: Make, tmp_path: Path, memory: str) -> Callable[[str], dict[str, str]]:
    """The paths of one video in every kind of place."""

    def make(kind: str) -> dict[str, str]:
        path = numbered(kind).path
        tar = make_tar(tmp_path / f"{ODD_NAME}.tar", {"pad.bin": Path(__file__), f"./run/{path.name}": path})
        data = path.read_bytes()
        return {
            "file": str(path),
            "tar": f"{tar}/run/{path.name}",
            "file url": f"file://{path}",
            "memory": upload(f"{memory}/a/{path.name}", data),
            "cached": f"simplecache::{memory}/a/{path.name}",
            "tar on a url": upload(f"{memory}/000.tar", tar.read_bytes()) + f"/run/{path.name}",
            "tar on a file url": f"file://{tar}/run/{path.name}",
        }

    return make


@pytest.mark.parametrize("kind", ["h264", "open_gop", "cut", "mpeg_ts", "vp9", "colon in the name"])
def test_frames_are_the_same_everywhere(kind: str, everywhere: Callable[[str], dict[str, str]]) -> None:
    paths = everywhere(kind)
    want, indices = probe(paths["file"]), [17, 3, 3, 30]
    frames = read_frames(paths["file"], indices, decoder="pyav")
    for place, path in paths.items():
        info = probe(path)
        assert (info.num_frames, info.fps, info.reason) == (want.num_frames, want.fps, want.reason), place
        for decoder in ("auto", "pyav"):
            if (place, decoder) != ("file", "auto"):  # there it is decord's
                np.testing.assert_array_equal(read_frames(path, indices, decoder=decoder), frames, place)


def test_a_large_object_is_read_in_blocks(numbered: Make, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(f"{memory}/large.mp4", numbered("h264").path.read_bytes())
    monkeypatch.setattr(storage, "WHOLE_BYTES", 100)
    monkeypatch.setattr(storage, "_fetched", None)
    assert [read_number(frame) for frame in read_frames(url, [50, 3])] == [50, 3]

    def read(file: MemoryFile, size: int) -> bytes:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(MemoryFile, "read", read, raising=False)
    with pytest.raises(VideoError, match=r"cannot be fetched \(ConnectionResetError: gone\)"):
        read_frames(url, [0])


@pytest.mark.parametrize("engine", ["decord", "torchcodec"])
def test_engines_that_read_files_only_say_so(
    engine: str, everywhere: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    if engine not in engines():
        pytest.skip("not installed")
    for place, path in (everywhere("h264") | {"pictures": str(pictures(tmp_path / "a", [1, 2]))}).items():
        if place == "file":
            read_frames(path, [0], decoder=engine)
        else:
            with pytest.raises(VideoError, match=rf"{engine} reads only files .*; data\.decoder=auto reads it"):
                read_frames(path, [0], decoder=engine)


# ---- pictures


def test_a_folder_of_pictures_is_a_video(tmp_path: Path, memory: str) -> None:
    numbers = [7 * i for i in range(12)]
    folder = pictures(tmp_path / "clip", numbers)
    for name in ("img_3.txt", ".img_0.jpg", "Thumbs.db"):
        (folder / name).write_text("not a frame")
    tar = make_tar(tmp_path / "000.tar", {"frames/clip": folder, "frames/clip2/img_1.jpg": folder / "img_5.jpg"})
    fsspec.filesystem("memory").put(str(folder), f"{memory}/", recursive=True)
    upload(f"{memory}/000.tar", tar.read_bytes())
    for path in (str(folder), f"{tar}/frames/clip", f"{memory}/clip", f"{memory}/000.tar/frames/clip"):
        info = probe(path)
        assert (info.num_frames, info.fps, info.width, info.height) == (12, 30, 160, 96)
        np.testing.assert_allclose(info.times_s, np.arange(12) / 30)
        frames = read_frames(path, [11, 0, 4, 4])
        assert [read_number(frame) for frame in frames] == [77, 0, 28, 28]
        assert read_frames(path, [1], short_side=48).shape == (1, 48, 80, 3)
    flat = make_tar(tmp_path / "flat.tar", {path.name: path for path in folder.glob("img_*.jpg")})
    assert [read_number(frame) for frame in read_frames(flat, [9])] == [63]


def test_pictures_are_coloured_and_scaled_as_video_frames_are(tmp_path: Path) -> None:
    """The same JPEG packets in an AVI file."""
    numbers = encode(tmp_path / "a.avi", "mjpeg", pix_fmt="yuvj420p", frames=4)
    with av.open(str(tmp_path / "a.avi")) as container:
        (tmp_path / "a").mkdir()
        for i, packet in enumerate(container.demux(video=0)):
            if packet.size:
                (tmp_path / f"a/{i}.jpg").write_bytes(bytes(packet))
    for short_side in (None, 50):
        frames = [
            read_frames(tmp_path / name, numbers, short_side=short_side, decoder="pyav") for name in ("a", "a.avi")
        ]
        np.testing.assert_array_equal(*frames)


@pytest.mark.parametrize("codec", ["png", "libwebp"])
def test_other_pictures_whatever_their_names_end_in(codec: str, tmp_path: Path) -> None:
    pictures(tmp_path / "a", [5, 6, 7], codec=codec)
    assert [read_number(frame) for frame in read_frames(tmp_path / "a", [2, 0])] == [7, 5]


def test_only_the_pictures_asked_for_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "clip", range(30))
    opened: list[str] = []
    monkeypatch.setattr(storage, "read", lambda path: opened.append(Path(path).name) or Path(path).read_bytes())
    read_frames(folder, [20, 4])
    assert opened == ["img_1.jpg", "img_5.jpg", "img_21.jpg"]


def test_natural_order(tmp_path: Path) -> None:
    names = ["1.jpg", "2.JPG", "10.jpeg", "a2b1.png", "a2b3.png", "a10b2.webp", "a010b3.webp"]
    for name in names:
        (tmp_path / name).touch()
    assert [Path(path).name for path in storage.pictures(str(tmp_path))] == names


def test_wrong_pictures_are_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "clip", range(6))
    picture(folder / "img_3.jpg", 2, size=(80, 48))
    (folder / "img_4.jpg").write_text("text")
    whole = (folder / "img_5.jpg").read_bytes()
    (folder / "img_5.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "img_6.jpg").write_bytes(b"")
    assert probe(folder).num_frames == 6
    for frame, reason in (
        (2, r"img_3\.jpg is 80x48, but the first picture is 160x96"),
        (3, r"img_4\.jpg is not a supported picture \(mjpeg, png, webp\)"),
        (4, r"img_5\.jpg is damaged"),
        (5, r"img_6\.jpg is not "),
    ):
        with pytest.raises(VideoError, match=f"{folder}: {reason}"):
            read_frames(folder, [1, frame])
    assert read_number(read_frames(folder, [1])[0]) == 1
    (folder / "img_1.jpg").unlink()
    assert probe(folder).num_frames == 5  # a folder is looked at again when its names change
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="is a directory without pictures"):
        probe(tmp_path / "empty")


# ---- errors


def test_what_is_not_there(numbered: Make, tmp_path: Path, memory: str) -> None:
    data = numbered("h264").path.read_bytes()
    (tmp_path / "empty.mp4").touch()
    tar = make_tar(tmp_path / "a.tar", {"a.mp4": numbered("h264").path, "empty.mp4": tmp_path / "empty.mp4"})
    (tmp_path / "text.tar").write_text("not a tar, but longer than a header is " * 100)
    (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[: len(data) // 2])
    upload(f"{memory}/text.mp4", b"text")
    upload(f"{memory}/empty.mp4", b"")
    for path, kind, reason in (
        (f"{tmp_path}/none.tar/a.mp4", "missing", "file does not exist"),
        (f"{tar}/b.mp4", "missing", f"file does not exist: {tar} has no such member"),
        (f"{tar}/empty.mp4", "empty", r"file is empty \(0 bytes\)"),
        (f"{tmp_path}/text.tar/a.mp4", "unreadable", "not an uncompressed tar archive, or damaged"),
        (f"{tmp_path}/cut.tar/a.mp4", "unreadable", "."),
        (f"{memory}/none.mp4", "missing", "file does not exist"),
        (f"{memory}/none.tar/a.mp4", "missing", "file does not exist"),
        (f"{memory}/empty.mp4", "empty", r"file is empty \(0 bytes\)"),
        (f"{memory}/text.mp4", "unreadable", "not a video file that FFmpeg can read"),
    ):
        with pytest.raises(VideoError, match=reason) as caught:
            read_frames(path, [0])
        assert (caught.value.path, caught.value.kind) == (path, kind)


def test_what_cannot_be_read_here(numbered: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = make_tar(tmp_path / "a.tar.gz", {"a.mp4": numbered("h264").path}, mode="w:gz")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for path, advice in (
        (
            f"{tar}/a.mp4",
            f"{tar} is compressed: reading a video in it means decompressing all data",
        ),
        ("s3://bucket/shards/a.tgz/a.mp4", "s3://bucket/shards/a.tgz is compressed"),
        ("s3://bucket/a.mp4", ": Install s3fs to access S3: pip install s3fs"),
        (
            "nope://bucket/a.mp4",
            ": only file, s3, gs, az, hf, http, https, memory are supported, optionally",
        ),
    ):
        with pytest.raises(UserError) as caught:
            probe(path)
        assert has(str(caught.value), advice)
        assert not isinstance(caught.value, VideoError), "all videos there are the same: no fault of one"
        write(tmp_path / "train.csv", f"{path} a", f"{path} b")
        assert has(error(lambda: read_csv(tmp_path, train="train.csv", val="train.csv")), advice)


def test_a_tar_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for frames in (3, 5):
        encode(tmp_path / "a.mp4", frames=frames)
        tar = make_tar(tmp_path / "a.tar", {"b" * frames: Path(__file__), "a.mp4": tmp_path / "a.mp4"})
        assert probe(tar / "a.mp4").num_frames == frames


# ---- workers


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a web server over tmp_path."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        with urls.private_urls(True):
            yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


class Numbers:
    """The number that each video's last frame carries."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> int:
        return read_number(read_frames(self.paths[row], [probe(self.paths[row]).num_frames - 1])[0])


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_workers_read_after_their_parent(
    everywhere: Callable[[str], dict[str, str]], tmp_path: Path, server: str
) -> None:
    """Of http://, too, where fsspec has a thread and connections."""
    folder = pictures(tmp_path / "clip", range(72))
    shutil.copy(everywhere("h264")["file"], tmp_path / "web.mp4")
    videos = Numbers([*everywhere("h264").values(), str(folder), f"{server}/web.mp4"])
    want = [71] * len(videos)
    assert [videos[row] for row in range(len(videos))] == want
    loader = DataLoader(videos, num_workers=2, timeout=60, multiprocessing_context="fork")
    for _ in range(2):
        assert [int(number) for number in loader] == want


held: list[Any] = []  # by the parent, and so by its forks


def is_held(url: str) -> bool:
    return urls.filesystem_of(url)[0] is held[0]


def test_a_forked_worker_makes_connections_of_its_own(server: str) -> None:
    held[:] = [urls.filesystem_of(server)[0]]
    assert is_held(server)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert not pool.apply_async(is_held, [server]).get(timeout=60)


def test_a_web_server_is_not_asked_for_listings(server: str, numbered: Make, tmp_path: Path) -> None:
    shutil.copy(numbered("h264").path, tmp_path / "a b.mp4")
    write(tmp_path / "train.csv", f"{server}/a b.mp4 x", f"{server}/none.mp4 y")
    splits = read_csv(tmp_path, train="train.csv", val="train.csv")
    assert has(splits.summary(), f"{server}/: web servers do not list folders", "assumed to exist")
    assert probe(splits.train.paths[0]).num_frames == 72
    with pytest.raises(VideoError, match="file does not exist"):
        probe(splits.train.paths[1])


# ---- manifests


def test_csv_rows_lead_everywhere(tmp_path: Path, memory: str) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_bytes(b"x")
    for i in (1, 2):
        (tmp_path / f"frames/clip {i}").mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    make_tar(tmp_path / "shards/000.tar", {"run/a.mp4": clip, "b.mp4": clip})
    upload(f"{memory}/a.mp4", b"x")
    upload(f"{memory}/b/c.mp4", b"x")
    there = [
        ("a.mp4", "a.mp4"),
        (f"file://{clip}", "a.mp4"),
        ("frames/clip 1/", "frames/clip 1"),
        ('"frames/clip 2"', "frames/clip 2"),
        ("shards/000.tar/run/a.mp4", "shards/000.tar/run/a.mp4"),
        ("shards/000.tar/b.mp4", "shards/000.tar/b.mp4"),
        ("shards/000.tar/run/", "shards/000.tar/run"),
        (f"{memory}/a.mp4", f"{memory}/a.mp4"),
        (f"{memory}/b/c.mp4", f"{memory}/b/c.mp4"),
        (f"{memory}/b/", f"{memory}/b"),
    ]
    gone = ["b.mp4", "frames/clip_3/", "shards/000.tar/run/b.mp4", "shards/001.tar/b.mp4", f"{memory}/c/a.mp4"]
    lines = [f"{path},{'x' if i < 5 else 'y'}" for i, (path, _) in enumerate(there)]
    lines += [f"{path} x" for path in gone]
    write(tmp_path / "train.csv", *lines)
    splits = read_csv(tmp_path, train="train.csv", val="train.csv", max_missing=0.5)
    assert splits.train.ids.tolist() == [clip_id for _, clip_id in there]
    assert splits.train.paths[1] == splits.train.paths[0] == str(clip)
    assert "train.csv: 10 of 15 videos found" in splits.summary()
    assert len(splits.missing["train"]) == 5


def test_a_folder_is_listed_once(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        upload(f"{memory}/a/{i}.mp4", b"x")
    calls = []
    ls = MemoryFileSystem.ls
    monkeypatch.setattr(
        MemoryFileSystem, "ls", lambda self, path, **kwargs: calls.append(path) or ls(self, path, **kwargs)
    )
    monkeypatch.setattr(MemoryFileSystem, "info", None)
    write(tmp_path / "train.csv", *(f"{memory}/a/{i}.mp4 {i % 2}" for i in range(20)))
    assert len(read_csv(tmp_path, train="train.csv", val="train.csv").train) == 20
    assert len(calls) == 1


def test_where_listing_is_refused_the_videos_count_as_there(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    write(tmp_path / "train.csv", f"{memory}/a/1.mp4 a", f"{memory}/a/2.mp4 b")
    splits = read_csv(tmp_path, train="train.csv", val="train.csv")
    assert len(splits.train) == 2
    assert has(
        splits.summary(),
        f"{memory}/a/: cannot be fetched (PermissionError: Forbidden); its videos are assumed",
    )


def test_folder_reads_pictures_and_tars(tmp_path: Path) -> None:
    for path in (
        "walk/a/1.jpg",
        "walk/a/2.jpg",
        "walk/b/c/1.png",
        "walk/loose.jpg",
        "run/thumbs/a.jpg",
        "run/v.mp4",
    ):
        (tmp_path / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / path).write_bytes(b"x")
    clip = tmp_path / "train/run/v.mp4"
    make_tar(
        tmp_path / "train/000.tar", {"hop/a.mp4": clip, "./run/b.mp4": clip, "hop/a.json": clip, "c.mp4": clip}
    )
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    splits = read_folder(tmp_path)
    assert splits.classes[""] == ("hop", "run", "walk")
    assert rows(splits.train) == [
        ("train/000.tar/hop/a.mp4", 0),
        ("train/run/v.mp4", 1),
        ("train/000.tar/run/b.mp4", 1),
        ("train/walk/a", 2),
        ("train/walk/b/c", 2),
    ]


def test_a_root_on_a_url_is_refused_in_words(memory: str) -> None:
    for read in (read_folder, partial(read_csv, train="a.csv", val="b.csv")):
        assert has(error(lambda read=read: read(memory)), f"data.root={memory} is a URL", "data=csv")


# ---- all together


def test_one_manifest_of_all_kinds_trains(
    videos: Path, config: Callable[..., DictConfig], tmp_path: Path, memory: str
) -> None:
    clips = {path.relative_to(videos).as_posix(): path for path in sorted(videos.glob("*/*/*.mp4"))}
    tar = make_tar(tmp_path / "all.tar", clips)

    def frames_of(name: str) -> str:
        folder = tmp_path / "frames" / name
        folder.mkdir(parents=True)
        for i, frame in enumerate(read_frames(clips[name], range(probe(clips[name]).num_frames))):
            context: Any = av.CodecContext.create("png", "w")
            context.width, context.height, context.pix_fmt = frame.shape[1], frame.shape[0], "rgb24"
            context.time_base = Fraction(1, 30)
            (packet,) = context.encode(av.VideoFrame.from_ndarray(frame)) + context.encode(None)
            (folder / f"{i}.png").write_bytes(bytes(packet))
        return f"frames/{name}/"

    places: list[Callable[[str], str]] = [
        lambda name: str(clips[name]),
        lambda name: f"{tar.name}/{name}",
        lambda name: upload(f"{memory}/{name}", clips[name].read_bytes()),
        lambda name: f"file://{clips[name]}",
        frames_of,
    ]
    for split in ("train", "val"):
        names = [name for name in clips if name.startswith(split)]
        lines = [f"{place(name)} {name.split('/')[1]}" for name, place in zip(names, cycle(places), strict=False)]
        write(tmp_path / f"{split}.csv", *lines)
    train(config("data=csv", f"data.root={tmp_path}", "data.num_workers=2", "data.max_bad_fraction=0"))
    results = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (results["n"], results["failed"]) == (8, 0)
    assert not (tmp_path / "run/bad_videos.csv").exists()


def test_local_data_needs_no_fsspec(numbered: Make) -> None:
    code = f"""
import sys
from vivit_train.data.video.scan import probe
probe({str(numbered("h264").path)!r})
assert "fsspec" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
