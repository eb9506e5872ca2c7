"""Initializes a ViViT from an image ViT with timm's keys (paper, section 3.4) and reports every parameter."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.adapt import copy_params, resize_positions, square
from vivit_train.models.weights.files import (
    WEIGHT_FILES,
    Statistics,
    folder_weights,
    read_file,
    tensors_of,
    unwrapped,
)
from vivit_train.models.weights.huggingface import HUB_KEYS, MEMORY_KEYS
from vivit_train.models.weights.keys import KeyMap, join, our_names, their_names
from vivit_train.models.weights.report import LoadReport
from vivit_train.models.weights.source import ImageWeights, Source
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.text import plural, shorten_list

# These are timm's ImageNet-21k ViTs for each model size, by init.name. The first are those of Steiner et al.
# (arXiv 2106.10270), which exist for every size but H; the second are those of the ViT paper (arXiv 2010.11929).
IMAGENET = {
    "imagenet": {
        "Ti": "vit_tiny_patch16_224.augreg_in21k",
        "S": "vit_small_patch16_224.augreg_in21k",
        "B": "vit_base_patch16_224.augreg_in21k",
        "L": "vit_large_patch16_224.augreg_in21k",
        "H": "vit_huge_patch14_224.orig_in21k",
    },
    "imagenet_orig": {
        "B": "vit_base_patch16_224.orig_in21k",
        "L": "vit_large_patch16_224.orig_in21k",
        "H": "vit_huge_patch14_224.orig_in21k",
    },
}
# An image ViT fills the parameters in this table; all others are new.
TIMM_KEYS: KeyMap = {
    "encoder.cls_token": ("cls_token",),
    "encoder.pos_embed": ("pos_embed",),
    "embedding.projection": ("patch_embed.proj",),
    "encoder.norm": ("norm",),
    "encoder.blocks.*.norm1": ("blocks.*.norm1",),
    "encoder.blocks.*.attention.qkv": ("blocks.*.attn.qkv",),
    "encoder.blocks.*.attention.out": ("blocks.*.attn.proj",),
    "encoder.blocks.*.norm2": ("blocks.*.norm2",),
    "encoder.blocks.*.mlp.fc1": ("blocks.*.mlp.fc1",),
    "encoder.blocks.*.mlp.fc2": ("blocks.*.mlp.fc2",),
}
# These change the encoder's output and have no counterpart. Others (heads, pooling, decoders) come after it.
FOREIGN = re.compile(r"(blocks|patch_embed)\.|(reg|dist)(_token|ister_tokens)|norm_pre\.|rope\.|.*rel_pos")


def image_vit(name: str | None, size: str | None) -> str | None:
    """Returns the timm model that init.name means for a model size; None if there is none.

    Raises:
        UserError: There are no such weights of this size.
    """
    if name not in IMAGENET:
        return name
    if size not in IMAGENET[name]:
        sizes = ", ".join(IMAGENET[name])
        raise UserError(
            f"init.name={name} has no weights for model.size={size}, only for {sizes}: set one of these, or set "
            "init.name to the name of a timm model"
        )
    return IMAGENET[name][size]


def detect_image_vit(source: Source, _: ViViT) -> ImageWeights | None:
    """Returns the weights of an image ViT in a file or of a timm model; `init_from_vit` checks them.

    Raises:
        UserError: The file holds no state dict, or timm has no model of that name.
    """
    if source.path is None:
        return ImageWeights(source.name, read_weights(source.name), normalization(source.name))
    if not source.is_file:
        return None
    state = tensors_of(unwrapped(source.content), source.path)
    return ImageWeights(source.name, state, normalization(source.name))


def init_from_vit(
    model: ViViT,
    weights: Mapping[str, Tensor] | str,
    *,
    tubelet: Literal["central_frame", "inflation"] = "central_frame",
    min_coverage: float = 0.9,
    source: str = "a state dict",
) -> LoadReport:
    """Initializes `model` in place from an image ViT and returns the weight-loading report.

    Tubelets: the 2-D kernel is placed at frame t // 2 with zeros elsewhere ("central_frame"), or repeated and
    divided by t ("inflation").

    Position embeddings: the image's grid is resized (bilinear with aligned corners, as in the authors' code) and,
    in models 1, 3, and 4, repeated over time. Models without a class token drop the image's.

    Temporal layers: model 2's temporal encoder is newly initialized. Model 3's temporal attention starts as a no-
    op because its output projection is zero-initialized. If q, k, and v were zero too, as in the authors' code, it
    would never learn.

    Layer scale is folded into the preceding weights.

    Args:
        model: The model to initialize.
        weights: A state dict with the keys of timm or of Hugging Face's ViT, a file or a Hugging Face folder with
            one, or the name of a timm model.
        tubelet: How the patch embedding is expanded in time.
        min_coverage: The share of parameters that the weights must fill, among those that an image ViT can fill.
        source: The name of a state dict in messages and in the report.

    Raises:
        UserError: The weights are not those of a plain ViT, do not fit, or fill less than `min_coverage`. The
            model is then unchanged.
    """
    if isinstance(weights, str):
        source, weights = weights, read_weights(weights)
    image = {key: value.float() for key, value in from_huggingface_vit(weights).items()}
    scaled = fold_layer_scale(image)
    check_plain_vit(image, model, source)
    report, values = LoadReport(source), {}
    for name, _ in model.named_parameters():
        report.rows[name], value = converted(name, image, model, tubelet)
        report.rows[name] += ", scaled" * (timm_key(name) in scaled)
        if value is not None:
            values[name] = value
    check_shapes(model, values, image, source)
    used = set(map(timm_key, values))
    report.unused = [key for key in image if key not in used]
    fillable = {name: parameter.numel() for name, parameter in model.named_parameters() if timm_key(name)}
    report.coverage = sum(size for name, size in fillable.items() if name in values) / sum(fillable.values())
    if report.coverage < min_coverage:
        raise UserError(
            f"{source} fills {report.coverage:.1%} of the model, less than init.min_coverage={min_coverage:.0%}: "
            f"is it an image ViT of depth {len(model.encoder.blocks)}?\n{report}"
        )
    copy_params(model, values, source)
    return report


def converted(name: str, image: Mapping[str, Tensor], model: ViViT, tubelet: str) -> tuple[str, Tensor | None]:
    """Returns what happens to one of our parameters, and its new value, or None if it stays as it is."""
    parameter, key = model.get_parameter(name), timm_key(name)
    if model.layout.starts_at_zero(name):
        return "zero", torch.zeros_like(parameter)
    if key is None:
        return "random", None
    if key in image:
        return fit(name, image[key], model, tubelet, has_cls="cls_token" in image)
    if key.removesuffix("bias") + "weight" in image:  # The layer has no bias.
        return "zero", torch.zeros_like(parameter)
    return "random", None


def check_shapes(model: ViViT, values: Mapping[str, Tensor], image: Mapping[str, Tensor], source: str) -> None:
    """Checks that the converted weights have the shapes of the model's parameters.

    Raises:
        UserError: A shape differs. The message names the first weight.
    """
    for name, value in values.items():
        shape, key = model.get_parameter(name).shape, timm_key(name)
        if value.shape != shape and key is not None:
            raise UserError(
                f"'{key}' of {source} is {list(image[key].shape)}, but the model's '{name}' is {list(shape)}: "
                "choose model.size and model.tubelet to match the weights"
            )


def from_huggingface_vit(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Converts the state dict of a Hugging Face image ViT to timm's keys; returns any other unchanged."""
    if not any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in weights):
        return weights
    left = {key.removeprefix("vit."): value for key, value in weights.items()}
    key_map = MEMORY_KEYS if any(key.startswith("layers.") for key in left) else HUB_KEYS
    image = {}
    for ours in our_names(key_map, depth=sum(key.endswith("layernorm_before.weight") for key in left)):
        theirs = their_names(key_map, ours)
        if all(key in left for key in theirs):
            image[str(timm_key(ours))] = join([left.pop(key) for key in theirs])
    left.pop("embeddings.mask_token", None)  # Only pretraining uses it.
    if "cls_token" in image and not any(re.match(r"(deit\.)?(embeddings|encoder|layers)\.", key) for key in left):
        # What is left is the classifier and the pooler.
        return image | {f"head.{key}": value for key, value in left.items()}
    return weights  # `check_plain_vit` rejects other architectures with these embeddings by their own keys.


