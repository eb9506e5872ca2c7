"""The entry points train(cfg) and evaluate(cfg), which the scripts and tests call with a configuration."""

import gc
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from vivit_train.build import build_data, build_module, build_trainer, init_weights
from vivit_train.config import choice_problems, derive, validate, with_values
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.data.digest import check_unchanged
from vivit_train.recipe import Recipe, read_recipe
from vivit_train.training.callbacks import planned_steps
from vivit_train.training.checkpoint import Metadata, build_net, load_checkpoint, load_weights, restore_net
from vivit_train.training.evaluation import parse_views, score_task
from vivit_train.training.failures import missing_checkpoint, translate_compile_errors, translate_out_of_memory
from vivit_train.training.module import VideoClassifier
from vivit_train.training.resume import (
    check_resumable,
    newest_checkpoint,
    translate_resume_errors,
)
from vivit_train.training.targets import DATA, build, resolve_target
from vivit_train.utils.arguments import check_arguments, shown
from vivit_train.utils.distributed import translate_rank_errors
from vivit_train.utils.errors import OutOfMemoryError, UserError
from vivit_train.utils.lock import lock_folder
from vivit_train.utils.logs import add_terminal_handler
from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Trains a model as conf/train.yaml describes, evaluates the best checkpoint, and returns its val/score.

    Writes these files to `cfg.run_dir`: recipe_differences.txt, checkpoints/{best,last}.ckpt, metrics.csv,
    curves.png, contact_sheet.png, metrics.json, predictions.csv, confusion.png (for multi-label data,
    average_precision.png), and, if there are bad videos, bad_videos.csv.

    Raises:
        UserError: An error that the user can fix.
    """
    add_terminal_handler()
    quiet_lightning()
    if is_first_rank():
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        lock_folder(cfg.run_dir)
    recipe = read_recipe()
    validate(cfg, recipe)
    while True:
        try:
            return train_once(derive(cfg, recipe), recipe)
        except OutOfMemoryError as error:
            if error.micro_batch_size is None or not cfg.auto_micro_batch_size:
                raise
            log.info(f"{error}\nauto_micro_batch_size: retrying with this value\n")
            cfg = with_values(cfg, micro_batch_size=error.micro_batch_size)
        gc.collect()  # The error is gone here, so the objects in its traceback can be freed.
        torch.cuda.empty_cache()


def train_once(cfg: DictConfig, recipe: Recipe | None) -> float:
    """Runs `train` once with a configuration from `derive`.

    It depends only on its arguments, so that it can be retried.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    run_dir = Path(cfg.run_dir)
    data = build_data(cfg)
    log.info(data.splits.summary())
    if notice := data.flip_notice():
        log.info(f"note     {notice}")
    differences = (
        recipe.table(cfg) if recipe else "recipe: not composed by Hydra, so there is no recipe to compare with"
    )
    log.info(differences)
    rank_zero_only((run_dir / "recipe_differences.txt").write_text)(differences + "\n", encoding="utf-8")
    classes, multi_label = (
        {head: list(names) for head, names in data.splits.classes.items()},
        data.splits.multi_label,
    )
    net = build_net(cfg.model, classes)
    mean, std = init_weights(net, cfg, run_dir, classes, multi_label)
    ckpt_path, first_step = resumed_step(cfg, data, run_dir)
    trainer = build_trainer(cfg, first_step)
    metadata = Metadata(OmegaConf.to_container(cfg), classes, mean, std, multi_label)  # type: ignore[arg-type]
    task = build_module(cfg, net, metadata, data.steps_per_epoch)
    log.info(plan(cfg, task, data, trainer))
    try:
        fit(trainer, task, data, ckpt_path)
        score_best(cfg, metadata, data, trainer)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    finally:
        if "wandb" in sys.modules:  # A retry with a smaller micro-batch is a new wandb run.
            sys.modules["wandb"].finish()
    kept = kept_checkpoint(trainer)
    return float("nan") if kept is None or kept.best_model_score is None else float(kept.best_model_score)


def fit(trainer: L.Trainer, task: VideoClassifier, data: VideoDataModule, ckpt_path: str | None) -> None:
    """Trains, from a checkpoint if there is one, and reports the unreadable videos."""
    with (
        data.translate_worker_errors(),
        translate_rank_errors(),
        translate_out_of_memory(data, trainer),
        translate_compile_errors(),
        translate_resume_errors(trainer, ckpt_path),
    ):
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    if bad := data.bad_videos.known["train"]:
        log.info(
            f"{plural(len(bad), 'training video')} could not be read and were replaced with others: "
            f"{data.bad_videos.file}"
        )


