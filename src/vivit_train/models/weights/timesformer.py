"""Reads TimeSformer with divided space-time attention (arXiv 2102.05095) into a vivit_fsa.

Each of its layers attends over time, then over space, as vivit_fsa does with the order time_space. Its linear
layer after the attention over time is folded into that attention's output, and the sum of its positions in space
and time is one table; both are exact. Its class token, to which the patches attend and which its head reads, has
no place.
"""

import torch
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.adapt import square
from vivit_train.models.weights.checks import check_positions
from vivit_train.models.weights.files import Statistics
from vivit_train.models.weights.huggingface import activation, image_statistics
from vivit_train.models.weights.keys import HUB_BLOCK, TIMM_BLOCK, KeyMap, count_blocks, take
from vivit_train.models.weights.settings import shown_settings
from vivit_train.models.weights.source import Source, VideoWeights
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError

LICENSE = "CC BY-NC 4.0 (weights that the authors of TimeSformer released): no commercial use"
STATISTICS: Statistics = ((0.45,) * 3, (0.225,) * 3)
NOTE = (
    "vivit_fsa has no class token: that of TimeSformer is left out, so the outputs are not TimeSformer's, and the "
    "head, which read it, starts at zero"
)
HUB_KEYS: KeyMap = {
    "embedding.projection": ("embeddings.patch_embeddings.projection",),
    "encoder.blocks.*.norm_time": ("encoder.layer.*.temporal_layernorm",),
    "encoder.blocks.*.attention_time.qkv": ("encoder.layer.*.temporal_attention.attention.qkv",),
    "encoder.blocks.*.attention_time.out": ("encoder.layer.*.temporal_attention.output.dense",),
    **HUB_BLOCK,
    "encoder.blocks.*.attention.qkv": ("encoder.layer.*.attention.attention.qkv",),
    "encoder.norm": ("layernorm",),
}
AUTHORS_KEYS: KeyMap = {
    "embedding.projection": ("patch_embed.proj",),
    "encoder.blocks.*.norm_time": ("blocks.*.temporal_norm1",),
    "encoder.blocks.*.attention_time.qkv": ("blocks.*.temporal_attn.qkv",),
    "encoder.blocks.*.attention_time.out": ("blocks.*.temporal_attn.proj",),
    **TIMM_BLOCK,
    "encoder.norm": ("norm",),
}
# Their names of the linear layer after the attention over time, the positions, the class token, and the head.
HUB_OTHERS = ("encoder.layer.*.temporal_dense", "embeddings.position_embeddings", "embeddings.time_embeddings")
AUTHORS_OTHERS = ("blocks.*.temporal_fc", "pos_embed", "time_embed")
UNUSED = ("cls_token", "embeddings.cls_token", "head.weight", "head.bias", "classifier.weight", "classifier.bias")


def detect_timesformer(source: Source, net: ViViT) -> VideoWeights | None:
    """Returns the weights of a TimeSformer in a Hugging Face folder, a file of one, or a file of the authors.

    Raises:
        UserError: It has another kind of attention, or parts that ViViT does not have.
    """
    config = source.config or {}
    if config and config.get("model_type") != "timesformer":
        return None
    left = {name.removeprefix("timesformer.").removeprefix("model."): x for name, x in source.tensors.items()}
    is_hub = "embeddings.time_embeddings" in left
    if not config and not is_hub and "blocks.0.temporal_fc.weight" not in left:
        return None
    kind = config.get("attention_type", "divided_space_time")
    if kind != "divided_space_time":
        raise UserError(f"{source.name}/config.json: attention_type {shown(kind)} is not divided_space_time")
    key_map, (dense, *places) = (HUB_KEYS, HUB_OTHERS) if is_hub else (AUTHORS_KEYS, AUTHORS_OTHERS)
    depth = count_blocks(left, key_map["encoder.blocks.*.norm1"][0])
    state = take(left, key_map, depth)
    for i in range(depth):
        fold(state, f"encoder.blocks.{i}.attention_time.out", left, dense.replace("*", str(i)))
    space, time = (left.pop(place).float() for place in places)
    side, steps = square(space.shape[1] - 1), time.shape[1]
    if not side:
        raise UserError(f"{source.name} was trained on frames that are not square: {space.shape[1] - 1} patches")
    check_positions(steps * side**2, space.shape[-1], source.name)
    state["encoder.pos_embed"] = (time[:, :, None] + space[:, None, 1:]).flatten(1, 2)
    state["embedding.projection.weight"] = state["embedding.projection.weight"].unsqueeze(2)
    width = space.shape[-1]
    state |= {"head.weight": torch.zeros(0, width), "head.bias": torch.zeros(0)}
    if foreign := sorted(left.keys() - set(UNUSED)):
        raise UserError(f"{source.name} is not a plain TimeSformer: ViViT has no place for '{foreign[0]}'")
    shapes = shown_settings(state)
    settings = {"model": "vivit_fsa", "order": "time_space", "act": activation(config, source.name)}
    settings |= {"fc_norm": False} | {key: shapes[key] for key in ("dim", "depth", "mlp_dim", "tubelet")}
    if conforms(config.get("num_attention_heads"), int):
        settings["heads"] = config["num_attention_heads"]
    statistics = image_statistics(source.path, source.name) if source.path and config else None
    return VideoWeights(
        source.name,
        state,
        settings,
        grid=(steps, side, side),
        statistics=statistics or STATISTICS,
        unused=sorted(left),
        license=LICENSE,
        notes=[NOTE],
    )


def fold(state: dict[str, Tensor], ours: str, left: dict[str, Tensor], dense: str) -> None:
    """Folds a linear layer into the one before it."""
    weight, bias = (left.pop(f"{dense}.{kind}").float() for kind in ("weight", "bias"))
    state[f"{ours}.bias"] = weight @ state[f"{ours}.bias"] + bias
    state[f"{ours}.weight"] = weight @ state[f"{ours}.weight"]
