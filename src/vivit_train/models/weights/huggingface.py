"""Reads and writes Hugging Face models: ViViT with equal outputs in both directions, and timm's image ViTs."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.models.vivit import ViViT, ViViTSpaceTime
from vivit_train.models.weights.build import build, load_exactly
from vivit_train.models.weights.checks import check_statistics
from vivit_train.models.weights.files import (
    Statistics,
    folder_weights,
    hub_folder,
    read_json_object,
    video_statistics,
)
from vivit_train.models.weights.keys import HUB_BLOCK, KeyMap, join, their_names, with_prefix
from vivit_train.models.weights.source import ImageWeights, Source, VideoWeights
from vivit_train.models.weights.timm_models import known
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural, shorten_list

EMBEDDING_AND_NORM: KeyMap = {
    "encoder.cls_token": ("embeddings.cls_token",),
    "encoder.pos_embed": ("embeddings.position_embeddings",),
    "embedding.projection": ("embeddings.patch_embeddings.projection",),
    "encoder.norm": ("layernorm",),
}
# The keys of ViViT in files on the Hub, and those of models in memory since version 5 of transformers.
HUB_KEYS: KeyMap = {
    **EMBEDDING_AND_NORM,
    **HUB_BLOCK,
}
MEMORY_KEYS: KeyMap = {
    **EMBEDDING_AND_NORM,
    "encoder.blocks.*.norm1": ("layers.*.layernorm_before",),
    "encoder.blocks.*.attention.qkv": (
        "layers.*.attention.q_proj",
        "layers.*.attention.k_proj",
        "layers.*.attention.v_proj",
    ),
    "encoder.blocks.*.attention.out": ("layers.*.attention.o_proj",),
    "encoder.blocks.*.norm2": ("layers.*.layernorm_after",),
    "encoder.blocks.*.mlp.fc1": ("layers.*.mlp.fc1",),
    "encoder.blocks.*.mlp.fc2": ("layers.*.mlp.fc2",),
}
HEAD: KeyMap = {"head": ("classifier",)}
VIVIT_HUB_KEYS: KeyMap = {**with_prefix(HUB_KEYS, "vivit."), **HEAD}
VIVIT_MEMORY_KEYS: KeyMap = {**with_prefix(MEMORY_KEYS, "vivit."), **HEAD}
CONFIG: Mapping[str, Any] = {
    "architectures": ["VivitForVideoClassification"],
    "model_type": "vivit",
    "num_channels": 3,
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "torch_dtype": "float32",
}
# Their names of our activations; the first of each is the one that we write.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "gelu_tanh": ("gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
    "gelu": ("gelu", "gelu_python"),
    "quick_gelu": ("quick_gelu",),
}
PREPROCESSOR: Mapping[str, Any] = {
    "image_processor_type": "VivitImageProcessor",
    "video_processor_type": "VivitVideoProcessor",
    "do_resize": True,
    "resample": 2,  # This is bilinear.
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 127.5,
    "offset": True,
    "do_normalize": True,
}


def detect_huggingface(source: Source, _: ViViT) -> ImageWeights | VideoWeights | None:
    """Returns the weights in a Hugging Face folder, which may hold a ViViT or an image ViT of timm.

    Raises:
        UserError: The folder holds another model, or a file is a part of a ViViT without its configuration.
    """
    if source.is_file and any(str(key).startswith("vivit.") for key in source.tensors):
        raise UserError(
            f"{source.name} is part of a Hugging Face ViViT: pass the folder that contains its config.json"
        )
    if source.path is None or source.config is None:
        return None
    name, config = source.name, source.config
    if config.get("model_type") == "vivit":
        theirs = load_huggingface(source.path)
        labels = named_classes(config, name)
        return VideoWeights(
            name,
            dict(theirs.named_parameters()),
            theirs.settings(),
            theirs.grid,
            {"": labels} if labels else None,
            statistics=video_statistics(source.path),
        )
    if "architecture" in config:  # This is a timm model on the Hub.
        preprocessing = config.get("pretrained_cfg", {})
        statistics = statistics_in(preprocessing, name)
        about = known(f"{config['architecture']}.{preprocessing.get('tag')}")
        named = vars(about) if about else {}
        return ImageWeights(name, source.tensors, **named | {"statistics": statistics})
    raise UserError(
        f"{name}/config.json describes {shown(config.get('model_type'))}, but the weights must be those of "
        "a ViViT ('vivit'), 'videomae', 'timesformer' or an image ViT ('vit', 'deit', 'vit_mae', 'dinov2', "
        "'dinov3_vit', 'clip', 'siglip', or timm's)"
    )


def image_statistics(folder: Path, source: str) -> Statistics | None:
    """Returns the normalization in the preprocessor_config.json of a folder, or None if it states none.

    Raises:
        UserError: The file cannot be read, or its numbers are unusable.
    """
    file = folder / "preprocessor_config.json"
    return statistics_in(read_json_object(file) if file.is_file() else {}, source)


def statistics_in(settings: Any, source: str) -> Statistics | None:
    """Returns the mean and std in the settings of Hugging Face's or timm's preprocessing, or None."""
    if not isinstance(settings, dict):
        raise UserError(f"{source}: its preprocessing is not a mapping of settings")
    mean, std = (settings.get(f"image_{key}", settings.get(key)) for key in ("mean", "std"))
    if not mean or not std:
        return None
    check_statistics(mean, std, source)
    return tuple(mean), tuple(std)


def activation(config: Mapping[str, Any], source: str, default: str = "gelu") -> str:
    """Returns our name of the activation in a Hugging Face configuration.

    Raises:
        UserError: ViViT does not have it.
    """
    name = config.get("hidden_act", default)
    for ours, theirs in ACTIVATIONS.items():
        if name in theirs:
            return ours
    known = ", ".join(theirs for names in ACTIVATIONS.values() for theirs in names)
    raise UserError(f"{source}/config.json: ViViT has no hidden_act {shown(name)}, only {known}")


def load_huggingface(folder: str | Path) -> ViViT:
    """Loads a Hugging Face `VivitForVideoClassification` as a vivit_st; logits agree within 1e-5.

    Args:
        folder: A folder with config.json and model.safetensors (or pytorch_model.bin), in the key layout of the
            Hub or of transformers version 5; or the name of a model on the Hub.

    Raises:
        UserError: A file is missing, the configuration is not that of a ViViT, or the weights do not fit exactly.
    """
    folder = hub_folder(folder)
    config = read_json_object(folder / "config.json")
    if config.get("model_type") != "vivit":
        raise UserError(f"{folder}/config.json describes '{config.get('model_type')}', not 'vivit'")
    act = activation(config, str(folder), default="gelu_fast")
    weights = folder_weights(folder)
    layer = re.compile(r"vivit\.(?:encoder\.layer|layers)\.(\d+)\.")
    layers = {match[1] for key in weights if (match := layer.match(key))}
    depth = config.get("num_hidden_layers", 12)
    if not conforms(depth, int) or depth > len(layers):  # Building a million layers takes too long.
        what = f"num_hidden_layers is {shown(depth)}, but the weights have {plural(len(layers), 'layer')}"
        raise UserError(f"{folder}/config.json: {what}")
    size = config.get("image_size", 224)
    net = build(
        ViViTSpaceTime,
        num_classes=len(weights["classifier.bias"]) if "classifier.bias" in weights else 0,
        frames=config.get("num_frames", 32),
        image_size=size,
        dim=config.get("hidden_size", 768),
        depth=depth,
        heads=config.get("num_attention_heads", 12),
        mlp_dim=config.get("intermediate_size", 3072),
        tubelet=config.get("tubelet_size", (2, 16, 16)),
        act=act,
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )
    load_exactly(net, from_huggingface(weights, net, qkv_bias=bool(config.get("qkv_bias", True))))
    return net


def from_huggingface(weights: Mapping[str, Tensor], net: ViViT, *, qkv_bias: bool) -> dict[str, Tensor]:
    """Converts a Hugging Face state dict to our names; fails if a weight is missing or left over."""
    is_memory = any(key.startswith("vivit.layers.") for key in weights)
    key_map, left, state = VIVIT_MEMORY_KEYS if is_memory else VIVIT_HUB_KEYS, dict(weights), {}
    for name, _ in net.named_parameters():
        if name.endswith("qkv.bias") and not qkv_bias:
            state[name] = torch.zeros(3 * net.head.in_features)
            continue
        theirs = their_names(key_map, name)
        if missing := [key for key in theirs if key not in left]:
            raise UserError(f"the Hugging Face weights have no '{missing[0]}'")
        state[name] = join([left.pop(key).float() for key in theirs])
    if left:
        weights_left = plural(len(left), "Hugging Face weight")
        raise UserError(f"ViViT has no place for {weights_left}, the first: '{min(left)}'")
    return state


def named_classes(config: Mapping[str, Any], source: str) -> list[str] | None:
    """Returns the class names of a Hugging Face configuration in the order of the logits, or None."""
    labels = config.get("id2label", {})
    if not conforms(labels, dict[str, str]) or sorted(map(as_number, labels)) != list(range(len(labels))):
        raise UserError(f"{source}/config.json: id2label must name the classes 0, 1, 2, ...")
    names = [labels[i] for i in sorted(labels, key=int)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{source}/config.json: id2label has {shorten_list(twice)} more than once; rename all but one"
        )
    return names if any(name != f"LABEL_{i}" for i, name in enumerate(names)) else None


def as_number(text: str) -> int:
    """Returns a class id of up to seven digits, or -1 for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,7}", text) else -1


