"""Run the doctor on a dataset: find problems, write a report and write lists of the good clips."""

import base64
import csv
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from vivit_train.data.annotations.table import Classes, ClipTable, Splits
from vivit_train.data.video import index
from vivit_train.data.video.storage import is_plain
from vivit_train.data.video.urls import private_urls
from vivit_train.tools.doctor.inspect_files import Settings, inspect_files
from vivit_train.tools.doctor.problems import KINDS, NOT_LISTED, TO_ENCODE, Problem, find_problems
from vivit_train.tools.doctor.report import report, strips_of
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import check_folder
from vivit_train.utils.text import csv_cell, plural, printable, shorten_list

log = logging.getLogger(__name__)

# These are the numbers of clips per split in data/README.md.
PUBLISHED = {
    "kinetics400": {"train": 246_535, "val": 19_906},
    "something_something_v2": {"train": 168_913, "val": 24_777, "test": 27_157},
    "epic_kitchens100": {"train": 67_217, "val": 9_668},
    "hmdb51": {"train": 3_570, "val": 1_530},
}
# Published results were computed on these numbers of videos, as videos disappear from the web.
USED = {("kinetics400", "val"): "19,761 to 19,880"}
UCF101 = {fold: {"train": train, "val": 13_320 - train} for fold, train in ((1, 9_537), (2, 9_586), (3, 9_624))}


