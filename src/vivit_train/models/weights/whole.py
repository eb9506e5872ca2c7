"""Builds the whole model of a source that is not a checkpoint of vivit-train, for an evaluation.

The authors' checkpoints state neither class names nor preprocessing; a Hugging Face folder states both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.adapt import guess_grid
from vivit_train.models.weights.build import load_exactly
from vivit_train.models.weights.files import (
    EXPORT_JSON,
    Statistics,
    exported_sampling,
    normalizes_twice,
    preprocessor,
    resizing,
    video_statistics,
)
from vivit_train.models.weights.flax_file import Tree, checkpoint_file
from vivit_train.models.weights.huggingface import load_huggingface, named_classes
from vivit_train.models.weights.scenic import HALF, empty_net, layouts_of, scenic_state, vit_parameters
from vivit_train.models.weights.source import Source, VideoWeights
from vivit_train.utils.arguments import shown, signature
from vivit_train.utils.errors import UserError, reason

AUTHORS = "the authors' [-1, 1]"  # where the normalization is from
Order = Literal["space_time", "time_space"]


@dataclass(frozen=True)
class Hints:
    """What the user and the data say about a source, for what it does not state itself.

    Attributes:
        model: The name of the model, or None.
        order: The attention that comes first in vivit_fsa.
        init_frames: The frames in the clips of the source (`init.frames`), or None.
        frames, crop: The frames and pixels of a clip that the data suggests; they decide what is ambiguous.
    """

    model: ModelName | None
    order: Order
    init_frames: int | None
    frames: int
    crop: int


@dataclass(frozen=True)
class WholeModel:
    """A model with its weights, and what its source states about classes and preprocessing.

    Attributes:
        net: The model with the weights of the source, with a single head.
        classes: The class names in the order of the logits, or None.
        multi_label: Whether a video may have any number of classes, or None if the source does not say.
        statistics: The mean and std of the normalization, for pixels in [0, 1].
        clip: The settings of `data` that the source states.
        stated_in: Where the source states "model", "classes", "mean, std" and each setting of `clip`.
    """

    net: ViViT
    classes: list[str] | None
    multi_label: bool | None
    statistics: Statistics
    clip: Mapping[str, Any]
    stated_in: Mapping[str, str]


def read_whole(source: Source, hints: Hints) -> WholeModel:
    """Reads the model in a source: the authors' checkpoint, or a Hugging Face ViViT. Nothing in it is executed.

    Raises:
        UserError: The source is of another kind, cannot be read, or does not say what `hints` leaves open.
    """
    try:
        whole = from_scenic(source, hints) if source.is_flax else from_huggingface(source, hints)
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        # A file can hold anything, including tensors and mappings that no ViT has.
        raise UserError(f"{source.name} does not hold the weights of a ViViT: {reason(error)}") from error
    *_, height, width = whole.net.input_shape
    if height != width:
        raise UserError(f"{source.name} takes frames of {height}x{width}, but an evaluation crops squares")
    return whole


def from_scenic(source: Source, hints: Hints) -> WholeModel:
    """Reads a checkpoint of the authors' code, whose tree shows all but the names and the preprocessing."""
    file = checkpoint_file(source.path or "")
    params = vit_parameters(file)
    names = [layout.name for layout in layouts_of(params)]
    if hints.model not in (None, *names):
        raise UserError(f"{file} is a {' or '.join(names)}, not a {hints.model}: set model={names[0]}")
    if hints.model is None and len(names) > 1:
        fits = " or ".join(f"model={name}" for name in names)
        same = f"{file} fits {' and '.join(names)}, which have the same parameters"
        raise UserError(f"{same}: set {fits} (--model NAME in vivit)")
    try:
        net = scenic_net(params, hints.model or names[0], hints)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{file} cannot be evaluated: {error}") from error
    clip = {"frames": net.input_shape[1], "crop": net.input_shape[2]}
    stated_in = {"model": file.name, "mean, std": AUTHORS, **dict.fromkeys(clip, file.name)}
    return WholeModel(net, None, None, HALF, clip, stated_in)


