"""Exports of Label Studio and CVAT, in the layouts that the tools write."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, run_script
from trees import error, has, rows, touch, write
from videos import encode

from vivit_train.data.annotations.cvat import read_cvat
from vivit_train.data.annotations.labelstudio import read_labelstudio
from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.training.targets import READERS, TARGETS

FPS = 30


@pytest.fixture(scope="module")
def two_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("annotated")
    for name in ("a.mp4", "b.mp4"):
        encode(root / name, frames=48)
    return root


def spans(manifest: ClipTable) -> list[tuple[str, float, float]]:
    assert manifest.spans_s is not None
    return [(Path(p).name, *map(float, span)) for p, span in zip(manifest.paths, manifest.spans_s, strict=True)]


# ---- Label Studio


def task(number: int, video: str, *results: dict[str, Any], **also: Any) -> dict[str, Any]:
    annotation = {"id": number, "completed_by": 1, "result": list(results), "was_cancelled": False, **also}
    return {"id": number, "annotations": [annotation], "data": {"video": video}, "meta": {}, "project": 1}


def choice(*names: str) -> dict[str, Any]:
    value = {"choices": list(names)}
    return {
        "value": value,
        "id": "Wm0",
        "from_name": "c",
        "to_name": "video",
        "type": "choices",
        "origin": "manual",
    }


def timeline(label: str, start: int, end: int) -> dict[str, Any]:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label]}
    return {"value": value, "id": "x", "from_name": "t", "to_name": "video", "type": "timelinelabels"}


def studio(root: Path, tasks: Sequence[Any], name: str = "export.json", **options: Any) -> Splits:
    (root / name).write_text(json.dumps(tasks), encoding="utf-8")
    return read_labelstudio(root, train=name, **options)


@pytest.mark.parametrize(
    "written",
    [
        "/data/upload/1/3d3ad63e-{}.mp4",
        "/data/local-files/?d=videos/clips/{}.mp4",
        "clips/{}.mp4",
        "C:\\videos\\clips\\{}.mp4",
    ],
)
def test_choices_of_label_studio(tmp_path: Path, written: str) -> None:
    names = [f"{label}{i}" for label in ("run", "walk") for i in range(5)]
    touch(tmp_path, *(f"clips/{name}.mp4" for name in names))
    tasks = [task(i, written.format(name), choice(name[:-1])) for i, name in enumerate(names)]
    tasks += [task(98, "clips/run0.mp4"), task(99, "clips/run0.mp4", choice("walk"), was_cancelled=True)]
    splits = studio(tmp_path, tasks)
    assert splits.classes[""] == ("run", "walk")
    assert (len(splits.train), len(splits.val), splits.test) == (8, 2, None)
    found = rows(splits.train) + rows(splits.val)
    assert sorted(found) == sorted((f"clips/{name}.mp4", int(name.startswith("walk"))) for name in names)
    assert has(
        splits.summary(), "no validation file: 20% of the videos held out, seed 0", "labels of whole videos"
    )
    splits = studio(tmp_path, tasks, val="export.json")
    assert (len(splits.train), len(splits.val)) == (10, 10)


def test_the_minimal_export_of_label_studio(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.mp4" for i in range(4)))
    tasks = [
        {"id": i, "video": f"/data/upload/1/{i}.mp4", "choice": "ab"[i % 2], "annotator": 1} for i in range(4)
    ]
    assert rows(studio(tmp_path, tasks, val="export.json").train) == [(f"{i}.mp4", i % 2) for i in range(4)]


def test_several_choices_of_label_studio(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    tasks = [task(1, "a.mp4", choice("run", "jump")), task(2, "b.mp4", choice("run"))]
    text = error(lambda: studio(tmp_path, tasks, val="export.json"))
    assert has(text, "export.json: task 1: a.mp4 has the labels run, jump", "data.reader.multi_label=true")
    splits = studio(tmp_path, tasks, val="export.json", multi_label=True)
    assert [splits.train.labels_of(row) for row in range(2)] == [(0, 1), (1,)]


def test_timelines_of_label_studio_are_segments(two_videos: Path) -> None:
    tasks = [
        task(1, "/data/upload/1/3d3ad63e-a.mp4", timeline("run", 1, 12), timeline("walk", 13, 48), choice("day")),
        task(2, "/data/upload/1/3d3ad63e-b.mp4", timeline("run", 25, 48)),
    ]
    splits = studio(two_videos, tasks, val="export.json")
    assert splits.classes[""] == ("run", "walk")
    assert spans(splits.train) == [
        ("a.mp4", 0, pytest.approx(12 / FPS)),
        ("a.mp4", pytest.approx(12 / FPS), pytest.approx(48 / FPS)),
        ("b.mp4", pytest.approx(24 / FPS), pytest.approx(48 / FPS)),
    ]
    assert has(
        splits.summary(), "ignored 1 label of whole videos", "labels of segments, frames counted in each video"
    )
    splits = studio(two_videos, tasks, val="export.json", fps=12)
    assert spans(splits.train)[1] == ("a.mp4", 1, 4)
    text = error(lambda: studio(two_videos, [task(7, "a.mp4", timeline("run", 60, 90))]))
    assert has(text, "task 7: frames 59 to 89 are not within", "which has 48 frames")


def test_what_label_studio_leaves_out_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    note = {"value": {"text": ["blurred"]}, "from_name": "n", "to_name": "video", "type": "textarea"}
    tasks = [task(1, "a.mp4", choice("run"), note), task(2, "b.mp4", choice("walk"))]
    tasks += [task(3, "c.mp4"), task(4, "c.mp4", choice("run"), was_cancelled=True), task(5, "c.mp4", choice())]
    tasks += [{"id": 6, "data": {"video": "c.mp4"}, "annotations": []}]
    splits = studio(tmp_path, tasks, val="export.json")
    assert rows(splits.train) == [("a.mp4", 0), ("b.mp4", 1)]
    skipped = "skipped 1 result of the type 'textarea', 4 tasks without a label, 1 annotation that was cancelled"
    assert has(splits.summary(), f"export.json: {skipped}")
    minimal = [{"id": i, "video": f"{name}.mp4", "choice": label} for i, (name, label) in enumerate(("ax", "by"))]
    splits = studio(tmp_path, [*minimal, {"id": 3, "video": "c.mp4"}], val="export.json")
    assert has(splits.summary(), "export.json: skipped 1 task without a label")
    text = error(lambda: studio(tmp_path, [*minimal, task(7, "c.mp4", choice(""))], val="export.json"))
    assert has(text, "task 7: c.mp4 has an empty label")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"a": 1}, ["export.json: expected a list of tasks", "export the project as JSON"]),
        (
            [{"id": 3, "annotations": [{"result": 1}], "data": {"video": "a.mp4"}}],
            ["malformed rows (1)", "task 3"],
        ),
        ([5], ["malformed rows (1)", "task 1", "as Label Studio exports"]),
    ],
)
def test_malformed_exports_of_label_studio(tmp_path: Path, content: Any, parts: list[str]) -> None:
    assert has(error(lambda: studio(tmp_path, content)), *parts)


# ---- CVAT

VIDEO = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id><name>my task</name><size>48</size><mode>interpolation</mode>
      <labels><label><name>run</name></label><label><name>walk</name></label></labels>
    </task>
    <dumped>2026-11-01 10:00:00.000000+00:00</dumped>
    <source>{video}</source>
  </meta>
  <track id="0" label="run" source="manual">
    <box frame="0" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
    <box frame="11" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
    <box frame="12" keyframe="1" outside="1" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
    <box frame="24" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
    <box frame="36" keyframe="1" outside="1" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
  </track>
  <track id="1" label="walk" source="manual">
    <box frame="12" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
    <box frame="47" keyframe="1" outside="0" occluded="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"></box>
  </track>
</annotations>"""


