"""Checks a configuration before anything expensive starts, and derives what follows from it."""

import math
import os
import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vivit_train.data.randaugment import MAX_MAGNITUDE
from vivit_train.data.sampler import split_batch
from vivit_train.data.video.decode import DECODERS
from vivit_train.effects import stride_problems, unused_problems
from vivit_train.models.tuning import cache_problem, problem_of
from vivit_train.models.vivit import MODELS, SIZES, unknown_model
from vivit_train.models.weights.files import WEIGHT_FILES
from vivit_train.parts import check_optimizer
from vivit_train.recipe import Recipe
from vivit_train.schema import ONLY_TRAINING, evaluation_key_problems, key_problems
from vivit_train.tasks import name_of, task_problems
from vivit_train.training.profiling import half_precision_speedup, step_dtype
from vivit_train.utils.arguments import accepted_arguments
from vivit_train.utils.conf import uses_fsdp
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.text import plural

SCALES = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


def validate(cfg: DictConfig, typed: Collection[str] = ()) -> None:
    """Checks the configuration and reports all problems in one message.

    Args:
        cfg: The configuration.
        typed: The keys that the user sets.

    Raises:
        UserError: The configuration is invalid. The message has one line per problem.
    """
    problems = key_problems(cfg)
    for check in (
        partial(unused_problems, typed),
        shape_and_size_problems,
        machine_problems,
        combination_problems,
        partial(task_problems, typed),
    ):
        try:
            problems += check(cfg)
        except (TypeError, ValueError, AttributeError, LookupError, OmegaConfBaseException):
            if not problems:  # Otherwise, a value of a wrong type makes this check impossible.
                raise
    refuse(problems)
    check_optimizer(cfg.optimizer)


def refuse(problems: Sequence[str]) -> None:
    """Raises `UserError` with one line per problem, if there are any."""
    if problems:
        raise UserError("\n".join(["invalid configuration:", *(f"  - {problem}" for problem in problems)]))


def derive(cfg: DictConfig, recipe: Recipe | None = None) -> DictConfig:
    """Returns a new configuration, without interpolations, that includes what follows from a valid one.

    These are the scaled learning rate, whether the optimizer is fused, the micro-batch and the gradient
    accumulation for the number of devices, and an absolute data folder.

    Raises:
        UserError: The size of the clips does not fit the model, the batch sizes do not fit the number of devices
            or mixing, or there is no recipe to scale from.
    """
    refuse(shape_and_size_problems(cfg))  # `resolve_clip` may have chosen the sizes after `validate`.
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    if cfg.scale_lr is not None:
        if recipe is None:
            raise UserError("scale_lr needs a recipe, which only a command line has: set optimizer.lr instead")
        ratio = cfg.global_batch_size / recipe.values["global_batch_size"]
        values["optimizer"]["lr"] *= SCALES[cfg.scale_lr](ratio)
    fused = "fused" in accepted_arguments(cfg.optimizer, "optimizer") and not needs_unfused_optimizer(cfg)
    fused = fused and not any(cfg.optimizer.get(key) for key in ("foreach", "differentiable"))  # They exclude it.
    values["optimizer"] = {**({"fused": True} if fused else {}), **values["optimizer"]}
    values["micro_batch_size"], values["trainer"]["accumulate_grad_batches"] = split_batch(
        cfg.global_batch_size, cfg.micro_batch_size, world_size(cfg), cfg.data.get("clips_per_video", 1)
    )
    if (cfg.mixup or cfg.cutmix) and values["micro_batch_size"] == 1:
        raise UserError(
            "mixup and CutMix mix the clips of a micro-batch, which has only one clip (micro_batch_size and "
            "global_batch_size determine its size): allow two or more, or set mixup=0 cutmix=0"
        )
    values["data"]["root"] = os.path.abspath(Path(cfg.data.root).expanduser())
    return OmegaConf.create(values)


def world_size(cfg: DictConfig) -> int:
    """Returns the number of processes of the job; only a Trainer knows what devices=auto and a scheduler mean."""
    keys = ("accelerator", "devices", "num_nodes", "strategy")
    node = {key: cfg.trainer[key] for key in keys if key in cfg.trainer}
    silent = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    try:
        probe: L.Trainer = instantiate(
            {"_target_": "lightning.Trainer", **node}, logger=False, **silent, _convert_="all"
        )
    except (MisconfigurationException, InstantiationException) as error:
        raise UserError(f"trainer: {reason(error.__cause__ or error)}") from error  # type: ignore[arg-type]
    return probe.world_size


