"""Videos of one's own: the clip fits the device and the videos, and the plan says how long the run will take."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from vivit_train.build import build_data, resolve_clip
from vivit_train.data.clip_size import median_frames, stride_for
from vivit_train.data.synthetic import make_demo
from vivit_train.data.video.scan import timeline
from vivit_train.run import train
from vivit_train.training.estimate import duration, faster

Config = Callable[..., DictConfig]
SIZES = ("frames", "stride", "short_side", "crop")


def sizes(cfg: DictConfig) -> tuple[int, ...]:
    return tuple(cfg.data[key] for key in SIZES)


def own(config: Config, videos: Path, *words: str) -> DictConfig:
    return config("data=folder", f"data.root={videos}", "trainer=cpu", *words, tiny=False)


def test_the_clip_covers_a_video_of_median_length(videos: Path, config: Config) -> None:
    cfg = own(config, videos)
    assert sizes(cfg) == ("auto",) * 4
    chosen, splits = resolve_clip(cfg)
    assert splits is not None  # read once, for the run, too
    length = int(np.median([timeline(file).num_frames for file in videos.glob("train/*/*.mp4")]))
    assert sizes(chosen) == (8, length // 8, 128, 112)
    assert (chosen.model.frames, chosen.model.image_size) == (8, 112)
    assert sizes(cfg) == ("auto",) * 4  # what is composed is never changed


def test_what_the_command_line_sets_stays(videos: Path, config: Config) -> None:
    assert sizes(resolve_clip(own(config, videos, "data.frames=4"))[0]) == (4, 3, 128, 112)
    assert sizes(resolve_clip(own(config, videos, "data.stride=1", "data.crop=160"))[0]) == (8, 1, 160, 160)
    cfg = own(config, videos, "data.frames=32", "data.stride=2", "data.crop=224", "data.short_side=256")
    assert resolve_clip(cfg)[0] is cfg


def test_segments_count_instead_of_their_videos(videos: Path, config: Config) -> None:
    data = build_data(resolve_clip(own(config, videos))[0])
    clips = data.splits.train
    spans_s = np.tile([[0.0, 0.2]], (len(clips), 1))
    segments = type(clips)(clips.paths, clips.labels, clips.ids, spans_s)
    fps = timeline(clips.paths[0]).fps
    assert median_frames(segments, None, 0) == (round(0.2 * fps), len(clips))


@pytest.mark.parametrize(("length", "frames", "stride"), [(0, 8, 1), (7, 8, 1), (60, 8, 7), (300, 32, 9)])
def test_the_largest_stride_that_fits(length: int, frames: int, stride: int) -> None:
    assert stride_for(length, frames) == stride


def test_a_run_says_what_it_chose_and_how_long_it_takes(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    make_demo(tmp_path / "videos", size=36, num_frames=24, train_per_class=1, val_per_class=1, test_per_class=1)
    words = ["trainer.max_steps=1", "model.dim=32", "model.depth=1", "model.heads=2", "data.num_workers=1"]
    train(own(config, tmp_path / "videos", *words))
    out = capsys.readouterr().out
    assert "clip     data.frames=8 data.stride=3 data.short_side=128 data.crop=112: chosen for a CPU" in out
    assert "24 frames is the median length of 8 clips" in out
    assert "clips: a clip spans 2.00 s at 12 fps; 1 test clip covers 100% of a video of 2 s (medians)" in out
    assert out.index("time: ") < out.index("epoch 1/")
    assert "data.frames" not in (tmp_path / "run/recipe_differences.txt").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "less than a minute"), (82, "about 1 min"), (965, "about 16 min"), (18_630, "about 5 h 10 min")],
)
def test_an_estimate_is_said_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_run_names_the_keys_that_make_it_short() -> None:
    keys = faster(4 * 3600, frames=32, crop=224, size="B", max_epochs=40)
    assert keys == "data.frames=8, data.crop=112 data.short_side=128, model.size=Ti, trainer.max_epochs=10"
    assert faster(10 * 3600, frames=8, crop=112, size="Ti", max_epochs=9) == ""
