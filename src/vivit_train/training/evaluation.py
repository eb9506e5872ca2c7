"""Turns the predictions of a model on a split into metrics, CSV files, and plots."""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.training.answers import write_predictions
from vivit_train.training.checkpoint import load_checkpoint, restore_net
from vivit_train.training.loggers import log_image
from vivit_train.training.module import VideoClassifier
from vivit_train.training.result import TITLES, Result
from vivit_train.utils.arguments import VIEWS
from vivit_train.utils.distributed import translate_rank_errors
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import replacing
from vivit_train.utils.plots import average_precision_bars, confusion
from vivit_train.utils.text import file_stem, plural, printable
from vivit_train.utils.version import package_version

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
    *,
    report: bool = False,
    hardest_first: bool = False,
) -> dict[str, Any]:
    """Evaluates the model on the data's test split and returns the contents of metrics.json.

    Args:
        task: The LightningModule with the weights of the checkpoint.
        ckpt_path: The path of the checkpoint, which is recorded in metrics.json.
        data: The data module, whose `protocol` defines the split, the views and the order of the frames.
        trainer: The trainer that runs the evaluation.
        out: The output folder for metrics.json, predictions.csv, and the plots.
        protocol: For the weights of others, each part of the protocol with where it is from.
        report: Whether to write report.html, and the plots.
        hardest_first: Whether predictions.csv begins with the videos that are most wrong.
    """
    started_s = time.monotonic()
    with data.translate_worker_errors(), translate_rank_errors():
        trainer.test(task, datamodule=data, verbose=False)
    seconds = time.monotonic() - started_s

    manifest, index_N = data.manifest_of(data.test_split), task.test_rows["index"]
    result = Result(task.test_rows, task.classes, manifest.paths[index_N])
    contents = result_contents(result, data, ckpt_path, seconds, protocol)
    if trainer.is_global_zero:
        model = f"{task.net.model}, {sum(p.numel() for p in task.net.parameters()) / 1e6:.2f} M parameters"
        files = write_files(out, result, contents, data, model if report else None, hardest_first)
        for logger in trainer.loggers:
            numbers = {name: value for name, value in contents.items() if "@" in name and value is not None}
            logger.log_metrics(numbers, step=trainer.global_step)
            for file in files:
                if file.endswith(".png"):
                    log_image(logger, f"test/{Path(file).stem}", out / file, trainer.global_step)
        log_result(result, contents, data)
        log.info(f"written: {out}/{', '.join(files)}")
    return contents


def result_contents(
    result: Result,
    data: VideoDataModule,
    ckpt_path: str | Path,
    seconds: float,
    protocol: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the contents of metrics.json.

    Args:
        result: The result on the data's test split.
        data: The data module, whose `protocol` says how clips were viewed.
        ckpt_path: The path of the checkpoint.
        seconds: The time that the evaluation took.
        protocol: For the weights of others, each part of the protocol with where it is from.
    """
    contents = result.contents(str(data.protocol)) | {
        "split": data.test_split,
        "views": "{}x{}".format(*data.protocol.views),
        "order": data.protocol.order,
        "checkpoint": str(ckpt_path),
        "seconds": round(seconds, 3),
        **package_version(),
    }
    if data.chosen_on_test_clips:
        contents["checkpoint_chosen_on_these_clips"] = True
    return contents | ({"protocol": dict(protocol)} if protocol else {})


def log_result(result: Result, contents: Mapping[str, Any], data: VideoDataModule) -> None:
    """Logs the scores and what a reader must know about them."""
    log.info("\n".join(result.lines(data.test_split, str(data.protocol))))
    if contents.get("checkpoint_chosen_on_these_clips"):
        log.info("note     the best checkpoint is chosen on these very clips, so this result is optimistic")
    if parts := [f"{name} {value}" for name, value in contents.get("protocol", {}).items()]:
        log.info(printable(f"protocol: {data.protocol} views; {'; '.join(parts)}"))
    if failed := contents["failed"]:
        log.info(f"{plural(failed, 'video')} could not be read and counted as wrong: {data.bad_videos.file}")


def write_files(
    out: Path,
    result: Result,
    contents: Mapping[str, Any],
    data: VideoDataModule,
    model: str | None,
    hardest_first: bool,
) -> list[str]:
    """Writes the files of a result and returns their names.

    Args:
        out: The output folder.
        result: The result.
        contents: The contents of metrics.json.
        data: The data module.
        model: The model in a few words, for report.html; None leaves the page and the plots out.
        hardest_first: Whether predictions.csv begins with the videos that are most wrong.
    """
    with replacing(out / "metrics.json") as part:
        part.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    ids = data.manifest_of(data.test_split).ids[result.rows["index"]].tolist()
    write_predictions(out / "predictions.csv", result.rows, ids, result.heads, hardest_first)
    files = ["metrics.json", "predictions.csv"]
    if model is None:
        return files
    files += draw_result(out, result, f"{data.test_split}, {data.protocol}")
    from vivit_train.training.report import write_report  # Templates and pictures take time to import.

    with replacing(out / "report.html") as part:
        write_report(part, result, contents, data, model)
    return [*files, "report.html"]


def draw_result(out: Path, result: Result, protocol: str) -> list[str]:
    """Draws the confusion matrices, or for multi-label data the average precisions, and returns the file names."""
    files = []
    for head, scores in zip(result.heads, result.by_class, strict=True):
        name = "map" if result.multi_label else f"{head.prefix}top1"
        title = f"{head.head} {TITLES[name.rpartition('_')[2]]} {result.score_text(name)}; {protocol}".strip()
        if result.multi_label:
            files.append("average_precision.png")
            average_precision_bars(out / files[-1], scores.ap, head.has.mean(0), head.classes, title)
        else:
            files.append(f"confusion_{file_stem(head.head)}.png" if head.head else "confusion.png")
            confusion(out / files[-1], head.labels, head.predictions, head.classes, title)
    return files


def parse_views(views: str, name: str = "views=") -> tuple[int, int]:
    """Parses a number of temporal clips x spatial crops, such as "4x3".

    Args:
        views: The text.
        name: What the message calls it.

    Raises:
        UserError: The text has another form.
    """
    pattern, form = VIEWS
    if not re.fullmatch(pattern, str(views)):
        raise UserError(f"{name}{views}: must be {form}")
    clips, crops = str(views).split("x")
    return int(clips), int(crops)
