"""The annotation files of published data sets, as they are published, and their usual trees on disk.

Annotation files are looked up where the archives leave them. Videos are found by name, with any video extension,
anywhere below the root. data/README.md shows the tree and the published counts of each data set.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from vivit_train.data.manifest import (
    PLACES,
    VIDEO_EXTENSIONS,
    Classes,
    Row,
    Splits,
    StrPath,
    below,
    cells,
    class_names,
    fail,
    find_file,
    find_files,
    find_videos,
    make_splits,
    open_root,
    read_classes,
    read_json,
    read_lines,
    some,
)
from vivit_train.errors import UserError

KINETICS_TREE = """Expected in {root}:
  train.csv, val.csv     columns label,youtube_id,time_start,time_end; or in annotations/
  train/**/<youtube_id>_<start>_<end>.mp4, such as train/abseiling/0wR5jVB-WPk_000417_000427.mp4
  val/**/...             or both below videos/, or anywhere below the root; or <youtube_id>.mp4"""
MOMENTS_TREE = """Expected in {root}:
  trainingSet.csv, validationSet.csv     `path,label,positive votes,negative votes`; or in annotations/
  moments_categories.txt                 `name,id` a line, beside them
  training/<path>, validation/<path>     such as training/running/yt-5of6ffo6-Bw_205.mp4"""
SOMETHING_TREE = """Expected in {root}:
  labels/train.json, validation.json, labels.json, test-answers.csv; or in annotations/ or the root,
    or something-something-v2-train.json, -validation.json, -labels.json there
  20bn-something-something-v2/<id>.webm, or anywhere below the root"""
EPIC_TREE = """Expected in {root}:
  EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv
    or in annotations/ or epic-kitchens-100-annotations/
  P01/videos/P01_101.MP4, or anywhere below the root"""
UCF_TREE = """Expected in {root}:
  ucfTrainTestlist/      classInd.txt, trainlist01.txt, testlist01.txt, ...; or in annotations/ or the root
  UCF-101/<class>/v_<class>_g01_c01.avi, or anywhere below the root"""
HMDB_TREE = """Expected in {root}:
  testTrainMulti_7030_splits/<class>_test_split1.txt, ...; or in splits/, annotations/ or the root
  hmdb51_org/<class>/<name>.avi, or anywhere below the root"""

MOMENTS_FOLDERS = {"train": ("training", "train"), "val": ("validation", "val")}
MOMENTS_CLASSES = ("moments_categories.txt", "category_momentsv2.txt")
SOMETHING_PREFIX = "something-something-v2-"
SOMETHING_PLACES = [f"{at}{name}{{}}" for name in ("", SOMETHING_PREFIX) for at in ("", "labels/", "annotations/")]
EPIC_PLACES = (*PLACES, "epic-kitchens-100-annotations/{}", "epic-kitchens-100-annotations-master/{}")
UCF_FOLDERS = ("", "annotations/", "UCF101TrainTestSplits-RecognitionTask/")
UCF_PLACES = [f"{at}{name}{{}}" for name in ("ucfTrainTestlist/", "") for at in UCF_FOLDERS]
HMDB_FOLDERS = [
    f"{at}{name}"
    for name in ("testTrainMulti_7030_splits", "splits", "")
    for at in ("", "annotations/", "splits/", "test_train_splits/")
]
_SECONDS = re.compile(r"\d{1,9}")
_TIME = re.compile(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d+)?)")
_UCF_ROW = re.compile(r"(?:.*/)?(([^/]+)/([^/]+)\.\w+)(?:\s+(\d+))?")
_HMDB_ROW = re.compile(r"(.*\S)\.\w+\s+([012])")


def read_kinetics(
    root: StrPath,
    *,
    train: StrPath | None = "train.csv",
    val: StrPath = "val.csv",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    num_classes: int | None = None,
    max_missing: float = 0.1,
) -> Splits:
    """Read Kinetics-400, -600 or -700: columns label,youtube_id,time_start,time_end[,...] under a header.

    Videos are named <youtube_id>_<start>_<end>, with six digits for each time, or <youtube_id> alone. Classes are
    the training labels in alphabetical order, which is the published one.

    Args:
        root: the data set's folder.
        train, val, test: annotation files, looked up in root, in root/annotations and as given; with
            `num_classes` also as kinetics400/train.csv or kinetics-400_train.csv there. Where there is no val.csv,
            validate.csv serves. With train=None, for evaluation only, `classes` is needed.
        classes: a published label map, a name a line or `id,name`; or the names. They may lack training clips.
        num_classes: as published; another number gives a notice.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.

    Raises:
        UserError: a file is missing or malformed, a label is unknown, a class has no training clips, or too many
            videos are missing.
    """
    top, tree = open_root(root, KINETICS_TREE)
    prefixes, folders = [""], ["", "annotations/"]
    if num_classes:  # as the archives have them
        prefixes += [f"kinetics-{num_classes}_", f"kinetics_{num_classes}_"]
        folders += [f"kinetics{num_classes}/", f"kinetics{num_classes}_2020/"]
    places = [f"{folder}{prefix}{{}}" for prefix in prefixes for folder in folders]
    if val == "val.csv" and not any((top / place.format(val)).is_file() for place in places):
        val = "validate.csv" if any((top / place.format("validate.csv")).is_file() for place in places) else val
    files = find_files(top, tree, train, val, test, classes, places)
    videos, problems = Videos(top), Problems("the columns of the header, and times in whole seconds")
    tables = {split: list(_kinetics_rows(file, split, videos, problems)) for split, file in files.items()}
    problems.check()

    source, notices = f"kinetics {some(files.values())}", []
    if classes:
        names, named_by = class_names(top, tree, classes)
        source += named_by
    else:
        names = tuple(sorted({row.labels[0] for row in tables["train"]}))
        notices = unusual_number(names, num_classes, files["train"])
    known = {bare(name): i for i, name in enumerate(names)}
    labels = {row.labels[0] for row in chain(*tables.values())}
    ids = {label: known[bare(label)] for label in labels if bare(label) in known}
    lacking = classes is not None
    return make_splits(
        tables, files, {"": names}, {"": ids}, source, tree, max_missing, lacking, may_differ=True, notices=notices
    )


def _kinetics_rows(file: Path, split: str, videos: "Videos", problems: "Problems") -> Iterator[Row]:
    needed = ("label", "youtube_id", "time_start", "time_end")
    for where, line, (label, youtube_id, start, end) in read_columns(file, needed):
        if label and youtube_id and _SECONDS.fullmatch(start) and _SECONDS.fullmatch(end):
            stem = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
            folders = (split, label, label.replace(" ", "_"))
            found = videos.find(stem, folders) or videos.find(youtube_id, folders)
            yield videos.row(found, (split, f"{stem}.mp4"), youtube_id, (label,), where)
        else:
            problems.add(where, line)


def bare(name: str) -> str:
    """For comparison: of the two published maps of Kinetics-400 one drops the parentheses in names."""
    return re.sub(r"[()]", "", name)


def read_moments(
    root: StrPath,
    *,
    train: StrPath | None = "trainingSet.csv",
    val: StrPath = "validationSet.csv",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Read Moments in Time, either release: `path,label,positive votes,negative votes` without a header.

    Class ids are those of `classes`, else of moments_categories.txt, else of category_momentsv2.txt, in root, in
    root/annotations or beside the annotation file. Without any they are alphabetical, with a notice. Of several
    videos with the same name one counts only if its folders name no other class or split.

    Args:
        root: the data set's folder.
        train, val, test: annotation files, looked up in root, in root/annotations and as given.
        classes: a class file, `name` or `name,id` a line; or the names. They may lack training clips.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.

    Raises:
        UserError: a file is missing or malformed, a label is unknown, or too many videos are missing.
    """
    top, tree = open_root(root, MOMENTS_TREE)
    notices = []
    files = find_files(top, tree, train, val, test, classes or "a class file")
    places = (top, top / "annotations", files["val"].parent)
    there = [place / name for name in MOMENTS_CLASSES for place in places if (place / name).is_file()]
    chosen = classes or next(iter(there), None)
    if not classes and len({file.name for file in there}) > 1:
        notices.append(f"class ids are those of {there[0]}; data.reader.classes=<file> takes others")
    if not chosen and not train:
        raise UserError(f"no {MOMENTS_CLASSES[0]} in {top}: data.reader.classes=<file> names another\n{tree}")
    if not chosen:
        notices.append(f"no {MOMENTS_CLASSES[0]}: class ids are alphabetical, not the published ones")
    problems = Problems("`path,label,positive votes,negative votes`, the path with a video's extension")
    entries = {split: list(_moments_entries(file, problems)) for split, file in files.items()}
    problems.check()
    names, named_by = class_names(top, tree, chosen or sorted({label for *_, label in entries["train"]}))

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
    source = f"moments_in_time {some(files.values())}{named_by}"
    return _splits(tables, files, {"": names}, source, tree, max_missing, notices)


