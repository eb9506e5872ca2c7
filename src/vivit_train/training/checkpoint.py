"""The metadata that makes a checkpoint self-contained, and functions that read checkpoints."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.models.tuning import add_adapters, has_adapters, merge_lora
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.checks import check_content, check_finite, check_statistics
from vivit_train.models.weights.files import (
    CHECKPOINT_JSON,
    kind_of,
    read_file,
    read_json_object,
    refuse_bomb,
    tensors_of,
)
from vivit_train.models.weights.flax_file import checkpoint_file, has_checkpoint
from vivit_train.models.weights.heads import authors_order, from_single_output
from vivit_train.models.weights.scenic import count_blocks, layouts_of, scenic_state, vit_parameters
from vivit_train.training.stored_keys import with_current_keys
from vivit_train.training.targets import MODELS, build, check_trusted, with_short_names
from vivit_train.utils.arguments import conforms, shown
from vivit_train.utils.errors import UserError, reason
from vivit_train.utils.text import plural, shorten_list

KEY = "vivit_train"


LATER: dict[str, Any] = {"multi_label": False, "class_counts": {}}  # Old checkpoints lack these parts.


@dataclass(frozen=True)
class Metadata:
    """The metadata of a checkpoint. It is plain data, so that `torch.load(path, weights_only=True)` can read it.

    Attributes:
        config: The complete, resolved configuration of the run.
        classes: The class names of each head in the order of the logits. A single head has the name "". Without
            labels (task=pretrain), there are none.
        mean: The per-channel mean of the normalization, for pixels in [0, 1].
        std: The per-channel standard deviation of the normalization, for pixels in [0, 1].
        multi_label: Whether a video may have any number of classes.
        class_counts: The number of training clips of each class by head; old checkpoints have none.
    """

    config: dict[str, Any]
    classes: dict[str, list[str]]
    mean: list[float]
    std: list[float]
    multi_label: bool = False
    class_counts: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the metadata as plain data, with short names for built-in targets."""
        return asdict(self) | {"config": with_short_names(self.config)}

    @classmethod
    def from_stored(cls, stored: Any, path: str | Path) -> "Metadata":
        """Returns the metadata that a checkpoint holds after checking the type of each part.

        Raises:
            UserError: A part is missing or has the wrong type.
        """
        # Before version 0.2, there was only one head.
        if isinstance(stored, dict) and isinstance(stored.get("classes"), list):
            stored = stored | {"classes": {"": stored["classes"]}}
        wanted = {part.name: part.type for part in fields(cls)}
        odd = [key for key in stored if key not in wanted] if isinstance(stored, dict) else ["all of it"]
        odd += [
            key for key, hint in wanted.items() if not odd and not conforms(stored.get(key, LATER.get(key)), hint)
        ]
        if odd:
            raise UserError(
                f"{path} was written by another version of vivit-train, or is damaged: its metadata has an "
                f"unexpected, missing, or malformed entry: {ascii(odd[0])[:80]}"
            )
        check_statistics(stored["mean"], stored["std"], path)
        is_labeled = stored["classes"] or not is_pretraining(stored["config"])
        if is_labeled and (not all(stored["classes"].values()) or not stored["classes"]):
            raise UserError(f"{path} contains no class names")
        for names in stored["classes"].values():
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise UserError(f"{path} has class names more than once: {shorten_list(twice)}")
        return cls(**stored | {"config": with_current_keys(stored["config"])})


def is_pretraining(config: Mapping[str, Any]) -> bool:
    """Returns whether a stored configuration is that of task=pretrain."""
    task = config.get("task")
    return isinstance(task, Mapping) and task.get("_target_") == "masked_pretraining"


