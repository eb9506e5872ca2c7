"""The entry points train(cfg) and evaluate(cfg), which the scripts and tests call with a configuration."""

import gc
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from vivit_train.build import build_data, build_module, build_trainer, init_weights, precision, resolve_clip
from vivit_train.changes import resumed_from, write_record
from vivit_train.config import derive, validate, validate_evaluation
from vivit_train.data.annotations.table import Splits
from vivit_train.data.clip_size import coverage, sample_lengths
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.look_alikes import across_splits
from vivit_train.effects import check_effects_in_data, check_warmup
from vivit_train.finetune import resolve_training
from vivit_train.models.tuning import set_trained
from vivit_train.parts import check_losses, check_monitors, check_schedule
from vivit_train.recipe import Recipe, read_recipe, typed_in_job, without_foreign_arguments
from vivit_train.released import read_evaluated
from vivit_train.stored_data import check_splits, evaluation_data, for_clip
from vivit_train.training.callbacks import planned_steps
from vivit_train.training.checkpoint import (
    Metadata,
    build_net,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    restore_net,
    uncompiled,
)
from vivit_train.training.estimate import duration, estimate_seconds, faster
from vivit_train.training.evaluation import score_task
from vivit_train.training.failures import (
    missing_checkpoint,
    translate_compile_errors,
    translate_lightning_errors,
    translate_out_of_memory,
)
from vivit_train.training.frame_order import compare_shuffled
from vivit_train.training.module import VideoClassifier
from vivit_train.training.pretraining import MaskedPretraining
from vivit_train.training.reconstruction import show_reconstructions
from vivit_train.training.resume import translate_resume_errors
from vivit_train.training.task import VideoTask
from vivit_train.utils.arguments import conforms
from vivit_train.utils.conf import with_values
from vivit_train.utils.distributed import translate_rank_errors
from vivit_train.utils.errors import OutOfMemoryError, UserError
from vivit_train.utils.logs import add_terminal_handler
from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.run_folder import RunFolder
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
HOUR = 3600.0


def train(cfg: DictConfig, folder: RunFolder | None = None) -> float:
    """Trains a model as conf/train.yaml describes, evaluates the best checkpoint, and returns its val/score.

    Writes these files to `cfg.run_dir`: recipe_differences.txt, checkpoints/{best,last}.ckpt, metrics.csv,
    curves.png, contact_sheet.png, metrics.json, predictions.csv, report.html, confusion.png (for multi-label
    data, average_precision.png), and, if there are bad videos, bad_videos.csv.

    Args:
        cfg: The configuration.
        folder: `cfg.run_dir`, if the caller has checked and locked it.

    Raises:
        UserError: An error that the user can fix. The folder holds an earlier run that this one does not resume.
    """
    add_terminal_handler()
    quiet_lightning()
    if folder is None:
        with RunFolder(cfg.run_dir, cfg) as checked:
            return train(cfg, checked)
    recipe = read_recipe()
    if recipe:
        cfg = without_foreign_arguments(cfg, recipe.typed)
    validate(cfg, recipe.typed if recipe else ())
    cfg, recipe, splits = resolve_training(cfg, recipe)
    validate(cfg, recipe.typed if recipe else ())  # The recipe may be another one now.
    cfg, splits = resolve_clip(cfg, splits)
    while True:
        try:
            return train_once(derive(cfg, recipe), recipe, splits, folder)
        except OutOfMemoryError as error:
            if error.micro_batch_size is None or not cfg.auto_micro_batch_size:
                raise
            log.info(f"{error}\nauto_micro_batch_size: retrying with this value\n")
            cfg = with_values(cfg, micro_batch_size=error.micro_batch_size)
        gc.collect()  # The error is gone here, so the objects in its traceback can be freed.
        torch.cuda.empty_cache()


