"""Parameter groups for weight decay, and the learning-rate schedules.

A schedule is a function from the optimizer step to a factor of the base learning rate. The functions in
conf/scheduler build one from the length of training; so can your own: scheduler._target_=package.function.
"""

import math
from collections.abc import Callable

from torch import nn

Schedule = Callable[[int], float]
TOKENS = ("cls_token", "reg_token", "pos_embed")  # These parameters do not decay, though they have several axes.


def parameter_groups(net: nn.Module) -> list[dict[str, object]]:
    """Returns two parameter groups: one with the optimizer's own weight decay, and one without weight decay.

    Matrices decay; biases, norms, class and register tokens, and position embeddings do not.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and not name.endswith(TOKENS)].append(parameter)
    return [{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}]


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
