"""Builds a model around weights that do not describe a whole one, for its embeddings.

These are the other weights that `load_pretrained` accepts: video models, and image ViTs, whose frames are averaged
by a vivit_fe without a temporal encoder.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm import is_model
from torch import Tensor

from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.adapt import guess_grid, square
from vivit_train.models.weights.files import WEIGHT_FILES, Statistics
from vivit_train.models.weights.huggingface_vits import with_timm_names
from vivit_train.models.weights.keys import count_blocks
from vivit_train.models.weights.load import DETECTORS, detect, load_pretrained
from vivit_train.models.weights.settings import shown_settings
from vivit_train.models.weights.source import ImageWeights, Source, VideoWeights
from vivit_train.models.weights.timm_models import blueprint
from vivit_train.models.weights.timm_vit import REGISTERS, has_rope
from vivit_train.utils.arguments import shown
from vivit_train.utils.errors import UserError, reason

log = logging.getLogger(__name__)
IMAGE_FRAMES, IMAGE_SIZE = 8, 224  # of a clip for an image ViT; the pixels only if its positions do not state them


@dataclass(frozen=True)
class Backbone:
    """A model without classes.

    Attributes:
        net: The model, whose head is zero.
        statistics: The mean and std of the normalization, for pixels in [0, 1].
        clip: The settings of `data` that make its clips.
    """

    net: ViViT
    statistics: Statistics
    clip: Mapping[str, Any]


def read_backbone(source: Source) -> Backbone:
    """Reads the weights in a source and logs what happened to them. Nothing in it is executed.

    Raises:
        UserError: The source cannot be read, or does not say how its model is built.
    """
    template = ViViT(
        "vivit_st", num_classes=1, frames=2, image_size=16, dim=4, depth=1, heads=1, tubelet=(1, 16, 16)
    )
    try:
        found = detect(source, template, DETECTORS)
        is_image = isinstance(found, ImageWeights)
        arguments = image_arguments(found) if isinstance(found, ImageWeights) else video_arguments(found)
        net = ViViT(**arguments, num_classes=1)
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        # A file can hold anything, including tensors and mappings that no ViT has.
        raise UserError(f"{source.name} does not hold the weights of a ViT: {reason(error)}") from error
    report = load_pretrained(net, found)
    log.info(report)
    _, frames, height, width = net.input_shape
    if height != width:
        raise UserError(f"{source.name} takes frames of {height}x{width}, but clips are squares")
    clip = {"frames": frames, "crop": height} | ({"sampling": "segments"} if is_image else {})
    return Backbone(net, report.statistics or ((0.5,) * 3, (0.5,) * 3), clip)


def video_arguments(found: VideoWeights) -> dict[str, Any]:
    """Returns the arguments of `ViViT` for the weights of a video model.

    Raises:
        UserError: They are a bare state dict, which does not say what it belongs to.
    """
    if "model" not in found.settings:
        raise UserError(
            f"{found.source} is a state dict that does not say which model it belongs to: name the checkpoint "
            "that a run has written"
        )
    arguments = shown_settings(found.state) | dict(found.settings)
    if "heads" not in arguments:
        arguments["heads"] = heads_of(found.source, arguments["dim"], arguments["depth"])
    t, h, w = arguments["tubelet"]
    frames, size = IMAGE_FRAMES * t, (IMAGE_SIZE - IMAGE_SIZE % h, IMAGE_SIZE - IMAGE_SIZE % w)
    if found.grid is None:
        expected = ViViT(**arguments | {"frames": frames, "image_size": size}, num_classes=1)
    steps, rows, columns = found.grid or guess_grid(expected, found, None)
    return arguments | {"frames": steps * t, "image_size": (rows * h, columns * w)}


def image_arguments(found: ImageWeights) -> dict[str, Any]:
    """Returns the arguments of `ViViT` for the weights of an image ViT: a token per patch of each frame.

    Raises:
        UserError: They are not those of a ViT of squares, or do not state the number of heads.
    """
    image = with_timm_names(found.state)
    dim, _, *patch = image["patch_embed.proj.weight"].shape
    depth, has_cls = count_blocks(image, "blocks.*.norm1"), "cls_token" in image
    num_reg = sum(image[name].shape[1] for name in REGISTERS if name in image)
    hidden = image.get("blocks.0.mlp.fc1.weight")  # Gated MLPs have none, and `load_pretrained` refuses them.
    side = IMAGE_SIZE // patch[0] if has_rope(image) else side_of(image["pos_embed"], int(has_cls), num_reg)
    if not side:
        raise UserError(f"{found.source} was trained on images that are not square")
    heads = heads_of(found.source, dim, depth) if found.heads is None else found.heads
    options = {"act": found.act, "norm_eps": found.norm_eps}
    return {key: value for key, value in options.items() if value is not None} | {
        "model": "vivit_fe",
        "temporal_depth": 0,
        "frames": IMAGE_FRAMES,
        "image_size": (side * patch[0], side * patch[1]),
        "tubelet": (1, *patch),
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_dim": None if hidden is None else hidden.shape[0],
        "pool": "cls" if has_cls else "mean",
        "pre_norm": "norm_pre.weight" in image,
        "reg_tokens": num_reg,
        "rope": has_rope(image),
    }


def side_of(positions: Tensor, num_cls: int, num_reg: int) -> int:
    """Returns the rows of the grid of position embeddings [1, N, D], or 0 if it is not a square."""
    tokens = positions.shape[1]
    sides = (square(tokens - others) for others in (num_cls, num_cls + num_reg, 0))
    return next(filter(None, sides), 0)


def heads_of(source: str, dim: int, depth: int) -> int:
    """Returns the number of attention heads, which no weight shows: from the size or a name of timm.

    Raises:
        UserError: Neither tells it.
    """
    for size in SIZES.values():
        if (size["dim"], size["depth"]) == (dim, depth):
            return size["heads"]
    name = source.rpartition("/")[2]
    name = next((name.removesuffix(end) for end in WEIGHT_FILES if name.endswith(end)), name).partition(".")[0]
    block: Any = next(iter(getattr(blueprint(name), "blocks", [])), None) if is_model(name) else None
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    if not isinstance(heads, int):
        raise UserError(
            f"{source} does not say how many attention heads its {shown(depth)} layers of width {shown(dim)} "
            "have: name the file after its timm model, or pass a Hugging Face folder"
        )
    return heads
