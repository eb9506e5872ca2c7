"""Initializes a ViViT from an image ViT with timm's keys (paper, section 3.4) and reports every parameter."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.adapt import copy_params, resize_positions, square
from vivit_train.models.weights.files import tensors_of, unwrapped
from vivit_train.models.weights.huggingface_vits import with_timm_names
from vivit_train.models.weights.keys import TIMM_BLOCK, KeyMap, our_names, their_names
from vivit_train.models.weights.report import LoadReport
from vivit_train.models.weights.settings import check_settings, in_words
from vivit_train.models.weights.source import ImageWeights, Source
from vivit_train.models.weights.timm_models import known, read_weights
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural, shorten_list

# An image ViT fills the parameters in this table; all others are new.
TIMM_KEYS: KeyMap = {
    "encoder.cls_token": ("cls_token",),
    "encoder.pos_embed": ("pos_embed",),
    "embedding.projection": ("patch_embed.proj",),
    "encoder.norm": ("norm",),
    **TIMM_BLOCK,
}
# Some image ViTs also have these, and then the model must have them too.
OPTIONAL_KEYS: KeyMap = {"encoder.reg_token": ("reg_token",), "encoder.norm_pre": ("norm_pre",)}
# These change the encoder's output and have no counterpart. Others (heads, pooling, decoders) come after it.
FOREIGN = re.compile(
    r"(blocks|patch_embed|embeddings)\.|(reg|dist)(_token|ister_tokens)|norm_pre\.|rope\.|.*rel_pos"
)
# What some of them are.
PARTS = {
    r"(.*\.)?rope\.": "rotary positions",
    r"blocks\.\d+\.mlp\.(fc1|fc1_[gx]|w12|w3|norm|weights_(in|out)|(gate|up|down)_proj)\.": "gated MLPs (SwiGLU)",
    r"blocks\.\d+\.attn\.[qk]_norm\.": "norms of q and k",
    r".*rel_pos": "relative positions",
}
REGISTERS = ("reg_token", "register_tokens", "dist_token")  # of timm, of the files of DINOv2, and of DeiT
NEAR = 1.5  # Patches of up to this ratio of sides are resized: 14 pixels to 16.


def detect_image_vit(source: Source, _: ViViT) -> ImageWeights | None:
    """Returns the weights of an image ViT in a file or of a timm model; `init_from_vit` checks them.

    Raises:
        UserError: The file holds no state dict, or timm has no model of that name.
    """
    if source.path is None:
        state = read_weights(source.name)
    elif source.is_file:
        state = tensors_of(unwrapped(source.content), source.path)
    else:
        return None
    about = known(source.name)
    return ImageWeights(source.name, state, **(vars(about) if about else {}))


def init_from_vit(
    model: ViViT,
    weights: Mapping[str, Tensor] | str,
    *,
    tubelet: Literal["central_frame", "inflation"] = "central_frame",
    min_coverage: float = 0.9,
    source: str = "a state dict",
    heads: int | None = None,
) -> LoadReport:
    """Initializes `model` in place from an image ViT and returns the weight-loading report.

    Tubelets: the 2-D kernel is placed at frame t // 2 with zeros elsewhere ("central_frame"), or repeated and
    divided by t ("inflation"). Patches of a near size (14 and 16 pixels) are resized as in FlexiViT.

    Position embeddings: the image's grid is resized (bilinear with aligned corners, as in the authors' code) and,
    in models 1, 3, and 4, repeated over time. Models without a class token drop the image's.

    Temporal layers: model 2's temporal encoder is newly initialized. Model 3's temporal attention starts as a no-
    op because its output projection is zero-initialized. If q, k, and v were zero too, as in the authors' code, it
    would never learn. Layer scale is folded into the preceding weights.

    Args:
        model: The model to initialize.
        weights: A state dict with the keys of timm or of an image ViT of Hugging Face, a file or a Hugging Face
            folder with one, or the name of a timm model.
        tubelet: How the patch embedding is expanded in time.
        min_coverage: The share of parameters that the weights must fill, among those that an image ViT can fill.
        source: The name of a state dict in messages and in the report.
        heads: The number of attention heads of the image ViT, if it is known.

    Raises:
        UserError: The weights are not those of a plain ViT, do not fit, or fill less than `min_coverage`. The
            model is then unchanged.
    """
    if isinstance(weights, str):
        source, weights = weights, read_weights(weights)
    image = {key: value.float() for key, value in with_timm_names(weights).items()}
    if model.fc_norm and "fc_norm.weight" in image:
        image |= {f"norm.{kind}": image.pop(f"fc_norm.{kind}") for kind in ("weight", "bias")}
    fold_register_positions(image)
    scaled = fold_layer_scale(image)
    check_plain_vit(image, model, source, heads)
    report, values = LoadReport(source, notes=notes_on(image, model)), {}
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
    if key == "pos_embed" and model.rope:
        return "zero (positions are rotary)", torch.zeros_like(parameter)
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


def timm_key(name: str) -> str | None:
    """Returns timm's name of one of our parameters, or None if an image ViT has no counterpart."""
    return next(iter(their_names({**TIMM_KEYS, **OPTIONAL_KEYS}, name)), None)


