"""Segments of a camera or another live stream: a thread reads it while the model computes."""

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vivit_train.data.datamodule import VideoDataModule
from vivit_train.data.dataset import to_torch
from vivit_train.data.transforms import crop_views
from vivit_train.data.video.stream import live_frames, open_live
from vivit_train.data.windows import Windows, window_length
from vivit_train.segments import Segmentation, merge, one_clip
from vivit_train.utils.errors import VideoError
from vivit_train.utils.progress import Step
from vivit_train.utils.text import plural, printable
from vivit_train.video_model import VideoModel, clip_table

USUAL_FPS = 25.0  # the frame rate of a stream that does not state one
SLOWEST_S = 1.0  # the time between two frames of a slow camera
MOST_WAITING = 64  # So many windows may wait for the model; later ones are dropped.


@dataclass
class LiveReader:
    """Cuts a live stream into windows, in a thread of its own.

    Attributes:
        windows: The windows that wait for the model: the start in seconds and the views, uint8
            [V, T, C, crop, crop]. None follows the last one.
        now_s: The time of the newest frame in seconds.
        dropped: The number of windows that were dropped because the model is slower than the stream.
        stopped: Whether the thread is to end after the next frame.
        error: The reason why the stream ended, if it did not end normally.
    """

    windows: "queue.SimpleQueue[tuple[float, Tensor] | None]" = field(default_factory=queue.SimpleQueue)
    now_s: float = 0.0
    dropped: int = 0
    stopped: bool = False
    error: Exception | None = None

    def read(self, frames: Iterable[tuple[float, Tensor]], targets_s: NDArray[np.float64], step_s: float) -> None:
        """Puts the windows of a stream into the queue.

        Args:
            frames: The views of each frame, uint8 [V, C, crop, crop], with its time.
            targets_s: The times after the start of a window at which its frames are shown, [T].
            step_s: The distance between two windows in seconds.
        """
        kept: deque[tuple[float, Tensor]] = deque()
        start_s = 0.0
        try:
            for self.now_s, views in frames:
                kept.append((self.now_s, views))
                while self.now_s >= start_s + targets_s[-1]:
                    shown = (
                        np.searchsorted([time for time, _ in kept], start_s + targets_s + 1e-3, side="right") - 1
                    )
                    clip = torch.stack([kept[max(at, 0)][1] for at in shown.tolist()], dim=1)
                    if self.windows.qsize() < MOST_WAITING:
                        self.windows.put((start_s, clip))
                    else:
                        self.dropped += 1
                    start_s += step_s
                    while len(kept) > 1 and kept[1][0] <= start_s:
                        kept.popleft()
                if self.stopped:
                    break
        except Exception as error:  # The main thread raises it.
            self.error = error
        finally:
            self.windows.put(None)

    def batches(self, most: int) -> Iterator[list[tuple[float, Tensor]]]:
        """Yields the windows that wait, at most `most` at once."""
        while (first := self.windows.get()) is not None:
            batch = [first]
            while len(batch) < most and not self.windows.empty():
                if (one := self.windows.get()) is None:
                    yield batch
                    return
                batch.append(one)
            yield batch


def live_views(
    data: VideoDataModule, frames: Iterable[tuple[float, NDArray[np.uint8]]]
) -> Iterator[tuple[float, Tensor]]:
    """Yields the spatial views of each frame, uint8 [V, C, crop, crop], with its time."""
    for time_s, frame_HWC in frames:
        frame_TCHW = to_torch(frame_HWC[None])
        how = data.resize_mode, data.protocol.views[1], data.video_reader.resize
        crops = crop_views(frame_TCHW, data.crop, data.short_side, *how)
        yield time_s, torch.cat(crops)


def segment_live(
    model: VideoModel,
    url: str,
    seconds: float,
    *,
    window_s: float | None = None,
    step_s: float | None = None,
    views: str = "1x1",
    report: Step = lambda done_s, label: None,
) -> Segmentation:
    """Returns the segments of a camera or a live stream, which is read for some time.

    If the stream fails before, or Ctrl-C is pressed, the result has the segments until then, and a note.

    Args:
        model: The model.
        url: The URL of a stream, or the device of a camera, such as /dev/video0.
        seconds: The duration.
        window_s, step_s, views: See `segment_video`.
        report: A function that is called with the seconds that are done and the newest label.

    Raises:
        VideoError: The stream cannot be read, or ends before the first window is complete.
        UserError: The views or the window do not fit the model.
    """
    data = model.data_for(clip_table([url]), views=one_clip(views))
    sampling, reader, notes = data.sampling, LiveReader(), list[str]()
    starts_s, shares = list[float](), list[NDArray[np.float64]]()
    names = [name for names in model.classes.values() for name in names]
    with open_live(url) as (container, stream):
        window_s = window_length(sampling, float(stream.average_rate or USUAL_FPS), window_s)
        move_s, gap_s = step_s or window_s / 2, window_s / sampling.frames
        targets_s = gap_s * (np.arange(sampling.frames) + (0.5 if sampling.kind == "segments" else 0.0))
        side, resize = data.short_side, data.video_reader.resize
        live = live_frames(url, container, stream, seconds, short_side=side, resize=resize)
        frames = live_views(data, live)
        thread = threading.Thread(target=reader.read, args=(frames, targets_s, move_s), daemon=True)
        thread.start()
        try:
            for batch in reader.batches(max(1, data.micro_batch_size // data.protocol.views[1])):
                shares.append(model.shares(torch.stack([video for _, video in batch])))
                starts_s += [start_s for start_s, _ in batch]
                report(reader.now_s, printable(names[int(shares[-1][-1].argmax())]))
        except KeyboardInterrupt:
            seconds = reader.now_s
            notes.append(f"stopped by Ctrl-C after {seconds:.1f} s")
        finally:
            reader.stopped = True
            thread.join()  # It uses the stream, which is closed now.
    if reader.error and not (shares and isinstance(reader.error, VideoError)):
        raise reader.error
    if not shares:
        raise VideoError(url, f"ended after {reader.now_s:.1f} s, within the first window of {window_s:.1f} s")
    notes += notes_of(reader, seconds)
    windows = Windows(np.empty((0, 0), np.int64), np.array(starts_s), window_s, reader.now_s)
    found = merge(np.concatenate(shares), windows, model.classes, multi_label=model.multi_label)
    return Segmentation(url, reader.now_s, window_s, move_s, found, notes)


def notes_of(reader: LiveReader, seconds: float) -> list[str]:
    """Returns what the user should know about a stream that was to be read for so many seconds."""
    notes = []
    if isinstance(reader.error, VideoError):
        notes.append(f"the stream ended early: {reader.error.reason}")
    elif reader.now_s < seconds - SLOWEST_S:
        notes.append(f"the stream ended after {reader.now_s:.1f} of {seconds:g} s")
    if reader.dropped:
        notes.append(f"{plural(reader.dropped, 'window')} left out: the model is slower than the stream (--step)")
    return notes
