"""Training from stored features: the frozen part of the model sees each view of each clip once (cache=true)."""

import hashlib
import json
import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import ClipBatch, EvalProtocol
from vivit_train.data.stored_clips import StoredEvalDataset, StoredTrainDataset, StoredViews, ViewDataset
from vivit_train.models.choices import Train
from vivit_train.models.tuning import TrainedPart, feature_shape, frozen_features, trained_logits
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
from vivit_train.training.profiling import forward_flops
from vivit_train.utils import distributed
from vivit_train.utils.errors import StoppedError
from vivit_train.utils.text import plural

log = logging.getLogger(__name__)
VIEW = EvalProtocol()
OF_CLIP = ("frame_numbers", "times_s", "box")  # These parts of a training batch are stored beside the features.


class CachedClassifier(VideoClassifier):
    """A VideoClassifier that trains and validates on stored features of the frozen part of the model.

    They are computed before the first step unless they are stored already: of each training clip in `cache_views`
    augmented views, and of each validation clip in one. Each rank computes a part of them.

    Args:
        args: Those of `VideoClassifier`. The weights of the model are loaded.
        train: What is trained, "head" or "temporal".
        cache_views: The number of views of a training clip.
        kwargs: Those of `VideoClassifier`.
    """

    reads_videos = False

    def __init__(self, *args: Any, train: Train, cache_views: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train_choice: Train = train
        self.cache_views = cache_views

    @cached_property
    def forward_flops(self) -> int:
        """The number of floating-point operations of the trained part for one clip."""
        return forward_flops(TrainedPart(self.net, self.train_choice))

    def noise(self, clips: int, device: torch.device | str | None = None) -> Tensor:
        return torch.randn(clips, *feature_shape(self.net, self.train_choice), device=device or self.device)

    def training_input(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Returns the features and the targets of a batch."""
        return batch["features"], batch["label"]

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(features)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits [B, K] of features; those of several heads are concatenated."""
        return trained_logits(self.net, self.train_choice, features)

    def view_logits(self, batch: ClipBatch) -> Tensor:
        features = batch["features"]
        return self.logits(features.flatten(0, 1)).unflatten(0, features.shape[:2]).float()

    def setup(self, stage: str) -> None:
        """Gives the data module the stored features, and computes those that are missing."""
        if stage == "fit":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, VideoDataModule)
            data.use_features(*self.stored(data))

    def stored(self, data: VideoDataModule) -> tuple[StoredTrainDataset, StoredEvalDataset]:
        """Returns the data sets of the stored features of the training and the validation clips."""
        temporal = self.net.temporal_encoder if self.train_choice == "head" else None
        about = {
            "features": f"of train={self.train_choice}",
            "model": self.metadata.get("config", {}).get("model"),  # It has options that no weight shows.
            **describe_model(
                self, self.net.embedding, self.net.encoder, temporal, precision=str(self.trainer.precision)
            ),
            "frames": preprocessing(data),
        }
        store = FeatureStore(store_folder(str(data.name)), about)
        train, val = data.splits.train, data.manifest_of("val")
        views = self.views_of(store, data, "train", [f"{augmentation(data)} {v}" for v in range(self.cache_views)])
        if not (views.places >= 0).all(0).any() or data.bad_videos.is_over_budget(len(train)):
            distributed.abort_all_ranks(data.bad_videos.error(len(train)))
        of_val = self.views_of(store, data, "val", [str(VIEW)])
        return StoredTrainDataset(train, views, data.mirrored, data.seed), StoredEvalDataset(val, of_val)

    def views_of(
        self, store: FeatureStore, data: VideoDataModule, split: str, views: Sequence[str]
    ) -> StoredViews:
        """Returns what is stored of views of the clips of a split; what is missing is computed."""
        clips = [clip for view in views for clip in stored_clips(data.manifest_of(split), view)]
        todo = store.missing(clips)
        mine = todo[self.global_rank :: self.trainer.world_size]
        batches = self.computed(data, split, mine, clips)
        store_in_shards(store, batches, len(mine), f"features of {split}")
        data.bad_videos.share()  # All ranks have stored their part when this returns.
        store.read()
        kept = [i for i, clip in enumerate(clips) if store.has(clip)]
        place_N = np.full(len(clips), -1)
        place_N[kept] = range(len(kept))
        tensors = store.load([clips[i] for i in kept])
        if not tensors:
            tensors = {"features": torch.zeros(1, *feature_shape(self.net, self.train_choice))}
        if self.trainer.is_global_zero:
            size = sum(x.nbytes for x in tensors.values()) / 1e6
            log.info(
                f"features of {split}: {plural(len(clips) // len(views), 'clip')} x {plural(len(views), 'view')}, "
                f"{len(clips) - len(todo):,} of {len(clips):,} were stored; {size:.3g} MB in {store.folder}"
            )
        return StoredViews(tensors, place_N.reshape(len(views), -1))

    def computed(
        self, data: VideoDataModule, split: str, todo: Sequence[int], clips: Sequence[StoredClip]
    ) -> Iterator[tuple[list[StoredClip], dict[str, Tensor], int]]:
        """Yields the clips of batches, their features and the number of clips that cannot be read.

        Args:
            data: The data module.
            split: "train" or "val".
            todo: The positions of the clips of the batches.
            clips: The clips of the split, view by view.
        """
        self.to(self.trainer.strategy.root_device)
        n = len(data.manifest_of(split))
        for rows, batch in pixels(data, split, [divmod(i, n) for i in todo]):
            data.bad_videos.add(split, batch.pop("errors"))
            read = ~batch["failed"]
            found: dict[str, Tensor] = {}
            if read.any():
                video = batch["video"] if split == "train" else batch["video"][:, 0]
                found["features"] = self.frozen(video[read])
                found |= {name: batch[name][read] for name in OF_CLIP if name in batch}  # type: ignore[literal-required]
            kept = [clips[view * n + row] for (view, row), whole in zip(rows, read, strict=True) if whole]
            yield kept, found, int((~read).sum())
            if self.trainer.received_sigterm:
                text = "the features so far are stored, and the same command goes on with them"
                raise StoppedError(signal.SIGTERM, f"stopped by SIGTERM: {text}")

    @torch.inference_mode()
    def frozen(self, video_BTCHW: Tensor) -> Tensor:
        """Returns the output of the frozen part of the model for uint8 clips, in float32 on the CPU."""
        was_training = self.net.training
        self.net.eval()
        with self.trainer.precision_plugin.forward_context():
            video_BCTHW = self.normalise(video_BTCHW.to(self.device)).transpose(1, 2)
            features = frozen_features(self.net, self.train_choice, video_BCTHW)
        self.net.train(was_training)
        return features.float().cpu()


def augmentation(data: VideoDataModule) -> str:
    """Returns a digest of the settings that decide how the views of training clips differ."""
    return hashlib.sha256(json.dumps(data.transform.settings, sort_keys=True).encode()).hexdigest()[:12]


def view_dataset(data: VideoDataModule) -> ViewDataset:
    """Returns the data set of the views of the training clips."""
    sizes: Any = {"short_side": data.short_side, "video_reader": data.video_reader, "seed": data.seed}
    return ViewDataset(data.splits.train, data.transform, data.sampling, **sizes)


def pixels(
    data: VideoDataModule, split: str, views: Sequence[tuple[int, int]]
) -> Iterable[tuple[list[tuple[int, int]], ClipBatch]]:
    """Yields batches of clips with the view and the row of each; evaluation clips have one view."""
    size = data.micro_batch_size
    chunks = [list(views[i : i + size]) for i in range(0, len(views), size)]
    keys: list[list[Any]] = [[(v, 0, row) if split == "train" else row for v, row in chunk] for chunk in chunks]
    clips = view_dataset(data) if split == "train" else data.evaluation_dataset(split, VIEW)
    return zip(chunks, data.loader(clips, batch_sampler=keys), strict=True) if chunks else ()
