"""Reads Moments in Time."""

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from vivit_train.data.annotations.build import Row, class_names
from vivit_train.data.annotations.files import VIDEO_EXTENSIONS, cells, find_files, open_root, read_lines
from vivit_train.data.annotations.lookup import Problems, Videos, official_splits
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import shorten_list

MOMENTS_TREE = """Expected in {root}:
  trainingSet.csv, validationSet.csv     `path,label,positive votes,negative votes`; or in annotations/
  moments_categories.txt                 `name,id` per line, in the same folder
  training/<path>, validation/<path>     such as training/running/yt-5of6ffo6-Bw_205.mp4"""
MOMENTS_FOLDERS = {"train": ("training", "train"), "val": ("validation", "val")}
MOMENTS_CLASSES = ("moments_categories.txt", "category_momentsv2.txt")


def read_moments(
    root: StrPath,
    *,
    train: StrPath | None = "trainingSet.csv",
    val: StrPath = "validationSet.csv",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Reads either release of Moments in Time: rows `path,label,positive votes,negative votes` without a header.

    The class ids come from `classes`, or else from moments_categories.txt, or else from category_momentsv2.txt, in
    root, in root/annotations or next to the annotation file. If there is no class file, they are alphabetical,
    with a notice. A video in a folder of another class or split is never used, even if its name matches.

    Args:
        root: The data set's folder.
        train, val, test: The annotation files, which are searched in root, in root/annotations and at the path as
            given.
        classes: A class file with `name` or `name,id` per line, or the names. These classes may have no training
            clips.
        max_missing: The share of a split's videos that may be missing. Their rows are dropped with a notice.

    Raises:
        UserError: If a file is missing or malformed, a label is unknown, or too many videos are missing.
    """
    top, expected_layout = open_root(root, MOMENTS_TREE)
    notices = []
    files = find_files(top, expected_layout, train, val, test, classes or "a class file")
    places = (top, top / "annotations", files["val"].parent)
    there = [place / name for name in MOMENTS_CLASSES for place in places if (place / name).is_file()]
    chosen = classes or next(iter(there), None)
    if not classes and len({file.name for file in there}) > 1:
        notices.append(f"class ids are those of {there[0]}; set data.reader.classes=<file> to use others")
    if not chosen and not train:
        raise UserError(
            f"no {MOMENTS_CLASSES[0]} in {top}; set data.reader.classes=<file> to use another\n{expected_layout}"
        )
    if not chosen:
        notices.append(f"no {MOMENTS_CLASSES[0]}: class ids are alphabetical, not the published ones")
    problems = Problems("`path,label,positive votes,negative votes`, the path with a video extension")
    entries = {split: list(_moments_entries(file, problems)) for split, file in files.items()}
    problems.check()
    names, named_by = class_names(
        top, expected_layout, chosen or sorted({label for *_, label in entries["train"]})
    )

    videos, known = Videos(top), {*chain(*MOMENTS_FOLDERS.values()), *names}
    tables: dict[str, list[Row]] = {}
    for split, file in files.items():
        sides = [side for side in MOMENTS_FOLDERS if side in file.name.lower()] or MOMENTS_FOLDERS
        folders = [folder for side in sides for folder in MOMENTS_FOLDERS[side]]
        tables[split] = []
        for where, path, label in entries[split]:
            parent, name = os.path.split(path)
            found = videos.find(os.path.splitext(name)[0], (*folders, os.path.basename(parent) or label), known)
            tables[split].append(videos.row(found, (folders[0], path), f"{folders[0]}/{path}", (label,), where))
    source = f"moments_in_time {shorten_list(files.values())}{named_by}"
    return official_splits(tables, files, {"": names}, source, expected_layout, max_missing, notices)


def _moments_entries(file: Path, problems: "Problems") -> Iterator[tuple[str, str, str]]:
    """Yields the place, the path and the label of each row, and records malformed rows in `problems`."""
    for number, line in enumerate(read_lines(file), 1):
        path, label, *votes = [*cells(line), "", ""]
        is_video = path.rpartition(".")[2].lower() in VIDEO_EXTENSIONS
        if is_video and label and len(votes) == 4 and votes[0].isdecimal() and votes[1].isdecimal():
            yield f"{file}:{number}", path, label
        elif line and not (number == 1 and line.startswith(("path,", "filename,"))):
            problems.add(f"{file}:{number}", line)
