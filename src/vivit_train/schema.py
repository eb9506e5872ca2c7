"""Checks every key of a composed configuration: whether something reads it, and its type and range.

The types are the annotations of the function or class that the `_target_` of a node names, and `TYPES` for other
keys. The ranges and forms are in values.py.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from pkgutil import resolve_name
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.keys import TYPES, accepted_hints, hints_of
from vivit_train.models.vivit import ViViT
from vivit_train.recipe import PARTS
from vivit_train.utils.arguments import conforms, signature
from vivit_train.utils.errors import reason
from vivit_train.utils.moved_keys import unknown
from vivit_train.values import value_problems, written

NODES = (*PARTS, "task", "init", "eval", "model", "data", "trainer", "callbacks", "logger")
OPTIONAL = ("callbacks", "logger", "loss")
# The builders give these arguments, so that no node states them twice.
GIVEN: dict[str, Mapping[str, str]] = {
    "data": {
        "global_batch_size": "set global_batch_size",
        "micro_batch_size": "set micro_batch_size",
        "bad_videos_file": "it is bad_videos.csv in the run folder",
        "seed": "set seed",
        "protocol": "set eval.views",
        "splits": "set data.reader",
    },
    "task": {
        **{name: f"set {name}" for name in ("layer_decay", "mixup", "cutmix", "seed", "loss", "optimizer")},
        "schedule": "set scheduler",
        "net": "set model",
        **dict.fromkeys(("classes", "multi_label", "metadata"), "it follows from the data"),
        **dict.fromkeys(("mean", "std"), "set init.mean and init.std"),
    },
    "loss": {"class_counts": "it follows from the data", "multi_label": "it follows from the data"},
    "trainer": {
        "accumulate_grad_batches": "set global_batch_size and micro_batch_size",
        "callbacks": "add a node to callbacks: +callbacks.NAME._target_=...",
        "logger": "set logger=csv, tensorboard or wandb",
        "enable_checkpointing": "set callbacks.checkpoint=null callbacks.last=null",
        "fast_dev_run": "set debug=default",
        **dict.fromkeys(
            (
                "plugins",
                "barebones",
                "model_registry",
                "limit_predict_batches",
                "reload_dataloaders_every_n_epochs",
            ),
            "this is not supported; leave it out",
        ),
    },
}
# Callbacks of Lightning that change what this program states elsewhere.
REPLACED = {
    "GradientAccumulationScheduler": "set global_batch_size and micro_batch_size",
    "BatchSizeFinder": "set auto_micro_batch_size=true",
    **dict.fromkeys(
        ("BackboneFinetuning", "BaseFinetuning"), "set train=head, train=temporal or layer_decay=0.75"
    ),
    "LearningRateFinder": "compare values with -m optimizer.lr=0.001,0.01",
}
# What the builders offer to the class of a part; it takes those that it knows.
OFFERED: dict[str, Collection[str]] = {
    "optimizer": ("params",),
    "scheduler": ("optimizer", "total_steps", "steps_per_epoch"),
    "loss": ("class_counts", "multi_label"),
    "logger": ("first_step",),
}
# Classes of PyTorch that cannot do what a run asks of them.
LOG_PROBABILITIES = "takes log-probabilities, but a model gives logits: set loss=cross_entropy"
UNFIT = {
    "SparseAdam": "takes only sparse gradients, which a ViViT does not have",
    "Muon": "takes only matrices, but a model has biases and norms too: set optimizer=adamw or sgd",
    "LBFGS": "takes several passes per step, and no settings by group of parameters: set optimizer=adamw or sgd",
    "lr_scheduler.ReduceLROnPlateau": "follows a metric, but a scheduler steps after each optimizer step: set "
    "scheduler=cosine or constant; patience=5 ends a training whose val/score no longer rises",
    **dict.fromkeys(("NLLLoss", "KLDivLoss", "PoissonNLLLoss", "GaussianNLLLoss"), LOG_PROBABILITIES),
    "BCELoss": "takes probabilities, but a model gives logits: set loss=cross_entropy",
}
VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
EVALUATION: dict[str, Any] = {
    "ckpt_path": str,
    "micro_batch_size": int | None,
    "trusted": list[str],
    "seed": int | None,
    "run_dir": str,
    "overwrite": bool,
    "eval.views": str,
    "eval.split": Literal["train", "val", "test"] | None,
    "eval.order": Literal["forward", "reversed", "shuffled"],
    "eval.report": bool,
    "eval.hardest_first": bool,
    **{key: TYPES[key] for key in ("init.frames", "init.heads", "init.mean", "init.std")},
}
# These are keys of model=NAME that an evaluation does not use.
UNUSED = {
    "frames": "set data.frames instead",
    "image_size": "set data.crop instead",
    "_target_": "the checkpoint names the class of its model; trusted=[PACKAGE] allows one of your own",
    **dict.fromkeys(("drop_path", "checkpoint_activations", "compile"), "an evaluation does not use it"),
}
# A run reads these itself, so they may not be left out with ~KEY.
NEEDED = (
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision", "trainer.max_epochs"),
    *("trainer.max_steps", "trainer.enable_progress_bar", "data.name", "data.root", "data.reader", "data.train"),
    *("data.val", "data.test", "data.frames", "data.stride", "data.short_side", "data.crop", "model.tubelet"),
    *("data.allow_private_urls", "data.augment_on", "model.size", "model.sampled_frames"),
    *("model.model", "model.frames", "model.image_size"),
    *(key for key in TYPES if key.startswith(("init.", "eval."))),
)
NEEDED_IN_EVALUATION = (
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision"),
    *("trainer.enable_progress_bar", "data.allow_private_urls"),
    *(key for key in EVALUATION if key.startswith("eval.")),
)
# An evaluation does not train.
ONLY_TRAINING = (
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps")),
    *(f"trainer.{name}" for name in ("gradient_clip_val", "gradient_clip_algorithm", "overfit_batches")),
    *(f"trainer.{name}" for name in ("check_val_every_n_epoch", "val_check_interval", "detect_anomaly")),
    *(f"trainer.{name}" for name in ("limit_train_batches", "limit_val_batches", "num_sanity_val_steps")),
    *(f"trainer.{name}" for name in ("log_every_n_steps", "reload_dataloaders_every_n_epochs")),
    *(f"trainer.{name}" for name in ("enable_checkpointing", "enable_autolog_hparams", "model_registry")),
    *(f"data.{name}" for name in ("flip", "scale_jitter", "color_jitter", "strong_color", "randaugment")),
    *(f"data.{name}" for name in ("randaugment_kind", "random_erasing", "mirror_labels", "balance")),
    *(f"data.{name}" for name in ("limit_per_class", "clips_per_video", "augment_on", "changed")),
    *("data.max_bad_fraction", "data.reader.val_percent", "data.reader.seed"),
)


def key_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each key that nothing reads, and for each value of a wrong type or out of range."""
    known = [name for name in TYPES if "." not in name] + list(NODES)
    foreign = [key for key in map(str, cfg) if key not in known]
    problems = [unknown(name, known) for key in foreign for name in leaf_names(key, cfg[key])]
    problems += [f"{name}: is missing" for name in known if name not in cfg and name not in OPTIONAL]
    problems += [f"{key}: is missing" for key in NEEDED if is_left_out(cfg, key)]
    for name in cfg:
        if name not in known:
            continue
        try:
            node = cfg[name]
        except OmegaConfBaseException as error:
            problems.append(f"{name}: {reason(error)}")
            continue
        if name == "callbacks" and isinstance(node, DictConfig):
            for callback in map(str, node):
                problems += callback_problems(f"callbacks.{callback}", node[callback])
        elif name in ("init", "eval"):
            problems += plain_node_problems(name, node, TYPES)
        elif name in OFFERED:
            problems += built_part_problems(name, node) if node or name not in OPTIONAL else []
        elif name in NODES:
            problems += node_problems(name, node) if node or name not in OPTIONAL else []
        else:
            problems += value_problems(name, node, TYPES[name])
    return problems


