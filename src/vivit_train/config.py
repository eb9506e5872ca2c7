"""Checks a configuration before anything expensive starts, and derives what follows from it."""

import inspect
import logging
import math
import os
from collections.abc import Collection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from vivit_train.data.sampler import split_batch
from vivit_train.data.video.decode import DECODERS
from vivit_train.models.vivit import MODELS, SIZES, unknown_model
from vivit_train.models.weights.files import WEIGHT_FILES
from vivit_train.recipe import Recipe
from vivit_train.training.evaluation import parse_views
from vivit_train.training.profiling import half_precision_speedup, step_dtype
from vivit_train.utils.arguments import LIMITS, limit_problems
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.moved_keys import moved_hint

log = logging.getLogger(__name__)


# Each number, its smallest value, and whether it must be a whole number.
NUMBERS: tuple[tuple[str, float, bool], ...] = (
    ("seed", 0, True),
    ("global_batch_size", 1, True),
    ("micro_batch_size", 1, True),
    ("data.frames", 1, True),
    ("data.stride", 1, True),
    ("data.crop", 1, True),
    ("data.short_side", 1, True),
    ("data.max_bad_fraction", 0, False),
    ("optimizer.lr", 0, False),
    ("trainer.max_epochs", 1, True),
)
# What the job gives these parts, so that no node states it twice.
GIVEN = {
    "data": ("global_batch_size", "micro_batch_size", "bad_videos_file", "seed", "protocol"),
    "trainer": ("accumulate_grad_batches", "callbacks", "logger", "plugins"),
}
KEYS = (
    *("seed", "ckpt_path", "resume", "run_dir", "global_batch_size", "micro_batch_size", "auto_micro_batch_size"),
    *(
        "mixup",
        "cutmix",
        "ema_decay",
        "scale_lr",
        "optimizer",
        "scheduler",
        "loss",
        "init",
        "eval",
        "model",
        "data",
    ),
    *("trainer", "callbacks", "logger"),
)
PARTS = ("optimizer", "scheduler", "loss")
SCALES = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


def validate(cfg: DictConfig, recipe: Recipe | None = None) -> None:
    """Checks the configuration and reports all problems in one message.

    Raises:
        UserError: The configuration is invalid. The message has one line per problem.
    """
    problems = [*unknown_keys(cfg), *number_problems(cfg)]
    problems = problems or shape_and_size_problems(cfg)  # The shapes need valid numbers.
    problems += [*choice_problems(cfg), *argument_problems(cfg, recipe), *value_problems(cfg)]
    if problems:
        raise UserError("\n".join(["invalid configuration:", *(f"  - {problem}" for problem in problems)]))


