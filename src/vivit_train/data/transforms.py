"""Clip-consistent transforms on uint8 [T, C, H, W], in the order they are applied; mixing on the device.

One draw of each random thing per clip, from torch's CPU generator, which the caller seeds per clip: wherever the
pixels are, the draws are the same.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, torch's CPU draws are a function of `key` alone; outside, nothing has happened."""
    state = torch.default_generator.get_state()
    # the generator alone: torch.manual_seed would reach for CUDA, which forked workers must not touch
    torch.default_generator.manual_seed(mix_seed(*key))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def mix_seed(*key: int) -> int:
    """One well-mixed 63-bit seed from several small numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class ClipParams(NamedTuple):
    """What is drawn for a clip: the box that is cut from its frames, the flip, and a seed for everything after."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool
    seed: int

    def cut(self, video_TCHW: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """From frames, or from what of them is below `top` and right of `left`."""
        return TF.crop(video_TCHW, self.top - top, self.left - left, self.height, self.width)


def union_box(all_params: Sequence[ClipParams]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the box that holds all of theirs."""
    top, left = min(params.top for params in all_params), min(params.left for params in all_params)
    bottom, right = (
        max(params.top + params.height for params in all_params),
        max(params.left + params.width for params in all_params),
    )
    return top, left, bottom - top, right - left


class TrainTransform:
    """Scale jitter and random crop, flip, colour jitter, RandAugment, random erasing.

    In two parts: `draw` needs no more than the size of a clip's frames; `finish` makes the clip of the box that
    `Look.cut` leaves of them, in a loader's worker or, after the transfer, on a GPU.

    Args:
        crop: side of the output in pixels.
        short_side: the video's short side is taken as this many pixels before jitter and crop.
        squash: take both sides as `short_side` instead: nothing to the left and right is cut off for good.
        scale_jitter: range of the factors of height and width, drawn each for itself (paper, Table 7).
        flip: probability of a horizontal flip.
        color_jitter: probability of colour jitter, as strong as the authors'.
        strong_color: a stronger one instead.
        randaugment: number of operations and their magnitude (0 .. 30), or None.
        random_erasing: probability that a rectangle is black, the same in all frames.
    """

    def __init__(
        self,
        crop: int,
        short_side: int,
        squash: bool,
        scale_jitter: tuple[float, float] | None,
        flip: float,
        color_jitter: float,
        randaugment: tuple[int, int] | None,
        random_erasing: float = 0.0,
        strong_color: bool = False,
    ) -> None:
        self.crop, self.short_side, self.squash = crop, short_side, squash
        self.scale_jitter = scale_jitter or (1.0, 1.0)
        self.flip, self.color_jitter = flip, color_jitter
        self.jitter_colors = jitter_colors_more if strong_color else jitter_colors
        self.randaugment = v2.RandAugment(*randaugment) if randaugment else None
        self.erase = v2.RandomErasing(random_erasing) if random_erasing else None

    def draw(self, height: int, width: int) -> ClipParams:
        """For frames of this size. The box lies in them: resizing everything and cropping then gives the same but
        for its border."""
        full_h, full_w = crop_box(height, width, self.crop, self.short_side, self.squash)
        box_h = min(height, round(full_h / uniform(*self.scale_jitter)))
        box_w = min(width, round(full_w / uniform(*self.scale_jitter)))
        top = int(torch.randint(height - box_h + 1, ()))
        left = int(torch.randint(width - box_w + 1, ()))
        flipped = bool(torch.rand(()) < self.flip)
        return ClipParams(top, left, box_h, box_w, flipped, seed=int(torch.randint(2**62, ())))

    def finish(self, box_TCHW: Tensor, params: ClipParams) -> Tensor:
        """uint8 [T, C, crop, crop], on the box's device."""
        video = TF.resize(box_TCHW, [self.crop, self.crop], antialias=True)
        if params.flipped:
            video = TF.horizontal_flip(video)
        with seeded(params.seed):
            if torch.rand(()) < self.color_jitter:
                video = self.jitter_colors(video)
            if self.randaugment is not None:
                video = self.randaugment(tv_tensors.Video(video))
            if self.erase is not None:
                video = self.erase(tv_tensors.Video(video))
        return video.as_subclass(Tensor)


def jitter_colors(video_TCHW: Tensor) -> Tensor:
    """The authors' colour jitter: brightness +-32/255 (added), saturation and contrast 0.6 .. 1.4, hue +-0.2,
    in this order, then grey with probability 0.1."""
    video = (video_TCHW.to(torch.int16) + round(uniform(-32, 32))).clamp(0, 255).to(torch.uint8)
    video = TF.adjust_saturation(video, uniform(0.6, 1.4))
    video = TF.adjust_contrast(video, uniform(0.6, 1.4))
    video = TF.adjust_hue(video, uniform(-0.2, 0.2))
    return TF.rgb_to_grayscale(video, num_output_channels=3) if torch.rand(()) < 0.1 else video


def jitter_colors_more(video_TCHW: Tensor) -> Tensor:
    """Brightness, contrast and saturation 0.5 .. 1.5, hue +-0.25, in a random order, after grey with probability
    0.3 (the recipe=modern_* pages)."""
    if torch.rand(()) < 0.3:
        video_TCHW = TF.rgb_to_grayscale(video_TCHW, num_output_channels=3)
    return v2.ColorJitter(0.5, 0.5, 0.5, 0.25)(tv_tensors.Video(video_TCHW))


def mirrored_classes(names: Sequence[str]) -> NDArray[np.int64]:
    """What each class is called in a mirror: the class with "left" and "right" exchanged where there is one, else
    itself. Not part of another word: "upright" has no mirror image."""
    ids = {name: i for i, name in enumerate(names)}
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    side = re.compile("(?<![a-zA-Z])(?:left|right)(?![a-zA-Z])|(?:Left|Right)(?![a-z])")
    mirrored = (side.sub(lambda match: other[match[0]], name) for name in names)
    return np.array([ids.get(name, i) for i, name in enumerate(mirrored)])


def crop_box(height: int, width: int, crop: int, short_side: int, squash: bool) -> tuple[float, float]:
    """Height and width, in a source's pixels, of what becomes `crop` x `crop` pixels."""
    base_h, base_w = (height, width) if squash else (min(height, width),) * 2
    return base_h * crop / short_side, base_w * crop / short_side


def crop_views(video_TCHW: Tensor, crop: int, short_side: int, squash: bool, crops: int) -> list[Tensor]:
    """The test's spatial views, `crops` (1 or 3) squares along the long side: centre, or left/centre/right
    (top/centre/bottom); each uint8 [T, C, crop, crop]. The short side is resized, then cropped."""
    height, width = video_TCHW.shape[-2:]
    video = TF.resize(
        video_TCHW, [short_side] * (2 if squash else 1), antialias=True
    )  # one number: the short side
    room_y, room_x = video.shape[-2] - crop, video.shape[-1] - crop
    views = []
    for fraction in [0.5] if crops == 1 else [0.0, 0.5, 1.0]:
        y, x = (0.5, fraction) if width >= height else (fraction, 0.5)
        views.append(TF.crop(video, int(room_y * y), int(room_x * x), crop, crop))
    return views


def mix_batch(
    video_BTCHW: Tensor, label: Tensor, heads: Sequence[int], mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix (one of the two by a fair coin where both are on), the same for all heads.

    Args:
        label: a class of each head, int64 [B, heads]; or of each class whether the clip has it, bool [B, K].
        heads: their numbers of classes.
        mixup, cutmix: alpha of the Beta distribution of the one lambda per batch; 0 switches it off.

    Returns:
        the mixed batch, and soft targets [B, K], the heads' side by side.
    """
    choices: list[v2.Transform] = []
    if mixup:
        choices.append(v2.MixUp(alpha=mixup))
    if cutmix:
        choices.append(v2.CutMix(alpha=cutmix))
    if label.dtype != torch.bool:
        label = torch.cat([F.one_hot(label[:, i], classes) for i, classes in enumerate(heads)], dim=1)
    video, target_BK = v2.RandomChoice(choices)(tv_tensors.Video(video_BTCHW), label)
    return video.as_subclass(Tensor), target_BK
