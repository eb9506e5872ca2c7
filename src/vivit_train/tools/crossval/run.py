"""Cross-validation: trains a run for each fold and seed, each scored on clips that it has not seen in any way.

The clips of one group, such as one person or one recording, stay in one fold. The validation clips of a run, which
choose its best checkpoint, are groups of its training clips.
"""

import csv
import json
import logging
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from vivit_train.build import resolve_clip
from vivit_train.composition import compose
from vivit_train.config import validate
from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.data.look_alikes import across_splits
from vivit_train.finetune import few_notice, few_words, is_few, is_other
from vivit_train.recipe import typed_keys
from vivit_train.tools.crossval.groups import class_ids, groups_of
from vivit_train.tools.doctor.run import PUBLISHED, is_kept, read_splits, write_clean
from vivit_train.training.folds import assign_folds
from vivit_train.utils.errors import UserError, interrupted
from vivit_train.utils.files import read_records, read_text, replacing
from vivit_train.utils.intervals import bootstrap
from vivit_train.utils.json_file import parse_json
from vivit_train.utils.progress import progress
from vivit_train.utils.text import plural, printable, quoted

log = logging.getLogger(__name__)

GROUPS = "groups.csv"
CLIP_KEYS = ("frames", "stride", "short_side", "crop")  # A training run may choose them by its own clips.


@dataclass(frozen=True)
class Choices:
    """How a cross-validation divides its clips.

    Attributes:
        folds: The number of folds; None leaves one group out at a time.
        group: How the clips are grouped; see `groups_of`.
        seeds: The number of runs of each fold, with the seeds 0, 1, ...
        val_percent: The percentage of the training clips of a run that choose its checkpoint.
        with_test: Whether the folds also contain the clips of the data's own test split.
        probe: Whether each run is a `vivit probe` instead of a training.
    """

    folds: int | None = None
    group: str = "source"
    seeds: int = 1
    val_percent: float = 10.0
    with_test: bool = False
    probe: bool = False


@dataclass(frozen=True)
class Plan:
    """What a cross-validation runs. It is stored, so that the same command goes on where another stopped.

    Attributes:
        overrides: The overrides of the training runs, without the data.
        group: How the clips are grouped; see `groups_of`.
        seeds: The seeds of the runs of each fold.
        fold_of: The number of the fold of each clip, from 1, by the path of its video.
        val_percent: The percentage of the training clips of a run that choose its checkpoint.
        probe: Whether each run is a `vivit probe` instead of a training.
    """

    overrides: list[str]
    group: str
    seeds: list[int]
    fold_of: dict[str, int]
    val_percent: float
    probe: bool = False


@dataclass
class Job:
    """A run of a cross-validation and its result.

    Attributes:
        fold: The number of the fold, from 1.
        seed: The seed of the run.
        right: Whether each test clip is classified correctly, by its id. A clip that cannot be read is not.
        failure: Why the run has no result, or "".
    """

    fold: int
    seed: int
    right: dict[str, bool] = field(default_factory=dict)
    failure: str = ""

    @property
    def top1(self) -> float:
        return sum(self.right.values()) / len(self.right)


def crossval(cfg: DictConfig, out: Path, overrides: Sequence[str], choices: Choices) -> dict[str, Any]:
    """Runs a cross-validation, or goes on with it, and returns the contents of summary.json.

    Args:
        cfg: The configuration of the training runs; `data` names the clips.
        out: The folder of the runs, of runs.csv and summary.json.
        overrides: The overrides of the command line.
        choices: The folds and the seeds.

    Raises:
        UserError: The data or the folds do not allow it, the folder holds another cross-validation, or runs fail.
        StoppedError: Ctrl-C.
    """
    validate(cfg)
    splits = read_splits(cfg)
    (names, *others) = splits.classes.values()
    if others or splits.multi_label:
        raise UserError("vivit crossval needs one class per clip")
    table = joined([splits.train, splits.val, *([splits.test] if choices.with_test and splits.test else [])])
    groups = groups_of(choices.group, table, names)
    count = choices.folds or len(set(groups))
    if not 2 <= count <= len(set(groups)):
        raise UserError(f"--folds {count}: must be between 2 and the {plural(len(set(groups)), 'group')}")
    if choices.probe:
        words = [word for word in overrides if is_kept(word)]
    else:
        num_train = round(len(table) * (1 - 1 / count) * (1 - choices.val_percent / 100))
        words = training_words(cfg, overrides, num_train)
    fold_of, seeds = folds_of(table, groups, count), list(range(choices.seeds))
    plan = Plan(words, choices.group, seeds, fold_of, choices.val_percent, choices.probe)
    take_folder(out, plan)
    write_groups(out / GROUPS, table, groups)
    log.info(
        f"{plural(len(table), 'clip')} of {len(names)} classes in {plural(len(set(groups)), 'group')} "
        f"(--group {choices.group}); {plural(count, 'fold')} x {plural(choices.seeds, 'seed')}"
    )
    of_group: dict[str, list[str]] = defaultdict(list)
    for path, group in zip(table.paths.tolist(), groups, strict=True):
        of_group[group].append(path)
    if notice := across_splits(of_group, "groups"):
        log.info(f"note     {notice}")
    jobs = [Job(fold, seed) for fold in range(1, count + 1) for seed in plan.seeds]
    with progress("cross-validation", len(jobs), " runs") as step:
        for done, job in enumerate(jobs):
            step(done, f"fold {job.fold}, seed {job.seed}")
            lists = write_lists(out / f"fold_{job.fold}", job.fold, plan, table, groups, splits)
            folder = out / f"fold_{job.fold}/seed_{job.seed}"
            words = [*lists, *plan.overrides, f"seed={job.seed}"]
            command = probe_command(folder, words) if plan.probe else training_command(folder, words)
            try:
                run(job, folder, command)
            except KeyboardInterrupt:
                raise interrupted(
                    f"{done} of {len(jobs)} runs are done; run the same command to continue"
                ) from None
            what = f"top-1 {job.top1:.3f} of {plural(len(job.right), 'clip')}" if job.right else job.failure
            log.info(f"fold {job.fold}/{count}  seed {job.seed}  {what}")
    return summarize(out, jobs, table, groups, len(names))


