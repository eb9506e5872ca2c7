"""A video is decoded once, in order, with the frames of a player; sliding windows are cut from it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from videos import Numbered, encode, read_number

from vivit_train.data.dataset import VideoReader
from vivit_train.data.sampling import Sampling
from vivit_train.data.video.decode import read_frames
from vivit_train.data.video.scan import timeline
from vivit_train.data.video.stream import stream_frames
from vivit_train.data.windows import WindowDataset, place_windows
from vivit_train.utils.errors import UserError


@pytest.mark.parametrize("kind", ["h264", "vfr_mkv", "open_gop", "cut", "mpeg4_b_avi", "mpeg_ts", "rotated_90"])
def test_a_stream_has_the_frames_of_a_player(kind: str, numbered: Callable[[str], Numbered]) -> None:
    video = numbered(kind)
    wanted = np.arange(3, len(video.numbers), 5)
    frames = list(stream_frames(video.path, wanted, short_side=48))
    assert np.array_equal(np.stack(frames), read_frames(video.path, wanted, short_side=48))
    assert [read_number(frame) for frame in frames] == [video.numbers[i] for i in wanted]


def test_windows_are_clips_of_the_training(tmp_path: Path) -> None:
    """Each frame is read once and in order, and the windows hold what an evaluation would read at their places."""
    path = tmp_path / "a.mp4"
    encode(path, frames=50)
    sampling = Sampling(frames=4, stride=3)
    windows = place_windows(timeline(path), sampling, None, None)
    assert windows.window_s == pytest.approx(12 / 30)
    assert windows.frames[:, 0].tolist() == [0, 6, 12, 18, 24, 30, 36, 38]
    assert (np.diff(windows.frames) == 3).all()
    assert windows.starts_s == pytest.approx(windows.frames[:, 0] / 30)
    dataset = WindowDataset(
        str(path), windows, short_side=96, crop=96, resize_mode="stretch", crops=1, video_reader=VideoReader()
    )
    samples = list(dataset)
    assert [sample["index"] for sample in samples] == list(range(8))
    numbers = [
        [read_number(frame) for frame in sample["video"][0].permute(0, 2, 3, 1).numpy()] for sample in samples
    ]
    assert numbers == windows.frames.tolist()
    longer = place_windows(timeline(path), sampling, 1.0, 0.5)
    assert longer.frames[:, 0].tolist() == [0, 15, 20]
    assert longer.frames[0].tolist() == [0, 7, 15, 22]
    short = place_windows(timeline(path), Sampling(frames=40, stride=2), None, None)
    assert short.frames.shape == (1, 40)  # a video that is shorter than a window starts again
    with pytest.raises(UserError, match="--window"):
        place_windows(timeline(path), Sampling(frames=4, kind="segments"), None, None)
