"""What a training step costs: floating-point operations, the share of the device's speed, memory."""

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

from vivit_train.models.vivit import Block, ViViT

# Training takes three times the operations of the forward pass, as the backward pass has two products for each of
# its own. That is a little too much (nobody needs the gradient of the pixels); what is no product does not count.
FORWARD_AND_BACKWARD = 3
MEASURE_S = 0.1


def forward_flops(net: ViViT) -> int:
    """Floating-point operations of one clip's forward pass: of matrix products, convolutions and attention, a
    multiply-add as two. Counted on the meta device, where nothing is computed."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    # a compiled net is counted as it is written
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
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
def half_precision_speedup(dtype: torch.dtype) -> float:
    """How many times as fast as in float32 this processor trains one block of ViViT-S on one picture's tokens by
    autocast to `dtype`. Measured once per process, in a tenth of a second, as no list of instructions tells it:
    with AVX-512's bf16 one processor was faster, another slower (docs/benchmarks.md)."""
    with torch.random.fork_rng(devices=[]):  # the run's own draws stay what they are
        block = Block(384, 6, 4 * 384, norm_eps=1e-6, drop_path=0.0)
        tokens_BND = torch.rand(1, 197, 384)

    def seconds(dtype: torch.dtype) -> float:
        start_s = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = block(tokens_BND)
        output.sum().backward()
        return time.perf_counter() - start_s

    times = [(seconds(torch.float32), seconds(dtype)) for _ in range(4)][1:]  # in turn, after one of each
    return min(whole for whole, _ in times) / min(half for _, half in times)


@cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product, the best of those that fit in a tenth of
    a second: what this device reaches, rather than what its data sheet says. Measured once per process."""
    cuda = device.type == "cuda"
    n, products = (4096, 10) if cuda else (1024, 1)
    draw = torch.Generator(device).manual_seed(0)  # the run's own draws stay what they are
    a, b = (torch.rand(n, n, generator=draw, device=device).to(dtype) for _ in range(2))
    b = b.mT  # as in a linear layer: on a CPU only this is quick in float16
    a @ b  # the first time, libraries prepare themselves
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
    """Itself; of a tensor that trainer=fsdp shares out among processes all of it, for which all ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Of all of them as one vector, in every process."""
    return full_tensor(torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors]))


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


def peak_bytes(step: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> int:
    """The most memory that tensors take during a step, those `held` before it included.

    On a GPU by torch's own account; else by the allocations that its profiler sees, exact and the same each time,
    without what libraries take for themselves.
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
    """Bytes of the memory behind tensors, each piece once, by its address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def bytes_kept(net: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Memory that a forward pass keeps for the backward pass, without the parameters, which are there anyway."""
    kept: list[Tensor] = []  # alive, so that no two have the same address
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        output = forward()
    del output
    parameters = storages(net.parameters())
    return sum(size for address, size in storages(kept).items() if address not in parameters)


# By what a kernel's or an operator's name has in it, the first that fits.
KINDS = {
    "attention": ("scaled_dot_product", "flash", "fmha", "softmax", "bmm"),
    "matrix products": ("mm", "matmul", "conv", "linear", "cutlass", "nvjet", "xmma"),
    "rest": ("",),
}


def shares(step: Callable[[], object], device: torch.device) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Where the time of a step goes, by `KINDS`; and the names that take most of it, each with its share."""
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