def build_net(model_config: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> ViViT:
    """Builds a model from the `model` node of the user's own configuration.

    Args:
        model_config: The `model` node.
        classes: The class names by head. The model gets a head for each item; without any, its head is empty.

    Raises:
        UserError: The model refuses the arguments.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element")  # the head without classes
            return instantiate(model_config, num_classes=num_classes(classes), _convert_="all")
    except InstantiationException as error:
        raise UserError(f"model: {reason(error.__cause__ or error)}") from error  # type: ignore[arg-type]


def num_classes(classes: Mapping[str, Sequence[str]]) -> int | dict[str, int]:
    """Returns the number of classes: an int for a single unnamed head, else a dict by head."""
    heads = {head: len(names) for head, names in classes.items()}
    return heads[""] if list(heads) == [""] else heads


def uncompiled(node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `model` node of a model that is not compiled.

    The machine may have no compiler, and a single pass may not be worth it.
    """
    return dict(node) | ({"compile": False} if "compile" in node else {})


def restore_net(
    metadata: Metadata,
    weights: Mapping[str, Tensor],
    path: str | Path,
    trusted: Sequence[str] = (),
    allow_nonfinite: bool = False,
) -> ViViT:
    """Builds the model of a checkpoint around the checkpoint's weights, which are not copied.

    Args:
        metadata: The metadata of the checkpoint, from `load_checkpoint`.
        weights: The weights of the model by parameter name, from `load_checkpoint`.
        path: The path of the checkpoint, for messages.
        trusted: The packages whose code may be called; see `targets.build`.
        allow_nonfinite: Whether to accept non-finite weights, for a step that was saved because of them.

    Raises:
        UserError: Metadata and weights do not fit together, weights are not finite, or the model is not built in.
            A trusted package does not exist.
    """
    check_trusted(trusted)
    node = uncompiled(stored) if isinstance(stored := metadata.config.get("model"), dict) else None
    for part, key in (("encoder", "depth"), ("temporal_encoder", "temporal_depth")):
        there = len({match[1] for name in weights if (match := re.match(rf"{part}\.blocks\.(\d+)\.", name))})
        depth = node.get(key) if node else None
        # Building a million layers takes too long. A model without the encoder ignores its depth.
        if type(depth) is int and 0 < there < depth:
            raise UserError(
                f"{path}: model.{key} is {shown(depth)}, but the weights have {plural(there, 'layer')}"
            )
    if not allow_nonfinite:
        check_finite(weights, path)
    with torch.device("meta"):  # The model has only shapes until the weights are assigned.
        net: ViViT = build(node, MODELS, f"{path}: model", trusted, num_classes=num_classes(metadata.classes))
    load_weights(net, weights, path)
    return net.float()


def load_weights(net: ViViT, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Assigns the weights of a checkpoint to a net.

    Raises:
        UserError: Names or shapes differ.
    """
    if has_adapters(weights):
        add_adapters(net)
    ours = {name: list(value.shape) for name, value in net.state_dict().items()}
    theirs = {name: list(value.shape) for name, value in weights.items()}
    if ours != theirs:
        name = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
        shapes = f"is {theirs.get(name, 'missing')} in the file and {ours.get(name, 'none')} in the model"
        raise UserError(f"{path}: the weights do not match the model in its configuration: {name!a} {shapes}")
    if whole := [name for name, value in weights.items() if not value.is_floating_point()]:
        raise UserError(
            f"{path}: the weights {whole[0]!a} are of {weights[whole[0]].dtype}, no floating-point type"
        )
    net.load_state_dict(dict(weights), assign=True)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint of vivit-train. Nothing in the file is executed.

    Args:
        path: The path of the checkpoint.
        mmap: Whether to memory-map the tensors, so that they stay in the file until they are used.

    Raises:
        UserError: The file does not exist, cannot be read, or is not a checkpoint of vivit-train.
    """
    if not path.is_file():
        raise UserError(f"ckpt_path={path}: no such file")
    if kind_of(path) == "safetensors":
        if any((path.parent / name).is_file() for name in (CHECKPOINT_JSON, "config.json")):
            raise UserError(f"{path} holds weights alone: name its folder, {path.parent}")
        raise UserError(
            f"{path} holds weights alone: name a checkpoint of vivit-train, a Hugging Face folder with config.json"
            " or the authors' checkpoint; a training can start from it by init.path"
        )
    refuse_bomb(path)
    why = "it is damaged or not a checkpoint, or holds more than tensors and plain data"
    if mmap and not is_zipfile(path):
        raise UserError(f"{path} cannot be read as a checkpoint: {why}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # torch raises many kinds of errors for damaged and unsafe files.
        raise UserError(f"{path} cannot be read as a checkpoint: {why}") from error
    check_content(checkpoint, path)
    if not isinstance(checkpoint, dict) or not {KEY, "state_dict"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of vivit-train (use init.path for other weights)")
    if not conforms(checkpoint["state_dict"], Mapping[str, Any]):
        raise UserError(f"{path} does not contain a state dict with parameter names")
    return checkpoint


# The keys of `data` that `load` needs not: they name files of the machine that trained the model.
LOCAL = ("name", "root", "reader", "train", "val", "test")


def write_checkpoint_folder(folder: Path, metadata: Metadata, weights: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint as plain data for others: a JSON file, and the weights as safetensors.

    It holds what predictions need, and nothing about the machine that trained the model.

    Args:
        folder: The folder.
        metadata: That of `load_checkpoint`.
        weights: The weights of the model by parameter name.
    """
    write_metadata(folder / CHECKPOINT_JSON, metadata)
    plain = {name: value.detach().contiguous() for name, value in weights.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def write_metadata(file: Path, metadata: Metadata) -> None:
    """Writes the part of the metadata that predictions need as JSON."""
    config, data = metadata.config, dict(metadata.config.get("data") or {})
    kept: dict[str, Any] = {key: config[key] for key in ("model", "micro_batch_size", "seed") if key in config}
    kept["data"] = {key: value for key, value in data.items() if key not in LOCAL}
    content = Metadata(**vars(metadata) | {"config": kept}).to_dict()
    text = json.dumps(content, indent=2)
    file.write_text(text + "\n", encoding="utf-8")


def read_checkpoint_folder(file: Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Reads what `write_checkpoint_folder` has written; `file` is the JSON file in it.

    The weights may also be a checkpoint of the authors' code (`vivit export --format scenic`).

    Raises:
        UserError: A file is missing or damaged.
    """
    content, weights = read_json_object(file), file.parent / "model.safetensors"
    check_content(content, file)
    metadata = Metadata.from_stored(content, file)
    if not weights.is_file() and has_checkpoint(file.parent):
        return metadata, scenic_weights(metadata, file)
    if not weights.is_file():
        raise UserError(f"{weights}: no such file, though there is {file}: is the download complete?")
    return metadata, tensors_of(read_file(weights), weights)


def scenic_weights(metadata: Metadata, file: Path) -> dict[str, Tensor]:
    """Returns the weights in the authors' checkpoint beside the metadata in `file`, by our parameter names.

    Raises:
        UserError: The checkpoint cannot be read, or does not fit the model of the metadata.
    """
    path, sizes = checkpoint_file(file.parent), num_classes(metadata.classes)
    params = vit_parameters(path)
    (layout, *_), node = layouts_of(params), metadata.config.get("model")
    if isinstance(node, dict):  # Building as many layers as a stranger's file claims may take too long.
        parts = {"depth": "encoder", "temporal_depth": "temporal_encoder"}
        node = node | {key: count_blocks(params, layout, part) for key, part in parts.items() if node.get(key)}
    with torch.device("meta"):
        net: ViViT = build(node, MODELS, f"{file}: model", num_classes=sizes)
    try:
        state = scenic_state(params, net)
        if isinstance(sizes, dict) and (rows := authors_order(sizes)):
            state |= {key: from_single_output(state[key], sizes, rows) for key in ("head.weight", "head.bias")}
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{path} does not fit the model of {file}: {reason(error)}") from error
    return state


def load_checkpoint(path: str | Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Reads the metadata and the weights of the net from a checkpoint. Nothing in the file is executed.

    A file `CHECKPOINT_JSON` stands for its folder. Low-rank updates (train=lora) are merged into the weights.

    Raises:
        UserError: The file does not exist, cannot be read, or is not a checkpoint of vivit-train.
    """
    if Path(path).name == CHECKPOINT_JSON:
        return read_checkpoint_folder(Path(path))
    checkpoint = read_checkpoint(Path(path))
    metadata = Metadata.from_stored(checkpoint[KEY], path)
    if not metadata.classes:
        raise UserError(
            f"{path} is of task=pretrain: it has no head, and knows no classes. Train a classifier from its "
            f"weights first: python train.py init.path={path}"
        )
    # A loss may have tensors, too.
    net = {
        name.removeprefix("net."): value
        for name, value in checkpoint["state_dict"].items()
        if not name.startswith("criterion.")
    }
    weights = tensors_of(net, Path(path))
    try:
        return metadata, merge_lora(weights)
    except (LookupError, RuntimeError) as error:
        raise UserError(f"{path}: the low-rank updates do not fit the weights: {reason(error)}") from error