def examine(
    cfg: DictConfig,
    out: Path,
    workers: int,
    *,
    every_frame: bool = False,
    timeout_s: float | None = None,
    overrides: Sequence[str] = (),
) -> list[Problem]:
    """Check every file that `cfg.data` lists, log and write the results, and return the problems.

    The function writes files.jsonl, problems.csv, report.html and re-encode.txt. For datasets of whole videos with
    one head it also writes clean/{train,val[,test]}.csv, clean/classes.txt and clean/timelines.sqlite.

    Args:
        cfg: Configuration, as for training.
        out: Folder for the results.
        workers: Number of child processes.
        every_frame: Whether to decode all frames of each file.
        timeout_s: Time limit per file in seconds, plus 1 s per 10 MB. None means `data.timeout_s`.
        overrides: Overrides of the command line, for the training command that is logged at the end.

    Raises:
        UserError: The lists of the dataset cannot be read, or `out` holds something else.
    """
    splits, data, settings = read_splits(cfg), cfg.data, _settings(cfg.data, every_frame)
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    manifests = {split: manifest for split, manifest in named.items() if manifest}
    take_folder(out)
    log.info(splits.summary())
    paths = list(dict.fromkeys(str(path) for manifest in manifests.values() for path in manifest.paths))
    limit_s = float(data.timeout_s if timeout_s is None else timeout_s)
    entries = inspect_files(paths, out / "files.jsonl", settings, workers, limit_s)

    problems, left_out = find_problems(manifests, next(iter(splits.classes.values())), entries, settings)
    listed = [(path, split) for split, paths in splits.missing.items() for path in paths]
    problems += [Problem(path, split, "missing", "listed but not on disk") for path, split in listed]
    with open(out / "problems.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Problem._fields, *(map(csv_cell, problem) for problem in problems)])
    to_encode = dict.fromkeys(p.path for p in problems if p.kind in TO_ENCODE and is_plain(p.path))
    _write(out / "re-encode.txt", to_encode)
    clean = write_clean(out / "clean", splits, manifests, left_out, str(data.name))
    if clean:
        seen = [entry for entry in entries.values() if entry.scan]
        scans = ((entry.path, entry.version, entry.size, base64.b64decode(entry.scan)) for entry in seen)
        index.write(out / "clean" / index.NAME, scans)
    kept = ", ".join(f"{split} {len(m) - len(left_out[split]):,} of {len(m):,}" for split, m in manifests.items())
    to_do = [f"clean: {kept}", f"to re-encode: {plural(len(to_encode), 'file')}"]
    notes = [*counts_notes(cfg, splits, manifests), *to_do]
    advice = _advice(splits.classes, clean, overrides)
    strips = strips_of(problems, workers, limit_s)
    prepare = _prepare(str(data.root), out / "re-encode.txt", is_for_all=len(to_encode) == len(paths))
    page = report(str(data.name), splits, manifests, entries, problems, strips, notes, advice, prepare)
    (out / "report.html").write_text(page, encoding="utf-8")
    _log_problems(problems)
    log.info("\n".join(f"note     {note}" for note in notes))
    log.info(f"report   {out / 'report.html'}; in the same folder: problems.csv, re-encode.txt, clean/")
    log.info(advice)
    return problems


def take_folder(out: Path) -> None:
    """Create the folder of the report, or check that one that exists is of an earlier report.

    Raises:
        UserError: The folder holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_folder(out, ("", "clean"), "choose another folder with --out DIR")
    if any(out.iterdir()) and not (out / "files.jsonl").is_file():
        raise UserError(f"{out} exists and holds no report of vivit doctor: choose another folder with --out DIR")


def _settings(data: DictConfig, every_frame: bool) -> Settings:
    private = bool(data.allow_private_urls)
    settings = Settings(data.frames, data.stride, data.fps, data.short_side, every_frame, private)
    if data.get("sampling") == "segments":  # Each segment gives one frame, taken at any rate.
        settings = settings._replace(stride=1, fps=None)
    return settings


def _advice(classes: Classes, clean: str, overrides: Sequence[str]) -> str:
    """Say how to train on the clean lists, or why there are none.

    Args:
        classes: Class names of each head.
        clean: Overrides that read the clean lists, or "".
        overrides: Overrides of the command line.
    """
    if bad := unlisted(classes):
        return f"no clean lists are written, as they need one class name per line: rename {shorten_list(bad)}"
    if not clean:
        return "no clean lists are written, as they cannot hold segments or labels for several heads"
    command = " ".join(["vivit train", clean, *map(shlex.quote, filter(is_kept, overrides))])
    return f"train on the clean lists:\n  {command}"


def _prepare(root: str, listed: Path, *, is_for_all: bool) -> str:
    """Return the command that re-encodes the listed files of a folder, or all of its files."""
    words = ["vivit", "prepare", root, "small", *([] if is_for_all else ["--list", str(listed)])]
    return shlex.join(words)


def _log_problems(problems: Sequence[Problem]) -> None:
    count = Counter(problem.kind for problem in problems)
    for kind in filter(count.get, KINDS):
        examples = shorten_list([os.path.basename(p.path) for p in problems if p.kind == kind], 3)
        log.info(f"{count[kind]:>7,}  {kind:<16} {KINDS[kind]}: {examples}")


def is_kept(override: str) -> bool:
    """Return whether an override sets something other than the location of the data."""
    return not override.startswith(
        ("data=", *(f"data.{key}" for key in ("root=", "train=", "val=", "test=", "reader")))
    )


def read_splits(cfg: DictConfig) -> Splits:
    """Read the clips of the dataset. Any number of missing videos is only a notice."""
    reader = instantiate(cfg.data.reader, _convert_="all")
    lists = {split: cfg.data[split] for split in ("train", "val", "test")}
    allow = {"max_missing": 1.0} if "max_missing" in cfg.data.reader else {}
    with private_urls(bool(cfg.data.allow_private_urls)):
        return reader(cfg.data.root, **lists, **allow)


def counts_notes(cfg: DictConfig, splits: Splits, manifests: Mapping[str, ClipTable]) -> list[str]:
    """Return notes on how many of the published clips exist and how balanced the classes are."""
    name, notes = str(cfg.data.name), []
    published = PUBLISHED.get(name, {})
    if name == "ucf101":
        published = UCF101.get(int(cfg.data.reader.fold), {})
    for split, manifest in manifests.items():
        if split in published:
            used = USED.get((name, split))
            notes.append(
                f"{len(manifest):,} of the {published[split]:,} published {split} videos of {name}"
                + (f"; published results are computed on {used}" if used else "")
            )
        by_head = manifest.class_counts(splits.classes)
        for (which, names), counts in zip(splits.classes.items(), by_head, strict=True):
            fewest, most = int(counts.argmin()), int(counts.argmax())
            if counts[fewest] == counts[most]:
                notes.append(f"{split}: {plural(int(counts[most]), 'clip')} per {which or 'class'} (balanced)")
                continue
            ratio = f"ratio {counts[most] / counts[fewest]:.1f} to 1" if counts[fewest] else "some have none"
            notes.append(
                f"{split}: {counts[fewest]:,} to {plural(int(counts[most]), 'clip')} per {which or 'class'} "
                f"(fewest: {printable(names[fewest])}, most: {printable(names[most])}, {ratio})"
            )
    return notes


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="surrogateescape")


def write_clean(
    out: Path, splits: Splits, manifests: Mapping[str, ClipTable], left_out: Mapping[str, set[int]], name: str
) -> str:
    """Write the clean lists for data=csv, with unchanged class ids, and return the overrides that read them.

    The result is "" if such lists cannot hold the dataset.
    """
    if unlisted(splits.classes):
        return ""
    if len(splits.classes) > 1 or any(manifest.spans_s is not None for manifest in manifests.values()):
        return ""  # The lines `path,label` of a list have no room for segments or several labels.
    (names,) = splits.classes.values()
    out.mkdir(exist_ok=True)
    _write(out / "classes.txt", ["id,name", *(f"{i},{_quoted(name)}" for i, name in enumerate(names))])
    words = [f"data=csv data.root={shlex.quote(os.path.abspath(out))}"]
    if splits.multi_label:
        words.append("data.reader.multi_label=true")
    for split, manifest in manifests.items():
        rows = [row for row in range(len(manifest)) if row not in left_out[split]]
        ids = list(map(str, range(len(names))))
        _write(
            out / f"{split}.csv",
            (f"{_quoted(manifest.paths[row])},{manifest.label_string(row, ids)}" for row in rows),
        )
        (counts,) = manifest.select(np.array(rows, np.int64)).class_counts(splits.classes)
        if split == "train" and not counts.all():
            words.append("data.reader.classes=classes.txt")  # It allows classes without training clips.
        if split == "test":
            words.append("data.test=test.csv")
    if "train" not in manifests:
        words.append("data.train=null data.reader.classes=classes.txt")
    return " ".join([*words, *([f"recipe={name}"] if name in PUBLISHED else [])])


def unlisted(classes: Classes) -> list[str]:
    """Return the class names that a list cannot hold, as they contain a line break or invalid UTF-8."""
    return [name for names in classes.values() for name in names if NOT_LISTED.search(name)]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
