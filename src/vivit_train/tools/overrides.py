"""Compose the configuration for the tools, from overrides or just the folder of the videos."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from omegaconf import DictConfig

from vivit_train.build import resolve_clip
from vivit_train.composition import compose, refuse_repeated
from vivit_train.config import refuse
from vivit_train.schema import key_problems
from vivit_train.tasks import is_labeled, name_of
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import quoted

OF_RUN = ("resume", "ckpt_path", "overwrite")  # Keys of one run.
# Keys and groups of a training that a command without one does not read.
OF_TRAINING = (
    *("optimizer", "scheduler", "loss", "mixup", "cutmix", "ema_decay", "layer_decay", "scale_lr", "patience"),
    *("train", "cache", "cache_views", "callbacks", "logger", "eval", "debug", "hparams_search"),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")),
    *(f"trainer.{name}" for name in ("gradient_clip_val", "gradient_clip_algorithm", "check_val_every_n_epoch")),
    *OF_RUN,
)


def compose_words(words: Sequence[str] | None, run_dir: Path, unused: Collection[str] = ()) -> DictConfig:
    """Compose the configuration that train.py would use.

    Args:
        words: Overrides and folders; see `to_overrides`.
        run_dir: Folder of the run.
        unused: Keys and groups that the command does not read.

    Raises:
        UserError: A word is neither an existing folder nor a valid override, or the task has no labels. It sets a
            key that the command does not read.
    """
    overrides = to_overrides(words)
    cfg = compose(*overrides, run_dir=run_dir)
    refuse(key_problems(cfg))
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if any(key == name or key.startswith(f"{name}.") for name in unused):
            raise UserError(f"{word} has no effect here, only for vivit train: leave it out")
    if not is_labeled(cfg):
        raise UserError(f"{name_of(cfg)} has no effect here, only for vivit train: this command needs labels")
    return cfg


def compose_data(words: Sequence[str] | None, run_dir: Path, command: str) -> DictConfig:
    """Compose the configuration for a command that reads videos. Its clip has numbers, no `auto`.

    Raises:
        UserError: The words do not say which videos to read, or one of them is invalid.
    """
    return resolve_clip(compose_videos(words, run_dir, command, OF_TRAINING))[0]


def compose_videos(
    words: Sequence[str] | None, run_dir: Path, command: str, unused: Collection[str] = ()
) -> DictConfig:
    """Compose the configuration for a command that reads videos, in which frames and pixels may be `auto`.

    Raises:
        UserError: The words do not say which videos to read, or one of them is invalid.
    """
    cfg = compose_words(words, run_dir, unused)
    if cfg.data.name == "demo" and "data=demo" not in (
        words or []
    ):  # By default, this would make the demo's videos.
        raise UserError(f"which videos? {command} FOLDER, or {command} data=NAME data.root=DIR")
    return cfg


def to_overrides(words: Sequence[str] | None) -> list[str]:
    """Replace a folder among overrides by the overrides that read it: data=folder data.root=FOLDER.

    Raises:
        UserError: A word is neither an existing folder nor an override.
    """
    overrides: list[str] = []
    for word in words or []:
        if word.lstrip("+~").startswith(("hydra.run", "hydra.sweep", "hydra.job", "hydra/", "run_dir=")):
            raise UserError(f"{word} has no effect here, only for vivit train and vivit eval")
        if "=" in word or word.startswith("~"):
            overrides.append(word)
        elif os.path.isdir(word):
            overrides += ["data=folder", f"data.root={quoted(word)}"]
        elif os.path.isfile(word):
            raise UserError(
                f"{word} is a file: to read lists, set data=csv data.root=DIR data.train=FILE data.val=FILE"
            )
        else:
            raise UserError(f"{word} is neither a folder nor an override such as data.frames=16")
    refuse_repeated(overrides, ["data.root"])
    return overrides
