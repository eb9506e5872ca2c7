"""The PyTorch data sets that turn rows of the clip table into tensors, for training and for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from vivit_train.data.annotations.table import ClipTable, Target
from vivit_train.data.sampler import Key
from vivit_train.data.sampling import PAD_INDEX, Indices, Sampling
from vivit_train.data.transforms import ClipParams, ResizeMode, TrainTransform, crop_views, seeded, union_box
from vivit_train.data.video import urls
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.frame_buffer import BBox, CropFn
from vivit_train.data.video.index import Timeline
from vivit_train.data.video.resize import Resize
from vivit_train.data.video.scan import timeline
from vivit_train.data.watchdog import WorkerStatus, deadline
from vivit_train.utils.errors import VideoError

MAX_REPLACEMENTS = 20  # A training sample gives up after this many consecutive unreadable videos.
BadRow = tuple[int, str, str]  # the row, the path, and the reason why the video cannot be read


class Sample(TypedDict, total=False):
    """What a data set returns for a row; `collate` makes a `ClipBatch` of several samples.

    Attributes:
        video: A training clip, uint8 [T, C, crop, crop], or [T, C, H, W] before the remaining augmentation; in an
            evaluation all views of a video, uint8 [V, T, C, crop, crop].
        features: In place of the video, the stored features of a training clip, [...], or of all views, [V, ...].
        label: The target; see `ClipTable.target`.
        index: The row in the clip table.
        frame_numbers: Training only. The numbers of the clip's frames, int64 [T]; `PAD_INDEX` is a black frame.
        times_s: Training only. The times of the clip's frames in seconds, float64 [T]; NaN for a black frame.
        box: Training only. The crop box and the flip: top, left, height, width, flipped, int64 [5].
        params: Training only, if the device finishes the augmentation. The transform params that it needs.
        failed: Evaluation only. Whether the video cannot be read, so that its views are black.
        errors: The unreadable videos that were met. A training sample that has given up has no other key.
    """

    video: Tensor
    features: Tensor
    label: Tensor
    index: int
    frame_numbers: Tensor
    times_s: Tensor
    box: Tensor
    params: ClipParams
    failed: bool
    errors: list[BadRow]


class ClipBatch(TypedDict, total=False):
    """A batch of B clips or videos, the contract between the data loaders and `VideoClassifier`.

    Between a loader and `VideoDataModule`, a batch also has "errors" and maybe "params". The hooks of the data
    module remove both, so a training or evaluation step never sees them.

    Attributes:
        video: Training clips, uint8 [B, T, C, crop, crop], or all views of each video, uint8
            [B, V, T, C, crop, crop]. If there are "params", the clips' boxes one after the other, uint8 [pixels].
        label: Class ids, int64 [B, heads], or the targets of multi-label data, bool [B, classes].
        index: The rows in the clip table, int64 [B].
        frame_numbers: Training only. The numbers of the clips' frames, int64 [B, T]; `PAD_INDEX` is a black frame.
        times_s: Training only. The times of the clips' frames in seconds, float64 [B, T]; NaN for a black frame.
        box, failed: Training, int64 [B, 5], and evaluation, bool [B], only; see `Sample`.
        params: The shape of each clip's box, and the transform params that the device needs to finish it.
        errors: The unreadable videos that were met. If a sample has given up, the batch has no other key.
    """

    video: Tensor
    features: Tensor
    label: Tensor
    index: Tensor
    frame_numbers: Tensor
    times_s: Tensor
    box: Tensor
    failed: Tensor
    params: list[tuple[torch.Size, ClipParams]]
    errors: list[BadRow]


@dataclass(frozen=True)
class EvalProtocol:
    """What a test evaluates, and how.

    Attributes:
        split: "train", "val" or "test"; None means test or, if the data has no test split, val.
        views: The number of temporal clips and the number of spatial crops per clip.
        order: The order of the frames in a clip: "forward", "reversed" or "shuffled". The last two measure how
            much a model uses time.
    """

    split: Literal["train", "val", "test"] | None = None
    views: tuple[int, int] = (1, 1)
    order: Literal["forward", "reversed", "shuffled"] = "forward"

    def __str__(self) -> str:
        """Returns the views, such as "4x3", and the order unless it is forward."""
        clips, crops = self.views
        return f"{clips}x{crops}" if self.order == "forward" else f"{clips}x{crops} {self.order}"


@dataclass(frozen=True)
class VideoReader:
    """Reads frames with a given decoder and, in a loader process, under a time limit.

    Attributes:
        decoder: The name of the decoder; see `read_frames`.
        timeout_s: The time limit for reading one video, in seconds. A loader process that exceeds it exits.
        status: The shared record of the video that the loader process is reading. It is None in the main process,
            which has no time limit.
        index_db: The database of stored scans; see `timeline`.
        allow_private_urls: See `VideoDataModule`.
        square_pixels, resize: See `read_frames`.
        refused: Videos that are not read again, by path with the reason, because they have ended a loader process.
    """

    decoder: str = "auto"
    timeout_s: float = 0
    status: WorkerStatus | None = None
    index_db: Path | None = None
    allow_private_urls: bool = False
    square_pixels: bool = True
    resize: Resize = "fast"
    refused: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def watchdog(self, path: str) -> Iterator[None]:
        """Reports `path` as the video being read and enforces the time limit inside this context."""
        if path in self.refused:
            raise VideoError(path, self.refused[path])
        with urls.private_urls(self.allow_private_urls), ExitStack() as stack:
            if self.status is not None:
                stack.enter_context(self.status.on(path))
                stack.enter_context(deadline(self.timeout_s))
            yield

    def frames(
        self, path: str, clips: Indices, short_side: int, cut: CropFn | None = None
    ) -> tuple[Tensor, Indices]:
        """Decodes each distinct frame of the clips once.

        Args:
            path: The path of the video.
            clips: The frame numbers of each clip, int64 [clips, frames]; `PAD_INDEX` is a black frame.
            short_side: The largest length of the short side, in pixels.
            cut: A function that chooses the crop box of the frames; None keeps the whole frames.

        Returns:
            The distinct frames, uint8 [T, C, H, W], and the places of the clips' frames, int64 [clips, frames].
        """
        needed, places = np.unique(clips, return_inverse=True)
        shown = needed[needed != PAD_INDEX]
        read = partial(read_frames, decoder=self.decoder, square_pixels=self.square_pixels, resize=self.resize)
        frames_THWC = read(path, shown, short_side=short_side, cut=cut)
        if len(shown) < len(needed):  # PAD_INDEX is the smallest number, so the black frame is the first one
            frames_THWC = np.concatenate([np.zeros_like(frames_THWC[:1]), frames_THWC])
        return to_torch(frames_THWC), places.reshape(clips.shape)


class TrainDataset(Dataset[Sample]):
    """A data set of augmented training clips, which depend only on (seed, key) and not on the worker.

    A video that cannot be read is replaced by a random one and reported in "errors" as (row, path, reason). After
    MAX_REPLACEMENTS unreadable videos, the sample contains nothing but "errors".

    Args:
        manifest: The table of training clips.
        transform: The augmentation of each clip.
        sampling: The way clips are sampled from a video.
        finish: Whether the worker does the whole augmentation. Otherwise, the worker only crops, and "params"
            holds the transform params of the remaining steps.
        mirrored: The class of a flipped clip for each class id, [classes] per head; None keeps the labels.
        clips_per_video: The number of clips per decoded video, each with its own random draws.
        short_side: The largest length of the decoded frames' short side, in pixels.
        video_reader: The reader that decodes the frames.
        seed: The seed of all random draws.
    """

    def __init__(
        self,
        manifest: ClipTable,
        transform: TrainTransform,
        sampling: Sampling,
        *,
        finish: bool = True,
        mirrored: list[NDArray[np.int64]] | None = None,
        clips_per_video: int = 1,
        short_side: int,
        video_reader: VideoReader | None = None,
        seed: int,
    ) -> None:
        self.manifest, self.transform, self.finish, self.mirrored = manifest, transform, finish, mirrored
        self.sampling, self.clips_per_video = sampling, clips_per_video
        self.short_side, self.video_reader, self.seed = short_side, video_reader or VideoReader(), seed

    def __getitem__(self, key: Key) -> Sample:
        return self.clips(key)[0]

    def __getitems__(self, keys: list[Key]) -> list[Sample]:
        """Returns the samples of a batch; the data loader calls this instead of `__getitem__`."""
        return [sample for key in keys for sample in self.clips(key)]

    def clips(self, key: Key) -> list[Sample]:
        """Returns the clips of a key, taking another video for each one that cannot be read."""
        epoch, repeat, row = key
        errors: list[BadRow] = []
        with seeded(self.seed, epoch, repeat, row):
            for _ in range(MAX_REPLACEMENTS):
                try:
                    first, *others = self.load(row)
                    first["errors"] = errors
                    return [first, *others]
                except VideoError as error:
                    errors.append((row, error.path, error.reason))
                    row = int(torch.randint(len(self.manifest), ()))
        return [{"errors": errors}]

    def load(self, row: int) -> list[Sample]:
        """Reads the video of a row and returns its clips."""
        path = str(self.manifest.paths[row])
        with self.video_reader.watchdog(path):
            times = timeline(path, self.video_reader.index_db)
            first, num_frames = frames_of(self.manifest, row, times)
            draws = [torch.rand(self.sampling.num_random).tolist() for _ in range(self.clips_per_video)]
            clips = in_video(first, np.stack([self.sampling.random(num_frames, times.fps, u) for u in draws]))
            all_params: list[ClipParams] = []

            # The size of the frames is known only when the first of them is decoded. Decoding a frame beforehand,
            # just for its size, would make reading new files 1 % to 4 % slower.
            def cut(height: int, width: int) -> BBox:
                all_params.extend(self.transform.draw(height, width) for _ in clips)
                return union_box(all_params)

            video_TCHW, places = self.video_reader.frames(path, clips, self.short_side, cut)
        top, left, *_ = union_box(all_params)
        return [
            self.augmented(row, params, params.cut(video_TCHW, top, left), place, indices, times)
            for params, place, indices in zip(all_params, places, clips, strict=True)
        ]

    def augmented(
        self, row: int, params: ClipParams, box_TCHW: Tensor, place: Indices, indices: Indices, times: Timeline
    ) -> Sample:
        """Returns the sample of one clip from the frames of its video, cropped to the clip's box."""
        if not np.array_equal(place, np.arange(len(box_TCHW))):  # avoids a copy if the order is the same
            box_TCHW = box_TCHW[place]
        label = self.manifest.target(row)
        if params.flipped and self.mirrored is not None:
            label = mirror(label, self.mirrored)
        sample: Sample = {
            "video": self.transform.finish(box_TCHW, params) if self.finish else box_TCHW,
            "label": torch.from_numpy(label),
            "index": row,
            "frame_numbers": torch.from_numpy(indices),
            "times_s": torch.from_numpy(np.where(indices == PAD_INDEX, np.nan, times.times_s[indices])),
            "box": torch.tensor(params[:5], dtype=torch.int64),
            "errors": [],
        }
        if not self.finish:
            sample["params"] = params
        return sample


