"""Reads the image ViTs of Hugging Face: ViT, DeiT, MAE, DINOv2, DINOv3, CLIP, and SigLIP.

Their weights get timm's names, so that `init_from_vit` loads them, or says which part does not fit, as for timm's.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import Statistics, read_json_object
from vivit_train.models.weights.huggingface import activation, image_statistics
from vivit_train.models.weights.keys import join
from vivit_train.models.weights.source import ImageWeights, Source
from vivit_train.utils.arguments import conforms, limit_problems, shown
from vivit_train.utils.errors import UserError

# The start of the names in a larger model: a classifier, or CLIP with its text encoder.
PREFIX = r"(?:(?:vit|deit|dinov2|dinov2_with_registers|vision_model)\.)?"
PATCHES = re.compile(rf"{PREFIX}embeddings\.(patch_embeddings(\.projection)?|patch_embedding)\.weight")
BLOCK = re.compile(rf"{PREFIX}(?:model\.|encoder\.)?layers?\.(\d+)\.")
# Their names, and timm's. Files on the Hub have older names than models in memory.
NAMES = {
    r"embeddings\.(cls_token|class_embedding)": "cls_token",
    r"embeddings\.(register_tokens|distillation_token)": "reg_token",
    r"embeddings\.(position_embeddings|position_embedding\.weight)": "pos_embed",
    r"embeddings\.mask_token": "mask_token",
    r"embeddings\.(patch_embeddings(\.projection)?|patch_embedding)\.": "patch_embed.proj.",
    r"pre_layrnorm\.": "norm_pre.",
    r"(norm|layernorm|post_layernorm)\.": "norm.",
}
IN_BLOCK = {
    r"(layernorm_before|layer_norm1)\.": "norm1.",
    r"(layernorm_after|layer_norm2)\.": "norm2.",
    r"(attention\.attention|attention|self_attn)\.(q|k|v)(uery|ey|alue|_proj)\.": r"attn.\2.",
    r"(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.": "attn.proj.",
    r"layer_scale([12])\.lambda1": r"ls\1.gamma",
    r"(intermediate\.dense|mlp\.up_proj)\.": "mlp.fc1.",
    r"(output\.dense|mlp\.down_proj)\.": "mlp.fc2.",
}
IMAGENET: Statistics = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
HALF: Statistics = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
OPENAI: Statistics = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
ROPE_THETA = 100.0  # as in `Encoder.add_rotary_positions`


@dataclass(frozen=True)
class Family:
    """What a family of models has if its config.json does not state it, as in transformers.

    Attributes:
        license: The license of the weights that its authors released, or None if there are several.
        act: The activation of the MLPs, by its name in config.json.
        norm_eps: The epsilon of the layer norms.
        heads: The number of attention heads.
        statistics: The mean and std of the normalization, or None if there are several.
    """

    license: str | None = None
    act: str = "gelu"
    norm_eps: float = 1e-6
    heads: int = 12
    statistics: Statistics | None = IMAGENET


VIT = Family(norm_eps=1e-12, statistics=None)
CLIP = Family("MIT (weights that OpenAI released)", "quick_gelu", 1e-5, statistics=OPENAI)
SIGLIP = Family("Apache-2.0 (weights that Google released)", "gelu_pytorch_tanh", statistics=HALF)
DINOV2 = Family("Apache-2.0 (weights that the authors of DINOv2 released)")
# By the `model_type` in config.json.
FAMILIES: Mapping[str, Family] = {
    "vit": VIT,
    "deit": Family("Apache-2.0 (weights that the authors of DeiT released)", norm_eps=1e-12),
    "vit_mae": Family(
        "CC BY-NC 4.0 (weights that the authors of MAE released): no commercial use", norm_eps=1e-12
    ),
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "dinov3_vit": Family("DINOv3 License (weights that Meta released)", norm_eps=1e-5, heads=6),
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "siglip2": SIGLIP,
    "siglip2_vision_model": SIGLIP,
}
CONFIGURED_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
)  # The files that the config.json beside them describes.


def detect_huggingface_vit(source: Source, _: ViViT) -> ImageWeights | None:
    """Returns the weights of an image ViT in a Hugging Face folder, or in a file of one.

    Raises:
        UserError: A setting is not a number, or ViViT does not have what it asks for.
    """
    config = config_of(source)
    kind = str(config.get("model_type"))
    if kind not in FAMILIES and (source.config is not None or not is_huggingface_vit(source.tensors)):
        return None
    name, family = source.name, FAMILIES.get(kind)
    if family is None:  # A file alone does not say how its model computes, but some parts tell its family.
        family = family_of(source.tensors)
        about = ImageWeights(name, source.tensors, license=family.license, statistics=family.statistics)
        if family not in (VIT, CLIP):  # Those of other authors have another activation.
            about.act, about.norm_eps = activation({}, name, family.act), family.norm_eps
        return about
    vision = config.get("vision_config", {}) if kind in ("clip", "siglip", "siglip2") else config
    vision = vision if isinstance(vision, Mapping) else {}
    heads, eps = vision.get("num_attention_heads", family.heads), vision.get("layer_norm_eps", family.norm_eps)
    for key, value, hint, ours in (
        ("num_attention_heads", heads, int, "heads"),
        ("layer_norm_eps", eps, float, "norm_eps"),
    ):
        if not conforms(value, hint):
            raise UserError(f"{name}: {key} in config.json is {shown(value)}, but must be a number")
        if problems := limit_problems(f"{name}: {key} in config.json", ours, value):
            raise UserError(problems[0])
    if vision.get("rope_theta", ROPE_THETA) != ROPE_THETA:
        theta = shown(vision["rope_theta"])
        raise UserError(
            f"{name}: rope_theta in config.json is {theta}, but the rotary positions of ViViT have {ROPE_THETA:g}"
        )
    assert source.path is not None
    folder = source.path.parent if source.is_file else source.path
    statistics = image_statistics(folder, name) or family.statistics
    act = activation(vision, name, family.act)
    return ImageWeights(name, source.tensors, statistics, act, eps, family.license, heads)


def config_of(source: Source) -> Mapping[str, Any]:
    """Returns the config.json of a folder, or the one beside a file that has the name of a folder's weights."""
    if source.config is not None:
        return source.config
    if source.path is None or not source.is_file or source.path.name not in CONFIGURED_FILES:
        return {}
    file = source.path.with_name("config.json")
    return read_json_object(file) if file.is_file() and is_huggingface_vit(source.tensors) else {}