def train_once(cfg: DictConfig, recipe: Recipe | None, splits: Splits | None, folder: RunFolder) -> float:
    """Runs `train` once with a configuration from `derive`, and with the annotations if they are already read.

    It depends only on its arguments, so that it can be retried.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    run_dir = Path(cfg.run_dir)
    data = build_data(cfg, splits=splits)
    log.info(data.splits.summary())
    if notice := data.flip_notice():
        log.info(f"note     {notice}")
    differences = (
        recipe.table(cfg) if recipe else "recipe: not composed by Hydra, so there is no recipe to compare with"
    )
    if not (chosen := precision(cfg)).startswith(("32", "64")):
        differences += f"\nprecision is {chosen}; the authors trained in float32 (trainer.precision=32-true)"
    log.info(differences)
    check_effects_in_data(recipe.typed if recipe else (), cfg, data.splits)
    check_schedule(cfg, data.steps_per_epoch)
    check_warmup(recipe.typed if recipe else (), cfg, data.steps_per_epoch)
    if cfg.loss is not None:
        check_losses(cfg, data.splits.multi_label, data.splits.class_counts)
    resumed = resumed_from(cfg, data, run_dir)
    # Looking takes a second per 100 videos, and has been done where a run is resumed.
    if not resumed and cfg.eval.report and (notice := alike_notice(data)):
        log.info(f"note     {notice}")
    write_record(run_dir, differences, resumed)
    if resumed and resumed.is_complete:
        log.info(
            f"training is complete after {plural(cfg.trainer.max_epochs, 'epoch')}, so nothing is trained. To "
            f"train longer, raise trainer.max_epochs; to evaluate, set ckpt_path={run_dir} for eval.py"
        )
        return best_score(run_dir)
    classes, multi_label = data.splits.classes, data.splits.multi_label
    names = {head: list(of_head) for head, of_head in classes.items()}
    net = build_net(cfg.model, names)
    if resumed:
        mean, std = resumed.metadata.mean, resumed.metadata.std
        if cfg.cache:  # The stored features are those of these weights.
            load_weights(net, load_checkpoint(resumed.ckpt_path)[1], resumed.ckpt_path)
    else:
        mean, std = init_weights(net, cfg.init, cfg.model.get("size"), run_dir, names, multi_label)
    set_trained(net, cfg.train)
    trainer = build_trainer(cfg, resumed.step if resumed else None)
    config: Any = OmegaConf.to_container(cfg)
    metadata = Metadata(config, names, mean, std, multi_label, data.splits.class_counts)
    task = build_module(cfg, net, metadata, data.steps_per_epoch)
    check_monitors(cfg.get("callbacks"), task)
    log.info(plan(cfg, task, data, trainer))
    folder.begin()
    try:
        with translate_lightning_errors():
            fit(trainer, task, data, resumed.ckpt_path if resumed else None)
            conclude(cfg, task, metadata, data, trainer)
    finally:
        if "wandb" in sys.modules:  # A retry with a smaller micro-batch is a new wandb run.
            sys.modules["wandb"].finish()
    kept = kept_checkpoint(trainer)
    return float("nan") if kept is None or kept.best_model_score is None else float(kept.best_model_score)


def best_score(run_dir: Path) -> float:
    """Returns the val/score of the best checkpoint of a run, or NaN if there is none."""
    file = run_dir / "checkpoints/best.ckpt"
    if not file.is_file():
        return float("nan")
    states: Any = read_checkpoint(file, mmap=True).get("callbacks")
    states = states if conforms(states, dict[str, Any]) else {}
    kept = next((state for name, state in states.items() if name.startswith("ModelCheckpoint")), None)
    score = kept.get("best_model_score") if isinstance(kept, dict) else None
    return float(score) if isinstance(score, torch.Tensor) and score.numel() == 1 else float("nan")


def fit(trainer: L.Trainer, task: VideoTask, data: VideoDataModule, ckpt_path: str | None) -> None:
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


def conclude(
    cfg: DictConfig, task: VideoTask, metadata: Metadata, data: VideoDataModule, trainer: L.Trainer
) -> None:
    """Evaluates the best checkpoint of a run on its test split, or on its validation split if there is none.

    Of a run without labels, it shows what the best checkpoint reconstructs.

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
    if isinstance(task, MaskedPretraining):
        show_reconstructions(task, best, data, trainer, Path(cfg.run_dir), pictures=cfg.eval.report)
        return
    net = build_net(uncompiled(metadata.config["model"]), metadata.classes)
    load_weights(net, load_checkpoint(best)[1], best)
    best_task = VideoClassifier(
        net, metadata.classes, metadata.mean, metadata.std, multi_label=metadata.multi_label
    )
    out, shown = Path(cfg.run_dir), {"report": cfg.eval.report, "hardest_first": cfg.eval.hardest_first}
    score_task(best_task, best, data, trainer, out, **shown)
    if cfg.eval.report:
        compare_shuffled(best_task, data, trainer)


