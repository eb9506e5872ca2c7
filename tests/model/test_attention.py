from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vivit_train.models.attention import BlockwiseAttention, fused_attention, parts_of_queries


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("queries", [None, 1])
def test_queries_cut_into_parts_attend_as_one(
    clips: int, queries: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, clips, 3, 1041, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    results = []
    for threads in (1, 7):  # with one whole heads; with seven two parts, padded, as three would be too short
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        q, k, v = qkv.unbind(0)
        x = fused_attention(q[:, :, :queries], k, v)
        results.append((x, *torch.autograd.grad((x * x.detach().sin()).sum(), qkv)))
    for whole, cut in zip(*results, strict=True):
        assert cut.shape == whole.shape
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("heads", "queries", "threads", "parts"),
    [(3, 3137, 2, 2), (6, 3137, 2, 1), (12, 3137, 64, 6), (3, 3137, 1, 1), (3, 393, 2, 1), (3, 1, 2, 1)],
)
def test_parts_of_queries(heads: int, queries: int, threads: int, parts: int) -> None:
    assert parts_of_queries(heads, queries, threads) == parts


@pytest.mark.parametrize("queries", [1100, 1])
def test_blockwise_attention_is_attention(queries: int) -> None:
    draw = torch.Generator().manual_seed(0)
    sequences = 3 * torch.get_num_threads()  # not all in one block, nor all of 1100 queries
    q, k, v = (
        torch.randn(sequences, n, 4, generator=draw, dtype=torch.float64, requires_grad=True)
        for n in (queries, 1041, 1041)
    )
    blockwise, whole = BlockwiseAttention.apply(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(blockwise, whole, rtol=1e-12, atol=1e-12)
    grad = whole.detach().sin()
    for ours, theirs in zip(*(torch.autograd.grad(x, (q, k, v), grad) for x in (blockwise, whole)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_bf16_on_a_cpu_is_as_exact_as_attention_step_by_step() -> None:
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 3, 600, 64, generator=draw).bfloat16()
    grad_BhNd = torch.randn(2, 3, 600, 64, generator=draw).bfloat16()

    def step_by_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT * 64**-0.5).softmax(-1) @ v

    def results(dtype: torch.dtype, attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        x = qkv.to(dtype).requires_grad_()
        output = attention(*x.unbind(0))
        (grad,) = torch.autograd.grad(output, x, grad_BhNd.to(dtype))
        return [output.double(), *grad.double().unbind(0)]

    exact = results(torch.float64, step_by_step)
    ours, others = results(torch.bfloat16, fused_attention), results(torch.bfloat16, step_by_step)
    for right, own, other in zip(exact, ours, others, strict=True):
        assert (own - right).norm() <= 1.1 * (other - right).norm() <= 0.01 * right.norm()
