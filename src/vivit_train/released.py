"""What an evaluation scores: a checkpoint of vivit-train, or the weights of others.

The authors' checkpoints and Hugging Face folders become what a checkpoint of vivit-train holds: metadata and
weights. What they do not state comes from `data=`, `model=` and `init`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vivit_train.data.annotations.files import NoClassesError
from vivit_train.data.annotations.table import Splits
from vivit_train.data.clip_size import LARGE
from vivit_train.data.video import urls
from vivit_train.models.vivit import SIZES, ViViT
from vivit_train.models.weights.files import CHECKPOINT_JSON
from vivit_train.models.weights.heads import authors_order, check_order, from_single_output
from vivit_train.models.weights.source import Source
from vivit_train.models.weights.whole import Hints, WholeModel, arguments_of, read_whole
from vivit_train.recipe import data_defaults, typed_in_job
from vivit_train.stored_data import evaluated_lists
from vivit_train.training.checkpoint import Metadata, load_checkpoint
from vivit_train.training.targets import with_short_names
from vivit_train.utils.arguments import shown
from vivit_train.utils.errors import UserError
from vivit_train.utils.run_folder import best_checkpoint
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
CLIP = ("frames", "crop", "short_side", "resize_mode", "stride", "fps", "sampling", "padding")


@dataclass(frozen=True)
class Evaluated:
    """The model that an evaluation scores.

    Attributes:
        path: The checkpoint, folder or model name.
        metadata: What a checkpoint of vivit-train holds beside the weights.
        weights: The weights by parameter name.
        protocol: Each part that the weights of others do not all state, with where it is from; {} for a checkpoint
            of vivit-train, which states all.
        label_advice: What to do if labels are none of the classes.
    """

    path: str
    metadata: Metadata
    weights: Mapping[str, Tensor]
    protocol: Mapping[str, str] = field(default_factory=dict)
    label_advice: str = ""


@dataclass(frozen=True)
class Names:
    """The classes of the weights of others.

    Attributes:
        classes: The class names by head. A single head has the name "".
        multi_label: Whether a video may have any number of classes.
        listed_in: Where the names are from.
        label_advice: What to do if labels are none of these names.
    """

    classes: dict[str, list[str]]
    multi_label: bool
    listed_in: str
    label_advice: str = ""


def read_evaluated(cfg: DictConfig) -> Evaluated:
    """Returns what `ckpt_path` refers to: a checkpoint, the folder of a run, or the weights of others.

    Raises:
        UserError: There is no such file, it is of another kind, or it contradicts the command line.
    """
    path = best_in(cfg.ckpt_path)
    source = Source(path)
    if source.path is None:
        raise UserError(f"ckpt_path={path}: no such file")
    if (exported := source.path / CHECKPOINT_JSON).is_file():
        path = str(exported)
        if cfg.data.name is None:
            raise UserError(f"{source.name} names no videos: set data=NAME data.root=DIR to those to score it on")
    elif not source.is_file or source.is_flax:
        return read_released(source, cfg)
    metadata, weights = load_checkpoint(path)
    if typed := stated_by_checkpoint(cfg, metadata.multi_label):
        raise UserError(
            f"{typed[0]} has no effect: {path} is a checkpoint of vivit-train, which states this itself"
        )
    check_model_words(cfg.model, metadata.config.get("model"), path)
    return Evaluated(path, metadata, weights)


def stated_by_checkpoint(cfg: DictConfig, multi_label: bool) -> list[str]:
    """Returns the keys that the user sets although an evaluation reads them from the checkpoint."""
    typed = [f"init.{key}" for key, value in cfg.init.items() if value is not None]
    reader = cfg.data.reader or {}
    typed += ["data.reader.classes"] if reader.get("classes") is not None else []
    words = typed_in_job()
    if "data.reader.multi_label" in words and reader.get("multi_label") != multi_label:
        typed.append("data.reader.multi_label")
    return typed


def best_in(path: str) -> str:
    """Returns the best checkpoint in the folder of a run, or `path` itself if it is something else.

    Raises:
        UserError: It is a folder without a best.ckpt and without the weights of others.
    """
    if not Path(path).is_dir():
        return path
    if file := best_checkpoint(Path(path)):
        log.info(f"ckpt_path={path} is a folder: evaluating {file}")
        return str(file)
    source = Source(path)
    if source.config is not None or source.is_flax or (Path(path) / CHECKPOINT_JSON).is_file():
        return path
    raise UserError(
        f"ckpt_path={path}: the folder has no best.ckpt, no {CHECKPOINT_JSON} (vivit export), no config.json "
        "(Hugging Face) and no checkpoint_<step> (the authors'); name a checkpoint file"
    )


def check_model_words(words: DictConfig, stored: Any, path: str) -> None:
    """Checks that the command line says nothing about the model that the weights contradict.

    Raises:
        UserError: They contradict it. The message lists all settings.
    """
    if not isinstance(stored, Mapping):  # The check of the checkpoint refuses it.
        return
    asked, there = sizes_of(words), sizes_of(stored)
    problems = [
        f"model.{key}={shown(value)}: {shown(there[key]) if key in there else 'there is none'} in {path}"
        for key, value in asked.items()
        if there.get(key) != value
    ]
    if problems:
        raise UserError("\n".join(problems))


def sizes_of(node: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the settings of a `model` node that are set, with the numbers that its size stands for."""
    given = {str(key): value for key, value in node.items() if value is not None and key != "_target_"}
    size = given.pop("size", None)
    sizes = {**SIZES.get(size, {}), **given} if isinstance(size, str) else given
    if isinstance(sizes.get("dim"), int):
        sizes.setdefault("mlp_dim", 4 * sizes["dim"])
    return {key: list(value) if OmegaConf.is_list(value) else value for key, value in sizes.items()}


