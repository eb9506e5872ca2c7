"""How much each tubelet of a clip contributes to a prediction, for all four models.

Relevance starts at the tokens that the head sees and passes back through the attention maps, from the last layer
to the first. Attention rollout (arXiv 2005.00928) passes half of it along the map, averaged over the heads, and
half along the residual connection. The gradient method (arXiv 2103.15679) adds the positive part of map times
gradient, so its result depends on the class.

Shape suffixes: B clips, t time indices, n places in space, N tokens of an encoder, D their width, h heads,
K classes. The relevance r of the tokens of an encoder has the shape [B, N] with vivit_st, [B t, N] with vivit_fe
and [B, t, n] with the other two.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        method: "gradient", or "rollout", which a `FrameProbe` does not have.

    The values are not negative. Those of "rollout" add up to at most 1.

    Raises:
        ValueError: The model is a `FrameProbe` and the method "rollout".
    """
    if not isinstance(net, FrameProbe):
        found_Btn, logits = of_vivit(net, video_BCTHW, classes, method)
    elif method == "gradient":
        found_Btn, logits = of_probe(net, video_BCTHW, classes)
    else:
        raise ValueError("a FrameProbe has no rollout, which treats all tokens that its head weighs as equal")
    return found_Btn.unflatten(2, net.grid[1:]), logits.detach()


def of_vivit(
    net: ViViT, video_BCTHW: Tensor, classes: Sequence[int | None], method: Method
) -> tuple[Tensor, Tensor]:
    """Returns the relevance [B, t, n] and the logits of a model whose head sees one token, or the mean of all."""
    with torch.set_grad_enabled(method == "gradient"), attention_maps(net) as maps:
        logits = net.head(net.features(video_BCTHW))
    if method == "gradient":
        maps = weighted(maps, torch.autograd.grad(explained_score(net, logits, classes), maps))
    means, keep = [m.mean(1) for m in maps], 0.5 if method == "rollout" else 1.0
    B, (t, rows, columns), depth = len(video_BCTHW), net.grid, len(net.encoder.blocks)
    if has_two_axes(net):
        of_encoder, first = means, means[0].new_full((B, t, rows * columns), 1 / (t * rows * columns))
    else:
        of_encoder, first = means[:depth], pooled_tokens(net.encoder, means[0])
    found_Btn = on_grid(net, through(net, {depth: first}, of_encoder, keep))
    if method == "gradient":
        # If the head sees the mean of the patches, residual connections alone give the same to all of them.
        found_Btn = found_Btn - on_grid(net, first)
    if net.temporal_encoder is not None:
        found_Btn = found_Btn * over_time(net.temporal_encoder, means[depth:], t, keep)[..., None]
    elif net.model == "vivit_fe":
        found_Btn = found_Btn / t
    return found_Btn, logits