def save_huggingface(
    net: ViViT,
    folder: str | Path,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    short_side: int,
    resize_mode: Literal["keep_ratio", "stretch"] = "keep_ratio",
) -> None:
    """Writes a folder with weights, labels, and preprocessing that transformers and `load_huggingface` can load.

    Versions 4 and 5 of transformers can load it; non-square inputs need version 5.

    Args:
        net: The model.
        folder: The output folder.
        classes: The class names in the order of the logits.
        mean: The per-channel mean that `net` was trained with, for pixels in [0, 1].
        std: The per-channel standard deviation that `net` was trained with, for pixels in [0, 1].
        short_side: The length in pixels to which the short side of a video is resized before the center crop.
        resize_mode: "stretch" resizes both sides to it.

    Raises:
        UserError: transformers cannot represent the model: it is not a vivit_st, or it uses mean pooling, sampled
            frames, or several heads.
    """
    if problems := export_problems(net):
        raise UserError(f"Hugging Face's ViViT cannot express {' and '.join(problems)}")
    if len(classes) != net.head.out_features:
        raise UserError(f"got {len(classes)} class names for {net.head.out_features} logits")
    _, _, height, width = net.input_shape
    square = {"height": short_side, "width": short_side}
    preprocessor = {
        **PREPROCESSOR,
        "size": {"shortest_edge": short_side} if resize_mode == "keep_ratio" else square,
        "crop_size": {"height": height, "width": width},
        # Hugging Face's processors compute (x / 127.5 - 1 - image_mean) / image_std, and the video processor
        # always subtracts the 1, so image_mean and image_std refer to pixels in [-1, 1].
        "image_mean": [2 * value - 1 for value in mean],
        "image_std": [2 * value for value in std],
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", config_of(net, classes)), ("preprocessor_config.json", preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(into_huggingface(net), folder / "model.safetensors", metadata={"format": "pt"})


def export_problems(net: ViViT) -> list[str]:
    """Returns each property of a model that Hugging Face's ViViT lacks."""
    problems = []
    if net.layout is not ViViTSpaceTime.layout:
        problems.append(f"the model {net.model} (only {ViViTSpaceTime.layout.name})")
    else:
        if net.encoder.cls_token is None:
            problems.append("mean pooling (pool=mean)")
        added = [name for name, _ in net.named_parameters() if not their_names(VIVIT_HUB_KEYS, name)]
        problems += [f"the parameter {name}" for name in added[:1]]
    if net.head.in_features != net.encoder.norm.weight.numel():
        problems.append("features that are pooled otherwise (vivit probe)")
    if net.rope:
        problems.append("rotary positions (rope)")
    if net.embedding.frame_index is not None:
        problems.append("uniform frame sampling (sampled_frames)")
    if len(net.head_sizes) > 1:
        problems.append(f"several heads ({', '.join(net.head_sizes)})")
    return problems


def config_of(net: ViViT, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the content of config.json."""
    _, frames, height, width = net.input_shape
    return {
        **CONFIG,
        "num_frames": frames,
        "image_size": height if height == width else [height, width],
        "tubelet_size": list(net.tubelet),
        "hidden_size": net.head.in_features,
        "num_hidden_layers": len(net.encoder.blocks),
        "num_attention_heads": net.heads,
        "intermediate_size": net.get_parameter("encoder.blocks.0.mlp.fc1.weight").shape[0],
        "hidden_act": ACTIVATIONS[net.act][0],
        "layer_norm_eps": net.encoder.norm.eps,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def into_huggingface(net: ViViT) -> dict[str, Tensor]:
    """Converts the parameters to a Hugging Face state dict; the inverse of `from_huggingface`.

    The keys have the layout of the Hub: version 4 of transformers requires it, and version 5 converts it.
    """
    weights = {}
    for name, value in net.named_parameters():
        theirs = their_names(VIVIT_HUB_KEYS, name)
        for key, part in zip(theirs, value.detach().cpu().float().chunk(len(theirs)), strict=True):
            weights[key] = part.clone()  # safetensors rejects shared storage.
    return weights
