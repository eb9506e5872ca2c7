"""Builds the parts of a run from a configuration: data, model weights, LightningModule and Trainer."""

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vivit_train.data.annotations.table import Splits
from vivit_train.data.annotations.unlabeled import without_labels
from vivit_train.data.clip_size import LARGE, SMALL, median_frames, stride_for
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import import_detector, load_pretrained
from vivit_train.models.weights.timm_models import image_vit
from vivit_train.parts import build_losses, build_part
from vivit_train.tasks import is_labeled
from vivit_train.training.bad_video_budget import BadVideoBudget
from vivit_train.training.cached import CachedClassifier
from vivit_train.training.checkpoint import Metadata
from vivit_train.training.evaluation import parse_views
from vivit_train.training.patience import Patience
from vivit_train.training.resume import AtomicCheckpointIO
from vivit_train.training.task import VideoTask
from vivit_train.utils.arguments import accepted_arguments
from vivit_train.utils.conf import with_values
from vivit_train.utils.distributed import CheckRankConsistency
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)


def resolve_clip(cfg: DictConfig, splits: Splits | None = None) -> tuple[DictConfig, Splits | None]:
    """Returns a configuration in which `auto` frames, stride and pixels are numbers, and logs the choice.

    The clip fits the device: on a CPU it is small. With the stride, it covers a video of median length.

    Args:
        cfg: The configuration.
        splits: The annotations, if they are already read.

    Returns:
        The configuration, and the annotations, if they had to be read.
    """
    keys = ("frames", "stride", "short_side", "crop")
    automatic = [key for key in keys if cfg.data[key] == "auto"]
    if not automatic:
        return cfg, splits
    on_cpu = cfg.trainer.accelerator == "cpu" or not torch.accelerator.is_available()
    size = SMALL if on_cpu else LARGE
    chosen = {"frames": size.frames, "short_side": size.short_side, "crop": size.crop, "stride": 1}
    given = {key: cfg.data[key] for key in keys if key not in automatic}
    if "crop" in given:
        chosen["short_side"] = max(size.short_side, given["crop"])
    chosen |= given
    lengths = "the device"
    if "stride" in automatic:
        data = build_data(with_values(cfg, data=chosen), splits=splits)
        splits = data.splits
        length, sample = median_frames(splits.train, data.video_reader.index_db, cfg.seed)
        chosen["stride"] = stride_for(length, chosen["frames"])
        lengths = f"{length} frames is the median length of {plural(sample, 'clip')}"
    shown = " ".join(f"data.{key}={chosen[key]}" for key in automatic)
    log.info(f"clip     {shown}: chosen for {'a CPU' if on_cpu else 'a GPU'}, and {lengths}")
    return with_values(cfg, data=chosen), splits


def build_data(cfg: DictConfig, **changed: Any) -> VideoDataModule:
    """Builds the data module from the `data` node and the batch sizes of a configuration from `derive`.

    Args:
        cfg: The configuration.
        changed: Arguments of `VideoDataModule` that replace those of the `data` node.
    """
    arguments = {
        "global_batch_size": cfg.global_batch_size,
        "micro_batch_size": cfg.micro_batch_size,
        "bad_videos_file": f"{cfg.run_dir}/bad_videos.csv",
        "seed": cfg.seed,
    }
    build: Any = instantiate(cfg.data, **arguments, _partial_=True, _convert_="all")
    # Hydra would convert dataclasses into dictionaries.
    protocol = EvalProtocol(views=parse_views(cfg.eval.views))
    if not is_labeled(cfg):
        changed = {"reader": without_labels(build.keywords["reader"]), **changed}
    data: VideoDataModule = build(protocol=protocol, **changed)
    return data


