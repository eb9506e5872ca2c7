"""Measures the cost of a training step: FLOPs, device utilization, and memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vivit_train.models.layers import Block

# Training takes three times the FLOPs of the forward pass: the backward pass has two products for each one.
# This slightly overestimates, because the gradient of the pixels is not needed. Only products count.
FORWARD_AND_BACKWARD = 3
MEASURE_S = 0.1


def forward_flops(net: nn.Module, clip: Tensor | None = None) -> int:
    """Returns the floating-point operations of one clip's forward pass.

    Matrix products, convolutions, and attention count, with a multiply-add as two operations. The count runs on
    the meta device, so nothing is computed.

    Args:
        net: The model.
        clip: A batch of one clip on the meta device; None is a clip as a ViViT takes it.
    """
    if clip is None:
        clip = torch.empty(1, *net.input_shape, device="meta")  # type: ignore[misc]
    tensors = [*net.named_parameters(), *net.named_buffers()]
    # A compiled net is counted in eager mode.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        on_meta = {name: tensor.detach().to("meta") for name, tensor in tensors}
        torch.func.functional_call(net, on_meta, clip)
    return int(counter.get_total_flops())


def step_dtype(precision: str) -> torch.dtype:
    """Returns the dtype of the matrix products of a step for a Lightning precision."""
    for part, dtype in (("bf16", torch.bfloat16), ("16", torch.float16), ("64", torch.float64)):
        if part in precision:
            return dtype
    return torch.float32


@cache
def half_precision_speedup(dtype: torch.dtype) -> float:
    """Returns how many times faster this CPU trains with autocast to `dtype` than in float32.

    The measurement trains one block of ViViT-S on the tokens of one image. It takes a tenth of a second and runs
    once per process. CPU feature flags cannot replace it: with AVX-512's bf16, one CPU was faster and another was
    slower (docs/benchmarks.md).
    """
    with torch.random.fork_rng(devices=[]):  # This leaves the random state of the run unchanged.
        block = Block(384, 6, 4 * 384, norm_eps=1e-6, drop_path=0.0)
        tokens_BND = torch.rand(1, 197, 384)

    def seconds(dtype: torch.dtype) -> float:
        start_s = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = block(tokens_BND)
        output.sum().backward()
        return time.perf_counter() - start_s

    times = [(seconds(torch.float32), seconds(dtype)) for _ in range(4)][1:]  # The first pair is a warmup.
    return min(whole for whole, _ in times) / min(half for _, half in times)


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the floating-point operations per second of a large matrix product on this device.

    This is the best measurement within a tenth of a second, which is what the device reaches, not what its data
    sheet says. It is measured once per process.
    """
    cuda = device.type == "cuda"
    n, products = (4096, 10) if cuda else (1024, 1)
    draw = torch.Generator(device).manual_seed(0)  # This leaves the random state of the run unchanged.
    a, b = (torch.rand(n, n, generator=draw, device=device).to(dtype) for _ in range(2))
    b = b.mT  # This is the layout of a linear layer, the only one that is fast in float16 on a CPU.
    a @ b  # The first product initializes libraries.
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


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor, or all of a sharded tensor, for which all ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the norm of all tensors as one vector. All ranks must call this together."""
    return full_tensor(torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors]))


def peak_memory_gb(device: torch.device) -> float:
    """Returns the peak memory of this process in 1e9 bytes: tensors on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kilobytes * 1024 / 1e9


def memory_text(device: torch.device) -> str:
    """Formats the peak memory and, for a GPU, its total memory."""
    peak = f"{peak_memory_gb(device):.1f}"
    if device.type != "cuda":
        return f"{peak} GB"
    return f"{peak} of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"


def peak_bytes(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> int:
    """Returns the peak memory of tensors during a step in bytes, including the tensors in `held`.

    On a GPU, this is torch's own measurement. On a CPU, it is computed from the allocations that torch's profiler
    records, which are exact and reproducible but exclude memory that libraries allocate themselves.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    grown = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        grown += event.nbytes()
        most = max(most, grown)
    return most + sum(storages(held).values())


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Returns the size in bytes of each distinct storage behind tensors, by its address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def bytes_kept(net: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Returns the bytes that a forward pass keeps for the backward pass, excluding the parameters."""
    kept: list[Tensor] = []  # The tensors must stay alive, so that addresses are unique.
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        output = forward()
    del output
    parameters = storages(net.parameters())
    return sum(size for address, size in storages(kept).items() if address not in parameters)


# A kernel or operator belongs to the first kind that has a substring of its name.
KINDS = {
    "attention": ("scaled_dot_product", "flash", "fmha", "softmax", "bmm"),
    "matrix products": ("mm", "matmul", "conv", "linear", "cutlass", "nvjet", "xmma"),
    "rest": ("",),
}


def shares(step: Callable[[], object], device: torch.device) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Returns the share of a step's time by kind in `KINDS`, and the ten names with the largest shares."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    taken: dict[str, float] = {}
    for event in profiler.key_averages():
        taken[event.key] = event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(taken.values()) or 1.0
    by_kind = dict.fromkeys(KINDS, 0.0)
    for name, time_us in taken.items():
        kind = next(kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts))
        by_kind[kind] += time_us / total
    top = sorted(taken, key=lambda name: -taken[name])[:10]
    return by_kind, [(name, taken[name] / total) for name in top]
