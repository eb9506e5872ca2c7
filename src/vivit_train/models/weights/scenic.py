"""Reads and writes weights of the authors' code (scenic, JAX) with equal outputs."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.build import build, heads_of, load_exactly
from vivit_train.models.weights.flax_file import Tree, checkpoint_file, read_parameters, write_flax
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

# These map our names in an encoder block to scenic's: first for models 1, 2, and 4, then for model 3.
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
    """Builds a ViViT from a parameter tree of the authors' code; logits agree within 1e-5 in float32.

    Args:
        params: The flax parameters, with paths joined by "/". The kernels have these shapes: q, k, and v [D, h,
            d]; out [h, d, D]; dense [in, out]; tubelets [t, h, w, 3, D]; 2-D patches (uniform frame sampling) [h,
            w, 3, D].
        frames, image_size: The input frames, and the height and width in pixels, that the tree was made for.
        pool: "cls" for the authors' classifier "token", "mean" for "gap".
        order: The authors' attention_order, for vivit_fsa.

    Raises:
        UserError: A parameter is missing, left over, or of an unexpected shape, or the input size is not
            divisible.
    """
    params = {path: np.asarray(value) for path, value in params.items()}
    encoder = "SpatialTransformer" if model == "vivit_fe" else "Transformer"
    attention = "MultiHeadDotProductAttention_" + ("space" if model == "vivit_fsa" else "0")
    mlp = "MlpBlock" if model == "vivit_fsa" else "MlpBlock_0"
    first_block = f"{encoder}/encoderblock_0"
    query, dense = f"{first_block}/{attention}/query/kernel", f"{first_block}/{mlp}/Dense_0/kernel"
    for path, name in (  # The sizes are read from these.
        ("embedding/kernel", "embedding.projection.weight"),
        (query, "qkv.weight"),
        (dense, "fc1.weight"),
        ("output_projection/kernel", "head.weight"),
    ):
        if path not in params:
            raise UserError(f"not a scenic {model}: the parameter tree has no '{path}'")
        check_axes(name, path, params[path])

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
    load_exactly(net, scenic_state(params, net))
    return net


def scenic_state(params: Mapping[str, np.ndarray], net: ViViT) -> dict[str, Tensor]:
    """Converts a parameter tree to the names and layouts of `net`, but keeps the sizes of the tree.

    Raises:
        UserError: A parameter is missing or left over, or its number of heads differs from that of `net`.
    """
    left, state, heads = dict(params), {}, heads_of(net)
    for ours, theirs in scenic_paths(net):
        state[ours] = from_scenic(ours, [left.pop(path, None) for path in theirs], theirs)
        if ours.endswith("qkv.weight") and params[theirs[0]].shape[1] != heads:
            raise UserError(
                f"'{theirs[0]}' has {params[theirs[0]].shape[1]} heads, the model {heads}: set model.heads"
            )
    if left:
        raise UserError(f"{net.model} has no place for {plural(len(left), 'parameter')}, the first: '{min(left)}'")
    return state


def count_blocks(params: Mapping[str, Any], encoder: str) -> int:
    """Returns the number of blocks of an encoder in a parameter tree."""
    return len({match[0] for path in params if (match := re.match(rf"{encoder}/encoderblock_\d+/", path))})


def scenic_sampled_frames(
    params: Mapping[str, np.ndarray], model: ModelName, image_size: tuple[int, int], frames: int
) -> int:
    """Returns the number of frames of uniform frame sampling, from the position embeddings of a tree."""
    cls_tokens = sum(path.startswith("cls") for path in params) and 1
    if model != "vivit_fe":
        h, w = params["embedding/kernel"].shape[:2]
        tokens = params["Transformer/posembed_input/pos_embedding"].shape[1] - cls_tokens
        return tokens // ((image_size[0] // h) * (image_size[1] // w))
    temporal = params.get("TemporalTransformer/posembed_input/pos_embedding")
    # Without a temporal encoder (L_t = 0), the tree does not show the number, so all frames are used.
    return frames if temporal is None else temporal.shape[1] - cls_tokens


def scenic_paths(net: ViViT) -> Iterator[tuple[str, list[str]]]:
    """Yields each of our parameters with the ordered paths of the scenic parameters that it consists of."""
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
    """Converts one parameter to our layout.

    Kernels become [out, in] instead of flax's [in, out], q, k, and v are stacked, and tubelets become [D, 3, t, h,
    w].
    """
    for path, value in zip(paths, values, strict=True):
        if value is None:
            raise UserError(f"the parameter tree has no '{path}' (needed for '{name}')")
        check_axes(name, path, value)
    x = [torch.from_numpy(np.array(value)).float() for value in values]
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


def check_axes(name: str, path: str, value: np.ndarray) -> None:
    """Checks the number of dimensions of a scenic parameter."""
    axes: tuple[int, ...] = (1,)
    if name == "embedding.projection.weight":
        axes = (4, 5)
    elif name.endswith(("qkv.weight", "out.weight", "cls_token", "pos_embed")):
        axes = (3,)
    elif name.endswith(("qkv.bias", "fc1.weight", "fc2.weight", "head.weight")):
        axes = (2,)
    if value.ndim not in axes:
        raise UserError(f"'{path}' is {list(value.shape)}, which cannot be '{name}' of a ViViT")


def to_scenic(net: ViViT) -> Tree:
    """Returns the parameter tree of the authors' code, with paths joined by "/".

    `load_scenic` reads it back bit for bit. As in the authors' EPIC models, several heads become one
    `output_projection` in the order of `net.head_sizes`.
    """
    tree: Tree = {}
    for name, paths in scenic_paths(net):
        value = net.get_parameter(name).detach().cpu().float()
        for path, array in zip(paths, into_scenic(name, value, net), strict=True):
            tree[path] = np.ascontiguousarray(array.numpy())
    return tree


def into_scenic(name: str, value: Tensor, net: ViViT) -> list[Tensor]:
    """Converts one of our parameters to scenic's layout; the inverse of `from_scenic`."""
    heads = (heads_of(net), -1)
    if name.endswith("qkv.weight"):
        return [part.T.unflatten(1, heads) for part in value.chunk(3)]
    if name.endswith("qkv.bias"):
        return [part.unflatten(0, heads) for part in value.chunk(3)]
    if name.endswith("out.weight"):
        return [value.T.unflatten(0, heads)]
    if name == "embedding.projection.weight":
        kernel = value.permute(2, 3, 4, 1, 0)
        return [kernel if net.embedding.frame_index is None else kernel[0]]
    return [value.T if name.endswith(("fc1.weight", "fc2.weight", "head.weight")) else value]


def read_scenic(path: str | Path) -> Tree:
    """Reads the parameters of a checkpoint of the authors' code for `load_scenic`, with paths joined by "/".

    Args:
        path: A flax msgpack file with a train state of any version or a bare parameter tree, or a folder of
            `checkpoint_<step>` files, of which the last one is read.

    Raises:
        UserError: The file does not exist, is damaged, or contains no parameters.
    """
    return read_parameters(checkpoint_file(path))


def save_scenic(net: ViViT, path: str | Path) -> None:
    """Writes a checkpoint for flax, the authors' `restore_pretrained_checkpoint`, and `read_scenic`."""
    params: dict[str, Any] = {}
    for name, value in to_scenic(net).items():
        *modules, leaf = name.split("/")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = value
    rest = {"global_step": 0, "opt_state": {}, "model_state": {}, "rng": np.zeros(2, np.uint32), "metadata": None}
    write_flax(path, {"params": params} | rest)
