"""What a training step costs: floating-point operations, the share of the device's speed, memory."""

import resource
import sys
import time
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from vivit_train.model.vivit import ViViT

# Training takes three times the operations of the forward pass, as the backward pass has two products for each of
# its own. That is a little too much (nobody needs the gradient of the pixels); what is no product does not count.
FORWARD_AND_BACKWARD = 3
MEASURE_S = 0.1


def forward_flops(net: ViViT) -> int:
    """Floating-point operations of one clip's forward pass: of matrix products, convolutions and attention, a
    multiply-add as two. Counted on the meta device, where nothing is computed."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    with FlopCounterMode(display=False) as counter:
        on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors}
        torch.func.functional_call(net, on_meta, torch.empty(1, *net.input_shape, device="meta"))
    return int(counter.get_total_flops())


def step_dtype(precision: str) -> torch.dtype:
    """In which the matrix products of a step are computed, by the name of Lightning's precision."""
    for part, dtype in (("bf16", torch.bfloat16), ("16", torch.float16), ("64", torch.float64)):
        if part in precision:
            return dtype
    return torch.float32


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product, the best of those that fit in a tenth of
    a second: what this device reaches, rather than what its data sheet says. Measured once per process."""
    cuda = device.type == "cuda"
    n, products = (4096, 10) if cuda else (1024, 1)
    draw = torch.Generator(device).manual_seed(0)  # the run's own draws stay what they are
    a, b = (torch.rand(n, n, generator=draw, device=device).to(dtype) for _ in range(2))
    best_s, start_s = float("inf"), time.perf_counter()
    while time.perf_counter() - start_s < MEASURE_S:
        if cuda:
            torch.cuda.synchronize(device)
        once_s = time.perf_counter()
        for _ in range(products):
            a @ b
        if cuda:
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - once_s)
    return products * 2 * n**3 / best_s


def whole(tensor: Tensor) -> Tensor:
    """Itself; of a tensor that trainer=fsdp shares out among processes all of it, for which all ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Of all of them as one vector, in every process."""
    return whole(torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors]))


def peak_memory_gb(device: torch.device) -> float:
    """The most that this process has held so far, in 1e9 bytes: tensors on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def memory_text(device: torch.device) -> str:
    """Peak memory, and of how much where that is the device's own."""
    peak = f"{peak_memory_gb(device):.1f}"
    if device.type != "cuda":
        return f"{peak} GB"
    return f"{peak} of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