def score_best(cfg: DictConfig, metadata: Metadata, data: VideoDataModule, trainer: L.Trainer) -> None:
    """Evaluates the best checkpoint of a run on its test split, or on its validation split if there is none.

    Raises:
        UserError: There is no best checkpoint.
    """
    kept = kept_checkpoint(trainer)
    # There is no best checkpoint without validation or with callbacks.checkpoint=null.
    best = (kept and kept.best_model_path) or f"{cfg.run_dir}/checkpoints/last.ckpt"
    best = trainer.strategy.broadcast(best)  # Rank 0 wrote it.
    if not Path(best).is_file():
        raise UserError(missing_checkpoint(trainer, best))
    log.info(f"\nbest checkpoint: {best}")
    node = metadata.config["model"]
    net = build_net(node | ({"compile": False} if "compile" in node else {}), metadata.classes)
    load_weights(net, load_checkpoint(best)[1], best)
    task = VideoClassifier(net, metadata.classes, metadata.mean, metadata.std, multi_label=metadata.multi_label)
    score_task(task, best, data, trainer, Path(cfg.run_dir))


def kept_checkpoint(trainer: L.Trainer) -> ModelCheckpoint | None:
    """Returns the callback that keeps the best checkpoint, or None."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)


def resumed_step(cfg: DictConfig, data: VideoDataModule, run_dir: Path) -> tuple[str | None, int | None]:
    """Returns the checkpoint that the run resumes from and its step; both are None for a new run."""
    ckpt_path = checkpoint_to_resume(cfg)
    if ckpt_path is None:
        return None, None
    step, state = check_resumable(Path(ckpt_path))
    log.info(f"Resuming from {ckpt_path} (step {step})")
    if notice := check_unchanged(data, state, ckpt_path, run_dir / "data_changes.txt", step):
        log.info(notice)
    return ckpt_path, step


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluates a checkpoint as conf/eval.yaml describes.

    Model, labels, and preprocessing come from the checkpoint. Writes metrics.json, predictions.csv, and
    confusion.png (for multi-label data, average_precision.png) to `cfg.run_dir`, and returns the contents of
    metrics.json.

    Raises:
        UserError: An error that the user can fix.
    """
    add_terminal_handler()
    quiet_lightning()
    if is_first_rank():
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        lock_folder(cfg.run_dir)
    if problems := choice_problems(cfg, null_is_as_trained=True):
        raise UserError("; ".join(problems))
    metadata, weights = load_checkpoint(cfg.ckpt_path)
    net = restore_net(metadata, weights, cfg.ckpt_path, cfg.trusted)
    data = evaluation_data(metadata, cfg)
    clip = (3, data.sampling.frames, data.crop, data.crop)
    if net.input_shape != clip:
        raise UserError(
            f"{cfg.ckpt_path}: the model takes clips of {net.input_shape[1:]} (frames, height, width), but the "
            f"data has {clip[1:]}: data.frames and data.crop must be the same as in training"
        )
    check_splits(data, metadata, cfg)
    if metadata.multi_label != data.splits.multi_label:
        kinds = ("one class per video", "any number of classes per video")
        theirs, here = kinds[metadata.multi_label], kinds[data.splits.multi_label]
        raise UserError(
            f"{cfg.ckpt_path} was trained to predict {theirs}, but data={data.name} has {here}: only data=csv "
            "supports both, depending on data.reader.multi_label"
        )
    log.info(data.splits.summary())
    task = VideoClassifier(net, metadata.classes, metadata.mean, metadata.std, multi_label=metadata.multi_label)
    trainer, out = build_trainer(cfg), Path(cfg.run_dir)
    return score_task(task, cfg.ckpt_path, data, trainer, out)


def checkpoint_to_resume(cfg: DictConfig) -> str | None:
    """Returns the checkpoint that `ckpt_path` or `resume` refers to, or None to start a new run.

    Raises:
        UserError: ckpt_path=last is set, but there is no checkpoint.
    """
    if cfg.ckpt_path != "last" and cfg.resume != "auto":
        return cfg.ckpt_path
    folder = Path(cfg.run_dir) / "checkpoints"
    newest = newest_checkpoint(folder)
    if newest is None and cfg.resume != "auto":
        raise UserError(
            f"ckpt_path=last: no checkpoint in {folder}; set hydra.run.dir=DIR to the folder of the run to resume"
        )
    if newest is None:
        log.info(f"no checkpoint in {folder} yet: starting a new run")
    return str(newest) if newest else None


# These keys determine the videos and their labels.
SOURCE = ("name", "root", "reader", "train", "val", "test")
JOB = ("micro_batch_size", "seed")  # These keys are outside of the data node.


