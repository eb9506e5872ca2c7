"""Small models for the tests. Fresh ones have a zero classifier, so most tests want `randomize`."""

from typing import Any

import torch
from torch import Tensor

from vivit_train.models.vivit import ModelName, ViViT

CLASSES = 5


def tiny(model: ModelName, **kwargs: Any) -> ViViT:
    """8 frames of 8 x 12 pixels, 4 x 2 x 3 tokens."""
    sizes: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "mlp_dim": 24, "temporal_depth": 2}
    inputs: dict[str, Any] = {"frames": 8, "image_size": (8, 12), "tubelet": (2, 4, 4), "num_classes": CLASSES}
    return ViViT(model, **sizes | inputs | kwargs).eval()


def randomize(net: ViViT, seed: int = 0) -> ViViT:
    """Every parameter is drawn anew; nothing stays zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net


def videos(net: ViViT, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, *net.input_shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def counted() -> ViViT:
    """A vivit_fe that is the same on every machine: what tests/goldens/scenic/checkpoint_12 holds."""
    net = tiny("vivit_fe", dim=4, depth=1, heads=2, mlp_dim=4, temporal_depth=1, num_classes=2)
    with torch.no_grad():
        for k, parameter in enumerate(net.parameters()):
            count = torch.arange(parameter.numel()) % 97 - 48
            parameter.copy_((count / 64 + k / 128).view(parameter.shape))
    return net
