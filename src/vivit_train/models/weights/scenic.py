"""Reads and writes weights of the authors' code (scenic, JAX) with equal outputs."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vivit_train.models.vivit import (
    MODELS,
    Layout,
    ModelName,
    ViViT,
    ViViTFactorizedDotProduct,
    ViViTFactorizedEncoder,
    ViViTFactorizedSelfAttention,
    ViViTSpaceTime,
)
from vivit_train.models.weights.adapt import square
from vivit_train.models.weights.build import build, load_exactly
from vivit_train.models.weights.files import Statistics
from vivit_train.models.weights.flax_file import Tree, checkpoint_file, read_parameters, write_flax
from vivit_train.models.weights.heads import authors_order, from_single_output, reorder
from vivit_train.models.weights.keys import KeyMap, their_names
from vivit_train.models.weights.settings import check_settings
from vivit_train.models.weights.source import ImageWeights, Source, VideoWeights
from vivit_train.models.weights.timm_vit import timm_key
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural, shorten_list

HALF: Statistics = ((0.5,) * 3, (0.5,) * 3)  # The authors train in [-1, 1].
SETTINGS = {"act": "gelu_tanh", "fc_norm": False, "rope": False}
# The modules of a block: those of models 1, 2, and 4, and those of model 3, factorized self-attention (FSA).
BLOCK: KeyMap = {
    "norm1": ("LayerNorm_0",),
    "attention.qkv": tuple(f"MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value")),
    "attention.out": ("MultiHeadDotProductAttention_0/out",),
    "norm2": ("LayerNorm_1",),
    "mlp.fc1": ("MlpBlock_0/Dense_0",),
    "mlp.fc2": ("MlpBlock_0/Dense_1",),
}
FSA_BLOCK: KeyMap = {
    "norm1": ("LayerNorm_space",),
    "attention.qkv": tuple(f"MultiHeadDotProductAttention_space/{part}" for part in ("query", "key", "value")),
    "attention.out": ("MultiHeadDotProductAttention_space/out",),
    "norm_time": ("LayerNorm_time",),
    "attention_time.qkv": tuple(f"MultiHeadDotProductAttention_time/{part}" for part in ("query", "key", "value")),
    "attention_time.out": ("MultiHeadDotProductAttention_time/out",),
    "norm2": ("LayerNorm_mlp",),
    "mlp.fc1": ("MlpBlock/Dense_0",),
    "mlp.fc2": ("MlpBlock/Dense_1",),
}


def encoder_keys(ours: str, theirs: str, cls_token: str, block: KeyMap) -> dict[str, tuple[str, ...]]:
    """Returns the key map of one encoder."""
    return {
        f"{ours}.cls_token": (cls_token,),
        f"{ours}.pos_embed": (f"{theirs}/posembed_input/pos_embedding",),
        f"{ours}.norm": (f"{theirs}/encoder_norm",),
        **{f"{ours}.blocks.*.{k}": tuple(f"{theirs}/encoderblock_*/{x}" for x in v) for k, v in block.items()},
    }


EMBEDDING_AND_HEAD: KeyMap = {"embedding.projection": ("embedding",), "head": ("output_projection",)}
SCENIC_KEYS: Mapping[Layout, KeyMap] = {
    ViViTSpaceTime.layout: {**EMBEDDING_AND_HEAD, **encoder_keys("encoder", "Transformer", "cls", BLOCK)},
    ViViTFactorizedEncoder.layout: {
        **EMBEDDING_AND_HEAD,
        **encoder_keys("encoder", "SpatialTransformer", "cls_SpatialTransformer", BLOCK),
        **encoder_keys("temporal_encoder", "TemporalTransformer", "cls_TemporalTransformer", BLOCK),
    },
    ViViTFactorizedSelfAttention.layout: {
        **EMBEDDING_AND_HEAD,
        **encoder_keys("encoder", "Transformer", "cls", FSA_BLOCK),
    },
    ViViTFactorizedDotProduct.layout: {
        **EMBEDDING_AND_HEAD,
        **encoder_keys("encoder", "Transformer", "cls", BLOCK),
    },
}


def detect_scenic(source: Source, net: ViViT) -> ImageWeights | VideoWeights | None:
    """Returns the weights of a ViViT or an image ViT of the authors' code.

    Raises:
        UserError: The file holds no ViT, or the weights do not fit the model.
    """
    if source.path is None or not source.is_flax:
        return None
    file = checkpoint_file(source.path)
    params = vit_parameters(file)
    layouts = layouts_of(params)
    try:
        # An image ViT has the same tree as model 1 with uniform sampling of one frame.
        sampled = net.layout in layouts and net.embedding.frame_index is not None
        if ViViTSpaceTime.layout in layouts and params["embedding/kernel"].ndim == 4 and not sampled:
            return ImageWeights(source.name, image_vit(params), HALF)
        if net.layout not in layouts:
            check_settings(net, "it", {"model": layouts[0].name})
        heads = authors_order(net.head_sizes)
        return VideoWeights(str(file), scenic_state(params, net), SETTINGS, statistics=HALF, heads=heads)
    except UserError as error:
        raise UserError(f"{file} does not fit the model: {error}") from error


def vit_parameters(file: Path) -> Tree:
    """Reads the parameter tree in a file of the authors' code.

    Raises:
        UserError: The file cannot be read or holds no ViT.
    """
    params = read_parameters(file)
    if "embedding/kernel" not in params:
        raise UserError(f"{file} is not a scenic ViT: it has {shorten_list(params)}")
    return params


def layouts_of(params: Tree) -> list[Layout]:
    """Returns the layouts whose parameter tree this can be."""
    if any(path.startswith("SpatialTransformer/") for path in params):
        return [ViViTFactorizedEncoder.layout]
    if any("/MultiHeadDotProductAttention_time/" in path for path in params):
        return [ViViTFactorizedSelfAttention.layout]
    # Without a class token, models 1 and 4 have the same tree.
    return (
        [ViViTSpaceTime.layout] if "cls" in params else [ViViTSpaceTime.layout, ViViTFactorizedDotProduct.layout]
    )


def image_vit(params: Tree) -> dict[str, Tensor]:
    """Converts an image ViT of the authors' code to timm's keys."""
    patch = params["embedding/kernel"].shape[:2]
    positions = params.get("Transformer/posembed_input/pos_embedding")
    side = 0 if positions is None else square(positions.shape[1] - ("cls" in params))
    size = (side * patch[0], side * patch[1])
    vit = load_scenic(
        params, model="vivit_st", frames=1, image_size=size, pool="cls" if "cls" in params else "mean"
    )
    state = {str(timm_key(name)): value.detach() for name, value in vit.named_parameters()}
    return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].squeeze(2)}


def load_scenic(
    params: Mapping[str, np.ndarray],
    *,
    model: ModelName,
    frames: int,
    image_size: tuple[int, int],
    pool: Literal["cls", "mean"],
    order: Literal["space_time", "time_space"] = "space_time",
    num_classes: Mapping[str, int] | None = None,
) -> ViViT:
    """Builds a ViViT from a parameter tree of the authors' code; logits agree within 1e-5 in float32.

    Args:
        params: The flax parameters, with paths joined by "/". The kernels have these shapes: q, k, and v [D, h,
            d]; out [h, d, D]; dense [in, out]; tubelets [t, h, w, 3, D]; 2-D patches (uniform frame sampling) [h,
            w, 3, D].
        frames, image_size: The input frames, and the height and width in pixels, that the tree was made for.
        pool: "cls" for the authors' classifier "token", "mean" for "gap".
        order: The authors' attention_order, for vivit_fsa.
        num_classes: The number of classes by head; None gives a single head. The authors' EPIC output has the
            nouns first; the rows of any other output are in this order.

    Raises:
        UserError: A parameter is missing, left over, or of an unexpected shape, or the input size is not
            divisible.
    """
    params = {path: np.asarray(value) for path, value in params.items()}
    net = empty_net(params, model, frames, image_size, pool, order, num_classes)
    state = scenic_state(params, net)
    if num_classes and (rows := authors_order(num_classes)):
        for name in ("head.weight", "head.bias"):
            state[name] = from_single_output(state[name], num_classes, rows)
    load_exactly(net, state)
    return net


def empty_net(
    params: Tree,
    model: ModelName,
    frames: int,
    image_size: tuple[int, int],
    pool: Literal["cls", "mean"],
    order: Literal["space_time", "time_space"],
    num_classes: Mapping[str, int] | None = None,
) -> ViViT:
    """Builds the model of a parameter tree on the meta device; see `load_scenic`."""
    layout, sizes = MODELS[model].layout, []
    for name in (
        "embedding.projection.weight",
        "encoder.blocks.0.attention.qkv.weight",
        "encoder.blocks.0.mlp.fc1.weight",
        "head.weight",
    ):
        path = scenic_paths(name, layout)[0]
        if path not in params:
            raise UserError(f"not a scenic {model}: the parameter tree has no '{path}'")
        check_axes(name, path, params[path])
        sizes.append(params[path].shape)
    kernel, (dim, heads, _), (_, mlp_dim), (_, rows) = sizes
    is_3d = len(kernel) == 5
    return build(
        MODELS[model],
        num_classes=num_classes or rows,
        frames=frames,
        image_size=image_size,
        dim=dim,
        depth=count_blocks(params, layout, "encoder"),
        heads=heads,
        mlp_dim=mlp_dim,
        temporal_depth=count_blocks(params, layout, "temporal_encoder"),
        tubelet=kernel[:3] if is_3d else (1, *kernel[:2]),
        sampled_frames=None if is_3d else scenic_sampled_frames(params, layout, image_size, frames),
        pool=pool,
        order=order,
    )


def scenic_state(params: Mapping[str, np.ndarray], net: ViViT) -> dict[str, Tensor]:
    """Converts a parameter tree to the names and layouts of `net`, but keeps the sizes of the tree.

    Raises:
        UserError: A parameter is missing or left over, or its number of heads differs from that of `net`.
    """
    left, state = dict(params), {}
    for ours, theirs in paths_of(net):
        state[ours] = from_scenic(ours, [left.pop(path, None) for path in theirs], theirs)
        if ours.endswith("qkv.weight") and params[theirs[0]].shape[1] != net.heads:
            raise UserError(
                f"'{theirs[0]}' has {params[theirs[0]].shape[1]} heads, the model {net.heads}: set model.heads"
            )
    if left:
        raise UserError(f"{net.model} has no place for {plural(len(left), 'parameter')}, the first: '{min(left)}'")
    return state


def count_blocks(params: Mapping[str, Any], layout: Layout, encoder: str) -> int:
    """Returns the number of blocks of an encoder in a parameter tree; 0 if the layout has no such encoder."""
    norm = re.escape("".join(SCENIC_KEYS[layout].get(f"{encoder}.blocks.*.norm1", ())))
    block = re.compile(norm.partition(r"\*")[0] + r"\d+/")
    return len({match[0] for path in params if norm and (match := block.match(path))})


def scenic_sampled_frames(
    params: Mapping[str, np.ndarray], layout: Layout, image_size: tuple[int, int], frames: int
) -> int:
    """Returns the number of frames of uniform frame sampling, from the position embeddings of a tree."""
    cls_tokens = sum(path.startswith("cls") for path in params) and 1
    if layout.covers("encoder", "t"):
        h, w = params["embedding/kernel"].shape[:2]
        tokens = params[scenic_paths("encoder.pos_embed", layout)[0]].shape[1] - cls_tokens
        return tokens // ((image_size[0] // h) * (image_size[1] // w))
    temporal = params.get(scenic_paths("temporal_encoder.pos_embed", layout)[0])
    # Without a temporal encoder (L_t = 0), the tree does not show the number, so all frames are used.
    return frames if temporal is None else temporal.shape[1] - cls_tokens


def scenic_paths(name: str, layout: Layout) -> list[str]:
    """Returns the ordered paths of the scenic parameters that one of our parameters consists of.

    Raises:
        UserError: The authors' code has no such model or parameter.
    """
    paths = []
    for theirs in their_names(SCENIC_KEYS.get(layout, {}), name):
        module, _, kind = theirs.partition(".")
        if kind == "weight":
            kind = "scale" if "norm" in module.rpartition("/")[2].lower() else "kernel"
        paths.append(f"{module}/{kind}" if kind else module)
    if not paths:
        raise UserError(f"the authors' code has no place for '{name}' of a {layout.name}")
    return paths


def paths_of(net: ViViT) -> Iterator[tuple[str, list[str]]]:
    """Yields each of our parameters with its scenic paths."""
    for name, _ in net.named_parameters():
        yield name, scenic_paths(name, net.layout)


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
    `output_projection`: the 300 nouns before the 97 verbs, or else in the order of `net.head_sizes`.

    Raises:
        UserError: The authors' code has no such model: another activation, norm, or token.
    """
    check_settings(net, "a model of the authors' code", SETTINGS)
    tree: Tree = {}
    order = authors_order(net.head_sizes) or tuple(net.head_sizes)
    for name, paths in paths_of(net):
        value = net.get_parameter(name).detach().cpu().float()
        if name.startswith("head."):
            value = reorder(value, net.head_sizes, order)
        for path, array in zip(paths, into_scenic(name, value, net), strict=True):
            tree[path] = np.ascontiguousarray(array.numpy())
    return tree


def into_scenic(name: str, value: Tensor, net: ViViT) -> list[Tensor]:
    """Converts one of our parameters to scenic's layout; the inverse of `from_scenic`."""
    heads = (net.heads, -1)
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
