"""What data=folder takes for splits and for classes, and what it refuses."""

import multiprocessing
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from trees import error, has, rows, touch

from vivit_train.data.annotations.files import find_videos
from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.annotations.layout import split_of
from vivit_train.data.look_alikes import across_splits
from vivit_train.tools.encode_jobs import plan


def tree(root: Path, *splits: str, clips: int = 2) -> Path:
    touch(root, *(f"{split}/{name}/{i}.mp4" for split in splits for name in ("run", "walk") for i in range(clips)))
    return root


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("Train", "TRAIN", "training", "trainset", "train_set", "TrainSet", "train_256")
        ),
        *((name, "val") for name in ("Val", "valid", "Validation", "dev", "val_data", "rawframes_val")),
        *((name, "test") for name in ("TEST", "testing", "testset", "Test Data", "videos_test")),
        *((name, None) for name in ("tram", "train station", "test tube", "evaluate risk", "run", "set", "1")),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "Test"),
        ("TRAIN", "VAL", None),
        ("training", "validation", "testing"),
        ("trainset", "valset", "testset"),
        ("train", "valid", "test"),
        ("train", "dev", "test"),
    ],
)
def test_split_folders_are_recognized(tmp_path: Path, train: str, val: str, test: str | None) -> None:
    splits = read_folder(tree(tmp_path, *filter(None, (train, val, test))))
    assert splits.classes[""] == ("run", "walk")
    assert rows(splits.train)[0] == (f"{train}/run/0.mp4", 0)
    assert rows(splits.val)[0] == (f"{val}/run/0.mp4", 0)
    assert (splits.test is None) == (test is None)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("training", "testing"), ("trainset", "testset")])
def test_without_a_validation_folder_a_part_of_train_validates(tmp_path: Path, train: str, test: str) -> None:
    splits = read_folder(tree(tmp_path, train, test, clips=10))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 4, 20)
    assert all(clip.startswith(f"{train}/") for clip in (*splits.train.ids, *splits.val.ids))
    assert not set(splits.train.ids) & set(splits.val.ids)
    assert has(
        splits.summary(),
        "no validation folder: 20% of train held out by class (0 groups of look-alikes found), seed 0",
    )


@pytest.mark.parametrize("form", ["{person}_{i:02d}", "{person}{i}", "v_Run_g{n:02d}_c{i:02d}", "{person}/{i}"])
def test_clips_of_one_source_stay_together(tmp_path: Path, form: str) -> None:
    people = ["anna", "john", "mira", "otto", "zoe"]
    names = [form.format(person=person, n=n, i=i) for n, person in enumerate(people) for i in range(4)]
    touch(tmp_path, *(f"train/{label}/{name}.mp4" for label in ("run", "walk") for name in names))
    touch(tmp_path, "test/run/x.mp4", "test/walk/y.mp4")
    splits = read_folder(tmp_path, class_level=1)
    assert (len(splits.train), len(splits.val)) == (32, 8)
    assert len({clip.rpartition("/")[2].rpartition("_")[0] for clip in splits.val.ids if "_" in clip}) <= 1
    for label in ("run", "walk"):
        held = sorted(clip.removeprefix(f"train/{label}/") for clip in splits.val.ids if f"/{label}/" in clip)
        assert held in [sorted(f"{name}.mp4" for name in names[n : n + 4]) for n in range(0, 20, 4)]
    assert has(splits.summary(), "held out by class and, as file names and look-alikes tell it, by source")


@pytest.mark.slow
def test_look_alikes_of_two_splits_are_named(tmp_path: Path, videos: Path) -> None:
    one, other = sorted((videos / "train/approach").iterdir())[:2]
    copy = shutil.copy(one, tmp_path / "copy.mp4")
    said = across_splits({"train": [str(one), str(other)], "val": [str(other)], "test": [str(copy)]})
    assert said.startswith("1 pair of videos in different splits look alike")
    assert f"{one} (train)" in said
    assert f"{copy} (test)" in said
    assert "0 of 448 bits differ" in said
    assert across_splits({"train": [str(one), str(other)], "val": []}) == ""


