"""Initializes a model from weights of any supported kind, which is recognized by their content."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.build import heads_of
from vivit_train.models.weights.checks import check_statistics
from vivit_train.models.weights.files import (
    WEIGHT_FILES,
    Statistics,
    hub_folder,
    kind_of,
    read_file,
    read_json,
    video_statistics,
)
from vivit_train.models.weights.flax_file import Tree, checkpoint_file, read_parameters
from vivit_train.models.weights.huggingface import load_huggingface
from vivit_train.models.weights.report import LoadReport
from vivit_train.models.weights.scenic import load_scenic, scenic_state
from vivit_train.models.weights.timm_vit import (
    copy_params,
    image_key,
    init_from_vit,
    normalisation,
    resize_positions,
    square,
)
from vivit_train.utils.arguments import conforms, limit_problems, shown
from vivit_train.utils.errors import UserError, reason

Grid = tuple[int, int, int]  # This is (time, rows, columns).
# The weights for `init_from_vit` and their normalization.
ImageWeights = tuple[Mapping[str, Tensor] | str, Statistics | None]
HALF: Statistics = ((0.5,) * 3, (0.5,) * 3)


@dataclass
class SourceWeights:
    """The weights of a ViViT with our parameter names. Unknown attributes are None or left out.

    Attributes:
        source: The file, folder, or model name.
        state: The weights by parameter name.
        settings: Arguments of `ViViT` that the weights do not show, to compare with those of the model.
        grid: The sizes of the token grid: time, rows, and columns.
        classes: The class names by head.
        multi_label: Whether the head was trained for any number of classes per video.
        statistics: The mean and std of the normalization, for pixels in [0, 1].
    """

    source: str
    state: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    classes: Mapping[str, Sequence[str]] | None = None
    multi_label: bool | None = None
    statistics: Statistics | None = None


def initialise(
    net: ViViT,
    source: str,
    *,
    tubelet: Literal["central_frame", "inflation"] = "central_frame",
    min_coverage: float = 0.9,
    classes: Mapping[str, Sequence[str]] | None = None,
    frames: int | None = None,
    multi_label: bool = False,
) -> tuple[LoadReport, Statistics | None]:
    """Initializes `net` in place; returns the weight-loading report and the normalization of the source, if known.

    An image ViT is loaded by `init_from_vit`. From a ViViT of the same model and size, all weights are copied.
    Position embeddings of another grid are interpolated. The head is zero-initialized if the classes differ, or if
    only one of the two models is multi-label.

    Args:
        net: The model to initialize.
        source: A checkpoint of vivit-train, a weight file (from vivit-train, timm, or scenic), a folder (from
            Hugging Face, or from scenic with checkpoint_<step> files), a name on the Hugging Face Hub, or a timm
            model name.
        tubelet: How an image ViT's patch embedding is expanded in time; see `init_from_vit`.
        min_coverage: The share of parameters that an image ViT must fill; see `init_from_vit`.
        classes: The class names of the model by head. A single head has the name "".
        frames: The number of frames of the source (1 for an image ViT), if its position embeddings are ambiguous.
        multi_label: Whether a video may have any number of classes.

    Raises:
        UserError: The source does not exist, cannot be read, is not a ViT, or does not fit. `net` is then
            unchanged.
    """
    try:
        found = detect_source(net, source)
        if isinstance(found, SourceWeights):
            return load_from_vivit(net, found, classes, frames, multi_label), found.statistics
        weights, statistics = found
        report = init_from_vit(net, weights, tubelet=tubelet, min_coverage=min_coverage)
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        # A file can hold anything, including tensors and mappings that no ViT has.
        raise UserError(f"{source} does not hold the weights of a ViT: {reason(error)}") from error
    report.source = source
    return report, statistics


def detect_source(net: ViViT, source: str) -> SourceWeights | ImageWeights:
    """Returns the weights of a ViViT, or the location of an image ViT's weights and their normalization."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        if not any(path.glob("checkpoint_*")):
            raise UserError(f"{source} has neither config.json (Hugging Face) nor checkpoint_<step> (scenic)")
        return detect_scenic(net, source)
    if path.is_file():
        return detect_scenic(net, source) if kind_of(path) == "flax" else detect_in_file(source, read_file(path))
    if path.is_dir() or ("/" in source and not path.parent.is_dir() and path.suffix not in WEIGHT_FILES):
        folder = hub_folder(source)
        return detect_in_folder(source, folder, read_json(folder / "config.json"))
    return source, normalisation(source)


