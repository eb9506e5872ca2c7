"""Loads a model from a checkpoint, a folder, a file of weights or a name on a hub. Nothing in them is executed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vivit_train.data.annotations.files import read_classes
from vivit_train.data.annotations.table import StrPath
from vivit_train.data.clip_size import LARGE
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.models.vivit import ModelName
from vivit_train.models.weights.backbone import read_backbone
from vivit_train.models.weights.files import CHECKPOINT_JSON, is_hub_name
from vivit_train.models.weights.source import Source
from vivit_train.models.weights.whole import Hints, arguments_of, read_whole
from vivit_train.stored_data import stored_data
from vivit_train.training.checkpoint import KEY, Metadata, load_checkpoint, restore_net
from vivit_train.training.module import VideoClassifier
from vivit_train.utils.errors import UserError
from vivit_train.utils.run_folder import best_checkpoint
from vivit_train.utils.text import plural
from vivit_train.video_model import VideoModel

HUB = "hf://"


def load(
    source: StrPath,
    *,
    labels: StrPath | Sequence[str] | None = None,
    device: str = "auto",
    trusted: Sequence[str] = (),
    head: bool = True,
    model: ModelName | None = None,
    frames: int | None = None,
) -> VideoModel:
    """Returns the model of a checkpoint, ready to predict. Nothing in its files is executed.

    Args:
        source: A checkpoint of vivit-train; the folder of a run, which stands for its best checkpoint; a folder
            with a ViViT of Hugging Face or from `vivit export` (safetensors, scenic) or `vivit push`, or
            "user/name" or "hf://user/name" for one on the Hub; or a checkpoint of the authors.
        labels: The class names in the order of the logits, or a file with one name per line, for weights that come
            without names.
        device: "cpu", "cuda", or "auto", which is a GPU if there is one.
        trusted: Your own packages whose classes the checkpoint may name.
        head: Whether the model is to predict classes. Otherwise, it only embeds videos, and the source may be
            whatever training can start from (docs/weights.md), such as an image ViT or the name of a timm model.
        model: The name of the model, for a checkpoint of the authors whose parameters fit two of them.
        frames: The number of frames of a clip, for a checkpoint of the authors whose position embeddings leave it
            open.

    Raises:
        UserError: The source does not exist or cannot be read, does not fit `labels`, or states itself what
            `model` or `frames` say.
    """
    name = os.fspath(source)
    others = Source(name.removeprefix(HUB))
    if stated := [key for key, value in (("model", model), ("frames", frames)) if value is not None]:
        check_left_open(others, stated)
    if not head and is_backbone(others, name):
        backbone = read_backbone(others)
        task = VideoClassifier(backbone.net, {}, *backbone.statistics)
        return VideoModel(task, partial(VideoDataModule, **with_short_side(backbone.clip)), device)
    is_on_hub = name.startswith(HUB) or is_hub_name(name)
    folder = others.path if is_on_hub else Path(name)
    if folder is None or not (folder / CHECKPOINT_JSON).is_file():
        if is_on_hub or (os.path.exists(name) and (others.is_flax or others.config is not None)):
            hints = Hints(model, "space_time", frames, LARGE.frames, LARGE.crop)
            return from_others(others, labels, device, head, hints)
        folder = Path(name)
    path = checkpoint_at(folder)
    metadata, weights = load_checkpoint(path)
    net = restore_net(metadata, weights, path, trusted)
    metadata = replace(metadata, classes=renamed(metadata.classes, labels, name))
    task = VideoClassifier(net, metadata.classes, metadata.mean, metadata.std, multi_label=metadata.multi_label)
    return VideoModel(task, partial(stored_data, metadata, path, trusted), device, metadata)


def is_backbone(source: Source, name: str) -> bool:
    """Returns whether a source is neither a checkpoint of vivit-train or of the authors, nor a run or a ViViT."""
    path = Path(name)
    if not name.startswith(HUB) and (path.is_dir() and best_checkpoint(path)):
        return False
    if source.path is not None and (source.path / CHECKPOINT_JSON).is_file():
        return False
    if source.is_flax or (source.config or {}).get("model_type") == "vivit":
        return False
    return not (source.is_file and isinstance(source.content, dict) and KEY in source.content)


def with_short_side(clip: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of clips with the authors' ratio of short side to crop, unless they state another."""
    return {"short_side": round(clip["crop"] * LARGE.short_side / LARGE.crop)} | dict(clip)


