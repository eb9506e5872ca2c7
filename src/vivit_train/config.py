"""Checks a configuration for all problems that can be found before anything expensive starts."""

import os
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from vivit_train import recipe
from vivit_train.data.video.decode import DECODERS
from vivit_train.models.vivit import MODELS, SIZES, unknown_model
from vivit_train.models.weights.files import WEIGHT_FILES
from vivit_train.training.evaluation import parse_views
from vivit_train.training.profiling import half_precision_speedup, step_dtype
from vivit_train.utils.arguments import LIMITS, limit_problems
from vivit_train.utils.errors import UserError


def disable_fused_optimizer(cfg: DictConfig) -> None:
    """Disables the fused optimizer where it would be wrong.

    With fp16, gradients would be clipped before the fused optimizer unscales them. SGD has no fused kernel for
    sharded parameters.
    """
    unfused = uses_fsdp(cfg) or str(cfg.trainer.precision) in ("16-mixed", "16")
    if unfused and cfg.recipe.optimizer.get("fused"):
        cfg.recipe.optimizer.fused = False


def check(cfg: DictConfig) -> None:
    """Checks the configuration and reports all problems in one message.

    Raises:
        UserError: The configuration is invalid. The message has one line per problem.
    """
    model, data = cfg.model, cfg.data
    problems = []
    for kind, name, low in (
        (int, "seed", 0),
        (int, "data.frames", 1),
        (int, "data.stride", 1),
        (int, "data.crop", 1),
        (int, "data.short_side", 1),
        (int, "data.micro_batch", 1),
        (float, "data.max_bad_fraction", 0),
        (int, "recipe.global_batch", 1),
        (float, "recipe.optimizer.lr", 0),
        (float, "recipe.warmup_epochs", 0),
        (int, "trainer.max_epochs", 1),
    ):
        value = OmegaConf.select(cfg, name)
        if not isinstance(value, int | kind) or value < low:
            problems.append(f"{name}={value}: must be {'an integer' if kind is int else 'a number'} >= {low}")
    if problems:
        pass  # The checks below need valid numbers.
    elif "size" in model and model.size not in SIZES:
        problems.append(f"model.size={model.size}: must be one of {', '.join(SIZES)}")
    else:
        problems += model_problems(model, (3, data.frames, data.crop, data.crop))
        if data.crop > data.short_side:
            problems.append(f"data.crop={data.crop} is larger than data.short_side={data.short_side}")
    for node in ("model", "data"):
        for key in LIMITS.keys() & cfg[node].keys():
            value = cfg[node][key]
            problems += limit_problems(f"{node}.{key}", key, recipe.plain(value))
    problems += choice_problems(cfg)
    if cfg.recipe.scale_lr not in (None, *recipe.SCALES):
        problems.append(f"recipe.scale_lr={cfg.recipe.scale_lr}: must be null, {' or '.join(recipe.SCALES)}")
    if data.fps is not None and not (isinstance(data.fps, int | float) and data.fps > 0):
        problems.append(f"data.fps={data.fps}: must be a positive number, or null to use data.stride instead")
    if cfg.recipe.ema and uses_fsdp(cfg):
        problems.append(
            f"recipe.ema={cfg.recipe.ema}: weights that trainer=fsdp shards cannot be averaged; set "
            "recipe.ema=null or trainer=ddp"
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
    if problems:
        raise UserError("\n".join(["invalid configuration:", *(f"  - {problem}" for problem in problems)]))


def model_problems(model: DictConfig, input_shape: tuple[int, int, int, int]) -> list[str]:
    """Returns a message for each reason why one of the four models cannot be built from its node.

    A model of the user's own package may have other arguments, so its own constructor checks them.
    """
    name = model.get("model")
    if name is None:
        return []
    if name not in MODELS:
        return [unknown_model(name)]
    dim, heads = (model[key] or SIZES[model.size][key] for key in ("dim", "heads"))
    return MODELS[name].shape_problems(input_shape, tuple(model.tubelet), model.sampled_frames, dim, heads)


def uses_fsdp(cfg: DictConfig) -> bool:
    """Returns whether parameters are sharded among ranks (trainer=fsdp)."""
    return "ModelParallelStrategy" in str(cfg.trainer.strategy)


CHOICES: dict[str, tuple[str | None, ...]] = {
    "data.sampling": ("window", "segments"),
    "data.short": ("loop", "edge", "pad"),
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
        if value not in choices and not (value is None and null_is_as_trained):
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
