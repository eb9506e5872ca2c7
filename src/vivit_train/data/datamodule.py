"""Defines the Lightning data module, which turns the annotations of a data set into batches."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from multiprocessing.sharedctypes import RawArray
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vivit_train.data.annotations.table import ClipTable, Splits
from vivit_train.data.bad_videos import BadVideoLog
from vivit_train.data.dataset import ClipBatch, EvalDataset, EvalProtocol, TrainDataset, VideoReader, collate
from vivit_train.data.digest import digest
from vivit_train.data.sampler import GlobalBatchSampler, check_split, steps_per_epoch
from vivit_train.data.sampling import Sampling
from vivit_train.data.stored_clips import StoredEvalDataset, StoredTrainDataset
from vivit_train.data.transforms import RandAugmentKind, ResizeMode, TrainTransform, mirrored_classes
from vivit_train.data.video import index, urls
from vivit_train.data.video.decode import import_decoder
from vivit_train.data.video.resize import Resize
from vivit_train.data.watchdog import WorkerStatus, end_workers, explain, start_worker
from vivit_train.data.windows import WindowDataset, Windows
from vivit_train.utils.errors import UserError
from vivit_train.utils.process_pool import usable_cores
from vivit_train.utils.text import printable

AnyDataset = TrainDataset | EvalDataset | WindowDataset | StoredTrainDataset | StoredEvalDataset


class VideoDataModule(L.LightningDataModule):
    """A data module that reads the annotations, builds the data loaders and augments clips on the device.

    Args:
        name: The name of the data set, for messages.
        root: The folder of the videos, or the folder of the doctor's clean lists and stored scans.
        train, val, test: The annotation files or folders, as `reader` interprets them.
        reader: A function (root, train, val, test) -> Splits.
        frames, stride, fps, sampling, padding: See `Sampling`.
        clips_per_video: The number of clips per decoded video (repeated augmentation), which lengthens an epoch.
        balance: "class" draws training videos with replacement so that all classes are equally frequent; "sqrt"
            draws each class in proportion to the square root of its size. A class is one combination of the
            labels of all heads. A multi-label video counts as its rarest class.
        limit_per_class: The number of training videos per class; multi-label data may exceed it.
        short_side, crop: The video's short side is resized to `short_side` pixels; the model sees `crop` x `crop`.
        resize_mode, scale_jitter, flip, color_jitter, strong_color: See `TrainTransform`.
        randaugment, randaugment_kind, random_erasing: See `TrainTransform`.
        resize: How frames and crops are resized; see `read_frames` and `resize_clip`.
        mirror_labels: Whether flipping a clip exchanges "left" and "right" in its class.
        augment_on: Where clips are augmented, with the same random draws: in the loader's workers ("worker") or
            after the transfer ("device"). "auto" means the device if it is a GPU.
        global_batch_size: The number of clips per optimizer step, over all devices.
        micro_batch_size: The number of clips that one device processes at once; see `split_batch`.
        num_workers: The number of loader processes per device; "auto" divides the CPU cores among the devices.
        decoder, square_pixels: See `read_frames`.
        timeout_s: The time limit for reading one video, in seconds. Training stops and names a video that hangs.
        allow_private_urls: Whether http and https URLs may resolve to this machine and to local networks.
        changed: What a resumed run does if the clips differ from its checkpoint's: "stop" or "accept".
        max_bad_fraction: The share of the training videos that may be unreadable before training stops.
        bad_videos_file: The CSV file that lists unreadable videos.
        seed: The seed of all random draws.
        protocol: The split, views and order of frames of `test_dataloader`.
        splits: The annotations, if they are already read; None reads them by `reader`.
    """

    stored: tuple[StoredTrainDataset, StoredEvalDataset] | None = None  # See `use_features`.

    def __init__(
        self,
        name: str,
        root: str,
        reader: Callable[..., Splits],
        *,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        frames: int = 32,
        stride: int = 2,
        fps: float | None = None,
        sampling: Literal["window", "segments"] = "window",
        padding: Literal["wrap", "repeat_last", "black"] = "wrap",
        clips_per_video: int = 1,
        balance: Literal["sqrt", "class"] | None = None,
        limit_per_class: int | None = None,
        short_side: int = 256,
        crop: int = 224,
        resize_mode: ResizeMode = "keep_ratio",
        resize: Resize = "fast",
        scale_jitter: tuple[float, float] | None = (0.9, 1.33),
        flip: float = 0.5,
        color_jitter: float = 0.8,
        strong_color: bool = False,
        randaugment: tuple[int, int] | None = None,
        randaugment_kind: RandAugmentKind = "authors",
        random_erasing: float = 0.0,
        mirror_labels: bool = False,
        global_batch_size: int = 64,
        augment_on: Literal["auto", "worker", "device"] = "auto",
        micro_batch_size: int = 8,
        num_workers: int | Literal["auto"] = "auto",
        decoder: str = "auto",
        square_pixels: bool = True,
        timeout_s: float = 120,
        allow_private_urls: bool = False,
        changed: Literal["stop", "accept"] = "stop",
        max_bad_fraction: float = 0.05,
        bad_videos_file: str | Path = "bad_videos.csv",
        seed: int = 0,
        protocol: EvalProtocol | None = None,
        splits: Splits | None = None,
    ) -> None:
        super().__init__()
        self.name, self.root, self.reader, self.protocol = name, root, reader, protocol or EvalProtocol()
        self.annotations, self.given_splits = {"train": train, "val": val, "test": test}, splits
        self.sampling = Sampling(frames, stride, fps, sampling, padding)
        self.clips_per_video, self.balance, self.limit_per_class = clips_per_video, balance, limit_per_class
        self.short_side, self.crop, self.resize_mode = short_side, crop, resize_mode
        chances = (flip, color_jitter, randaugment, random_erasing, strong_color, randaugment_kind, resize)
        self.transform = TrainTransform(crop, short_side, resize_mode, scale_jitter, *chances)
        self.mirror_labels, self.augment_on, self.changed, self.seed = mirror_labels, augment_on, changed, seed
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.num_workers, self.timeout_s = num_workers, timeout_s
        index_db, shown = index.find(Path(root).expanduser()), (square_pixels, resize)
        self.video_reader = VideoReader(decoder, timeout_s, None, index_db, allow_private_urls, *shown)
        self.bad_videos = BadVideoLog(Path(bad_videos_file), max_bad_fraction)
        self.statuses: list[WorkerStatus] = []
        self.first, self.schedule_offset = (0, 0), 0  # The position of a resumed run; see load_state_dict.

    @cached_property
    def splits(self) -> Splits:
        """The annotations, which are read on first use unless they are given."""
        if self.given_splits is not None:
            return self.given_splits
        with urls.private_urls(self.video_reader.allow_private_urls):
            splits = self.reader(self.root, **self.annotations)
        if (db := self.video_reader.index_db) and (why := index.why_unused(db)):
            notice = f"{db} is ignored ({why}), so videos are scanned; vivit doctor rebuilds it"
            splits = replace(splits, notices=(*splits.notices, notice))
        if self.limit_per_class is None:
            return splits
        order = np.random.default_rng(self.seed).permutation(len(splits.train))
        taken: Counter[tuple[int, ...]] = Counter()
        rows = []
        for row in order.tolist():
            groups = splits.train.balance_groups(row)
            if min(taken[group] for group in groups) < self.limit_per_class:
                taken.update(groups)
                rows.append(row)
        notice = f"train is limited to {self.limit_per_class} clips per class: {len(rows)} of {len(order)}"
        train = splits.train.select(np.array(sorted(rows)))
        return replace(splits, train=train, notices=(*splits.notices, notice))

    @cached_property
    def digest(self) -> Tensor:
        """The digest of all clips, which tells a resumed run whether the data has changed."""
        return digest(self.splits)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.splits.train) * self.clips_per_video, self.global_batch_size)

    @property
    def mirrored(self) -> list[NDArray[np.int64]] | None:
        """The class of a flipped clip for each class id, [classes] per head; None if labels are not mirrored."""
        return [mirrored_classes(names) for names in self.splits.classes.values()] if self.mirror_labels else None

    def flip_notice(self) -> str | None:
        """Returns a warning if flips would teach the model to confuse left and right."""
        if not self.transform.flip or self.mirror_labels:
            return None
        for names in self.splits.classes.values():
            for i, other in enumerate(mirrored_classes(names).tolist()):
                if i != other:
                    advice = "set data.mirror_labels=true to swap their labels, or data.flip=0 to disable flipping"
                    return printable(f"flipped clips of '{names[i]}' look like '{names[other]}'; {advice}")
        return None

    def loader(
        self, dataset: AnyDataset, *, num_workers: int | None = None, **kwargs: Any
    ) -> DataLoader[ClipBatch]:
        """Returns a data loader whose workers report the video that they are reading.

        Args:
            dataset: The data set.
            num_workers: The number of loader processes; None uses the number of this data module.
            kwargs: Further arguments of `DataLoader`.
        """
        asked = self.num_workers if num_workers is None else num_workers
        asked = 0 if isinstance(dataset, StoredTrainDataset | StoredEvalDataset) else asked
        devices = self.trainer.num_devices if self.trainer else 1
        workers = asked if isinstance(asked, int) else max(1, usable_cores() // devices)
        import_decoder(self.video_reader.decoder, self.video_reader.resize)
        statuses = RawArray(WorkerStatus, workers)
        self.statuses += statuses
        Finalize(None, end_workers, (statuses,), exitpriority=0)  # before Python waits for its children
        clips: Dataset[Any] = dataset  # The data set yields samples, and the loader yields batches of them.
        return DataLoader(
            clips,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=partial(start_worker, statuses),
            pin_memory=torch.cuda.is_available(),
            **kwargs,
        )

    @contextmanager
    def translate_worker_errors(self) -> Iterator[None]:
        """Raises a `LoaderDiedError` that names the video if a loader process dies or hangs in this context."""
        try:
            yield
        except (RuntimeError, EOFError, OSError) as error:
            try:
                died = explain(error, self.statuses, self.timeout_s)
            except RuntimeError as news:  # torch's SIGCHLD handler raises this when a worker has died
                died = explain(news, self.statuses, self.timeout_s)
            if died:
                raise died from error
            raise

    @property
    def augments_on_device(self) -> bool:
        """Whether clips are augmented on the device, after the transfer."""
        if self.augment_on == "auto":
            return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return self.augment_on == "device"

    def use_features(self, train: StoredTrainDataset, val: StoredEvalDataset) -> None:
        """Makes training and validation read stored features instead of videos; the test still reads videos."""
        self.stored = train, val

    def train_dataset(self, manifest: ClipTable) -> TrainDataset:
        """Returns the data set of the training clips in a clip table, with the settings of this data module."""
        return TrainDataset(
            manifest,
            self.transform,
            self.sampling,
            finish=not self.augments_on_device,
            mirrored=self.mirrored,
            clips_per_video=self.clips_per_video,
            short_side=self.short_side,
            video_reader=self.video_reader,
            seed=self.seed,
        )

    def train_dataloader(self) -> DataLoader[ClipBatch]:
        if self.trainer:
            micro_batches = self.trainer.world_size * self.trainer.accumulate_grad_batches
            check_split(self.global_batch_size, self.micro_batch_size, micro_batches)
        batches = GlobalBatchSampler(
            len(self.splits.train),
            self.global_batch_size,
            self.micro_batch_size,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            self.seed,
            self.weights(),
            self.clips_per_video,
            self.first,
        )
        clips = self.train_dataset(self.splits.train) if self.stored is None else self.stored[0]
        return self.loader(clips, batch_sampler=batches)

    def weights(self) -> NDArray[np.float64] | None:
        """Returns the sampling weight of each training video, [n], from the size of its rarest class."""
        if self.balance is None:
            return None
        counts = self.splits.train.label_counts().astype(np.float64)
        return 1 / (counts if self.balance == "class" else np.sqrt(counts))

    def val_dataloader(self) -> DataLoader[ClipBatch]:
        return self.evaluation_loader("val", EvalProtocol(), None if self.stored is None else self.stored[1])

    def test_dataloader(self) -> DataLoader[ClipBatch]:
        return self.evaluation_loader(self.test_split, self.protocol)

    @property
    def test_split(self) -> str:
        """The split that `test_dataloader` evaluates."""
        return self.protocol.split or ("val" if self.splits.test is None else "test")

    @property
    def chosen_on_test_clips(self) -> bool:
        """Whether `test_dataloader` evaluates clips that chose the checkpoint; false for other data."""
        is_training_data = len(self.splits.train) > 0
        return is_training_data and (self.test_split == "val" or self.splits.val_is_test)

    def manifest_of(self, split: str) -> ClipTable:
        """Returns the clips of a split; raises a UserError if the split does not exist."""
        manifest = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]
        if manifest is None:
            raise UserError(f"data '{self.name}' has no {split} split")
        return manifest

    def evaluation_dataset(self, split: str, protocol: EvalProtocol) -> EvalDataset:
        """Returns the videos of a split with the views and the order of the protocol."""
        return EvalDataset(
            self.manifest_of(split),
            self.sampling,
            short_side=self.short_side,
            crop=self.crop,
            resize_mode=self.resize_mode,
            views=protocol.views,
            order=protocol.order,
            video_reader=self.video_reader,
            seed=self.seed,
        )

    def evaluation_loader(
        self, split: str, protocol: EvalProtocol, stored: StoredEvalDataset | None = None
    ) -> DataLoader[ClipBatch]:
        """Returns a data loader of this rank's videos of a split, with the views and the order of the protocol."""
        videos = self.evaluation_dataset(split, protocol) if stored is None else stored
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        # Ranks may wait for each other, so all ranks get the same number of videos. Some ranks repeat the first
        # rows; the row number identifies the repeats.
        rows = range(rank, -(-len(videos) // world_size) * world_size, world_size)
        most = max(1, self.micro_batch_size // (protocol.views[0] * protocol.views[1]))
        # Batches have similar sizes, because a compiled model would recompile for a small last batch.
        batches = np.array_split(np.array(rows) % len(videos), -(-len(rows) // most))
        return self.loader(videos, batch_sampler=[batch.tolist() for batch in batches])

    def window_loader(self, path: str, windows: Windows) -> DataLoader[ClipBatch]:
        """Returns a data loader of the windows of one video, with the spatial crops of the protocol.

        One loader process reads the video in order.

        Args:
            path: The path of the video.
            windows: Its windows, from `place_windows`.
        """
        _, crops = self.protocol.views
        dataset = WindowDataset(
            path,
            windows,
            short_side=self.short_side,
            crop=self.crop,
            resize_mode=self.resize_mode,
            crops=crops,
            video_reader=self.video_reader,
        )
        return self.loader(dataset, num_workers=1, batch_size=max(1, self.micro_batch_size // crops))

    def state_dict(self) -> dict[str, Any]:
        """Returns the unreadable videos and the position in steps, which is the same for any number of devices."""
        assert self.trainer is not None
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        epoch, step = self.trainer.current_epoch, current.processed // self.trainer.accumulate_grad_batches
        done = current.processed == self.trainer.num_training_batches
        state = {"epoch": epoch + done, "step": 0 if done else step, "bad_videos": self.bad_videos.known["train"]}
        state |= {"steps_per_epoch": self.steps_per_epoch, "schedule_offset": self.schedule_offset}
        return state | ({"clips": self.digest} if self.trainer.is_global_zero else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from the checkpoint's position.

        If changed data gives epochs another length (data.changed=accept), training resumes at the same step of the
        same epoch, or at the last step of a shorter epoch. The learning rate resumes from that position in the new
        schedule. `schedule_offset` is the difference between the completed steps and that position.
        """
        epoch, step, now = state_dict["epoch"], state_dict["step"], self.steps_per_epoch
        before = state_dict.get("steps_per_epoch", now)
        place = step if before == now else min(step, now - 1)
        self.first = (epoch, place)
        self.schedule_offset = state_dict.get("schedule_offset", 0) + epoch * (before - now) + step - place
        bad_videos, clips = state_dict["bad_videos"], state_dict.get("clips", self.digest)
        if not torch.equal(clips, self.digest):  # a row number may belong to another clip now
            rows = {str(path): row for row, path in enumerate(self.splits.train.paths)}
            bad_videos = {rows[bad[0]]: bad for bad in bad_videos.values() if bad[0] in rows}
        self.bad_videos.known["train"] = bad_videos

    def on_before_batch_transfer(self, batch: ClipBatch, dataloader_idx: int) -> ClipBatch:
        """Moves the unreadable videos of the batch to `bad_videos`; the callback `BadVideoBudget` counts them."""
        training, testing = (self.trainer.training, self.trainer.testing) if self.trainer else (False, False)
        split = "train" if training else self.test_split if testing else "val"
        self.bad_videos.add(split, batch.pop("errors"))
        return batch

    def on_after_batch_transfer(self, batch: ClipBatch, dataloader_idx: int) -> ClipBatch:
        """Augments the clips on the device if the workers only cropped them."""
        if all_params := batch.pop("params", None):
            boxes = batch["video"].split([shape.numel() for shape, _ in all_params])
            pairs = zip(boxes, all_params, strict=True)
            clips = [self.transform.finish(box.view(shape), params) for box, (shape, params) in pairs]
            batch["video"] = torch.stack(clips)
        return batch
