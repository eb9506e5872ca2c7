"""The image ViTs of timm by name: their weights, their normalization and license, and what ViViT lacks of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vivit_train.models.weights.files import (
    WEIGHT_FILES,
    Statistics,
    folder_weights,
    hub_reason,
    read_file,
    tensors_of,
    unwrapped,
)
from vivit_train.utils.errors import UserError

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
# The weights with these tags were trained in JAX, whose GELU is the tanh form, though timm computes the exact one.
JAX_TAGS = ("augreg", "orig", "npz")


@dataclass(frozen=True)
class Known:
    """What timm knows about weights by their name.

    Attributes:
        statistics: The mean and std of the normalization, for pixels in [0, 1].
        act: The activation of the MLPs, or None if ViViT does not have it, or if it does not matter.
        norm_eps: The epsilon of the layer norms.
        license: The license of the weights, or None if timm does not state it.
    """

    statistics: Statistics
    act: str | None
    norm_eps: float | None
    license: str | None


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
        if parts := foreign_parts(blueprint(name)):
            raise UserError(f"timm's '{name}' is not a plain ViT: ViViT has no {' and no '.join(parts)}")
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except UserError:
        raise
    except Exception as error:  # Downloads fail in many ways that this package cannot control.
        raise UserError(
            f"timm's '{name}' cannot be downloaded ({hub_reason(error)}): "
            "check the network, pass a file with init.path=FILE, or train from random weights with init=none"
        ) from error


def blueprint(name: str) -> nn.Module:
    """Returns a model of timm that has no weights and takes no memory."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def foreign_parts(model: nn.Module) -> list[str]:
    """Returns the parts of a model of timm that ViViT does not have.

    Some of these models have the same keys as a plain ViT, so that their weights alone would not show it.
    """
    blocks = list(getattr(model, "blocks", []))
    rope: Any = getattr(model, "rope", None)
    is_dinov3 = type(rope).__name__ == "RotaryEmbeddingDinoV3" and rope.rotate_half
    parts = ["rotary positions of its kind"] * (rope is not None and not is_dinov3)
    if blocks and type(getattr(blocks[0], "mlp", None)).__name__ in ("GluMlp", "SwiGLU"):
        parts.append("gated MLPs (SwiGLU)")
    is_plain = type(model) in (VisionTransformer, VisionTransformerDistilled)
    if parts or is_dinov3 or (is_plain and all(type(block) is Block for block in blocks)):
        return parts
    kind = type(blocks[0] if is_plain else model).__name__
    return [f"blocks of its kind ({kind})"]


def known(source: str) -> Known | None:
    """Returns what timm knows about a model, by its name or by the name of a file that is named after it."""
    path = Path(source)
    name = path.stem if path.suffix in WEIGHT_FILES else path.name
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        return None
    is_exact = timm.models.is_model_pretrained(name) and "." in name
    config = timm.models.get_pretrained_cfg(name if is_exact else architecture)
    if config is None:
        return None
    names = [name] if is_exact else timm.list_pretrained(f"{architecture}.*")
    licenses = {about.license for one in names if (about := timm.models.get_pretrained_cfg(one))}
    model = blueprint(architecture)
    act = None if str(config.tag).startswith(JAX_TAGS) else activation_of(model)
    block: Any = next(iter(getattr(model, "blocks", [])), None)
    return Known(
        (tuple(config.mean), tuple(config.std)),
        act,
        getattr(getattr(block, "norm1", None), "eps", None),
        licenses.pop() if len(licenses) == 1 else None,
    )


def activation_of(model: nn.Module) -> str | None:
    """Returns our name of the activation in the MLPs of a model of timm, or None if ViViT does not have it."""
    block = next(iter(getattr(model, "blocks", [])), None)
    act = getattr(getattr(block, "mlp", None), "act", None)
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    return {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}.get(type(act).__name__)


def normalization(source: str) -> Statistics | None:
    """Returns the mean and std of a timm model, by its name or by the name of a file that is named after it."""
    about = known(source)
    return about.statistics if about else None
