"""How much each tubelet of a clip contributes to a prediction, for all four models.

Both methods pass the relevance of the pooled token back through the attention maps, from the last layer to the
first. Attention rollout (arXiv 2005.00928) passes half of it along the map, averaged over the heads, and half
along the residual connection. The gradient method (arXiv 2103.15679) adds the positive part of map times gradient,
so its result depends on the class.

Shape suffixes: B clips, t time indices, n places in space, N tokens, h heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from vivit_train.models.layers import Attention, Encoder
from vivit_train.models.probe import FrameProbe
from vivit_train.models.vivit import ViViT

Axis = Literal["space", "time"]
Method = Literal["gradient", "rollout"]


def relevance(
    net: ViViT, video_BCTHW: Tensor, classes: Sequence[int | None] = (), method: Method = "gradient"
) -> tuple[Tensor, Tensor]:
    """Returns the relevance of each tubelet, [B, t, rows, columns], and the logits [B, K].

    Args:
        net: The model, in evaluation mode.
        video_BCTHW: Normalized clips.
        classes: The class to explain, for each head; None, or a missing number, is the predicted class.
        method: "gradient" or "rollout".

    The values are not negative. Those of "rollout" add up to at most 1.
    """
    with torch.set_grad_enabled(method == "gradient"), attention_maps(net) as maps:
        logits = net(video_BCTHW)
        heads = [logits] if isinstance(logits, Tensor) else list(logits.values())
    if method == "gradient":
        score = video_BCTHW.new_zeros(())
        for i, logits_BK in enumerate(heads):
            chosen = classes[i] if i < len(classes) else None
            score = score + (logits_BK.max(1).values if chosen is None else logits_BK[:, chosen]).sum()
        gradients = torch.autograd.grad(score, maps)
        maps = [(m * g).clamp(min=0).detach() for m, g in zip(maps, gradients, strict=True)]
    keep = 0.5 if method == "rollout" else 1.0
    found = [passed_back(net, some, len(video_BCTHW), keep) for some in by_pass(net, [m.mean(1) for m in maps])]
    found_Btn = torch.stack(found).mean(0)
    return found_Btn.unflatten(2, net.grid[1:]), torch.cat(heads, 1).detach()


@contextmanager
def attention_maps(net: ViViT) -> Iterator[list[Tensor]]:
    """Collects the attention maps of the forward passes in this context, in their order, each [..., h, N, N]."""
    maps: list[Tensor] = []
    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    hooks = [a.probabilities.register_forward_hook(lambda *args: maps.append(args[2])) for a in attentions]
    before = [a.eager for a in attentions]
    net.use_eager_attention()
    try:
        yield maps
    finally:
        for attention, eager, hook in zip(attentions, before, hooks, strict=True):
            attention.eager = eager
            hook.remove()


def by_pass(net: ViViT, maps: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """Divides maps by the passes through the encoder, of which a `FrameProbe` has one for each of its inputs."""
    if not isinstance(net, FrameProbe):
        return [maps]
    depths = [layers[-1] for layers in net.passes.values()]
    maps_per_layer = len(maps) // sum(depths)
    ends = accumulate(maps_per_layer * depth for depth in depths)
    return [maps[end - maps_per_layer * depth : end] for depth, end in zip(depths, ends, strict=True)]


def passed_back(net: ViViT, maps: Sequence[Tensor], B: int, keep: float) -> Tensor:
    """Returns the relevance of the tokens of the embedding, [B, t, n].

    Args:
        net: The model.
        maps: The weights of each attention, in the order of the forward pass, averaged over the heads.
        B: The number of clips.
        keep: The share of the relevance that the residual connection passes; attention passes 1 - `keep` of it, or
            adds to it if `keep` is 1.
    """
    t, n = net.grid[0], net.grid[1] * net.grid[2]
    gain = 1.0 if keep == 1 else 1 - keep
    if net.model == "vivit_st":
        found_BN = through(net.encoder, seen_by_head(net, maps[0], t * n), maps, keep, gain)
        return patches(net.encoder, found_BN, t * n).unflatten(1, (t, n))
    if net.model == "vivit_fe":
        depth, temporal = len(net.encoder.blocks), net.temporal_encoder
        weight_Bt = maps[0].new_full((B, t), 1 / t)
        if temporal is not None:
            weight_BN = through(temporal, start(temporal, maps[depth]), maps[depth:], keep, gain)
            weight_Bt = patches(temporal, weight_BN, t)
        first = seen_by_head(net, maps[0], n)
        found_BtN = through(net.encoder, first, maps[:depth], keep, gain).unflatten(0, (B, t))
        return patches(net.encoder, found_BtN, n) * weight_Bt[..., None]
    r_Btn = maps[0].new_full((B, t, n), 1 / (t * n))
    axes: tuple[Axis, Axis] = (
        ("space", "time") if net.order == "space_time" and net.model == "vivit_fsa" else ("time", "space")
    )
    for pair in reversed(list(zip(maps[::2], maps[1::2], strict=True))):
        if net.model == "vivit_fdp":  # Half of the heads of one attention cover time, the others space.
            passed = [along(axis, r_Btn, weights) for axis, weights in zip(axes, pair, strict=True)]
            r_Btn = keep * r_Btn + gain * (passed[0] + passed[1]) / 2
            continue
        for axis, weights in reversed(list(zip(axes, pair, strict=True))):
            r_Btn = keep * r_Btn + gain * along(axis, r_Btn, weights)
    return r_Btn


def start(encoder: Encoder, weights: Tensor) -> Tensor:
    """Returns the relevance of the tokens after the last block, [..., N]: one, or the mean, of them is pooled."""
    r = weights.new_zeros(*weights.shape[:-2], weights.shape[-1])
    if encoder.cls_token is not None:
        r[..., 0] = 1
    else:
        pooled = weights.shape[-1] - (0 if encoder.reg_token is None else encoder.reg_token.shape[1])
        r[..., :pooled] = 1 / pooled
    return r


def seen_by_head(net: ViViT, weights: Tensor, count: int) -> Tensor:
    """Returns the relevance of the tokens after the last block of `net.encoder`, `count` of which are patches."""
    first = start(net.encoder, weights)
    if isinstance(net, FrameProbe) and any(one.space != "cls" for one in net.poolings):
        # The head of a probe sees means of patches.
        first = torch.zeros_like(first)
        patches(net.encoder, first, count).fill_(1 / count)
    return first


def through(encoder: Encoder, r: Tensor, maps: Sequence[Tensor], keep: float, gain: float) -> Tensor:
    """Passes the relevance [..., N] back through the blocks of an encoder with one token axis."""
    for weights in reversed(maps[: len(encoder.blocks)]):
        r = keep * r + gain * (r.unsqueeze(-2) @ weights).squeeze(-2)
    return r


def patches(encoder: Encoder, r: Tensor, count: int) -> Tensor:
    """Leaves out the class token and the register tokens."""
    first = int(encoder.cls_token is not None)
    return r[..., first : first + count]


def along(axis: Axis, r_Btn: Tensor, weights: Tensor) -> Tensor:
    """Passes the relevance through weights over space, [B t, n, n], or over time, [B n, t, t]."""
    B, t, n = r_Btn.shape
    if axis == "space":
        return torch.einsum("btn,btnm->btm", r_Btn, weights.unflatten(0, (B, t)))
    return torch.einsum("btn,bnts->bsn", r_Btn, weights.unflatten(0, (B, n)))
