"""From a data set to its problems, a report of them, and lists of the clips that are good."""

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

from vivit_train.data.annotations.files import shorten
from vivit_train.data.annotations.table import Classes, ClipTable, Splits
from vivit_train.data.video import index
from vivit_train.data.video.storage import is_plain
from vivit_train.data.video.urls import private_urls
from vivit_train.tools.doctor.inspect_files import Settings, inspect_files
from vivit_train.tools.doctor.problems import KINDS, NOT_LISTED, TO_ENCODE, Problem, find_problems
from vivit_train.tools.doctor.report import report, strips_of
from vivit_train.utils.text import csv_cell, printable

log = logging.getLogger(__name__)

# Clips per split, as in data/README.md.
PUBLISHED = {
    "kinetics400": {"train": 246_535, "val": 19_906},
    "something_something_v2": {"train": 168_913, "val": 24_777, "test": 27_157},
    "epic_kitchens100": {"train": 67_217, "val": 9_668},
    "hmdb51": {"train": 3_570, "val": 1_530},
}
# What other people's results on it were counted over, as videos vanish from the web.
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
    """Looks at every file that `cfg.data` lists, says what it found, and returns the problems.

    Leaves files.jsonl, problems.csv, report.html, re-encode.txt and, for whole videos with one head,
    clean/{train,val[,test]}.csv, clean/classes.txt and clean/timelines.sqlite.

    Args:
        workers: child processes.
        every_frame: decode all frames of each file.
        timeout_s: what a file may take, besides a second per 10 MB; as `data.timeout_s` if None.
        overrides: of the command line, for the command that is printed at the end.

    Raises:
        UserError: the data set's lists cannot be read.
    """
    splits, data = read_splits(cfg), cfg.data
    private = bool(data.allow_private_urls)
    settings = Settings(data.frames, data.stride, data.fps, data.short_side, every_frame, private)
    if data.get("sampling") == "segments":  # one frame from each: a video is long enough with as many frames
        settings = settings._replace(stride=1, fps=None)
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    manifests = {split: manifest for split, manifest in named.items() if manifest}
    out.mkdir(parents=True, exist_ok=True)
    log.info(splits.summary())
    paths = list(dict.fromkeys(str(path) for manifest in manifests.values() for path in manifest.paths))
    limit_s = float(data.timeout_s if timeout_s is None else timeout_s)
    entries = inspect_files(paths, out / "files.jsonl", settings, workers, limit_s)

    (names, *_) = splits.classes.values()
    problems, left_out = find_problems(manifests, names, entries, settings)
    listed = [(path, split) for split, paths in splits.missing.items() for path in paths]
    problems += [Problem(path, split, "missing", "listed, and not on the disk") for path, split in listed]
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
    command = " ".join(["python train.py", clean, *map(shlex.quote, filter(_is_kept, overrides))])
    advice = f"train on the clean lists:\n  {command}" if clean else "no clean lists: segments or several heads"
    if bad := unlisted(splits.classes):
        advice = f"no clean lists, which have a class a line: rename {shorten(bad)}"
    notes = [*counts_notes(cfg, splits, manifests), f"clean: {kept}", f"to re-encode: {len(to_encode):,} files"]
    strips = strips_of(problems, workers, limit_s)
    page = report(str(data.name), splits, manifests, entries, problems, strips, [*splits.notices, *notes, advice])
    (out / "report.html").write_text(page, encoding="utf-8")

    count = Counter(problem.kind for problem in problems)
    for kind in filter(count.get, KINDS):
        examples = shorten([os.path.basename(p.path) for p in problems if p.kind == kind], 3)
        log.info(f"{count[kind]:>7,}  {kind:<16} {KINDS[kind]}: {examples}")
    log.info("\n".join(f"note     {note}" for note in notes))
    log.info(f"report   {out / 'report.html'}, and beside it problems.csv, re-encode.txt, clean/")
    log.info(advice)
    return problems


def _is_kept(override: str) -> bool:
    """Whether an override says something else than where the data is."""
    return not override.startswith(
        ("data=", *(f"data.{key}" for key in ("root=", "train=", "val=", "test=", "reader")))
    )


def read_splits(cfg: DictConfig) -> Splits:
    """The data set's clips. Missing videos are notices, however many they are."""
    reader = instantiate(cfg.data.reader, _convert_="all")
    lists = {split: cfg.data[split] for split in ("train", "val", "test")}
    allow = {"max_missing": 1.0} if "max_missing" in cfg.data.reader else {}
    with private_urls(bool(cfg.data.allow_private_urls)):
        return reader(cfg.data.root, **lists, **allow)


def counts_notes(cfg: DictConfig, splits: Splits, manifests: Mapping[str, ClipTable]) -> list[str]:
    """How many clips there are of those published, and how evenly they fall to the classes."""
    name, notes = str(cfg.data.name), []
    published = PUBLISHED.get(name, {})
    if name == "ucf101":
        published = UCF101.get(int(cfg.data.reader.fold), {})
    for split, manifest in manifests.items():
        if split in published:
            used = USED.get((name, split))
            notes.append(
                f"{len(manifest):,} of the {published[split]:,} {split} videos that {name} was published with"
                + (f"; published results are over {used}" if used else "")
            )
        by_head = manifest.class_counts(splits.classes)
        for (which, names), counts in zip(splits.classes.items(), by_head, strict=True):
            fewest, most = int(counts.argmin()), int(counts.argmax())
            ratio = f"{counts[most] / counts[fewest]:.1f} to 1" if counts[fewest] else "some have none"
            notes.append(
                f"{split}: {counts[fewest]:,} ({printable(names[fewest])}) to {counts[most]:,} "
                f"({printable(names[most])}) clips per {which or 'class'}, {ratio}"
            )
    return notes


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", errors="surrogateescape")


def write_clean(
    out: Path, splits: Splits, manifests: Mapping[str, ClipTable], left_out: Mapping[str, set[int]], name: str
) -> str:
    """Lists that data=csv reads, with the classes' ids as they were; returns the overrides that read them."""
    if unlisted(splits.classes):
        return ""
    if len(splits.classes) > 1 or any(manifest.spans_s is not None for manifest in manifests.values()):
        return ""  # a list of `path label` has neither segments nor two labels
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
            out / f"{split}.csv", (f"{_quoted(manifest.paths[row])},{manifest.written(row, ids)}" for row in rows)
        )
        (counts,) = manifest.take(np.array(rows, np.int64)).class_counts(splits.classes)
        if split == "train" and not counts.all():
            words.append("data.reader.classes=classes.txt")  # given so, classes may lack training clips
        if split == "test":
            words.append("data.test=test.csv")
    if "train" not in manifests:
        words.append("data.train=null data.reader.classes=classes.txt")
    return " ".join([*words, *([f"recipe={name}"] if name in PUBLISHED else [])])


def unlisted(classes: Classes) -> list[str]:
    """Names that a list cannot hold as they are: with a line break, or what is no UTF-8."""
    return [name for names in classes.values() for name in names if NOT_LISTED.search(name)]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
