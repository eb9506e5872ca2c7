"""`vivit probe`: a first honest number for a data set, from frozen features, in minutes."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vivit_train.build import build_data, init_weights, resolve_clip
from vivit_train.config import derive, validate
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.models.probe import PROBES, FrameProbe, Pooling, Space
from vivit_train.models.vivit import ViViT
from vivit_train.recipe import typed_keys
from vivit_train.run import quiet_lightning
from vivit_train.tools.crossval.groups import groups_of
from vivit_train.tools.overrides import OF_TRAINING, compose_words, to_overrides
from vivit_train.tools.probe.features import SplitFeatures, features_of, layers_of
from vivit_train.tools.probe.table import BASELINES, Score, advice, table
from vivit_train.training.checkpoint import KEY, Metadata, build_net, uncompiled
from vivit_train.training.evaluation import log_result, result_contents, write_files
from vivit_train.training.folds import assign_folds
from vivit_train.training.module import VideoClassifier
from vivit_train.training.probing import (
    Choice,
    choose_each,
    mean_head,
    motion_net_scores,
    num_held_out_right,
    num_right,
    pooled_by_all,
    poolings,
)
from vivit_train.training.result import Result
from vivit_train.training.resume import AtomicCheckpointIO
from vivit_train.utils.conf import has_pretrained_start, with_values
from vivit_train.utils.errors import UserError, system_reason
from vivit_train.utils.files import replacing
from vivit_train.utils.progress import tracked
from vivit_train.utils.text import file_stem, plural

log = logging.getLogger(__name__)
TARGET = "vivit_train.models.probe.FrameProbe.from_size"
OWN_MODELS = "vivit_train.models.vivit.ViViT.from_size"
PIXELS = 224  # Most ViTs are trained at this size, and each clip passes only once.
FRAMES = 16  # VideoMAE is trained with as many.
AVERAGED = 3  # How many of the best heads are kept: their mean is more often right than the first of them.


def probe(words: Sequence[str] | None, out: Path | None, folds: int, group: str) -> None:
    """Trains a grid of heads on frozen features, writes the mean of the best as a checkpoint, and scores it.

    Args:
        words: Overrides as for train.py, and folders; see `to_overrides`.
        out: The folder of the results; None is the next free probe/NAME/1, probe/NAME/2, ...
        folds: The number of folds of cross-validation.
        group: How the clips are grouped; see `groups_of`. Clips of one group stay in one fold.

    Raises:
        UserError: An error that the user can fix.
    """
    quiet_lightning()
    cfg = compose_probe(words)
    folder = new_folder(out, str(cfg.data.name))
    try:
        cfg = with_values(cfg, run_dir=str(folder))
        validate(cfg, typed_keys(to_overrides(words)))
        run(cfg, folder, folds, group)
    finally:
        with suppress(OSError):  # It holds something, unless the command was refused.
            folder.rmdir()


def run(cfg: DictConfig, folder: Path, folds: int, group: str) -> None:
    """Does what `probe` describes, for a configuration that is valid."""
    cfg, splits = resolve_clip(cfg)
    data = build_data(cfg, splits=splits)
    log.info(data.splits.summary())
    names = probe_classes(data)
    groups = groups_of(group, data.splits.train, names)  # Errors come before the features, which take minutes.
    task = frozen_task(cfg, names, folder)
    train = features_of(cfg, task, data, "train")
    started_s = time.monotonic()
    test = features_of(cfg, task, data, data.test_split)
    seconds = time.monotonic() - started_s
    fold_N, how = folds_of(train, groups, folds, group, cfg.seed)
    choices = choose_all(train, task, fold_N)
    kept = heads_to_keep(choices, len(train.kept))
    head = mean_head(train.features, kept, len(names))
    rows = scores(choices, kept, head, len(names), train, test, fold_N, cfg.seed)
    text = table(rows, len(train.kept), test.total, data.test_split, how)
    log.info(text)
    net = save(cfg, task, kept, head, folder)
    report = {"folds": how, "n_train": len(train.kept), "split": data.test_split, "n_test": test.total}
    with replacing(folder / "probe.json") as part:
        content = report | {"rows": [asdict(row) for row in rows]}
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    logits = head(pooled_by_all(test.features, kept))
    files = write_result(net, logits, test, data, folder, seconds)
    log.info("\n".join(advice(rows, test.total)))
    log.info(f"written: {folder}/checkpoints/best.ckpt, probe.json, {', '.join(files)}")


def compose_probe(words: Sequence[str] | None) -> DictConfig:
    """Composes the configuration: the pixels of image ViTs, segments and, for vivit_fe, one frame per token.

    What is typed stays as it is.

    Raises:
        UserError: The words do not say which videos or weights to use, or a word is invalid.
    """
    cfg = compose_words(words, Path("."), OF_TRAINING)
    typed = typed_keys(to_overrides(words))
    if cfg.data.name == "demo" and "data" not in typed:
        raise UserError("which videos? vivit probe FOLDER, or vivit probe data=NAME data.root=DIR")
    if cfg.model._target_ != OWN_MODELS:
        raise UserError(
            f"model._target_={cfg.model._target_}: vivit probe needs one of {', '.join(PROBES)}: set model= to "
            "one of them"
        )
    if not has_pretrained_start(cfg.init):
        raise UserError(
            "vivit probe reads the features of pretrained weights: set init=imagenet, or init.path=FILE "
            "(README, Weights in and out)"
        )
    settings: dict[str, Any] = {key: PIXELS for key in ("short_side", "crop") if cfg.data[key] == "auto"}
    if cfg.data.frames == "auto" and cfg.model.model != "vivit_fe":
        settings["frames"] = FRAMES
    has_window = "data.fps" in typed or ("data.sampling" in typed and cfg.data.sampling == "window")
    if cfg.data.stride == "auto" and not has_window:
        # As in conf/recipe/few_clips.yaml: frames of the whole video, uncropped.
        settings |= {"sampling": "segments", "stride": 1, "resize_mode": "stretch"}
    cfg = with_values(cfg, data={key: value for key, value in settings.items() if f"data.{key}" not in typed})
    if "model.tubelet" not in typed and cfg.model.model == "vivit_fe":
        cfg = with_values(cfg, model={"tubelet": [1, *cfg.model.tubelet[1:]]})
    return cfg


def new_folder(out: Path | None, name: str) -> Path:
    """Creates the folder of the results.

    Raises:
        UserError: The folder holds something already.
    """
    if out is None:
        parent = Path("probe") / file_stem(name)
        out = next(path for n in count(1) if not (path := parent / str(n)).exists())
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: the folder is not empty; choose another one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {system_reason(error)}") from error
    return out


def probe_classes(data: VideoDataModule) -> list[str]:
    """Returns the class names.

    Raises:
        UserError: A clip has several labels, or a split has no clips.
    """
    if data.splits.multi_label or len(data.splits.classes) > 1:
        raise UserError(f"data={data.name}: vivit probe needs data with one class per video")
    for split in ("train", data.test_split):
        if not len(data.manifest_of(split)):
            raise UserError(f"data={data.name}: there are no {split} clips")
    (names,) = data.splits.classes.values()
    return list(names)


def probe_node(cfg: DictConfig, **pooling: Any) -> dict[str, Any]:
    """Returns the `model` node of the probe of a model."""
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    node = {key: value for key, value in uncompiled(node).items() if key != "temporal_depth"}
    return node | {"_target_": TARGET} | pooling


def frozen_task(cfg: DictConfig, names: list[str], folder: Path) -> VideoClassifier:
    """Returns the probe with the pretrained weights, which load into the whole model."""
    classes = {"": names}
    whole = build_net(uncompiled(cfg.model), classes)
    mean, std = init_weights(whole, cfg.init, cfg.model.get("size"), folder, classes, False)
    net = probe_of(whole, probe_node(cfg), classes)
    return VideoClassifier(net, classes, mean, std).eval().requires_grad_(False)


def probe_of(source: ViViT, node: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> FrameProbe:
    """Returns the probe that a `model` node describes, with the embedding and the encoder of another model."""
    net = build_net(node, classes)
    assert isinstance(net, FrameProbe)
    net.embedding.load_state_dict(source.embedding.state_dict())
    net.encoder.load_state_dict(source.encoder.state_dict())
    return net


def folds_of(train: SplitFeatures, groups: Sequence[str], folds: int, group: str, seed: int) -> tuple[Tensor, str]:
    """Returns the fold of each training clip that could be read, and in words how they are made.

    Args:
        train: The features of the training clips.
        groups: The group of each clip, of those that could not be read too.
        folds: The number of folds; at most the number of groups.
        group: How the groups are made, for the message.
        seed: The seed of the folds.

    Raises:
        UserError: There is only one group.
    """
    groups = [groups[row] for row in train.kept]
    number = len(set(groups))
    if number < 2:
        raise UserError(f"--group {group}: all training clips are one group, but cross-validation needs two")
    folds = min(folds, number)
    told = f"clips of one group together ({plural(number, 'group')})"
    how = f"{folds}-fold cross-validation, {told if number < len(groups) else 'each clip a group'}"
    return torch.from_numpy(assign_folds(groups, train.features.labels.numpy(), folds, seed)), how


def choose_all(train: SplitFeatures, task: VideoClassifier, fold_N: Tensor) -> list[tuple[str, Choice]]:
    """Returns the choice of each pooling with the name of its row in the table, the best ones first."""
    net = task.net
    assert isinstance(net, FrameProbe)
    spaces: tuple[Space, ...] = ("mean", "grid") if net.encoder.cls_token is None else ("cls", "mean", "grid")
    named = poolings(spaces, layers_of(net), by_frame=net.model == "vivit_fe")
    names = [name for name, several in named.items() for _ in several]
    every = [pooling for several in named.values() for pooling in several]
    chosen = choose_each(train.features, every, len(task.classes[""]), fold_N)
    found = zip(names, tracked(chosen, "fitting heads", len(every)), strict=True)
    return sorted(found, key=lambda item: item[1].rank, reverse=True)


def heads_to_keep(choices: Sequence[tuple[str, Choice]], num_clips: int) -> list[Choice]:
    """Returns the heads whose mean is kept: the best ones, or a baseline that is clearly better.

    A baseline has to lead by more than one standard error. It sees a part of what the clips show, so that a small
    lead is more likely to be luck. An attentive head is kept only alone, because it is not linear. Of heads that
    differ only in motion, the best is kept.

    Args:
        choices: The choices with the names of their rows, the best ones first.
        num_clips: The number of training clips.
    """
    leader = choices[0][1]
    heads = [choice for name, choice in choices if name not in BASELINES]
    error = (heads[0].right * (1 - heads[0].right / num_clips)) ** 0.5
    if leader.right > heads[0].right + error:
        return [leader]
    if heads[0].pooling.time == "attentive":
        return heads[:1]
    different: dict[Pooling, Choice] = {}
    for choice in heads:
        if choice.pooling.time != "attentive":
            different.setdefault(replace(choice.pooling, motion="none"), choice)
    return list(different.values())[:AVERAGED]


def scores(
    choices: Sequence[tuple[str, Choice]],
    kept: Sequence[Choice],
    head: nn.Module,
    num_classes: int,
    train: SplitFeatures,
    test: SplitFeatures,
    fold_N: Tensor,
    seed: int,
) -> list[Score]:
    """Returns the rows of the table. Apart from baselines, only what is kept is scored on the test clips."""
    counts = torch.bincount(train.features.labels, minlength=num_classes)
    majority = int(counts.argmax())
    of_majority = int((test.features.labels == majority).sum())
    rows = [
        Score("chance", "", len(train.kept) / num_classes, test.total / num_classes),
        Score("majority class", "", int(counts[majority]), of_majority),
    ]
    if train.features.luma.shape[1] > 1:
        right = motion_net_scores(train.features, test.features, num_classes, fold_N, seed)
        rows.append(Score("motion, tiny model", "differences of 32 x 32 pixels", *right))
    tested = num_right(test.features, kept, head)
    best: dict[str, Choice] = {}
    for name, choice in choices:
        best.setdefault(name, choice)
    for name, choice in best.items():
        if kept == [choice]:
            rows.append(Score(f"{name} *", choice.described, choice.right, tested))
            continue
        theirs = mean_head(train.features, [choice], num_classes) if name in BASELINES else None
        of_baseline = num_right(test.features, [choice], theirs) if theirs else None
        rows.append(Score(name, choice.described, choice.right, of_baseline))
    if len(kept) > 1:
        details = "\n".join(f"{name}: {choice.described}" for name, choice in choices if choice in kept)
        validated = num_held_out_right(train.features, kept, num_classes, fold_N)
        rows.append(Score(f"mean of the {len(kept)} best *", details, validated, tested))
    order = {name: place for place, name in enumerate(BASELINES)}
    return sorted(rows, key=lambda row: order.get(row.name.removesuffix(" *"), len(order)))


def save(
    cfg: DictConfig, task: VideoClassifier, kept: Sequence[Choice], head: nn.Module, folder: Path
) -> FrameProbe:
    """Writes the head with the frozen encoder as a checkpoint, and returns this model."""
    first, *more = [asdict(choice.pooling) for choice in kept]
    node = probe_node(cfg, **first, more_poolings=more)
    net = probe_of(task.net, node, task.classes)
    net.head.load_state_dict(head.state_dict())
    config: Any = OmegaConf.to_container(derive(cfg))
    classes = {name: list(of_head) for name, of_head in task.classes.items()}
    mean, std = ((x.flatten() / 255).tolist() for x in (task.mean, task.std))
    metadata = Metadata({**config, "model": node}, classes, mean, std)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint(
        {KEY: metadata.to_dict(), "state_dict": state, "global_step": 0, "epoch": 0},
        folder / "checkpoints/best.ckpt",
    )
    return net


def write_result(
    net: FrameProbe, logits_NK: Tensor, test: SplitFeatures, data: VideoDataModule, folder: Path, seconds: float
) -> list[str]:
    """Writes what an evaluation of the chosen head writes, and returns the file names.

    Args:
        net: The model with the chosen head.
        logits_NK: Its logits of the clips that could be read.
        test: The features of these clips.
        data: The data module.
        folder: The folder of the results.
        seconds: The time that computing these features took.
    """
    manifest = data.manifest_of(data.test_split)
    index_N = np.arange(test.total)
    failed_N = ~np.isin(index_N, test.kept)
    all_NK = np.zeros((test.total, logits_NK.shape[1]), np.float32)
    all_NK[~failed_N] = logits_NK.numpy()
    label_N1 = np.array([manifest.labels_of(row) for row in index_N.tolist()])
    right_N1 = (all_NK.argmax(1) == label_N1[:, 0])[:, None] & ~failed_N[:, None]
    rows = {"index": index_N, "label": label_N1, "logits": all_NK, "failed": failed_N, "right": right_N1}
    result = Result(rows, data.splits.classes, manifest.paths[index_N])
    contents = result_contents(result, data, folder / "checkpoints/best.ckpt", seconds)
    contents.pop("checkpoint_chosen_on_these_clips", None)  # Training clips alone have chosen the head.
    about = f"{net.model} probe, {sum(x.numel() for x in net.parameters()) / 1e6:.2f} M parameters"
    files = write_files(folder, result, contents, data, about, hardest_first=False)
    log_result(result, contents, data)
    return files
