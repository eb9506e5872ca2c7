"""The range and the form of each value of a configuration, beside the type that its key or argument has.

`RANGES` and `FORMS` name a key, or the argument of a class of PyTorch or Lightning: "EarlyStopping.mode".
The ranges of our own arguments are `LIMITS`.
"""

import math
import re
from inspect import Parameter
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from omegaconf import OmegaConf

from vivit_train.keys import TYPES
from vivit_train.models.vivit import SIZES
from vivit_train.utils.arguments import LIMITS, VIEWS, conforms, wording

AUTOMATIC = ("data.frames", "data.stride", "data.short_side", "data.crop", "model.frames", "model.image_size")
COUNT = (1, 2**40)
COUNT_OR_NONE = (0, 2**40)
BELOW_1 = 0.999999
RANGES: dict[str, tuple[float, float]] = {
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "ema_decay": (0, BELOW_1),
    "layer_decay": (0.01, 1),
    "cache_views": (1, 10000),
    "patience": (1, 1e6),
    "loss.gamma": (0, 100),
    "loss.tau": (0, 100),
    "loss.class_weights": (0, 1e9),
    "optimizer.lr": (0, 1e6),
    "optimizer.weight_decay": (0, 1e3),
    **dict.fromkeys((f"optimizer.{name}" for name in ("momentum", "rho", "dampening", "alpha")), (0, 1)),
    **dict.fromkeys((f"optimizer.{name}" for name in ("lr_decay", "momentum_decay", "lambd")), (0, 1e6)),
    **dict.fromkeys((f"optimizer.{name}" for name in ("initial_accumulator_value", "t0")), (0, 1e12)),
    "optimizer.betas": (0, BELOW_1),
    "optimizer.eps": (0, 1),
    "optimizer.ns_steps": (1, 99),
    "scheduler.warmup_epochs": (0, 1e6),
    "scheduler.last_epoch": (-1, -1),
    **dict.fromkeys((f"scheduler.{name}" for name in ("step_size", "step_size_up", "step_size_down")), COUNT),
    **dict.fromkeys(
        (f"scheduler.{name}" for name in ("T_max", "T_0", "T_mult", "total_iters", "milestones")), COUNT
    ),
    **dict.fromkeys((f"scheduler.{name}" for name in ("max_lr", "base_lr")), (1e-12, 1e6)),
    **dict.fromkeys((f"scheduler.{name}" for name in ("base_momentum", "max_momentum", "pct_start")), (0, 1)),
    **dict.fromkeys((f"scheduler.{name}" for name in ("div_factor", "final_div_factor")), (1e-6, 1e12)),
    **dict.fromkeys((f"scheduler.{name}" for name in ("factor", "start_factor", "end_factor")), (1e-12, 1)),
    **dict.fromkeys((f"scheduler.{name}" for name in ("gamma", "power")), (0, 100)),
    "scheduler.eta_min": (0, 1e6),
    "init.min_coverage": (0, 1),
    "init.mean": (0, 1),
    "init.std": (1e-4, 1),
    "trainer.min_epochs": (0, 2**40),
    "trainer.min_steps": (0, 2**40),
    "trainer.num_nodes": COUNT,
    "trainer.devices": (-1, 2**20),
    "trainer.max_epochs": COUNT,
    "trainer.max_steps": (-1, 2**40),
    "trainer.gradient_clip_val": (0, 1e12),
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.num_sanity_val_steps": (-1, 2**40),
    "trainer.log_every_n_steps": COUNT,
    "callbacks.last.minutes": (0, 1e6),
    "task.mask_ratio": (0.01, 0.99),
    "task.decoder_dim": LIMITS["dim"],
    "task.decoder_depth": LIMITS["depth"],
    "task.decoder_heads": LIMITS["heads"],
    "EarlyStopping.patience": COUNT,
    "ModelCheckpoint.save_top_k": (-1, 2**40),
    "ModelCheckpoint.every_n_epochs": COUNT_OR_NONE,
    "ModelCheckpoint.every_n_train_steps": COUNT_OR_NONE,
    "StochasticWeightAveraging.swa_lrs": (1e-12, 1e6),
    "StochasticWeightAveraging.annealing_epochs": COUNT_OR_NONE,
    "EMAWeightAveraging.decay": (0, BELOW_1),
    "EMAWeightAveraging.update_every_n_steps": COUNT,
    "ModelSummary.max_depth": (-1, 2**20),
    "TQDMProgressBar.refresh_rate": COUNT_OR_NONE,
    "RichProgressBar.refresh_rate": COUNT_OR_NONE,
    "CSVLogger.flush_logs_every_n_steps": COUNT,
    "Advice.epochs": COUNT,
}
# Batches: a fraction up to 1.0 or a whole number.
PARTS_OF_EPOCH = tuple(
    f"trainer.{name}"
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")
)
MAY_BE_NONE = ("trainer.limit_val_batches", "trainer.overfit_batches")  # 0 means none of them.
DURATION = r"\d+:\d\d:\d\d:\d\d"
# Texts of a fixed form: a regular expression and the form in words.
FORMS = {
    "trainer.max_time": (DURATION, "days:hours:minutes:seconds, such as 00:12:00:00"),
    "trainer.val_check_interval": (DURATION, "a number, or days:hours:minutes:seconds, such as 00:00:30:00"),
    "trainer.gradient_clip_algorithm": ("norm|value", "norm or value"),
    "trainer.profiler": ("simple|advanced|pytorch", "simple, advanced or pytorch"),
    "eval.views": VIEWS,
    "callbacks.checkpoint.filename": (r"[^/\\\\]+", "the name of a file, without folders"),
    "model.size": ("|".join(SIZES), f"one of {', '.join(SIZES)}"),
    "loss.reduction": (r"mean|sum", "mean or sum"),
    **dict.fromkeys(("EarlyStopping.mode", "ModelCheckpoint.mode"), ("max|min", "max or min")),
    "Timer.duration": (DURATION, "days:hours:minutes:seconds, such as 00:12:00:00"),
    "Timer.interval": ("step|epoch", "step or epoch"),
    "ModelPruning.pruning_fn": (
        "(ln|random)_structured|(l1|random)_unstructured",
        "one of ln_structured, l1_unstructured, random_structured, random_unstructured",
    ),
    "Muon.adjust_lr_fn": ("original|match_rms_adamw", "original or match_rms_adamw"),
    "LBFGS.line_search_fn": ("strong_wolfe", "strong_wolfe or null"),
}


