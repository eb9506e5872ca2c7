"""Reads and writes Hugging Face ViViT models with equal outputs."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.build import build, heads_of, load_exactly
from vivit_train.models.weights.files import folder_weights, hub_folder, read_json
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

# This maps our names to Hugging Face's two key layouts of a layer: Hub files, and models in memory since v5.
HUGGINGFACE_LAYER = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attention.q": ("attention.attention.query", "attention.q_proj"),
    "attention.k": ("attention.attention.key", "attention.k_proj"),
    "attention.v": ("attention.attention.value", "attention.v_proj"),
    "attention.out": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
HUGGINGFACE_REST = {
    "encoder.cls_token": "embeddings.cls_token",
    "encoder.pos_embed": "embeddings.position_embeddings",
    "embedding.projection.weight": "embeddings.patch_embeddings.projection.weight",
    "embedding.projection.bias": "embeddings.patch_embeddings.projection.bias",
    "encoder.norm.weight": "layernorm.weight",
    "encoder.norm.bias": "layernorm.bias",
}


def load_huggingface(folder: str | Path) -> ViViT:
    """Loads a Hugging Face `VivitForVideoClassification` as a vivit_st; logits agree within 1e-5.

    Args:
        folder: A folder with config.json and model.safetensors (or pytorch_model.bin), in the key layout of the
            Hub or of transformers version 5; or the name of a model on the Hub.

    Raises:
        UserError: A file is missing, the configuration is not that of a ViViT, or the weights do not fit exactly.
    """
    folder = hub_folder(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "vivit":
        raise UserError(f"{folder}/config.json describes '{config.get('model_type')}', not 'vivit'")
    activation = config.get("hidden_act", "gelu_fast")
    if activation not in ("gelu_fast", "gelu_new", "gelu_pytorch_tanh"):  # These are all names of the tanh form.
        raise UserError(f"{folder}/config.json: hidden_act '{activation}' is not the tanh GELU of ViViT")

    weights = folder_weights(folder)
    layer = re.compile(r"vivit\.(?:encoder\.layer|layers)\.(\d+)\.")
    layers = {match[1] for key in weights if (match := layer.match(key))}
    depth = config.get("num_hidden_layers", 12)
    if not conforms(depth, int) or depth > len(layers):  # Building a million layers takes too long.
        what = f"num_hidden_layers is {shown(depth)}, but the weights have {plural(len(layers), 'layer')}"
        raise UserError(f"{folder}/config.json: {what}")
    size = config.get("image_size", 224)
    net = build(
        "vivit_st",
        num_classes=len(weights["classifier.bias"]) if "classifier.bias" in weights else 0,
        frames=config.get("num_frames", 32),
        image_size=size,
        dim=config.get("hidden_size", 768),
        depth=depth,
        heads=config.get("num_attention_heads", 12),
        mlp_dim=config.get("intermediate_size", 3072),
        tubelet=config.get("tubelet_size", (2, 16, 16)),
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )
    load_exactly(net, from_huggingface(weights, net, qkv_bias=bool(config.get("qkv_bias", True))))
    return net


def from_huggingface(weights: Mapping[str, Tensor], net: ViViT, *, qkv_bias: bool) -> dict[str, Tensor]:
    """Converts a Hugging Face state dict to our names; fails if a weight is missing or left over."""
    layout = int(any(key.startswith("vivit.layers.") for key in weights))
    layers = ("vivit.encoder.layer", "vivit.layers")[layout]
    left = dict(weights)

    def take(key: str) -> Tensor:
        if key not in left:
            raise UserError(f"the Hugging Face weights have no '{key}'")
        return left.pop(key).float()

    state = {ours: take(f"vivit.{theirs}") for ours, theirs in HUGGINGFACE_REST.items()}
    state |= {f"head.{kind}": take(f"classifier.{kind}") for kind in ("weight", "bias")}
    for i in range(len(net.encoder.blocks)):
        for kind in ("weight", "bias"):
            layer = {
                ours: torch.zeros(net.head.in_features)
                if ours[-2:] in (".q", ".k", ".v") and kind == "bias" and not qkv_bias
                else take(f"{layers}.{i}.{theirs[layout]}.{kind}")
                for ours, theirs in HUGGINGFACE_LAYER.items()
            }
            qkv = torch.cat([layer.pop(f"attention.{which}") for which in "qkv"])
            state |= {f"encoder.blocks.{i}.{ours}.{kind}": value for ours, value in layer.items()}
            state[f"encoder.blocks.{i}.attention.qkv.{kind}"] = qkv
    if left:
        weights_left = plural(len(left), "Hugging Face weight")
        raise UserError(f"ViViT has no place for {weights_left}, the first: '{min(left)}'")
    return state


def save_huggingface(
    net: ViViT,
    folder: str | Path,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    short_side: int,
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

    Raises:
        UserError: transformers cannot represent the model: it is not a vivit_st, or it uses mean pooling, sampled
            frames, or several heads.
    """
    problems = [
        problem
        for problem, there in {
            f"the model {net.model} (only vivit_st)": net.model != "vivit_st",
            "mean pooling (pool=mean)": net.model == "vivit_st" and net.encoder.cls_token is None,
            "uniform frame sampling (sampled_frames)": net.embedding.frame_index is not None,
            f"several heads ({', '.join(net.head_sizes)})": len(net.head_sizes) > 1,
        }.items()
        if there
    ]
    if problems:
        raise UserError(f"Hugging Face's ViViT cannot express {' and '.join(problems)}")
    if len(classes) != net.head.out_features:
        raise UserError(f"got {len(classes)} class names for {net.head.out_features} logits")
    _, frames, height, width = net.input_shape
    config = {
        "architectures": ["VivitForVideoClassification"],
        "model_type": "vivit",
        "num_frames": frames,
        "image_size": height if height == width else [height, width],
        "tubelet_size": list(net.tubelet),
        "num_channels": 3,
        "hidden_size": net.head.in_features,
        "num_hidden_layers": len(net.encoder.blocks),
        "num_attention_heads": heads_of(net),
        "intermediate_size": net.get_parameter("encoder.blocks.0.mlp.fc1.weight").shape[0],
        "hidden_act": "gelu_fast",
        "layer_norm_eps": net.encoder.norm.eps,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "torch_dtype": "float32",
    }
    # Hugging Face's processors compute (x / 127.5 - 1 - image_mean) / image_std, and the video processor always
    # subtracts the 1, so image_mean and image_std refer to pixels in [-1, 1].
    preprocessor = {
        "image_processor_type": "VivitImageProcessor",
        "video_processor_type": "VivitVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": short_side},
        "resample": 2,  # This is bilinear.
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "offset": True,
        "do_normalize": True,
        "image_mean": [2 * value - 1 for value in mean],
        "image_std": [2 * value for value in std],
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(into_huggingface(net), folder / "model.safetensors", metadata={"format": "pt"})


def into_huggingface(net: ViViT) -> dict[str, Tensor]:
    """Converts the parameters to a Hugging Face state dict; the inverse of `from_huggingface`.

    The keys have the layout of the Hub: version 4 of transformers requires it, and version 5 converts it.
    """
    state = {name: value.detach().cpu().float() for name, value in net.named_parameters()}
    weights = {f"vivit.{theirs}": state[ours] for ours, theirs in HUGGINGFACE_REST.items()}
    weights |= {f"classifier.{kind}": state[f"head.{kind}"] for kind in ("weight", "bias")}
    for i in range(len(net.encoder.blocks)):
        for kind in ("weight", "bias"):
            ours = f"encoder.blocks.{i}"
            for which, part in zip("qkv", state[f"{ours}.attention.qkv.{kind}"].chunk(3), strict=True):
                state[f"{ours}.attention.{which}.{kind}"] = part
            for name, (theirs, _) in HUGGINGFACE_LAYER.items():
                weights[f"vivit.encoder.layer.{i}.{theirs}.{kind}"] = state[f"{ours}.{name}.{kind}"]
    return {name: value.clone() for name, value in weights.items()}  # safetensors rejects shared storage.
