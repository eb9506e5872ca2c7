"""`vivit probe`: a first honest number for a data set, from frozen features, in minutes."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vivit_train.build import build_data, init_weights, precision, resolve_clip
from vivit_train.config import derive, validate
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.models.probe import FrameProbe, Space, luminance
from vivit_train.recipe import typed_keys
from vivit_train.run import quiet_lightning
from vivit_train.tools.crossval.run import groups_of
from vivit_train.tools.overrides import compose_words, to_overrides
from vivit_train.tools.probe_table import BASELINES, Score, advice, table
from vivit_train.training.checkpoint import KEY, Metadata, build_net, uncompiled
from vivit_train.training.features import (
    FeatureStore,
    StoredClip,
    describe_model,
    preprocessing,
    store_folder,
    store_in_shards,
    stored_clips,
)
from vivit_train.training.folds import assign_folds
from vivit_train.training.module import VideoClassifier
from vivit_train.training.probing import (
    Choice,
    Features,
    choose,
    head_of,
    motion_net_scores,
    num_right,
    poolings,
)
from vivit_train.training.resume import AtomicCheckpointIO
from vivit_train.utils.conf import with_values
from vivit_train.utils.errors import UserError
from vivit_train.utils.files import replacing
from vivit_train.utils.progress import tracked
from vivit_train.utils.text import file_stem, plural

log = logging.getLogger(__name__)
TARGET = "vivit_train.models.probe.FrameProbe.from_size"
PIXELS = 224  # Most image ViTs are trained at this size, and each clip passes only once.
VIEW = EvalProtocol()


def probe(words: Sequence[str] | None, out: Path | None, folds: int, group: str) -> None:
    """Trains a grid of heads on frozen features and writes the best one as a checkpoint.

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
    cfg = with_values(cfg, run_dir=str(folder))
    validate(cfg, typed_keys(to_overrides(words)))
    cfg, splits = resolve_clip(cfg)
    data = build_data(cfg, splits=splits)
    log.info(data.splits.summary())
    names = probe_classes(data)
    task = frozen_task(cfg, names, folder)
    train = features_of(cfg, task, data, "train")
    test = features_of(cfg, task, data, data.test_split)
    fold_N, how = folds_of(data, train, names, folds, group, cfg.seed)
    choices = choose_all(train, spaces_of(task), len(names), fold_N)
    best = max(choices.values(), key=lambda choice: choice.rank)
    head = head_of(train.features, best, len(names))
    rows = scores(choices, best, head, train, test, fold_N, cfg.seed)
    text = table(rows, len(train.kept), test.total, data.test_split, how)
    log.info(text)
    save(cfg, task, best, head, folder)
    report = {"folds": how, "n_train": len(train.kept), "split": data.test_split, "n_test": test.total}
    with replacing(folder / "probe.json") as part:
        content = report | {"rows": [asdict(row) for row in rows]}
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    log.info("\n".join(advice(rows, test.total, folder)))


def compose_probe(words: Sequence[str] | None) -> DictConfig:
    """Composes the configuration: one frame per token, and the pixels of image ViTs unless others are set.

    Raises:
        UserError: The words do not say which videos or weights to use, or a word is invalid.
    """
    cfg = compose_words(words, Path("."))
    typed = typed_keys(to_overrides(words))
    if cfg.data.name == "demo" and "data" not in typed:
        raise UserError("which videos? vivit probe FOLDER, or vivit probe data=NAME data.root=DIR")
    if cfg.model.get("model") != "vivit_fe":
        raise UserError(
            f"model={cfg.model.get('model')}: vivit probe encodes each frame by itself, as vivit_fe does: leave "
            "out model="
        )
    if cfg.init.name is None and cfg.init.path is None:
        raise UserError(
            "vivit probe reads the features of pretrained weights: set init=imagenet, or init.path=FILE "
            "(README, Weights in and out)"
        )
    if cfg.data.crop == "auto":
        cfg = with_values(cfg, data={"crop": PIXELS})
    if "model.tubelet" not in typed:
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
        raise UserError(f"--out {out}: {error.strerror}") from error
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
    """Returns the `model` node of the probe of a vivit_fe."""
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    node = {key: value for key, value in uncompiled(node).items() if key != "temporal_depth"}
    return node | {"_target_": TARGET} | pooling


