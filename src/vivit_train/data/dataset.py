"""Training and evaluation clips, from a row of the table to a tensor."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from vivit_train.data.annotations.table import ClipTable, Target
from vivit_train.data.sampler import Key
from vivit_train.data.sampling import PAD_INDEX, Indices, Sampling
from vivit_train.data.transforms import ClipParams, TrainTransform, crop_views, seeded, union_box
from vivit_train.data.video import urls
from vivit_train.data.video.decode import BBox, CropFn, read_frames
from vivit_train.data.video.index import Timeline
from vivit_train.data.video.scan import timeline
from vivit_train.data.watchdog import WorkerStatus, deadline
from vivit_train.utils.errors import VideoError

Sample = dict[str, Any]
MAX_REPLACEMENTS = 20  # bad videos in a row before a training sample gives up


@dataclass(frozen=True)
class VideoReader:
    """How videos are opened.

    Attributes:
        decoder: see `read_frames`.
        timeout_s: a loader process ends where reading a video takes longer.
        status: where a loader process notes what it has open; None in the main process, which is not to be ended.
        index_db: see `timeline`.
        allow_private_urls: see `VideoDataModule`.
    """

    decoder: str = "auto"
    timeout_s: float = 0
    status: WorkerStatus | None = None
    index_db: Path | None = None
    allow_private_urls: bool = False

    @contextmanager
    def watchdog(self, path: str) -> Iterator[None]:
        """While the video is read."""
        with urls.private_urls(self.allow_private_urls), ExitStack() as stack:
            if self.status is not None:
                stack.enter_context(self.status.on(path))
                stack.enter_context(deadline(self.timeout_s))
            yield

    def frames(
        self, path: str, clips: Indices, short_side: int, cut: CropFn | None = None
    ) -> tuple[Tensor, Indices]:
        """Each frame of the clips once, uint8 [T, C, H, W]; and which of these each clip's frames are."""
        needed, places = np.unique(clips, return_inverse=True)
        shown = needed[needed != PAD_INDEX]
        frames_THWC = read_frames(path, shown, short_side=short_side, decoder=self.decoder, cut=cut)
        if len(shown) < len(needed):  # the smallest number, so the first
            frames_THWC = np.concatenate([np.zeros_like(frames_THWC[:1]), frames_THWC])
        return to_torch(frames_THWC), places.reshape(clips.shape)


class TrainDataset(Dataset[Sample]):
    """The augmented clips of a key, a function of (seed, key) alone, whichever worker makes them.

    A video that cannot be read is replaced by another, drawn at random, and named in "errors" as (row, path,
    reason); after MAX_REPLACEMENTS of them nothing but the errors comes back.

    Args:
        transform: of each clip.
        finish: do all of it here; else a clip is its box, and "params" says what is left to do.
        mirrored: by head, what each class becomes in a flipped clip; None: what it was.
        clips_per_video: so many clips from one opening of a video, each with draws of its own.
        video_reader: see `VideoReader`.
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
        with self.video_reader.watchdog(path):
            times = timeline(path, self.video_reader.index_db)
            first, num_frames = frames_of(self.manifest, row, times)
            draws = [torch.rand(self.sampling.num_random).tolist() for _ in range(self.clips_per_video)]
            clips = np.stack([self.sampling.random(num_frames, times.fps, u) for u in draws])
            clips = in_video(first, clips)
            all_params: list[ClipParams] = []

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
        if not np.array_equal(place, np.arange(len(box_TCHW))):  # else a copy of what is there
            box_TCHW = box_TCHW[place]
        label = self.manifest.target(row)
        if params.flipped and self.mirrored is not None:
            label = mirror(label, self.mirrored)
        return {
            "video": self.transform.finish(box_TCHW, params) if self.finish else box_TCHW,
            "label": torch.from_numpy(label),
            "index": row,
            "frame_numbers": torch.from_numpy(indices),
            "times_s": torch.from_numpy(np.where(indices == PAD_INDEX, np.nan, times.times_s[indices])),
        } | ({} if self.finish else {"params": params})


def mirror(label: Target, mirrored: list[NDArray[np.int64]]) -> Target:
    """What a flipped clip's target is, see `TrainDataset`."""
    if label.dtype == np.bool:  # the class on the right has what the one on the left had, and the reverse
        return label[mirrored[0]]
    return np.array([ids[i] for ids, i in zip(mirrored, label, strict=True)])


class EvalDataset(Dataset[Sample]):
    """Every view of one video, [V, T, C, H, W], decoded once; or, where it cannot be read, zeros and the reason.

    Args:
        views: temporal clips x spatial crops.
        order: of the frames in a clip: "forward", "reversed" or "shuffled", to see what a model makes of time.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        manifest: ClipTable,
        sampling: Sampling,
        *,
        short_side: int,
        crop: int,
        squash: bool = False,
        views: tuple[int, int] = (1, 1),
        order: str = "forward",
        video_reader: VideoReader | None = None,
        seed: int = 0,
    ) -> None:
        self.manifest, self.views, self.order, self.seed = manifest, views, order, seed
        self.video_reader = video_reader or VideoReader()
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
        with self.video_reader.watchdog(path):
            times = timeline(path, self.video_reader.index_db)
            first, num_frames = frames_of(self.manifest, row, times)
            clips = self.sampling.uniform(num_frames, times.fps, self.views[0])
            clips = self.reorder(in_video(first, clips), row)
            decoded_TCHW, places = self.video_reader.frames(path, clips, self.short_side)
        crops = crop_views(decoded_TCHW, self.crop, self.short_side, self.squash, self.views[1])
        return torch.stack([crop[place] for place in places for crop in crops])

    def reorder(self, clips: Indices, row: int) -> Indices:
        if self.order == "reversed":
            return clips[:, ::-1]
        if self.order == "shuffled":
            return np.random.default_rng((self.seed, row)).permuted(clips, axis=1)
        return clips


def frames_of(manifest: ClipTable, row: int, times: Timeline) -> tuple[int, int]:
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
    return np.where(clips == PAD_INDEX, PAD_INDEX, first + clips)


def to_torch(frames_THWC: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)


def collate(samples: list[Sample]) -> Sample:
    """A batch; without "video" where a sample gave up, so that the main process can say so in its own words.

    Boxes that differ in size come one behind the other in one row of pixels, so that one transfer takes them all.
    """
    batch: Sample = {"errors": [error for sample in samples for error in sample.pop("errors")]}
    if not all(samples):
        return batch
    if "params" in samples[0]:
        boxes = [sample.pop("video") for sample in samples]
        batch["params"] = [(box.shape, sample.pop("params")) for box, sample in zip(boxes, samples, strict=True)]
        row = torch.cat([box.flatten() for box in boxes])
        # shared here, as `default_collate` does: a queue that finds no room later drops the batch without a word
        batch["video"] = row.share_memory_() if get_worker_info() else row
    return batch | default_collate(samples)
