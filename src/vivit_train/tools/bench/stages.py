"""Measure the stages of loading a clip in this process."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.annotations.table import ClipTable
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import Sample, VideoReader, collate
from vivit_train.data.sampling import PAD_INDEX, Indices
from vivit_train.data.transforms import seeded
from vivit_train.data.video.container import OPENING, best_video_stream
from vivit_train.data.video.decode import CropFn
from vivit_train.data.video.scan import probe, timeline
from vivit_train.data.video.storage import opened, state
from vivit_train.data.video.urls import is_url
from vivit_train.utils.errors import VideoError

STAGES = ("open/probe", "seek", "decode", "convert/scale", "augment", "other", "collate")
_aliases = count(1)


def repeat_rows(data: VideoDataModule, manifest: ClipTable, times: int) -> ClipTable:
    """Repeat the rows `times` times, so that each repetition reads its files as if for the first time.

    With the clean lists of the doctor, the paths stay unchanged, as training reads the stored scans instead.
    """
    return repeat_table(manifest, times) if data.video_reader.index_db else uncached_paths(manifest, times)


def repeat_table(manifest: ClipTable, times: int) -> ClipTable:
    return manifest.select(np.tile(np.arange(len(manifest)), times))


def uncached_paths(manifest: ClipTable, times: int) -> ClipTable:
    """Repeat the rows `times` times with a different spelling of the paths each time.

    Cached results of a file are not found under another spelling, so each repetition opens and scans the files
    again, as in a large dataset.
    """
    spelled = [
        path if is_url(path) else f"{'/.' * number}{path}"
        for number in islice(_aliases, times)
        for path in manifest.paths.tolist()
    ]
    return replace(repeat_table(manifest, times), paths=np.array(spelled, np.dtypes.StringDType()))


def is_readable(data: VideoDataModule, manifest: ClipTable, row: int, number: int) -> bool:
    """Return whether the clip that is sampled from a row can be read, by the loader and by libavcodec alone.

    Args:
        data: Data module of the configuration.
        manifest: Table of the clips.
        row: Row of the clip.
        number: Number that seeds the random choices for the clip.
    """
    try:
        with seeded(data.seed, number):
            loaded = data.train_dataset(manifest).load(row)
        with data.video_reader.watchdog(str(manifest.paths[row])):
            decode_alone(str(manifest.paths[row]), loaded, data.short_side)
    except (VideoError, av.FFmpegError):
        return False
    return True


@dataclass(frozen=True)
class TimedReading(VideoReader):
    """Records the time in seconds of each call that reads frames."""

    seconds: list[float] = field(default_factory=list)

    def frames(
        self, path: str, clips: Indices, short_side: int, cut: CropFn | None = None
    ) -> tuple[Tensor, Indices]:
        start = time.perf_counter()
        found = super().frames(path, clips, short_side, cut)
        self.seconds.append(time.perf_counter() - start)
        return found


class Stages:
    """Measures the time of each stage and of libavcodec alone, in seconds by round and video."""

    def __init__(self, data: VideoDataModule, manifest: ClipTable, rounds: int) -> None:
        self.data, self.n = data, len(manifest)
        self.clips = data.train_dataset(repeat_rows(data, manifest, rounds))
        self.clips.finish = False  # The augmentation is measured separately.
        self.clips.video_reader = self.video_reader = TimedReading(**vars(self.clips.video_reader))
        self.seconds = np.zeros((rounds, self.n, len(STAGES)))
        self.raw_s, self.decoded = np.zeros((rounds, self.n)), np.zeros(self.n)

    def measure(self, turn: int) -> None:
        samples: list[Sample] = []
        for row in range(self.n):
            repeated_row = turn * self.n + row
            path = str(self.clips.manifest.paths[repeated_row])
            with seeded(self.data.seed, row):
                start = time.perf_counter()
                timeline(path)
                opened = time.perf_counter()
                loaded = self.clips.load(repeated_row)
                read = time.perf_counter()
            if not self.data.augments_on_device:
                for sample in loaded:
                    sample["video"] = self.data.transform.finish(sample["video"], sample.pop("params"))
            finished = time.perf_counter()
            samples += loaded
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
        for first in range(0, len(samples), self.data.micro_batch_size):
            collate(samples[first : first + self.data.micro_batch_size])
        self.seconds[turn, :, 6] = (time.perf_counter() - start) / self.n

    def per_clip(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take the median over the rounds for each video, and return the mean of these medians per clip."""
        return np.median(values, axis=0).mean(axis=0) / self.clips.clips_per_video


class Alone(NamedTuple):
    """The time that libavcodec alone takes for the clips of a video.

    Attributes:
        seek_s: Seconds to decode from the key frame before the first frame up to the first frame.
        decode_s: Seconds to decode from the first frame to the last frame.
        convert_s: Seconds to convert the frames of the clips to RGB.
        frames: Number of decoded frames.
    """

    seek_s: float
    decode_s: float
    convert_s: float
    frames: int


def decode_alone(path: str, loaded: Sequence[Sample], short_side: int) -> Alone:
    """Decode the clips of one video with libavcodec alone. The times are 0 for a folder of images."""
    indices = np.unique([sample["frame_numbers"].numpy() for sample in loaded])
    indices, info = indices[indices != PAD_INDEX], probe(path)
    if state(path).is_folder:
        return Alone(0, 0, 0, len(indices))
    width, height = info.shape.turned(*info.shape.scaled(short_side))
    scale, times_s = VideoReformatter(), info.times_s
    wanted = set(times_s[indices].round(3).tolist())
    first_s, last_s = times_s[indices.min()], times_s[indices.max()]
    with opened(path) as file, av.open(file, "r", options=OPENING, metadata_errors="ignore") as container:
        stream = best_video_stream(container)
        assert stream is not None  # `probe` has found a video stream.
        stream.codec_context.thread_count = 1
        unit = float(stream.time_base or 1)
        begin = stream.start_time or 0
        start, seek_s, convert_s, decoded = time.perf_counter(), 0.0, 0.0, 0
        if first_s > 0:
            with suppress(av.FFmpegError):  # Formats that cannot seek, such as GIF, are decoded from the start.
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
