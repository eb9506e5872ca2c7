"""From manifests to batches: what one training sample is, which samples make a step, and how bad videos count."""

import csv
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import Array
from dataclasses import dataclass, replace
from functools import cached_property, partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from vivit_train import processes
from vivit_train.children import usable_cores
from vivit_train.data import source, timelines
from vivit_train.data.augment import Look, TrainTransform, around, crop_views, mirrored_classes, seeded
from vivit_train.data.clip import BLACK, Indices, Sampling
from vivit_train.data.decode import Box, Cut, import_decoder, read_frames, timeline
from vivit_train.data.digest import digest
from vivit_train.data.manifest import Manifest, Splits, Target
from vivit_train.data.timelines import Timeline
from vivit_train.data.workers import Note, deadline, explain
from vivit_train.errors import UserError, VideoError
from vivit_train.names import csv_cell, printable

Sample = dict[str, Any]
Key = tuple[int, int, int]  # epoch, repeat within the epoch, row of the manifest
LAST_S = 20  # for which a loader process outlives a signal to end
MAX_REPLACEMENTS = 20  # bad videos in a row before a training sample gives up


@dataclass(frozen=True)
class Reading:
    """How videos are opened.

    Attributes:
        decoder: see `read_frames`.
        timeout_s: a loader process ends where reading a video takes longer.
        note: where a loader process notes what it has open; None in the main process, which is not to be ended.
        stored: see `timeline`.
        allow_private_urls: see `VideoDataModule`.
    """

    decoder: str = "auto"
    timeout_s: float = 0
    note: Note | None = None
    stored: Path | None = None
    allow_private_urls: bool = False

    @contextmanager
    def limit(self, path: str) -> Iterator[None]:
        """While the video is read."""
        with source.private_urls(self.allow_private_urls), ExitStack() as stack:
            if self.note is not None:
                stack.enter_context(self.note.on(path))
                stack.enter_context(deadline(self.timeout_s))
            yield

    def frames(self, path: str, clips: Indices, short_side: int, cut: Cut | None = None) -> tuple[Tensor, Indices]:
        """Each frame of the clips once, uint8 [T, C, H, W]; and which of these each clip's frames are."""
        needed, places = np.unique(clips, return_inverse=True)
        shown = needed[needed != BLACK]
        frames_THWC = read_frames(path, shown, short_side=short_side, decoder=self.decoder, cut=cut)
        if len(shown) < len(needed):  # the smallest number, so the first
            frames_THWC = np.concatenate([np.zeros_like(frames_THWC[:1]), frames_THWC])
        return to_torch(frames_THWC), places.reshape(clips.shape)


