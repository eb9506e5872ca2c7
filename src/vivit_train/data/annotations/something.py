"""Reads Something-Something v2."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vivit_train.data.annotations.build import Row, class_names
from vivit_train.data.annotations.files import find_file, find_files, numbered_lines, open_root, read_lines
from vivit_train.data.annotations.lookup import Problems, Videos, official_splits
from vivit_train.data.annotations.table import Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.text import shorten_list

SOMETHING_TREE = """Expected in {root}:
  labels/train.json, validation.json, labels.json, test-answers.csv; or in annotations/ or the root,
    or something-something-v2-train.json, -validation.json, -labels.json there
  20bn-something-something-v2/<id>.webm, or anywhere below the root"""
SOMETHING_PREFIX = "something-something-v2-"
SOMETHING_PLACES = [f"{at}{name}{{}}" for name in ("", SOMETHING_PREFIX) for at in ("", "labels/", "annotations/")]


def read_something(
    root: StrPath,
    *,
    train: StrPath | None = "train.json",
    val: StrPath = "validation.json",
    test: StrPath | None = None,
    classes: StrPath | Sequence[str] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Reads Something-Something v2 in either layout: JSON lists of {id, template, ...}, and labels.json for the
    ids.

    A clip's label is its template without the brackets. Its video is <id>.webm.

    Args:
        root: The data set's folder.
        train, val, test: The annotation files, which are searched in root, root/labels and root/annotations, with
            and without the prefix something-something-v2-, and at the path as given. A .csv file has rows
            `id;template`.
        classes: Another labels.json or class file, or the names. These classes may have no training clips.
        max_missing: The share of a split's videos that may be missing. Their rows are dropped with a notice.

    Raises:
        UserError: If a file is missing or malformed, a template is unknown, or too many videos are missing.
    """
    top, expected_layout = open_root(root, SOMETHING_TREE)
    files = find_files(top, expected_layout, train, val, test, classes or "labels.json", SOMETHING_PLACES)
    labels = [f"{files['val'].parent}/{name}{{}}" for name in ("", SOMETHING_PREFIX)] + SOMETHING_PLACES
    names, named_by = class_names(
        top, expected_layout, classes or find_file(top, expected_layout, "labels", "labels.json", labels)
    )
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
    source = f"something_something_v2 {shorten_list(files.values())}{named_by}"
    return official_splits(tables, files, {"": names}, source, expected_layout, max_missing)


def _something_entries(file: Path, problems: "Problems") -> Iterator[tuple[str, str, str]]:
    """Yields the place, the id and the template of each entry of a JSON file.

    Raises:
        UserError: If the file has another structure or no templates.
    """
    lines = read_lines(file)
    entries = parse_json("\n".join(lines), file)
    if not isinstance(entries, list):
        raise UserError(f"{file}: expected a list of {problems.expected}, found a {type(entries).__name__}")
    if entries and not any(isinstance(entry, dict) and "template" in entry for entry in entries):
        advice = "The test file is published without labels; data.test=test-answers.csv has them."
        raise UserError(f"{file}: no entry has a template. {advice}")
    # The published files have "[" on the first line and then one entry per line.
    is_by_line = lines[0] == "[" and lines[len(entries) + 1 : len(entries) + 2] == ["]"]
    for number, entry in enumerate(entries):
        where = f"{file}:{number + 2}" if is_by_line else f"{file}: entry {number + 1}"
        values = (entry.get("id"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(values[0], str | int) and values[0] != "" and isinstance(values[1], str):
            yield where, str(values[0]), values[1]
        else:
            problems.add(where, str(entry))


def _something_answers(file: Path, problems: "Problems") -> Iterator[tuple[str, str, str]]:
    """Yields the place, the id and the template of each row of a CSV file."""
    for where, line in numbered_lines(file):
        video_id, _, template = line.partition(";")
        if video_id.isdecimal() and template:
            yield where, video_id, template
        elif line:
            problems.add(where, line)
