"""Which frames make a clip, for every length, stride and number of clips."""

from itertools import product
from typing import Literal

import numpy as np
import pytest

from vivit_train.data.sampling import (
    Sampling,
    center_clip,
    clip_at,
    frame_step,
    random_clip,
    segment_clip,
    uniform_clips,
)

LENGTHS = (1, 2, 31, 64, 65, 300)
STEPS = (1.0, 2.0, 3.0, 0.5, 29.97 / 12.5)
CASES = list(product(LENGTHS, (1, 32), STEPS))
every_case = pytest.mark.parametrize(("num_frames", "frames", "step"), CASES)


def starts(num_frames: int, frames: int, step: float) -> int:
    """How many windows an evaluation chooses from."""
    return max(0, int(num_frames - frames * step)) + 1


def training_starts(num_frames: int, frames: int, step: float) -> int:
    """How many windows have all their frames within the video: 0 .. L - (n - 1)s - 1. A shorter video has one."""
    return max(1, sum(np.floor(start + (frames - 1) * step + 1e-6) < num_frames for start in range(num_frames)))


@every_case
def test_clips_have_the_right_length_and_stay_in_the_video(num_frames: int, frames: int, step: float) -> None:
    clips = [random_clip(num_frames, frames, step, u) for u in (0.0, 0.3, 0.999999)]
    clips += [center_clip(num_frames, frames, step), *uniform_clips(num_frames, frames, step, 4)]
    for clip in clips:
        assert clip.shape == (frames,)
        assert clip.dtype == np.int64
        assert clip.min() >= 0
        assert clip.max() < num_frames


@every_case
def test_frames_are_step_apart_modulo_the_length(num_frames: int, frames: int, step: float) -> None:
    clip = random_clip(num_frames, frames, step, 0.5)
    gaps = np.diff(clip) % num_frames
    allowed = {int(np.floor(step)) % num_frames, int(np.ceil(step)) % num_frames}
    assert set(gaps.tolist()) <= allowed
    if num_frames >= frames * step:  # long enough: no loop
        assert (np.diff(clip) >= 0).all()


@pytest.mark.parametrize("num_frames", [1, 3, 8, 15])
def test_short_videos_loop_from_their_start(num_frames: int) -> None:
    expected = [(2 * i) % num_frames for i in range(8)]
    for clip in (
        random_clip(num_frames, 8, 2.0, 0.9),
        center_clip(num_frames, 8, 2.0),
        *uniform_clips(num_frames, 8, 2.0, 3),
    ):
        assert clip.tolist() == expected


@every_case
def test_every_start_is_equally_likely(num_frames: int, frames: int, step: float) -> None:
    count = training_starts(num_frames, frames, step)
    draws = (np.arange(10 * count) + 0.5) / (10 * count)  # evenly over [0, 1)
    first = [int(random_clip(num_frames, frames, step, u)[0]) for u in draws]
    assert np.bincount(first, minlength=count).tolist() == [10] * count


@every_case
def test_the_centre_clip_is_in_the_centre(num_frames: int, frames: int, step: float) -> None:
    left = center_clip(num_frames, frames, step)[0]
    right = starts(num_frames, frames, step) - 1 - left
    assert right - left in (0, 1)
    assert np.array_equal(uniform_clips(num_frames, frames, step, 1)[0], center_clip(num_frames, frames, step))


@every_case
def test_test_clips_start_where_the_authors_do(num_frames: int, frames: int, step: float) -> None:
    for clips in (2, 3, 4, 10):
        first = [int(clip[0]) for clip in uniform_clips(num_frames, frames, step, clips)]
        assert first == [int(x) for x in np.linspace(0, starts(num_frames, frames, step) - 1, clips)]
        assert (first[0], first[-1]) == (0, starts(num_frames, frames, step) - 1)


def test_four_clips_of_a_kinetics_video() -> None:
    assert [clip[0] for clip in uniform_clips(300, 32, 2.0, 4)] == [0, 78, 157, 236]
    assert uniform_clips(300, 32, 2.0, 4)[-1].tolist() == list(range(236, 300, 2))
    assert center_clip(300, 32, 2.0)[0] == 118