def is_huggingface_vit(weights: Mapping[str, Tensor]) -> bool:
    """Returns whether weights have the names of an image ViT of Hugging Face."""
    return any(PATCHES.fullmatch(name) for name in weights)


def family_of(weights: Mapping[str, Tensor]) -> Family:
    """Returns the family of weights without a config.json."""
    names = set(timm_names(weights).values())
    if any(name.endswith("embeddings.patch_embedding.weight") for name in weights):
        return CLIP if "cls_token" in names else SIGLIP
    if "blocks.0.ls1.gamma" in names:
        return FAMILIES["dinov2" if "pos_embed" in names else "dinov3_vit"]
    if any(name.endswith("embeddings.distillation_token") for name in weights):
        return FAMILIES["deit"]
    return FAMILIES["vit_mae"] if any(name.startswith("decoder.decoder_") for name in weights) else VIT


def timm_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns timm's name of each weight; those outside of the encoder keep theirs."""
    found = {}
    for name in weights:
        start = BLOCK.match(name)
        names, rest = (IN_BLOCK, name[start.end() :]) if start else (NAMES, re.sub(f"^{PREFIX}", "", name))
        for pattern, new in names.items():
            if match := re.match(pattern if pattern.endswith(r"\.") else f"{pattern}$", rest):
                rest = match.expand(new) + rest[match.end() :]
                break
        else:  # What is left of the encoder has no place, but the other parts are not used.
            rest = rest if start or rest.startswith("embeddings.") else name
        found[name] = f"blocks.{start[1]}.{rest}" if start else rest
    return found


def with_timm_names(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Converts the weights of an image ViT of Hugging Face to those of timm; returns any others unchanged."""
    if not is_huggingface_vit(weights):
        return weights
    names = timm_names(weights)
    image = {names[name]: value for name, value in weights.items() if not name.endswith("embeddings.position_ids")}
    for at in {name.removesuffix("q.weight") for name in image if name.endswith("attn.q.weight")}:
        if not all(f"{at}{part}.weight" in image for part in "qkv"):
            continue
        rows = {part: image[f"{at}{part}.weight"].shape[0] for part in "qkv"}
        image[f"{at}qkv.weight"] = join([image.pop(f"{at}{part}.weight") for part in "qkv"])
        # A bias that is not there is zero: DINOv3 has none of k.
        if any(f"{at}{part}.bias" in image for part in "qkv"):
            biases = [image.pop(f"{at}{part}.bias", torch.zeros(rows[part])) for part in "qkv"]
            image[f"{at}qkv.bias"] = join(biases)
    for name in ("cls_token", "pos_embed"):
        while name in image and image[name].ndim < 3:
            image[name] = image[name][None]
    kernel = image["patch_embed.proj.weight"]
    side = math.isqrt(kernel.shape[-1] // 3)
    if kernel.ndim == 2 and 3 * side**2 == kernel.shape[1]:  # SigLIP 2 has a linear layer: rows, columns, colors.
        image["patch_embed.proj.weight"] = kernel.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    return image
