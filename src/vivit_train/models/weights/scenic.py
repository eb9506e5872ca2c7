"""Weights of the authors' code (scenic, JAX): read and written, with equal outputs."""

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
        params: the flax parameters, paths joined by "/". Kernels: q, k, v [D, h, d], out [h, d, D], dense [in,
            out], tubelets [t, h, w, 3, D], 2-D patches (uniform frame sampling) [h, w, 3, D].
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
    for path, name in (  # they show the sizes
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
    """A parameter tree in the names and layouts of `net`, but in the tree's own sizes.

    Raises:
        UserError: a parameter is missing or left over, or its heads are not those of `net`.
    """
    left, state, heads = dict(params), {}, heads_of(net)
    for ours, theirs in scenic_paths(net):
        state[ours] = from_scenic(ours, [left.pop(path, None) for path in theirs], theirs)
        if ours.endswith("qkv.weight") and params[theirs[0]].shape[1] != heads:
            raise UserError(
                f"'{theirs[0]}' has {params[theirs[0]].shape[1]} heads, the model {heads}: model.heads"
            )
    if left:
        raise UserError(f"{len(left)} parameters have no place in {net.model}, the first: '{min(left)}'")
    return state


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
    axes: tuple[int, ...] = (1,)
    if name == "embedding.projection.weight":
        axes = (4, 5)
    elif name.endswith(("qkv.weight", "out.weight", "cls_token", "pos_embed")):
        axes = (3,)
    elif name.endswith(("qkv.bias", "fc1.weight", "fc2.weight", "head.weight")):
        axes = (2,)
    if value.ndim not in axes:
        raise UserError(f"'{path}' is {list(value.shape)}, which is no '{name}' of a ViViT")


def to_scenic(net: ViViT) -> Tree:
    """The parameter tree of the authors' code, paths joined by "/": what `load_scenic` reads, bit for bit.

    Several heads are one `output_projection`, in the order of `net.head_sizes`, as in the authors' EPIC models.
    """
    tree: Tree = {}
    for name, paths in scenic_paths(net):
        value = net.get_parameter(name).detach().cpu().float()
        for path, array in zip(paths, into_scenic(name, value, net), strict=True):
            tree[path] = np.ascontiguousarray(array.numpy())
    return tree


def into_scenic(name: str, value: Tensor, net: ViViT) -> list[Tensor]:
    """The inverse of `from_scenic`."""
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
    """The parameters in a checkpoint of the authors' code, paths joined by "/", as `load_scenic` takes them.

    Args:
        path: a flax msgpack file: a train state of any age, or the bare tree; or a folder of `checkpoint_<step>`
            files, of which the last is read.

    Raises:
        UserError: no such file, damaged, or no parameters in it.
    """
    return read_parameters(checkpoint_file(path))


def save_scenic(net: ViViT, path: str | Path) -> None:
    """Writes a checkpoint that flax, the authors' `restore_pretrained_checkpoint` and `read_scenic` read."""
    params: dict[str, Any] = {}
    for name, value in to_scenic(net).items():
        *modules, leaf = name.split("/")
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = value
    rest = {"global_step": 0, "opt_state": {}, "model_state": {}, "rng": np.zeros(2, np.uint32), "metadata": None}
    write_flax(path, {"params": params} | rest)
