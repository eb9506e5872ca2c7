"""Data and model of an evaluation: those of the checkpoint, with the changes from the command line."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vivit_train.data.annotations.build import LabelError
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import load_pretrained
from vivit_train.models.weights.vivit_file import checkpoint_weights
from vivit_train.recipe import typed_in_job
from vivit_train.training.checkpoint import Metadata, num_classes, uncompiled
from vivit_train.training.evaluation import parse_views
from vivit_train.training.targets import DATA, MODELS, build, resolve_target
from vivit_train.utils.arguments import check_arguments, shown
from vivit_train.utils.errors import UserError
from vivit_train.values import written

log = logging.getLogger(__name__)


def for_clip(
    metadata: Metadata, weights: Mapping[str, Tensor], clip: tuple[int, int, int], cfg: DictConfig
) -> ViViT:
    """Returns the model of a checkpoint for clips of another size: its position embeddings are interpolated.

    Training with `init.path` at that size would start from the same weights.

    Args:
        metadata: The metadata of the checkpoint.
        weights: Its weights by parameter name.
        clip: The frames, height and width of a clip.
        cfg: The configuration of eval.py, which names the checkpoint.

    Raises:
        UserError: The model cannot be built for clips of this size, or the command line does not ask for it.
    """
    model = metadata.config["model"]
    if cfg.data.frames is None and cfg.data.crop is None:
        raise UserError(
            f"{cfg.ckpt_path}: the stored model takes {model.get('frames')} frames of {model.get('image_size')} "
            f"pixels, but the stored data has {clip[0]} of {clip[1]}: set data.frames and data.crop"
        )
    node = uncompiled(model) | {"frames": clip[0], "image_size": clip[1]}
    heads = num_classes(metadata.classes)
    asked = ", ".join(f"data.{key}={cfg.data[key]}" for key in ("frames", "crop") if cfg.data[key] is not None)
    net: ViViT = build(node, MODELS, f"{asked}: {cfg.ckpt_path}: model", cfg.trusted, num_classes=heads)
    found = checkpoint_weights(cfg.ckpt_path, weights, vars(metadata))
    load_pretrained(net, found, classes=metadata.classes, multi_label=metadata.multi_label)
    log.info(
        f"clips of {clip[0]} frames of {clip[1]} pixels, trained on {model['frames']} of {model['image_size']}: "
        "position embeddings are interpolated"
    )
    return net


# These keys determine the videos and their labels.
SOURCE = ("name", "root", "reader", "train", "val", "test")
JOB = ("micro_batch_size", "seed")  # These keys are outside of the data node.


def given_data(metadata: Metadata, cfg: DictConfig) -> dict[str, Any]:
    """Returns the data settings from the command line; null means to use the setting of the checkpoint.

    `data=NAME` selects another source of videos and labels. The clip settings (frames, stride, crop, and so on)
    stay the same as in training unless they are set too.
    """
    clip = ("frames", "stride", "fps", "sampling", "padding", "short_side", "crop")
    pixels = ("resize", "resize_mode", "square_pixels")
    keys = (*SOURCE, *clip, *pixels, "num_workers", "decoder", "timeout_s")
    typed: dict[str, Any] = {key: cfg.data[key] for key in keys}
    given = {key: value for key, value in typed.items() if value is not None or (cfg.data.name and key in SOURCE)}
    if given.get("reader") is not None:
        given["reader"] = OmegaConf.to_container(given["reader"], resolve=True)
        if metadata.multi_label and "multi_label" in given["reader"]:
            given["reader"]["multi_label"] = True  # Multi-label follows the model.
        given["reader"] = instantiate(given["reader"], _convert_="all")
    if (cfg.data.name is not None or cfg.eval.split != "train") and "data.train" in typed_in_job():
        raise UserError(
            f"data.train={written(cfg.data.train)} has no effect: an evaluation of a checkpoint reads no training "
            "clips"
        )
    if cfg.data.name is not None:  # The labels of other data are mapped to the model's classes.
        given["reader"] = partial(given["reader"], classes=metadata.classes.get("", metadata.classes))
        given |= {"train": None, **evaluated_lists(cfg)}
    if "stride" in given and "fps" not in given:
        given["fps"] = None  # Otherwise, that of the checkpoint would replace the stride.
    given["allow_private_urls"] = bool(cfg.data.allow_private_urls)  # This never comes from a checkpoint.
    given |= {key: cfg[key] for key in JOB if cfg[key] is not None}
    return given | {"bad_videos_file": f"{cfg.run_dir}/bad_videos.csv"}


def evaluated_lists(cfg: DictConfig) -> dict[str, Any]:
    """Returns the annotations of the command line's data; those of a test split take the place of val."""
    if cfg.data.test == "auto":  # The reader finds the test split itself.
        return {"val": cfg.data.val, "test": "auto"}
    return {"val": cfg.data.test or cfg.data.val, "test": None}


