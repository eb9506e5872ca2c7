import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from trees import error, has, rows, touch, write

from vivit_train.data.annotations.csv_file import read_csv
from vivit_train.data.annotations.files import find_videos
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.table import ClipTable, LabelSets, Splits
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.utils.errors import UserError

# ---- folder


@pytest.fixture
def split_tree(tmp_path: Path) -> Path:
    touch(tmp_path, "train/run/a.mp4", "train/run/day 1/b.AVI", "train/walk/c.webm", "train/walk/notes.txt")
    touch(tmp_path, "train/run/.hidden.mp4", "train/.cache/x.mp4", "train/walk/.trash/y.mp4")
    touch(tmp_path, "val/run/d.mkv", "val/walk/e.3gp")
    return tmp_path


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.mp4", "elsewhere/c.mp4")
    (tmp_path / "train/run/up").symlink_to("..")
    (tmp_path / "train/run/self").symlink_to(".")
    (tmp_path / "train/run/more").symlink_to(tmp_path / "elsewhere")
    names = [os.path.relpath(path, tmp_path / "train") for path in find_videos(tmp_path / "train")]
    assert names == ["run/a.mp4", "run/more/c.mp4", "walk/b.mp4"]


def test_names_that_are_not_utf8_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "run/b.mp4", "walk/c.mp4")
    (tmp_path / "walk" / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"")
    with pytest.raises(UserError, match=r"names that are not UTF-8 \(1\):\n .*caf.udce9.mp4'\nRename them"):
        read_folder(tmp_path)


def test_a_name_of_two_lines_is_a_video(tmp_path: Path) -> None:
    touch(tmp_path, "run/a\nb.mp4")
    assert len(find_videos(tmp_path)) == 1


def test_files_that_are_no_videos_by_their_names_are_counted(split_tree: Path) -> None:
    touch(
        split_tree,
        "train/run/a.json",
        "train/walk/c.JSON",
        "train/walk/raw.y4m",
        "train/run/.hidden",
        "val/run/README",
    )
    touch(split_tree, "train/jump/1/0.jpg", "train/jump/1/1.jpg", "train/jump/1/times.txt", "train/sit/f.MTS")
    splits = read_folder(split_tree)
    assert splits.classes[""] == ("jump", "run", "sit", "walk")
    endings = "2 .json, 2 .txt, 1 .y4m, 1 hidden .mp4"
    assert splits.notices[:2] == (
        f"ignored files in {split_tree / 'train'} without a video extension: {endings}",
        f"ignored files in {split_tree / 'val'} without a video extension: 1 without an extension",
    )


def test_folder_reads_split_folders(split_tree: Path) -> None:
    splits = read_folder(split_tree)
    assert splits.classes[""] == ("run", "walk")
    assert rows(splits.train) == [("train/run/a.mp4", 0), ("train/run/day 1/b.AVI", 0), ("train/walk/c.webm", 1)]
    assert rows(splits.val) == [("val/run/d.mkv", 0), ("val/walk/e.3gp", 1)]
    assert splits.test is None
    assert splits.notices == (
        f"ignored files in {split_tree / 'train'} without a video extension: 1 .txt, 1 hidden .mp4",
    )
    assert splits.train.paths[1] == str(split_tree / "train/run/day 1/b.AVI")
    assert splits.train.labels.dtype == np.int64
    assert len(splits.train) == 3


def test_folder_reads_test_and_other_names(split_tree: Path) -> None:
    touch(split_tree, "test/walk/f.mp4")
    splits = read_folder(split_tree)
    assert splits.test is not None
    assert rows(splits.test) == [("test/walk/f.mp4", 1)]
    assert "test has no clips of 1 of 2 classes: run" in splits.summary()

    (split_tree / "val").rename(split_tree / "check")
    assert has(
        error(lambda: read_folder(split_tree, val="val")), str(split_tree / "val"), "check, test, train", "val="
    )
    assert rows(read_folder(split_tree, val="check").val)[0] == ("check/run/d.mkv", 0)


