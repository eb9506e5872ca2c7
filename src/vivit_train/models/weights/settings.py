"""Compares the settings of a source with those of the model, and says which keys to set."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.keys import count_blocks
from vivit_train.utils.arguments import shown
from vivit_train.utils.errors import UserError


def check_settings(net: ViViT, source: str, settings: Mapping[str, Any], kind: str = "ViViT") -> None:
    """Checks that the settings of a source match those of the model.

    Args:
        net: The model.
        source: The source, for the message.
        settings: Arguments of `ViViT`, of which each may be left out.
        kind: What the source is, for the message.

    Raises:
        UserError: Settings differ. The message states every key to set.
    """
    ours = shown_settings(net.state_dict()) | net.settings()
    other = settings.get("model", net.model) != net.model  # Then it may have arguments that this model lacks.
    differ = [key for key in settings if (key in ours or other) and settings[key] != ours.get(key)]
    if not differ:
        return
    keys, model = [], "ViViT"
    if "model" in differ:
        differ.remove("model")
        kind, model = in_words(settings["model"]), net.model
        keys = [f"model={kind}"]
    size = next((name for name, sizes in SIZES.items() if sizes.items() <= settings.items()), None)
    by_size = SIZES["B"].keys() if size and any(key in SIZES["B"] for key in differ) else ()
    keys += [f"model.size={size}"] * bool(by_size)
    keys += [f"model.{key}={in_words(settings[key])}" for key in differ if key not in by_size]
    their_values, our_values = (
        f" with {', '.join(f'{key} {in_words(values[key])}' for key in differ if key in ours)}" * bool(differ)
        for values in (settings, ours)
    )
    raise UserError(
        f"{source} is a {kind}{their_values}, but the model is a {model}{our_values}: set {' '.join(keys)}, or "
        "start from other weights"
    )


def in_words(value: Any) -> str:
    """Formats a value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return shown(value).strip("'")


def shown_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the arguments of `ViViT` that the names and shapes of its parameters show.

    Raises:
        KeyError: The embedding or the first block is missing.
    """
    dim, _, *tubelet = state["embedding.projection.weight"].shape
    hidden = state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
    return {
        "dim": dim,
        "depth": count_blocks(state, "encoder.blocks.*"),
        "temporal_depth": count_blocks(state, "temporal_encoder.blocks.*"),
        "mlp_dim": None if hidden == 4 * dim else hidden,
        "tubelet": tubelet,
        "pool": "cls" if "encoder.cls_token" in state else "mean",
        "pre_norm": "encoder.norm_pre.weight" in state,
        "reg_tokens": state["encoder.reg_token"].shape[1] if "encoder.reg_token" in state else 0,
    }
