"""Tells split folders from class folders, by their names and by what they hold, and refuses what is neither."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

from vivit_train.data.annotations.files import IS_VIDEO, file_names, subfolders
from vivit_train.data.video.storage import is_picture
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import nfc, printable, quoted, shorten_list

SPLIT_WORDS = {
    "train": {"train", "training", "trn", "trainval"},
    "val": {"val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"},
    "test": {"test", "testing", "tst"},
}
# Words that accompany the name of a split, as in train_set, rawframes_val and TestData.
_COMPANIONS = {"set", "data", "dataset", "split", "videos", "video", "clips", "clip", "frames", "rawframes"}
_WORD_ENDS = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")
_NUMBERED = re.compile(r"(?:split|fold|part|partition|subset|cv)[\W_]*(?:\d+|[a-z])", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """Returns the split, "train", "val" or "test", that a folder of this name usually holds, or None."""
    words = [word.casefold() for word in _WORD_ENDS.split(nfc(name)) if word]
    core = [word for word in words if word not in _COMPANIONS]
    if len(core) != 1:
        return None
    (word,) = core
    for companion in _COMPANIONS:
        shorter = word.removesuffix(companion)
        if shorter != word and any(shorter in known for known in SPLIT_WORDS.values()):
            word = shorter
    return next((split for split, known in SPLIT_WORDS.items() if word in known), None)


def recognized_splits(root: Path, known: Collection[str] = ()) -> dict[str, list[str]]:
    """Returns the folders in `root` that bear the name of a split, by split; empty if they are classes.

    They are splits if there are two or more kinds of them, or if one holds folders or tars itself. A lone folder
    "train" with nothing but videos is a class, like one next to "tram".

    Args:
        root: The data set's folder.
        known: The classes of a model, which are no splits.
    """
    found: dict[str, list[str]] = {}
    for name in subfolders(root):
        if (split := split_of(name)) and nfc(name) not in known:
            found.setdefault(split, []).append(name)
    alone = [root / name for names in found.values() for name in names] if len(found) == 1 else []
    return found if len(found) > 1 or any(map(_holds_classes, alone)) else {}


def _holds_classes(folder: Path) -> bool:
    return bool(subfolders(folder)) or any(name.endswith(".tar") for name in file_names(folder))


def check_classes_plausible(folder: Path, split: str | None, known: Collection[str]) -> None:
    """Raises a UserError if the folders in `folder` are hardly classes, with what was seen and what to type.

    Args:
        folder: The folder of the class folders.
        split: The split that the folder holds, or None if it is the data set's folder.
        known: The classes of a model. Folders that all bear their names are classes.
    """
    names = subfolders(folder)
    if not names or (known and all(nfc(name) in known for name in names)):
        return
    key = f"data.{split}" if split else "data.root"
    if len(names) > 1 and all(map(_NUMBERED.fullmatch, names)):
        _refuse(
            folder,
            f"the folders {shorten_list(names)} bear names of splits, not of classes",
            "name the split folders, as in "
            f"data.train={_typed(folder, names[0], split)} data.val={_typed(folder, names[1], split)}",
        )
    bearing = [name for name in names if split_of(name) and not _is_plain_train(folder / name)]
    if bearing:
        _refuse(
            folder,
            f"{shorten_list(bearing)} among the class folders {shorten_list(names)} bears the name of a split",
            f"if the splits are in there, set {key}={quoted(str(folder / bearing[0]))} or name them with "
            "data.train= and data.val=; otherwise move the folder away or rename it",
        )
    inner = {name: subfolders(folder / name) for name in names}
    if not any(_holds_clips(folder / name, inner[name]) for name in names) and all(inner.values()):
        _check_inner_folders(folder, inner, key)


def _is_plain_train(folder: Path) -> bool:
    return split_of(folder.name) == "train" and not subfolders(folder)


def _holds_clips(folder: Path, inner: Collection[str]) -> bool:
    """Returns whether a class folder holds videos, or folders of pictures, which are its videos."""
    if any(IS_VIDEO.fullmatch(name) for name in file_names(folder)):
        return True
    return any(any(map(is_picture, file_names(folder / name))) for name in inner)


def _check_inner_folders(folder: Path, inner: Mapping[str, list[str]], key: str) -> None:
    """Raises a UserError if folders without videos of their own all hold one folder, or all hold the same ones."""
    splits = [f"{name}/{one}" for name, ones in inner.items() for one in ones if split_of(one)]
    sets = [{nfc(one).casefold() for one in ones} for ones in inner.values()]
    in_all, in_any = set.intersection(*sets), set.union(*sets)
    if len(inner) == 1:
        (name,) = inner
        _refuse(
            folder,
            f"its only folder {printable(name)} holds no videos but the folders {shorten_list(inner[name])}",
            f"set {key}={quoted(str(folder / name))}",
        )
    if splits:
        _refuse(
            folder,
            f"the splits lie within the folders: {shorten_list(splits)}",
            "move the splits to the top, as in train/<class>/<video>.mp4, or list the videos for data=csv",
        )
    if 2 * len(in_all) >= len(in_any) or all(len(ones) == 1 for ones in inner.values()):
        first = [f"{name}/{one}" for name, ones in inner.items() for one in ones[:2]]
        what = "all hold the same folders" if in_all else "each hold only one more folder"
        _refuse(
            folder,
            f"the folders {shorten_list(inner)} {what} and no videos of their own: {shorten_list(first)}",
            "set data.reader.class_level=2 if the inner folders are the classes",
        )


def _typed(folder: Path, name: str, split: str | None) -> str:
    """Returns a split folder as a person types it: relative to the root, or with the folder that it is in."""
    return quoted(os.path.join(folder, name)) if split else name if name.isalnum() else quoted(name)


def _refuse(folder: Path, seen: str, advice: str) -> NoReturn:
    raise UserError(
        f"no class folders in {printable(folder)}: {seen}.\nWhat to do: {advice}. If these folders are the "
        "classes all the same, set data.reader.class_level=1."
    )
