"""Reads VideoMAE and VideoMAEv2 (arXiv 2203.12602, 2303.16727) into a vivit_st with equal outputs.

Both are a ViT over all tubelets with fixed sine-cosine positions, the exact GELU, and the mean of all tokens,
which is normalized after fine-tuning. Only q and v have a bias: a bias of k adds the same number to all scores of
a query, which softmax ignores, so zeros for k give the same outputs.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivit_train.models.layers import sincos_positions
from vivit_train.models.vivit import Grid, ViViT
from vivit_train.models.weights.checks import check_positions
from vivit_train.models.weights.files import Statistics
from vivit_train.models.weights.huggingface import activation, image_statistics, named_classes
from vivit_train.models.weights.keys import (
    HUB_BLOCK,
    TIMM_BLOCK,
    KeyMap,
    count_blocks,
    our_names,
    take,
    their_names,
)
from vivit_train.models.weights.settings import shown_settings
from vivit_train.models.weights.source import Source, VideoWeights
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError

LICENSE = "CC BY-NC 4.0 (weights that the authors of VideoMAE and VideoMAEv2 released): no commercial use"
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = (16, 224)  # The authors train on 16 frames of 224 pixels, also where their files do not say so.
HUB_KEYS: KeyMap = {
    "embedding.projection": ("embeddings.patch_embeddings.projection",),
    **HUB_BLOCK,
    "encoder.norm": ("layernorm",),
    "head": ("classifier",),
}
AUTHORS_KEYS: KeyMap = {
    "encoder.pos_embed": ("pos_embed",),  # Their option of learned positions.
    "embedding.projection": ("patch_embed.proj",),
    **TIMM_BLOCK,
    "encoder.norm": ("norm",),
    "head": ("head",),
}
# The prefixes of the encoder in a file of transformers, of the authors' pretraining, and of their Hub folder.
PREFIX = re.compile(r"^(videomae\.|encoder\.(?=patch_embed|blocks|norm|pos_embed)|model\.|backbone\.)")
# Only pretraining uses these.
DECODER = re.compile(r"(decoder\.|encoder_to_decoder\.|mask_token)")


def detect_videomae(source: Source, net: ViViT) -> VideoWeights | None:
    """Returns the weights of a VideoMAE in a Hugging Face folder, a file of one, or a file of the authors.

    Raises:
        UserError: A setting of the folder is invalid, or the weights are not those of a plain VideoMAE.
    """
    config = source.config or {}
    kind = str(config.get("model_type", "")).lower()
    if config and not kind.startswith("videomae"):
        return None
    tensors = {PREFIX.sub("", name): value for name, value in source.tensors.items()}
    is_hub = "embeddings.patch_embeddings.projection.weight" in tensors
    if not config and not (is_hub and any(name.startswith("videomae.") for name in source.tensors)):
        kernel = tensors.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim != 5 or "blocks.0.attn.q_bias" not in tensors:
            return None
    if kind.startswith("videomaev2"):  # Its settings are one level deeper, and have other names.
        inner = config.get("model_config")
        config = dict(inner) if isinstance(inner, Mapping) else {}
        config |= {"image_size": config.get("img_size", CLIP[1]), "num_attention_heads": config.get("num_heads")}
        if config.get("cos_attn"):
            raise UserError(f"{source.name} has cosine attention (cos_attn), which ViViT does not have")
    found = VideoWeights(source.name, {}, license=LICENSE, statistics=IMAGENET)
    found.state, found.unused = to_vivit(tensors, HUB_KEYS if is_hub else AUTHORS_KEYS, source.name)
    found.grid = grid_of(config, found.state, source.name)
    found.state.setdefault("encoder.pos_embed", positions(found.grid, found.state, source.name))
    shapes = shown_settings(found.state)
    found.settings = {"model": "vivit_st", "act": activation(config, source.name), "rope": False} | {
        key: shapes[key] for key in ("dim", "depth", "mlp_dim", "tubelet", "pool", "pre_norm", "reg_tokens")
    }
    if conforms(config.get("num_attention_heads"), int):
        found.settings["heads"] = config["num_attention_heads"]
    adapt_norm(found, net, is_fine_tuned="fc_norm.weight" in tensors)
    if source.path is not None and source.config is not None:
        found.statistics = image_statistics(source.path, source.name) or IMAGENET
        labels = named_classes(source.config, source.name)
        found.classes = {"": labels} if labels else None
    return found


def to_vivit(tensors: Mapping[str, Tensor], key_map: KeyMap, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights with our names, without positions if they are fixed, and the names of unused weights.

    Raises:
        UserError: A weight is missing, or ViViT has no place for one.
    """
    left = with_whole_biases(tensors)
    for kind in ("weight", "bias"):
        if f"fc_norm.{kind}" in left:
            norm = their_names(key_map, f"encoder.norm.{kind}")[0]
            left[norm] = left.pop(f"fc_norm.{kind}")
    depth = count_blocks(left, key_map["encoder.blocks.*.norm1"][0])
    state = take(left, key_map, depth)
    for name in our_names(key_map, depth):
        if name not in state and not name.startswith(("head.", "encoder.pos_embed")):
            missing = next(key for key in their_names(key_map, name) if key not in left)
            raise UserError(f"{source} is not a whole VideoMAE: it has no '{missing}'")
    if "head.weight" not in state:
        state |= {
            "head.weight": torch.zeros(0, len(state["embedding.projection.bias"])),
            "head.bias": torch.zeros(0),
        }
    if foreign := sorted(name for name in left if not DECODER.match(name)):
        raise UserError(f"{source} is not a plain VideoMAE: ViViT has no place for '{foreign[0]}'")
    return state, sorted(left)


