"""Clip-consistent transforms on uint8 [T, C, H, W] in the order of application, and batch mixing on the device.

Each random parameter is drawn once per clip from torch's CPU generator, which the caller seeds for each clip.
Therefore the draws are the same on every device.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from vivit_train.data.colors import jitter_colors, jitter_colors_more, uniform
from vivit_train.data.randaugment import AuthorsRandAugment
from vivit_train.data.video.resize import Resize, bilinear, neighbors

ResizeMode = Literal["keep_ratio", "stretch"]
RandAugmentKind = Literal["authors", "torchvision"]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds torch's CPU generator with `key` inside this context, and restores its state afterwards."""
    state = torch.default_generator.get_state()
    # Only the CPU generator is seeded: torch.manual_seed would use CUDA, which forked workers must not touch.
    torch.default_generator.manual_seed(mix_seed(*key))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def mix_seed(*key: int) -> int:
    """Returns a well-mixed 63-bit seed from several small numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class ClipParams(NamedTuple):
    """The transform params drawn for a clip.

    Attributes:
        top, left, height, width: The crop box in the frames, in pixels.
        flipped: Whether the clip is flipped horizontally.
        seed: The seed of the transforms after the flip.
    """

    top: int
    left: int
    height: int
    width: int
    flipped: bool
    seed: int

    def cut(self, video_TCHW: Tensor, top: int = 0, left: int = 0) -> Tensor:
        """Crops the box from frames of which the first `top` rows and `left` columns are already cut off."""
        return TF.crop(video_TCHW, self.top - top, self.left - left, self.height, self.width)


def union_box(all_params: Sequence[ClipParams]) -> tuple[int, int, int, int]:
    """Returns the top, left, height and width of the smallest box that contains all crop boxes."""
    top, left = min(params.top for params in all_params), min(params.left for params in all_params)
    bottom, right = (
        max(params.top + params.height for params in all_params),
        max(params.left + params.width for params in all_params),
    )
    return top, left, bottom - top, right - left


class TrainTransform:
    """Applies scale jitter, a random crop, a flip, color jitter, RandAugment and random erasing.

    The transform has two parts. `draw` needs only the size of the frames. `finish` applies the transform to the
    crop box from `ClipParams.cut`, either in a loader's worker or, after the transfer, on a GPU.

    Args:
        crop: The side of the output, in pixels.
        short_side: The length of the resized short side before jitter and crop, in pixels.
        resize_mode: "keep_ratio" resizes the short side to `short_side`; "stretch" resizes both sides to it, so
            that the left and right margins are not lost.
        scale_jitter: The range of the scale factors of height and width, which are drawn independently (paper,
            Table 7).
        flip: The probability of a horizontal flip.
        color_jitter: The probability of color jitter; 0 turns it off, gray clips included.
        strong_color: Whether color jitter is stronger than in the authors' code.
        randaugment_kind: The operations of RandAugment: the authors', which change colors or blacken a square,
            or torchvision's, which also shear, translate and rotate.
        randaugment: The number of operations and their magnitude (0 to 20, torchvision's 0 to 30), or None.
        random_erasing: The probability that a rectangle, the same in all frames, is set to black.
        resize: How the box is resized; see `resize_clip`.

    Attributes:
        settings: The arguments that decide how the clips of a video differ, apart from their sizes.
    """

    def __init__(
        self,
        crop: int,
        short_side: int,
        resize_mode: ResizeMode,
        scale_jitter: tuple[float, float] | None,
        flip: float,
        color_jitter: float,
        randaugment: tuple[int, int] | None,
        random_erasing: float = 0.0,
        strong_color: bool = False,
        randaugment_kind: RandAugmentKind = "authors",
        resize: Resize = "fast",
    ) -> None:
        chances = (flip, color_jitter, randaugment, random_erasing, strong_color, randaugment_kind, resize)
        self.settings = scale_jitter, *chances
        self.crop, self.short_side, self.resize_mode = crop, short_side, resize_mode
        self.scale_jitter = scale_jitter or (1.0, 1.0)
        self.flip, self.color_jitter, self.resize = flip, color_jitter, resize
        self.jitter_colors = jitter_colors_more if strong_color else jitter_colors
        make = AuthorsRandAugment if randaugment_kind == "authors" else v2.RandAugment
        self.randaugment = make(*randaugment) if randaugment else None
        self.erase = v2.RandomErasing(random_erasing) if random_erasing else None

    def draw(self, height: int, width: int) -> ClipParams:
        """Draws the transform params for frames of this size, in pixels.

        The box lies inside the frames. Cropping before the resize changes only the pixels at the border.
        """
        full_h, full_w = crop_box(height, width, self.crop, self.short_side, self.resize_mode)
        box_h = min(height, round(full_h / uniform(*self.scale_jitter)))
        box_w = min(width, round(full_w / uniform(*self.scale_jitter)))
        top = int(torch.randint(height - box_h + 1, ()))
        left = int(torch.randint(width - box_w + 1, ()))
        flipped = bool(torch.rand(()) < self.flip)
        return ClipParams(top, left, box_h, box_w, flipped, seed=int(torch.randint(2**62, ())))

    def finish(self, box_TCHW: Tensor, params: ClipParams) -> Tensor:
        """Returns the augmented clip, uint8 [T, C, crop, crop], on the device of `box_TCHW`."""
        video = resize_clip(box_TCHW, self.crop, self.crop, self.resize)
        if params.flipped:
            video = TF.horizontal_flip(video)
        with seeded(params.seed):
            if self.color_jitter:
                video = self.jitter_colors(video, self.color_jitter)
            if self.randaugment is not None:
                video = self.randaugment(tv_tensors.Video(video))
            if self.erase is not None:
                video = self.erase(tv_tensors.Video(video))
        return video.as_subclass(Tensor)


def mirrored_classes(names: Sequence[str]) -> NDArray[np.int64]:
    """Returns the id of each class's mirror image, int64 [classes].

    The mirror image is the class whose name has "left" and "right" exchanged, or the class itself if there is
    none. Only whole words count: "upright" has no mirror image.
    """
    ids = {name: i for i, name in enumerate(names)}
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    side = re.compile("(?<![a-zA-Z])(?:left|right)(?![a-zA-Z])|(?:Left|Right)(?![a-z])")
    mirrored = (side.sub(lambda match: other[match[0]], name) for name in names)
    return np.array([ids.get(name, i) for i, name in enumerate(mirrored)])


def crop_box(height: int, width: int, crop: int, short_side: int, resize_mode: ResizeMode) -> tuple[float, float]:
    """Returns the height and width, in source pixels, of the region that is resized to `crop` x `crop` pixels."""
    base_h, base_w = (height, width) if resize_mode == "stretch" else (min(height, width),) * 2
    return base_h * crop / short_side, base_w * crop / short_side


def resize_clip(video_TCHW: Tensor, height: int, width: int, resize: Resize) -> Tensor:
    """Returns a uint8 clip [T, C, height, width], resized bilinearly.

    Args:
        video_TCHW: The clip, uint8, on any device.
        height: The new height in pixels.
        width: The new width in pixels.
        resize: "fast" antialiases and rounds, as torchvision and Hugging Face's processor. "authors" does neither,
            as TensorFlow in the authors' code; the results are equal to the last bit on every device.
    """
    if resize == "fast" or video_TCHW.shape[-2:] == (height, width):
        return TF.resize(video_TCHW, [height, width], antialias=True)
    if video_TCHW.device.type == "cpu":  # NumPy gathers columns twice to four times as fast as torch.
        frames = [bilinear(frame, height, width) for frame in video_TCHW.permute(0, 2, 3, 1).numpy()]
        return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return bilinear_on_device(video_TCHW, height, width)


def bilinear_on_device(video_TCHW: Tensor, height: int, width: int) -> Tensor:
    """Returns what `bilinear` returns for each frame, by the same float32 operations in the same order."""
    (top, bottom, down), (left, right, across) = (
        [torch.from_numpy(part).to(video_TCHW.device) for part in neighbors(old, new)]
        for old, new in zip(video_TCHW.shape[-2:], (height, width), strict=True)
    )
    lines = video_TCHW[..., left].float()
    lines = video_TCHW[..., right].float().sub_(lines).mul_(across).add_(lines)
    pixels = lines[..., top, :]
    return lines[..., bottom, :].sub_(pixels).mul_(down[:, None]).add_(pixels).to(torch.uint8)


def crop_views(
    video_TCHW: Tensor,
    crop: int,
    short_side: int,
    resize_mode: ResizeMode,
    crops: int,
    resize: Resize = "fast",
) -> list[Tensor]:
    """Returns the spatial views for evaluation, each uint8 [T, C, crop, crop].

    The short side is resized to `short_side` pixels, as `resize_clip` does. Then `crops` squares are cropped along
    the long side: 1 is the center crop; 3 are left, center and right, or top, center and bottom. Half pixels are
    rounded down for the center crop and up for the middle of three, as in the authors' code.
    """
    height, width = video_TCHW.shape[-2:]
    new_h, new_w = (short_side * side // min(height, width) for side in (height, width))
    if resize_mode == "stretch":
        new_h = new_w = short_side
    video = resize_clip(video_TCHW, new_h, new_w, resize)
    room_y, room_x = video.shape[-2] - crop, video.shape[-1] - crop
    if crops == 1:
        return [TF.crop(video, room_y // 2, room_x // 2, crop, crop)]
    middle_y, middle_x = math.ceil(room_y / 2), math.ceil(room_x / 2)
    if width >= height:
        places = [(middle_y, x) for x in (0, middle_x, room_x)]
    else:
        places = [(y, middle_x) for y in (0, middle_y, room_y)]
    return [TF.crop(video, top, left, crop, crop) for top, left in places]


def mix_batch(
    video_BTCHW: Tensor, label: Tensor, heads: Sequence[int], mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Applies Mixup or CutMix to a batch, the same for all heads. If both are on, each has probability 0.5.

    Args:
        video_BTCHW: The batch of clips.
        label: The class ids of each clip, int64 [B, heads], or the multi-label targets, bool [B, K].
        heads: The number of classes of each head.
        mixup, cutmix: The alpha of the Beta distribution of lambda, which is drawn once per batch; 0 turns the
            method off.

    Returns:
        The mixed batch, and the soft targets [B, K], which concatenate the classes of all heads.
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