@pytest.mark.slow
def test_look_alikes_stay_together(tmp_path: Path, videos: Path) -> None:
    """Two copies of each video, whose names tell nothing; in the other class, all videos are the same."""
    for n, kind in enumerate(sorted((videos / "train").iterdir())):
        for split, name in (("train", f"{'abcdefgh'[n]}q"), ("train", f"z{'hgfedcba'[n]}"), ("test", "t")):
            for label, source in (("run", kind / "0000.mp4"), ("same", videos / "train/recede/0001.mp4")):
                (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, tmp_path / split / label / f"{name}.mp4")
    splits = read_folder(tmp_path)
    held = {clip.rpartition("/")[2][:-4] for clip in splits.val.ids if "/run/" in clip}
    assert len(held) in (2, 4)
    for one, other in zip("abcdefgh", "hgfedcba", strict=True):
        assert (f"{one}q" in held) == (f"z{other}" in held)
    assert has(splits.summary(), "as file names and look-alikes tell it, by source", "in val looks like")


def test_val_may_be_the_test_folder_and_test_may_be_none(tmp_path: Path) -> None:
    tree(tmp_path, "train", "test")
    splits = read_folder(tmp_path, val="test")
    assert splits.val_is_test
    assert has(splits.summary(), "val and test are the same 4 clips that choose the best checkpoint")
    assert "share" not in splits.summary()
    splits = read_folder(tmp_path, val="test", test=None)
    assert (splits.test, len(splits.val)) == (None, 4)
    tree(tmp_path, "val")
    assert read_folder(tmp_path, test=None).test is None
    assert read_folder(tmp_path).test is not None


def test_evaluation_finds_the_same_splits(tmp_path: Path) -> None:
    tree(tmp_path, "Train", "Test", clips=10)
    splits = read_folder(tmp_path, classes=["run", "walk"])
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (0, 4, 20)
    assert rows(splits.val) == rows(read_folder(tmp_path).val)


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        (["split1", "split2"], ["split1, split2 bear names of splits", "data.train=split1 data.val=split2"]),
        (["fold_1", "fold_2", "fold_3"], ["bear names of splits", "data.train='fold_1' data.val='fold_2'"]),
        (["val", "test"], ["missing folders (1)", "/train", "Folders in", "test, val", "data.train="]),
        (["anna", "john"], ["anna, john all hold the same folders", "anna/run, anna/walk", "class_level=2"]),
        (
            ["videos"],
            ["its only folder videos holds no videos but the folders run, walk", "data.root='", "/videos'"],
        ),
        (["train/anna", "train/john", "val/anna"], ["/train: the folders anna, john all hold", "class_level=1"]),
        (["train", "Train", "val"], ["bear the name of one split", "train: Train, train", "data.train="]),
    ],
)
def test_folders_that_are_hardly_classes(tmp_path: Path, splits: list[str], parts: list[str]) -> None:
    assert has(error(lambda: read_folder(tree(tmp_path, *splits))), *parts)


def test_splits_within_the_classes_and_names_of_splits_among_them(tmp_path: Path) -> None:
    touch(tmp_path / "in", *(f"{label}/{split}/a.mp4" for label in ("run", "walk") for split in ("train", "test")))
    assert has(error(lambda: read_folder(tmp_path / "in")), "splits lie within the folders: run/test", "move")
    touch(tmp_path / "one", "run/videos/a.mp4", "walk/clips/a.mp4")
    assert has(error(lambda: read_folder(tmp_path / "one")), "each hold only one more folder", "run/videos")
    touch(tmp_path / "lone", *(f"{label}/{i}.mp4" for label in ("run", "test", "walk") for i in range(2)))
    assert has(error(lambda: read_folder(tmp_path / "lone")), "test among the class folders", "name of a split")
    assert read_folder(tmp_path / "lone", class_level=1).classes[""] == ("run", "test", "walk")


def test_a_person_says_at_which_level_the_classes_are(tmp_path: Path) -> None:
    tree(tmp_path, "anna", "john")
    assert read_folder(tmp_path, class_level=1).classes[""] == ("anna", "john")
    splits = read_folder(tmp_path, class_level=2)
    assert splits.classes[""] == ("run", "walk")
    assert len(splits.train) + len(splits.val) == 8


