"""Times what a loader does to a clip, stage by stage, in this process."""

import time
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import Sample, TrainDataset, VideoReader, collate
from vivit_train.data.sampling import PAD_INDEX, Indices
from vivit_train.data.transforms import seeded
from vivit_train.data.video.container import OPENING
from vivit_train.data.video.decode import CropFn
from vivit_train.data.video.scan import probe, timeline
from vivit_train.data.video.storage import opened, state
from vivit_train.data.video.urls import is_url
from vivit_train.utils.errors import VideoError

STAGES = ("open/probe", "seek", "decode", "convert/scale", "augment", "other", "collate")
_spellings = count(1)


def again(data: VideoDataModule, manifest: ClipTable, times: int) -> ClipTable:
    """The rows `times` times over, as if for the first time: on the doctor's clean lists, which training need not
    scan, as they are."""
    return repeat_table(manifest, times) if data.video_reader.index_db else uncached_paths(manifest, times)


def repeat_table(manifest: ClipTable, times: int) -> ClipTable:
    return manifest.take(np.tile(np.arange(len(manifest)), times))


def uncached_paths(manifest: ClipTable, times: int) -> ClipTable:
    """The rows `times` times over, the paths spelled as never before: what is kept of a file under one name is not
    known under another, so that it is opened as for the first time, as in a large data set."""
    spelled = [
        path if is_url(path) else f"{'/.' * number}{path}"
        for number in islice(_spellings, times)
        for path in manifest.paths.tolist()
    ]
    return replace(repeat_table(manifest, times), paths=np.array(spelled, np.dtypes.StringDType()))


def dataset(data: VideoDataModule, manifest: ClipTable) -> TrainDataset:
    """The training clips of a manifest, as this configuration makes them."""
    clips = copy(data.train_dataloader().dataset)
    assert isinstance(clips, TrainDataset)
    clips.manifest = manifest
    return clips


def is_readable(data: VideoDataModule, manifest: ClipTable, row: int, number: int) -> bool:
    """Whether the clip can be, that is drawn of a row as that of this number, also by libavcodec alone."""
    try:
        with seeded(data.seed, number):
            loaded = dataset(data, manifest).load(row)
        with data.video_reader.watchdog(str(manifest.paths[row])):
            decode_alone(str(manifest.paths[row]), loaded, data.short_side)
    except (VideoError, av.FFmpegError):
        return False
    return True


@dataclass(frozen=True)
class TimedReading(VideoReader):
    """Notes the seconds that its frames take."""

    seconds: list[float] = field(default_factory=list)

    def frames(
        self, path: str, clips: Indices, short_side: int, cut: CropFn | None = None
    ) -> tuple[Tensor, Indices]:
        start = time.perf_counter()
        found = super().frames(path, clips, short_side, cut)
        self.seconds.append(time.perf_counter() - start)
        return found


class Stages:
    """Where the time of a clip goes: seconds by round, video and stage, and those of libavcodec alone."""

    def __init__(self, data: VideoDataModule, manifest: ClipTable, rounds: int) -> None:
        self.data, self.clips, self.n = data, dataset(data, again(data, manifest, rounds)), len(manifest)
        self.clips.finish = False  # that comes by itself
        self.clips.video_reader = self.video_reader = TimedReading(**vars(self.clips.video_reader))
        self.seconds = np.zeros((rounds, self.n, len(STAGES)))
        self.raw_s, self.decoded = np.zeros((rounds, self.n)), np.zeros(self.n)

    def measure(self, turn: int) -> None:
        samples: list[Sample] = []
        for row in range(self.n):
            again = turn * self.n + row
            path = str(self.clips.manifest.paths[again])
            with seeded(self.data.seed, row):
                start = time.perf_counter()
                timeline(path)
                opened = time.perf_counter()
                loaded = self.clips.load(again)
                read = time.perf_counter()
            if not self.data.augments_on_device:
                for sample in loaded:
                    sample["video"] = self.data.transform.finish(sample["video"], sample.pop("params"))
            finished = time.perf_counter()
            samples += (sample | {"errors": []} for sample in loaded)
            with self.video_reader.watchdog(path):
                alone = decode_alone(path, loaded, self.data.short_side)
            self.raw_s[turn, row], self.decoded[row] = alone.seek_s + alone.decode_s, alone.frames
            frames_s = self.video_reader.seconds.pop()
            convert_s = min(alone.convert_s, frames_s)
            seek_s = (frames_s - convert_s) * alone.seek_s / (alone.seek_s + alone.decode_s or 1)
            self.seconds[turn, row, :6] = (
                opened - start,
                seek_s,
                frames_s - convert_s - seek_s,
                convert_s,
                finished - read,
                read - opened - frames_s,
            )
        start = time.perf_counter()
        for first in range(0, len(samples), self.data.micro_batch):
            collate(samples[first : first + self.data.micro_batch])
        self.seconds[turn, :, 6] = (time.perf_counter() - start) / self.n

    def per_clip(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The median of the rounds, and of these the mean over the videos."""
        return np.median(values, axis=0).mean(axis=0) / self.clips.clips_per_video


class Alone(NamedTuple):
    """Seconds that libavcodec takes from the key frame before a clip's first frame up to that one, from there to
    its last, and to make RGB of the clip's frames; and how many frames were decoded."""

    seek_s: float
    decode_s: float
    convert_s: float
    frames: int


def decode_alone(path: str, loaded: Sequence[Sample], short_side: int) -> Alone:
    """The clips of one video again. Of a folder of pictures, no seconds."""
    indices = np.unique([sample["frame_numbers"].numpy() for sample in loaded])
    indices, info = indices[indices != PAD_INDEX], probe(path)
    if state(path).is_folder:
        return Alone(0, 0, 0, len(indices))
    shrink = min(1.0, short_side / min(info.width, info.height))
    size = round(info.width * shrink), round(info.height * shrink)
    width, height = reversed(size) if info.rotation % 180 else size
    scale, times_s = VideoReformatter(), info.times_s
    wanted = set(times_s[indices].round(3).tolist())
    first_s, last_s = times_s[indices.min()], times_s[indices.max()]
    with opened(path) as file, av.open(file, "r", options=OPENING, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, VideoStream)  # as probe found
        stream.codec_context.thread_count = 1
        unit = float(stream.time_base or 1)
        begin = stream.start_time or 0
        start, seek_s, convert_s, decoded = time.perf_counter(), 0.0, 0.0, 0
        if first_s > 0:
            with suppress(av.FFmpegError):  # of gif, say: then it is decoded from its start
                container.seek(begin + round(first_s / unit), stream=stream)
        for frame in container.decode(stream):
            decoded += 1
            at_s = ((frame.pts or 0) - begin) * unit
            if at_s < first_s - unit / 2:
                seek_s = time.perf_counter() - start
            if round(at_s, 3) in wanted:
                moment = time.perf_counter()
                scale.reformat(
                    frame, width, height, format="rgb24", interpolation="BICUBIC", threads=1
                ).to_ndarray()
                convert_s += time.perf_counter() - moment
            if at_s > last_s - unit / 2:
                break
        return Alone(seek_s, time.perf_counter() - start - seek_s - convert_s, convert_s, decoded)