def build_module(cfg: DictConfig, net: ViViT, metadata: Metadata, steps_per_epoch: int) -> VideoTask:
    """Builds the LightningModule that `task` names, with its loss, optimizer and learning-rate schedule.

    Raises:
        UserError: The loss or the scheduler cannot be built from its arguments.
    """
    steps = {"total_steps": steps_per_epoch * cfg.trainer.max_epochs, "steps_per_epoch": steps_per_epoch}
    target = resolve_name(cfg.scheduler._target_)
    is_of_torch = isinstance(target, type) and issubclass(target, LRScheduler)
    offered: dict[str, Any] = {
        "net": net,
        "classes": metadata.classes,
        "mean": metadata.mean,
        "std": metadata.std,
        "multi_label": metadata.multi_label,
        "loss": cfg.loss and build_losses(cfg.loss, metadata.multi_label, metadata.class_counts),
        "optimizer": build_part("optimizer", cfg.optimizer, {}, partial=True),
        "schedule": build_part("scheduler", cfg.scheduler, steps, partial=is_of_torch),
        **{name: cfg[name] for name in ("layer_decay", "mixup", "cutmix", "seed")},
        "metadata": metadata.to_dict(),
    }
    accepted = accepted_arguments(cfg.task, "task")
    # Hydra would copy the net and convert the classes, so it only finds the class and its own settings.
    build: Callable[..., VideoTask] = build_part("task", cfg.task, {}, partial=True)
    if cfg.cache:
        build = partial(CachedClassifier, train=cfg.train, cache_views=cfg.cache_views)
    return build(**{name: value for name, value in offered.items() if name in accepted})


def init_weights(
    net: ViViT,
    init: DictConfig,
    size: str | None,
    run_dir: Path,
    classes: Mapping[str, list[str]],
    multi_label: bool,
) -> tuple[list[float], list[float]]:
    """Initializes the net as the `init` node specifies and logs the weight-loading report.

    Args:
        net: The net.
        init: The `init` node.
        size: `model.size`, which selects the ImageNet ViT of init=imagenet.
        run_dir: The folder for weight_report.txt.
        classes: The class names by head.
        multi_label: Whether a video may have any number of classes.

    Returns:
        The mean and std of the normalization.
    """
    source = init.path or image_vit(init.name, size)
    statistics = None
    if source is None:
        log.info("the model starts from random weights (to use others: init=imagenet or init.path=FILE)")
    else:
        report = load_pretrained(
            net,
            str(source),
            tubelet=init.tubelet,
            min_coverage=init.min_coverage,
            classes=classes,
            frames=init.frames,
            heads=init.heads,
            multi_label=multi_label,
            detectors=[import_detector(init.source)] if init.source else [],
        )
        statistics = report.statistics
        log.info(report)
        rank_zero_only((run_dir / "weight_report.txt").write_text)(report.full() + "\n", encoding="utf-8")
        if statistics is None and init.mean is None:
            log.info(f"the normalization of {source} is unknown: set init.mean and init.std if they are not 0.5")
    if init.mean is not None and init.std is not None:
        statistics = (tuple(init.mean), tuple(init.std))
    mean, std = statistics or ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    log.info(f"normalizing pixels with mean {list(mean)}, std {list(std)}")
    return list(mean), list(std)


def build_trainer(cfg: DictConfig, first_step: int | None = None) -> L.Trainer:
    """Builds Lightning's Trainer from the `trainer`, `callbacks`, and `logger` nodes.

    Args:
        cfg: The configuration of train.py or eval.py.
        first_step: The step from which a run resumes, for loggers that accept it; None for a new run.
    """
    callbacks: list[L.Callback] = [
        CheckRankConsistency(OmegaConf.to_container(cfg, resolve=True)),  # type: ignore[arg-type]
        BadVideoBudget(),
    ]
    nodes = {f"callbacks.{name}": node for name, node in (cfg.get("callbacks") or {}).items() if node is not None}
    own = {name: build_part(name, node, {}) for name, node in nodes.items()}
    if others := [name for name, built in own.items() if not isinstance(built, L.Callback)]:
        raise UserError(f"{others[0]}._target_={nodes[others[0]]._target_}: is no callback of Lightning")
    callbacks += own.values()
    if cfg.get("patience"):
        callbacks.append(Patience(cfg.patience))
    if cfg.get("ema_decay"):
        # Unlike EMAWeightAveraging, this interpolates, so the mean of frozen weights has the same bits as these.
        callbacks.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(cfg.ema_decay)))
    logger = build_part("logger", cfg.logger, {"first_step": first_step}) if cfg.get("logger") else False
    arguments = {
        "callbacks": callbacks,
        "logger": logger,
        "plugins": [AtomicCheckpointIO()],
        "precision": precision(cfg),
        "enable_progress_bar": cfg.trainer.enable_progress_bar and sys.stdout.isatty(),
    }
    trainer: L.Trainer = build_part("trainer", cfg.trainer, arguments)
    return trainer


def precision(cfg: DictConfig) -> str:
    """Returns the precision that is set, else bf16-mixed on a GPU and 32-true on a CPU."""
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    return str(cfg.trainer.precision or ("bf16-mixed" if on_gpu else "32-true"))