def needs_unfused_optimizer(cfg: DictConfig) -> bool:
    """Returns whether a fused optimizer would be wrong.

    With fp16, gradients would be clipped before the fused optimizer unscales them. SGD has no fused kernel for
    sharded parameters.
    """
    return uses_fsdp(cfg) or str(cfg.trainer.precision) in ("16-mixed", "16")


def shape_and_size_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each size that does not fit the others."""
    model, data = cfg.model, cfg.data
    if "auto" in (data.frames, data.crop):  # `resolve_clip` chooses them, and the result is checked again.
        return []
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
    problems = MODELS[name].shape_problems(input_shape, tuple(model.tubelet), model.sampled_frames, dim, heads)
    pool, registers, rope_dim = model.get("pool") or "cls", model.get("reg_tokens") or 0, None
    if model.get("rope") and heads > 0:
        rope_dim = dim // heads
    return problems + MODELS[name].option_problems(pool, bool(model.get("fc_norm")), registers, rope_dim)


def combination_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each value that does not fit another one, or this machine."""
    problems = []
    if (cfg.init.mean is None) != (cfg.init.std is None):
        problems.append("init.mean and init.std belong together: set both, or neither")
    if (jitter := cfg.data.get("scale_jitter")) and jitter[0] > jitter[1]:
        problems.append(f"data.scale_jitter={list(jitter)}: the first number must not exceed the second")
    authors = cfg.data.get("randaugment_kind") == "authors"
    if authors and (ops := cfg.data.get("randaugment")) and ops[1] > MAX_MAGNITUDE:
        problems.append(
            f"data.randaugment={list(ops)}: the authors' operations have magnitudes up to {MAX_MAGNITUDE}; choose "
            "a smaller one, or data.randaugment_kind=torchvision"
        )
    nesterov, momentum, dampening = (cfg.optimizer.get(key) for key in ("nesterov", "momentum", "dampening"))
    if nesterov and (not momentum or dampening) and cfg.optimizer._target_ == "torch.optim.SGD":
        wrong = f"optimizer.dampening={dampening}" if momentum else f"optimizer.momentum={momentum or 0}"
        problems.append(
            f"optimizer.nesterov=true does not fit {wrong}: set optimizer.momentum=0.9 and leave out dampening"
        )
    if cfg.optimizer.get("fused") and cfg.optimizer.get("foreach"):
        problems.append(
            "optimizer.fused=true and optimizer.foreach=true exclude each other: leave out one of them"
        )
    problems += [problem] if (problem := problem_of(cfg.train, cfg.model.get("model"))) else []
    problems += cache_problems(cfg) if cfg.cache else []
    if (part := cfg.train not in ("all", "auto")) and uses_fsdp(cfg):
        problems.append(
            f"train={cfg.train}: trainer=fsdp shards blocks that are trained as a whole: set trainer=ddp"
        )
    if part and cfg.layer_decay is not None:
        problems.append(f"layer_decay={cfg.layer_decay}: only train=all has a learning rate for each layer")
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
    if not os.access(cfg.run_dir, os.W_OK):
        problems.append(f"run_dir={cfg.run_dir}: the folder is not writable")
    return problems


