"""What a checkpoint carries besides weights, so that it can be used with nothing else at hand."""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.checks import check_content, check_finite, check_statistics
from vivit_train.models.weights.files import refuse_bomb, tensors_of
from vivit_train.training.targets import MODELS, build, with_short_names
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError, reason

KEY = "vivit_train"


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
        return asdict(self) | {"config": with_short_names(self.config)}

    @classmethod
    def from_stored(cls, stored: Any, path: str | Path) -> "Metadata":
        """What a checkpoint holds, once each part is of its type.

        Raises:
            UserError: it is not.
        """
        if isinstance(stored, dict) and isinstance(stored.get("classes"), list):  # written before 0.2: one head
            stored = stored | {"classes": {"": stored["classes"]}}
        wanted = {field.name: field.type for field in fields(cls)}
        odd = [key for key in stored if key not in wanted] if isinstance(stored, dict) else ["all of it"]
        odd += [
            key
            for key, hint in wanted.items()
            if not odd and not conforms(stored.get(key, False if key == "multi_label" else None), hint)
        ]
        if odd:
            raise UserError(
                f"{path} was written by another version of vivit-train, or is damaged: its metadata has "
                f"{ascii(odd[0])[:80]}, or has it in another form"
            )
        check_statistics(stored["mean"], stored["std"], path)
        if not all(stored["classes"].values()) or not stored["classes"]:
            raise UserError(f"{path} names no classes")
        return cls(**stored)


def build_net(model_config: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> ViViT:
    """A model from the `model` node of a person's own configuration, with a head for each entry of `classes`.

    Raises:
        ValueError: the sizes do not fit together.
    """
    return instantiate(model_config, num_classes=num_classes(classes), _convert_="all")


def num_classes(classes: Mapping[str, Sequence[str]]) -> int | dict[str, int]:
    heads = {head: len(names) for head, names in classes.items()}
    return heads[""] if list(heads) == [""] else heads


def restore_net(
    metadata: Metadata,
    weights: Mapping[str, Tensor],
    path: str | Path,
    trusted: Sequence[str] = (),
    allow_nonfinite: bool = False,
) -> ViViT:
    """The model of a checkpoint, as `load_checkpoint` gives its parts. It takes no more memory than its weights.

    Args:
        path: of the checkpoint, for messages.
        trusted: see `stored.build`.
        allow_nonfinite: for a step that was saved because something in it is not finite.

    Raises:
        UserError: they do not belong together, are not finite, or the model is not ours.
    """
    # not compiled, though training was: this machine may have no compiler, and one pass may not be worth it
    node = (
        {**metadata.config["model"], "compile": False} if isinstance(metadata.config.get("model"), dict) else None
    )
    for part, key in (("encoder", "depth"), ("temporal_encoder", "temporal_depth")):
        there = len({match[1] for name in weights if (match := re.match(rf"{part}\.blocks\.(\d+)\.", name))})
        unused = part == "temporal_encoder" and node is not None and node.get("model") != "vivit_fe"
        stored = None if unused or node is None else node.get(key)
        if type(stored) is int and stored > max(there, 1):  # a million layers take long to build, and to refuse
            raise UserError(f"{path}: model.{key} is {shown(stored)}, and the weights have {there} such layers")
    if not allow_nonfinite:
        check_finite(weights, path)
    with torch.device("meta"):  # only shapes, until the weights take their places
        net: ViViT = build(node, MODELS, f"{path}: model", trusted, num_classes=num_classes(metadata.classes))
    load_weights(net, weights, path)
    return net.float()


def load_weights(net: ViViT, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Puts the weights of a checkpoint in the place of a net's.

    Raises:
        UserError: names or shapes differ.
    """
    ours = {name: list(value.shape) for name, value in net.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in weights.items()}
    if ours != theirs:
        name = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
        shapes = f"is {theirs.get(name, 'missing')} in the file and {ours.get(name, 'none')} in the model"
        raise UserError(f"{path}: the weights are not those of the model that it names: {name!a} {shapes}")
    net.load_state_dict(dict(weights), assign=True)


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
    check_content(checkpoint, path)
    if not isinstance(checkpoint, dict) or not {KEY, "state_dict"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of vivit-train (for other weights: init.path)")
    if not conforms(checkpoint["state_dict"], Mapping[str, Any]):
        raise UserError(f"{path} holds no weights by name")
    return checkpoint


def load_checkpoint(path: str | Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Metadata and the net's weights. Nothing in the file is executed.

    Raises:
        UserError: no such file, not readable, or not a checkpoint of vivit-train.
    """
    checkpoint = read_checkpoint(Path(path))
    net = {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}
    return Metadata.from_stored(checkpoint[KEY], path), tensors_of(net, Path(path))