def fold_register_positions(image: dict[str, Tensor]) -> None:
    """Gives register tokens timm's name, and adds their positions to them if they have any.

    The distillation token of DeiT is a register with a position.
    """
    for name in REGISTERS:
        if name in image:
            image["reg_token"] = image.pop(name)
    positions, registers = image.get("pos_embed"), image.get("reg_token")
    if positions is None or registers is None or positions.ndim != 3 or registers.ndim != 3:
        return
    first, count = int("cls_token" in image), registers.shape[1]
    tokens = positions.shape[1]
    if not square(tokens) and not square(tokens - first) and square(tokens - first - count):
        image["reg_token"] = registers + positions[:, first : first + count]
        image["pos_embed"] = torch.cat([positions[:, :first], positions[:, first + count :]], dim=1)


def notes_on(image: Mapping[str, Tensor], model: ViViT) -> list[str]:
    """Returns what a model cannot take over from an image ViT exactly, one line each."""
    notes, patch = [], tuple(image["patch_embed.proj.weight"].shape[2:])
    if patch != model.tubelet[1:]:
        notes.append(
            f"patches of {patch[0]}x{patch[1]} pixels are resized to {model.tubelet[1]}x{model.tubelet[2]}; "
            f"model.tubelet={in_words([model.tubelet[0], *patch])} keeps them (data.crop must be a multiple)"
        )
    if "cls_token" not in image and model.encoder.cls_token is not None:
        notes.append("the source has no class token, so that of the model is new; model.pool=mean needs none")
    return notes


def fold_layer_scale(image: dict[str, Tensor]) -> set[str]:
    """Multiplies each layer scale into the preceding linear layer and returns the keys that changed."""
    changed = set()
    for key in [key for key in image if re.fullmatch(r"blocks\.\d+\.(ls[12]\.gamma|gamma_[12])", key)]:
        block, gamma = ".".join(key.split(".")[:2]), image.pop(key)
        linear = f"{block}.attn.proj" if "1" in key.removeprefix(block) else f"{block}.mlp.fc2"
        for name in (f"{linear}.weight", f"{linear}.bias"):
            if name in image:
                image[name] = image[name] * gamma.view(-1, *[1] * (image[name].ndim - 1))
                changed.add(name)
    return changed


def fit(name: str, value: Tensor, model: ViViT, tubelet: str, *, has_cls: bool) -> tuple[str, Tensor]:
    """Returns the action and a weight of the image model, converted to the shape of our parameter `name`."""
    if name == "embedding.projection.weight":
        t, *patch = model.tubelet
        if list(value.shape[2:]) != patch:
            action, resized = fit(name, resample_patch_embed(value, patch), model, tubelet, has_cls=has_cls)
            return f"resized, {action}".removesuffix(", copied"), resized
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


