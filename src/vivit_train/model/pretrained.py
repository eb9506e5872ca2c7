"""From an image ViT (timm's keys) to a ViViT (paper, section 3.4), with a receipt of every parameter."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vivit_train.errors import UserError, reason
from vivit_train.model.vivit import ViViT

# ImageNet-21k ViTs of timm, the paper's starting point, for each of our sizes
IMAGENET = {
    "Ti": "vit_tiny_patch16_224.augreg_in21k",
    "S": "vit_small_patch16_224.augreg_in21k",
    "B": "vit_base_patch16_224.augreg_in21k",
    "L": "vit_large_patch16_224.augreg_in21k",
    "H": "vit_huge_patch14_224.orig_in21k",
}
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Receipt:
    """What happened to each parameter of the model.

    Attributes:
        rows: parameter -> what was done: "copied", "inflated", "resized", "repeated", "resized, repeated",
            "zero" or "random" (left as initialised).
        unused: weights of the image model that went nowhere.
        coverage: the share of the parameters that an image ViT has a counterpart for which it filled.
    """

    source: str
    rows: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    coverage: float = 0.0

    def full(self) -> str:
        """Every parameter on a line of its own."""
        return "\n".join(
            [f"weights from {self.source}", *(f"{action:<18} {name}" for name, action in self.rows.items())]
        )

    def __str__(self) -> str:
        """A line for each kind of parameter, the blocks of an encoder taken together."""
        grouped: dict[tuple[str, str], list[int]] = {}
        for name, action in self.rows.items():
            number = re.search(r"blocks\.(\d+)\.", name)
            key = re.sub(r"blocks\.\d+\.", "blocks.*.", name)
            grouped.setdefault((key, action), []).append(int(number[1]) if number else -1)
        lines = [f"weights from {self.source}: {self.coverage:.1%} of what an image ViT can give"]
        for (name, action), numbers in grouped.items():
            span = f"{min(numbers)}-{max(numbers)}" if len(numbers) > 1 else str(numbers[0])
            lines.append(f"  {action:<18} {name.replace('*', span)}")
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused[:8])}{', ...' if len(self.unused) > 8 else ''}")
        return "\n".join(lines)


def init_from_vit(
    model: ViViT,
    weights: Mapping[str, Tensor] | str,
    *,
    tubelet: Literal["central_frame", "inflation"] = "central_frame",
    min_coverage: float = 0.9,
) -> Receipt:
    """Fills `model` in place from an image ViT.

    Tubelets: the 2-D kernel at frame t // 2 and zeros elsewhere ("central_frame"), or repeated and divided by t
    ("inflation"). Positions: the image's grid, resized (bilinear, corners aligned, as the authors') and, in
    models 1, 3 and 4, repeated over time. Model 2's temporal encoder stays random. Model 3's temporal attention
    starts as a no-op by a zero out projection alone: were q, k and v zero too, as in the authors' code, it
    would never learn. Models without cls token leave the image's out.

    Args:
        weights: a state dict with timm's keys, a file with one, or the name of a timm model.

    Raises:
        UserError: the weights are not a plain ViT's, do not fit, or fill less than `min_coverage`.
    """
    source = weights if isinstance(weights, str) else "a state dict"
    image = {
        key: value.float()
        for key, value in (read_weights(weights) if isinstance(weights, str) else weights).items()
    }
    check_plain_vit(image, model, source)
    receipt = Receipt(source)
    used: set[str] = set()
    filled = fillable = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part, action, key, value = name.split(".")[0], "random", image_key(name), None
            if part == "head":
                action, value = "zero", torch.zeros_like(parameter)
            elif "attention_time" in name:
                if name.endswith(("out.weight", "out.bias")):
                    action, value = "zero", torch.zeros_like(parameter)
            elif part != "temporal_encoder" and "norm_time" not in name:
                fillable += parameter.numel()
                if key in image:
                    action, value = fit(name, image[key], model, tubelet, has_cls="cls_token" in image)
                    used.add(key)
                    filled += parameter.numel()
            receipt.rows[name] = action
            if value is None:
                continue
            if value.shape != parameter.shape:
                raise UserError(
                    f"'{key}' of {source} is {list(image[key].shape)}, but the model's '{name}' is "
                    f"{list(parameter.shape)}: choose model.size and model.tubelet to match the weights"
                )
            parameter.copy_(value)
    receipt.unused = [key for key in image if key not in used]
    receipt.coverage = filled / fillable
    if receipt.coverage < min_coverage:
        raise UserError(
            f"{source} fills {receipt.coverage:.1%} of the model, less than init.min_coverage={min_coverage:.0%}: "
            f"is it an image ViT of depth {len(model.encoder.blocks)}?\n{receipt}"
        )
    return receipt


def image_key(name: str) -> str:
    """The timm name of one of our parameters."""
    name = name.replace("embedding.projection.", "patch_embed.proj.").removeprefix("encoder.")
    return name.replace(".attention.qkv.", ".attn.qkv.").replace(".attention.out.", ".attn.proj.")


def fit(name: str, value: Tensor, model: ViViT, tubelet: str, *, has_cls: bool) -> tuple[str, Tensor]:
    """A weight of the image model in the shape that the video model's `name` wants, and what was done to it."""
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
    cls_slot, grid = value[:, :has_cls], value[:, int(has_cls) :]
    side, actions = round(grid.shape[1] ** 0.5), []
    t, rows, columns = model.grid
    if (side, side) != (rows, columns):
        actions.append("resized")
        grid = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (rows, columns), mode="bilinear", align_corners=True).flatten(2).transpose(1, 2)
    if model.model != "vivit_fe":
        actions.append("repeated")
        grid = grid.repeat(1, t, 1)
    if model.encoder.cls_token is not None:
        slot = cls_slot if has_cls else torch.zeros_like(grid[:, :1])
        grid = torch.cat([slot, grid], dim=1)
    return ", ".join(actions) or "copied", grid


