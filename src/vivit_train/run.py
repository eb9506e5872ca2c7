"""train(cfg) and evaluate(cfg): from a configuration to a result. The scripts and the tests call these two."""

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
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from vivit_train import recipe
from vivit_train.config import check, choice_problems, disable_fused_optimizer
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.digest import check_unchanged
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import initialise
from vivit_train.models.weights.timm_vit import IMAGENET
from vivit_train.training.callbacks import planned_steps
from vivit_train.training.checkpoint import Metadata, build_net, load_checkpoint, load_weights, restore_net
from vivit_train.training.evaluation import score_task
from vivit_train.training.failures import missing_checkpoint, translate_compile_errors, translate_out_of_memory
from vivit_train.training.module import VideoClassifier
from vivit_train.training.resume import (
    AtomicCheckpointIO,
    check_resumable,
    newest_checkpoint,
    translate_resume_errors,
)
from vivit_train.training.targets import DATA, build
from vivit_train.utils.arguments import check_arguments, shown
from vivit_train.utils.distributed import CheckRankConsistency, translate_rank_errors
from vivit_train.utils.errors import OutOfMemoryError, UserError
from vivit_train.utils.lock import lock_folder
from vivit_train.utils.rank import is_first_rank

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Trains as conf/train.yaml says, scores the best checkpoint, and returns its val/score.

    Leaves in `cfg.run_dir`: recipe_differences.txt, checkpoints/{best,last}.ckpt, metrics.csv, curves.png,
    contact_sheet.png, metrics.json, predictions.csv, confusion.png (of several classes per video
    average_precision.png) and, where there were any, bad_videos.csv.

    Raises:
        UserError: whatever the user can mend.
    """
    if is_first_rank():
        lock_folder(cfg.run_dir)
    check(cfg)
    page = recipe.read_page()
    recipe.scale_learning_rate(cfg, page)
    disable_fused_optimizer(cfg)
    while True:
        try:
            return train_once(cfg, page)
        except OutOfMemoryError as error:
            if error.micro_batch is None or not cfg.trainer.auto_micro_batch:
                raise
            log.info(f"{error}\ntrainer.auto_micro_batch: once more so\n")
            cfg.data.micro_batch = error.micro_batch
        gc.collect()  # here the error is gone, and what its traceback held
        torch.cuda.empty_cache()


def train_once(cfg: DictConfig, page: recipe.Page | None) -> float:
    """`train`, for a configuration that is checked. A function of it alone, so that it may be tried again."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    quiet_lightning()
    run_dir = Path(cfg.run_dir)
    data: VideoDataModule = instantiate(cfg.data, _convert_="all")
    log.info(data.splits.summary())
    if notice := data.flip_notice():
        log.info(f"note     {notice}")
    differences = recipe.table(cfg, page)
    log.info(differences)
    rank_zero_only((run_dir / "recipe_differences.txt").write_text)(differences + "\n", encoding="utf-8")
    classes = {head: list(names) for head, names in data.splits.classes.items()}
    net = build_net(cfg.model, classes)
    multi_label = data.splits.multi_label
    mean, std = init_weights(net, cfg, run_dir, classes, multi_label)

    cfg.ckpt_path = checkpoint_to_resume(cfg)
    if cfg.ckpt_path:
        step, state = check_resumable(Path(cfg.ckpt_path))
        if notice := check_unchanged(data, state, cfg.ckpt_path, run_dir / "data_changes.txt", step):
            log.info(notice)
        if cfg.logger and "first_step" in cfg.logger:
            cfg.logger.first_step = step
    trainer = build_trainer(cfg)
    if data.global_batch % trainer.world_size:
        raise UserError(
            f"recipe.global_batch={data.global_batch} does not divide among {trainer.world_size} devices"
        )
    trainer.accumulate_grad_batches = data.divide_batch(trainer.world_size)
    if data.micro_batch == 1 and (cfg.task.mixup or cfg.task.cutmix):
        raise UserError(
            "mixup and CutMix mix the clips that a device takes at once, and that is one (data.micro_batch and "
            "recipe.global_batch say how many): allow two or more, or set recipe.mixup=0 recipe.cutmix=0"
        )
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["data"]["root"] = os.path.abspath(data.root)
    task = VideoClassifier(
        net,
        classes,
        mean,
        std,
        multi_label=multi_label,
        **instantiate(cfg.task, _convert_="all"),
        total_steps=data.steps_per_epoch * int(cfg.trainer.max_epochs),
        warmup_steps=int(data.steps_per_epoch * cfg.recipe.warmup_epochs),  # whole steps, as the authors'
        metadata=Metadata(config, classes, mean, std, multi_label).to_dict(),
    )
    log.info(plan(cfg, task, data, trainer))
    try:
        with (
            data.translate_worker_errors(),
            translate_rank_errors(),
            translate_out_of_memory(data, trainer),
            translate_compile_errors(),
        ):
            with translate_resume_errors(trainer, cfg.ckpt_path):
                trainer.fit(task, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
            data.count_bad_videos()
        if bad := data.bad_videos["train"]:
            log.info(
                f"{len(bad)} training videos could not be read; others took their places: {data.bad_videos_file}"
            )
        kept = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        # without validation there is no best, nor with callbacks.checkpoint=null
        best = (kept and kept.best_model_path) or str(run_dir / "checkpoints/last.ckpt")
        best = trainer.strategy.broadcast(best)  # that of the first process, which wrote it
        if not Path(best).is_file():
            raise UserError(missing_checkpoint(trainer, best))
        log.info(f"\nbest checkpoint: {best}")
        data.test_split = "test" if data.splits.test is not None else "val"
        kept_net = build_net({**config["model"], "compile": False}, classes)
        load_weights(kept_net, load_checkpoint(best)[1], best)
        kept_task = VideoClassifier(kept_net, classes, mean, std, multi_label=multi_label)
        score_task(kept_task, best, data, trainer, run_dir, cfg.eval.views)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    finally:
        if "wandb" in sys.modules:  # a second attempt, with a smaller micro-batch, is another run there
            sys.modules["wandb"].finish()
    return float("nan") if kept is None or kept.best_model_score is None else float(kept.best_model_score)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Scores a checkpoint as conf/eval.yaml says; model, labels and preprocessing come from the checkpoint.

    Leaves metrics.json, predictions.csv and confusion.png (of several classes per video average_precision.png) in
    `cfg.run_dir`; returns what metrics.json holds.

    Raises:
        UserError: whatever the user can mend.
    """
    quiet_lightning()
    if is_first_rank():
        lock_folder(cfg.run_dir)
    if problems := choice_problems(cfg, null_is_as_trained=True):
        raise UserError("; ".join(problems))
    metadata, weights = load_checkpoint(cfg.ckpt_path)
    net = restore_net(metadata, weights, cfg.ckpt_path, cfg.trusted)
    data = evaluation_data(metadata, cfg)
    clip = (3, data.sampling.frames, data.crop, data.crop)
    if net.input_shape != clip:
        raise UserError(
            f"{cfg.ckpt_path}: the model takes clips of {net.input_shape[1:]}, frames x height x width, and the "
            f"data gives {clip[1:]}: data.frames and data.crop must be those of the training"
        )
    check_splits(data, metadata, cfg)
    if metadata.multi_label != data.splits.multi_label:
        kinds = ("one class per video", "any number of classes per video")
        theirs, here = kinds[metadata.multi_label], kinds[data.splits.multi_label]
        raise UserError(
            f"{cfg.ckpt_path} was trained to name {theirs}, and data={data.name} has {here}: only data=csv can "
            "have either, as data.reader.multi_label says"
        )
    log.info(data.splits.summary())
    data.test_split = cfg.eval.split or ("test" if data.splits.test is not None else "val")
    task = VideoClassifier(net, metadata.classes, metadata.mean, metadata.std, multi_label=metadata.multi_label)
    trainer, out = build_trainer(cfg), Path(cfg.run_dir)
    return score_task(task, cfg.ckpt_path, data, trainer, out, cfg.eval.views, cfg.eval.order)


def checkpoint_to_resume(cfg: DictConfig) -> str | None:
    """The file that `ckpt_path` or `resume` stand for."""
    if cfg.ckpt_path != "last" and cfg.resume != "auto":
        return cfg.ckpt_path
    folder = Path(cfg.run_dir) / "checkpoints"
    newest = newest_checkpoint(folder)
    if newest is None and cfg.resume != "auto":
        raise UserError(
            f"ckpt_path=last: no checkpoint in {folder}; hydra.run.dir=DIR names the run to go on with"
        )
    log.info(f"going on from {newest}" if newest else f"no checkpoint in {folder} yet: training starts")
    return str(newest) if newest else None


SOURCE = ("name", "root", "reader", "train", "val", "test")  # keys that say which videos, and with which labels


def given_data(metadata: Metadata, cfg: DictConfig) -> dict[str, Any]:
    """What the command line says of the data; null there means: as in the checkpoint.

    `data=NAME` brings another source of videos and labels. What the model sees of a video (frames, stride,
    crop) stays as it was trained unless it is named too.
    """
    clip = ("frames", "stride", "fps", "sampling", "short", "short_side", "crop", "squash")
    keys = (*SOURCE, *clip, "num_workers", "decoder", "micro_batch")
    typed: dict[str, Any] = {key: cfg.data[key] for key in keys}
    given = {key: value for key, value in typed.items() if value is not None or (cfg.data.name and key in SOURCE)}
    if given.get("reader") is not None:
        given["reader"] = OmegaConf.to_container(given["reader"], resolve=True)
        if metadata.multi_label and "multi_label" in given["reader"]:
            given["reader"]["multi_label"] = True  # as the model answers, so that other data need not say so
        given["reader"] = instantiate(given["reader"], _convert_="all")
    given["allow_private_urls"] = bool(cfg.data.allow_private_urls)  # never as a checkpoint has it
    return given | {"bad_videos_file": f"{cfg.run_dir}/bad_videos.csv"}


def evaluation_data(metadata: Metadata, cfg: DictConfig) -> VideoDataModule:
    """The checkpoint's data with what the command line changes.

    Raises:
        UserError: what the checkpoint stores of its data is not what data is made of.
    """
    given, stored = given_data(metadata, cfg), metadata.config.get("data")
    where = f"{cfg.ckpt_path}: data"
    if not isinstance(stored, Mapping):
        raise UserError(f"{where} is missing, or not a set of settings")
    known = VideoDataModule.__init__
    check_arguments(VideoDataModule, given, "data", also=tuple(inspect.signature(known).parameters))
    node = {key: value for key, value in stored.items() if key not in given}
    data: VideoDataModule = build(node, DATA, where, cfg.trusted, **given)
    if cfg.data.name is not None:  # other data than the checkpoint was trained on: its labels in the model's terms
        data.reader = partial(data.reader, classes=metadata.classes.get("", metadata.classes))
        data.annotations = {"train": None, "val": cfg.data.test or cfg.data.val, "test": None}
    return data


def check_splits(data: VideoDataModule, metadata: Metadata, cfg: DictConfig) -> None:
    """Reads the annotations, and compares their classes with the model's.

    A reader's message quotes the files that it read. Where the checkpoint alone names them, they may be any
    files of this machine, and nothing of them is shown.

    Raises:
        UserError: they cannot be read, or have other classes.
    """
    files = [name for name in data.annotations.values() if name is not None]
    inside = all(not os.path.isabs(name) and ".." not in Path(name).parts for name in files)
    if cfg.data.name is not None or (cfg.data.root is not None and inside):
        _ = data.splits
        return
    advice = f"data.root=DIR, or data=NAME data.root=DIR, names the data for {cfg.ckpt_path}"
    if not Path(data.root).expanduser().is_dir():
        raise UserError(f"no folder {shown(data.root)}, in which the checkpoint's data was: {advice}")
    try:
        classes = {head: list(names) for head, names in data.splits.classes.items()}
    except UserError:
        raise UserError(
            f"the data that the checkpoint names, in {shown(data.root)}, cannot be read as it was in training: "
            f"{advice}, and shows what is wrong with it"
        ) from None
    if classes != metadata.classes:
        raise UserError(
            f"the data that the checkpoint names, in {shown(data.root)}, has other classes by now than the model: "
            f"{advice}, and takes its labels in the model's terms"
        )


def init_weights(
    net: ViViT, cfg: DictConfig, run_dir: Path, classes: Mapping[str, list[str]], multi_label: bool
) -> tuple[list[float], list[float]]:
    """Fills the net as the `init` node says, prints the report, and returns the normalisation's mean and std."""
    init = cfg.init
    source = init.path or (IMAGENET.get(cfg.model.size) if init.name == "imagenet" else init.name)
    statistics = None
    if source is None:
        log.info("model starts from random weights (init=imagenet or init.path=FILE start it from others)")
    else:
        report, statistics = initialise(
            net,
            str(source),
            tubelet=init.tubelet,
            min_coverage=init.min_coverage,
            classes=classes,
            frames=init.frames,
            multi_label=multi_label,
        )
        log.info(report)
        rank_zero_only((run_dir / "weight_report.txt").write_text)(report.full() + "\n", encoding="utf-8")
        if statistics is None and init.mean is None:
            log.info(
                f"what {source} was normalised with is not known: set init.mean and init.std if it was not 0.5"
            )
    if init.mean is not None and init.std is not None:
        statistics = (tuple(init.mean), tuple(init.std))
    mean, std = statistics or ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    log.info(f"pixels are normalised with mean {list(mean)}, std {list(std)}")
    return list(mean), list(std)


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """Lightning's Trainer from the `trainer`, `callbacks` and `logger` nodes."""
    callbacks: list[L.Callback] = [CheckRankConsistency(cfg)]
    callbacks += [instantiate(node) for node in (cfg.get("callbacks") or {}).values() if node is not None]
    if "recipe" in cfg and cfg.recipe.ema:
        callbacks.append(EMAWeightAveraging(decay=cfg.recipe.ema))
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    settings: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    del settings["auto_micro_batch"]  # train()'s own
    trainer: L.Trainer = instantiate(
        settings,
        callbacks=callbacks,
        logger=instantiate(cfg.logger) if cfg.get("logger") else False,
        plugins=[AtomicCheckpointIO()],
        precision=cfg.trainer.precision or ("bf16-mixed" if on_gpu else "32-true"),
        enable_progress_bar=cfg.trainer.enable_progress_bar and sys.stdout.isatty(),
        _convert_="all",
    )
    return trainer


def plan(cfg: DictConfig, task: VideoClassifier, data: VideoDataModule, trainer: L.Trainer) -> str:
    """What is about to happen, in a few lines. callbacks.report adds what the first steps took."""
    net = task.net
    t, rows, columns = net.grid
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    steps = planned_steps(data.steps_per_epoch * trainer.max_epochs, trainer)  # type: ignore[operator]
    lines = [
        f"model: {net.model}, {parameters:.2f} M parameters, {data.sampling.frames} frames of "
        f"{data.crop}x{data.crop}, {t}x{rows}x{columns} tokens, "
        f"{task.forward_flops / 1e9:.4g} GFLOPs per clip (forward)",
        f"batch: {data.global_batch} = {data.micro_batch} clips x {trainer.world_size} devices x "
        f"{trainer.accumulate_grad_batches} accumulated; {trainer.max_epochs} epochs, {steps} steps, "
        f"{steps * data.global_batch} clips; precision {trainer.precision}, {trainer.strategy.root_device}",
        f"run folder: {cfg.run_dir}",
    ]
    if cfg.model.compile:
        lines.append("the first step, and the first of validation, compile the model: minutes")
    return "\n".join(lines)


def quiet_lightning() -> None:
    """Leaves what the user should read: no device banners, no tips about workers, which `data` sets itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
