"""Reads data sets with one folder of videos per class."""

import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vivit_train.data.annotations.build import Draft, Row, make_splits
from vivit_train.data.annotations.files import (
    IS_VIDEO,
    VIDEO_EXTENSIONS,
    below,
    ending_of,
    file_names,
    list_videos,
    open_root,
    picture_folders,
    raise_listed,
    shown_endings,
    subfolders,
)
from vivit_train.data.annotations.hold_out import ByClass, hold_out, hold_out_sources
from vivit_train.data.annotations.layout import check_classes_plausible, recognized_splits
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.data.look_alikes import look_alikes
from vivit_train.data.video.storage import is_picture, members
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import nfc, plural, printable, shorten_list

Level = Literal[1, 2]
ARCHIVES = (".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst")
FOLDER_TREE = """Expected in {root}, with a folder per class:
  train/<class>/<video>.mp4     or, to split it here:     <class>/<video>.mp4
  val/<class>/<video>.mp4       (optional with test/: else a part of train)
  test/<class>/<video>.mp4      (optional)
or in tars, as train/<any>.tar with members <class>/<video>.mp4; in a class without video files, each folder of
pictures is a video"""


def read_folder(
    root: StrPath,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = "auto",
    classes: Sequence[str] | None = None,
    val_percent: float = 20,
    seed: int = 0,
    class_level: Level | None = None,
) -> Splits:
    """Reads root/{train,val[,test]}/<class>/**/<video>, or splits root/<class>/**/<video> by percentage.

    Split folders are recognized by their usual names in any case, such as Training, valid or testset. With train
    and test folders only, a part of the training clips is held out for validation; see `hold_out_sources`. In a
    class without video files, each folder of pictures is a video. <class>/<video> may be in tars.

    A split depends only on the seed and on the paths of the clips below root.

    Args:
        root: The data set's folder.
        train, val: The split folders if they have unusual names.
        test: The folder of the test split; "auto" takes the one with a usual name, and None reads none.
        classes: The class names that a model knows, for evaluation. Training clips are then neither needed nor
            read, and without split folders all clips are evaluated.
        val_percent: The percentage of each class to hold out if there is no validation folder.
        seed: The seed of the split.
        class_level: 1: the folders of a split are the classes, whatever their names; 2: the folders within them
            are, and those of the same name are one class. None: 1, if that is plausible.

    Raises:
        UserError: If a folder is missing or unreadable or has no videos, the folders are hardly classes, a class
            has no training clips, or there is only one class.
    """
    top, expected_layout = open_root(root, FOLDER_TREE)
    names = split_names(top, train=train, val=val, test=test, known=classes or ())
    folders = split_folders(top, expected_layout, names, trains=not classes)
    notices = ignored_folders(top, folders)
    clips = clips_of_splits(folders, top, expected_layout, notices, classes or (), class_level)
    how = add_validation(folders, clips, top, val_percent, seed, notices)
    source = (
        f"folder {top}" if top in folders.values() else f"folders {shorten_list(dict.fromkeys(folders.values()))}"
    )
    if classes:
        clips.pop("train", None)
    check_class_folders(folders, clips)
    by_id = tuple(classes or clips["train"])
    return make_splits(
        Draft(
            tables={split: rows_of(clips[split], top) for split in ("train", "val", "test") if split in clips},
            files=folders,
            classes={"": by_id},
            ids={"": {name: i for i, name in enumerate(by_id)}},
            source=f"{source}, {how}" if how else source,
            expected_layout=expected_layout,
            may_lack_clips=classes is not None,
            notices=notices,
            held_out=bool(how),
        )
    )