def mirror(label: Target, mirrored: list[NDArray[np.int64]]) -> Target:
    """Returns the target of a flipped clip; see `TrainDataset` for `mirrored`."""
    if label.dtype == np.bool:  # A multi-label target swaps the entries of the left class and the right class.
        return label[mirrored[0]]
    return np.array([ids[i] for ids, i in zip(mirrored, label, strict=True)])


class EvalDataset(Dataset[Sample]):
    """A data set of videos with all their views, uint8 [V, T, C, H, W].

    Each video is decoded once. A video that cannot be read gives zeros and the reason.

    Args:
        manifest: The table of clips.
        sampling: The way clips are sampled from a video.
        short_side: The length of the resized short side, in pixels.
        crop: The side of the square crops, in pixels.
        resize_mode: See `TrainTransform`.
        views, order: See `EvalProtocol`.
        video_reader: The reader that decodes the frames.
        seed: The seed of the shuffled order.
    """

    __test__ = False  # keeps pytest from collecting the class

    def __init__(
        self,
        manifest: ClipTable,
        sampling: Sampling,
        *,
        short_side: int,
        crop: int,
        resize_mode: ResizeMode = "keep_ratio",
        views: tuple[int, int] = (1, 1),
        order: str = "forward",
        video_reader: VideoReader | None = None,
        seed: int = 0,
    ) -> None:
        self.manifest, self.views, self.order, self.seed = manifest, views, order, seed
        self.video_reader = video_reader or VideoReader()
        self.sampling, self.short_side, self.crop, self.resize_mode = sampling, short_side, crop, resize_mode

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Sample:
        path, error = str(self.manifest.paths[row]), None
        try:
            video = self.load(path, row)
        except VideoError as failure:
            shape = (self.views[0] * self.views[1], self.sampling.frames, 3, self.crop, self.crop)
            video, error = torch.zeros(shape, dtype=torch.uint8), failure
        return {
            "video": video,
            "label": torch.from_numpy(self.manifest.target(row)),
            "index": row,
            "failed": error is not None,
            "errors": [] if error is None else [(row, error.path, error.reason)],
        }

    def load(self, path: str, row: int) -> Tensor:
        """Reads a video and returns its views, uint8 [V, T, C, crop, crop]."""
        with self.video_reader.watchdog(path):
            times = timeline(path, self.video_reader.index_db)
            first, num_frames = frames_of(self.manifest, row, times)
            clips = self.sampling.uniform(num_frames, times.fps, self.views[0])
            clips = self.reorder(in_video(first, clips), row)
            decoded_TCHW, places = self.video_reader.frames(path, clips, self.short_side)
        how = self.resize_mode, self.views[1], self.video_reader.resize
        crops = crop_views(decoded_TCHW, self.crop, self.short_side, *how)
        return torch.stack([crop[place] for place in places for crop in crops])

    def reorder(self, clips: Indices, row: int) -> Indices:
        """Returns the frame numbers of the clips in the order that `order` asks for."""
        if self.order == "reversed":
            return clips[:, ::-1]
        if self.order == "shuffled":
            return np.random.default_rng((self.seed, row)).permuted(clips, axis=1)
        return clips


