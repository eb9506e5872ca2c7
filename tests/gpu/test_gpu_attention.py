"""Each kernel that torch may choose for attention computes what the step-by-step form does."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vivit_train.models.attention import fused_attention

pytestmark = pytest.mark.gpu
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
SHAPES = {  # sequences, heads, queries, keys of one clip of ViViT-B, 32x224x224
    "vivit_st": (1, 12, 3137, 3137),
    "the cls token alone": (1, 12, 1, 3137),
    "space": (16, 12, 197, 197),
    "time": (4, 12, 17, 17),
}


def queries_keys_values(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    sequences, heads, queries, keys = shape
    if device.type == "cpu":
        sequences, heads, queries, keys = 1, 2, min(queries, 197), min(keys, 197)
    draw = torch.Generator().manual_seed(0)
    lengths = (queries, keys, keys)
    # as they come out of one product: tokens before heads
    drawn = [torch.randn(sequences, length, heads, 64, generator=draw).transpose(1, 2) for length in lengths]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=output.dtype).view_as(output)
    gradients = torch.autograd.grad((output * weights).sum(), inputs)
    return [value.detach().double().cpu() for value in (output, *gradients)]


def step_by_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [*KERNELS, "ours"])
def test_a_kernel_is_as_exact_as_step_by_step(
    kernel: str, shape: str, dtype: torch.dtype, device: torch.device
) -> None:
    if device.type == "cpu" and kernel in ("cuDNN", "efficient"):
        pytest.skip(f"a CPU has no {kernel} kernel")
    if dtype == torch.float32 and kernel in ("flash", "cuDNN") and device.type == "cuda":
        pytest.skip(f"on a GPU the {kernel} kernel is for half precision")
    inputs = queries_keys_values(SHAPES[shape], device, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = with_gradients(step_by_step(*exact), exact)
    eager = with_gradients(step_by_step(*inputs), inputs)
    if kernel == "ours":
        found = with_gradients(fused_attention(*inputs), inputs)
    else:
        with sdpa_kernel(KERNELS[kernel]):
            found = with_gradients(F.scaled_dot_product_attention(*inputs), inputs)
    floor = 2e-2 if dtype == torch.bfloat16 else 5e-5
    largest = float(max(value.norm() for value in expected))
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    for name, value, theirs, mine in zip(names, expected, eager, found, strict=True):
        scale = max(float(value.norm()), 1e-2 * largest)
        limit = max(2 * float((theirs - value).norm()) / scale, floor)
        error = float((mine - value).norm()) / scale
        assert error <= limit, f"{name}: {error:.1e}, step by step {limit:.1e}"