def given_data(metadata: Metadata, cfg: DictConfig) -> dict[str, Any]:
    """Returns the data settings from the command line; null means to use the setting of the checkpoint.

    `data=NAME` selects another source of videos and labels. The clip settings (frames, stride, crop, and so on)
    stay the same as in training unless they are set too.
    """
    clip = ("frames", "stride", "fps", "sampling", "padding", "short_side", "crop", "resize_mode", "square_pixels")
    keys = (*SOURCE, *clip, "num_workers", "decoder")
    typed: dict[str, Any] = {key: cfg.data[key] for key in keys}
    given = {key: value for key, value in typed.items() if value is not None or (cfg.data.name and key in SOURCE)}
    if given.get("reader") is not None:
        given["reader"] = OmegaConf.to_container(given["reader"], resolve=True)
        if metadata.multi_label and "multi_label" in given["reader"]:
            given["reader"]["multi_label"] = True  # Multi-label follows the model.
        given["reader"] = instantiate(given["reader"], _convert_="all")
    if cfg.data.name is not None:  # The labels of other data are mapped to the model's classes.
        given["reader"] = partial(given["reader"], classes=metadata.classes.get("", metadata.classes))
        given |= {"train": None, "val": cfg.data.test or cfg.data.val, "test": None}
    given["allow_private_urls"] = bool(cfg.data.allow_private_urls)  # This never comes from a checkpoint.
    given |= {key: cfg[key] for key in JOB if cfg[key] is not None}
    return given | {"bad_videos_file": f"{cfg.run_dir}/bad_videos.csv"}


def evaluation_data(metadata: Metadata, cfg: DictConfig) -> VideoDataModule:
    """Returns the data of the checkpoint with the changes from the command line.

    Raises:
        UserError: The data settings in the checkpoint are invalid.
    """
    given, stored = given_data(metadata, cfg), metadata.config.get("data")
    where = f"{cfg.ckpt_path}: data"
    if not isinstance(stored, Mapping):
        raise UserError(f"{where} is missing or is not a mapping of settings")
    known = VideoDataModule.__init__
    check_arguments(VideoDataModule, given, "data", also=tuple(inspect.signature(known).parameters))
    node = {key: metadata.config[key] for key in JOB if key in metadata.config} | dict(stored)
    node = {key: value for key, value in node.items() if key not in given}
    if "." in str(node.get("decoder", "")):
        resolve_target(node["decoder"], set(), f"{where}.decoder", cfg.trusted)
    protocol = EvalProtocol(cfg.eval.split, parse_views(cfg.eval.views), cfg.eval.order)
    data: VideoDataModule = build(node, DATA, where, cfg.trusted, **given, protocol=protocol)
    return data


def check_splits(data: VideoDataModule, metadata: Metadata, cfg: DictConfig) -> None:
    """Reads the annotations and compares their classes with those of the model.

    The error message of a reader quotes the files that it has read. If only the checkpoint names these files, they
    could be any files on this machine, so none of their content is shown.

    Raises:
        UserError: The annotations cannot be read or have other classes.
    """
    files = [name for name in data.annotations.values() if name is not None]
    inside = all(not os.path.isabs(name) and ".." not in Path(name).parts for name in files)
    if cfg.data.name is not None or (cfg.data.root is not None and inside):
        _ = data.splits
        return
    advice = f"set data.root=DIR, or data=NAME data.root=DIR, to the data for {cfg.ckpt_path}"
    if not Path(data.root).expanduser().is_dir():
        raise UserError(f"the data folder of the checkpoint, {shown(data.root)}, does not exist: {advice}")
    try:
        classes = {head: list(names) for head, names in data.splits.classes.items()}
    except UserError:
        raise UserError(
            f"the data that the checkpoint names, in {shown(data.root)}, cannot be read as it was in training: "
            f"{advice}; the message then shows what is wrong with it"
        ) from None
    if classes != metadata.classes:
        raise UserError(
            f"the data that the checkpoint names, in {shown(data.root)}, no longer has the classes of the model: "
            f"{advice}; its labels are then mapped to the model's classes"
        )


def plan(cfg: DictConfig, task: VideoClassifier, data: VideoDataModule, trainer: L.Trainer) -> str:
    """Returns a few lines that describe the run; callbacks.report adds measurements of the first steps."""
    net = task.net
    t, rows, columns = net.grid
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    steps = planned_steps(data.steps_per_epoch * trainer.max_epochs, trainer)  # type: ignore[operator]
    lines = [
        f"model: {net.model}, {parameters:.2f} M parameters, {data.sampling.frames} frames of "
        f"{data.crop}x{data.crop}, {t}x{rows}x{columns} tokens, "
        f"{task.forward_flops / 1e9:.4g} GFLOPs per clip (forward)",
        f"batch: {data.global_batch_size} = {plural(data.micro_batch_size, 'clip')} x "
        f"{plural(trainer.world_size, 'device')} x {trainer.accumulate_grad_batches} accumulated; "
        f"{plural(cfg.trainer.max_epochs, 'epoch')}, {plural(steps, 'step')}, {steps * data.global_batch_size} "
        f"clips; "
        f"precision {trainer.precision}, {trainer.strategy.root_device}",
        f"run folder: {cfg.run_dir}",
    ]
    if cfg.model.get("compile"):
        lines.append("the first training and validation steps compile the model, which takes minutes")
    return "\n".join(lines)


def quiet_lightning() -> None:
    """Silences Lightning's device banners, and its tips about workers, which the `data` node sets."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
