"""Parameter groups for weight decay, and the learning-rate schedules.

A schedule is a function from the optimizer step to a factor of the base learning rate. The functions in
conf/scheduler build one from the length of training; so can your own: scheduler._target_=package.function.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from torch import nn

Schedule = Callable[[int], float]
LAYER = re.compile(r"encoder\.blocks\.(\d+)\.")
# These parameters do not decay, though they have several axes.
TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed")


def parameter_groups(net: nn.Module, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Returns pairs of parameter groups: one with the optimizer's own weight decay, and one without weight decay.

    Matrices decay; biases, norms, class and register tokens, and position embeddings do not.

    Args:
        net: The model.
        layer_decay: The factor of the learning rate from each layer of the (spatial) encoder to the one below it.
            There is then a pair for each layer, and "lr_scale" is its factor; the embeddings are below the first
            layer, and all that follows the last layer has factor 1. None means one pair for the whole model.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    layers = [int(match[1]) for name, _ in net.named_parameters() if (match := LAYER.match(name))]
    top = max(layers, default=-1) + 2
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            layer = top if layer_decay is None else layer_of(name, top)
            for decays in (True, False):
                groups.setdefault((layer, decays), [])
            groups[layer, parameter.ndim > 1 and not name.endswith(TOKENS)].append(parameter)
    pairs: list[dict[str, Any]] = []
    for (layer, decays), parameters in sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1])):
        scale = {} if layer_decay is None else {"lr_scale": layer_decay ** (top - layer)}
        pairs.append({"params": parameters, **scale} | ({} if decays else {"weight_decay": 0.0}))
    return pairs


def layer_of(name: str, top: int) -> int:
    """Returns the layer of a parameter: 0 for embeddings, the blocks from 1, and `top` for what follows."""
    if match := LAYER.match(name):
        return int(match[1]) + 1
    return 0 if name.startswith(("embedding.", *(f"encoder.{token}" for token in TOKENS))) else top


def cosine(total_steps: int, steps_per_epoch: int, warmup_epochs: float = 2.5) -> Schedule:
    """Returns `warmup_cosine` with a warmup in epochs; like the authors, the warmup takes whole steps."""
    return warmup_cosine(int(steps_per_epoch * warmup_epochs), total_steps)


def constant(total_steps: int, steps_per_epoch: int, warmup_epochs: float = 2.5) -> Schedule:
    """Returns a schedule with a linear warmup and then a factor of 1."""
    warmup_steps = int(steps_per_epoch * warmup_epochs)
    return lambda step: min(1.0, step / warmup_steps) if warmup_steps else 1.0


def warmup_cosine(warmup_steps: float, total_steps: int) -> Schedule:
    """Returns a schedule with a linear warmup, then cosine decay to 0.

    At step s in 0 .. total - 1, the factor is, as in the authors' code,
    min(1, s / warmup) * 0.5 * (1 + cos(pi * max(0, s - warmup) / (total - warmup))).
    """

    def factor(step: int) -> float:
        warm = min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
        progress = max(0.0, step - warmup_steps) / max(1e-9, total_steps - warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