def of_probe(net: FrameProbe, video_BCTHW: Tensor, classes: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    """Returns the relevance [B, t, n] and the logits of a probe, whose head sees tokens after several layers."""
    with torch.enable_grad(), attention_maps(net) as maps:
        net.check_input(video_BCTHW)
        tokens = net.tokens(video_BCTHW)
        logits = net.head(net.pool(tokens, video_BCTHW))
    gradients = torch.autograd.grad(explained_score(net, logits, classes), [*tokens.values(), *maps])
    means = [m.mean(1) for m in weighted(maps, gradients[len(tokens) :])]
    starts = {source: contributions(net, x, g) for (source, x), g in zip(tokens.items(), gradients, strict=False)}
    found_Btn = video_BCTHW.new_zeros(len(video_BCTHW), net.grid[0], net.grid[1] * net.grid[2])
    maps_per_layer = len(means) // sum(layers[-1] for layers in net.passes.values())
    for seen, layers in net.passes.items():
        of_pass, means = means[: maps_per_layer * layers[-1]], means[maps_per_layer * layers[-1] :]
        r = through(net, {number: starts[seen, number] for number in layers}, of_pass, keep=1.0)
        found_Btn = found_Btn + on_grid(net, r)
    return found_Btn, logits


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


def weighted(maps: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Returns the positive part of each map times its gradient."""
    return [(m * g).clamp(min=0).detach() for m, g in zip(maps, gradients, strict=True)]


def explained_score(net: ViViT, logits_BK: Tensor, classes: Sequence[int | None]) -> Tensor:
    """Returns the sum of the logits to explain, over clips and heads; see `relevance`."""
    score = logits_BK.new_zeros(())
    for i, of_head_BK in enumerate(logits_BK.split(list(net.head_sizes.values()), dim=1)):
        chosen = classes[i] if i < len(classes) else None
        score = score + (of_head_BK.max(1).values if chosen is None else of_head_BK[:, chosen]).sum()
    return score


def contributions(net: FrameProbe, tokens: Tensor, gradient: Tensor) -> Tensor:
    """Returns what each token adds to the score, as relevance r, from the gradient of the score; both [..., N, D].

    The patches of a clip are compared with their mean, so that what they have in common does not count. Of the
    class token, either sign counts: there is one in a frame, so nothing to compare it with.
    """
    first, (t, rows, columns) = int(net.encoder.cls_token is not None), net.grid
    x_BtND, g_BtND = (x.detach().reshape(-1, 1 if net.is_joint else t, *x.shape[-2:]) for x in (tokens, gradient))
    places = slice(first, first + rows * columns * (t if net.is_joint else 1))
    added_BtN = (x_BtND * g_BtND).sum(-1).abs()
    centered = x_BtND[:, :, places] - x_BtND[:, :, places].mean((1, 2), keepdim=True)
    added_BtN[:, :, places] = (centered * g_BtND[:, :, places]).sum(-1).clamp(min=0)
    return added_BtN if has_two_axes(net) else added_BtN.flatten(0, 1)


def pooled_tokens(encoder: Encoder, weights: Tensor) -> Tensor:
    """Returns the relevance of the tokens after the last block, [..., N]: one, or the mean, of them is pooled."""
    r = weights.new_zeros(*weights.shape[:-2], weights.shape[-1])
    if encoder.cls_token is not None:
        r[..., 0] = 1
    else:
        pooled = weights.shape[-1] - (0 if encoder.reg_token is None else encoder.reg_token.shape[1])
        r[..., :pooled] = 1 / pooled
    return r


def has_two_axes(net: ViViT) -> bool:
    """Returns whether attention of `net.encoder` covers time and space apart, as in models 3 and 4."""
    return len(net.layout.encoders["encoder"]) > 1


def through(net: ViViT, starts: Mapping[int, Tensor], maps: Sequence[Tensor], keep: float) -> Tensor:
    """Passes relevance back through the layers of `net.encoder`; returns that of the tokens of the embedding.

    Args:
        net: The model.
        starts: The relevance r that starts after each of these numbers of layers.
        maps: The weights of each attention, in the order of the forward pass, averaged over the heads.
        keep: See `mixed`.
    """
    depth = max(starts)
    maps_per_layer = len(maps) // depth
    r = torch.zeros_like(starts[depth])
    for number in range(depth, 0, -1):
        r = r + starts[number] if number in starts else r
        of_layer = maps[maps_per_layer * (number - 1) : maps_per_layer * number]
        if len(of_layer) == 1:
            r = mixed(r, along_tokens(r, of_layer[0]), keep)
        elif net.model == "vivit_fdp":  # Half of the heads of one attention cover time, the others space.
            r = mixed(r, (along("time", r, of_layer[0]) + along("space", r, of_layer[1])) / 2, keep)
        else:
            axes: list[Axis] = ["space", "time"] if net.order == "space_time" else ["time", "space"]
            for axis, weights in reversed(list(zip(axes, of_layer, strict=True))):
                r = mixed(r, along(axis, r, weights), keep)
    return r


def mixed(r: Tensor, attended: Tensor, keep: float) -> Tensor:
    """Returns `keep` of the relevance r and 1 - `keep` of what attention passes; if `keep` is 1, their sum."""
    return r + attended if keep == 1 else keep * r + (1 - keep) * attended


def over_time(encoder: Encoder, maps: Sequence[Tensor], t: int, keep: float) -> Tensor:
    """Returns how much each time index counts, [B, t], from the maps of the temporal encoder of vivit_fe."""
    first = r = pooled_tokens(encoder, maps[0])
    for weights in reversed(maps):
        r = mixed(r, along_tokens(r, weights), keep)
    return patches(encoder, r - first if keep == 1 else r, t)


def on_grid(net: ViViT, r: Tensor) -> Tensor:
    """Returns the relevance of the patches, [B, t, n]."""
    t, n = net.grid[0], net.grid[1] * net.grid[2]
    if net.model == "vivit_st":
        return patches(net.encoder, r, t * n).unflatten(1, (t, n))
    if net.model == "vivit_fe":
        return patches(net.encoder, r, n).unflatten(0, (-1, t))
    return r


def patches(encoder: Encoder, r: Tensor, count: int) -> Tensor:
    """Leaves out the class token and the register tokens."""
    first = int(encoder.cls_token is not None)
    return r[..., first : first + count]


def along_tokens(r: Tensor, weights: Tensor) -> Tensor:
    """Passes relevance [..., N] through weights [..., N, N] over all tokens."""
    return (r.unsqueeze(-2) @ weights).squeeze(-2)


def along(axis: Axis, r_Btn: Tensor, weights: Tensor) -> Tensor:
    """Passes relevance through weights over space, [B t, n, n], or over time, [B n, t, t]."""
    B, t, n = r_Btn.shape
    if axis == "space":
        return torch.einsum("btn,btnm->btm", r_Btn, weights.unflatten(0, (B, t)))
    return torch.einsum("btn,bnts->bsn", r_Btn, weights.unflatten(0, (B, n)))