def check_left_open(source: Source, stated: Sequence[str]) -> None:
    """Raises a UserError if a source is not a checkpoint of the authors, as all others state these settings."""
    if not source.is_flax:
        raise UserError(
            f"{' and '.join(stated)} can only be given for a checkpoint of the authors: {source.name} states its "
            "own, or does not exist"
        )


def from_others(
    source: Source, labels: StrPath | Sequence[str] | None, device: str, head: bool, hints: Hints
) -> VideoModel:
    """Returns the model of a Hugging Face folder or of a checkpoint of the authors.

    Their clips have the authors' stride of 2, which no file states, except for an export of this package.

    Raises:
        UserError: The source cannot be read, or there are no names for its classes.
    """
    if source.is_file and source.path is not None and (source.path.parent / CHECKPOINT_JSON).is_file():
        raise UserError(f"{source.name} holds weights alone: name its folder, {source.path.parent}")
    whole = read_whole(source, hints)
    if head and whole.classes is None and labels is None:
        raise UserError(f"{source.name} names no classes: pass their names as labels, in the order of the logits")
    logits = [f"class {k}" for k in range(whole.net.head.out_features)]
    classes = renamed({"": whole.classes or logits}, labels, source.name)
    mean, std = map(list, whole.statistics)
    clip, is_multi_label = with_short_side(whole.clip), bool(whole.multi_label)
    config = {"model": {"_target_": "vivit", **arguments_of(whole.net)}, "data": {"_target_": "videos", **clip}}
    metadata = Metadata(config, classes, mean, std, is_multi_label)
    task = VideoClassifier(whole.net, classes, mean, std, multi_label=is_multi_label)
    return VideoModel(task, partial(VideoDataModule, **clip), device, metadata)


def checkpoint_at(path: Path) -> Path:
    """Returns the checkpoint in a folder, the best one of a run, or `path` itself if it is not a folder.

    Raises:
        UserError: It does not exist, or the folder has neither a best.ckpt nor a model of Hugging Face.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; a model on the Hugging Face Hub is hf://user/name")
    if not path.is_dir():
        return path
    if (path / CHECKPOINT_JSON).is_file():
        return path / CHECKPOINT_JSON
    if file := best_checkpoint(path):
        return file
    raise UserError(f"{path}: the folder has neither best.ckpt (a run) nor config.json (a model of Hugging Face)")


def renamed(
    classes: Mapping[str, Sequence[str]], labels: StrPath | Sequence[str] | None, name: str
) -> dict[str, list[str]]:
    """Returns the classes with the names in `labels`, if there are any.

    Raises:
        UserError: The number of names does not fit the model, or the model has several heads.
    """
    if labels is None:
        return {head: list(names) for head, names in classes.items()}
    names = read_classes(existing(labels)) if isinstance(labels, str | os.PathLike) else tuple(labels)
    if len(classes) > 1:
        raise UserError(f"{name} has the heads {', '.join(classes)}, whose names cannot be replaced: omit labels")
    if len(names) != (expected := len(classes[""])):
        raise UserError(f"labels has {plural(len(names), 'name')}, but {name} has {expected} classes")
    return {"": list(names)}


def existing(file: StrPath) -> Path:
    """Returns the path of a file; raises a UserError if it does not exist."""
    if not os.path.isfile(file):
        raise UserError(f"labels={os.fspath(file)}: no such file")
    return Path(file)