def read_released(source: Source, cfg: DictConfig) -> Evaluated:
    """Returns the weights of others, with what they do not state from `data=`, `model=` and `init`.

    Raises:
        UserError: The source cannot be read, something is stated nowhere, or the classes do not fit the logits.
    """
    name = source.name
    if cfg.data.name is None:
        raise UserError(f"{name} names no videos: set data=NAME data.root=DIR to those to score it on")
    option, defaults = data_defaults(str(cfg.data.name))
    node: dict[str, Any] = OmegaConf.to_container(defaults, resolve=True)  # type: ignore[assignment]
    del node["reader"]  # That of the command line is used.
    whole, where = read_whole(source, hints_of(cfg, node)), f"data={option}"
    model = arguments_of(whole.net)
    check_model_words(cfg.model, model, name)
    names = class_names(cfg, whole, name, where)
    node |= whole.clip
    clip = clip_settings(cfg, node, whole, name, where)
    (mean, std), normalized_in = whole.statistics, whole.stated_in["mean, std"]
    if cfg.init.mean is not None:
        mean, std, normalized_in = tuple(cfg.init.mean), tuple(cfg.init.std), "init.mean, init.std"
    config = {"model": {"_target_": "vivit"} | model, "data": with_short_names(node)}
    protocol = {
        "source": name,
        "model": f"{model['model']} ({whole.stated_in['model']})",
        "classes": f"{' + '.join(str(len(of_head)) for of_head in names.classes.values())} ({names.listed_in})",
        "mean, std": f"{list(mean)}, {list(std)} ({normalized_in})",
        **clip,
    }
    metadata = Metadata(config, names.classes, list(mean), list(std), names.multi_label)
    weights = weights_of(whole.net, names.classes, cfg.init.heads, name)
    return Evaluated(name, metadata, weights, protocol, names.label_advice)


def weights_of(
    net: ViViT, classes: Mapping[str, list[str]], heads: list[str] | None, source: str
) -> dict[str, Tensor]:
    """Returns the weights of a model by parameter name, with the rows of its output in the order of the heads.

    Raises:
        UserError: The order of the heads in the single output is not known.
    """
    sizes = {head: len(names) for head, names in classes.items()}
    weights = {key: value.detach() for key, value in net.named_parameters()}
    if len(sizes) > 1 or heads is not None:
        order = check_order(heads or authors_order(sizes), sizes, source)
        for key in ("head.weight", "head.bias"):
            weights[key] = from_single_output(weights[key], sizes, order)
    return weights