def derive(cfg: DictConfig, recipe: Recipe | None = None) -> DictConfig:
    """Returns a new configuration, without interpolations, that includes what follows from a valid one.

    These are the scaled learning rate, whether the optimizer is fused, the micro-batch and the gradient
    accumulation for the number of devices, and an absolute data folder. An argument of the recipe's optimizer,
    scheduler or loss is left out if another one is chosen that does not accept it.

    Raises:
        UserError: The batch sizes do not fit the number of devices.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    if cfg.scale_lr is not None and recipe is not None:
        ratio = cfg.global_batch_size / recipe.values["global_batch_size"]
        values["optimizer"]["lr"] *= SCALES[cfg.scale_lr](ratio)
    for part in PARTS:
        for name in foreign_arguments(cfg, part):
            log.info(f"note     the recipe's {part}.{name} is left out: {cfg[part]._target_} has no such argument")
            del values[part][name]
    fused = "fused" in accepted_arguments(cfg, "optimizer") and not needs_unfused_optimizer(cfg)
    values["optimizer"] = {**({"fused": True} if fused else {}), **values["optimizer"]}
    values["micro_batch_size"], values["trainer"]["accumulate_grad_batches"] = split_batch(
        cfg.global_batch_size, cfg.micro_batch_size, world_size(cfg), cfg.data.get("clips_per_video", 1)
    )
    values["data"]["root"] = os.path.abspath(Path(cfg.data.root).expanduser())
    return OmegaConf.create(values)


def with_values(cfg: DictConfig, **values: Any) -> DictConfig:
    """Returns a copy of a configuration in which some top-level keys have other values."""
    changed = OmegaConf.merge(cfg, values)
    assert isinstance(changed, DictConfig)
    return changed


def world_size(cfg: DictConfig) -> int:
    """Returns the number of processes of the job; only a Trainer knows what devices=auto and a scheduler mean."""
    keys = ("accelerator", "devices", "num_nodes", "strategy")
    node = {key: cfg.trainer[key] for key in keys if key in cfg.trainer}
    silent = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    try:
        probe: L.Trainer = instantiate(
            {"_target_": "lightning.Trainer", **node}, logger=False, **silent, _convert_="all"
        )
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    return probe.world_size


def needs_unfused_optimizer(cfg: DictConfig) -> bool:
    """Returns whether a fused optimizer would be wrong.

    With fp16, gradients would be clipped before the fused optimizer unscales them. SGD has no fused kernel for
    sharded parameters.
    """
    return uses_fsdp(cfg) or str(cfg.trainer.precision) in ("16-mixed", "16")


def accepted_arguments(cfg: DictConfig, part: str) -> Collection[str]:
    """Returns the names of the arguments that the target of a node accepts.

    Raises:
        UserError: The target cannot be imported.
    """
    name = cfg[part].get("_target_")
    try:
        target = resolve_name(str(name))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{part}._target_={name}: cannot be imported ({reason(error)})") from error
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return {*parameters, *cfg[part]}
    return parameters.keys()


def foreign_arguments(cfg: DictConfig, part: str) -> list[str]:
    """Returns the arguments of a node that its target does not accept."""
    accepted = accepted_arguments(cfg, part)
    return [name for name in cfg[part] if name not in accepted and not name.startswith("_")]


def argument_problems(cfg: DictConfig, recipe: Recipe | None) -> list[str]:
    """Returns a message for each argument on the command line that its optimizer, scheduler or loss lacks."""
    problems = []
    for part in PARTS:
        try:
            foreign = foreign_arguments(cfg, part)
        except UserError as error:
            problems.append(str(error))
            continue
        typed = recipe.typed if recipe else ()
        problems += [
            f"{part}.{name}={cfg[part][name]}: {cfg[part]._target_} has no such argument"
            for name in foreign
            if f"{part}.{name}" in typed
        ]
    return problems


def unknown_keys(cfg: DictConfig) -> list[str]:
    """Returns a message for each key that nothing reads."""
    problems = [f"{key}: there is no such key{moved_hint(key)}" for key in map(str, cfg) if key not in KEYS]
    for part, names in GIVEN.items():
        advice = {"accumulate_grad_batches": "set global_batch_size and micro_batch_size instead"}
        problems += [
            f"{part}.{name}: {advice.get(name, f'set {name} instead')}" for name in names if name in cfg[part]
        ]
    return problems


def number_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each of `NUMBERS` that is too small or not a number."""
    problems = []
    for name, low, whole in NUMBERS:
        value = OmegaConf.select(cfg, name)
        valid = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not valid or value < low:
            problems.append(f"{name}={value}: must be {'an integer' if whole else 'a number'} >= {low}")
    return problems