def training_words(cfg: DictConfig, overrides: Sequence[str], num_train: int) -> list[str]:
    """Returns the overrides of the training runs, without the data, and with the clip that all runs share.

    All runs train the same parts of the model: those that train.py chooses for their mean number of clips.

    Args:
        cfg: The configuration of the training runs.
        overrides: The overrides of the command line.
        num_train: The mean number of training clips of a run.

    Raises:
        UserError: The overrides do not fit the recipe for few clips.
    """
    kept = [word for word in overrides if is_kept(word)]
    if cfg.train == "auto" and not is_other(cfg, typed_keys(overrides)) and is_few(cfg, num_train):
        validate(compose(*few_words(overrides), run_dir=cfg.run_dir))
        log.info(few_notice(f"a run has only about {plural(num_train, 'training clip')}"))
        return few_words(kept)
    cfg = resolve_clip(cfg)[0]
    stated = {word.partition("=")[0] for word in kept}
    name = str(cfg.data.name)
    recipe = [f"recipe={name}"] if name in PUBLISHED and "recipe" not in stated else []
    keys = [key for key in CLIP_KEYS if key != "stride" or cfg.data.sampling != "segments"]
    clip = [f"data.{key}={cfg.data[key]}" for key in keys if f"data.{key}" not in stated]
    return [*recipe, *kept, *clip, *(["train=all"] if cfg.train == "auto" else [])]


def folds_of(table: ClipTable, groups: Sequence[str], count: int) -> dict[str, int]:
    """Returns the number of the fold of each clip, from 1, by its path."""
    fold_N = assign_folds(groups, class_ids(table), count, seed=0) + 1
    return dict(zip(table.paths.tolist(), fold_N.tolist(), strict=True))


def joined(tables: Sequence[ClipTable]) -> ClipTable:
    """Returns one table of the clips of several, each once.

    Raises:
        UserError: Clips are parts of videos.
    """
    if any(table.spans_s is not None for table in tables):
        raise UserError("vivit crossval needs clips that are whole videos, not segments with a start and an end")
    columns = [np.concatenate([getattr(table, name) for table in tables]) for name in ("paths", "labels", "ids")]
    _, first = np.unique(columns[0], return_index=True)
    paths, labels, ids = (column[np.sort(first)] for column in columns)
    return ClipTable(
        paths, labels, ids, lists=tuple(dict.fromkeys(list_ for table in tables for list_ in table.lists))
    )


def take_folder(out: Path, plan: Plan) -> None:
    """Stores the plan in the folder, or checks that it is the plan of the cross-validation there.

    Raises:
        UserError: The folder holds something else.
    """
    file = out / "plan.json"
    text = json.dumps(asdict(plan), indent=1, ensure_ascii=False)
    if file.is_file():
        if {"probe": False} | parse_json(read_text(file), file) != json.loads(text):  # Older plans have no probe.
            raise UserError(f"{out} holds a cross-validation with other settings or clips: choose another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and holds no cross-validation: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")


def write_groups(file: Path, table: ClipTable, groups: Sequence[str]) -> None:
    """Writes the group of each clip, for `vivit probe --group FILE`."""
    with replacing(file) as part, part.open("w", newline="", encoding="utf-8") as rows:
        csv.writer(rows).writerows([("path", "group"), *zip(table.paths.tolist(), groups, strict=True)])


