"""Reads data sets with one folder of videos per class."""

import hashlib
from collections.abc import Sequence

from vivit_train.data.annotations.build import Row, clips_by_class, make_splits
from vivit_train.data.annotations.files import (
    VIDEO_EXTENSIONS,
    below,
    open_root,
    raise_listed,
    shorten,
    subfolders,
)
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import printable

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
        folders = {"train": top / (train or "train"), "val": top / (val or "val")}
        if test or (top / "test").is_dir():
            folders["test"] = top / (test or "test")
        if classes:
            del folders["train"]
        absent = [str(folder) for folder in folders.values() if not folder.is_dir()]
        if absent:
            there = printable(", ".join(subfolders(top))) or "none"
            advice = "Name the split folders with data.train=, data.val= and data.test= (data.val=test is fine)."
            raise_listed(
                "missing folders", absent, f"Folders in {printable(top)}: {there}. {advice}\n{expected_layout}"
            )
        clips = {split: clips_by_class(folder, expected_layout, notices) for split, folder in folders.items()}
        source = f"folders {shorten(folders.values())}"
    elif classes:
        folders, clips, source = (
            {"val": top},
            {"val": clips_by_class(top, expected_layout, notices)},
            f"folder {top}",
        )
    else:
        if not 0 < val_percent < 100:
            raise UserError(f"data.reader.val_percent is {val_percent}; it must lie between 0 and 100")
        folders = {"train": top, "val": top}
        clips = {"train": {}, "val": {}}
        for name, paths in clips_by_class(top, expected_layout, notices).items():
            # A hash gives the same order on every machine and with every library version, and clips that are added
            # later do not change the order of the others.
            paths.sort(
                key=lambda path: hashlib.sha256(
                    f"{seed}/{below(top, path)}".encode(errors="surrogateescape")
                ).digest()
            )
            count = min(max(round(len(paths) * val_percent / 100), 1), max(len(paths) - 1, 0))
            clips["val"][name], clips["train"][name] = sorted(paths[:count]), sorted(paths[count:])
        source = f"folder {top}, split here by class: {val_percent:g}% to val, seed {seed}"

    empty = [str(folders["train"] / name) for name, paths in clips.get("train", {}).items() if not paths]
    if empty:
        raise_listed(
            "class folders without videos",
            empty,
            f"Add videos to them or delete them. Looked for {', '.join(VIDEO_EXTENSIONS)}.",
        )
    tables = {
        split: [Row(path, below(top, path), (name,), path) for name, paths in classes.items() for path in paths]
        for split, classes in clips.items()
    }
    names = tuple(classes or clips["train"])
    ids = {name: i for i, name in enumerate(names)}
    lacking = classes is not None
    return make_splits(
        tables, folders, {"": names}, {"": ids}, source, expected_layout, may_lack_clips=lacking, notices=notices
    )
