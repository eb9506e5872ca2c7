import csv
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vivit_train.data.manifest import Manifest, Splits, read_csv, read_folder, read_kinetics
from vivit_train.errors import UserError


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def rows(manifest: Manifest) -> list[tuple[str, int]]:
    return list(zip(manifest.ids.tolist(), manifest.labels.tolist(), strict=True))


def error(read: Callable[[], Splits]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    return str(caught.value)


def has(text: str, *parts: str) -> bool:
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in:\n{text}"
    return True


# ---- folder


@pytest.fixture
def split_tree(tmp_path: Path) -> Path:
    touch(tmp_path, "train/run/a.mp4", "train/run/day 1/b.AVI", "train/walk/c.webm", "train/walk/notes.txt")
    touch(tmp_path, "train/run/.hidden.mp4", "train/.cache/x.mp4", "train/walk/.trash/y.mp4")
    touch(tmp_path, "val/run/d.mkv", "val/walk/e.3gp")
    return tmp_path


def test_folder_reads_split_folders(split_tree: Path) -> None:
    splits = read_folder(split_tree)
    assert splits.classes == ("run", "walk")
    assert rows(splits.train) == [("train/run/a.mp4", 0), ("train/run/day 1/b.AVI", 0), ("train/walk/c.webm", 1)]
    assert rows(splits.val) == [("val/run/d.mkv", 0), ("val/walk/e.3gp", 1)]
    assert splits.test is None
    assert splits.notices == ()
    assert splits.train.paths[1] == str(split_tree / "train/run/day 1/b.AVI")
    assert splits.train.labels.dtype == np.int64
    assert len(splits.train) == 3


def test_folder_reads_test_and_other_names(split_tree: Path) -> None:
    touch(split_tree, "test/walk/f.mp4")
    splits = read_folder(split_tree)
    assert splits.test is not None
    assert rows(splits.test) == [("test/walk/f.mp4", 1)]
    assert "test has no clips of 1 of 2 classes: run" in splits.summary()

    (split_tree / "val").rename(split_tree / "valid")
    assert has(error(lambda: read_folder(split_tree)), str(split_tree / "val"), "test, train, valid", "val=")
    assert rows(read_folder(split_tree, val="valid").val)[0] == ("valid/run/d.mkv", 0)


def test_paths_are_absolute_and_symlinks_stay(split_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (split_tree.parent / "link").symlink_to(split_tree)
    monkeypatch.chdir(split_tree.parent)
    assert read_folder("link").train.paths[0] == str(split_tree.parent / "link/train/run/a.mp4")


def test_folder_splits_by_class(tmp_path: Path) -> None:
    sizes = {"one": 1, "two": 2, "ten": 10, "many": 101}
    touch(tmp_path, *(f"{name}/{i}.mp4" for name, size in sizes.items() for i in range(size)))
    splits = read_folder(tmp_path, val_percent=20, seed=3)
    assert splits.classes == ("many", "one", "ten", "two")
    assert np.bincount(splits.val.labels).tolist() == [20, 0, 2, 1]
    assert np.bincount(splits.train.labels).tolist() == [81, 1, 8, 1]
    assert has(splits.source, str(tmp_path), "20%", "seed 3")
    assert has(splits.summary(), "val has no clips of 1 of 4 classes: one", splits.source)


def test_every_class_keeps_a_clip_on_each_side_at_any_percentage(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{'abc'[i % 3]}/{i}.mp4" for i in range(18)))
    for percent in (0.1, 5, 37.5, 50, 99, 99.9):
        splits = read_folder(tmp_path, val_percent=percent)
        assert np.bincount(splits.train.labels, minlength=3).min() >= 1
        assert np.bincount(splits.val.labels, minlength=3).min() >= 1
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
    assert read_folder(tmp_path).classes == ("train", "tram")


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
    assert has(read_folder(tmp_path).summary(), "2 videos", "ignored: a.mp4, b.mp4")
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
    assert splits.classes == (("0", "1") if ids else ("hug", "kick"))
    assert rows(splits.train) == [(path, int(IDS[label])) for path, label in TRAIN]
    assert rows(splits.val) == [(path, int(IDS[label])) for path, label in VAL]
    assert splits.train.paths[0] == str(csv_tree / "hug/a 1.avi")
    assert splits.notices == ()


def test_csv_labels_with_spaces_commas_and_quotes(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", 'd"x.mp4')
    lines = ['a.mp4,"push, then pull"', "b.mp4,air drumming", 'c.mp4 say ""', '"d""x.mp4" 2nd try']
    write_csv(tmp_path, [*lines[:2], 'c.mp4 "say ""hi"""', lines[3]], ["a.mp4 air drumming"])
    assert read(tmp_path).classes == ("2nd try", "air drumming", "push, then pull", 'say "hi"')


def test_csv_paths_outside_root_and_repeats(csv_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    touch(other, "x.mp4")
    write_csv(csv_tree, [f"{other}/x.mp4 0", "./hug/../hug/b.avi 0", f"{csv_tree}/kick/c.avi 1", "kick/c.avi 1"])
    splits = read(csv_tree)
    assert splits.train.ids.tolist() == [str(other / "x.mp4"), "hug/b.avi", "kick/c.avi", "kick/c.avi"]
    assert has(splits.summary(), "train.csv: 1 rows repeat")


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
    assert read(csv_tree).classes == ("hugging", "kicking")
    assert str(csv_tree / "classes.txt") in read(csv_tree).source
    write(csv_tree / "map.csv", "id,name", "1,kick", '0,"hug, tight"')
    assert read(csv_tree, classes="map.csv").classes == ("hug, tight", "kick")


def test_csv_class_file_orders_names(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi hug", "kick/c.avi kick"], ["hug/v.avi hug"])
    write(csv_tree / "classes.txt", "kick", "hug")
    splits = read(csv_tree)
    assert splits.classes == ("kick", "hug")
    assert splits.train.labels.tolist() == [1, 0]


def test_named_class_file_may_hold_empty_classes(csv_tree: Path) -> None:
    write_csv(csv_tree, ["hug/b.avi 0", "kick/c.avi 2"], ["hug/v.avi 0"])
    write(csv_tree / "classes.txt", "hug", "push", "kick")
    assert has(error(lambda: read(csv_tree)), "class 1 (push): 0 rows", "classes=<file")
    assert "train has no clips of 1 of 3 classes: push" in read(csv_tree, classes="classes.txt").summary()


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["hug", "", "push", "kick"], ["class 1: ''", "none empty or twice"]),
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
    assert "val=<file> is needed" in error(lambda: read_csv(csv_tree, train="train.csv", val=""))
    write(csv_tree / "names.txt", "hug", "kick", "push")
    splits = read_csv(csv_tree, train=None, val="val.csv", classes="names.txt")
    assert (len(splits.train), len(splits.val), splits.classes) == (0, 2, ("hug", "kick", "push"))
    assert "train    0 clips" in splits.summary()


# ---- kinetics

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
K_TRAIN = [HEADER, "zumba,-abcdefghi0,3,13,train,0", '"air drumming",bbbbbbbbbb_,100,110,train,0']
K_VAL = [HEADER[:-6], "zumba,cccccccccc0,0,10,val", "air drumming,dddddddddd0,417,427,val"]
K_FILES = {
    "train": ["zumba/-abcdefghi0_000003_000013.mp4", "air_drumming/bbbbbbbbbb__000100_000110.mkv"],
    "val": ["zumba/cccccccccc0_000000_000010.webm", "air drumming/dddddddddd0_000417_000427.mp4"],
}
FLAT = {split: [path.split("/")[1] for path in paths] for split, paths in K_FILES.items()}


@pytest.mark.parametrize("annotations", ["", "annotations"])
@pytest.mark.parametrize("prefix", ["{split}", "videos/{split}", "videos", "", "{split}_256"])
@pytest.mark.parametrize("files", [K_FILES, FLAT], ids=["by label", "flat"])
def test_kinetics_trees(tmp_path: Path, annotations: str, prefix: str, files: dict[str, list[str]]) -> None:
    write(tmp_path / annotations / "train.csv", *K_TRAIN)
    write(tmp_path / annotations / "val.csv", *K_VAL)
    paths = {split: [tmp_path / prefix.format(split=split) / path for path in files[split]] for split in files}
    touch(Path("/"), *(str(path) for split in paths for path in paths[split]))
    splits = read_kinetics(tmp_path)
    assert splits.classes == ("air drumming", "zumba")
    assert rows(splits.train) == [("-abcdefghi0", 1), ("bbbbbbbbbb_", 0)]
    assert splits.train.paths.tolist() == list(map(str, paths["train"]))
    assert splits.val.paths.tolist() == list(map(str, paths["val"]))
    assert splits.notices == ()


def kinetics(root: Path, *, train: Sequence[str] = K_TRAIN, val: Sequence[str] = K_VAL) -> Path:
    write(root / "train.csv", *train)
    write(root / "val.csv", *val)
    touch(root, *(f"{split}/{path}" for split, paths in K_FILES.items() for path in paths))
    return root


def test_kinetics_takes_the_first_of_several_copies(tmp_path: Path) -> None:
    touch(kinetics(tmp_path), "train/again/-abcdefghi0_000003_000013.mp4", "val/x/-abcdefghi0_000003_000013.mp4")
    assert read_kinetics(tmp_path).train.paths[0] == str(tmp_path / "train/again/-abcdefghi0_000003_000013.mp4")


def test_kinetics_missing_videos(tmp_path: Path) -> None:
    kinetics(tmp_path, train=[*K_TRAIN, "zumba,eeeeeeeeee0,1,11,train,0"])
    expected = ["train.csv: 2 of 3 videos found", str(tmp_path / "train/eeeeeeeeee0_000001_000011.mp4")]
    text = error(lambda: read_kinetics(tmp_path))
    assert has(text, *expected, "max_missing is 0.1", f"in {tmp_path}:", "train/**/<youtube_id>")
    splits = read_kinetics(tmp_path, max_missing=0.5)
    assert len(splits.train) == 2
    assert has(splits.notices[0], *expected)


@pytest.mark.parametrize(
    "row",
    [
        "zumba,eeeeeeeeee0,1,11,train",
        "zumba,eeeeeeeeee0,1.5,11,train,0",
        ",eeeeeeeeee0,1,11,train,0",
        '"zumba,e,1,11',
    ],
)
def test_kinetics_malformed_row(tmp_path: Path, row: str) -> None:
    kinetics(tmp_path, train=[*K_TRAIN, "", row, K_TRAIN[1]])
    assert has(
        error(lambda: read_kinetics(tmp_path)), f"{tmp_path}/train.csv:5: {row!r}", "rows (1)", "whole seconds"
    )


def test_kinetics_header_and_labels(tmp_path: Path) -> None:
    kinetics(tmp_path, val=["youtube_id,time_start,time_end,split", "cccccccccc0,0,10,test"])
    text = error(lambda: read_kinetics(tmp_path))
    assert has(text, f"{tmp_path}/val.csv:1: no column label", "label,youtube_id,time_start", "cannot be scored")
    kinetics(tmp_path, val=[K_VAL[0], "yoga,cccccccccc0,0,10,val"])
    assert has(error(lambda: read_kinetics(tmp_path)), "val.csv:2: unknown label 'yoga'", "air drumming, zumba")
    (tmp_path / "val.csv").unlink()
    assert has(error(lambda: read_kinetics(tmp_path)), "no val file val.csv", "train.csv", "**/<youtube_id>")
    (tmp_path / "val.csv").touch()
    assert has(error(lambda: read_kinetics(tmp_path)), "val.csv:1: no column label")


def test_kinetics_shared_videos(tmp_path: Path) -> None:
    kinetics(tmp_path, val=[*K_VAL, "zumba,-abcdefghi0,3,13,val"])
    touch(tmp_path, "val/-abcdefghi0_000003_000013.mp4")
    assert "train and val share 1 clips: -abcdefghi0" in read_kinetics(tmp_path).summary()


@pytest.mark.parametrize("labels", ["kinetics_400_labels.csv", "label_map_k400.txt"])
def test_real_kinetics_400(shared: Path, tmp_path: Path, labels: str) -> None:
    folder = shared / "annotations/kinetics400"
    with (folder / "kinetics-400_val.csv").open(newline="") as file:
        listed = [
            (row["label"], f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4")
            for row in csv.DictReader(file)
        ]
    assert len(listed) == 19_906
    for label in {label for label, _ in listed}:
        (tmp_path / "videos" / label.replace(" ", "_")).mkdir(parents=True)
    for label, name in listed:
        (tmp_path / "videos" / label.replace(" ", "_") / name).touch()

    val = folder / "kinetics-400_val.csv"
    splits = read_kinetics(tmp_path, train=val, val=val)
    assert (len(splits.train), len(splits.classes)) == (19_906, 400)
    assert splits.classes == tuple((folder / "label_map_k400.txt").read_text().splitlines())
    assert len(splits.notices) == 1  # train and val are the same
    assert "share 19906 clips" in splits.notices[0]

    # either published map gives the same ids, though one of them writes nine names without parentheses
    by_map = read_kinetics(tmp_path, train=None, val=val, classes=folder / labels)
    assert len(by_map.classes) == 400
    assert (by_map.val.labels == splits.val.labels).all()
    assert by_map.notices == ()


def test_real_kinetics_with_quotes_and_without_labels(shared: Path, tmp_path: Path) -> None:
    tiny = shared / "annotations/mini_kinetics/tiny_train.csv"
    text = error(lambda: read_kinetics(tmp_path, train=tiny, val=tiny))
    assert has(text, "0 of 400 videos found", "_4YTwq0-73Y_000044_000054.mp4")
    unlabelled = shared / "annotations/kinetics400/kinetics-400_test.head200.csv"
    assert has(error(lambda: read_kinetics(tmp_path, train=tiny, val=tiny, test=unlabelled)), "no column label")


# ---- all


def test_real_ut_interaction(shared: Path) -> None:
    splits = read_csv(shared / "videos/ut_interaction", train="train.csv", val="test.csv")
    assert (len(splits.train), len(splits.val)) == (83, 37)
    assert splits.classes == ("hug", "kick", "point", "punch", "push", "shake_hands")
    assert splits.notices == ()
    for split in (splits.train, splits.val):
        assert [splits.classes[label] for label in split.labels] == [
            clip_id.split("/")[0] for clip_id in split.ids
        ]
    folder = read_folder(shared / "videos/ut_interaction")
    assert folder.classes == splits.classes
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
        "classes  2: hug, kick\n"
        "train    3 clips, 1 to 2 per class\n"
        "val      2 clips, 1 to 1 per class"
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
    code = "import sys, vivit_train.data.manifest; assert not {'torch', 'av', 'decord'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("count", [30_000, pytest.param(300_000, marks=pytest.mark.slow)])
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

    k_rows = [f"{folders[i % 100]},{i:011d},{i % 300},{i % 300 + 10},train" for i in range(count)]
    write(tmp_path / "k_train.csv", HEADER[:-6], *k_rows)
    start = time.process_time()
    assert len(read_kinetics(tmp_path, train="k_train.csv", val="k_train.csv").train) == count
    took_kinetics = time.process_time() - start

    start = time.process_time()
    assert len(read_folder(tmp_path).train) == round(count * 0.8)
    took_folder = time.process_time() - start
    print(f"{count} rows: csv {took_csv:.2f} s, kinetics {took_kinetics:.2f} s, folder {took_folder:.2f} s")
    assert took_csv < 5  # processor seconds; 300,000 rows take about two
    assert took_kinetics < 10  # the same rows twice
    assert took_folder < 5