def evaluation_data(metadata: Metadata, cfg: DictConfig) -> VideoDataModule:
    """Returns the data of the checkpoint with the changes from the command line.

    Raises:
        UserError: The data settings in the checkpoint are invalid.
    """
    given = given_data(metadata, cfg)
    known = VideoDataModule.__init__
    check_arguments(VideoDataModule, given, "data", also=tuple(inspect.signature(known).parameters))
    is_only_split = cfg.data.name is not None and cfg.data.test not in (None, "auto")  # See `evaluated_lists`.
    split = None if is_only_split and cfg.eval.split == "test" else cfg.eval.split
    protocol = EvalProtocol(split, parse_views(cfg.eval.views), cfg.eval.order)
    return stored_data(metadata, cfg.ckpt_path, cfg.trusted, **given, protocol=protocol)


def stored_data(metadata: Metadata, path: str | Path, trusted: Sequence[str], **given: Any) -> VideoDataModule:
    """Builds the data module of a checkpoint.

    Args:
        metadata: The metadata of the checkpoint.
        path: The path of the checkpoint, for messages.
        trusted: The packages whose code may be called; see `targets.build`.
        given: Arguments that replace those of the checkpoint.

    Raises:
        UserError: The data settings in the checkpoint are invalid.
    """
    stored, where = metadata.config.get("data"), f"{path}: data"
    if not isinstance(stored, Mapping):
        raise UserError(f"{where} is missing or is not a mapping of settings")
    node = {key: metadata.config[key] for key in JOB if key in metadata.config} | dict(stored)
    node = {key: value for key, value in node.items() if key not in given}
    if "." in str(node.get("decoder", "")):
        resolve_target(node["decoder"], set(), f"{where}.decoder", trusted)
    data: VideoDataModule = build(node, DATA, where, trusted, **given)
    if data.crop > data.short_side:
        raise UserError(
            f"data.crop={data.crop} is larger than data.short_side={data.short_side}: set both, or neither "
            f"for those of {path}"
        )
    return data


def check_splits(data: VideoDataModule, metadata: Metadata, cfg: DictConfig, label_advice: str = "") -> None:
    """Reads the annotations and compares their classes with those of the model.

    The error message of a reader quotes the files that it has read. If only the checkpoint names these files, they
    could be any files on this machine, so none of their content is shown.

    Args:
        data: The data.
        metadata: The metadata of the checkpoint.
        cfg: The configuration of eval.py.
        label_advice: What to do about labels that are none of the classes.

    Raises:
        UserError: The annotations cannot be read or have other classes.
    """
    files = [name for name in data.annotations.values() if name is not None]
    inside = all(not os.path.isabs(name) and ".." not in Path(name).parts for name in files)
    if cfg.data.name is not None or (cfg.data.root is not None and inside):
        try:
            _ = data.splits
        except LabelError as error:
            raise UserError(f"{error}\n{label_advice}".rstrip()) from None
        return
    advice = f"set data.root=DIR, or data=NAME data.root=DIR, to the data for {cfg.ckpt_path}"
    if not os.path.isdir(os.path.expanduser(data.root)):
        raise UserError(f"the data folder of the checkpoint, {shown(data.root)}, does not exist: {advice}")
    try:
        classes = {head: list(names) for head, names in data.splits.classes.items()}
    except UserError:
        lists = [f"data.{key}={cfg.data[key]}" for key in ("val", "test") if cfg.data[key] is not None]
        given = f" with {' and '.join(lists)}" if lists else ""
        raise UserError(
            f"the data that the checkpoint names, in {shown(data.root)}, cannot be read{given} as it was in "
            f"training: {advice}; the message then shows what is wrong with it"
        ) from None
    if classes != metadata.classes:
        raise UserError(
            f"the data that the checkpoint names, in {shown(data.root)}, no longer has the classes of the model: "
            f"{advice}; its labels are then mapped to the model's classes"
        )