def frozen_task(cfg: DictConfig, names: list[str], folder: Path) -> VideoClassifier:
    """Returns the probe with the pretrained weights, which load into the whole vivit_fe."""
    classes = {"": names}
    whole = build_net(uncompiled(cfg.model), classes)
    mean, std = init_weights(whole, cfg.init, cfg.model.get("size"), folder, classes, False)
    net = build_net(probe_node(cfg), classes)
    net.embedding.load_state_dict(whole.embedding.state_dict())
    net.encoder.load_state_dict(whole.encoder.state_dict())
    return VideoClassifier(net, classes, mean, std).eval().requires_grad_(False)


def spaces_of(task: VideoClassifier) -> list[Space]:
    """Returns the features of a frame that the model has."""
    has_cls = task.net.encoder.cls_token is not None
    spaces: tuple[Space, ...] = ("cls", "mean", "grid")
    return [space for space in spaces if has_cls or space != "cls"]


@dataclass(frozen=True)
class SplitFeatures:
    """The features of the clips of a split that could be read.

    Attributes:
        features: The features.
        kept: Their rows in the clip table.
        total: The number of clips, including those that could not be read.
    """

    features: Features
    kept: list[int]
    total: int


def features_of(cfg: DictConfig, task: VideoClassifier, data: VideoDataModule, split: str) -> SplitFeatures:
    """Returns the features of a split; those that are not stored are computed and stored."""
    net = task.net
    about = {
        "features": "FrameProbe.regions, luminance",
        **describe_model(task, net.embedding, net.encoder, precision=precision(cfg)),
        "frames": preprocessing(data),
    }
    manifest = data.manifest_of(split)
    store, clips = FeatureStore(store_folder(str(data.name)), about), stored_clips(manifest, str(VIEW))
    todo = store.missing(clips)
    if known := len(clips) - len(todo):
        log.info(f"{split}: the features of {known:,} of {plural(len(clips), 'clip')} are in {store.folder}")
    with data.translate_worker_errors():
        store_in_shards(store, computed(cfg, task, data, split, todo, clips), len(todo), f"features of {split}")
    data.bad_videos.share()
    kept = [row for row, clip in enumerate(clips) if store.has(clip)]
    if len(kept) < len(clips):
        log.info(f"{plural(len(clips) - len(kept), f'{split} video')} could not be read: {data.bad_videos.file}")
    if not kept:
        raise UserError(f"no {split} video could be read: {data.bad_videos.file} says why")
    loaded = store.load([clips[row] for row in kept])
    label_N = torch.tensor([manifest.labels_of(row)[0] for row in kept])
    return SplitFeatures(Features(loaded["regions"], loaded["luma"], label_N), kept, len(clips))


def computed(
    cfg: DictConfig,
    task: VideoClassifier,
    data: VideoDataModule,
    split: str,
    rows: Sequence[int],
    clips: Sequence[StoredClip],
) -> Iterator[tuple[list[StoredClip], dict[str, Tensor], int]]:
    """Yields the features of batches of clips, without the videos that cannot be read, and the number of these."""
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    task.to(device)
    net = task.net
    assert isinstance(net, FrameProbe)
    videos = data.evaluation_dataset(split, VIEW)
    batches = [list(rows[i : i + data.micro_batch_size]) for i in range(0, len(rows), data.micro_batch_size)]
    for batch in data.loader(videos, batch_sampler=batches) if batches else ():
        data.bad_videos.add(split, batch.pop("errors"))
        read = ~batch["failed"]
        failed = int((~read).sum())
        if not read.any():
            yield [], {}, failed
            continue
        video_BTCHW = batch["video"][read, 0].to(device)
        half = "bf16" in precision(cfg)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            video_BCTHW = task.normalise(video_BTCHW).transpose(1, 2)
            found = {"regions": net.regions(video_BCTHW).float(), "luma": luminance(video_BCTHW).float()}
        plain = {key: x.cpu() for key, x in found.items()}
        yield [clips[row] for row in batch["index"][read].tolist()], plain, failed
    task.to("cpu")


