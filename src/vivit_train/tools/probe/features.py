"""The frozen features of the clips of a split, computed once and stored."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from vivit_train.build import precision
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import EvalProtocol
from vivit_train.models.probe import FrameProbe, Input, foreground, luminance
from vivit_train.training.features import (
    FeatureStore,
    StoredClip,
    describe_model,
    preprocessing,
    store_folder,
    store_in_shards,
    stored_clips,
)
from vivit_train.training.module import VideoClassifier
from vivit_train.training.probing import Features
from vivit_train.utils.errors import UserError
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
VIEW = EvalProtocol()


INPUTS: tuple[Input, ...] = ("frames", "foreground")


def layers_of(net: FrameProbe) -> list[int]:
    """Returns the numbers of layers whose output has features: a third, two thirds, and all of them."""
    depth = len(net.encoder.blocks)
    return sorted({max(1, round(depth * part / 3)) for part in (1, 2, 3)})


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
    assert isinstance(net, FrameProbe)
    layers = layers_of(net)
    about = {
        "features": f"FrameProbe.regions of {', '.join(INPUTS)} after {layers} layers, luminance",
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
    regions = {(seen, number): loaded[f"{seen}_{number}"] for seen in INPUTS for number in layers}
    flip = split == "train" and bool(cfg.data.flip) and not cfg.data.mirror_labels
    return SplitFeatures(Features(regions, loaded["luma"], label_N, flip), kept, len(clips))


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
    layers = layers_of(net)
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
            found = {"luma": luminance(video_BCTHW).float()}
            for seen, x_BCTHW in zip(INPUTS, (video_BCTHW, foreground(video_BCTHW)), strict=True):
                regions = zip(layers, net.regions(x_BCTHW, layers), strict=True)
                found |= {f"{seen}_{number}": x.float() for number, x in regions}
        plain = {key: x.cpu() for key, x in found.items()}
        yield [clips[row] for row in batch["index"][read].tolist()], plain, failed
    task.to("cpu")