def clips_of_splits(
    folders: Mapping[str, Path],
    root: Path,
    expected_layout: str,
    notices: list[str],
    known: Sequence[str],
    class_level: Level | None,
) -> dict[str, ByClass]:
    """Returns the clips of each split, and appends notices about ignored files. A folder is read only once.

    Raises:
        UserError: If there are no class folders or they are hardly classes, or if a folder cannot be read.
    """
    clips: dict[str, ByClass] = {}
    for split, folder in folders.items():
        same = next((other for other in clips if folders[other] == folder), None)
        if same is None and class_level is None:
            check_classes_plausible(folder, None if folder == root else split, {*map(nfc, known)})
        clips[split] = clips[same] if same else clips_by_class(folder, expected_layout, notices, class_level or 1)
    return clips


def split_names(
    root: Path, *, train: str | None, val: str | None, test: str | None, known: Sequence[str]
) -> dict[str, str]:
    """Returns the folder of each split by its name below root, as given or recognized; empty if there is none.

    Args:
        root: The data set's folder.
        train, val, test: The folders as `read_folder` takes them.
        known: The classes that a model knows.

    Raises:
        UserError: If several folders bear the usual names of a split.
    """
    given = {"train": train, "val": val, "test": None if test == "auto" else test}
    found = recognized_splits(root, {*map(nfc, known)})
    if test is None:
        found.pop("test", None)
    several = {split: names for split, names in found.items() if len(names) > 1 and not given[split]}
    if several:
        lines = [f"{split}: {shorten_list(names)}" for split, names in several.items()]
        keys = ", ".join(f"data.{split}=" for split in several)
        raise_listed(f"several folders in {root} bear the name of one split", lines, f"Choose with {keys}.")
    return {split: name or found[split][0] for split, name in given.items() if name or split in found}


def split_folders(root: Path, expected_layout: str, names: Mapping[str, str], *, trains: bool) -> dict[str, Path]:
    """Returns the folder of each split to read; without "val", it is to be held out of "train".

    Args:
        root: The data set's folder.
        expected_layout: A description of the expected files, for messages.
        names: The result of `split_names`. If it is empty, root holds the classes.
        trains: Whether training clips are needed.

    Raises:
        UserError: If a folder does not exist.
    """
    if not names:
        return {"train" if trains else "val": root}
    folders = {split: root / name for split, name in names.items()}
    if not trains and "val" in folders:
        folders.pop("train", None)
    elif not trains and "train" not in folders:
        folders["val"] = folders["test"]
    absent = [str(folder) for folder in folders.values() if not folder.is_dir()]
    if trains and "train" not in folders:
        absent.append(str(root / "train"))
    if absent:
        there = shorten_list(subfolders(root), 20) or "none"
        advice = "Name the split folders with data.train=, data.val= and data.test= (data.val=test is fine)."
        raise_listed(
            "missing folders", absent, f"Folders in {printable(root)}: {there}. {advice}\n{expected_layout}"
        )
    return folders


def ignored_folders(root: Path, folders: Mapping[str, Path]) -> list[str]:
    """Returns a notice about the folders next to the split folders, which are not read."""
    used = set(folders.values())
    others = [
        name for name in subfolders(root) if not any((root / name) in (path, *path.parents) for path in used)
    ]
    if root in used or not others:
        return []
    return [f"not read, as they are no folders of a split: {shorten_list(others)}"]


def add_validation(
    folders: dict[str, Path],
    clips: dict[str, ByClass],
    root: Path,
    val_percent: float,
    seed: int,
    notices: list[str],
) -> str:
    """Holds out a part of the training clips if there is no validation split, and returns how, or "".

    Clips in the data set's own folder are split regardless of their sources, as they always were. A notice names
    clips on both sides that look alike. The other arguments are those of `hold_out`.
    """
    if "val" in folders:
        return ""
    folders["val"] = folders["train"]
    if folders["train"] == root:
        clips |= hold_out(clips["train"], root, val_percent, seed)
        return f"split here by class: {val_percent:g}% to val, seed {seed}"
    alike = look_alikes([path for paths in clips["train"].values() for path in paths])
    parts, told = hold_out_sources(clips["train"], folders["train"], root, val_percent, seed, alike)
    clips |= parts
    held = {path for paths in parts["val"].values() for path in paths}
    for group in alike:
        inside, outside = ([path for path in group if (path in held) == is_held] for is_held in (True, False))
        if inside and outside:
            notices.append(
                f"{below(root, inside[0])} in val looks like {below(root, outside[0])} in train, in a group of "
                f"{len(group)}: the validation score may be too good"
            )
    by = "class and, as file names and look-alikes tell it, by source" if told else "class"
    found = f"{plural(len(alike), 'group')} of look-alikes found"
    return f"no validation folder: {val_percent:g}% of train held out by {by} ({found}), seed {seed}"


