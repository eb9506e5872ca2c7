"""Trains a part of a model: the choice of `train`, low-rank updates (LoRA) and adapters.

Shape suffixes as in models/vivit.py, and r the rank of an update, W the width of an adapter.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from vivit_train.models.choices import Train
from vivit_train.models.layers import MLP, Attention, Block
from vivit_train.models.vivit import ViViT, ViViTFactorizedEncoder

RANK = 8  # Of the low-rank updates.
SHARE = 4  # An adapter is so many times narrower than the model.
ADAPTER = re.compile(r"encoder\.blocks\.\d+\.adapter\.")


class LoRALinear(nn.Linear):
    """A linear layer with a frozen weight and a trained low-rank update, W + B A (arXiv 2106.09685).

    B starts at zero, so that the layer starts as it was. The scale is 1 (alpha = rank).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        like = linear.weight.detach()
        self.lora_a = nn.Parameter(torch.randn_like(like[:1].repeat(RANK, 1)) * self.in_features**-0.5)
        self.lora_b = nn.Parameter(like.new_zeros(self.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)


def merge_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict in which low-rank updates are added to their weights."""
    merged = {name: value for name, value in state.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name in [name for name in state if name.endswith(".lora_a")]:
        linear = name.removesuffix(".lora_a")
        merged[f"{linear}.weight"] = state[f"{linear}.weight"] + state[f"{linear}.lora_b"] @ state[name]
    return merged


class Adapter(nn.Module):
    """A spatio-temporal adapter before a block: down, depthwise convolution over time, up (arXiv 2206.13559).

    The output starts as the input, because the last layer starts at zero.

    Args:
        dim: The width of the model.
        frames: The number of time indices, if one axis has the tokens of all of them, behind `first` other tokens;
            None if there is an axis of time, [B, t, n, D].
        first: The number of tokens that come before those of the video.
    """

    def __init__(self, dim: int, frames: int | None = None, first: int = 0) -> None:
        super().__init__()
        self.frames, self.first = frames, first
        self.down = nn.Linear(dim, dim // SHARE)
        self.over_time = nn.Conv1d(dim // SHARE, dim // SHARE, 3, padding=1, groups=dim // SHARE)
        self.up = nn.Linear(dim // SHARE, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.frames is None:
            return x + self.update(x)
        before, x_BND = x[:, : self.first], x[:, self.first :]
        x_BND = x_BND + self.update(x_BND.unflatten(1, (self.frames, -1))).flatten(1, 2)
        return torch.cat([before, x_BND], dim=1)

    def update(self, x_BtnD: Tensor) -> Tensor:
        """Returns what is added to the tokens."""
        y_BnWt = self.down(x_BtnD).permute(0, 2, 3, 1)
        y_BnWt = self.over_time(y_BnWt.flatten(0, 1)).unflatten(0, y_BnWt.shape[:2])
        update: Tensor = self.up(F.gelu(y_BnWt.permute(0, 3, 1, 2)))
        return update


def problem_of(train: Train, model: str | None) -> str:
    """Returns why one of the four models cannot be trained so, or ""; None is a model of the user's own."""
    if train == "temporal" and model in ("vivit_st", "vivit_fdp"):
        return f"train=temporal: {model} has no weights for time alone: set model=vivit_fe, or train=lora"
    return ""


def cache_problem(train: Train, model: str | None) -> str:
    """Returns why the features below the first trained layer cannot be stored, or ""; see `problem_of`."""
    if train not in ("head", "temporal"):
        return f"cache=true: with train={train}, the features change in each step: set train=temporal or head"
    if train == "temporal" and model not in ("vivit_fe", None):
        return f"cache=true: {model} attends over time in each block, so all of it changes: set train=head"
    return ""


def frozen_features(net: ViViT, train: Train, video_BCTHW: Tensor) -> Tensor:
    """Returns the output of the frozen part of a model: [B, D] if only the head is trained, else [B, t, D].

    Raises:
        ValueError: The model is of another package, and its frozen part is not known.
    """
    own = type(net).forward is ViViT.forward
    if train == "head" and own:
        return net.features(video_BCTHW)
    encode, inherited = ViViTFactorizedEncoder.encode, ViViTFactorizedEncoder.features
    if not (own and type(net).encode is encode and type(net).features is inherited):
        raise ValueError(f"cache=true: what is frozen in {type(net).__name__} is not known: set cache=false")
    net.check_input(video_BCTHW)
    features: Tensor = net.encoder(net.embedding(video_BCTHW))
    return features


def trained_logits(net: ViViT, train: Train, features: Tensor) -> Tensor:
    """Returns the logits [B, K] from what `frozen_features` returns; those of several heads are concatenated."""
    if train != "head":
        assert isinstance(net, ViViTFactorizedEncoder)
        features = net.over_time(features)
    logits: Tensor = net.head(features)
    return logits


def feature_shape(net: ViViT, train: Train) -> tuple[int, ...]:
    """Returns the shape of what `frozen_features` returns, without the batch."""
    width = net.head.in_features
    return (width,) if train == "head" else (net.grid[0], width)


class TrainedPart(nn.Module):
    """The trained part of a model as a module: from the output of the frozen part to the logits."""

    def __init__(self, net: ViViT, train: Train) -> None:
        super().__init__()
        self.net, self.train_choice = net, train
        self.input_shape = feature_shape(net, train)

    def forward(self, features: Tensor) -> Tensor:
        return trained_logits(self.net, self.train_choice, features)


def set_trained(net: ViViT, train: Train) -> None:
    """Freezes what is not trained, and adds the weights of `lora` and `adapter`.

    The head is always trained. The temporal encoder of vivit_fe is trained unless only the head is, because an
    image ViT leaves it at random weights. What is frozen needs no gradients, so that autograd keeps no activations
    of the layers before the first trained one.

    Args:
        net: The model, whose weights are loaded.
        train: What is trained.
    """
    if train in ("all", "auto"):
        return
    if train == "lora":
        add_lora(net)
    elif train == "adapter":
        add_adapters(net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(is_trained(net, name, train))
    for encoder in (net.encoder, net.temporal_encoder):
        if encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
            for module in encoder.modules():
                if isinstance(module, DropPath):
                    module.drop_prob = 0.0  # Random features of a frozen encoder would only be noise.


def is_trained(net: ViViT, name: str, train: Train) -> bool:
    """Returns whether a parameter is trained; see `set_trained`."""
    is_fixed = name.endswith("pos_embed") and not net.get_parameter(name).requires_grad
    if name.startswith("head.") or is_fixed:
        return not is_fixed
    if train != "head" and name.startswith("temporal_encoder."):
        return True
    parts = name.split(".")
    return {
        "head": False,
        "temporal": "attention_time" in parts or "norm_time" in parts,
        "norms": any(part.startswith("norm") for part in parts),
        "lora": parts[-1] in ("lora_a", "lora_b"),
        "adapter": "adapter" in parts,
    }[train]


def add_lora(net: ViViT) -> None:
    """Replaces the linear layers of attention and MLPs in the first encoder by layers with low-rank updates."""
    for module in [module for module in net.encoder.modules() if isinstance(module, Attention | MLP)]:
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(module, name, LoRALinear(linear))


def add_adapters(net: ViViT) -> None:
    """Adds an adapter to each block of the first encoder."""
    joint = net.layout.encoders["encoder"] == ("thw",)
    first = int(net.encoder.cls_token is not None) if joint else 0
    for block in net.encoder.blocks:
        assert isinstance(block, Block)
        block.adapter = Adapter(net.head.in_features, net.grid[0] if joint else None, first)


def has_adapters(state: Mapping[str, Tensor]) -> bool:
    """Returns whether a state dict of a model has the weights of adapters."""
    return any(map(ADAPTER.match, state))
