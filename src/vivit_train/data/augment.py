"""Clip-consistent transforms on uint8 [T, C, H, W], in the order they are applied; mixing on the device.

One draw of each random thing per clip, from torch's default generator: the caller seeds it per clip.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
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


class TrainTransform:
    """Scale jitter and random crop, flip, colour jitter, RandAugment: uint8 [T, C, H, W] -> [T, C, crop, crop].

    Args:
        crop: side of the output in pixels.
        short_side: the video's short side is taken as this many pixels before jitter and crop.
        squash: take both sides as `short_side` instead: nothing to the left and right is cut off for good.
        scale_jitter: range of the factors of height and width, drawn each for itself (paper, Table 7).
        flip: probability of a horizontal flip.
        color_jitter: probability of colour jitter, as strong as the authors'.
        randaugment: number of operations and their magnitude (0 .. 30), or None.
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
    ) -> None:
        self.crop, self.short_side, self.squash = crop, short_side, squash
        self.scale_jitter = scale_jitter or (1.0, 1.0)
        self.flip, self.color_jitter = flip, color_jitter
        self.randaugment = v2.RandAugment(*randaugment) if randaugment else None

    def __call__(self, video_TCHW: Tensor) -> Tensor:
        height, width = video_TCHW.shape[-2:]
        # the crop's box in the source: resizing everything and cropping then gives the same but for its border
        full_h, full_w = crop_box(height, width, self.crop, self.short_side, self.squash)
        box_h = min(height, round(full_h / uniform(*self.scale_jitter)))
        box_w = min(width, round(full_w / uniform(*self.scale_jitter)))
        top = int(torch.randint(height - box_h + 1, ()))
        left = int(torch.randint(width - box_w + 1, ()))
        video = TF.resized_crop(video_TCHW, top, left, box_h, box_w, [self.crop, self.crop], antialias=True)
        if torch.rand(()) < self.flip:
            video = TF.horizontal_flip(video)
        if torch.rand(()) < self.color_jitter:
            video = jitter_colors(video)
        if self.randaugment is not None:
            video = self.randaugment(tv_tensors.Video(video))
        return video.as_subclass(Tensor)


def jitter_colors(video_TCHW: Tensor) -> Tensor:
    """The authors' colour jitter: brightness +-32/255 (added), saturation and contrast 0.6 .. 1.4, hue +-0.2,
    in this order, then grey with probability 0.1."""
    video = (video_TCHW.to(torch.int16) + round(uniform(-32, 32))).clamp(0, 255).to(torch.uint8)
    video = TF.adjust_saturation(video, uniform(0.6, 1.4))
    video = TF.adjust_contrast(video, uniform(0.6, 1.4))
    video = TF.adjust_hue(video, uniform(-0.2, 0.2))
    return TF.rgb_to_grayscale(video, num_output_channels=3) if torch.rand(()) < 0.1 else video


def crop_box(height: int, width: int, crop: int, short_side: int, squash: bool) -> tuple[float, float]:
    """Height and width, in a source's pixels, of what becomes `crop` x `crop` pixels."""
    base_h, base_w = (height, width) if squash else (min(height, width),) * 2
    return base_h * crop / short_side, base_w * crop / short_side


def crop_views(video_TCHW: Tensor, crop: int, short_side: int, squash: bool, crops: int) -> list[Tensor]:
    """The test's spatial views, `crops` (1 or 3) squares along the long side: centre, or left/centre/right
    (top/centre/bottom); each uint8 [T, C, crop, crop]."""
    height, width = video_TCHW.shape[-2:]
    box_h, box_w = (round(side) for side in crop_box(height, width, crop, short_side, squash))
    fractions = [0.5] if crops == 1 else [0.0, 0.5, 1.0]
    views = []
    for fraction in fractions:
        y, x = (0.5, fraction) if width >= height else (fraction, 0.5)
        top, left = round((height - box_h) * y), round((width - box_w) * x)
        views.append(TF.resized_crop(video_TCHW, top, left, box_h, box_w, [crop, crop], antialias=True))
    return views


def mix_batch(
    video_BTCHW: Tensor, label_B: Tensor, num_classes: int, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix (one of the two by a fair coin where both are on): the mixed batch and soft targets [B, K].

    Args:
        mixup, cutmix: alpha of the Beta distribution of the one lambda per batch; 0 switches it off.
    """
    choices: list[v2.Transform] = []
    if mixup:
        choices.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        choices.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    video, target_BK = v2.RandomChoice(choices)(tv_tensors.Video(video_BTCHW), label_B)
    return video.as_subclass(Tensor), target_BK
