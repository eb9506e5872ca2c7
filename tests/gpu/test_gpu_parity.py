"""The four models compute on a GPU what they compute on a CPU in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vivit_train.models.vivit import MODELS, ModelName, ViViT
from vivit_train.tools.bench.model import in_precision

pytestmark = pytest.mark.gpu
LIMITS = {torch.float32: 2e-4, torch.bfloat16: 6e-2}  # of the error's norm, as a share of the value's


def net_of(model: ModelName, device: torch.device) -> ViViT:
    """Heads of 64, as in all of the paper's sizes, and 196 + 1 tokens in space where that is cheap."""
    sizes: dict[str, Any] = {"dim": 256, "depth": 3, "heads": 4, "temporal_depth": 2, "frames": 8}
    if device.type == "cpu":
        sizes |= {"dim": 64, "depth": 2, "heads": 2}
    torch.manual_seed(0)
    net = ViViT(model, num_classes=7, image_size=112 if device.type == "cuda" else 64, **sizes)
    with torch.no_grad():
        for parameter in net.parameters():  # a fresh head is zero, and then so is every other gradient
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net


def logits_and_gradients(net: ViViT, video: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    net.zero_grad()
    with in_precision(dtype if dtype == torch.bfloat16 else torch.float32, video.device):
        logits = net(video)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    F.cross_entropy(logits, torch.arange(len(video), device=video.device)).backward()
    found = {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
    return {name: value.detach().double().cpu() for name, value in ({"logits": logits} | found).items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", LIMITS, ids=["float32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_forward_and_backward_are_those_of_float64(
    model: ModelName, dtype: torch.dtype, device: torch.device
) -> None:
    net = net_of(model, device)
    video = torch.rand(3, *net.input_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = logits_and_gradients(net.double().use_eager_attention(), video.double(), torch.float64)
    there = net.float().use_eager_attention(False).to(device)
    found = logits_and_gradients(there, video.to(device), dtype)
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for name, value in expected.items() if name != "logits")
    for name, value in expected.items():
        # a gradient that is all but zero, as a key's bias's is, has no digits to compare
        scale = max(float(value.norm()), 0.0 if name == "logits" else 1e-2 * largest)
        error = float((found[name] - value).norm()) / scale
        assert error < LIMITS[dtype], f"{name}: {error:.1e}"