def scenic_net(params: Tree, model: ModelName, hints: Hints) -> ViViT:
    """Builds the model of a parameter tree, whose position embeddings give the frames and the pixels of a clip."""
    pool: Literal["cls", "mean"] = "cls" if any(path.startswith("cls") for path in params) else "mean"
    *tubelet, h, w = params["embedding/kernel"].shape[:-2]
    t = tubelet[0] if tubelet else 1
    size = (hints.crop - hints.crop % h, hints.crop - hints.crop % w)
    expected = empty_net(params, model, hints.frames - hints.frames % t, size, pool, hints.order)
    is_sampled = expected.embedding.frame_index is not None
    if model == "vivit_st" and is_sampled and expected.grid[0] < 2:
        raise UserError("it is an image ViT, which knows no classes of videos; init.path=FILE trains from it")
    state = scenic_state(params, expected)
    steps, rows, columns = guess_grid(expected, VideoWeights(model, state), hints.init_frames)
    frames = hints.frames if is_sampled else steps * t
    if hints.init_frames not in (None, frames):
        stated = f"init.frames={hints.init_frames}"
        raise UserError(f"{stated}: its position embeddings are those of {frames} frames (--frames N in vivit)")
    net = empty_net(params, model, frames, (rows * h, columns * w), pool, hints.order)
    load_exactly(net, state)
    return net


def from_huggingface(source: Source, hints: Hints) -> WholeModel:
    """Reads a Hugging Face folder, which states everything but the stride, and one of `vivit export` also that."""
    if source.path is None or source.config is None:
        raise UserError(f"{source.name} has neither config.json (Hugging Face) nor checkpoint_<step> (scenic)")
    kind = source.config.get("model_type")
    if kind != "vivit":
        advice = "; init.path trains from it" if kind == "vit" else ""
        raise UserError(f"{source.name}/config.json describes {shown(kind)}, but only a 'vivit' is scored{advice}")
    if hints.init_frames is not None:
        raise UserError(f"init.frames={hints.init_frames}: {source.name}/config.json states the frames; set null")
    if hints.model not in (None, "vivit_st"):
        raise UserError(f"{source.name} is a vivit_st, not a {hints.model}: set model=vivit_st")
    net, names = load_huggingface(source.path), named_classes(source.config, source.name)
    rows = net.head.out_features
    if not rows or (names is not None and len(names) != rows):
        what = f"names {len(names)} classes" if names else "has no classifier"
        raise UserError(f"{source.name}: config.json {what}, but the weights have {rows} logits")
    size = {"frames": net.input_shape[1], "crop": net.input_shape[2]}
    file, config = preprocessor(source.path)
    resized = resizing(source.path)
    if (crop := resized.pop("crop", size["crop"])) != size["crop"]:
        raise UserError(
            f"{file} crops {crop} pixels, but the model of config.json takes {size['crop']}: the file does not "
            "describe this model; correct its crop_size and size, or remove it"
        )
    statistics = video_statistics(source.path)
    stated_in = {"model": "config.json", "classes": "config.json", **dict.fromkeys(size, "config.json")}
    normalized_in = f"{AUTHORS}, not the [-3, 1] of " if normalizes_twice(config) else ""
    stated_in["mean, std"] = f"{normalized_in}{file.name}" if config else AUTHORS
    stated_in |= dict.fromkeys(resized, file.name)
    multi_label = source.config.get("problem_type") == "multi_label_classification"
    sampled = exported_sampling(source.path)
    stated_in |= dict.fromkeys(sampled, EXPORT_JSON)
    return WholeModel(net, names, multi_label, statistics, size | resized | sampled, stated_in)


def arguments_of(net: ViViT) -> dict[str, Any]:
    """Returns the arguments that build a model of this shape, as plain data, without its classes.

    Options of other architectures have their defaults, as the authors' and Hugging Face's ViViT have none of them.
    """
    _, frames, height, width = net.input_shape
    temporal = net.temporal_encoder
    parameters = signature(ViViT).items()
    defaults = {name: p.default for name, p in parameters if p.default is not p.empty}
    return defaults | {
        "model": net.model,
        "frames": frames,
        "image_size": height if height == width else [height, width],
        "dim": net.head.in_features,
        "depth": len(net.encoder.blocks),
        "heads": net.heads,
        "mlp_dim": net.get_parameter("encoder.blocks.0.mlp.fc1.weight").shape[0],
        "temporal_depth": 0 if temporal is None else len(temporal.blocks),
        "tubelet": list(net.tubelet),
        "sampled_frames": None if net.embedding.frame_index is None else net.grid[0],
        "pool": "mean" if net.encoder.cls_token is None else "cls",
        "order": net.order,
        "act": net.act,
        "norm_eps": net.encoder.norm.eps,
    }
