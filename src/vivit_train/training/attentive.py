"""Attentive heads for many weight decays and folds at once.

Shape suffixes: N clips, E features, K classes, P problems.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vivit_train.models.probe import AttentiveHead, attentive_logits
from vivit_train.training.folds import held_out_logits

STEPS, BATCH, LR = 200, 32, 3e-3
Parameters = dict[str, Tensor]


def fit_attentive(
    x_NE: Tensor, width: int, label_N: Tensor, num_classes: int, decay_P: Sequence[float], weight_PN: Tensor
) -> Parameters:
    """Trains an `AttentiveHead` for each problem by the same steps, and returns their parameters, [P, ...].

    Adam minimizes the mean cross-entropy + decay / 2 * ||weights of the linear layer||^2. The batches are the
    same in each call.

    Args:
        x_NE: The tokens of the clips, one after the other.
        width: The width of a token.
        label_N: The class ids.
        num_classes: The number of classes.
        decay_P: The weight decay of each problem.
        weight_PN: The weight of each clip in each problem: 0 for the clips of a fold that are held out.
    """
    start = AttentiveHead(x_NE.shape[1] // width, width, num_classes).state_dict()
    net = {name: x.expand(len(decay_P), *x.shape).clone().requires_grad_() for name, x in start.items()}
    optimizer = torch.optim.Adam(net.values(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    decay = torch.tensor(decay_P)
    weight_PN = weight_PN.float() * weight_PN.shape[1] / weight_PN.sum(1, keepdim=True)
    batches = random_batches(len(label_N), BATCH, torch.Generator().manual_seed(0))
    for _, batch in zip(range(STEPS), batches, strict=False):
        logits = attentive_logits(x_NE[batch], **net)
        label_PB = label_N[batch].expand(len(decay_P), -1)
        losses_PB = F.cross_entropy(logits.flatten(0, 1), label_PB.flatten(), reduction="none").view_as(label_PB)
        loss = (losses_PB * weight_PN[:, batch]).mean(1).sum()
        loss = loss + (net["weight"].square().sum((1, 2)) * decay).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: x.detach() for name, x in net.items()}


def random_batches(count: int, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yields batches of row numbers without end, each row once in an epoch."""
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


def cross_validate_attentive(
    x_NE: Tensor, width: int, label_N: Tensor, num_classes: int, decays: Sequence[float], fold_N: Tensor
) -> Tensor:
    """Returns the logits of each clip by the head that has not seen its fold, [decays, N, K]."""

    def logits_of(decay_P: list[float], weight_PN: Tensor) -> Tensor:
        return attentive_logits(x_NE, **fit_attentive(x_NE, width, label_N, num_classes, decay_P, weight_PN))

    return held_out_logits(logits_of, decays, fold_N)