def check_plain_vit(image: Mapping[str, Tensor], model: ViViT, source: str) -> None:
    """Refuses, by name, what our block cannot hold."""
    for key in ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"):
        if key not in image:
            raise UserError(
                f"{source} is not a timm ViT: it has no '{key}' (it has {', '.join(list(image)[:5])}, ...)"
            )
    foreign_part = re.compile(r"reg_token|dist_token|\.ls\d\.|q_norm|k_norm|q_bias|norm_pre|\.fc1_g")
    foreign = [key for key in image if foreign_part.search(key)]
    if foreign:
        raise UserError(f"{source} is not a plain ViT: no place for '{foreign[0]}' in ViViT")
    dim, _, *patch = image["patch_embed.proj.weight"].shape
    if dim != model.head.in_features or tuple(patch) != model.tubelet[1:]:
        raise UserError(
            f"{source} is a ViT of width {dim} and patch {patch[0]}x{patch[1]}, the model has width "
            f"{model.head.in_features} and tubelets {'x'.join(map(str, model.tubelet))}: choose model.size and "
            "model.tubelet to match the weights, or other weights (init.name, init.path)"
        )


def read_weights(source: str) -> Mapping[str, Tensor]:
    """A state dict from a file (safetensors, or PyTorch's, nothing executed) or from timm by name.

    Raises:
        UserError: no such file or model, or it cannot be read or downloaded.
    """
    path = Path(source)
    if not path.is_file():
        if "/" in source or path.suffix in WEIGHT_FILES:
            raise UserError(f"no weights at {source}")
        return download(source)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{source} cannot be read as weights: {reason(error)}") from error
    except Exception as error:  # pickle.UnpicklingError and friends: weights_only refuses everything but tensors
        raise UserError(f"{source} is refused: it holds more than tensors ({type(error).__name__})") from error
    for wrapper in ("state_dict", "model"):
        loaded = loaded.get(wrapper, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{source} holds no state dict of tensors")
    return loaded


def download(name: str) -> Mapping[str, Tensor]:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:4])
        raise UserError(f"'{name}' is neither a file nor a model of timm{f'; near: {near}' if near else ''}")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # hubs fail in many ways, all of them outside this program
        raise UserError(
            f"timm's '{name}' cannot be downloaded ({type(error).__name__}: {reason(error)}): "
            "check the network, or give a file by init.path=FILE, or train from random weights by init=none"
        ) from error


def normalisation(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and std that a timm model was trained with, by its name or by that of a file called after it."""
    path = Path(source)
    name = path.stem if path.suffix in WEIGHT_FILES else path.name
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        return None
    config = timm.models.get_pretrained_cfg(name if timm.models.is_model_pretrained(name) else architecture)
    return (tuple(config.mean), tuple(config.std)) if config is not None else None