def frames_of(manifest: ClipTable, row: int, times: Timeline) -> tuple[int, int]:
    """Returns the number of a clip's first frame within its video, and the number of frames in the clip.

    Raises:
        VideoError: The video shows no frame in the clip.
    """
    if manifest.spans_s is None:
        return 0, times.num_frames
    start_s, end_s = manifest.spans_s[row]
    first, end = np.searchsorted(times.times_s, (start_s, end_s)).tolist()
    if first == end:
        last_s = times.times_s[-1]
        reason = f"shows no frame from {start_s:.2f} s to {end_s:.2f} s; its last one is at {last_s:.2f} s"
        raise VideoError(str(manifest.paths[row]), reason)
    return first, end - first


def in_video(first: int, clips: Indices) -> Indices:
    """Returns frame numbers of the whole video from those that count from frame `first`."""
    return np.where(clips == PAD_INDEX, PAD_INDEX, first + clips)


def to_torch(frames_THWC: NDArray[np.uint8]) -> Tensor:
    """Returns the frames as a tensor [T, C, H, W]."""
    return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)


def collate(samples: list[Sample]) -> ClipBatch:
    """Collates samples into a batch; if a sample gave up, only "errors", which the main process reports.

    Crops for the device differ in size, so they are flattened and concatenated: one transfer moves them all.
    """
    batch: ClipBatch = {"errors": [error for sample in samples for error in sample.pop("errors")]}
    if not all(samples):
        return batch
    if "params" in samples[0]:
        boxes = [sample.pop("video") for sample in samples]
        batch["params"] = [(box.shape, sample.pop("params")) for box, sample in zip(boxes, samples, strict=True)]
        row = torch.cat([box.flatten() for box in boxes])
        # The tensor moves to shared memory here, as in `default_collate`. If shared memory is full, the error is
        # raised here; the queue would drop the batch silently.
        batch["video"] = row.share_memory_() if get_worker_info() else row
    batch.update(default_collate(samples))
    return batch
