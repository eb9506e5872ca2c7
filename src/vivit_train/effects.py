"""The keys that another value makes meaningless: a user who sets one reads so, instead of a run that ignores it.

A recipe may state such a key; only what the user types is refused.
"""

import logging
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vivit_train.data.annotations.table import Splits
from vivit_train.utils.errors import UserError
from vivit_train.values import written

log = logging.getLogger(__name__)
# A key that a user sets has no effect without one of the others.
SOURCE = ("init.path", "init.name")
NEEDS = {
    **{f"init.{name}": SOURCE for name in ("source", "tubelet", "min_coverage", "frames", "heads")},
    "data.strong_color": ("data.color_jitter",),
    "data.randaugment_kind": ("data.randaugment",),
    "data.mirror_labels": ("data.flip",),
    "data.changed": ("resume=auto", "ckpt_path"),
    "cache_views": ("cache",),
    "trainer.gradient_clip_algorithm": ("trainer.gradient_clip_val",),
}
OF_VALIDATION = (
    *("patience", "trainer.num_sanity_val_steps", "trainer.check_val_every_n_epoch"),
    "trainer.val_check_interval",
)
WAITS = ("epochs", "every_n_epochs")  # Arguments of callbacks that count epochs.
OF_HOLDING_OUT = ("data.reader.val_percent", "data.reader.seed")


@dataclass(frozen=True)
class Rule:
    """Keys that have no effect under a condition.

    Attributes:
        keys: The keys.
        applies: Returns whether a configuration meets the condition.
        why: The condition in words. {KEY} stands for the value of a key.
    """

    keys: Collection[str]
    applies: Callable[[DictConfig], Any]
    why: str


def validates_too_late(cfg: DictConfig) -> bool:
    """Returns whether training ends before the first validation."""
    return (cfg.trainer.get("check_val_every_n_epoch") or 1) > cfg.trainer.max_epochs


def has_early_end(cfg: DictConfig) -> bool:
    """Returns whether anything but the number of epochs or steps may end training."""
    targets = [str(node.get("_target_")) for node in (cfg.get("callbacks") or {}).values() if node]
    harmless = [name.startswith("vivit_train.training.") or name.endswith(".ModelCheckpoint") for name in targets]
    return bool(cfg.patience or cfg.trainer.get("max_time") or not all(harmless))


