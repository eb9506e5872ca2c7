"""data.resize=authors: the pixels of TensorFlow's resize, from the file to the model's input, on every device."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import parity
import parity_pixels
import pytest
import torch
from helpers import SHARED
from numpy.typing import NDArray
from omegaconf import DictConfig
from videos import encode

from vivit_train.build import build_data
from vivit_train.data.dataset import VideoReader
from vivit_train.data.transforms import bilinear_on_device, crop_views, resize_clip
from vivit_train.data.video.decode import import_decoder, read_frames
from vivit_train.data.video.display import SQUARE, DisplayShape
from vivit_train.data.video.resize import bilinear
from vivit_train.data.video.scan import timeline
from vivit_train.utils.errors import UserError


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [(27, 36), (54, 72)])
def test_the_resize_is_tensorflows(size: tuple[int, int]) -> None:
    arrays = parity.tensorflow()
    theirs = arrays[f"resized/{size[0]}x{size[1]}"][0]
    np.testing.assert_array_equal(bilinear(arrays["clip"][0], *size), theirs)


@pytest.mark.parametrize("size", [(10, 47), (31, 12), (23, 40), (1, 1)])
def test_a_device_a_clip_and_a_box_give_the_same_pixels(size: tuple[int, int]) -> None:
    clip = noise(3, 23, 40, 3)
    frames = np.stack([bilinear(frame, *size) for frame in clip])
    clip_TCHW = torch.from_numpy(clip).permute(0, 3, 1, 2)
    for found in (resize_clip(clip_TCHW, *size, "authors"), bilinear_on_device(clip_TCHW, *size)):
        np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), frames)
    box = np.s_[size[0] // 3 :, 1 : size[1] - 1]
    np.testing.assert_array_equal(bilinear(clip[0], *size, box), frames[0][box])


def test_one_color_stays_as_it_is() -> None:
    for value in (0, 1, 127, 254, 255):
        assert (bilinear(np.full((19, 33, 3), value, np.uint8), 7, 50) == value).all()


@pytest.mark.parametrize(("short_side", "size"), [(48, (80, 48)), (150, (250, 150)), (None, (160, 96))])
def test_whole_frames_are_converted_then_resized(
    tmp_path: Path, short_side: int | None, size: tuple[int, int]
) -> None:
    """Smaller frames grow too, and a turned video is upright before."""
    for rotation in (0, 90):
        path = tmp_path / f"{rotation}.mp4"
        encode(path, frames=8, rotation=rotation)
        full = read_frames(path, [5, 2])
        found = read_frames(path, [5, 2], short_side=short_side, resize="authors")
        assert found.shape == (2, *size[::-1], 3)
        np.testing.assert_array_equal(found, [bilinear(frame, *size[::-1]) for frame in full])
        boxed, _ = VideoReader(resize="authors").frames(
            str(path), np.array([[5]]), short_side or 96, lambda h, w: (3, 4, 20, 30)
        )
        np.testing.assert_array_equal(boxed[0].permute(1, 2, 0).numpy(), found[0][3:23, 4:34])


def test_the_long_side_is_cut_off_to_whole_pixels_as_theirs() -> None:
    shape = DisplayShape(854, 480, 90, False, SQUARE)
    assert shape.scaled(256) == (256, 455)
    assert shape._replace(stored_width=853).scaled(256) == (256, 455)
    assert shape._replace(stored_width=855).scaled(256) == (256, 456)
    assert shape._replace(stored_width=855).resized(256) == (256, 456)
    assert shape._replace(stored_width=854).resized(256) == (256, 455)
    assert shape._replace(stored_width=640, stored_height=479).resized(256) == (256, 342)
    assert shape._replace(stored_width=641, stored_height=478).resized(256) == (256, 343)


@pytest.mark.parametrize("decoder", ["decord", "torchcodec", "os.path.join"])
def test_decoders_that_resize_themselves_are_refused(decoder: str) -> None:
    with pytest.raises(UserError, match=r"data\.resize=authors: data\.decoder=.*set data\.decoder=auto"):
        import_decoder(decoder, "authors")


def test_from_a_file_to_the_input_of_the_model() -> None:
    fast, authors = (parity_pixels.errors(parity_pixels.FOLDER / "made.mp4", how) for how in parity_pixels.RESIZES)
    assert {name for name, (_, worst) in authors.items() if worst == 0} == {"center", "first", "middle", "last"}
    for name, (mean, _) in fast.items():
        assert authors[name][0] < mean, name


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared beside this clone")
def test_real_videos_have_the_authors_pixels() -> None:
    paths = parity_pixels.videos()
    assert len(paths) == 7
    for path in paths:
        found = parity_pixels.errors(path, "authors")
        assert all(found[name][1] == 0 for name in ("center", "first", "middle", "last")), path
        assert found["huggingface"][0] < 4


def test_training_and_evaluation_follow_the_key(config: Callable[..., DictConfig], videos: Path) -> None:
    pixels = {}
    for how in parity_pixels.RESIZES:
        words = ["data=folder", f"data.root={videos}", "data.short_side=40", "data.fps=null", f"data.resize={how}"]
        data = build_data(config(*words, "data.color_jitter=0"))
        (view,) = data.val_dataloader().dataset[0]["video"]
        path = str(data.splits.val.paths[0])
        numbers = data.sampling.uniform(timeline(path).num_frames, 12, 1)[0]
        frames = torch.from_numpy(read_frames(path, numbers, short_side=40, resize=how)).permute(0, 3, 1, 2)
        (expected,) = crop_views(frames, 32, 40, "keep_ratio", 1, how)
        torch.testing.assert_close(view, expected, rtol=0, atol=0)
        pixels[how] = view, data.train_dataset(data.splits.train)[0, 0, 0]["video"]
    assert all(not torch.equal(*pair) for pair in zip(*pixels.values(), strict=True))
