"""Parameter groups for weight decay, and the learning-rate schedule."""

import math
from collections.abc import Callable

from torch import nn


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Returns two parameter groups, with and without weight decay.

    Matrices decay; biases, norms, class tokens, and position embeddings do not.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def warmup_cosine(warmup_steps: float, total_steps: int) -> Callable[[int], float]:
    """Returns a function from the step to a factor of the base learning rate: linear warmup, then cosine decay.

    At step s in 0 .. total - 1, the factor is, as in the authors' code,
    min(1, s / warmup) * 0.5 * (1 + cos(pi * max(0, s - warmup) / (total - warmup))).
    """

    def factor(step: int) -> float:
        warm = min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
        progress = max(0.0, step - warmup_steps) / max(1e-9, total_steps - warmup_steps)
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
