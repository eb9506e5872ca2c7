"""Turns the predictions of a model on a split into metrics, CSV files, and plots."""

import csv
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from vivit_train.data.annotations.table import SEPARATOR
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.training.checkpoint import load_checkpoint, restore_net
from vivit_train.training.metrics import Rows, average_precisions
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.distributed import translate_rank_errors
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import replacing
from vivit_train.utils.plots import Ids, average_precision_bars, confusion
from vivit_train.utils.text import csv_cell, file_stem, plural, printable

log = logging.getLogger(__name__)


def load_model(ckpt_path: str | Path, *, trusted: Sequence[str] = ()) -> VideoClassifier:
    """Returns the model of a checkpoint of vivit-train, on the CPU and in evaluation mode.

    Its `classes` are the class names by head. Calling it with clips gives logits; see `VideoClassifier.forward`.

    Args:
        ckpt_path: The checkpoint. Nothing in it is executed.
        trusted: Your own packages whose classes the checkpoint may name.

    Raises:
        UserError: The file is not a checkpoint, or names a class outside of vivit_train and `trusted`.
    """
    metadata, weights = load_checkpoint(ckpt_path)
    net = restore_net(metadata, weights, ckpt_path, trusted)
    multi_label = metadata.multi_label
    return VideoClassifier(net, metadata.classes, metadata.mean, metadata.std, multi_label=multi_label).eval()