class TrainClips(Dataset[Sample]):
    """The augmented clips of a key, a function of (seed, key) alone, whichever worker makes them.

    A video that cannot be read is replaced by another, drawn at random, and named in "errors" as (row, path,
    reason); after MAX_REPLACEMENTS of them nothing but the errors comes back.

    Args:
        transform: of each clip.
        finish: do all of it here; else a clip is the box of it that was drawn, and "look" says what is left to do.
        mirrored: by head, what each class becomes in a flipped clip; None: what it was.
        clips_per_video: so many clips from one opening of a video, each with draws of its own.
        reading: see `Reading`.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: TrainTransform,
        sampling: Sampling,
        *,
        finish: bool = True,
        mirrored: list[NDArray[np.int64]] | None = None,
        clips_per_video: int = 1,
        short_side: int,
        reading: Reading | None = None,
        seed: int,
    ) -> None:
        self.manifest, self.transform, self.finish, self.mirrored = manifest, transform, finish, mirrored
        self.sampling, self.clips_per_video = sampling, clips_per_video
        self.short_side, self.reading, self.seed = short_side, reading or Reading(), seed

    def __getitem__(self, key: Key) -> Sample:
        return self.clips(key)[0]

    def __getitems__(self, keys: list[Key]) -> list[Sample]:
        """What the loader asks for a batch."""
        return [sample for key in keys for sample in self.clips(key)]

    def clips(self, key: Key) -> list[Sample]:
        epoch, repeat, row = key
        errors: list[tuple[int, str, str]] = []
        with seeded(self.seed, epoch, repeat, row):
            for _ in range(MAX_REPLACEMENTS):
                try:
                    first, *others = self.load(row)
                    return [first | {"errors": errors}, *(other | {"errors": []} for other in others)]
                except VideoError as error:
                    errors.append((row, error.path, error.reason))
                    row = int(torch.randint(len(self.manifest), ()))
        return [{"errors": errors}]

    def load(self, row: int) -> list[Sample]:
        path = str(self.manifest.paths[row])
        with self.reading.limit(path):
            times = timeline(path, self.reading.stored)
            first, num_frames = frames_of(self.manifest, row, times)
            draws = [torch.rand(self.sampling.draws).tolist() for _ in range(self.clips_per_video)]
            clips = np.stack([self.sampling.random(num_frames, times.fps, u) for u in draws])
            clips = in_video(first, clips)
            looks: list[Look] = []

            def cut(height: int, width: int) -> Box:
                looks.extend(self.transform.draw(height, width) for _ in clips)
                return around(looks)

            video_TCHW, places = self.reading.frames(path, clips, self.short_side, cut)
        top, left, *_ = around(looks)
        return [
            self.augmented(row, look, look.cut(video_TCHW, top, left), place, indices, times)
            for look, place, indices in zip(looks, places, clips, strict=True)
        ]

    def augmented(
        self, row: int, look: Look, box_TCHW: Tensor, place: Indices, indices: Indices, times: Timeline
    ) -> Sample:
        if not np.array_equal(place, np.arange(len(box_TCHW))):  # else a copy of what is there
            box_TCHW = box_TCHW[place]
        label = self.manifest.target(row)
        if look.flipped and self.mirrored is not None:
            label = mirror(label, self.mirrored)
        return {
            "video": self.transform.finish(box_TCHW, look) if self.finish else box_TCHW,
            "label": torch.from_numpy(label),
            "index": row,
            "frame_numbers": torch.from_numpy(indices),
            "times_s": torch.from_numpy(np.where(indices == BLACK, np.nan, times.times_s[indices])),
        } | ({} if self.finish else {"look": look})


def mirror(label: Target, mirrored: list[NDArray[np.int64]]) -> Target:
    """What a flipped clip's target is, see `TrainClips`."""
    if label.dtype == np.bool:  # the class on the right has what the one on the left had, and the reverse
        return label[mirrored[0]]
    return np.array([ids[i] for ids, i in zip(mirrored, label, strict=True)])


class TestVideos(Dataset[Sample]):
    """Every view of one video, [V, T, C, H, W], decoded once; or, where it cannot be read, zeros and the reason.

    Args:
        views: temporal clips x spatial crops.
        order: of the frames in a clip: "forward", "reversed" or "shuffled", to see what a model makes of time.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        manifest: Manifest,
        sampling: Sampling,
        *,
        short_side: int,
        crop: int,
        squash: bool = False,
        views: tuple[int, int] = (1, 1),
        order: str = "forward",
        reading: Reading | None = None,
        seed: int = 0,
    ) -> None:
        self.manifest, self.views, self.order, self.seed = manifest, views, order, seed
        self.reading = reading or Reading()
        self.sampling, self.short_side, self.crop, self.squash = sampling, short_side, crop, squash

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Sample:
        path, error = str(self.manifest.paths[row]), None
        try:
            video = self.load(path, row)
        except VideoError as failure:
            shape = (self.views[0] * self.views[1], self.sampling.frames, 3, self.crop, self.crop)
            video = torch.zeros(shape, dtype=torch.uint8)
            error = failure
        return {
            "video": video,
            "label": torch.from_numpy(self.manifest.target(row)),
            "index": row,
            "failed": error is not None,
            "errors": [] if error is None else [(row, error.path, error.reason)],
        }

    def load(self, path: str, row: int) -> Tensor:
        with self.reading.limit(path):
            times = timeline(path, self.reading.stored)
            first, num_frames = frames_of(self.manifest, row, times)
            clips = self.sampling.spread(num_frames, times.fps, self.views[0])
            clips = self.reorder(in_video(first, clips), row)
            decoded_TCHW, places = self.reading.frames(path, clips, self.short_side)
        crops = crop_views(decoded_TCHW, self.crop, self.short_side, self.squash, self.views[1])
        return torch.stack([crop[place] for place in places for crop in crops])

    def reorder(self, clips: Indices, row: int) -> Indices:
        if self.order == "reversed":
            return clips[:, ::-1]
        if self.order == "shuffled":
            return np.random.default_rng((self.seed, row)).permuted(clips, axis=1)
        return clips


def frames_of(manifest: Manifest, row: int, times: Timeline) -> tuple[int, int]:
    """The first frame of a manifest's clip within its video, and how many it has."""
    if manifest.spans_s is None:
        return 0, times.num_frames
    start_s, end_s = manifest.spans_s[row]
    first, end = np.searchsorted(times.times_s, (start_s, end_s)).tolist()
    if first == end:
        length_s = times.times_s[-1]
        reason = f"shows no frame from {start_s:.2f} s to {end_s:.2f} s; its last one is at {length_s:.2f} s"
        raise VideoError(str(manifest.paths[row]), reason)
    return first, end - first