def hints_of(cfg: DictConfig, stated: Mapping[str, Any]) -> Hints:
    """Returns what the command line and the data say about a source; `auto` sizes are those of a GPU."""
    frames = LARGE.frames if stated["frames"] == "auto" else stated["frames"]
    crop = LARGE.crop if stated["crop"] == "auto" else stated["crop"]
    return Hints(cfg.model.get("model"), cfg.model.order or "space_time", cfg.init.frames, frames, crop)


def class_names(cfg: DictConfig, whole: WholeModel, source: str, where: str) -> Names:
    """Returns the names of `data.reader.classes`, else those of the source, else those of the data in its order.

    Raises:
        UserError: There are not as many names as logits.
    """
    listed = cfg.data.reader.get("classes")
    if whole.classes is not None and listed is None:
        advice = f"The classes are those of {source}: "
        if "classes" in cfg.data.reader:
            advice += (
                f"if {where} spells them otherwise, list its spelling, one per line in the order of the logits, "
            )
            advice += "and set data.reader.classes=FILE."
        else:
            advice += "use its names in the annotations."
        return Names({"": whole.classes}, bool(whole.multi_label), whole.stated_in["classes"], advice)
    rows = whole.net.head.out_features
    splits = own_splits(cfg, f"{source} names no classes, so its {rows} logits are in the order of {where}")
    classes = {head: list(names) for head, names in splits.classes.items()}
    if (count := sum(map(len, classes.values()))) != rows:
        by_head = ", ".join(f"{head} {len(names)}" for head, names in classes.items() if head)
        raise UserError(
            f"{source} has {plural(rows, 'logit')}, but {listed or where} has {count} classes"
            f"{f' ({by_head})' if by_head else ''}: choose the data that it was trained on, or list its classes "
            "in the order of its logits: data.reader.classes=FILE"
        )
    multi_label = splits.multi_label if whole.multi_label is None else whole.multi_label
    return Names(classes, multi_label, f"data.reader.classes={listed}" if listed else f"{where}, in its order")


def own_splits(cfg: DictConfig, why: str) -> Splits:
    """Reads the annotations with the classes that they have themselves.

    Raises:
        UserError: They cannot be read, or name no classes.
    """
    reader: Callable[..., Splits] = instantiate(cfg.data.reader, _convert_="all")
    lists = evaluated_lists(cfg)
    with urls.private_urls(bool(cfg.data.allow_private_urls)):
        try:  # Published data has its class names in a file of its own; the training videos need not be there.
            return reader(cfg.data.root, train=None, **lists)
        except UserError as alone:
            try:
                return reader(cfg.data.root, train=cfg.data.train, **lists)
            except UserError as error:
                shown_error = error if isinstance(alone, NoClassesError) else alone
                raise UserError(f"{shown_error}\n{why}; data.reader.classes=FILE lists them instead") from None


def clip_settings(
    cfg: DictConfig, node: dict[str, Any], whole: WholeModel, source: str, where: str
) -> dict[str, str]:
    """Returns each setting of a clip with where it is from, for the protocol, and completes `node`.

    Raises:
        UserError: A setting is stated nowhere, or the crop is larger than the frame.
    """
    typed = {key: cfg.data[key] for key in CLIP if cfg.data[key] is not None}
    if "stride" in typed and "fps" not in typed:
        node["fps"] = None
    values = node | typed
    needed = ("frames", "crop", "short_side") if values["fps"] else ("frames", "crop", "short_side", "stride")
    if unknown := [key for key in needed if values[key] == "auto"]:
        words = " ".join(f"data.{key}=NUMBER" for key in unknown)
        raise UserError(f"neither {source} nor {where} states {' and '.join(unknown)}: set {words}")
    if values["crop"] > values["short_side"]:
        raise UserError(
            f"data.crop={values['crop']} is larger than data.short_side={values['short_side']}: set "
            f"data.short_side to what {source} was trained with"
        )
    if node["stride"] == "auto":
        node["stride"] = 1  # `fps` or the command line replaces it.
    hidden = {"stride" if values["fps"] else "fps"}
    return {
        key: f"{values[key]} ({'command line' if key in typed else whole.stated_in.get(key, where)})"
        for key in CLIP
        if key not in hidden
    }
