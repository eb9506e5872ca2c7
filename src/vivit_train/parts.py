"""Builds the parts of a run that a user may replace, and says which of their arguments a class refuses.

These are the optimizer, the scheduler, the loss, callbacks and loggers. What only a run would show is tried on a
stand-in before the model is built.

Shape suffixes: B clips, K classes of a head.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from vivit_train.training.task import VideoTask
from vivit_train.utils.arguments import accepted_arguments
from vivit_train.utils.errors import UserError, reason
from vivit_train.values import written

# What a class says of arguments that it does not take.
REFUSED = (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, LookupError, AssertionError)
Built = Callable[[DictConfig], Any]


def build_part(part: str, node: DictConfig, offered: Mapping[str, Any], *, partial: bool = False) -> Any:
    """Builds an optimizer, scheduler, loss, callback or logger from its node.

    Args:
        part: The name of the node, for messages.
        node: The `_target_` and its arguments.
        offered: Further arguments; those that the target does not accept are left out.
        partial: Whether to return a function that takes the remaining arguments.

    Raises:
        UserError: The target refuses the arguments.
    """

    def build(stated: DictConfig) -> Any:
        given = {name: offered[name] for name in offered if name in accepted_arguments(stated, part)}
        return instantiate(stated, **given, _partial_=partial, _convert_="all")

    return tried(part, node, build)


def tried(part: str, node: DictConfig, build: Built) -> Any:
    """Returns `build(node)`.

    Raises:
        UserError: It refuses the arguments of the node. The message names those without which it would not.
    """
    try:
        return build(node)
    except (InstantiationException, *REFUSED) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, ImportError):
            raise UserError(
                f"{part}._target_={node._target_}: a package that it needs is missing ({reason(cause)}): "
                "install it, or choose another class"
            ) from error
        if not isinstance(cause, Exception) or isinstance(cause, InstantiationException):
            cause = error
        raise UserError(refusal(part, node, build, cause)) from error


def refusal(part: str, node: DictConfig, build: Built, cause: Exception) -> str:
    """Returns the message about arguments that a class refuses."""
    stated = [key for key in map(str, node) if not key.startswith("_")]
    at_fault = [key for key in stated if succeeds(build, node, key)]
    plain = {key: OmegaConf.to_container(node, resolve=True)[key] for key in at_fault or stated}  # type: ignore
    shown = [f"{part}.{key}={written(value)}" for key, value in plain.items()]
    why = f"({reason(cause).rstrip('.')})"
    if len(at_fault) == 1:
        return f"{shown[0]}: {node._target_} does not take this value {why}: change it, or leave it out"
    if at_fault:
        return f"{', '.join(shown)}: {node._target_} does not take these together {why}: leave out one of them"
    if not shown:
        return f"{part}._target_={node._target_}: cannot be built here {why}: choose another class"
    return f"{part}: {node._target_} does not take its arguments {why}: change one of {', '.join(shown)}"


def succeeds(build: Built, node: DictConfig, without: str) -> bool:
    """Returns whether the class takes the arguments of a node without one of them."""
    rest = OmegaConf.create({key: value for key, value in node.items() if key != without})
    rest._set_parent(node._get_parent())
    try:
        build(rest)
    except (InstantiationException, UserError, *REFUSED):
        return False
    return True


def check_optimizer(node: DictConfig) -> None:
    """Builds the optimizer for two small parameters, in groups as those of a model.

    Raises:
        UserError: Its class refuses the arguments, or is no optimizer.
    """
    built = tried("optimizer", node, stand_in)
    if not isinstance(built, torch.optim.Optimizer):
        raise UserError(f"optimizer._target_={node._target_}: is no optimizer of PyTorch")


def stand_in(node: DictConfig) -> Any:
    """Returns the optimizer of two small parameters; one of them does not decay."""
    parameters = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "weight_decay": 0.0}]
    return instantiate(node, _partial_=True, _convert_="all")(groups)


def check_schedule(cfg: DictConfig, steps_per_epoch: int) -> None:
    """Takes the first steps of the schedule.

    Raises:
        UserError: It refuses its arguments, or a factor of the learning rate is no number.
    """
    total = steps_per_epoch * cfg.trainer.max_epochs
    target = resolve_name(cfg.scheduler._target_)
    is_of_torch = isinstance(target, type) and issubclass(target, LRScheduler)
    offered = {"total_steps": total, "steps_per_epoch": steps_per_epoch}

    def factors(stated: DictConfig) -> Sequence[Any]:
        schedule = build_part("scheduler", stated, offered, partial=is_of_torch)
        if not is_of_torch:
            return [schedule(step) for step in sorted({0, min(1, total - 1), total - 1})]
        optimizer, found = stand_in(cfg.optimizer), []
        scheduler = schedule(optimizer)
        for _ in range(min(total, 3)):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    for factor in tried("scheduler", cfg.scheduler, factors):
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
            raise UserError(f"scheduler._target_={target}: its factor of the learning rate is no number: {factor}")


# What every run logs, besides the scores of its validation; top1 only with one class per clip.
LOGGED = (
    *("epoch", "step", "val/score", "train/loss_step", "train/loss_epoch", "train/top1", "train/lr"),
    *("train/grad_norm", "train/clips_per_s", "train/data_wait_%", "train/mfu_%", "train/peak_memory_gb"),
    *("train/weight_norm", "train/skipped_steps"),
)


def check_monitors(nodes: DictConfig | None, task: VideoTask) -> None:
    """Checks that callbacks monitor what a run logs, which Lightning finds out at the end of an epoch.

    A task or a callback of another package may log anything, so that nothing is checked then.

    Raises:
        UserError: A callback monitors what is never logged.
    """
    callbacks = {str(name): node for name, node in (nodes or {}).items() if node is not None}
    targets = [type(task).__module__, *(str(node.get("_target_")) for node in callbacks.values())]
    if not task.val_scores or not all(name.startswith(("vivit_train.", "lightning.")) for name in targets):
        return
    known = [*LOGGED, *(f"val/{score}" for score in map(str, task.val_scores))]
    for name, node in callbacks.items():
        if (monitor := node.get("monitor")) is not None and monitor not in known:
            raise UserError(
                f"callbacks.{name}.monitor={written(monitor)}: this run does not log it; it logs "
                f"{', '.join(sorted(known))}"
            )


def build_losses(node: DictConfig, multi_label: bool, class_counts: Mapping[str, Sequence[int]]) -> Any:
    """Builds the loss of all heads, or one loss per head if the loss depends on how frequent the classes are."""
    offered: dict[str, Any] = {"multi_label": True} if multi_label else {}
    if not class_counts or "class_counts" not in accepted_arguments(node, "loss"):
        return build_part("loss", node, offered)
    return [build_part("loss", node, offered | {"class_counts": c}) for c in class_counts.values()]


def check_losses(cfg: DictConfig, multi_label: bool, class_counts: Mapping[str, Sequence[int]]) -> None:
    """Computes the loss of two or three clips with the targets that training has.

    Raises:
        UserError: The loss refuses its arguments or these targets, or is no number with a gradient.
    """
    mixes = cfg.mixup or cfg.cutmix
    targets = "one float per class" if multi_label or mixes else "class ids"
    built = build_losses(cfg.loss, multi_label, class_counts)
    heads = [len(counts) for counts in class_counts.values()]
    for loss, classes in zip(built if isinstance(built, list) else [built] * len(heads), heads, strict=True):
        clips = 3 if classes == 2 else 2  # Another number than that of the classes, so that no axis is mistaken.
        logits_BK = torch.linspace(-1, 1, clips * classes).view(clips, classes).requires_grad_()
        target = torch.zeros(clips, dtype=torch.int64)
        if multi_label or mixes:
            target = torch.full((clips, classes), 1 / classes)
        if why := why_unfit(loss, logits_BK, target):
            raise UserError(
                f"loss._target_={cfg.loss._target_}: gives no loss for logits {list(logits_BK.shape)} and "
                f"{targets} {list(target.shape)}{why}: set loss=cross_entropy, or a class that takes these targets"
            )


def why_unfit(loss: Any, logits_BK: Tensor, target: Tensor) -> str:
    """Returns why a loss does not fit its input, in parentheses, or "" if it does."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")  # Shapes would be broadcast.
            found = loss(logits_BK, target)
    except UserWarning:
        return " (the shapes differ)"
    except REFUSED as error:
        return f" ({reason(error)})"
    if not isinstance(found, Tensor) or not found.requires_grad:
        return " (it is no tensor with a gradient)"
    return "" if bool(found.isfinite().all()) else f" (it is {float(found.detach().sum())})"