def value_problems(path: str, value: Any, hint: Any, target: str = "") -> list[str]:
    """Returns a message if a value has another type than its annotation, or is out of its range.

    Args:
        path: The dotted key.
        value: The value.
        hint: The annotation; `Parameter.empty` if there is none.
        target: The function or class that takes it as an argument, as a dotted path.
    """
    argument = f"{target.rpartition('.')[2]}.{path.rpartition('.')[2]}"
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if plain == "auto" and path in AUTOMATIC:
        return []
    if hint is not Parameter.empty and is_checkable(hint) and not conforms(plain, hint):
        return [f"{path}={written(plain)}: must be {wording(hint)}"]
    form, words = FORMS.get(path) or FORMS.get(argument, ("", ""))
    if form and isinstance(plain, str) and not re.fullmatch(form, plain):
        return [f"{path}={written(plain)}: must be {words}"]
    if plain == "" and (path in (*TYPES, "logger.project", "logger.save_dir") or path.startswith("data.")):
        return [f"{path}={written(plain)}: must not be empty"]
    if path in (*PARTS_OF_EPOCH, "trainer.val_check_interval") and isinstance(plain, int | float):
        return part_problems(path, plain)
    if path == "trainer.max_steps" and plain == 0:
        return [f"{path}=0: must be -1 (no limit) or at least 1"]
    by_name = {} if path.startswith("callbacks.") else LIMITS
    low, high = (
        RANGES.get(path) or RANGES.get(argument) or by_name.get(path.rpartition(".")[2], (-math.inf, math.inf))
    )
    numbers = plain if isinstance(plain, list) else [plain]
    if all(low <= n <= high for n in numbers if isinstance(n, int | float) and not isinstance(n, bool)):
        return []
    low, high = (int(limit) if limit == int(limit) else limit for limit in (low, high))
    return [f"{path}={written(plain)}: must be between {low:,} and {high:,}"]


def part_problems(path: str, value: float) -> list[str]:
    """Returns a message if a value is neither a fraction up to 1.0 nor a whole number of batches."""
    is_whole = isinstance(value, int) and 1 <= value <= 2**40
    if is_whole or 0 < value <= 1 or (value == 0 and path in MAY_BE_NONE):
        return []
    return [f"{path}={written(value)}: must be a fraction up to 1.0 or a whole number of batches from 1"]


def written(value: Any) -> str:
    """Returns a value as it is written on the command line, with quotes around text that looks like a number."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str):
        return str(value)
    looks_otherwise = value in ("", "true", "false", "null") or re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value)
    return repr(value) if looks_otherwise else value


def is_checkable(hint: Any) -> bool:
    """Returns whether an annotation is about plain data: a class of a library cannot be written in YAML."""
    simple = (int, float, str, bool, NoneType)
    if get_origin(hint) is Literal:
        return True
    return not isinstance(hint, str) and (hint in simple or any(is_checkable(part) for part in get_args(hint)))