def _moments_entries(file: Path, problems: "Problems") -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(read_lines(file), 1):
        path, label, *votes = [*cells(line), "", ""]
        is_video = path.rpartition(".")[2].lower() in VIDEO_EXTENSIONS
        if is_video and label and len(votes) == 4 and votes[0].isdecimal() and votes[1].isdecimal():
            yield f"{file}:{number}", path, label
        elif line and not (number == 1 and line.startswith(("path,", "filename,"))):
            problems.add(f"{file}:{number}", line)


def read_something(
    root: StrPath,
    *,
    train: StrPath | None = "train.json",
    val: StrPath = "validation.json",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Read Something-Something V2, either layout: JSON lists of {id, template, ...}, and labels.json for the ids.

    A clip's label is its template without the brackets; its video is <id>.webm.

    Args:
        root: the data set's folder.
        train, val, test: annotation files, looked up in root, root/labels, root/annotations, there also with the
            prefix something-something-v2-, and as given. One that ends in .csv has rows `id;template`.
        classes: another labels.json or class file, or the names. They may lack training clips.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.

    Raises:
        UserError: a file is missing or malformed, a template is unknown, or too many videos are missing.
    """
    top, tree = open_root(root, SOMETHING_TREE)
    files = find_files(top, tree, train, val, test, classes or "labels.json", SOMETHING_PLACES)
    labels = [f"{files['val'].parent}/{name}{{}}" for name in ("", SOMETHING_PREFIX)] + SOMETHING_PLACES
    names, named_by = class_names(top, tree, classes or find_file(top, tree, "labels", "labels.json", labels))
    videos, problems = Videos(top), Problems('{"id": "74225", "template": "..."}, or in a csv file `id;template`')
    tables: dict[str, list[Row]] = {}
    for split, file in files.items():
        tables[split] = []
        entries = _something_answers if file.suffix.lower() == ".csv" else _something_entries
        for where, video_id, template in entries(file, problems):
            label = template.replace("[", "").replace("]", "")
            expected = ("20bn-something-something-v2", f"{video_id}.webm")
            tables[split].append(videos.row(videos.find(video_id), expected, video_id, (label,), where))
    problems.check()
    source = f"something_something_v2 {some(files.values())}{named_by}"
    return _splits(tables, files, {"": names}, source, tree, max_missing)


def _something_entries(file: Path, problems: "Problems") -> Iterator[tuple[str, str, str]]:
    entries = read_json(file)
    if not isinstance(entries, list):
        raise UserError(f"{file}: expected a list of {problems.expected}, found a {type(entries).__name__}")
    if entries and not any(isinstance(entry, dict) and "template" in entry for entry in entries):
        advice = "The test file is published without labels; data.test=test-answers.csv has them."
        raise UserError(f"{file}: no entry has a template. {advice}")
    lines = read_lines(file)  # published with "[" on the first line and then an entry on each
    is_by_line = lines[0] == "[" and lines[len(entries) + 1 : len(entries) + 2] == ["]"]
    for number, entry in enumerate(entries):
        where = f"{file}:{number + 2}" if is_by_line else f"{file}: entry {number + 1}"
        values = (entry.get("id"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(values[0], str | int) and values[0] != "" and isinstance(values[1], str):
            yield where, str(values[0]), values[1]
        else:
            problems.add(where, str(entry))


def _something_answers(file: Path, problems: "Problems") -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(read_lines(file), 1):
        video_id, _, template = line.partition(";")
        if video_id.isdecimal() and template:
            yield f"{file}:{number}", video_id, template
        elif line:
            problems.add(f"{file}:{number}", line)


def read_epic(
    root: StrPath,
    *,
    train: StrPath | None = "EPIC_100_train.csv",
    val: StrPath = "EPIC_100_validation.csv",
    test: StrPath | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Read EPIC-KITCHENS-100: segments of untrimmed videos by time stamp, with the heads "verb" and "noun".

    Class ids are those of EPIC_100_verb_classes.csv (97) and EPIC_100_noun_classes.csv (300), beside the
    annotation files. EPIC_100_noun_classes_v2.csv is not read: the five nouns that it adds are for another task
    (VISOR), and no segment has them.

    Args:
        root: the data set's folder.
        train, val, test: annotation files with the published columns, looked up in root, root/annotations,
            root/epic-kitchens-100-annotations and as given.
        classes: for evaluation: the names by head that a model knows.
        max_missing: share of a split's segments whose video may be missing; they are dropped with a notice.

    Raises:
        UserError: a file is missing or malformed or has no labels, or too many videos are missing.
    """
    top, tree = open_root(root, EPIC_TREE)
    if classes is not None and not (isinstance(classes, Mapping) and {"verb", "noun"} <= set(classes)):
        raise UserError(
            f"epic_kitchens100 needs a model with the heads verb and noun; this one has {some(classes)}"
        )
    files = find_files(top, tree, train, val, test, "both class files", EPIC_PLACES)
    places = (f"{files['val'].parent}/{{}}", *EPIC_PLACES)
    class_files = {
        head: find_file(top, tree, f"{head} class", f"EPIC_100_{head}_classes.csv", places)
        for head in ("verb", "noun")
    }
    published = {head: read_classes(file) for head, file in class_files.items()}
    videos, problems = Videos(top), Problems("the columns of the header, HH:MM:SS.xx, stop after start, class ids")
    tables = {split: list(_epic_rows(file, published, videos, problems)) for split, file in files.items()}
    problems.check()
    names = {head: tuple(classes[head] if classes else published[head]) for head in published}
    source = f"epic_kitchens100 {some([*files.values(), *class_files.values()])}"
    return _splits(tables, files, names, source, tree, max_missing)


def _epic_rows(file: Path, names: Classes, videos: "Videos", problems: "Problems") -> Iterator[Row]:
    needed = ("narration_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
    by_id = [{str(i): name for i, name in enumerate(names[head])} for head in ("verb", "noun")]
    for where, line, (clip, video, start, stop, verb, noun) in read_columns(file, needed):
        start_s, stop_s = seconds(start), seconds(stop)
        if clip and video and 0 <= start_s < stop_s and verb.isdecimal() and noun.isdecimal():
            expected = (video.partition("_")[0], "videos", f"{video}.MP4")
            labels = (by_id[0].get(verb, verb), by_id[1].get(noun, noun))
            yield videos.row(videos.find(video), expected, clip, labels, where, (start_s, stop_s))
        else:
            problems.add(where, line)


def seconds(time: str) -> float:
    """Of HH:MM:SS.xx; not-a-number where it is none."""
    match = _TIME.fullmatch(time)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else float("nan")


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
    """Read one of the three official splits of UCF101: trainlist01.txt, testlist01.txt and classInd.txt.

    Class ids are those of classInd.txt less one, since it counts from 1.

    Args:
        root: the data set's folder.
        train, val, test: which list serves: "train" or "test".
        fold: 1, 2 or 3.
        classes: for evaluation: the names that a model knows, or a class file. Else classInd.txt.
        max_missing: share of a split's videos that may be missing; their rows are dropped with a notice.

    Raises:
        UserError: a file is missing or malformed, or too many videos are missing.
    """
    top, tree = open_root(root, UCF_TREE)
    lists = official_lists("ucf101", train, val, test, fold)
    files = {
        split: find_file(top, tree, split, f"{part}list{fold:02d}.txt", UCF_PLACES)
        for split, part in lists.items()
    }
    index = find_file(top, tree, "class", "classInd.txt", UCF_PLACES)
    published = _ucf_classes(index)
    videos, problems = Videos(top), Problems(f"`<class>/<video>.avi [id]`, with a class and an id of {index}")
    numbers = {name: i for i, name in enumerate(published, 1)}
    tables: dict[str, list[Row]] = {}
    for split, file in files.items():
        tables[split] = []
        for number, line in enumerate(read_lines(file), 1):
            match = _UCF_ROW.fullmatch(line)
            if match and match[2] in numbers and match[4] in (None, str(numbers[match[2]])):
                path, label, stem = match.group(1, 2, 3)
                # some copies rename v_HandStandPushups_* after their folder, HandstandPushups
                stems = (stem, stem.replace("HandStand", "Handstand"))
                found = next(filter(None, (videos.find(name, (label,), numbers) for name in stems)), None)
                where = f"{file}:{number}"
                tables[split].append(videos.row(found, ("UCF-101", path), path, (label,), where))
            elif line:
                problems.add(f"{file}:{number}", line)
    problems.check()
    names, named_by = class_names(top, tree, classes or published)
    source = f"ucf101 split {fold}: {some(files.values())}{named_by}"
    return _splits(tables, files, {"": names}, source, tree, max_missing)


def _ucf_classes(file: Path) -> tuple[str, ...]:
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
    """Read one of the three official splits of HMDB51: <class>_test_split1.txt with `name.avi 0|1|2` a line.

    1 is a training video, 2 a test video, 0 neither. Class ids are alphabetical. What it takes and raises is as
    for `read_ucf101`.
    """
    top, tree = open_root(root, HMDB_TREE)
    lists = official_lists("hmdb51", train, val, test, fold)
    ending = f"_test_split{fold}.txt"
    folder = next((top / name for name in HMDB_FOLDERS if any((top / name).glob(f"*{ending}"))), None)
    if folder is None:
        raise UserError(f"no files *{ending}; looked in {some([top / name for name in HMDB_FOLDERS])}\n{tree}")
    by_class = {file.name.removesuffix(ending): file for file in folder.glob(f"*{ending}")}
    by_class = {name: by_class[name] for name in sorted(by_class)}  # not in the order of the files' names
    videos, problems = Videos(top), Problems("`<video>.avi` and 0, 1 or 2")
    tables: dict[str, list[Row]] = {split: [] for split in lists}
    for label, file in by_class.items():
        for number, line in enumerate(read_lines(file), 1):
            if match := _HMDB_ROW.fullmatch(line):
                stem, part = match[1], {"1": "train", "2": "test"}.get(match[2])
                found = videos.find(stem, (label,), by_class)
                expected, where = ("hmdb51_org", label, f"{stem}.avi"), f"{file}:{number}"
                for split in [split for split in lists if lists[split] == part]:
                    tables[split].append(videos.row(found, expected, f"{label}/{stem}", (label,), where))
            elif line:
                problems.add(f"{file}:{number}", line)
    problems.check()
    names, named_by = class_names(top, tree, classes or tuple(by_class))
    files = {split: folder / f"*{ending}" for split in lists}
    notices = [] if classes else unusual_number(tuple(by_class), 51, files["val"])
    source = f"hmdb51 split {fold}: {files['val']}{named_by}"
    return _splits(tables, files, {"": names}, source, tree, max_missing, notices)


def official_lists(name: str, train: str | None, val: str, test: str | None, fold: int) -> dict[str, str]:
    """Split -> which of the official lists serves."""
    lists = {split: part for split, part in (("train", train), ("val", val), ("test", test)) if part}
    wrong = [f"data.{split}={part}" for split, part in lists.items() if part not in ("train", "test")]
    if wrong:
        raise UserError(f"{some(wrong)}: the official lists of {name} are `train` and `test`")
    if fold not in (1, 2, 3):
        raise UserError(f"data.reader.fold={fold}: {name} has the splits 1, 2 and 3")
    return lists


def unusual_number(names: Sequence[str], published: int | None, file: Path) -> list[str]:
    """A notice where there are not as many classes as published."""
    if published in (None, len(names)):
        return []
    return [f"{file}: {len(names)} classes, not the published {published}; ids count those here alone"]


class Videos:
    """The videos below a folder by name, from one listing of it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.by_stem: dict[str, list[str]] = {}
        for path in find_videos(root):
            self.by_stem.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)

    def find(self, stem: str, wanted: Sequence[str] = (), known: Collection[str] = ()) -> str | None:
        """The video of that name; of several the one below most of the folders `wanted`.

        `known` folders mean something: a video below one of them that is not wanted is another one.
        """
        paths = self.by_stem.get(stem, [])
        if known:
            paths = [path for path in paths if all(f not in known or f in wanted for f in self.folders(path))]
        if len(paths) > 1:
            return max(paths, key=lambda path: sum(folder in wanted for folder in self.folders(path)))
        return paths[0] if paths else None

    def folders(self, path: str) -> list[str]:
        return below(self.root, path).split("/")[:-1]

    def row(
        self,
        found: str | None,
        expected: tuple[str, ...],
        clip: str,
        labels: tuple[str, ...],
        where: str,
        span_s: tuple[float, float] | None = None,
    ) -> Row:
        """Of a video that was found, or is missing from its `expected` place below root."""
        path = os.path.join(self.root, *expected) if found is None else found
        return Row(path, clip, labels, where, found is not None, span_s)


class Problems:
    """Malformed rows, collected so that all files are read before the first complaint."""

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.rows: list[str] = []

    def add(self, where: str, row: str) -> None:
        self.rows.append(f"{where}: {row[:120]!r}")

    def check(self) -> None:
        if self.rows:
            fail("malformed rows", self.rows, f"Expected {self.expected}.")


def read_columns(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """file:line, the line, and the values of the columns `needed`, all empty where the row has other columns."""
    lines = read_lines(file)
    header = cells(lines[0])
    absent = [name for name in needed if name not in header]
    if absent:
        raise UserError(
            f"{file}:1: no column {', '.join(absent)} in {','.join(header)!r}\n"
            f"Expected the header {','.join(needed)}[,...]. Test files published without labels cannot be scored."
        )
    columns = [header.index(name) for name in needed]
    for number, line in enumerate(lines[1:], 2):
        values = cells(line)
        if values:
            is_whole = len(values) == len(header)
            yield f"{file}:{number}", line, [values[i] for i in columns] if is_whole else [""] * len(columns)


def _splits(
    tables: Mapping[str, list[Row]],
    files: Mapping[str, Path],
    names: Classes,
    source: str,
    tree: str,
    max_missing: float,
    notices: Sequence[str] = (),
) -> Splits:
    """`make_splits` where classes are published: some may lack clips, and two labels are the publisher's."""
    ids = {head: {name: i for i, name in enumerate(by_id)} for head, by_id in names.items()}
    described = (tables, files, names, ids, source, tree, max_missing)
    return make_splits(*described, may_lack_clips=True, may_differ=True, notices=notices)