def test_paths_are_absolute_and_symlinks_stay(split_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (split_tree.parent / "link").symlink_to(split_tree)
    monkeypatch.chdir(split_tree.parent)
    assert read_folder("link").train.paths[0] == str(split_tree.parent / "link/train/run/a.mp4")


def test_folder_splits_by_class(tmp_path: Path) -> None:
    sizes = {"one": 1, "two": 2, "ten": 10, "many": 101}
    touch(tmp_path, *(f"{name}/{i}.mp4" for name, size in sizes.items() for i in range(size)))
    splits = read_folder(tmp_path, val_percent=20, seed=3)
    assert splits.classes[""] == ("many", "one", "ten", "two")
    assert np.bincount(splits.val.labels[:, 0]).tolist() == [20, 0, 2, 1]
    assert np.bincount(splits.train.labels[:, 0]).tolist() == [81, 1, 8, 1]
    assert has(splits.source, str(tmp_path), "20%", "seed 3")
    assert has(splits.summary(), "val has no clips of 1 of 4 classes: one", splits.source)


def test_every_class_keeps_a_clip_on_each_side_at_any_percentage(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{'abc'[i % 3]}/{i}.mp4" for i in range(18)))
    for percent in (0.1, 5, 37.5, 50, 99, 99.9):
        splits = read_folder(tmp_path, val_percent=percent)
        assert np.bincount(splits.train.labels[:, 0], minlength=3).min() >= 1
        assert np.bincount(splits.val.labels[:, 0], minlength=3).min() >= 1
        assert set(splits.train.ids) | set(splits.val.ids) == {f"{'abc'[i % 3]}/{i}.mp4" for i in range(18)}
        assert not set(splits.train.ids) & set(splits.val.ids)


def test_split_depends_on_seed_and_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{label}/{i}.mp4" for label in "ab" for i in range(40)]
    touch(tmp_path / "here", *names)
    touch(tmp_path / "else" / "where", *reversed(names))
    expected = read_folder(tmp_path / "here")
    assert rows(read_folder(tmp_path / "else" / "where").val) == rows(expected.val)
    assert rows(read_folder(tmp_path / "here", seed=1).val) != rows(expected.val)

    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *args, **options: [(a, b, c[::-1]) for a, b, c in walk(*args, **options)]
    )
    assert rows(read_folder(tmp_path / "here").train) == rows(expected.train)


def test_split_is_fixed_for_ever(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{i}.mp4" for label in "ab" for i in range(10)))
    assert " ".join(read_folder(tmp_path).val.ids) == "a/2.mp4 a/6.mp4 b/2.mp4 b/9.mp4"


def test_folder_named_train_may_be_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "train/b.mp4", "tram/c.mp4", "tram/d.mp4")
    assert read_folder(tmp_path).classes[""] == ("train", "tram")


def test_folder_errors(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert has(error(lambda: read_folder(absent)), f"no folder {absent}", "train/<class>/<video>.mp4")
    assert has(error(lambda: read_folder(tmp_path)), "no class folders", "empty", "<class>")
    touch(tmp_path, "a.mp4", "b.mp4")
    assert has(error(lambda: read_folder(tmp_path)), "no class folders", "only loose videos: a.mp4, b.mp4")
    touch(tmp_path, "run/c.mp4", "run/d.mp4")
    assert has(error(lambda: read_folder(tmp_path)), "only one class, 'run'", "at least two")
    touch(tmp_path, "walk/readme.txt")
    assert has(error(lambda: read_folder(tmp_path)), str(tmp_path / "walk"), "without videos (1)", "mp4, avi")
    touch(tmp_path, "walk/e.mp4", "walk/f.mp4")
    assert has(read_folder(tmp_path).summary(), "2 videos", "outside of class folders: a.mp4, b.mp4")
    for percent in (0, 100, -3):
        assert has(
            error(lambda p=percent: read_folder(tmp_path, val_percent=p)), "val_percent", "between 0 and 100"
        )


def test_folder_names_what_is_wrong_in_val(split_tree: Path) -> None:
    (split_tree / "val/walk/e.3gp").unlink()
    assert "val has no clips of 1 of 2 classes: walk" in read_folder(split_tree).summary()
    touch(split_tree, "val/jump/g.mp4")
    assert has(error(lambda: read_folder(split_tree)), str(split_tree / "val/jump/g.mp4"), "'jump'", "run, walk")
    (split_tree / "val/jump/g.mp4").unlink()
    (split_tree / "val/run/d.mkv").unlink()
    assert has(error(lambda: read_folder(split_tree)), "no clips (1)", str(split_tree / "val"))
    assert has(error(lambda: read_folder(split_tree, test="gone")), str(split_tree / "gone"), "test=")


def test_only_single_clips_cannot_be_split(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "walk/b.mp4")
    assert "no clips" in error(lambda: read_folder(tmp_path))


# ---- csv


@pytest.fixture
def csv_tree(tmp_path: Path) -> Path:
    touch(tmp_path, "hug/a 1.avi", "hug/b.avi", "kick/c.avi", "kick/d,e.avi", "hug/v.avi", "kick/w.avi")
    return tmp_path


TRAIN = [("hug/a 1.avi", "hug"), ("hug/b.avi", "hug"), ("kick/c.avi", "kick"), ("kick/d,e.avi", "kick")]
VAL = [("hug/v.avi", "hug"), ("kick/w.avi", "kick")]
IDS = {"hug": "0", "kick": "1"}


def write_csv(root: Path, train: Sequence[str], val: Sequence[str] = ("hug/v.avi 0", "kick/w.avi 1")) -> Path:
    write(root / "train.csv", *train)
    write(root / "val.csv", *val)
    return root


def read(root: Path, **options: object) -> Splits:
    return read_csv(root, train="train.csv", val="val.csv", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("separator", [" ", ",", "\t", ", ", " , ", "  "])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("header", [None, ("path", "label"), ("video_path", "class id")])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_reads_every_form_alike(
    csv_tree: Path, separator: str, quote: str, header: tuple[str, str] | None, ids: bool, newline: str
) -> None:
    for name, table in (("train", TRAIN), ("val", VAL)):
        lines = [quote + path + quote + separator + (IDS[label] if ids else label) for path, label in table]
        if header:
            lines.insert(0, separator.join(header))
        text = "\ufeff" * ids + newline.join([*lines, "", ""])
        (csv_tree / f"{name}.csv").write_bytes(text.encode())
    splits = read(csv_tree)
    assert splits.classes[""] == (("0", "1") if ids else ("hug", "kick"))
    assert rows(splits.train) == [(path, int(IDS[label])) for path, label in TRAIN]
    assert rows(splits.val) == [(path, int(IDS[label])) for path, label in VAL]
    assert splits.train.paths[0] == str(csv_tree / "hug/a 1.avi")
    assert splits.notices == ()


def test_csv_labels_with_spaces_commas_and_quotes(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", 'd"x.mp4')
    lines = ['a.mp4,"push, then pull"', "b.mp4,air drumming", 'c.mp4 say ""', '"d""x.mp4" 2nd try']
    write_csv(tmp_path, [*lines[:2], 'c.mp4 "say ""hi"""', lines[3]], ["a.mp4 air drumming"])
    assert read(tmp_path).classes[""] == ("2nd try", "air drumming", "push, then pull", 'say "hi"')


def test_csv_paths_outside_root_and_repeats(csv_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    touch(other, "x.mp4")
    write_csv(csv_tree, [f"{other}/x.mp4 0", "./hug/../hug/b.avi 0", f"{csv_tree}/kick/c.avi 1", "kick/c.avi 1"])
    splits = read(csv_tree)
    assert splits.train.ids.tolist() == [str(other / "x.mp4"), "hug/b.avi", "kick/c.avi", "kick/c.avi"]
    assert has(splits.summary(), "train.csv: kept 1 duplicate row")


def test_csv_finds_annotation_files(csv_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(csv_tree / "annotations", ["hug/b.avi 0", "kick/c.avi 1"])
    assert len(read(csv_tree).train) == 2  # in root/annotations
    elsewhere = write(csv_tree.parent / "elsewhere" / "my.csv", "hug/v.avi 0", "kick/w.avi 1")
    assert len(read_csv(csv_tree, train="train.csv", val=elsewhere).val) == 2
    monkeypatch.chdir(elsewhere.parent)
    assert len(read_csv(csv_tree, train="train.csv", val="my.csv").val) == 2
    write(elsewhere.parent / "train.csv", "nonsense")
    assert len(read(csv_tree).train) == 2  # root before the working folder
    assert has(
        error(lambda: read_csv(csv_tree, train="trian.csv", val="val.csv")),
        f"no train file trian.csv; looked for {csv_tree}/trian.csv",
        "annotations/train.csv, annotations/val.csv",
        "`path label`",
    )


def test_csv_class_names(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", "kick/c.avi 1"])
    write(csv_tree / "classes.txt", "hugging", "kicking", "", "")
    assert read(csv_tree).classes[""] == ("hugging", "kicking")
    assert str(csv_tree / "classes.txt") in read(csv_tree).source
    write(csv_tree / "map.csv", "id,name", "1,kick", '0,"hug, tight"')
    assert read(csv_tree, classes="map.csv").classes[""] == ("hug, tight", "kick")


def test_csv_class_file_orders_names(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi hug", "kick/c.avi kick"], ["hug/v.avi hug"])
    write(csv_tree / "classes.txt", "kick", "hug")
    splits = read(csv_tree)
    assert splits.classes[""] == ("kick", "hug")
    assert splits.train.labels[:, 0].tolist() == [1, 0]


def test_named_class_file_may_hold_empty_classes(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", "kick/c.avi 2"], ["hug/v.avi 0"])
    write(csv_tree / "classes.txt", "hug", "push", "kick")
    assert has(error(lambda: read(csv_tree)), "class 1 (push): 0 rows", "classes=<file")
    assert "train has no clips of 1 of 3 classes: push" in read(csv_tree, classes="classes.txt").summary()


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["hug", "", "push", "kick"], ["class 1: ''", "neither empty nor repeated"]),
        (["hug", "kick", "hug"], ["class 0: 'hug'", "class 2: 'hug'"]),
        (["id,name", "0,hug", "2,kick"], ["class 1: ''", "ids 0 to 1"]),
        (["id,name", "0,hug", "0,kick"], ["class 1: ''"]),
        (["id,name", "0,hug", "kick"], ["class 1: ''"]),
    ],
)
def test_csv_class_file_errors(csv_tree: Path, lines: list[str], parts: list[str]) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", "kick/c.avi 1"])
    write(csv_tree / "my.txt", *lines)
    assert has(error(lambda: read(csv_tree, classes="my.txt")), str(csv_tree / "my.txt"), *parts)


@pytest.mark.parametrize(
    "row",
    [
        "kick/c.avi",
        "kick/c 1",
        "kick/c.avi,clapping,3,1",
        "kick/c.avi 0 17",
        "kick/c.avi,,1",
        '"kick/c.avi 1',
        "1",
    ],
)
def test_csv_malformed_row(csv_tree: Path, row: str) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", "", row, "kick/c.avi 1"])
    assert has(
        error(lambda: read(csv_tree)), f"{csv_tree}/train.csv:3: {row!r}", "malformed rows (1)", "one label"
    )
    write_csv(csv_tree, [row, "hug/b.avi 0"])  # not taken for a header either
    assert f"train.csv:1: {row!r}" in error(lambda: read(csv_tree))


def test_csv_problems_are_collected_and_elided(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", *["bad row"] * 300], ["hug/v.avi", "kick/w.avi 1"])
    text = error(lambda: read(csv_tree))
    assert has(text, "malformed rows (301)", "train.csv:2:", "train.csv:6:", "... and 296 more")
    assert "train.csv:7:" not in text


@pytest.mark.parametrize(
    ("train", "val", "parts"),
    [
        (
            ["hug/b.avi 0", "kick/c.avi -1"],
            ["hug/v.avi 0"],
            ["train.csv:2: unknown label '-1'", "ids from 0 to 0"],
        ),
        (["hug/b.avi 0", "kick/c.avi 1"], ["hug/v.avi 2"], ["val.csv:1: unknown label '2'", "ids from 0 to 1"]),
        (
            ["hug/b.avi 0", "kick/c.avi 1"],
            ["hug/v.avi hug"],
            ["val.csv:1: unknown label 'hug'", "ids from 0 to 1"],
        ),
        (["hug/b.avi hug", "kick/c.avi kick"], ["hug/v.avi hgu"], ["val.csv:1: unknown label 'hgu'", "hug, kick"]),
        (["hug/b.avi hug", "kick/c.avi kick"], ["hug/v.avi 0"], ["val.csv:1: unknown label '0'", "hug, kick"]),
        (
            ["hug/b.avi 0", "kick/c.avi 1", "./hug/b.avi 1"],
            ["hug/v.avi 0"],
            ["train.csv:3: ", "hug/b.avi is '1', but '0' in ", "train.csv:1", "one label per video"],
        ),
        (
            ["hug/b.avi 0", "kick/c.avi 1", "hug/a 1.avi 3"],
            ["hug/v.avi 0"],
            ["class 2 (2): 0 rows", "without gaps"],
        ),
        (["hug/b.avi 1", "kick/c.avi 2"], ["hug/v.avi 1"], ["class 0 (0): 0 rows", "from 0"]),
        (["hug/b.avi 0", "kick/c.avi 1699999999"], ["hug/v.avi 0"], ["train.csv:2: unknown label '1699999999'"]),
        (["hug/b.avi 0", "kick/c.avi 0"], ["hug/v.avi 0"], ["only one class, '0'", "at least two"]),
        (["path label"], ["hug/v.avi 0"], ["no clips (1)", "train.csv", "path label"]),
        ([], [], ["no clips (2)", "train.csv", "val.csv"]),
    ],
)
def test_csv_label_errors(csv_tree: Path, train: list[str], val: list[str], parts: list[str]) -> None:
    write_csv(csv_tree, train, val)
    assert has(error(lambda: read(csv_tree)), *parts)


def test_csv_label_beyond_the_class_file(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi 1", "kick/c.avi 2"], ["hug/v.avi 1"])  # ids from 1
    write(csv_tree / "classes.txt", "hug", "kick")
    assert has(error(lambda: read(csv_tree)), "train.csv:2: unknown label '2'", "ids from 0 to 1", "classes.txt")


def test_csv_not_utf8(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", "kick/c.avi 1"])
    (csv_tree / "val.csv").write_bytes("hug/é.avi 0\n".encode("latin-1"))
    assert has(error(lambda: read(csv_tree)), str(csv_tree / "val.csv"), "not UTF-8", "byte 4")


def test_csv_missing_videos(tmp_path: Path) -> None:
    paths = [f"{i % 2}/{i}.mp4" for i in range(40)]
    touch(tmp_path, *paths)
    write_csv(tmp_path, [f"{path} {path[0]}" for path in paths], ["0/0.mp4 0", "1/1.mp4 1"])
    (tmp_path / paths[2]).unlink()
    (tmp_path / paths[5]).unlink()
    splits = read(tmp_path)  # 5 % is allowed
    assert [path for path in paths if path not in set(splits.train.ids)] == [paths[2], paths[5]]
    assert has(splits.notices[0], "train.csv: 38 of 40 videos found", f"missing: {tmp_path / paths[2]}")
    assert has(splits.notices[1], "train and val share 2 clips: 0/0.mp4, 1/1.mp4")
    assert has(splits.summary(), *splits.notices)

    (tmp_path / paths[6]).unlink()
    text = error(lambda: read(tmp_path))
    assert has(
        text, "train.csv: 37 of 40 videos found", "max_missing is 0.05", f"Expected in {tmp_path}:", "<path>"
    )
    assert len(read(tmp_path, max_missing=0.1).train) == 37

    for path in paths[1::2]:
        (tmp_path / path).unlink(missing_ok=True)
    text = error(lambda: read(tmp_path, max_missing=1))
    assert has(text, "class 1 (1): 20 rows, 0 videos found")
    for path in paths:
        (tmp_path / path).unlink(missing_ok=True)
    assert has(error(lambda: read(tmp_path, max_missing=1)), "train.csv: 0 of 40", "val.csv: 0 of 2", "root")


def test_csv_for_evaluation_only(csv_tree: Path) -> None:
    write_csv(csv_tree, [])
    assert "classes=<file>" in error(lambda: read_csv(csv_tree, train=None, val="val.csv"))
    assert "set data.val=<file>" in error(lambda: read_csv(csv_tree, train="train.csv", val=""))
    write(csv_tree / "names.txt", "hug", "kick", "push")
    splits = read_csv(csv_tree, train=None, val="val.csv", classes="names.txt")
    assert (len(splits.train), len(splits.val), splits.classes[""]) == (0, 2, ("hug", "kick", "push"))
    assert "train    0 clips" in splits.summary()


# ---- csv, any number of labels


def read_several(
    root: Path, train: Sequence[str], val: Sequence[str] = ("hug/v.avi a;b",), **options: str
) -> Splits:
    write_csv(root, train, val)
    return read(root, multi_label=True, **options)


def labels(manifest: ClipTable) -> list[tuple[int, ...]]:
    return [manifest.labels_of(row) for row in range(len(manifest))]


def test_several_labels_of_each_form(csv_tree: Path) -> None:
    lines = ["path labels", "hug/a 1.avi b;a", "hug/b.avi,b ; c", '"kick/c.avi" ""', "kick/d,e.avi,"]
    splits = read_several(csv_tree, lines)
    assert splits.multi_label
    assert splits.classes[""] == ("a", "b", "c")
    assert labels(splits.train) == [(0, 1), (1, 2), (), ()]
    assert [splits.train.target(row).tolist() for row in (0, 2)] == [[True, True, False], [False, False, False]]
    assert [splits.train.label_string(row, "abc") for row in range(3)] == ["a;b", "b;c", ""]
    assert [counts.tolist() for counts in splits.train.class_counts(splits.classes)] == [[1, 2, 1]]
    assert labels(splits.train.select(np.array([2, 1]))) == [(), (1, 2)]
    assert labels(pickle.loads(pickle.dumps(splits.train))) == labels(splits.train)
    assert has(
        splits.summary(),
        "train    4 clips, 1 to 2 per class; 1.0 classes per clip, 2 clips without a label",
        "val has no clips of 1 of 3 classes: c",
    )


def test_several_ids_and_names_with_commas(csv_tree: Path) -> None:
    splits = read_several(csv_tree, ["hug/b.avi 2;0", "kick/c.avi,1;01"], ["hug/v.avi 1"])
    assert (splits.classes[""], labels(splits.train)) == (("0", "1", "2"), [(0, 2), (1,)])
    splits = read_several(csv_tree, ['hug/b.avi,"push, pull;hug"', "kick/c.avi kick"], ["hug/v.avi hug"])
    assert (splits.classes[""], labels(splits.train)) == (("hug", "kick", "push, pull"), [(0, 2), (1,)])
    write(csv_tree / "classes.txt", "b", "a", "nothing yet")
    splits = read_several(csv_tree, ["hug/b.avi a", "kick/c.avi b"], classes="classes.txt")
    assert (labels(splits.train), labels(splits.val)) == ([(1,), (0,)], [(0, 1)])
    splits = read_csv(csv_tree, train=None, val="val.csv", classes="classes.txt", multi_label=True)
    assert (len(splits.train), splits.train.multi_label) == (0, True)


def test_one_class_is_something_to_have_or_not(csv_tree: Path) -> None:
    splits = read_several(csv_tree, ["hug/b.avi hug", "kick/c.avi,"], ["hug/v.avi hug"])
    assert (splits.classes[""], labels(splits.train)) == (("hug",), [(0,), ()])


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("hug/b.avi a;;b", ["train.csv:2: 'hug/b.avi a;;b' (an empty label)", "with ';' between them", '""']),
        ("hug/b.avi ;", ["(an empty label)"]),
        ("hug/b.avi a;b;", ["(an empty label)"]),
        ("hug/b.avi a;b;a", ["train.csv:2: 'hug/b.avi a;b;a' (a duplicate label)"]),
        ("hug/b.avi", ["train.csv:2: 'hug/b.avi'"]),
        ("hug/b.avi,a,b", ["train.csv:2: 'hug/b.avi,a,b'"]),
        ("hug/b.avi 0 1", ["train.csv:2: 'hug/b.avi 0 1'"]),
    ],
)
def test_several_labels_malformed(csv_tree: Path, row: str, parts: list[str]) -> None:
    assert has(error(lambda: read_several(csv_tree, ["kick/c.avi a;b", row])), "malformed rows (1)", *parts)


@pytest.mark.parametrize(
    ("train", "val", "parts"),
    [
        (["hug/b.avi a", "kick/c.avi b"], ["hug/v.avi a;c"], ["val.csv:1: unknown label 'c'", "one of a, b"]),
        (["hug/b.avi 0;1"], ["hug/v.avi 2;a"], ["unknown label '2'", "unknown label 'a'", "ids from 0 to 1"]),
        (
            ["hug/b.avi a", "./hug/b.avi b"],
            ["hug/v.avi a"],
            ["train.csv:2: ", "hug/b.avi is 'b', but 'a' in ", "train.csv:1", "all labels of a video in one row"],
        ),
        (["hug/b.avi a;b", 'hug/b.avi ""'], ["hug/v.avi a"], ["hug/b.avi is without a label, but 'a', 'b' in "]),
        (["hug/b.avi 0;2"], ["hug/v.avi 0"], ["class 1 (1): 0 rows", "without gaps"]),
        (["hug/b.avi,", "kick/c.avi,"], ["hug/v.avi a"], ["no row has a label (1)", "train.csv"]),
        (["hug/b.avi a;b"], ["hug/v.avi,"], ["no row has a label (1)", "val.csv"]),
    ],
)
def test_several_labels_wrong(csv_tree: Path, train: list[str], val: list[str], parts: list[str]) -> None:
    assert has(error(lambda: read_several(csv_tree, train, val)), *parts)


def test_a_video_may_come_again_with_the_same_labels(csv_tree: Path) -> None:
    splits = read_several(csv_tree, ["hug/b.avi a;b", "hug/b.avi b;a"])
    assert labels(splits.train) == [(0, 1), (0, 1)]
    assert "kept 1 duplicate row" in splits.summary()


def test_a_semicolon_is_part_of_one_label_unless_told(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi a;b", "kick/c.avi c"], ["hug/v.avi a;b"])
    splits = read(csv_tree)
    assert (splits.classes[""], splits.multi_label) == (("a;b", "c"), False)
    assert has(splits.summary(), "kept 1 label containing ';' unsplit: a;b", "data.reader.multi_label=true")
    write_csv(csv_tree, ["hug/b.avi a", 'kick/c.avi ""'], ["hug/v.avi a"])
    assert has(error(lambda: read(csv_tree)), "train.csv:2: ", "(an empty label)", "one label")


def test_the_rarest_class_of_a_clip_counts(csv_tree: Path) -> None:
    files = ["hug/a 1.avi a;b", "hug/b.avi a", "kick/c.avi,", '"kick/d,e.avi" a', "hug/v.avi b;c", "kick/w.avi,"]
    splits = read_several(csv_tree, files)
    assert splits.train.label_counts().tolist() == [2, 3, 2, 3, 1, 2]
    for seed in range(5):
        data = VideoDataModule("csv", "", lambda root, **files: splits, limit_per_class=1, seed=seed)
        (counts,) = data.splits.train.class_counts(splits.classes)
        assert counts[2] == 1
        assert counts.min() == 1
        assert sum(not has for has in labels(data.splits.train)) == 1
    data = VideoDataModule("csv", "", lambda root, **files: splits, balance="class")
    assert data.weights() == pytest.approx([1 / 2, 1 / 3, 1 / 2, 1 / 3, 1, 1 / 2])


def test_many_classes_take_no_memory() -> None:
    sets = LabelSets.of([{i % 5000, i % 7, 4999} for i in range(20_000)], 5000)
    assert (sets.class_ids.nbytes + sets.ends.nbytes) / len(sets) <= 20
    assert sets[19_999].tolist() == [0, 4999]


# ---- all


def test_real_ut_interaction(shared: Path) -> None:
    splits = read_csv(shared / "videos/ut_interaction", train="train.csv", val="test.csv")
    assert (len(splits.train), len(splits.val)) == (83, 37)
    assert splits.classes[""] == ("hug", "kick", "point", "punch", "push", "shake_hands")
    assert splits.notices == ()
    for split in (splits.train, splits.val):
        assert [splits.classes[""][label] for label in split.labels[:, 0]] == [
            clip_id.split("/")[0] for clip_id in split.ids
        ]
    folder = read_folder(shared / "videos/ut_interaction")
    assert folder.classes[""] == splits.classes[""]
    assert len(folder.train) + len(folder.val) == 120


def test_real_mini_kinetics_rows(shared: Path, tmp_path: Path) -> None:
    file = shared / "annotations/mini_kinetics/val.head200.csv"
    text = error(lambda: read_csv(tmp_path, train=file, val=file))
    assert has(text, "0 of 201 videos found", f"{tmp_path}/val_256/making_jewelry/cqpX4sLAMc8.mp4")


def test_summary(csv_tree: Path) -> None:
    write_csv(csv_tree, [f"{path} {IDS[label]}" for path, label in TRAIN[:3]])
    write(csv_tree / "classes.txt", "hug", "kick")
    assert read(csv_tree).summary() == (
        f"source   csv {csv_tree}/train.csv, {csv_tree}/val.csv, classes {csv_tree}/classes.txt\n"
        "read as  rows of `path label`; ids from 0\n"
        "classes  2: hug, kick\n"
        "train    3 clips, 1 to 2 per class\n"
        "val      2 clips, 1 per class"
    )
    touch(csv_tree, *(f"split/{chr(97 + i)}/{j}.mp4" for i in range(20) for j in range(2)))
    assert "classes  20: a, b, c, d, ..., t" in read_folder(csv_tree / "split").summary()


def test_manifest_survives_pickling(split_tree: Path) -> None:
    train = read_folder(split_tree).train
    again = pickle.loads(pickle.dumps(train))
    assert rows(again) == rows(train)
    assert (again.paths == train.paths).all()
    assert type(train.paths[0]) is str


def test_import_is_light() -> None:
    heavy = {"torch", "av", "decord"}
    code = f"import sys, vivit_train.data.annotations.csv_file; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [30_000, 300_000])
def test_speed(tmp_path: Path, count: int) -> None:
    folders = [f"class {i:03d}" for i in range(100)]
    for folder in folders:
        (tmp_path / folder).mkdir()
    names = [f"{folders[i % 100]}/{i:011d}_{i % 300:06d}_{i % 300 + 10:06d}.mp4" for i in range(count)]
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT))
    write(tmp_path / "train.csv", *(f"{name},{i % 100}" for i, name in enumerate(names)))
    write(tmp_path / "val.csv", *(f"{name},{i % 100}" for i, name in enumerate(names[:1000])))
    start = time.process_time()
    assert len(read(tmp_path).train) == count
    took_csv = time.process_time() - start

    start = time.process_time()
    assert len(read_folder(tmp_path).train) == round(count * 0.8)
    took_folder = time.process_time() - start
    print(f"{count} rows: csv {took_csv:.2f} s, folder {took_folder:.2f} s")
    assert took_csv < 5  # processor seconds; 300,000 rows take about two
    assert took_folder < 5
