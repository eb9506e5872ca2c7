"""The authors' RandAugment for video: eleven operations without geometry, and the identity.

The operations are those of AutoAugment's TensorFlow code on a scale of 0 to 10, which the magnitudes 15 and 20 of
the paper (Table 7) exceed. The authors stack the frames of a clip to one tall picture. Therefore histograms,
extremes and draws are those of the whole clip, and sharpness sees the next frame below a frame's last row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vivit_train.data.colors import framewise, luma

Operation = Callable[[Tensor, float], Tensor]
MAX_MAGNITUDE = 20


class AuthorsRandAugment:
    """Applies `num_ops` operations, each one of twelve with equal probability, to a clip, uint8 [T, 3, H, W].

    Args:
        num_ops: The number of operations.
        magnitude: Their common magnitude, from 0 to `MAX_MAGNITUDE`.
    """

    def __init__(self, num_ops: int, magnitude: int) -> None:
        self.num_ops, self.level = num_ops, magnitude / 10

    def __call__(self, video_TCHW: Tensor) -> Tensor:
        operations = list(OPERATIONS.values())
        for _ in range(self.num_ops):
            choice = int(torch.randint(len(operations) + 1, ()))
            if choice < len(operations):
                video_TCHW = operations[choice](video_TCHW, self.level)
        return video_TCHW


def look_up(video_TCHW: Tensor, table: Tensor) -> Tensor:
    """Replaces each value by its entry in a table, uint8 [256], or in its channel's table, uint8 [C, 256]."""
    if table.ndim == 2:
        return torch.stack([look_up(video_TCHW[:, c], one) for c, one in enumerate(table)], dim=1)
    if video_TCHW.device.type != "cpu":
        return table.to(video_TCHW.device)[video_TCHW.int()]
    # This is many times faster than torch's and NumPy's indexing.
    values = bytearray(video_TCHW.contiguous().numpy().tobytes()).translate(table.numpy().tobytes())
    return torch.frombuffer(values, dtype=torch.uint8).view(video_TCHW.shape)


def values(device: torch.device | None = None) -> Tensor:
    """Returns 0 to 255, float32 [256]."""
    return torch.arange(256, dtype=torch.float32, device=device)


def blend(start: Tensor | float, end: Tensor, factor: float) -> Tensor:
    """Goes from `start` to `end` by a factor, which may exceed 1, in float32. Fractions are cut off."""
    return ((end - start).mul_(factor) + start).clamp_(0, 255).to(torch.uint8)


def enhancement(level: float) -> float:
    """Returns the factor of color, contrast, brightness and sharpness, of which 1 changes nothing."""
    return level * 1.8 + 0.1


def auto_contrast(video_TCHW: Tensor, level: float) -> Tensor:
    """Stretches each channel so that its extremes are 0 and 255."""
    low_C1, high_C1 = (x[:, None].float() for x in (video_TCHW.amin((0, 2, 3)), video_TCHW.amax((0, 2, 3))))
    scale_C1 = 255 / (high_C1 - low_C1)
    same = values(video_TCHW.device).expand(3, 256)
    stretched = (same * scale_C1 + -low_C1 * scale_C1).clamp_(0, 255)
    return look_up(video_TCHW, torch.where(high_C1 > low_C1, stretched, same).to(torch.uint8))


def equalize(video_TCHW: Tensor, level: float) -> Tensor:
    """Equalizes the histogram of each channel."""
    count_CV = torch.stack([torch.bincount(video_TCHW[:, c].flatten(), minlength=256) for c in range(3)])
    place = torch.arange(256, device=video_TCHW.device)
    last_C1 = count_CV.gather(1, ((count_CV > 0) * place).amax(1, keepdim=True))
    step_C1 = (count_CV.sum(1, keepdim=True) - last_C1) // 255
    total_CV = (count_CV.cumsum(1) + step_C1 // 2) // step_C1.clamp_min(1)
    table_CV = torch.cat([torch.zeros_like(last_C1), total_CV[:, :-1]], dim=1).clamp_(0, 255)
    return look_up(video_TCHW, torch.where(step_C1 > 0, table_CV, place).to(torch.uint8))


def invert(video_TCHW: Tensor, level: float) -> Tensor:
    """Inverts all values."""
    return 255 - video_TCHW


def posterize(video_TCHW: Tensor, level: float) -> Tensor:
    """Keeps the highest bits: 4 at level 1, all 8 at level 2, and one where it would be none."""
    return video_TCHW & (0xFF << 8 - max(1, int(level * 4)) & 0xFF)


def solarize(video_TCHW: Tensor, level: float) -> Tensor:
    """Inverts the values from a threshold on.

    The threshold is 256 per level, a uint8 in TensorFlow, so that it wraps: it is 128 at the paper's magnitude 15
    and 0, which inverts everything, at magnitude 20.
    """
    value = values()
    return look_up(video_TCHW, torch.where(value < int(level * 256) % 256, value, 255 - value).to(torch.uint8))


def color(video_TCHW: Tensor, level: float) -> Tensor:
    """Moves colors away from gray, or toward it."""

    def change(frames: Tensor) -> Tensor:
        x = frames.float()
        return blend(luma(x).mul_(255.5 / 255).floor_(), x, enhancement(level))

    return framewise(change, video_TCHW)


def contrast(video_TCHW: Tensor, level: float) -> Tensor:
    """Moves values away from a gray, or toward it.

    The authors' gray is not the mean: it is the number of the clip's pixels divided by 256, at most 255. For any
    clip that a ViViT sees, it is white.
    """
    frames, _, height, width = video_TCHW.shape
    gray = min(frames * height * width // 256, 255)
    return look_up(video_TCHW, blend(gray, values(), enhancement(level)))


def brightness(video_TCHW: Tensor, level: float) -> Tensor:
    """Scales all values."""
    return look_up(video_TCHW, blend(0, values(), enhancement(level)))


def sharpness(video_TCHW: Tensor, level: float) -> Tensor:
    """Moves pixels away from a smoothed picture, or toward it. The border of the stack of frames stays."""
    frames, channels, height, width = video_TCHW.shape
    stack_CHW = video_TCHW.transpose(0, 1).reshape(channels, frames * height, width)
    sharp_CHW = stack_CHW.clone()
    for top in range(1, frames * height - 1, height):  # a frame at once, which stays in the cache
        x = stack_CHW[:, top - 1 : top + height + 1].to(torch.int16)
        rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
        inner = x[:, 1:-1, 1:-1]
        smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).float().div_(13).floor_()
        sharp_CHW[:, top : top + inner.shape[1], 1:-1] = blend(smooth, inner.float(), enhancement(level))
    return sharp_CHW.view(channels, frames, height, width).transpose(0, 1).contiguous()


def cutout(video_TCHW: Tensor, level: float) -> Tensor:
    """Sets a square, the same in all frames, to black. Its side is 80 pixels per level; its center is drawn."""
    height, width = video_TCHW.shape[-2:]
    y, x, half = int(torch.randint(height, ())), int(torch.randint(width, ())), int(level * 40)
    video_TCHW = video_TCHW.clone()
    video_TCHW[..., max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    return video_TCHW


def solarize_add(video_TCHW: Tensor, level: float) -> Tensor:
    """Adds 110 per level to the values below 128."""
    value = values()
    added = (value + int(level * 110)).clamp_(0, 255)
    return look_up(video_TCHW, torch.where(value < 128, added, value).to(torch.uint8))


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "cutout": cutout,
    "solarize_add": solarize_add,
}