def score_task(
    task: VideoClassifier,
    ckpt_path: str,
    data: VideoDataModule,
    trainer: L.Trainer,
    out: Path,
    protocol: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluates the model on the data's test split and returns the contents of metrics.json.

    Args:
        task: The LightningModule with the weights of the checkpoint.
        ckpt_path: The path of the checkpoint, which is recorded in metrics.json.
        data: The data module, whose `protocol` defines the split, the views and the order of the frames.
        trainer: The trainer that runs the evaluation.
        out: The output folder for metrics.json, predictions.csv, and the plots.
        protocol: For the weights of others, each part of the protocol with where it is from.
    """
    with data.translate_worker_errors(), translate_rank_errors():
        trainer.test(task, datamodule=data, verbose=False)

    rows, scores = task.test_rows, task.scores(task.test_rows)
    measured = {
        f"test/{name}@{data.protocol}": value
        for name, value in scores.items()
        if name.endswith(("top1", "top5", "map"))
    }
    results: dict[str, Any] = dict(measured)
    results |= {"classes": scores["map_classes"]} if task.multi_label else {}
    results |= {
        "split": data.test_split,
        "n": scores["n"],
        "failed": scores["failed"],
        "checkpoint": str(ckpt_path),
    }
    note = "; the best checkpoint is chosen on these very clips" if data.chosen_on_test_clips else ""
    results |= {"checkpoint_chosen_on_these_clips": True} if note else {}
    results |= {"protocol": dict(protocol)} if protocol else {}
    if trainer.is_global_zero:
        with replacing(out / "metrics.json") as part:
            part.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        write_predictions(out / "predictions.csv", rows, data, task.classes)
        for logger in trainer.loggers:
            logger.log_metrics(measured, step=trainer.global_step)
        draw_result(out, rows, task, scores, f"{data.test_split}, {data.protocol}")
    numbers = [f"{printable(name)} {value:.4f}" for name, value in measured.items()]
    if task.multi_label:
        numbers.append(f"over {scores['map_classes']} of {task.heads['']} classes")
    log.info(
        "  ".join([*numbers, f"n {scores['n']}", f"failed {scores['failed']}", f"({data.test_split} split{note})"])
    )
    if protocol:
        parts = [f"{name} {value}" for name, value in protocol.items()]
        log.info(printable(f"protocol: {data.protocol} views; {'; '.join(parts)}"))
    if scores["failed"]:
        log.info(
            f"{plural(int(scores['failed']), 'video')} could not be read and counted as wrong: "
            f"{data.bad_videos.file}"
        )
    log.info(f"written: {out}/metrics.json, predictions.csv, {', '.join(pictures(task))}")
    return results


def pictures(task: VideoClassifier) -> list[str]:
    """Returns the file names of the plots of a result."""
    if task.multi_label:
        return ["average_precision.png"]
    return [f"confusion_{file_stem(head)}.png" if head else "confusion.png" for head in task.heads]


def draw_result(out: Path, rows: Rows, task: VideoClassifier, scores: Mapping[str, float], protocol: str) -> None:
    """Draws the confusion matrices, or the average precisions of a multi-label task."""
    if task.multi_label:
        title = f"{protocol}: mAP {scores['map']:.3f} of {scores['n']} videos, {scores['map_classes']} classes"
        has_NK = rows["label"]
        (names,), (file,) = task.classes.values(), pictures(task)
        average_precision_bars(out / file, average_precisions(rows), has_NK.mean(0), names, title)
        return
    by_head = predictions_by_head(rows, task.heads)
    for file, (head, label_N, prediction_N) in zip(pictures(task), by_head, strict=True):
        top1 = scores[f"{head}_top1" if head else "top1"]
        title = f"{protocol}: {head} top-1 {top1:.3f} of {scores['n']} videos"
        confusion(out / file, label_N, prediction_N, task.classes[head], title)


def parse_views(views: str) -> tuple[int, int]:
    """Parses a number of temporal clips x spatial crops, such as "4x3".

    Raises:
        UserError: The text has another form.
    """
    match = re.fullmatch(r"([1-9]\d*)x([13])", str(views))
    if not match:
        raise UserError(f"eval.views={views}: expected temporal clips x spatial crops (1 or 3), such as 4x3")
    return int(match[1]), int(match[2])


def predictions_by_head(rows: Rows, heads: Mapping[str, int]) -> Iterator[tuple[str, Ids, Ids]]:
    """Yields the name of each head with its labels and its predictions.

    Labels are class ids [N]; predictions are the class ids [N] with the largest logits.
    """
    ends = np.cumsum(list(heads.values()))[:-1]
    for i, (head, logits_NK) in enumerate(zip(heads, np.split(rows["logits"], ends, axis=1), strict=True)):
        yield head, rows["label"][:, i], logits_NK.argmax(1)


def answers(rows: Rows, classes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields the name of each head with its true and its predicted class names, one entry per video.

    For multi-label data, an entry is a list such as "a;b", and classes with a probability above 0.5 are predicted.
    """
    if rows["label"].dtype == np.bool:
        (names,) = classes.values()
        label_N, prediction_N = (
            [SEPARATOR.join(compress(names, has_K)) for has_K in has_NK]
            for has_NK in (rows["label"], rows["logits"] > 0)
        )
        yield "", label_N, prediction_N
        return
    for head, ids_N, best_N in predictions_by_head(rows, {head: len(names) for head, names in classes.items()}):
        yield head, [classes[head][k] for k in ids_N], [classes[head][k] for k in best_N]


def write_predictions(path: Path, rows: Rows, data: VideoDataModule, classes: Mapping[str, Sequence[str]]) -> None:
    """Writes predictions.csv with one row per video.

    The columns are the id, the true and the predicted class, whether the video failed, and the logit of each
    class. Names are escaped with `csv_cell`. With several heads, the columns include the head: "verb_label",
    "logit:verb:take".
    """
    ids = data.manifest_of(data.test_split).ids
    header, columns = ["id"], [[ids[index] for index in rows["index"]]]
    for head, label_N, prediction_N in answers(rows, classes):
        header += [f"{head}_label", f"{head}_prediction"] if head else ["label", "prediction"]
        columns += [label_N, ["" if bad else k for k, bad in zip(prediction_N, rows["failed"], strict=True)]]
    header += ["failed"]
    header += [f"logit:{head}:{name}" if head else f"logit:{name}" for head in classes for name in classes[head]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(csv_cell, header))
        for first, failed, logits_K in zip(
            zip(*columns, strict=True), rows["failed"], rows["logits"], strict=True
        ):
            writer.writerow(
                [*map(csv_cell, first), int(failed), *("" if failed else f"{value:.6g}" for value in logits_K)]
            )