def test_training_clips_start_where_the_authors_do() -> None:
    last = random_clip(300, 32, 2.0, 0.999999)
    assert (last[0], last[-1]) == (300 - 31 * 2 - 1, 299)
    assert random_clip(63, 32, 2.0, 0.999999).tolist() == list(range(0, 63, 2))


def test_what_a_clip_spans_and_views_cover() -> None:
    kinetics = Sampling(32, fps=12.5)
    assert [kinetics.span_s(rate) for rate in (25, 30)] == [2.56, 2.56]
    assert [kinetics.coverage(10 * rate, rate, 4) for rate in (25, 30)] == [1.0, 1.0]
    assert kinetics.coverage(250, 25, 1) == 64 / 250
    assert Sampling(32, 2).coverage(300, 30, 4) == 4 * 64 / 300
    assert Sampling(32, 2).span_s(30) == pytest.approx(2.133, abs=1e-3)
    # Something-Something v2, 4 s at 12 fps: at stride 2, a clip is longer than the video, and all views are equal.
    assert Sampling(32, 2).span_s(12) > 4
    assert len({tuple(clip) for clip in Sampling(32, 2).uniform(48, 12, 4).tolist()}) == 1
    assert len({tuple(clip) for clip in Sampling(32, 1).uniform(48, 12, 4).tolist()}) == 4
    assert Sampling(32, 1).coverage(48, 12, 4) == 1.0
    assert Sampling(8, kind="segments").coverage(100, 25, 1) == 1.0


def test_the_step_follows_the_stride_or_the_time() -> None:
    assert frame_step(2, None, 25) == 2.0
    assert frame_step(2, 12.5, 25) == 2.0
    assert frame_step(9, 15, 30) == 2.0
    assert frame_step(1, 30, 15) == 0.5
    assert clip_at(0, 100, 5, frame_step(1, 30, 15)).tolist() == [0, 0, 1, 1, 2]
    # 12.5 per second of 29.97: no frame is more than one source frame from its time
    clip = clip_at(0, 300, 32, frame_step(1, 12.5, 29.97))
    assert np.abs(clip / 29.97 - np.arange(32) / 12.5).max() < 1 / 29.97


def test_a_measured_rate_need_not_be_exact() -> None:
    for rate in (30 - 1e-7, 30.0, 30 + 1e-7):
        assert clip_at(0, 1000, 32, frame_step(1, 15, rate)).tolist() == list(range(0, 64, 2))


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("frames", [1, 8, 32])
def test_a_frame_from_each_segment(num_frames: int, frames: int) -> None:
    draws = np.random.default_rng(0).random((50, frames))
    clips = np.stack([segment_clip(num_frames, frames, u) for u in draws])
    bounds = np.arange(frames + 1) * num_frames / frames
    assert (clips >= np.floor(bounds[:-1])).all()
    assert (clips < np.ceil(bounds[1:])).all()
    assert clips.max() < num_frames
    sampling = Sampling(frames, kind="segments")
    assert sampling.num_random == frames
    assert np.array_equal(sampling.random(num_frames, 25, draws[0].tolist()), clips[0])
    assert np.array_equal(sampling.uniform(num_frames, 25, 1), [segment_clip(num_frames, frames, 0.5)])


PADDING: tuple[Literal["wrap", "repeat_last", "black"], ...] = ("wrap", "repeat_last", "black")


def test_short_videos_loop_stand_still_or_go_black() -> None:
    assert Sampling(5, 2).random(4, 25, [0.3]).tolist() == [0, 2, 0, 2, 0]
    assert Sampling(5, 2, padding="repeat_last").random(4, 25, [0.3]).tolist() == [0, 2, 3, 3, 3]
    assert Sampling(5, 2, padding="repeat_last").uniform(4, 25, 2).tolist() == [[0, 2, 3, 3, 3]] * 2
    assert Sampling(5, 2, padding="black").uniform(4, 25, 2).tolist() == [[0, 2, -1, -1, -1]] * 2
    long = [Sampling(4, 2, padding=padding).random(100, 25, [0.5]) for padding in PADDING]
    assert len({tuple(indices.tolist()) for indices in long}) == 1