def is_left_out(cfg: DictConfig, key: str) -> bool:
    """Returns whether a node of a known class lacks a key. A class of the user's own may have other keys."""
    name, _, argument = key.partition(".")
    node = cfg.get(name)
    if not isinstance(node, DictConfig) or argument in node:
        return False
    return str(node.get("_target_", "vivit_train.")).startswith(("vivit_train.", "lightning."))


def callback_problems(name: str, node: Any) -> list[str]:
    """Returns the problems of a node of callbacks; null leaves out a callback."""
    if node is None:
        return []
    problems = node_problems(name, node)
    if problems:
        return problems
    target = resolve_name(node._target_)
    if instead := REPLACED.get(node._target_.rpartition(".")[2]):
        return [f"{name}._target_={node._target_}: {instead} instead"]
    if inspect.isclass(target) and not issubclass(target, Callback):
        return [f"{name}._target_={node._target_}: is no callback of Lightning"]
    return missing_problems(name, node, target)


def missing_problems(name: str, node: DictConfig, target: Any, offered: Collection[str] = ()) -> list[str]:
    """Returns a message for each argument without a default that a node does not state.

    Args:
        name: The name of the node.
        node: The node.
        target: What its `_target_` names.
        offered: The arguments that the builders give.
    """
    try:
        parameters = signature(target)
    except (TypeError, ValueError):  # Some functions that are written in C have no signature.
        return []
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in VARIABLE]
    return [f"{name}.{n}: is missing; {node._target_} needs it" for n in needed if n not in (*node, *offered)]


