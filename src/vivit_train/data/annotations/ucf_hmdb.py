"""Reads UCF101 and HMDB51, which have one folder per class and official lists of files."""

import re
from collections.abc import Sequence
from pathlib import Path

from vivit_train.data.annotations.build import Row, class_names
from vivit_train.data.annotations.files import find_file, numbered_lines, open_root, read_lines
from vivit_train.data.annotations.lookup import Problems, Videos, official_lists, official_splits, unusual_number
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import shorten_list

UCF_TREE = """Expected in {root}:
  ucfTrainTestlist/      classInd.txt, trainlist01.txt, testlist01.txt, ...; or in annotations/ or the root
  UCF-101/<class>/v_<class>_g01_c01.avi, or anywhere below the root"""
HMDB_TREE = """Expected in {root}:
  testTrainMulti_7030_splits/<class>_test_split1.txt, ...; or in splits/, annotations/ or the root
  hmdb51_org/<class>/<name>.avi, or anywhere below the root"""
UCF_FOLDERS = ("", "annotations/", "UCF101TrainTestSplits-RecognitionTask/")
UCF_PLACES = [f"{at}{name}{{}}" for name in ("ucfTrainTestlist/", "") for at in UCF_FOLDERS]
HMDB_FOLDERS = [
    f"{at}{name}"
    for name in ("testTrainMulti_7030_splits", "splits", "")
    for at in ("", "annotations/", "splits/", "test_train_splits/")
]
_UCF_ROW = re.compile(r"(?:.*/)?(([^/]+)/([^/]+)\.\w+)(?:\s+(\d+))?")
_HMDB_ROW = re.compile(r"(.*\S)\.\w+\s+([012])")


def read_ucf101(
    root: StrPath,
    *,
    train: str | None = "train",
    val: str = "test",
    test: str | None = None,
    fold: int = 1,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Reads one of the three official splits of UCF101 from trainlist01.txt, testlist01.txt and classInd.txt.

    The class ids are those of classInd.txt minus one, since that file counts from 1.

    Args:
        root: The data set's folder.
        train, val, test: The official list that each split uses, "train" or "test".
        fold: The number of the official split: 1, 2 or 3.
        classes: The class names that a model knows, or a class file, for evaluation. None uses classInd.txt.
        max_missing: The share of a split's videos that may be missing. Their rows are dropped with a notice.

    Raises:
        UserError: If a file is missing or malformed, or if too many videos are missing.
    """
    top, expected_layout = open_root(root, UCF_TREE)
    lists = official_lists("ucf101", train, val, test, fold)
    files = {
        split: find_file(top, expected_layout, split, f"{part}list{fold:02d}.txt", UCF_PLACES)
        for split, part in lists.items()
    }
    index = find_file(top, expected_layout, "class", "classInd.txt", UCF_PLACES)
    published = _ucf_classes(index)
    videos, problems = Videos(top), Problems(f"`<class>/<video>.avi [id]`, with a class and an id of {index}")
    numbers = {name: i for i, name in enumerate(published, 1)}
    tables: dict[str, list[Row]] = {}
    for split, file in files.items():
        tables[split] = []
        for where, line in numbered_lines(file):
            match = _UCF_ROW.fullmatch(line)
            if match and match[2] in numbers and match[4] in (None, str(numbers[match[2]])):
                path, label, stem = match.group(1, 2, 3)
                # Some copies of the data set rename v_HandStandPushups_* to match the folder HandstandPushups.
                stems = (stem, stem.replace("HandStand", "Handstand"))
                found = next(filter(None, (videos.find(name, (label,), numbers) for name in stems)), None)
                tables[split].append(videos.row(found, ("UCF-101", path), path, (label,), where))
            elif line:
                problems.add(where, line)
    problems.check()
    names, named_by = class_names(top, expected_layout, classes or published)
    source = f"ucf101 split {fold}: {shorten_list(files.values())}{named_by}"
    return official_splits(tables, files, {"": names}, source, expected_layout, max_missing)


def _ucf_classes(file: Path) -> tuple[str, ...]:
    """Reads classInd.txt and returns the class names by id."""
    problems, names = Problems("`id name`, with ids from 1 in order"), []
    for number, line in enumerate(filter(None, read_lines(file)), 1):
        class_id, _, name = line.partition(" ")
        if class_id != str(number) or not name.strip():
            problems.add(f"{file}:{number}", line)
        names.append(name.strip())
    problems.check()
    return tuple(names)


def read_hmdb51(
    root: StrPath,
    *,
    train: str | None = "train",
    val: str = "test",
    test: str | None = None,
    fold: int = 1,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Reads one of the three official splits of HMDB51 from <class>_test_split1.txt with `name.avi 0|1|2` per
    line.

    1 is a training video, 2 is a test video, and 0 is neither. The class ids are alphabetical. The arguments and
    the errors are those of `read_ucf101`.
    """
    top, expected_layout = open_root(root, HMDB_TREE)
    lists = official_lists("hmdb51", train, val, test, fold)
    ending = f"_test_split{fold}.txt"
    folder = next((top / name for name in HMDB_FOLDERS if any((top / name).glob(f"*{ending}"))), None)
    if folder is None:
        places = shorten_list([top / name for name in HMDB_FOLDERS])
        raise UserError(f"no files *{ending}; looked in {places}\n{expected_layout}")
    by_class = {file.name.removesuffix(ending): file for file in folder.glob(f"*{ending}")}
    # The order of the file names differs from that of the classes.
    by_class = {name: by_class[name] for name in sorted(by_class)}
    videos, problems = Videos(top), Problems("`<video>.avi` and 0, 1 or 2")
    tables: dict[str, list[Row]] = {split: [] for split in lists}
    for label, file in by_class.items():
        for where, line in numbered_lines(file):
            if match := _HMDB_ROW.fullmatch(line):
                stem, part = match[1], {"1": "train", "2": "test"}.get(match[2])
                found = videos.find(stem, (label,), by_class)
                expected = ("hmdb51_org", label, f"{stem}.avi")
                for split in [split for split in lists if lists[split] == part]:
                    tables[split].append(videos.row(found, expected, f"{label}/{stem}", (label,), where))
            elif line:
                problems.add(where, line)
    problems.check()
    names, named_by = class_names(top, expected_layout, classes or tuple(by_class))
    files = {split: folder / f"*{ending}" for split in lists}
    notices = [] if classes else unusual_number(tuple(by_class), 51, files["val"])
    source = f"hmdb51 split {fold}: {files['val']}{named_by}"
    return official_splits(tables, files, {"": names}, source, expected_layout, max_missing, notices)