def with_whole_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights with a bias for q, k, and v in each layer, zero where they have none."""
    left = dict(tensors)
    for name, weight in tensors.items():
        if name.endswith("attn.qkv.weight"):
            at, zeros = name.removesuffix("qkv.weight"), torch.zeros(weight.shape[0] // 3)
            q, v = (left.pop(f"{at}{part}_bias", zeros) for part in "qv")
            left.setdefault(f"{at}qkv.bias", torch.cat([q, zeros, v]))
        elif match := re.fullmatch(r"(.*attention\.attention\.)(query|key|value)\.weight", name):
            bias = left.pop(f"{match[1]}{match[2][0]}_bias", torch.zeros(weight.shape[0]))
            left.setdefault(f"{match[1]}{match[2]}.bias", bias)
    return left


def grid_of(config: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> Grid:
    """Returns the token grid that the positions were made for.

    Raises:
        UserError: The settings are not sizes, or do not fit the tubelets.
    """
    frames, size = config.get("num_frames", CLIP[0]), config.get("image_size", CLIP[1])
    rows, columns = (size, size) if conforms(size, int) else size if conforms(size, tuple[int, int]) else (0, 0)
    pixels = (frames, rows, columns)
    tubelet = state["embedding.projection.weight"].shape[2:]
    pairs = list(zip(pixels, tubelet, strict=True))
    if not all(conforms(size, int) and 0 < size <= 2**20 and size % part == 0 for size, part in pairs):
        raise UserError(
            f"{source}/config.json: num_frames {shown(frames)} and image_size {shown(size)} do not fit tubelets "
            f"of {'x'.join(map(str, tubelet))}"
        )
    t, h, w = (size // part for size, part in pairs)
    return t, h, w


def positions(grid: Grid, state: Mapping[str, Tensor], source: str) -> Tensor:
    """Returns the fixed positions of a grid.

    Raises:
        UserError: There are too many for any model.
    """
    tokens, dim = math.prod(grid), state["embedding.projection.weight"].shape[0]
    check_positions(tokens, dim, source)
    return sincos_positions(tokens, dim)


def adapt_norm(found: VideoWeights, net: ViViT, is_fine_tuned: bool) -> None:
    """Decides whether the model must normalize the mean, and what its norm starts from.

    A fine-tuned VideoMAE does. A pretrained one normalizes each token for its decoder; a model that normalizes the
    mean starts with a new norm, as the authors' fine-tuning does.
    """
    if is_fine_tuned:
        found.settings = {**found.settings, "fc_norm": True}
    elif net.fc_norm:
        reason = "pretraining has no norm of the mean"
        found.new = {name: reason for name in ("encoder.norm.weight", "encoder.norm.bias")}
        found.state = {name: value for name, value in found.state.items() if name not in found.new}
    elif len(found.state["head.weight"]):
        raise UserError(
            f"{found.source} is fine-tuned without mean pooling (its head reads the first token), which ViViT "
            "does not have: start from its pretrained weights"
        )
