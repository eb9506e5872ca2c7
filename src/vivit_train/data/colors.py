"""Color changes of a whole clip, uint8 [T, C, H, W] in RGB. Random numbers come from torch's CPU generator."""

from collections.abc import Callable

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)
GRAY_PROBABILITY = 0.1


def uniform(low: float, high: float) -> float:
    """Draws a number from [low, high) with torch's CPU generator."""
    return low + (high - low) * torch.rand(()).item()


def framewise(change: Callable[[Tensor], Tensor], video_TCHW: Tensor) -> Tensor:
    """Applies `change` to a clip: on a CPU frame by frame, which stays in its cache, on a device at once."""
    if video_TCHW.device.type == "cpu":
        return torch.stack([change(frame_CHW) for frame_CHW in video_TCHW])
    return change(video_TCHW)


def jitter_colors(video_TCHW: Tensor, probability: float = 1.0) -> Tensor:
    """Applies the authors' color jitter (paper, Table 7).

    With `probability`, it adds up to +-32/255 to the brightness, scales saturation and contrast by 0.6 to 1.4 and
    shifts the hue by up to +-0.2 of its circle, in this order. Then, whether or not that happened, it converts the
    clip to gray with probability 0.1.
    """
    amounts = None
    if torch.rand(()) < probability:
        amounts = (uniform(-32, 32), uniform(0.6, 1.4), uniform(0.6, 1.4), uniform(-0.2, 0.2))
    gray = bool(torch.rand(()) < GRAY_PROBABILITY)
    if amounts is None and not gray:
        return video_TCHW
    return framewise(lambda frames: adjust_colors(frames, amounts, gray), video_TCHW)


def adjust_colors(frames: Tensor, amounts: tuple[float, float, float, float] | None, gray: bool = False) -> Tensor:
    """Changes colors in float and rounds once, at the end.

    Args:
        frames: The frames, uint8 [..., 3, H, W].
        amounts: What is added to each value, of 255; the factors of saturation and contrast; and the shift of the
            hue, as a fraction of its circle, at most 0.2 in size. None changes none of them.
        gray: Whether the result is gray.
    """
    x = frames.float()
    if amounts is not None:
        brightness, saturation, contrast, hue = amounts
        x = scale_saturation(x + brightness, saturation)
        mean = x.mean((-2, -1), keepdim=True)
        x = x.sub_(mean).mul_(contrast).add_(mean)
        x = shift_hue(x, hue).clamp_(0, 255)
    if gray:
        x = luma(x).expand_as(x)
    return x.round().to(torch.uint8)


def luma(x: Tensor) -> Tensor:
    """Returns the gray of RGB, float [..., 3, H, W], as [..., 1, H, W]."""
    red, green, blue = x.unbind(-3)
    return (red * GRAY_WEIGHTS[0] + green * GRAY_WEIGHTS[1] + blue * GRAY_WEIGHTS[2]).unsqueeze(-3)


def scale_saturation(x: Tensor, factor: float) -> Tensor:
    """Scales the saturation in HSV, at most to 1; hue and value stay. Negative values are allowed."""
    value, lowest = x.amax(-3, keepdim=True), x.amin(-3, keepdim=True)
    # The saturation is (value - lowest) / value, and all distances from the value are proportional to it.
    share = (value.clamp_min(0) / (value - lowest).clamp_min_(1e-6)).clamp_max_(factor)
    return x.sub_(value).mul_(share).add_(value)


def shift_hue(x: Tensor, shift: float) -> Tensor:
    """Turns the hue by a fraction of its circle; the largest and the smallest of the three channels stay."""
    value, lowest = x.amax(-3), x.amin(-3)
    span = value - lowest
    red, green, blue = x.unbind(-3)
    sector = torch.where(red == value, green - blue, torch.where(green == value, blue - red, red - green))
    sector = sector.div_(span.clamp_min(1e-6))
    start = torch.where(red == value, 0.0, torch.where(green == value, 2.0, 4.0))
    hue = sector.add_(start).add_(6 * shift)  # in sixths of the circle; red is at 0, green at 2, blue at 4
    channels = []
    for place in (0, 2, 4):
        away = (hue - place).abs_()
        away = torch.minimum(away, (away - 6).abs_())  # around the circle
        channels.append((2 - away).clamp_(0, 1).mul_(span).add_(lowest))
    return torch.stack(channels, -3)


def jitter_colors_more(video_TCHW: Tensor, probability: float = 1.0) -> Tensor:
    """Applies, with `probability`, the stronger color jitter of the recipe=modern_* configurations.

    It converts the clip to gray with probability 0.3. Then it scales brightness, contrast and saturation by 0.5 to
    1.5 and shifts the hue by up to +-0.25, in a random order.
    """
    if torch.rand(()) >= probability:
        return video_TCHW
    if torch.rand(()) < 0.3:
        video_TCHW = TF.rgb_to_grayscale(video_TCHW, num_output_channels=3)
    return v2.ColorJitter(0.5, 0.5, 0.5, 0.25)(tv_tensors.Video(video_TCHW))
