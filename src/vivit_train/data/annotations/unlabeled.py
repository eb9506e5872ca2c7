"""Reads videos without labels: the clips of any reader, and videos and lists of paths that name no classes."""

import inspect
import posixpath
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vivit_train.data.annotations.build import Draft, Row, make_splits
from vivit_train.data.annotations.csv_file import RowReader, read_csv
from vivit_train.data.annotations.files import (
    IS_VIDEO,
    below,
    file_names,
    find_file,
    list_videos,
    open_root,
    picture_folders,
    subfolders,
)
from vivit_train.data.annotations.folder import (
    add_validation,
    ignored_folders,
    read_folder,
    split_folders,
    split_names,
)
from vivit_train.data.annotations.hold_out import ByClass, held_out_count, order_key
from vivit_train.data.annotations.kinetics import is_kinetics, read_kinetics
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.data.video.storage import members
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import nfc, plural, printable, shorten_list

VIDEO_TREE = """Expected in {root}: videos, in any folders and tars, or split folders with them:
  train/  val/                  (optional: else a part of the videos is held out)"""
PATH_TREE = """Expected in {root}:
  train.csv, val.csv     one path of a video per row, with or without a label"""
VAL_PERCENT = 20  # of the videos in a list, if there is no list of validation videos


def without_labels(reader: "partial[Splits]") -> Callable[..., Splits]:
    """Returns a reader of the same clips without labels. Those of `UNLABELED` do not need any."""
    unlabeled = UNLABELED.get(reader.func)
    if unlabeled is None:
        return lambda *root, **annotations: reader(*root, **annotations).without_labels()
    accepted = inspect.signature(unlabeled).parameters
    return partial(unlabeled, **{name: value for name, value in reader.keywords.items() if name in accepted})


def read_videos(
    root: StrPath,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = "auto",
    val_percent: float = 20,
    seed: int = 0,
) -> Splits:
    """Reads all videos below a folder, or below its split folders.

    Of class folders, the same clips are held out for validation as by `read_folder`.

    Args:
        root, train, val, test, val_percent, seed: See `read_folder`.

    Raises:
        UserError: If a folder is missing or unreadable, or has no videos.
    """
    top, expected_layout = open_root(root, VIDEO_TREE)
    folders = split_folders(
        top, expected_layout, split_names(top, train=train, val=val, test=test, known=()), trains=True
    )
    notices = ignored_folders(top, folders)
    clips = {split: clips_by_folder(folder, expected_layout) for split, folder in folders.items()}
    how = add_validation(folders, clips, top, val_percent, seed, notices)
    names = shorten_list(dict.fromkeys(folders.values()))
    return make_splits(
        Draft(
            tables={split: rows_of(clips[split], top) for split in ("train", "val", "test") if split in clips},
            files=folders,
            classes={},
            ids={},
            source=", ".join(filter(None, [f"videos in {names}", how])),
            expected_layout=expected_layout,
            notices=notices,
            held_out=bool(how),
        )
    )


def rows_of(clips: ByClass, root: Path) -> list[Row]:
    """Returns the rows of the clips, in order of their folders."""
    return [Row(path, below(root, path), (), path) for paths in clips.values() for path in paths]


def clips_by_folder(folder: Path, expected_layout: str) -> ByClass:
    """Returns the paths of all videos below a folder by the folder in it that holds them, "" for its own.

    Raises:
        UserError: If there is no video, or if a folder cannot be read.
    """
    clips = {"": [str(folder / name) for name in file_names(folder) if IS_VIDEO.fullmatch(name)]}
    for name in subfolders(folder):
        videos, _ = list_videos(folder / name)
        clips.setdefault(nfc(name), []).extend(videos or picture_folders(folder / name))
    for tar in [folder / name for name in file_names(folder) if name.endswith(".tar")]:
        for member in members(str(tar)):
            if IS_VIDEO.fullmatch(posixpath.basename(member)):
                name = member.partition("/")[0] if "/" in member else ""
                clips.setdefault(nfc(name), []).append(f"{tar}/{member}")
    found = {name: clips[name] for name in sorted(clips) if clips[name]}
    if not found:
        raise UserError(f"no videos in {printable(folder)}\n{expected_layout}")
    return found


def read_paths(
    root: StrPath,
    *,
    train: StrPath | None,
    val: StrPath | None = None,
    test: StrPath | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Reads annotation files as `read_csv` does, whose rows may be paths alone. Labels are ignored.

    Without a validation file, a fifth of the training videos is held out.

    Args:
        root, train, val, test, max_missing: See `read_csv`.

    Raises:
        UserError: If a file is missing or malformed, or too many videos are missing.
    """
    top, expected_layout = open_root(root, PATH_TREE)
    names = {"train": train, "val": val, "test": test}
    if not train:
        raise UserError(f"no training videos; set data.train=<file>.\n{expected_layout}")
    files = {split: find_file(top, expected_layout, split, name) for split, name in names.items() if name}
    if val and is_kinetics(files["train"]):
        return read_kinetics(top, train=train, val=val, test=test, max_missing=max_missing).without_labels()
    reader = RowReader(top, multi_label=False, labeled=False)
    tables = reader.tables(files)
    source = f"csv {shorten_list(files.values())}"
    if "val" not in tables:
        ordered = sorted(tables["train"], key=lambda row: order_key(0, row.id))
        count = held_out_count(len(ordered), VAL_PERCENT)
        tables |= {"val": ordered[:count], "train": ordered[count:]}
        files |= {"val": files["train"]}
        source += f", {plural(count, 'video')} held out for validation"
    return make_splits(
        Draft(
            tables=tables,
            files=files,
            classes={},
            ids={},
            source=source,
            expected_layout=expected_layout,
            max_missing=max_missing,
            notices=reader.notices(),
            hint=reader.path_hint(),
        )
    )


UNLABELED: dict[Callable[..., Splits], Callable[..., Splits]] = {read_folder: read_videos, read_csv: read_paths}
