"""Weights of the authors' JAX code (scenic) and of Hugging Face into our models: exactly, or an error."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vivit_train.errors import UserError
from vivit_train.model.vivit import ModelName, ViViT

# one encoder block: our name -> scenic's, for models 1, 2 and 4, and for model 3
SCENIC_BLOCK = {
    "norm1": "LayerNorm_0",
    "attention": "MultiHeadDotProductAttention_0",
    "norm2": "LayerNorm_1",
    "mlp": "MlpBlock_0",
}
SCENIC_FSA_BLOCK = {
    "norm1": "LayerNorm_space",
    "attention": "MultiHeadDotProductAttention_space",
    "norm_time": "LayerNorm_time",
    "attention_time": "MultiHeadDotProductAttention_time",
    "norm2": "LayerNorm_mlp",
    "mlp": "MlpBlock",
}


def load_scenic(
    params: Mapping[str, np.ndarray],
    *,
    model: ModelName,
    frames: int,
    image_size: tuple[int, int],
    pool: Literal["cls", "mean"],
    order: Literal["space_time", "time_space"] = "space_time",
) -> ViViT:
    """A ViViT with the weights of a parameter tree of the authors' code; logits agree within 1e-5 in float32.

    Args:
        params: the flax parameters, paths joined by "/". Kernels: q, k, v [D, h, d], out [h, d, D], dense
            [in, out], tubelets [t, h, w, 3, D], 2-D patches (uniform frame sampling) [h, w, 3, D].
        frames, image_size: the input the tree was made for; they say how its tokens divide into time and space.
        pool: "cls" for the authors' classifier "token", "mean" for "gap".
        order: their attention_order, for vivit_fsa.

    Raises:
        UserError: a parameter is missing, left over, or of an unexpected shape; or the input does not divide.
    """
    params = {path: np.asarray(value) for path, value in params.items()}
    encoder = "SpatialTransformer" if model == "vivit_fe" else "Transformer"
    attention = "MultiHeadDotProductAttention_" + ("space" if model == "vivit_fsa" else "0")
    mlp = "MlpBlock" if model == "vivit_fsa" else "MlpBlock_0"
    first_block = f"{encoder}/encoderblock_0"
    query, dense = f"{first_block}/{attention}/query/kernel", f"{first_block}/{mlp}/Dense_0/kernel"
    for path in ("embedding/kernel", query, dense, "output_projection/kernel"):  # they show the sizes
        if path not in params:
            raise UserError(f"not a scenic {model}: the parameter tree has no '{path}'")

    kernel = params["embedding/kernel"]
    dim, heads, _ = params[query].shape
    t_h_w = kernel.shape[:3] if kernel.ndim == 5 else (1, *kernel.shape[:2])
    net = build(
        model,
        num_classes=params["output_projection/kernel"].shape[1],
        frames=frames,
        image_size=image_size,
        dim=dim,
        depth=count_blocks(params, encoder),
        heads=heads,
        mlp_dim=params[dense].shape[1],
        temporal_depth=count_blocks(params, "TemporalTransformer"),
        tubelet=t_h_w,
        sampled_frames=None if kernel.ndim == 5 else scenic_sampled_frames(params, model, image_size, frames),
        pool=pool,
        order=order,
    )
    state: dict[str, Tensor] = {}
    for ours, theirs in scenic_paths(net):
        state[ours] = from_scenic(ours, [params.pop(path, None) for path in theirs], theirs)
    if params:
        raise UserError(f"{len(params)} parameters have no place in {model}, the first: '{min(params)}'")
    load_exactly(net, state)
    return net


def count_blocks(params: Mapping[str, Any], encoder: str) -> int:
    return len({match[0] for path in params if (match := re.match(rf"{encoder}/encoderblock_\d+/", path))})


def scenic_sampled_frames(
    params: Mapping[str, np.ndarray], model: ModelName, image_size: tuple[int, int], frames: int
) -> int:
    """How many frames uniform frame sampling took: the tree shows it in its position embedding."""
    cls_tokens = sum(path.startswith("cls") for path in params) and 1
    if model != "vivit_fe":
        h, w = params["embedding/kernel"].shape[:2]
        tokens = params["Transformer/posembed_input/pos_embedding"].shape[1] - cls_tokens
        return tokens // ((image_size[0] // h) * (image_size[1] // w))
    temporal = params.get("TemporalTransformer/posembed_input/pos_embedding")
    return frames if temporal is None else temporal.shape[1] - cls_tokens  # L_t = 0 leaves no trace: all


def scenic_paths(net: ViViT) -> Iterator[tuple[str, list[str]]]:
    """Each parameter of ours with the scenic parameters that it is made of, in order."""
    encoders = {"encoder": "SpatialTransformer" if net.model == "vivit_fe" else "Transformer"}
    if net.temporal_encoder is not None:
        encoders["temporal_encoder"] = "TemporalTransformer"
    block_names = SCENIC_FSA_BLOCK if net.model == "vivit_fsa" else SCENIC_BLOCK
    for name, _ in net.named_parameters():
        module, _, kind = name.rpartition(".")
        leaf = "kernel" if kind == "weight" else kind
        if module in ("embedding.projection", "head"):
            yield name, [f"{'embedding' if module[0] == 'e' else 'output_projection'}/{leaf}"]
            continue
        ours, _, rest = module.partition(".")
        encoder = encoders[ours]
        if kind == "cls_token":
            yield name, [f"cls_{encoder}" if net.model == "vivit_fe" else "cls"]
        elif kind == "pos_embed":
            yield name, [f"{encoder}/posembed_input/pos_embedding"]
        elif rest == "norm":
            yield name, [f"{encoder}/encoder_norm/{'scale' if kind == 'weight' else 'bias'}"]
        else:
            _, number, part, *inner = rest.split(".")
            path = f"{encoder}/encoderblock_{number}/{block_names[part]}"
            if not inner:
                yield name, [f"{path}/{'scale' if kind == 'weight' else 'bias'}"]
            elif inner == ["qkv"]:
                yield name, [f"{path}/{which}/{leaf}" for which in ("query", "key", "value")]
            else:
                yield (
                    name,
                    [f"{path}/{ {'out': 'out', 'fc1': 'Dense_0', 'fc2': 'Dense_1'}[inner[0]] }/{leaf}"],
                )


def from_scenic(name: str, values: list[np.ndarray | None], paths: list[str]) -> Tensor:
    """One parameter in our layout: [out, in] where flax has [in, out], q k v stacked, tubelets [D, 3, t, h, w]."""
    for path, value in zip(paths, values, strict=True):
        if value is None:
            raise UserError(f"the parameter tree has no '{path}' (for our '{name}')")
    x = [torch.from_numpy(np.array(value)) for value in values]
    if name.endswith("qkv.weight"):
        return torch.cat([kernel.flatten(1).T for kernel in x])
    if name.endswith("qkv.bias"):
        return torch.cat([bias.flatten() for bias in x])
    if name.endswith("out.weight"):
        return x[0].flatten(0, 1).T
    if name == "embedding.projection.weight":
        kernel = x[0] if x[0].ndim == 5 else x[0][None]
        return kernel.permute(4, 3, 0, 1, 2)
    return x[0].T if name.endswith(("fc1.weight", "fc2.weight", "head.weight")) else x[0]


# Hugging Face's two key layouts for one encoder layer: ours -> files on the hub, and models in memory since v5
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
    """A vivit_st with the weights of a Hugging Face `VivitForVideoClassification`; logits agree within 1e-5.

    Args:
        folder: holds config.json and model.safetensors, in the hub's key layout or in that of version 5.

    Raises:
        UserError: a file is missing, the configuration is not ViViT's, or the weights do not fit exactly.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no Hugging Face model folder: it has no {name}")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "vivit":
        raise UserError(f"{folder}/config.json describes '{config.get('model_type')}', not 'vivit'")
    activation = config.get("hidden_act", "gelu_fast")
    if activation not in ("gelu_fast", "gelu_new", "gelu_pytorch_tanh"):  # all names of the tanh form
        raise UserError(f"{folder}/config.json: hidden_act '{activation}' is not the tanh GELU of ViViT")

    weights = load_file(folder / "model.safetensors")
    size = config.get("image_size", 224)
    net = build(
        "vivit_st",
        num_classes=weights["classifier.weight"].shape[0] if "classifier.weight" in weights else 0,
        frames=config.get("num_frames", 32),
        image_size=size if isinstance(size, int) else (size[0], size[1]),
        dim=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 12),
        mlp_dim=config.get("intermediate_size", 3072),
        tubelet=tuple(config.get("tubelet_size", (2, 16, 16))),
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )
    load_exactly(net, from_huggingface(weights, net, qkv_bias=config.get("qkv_bias", True)))
    return net


def from_huggingface(weights: Mapping[str, Tensor], net: ViViT, *, qkv_bias: bool) -> dict[str, Tensor]:
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
        raise UserError(f"{len(left)} Hugging Face weights have no place in ViViT, the first: '{min(left)}'")
    return state


def build(model: ModelName, **kwargs: Any) -> ViViT:
    try:
        return ViViT(model, **kwargs)
    except ValueError as error:  # sizes that contradict the weights'
        raise UserError(f"no such {model}: {error}") from error


def load_exactly(net: ViViT, state: Mapping[str, Tensor]) -> None:
    """Loads every parameter, or names the first whose shape does not fit."""
    for name, parameter in net.named_parameters():
        if state[name].shape != parameter.shape:
            raise UserError(
                f"'{name}' is {list(state[name].shape)} in the weights and {list(parameter.shape)} in a "
                f"{net.model} for {net.input_shape[1]} frames of {net.input_shape[2]}x{net.input_shape[3]}: "
                "were frames, image_size and pool those that the weights were made for?"
            )
    net.load_state_dict(dict(state))
