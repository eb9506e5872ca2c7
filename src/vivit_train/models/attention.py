"""Exact attention that never materializes the full attention map, tuned for the device, precision, and shape.

Shape suffixes: B batch, h heads, M queries, N keys, d head width, S sequences (one for each clip and head).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Both values are measured (docs/benchmarks.md): the elements of one thread's block of the map, which must fit in
# the cache, and the fewest queries that are worth a separate part.
BLOCK_ELEMENTS, PART_QUERIES = 2**20, 512


def fused_attention(q_BhMd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(d)) v, [B, h, M, d].

    This uses torch's fused kernel except in two cases: in bf16 on a CPU without AMX, and for training on a CPU if
    the kernel would leave threads idle.
    """
    on_cpu = q_BhMd.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and q_BhMd.dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported():
        with torch.autocast("cpu", enabled=False):
            x_SMd = BlockwiseAttention.apply(*(x.flatten(0, 1) for x in (q_BhMd, k_BhNd, v_BhNd)))
        return x_SMd.unflatten(0, q_BhMd.shape[:2])
    if on_cpu and q_BhMd.requires_grad:
        parts = parts_of_queries(math.prod(q_BhMd.shape[:2]), q_BhMd.shape[2], torch.get_num_threads())
        if parts > 1:
            return attention_by_parts(q_BhMd, k_BhNd, v_BhNd, parts)
    return F.scaled_dot_product_attention(q_BhMd, k_BhNd, v_BhNd)


def parts_of_queries(heads: int, queries: int, threads: int) -> int:
    """Returns the number of parts to split the queries of each head into, so that all threads have the same work.

    torch's backward pass assigns whole heads to threads; with two threads and three heads, one thread would wait.
    """
    return max(1, min(threads // math.gcd(heads, threads), queries // PART_QUERIES))


def attention_by_parts(q_BhMd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, parts: int) -> Tensor:
    """Returns the same values, computed with each part of the queries as a separate batch item."""
    B, _, M, _ = q_BhMd.shape
    q = F.pad(q_BhMd, (0, 0, 0, -M % parts)).unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)
    # For a single clip, these are views that take no memory.
    k, v = (x.unsqueeze(1).expand(-1, parts, -1, -1, -1).flatten(0, 1) for x in (k_BhNd, v_BhNd))
    x = F.scaled_dot_product_attention(q, k, v).unflatten(0, (B, parts)).transpose(1, 2)
    return x.flatten(2, 3)[:, :, :M]


class BlockwiseAttention(torch.autograd.Function):
    """Attention over blocks of the map that fit in the CPU cache, each recomputed in the backward pass.

    Maps [S, M, d], [S, N, d], [S, N, d] to [S, M, d]. On a CPU that multiplies bf16 matrices but has no AMX, this
    is 1.4 to 6 times as fast as torch's kernel. Scores are rounded to bf16, as in step-by-step attention.
    """

    @staticmethod
    def forward(q_SMd: Tensor, k_SNd: Tensor, v_SNd: Tensor) -> Tensor:
        x_SMd = torch.empty_like(q_SMd)
        for s, m, _, map_ in blocks(q_SMd, k_SNd):
            torch.bmm(map_, v_SNd[s], out=x_SMd[s, m])
        return x_SMd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SMd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_SMd, k_SNd, v_SNd = ctx.saved_tensors
        grad_q, sums = torch.empty_like(q_SMd), torch.promote_types(q_SMd.dtype, torch.float32)
        grad_k, grad_v = (torch.zeros_like(x, dtype=sums) for x in (k_SNd, v_SNd))
        for s, m, q, map_ in blocks(q_SMd, k_SNd):
            grad = grad_SMd[s, m]
            grad_v[s] += torch.bmm(map_.mT, grad)
            grad_scores = softmax_backward(torch.bmm(grad, v_SNd[s].mT), map_)
            grad_k[s] += torch.bmm(grad_scores.mT, q)
            grad_q[s, m] = torch.bmm(grad_scores, k_SNd[s]) * q_SMd.shape[-1] ** -0.5
        return grad_q, grad_k.to(k_SNd.dtype), grad_v.to(v_SNd.dtype)


def blocks(q_SMd: Tensor, k_SNd: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yields the slice of sequences, the slice of queries, the scaled queries, and the map of each block."""
    (S, M, d), N = q_SMd.shape, k_SNd.shape[1]
    rows = min(M, max(1, BLOCK_ELEMENTS // N))
    sequences = max(1, torch.get_num_threads() * BLOCK_ELEMENTS // (rows * N))
    for s in slices(S, sequences):
        for m in slices(M, rows):
            q = q_SMd[s, m] * d**-0.5
            yield s, m, q, torch.bmm(q, k_SNd[s].mT).softmax(-1)


def slices(length: int, step: int) -> list[slice]:
    """Splits a length into slices of `step`."""
    return [slice(start, start + step) for start in range(0, length, step)]


def softmax_backward(grad: Tensor, softmax: Tensor) -> Tensor:
    """Returns the gradient of the scores for a softmax over the last axis."""
    return torch.ops.aten._softmax_backward_data(grad, softmax, -1, softmax.dtype)