def most_validations(cfg: DictConfig) -> float:
    """Returns the largest number of validations of a run, which is infinite if it validates within epochs."""
    if cfg.trainer.get("val_check_interval") not in (None, 1.0):
        return math.inf
    return float(cfg.trainer.max_epochs // (cfg.trainer.get("check_val_every_n_epoch") or 1))


def is_warmed_up_too_late(cfg: DictConfig) -> bool:
    """Returns whether the learning rate never reaches its peak."""
    return bool((cfg.scheduler.get("warmup_epochs") or 0) > cfg.trainer.max_epochs)


RULES = (
    Rule(("init.name",), lambda cfg: cfg.init.path, "init.path={init.path} takes its place: set only one of them"),
    Rule(
        ("ckpt_path",),
        lambda cfg: cfg.resume == "auto" and cfg.ckpt_path != "last",
        "resume=auto takes the newest checkpoint in the run folder: set only one of them",
    ),
    Rule(
        ("overwrite",),
        lambda cfg: cfg.resume == "auto",
        "resume=auto goes on with an earlier run in the folder: set only one of them",
    ),
    Rule(
        ("data.padding",),
        lambda cfg: cfg.data.get("sampling") == "segments",
        "data.sampling=segments spreads the frames over the whole video, however short",
    ),
    Rule(
        OF_VALIDATION,
        lambda cfg: cfg.trainer.get("limit_val_batches") == 0,
        "trainer.limit_val_batches=0 leaves out validation",
    ),
    Rule(
        ("patience", "trainer.check_val_every_n_epoch"),
        validates_too_late,
        "trainer.max_epochs={trainer.max_epochs} ends before the first validation, which "
        "trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} sets",
    ),
    Rule(
        ("patience",),
        lambda cfg: cfg.patience and cfg.patience >= most_validations(cfg) > 0,
        "training ends at trainer.max_epochs={trainer.max_epochs}, before that many without a better score",
    ),
    Rule(
        ("trainer.min_epochs", "trainer.min_steps"),
        lambda cfg: not has_early_end(cfg),
        "nothing ends this run before trainer.max_epochs={trainer.max_epochs}: set patience or trainer.max_time",
    ),
    Rule(
        ("trainer.limit_train_batches", "trainer.limit_val_batches"),
        lambda cfg: cfg.trainer.get("overfit_batches"),
        "trainer.overfit_batches={trainer.overfit_batches} takes its place",
    ),
    Rule(
        ("optimizer.lr",),
        lambda cfg: str(cfg.scheduler._target_).endswith((".OneCycleLR", ".CyclicLR")),
        "scheduler.max_lr={scheduler.max_lr} takes its place",
    ),
    Rule(
        ("model.temporal_depth",),
        lambda cfg: cfg.model.get("model") in ("vivit_st", "vivit_fsa", "vivit_fdp"),
        "only model=vivit_fe has a temporal encoder",
    ),
    Rule(
        ("model.order",),
        lambda cfg: cfg.model.get("model") in ("vivit_st", "vivit_fe", "vivit_fdp"),
        "only model=vivit_fsa has two attentions in a block",
    ),
    Rule(
        ("model.pool",),
        lambda cfg: cfg.model.get("model") in ("vivit_fsa", "vivit_fdp") and cfg.model.pool == "cls",
        "{model.model} has no cls token and takes the mean",
    ),
    Rule(
        ("model.drop_path", "model.checkpoint_activations"),
        lambda cfg: cfg.train == "head",
        "train=head trains no layer below the head",
    ),
    Rule(
        ("scheduler.warmup_epochs",),
        is_warmed_up_too_late,
        "training ends within the warmup and never reaches optimizer.lr: set at most "
        "trainer.max_epochs={trainer.max_epochs}",
    ),
)


def unused_problems(typed: Collection[str], cfg: DictConfig) -> list[str]:
    """Returns a message for each key that the user sets although another one makes it meaningless."""
    problems = stride_problems(typed, cfg) + callback_problems(typed, cfg)
    for key, others in NEEDS.items():
        names = [other.partition("=")[0] for other in others]
        if is_set(typed, cfg, key) and not any(OmegaConf.select(cfg, name) for name in names):
            problems.append(f"{key}={value_of(cfg, key)} has no effect without {' or '.join(others)}")
    if {"init", "init.path"} <= {*typed} and cfg.init.name is not None:
        problems.append(f"init={cfg.init.name} has no effect, because init.path={cfg.init.path} takes its place")
    for rule in RULES:
        for key in rule.keys:
            if is_set(typed, cfg, key) and rule.applies(cfg):
                why = re.sub(r"\{(.+?)\}", lambda match: value_of(cfg, match[1]), rule.why)
                problems.append(f"{key}={value_of(cfg, key)} has no effect, because {why}")
    return problems


def callback_problems(typed: Collection[str], cfg: DictConfig) -> list[str]:
    """Returns a message for each callback that the user has wait for longer than training lasts."""
    limits = {"patience": most_validations(cfg), **dict.fromkeys(WAITS, float(cfg.trainer.max_epochs + 1))}
    nodes = {f"callbacks.{name}": node for name, node in (cfg.get("callbacks") or {}).items() if node}
    why = f"training ends at trainer.max_epochs={cfg.trainer.max_epochs}"
    return [
        f"{name}.{key}={node[key]} has no effect, because {why}"
        for name, node in nodes.items()
        for key, limit in limits.items()
        if {name, f"{name}.{key}", f"{name}._target_"} & {*typed}
        and isinstance(node.get(key), int)
        and node[key] >= limit > 0
    ]


def check_warmup(typed: Collection[str], cfg: DictConfig, steps_per_epoch: int) -> None:
    """Logs that training ends within the warmup of the recipe, and what to set instead.

    Raises:
        UserError: The user sets that warmup.
    """
    limits = [("trainer.max_epochs", cfg.trainer.max_epochs * steps_per_epoch)]
    limits += [("trainer.max_steps", cfg.trainer.max_steps)] if (cfg.trainer.get("max_steps") or -1) > 0 else []
    limit, steps = min(limits, key=lambda pair: pair[1])
    epochs = cfg.scheduler.get("warmup_epochs") or 0
    if int(epochs * steps_per_epoch) <= steps:
        return
    text = (
        f"training ends within the warmup and never reaches optimizer.lr, because "
        f"scheduler.warmup_epochs={epochs:g} is more than {limit}={value_of(cfg, limit)}: set "
        f"scheduler.warmup_epochs={steps / steps_per_epoch / 10:.2g}"
    )
    if "scheduler.warmup_epochs" in typed:
        raise UserError(text)
    log.info(f"note     {text}")


def is_set(typed: Collection[str], cfg: DictConfig, key: str) -> bool:
    """Returns whether the user sets a key to a value that does not turn it off."""
    value = OmegaConf.select(cfg, key)
    return key in typed and value is not None and value is not False


def value_of(cfg: DictConfig, key: str) -> str:
    """Returns the value of a key as it is written on the command line."""
    value = OmegaConf.select(cfg, key)
    return written(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)


def stride_problems(typed: Collection[str], cfg: DictConfig) -> list[str]:
    """Returns a message if the user sets a distance between frames that something else determines."""
    fps = cfg.data.get("fps")
    if fps is not None and "data.stride" in typed and "data.fps" not in typed:
        return [
            f"data.stride={cfg.data.stride} has no effect, because data.fps={fps} sets the stride in time: "
            "set data.fps=null to use the stride, or set only data.fps"
        ]
    both = [key for key in ("data.stride", "data.fps") if key in typed and OmegaConf.select(cfg, key) is not None]
    if len(both) == 2:
        return [
            f"data.stride={cfg.data.stride} has no effect, because data.fps={fps} is set: set only one of them"
        ]
    if both and cfg.data.get("sampling") == "segments":
        return [f"{both[0]} has no effect, because data.sampling=segments spreads the frames over the whole video"]
    return []


def check_effects_in_data(typed: Collection[str], cfg: DictConfig, splits: Splits) -> None:
    """Checks the keys that the splits of the data can make meaningless.

    Raises:
        UserError: The user sets one of them.
    """
    for key in OF_HOLDING_OUT:
        if is_set(typed, cfg, key) and not splits.held_out:
            raise UserError(
                f"{key}={value_of(cfg, key)} has no effect, because the data has a validation split of its own: "
                "leave it out, or leave out that split"
            )
    for key in OF_VALIDATION:
        if is_set(typed, cfg, key) and not len(splits.val):
            raise UserError(f"{key}={value_of(cfg, key)} has no effect, because the data has no validation clips")