def test_tracks_of_cvat_are_segments(two_videos: Path) -> None:
    write(two_videos / "annotations.xml", VIDEO.format(video="a.mp4"))
    splits = read_cvat(two_videos, val="annotations.xml")
    assert splits.classes[""] == ("run", "walk")
    assert spans(splits.train) == [
        ("a.mp4", 0, pytest.approx(12 / FPS)),
        ("a.mp4", pytest.approx(24 / FPS), pytest.approx(36 / FPS)),
        ("a.mp4", pytest.approx(12 / FPS), pytest.approx(48 / FPS)),
    ]
    assert splits.train.labels[:, 0].tolist() == [0, 0, 1]


def test_tags_of_cvat_are_segments(two_videos: Path) -> None:
    tags = [("run", range(0, 12)), ("walk", range(12, 24)), ("run", range(24, 36))]
    images = "".join(
        f'<image id="{i}" name="frame_{i:06d}" width="64"><tag label="{label}" source="manual"></tag></image>'
        for label, frames in tags
        for i in frames
    )
    meta = "<meta><task><id>1</id><name>b.mp4</name></task></meta>"
    write(two_videos / "tags.xml", f"<annotations><version>1.1</version>{meta}{images}</annotations>")
    splits = read_cvat(two_videos, train="tags.xml", val="tags.xml")
    assert sorted(zip(spans(splits.train), splits.train.labels[:, 0].tolist(), strict=True)) == [
        (("b.mp4", 0, pytest.approx(12 / FPS)), 0),
        (("b.mp4", pytest.approx(12 / FPS), pytest.approx(24 / FPS)), 1),
        (("b.mp4", pytest.approx(24 / FPS), pytest.approx(36 / FPS)), 0),
    ]