def rows_of(clips: ByClass, root: Path) -> list[Row]:
    """Returns the rows of the clips, in order of their classes."""
    return [Row(path, below(root, path), (name,), path) for name, paths in clips.items() for path in paths]


def check_class_folders(folders: Mapping[str, Path], clips: Mapping[str, ByClass]) -> None:
    """Raises a UserError if a class folder for training has no videos."""
    empty = [str(folders["train"] / name) for name, paths in clips.get("train", {}).items() if not paths]
    if empty:
        advice = f"Add videos to them or delete them. Looked for {', '.join(VIDEO_EXTENSIONS)}."
        raise_listed("class folders without videos", empty, advice)


def clips_by_class(folder: Path, expected_layout: str, notices: list[str], class_level: Level) -> ByClass:
    """Returns the paths of the videos in each class folder, and appends notices about ignored files.

    Raises:
        UserError: If there are no class folders, or if a folder cannot be read.
    """
    classes: ByClass = {}
    others: Counter[str] = Counter()
    for class_folder in class_folders(folder, class_level):
        videos, left_out = list_videos(class_folder)
        if not videos:
            videos = picture_folders(class_folder)
            left_out = Counter({ending: n for ending, n in left_out.items() if not is_picture(f"0{ending}")})
        classes.setdefault(nfc(class_folder.name), []).extend(videos)
        others += left_out
    loose = [name for name in file_names(folder) if IS_VIDEO.fullmatch(name)]
    if nowhere := [str(folder / name) for name in file_names(folder) if is_lost_link(folder / name)]:
        raise_listed("links that lead nowhere", nowhere, "Mount what they lead to, or delete them.")
    if archives := [name for name in file_names(folder) if name.lower().endswith(ARCHIVES)]:
        notices.append(f"not read, unpack them first: {shorten_list(archives)} in {folder}")
    for tar in [folder / name for name in file_names(folder) if name.endswith(".tar")]:
        for member in members(str(tar)):
            name, _, rest = member.partition("/")
            if IS_VIDEO.fullmatch(posixpath.basename(rest)):
                classes.setdefault(nfc(name), []).append(f"{tar}/{member}")
            else:
                others[ending_of(member)] += 1
    classes = {name: classes[name] for name in sorted(classes)}
    if not classes:
        found = f"only loose videos: {shorten_list(loose)}" if loose else "the folder is empty or has no videos"
        raise UserError(f"no class folders in {printable(folder)}; {found}\n{expected_layout}")
    if loose:
        count = plural(len(loose), "video")
        notices.append(f"ignored {count} in {folder} outside of class folders: {shorten_list(loose)}")
    if others:
        notices.append(f"ignored files in {folder} without a video extension: {shown_endings(others)}")
    return classes


def is_lost_link(path: Path) -> bool:
    """Returns whether a path without an extension, which may be a class, is a link to what does not exist."""
    return path.suffix == "" and path.is_symlink() and not os.path.exists(path)


def class_folders(folder: Path, class_level: Level) -> list[Path]:
    """Returns the folders of the classes, which are in `folder` or one level deeper."""
    outer = [folder / name for name in subfolders(folder)]
    return outer if class_level == 1 else [path / name for path in outer for name in subfolders(path)]
