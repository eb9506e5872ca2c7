"""Reads data sets with one folder of videos per class."""

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vivit_train.data.annotations.build import Draft, Row, make_splits
from vivit_train.data.annotations.files import (
    IS_VIDEO,
    VIDEO_EXTENSIONS,
    below,
    ending_of,
    list_videos,
    open_root,
    picture_folders,
    raise_listed,
    shown_endings,
    subfolders,
)
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.data.video.storage import is_picture, members
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural, printable, shorten_list

ByClass = dict[str, list[str]]  # class -> the paths of its clips
FOLDER_TREE = """Expected in {root}, with a folder per class:
  train/<class>/<video>.mp4     or, to split it here:     <class>/<video>.mp4
  val/<class>/<video>.mp4
  test/<class>/<video>.mp4      (optional)
or in tars, as train/<any>.tar with members <class>/<video>.mp4; in a class without video files, each folder of
pictures is a video"""


def read_folder(
    root: StrPath,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    val_percent: float = 20,
    seed: int = 0,
) -> Splits:
    """Reads root/{train,val[,test]}/<class>/**/<video>, or splits root/<class>/**/<video> by percentage.

    In a class without video files, each folder of pictures is a video. <class>/<video> may be in tars.

    The split holds out `val_percent` of each class for validation and leaves at least one clip on either side. It
    depends only on the seed and on the paths of the clips below root.

    Args:
        root: The data set's folder.
        train, val, test: The split folders if their names are not "train", "val" and "test".
        classes: The class names that a model knows, for evaluation. Training clips are then neither needed nor
            read, and without split folders all clips are evaluated.
        val_percent: The percentage of each class to hold out if there are no split folders.
        seed: The seed of the split.

    Raises:
        UserError: If a folder is missing or has no videos, a class has no training clips, or there is only one
            class.
    """
    top, expected_layout = open_root(root, FOLDER_TREE)
    notices: list[str] = []
    has_splits = (top / "train").is_dir() and ((top / "val").is_dir() or bool(subfolders(top / "train")))
    if train or val or test or has_splits:
        folders = split_folders(top, expected_layout, train=train, val=val, test=test, trains=not classes)
        clips = {split: clips_by_class(folder, expected_layout, notices) for split, folder in folders.items()}
        source = f"folders {shorten_list(folders.values())}"
    elif classes:
        folders, source = {"val": top}, f"folder {top}"
        clips = {"val": clips_by_class(top, expected_layout, notices)}
    else:
        folders = {"train": top, "val": top}
        clips = hold_out(clips_by_class(top, expected_layout, notices), top, val_percent, seed)
        source = f"folder {top}, split here by class: {val_percent:g}% to val, seed {seed}"
    check_class_folders(folders, clips)
    names = tuple(classes or clips["train"])
    return make_splits(
        Draft(
            tables={split: rows_of(by_class, top) for split, by_class in clips.items()},
            files=folders,
            classes={"": names},
            ids={"": {name: i for i, name in enumerate(names)}},
            source=source,
            expected_layout=expected_layout,
            may_lack_clips=classes is not None,
            notices=notices,
        )
    )


def split_folders(
    root: Path, expected_layout: str, *, train: str | None, val: str | None, test: str | None, trains: bool
) -> dict[str, Path]:
    """Returns the folder of each split; that of the test split is optional.

    Raises:
        UserError: If a folder does not exist.
    """
    folders = {"train": root / (train or "train")} if trains else {}
    folders["val"] = root / (val or "val")
    if test or (root / "test").is_dir():
        folders["test"] = root / (test or "test")
    absent = [str(folder) for folder in folders.values() if not folder.is_dir()]
    if absent:
        there = printable(", ".join(subfolders(root))) or "none"
        advice = "Name the split folders with data.train=, data.val= and data.test= (data.val=test is fine)."
        raise_listed(
            "missing folders", absent, f"Folders in {printable(root)}: {there}. {advice}\n{expected_layout}"
        )
    return folders


def rows_of(clips: ByClass, root: Path) -> list[Row]:
    """Returns the rows of the clips, in order of their classes."""
    return [Row(path, below(root, path), (name,), path) for name, paths in clips.items() for path in paths]


def hold_out(clips: ByClass, root: Path, val_percent: float, seed: int) -> dict[str, ByClass]:
    """Splits the clips of each class into train and val; see `read_folder`.

    Raises:
        UserError: If `val_percent` does not lie between 0 and 100.
    """
    if not 0 < val_percent < 100:
        raise UserError(f"data.reader.val_percent is {val_percent}; it must lie between 0 and 100")

    def order(path: str) -> bytes:
        # A hash gives the same order on every machine and with every library version, and clips that are added
        # later do not change the order of the others.
        return hashlib.sha256(f"{seed}/{below(root, path)}".encode(errors="surrogateescape")).digest()

    train, val = {}, {}
    for name, paths in clips.items():
        ordered = sorted(paths, key=order)
        count = min(max(round(len(paths) * val_percent / 100), 1), max(len(paths) - 1, 0))
        val[name], train[name] = sorted(ordered[:count]), sorted(ordered[count:])
    return {"train": train, "val": val}


def check_class_folders(folders: Mapping[str, Path], clips: Mapping[str, ByClass]) -> None:
    """Raises a UserError if a class folder for training has no videos."""
    empty = [str(folders["train"] / name) for name, paths in clips.get("train", {}).items() if not paths]
    if empty:
        advice = f"Add videos to them or delete them. Looked for {', '.join(VIDEO_EXTENSIONS)}."
        raise_listed("class folders without videos", empty, advice)


def clips_by_class(folder: Path, expected_layout: str, notices: list[str]) -> ByClass:
    """Returns the paths of the videos in each class folder, and appends notices about ignored files.

    Raises:
        UserError: If there are no class folders.
    """
    classes: ByClass = {}
    others: Counter[str] = Counter()
    for name in subfolders(folder):
        classes[name], left_out = list_videos(folder / name)
        if not classes[name]:
            classes[name] = picture_folders(folder / name)
            left_out = Counter({ending: n for ending, n in left_out.items() if not is_picture(f"0{ending}")})
        others += left_out
    for tar in sorted(folder.glob("*.tar")):
        for member in members(str(tar)):
            name, _, rest = member.partition("/")
            if IS_VIDEO.fullmatch(posixpath.basename(rest)):
                classes.setdefault(name, []).append(f"{tar}/{member}")
            else:
                others[ending_of(member)] += 1
    classes = {name: classes[name] for name in sorted(classes)}
    loose = [name for name in sorted(os.listdir(folder)) if IS_VIDEO.fullmatch(name)]
    if not classes:
        found = f"only loose videos: {shorten_list(loose)}" if loose else "the folder is empty or has no videos"
        raise UserError(f"no class folders in {printable(folder)}; {found}\n{expected_layout}")
    if loose:
        count = plural(len(loose), "video")
        notices.append(f"ignored {count} in {folder} outside of class folders: {shorten_list(loose)}")
    if others:
        notices.append(f"ignored files in {folder} without a video extension: {shown_endings(others)}")
    return classes