def shape_and_size_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each size that does not fit the others."""
    model, data = cfg.model, cfg.data
    if model.get("size") not in (None, *SIZES):
        return [f"model.size={model.size}: must be one of {', '.join(SIZES)}"]
    problems = []
    for key, other in (("frames", "frames"), ("image_size", "crop")):
        if key in model and model[key] != data[other]:
            problems.append(f"model.{key}={model[key]}: is data.{other}={data[other]}; set only data.{other}")
    problems = problems or model_problems(model, (3, data.frames, data.crop, data.crop))
    if data.crop > data.short_side:
        problems.append(f"data.crop={data.crop} is larger than data.short_side={data.short_side}")
    return problems


def model_problems(model: DictConfig, input_shape: tuple[int, int, int, int]) -> list[str]:
    """Returns a message for each reason why one of the four models cannot be built from its node.

    A model of the user's own package may have other arguments, so its own constructor checks them.
    """
    name = model.get("model")
    if name is None:
        return []
    if name not in MODELS:
        return [unknown_model(name)]
    dim, heads = (model.get(key) or SIZES[model.get("size", "B")][key] for key in ("dim", "heads"))
    return MODELS[name].shape_problems(input_shape, tuple(model.tubelet), model.sampled_frames, dim, heads)


def value_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each other value that is out of range, or does not fit another one."""
    problems = []
    for node in ("model", "data"):
        for key in LIMITS.keys() & cfg[node].keys():
            value = cfg[node][key]
            problems += limit_problems(f"{node}.{key}", key, list(value) if OmegaConf.is_list(value) else value)
    if cfg.scale_lr not in (None, *SCALES):
        problems.append(f"scale_lr={cfg.scale_lr}: must be null, {' or '.join(SCALES)}")
    if cfg.data.fps is not None and not (isinstance(cfg.data.fps, int | float) and cfg.data.fps > 0):
        problems.append(f"data.fps={cfg.data.fps}: must be a positive number, or null to use data.stride instead")
    if cfg.ema_decay and uses_fsdp(cfg):
        problems.append(
            f"ema_decay={cfg.ema_decay}: weights that trainer=fsdp shards cannot be averaged; set ema_decay=null "
            "or trainer=ddp"
        )
    if cfg.model.get("compile") and uses_fsdp(cfg):
        problems.append("model.compile=true: trainer=fsdp shards every block, and the model cannot be compiled")
    path = Path(cfg.init.path or ".")
    if not path.exists() and (path.is_absolute() or path.suffix in WEIGHT_FILES):  # Else it is a name on a hub.
        problems.append(f"init.path={cfg.init.path}: no such file")
    try:
        parse_views(cfg.eval.views)
    except UserError as error:
        problems.append(str(error))
    if not os.access(cfg.run_dir, os.W_OK):
        problems.append(f"run_dir={cfg.run_dir}: the folder is not writable")
    return problems


def uses_fsdp(cfg: DictConfig) -> bool:
    """Returns whether parameters are sharded among ranks (trainer=fsdp)."""
    return "ModelParallelStrategy" in str(cfg.trainer.strategy)


CHOICES: dict[str, tuple[str | None, ...]] = {
    "data.sampling": ("window", "segments"),
    "data.padding": ("wrap", "repeat_last", "black"),
    "data.resize_mode": ("keep_ratio", "stretch"),
    "data.augment_on": ("auto", "worker", "device"),
    "data.decoder": DECODERS,
    "data.changed": ("stop", "accept"),
    "data.balance": (None, "sqrt", "class"),
    "model.checkpoint_activations": ("none", "mlp", "block"),
    "callbacks.health.on_nonfinite": ("stop", "skip"),
    "resume": (None, "auto"),
    "eval.split": (None, "train", "val", "test"),
    "eval.order": ("forward", "reversed", "shuffled"),
}


def choice_problems(cfg: DictConfig, null_is_as_trained: bool = False) -> list[str]:
    """Returns a message for each key of `CHOICES` with an invalid value, and for an unsuitable precision."""
    problems = [problem] if (problem := check_cpu_precision(cfg)) else []
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key, default=choices[0])
        own_decoder = key == "data.decoder" and "." in str(value)  # a function of the user's; it is imported later
        if value not in choices and not own_decoder and not (value is None and null_is_as_trained):
            names = ", ".join(choice or "null" for choice in choices)
            problems.append(f"{key}={value}: must be one of {names}")
    return problems


def check_cpu_precision(cfg: DictConfig) -> str:
    """Returns a message if half precision would be slower than float32 on this CPU, else ""."""
    precision = str(cfg.trainer.precision)
    on_cpu = cfg.trainer.accelerator == "cpu" or not torch.accelerator.is_available()
    if not on_cpu or "16" not in precision or (gain := half_precision_speedup(step_dtype(precision))) >= 1:
        return ""
    return (
        f"trainer.precision={precision}: on this CPU a step takes {1 / gain:.1f} times as long as in float32 "
        "(measured just now on one block of ViViT-S): set trainer.precision=32-true or null"
    )