def folds_of(
    data: VideoDataModule, train: SplitFeatures, names: Sequence[str], folds: int, group: str, seed: int
) -> tuple[Tensor, str]:
    """Returns the fold of each training clip, and in words how they are made.

    Raises:
        UserError: There is only one source, or `group` does not tell that of a clip.
    """
    groups = groups_of(group, data.splits.train.select(np.array(train.kept)), names)
    number = len(set(groups))
    if number < 2:
        raise UserError(f"--group {group}: all training clips are one group, but cross-validation needs two")
    folds = min(folds, number)
    told = f"clips of one group together ({plural(number, 'group')})"
    how = f"{folds}-fold cross-validation, {told if number < len(groups) else 'each clip a group'}"
    return torch.from_numpy(assign_folds(groups, train.features.labels.numpy(), folds, seed)), how


def choose_all(
    train: SplitFeatures, spaces: Sequence[Space], num_classes: int, fold_N: Tensor
) -> dict[str, Choice]:
    """Returns the best choice of each row of the table, with a progress bar."""
    rows = [(name, pooling) for name, several in poolings(spaces).items() for pooling in several]
    found: dict[str, Choice] = {}
    for name, pooling in tracked(rows, "fitting heads", len(rows)):
        choice = choose(train.features, pooling, num_classes, fold_N)
        if name not in found or choice.rank > found[name].rank:
            found[name] = choice
    return found


def scores(
    choices: Mapping[str, Choice],
    best: Choice,
    head: tuple[Tensor, Tensor],
    train: SplitFeatures,
    test: SplitFeatures,
    fold_N: Tensor,
    seed: int,
) -> list[Score]:
    """Returns the rows of the table. Of the grid, only the chosen head is scored on the test clips."""
    num_classes = len(head[1])
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
    for name, choice in choices.items():
        tested = None
        if choice is best:
            tested = num_right(test.features, best.pooling, head)
        elif name in BASELINES:
            theirs = head_of(train.features, choice, num_classes)
            tested = num_right(test.features, choice.pooling, theirs)
        parts = (choice.pooling.space, "motion" if choice.pooling.motion == "map" else "none")
        details = " + ".join(part for part in parts if part != "none")
        details = f"{details}, decay {choice.decay:g}".removeprefix(", ")
        rows.append(Score(name + " *" * (choice is best), details, choice.right, tested))
    order = {name: place for place, name in enumerate(BASELINES)}
    return sorted(rows, key=lambda row: order.get(row.name.removesuffix(" *"), len(order)))


def save(cfg: DictConfig, task: VideoClassifier, best: Choice, head: tuple[Tensor, Tensor], folder: Path) -> None:
    """Writes the chosen head with the frozen encoder as a checkpoint, which eval.py scores by itself."""
    node = probe_node(cfg, **best.pooling._asdict())
    net = build_net(node, task.classes)
    net.embedding.load_state_dict(task.net.embedding.state_dict())
    net.encoder.load_state_dict(task.net.encoder.state_dict())
    net.head.load_state_dict(dict(zip(("weight", "bias"), head, strict=True)))
    config: Any = OmegaConf.to_container(derive(cfg))
    classes = {name: list(of_head) for name, of_head in task.classes.items()}
    mean, std = ((x.flatten() / 255).tolist() for x in (task.mean, task.std))
    metadata = Metadata({**config, "model": node}, classes, mean, std)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint(
        {KEY: metadata.to_dict(), "state_dict": state, "global_step": 0, "epoch": 0},
        folder / "checkpoints/best.ckpt",
    )