def write_lists(
    folder: Path, fold: int, plan: Plan, table: ClipTable, groups: Sequence[str], splits: Splits
) -> list[str]:
    """Writes the lists of a fold, and returns the overrides that read them.

    Raises:
        UserError: A class name cannot be listed.
    """
    fold_N = np.array([plan.fold_of[path] for path in table.paths.tolist()])
    rest = np.flatnonzero(fold_N != fold)
    other = [groups[row] for row in rest.tolist()]
    if len(set(other)) < 2:  # There is no group to choose the checkpoint.
        other = table.paths[rest].tolist()
    parts = min(max(round(100 / plan.val_percent), 2), len(set(other)))
    part_N = assign_folds(other, class_ids(table)[rest], parts, seed=fold)
    rows = {"train": rest[part_N > 0], "val": rest[part_N == 0], "test": np.flatnonzero(fold_N == fold)}
    if plan.probe:  # It needs no clips to choose a checkpoint, and scores those of data.val.
        rows = {"train": rest, "val": rows["test"]}
    left_out = {split: {*range(len(table))} - {*kept.tolist()} for split, kept in rows.items()}
    folder.mkdir(parents=True, exist_ok=True)
    words = shlex.split(write_clean(folder / "lists", splits, dict.fromkeys(rows, table), left_out, ""))
    if not words:
        raise UserError(f"the class names of {splits.source} cannot be listed, as one has a line break")
    root = f"data.root={quoted(str((folder / 'lists').resolve()))}"
    lists = [f"data.{split}={split}.csv" for split in rows]
    return ["data=csv", root, *lists, *(word for word in words if word.startswith("data.reader."))]


def training_command(folder: Path, words: Sequence[str]) -> list[str]:
    """Returns the command that trains a run, or goes on with it."""
    out = f"hydra.run.dir={quoted(str(folder.resolve()))}"
    return [sys.executable, "-m", "vivit_train.tools.train", *words, out, "resume=auto"]


def probe_command(folder: Path, words: Sequence[str]) -> list[str]:
    """Returns the command that probes a run. What an interrupted one has left is deleted, except for features."""
    if not (folder / "metrics.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
    group = str((folder.parents[1] / GROUPS).resolve())
    return [
        *(sys.executable, "-m", "vivit_train.tools.cli", "probe", *words),
        *("--out", str(folder.resolve()), "--group", group),
    ]


def run(job: Job, folder: Path, command: Sequence[str]) -> None:
    """Runs a training or a probe in a process of its own, and reads its result. A finished run is only read.

    Raises:
        KeyboardInterrupt: A signal stopped the run; the same command goes on with it.
    """
    results = folder / "predictions.csv"
    if not (folder / "metrics.json").is_file():
        environment = os.environ | {"PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        if done.returncode:
            _, _, message = done.stderr.partition("error: ")
            job.failure = printable(f"failed: {message.partition(chr(10))[0] or f'exit code {done.returncode}'}")
            return
    rows = read_records(results)
    job.right = {row["id"]: row["label"] == row["prediction"] for row in rows}


def summarize(
    out: Path, jobs: Sequence[Job], table: ClipTable, groups: Sequence[str], classes: int
) -> dict[str, Any]:
    """Writes runs.csv and summary.json, logs the result, and returns the contents of summary.json.

    Raises:
        UserError: Runs have failed.
    """
    with replacing(out / "runs.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "seed", "n", "top1", "note"])
        for job in jobs:
            writer.writerow([job.fold, job.seed, len(job.right), job.top1 if job.right else "", job.failure])
    if failed := [job for job in jobs if job.failure]:
        raise UserError(
            f"{len(failed)} of {plural(len(jobs), 'run')} failed, the first is fold {failed[0].fold}, seed "
            f"{failed[0].seed}: {failed[0].failure}. The same command runs them again"
        )
    by_seed: dict[int, list[bool]] = defaultdict(list)
    hits: dict[str, list[bool]] = defaultdict(list)
    for job in jobs:
        by_seed[job.seed] += job.right.values()
        for clip, right in job.right.items():
            hits[clip].append(right)
    seeds = [statistics.fmean(right) for right in by_seed.values()]
    group_of = dict(zip(table.paths.tolist(), groups, strict=True))
    right_N = np.array([statistics.fmean(right) for right in hits.values()])
    # The clips of a group are alike, so groups are drawn, not clips.
    low, high = bootstrap(
        lambda n: (n * right_N).sum() / n.sum(), np.array([group_of[clip] for clip in hits])
    ).tolist()
    summary = {
        "top1": statistics.fmean(seeds),
        "interval_95": [low, high],
        "n": len(hits),
        "groups": len(set(groups)),
        "folds": max(job.fold for job in jobs),
        "top1_by_seed": seeds,
        "chance": 1 / classes,
    }
    with replacing(out / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    spread = f", by seed {', '.join(f'{seed:.3f}' for seed in seeds)}" if len(seeds) > 1 else ""
    log.info(
        f"top-1 {summary['top1']:.3f} ({len(hits)} clips, 95 % CI {low:.3f} to {high:.3f} over groups{spread}); "
        f"chance {1 / classes:.3f}"
    )
    return summary
