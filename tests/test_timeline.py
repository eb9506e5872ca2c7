"""`vivit predict --timeline` and `--live`: windows merge into segments, which are written in four forms."""

import csv
import re
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from browser import BROWSER, browse
from checkpoints import checkpoint
from hydra.core.hydra_config import HydraConfig
from typer.testing import CliRunner
from videos import encode

import vivit_train
from vivit_train.data.annotations.labelstudio import read_labelstudio
from vivit_train.data.synthetic import make_demo
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import probe
from vivit_train.data.windows import Windows
from vivit_train.segments import Segment, Segmentation, merge, segment_video
from vivit_train.tools.cli import app
from vivit_train.tools.predict.timeline import write_timeline
from vivit_train.utils.errors import VideoError

HOSTILE = '<script>alert("1")</script>\x1b[31m'


def windows_at(starts_s: list[float], window_s: float, duration_s: float) -> Windows:
    return Windows(np.zeros((len(starts_s), 1), np.int64), np.array(starts_s), window_s, duration_s)


def test_windows_merge_into_segments() -> None:
    """Class a until 4 s, then class b; a single odd window among them does not make a segment of its own."""
    starts = [float(s) for s in range(9)]
    share_a = [1.0, 1.0, 0.4, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    shares = np.stack([share_a, 1 - np.array(share_a)], axis=1)
    found = merge(shares, windows_at(starts, 2, 10), {"": ["a", "b"]}, multi_label=False)
    assert [(one.start_s, one.end_s, one.name) for one in found] == [(0, 4, "a"), (4, 10, "b")]
    assert 0.5 < found[0].probability < 1
    flicker = shares.copy()
    flicker[7] = [5.0, 0.0]  # the most probable class of one part, which is shorter than a window
    kept = merge(flicker, windows_at(starts, 2, 10), {"": ["a", "b"]}, multi_label=False)
    assert (kept[0].start_s, kept[0].end_s, kept[0].name) == (0, 4, "a")
    assert all(one.end_s - one.start_s >= 2 for one in kept)
    both = np.array([[0.9, 0.2], [0.9, 0.8], [0.1, 0.9]])
    tags = merge(both, windows_at([0, 1, 2], 1, 3), {"": ["a", "b"]}, multi_label=True)
    assert [(one.start_s, one.end_s, one.name) for one in tags] == [(0, 2, "a"), (1, 3, "b")]
    heads = merge(both, windows_at([0, 1, 2], 1, 3), {"verb": ["a"], "noun": ["b"]}, multi_label=False)
    assert [(one.head, one.start_s, one.end_s) for one in heads] == [("verb", 0, 3), ("noun", 0, 3)]


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_files_of_a_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my videos").mkdir()
    encode(Path("my videos/a b.mp4"), frames=72)
    names = ["walk", HOSTILE, "=1+1"]
    segments = [Segment(0.8 * k, 0.8 * (k + 1), "", name, 0.9) for k, name in enumerate(names)]
    result = Segmentation("my videos/a b.mp4", 2.4, 0.4, 0.2, segments)
    write_timeline(result, Path("out/a"), probe("my videos/a b.mp4").times_s)

    with open("out/a.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["start_s", "end_s", "class", "probability"], ["0.000", "0.800", "walk", "0.9000"]]
    assert rows[2][2] == HOSTILE.replace("\x1b", r"\x1b")
    assert rows[3][2] == "'=1+1"
    assert (
        Path("out/a.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:00,800\nwalk\n\n2\n00:00:00,800 -->")
    )

    splits = read_labelstudio(tmp_path, train="out/a.json", val="out/a.json")
    assert splits.classes == {"": tuple(sorted(names))}
    assert [Path(path).name for path in splits.val.paths] == ["a b.mp4"] * 3
    assert splits.val.spans_s == pytest.approx(
        np.array([[one.start_s, one.end_s] for one in segments]), abs=1 / 30
    )
    assert [splits.classes[""][k] for (k,) in splits.val.labels] == names

    page = Path("out/a.html").read_text()
    tags = Tags(page)
    assert [attrs["src"] for tag, attrs in tags.tags if tag == "video"] == ["../my%20videos/a%20b.mp4"]
    assert sum(tag == "script" for tag, _ in tags.tags) == 1
    assert sum(tag == "button" for tag, _ in tags.tags) == 3
    assert HOSTILE.replace("\x1b", r"\x1b") in tags.text
    assert not re.search(r"https?://", page)
    assert "prefers-color-scheme: dark" in page


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_page_says_that_its_video_cannot_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "old.avi", "moved.mp4"):
        encode(Path(name), frames=72)
        times_s = probe(name).times_s
        segments = [Segment(0, 2.4, "", "walk", 0.9)]
        write_timeline(Segmentation(name, 2.4, 0.4, 0.2, segments), Path(Path(name).stem), times_s)
    Path("moved.mp4").unlink()
    script = """const video = document.querySelector('video'), says = document.querySelector('.unplayable');
        while (!video.error && video.readyState < 1) await new Promise((done) => setTimeout(done, 20));
        await new Promise((done) => setTimeout(done, 100));
        return says.getBoundingClientRect().height > 0 && says.textContent;"""
    said = {name: browse(Path(f"{name}.html").resolve(), script) for name in ("a", "old", "moved")}
    assert said["a"] is False
    assert said["old"] == said["moved"]
    assert "This browser cannot play the video" in said["old"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model") / "motions.ckpt", {"": ["a", "b", "c"]}))


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["predict", *words])


def test_the_command(ckpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode(Path("a.mp4"), frames=40)
    Path("b.mp4").write_text("this is text")
    result = invoke(ckpt, "a.mp4", "b.mp4", "--timeline", "--step", "0.1")
    assert result.exit_code == 1
    assert "1 of 2 videos could not be read" in result.stderr
    assert sorted(file.name for file in Path("timelines").iterdir()) == ["a.csv", "a.html", "a.json", "a.srt"]
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert (lines[0][:2], lines[-1][2]) == (["a.mp4", "0.000"], "1.333")
    model = vivit_train.load(ckpt, device="cpu")
    found = segment_video(model, "a.mp4", step_s=0.1)
    assert [[f"{one.start_s:.3f}", one.name] for one in found.segments] == [[line[1], line[3]] for line in lines]
    for words, said in (
        (["a.mp4", "--timeline"], "a.csv exists"),
        (["a.mp4", "--timeline", "--top", "3", "--json", "x"], "--top, --json has no effect with --timeline"),
        (["a.mp4", "--window", "3"], "--window has no effect without --timeline"),
        (["a.mp4", "--timeline", "--out", "new", "--views", "2x1"], "a window is one clip"),
        (["a.mp4", "b.mp4", "--live", "3"], "--live reads one stream, not 2"),
    ):
        refused = invoke(ckpt, *words)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert said in refused.output
    with pytest.raises(VideoError, match="does not exist"):
        segment_video(model, "none.mp4")


def test_a_live_stream(ckpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server sends MPEG-TS, of which 1.5 s are taken; another address sends nothing that is a video."""
    monkeypatch.chdir(tmp_path)
    encode(Path("camera.ts"), frames=90, g="15")
    Path("text.ts").write_text("this is text")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/camera.ts"
        result = invoke(ckpt, url, "--live", "1.5", "--window", "0.4")
        bad = invoke(ckpt, url.replace("camera", "text"), "--live", "1")
        none = invoke(ckpt, url.replace("camera", "none"), "--live", "1")
        short = invoke(ckpt, url, "--live", "60", "--window", "0.4", "--out", "short")
        http.shutdown()
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0][:2] == [url, "0.000"]
    assert 1.3 < float(lines[-1][2]) <= 1.5
    assert sorted(file.name for file in Path("timelines").iterdir()) == ["camera.csv", "camera.html", "camera.srt"]
    assert "<video" not in Path("timelines/camera.html").read_text()
    assert bad.exit_code == 1
    assert "cannot be read as a live stream" in bad.stderr
    assert "none.ts: cannot be read as a live stream: Server returned 404 Not Found" in none.stderr
    assert short.exit_code == 0
    assert "the stream ended after 3.0 of 60 s" in short.stderr


@pytest.mark.slow
def test_boundaries_are_found_within_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows four motions, and a video of them one after the other, of clips that it recognizes."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.chdir(tmp_path)
    make_demo(Path("all"), train_per_class=96, val_per_class=8, test_per_class=8)
    motions = ["move_left", "move_up", "move_right", "move_down"]
    for split in ("train", "val"):
        for name in motions:
            Path("videos", split, name).parent.mkdir(parents=True, exist_ok=True)
            Path("all", split, name).rename(Path("videos", split, name))
    words = ["data=folder", "data.root=videos", "recipe=demo", "trainer.max_epochs=12", "trainer.accelerator=cpu"]
    vivit_train.train(*words, run_dir="run")
    model = vivit_train.load("run")
    truth = []
    with av.open("long.mp4", "w") as out:
        stream: Any = out.add_stream("libx264", rate=12, options={"crf": "18"})
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for name in [*motions, motions[0]]:
            clips = sorted(Path("all/test", name).iterdir())
            known = [p.video for p in model.predict(clips, views="3x1") if p.labels[0].name == name][:3]
            truth.append((name, 2.0 * len(known)))
            for clip in known:
                for pixels in read_frames(clip, range(24)):
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    found = segment_video(model, "long.mp4")
    assert [one.name for one in found.segments] == [name for name, _ in truth]
    ends = np.cumsum([length for _, length in truth])
    assert np.abs(np.array([one.end_s for one in found.segments]) - ends).max() <= found.window_s
