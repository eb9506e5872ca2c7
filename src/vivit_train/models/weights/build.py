"""Builds a model from the settings in a third-party file and loads exactly the weights of that file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.checks import check_finite
from vivit_train.utils.arguments import check_arguments
from vivit_train.utils.errors import UserError


def build(model: type[ViViT], **kwargs: Any) -> ViViT:
    """Builds a ViViT on the meta device, so that it needs no memory whatever sizes a file claims.

    `load_exactly` then assigns the tensors of the file.

    Raises:
        UserError: The settings are invalid.
    """
    name = model.layout.name
    check_arguments(model, kwargs, name)
    try:
        with torch.device("meta"):
            return model(**kwargs)
    except ValueError as error:  # The sizes contradict each other.
        raise UserError(f"cannot build {name}: {error}") from error


def load_exactly(net: ViViT, state: Mapping[str, Tensor]) -> None:
    """Assigns every parameter.

    Raises:
        UserError: The shape of a parameter does not match, or weights are not finite.
    """
    for name, parameter in net.named_parameters():
        if state[name].shape != parameter.shape:
            raise UserError(
                f"'{name}' is {list(state[name].shape)} in the weights and {list(parameter.shape)} in a "
                f"{net.model} for {net.input_shape[1]} frames of {net.input_shape[2]}x{net.input_shape[3]}: "
                "do frames, image_size, and pool match the weights?"
            )
    check_finite(state, f"the {net.model}'s source")
    net.load_state_dict(dict(state), assign=True)
