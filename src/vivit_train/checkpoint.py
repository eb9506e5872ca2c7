"""What a checkpoint carries besides weights, so that it can be used with nothing else at hand."""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from vivit_train.errors import UserError, reason
from vivit_train.model.files import refuse_bomb
from vivit_train.model.vivit import ViViT

KEY = "vivit_train"
OURS = re.compile(
    r"vivit_train\.(model\.vivit\.ViViT(\.from_size)?|data\.datamodule\.VideoDataModule|data\.(manifest|published|demo)\.read_\w+)"
)


@dataclass(frozen=True)
class Metadata:
    """Plain data only, so that every checkpoint loads with `torch.load(path, weights_only=True)`.

    Attributes:
        config: the run's whole configuration, resolved.
        classes: names in the order of the logits, by head; "" is a single head's.
        mean, std: of the normalisation, for pixels in 0 .. 1.
        multi_label: a video may have any number of the classes.
    """

    config: dict[str, Any]
    classes: dict[str, list[str]]
    mean: list[float]
    std: list[float]
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_net(model_config: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> ViViT:
    """A ViViT from the `model` node of a configuration, with a head for each entry of `classes`.

    Raises:
        UserError: in a stranger's checkpoint, the target is not ours.
        ValueError: the sizes do not fit together.
    """
    only_ours(model_config)
    heads = {head: len(names) for head, names in classes.items()}
    num_classes = heads[""] if list(heads) == [""] else heads
    return instantiate(model_config, num_classes=num_classes, _convert_="all")


def restore_net(metadata: Metadata, weights: Mapping[str, Tensor]) -> ViViT:
    """The model of a checkpoint, as `load_checkpoint` gives its parts.

    Raises:
        UserError: they do not belong together, or the model's target is not ours.
    """
    try:
        # not compiled, though training was: this machine may have no compiler, and one pass may not be worth it
        net = build_net({**metadata.config["model"], "compile": False}, metadata.classes)
        net.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the weights of the checkpoint are not those of the model that it names: {error}"
        ) from error
    return net


def only_ours(node: Any) -> None:
    """Refuses a node of a stranger's checkpoint that would call anything but our model, data and their readers."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and not OURS.fullmatch(str(target)):
            raise UserError(
                f"refusing to call '{target}', which the checkpoint names: it is not part of vivit_train"
            )
        for value in node.values():
            only_ours(value)
    elif isinstance(node, list | tuple):
        for value in node:
            only_ours(value)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """All that a checkpoint of ours holds. Nothing in the file is executed.

    Args:
        mmap: leave the tensors in the file until they are used.

    Raises:
        UserError: no such file, not readable, or not a checkpoint of vivit-train.
    """
    if not path.is_file():
        raise UserError(f"ckpt_path={path}: no such file")
    refuse_bomb(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, EOFError) as error:
        why = "it is none, or holds more than tensors and plain data"
        raise UserError(f"{path} cannot be read as a checkpoint: {why}") from error
    except Exception as error:  # torch names a dozen kinds for damaged and for unsafe files
        raise UserError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
    if not isinstance(checkpoint, dict) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of vivit-train (for other weights: init.path)")
    return checkpoint


def load_checkpoint(path: str | Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Metadata and the net's weights. Nothing in the file is executed.

    Raises:
        UserError: no such file, not readable, or not a checkpoint of vivit-train.
    """
    checkpoint = read_checkpoint(Path(path))
    metadata = checkpoint[KEY]
    if isinstance(metadata, dict) and isinstance(metadata.get("classes"), list):  # written before 0.2: one head
        metadata = metadata | {"classes": {"": metadata["classes"]}}
    net = {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}
    try:
        return Metadata(**metadata), net
    except TypeError as error:
        raise UserError(f"{path} was written by another version of vivit-train: {error}") from error