def detect_in_folder(source: str, folder: Path, config: Mapping[str, Any]) -> SourceWeights | ImageWeights:
    """Returns the weights in a Hugging Face folder, which may hold a ViViT or an image ViT."""
    if config.get("model_type") == "vivit":
        theirs = load_huggingface(folder)
        named = named_classes(config, source)
        return SourceWeights(
            source,
            dict(theirs.named_parameters()),
            settings_of(theirs),
            theirs.grid,
            {"": named} if named else None,
            statistics=video_statistics(folder),
        )
    if config.get("model_type") == "vit":
        file = folder / "preprocessor_config.json"
        image: Any = read_json(file) if file.is_file() else {}
    elif "architecture" in config:  # This is a timm model on the Hub.
        image = config.get("pretrained_cfg", {})
    else:
        raise UserError(
            f"{source}/config.json describes {shown(config.get('model_type'))}, but the weights must be those of "
            "a ViViT ('vivit') or of an image ViT ('vit', or timm's)"
        )
    if not isinstance(image, dict):
        raise UserError(f"{source}: its preprocessing is not a mapping of settings")
    mean, std = (image.get(f"image_{name}", image.get(name)) for name in ("mean", "std"))
    if not mean or not std:
        return str(folder), None
    check_statistics(mean, std, source)
    return str(folder), (tuple(mean), tuple(std))


def named_classes(config: Mapping[str, Any], source: str) -> list[str] | None:
    """Returns the class names of a Hugging Face configuration in the order of the logits, or None."""
    labels = config.get("id2label", {})
    if not conforms(labels, dict[str, str]) or sorted(map(as_number, labels)) != list(range(len(labels))):
        raise UserError(f"{source}/config.json: id2label must name the classes 0, 1, 2, ...")
    names = [labels[i] for i in sorted(labels, key=int)]
    return names if any(name != f"LABEL_{i}" for i, name in enumerate(names)) else None


def as_number(text: str) -> int:
    """Returns a class id of up to seven digits, or -1 for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,7}", text) else -1


def detect_in_file(source: str, content: Any) -> SourceWeights | ImageWeights:
    """Returns the weights of a vivit-train file; `init_from_vit` handles or rejects everything else."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if "embedding.projection.weight" in tensors:
        return SourceWeights(source, tensors)
    if "net.embedding.projection.weight" in tensors:
        net = {key.removeprefix("net."): value for key, value in tensors.items() if key.startswith("net.")}
        try:
            return SourceWeights(source, net, **read_metadata(content["vivit_train"], source))
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{source} was written by another version of vivit-train: {reason(error)}") from error
    if any(str(key).startswith("vivit.") for key in tensors):
        raise UserError(f"{source} is part of a Hugging Face ViViT: pass the folder that contains its config.json")
    return source, normalisation(source)