def test_a_project_of_cvat_has_several_videos(two_videos: Path) -> None:
    tasks = "".join(
        f"<task><id>{i}</id><name>t{i}</name><source>{v}.mp4</source></task>" for i, v in enumerate("ab")
    )
    box = '<box frame="{}" outside="{}"></box>'
    tracks = "".join(
        f'<track id="{i}" label="{label}" task_id="{i}">{box.format(0, 0)}{box.format(24, 1)}</track>'
        for i, label in enumerate(("run", "walk"))
    )
    meta = f"<meta><project><id>1</id><name>p</name><tasks>{tasks}</tasks></project></meta>"
    write(two_videos / "project.xml", f"<annotations>{meta}{tracks}</annotations>")
    splits = read_cvat(two_videos, train="project.xml", val="project.xml")
    assert [name for name, *_ in spans(splits.train)] == ["a.mp4", "b.mp4"]
    assert splits.train.labels[:, 0].tolist() == [0, 1]


def test_the_backup_of_a_task_of_cvat(two_videos: Path) -> None:
    folder = two_videos / "backup"
    shapes = [
        {"frame": 0, "outside": False, "type": "rectangle"},
        {"frame": 12, "outside": True, "type": "rectangle"},
    ]
    unseen = {"frame": 0, "label": "run", "shapes": shapes[1:]}
    job = {
        "version": 0,
        "shapes": [{"frame": 3, "label": "run", "type": "polygon"}],
        "tracks": [{"frame": 0, "label": "run", "shapes": shapes}, unseen],
        "tags": [{"frame": i, "label": "walk"} for i in range(24, 48)],
    }
    write(folder / "annotations.json", json.dumps([job]))
    text = error(lambda: read_cvat(two_videos, train="backup/annotations.json", val="backup/annotations.json"))
    assert has(text, "no task.json beside it")
    write(folder / "task.json", json.dumps({"name": "a.mp4", "labels": []}))
    splits = read_cvat(two_videos, train="backup/annotations.json", val="backup/annotations.json")
    assert spans(splits.train) == [
        ("a.mp4", 0, pytest.approx(12 / FPS)),
        ("a.mp4", pytest.approx(24 / FPS), pytest.approx(48 / FPS)),
    ]
    skipped = "skipped 1 track that is never in the picture, 1 shape of a single frame, which is no tag"
    assert has(splits.summary(), f"annotations.json: {skipped}")


def test_what_cvat_leaves_out_is_counted(two_videos: Path) -> None:
    text = VIDEO.format(video="a.mp4").replace(
        "</annotations>",
        '<track id="2" label="run"><box frame="3" outside="1"></box></track>'
        '<image id="5" name="frame_000005"><box label="run"></box><tag label="walk"></tag></image></annotations>',
    )
    write(two_videos / "more.xml", text)
    splits = read_cvat(two_videos, train="more.xml", val="more.xml")
    assert len(splits.train) == 4
    skipped = "skipped 1 track that is never in the picture, 1 shape of a single frame, which is no tag"
    assert has(splits.summary(), f"more.xml: {skipped}")
    box = '<box frame="{}" outside="{}"></box>'
    tasks = "".join(f"<task><id>{i}</id><name>{v}.mp4</name></task>" for i, v in enumerate("abc"))
    tracks = "".join(
        f'<track id="{i}" label="{label}" task_id="{i}">{box.format(0, 0)}{box.format(24, 1)}</track>'
        for i, label in enumerate(("run", "walk"))
    )
    write(two_videos / "project.xml", f"<annotations><meta>{tasks}</meta>{tracks}</annotations>")
    splits = read_cvat(two_videos, train="project.xml", val="project.xml")
    assert has(splits.summary(), "project.xml: skipped 1 video without a label")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Datumaro", {"info": {}, "categories": {"label": {"labels": [{"name": "run"}]}}, "items": []}),
        ("COCO", {"images": [], "annotations": [], "categories": []}),
    ],
)
def test_exports_of_frames_do_not_name_their_video(name: str, content: Any, tmp_path: Path) -> None:
    write(tmp_path / "default.json", json.dumps(content))
    text = error(lambda: read_cvat(tmp_path, train="default.json"))
    assert has(text, f"default.json is an export as {name}", "CVAT for video 1.1", "data.train=annotations.xml")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("label,path", ["annotations.xml is not XML", "CVAT for video 1.1"]),
        ("<boxes></boxes>", ["<boxes> instead of <annotations>"]),
        ("<annotations><meta></meta></annotations>", ["no <source> and no <task> in <meta>"]),
        (VIDEO.format(video="a.mp4").replace('frame="24"', 'frame="x"'), ["<box> has no number frame, but 'x'"]),
        (VIDEO.format(video="a.mp4").replace('frame="47"', 'frame="99"').replace('"12"', '"50"'), ["not within"]),
        (VIDEO.format(video="a.mp4"), ["no video can be held out", "data.val=<another export>"]),
    ],
)
def test_malformed_exports_of_cvat(two_videos: Path, content: str, parts: list[str]) -> None:
    write(two_videos / "annotations.xml", content)
    assert has(error(lambda: read_cvat(two_videos)), *parts)


