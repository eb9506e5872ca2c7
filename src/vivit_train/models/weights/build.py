"""Builds a model from the settings in a foreign file, and fills it with exactly that file's weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.checks import check_finite
from vivit_train.utils.arguments import check_arguments
from vivit_train.utils.errors import UserError


def heads_of(net: ViViT) -> int:
    block: Any = net.encoder.blocks[0]
    return int(block.attention.heads)


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
