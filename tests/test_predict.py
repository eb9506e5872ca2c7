"""`vivit predict`: the videos that words name, predictions on the terminal and in files, and what fails."""

import csv
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoints import checkpoint
from typer.testing import CliRunner, Result

import vivit_train
from vivit_train.data.synthetic import CLASSES
from vivit_train.tools.cli import app
from vivit_train.tools.predict.sources import Clip, find_clips
from vivit_train.utils.errors import UserError

HOSTILE = "=1+1\x1b[31m.mp4"
Predict = Callable[..., Result]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model") / "motions.ckpt", {"": list(CLASSES)}))


@pytest.fixture
def predict(ckpt: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Runs the command in this process, in a folder with the videos."""
    (tmp_path / "videos").symlink_to(videos / "test")
    monkeypatch.chdir(tmp_path)

    def run(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ["predict", ckpt, *words, "--workers", "0"], input=stdin)

    return run


def rows(result: Result) -> list[list[str]]:
    return [line.split("\t") for line in result.stdout.splitlines()]


def test_a_folder_in_a_pipe_and_in_files(predict: Predict, ckpt: str, tmp_path: Path) -> None:
    result = predict("videos", "--top", "2", "--views", "2x1", "--csv", "out/a.csv", "--json", "out/a.json")
    assert result.exit_code == 0, result.output
    lines = rows(result)
    assert len(lines) == 16
    video, best, share, second, less = lines[0]
    assert video == "videos/approach/0000.mp4"
    expected = vivit_train.load(ckpt).predict(video, views="2x1", num_workers=0)
    assert [best, second] == [label.name for label in expected.labels[:2]]
    assert [float(share), float(less)] == pytest.approx([x.probability for x in expected.labels[:2]], abs=1e-4)
    with (tmp_path / "out/a.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [list(row.values())[:2] for row in table] == [line[:2] for line in lines]
    assert list(table[0]) == ["video", "class", "probability", "class_2", "class_2_probability", "error"]
    written = json.loads((tmp_path / "out/a.json").read_text())
    assert (written["checkpoint"], written["views"], written["failed"]) == (ckpt, "2x1", [])
    assert written["predictions"][0]["labels"][0]["name"] == best
    assert "16 videos" in result.stderr


def test_bad_files_are_listed_and_the_others_are_kept(predict: Predict, tmp_path: Path) -> None:
    Path(HOSTILE).write_text("this is text")
    result = predict(HOSTILE, "none.mp4", "videos/approach/0000.mp4", "--csv", "a.csv", "--json", "a.json")
    assert result.exit_code == 1
    assert [line[0] for line in rows(result)] == ["videos/approach/0000.mp4"]
    assert "2 of 3 videos could not be read" in result.stderr
    assert r"=1+1\x1b[31m.mp4: not a video file" in result.stderr
    assert "none.mp4: file does not exist" in result.stderr
    with (tmp_path / "a.csv").open() as file:
        bad, missing, good = csv.DictReader(file)
    assert (bad["video"], bad["class"], missing["class"]) == (r"'=1+1\x1b[31m.mp4", "", "")
    assert "not a video file" in bad["error"]
    assert good["class"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert [entry["video"] for entry in written["failed"]] == [HOSTILE, "none.mp4"]
    assert len(written["predictions"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing/*.mp4"], "no file matches nothing/*.mp4"),
        (["empty"], "no videos in the folder empty"),
        (["a.mp4", "--views", "3x2"], "--views 3x2: must be up to 999 temporal clips x spatial crops"),
        (["a.mp4", "--csv", "there.csv"], "there.csv exists"),
        (["a.mp4", "--csv", "new", "--json", "new"], "same path"),
        (["a.mp4", "--device", "tpu"], "must be cpu, cuda or auto"),
        (["a.mp4", "--labels", "none.txt"], "none.txt: no such file"),
        (["notes.txt"], "no column of videos"),
        ([], "Missing argument"),
    ],
    ids=" ".join,
)
def test_wrong_words_end_with_2(words: list[str], said: str, predict: Predict) -> None:
    Path("empty").mkdir()
    Path("there.csv").write_text("mine")
    Path("notes.txt").write_text("some words\nmore words here\n")
    result = predict(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.output
    assert Path("there.csv").read_text() == "mine"
    assert not Path("new").exists()


def test_overwrite_replaces_a_file(predict: Predict) -> None:
    Path("there.csv").write_text("mine")
    assert predict("videos/recede/0000.mp4", "--csv", "there.csv", "--overwrite").exit_code == 0
    assert Path("there.csv").read_text().startswith("video,class,probability")


def test_what_words_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.mp4", "a/b/y.MKV", "a/notes.md", "frames/1.jpg", "frames/2.jpg", "many/one/1.png", "z.bin"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    with tarfile.open("t.tar", "w") as tar:
        tar.add("a")
    Path("list.txt").write_text("# mine\na/x.mp4\n\nhttps://example.org/q.mp4\n")
    Path("bare.csv").write_text("0,a/x.mp4,walk\n1,a/b/y.MKV,run\n")
    Path("clips.csv").write_text("label;path;start;end\nwalk;a/x.mp4;0;1.5\nrun;a/x.mp4;1.5;4\n")

    def paths(*words: str) -> list[str]:
        return [clip.path for clip in find_clips(words)]

    assert paths("a") == ["a/b/y.MKV", "a/x.mp4"]
    assert paths("a/*.mp4", "a", "z.bin", "gone.mp4") == ["a/x.mp4", "a/b/y.MKV", "z.bin", "gone.mp4"]
    assert paths("frames", "many") == ["frames", "many/one"]
    assert paths("t.tar") == ["t.tar/a/b/y.MKV", "t.tar/a/x.mp4"]
    assert paths("list.txt") == ["a/x.mp4", "https://example.org/q.mp4"]
    assert paths("bare.csv") == ["a/x.mp4", "a/b/y.MKV"]
    assert find_clips(["clips.csv"]) == [Clip("a/x.mp4", (0, 1.5)), Clip("a/x.mp4", (1.5, 4))]
    Path("clips.csv").write_text("path,start,end\na/x.mp4,2,1\na/x.mp4,x,1\n")
    with pytest.raises(UserError, match=r"(?s)invalid rows.*\(2\).*clips.csv:2: a/x.mp4,2,1"):
        find_clips(["clips.csv"])


def test_a_list_on_stdin_and_clips_of_videos(predict: Predict) -> None:
    listed = predict("-", stdin="videos/recede/0000.mp4\n\nvideos/recede/0001.mp4\n")
    assert [line[0][-8:] for line in rows(listed)] == ["0000.mp4", "0001.mp4"]
    Path("clips.csv").write_text("path,start,end\nvideos/recede/0000.mp4,0,0.5\nvideos/recede/0000.mp4,50,60\n")
    result = predict("clips.csv", "videos/recede/0001.mp4", "--csv", "out.csv")
    assert result.exit_code == 1
    names = [line[0] for line in rows(result)]
    assert names == ["videos/recede/0000.mp4@0.00-0.50", "videos/recede/0001.mp4"]
    assert "shows no frame from 50.00 s to 60.00 s" in result.stderr
    with open("out.csv") as file:
        table = [(row["start_s"], row["end_s"], bool(row["class"])) for row in csv.DictReader(file)]
    assert table == [("0", "0.5", True), ("50", "60", False), ("", "", True)]


def test_several_heads(predict: Predict, tmp_path: Path) -> None:
    epic = checkpoint(tmp_path / "epic.ckpt", {"verb": ["take", "put"], "noun": ["cup", "door"]})
    words = ["predict", str(epic), "videos/recede/0000.mp4", "--top", "1", "--workers", "0", "--csv", "a.csv"]
    result = CliRunner().invoke(app, words)
    assert [line[1] for line in rows(result)] == ["verb", "noun", "action"]
    with open("a.csv") as file:
        (row,) = csv.DictReader(file)
    assert list(row)[:3] == ["video", "verb", "verb_probability"]
    assert row["action"] == f"{row['verb']} {row['noun']}"


def labels_for_fiftyone(file: str) -> dict[str, Any]:
    """The labels by video of a file in the layout that FiftyOne documents.

    {"labels": {uuid: target}}; the uuid may be an absolute path; without "classes", a label is a name. A target is
    None, {"label", "confidence", "attributes"}, or a list of these, with "timestamps" or "support" in a timeline.
    """
    content = json.loads(Path(file).read_text())
    assert set(content) == {"labels"}
    for video, targets in content["labels"].items():
        assert os.path.isabs(video)
        for one in targets if isinstance(targets, list) else [targets] * (targets is not None):
            assert (
                {"label", "confidence"}
                <= set(one)
                <= {"label", "confidence", "attributes", "timestamps", "support"}
            )
            assert isinstance(one["label"], str)
            assert 0 <= one["confidence"] <= 1
            for place in ("timestamps", "support"):
                start, end = one.get(place, (0, 1))
                assert start <= end
            assert all(type(frame) is int and frame >= 1 for frame in one.get("support", ()))
    return content["labels"]


def test_fiftyone_reads_classifications_and_clips(predict: Predict, tmp_path: Path) -> None:
    Path(HOSTILE).write_text("this is text")
    result = predict(HOSTILE, "videos/recede", "--fiftyone", "labels.json")
    assert result.exit_code == 1
    labels = labels_for_fiftyone("labels.json")
    best = {os.path.abspath(video): (name, float(share)) for video, name, share, *_ in rows(result)}
    assert labels.pop(os.path.abspath(HOSTILE)) is None
    assert {video: one["label"] for video, one in labels.items()} == {
        video: name for video, (name, _) in best.items()
    }
    for video, one in labels.items():
        assert one["confidence"] == pytest.approx(best[video][1], abs=1e-4)

    Path("clips.csv").write_text("path,start,end\nvideos/recede/0000.mp4,0,0.5\nvideos/recede/0000.mp4,0.5,0.9\n")
    assert predict("clips.csv", "--fiftyone", "clips.json").exit_code == 0
    ((video, found),) = labels_for_fiftyone("clips.json").items()
    assert (video, [one["timestamps"] for one in found]) == (
        os.path.abspath("videos/recede/0000.mp4"),
        [[0, 0.5], [0.5, 0.9]],
    )
    refused = predict("clips.csv", "videos/recede/0001.mp4", "--fiftyone", "both.json")
    assert refused.exit_code == 2
    assert "whole videos or about clips of videos" in refused.stderr

    epic = checkpoint(tmp_path / "epic.ckpt", {"verb": ["take", "put"], "noun": ["cup", "door"]})
    words = ["predict", str(epic), "videos/recede/0000.mp4", "--workers", "0", "--fiftyone", "heads.json"]
    assert CliRunner().invoke(app, words).exit_code == 0
    ((_, found),) = labels_for_fiftyone("heads.json").items()
    assert [one["attributes"] for one in found] == [{"head": "verb"}, {"head": "noun"}]


def test_fiftyone_gets_all_labels_of_a_multi_label_model(predict: Predict, tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(40)]
    many = checkpoint(tmp_path / "many.ckpt", {"": names}, multi_label=True)
    words = ["predict", str(many), "videos/recede/0000.mp4", "--workers", "0", "--fiftyone", "many.json"]
    assert CliRunner().invoke(app, words).exit_code == 0
    ((_, found),) = labels_for_fiftyone("many.json").items()
    logits = vivit_train.load(many, device="cpu").predict("videos/recede/0000.mp4", num_workers=0).logits
    assert {one["label"] for one in found} == {
        name for name, logit in zip(names, logits, strict=True) if logit > 0
    }
    assert len(found) > 5


def test_fiftyone_reads_a_timeline(ckpt: str, predict: Predict) -> None:
    words = [
        "predict",
        ckpt,
        "videos/recede/0000.mp4",
        "--timeline",
        "--window",
        "0.3",
        "--fiftyone",
        "lines.json",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    ((video, found),) = labels_for_fiftyone("lines.json").items()
    assert video == os.path.abspath("videos/recede/0000.mp4")
    assert [one["label"] for one in found] == [line[3] for line in rows(result)]
    task = json.loads(Path("timelines/0000.json").read_text())[0]
    ranges = [region["value"]["ranges"][0] for region in task["annotations"][0]["result"]]
    assert [one["support"] for one in found] == [[one["start"], one["end"]] for one in ranges]
    assert CliRunner().invoke(app, words).exit_code == 2


@pytest.fixture
def server(videos: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(videos))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.slow
def test_processes_on_pipes_urls_and_a_terminal(ckpt: str, videos: Path, server: str, tmp_path: Path) -> None:
    """The command itself, with loader processes."""
    command = [sys.executable, "-m", "vivit_train.tools.cli", "predict", ckpt]
    url = f"{server}/test/recede/0000.mp4"
    refused = subprocess.run([*command, url], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no public address" in refused.stderr
    listed = f"{url}\n{videos}/test/recede/0000.mp4\n"
    options = ["-", "--allow-private-urls", "--workers", "2"]
    both = subprocess.run([*command, *options], input=listed, capture_output=True, text=True, check=False)
    assert both.returncode == 0, both.stderr
    first, second = both.stdout.splitlines()
    assert first.split("\t")[1:] == second.split("\t")[1:]
    env = os.environ | {"COLUMNS": "200", "TERM": "xterm"}
    words = " ".join([*command, f"{videos}/test/recede", "--top", "2"])
    shown = subprocess.run(
        ["script", "-qec", words, "/dev/null"], capture_output=True, text=True, env=env, check=False
    )
    assert shown.returncode == 0
    for word in ("video", "class", "probability", "0001.mp4", "%", "per second"):
        assert word in shown.stdout


DECODER = """
import os, signal, time
from vivit_train.data.video.decode import read_frames

def read(path, scan, wanted, short_side, cut):
    if "crash" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in path:
        time.sleep(60)
    return read_frames(path, wanted, short_side=short_side, cut=cut)
"""


@pytest.mark.slow
def test_a_decoder_that_dies_or_hangs_costs_one_video(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text(DECODER)
    names = ["1", "crash", "2", "3", "hang", "4"]
    for name in names:
        (tmp_path / f"{name}.mp4").symlink_to(videos / "test/recede/0000.mp4")
    ckpt = checkpoint(tmp_path / "x.ckpt", {"": ["a", "b"]}, decoder="dying.read", timeout_s=3)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vivit_train.tools.cli", "predict", str(ckpt), *(f"{n}.mp4" for n in names)),
            *("--trusted", "dying", "--workers", "2", "--batch-size", "1"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        timeout=600,  # On a busy machine, its imports alone have taken more than two minutes.
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Exception ignored" not in done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["1.mp4", "2.mp4", "3.mp4", "4.mp4"]
    assert len({tuple(line[1:]) for line in lines}) == 1
    assert "crash.mp4: its decoder's process died" in done.stderr
    assert "hang.mp4: the decoder has not returned after 3 s" in done.stderr