def test_a_video_of_cvat_that_is_missing(two_videos: Path) -> None:
    write(two_videos / "annotations.xml", VIDEO.format(video="c.mp4"))
    text = error(lambda: read_cvat(two_videos, val="annotations.xml"))
    assert has(text, "too many missing videos", "0 of 3 segments have their video", "c.mp4")


def test_a_table_or_an_archive_is_no_export(tmp_path: Path) -> None:
    for name in ("export.csv", "export.zip"):
        write(tmp_path / name, "choice,video")
        text = error(lambda name=name: read_labelstudio(tmp_path, train=name))  # type: ignore[misc]
        assert has(text, f"data=labelstudio reads no {Path(name).suffix} files", "data=csv")


def test_frames_beyond_the_end_of_a_video_are_an_error(two_videos: Path) -> None:
    """The tool has counted at another frame rate."""
    tasks = [task(i, f"{name}.mp4", timeline(label, 1, 90)) for i, (name, label) in enumerate(("ax", "by"))]
    assert has(error(lambda: studio(two_videos, tasks)), "which has 48 frames", "data.reader.fps")


@pytest.mark.parametrize("read", [read_labelstudio, read_cvat])
def test_a_checkpoint_can_name_the_readers(read: Callable[..., Splits]) -> None:
    names = [name for name, where in TARGETS.items() if where == f"{read.__module__}:{read.__name__}"]
    assert set(names) <= READERS
    assert names


# ---- a run, and an evaluation of it, in real processes


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["labelstudio", "cvat"])
def test_an_export_is_trained_on_and_evaluated(tool: str, tmp_path: Path) -> None:
    names = [f"{label}{i}" for label in ("run", "walk") for i in range(4)]
    (tmp_path / "videos").mkdir()
    for name in names:
        encode(tmp_path / f"videos/{name}.mp4", frames=24)
    if tool == "labelstudio":
        text = json.dumps([task(i, f"{name}.mp4", choice(name[:-1])) for i, name in enumerate(names)])
        file = "export.json"
    else:
        tasks = "".join(
            f"<task><id>{i}</id><name>t{i}</name><source>{name}.mp4</source></task>"
            for i, name in enumerate(names)
        )
        box = '<box frame="0" outside="0"></box><box frame="24" outside="1"></box>'
        tracks = "".join(
            f'<track id="{i}" label="{n[:-1]}" task_id="{i}">{box}</track>' for i, n in enumerate(names)
        )
        meta = f"<meta><project><id>1</id><name>p</name><tasks>{tasks}</tasks></project></meta>"
        text, file = f"<annotations>{meta}{tracks}</annotations>", "export.xml"
    (tmp_path / "videos" / file).write_text(text)
    data = [f"data={tool}", "data.root=videos", f"data.train={file}", "hydra.run.dir=run"]
    done = run_script("train.py", *TINY, *data, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"source   {tool}" in done.stdout
    words = ["ckpt_path=run", "hydra.run.dir=eval", "trainer=cpu"]
    again = run_script("eval.py", *words, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("run", "eval"))
    assert first["n"] == second["n"] == 2
    scores = [name for name in first if "top1" in name]
    assert scores
    assert [first[name] for name in scores] == [second[name] for name in scores]
