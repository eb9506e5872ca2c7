"""Reads EPIC-KITCHENS-100, whose segments have a verb and a noun."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vivit_train.data.annotations.build import Row
from vivit_train.data.annotations.files import PLACES, find_file, find_files, open_root, read_classes
from vivit_train.data.annotations.lookup import Problems, Videos, official_splits, read_columns, seconds
from vivit_train.data.annotations.table import Classes, Splits, StrPath
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import shorten_list

EPIC_TREE = """Expected in {root}:
  EPIC_100_train.csv, EPIC_100_validation.csv, EPIC_100_verb_classes.csv, EPIC_100_noun_classes.csv
    or in annotations/ or epic-kitchens-100-annotations/
  P01/videos/P01_101.MP4, or anywhere below the root"""
EPIC_PLACES = (*PLACES, "epic-kitchens-100-annotations/{}", "epic-kitchens-100-annotations-master/{}")


def read_epic(
    root: StrPath,
    *,
    train: StrPath | None = "EPIC_100_train.csv",
    val: StrPath = "EPIC_100_validation.csv",
    test: StrPath | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    max_missing: float = 0.05,
) -> Splits:
    """Reads EPIC-KITCHENS-100, segments of untrimmed videos with the heads "verb" and "noun".

    The class ids come from EPIC_100_verb_classes.csv (97) and EPIC_100_noun_classes.csv (300) next to the
    annotation files. EPIC_100_noun_classes_v2.csv is not read, because the five nouns that it adds belong to
    another task (VISOR) and no segment has them.

    Args:
        root: The data set's folder.
        train, val, test: The annotation files with the published columns, which are searched in root,
            root/annotations, root/epic-kitchens-100-annotations and at the path as given.
        classes: The class names of each head that a model knows, for evaluation.
        max_missing: The share of a split's segments whose videos may be missing. They are dropped with a notice.

    Raises:
        UserError: If a file is missing or malformed or has no labels, or if too many videos are missing.
    """
    top, expected_layout = open_root(root, EPIC_TREE)
    if classes is not None and not (isinstance(classes, Mapping) and {"verb", "noun"} <= set(classes)):
        raise UserError(
            f"epic_kitchens100 needs a model with the heads verb and noun; this model has {shorten_list(classes)}"
        )
    files = find_files(top, expected_layout, train, val, test, "both class files", EPIC_PLACES)
    places = (f"{files['val'].parent}/{{}}", *EPIC_PLACES)
    class_files = {
        head: find_file(top, expected_layout, f"{head} class", f"EPIC_100_{head}_classes.csv", places)
        for head in ("verb", "noun")
    }
    published = {head: read_classes(file) for head, file in class_files.items()}
    videos, problems = Videos(top), Problems("the columns of the header, HH:MM:SS.xx, stop after start, class ids")
    tables = {split: list(_epic_rows(file, published, videos, problems)) for split, file in files.items()}
    problems.check()
    names = {head: tuple(classes[head] if classes else published[head]) for head in published}
    source = f"epic_kitchens100 {shorten_list([*files.values(), *class_files.values()])}"
    return official_splits(tables, files, names, source, expected_layout, max_missing)


def _epic_rows(file: Path, names: Classes, videos: "Videos", problems: "Problems") -> Iterator[Row]:
    """Yields the rows of an annotation file, and records malformed rows in `problems`."""
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