def check_plain_vit(image: Mapping[str, Tensor], model: ViViT, source: str, heads: int | None) -> None:
    """Checks that a ViViT can represent the image ViT.

    Raises:
        UserError: It cannot. The message names the first parameter that does not fit.
    """
    ours = {timm_key(name) for name in our_names({**TIMM_KEYS, **OPTIONAL_KEYS}, depth=1)}
    foreign = [
        key for key in image if FOREIGN.match(key) and re.sub(r"^blocks\.\d+\.", "blocks.0.", key) not in ours
    ]
    foreign += gated_mlps(image)
    is_vit = "patch_embed.proj.weight" in image and "blocks.0.attn.qkv.weight" in image
    for key in ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"):
        if key not in image and not (is_vit and (foreign or has_rope(image))):
            raise UserError(f"{source} is not a timm ViT: it has no '{key}' (it has {shorten_list(image)})")
    if foreign:
        known_parts = [(key, part) for key in foreign for name, part in PARTS.items() if re.match(name, key)]
        key, part = next(iter(known_parts), (foreign[0], ""))
        part = f" ({part})" if part else ""
        raise UserError(f"{source} is not a plain ViT: ViViT has no place for '{key}'{part}")
    positions = torch.zeros(1, 1, 1) if has_rope(image) else image["pos_embed"]
    tokens = positions.shape[1] if positions.ndim == 3 else 0
    if not square(tokens) and not ("cls_token" in image and square(tokens - 1)):
        raise UserError(
            f"{source} was trained on images that are not square: its 'pos_embed' "
            f"{list(positions.shape)} does not say how many rows it has"
        )
    if image["patch_embed.proj.weight"].ndim != 4:
        raise UserError(
            f"{source} is not an image ViT: its patch embedding is {list(image['patch_embed.proj.weight'].shape)}"
        )
    stated = {} if heads is None else {"heads": heads}
    check_settings(model, source, settings_of(image, model) | stated, "ViT")
    deep = [key for key in image if key.startswith(f"blocks.{len(model.encoder.blocks)}.")]
    if deep:
        raise UserError(
            f"{source} is deeper than the model: no place for '{deep[0]}' in "
            f"{plural(len(model.encoder.blocks), 'layer')}: choose model.size or model.depth to match the weights"
        )


def has_rope(image: Mapping[str, Tensor]) -> bool:
    """Returns whether these are weights of DINOv3, whose positions are rotary and not stored."""
    return "pos_embed" not in image and "reg_token" in image


def gated_mlps(image: Mapping[str, Tensor]) -> list[str]:
    """Returns the first layer of the first MLP if it computes values and gates at once, as in SwiGLU."""
    first, second = (image.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    is_gated = first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]
    return ["blocks.0.mlp.fc1.weight"] * is_gated


def settings_of(image: Mapping[str, Tensor], model: ViViT) -> dict[str, Any]:
    """Returns the settings that a model must have for the weights of an image ViT."""
    dim, _, *patch = image["patch_embed.proj.weight"].shape
    settings: dict[str, Any] = {"dim": dim, "pre_norm": "norm_pre.weight" in image, "reg_tokens": 0}
    settings["rope"] = has_rope(image)
    if "reg_token" in image:
        settings["reg_tokens"] = image["reg_token"].shape[1]
    if any(max(a, b) > NEAR * min(a, b) for a, b in zip(patch, model.tubelet[1:], strict=True)):
        settings["tubelet"] = [model.tubelet[0], *patch]
    if dim != model.head.in_features:  # Then the size is another one, if it has a name.
        depth = len({key.split(".")[1] for key in image if key.startswith("blocks.")})
        settings |= next((size for size in SIZES.values() if (size["dim"], size["depth"]) == (dim, depth)), {})
    return settings