def built_part_problems(name: str, node: Any) -> list[str]:
    """Returns the problems of an optimizer, scheduler, loss or logger."""
    target = str(node.get("_target_")) if isinstance(node, DictConfig) else ""
    if advice := UNFIT.get(target.removeprefix("torch.optim.").removeprefix("torch.nn.")):
        return [f"{name}._target_={target}: {advice}"]
    if problems := node_problems(name, node):
        return problems
    return missing_problems(name, node, resolve_name(target), OFFERED[name])


def evaluation_key_problems(cfg: DictConfig) -> list[str]:
    """Returns the same for a configuration of eval.py, in which null means as in the checkpoint."""
    known = [*(name for name in EVALUATION if "." not in name), "eval", "init", "model", "data", "trainer"]
    problems = [unknown(key, known) for key in map(str, cfg) if key not in known]
    absent = [name for name in known if name not in cfg or OmegaConf.is_missing(cfg, name)]
    absent += [key for key in NEEDED_IN_EVALUATION if is_left_out(cfg, key)]
    problems += [f"{key}: is missing" for key in absent]
    for name in cfg:
        if name in EVALUATION and name not in absent:
            problems += value_problems(str(name), cfg[name], EVALUATION[str(name)])
    if {"eval", "data", "trainer"} & {*absent}:
        return problems
    problems += plain_node_problems("eval", cfg.eval, EVALUATION)
    problems += plain_node_problems("init", cfg.init, EVALUATION)
    if (cfg.init.mean is None) != (cfg.init.std is None):
        problems.append("init.mean and init.std belong together: set both, or neither")
    problems += evaluation_model_problems(cfg.model)
    hints = hints_of(VideoDataModule)
    for key, value in values_of(cfg.data):
        if isinstance(value, DictConfig) and "_target_" in value:
            problems += node_problems(f"data.{key}", value)
        elif value is not None or key not in hints:
            problems += argument_problems("data", key, value, hints, False, "VideoDataModule")
    found = node_problems("trainer", cfg.trainer)
    keys = [f"trainer.{key}" for key in GIVEN["trainer"]]  # The advice about these is for a training.
    problems += [f"{key} has no effect in an evaluation" for key in keys if OmegaConf.select(cfg, key) is not None]
    return problems + [problem for problem in found if problem.partition(":")[0] not in keys]


