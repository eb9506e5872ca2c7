"""Reads the weights and the metadata in files of vivit-train, for other models to start from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vivit_train.models.tuning import merge_lora
from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.checks import check_statistics
from vivit_train.models.weights.files import CHECKPOINT_JSON, folder_weights, read_json_object
from vivit_train.models.weights.source import Source, VideoWeights
from vivit_train.utils.arguments import conforms, limit_problems
from vivit_train.utils.errors import UserError, reason

# Checkpoints from before 2026-11-29 do not state these.
SETTINGS = {"act": "gelu_tanh", "fc_norm": False, "rope": False}


def detect_vivit_file(source: Source, net: ViViT) -> VideoWeights | None:
    """Returns the weights in a checkpoint of vivit-train, or in a file with the state dict of a ViViT.

    A checkpoint may be a folder of `vivit export --format safetensors`.

    Raises:
        UserError: The metadata of the checkpoint has an unexpected form.
    """
    if source.path is not None and (source.path / CHECKPOINT_JSON).is_file() and not source.is_flax:
        metadata = read_json_object(source.path / CHECKPOINT_JSON)
        return checkpoint_weights(source.name, folder_weights(source.path), metadata)
    if not source.is_file:
        return None
    if "embedding.projection.weight" in source.tensors:
        return VideoWeights(source.name, source.tensors, heads=tuple(net.head_sizes))
    if "net.embedding.projection.weight" not in source.tensors:
        return None
    state = {key.removeprefix("net."): x for key, x in source.tensors.items() if key.startswith("net.")}
    found = checkpoint_weights(source.name, merge_lora(state), source.content.get("vivit_train", {}))
    if found.classes or not net.head_sizes:
        return found
    return without_token_norm(found, net)


def without_token_norm(found: VideoWeights, net: ViViT) -> VideoWeights:
    """Returns the weights of self-pretraining (task=pretrain) for a model that classifies.

    Pretraining normalizes each token. A model that normalizes the mean of the tokens starts with a new norm.
    """
    if not net.fc_norm:
        return found
    names = [f"{name}.norm.{kind}" for name in net.layout.encoders for kind in ("weight", "bias")]
    new = {name: "pretraining has no norm of the mean" for name in names if name in found.state}
    state = {name: value for name, value in found.state.items() if name not in new}
    return replace(found, state=state, new=new)


def checkpoint_weights(source: str, net: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> VideoWeights:
    """Returns the weights of a net with what the metadata of its checkpoint says about them.

    Raises:
        UserError: The metadata has an unexpected form.
    """
    try:
        return VideoWeights(source, net, **read_metadata(metadata, source))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source} was written by another version of vivit-train: {reason(error)}") from error


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
    named = ("model", "heads", "order", "norm_eps", *SETTINGS)
    settings = SETTINGS | {key: model[key] for key in named if model.get(key) is not None}
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