def in_video(first: int, clips: Indices) -> Indices:
    """Frame numbers of the whole video, of those counted from frame `first`."""
    return np.where(clips == BLACK, BLACK, first + clips)


def to_torch(frames_THWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)


def collate(samples: list[Sample]) -> Sample:
    """A batch; without "video" where a sample gave up, so that the main process can say so in its own words.

    Boxes that differ in size come one behind the other in one row of pixels, so that one transfer takes them all.
    """
    batch: Sample = {"errors": [error for sample in samples for error in sample.pop("errors")]}
    if not all(samples):
        return batch
    if "look" in samples[0]:
        boxes = [sample.pop("video") for sample in samples]
        batch["looks"] = [(box.shape, sample.pop("look")) for box, sample in zip(boxes, samples, strict=True)]
        row = torch.cat([box.flatten() for box in boxes])
        # shared here, as `default_collate` does: a queue that finds no room later drops the batch without a word
        batch["video"] = row.share_memory_() if get_worker_info() else row
    return batch | default_collate(samples)


class TrainBatches(Sampler[list[Key]]):
    """One process's micro-batches of an epoch, a pure function of (seed, epoch).

    Each optimizer step takes the next `global_batch` clips of the epoch's order, whatever the number of
    processes: its micro-batches, in turn, go to rank 0, 1, .... An epoch has floor(clips / global_batch) steps; a
    set smaller than the global batch fills its one step by coming round again, with other draws.

    Args:
        first: the epoch and the step in it to start from, in a run that goes on from a checkpoint.
        weights: of each video, for an order drawn with replacement; None: each once, shuffled.
        clips_per_video: how many clips a key stands for.
    """

    def __init__(
        self,
        n: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        clips_per_video: int = 1,
        first: tuple[int, int] = (0, 0),
    ) -> None:
        self.n, self.rank, self.world_size, self.seed, self.weights = n, rank, world_size, seed, weights
        self.step_videos, self.micro_videos = global_batch // clips_per_video, micro_batch // clips_per_video
        self.steps = steps_per_epoch(n, self.step_videos)
        # Lightning sets the epoch after the workers of a resumed run have asked for their first batches
        self.first, self.epoch = first, first[0]

    @property
    def sampler(self) -> "TrainBatches":
        return self  # Lightning calls `set_epoch` of a batch sampler's `sampler`

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulation

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process in a step."""
        return self.step_videos // (self.micro_videos * self.world_size)

    def order(self) -> NDArray[np.int64]:
        """The videos of the epoch."""
        needed = self.steps * self.step_videos
        if self.weights is not None:
            share = self.weights / self.weights.sum()
            return np.random.default_rng((self.seed, self.epoch)).choice(self.n, needed, p=share)
        rounds = range(-(-needed // self.n))
        orders = [np.random.default_rng((self.seed, self.epoch, i)).permutation(self.n) for i in rounds]
        return np.concatenate(orders)[:needed]

    def __iter__(self) -> Iterator[list[Key]]:
        seen: Counter[int] = Counter()
        keys = []
        for row in self.order().tolist():
            keys.append((self.epoch, seen[row], row))  # a video that comes again has other draws
            seen[row] += 1
        done = self.first[1] * self.accumulation if self.epoch == self.first[0] else 0
        for micro in range(done, len(self)):
            start = (micro * self.world_size + self.rank) * self.micro_videos
            yield keys[start : start + self.micro_videos]


def steps_per_epoch(n: int, global_batch: int) -> int:
    return max(1, n // global_batch)


class VideoDataModule(L.LightningDataModule):
    """Reads the annotations, makes the loaders, and keeps count of bad videos.

    Args:
        name: of the data set, for messages.
        root: folder of the videos, or of the doctor's clean lists and what it has stored of their videos.
        train, val, test: annotation files or folders, as `reader` understands them.
        reader: (root, train, val, test) -> Splits.
        frames, stride, fps, sampling, short: see `Sampling` in clip.py.
        clips_per_video: clips from one opening of a video (repeated augmentation); an epoch has so many more.
        balance: training videos are drawn with replacement, each class as often as the others ("class"), or by
            the square root of its size ("sqrt"); a class is the labels of all heads together. A video of several
            classes is drawn as one of its rarest.
        limit_per_class: train on so many videos of each class; where a video may have several classes, a class
            that comes along with rarer ones gets more.
        short_side, crop: a video's short side is taken as `short_side` pixels; the model sees `crop` x `crop`.
        squash, scale_jitter, flip, color_jitter, strong_color, randaugment, random_erasing: see `TrainTransform`.
        mirror_labels: a flipped clip of a class that has "left" or "right" in its name is one of the other class.
        augment_on: where clips are resized, flipped and recoloured: in the loader's workers, on the device after
            the transfer, or ("auto") there if it is a GPU. The draws are the same.
        global_batch: clips per optimizer step of the whole job; micro_batch: the most one device takes at once.
        num_workers: loader processes per device; "auto": as many as there are processors for.
        decoder: see `read_frames`.
        timeout_s: a video that takes longer to read is taken to hang: training stops and names it.
        allow_private_urls: http and https URLs may lead to this machine and to local networks.
        changed: what a resumed run does where clips are no longer those of its checkpoint: "stop" or "accept".
        max_bad_fraction: share of the training videos that may be unreadable before training stops.
        bad_videos_file: where unreadable videos are listed.
    """

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
        short: Literal["loop", "edge", "pad"] = "loop",
        clips_per_video: int = 1,
        balance: Literal["sqrt", "class"] | None = None,
        limit_per_class: int | None = None,
        short_side: int = 256,
        crop: int = 224,
        squash: bool = False,
        scale_jitter: tuple[float, float] | None = None,
        flip: float = 0.5,
        color_jitter: float = 0.0,
        strong_color: bool = False,
        randaugment: tuple[int, int] | None = None,
        random_erasing: float = 0.0,
        mirror_labels: bool = False,
        global_batch: int = 64,
        augment_on: Literal["auto", "worker", "device"] = "auto",
        micro_batch: int = 8,
        num_workers: int | str = "auto",
        decoder: str = "auto",
        timeout_s: float = 120,
        allow_private_urls: bool = False,
        changed: Literal["stop", "accept"] = "stop",
        max_bad_fraction: float = 0.05,
        bad_videos_file: str | Path = "bad_videos.csv",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.root, self.reader = name, root, reader
        self.annotations = {"train": train, "val": val, "test": test}
        self.sampling = Sampling(frames, stride, fps, sampling, short)
        self.clips_per_video, self.balance, self.limit_per_class = clips_per_video, balance, limit_per_class
        self.short_side, self.crop, self.squash = short_side, crop, squash
        self.transform = TrainTransform(
            crop, short_side, squash, scale_jitter, flip, color_jitter, randaugment, random_erasing, strong_color
        )
        self.mirror_labels, self.augment_on = mirror_labels, augment_on
        self.global_batch, self.max_micro_batch, self.micro_batch = global_batch, micro_batch, micro_batch
        self.num_workers, self.timeout_s, self.seed = num_workers, timeout_s, seed
        self.max_bad_fraction, self.bad_videos_file = max_bad_fraction, Path(bad_videos_file)
        stored = Path(root).expanduser() / timelines.NAME
        self.reading = Reading(
            decoder,
            timeout_s,
            stored=stored if stored.is_file() else None,
            allow_private_urls=allow_private_urls,
        )
        self.notes: list[Note] = []
        self.bad_videos: dict[str, dict[int, tuple[str, str]]] = {"train": {}, "val": {}, "test": {}}
        self.new_bad_videos: dict[tuple[str, int], tuple[str, str]] = {}  # of which other processes do not know
        self.views, self.order, self.test_split = (1, 1), "forward", "test"
        self.first, self.changed = (0, 0), changed
        self.schedule_offset = 0  # optimizer steps made beyond the place in the schedule: see load_state_dict

    @cached_property
    def splits(self) -> Splits:
        """The annotations, read on first use."""
        with source.private_urls(self.reading.allow_private_urls):
            splits = self.reader(self.root, **self.annotations)
        if self.reading.stored and (why := timelines.why_unused(self.reading.stored)):
            notice = f"{self.reading.stored} is not used ({why}): videos are scanned; vivit doctor makes it anew"
            splits = replace(splits, notices=(*splits.notices, notice))
        if self.limit_per_class is None:
            return splits
        order = np.random.default_rng(self.seed).permutation(len(splits.train))
        taken: Counter[tuple[int, ...]] = Counter()
        rows = []
        for row in order.tolist():
            groups = splits.train.groups(row)
            if min(taken[group] for group in groups) < self.limit_per_class:
                taken.update(groups)
                rows.append(row)
        notice = f"train is limited to {self.limit_per_class} clips per class: {len(rows)} of {len(order)}"
        train = splits.train.take(np.array(sorted(rows)))
        return replace(splits, train=train, notices=(*splits.notices, notice))

    @cached_property
    def digest(self) -> Tensor:
        """Which clips there are, for a run that is resumed."""
        return digest(self.splits)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.splits.train) * self.clips_per_video, self.global_batch)

    def divide_batch(self, devices: int) -> int:
        """Chooses the micro-batch: the largest that divides the global batch evenly; returns the accumulation."""
        per_device, clips = self.global_batch // devices, self.clips_per_video
        if per_device % clips or clips > self.max_micro_batch:
            raise UserError(
                f"data.clips_per_video={clips} must divide the {per_device} clips of a step on each device "
                f"(recipe.global_batch) and not be larger than data.micro_batch={self.max_micro_batch}"
            )
        self.micro_batch = max(m for m in range(clips, self.max_micro_batch + 1, clips) if per_device % m == 0)
        return per_device // self.micro_batch

    @property
    def mirrored(self) -> list[NDArray[np.int64]] | None:
        """What each class becomes in a flipped clip, by head."""
        return [mirrored_classes(names) for names in self.splits.classes.values()] if self.mirror_labels else None

    def flip_notice(self) -> str | None:
        """A warning where flips would teach the model that left is right."""
        if not self.transform.flip or self.mirror_labels:
            return None
        for names in self.splits.classes.values():
            for i, other in enumerate(mirrored_classes(names).tolist()):
                if i != other:
                    advice = (
                        "data.mirror_labels=true exchanges the labels with the flip, data.flip=0 flips nothing"
                    )
                    return printable(f"flipped clips of '{names[i]}' look like '{names[other]}': {advice}")
        return None

    def loader(self, dataset: TrainClips | TestVideos, **kwargs: Any) -> DataLoader[Sample]:
        workers = self.num_workers
        if not isinstance(workers, int):
            devices = self.trainer.num_devices if self.trainer else 1
            workers = max(1, usable_cores() // devices)
        import_decoder(self.reading.decoder)
        notes = RawArray(Note, workers)
        self.notes += notes
        return DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=partial(start_worker, notes),
            pin_memory=torch.cuda.is_available(),
            **kwargs,
        )

    @contextmanager
    def explaining_lost_workers(self) -> Iterator[None]:
        """Says which video it was where a loader process dies, or hangs."""
        try:
            yield
        except (RuntimeError, EOFError, OSError) as error:
            try:
                message = explain(error, self.notes, self.timeout_s)
            except RuntimeError as news:  # torch's, from the handler of the signal that a process is gone
                message = explain(news, self.notes, self.timeout_s)
            if message:
                raise UserError(message) from error
            raise

    @property
    def augments_on_device(self) -> bool:
        if self.augment_on == "auto":
            return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return self.augment_on == "device"

    def train_dataloader(self) -> DataLoader[Sample]:
        manifest = self.splits.train
        batches = TrainBatches(
            len(manifest),
            self.global_batch,
            self.micro_batch,
            self.trainer.global_rank if self.trainer else 0,
            self.trainer.world_size if self.trainer else 1,
            self.seed,
            self.weights(),
            self.clips_per_video,
            self.first,
        )
        clips = TrainClips(
            manifest,
            self.transform,
            self.sampling,
            finish=not self.augments_on_device,
            mirrored=self.mirrored,
            clips_per_video=self.clips_per_video,
            short_side=self.short_side,
            reading=self.reading,
            seed=self.seed,
        )
        return self.loader(clips, batch_sampler=batches)

    def weights(self) -> NDArray[np.float64] | None:
        """How often each training video is drawn, by the size of its class, or of the rarest of them."""
        if self.balance is None:
            return None
        counts = self.splits.train.label_counts().astype(np.float64)
        return 1 / (counts if self.balance == "class" else np.sqrt(counts))

    def val_dataloader(self) -> DataLoader[Sample]:
        return self.evaluation_loader(self.splits.val, views=(1, 1), order="forward")

    def test_dataloader(self) -> DataLoader[Sample]:
        return self.evaluation_loader(self.manifest_of(self.test_split), self.views, self.order)

    def manifest_of(self, split: str) -> Manifest:
        manifest = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]
        if manifest is None:
            raise UserError(f"data '{self.name}' has no {split} split")
        return manifest

    def evaluation_loader(self, manifest: Manifest, views: tuple[int, int], order: str) -> DataLoader[Sample]:
        videos = TestVideos(
            manifest,
            self.sampling,
            short_side=self.short_side,
            crop=self.crop,
            squash=self.squash,
            views=views,
            order=order,
            reading=self.reading,
            seed=self.seed,
        )
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        # as many in each process, which may wait for each other: some read the first ones too, which are the same
        # rows of the table
        rows = range(rank, -(-len(videos) // world_size) * world_size, world_size)
        most = max(1, self.micro_batch // (views[0] * views[1]))
        # of about the same size: a last batch of one clip would be compiled anew, if the model is
        batches = np.array_split(np.array(rows) % len(videos), -(-len(rows) // most))
        return self.loader(videos, batch_sampler=[batch.tolist() for batch in batches])

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, in steps, which mean the same on any number of devices; and the bad videos."""
        assert self.trainer is not None
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        epoch, step = self.trainer.current_epoch, current.processed // self.trainer.accumulate_grad_batches
        done = current.processed == self.trainer.num_training_batches
        state = {
            "epoch": epoch + done,
            "step": 0 if done else step,
            "steps_per_epoch": self.steps_per_epoch,
            "schedule_offset": self.schedule_offset,
            "bad_videos": self.bad_videos["train"],
        }
        return state | ({"clips": self.digest} if self.trainer.is_global_zero else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a checkpoint's place in the epochs.

        Where other data makes epochs of another length (data.changed=accept), training goes on at the same step of
        the same epoch, or at the epoch's last. The learning rate goes on from that place in the new schedule, from
        which the count of steps differs by `schedule_offset`.
        """
        epoch, step, now = state_dict["epoch"], state_dict["step"], self.steps_per_epoch
        before = state_dict.get("steps_per_epoch", now)
        place = step if before == now else min(step, now - 1)
        self.first = (epoch, place)
        self.schedule_offset = state_dict.get("schedule_offset", 0) + epoch * (before - now) + step - place
        bad_videos, clips = state_dict["bad_videos"], state_dict.get("clips", self.digest)
        if not torch.equal(clips, self.digest):  # a row may be another clip's by now
            rows = {str(path): row for row, path in enumerate(self.splits.train.paths)}
            bad_videos = {rows[bad[0]]: bad for bad in bad_videos.values() if bad[0] in rows}
        self.bad_videos["train"] = bad_videos

    def on_before_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Takes the bad videos out of the batch and into the books; stops training that goes over its budget."""
        training = self.trainer is not None and self.trainer.training
        split = "train" if training else self.test_split if self.trainer and self.trainer.testing else "val"
        for row, path, reason in batch.pop("errors"):
            if row not in self.bad_videos[split]:
                self.new_bad_videos[split, row] = (path, reason)
        if self.new_bad_videos and processes.count() == 1:
            self.count_bad_videos()
        if training and "video" not in batch:
            raise self.too_many_bad_videos()
        return batch

    def count_bad_videos(self) -> None:
        """Enters the bad videos that any process has met since into the books of all. All call it together.

        Raises:
            UserError: training goes over its budget.
        """
        found = [bad for news in processes.gather(self.new_bad_videos) for bad in news.items()]
        self.new_bad_videos.clear()
        for (split, row), bad in found:
            self.bad_videos[split][row] = bad
        if processes.rank() == 0:
            for split in self.bad_videos:
                if reasons := dict(bad for (where, _), bad in found if where == split):
                    self.write_bad_videos(split, reasons)
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        trained = fitting and any(split == "train" for (split, _), _ in found)
        if trained and len(self.bad_videos["train"]) > self.max_bad_fraction * len(self.splits.train):
            processes.end_together(self.too_many_bad_videos())

    def too_many_bad_videos(self) -> UserError:
        known = self.bad_videos["train"] | {row: bad for (_, row), bad in self.new_bad_videos.items()}
        path, reason = next(iter(known.values()))
        return UserError(
            f"{len(known)} of {len(self.splits.train)} training videos cannot be read, and "
            f"data.max_bad_fraction is {self.max_bad_fraction:g}. The first: {printable(path)}: {reason}. "
            f"All of them so far: {self.bad_videos_file}"
        )

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Finishes the clips of which only boxes came."""
        if looks := batch.pop("looks", None):
            boxes = batch["video"].split([shape.numel() for shape, _ in looks])
            pairs = zip(boxes, looks, strict=True)
            clips = [self.transform.finish(box.view(shape), look) for box, (shape, look) in pairs]
            batch["video"] = torch.stack(clips)
        return batch

    def write_bad_videos(self, split: str, reasons: dict[str, str]) -> None:
        """Names each file once, though many clips may be of it.

        Args:
            reasons: by path.
        """
        with self.bad_videos_file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not self.listed:
                writer.writerow(["split", "path", "reason"])
            for path, reason in reasons.items():
                if (split, csv_cell(path)) not in self.listed:
                    writer.writerow([split, csv_cell(path), csv_cell(reason)])
        self.listed |= {(split, csv_cell(path)) for path in reasons}

    @cached_property
    def listed(self) -> set[tuple[str, ...]]:
        """Split and path, as written, of what `bad_videos_file` names, from before a run was resumed too."""
        if not self.bad_videos_file.exists():
            return set()
        with self.bad_videos_file.open(newline="", encoding="utf-8") as file:
            return {tuple(row[:2]) for row in csv.reader(file)}


def start_worker(notes: Array[Note], worker: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # killed meanwhile: torch would take init for the parent
        os._exit(1)
    torch.set_num_threads(1)  # the workers are the parallelism
    # a terminal or a scheduler signals every process of a run: the main one is to finish its step first
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_S))
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr] # this process's own
    dataset.reading = replace(dataset.reading, note=notes[worker])