def evaluation_model_problems(node: DictConfig) -> list[str]:
    """Returns the problems of the `model` node of eval.py, whose values are compared with those of the weights."""
    hints = {"size": str, **hints_of(ViViT)}
    problems = []
    for key, value in node.items():
        if value is not None and key in UNUSED:
            problems.append(f"model.{key}={value}: {UNUSED[str(key)]}")
        elif value is not None:
            problems += argument_problems("model", str(key), value, hints, False, "ViViT")
    return problems


def plain_node_problems(name: str, node: Any, types: Mapping[str, Any]) -> list[str]:
    """Returns the problems of a node whose keys are all in `types`, by dotted name."""
    if not isinstance(node, DictConfig):
        return [f"{name}={node}: must be a group of keys"]
    known = [key for key in types if key.startswith(f"{name}.")]
    keys = [str(key) for key in node]
    problems = [unknown(f"{name}.{key}", known) for key in keys if f"{name}.{key}" not in known]
    for key in keys:
        if f"{name}.{key}" in known:
            problems += value_problems(f"{name}.{key}", node[key], types[f"{name}.{key}"])
    return problems


def node_problems(name: str, node: Any) -> list[str]:
    """Returns the problems of a node whose `_target_` is called with its keys as arguments."""
    if not isinstance(node, DictConfig):
        return [f"{name}={node}: must be a group of keys with a _target_"]
    if not isinstance(node.get("_target_"), str):
        return [f"{name}._target_: is missing; it names a function or class"]
    try:
        function = resolve_name(node._target_)
        hints, is_open = accepted_hints(function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        return [f"{name}._target_={node._target_}: cannot be imported ({reason(error)})"]
    return [
        problem
        for key, value in values_of(node)
        for problem in argument_problems(name, key, value, hints, is_open, node._target_)
    ]


def argument_problems(
    name: str, key: str, value: Any, hints: Mapping[str, Any], is_open: bool, target: str
) -> list[str]:
    """Returns the problems of one argument of a node; see `node_problems`."""
    path = f"{name}.{key}"
    if key in GIVEN.get(name, {}):
        return [f"{path}: {GIVEN[name][key]}{'' if 'leave it out' in GIVEN[name][key] else ' instead'}"]
    if isinstance(value, OmegaConfBaseException):
        return [f"{path}: {reason(value)}"]
    if key not in hints and not is_open:
        if name in PARTS:
            return [f"{path}={value}: {target} has no such argument"]
        known = [f"{name}.{other}" for other in hints if other not in GIVEN.get(name, {})]
        return [unknown(path, known, target)]
    if isinstance(value, DictConfig) and "_target_" in value:
        return node_problems(path, value)
    hint = TYPES.get(path, hints.get(key, inspect.Parameter.empty))
    if name == "model" and value is None and key not in ("model", "size", "tubelet"):  # the default of the size
        return []
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [choice for choice in choices if get_origin(choice) is not Callable]
    if len(plain) < len(choices) and not any(conforms(value, choice) for choice in plain):
        return [f"{path}={written(value)}: must be a group of keys with a _target_"]
    return value_problems(path, value, hint, target)


def values_of(node: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yields the arguments of a node; a value that cannot be resolved is the error."""
    for key in node:
        if str(key).startswith("_"):
            continue
        try:
            yield str(key), None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException as error:
            yield str(key), error


def leaf_names(name: str, node: Any) -> Iterator[str]:
    """Yields the dotted names of the leaves below a node, or its own name if it is a leaf."""
    if not isinstance(node, DictConfig) or not node:
        yield name
        return
    for key in map(str, node):
        yield from leaf_names(f"{name}.{key}", node[key])
