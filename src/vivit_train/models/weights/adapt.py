"""Fits the weights of another ViViT to a model: position embeddings, and the head of each class."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vivit_train.models.vivit import Grid, ViViT
from vivit_train.models.weights.checks import check_finite
from vivit_train.models.weights.heads import check_order, from_single_output
from vivit_train.models.weights.report import LoadReport
from vivit_train.models.weights.settings import check_settings
from vivit_train.models.weights.source import VideoWeights
from vivit_train.utils.errors import UserError


def load_from_vivit(
    net: ViViT,
    found: VideoWeights,
    classes: Mapping[str, Sequence[str]] | None,
    frames: int | None,
    multi_label: bool,
) -> LoadReport:
    """Initializes `net` from another ViViT of the same model and size."""
    check_settings(net, found.source, found.settings)
    check_shapes(net, found)
    grid, num_cls = found.grid or guess_grid(net, found, frames), int(net.encoder.cls_token is not None)
    report = LoadReport(found.source, coverage=1.0, kind="a ViViT", statistics=found.statistics)
    report.license, report.unused, report.notes = found.license, list(found.unused), list(found.notes)
    values = {}
    for name, _ in net.named_parameters():
        if name in found.new:
            report.rows[name] = f"random ({found.new[name]})"
            continue
        value, action = found.state[name].detach().float(), "copied"
        if name.startswith("head."):
            if found.multi_label not in (None, multi_label):
                value = value.new_zeros(net.head.out_features, *value.shape[1:])
                theirs = "any number of classes" if found.multi_label else "one class"
                action = f"zero (trained for {theirs} per video)"
            else:
                value, action = fit_head(net, found, value, classes)
        elif encoder := encoder_of_positions(net, name):
            old, new = (net.layout.position_grid(encoder, whole) for whole in (grid, net.grid))
            if value.shape[1] != num_cls + math.prod(old):
                shape = list(value.shape)
                raise UserError(f"'{name}' of {found.source} is {shape}, which does not match a grid of {old}")
            if old != new:
                moved, action = resize_positions(value[:, num_cls:], old, new), "interpolated"
                value = torch.cat([value[:, :num_cls], moved], dim=1)
        values[name], report.rows[name] = value, action
    copy_params(net, values, found.source)
    return report


def check_shapes(net: ViViT, found: VideoWeights) -> None:
    """Checks that everything except the number of positions and classes matches."""
    parameters = dict(net.named_parameters())
    expected = parameters.keys() - found.new.keys()
    problems = [f"it has no '{name}'" for name in parameters if name in expected - found.state.keys()][:1]
    problems += [f"the model has no '{name}'" for name in found.state if name not in parameters][:1]
    if problems:
        raise UserError(
            f"{found.source} does not match this {net.model}: {' and '.join(problems)}: choose model, "
            "model.size, model.temporal_depth, and model.pool to match the weights"
        )
    for name, parameter in parameters.items():
        if name not in expected:
            continue
        free = 0 if name.startswith("head.") else 1 if encoder_of_positions(net, name) else None
        theirs, ours = list(found.state[name].shape), list(parameter.shape)
        if [size for i, size in enumerate(theirs) if i != free] != [s for i, s in enumerate(ours) if i != free]:
            raise UserError(
                f"'{name}' is {theirs} in {found.source} and {ours} in the model: choose model.size and "
                "model.tubelet to match the weights"
            )


def encoder_of_positions(net: ViViT, name: str) -> str | None:
    """Returns the name of the encoder whose position embeddings a parameter holds, or None."""
    encoder, _, rest = name.partition(".")
    return encoder if rest == "pos_embed" and encoder in net.layout.encoders else None


def guess_grid(net: ViViT, found: VideoWeights, frames: int | None) -> Grid:
    """Returns the grid of position embeddings from their number; other image sizes are taken as square."""
    num_cls = int("encoder.cls_token" in found.state)
    tokens = found.state["encoder.pos_embed"].shape[1] - num_cls
    t, rows, columns = net.grid
    if not net.layout.covers("encoder", "t"):
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
    stated = "" if frames is None else f" with init.frames={frames}"
    raise UserError(
        f"{found.source} has {tokens} positions, the model {t}x{rows}x{columns}: their number of time indices is "
        f"ambiguous{stated}: set init.frames (--frames N in vivit) to the number of frames that the weights were "
        "trained with"
    )


def fit_head(
    net: ViViT, found: VideoWeights, value: Tensor, classes: Mapping[str, Sequence[str]] | None
) -> tuple[Tensor, str]:
    """Returns the head's weights, reordered for each head with the same classes, else zero, and the action."""
    theirs = found.classes
    if not net.head_sizes:
        return value.new_zeros(0, *value.shape[1:]), "left out (pretraining has no head)"
    if not len(value):
        return value.new_zeros(net.head.out_features, *value.shape[1:]), "zero (the source has no head)"
    if theirs is None or sum(map(len, theirs.values())) != len(value):  # Without names, the count decides.
        if len(value) == net.head.out_features:
            if len(net.head_sizes) == 1:
                return value, "copied"
            order = check_order(found.heads, net.head_sizes, found.source)
            return from_single_output(value, net.head_sizes, order), f"copied (rows: {', '.join(order)})"
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


def resize_positions(x_1ND: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Interpolates position embeddings between grids [t, rows, columns]: linear, with aligned corners."""
    x_1Dthw = x_1ND.unflatten(1, old).permute(0, 4, 1, 2, 3)
    return F.interpolate(x_1Dthw, new, mode="trilinear", align_corners=True).flatten(2).transpose(1, 2)


def square(tokens: int) -> int:
    """Returns the side of a square with this many tokens, or 0 if there is none."""
    return math.isqrt(tokens) if tokens > 0 and math.isqrt(tokens) ** 2 == tokens else 0


def copy_params(model: ViViT, values: Mapping[str, Tensor], source: str) -> None:
    """Copies values into parameters. This is the last step, so that any earlier error leaves the model unchanged.

    Raises:
        UserError: Values are not finite.
    """
    check_finite(values, source)
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
