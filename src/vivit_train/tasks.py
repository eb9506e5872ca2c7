"""The keys that a task does not use, which it refuses."""

from collections.abc import Collection, Mapping
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vivit_train.training.task import VideoTask
from vivit_train.utils.arguments import accepted_arguments
from vivit_train.utils.conf import uses_fsdp
from vivit_train.utils.errors import UserError, reason

# These keys are arguments of a task. One that it does not accept must have the value that turns it off.
ARGUMENTS: Mapping[str, Any] = {"loss": None, "layer_decay": None, "mixup": 0.0, "cutmix": 0.0}
# Without labels and a head, these keys must have these values.
OFF: Mapping[str, Any] = {
    "train": "all",
    "ema_decay": None,
    "data.balance": None,
    "data.limit_per_class": None,
    "data.mirror_labels": False,
    "init.heads": None,
    "model.compile": False,
}
# Without labels and a head, a value of these keys has no effect, whatever it is.
WITHOUT_EFFECT = (
    *("eval.views", "eval.hardest_first", "trainer.limit_test_batches", "data.test"),
    *(f"data.reader.{name}" for name in ("class_level", "classes", "multi_label", "first_id")),
)


def is_labeled(cfg: DictConfig) -> bool:
    """Returns whether the task of a configuration learns from labels.

    Raises:
        UserError: It is no class of a task.
    """
    target = str(cfg.task.get("_target_"))
    try:
        task = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"task._target_={target}: cannot be imported ({reason(error)})") from error
    if not isinstance(task, type) or not issubclass(task, VideoTask):
        raise UserError(f"task._target_={target}: is no subclass of vivit_train.training.task.VideoTask")
    return task.labeled


def task_problems(typed: Collection[str], cfg: DictConfig) -> list[str]:
    """Returns a message for each key that is set although the task does not use it.

    Args:
        typed: The keys that the user sets.
        cfg: The configuration.
    """
    labeled, accepted = is_labeled(cfg), accepted_arguments(cfg.task, "task")
    unused = {key: value for key, value in ARGUMENTS.items() if key not in accepted}
    off = {**unused, **({} if labeled else OFF)}
    problems = []
    for key, value in off.items():
        found = OmegaConf.select(cfg, key)
        if found is not None and found != value:
            shown = found.get("_target_") if isinstance(found, DictConfig) else found
            problems.append(f"{key}={shown}: {name_of(cfg)} does not use it")
    if "loss" in accepted and cfg.loss is None:
        problems.append("loss=null: must be a group of keys with a _target_")
    if labeled:
        return problems
    problems += [f"{key}: {name_of(cfg)} does not use it" for key in typed if key in WITHOUT_EFFECT]
    if uses_fsdp(cfg):
        problems.append(f"trainer=fsdp: {name_of(cfg)} computes parts of the model on their own: set trainer=ddp")
    if "overfit" in cfg.callbacks:
        problems.append(f"debug=overfit: {name_of(cfg)} masks each clip anew, which nothing learns by heart")
    return problems


def name_of(cfg: DictConfig) -> str:
    """Returns the task as the user names it."""
    target = str(cfg.task._target_)
    names = {"VideoClassifier": "task=classify", "MaskedPretraining": "task=pretrain"}
    return names.get(target.rpartition(".")[2], f"task._target_={target}")