def cache_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each setting that does not fit stored features."""
    problems = [problem] if (problem := cache_problem(cfg.train, cfg.model.get("model"))) else []
    if name_of(cfg) != "task=classify":
        problems.append("cache=true: only task=classify trains from stored features: set cache=false")
    for key in ("mixup", "cutmix"):
        if cfg[key]:
            problems.append(f"cache=true: {key}={cfg[key]} mixes pixels, but features are stored: set {key}=0")
    if (clips := cfg.data.get("clips_per_video", 1)) != 1:
        problems.append(
            f"cache=true: data.clips_per_video={clips}: cache_views takes its place: set data.clips_per_video=1"
        )
    if cfg.model.get("compile"):
        problems.append("cache=true: model.compile=true would compile what is not computed: set it to false")
    return problems


def validate_evaluation(cfg: DictConfig, typed: Collection[str] = ()) -> None:
    """Checks a configuration of eval.py and reports all problems in one message; see `validate`.

    Raises:
        UserError: The configuration is invalid. The message has one line per problem.
    """
    problems = evaluation_key_problems(cfg)
    problems += [f"{key} has no effect in an evaluation" for key in typed if key in ONLY_TRAINING]
    problems = [*dict.fromkeys(problems)]
    if not problems:
        problems += stride_problems(typed, cfg) + stored_problems(typed, cfg)
        if "data.padding" in typed and cfg.data.sampling == "segments":
            problems.append("data.padding has no effect, because data.sampling=segments needs none")
        if "seed" in typed and cfg.eval.order != "shuffled":
            problems.append(f"seed={cfg.seed} has no effect without eval.order=shuffled")
        if (
            {"data.val", "data.test"} <= set(typed)
            and cfg.data.name is not None
            and cfg.data.test
            and cfg.data.val
        ):
            problems.append(
                f"data.val={cfg.data.val} has no effect, because data.test={cfg.data.test} is evaluated"
            )
    refuse(problems or machine_problems(cfg))


def stored_problems(typed: Collection[str], cfg: DictConfig) -> list[str]:
    """Returns a message for each key of an evaluation that cannot change what the checkpoint states."""
    problems = []
    if "data.fps" in typed and cfg.data.fps is None and cfg.data.stride is None:
        problems.append("data.fps=null has no effect, as null is what the checkpoint has: set data.stride=NUMBER")
    for key in ("data.val", "data.test"):
        if cfg.data.name is None and key in typed and OmegaConf.select(cfg, key) is None:
            problems.append(
                f"{key}=null has no effect, as null is what the checkpoint has: eval.split=val or eval.split=test "
                "chooses what is evaluated"
            )
    if cfg.data.name is not None and cfg.eval.split == "train":
        problems.append(
            f"eval.split=train: an evaluation with data={cfg.data.name} reads no training clips: set data.val to "
            "their list or folder, without eval.split"
        )
    return problems


def machine_problems(cfg: DictConfig) -> list[str]:
    """Returns a message about a decoder that does not exist, and about a precision that is slow on this CPU."""
    problems = [problem] if (problem := check_cpu_precision(cfg)) else []
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        problems.append(
            f"trainer.accelerator={cfg.trainer.accelerator}: no GPU is found (torch {torch.__version__}, {build}; "
            f"CUDA_VISIBLE_DEVICES is {visible}): set trainer=cpu or trainer=default"
        )
    if cfg.trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        problems.append(
            "trainer.accelerator=mps: there is none on this machine: set trainer=cpu or trainer=default"
        )
    problems += process_problems(cfg)
    decoder = cfg.data.get("decoder")
    if decoder not in (None, *DECODERS) and "." not in decoder:  # A dotted path is a function of the user's.
        problems.append(f"data.decoder={decoder}: must be one of {', '.join(DECODERS)}")
    return problems


# Strategies whose processes are started as scripts, so that this one has their results.
SCRIPTED = re.compile(r"ddp(_find_unused_parameters_(true|false))?")
# A scheduler, torchrun or the user sets one of these in each process of a job on several nodes.
STARTED = ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE")


def process_problems(cfg: DictConfig) -> list[str]:
    """Returns a message for each wrong number of devices or nodes, and for an unknown strategy."""
    problems = []
    devices, nodes, strategy = (cfg.trainer.get(key) for key in ("devices", "num_nodes", "strategy"))
    gpus = torch.cuda.device_count() if cfg.trainer.accelerator != "cpu" else 0
    if devices == 0 or (not gpus and (devices == -1 or OmegaConf.is_list(devices))):
        on = "" if gpus else "; on a CPU it is a number of processes"
        problems.append(f"trainer.devices={devices}: must be 1 or more, or auto{on}")
    elif gpus and isinstance(devices, int) and devices > gpus:
        problems.append(f"trainer.devices={devices}: {plural(gpus, 'GPU')} found on this machine")
    if isinstance(nodes, int) and nodes > 1 and not any(name in os.environ for name in STARTED):
        problems.append(
            f"trainer.num_nodes={nodes}: this process would wait for others forever; start one on each node with "
            "srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )
    known = ("auto", "single_device", *filter(SCRIPTED.fullmatch, StrategyRegistry.available_strategies()))
    if isinstance(strategy, str) and strategy not in known:
        advice = "; trainer=fsdp shards a model among GPUs" if strategy.startswith(("fsdp", "deepspeed")) else ""
        problems.append(f"trainer.strategy={strategy}: must be one of {', '.join(known)}{advice}")
    elif OmegaConf.is_config(strategy) and strategy.get("start_method", "popen") != "popen":
        problems.append(
            f"trainer.strategy.start_method={strategy.start_method}: processes start as scripts; leave it out"
        )
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
