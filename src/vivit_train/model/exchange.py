"""The authors' (scenic's) and Hugging Face's weights to ours and back: exactly, or an error."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.arguments import check_arguments, conforms, shown
from vivit_train.errors import UserError
from vivit_train.model.files import folder_weights, hub_folder, read_json
from vivit_train.model.flaxfile import Tree, checkpoint_file, read_parameters, write_flax
from vivit_train.model.plain import check_finite
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


def heads_of(net: ViViT) -> int:
    block: Any = net.encoder.blocks[0]
    return int(block.attention.heads)


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
        folder: holds config.json and model.safetensors (or pytorch_model.bin), in the hub's key layout or in that
            of version 5; or the name of such a model on the hub.

    Raises:
        UserError: a file is missing, the configuration is not ViViT's, or the weights do not fit exactly.
    """
    folder = hub_folder(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "vivit":
        raise UserError(f"{folder}/config.json describes '{config.get('model_type')}', not 'vivit'")
    activation = config.get("hidden_act", "gelu_fast")
    if activation not in ("gelu_fast", "gelu_new", "gelu_pytorch_tanh"):  # all names of the tanh form
        raise UserError(f"{folder}/config.json: hidden_act '{activation}' is not the tanh GELU of ViViT")

    weights = folder_weights(folder)
    layer = re.compile(r"vivit\.(?:encoder\.layer|layers)\.(\d+)\.")
    layers = {match[1] for key in weights if (match := layer.match(key))}
    depth = config.get("num_hidden_layers", 12)
    if not conforms(depth, int) or depth > len(layers):  # a million layers take long to build, and to refuse
        what = f"num_hidden_layers is {shown(depth)}, and the weights have {len(layers)} layers"
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


def save_huggingface(
    net: ViViT,
    folder: str | Path,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    short_side: int,
) -> None:
    """Writes a folder that transformers and `load_huggingface` load: weights, labels, preprocessing.

    Versions 4 and 5 load it; inputs that are not square need version 5.

    Args:
        classes: names, in the order of the logits.
        mean, std: the normalisation that `net` was trained with, per channel, for pixels in 0 .. 1.
        short_side: to which videos are resized before the centre crop.

    Raises:
        UserError: transformers has no such model: not vivit_st, mean pooling, sampled frames, several heads.
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
        raise UserError(f"{len(classes)} class names for {net.head.out_features} logits")
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
    # Their processors compute (x / 127.5 - 1 - image_mean) / image_std, and the one for videos cannot leave the -1
    # out: image_mean and image_std are those of pixels in -1 .. 1.
    preprocessor = {
        "image_processor_type": "VivitImageProcessor",
        "video_processor_type": "VivitVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": short_side},
        "resample": 2,  # bilinear
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
    """The inverse of `from_huggingface`, in the hub's layout: version 4 knows no other, version 5 converts it."""
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
    return {name: value.clone() for name, value in weights.items()}  # safetensors takes no views of one storage


def build(model: ModelName, **kwargs: Any) -> ViViT:
    """A ViViT of shapes alone, whatever sizes a file claims: `load_exactly` gives it the file's tensors."""
    check_arguments(ViViT, kwargs, model, also=("model",))
    try:
        with torch.device("meta"):
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
    check_finite(state, f"the {net.model}'s source")
    net.load_state_dict(dict(state), assign=True)
