"""What a model starts from: weights of any kind that this project reads, recognised by what is in them."""

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

Grid = tuple[int, int, int]  # time, rows, columns
ImageWeights = tuple[Mapping[str, Tensor] | str, Statistics | None]  # for `init_from_vit`, and their normalisation
HALF: Statistics = ((0.5,) * 3, (0.5,) * 3)


@dataclass
class SourceWeights:
    """The weights of a ViViT in our names; what is not known of it is None or left out.

    Attributes:
        settings: arguments of ViViT that do not show in the weights, to be compared with the model's.
        classes: names by head.
        multi_label: the head answers for each class by itself.
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
    """Fills `net` in place; returns the report, and the normalisation's mean and std where the source tells.

    From an image ViT as `init_from_vit` does. From a ViViT of the same model and size everything is copied;
    position embeddings of another grid are interpolated, and the head starts at zero for other classes, and where
    one of the two is to name one class per video and the other any number.

    Args:
        source: a checkpoint of ours, a file of weights (ours, timm's, scenic's), a folder (Hugging Face's, or
            scenic's with checkpoint_<step> files), a name on the Hugging Face hub, or the name of a timm model.
        tubelet, min_coverage: for image ViTs, see `init_from_vit`.
        classes: class names by head, "" where there is one head alone.
        frames: of the source, where its positions could be read in more than one way; 1 for an image ViT.
        multi_label: a video may have any number of classes.

    Raises:
        UserError: no such source, not readable, no ViT, or it does not fit. `net` is as it was then.
    """
    try:
        found = detect_source(net, source)
        if isinstance(found, SourceWeights):
            return load_from_vivit(net, found, classes, frames, multi_label), found.statistics
        weights, statistics = found
        report = init_from_vit(net, weights, tubelet=tubelet, min_coverage=min_coverage)
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        # tensors of other shapes and maps of other forms than any ViT's: what a file holds has no limits
        raise UserError(f"{source} does not hold the weights of a ViT: {reason(error)}") from error
    report.source = source
    return report, statistics


def detect_source(net: ViViT, source: str) -> SourceWeights | ImageWeights:
    """A ViViT's weights, or where an image ViT's are and what they were normalised with."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        if not any(path.glob("checkpoint_*")):
            raise UserError(f"{source} holds neither config.json (Hugging Face) nor checkpoint_<step> (scenic)")
        return detect_scenic(net, source)
    if path.is_file():
        return detect_scenic(net, source) if kind_of(path) == "flax" else detect_in_file(source, read_file(path))
    if path.is_dir() or ("/" in source and not path.parent.is_dir() and path.suffix not in WEIGHT_FILES):
        folder = hub_folder(source)
        return detect_in_folder(source, folder, read_json(folder / "config.json"))
    return source, normalisation(source)


def detect_in_folder(source: str, folder: Path, config: Mapping[str, Any]) -> SourceWeights | ImageWeights:
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
    elif "architecture" in config:  # timm's own on the hub
        image = config.get("pretrained_cfg", {})
    else:
        raise UserError(
            f"{source}/config.json describes {shown(config.get('model_type'))}: weights of a ViViT ('vivit') or "
            "of an image ViT ('vit', or timm's) are wanted"
        )
    if not isinstance(image, dict):
        raise UserError(f"{source}: its preprocessing is no set of settings")
    mean, std = (image.get(f"image_{name}", image.get(name)) for name in ("mean", "std"))
    if not mean or not std:
        return str(folder), None
    check_statistics(mean, std, source)
    return str(folder), (tuple(mean), tuple(std))


def named_classes(config: Mapping[str, Any], source: str) -> list[str] | None:
    """The class names of a Hugging Face configuration in the order of the logits; None where it names none."""
    labels = config.get("id2label", {})
    if not conforms(labels, dict[str, str]) or sorted(map(as_number, labels)) != list(range(len(labels))):
        raise UserError(f"{source}/config.json: id2label must name the classes 0, 1, 2, ...")
    names = [labels[i] for i in sorted(labels, key=int)]
    return names if any(name != f"LABEL_{i}" for i, name in enumerate(names)) else None


def as_number(text: str) -> int:
    """A class id of up to seven digits; -1 for other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,7}", text) else -1


def detect_in_file(source: str, content: Any) -> SourceWeights | ImageWeights:
    """A checkpoint or state dict of ours; the rest is left to `init_from_vit`, which says what it is not."""
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
        raise UserError(f"{source} is a part of a Hugging Face ViViT: give the folder that holds its config.json")
    return source, normalisation(source)


def read_metadata(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a checkpoint of ours says of its weights. It may be a stranger's: plain data, which is only compared.

    Raises:
        UserError: a number of it is absurd.
        KeyError, TypeError, ValueError, AttributeError, ArithmeticError: it is of another form.
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
    """A ViViT, or an image ViT, of the authors' code. Both were trained in [-1, 1]."""
    file = checkpoint_file(source)
    params = read_parameters(file)
    if "embedding/kernel" not in params:
        raise UserError(f"{file} is no ViT of scenic: it has {', '.join(list(params)[:5])}, ...")
    if any(path.startswith("SpatialTransformer/") for path in params):
        kinds = ["vivit_fe"]
    elif any("/MultiHeadDotProductAttention_time/" in path for path in params):
        kinds = ["vivit_fsa"]
    else:  # without a cls token, models 1 and 4 have the same tree
        kinds = ["vivit_st"] if "cls" in params else ["vivit_st", "vivit_fdp"]
    try:
        # the tree of an image ViT is that of model 1 by uniform sampling of one frame
        sampled = net.model in kinds and net.embedding.frame_index is not None
        if "vivit_st" in kinds and params["embedding/kernel"].ndim == 4 and not sampled:
            return image_vit(params), HALF
        if net.model not in kinds:
            check_settings(net, "it", {"model": kinds[0]})
        return SourceWeights(str(file), scenic_state(params, net), statistics=HALF)
    except UserError as error:
        raise UserError(f"{file} does not fit the model: {error}") from error


def image_vit(params: Tree) -> dict[str, Tensor]:
    """An image ViT of the authors' code in timm's keys."""
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
    block: Any = net.encoder.blocks[0]
    settings = {"model": net.model, "heads": heads_of(net), "norm_eps": net.encoder.norm.eps}
    return settings | ({"order": block.order} if net.model == "vivit_fsa" else {})


def check_settings(net: ViViT, source: str, settings: Mapping[str, Any]) -> None:
    ours = settings_of(net)
    for key in ours.keys() & settings.keys():
        if ours[key] != settings[key]:
            what = "" if key == "model" else f"ViViT with {key} "
            theirs = shown(settings[key]).strip("'")
            raise UserError(
                f"{source} is a {what}{theirs}, the model a {what}{ours[key]}: "
                f"set model{'' if key == 'model' else f'.{key}'}={theirs}, or start from other weights"
            )


def load_from_vivit(
    net: ViViT,
    found: SourceWeights,
    classes: Mapping[str, Sequence[str]] | None,
    frames: int | None,
    multi_label: bool,
) -> LoadReport:
    """Fills `net` from another ViViT of the same model and size."""
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
                action = f"zero (it names {theirs} per video)"
            else:
                value, action = fit_head(net, found, value, classes)
        elif name.endswith("pos_embed"):
            old, new = axes(net, name, grid), axes(net, name, net.grid)
            if value.shape[1] != num_cls + math.prod(old):
                raise UserError(f"'{name}' of {found.source} is {list(value.shape)}, which no grid of {old} is")
            if old != new:
                moved, action = resize_positions(value[:, num_cls:], old, new), "interpolated"
                value = torch.cat([value[:, :num_cls], moved], dim=1)
        values[name], report.rows[name] = value, action
    copy_params(net, values, found.source)
    return report


def check_shapes(net: ViViT, found: SourceWeights) -> None:
    """Everything but the number of positions and of classes must be the same."""
    parameters = dict(net.named_parameters())
    problems = [f"it has no '{name}'" for name in parameters if name not in found.state][:1]
    problems += [f"'{name}' has no place" for name in found.state if name not in parameters][:1]
    if problems:
        raise UserError(
            f"{found.source} is another ViViT than the {net.model} here: {' and '.join(problems)}: choose model, "
            "model.size, model.temporal_depth and model.pool to match the weights"
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
    """The grid of positions of which only the number is known: images of another size are taken as square."""
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
            f"{found.source} has {tokens} positions per frame: of no square image, nor of this model's"
        )
    if frames is not None:
        steps = frames if net.embedding.frame_index is not None else frames // net.tubelet[0]
        side = square(tokens // steps) if steps and tokens % steps == 0 else 0
        candidates = (
            [(steps, rows, columns)] if tokens == steps * rows * columns else [(steps, side, side)] * (side > 0)
        )
    elif tokens == t * rows * columns:
        candidates = [net.grid]
    else:  # the same places at other times, or other places at the same times
        side = square(tokens // t) if tokens % t == 0 else 0
        candidates = [(tokens // (rows * columns), rows, columns)] * (tokens % (rows * columns) == 0)
        candidates += [(t, side, side)] * (side > 0)
    if len(candidates) == 1:
        return candidates[0]
    raise UserError(
        f"{found.source} has {tokens} positions, the model {t}x{rows}x{columns}: how many of them are time cannot "
        f"be told{'' if frames is None else f' with init.frames={frames}'}: set init.frames to the number of "
        "frames that the weights were trained with"
    )


def axes(net: ViViT, name: str, grid: Grid) -> Grid:
    """The part of a grid that a position embedding is for: model 2 has one for space and one for time."""
    if net.model != "vivit_fe":
        return grid
    return (grid[0], 1, 1) if name.startswith("temporal_encoder.") else (1, grid[1], grid[2])


def fit_head(
    net: ViViT, found: SourceWeights, value: Tensor, classes: Mapping[str, Sequence[str]] | None
) -> tuple[Tensor, str]:
    """The classifier's rows, head by head: those of the same classes, whatever their order, or zero."""
    theirs = found.classes
    if theirs is None or sum(map(len, theirs.values())) != len(value):  # no names: the count decides
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