def read_metadata(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns what the metadata of a vivit-train checkpoint says about its weights.

    The checkpoint may be untrusted, so this is plain data that is only compared.

    Raises:
        UserError: A number is out of bounds.
        KeyError, TypeError, ValueError, AttributeError, ArithmeticError: The metadata has an unexpected form.
    """
    model, classes = metadata["config"]["model"], metadata["classes"]
    classes = classes if isinstance(classes, Mapping) else {"": classes}
    if not conforms(classes, Mapping[str, Sequence[str]]):
        raise TypeError("its classes are not names")
    check_statistics(metadata["mean"], metadata["std"], source)
    for key, value in model.items():
        if isinstance(value, int | float | list) and (problems := limit_problems(f"model.{key}", key, value)):
            raise UserError(f"{source}: {problems[0]}")
    settings = {key: model[key] for key in ("model", "heads", "order", "norm_eps") if model.get(key) is not None}
    size = {key: value for key, value in SIZES.get(model.get("size"), {}).items() if key == "heads"}
    height, width = (model["image_size"],) * 2 if isinstance(model["image_size"], int) else model["image_size"]
    sampled, (t, h, w) = model.get("sampled_frames"), model["tubelet"]
    return {
        "settings": size | settings,
        "grid": (min(sampled, model["frames"]) if sampled else model["frames"] // t, height // h, width // w),
        "classes": classes,
        "multi_label": metadata.get("multi_label", False),
        "statistics": (tuple(metadata["mean"]), tuple(metadata["std"])),
    }


def detect_scenic(net: ViViT, source: str) -> SourceWeights | ImageWeights:
    """Returns the weights of a ViViT or an image ViT of the authors' code. Both were trained in [-1, 1]."""
    file = checkpoint_file(source)
    params = read_parameters(file)
    if "embedding/kernel" not in params:
        raise UserError(f"{file} is not a scenic ViT: it has {', '.join(list(params)[:5])}, ...")
    if any(path.startswith("SpatialTransformer/") for path in params):
        kinds = ["vivit_fe"]
    elif any("/MultiHeadDotProductAttention_time/" in path for path in params):
        kinds = ["vivit_fsa"]
    else:  # Without a class token, models 1 and 4 have the same tree.
        kinds = ["vivit_st"] if "cls" in params else ["vivit_st", "vivit_fdp"]
    try:
        # An image ViT has the same tree as model 1 with uniform sampling of one frame.
        sampled = net.model in kinds and net.embedding.frame_index is not None
        if "vivit_st" in kinds and params["embedding/kernel"].ndim == 4 and not sampled:
            return image_vit(params), HALF
        if net.model not in kinds:
            check_settings(net, "it", {"model": kinds[0]})
        return SourceWeights(str(file), scenic_state(params, net), statistics=HALF)
    except UserError as error:
        raise UserError(f"{file} does not fit the model: {error}") from error


def image_vit(params: Tree) -> dict[str, Tensor]:
    """Converts an image ViT of the authors' code to timm's keys."""
    patch = params["embedding/kernel"].shape[:2]
    positions = params.get("Transformer/posembed_input/pos_embedding")
    side = 0 if positions is None else square(positions.shape[1] - ("cls" in params))
    size = (side * patch[0], side * patch[1])
    vit = load_scenic(
        params, model="vivit_st", frames=1, image_size=size, pool="cls" if "cls" in params else "mean"
    )
    state = {image_key(name): value.detach() for name, value in vit.named_parameters()}
    return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"].squeeze(2)}


def settings_of(net: ViViT) -> dict[str, Any]:
    """Returns the settings of a model that its weights do not show."""
    block: Any = net.encoder.blocks[0]
    settings = {"model": net.model, "heads": heads_of(net), "norm_eps": net.encoder.norm.eps}
    return settings | ({"order": block.order} if net.model == "vivit_fsa" else {})


def check_settings(net: ViViT, source: str, settings: Mapping[str, Any]) -> None:
    """Checks that the settings of a source match those of the model."""
    ours = settings_of(net)
    for key in ours.keys() & settings.keys():
        if ours[key] != settings[key]:
            what = "" if key == "model" else f"ViViT with {key} "
            theirs = shown(settings[key]).strip("'")
            raise UserError(
                f"{source} is a {what}{theirs}, but the model is a {what}{ours[key]}: "
                f"set model{'' if key == 'model' else f'.{key}'}={theirs}, or start from other weights"
            )


def load_from_vivit(
    net: ViViT,
    found: SourceWeights,
    classes: Mapping[str, Sequence[str]] | None,
    frames: int | None,
    multi_label: bool,
) -> LoadReport:
    """Initializes `net` from another ViViT of the same model and size."""
    check_settings(net, found.source, found.settings)
    check_shapes(net, found)
    grid, num_cls = found.grid or guess_grid(net, found, frames), int(net.encoder.cls_token is not None)
    report, values = LoadReport(found.source, coverage=1.0, kind="a ViViT"), {}
    for name, _ in net.named_parameters():
        value, action = found.state[name].detach().float(), "copied"
        if name.startswith("head."):
            if found.multi_label not in (None, multi_label):
                value = value.new_zeros(net.head.out_features, *value.shape[1:])
                theirs = "any number of classes" if found.multi_label else "one class"
                action = f"zero (trained for {theirs} per video)"
            else:
                value, action = fit_head(net, found, value, classes)
        elif name.endswith("pos_embed"):
            old, new = axes(net, name, grid), axes(net, name, net.grid)
            if value.shape[1] != num_cls + math.prod(old):
                shape = list(value.shape)
                raise UserError(f"'{name}' of {found.source} is {shape}, which does not match a grid of {old}")
            if old != new:
                moved, action = resize_positions(value[:, num_cls:], old, new), "interpolated"
                value = torch.cat([value[:, :num_cls], moved], dim=1)
        values[name], report.rows[name] = value, action
    copy_params(net, values, found.source)
    return report


def check_shapes(net: ViViT, found: SourceWeights) -> None:
    """Checks that everything except the number of positions and classes matches."""
    parameters = dict(net.named_parameters())
    problems = [f"it has no '{name}'" for name in parameters if name not in found.state][:1]
    problems += [f"the model has no '{name}'" for name in found.state if name not in parameters][:1]
    if problems:
        raise UserError(
            f"{found.source} does not match this {net.model}: {' and '.join(problems)}: choose model, "
            "model.size, model.temporal_depth, and model.pool to match the weights"
        )
    for name, parameter in parameters.items():
        free = 0 if name.startswith("head.") else 1 if name.endswith("pos_embed") else None
        theirs, ours = list(found.state[name].shape), list(parameter.shape)
        if [size for i, size in enumerate(theirs) if i != free] != [s for i, s in enumerate(ours) if i != free]:
            raise UserError(
                f"'{name}' is {theirs} in {found.source} and {ours} in the model: choose model.size and "
                "model.tubelet to match the weights"
            )


def guess_grid(net: ViViT, found: SourceWeights, frames: int | None) -> Grid:
    """Returns the grid of position embeddings from their number; other image sizes are taken as square."""
    num_cls = int("encoder.cls_token" in found.state)
    tokens = found.state["encoder.pos_embed"].shape[1] - num_cls
    t, rows, columns = net.grid
    if net.model == "vivit_fe":
        temporal = found.state.get("temporal_encoder.pos_embed")
        steps = t if temporal is None else temporal.shape[1] - num_cls
        places = [(rows, columns)] * (tokens == rows * columns) or [(square(tokens),) * 2] * (square(tokens) > 0)
        if places:
            return steps, *places[0]
        raise UserError(
            f"{found.source} has {tokens} positions per frame, which fit neither a square nor the model's grid"
        )
    if frames is not None:
        steps = frames if net.embedding.frame_index is not None else frames // net.tubelet[0]
        side = square(tokens // steps) if steps and tokens % steps == 0 else 0
        candidates = (
            [(steps, rows, columns)] if tokens == steps * rows * columns else [(steps, side, side)] * (side > 0)
        )
    elif tokens == t * rows * columns:
        candidates = [net.grid]
    else:  # Either the number of time indices or the image size differs.
        side = square(tokens // t) if tokens % t == 0 else 0
        candidates = [(tokens // (rows * columns), rows, columns)] * (tokens % (rows * columns) == 0)
        candidates += [(t, side, side)] * (side > 0)
    if len(candidates) == 1:
        return candidates[0]
    raise UserError(
        f"{found.source} has {tokens} positions, the model {t}x{rows}x{columns}: their number of time indices is "
        f"ambiguous{'' if frames is None else f' with init.frames={frames}'}: set init.frames to the number of "
        "frames that the weights were trained with"
    )


def axes(net: ViViT, name: str, grid: Grid) -> Grid:
    """Returns the part of a grid that a position embedding covers; model 2 has one for space and one for time."""
    if net.model != "vivit_fe":
        return grid
    return (grid[0], 1, 1) if name.startswith("temporal_encoder.") else (1, grid[1], grid[2])


def fit_head(
    net: ViViT, found: SourceWeights, value: Tensor, classes: Mapping[str, Sequence[str]] | None
) -> tuple[Tensor, str]:
    """Returns the head's weights, reordered for each head with the same classes, else zero, and the action."""
    theirs = found.classes
    if theirs is None or sum(map(len, theirs.values())) != len(value):  # Without names, the count decides.
        if len(value) == net.head.out_features:
            return value, "copied"
        return value.new_zeros(net.head.out_features, *value.shape[1:]), "zero (other classes)"
    if len(theirs) == len(net.head_sizes) == 1:
        theirs = dict(zip(net.head_sizes, theirs.values(), strict=True))
    blocks = dict(zip(theirs, value.split([len(names) for names in theirs.values()]), strict=True))
    parts, kept = [], []
    for name, size in net.head_sizes.items():
        names = list(theirs.get(name, ()))
        wanted = list((classes or {}).get(name, names))
        if len(set(names)) == size and sorted(names) == sorted(wanted):
            parts.append(blocks[name][[names.index(label) for label in wanted]])
            kept.append(name)
        else:
            parts.append(value.new_zeros(size, *value.shape[1:]))
    if kept and len(kept) < len(parts):
        return torch.cat(parts), f"copied for {', '.join(kept)}, else zero (other classes)"
    return torch.cat(parts), "copied" if kept else "zero (other classes)"