def test_folders_within_classes_and_folders_of_pictures_stay_plausible(tmp_path: Path) -> None:
    touch(tmp_path / "a", "run/day 1/a.mp4", "run/b.mp4", "walk/day 1/c.mp4", "walk/d.mp4")
    assert read_folder(tmp_path / "a").classes[""] == ("run", "walk")
    touch(tmp_path / "b", *(f"{label}/{i}/0.jpg" for label in ("run", "walk") for i in range(2)))
    assert len(read_folder(tmp_path / "b").train) == 2


def test_a_model_of_these_classes_makes_them_plausible(tmp_path: Path) -> None:
    tree(tmp_path, "anna", "john")
    assert len(read_folder(tmp_path, classes=["anna", "john"]).val) == 8


@pytest.mark.parametrize(
    "reads",
    [read_folder, lambda root: read_folder(root / "train", classes=["run", "walk"]), find_videos],
    ids=["splits", "classes", "published"],
)
def test_a_folder_that_may_not_be_read_is_an_error(
    tmp_path: Path, reads: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "train", "val")
    forbid(tmp_path / "train/walk", monkeypatch)
    assert has(error(lambda: reads(tmp_path)), f"{tmp_path}/train/walk: Permission denied", "chmod")  # type: ignore[arg-type, return-value]


def test_prepare_reports_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "in", "train", "val")
    forbid(tmp_path / "in/train/walk", monkeypatch)
    text = error(lambda: plan(tmp_path / "in", tmp_path / "out", None, (0, 1)))  # type: ignore[arg-type, return-value]
    assert has(text, f"{tmp_path}/in/train/walk: Permission denied")


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    tree(tmp_path, "trainval", "test", clips=5)
    touch(tmp_path, "trainval/__MACOSX/run/._0.mp4", "trainval/more.zip")
    splits = read_folder(tmp_path)
    assert splits.classes[""] == ("run", "walk")
    assert has(splits.summary(), "not read, unpack them first: more.zip")
    (tmp_path / "trainval/jump").symlink_to("/nowhere")
    assert has(error(lambda: read_folder(tmp_path)), "links that lead nowhere", "trainval/jump")


def test_a_link_to_itself_is_a_file_that_is_not_there(tmp_path: Path) -> None:
    tree(tmp_path, "train", "val")
    (tmp_path / "train/run/loop.mp4").symlink_to("loop.mp4")
    assert len(read_folder(tmp_path).train) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("reads", [read_folder, find_videos])
def test_another_user_s_folder_is_an_error(reads: Callable[[Path], object]) -> None:
    """A process of a user who really may not read a class."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        tree(root, "train", "val")
        (root / "train/walk").chmod(0o700)

        def run(answer: Connection) -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer.send(error(lambda: reads(root)))  # type: ignore[arg-type, return-value]

        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=run, args=(theirs,))
        process.start()
        assert ours.poll(30)
        assert has(ours.recv(), f"{root}/train/walk: Permission denied", "chmod")
        process.join()


def forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder unreadable, for root too."""
    scandir = os.scandir

    def refusing(path: str | Path = ".") -> object:
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_names_are_compared_in_composed_form(tmp_path: Path) -> None:
    composed, split_up = "café", unicodedata.normalize("NFD", "café")
    touch(tmp_path, f"train/{split_up}/a.mp4", "train/run/b.mp4", f"val/{composed}/c.mp4", "val/run/d.mp4")
    splits = read_folder(tmp_path)
    assert splits.classes[""] == (composed, "run")
    assert splits.train.paths[0] == str(tmp_path / "train" / split_up / "a.mp4")
    assert len(read_folder(tmp_path, classes=[split_up, "run"]).val) == 2


def test_names_that_differ_only_in_case_or_blanks_are_pointed_out(tmp_path: Path) -> None:
    touch(tmp_path, "train/Run/a.mp4", "train/walk/b.mp4", "val/run/c.mp4", "val/walk/d.mp4")
    text = error(lambda: read_folder(tmp_path))
    assert has(text, "unknown label 'run', which differs from 'Run' only in case or blanks")
    touch(tmp_path, "train/run/a.mp4")
    assert has(
        read_folder(tmp_path).summary(), "differ only in case or blanks: 'Run' and 'run'; are they one class?"
    )