def kept_checkpoint(trainer: L.Trainer) -> ModelCheckpoint | None:
    """Returns the callback that keeps the best checkpoint, or None."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)


def evaluate(cfg: DictConfig, folder: RunFolder | None = None) -> dict[str, Any]:
    """Evaluates a checkpoint, or the weights of others, as conf/eval.yaml describes.

    Model, labels, and preprocessing come from the checkpoint; what the weights of others do not state comes from
    the data. Writes metrics.json, predictions.csv, report.html, and confusion.png (for multi-label data,
    average_precision.png) to `cfg.run_dir`, and returns the contents of metrics.json.

    Args:
        cfg: The configuration.
        folder: `cfg.run_dir`, if the caller has checked and locked it.

    Raises:
        UserError: An error that the user can fix. The folder holds an earlier run.
    """
    add_terminal_handler()
    quiet_lightning()
    if folder is None:
        with RunFolder(cfg.run_dir, cfg) as checked:
            return evaluate(cfg, checked)
    validate_evaluation(cfg, typed_in_job())
    evaluated = read_evaluated(cfg)
    cfg = with_values(cfg, ckpt_path=evaluated.path)
    metadata, weights = evaluated.metadata, evaluated.weights
    net = restore_net(metadata, weights, cfg.ckpt_path, cfg.trusted)
    data = evaluation_data(metadata, cfg)
    if net.input_shape[1:] != (clip := (data.sampling.frames, data.crop, data.crop)):
        net = for_clip(metadata, weights, clip, cfg)
    check_splits(data, metadata, cfg, evaluated.label_advice)
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
    folder.begin()
    return score_task(
        task,
        cfg.ckpt_path,
        data,
        trainer,
        out,
        evaluated.protocol,
        report=cfg.eval.report,
        hardest_first=cfg.eval.hardest_first,
    )


def plan(cfg: DictConfig, task: VideoTask, data: VideoDataModule, trainer: L.Trainer) -> str:
    """Returns a few lines that describe the run; callbacks.report adds measurements of the first steps."""
    net = task.net
    t, rows, columns = net.grid
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6
    part = "" if cfg.train == "all" else f" ({trained:.4g} M of them are trained: train={cfg.train})"
    part += f", from stored features of {plural(cfg.cache_views, 'view')} of each clip" if cfg.cache else ""
    steps = planned_steps(data.steps_per_epoch * trainer.max_epochs, trainer)  # type: ignore[operator]
    lines = [
        f"model: {net.model}, {parameters:.2f} M parameters{part}, {data.sampling.frames} frames of "
        f"{data.crop}x{data.crop}, {t}x{rows}x{columns} tokens, "
        f"{task.forward_flops / 1e9:.4g} GFLOPs per clip (forward)",
        f"batch: {data.global_batch_size} = {plural(data.micro_batch_size, 'clip')} x "
        f"{plural(trainer.world_size, 'device')} x {trainer.accumulate_grad_batches} accumulated; "
        f"{plural(cfg.trainer.max_epochs, 'epoch')}, {plural(steps, 'step')}, {steps * data.global_batch_size} "
        f"clips; precision {trainer.precision}, {trainer.strategy.root_device}",
        *covered_time(data),
        f"run folder: {cfg.run_dir}",
    ]
    compiles = cfg.model.get("compile")
    if not compiles and (seconds := estimate_seconds(task, data, trainer, steps)) is not None:
        size = cfg.model.get("size")
        keys = faster(
            seconds, frames=data.sampling.frames, crop=data.crop, size=size, max_epochs=cfg.trainer.max_epochs
        )
        keys = f"; to take less: {keys}" if seconds > HOUR and keys else ""
        lines.append(f"time: {duration(seconds)} for training, by the speed measured just now{keys}")
    if compiles:
        lines.append("the first training and validation steps compile the model, which takes minutes")
    return "\n".join(lines)


def alike_notice(data: VideoDataModule) -> str:
    """Returns a warning about videos of different splits that look alike, on rank 0, or ""."""
    splits = {name: getattr(data.splits, name) for name in ("train", "val", "test")}
    tables = {name: table for name, table in splits.items() if table is not None and table.spans_s is None}
    return across_splits({name: table.paths.tolist() for name, table in tables.items()}) if is_first_rank() else ""


def covered_time(data: VideoDataModule) -> list[str]:
    """Returns the line of the plan about the time that clips span; nothing if no video can be read."""
    lengths = sample_lengths(data.splits.train, data.video_reader.index_db, data.seed)
    views, _ = data.protocol.views
    return [f"clips: {coverage(data.sampling, views, lengths)} (medians)"] if lengths else []


def quiet_lightning() -> None:
    """Silences Lightning's device banners, and its tips about workers, which the `data` node sets."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