def timm_key(name: str) -> str | None:
    """Returns timm's name of one of our parameters, or None if an image ViT has no counterpart."""
    return next(iter(their_names(TIMM_KEYS, name)), None)


def fold_layer_scale(image: dict[str, Tensor]) -> set[str]:
    """Multiplies each layer scale into the preceding linear layer and returns the keys that changed."""
    changed = set()
    for key in [key for key in image if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", key)]:
        block, gamma = key.rpartition(".ls")[0], image.pop(key)
        linear = f"{block}.attn.proj" if ".ls1." in key else f"{block}.mlp.fc2"
        for name in (f"{linear}.weight", f"{linear}.bias"):
            if name in image:
                image[name] = image[name] * gamma.view(-1, *[1] * (image[name].ndim - 1))
                changed.add(name)
    return changed


def fit(name: str, value: Tensor, model: ViViT, tubelet: str, *, has_cls: bool) -> tuple[str, Tensor]:
    """Returns the action and a weight of the image model, converted to the shape of our parameter `name`."""
    if name == "embedding.projection.weight":
        t = model.tubelet[0]
        if t == 1:
            return "copied", value[:, :, None]
        if tubelet == "inflation":
            return "inflated", value[:, :, None].repeat(1, 1, t, 1, 1) / t
        kernel = torch.zeros(*value.shape[:2], t, *value.shape[2:])
        kernel[:, :, t // 2] = value
        return "inflated", kernel
    if name != "encoder.pos_embed":
        return "copied", value
    num_cls = int(has_cls and square(value.shape[1] - 1) > 0)  # With timm's no_embed_class, it is 0.
    side, actions = square(value.shape[1] - num_cls), []
    cls_slot, grid = value[:, :num_cls], value[:, num_cls:]
    t, rows, columns = model.grid
    if (side, side) != (rows, columns):
        actions.append("resized")
        grid = resize_positions(grid, (1, side, side), (1, rows, columns))
    if model.layout.covers("encoder", "t"):
        actions.append("repeated")
        grid = grid.repeat(1, t, 1)
    if model.encoder.cls_token is not None:
        slot = cls_slot if num_cls else torch.zeros_like(grid[:, :1])
        grid = torch.cat([slot, grid], dim=1)
    return ", ".join(actions) or "copied", grid


def check_plain_vit(image: Mapping[str, Tensor], model: ViViT, source: str) -> None:
    """Checks that a ViViT can represent the image ViT.

    Raises:
        UserError: It cannot. The message names the first parameter that does not fit.
    """
    known = {timm_key(name) for name in our_names(TIMM_KEYS, depth=1)}
    foreign = [
        key for key in image if FOREIGN.match(key) and re.sub(r"^blocks\.\d+\.", "blocks.0.", key) not in known
    ]
    is_vit = "patch_embed.proj.weight" in image and "blocks.0.attn.qkv.weight" in image
    for key in ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"):
        if key not in image and not (is_vit and foreign):
            raise UserError(f"{source} is not a timm ViT: it has no '{key}' (it has {shorten_list(image)})")
    if foreign:
        raise UserError(f"{source} is not a plain ViT: ViViT has no place for '{foreign[0]}'")
    deep = [key for key in image if key.startswith(f"blocks.{len(model.encoder.blocks)}.")]
    if deep:
        raise UserError(
            f"{source} is deeper than the model: no place for '{deep[0]}' in "
            f"{plural(len(model.encoder.blocks), 'layer')}: choose model.size or model.depth to match the weights"
        )
    tokens = image["pos_embed"].shape[1] if image["pos_embed"].ndim == 3 else 0
    if not square(tokens) and not ("cls_token" in image and square(tokens - 1)):
        raise UserError(
            f"{source} was trained on images that are not square: its 'pos_embed' "
            f"{list(image['pos_embed'].shape)} does not say how many rows it has"
        )
    if image["patch_embed.proj.weight"].ndim != 4:
        raise UserError(
            f"{source} is not an image ViT: its patch embedding is {list(image['patch_embed.proj.weight'].shape)}"
        )
    dim, _, *patch = image["patch_embed.proj.weight"].shape
    if dim != model.head.in_features or tuple(patch) != model.tubelet[1:]:
        raise UserError(
            f"{source} is a ViT of width {dim} and patch {patch[0]}x{patch[1]}, but the model has width "
            f"{model.head.in_features} and tubelets {'x'.join(map(str, model.tubelet))}: choose model.size and "
            "model.tubelet to match the weights, or other weights (init.name, init.path)"
        )


def read_weights(source: str) -> Mapping[str, Tensor]:
    """Reads a state dict from a safetensors or PyTorch file, a folder, or timm. Nothing in a file is executed.

    Raises:
        UserError: The file or model does not exist, or cannot be read or downloaded.
    """
    path = Path(source)
    if path.is_dir():
        return folder_weights(path)
    if not path.is_file():
        if "/" in source or path.suffix in WEIGHT_FILES:
            raise UserError(f"no weights at {source}")
        return download(source)
    return tensors_of(unwrapped(read_file(path)), path)


def download(name: str) -> Mapping[str, Tensor]:
    """Downloads the weights of a timm model."""
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:4])
        raise UserError(f"'{name}' is neither a file nor a timm model{f'; similar: {near}' if near else ''}")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        if type(model) is not VisionTransformer or any(type(block) is not Block for block in model.blocks):
            # Some variants (post-norm, rotary position embeddings) have the same keys as a plain ViT.
            raise UserError(f"timm's '{name}' is not a plain ViT: ViViT cannot represent its blocks")
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except UserError:
        raise
    except Exception as error:  # Downloads fail in many ways that this package cannot control.
        raise UserError(
            f"timm's '{name}' cannot be downloaded ({type(error).__name__}: {reason(error)}): "
            "check the network, pass a file with init.path=FILE, or train from random weights with init=none"
        ) from error


def normalization(source: str) -> Statistics | None:
    """Returns the mean and std of a timm model, by its name or by the name of a file that is named after it."""
    path = Path(source)
    name = path.stem if path.suffix in WEIGHT_FILES else path.name
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        return None
    config = timm.models.get_pretrained_cfg(name if timm.models.is_model_pretrained(name) else architecture)
    return (tuple(config.mean), tuple(config.std)) if config is not None else None
