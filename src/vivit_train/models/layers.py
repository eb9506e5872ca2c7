"""The layers of a ViViT: tubelet embedding, attention, transformer blocks, and encoder.

The shape suffixes are those of models/vivit.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vivit_train.models.attention import fused_attention

ActivationCheckpointing = Literal["none", "mlp", "block"]
Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]
Positions = Literal["learned", "sincos"]


class TubeletEmbedding(nn.Module):
    """A layer that cuts a video into tubelets of t x h x w pixels and maps each to a token (paper, section 3.2).

    With `sampled_frames`, it uses uniform frame sampling instead: 2-D patches of that many evenly spaced frames.
    """

    frame_index: Tensor | None

    def __init__(
        self, dim: int, frames: int, tubelet: tuple[int, int, int], sampled_frames: int | None = None
    ) -> None:
        super().__init__()
        self.projection = nn.Conv3d(3, dim, tubelet, stride=tubelet)
        index = None if sampled_frames is None else torch.from_numpy(uniform_frames(frames, sampled_frames))
        self.register_buffer("frame_index", index, persistent=False)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Returns the tokens [B, t, n, D]."""
        if self.frame_index is not None:
            video_BCTHW = video_BCTHW.index_select(2, self.frame_index)
        t, h, w = self.projection.kernel_size
        cut = video_BCTHW.unfold(2, t, t).unfold(3, h, h).unfold(4, w, w)  # [B, C, t, rows, columns, *tubelet]
        pixels_BtnP = cut.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(2, 3)
        # This equals a convolution whose stride is its kernel size, but is up to twice as fast.
        return F.linear(pixels_BtnP, self.projection.weight.flatten(1), self.projection.bias)


def uniform_frames(frames: int, sampled: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the indices of the frames that uniform frame sampling keeps, rounded as in the authors' code."""
    if sampled >= frames:
        return np.arange(frames)
    return np.round(frames / (sampled + 1) * np.arange(1, sampled + 1)).astype(np.int64)


class Attention(nn.Module):
    """Multi-head self-attention over the second-to-last axis of [..., N, D].

    With `eager`, it computes the same values step by step, so that a forward hook on `probabilities` can see the
    attention maps [B, h, N, N], which the fused kernel never materializes. `rope` has the sines and cosines
    [2, N, d] of rotary positions, or is None.
    """

    rope: Tensor | None

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.eager = False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.probabilities = nn.Identity()
        self.register_buffer("rope", None, persistent=False)

    def attend(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, num_queries: int | None = None) -> Tensor:
        """Returns the attention output [B, h, N, d], or of the first `num_queries` tokens only."""
        if not self.eager:
            return fused_attention(q_BhNd[:, :, :num_queries], k_BhNd, v_BhNd)
        scores_BhNN = q_BhNd @ k_BhNd.transpose(-2, -1) * q_BhNd.shape[-1] ** -0.5
        return (self.probabilities(scores_BhNN.softmax(-1)) @ v_BhNd)[:, :, :num_queries]

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Returns all tokens, or the first `num_queries`; each attends to all tokens."""
        qkv = self.qkv(x.flatten(0, -3)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rope is not None:
            q, k = rotated(q, self.rope), rotated(k, self.rope)
        x_BND = self.attend(q, k, v, num_queries).transpose(1, 2).flatten(2)
        return self.out(x_BND).unflatten(0, x.shape[:-2])


def rotated(x_BhNd: Tensor, rope_2Nd: Tensor) -> Tensor:
    """Rotates each pair of channels i and i + d/2 by the angle of the token."""
    (sin_Nd, cos_Nd), (first, second) = rope_2Nd, x_BhNd.chunk(2, dim=-1)
    return (x_BhNd * cos_Nd + torch.cat([-second, first], dim=-1) * sin_Nd).to(x_BhNd.dtype)


class FactorizedDotProductAttention(Attention):
    """The attention of model 4: the first half of the heads covers time, the second half space; [B, t, n, D]."""

    def forward(self, x_BtnD: Tensor, num_queries: int | None = None) -> Tensor:
        B, t, n, _ = x_BtnD.shape
        qkv = self.qkv(x_BtnD).unflatten(-1, (3, 2, self.heads // 2, -1))  # [B, t, n, 3, 2, h/2, d]
        over_time, over_space = qkv.unbind(4)
        q, k, v = over_time.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)  # each [B n, h/2, t, d]
        x_time = self.attend(q, k, v).unflatten(0, (B, n)).permute(0, 3, 1, 2, 4)
        q, k, v = over_space.permute(3, 0, 1, 4, 2, 5).flatten(1, 2).unbind(0)  # each [B t, h/2, n, d]
        x_space = self.attend(q, k, v).unflatten(0, (B, t)).permute(0, 1, 3, 2, 4)
        return self.out(torch.cat([x_time, x_space], dim=3).flatten(3))


class MLP(nn.Module):
    """A two-layer MLP. `act` is its activation, by default the tanh form of GELU."""

    act: Activation = "gelu_tanh"

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.act == "quick_gelu":
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(F.gelu(x, approximate="tanh" if self.act == "gelu_tanh" else "none"))


class Block(nn.Module):
    """A pre-norm transformer block of models 1 and 2, and with another attention class, of model 4."""

    attention_class: type[Attention] = Attention
    activation_checkpointing: ActivationCheckpointing = "none"

    def __init__(self, dim: int, heads: int, mlp_dim: int, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = self.attention_class(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)
        self.adapter: nn.Module | None = None  # See models/tuning.py.

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Returns all tokens, or the first `num_queries` along the second-to-last axis."""
        if self.adapter is not None:
            x = self.adapter(x)
        return self.maybe_checkpoint(self.compute, "block", x, num_queries)

    def compute(self, x: Tensor, num_queries: int | None) -> Tensor:
        x = x[..., :num_queries, :] + self.drop_path(self.attention(self.norm1(x), num_queries))
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.maybe_checkpoint(self.mlp, "mlp", self.norm2(x)))

    def maybe_checkpoint(self, part: Callable[..., Tensor], name: ActivationCheckpointing, *inputs: Any) -> Tensor:
        """Returns the output of a part, with activation checkpointing if it is on for `name`."""
        if self.activation_checkpointing == name and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)


class FactorizedDotProductBlock(Block):
    """A transformer block of model 4."""

    attention_class = FactorizedDotProductAttention


class FactorizedSelfAttentionBlock(Block):
    """A block of model 3: attention over space and over time with separate weights; [B, t, n, D]."""

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, norm_eps: float, drop_path: float, *, order: str
    ) -> None:
        super().__init__(dim, heads, mlp_dim, norm_eps, drop_path)
        self.norm_time = nn.LayerNorm(dim, eps=norm_eps)
        self.attention_time = Attention(dim, heads)
        self.order = order

    def over_space(self, x_BtnD: Tensor) -> Tensor:
        return x_BtnD + self.drop_path(self.attention(self.norm1(x_BtnD)))

    def over_time(self, x_BtnD: Tensor) -> Tensor:
        y_BntD = self.attention_time(self.norm_time(x_BtnD).transpose(1, 2))
        return x_BtnD + self.drop_path(y_BntD.transpose(1, 2))

    def compute(self, x_BtnD: Tensor, num_queries: int | None) -> Tensor:
        # All tokens are returned, because this model has no class token.
        if self.order == "space_time":
            x_BtnD = self.over_time(self.over_space(x_BtnD))
        else:
            x_BtnD = self.over_space(self.over_time(x_BtnD))
        return self.feed_forward(x_BtnD)


class Encoder(nn.Module):
    """A transformer encoder with position embeddings and pooling: [B, ..., *grid, D] -> [B, ..., D].

    `grid` has the sizes of the token axes without the class token: (N,), or (t, n) if blocks treat them
    differently. With `cls_token`, pooling takes the class token instead of the mean. Register tokens have no
    position and are not pooled.
    """

    def __init__(
        self,
        blocks: list[Block],
        grid: tuple[int, ...],
        dim: int,
        norm_eps: float,
        cls_token: bool,
        pos_embed: Positions = "learned",
        fc_norm: bool = False,
        pre_norm: bool = False,
        reg_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.grid = (grid[0] + 1,) if cls_token else grid
        self.fc_norm = fc_norm
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cls_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, dim)) if reg_tokens else None
        shape = 1, math.prod(self.grid), dim
        # Fixed positions are stored like learned ones, so that weights of another grid can be interpolated.
        self.pos_embed = nn.Parameter(torch.empty(shape), requires_grad=pos_embed == "learned")
        self.norm_pre = nn.LayerNorm(dim, eps=norm_eps) if pre_norm else None
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        # Only these tokens are used after the last block: the class token alone saves a twelfth of ViViT-B's work.
        used = 1 if self.cls_token is not None else None if self.reg_token is None else x.shape[-2]
        x = self.tokens(x, used)
        x = x.flatten(-1 - len(self.grid), -2).mean(-2) if self.cls_token is None else x[..., 0, :]
        return self.norm(x) if self.fc_norm else x

    def tokens(self, x: Tensor, used: int | None = None, kept: Tensor | None = None) -> Tensor:
        """Returns all tokens, or the first `used`: the class token, then the others, and the registers last.

        Args:
            x: The tokens of the video, [B, ..., N, D].
            used: The number of tokens that the last block returns; None returns all.
            kept: The places on the axis N of the only tokens that pass through the blocks, int64 [B, ..., k];
                axes of size 1 are broadcast. None keeps all.
        """
        x = self.embed(x, kept)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, num_queries=used)
        return x if self.fc_norm else self.norm(x)

    def intermediates(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Returns all tokens after each of these numbers of blocks, in ascending order.

        Args:
            x: The tokens of the video, [B, ..., N, D].
            layers: The numbers of blocks, ascending. After the last block, tokens are those of `tokens`. After
                fewer, the norm has no weights, as those of the norm fit the last block alone.
        """
        x, found = self.embed(x), []
        for number, block in enumerate(self.blocks[: layers[-1]], start=1):
            x = block(x)
            if number == len(self.blocks):
                found.append(x if self.fc_norm else self.norm(x))
            elif number in layers:
                found.append(F.layer_norm(x, x.shape[-1:]))
        return found

    def embed(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Returns the tokens before the first block; see `tokens`."""
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(*x.shape[:-2], 1, -1), x], dim=-2)
        x = x + self.pos_embed.unflatten(1, self.grid)
        if kept is not None:
            first = int(self.cls_token is not None)
            places = kept[..., None].expand(*x.shape[:-2], -1, x.shape[-1])
            x = torch.cat([x[..., :first, :], x[..., first:, :].gather(-2, places)], dim=-2)
        if self.reg_token is not None:
            x = torch.cat([x, self.reg_token.expand(*x.shape[:-2], -1, -1)], dim=-2)
        return x if self.norm_pre is None else self.norm_pre(x)

    def add_rotary_positions(self, rows: int, columns: int) -> None:
        """Rotates queries and keys by the place of their tokens in the image, as in DINOv3 (arXiv 2508.10104).

        Places are relative to the image, from -1 to 1. Class and register tokens are not rotated.
        """
        num_cls, num_reg = (0 if x is None else x.shape[1] for x in (self.cls_token, self.reg_token))
        # No weights file holds these numbers, so they exist even while a model of a checkpoint has only shapes.
        y, x = (2 * (torch.arange(size, device="cpu") + 0.5) / size - 1 for size in (rows, columns))
        place_n2 = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        for attention in (module for module in self.blocks.modules() if isinstance(module, Attention)):
            d = attention.out.in_features // attention.heads
            periods = 100.0 ** (2 * torch.arange(d // 4, device="cpu") / (d // 2))
            angles_nd = (2 * math.pi * place_n2[:, :, None] / periods).flatten(1).repeat(1, 2)
            steps = (math.prod(self.grid) - num_cls) // len(angles_nd)
            angles_Nd = F.pad(angles_nd.repeat(steps, 1), (0, 0, num_cls, num_reg))
            attention.rope = torch.stack([angles_Nd.sin(), angles_Nd.cos()])


def sincos_positions(num_tokens: int, dim: int) -> Tensor:
    """Returns the fixed positions [1, N, D] of VideoMAE: sines and cosines in turn of the number of the token."""
    rates_D = 10_000 ** (-2 * (torch.arange(dim, dtype=torch.float64) // 2) / dim)
    angles_ND = torch.arange(num_tokens, dtype=torch.float64)[:, None] * rates_D
    return torch.where(torch.arange(dim) % 2 == 0, angles_ND.sin(), angles_ND.cos()).float()[None]


def init_weights(module: nn.Module) -> None:
    """Initializes a module as the authors do: Xavier kernels and position embeddings of std 0.02."""
    if isinstance(module, Attention):
        for weight in (*module.qkv.weight.chunk(3), module.out.weight):  # The authors have separate q, k, and v.
            nn.init.xavier_uniform_(weight)
        for linear in (module.qkv, module.out):
            nn.init.zeros_(linear.bias)
    elif isinstance(module, MLP):
        for linear in (module.fc1, module.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
    elif isinstance(module, Encoder):
        if module.reg_token is not None:
            nn.init.normal_(module.reg_token, std=0.02)
        if module.pos_embed.requires_grad:
            nn.init.normal_(module.pos_embed, std=0.02)
        else:
            num_cls, tokens = int(module.cls_token is not None), math.prod(module.grid)
            positions = sincos_positions(tokens - num_cls, module.pos_embed.shape[-1])
            with torch.no_grad():
                module.pos_embed.copy_(F.pad(positions, (0, 0, num_cls, 0)))
    elif isinstance(module, TubeletEmbedding):
        fan_in = module.projection.weight[0].numel()
        nn.init.normal_(module.projection.weight, std=fan_in**-0.5)  # This is LeCun normal, the default of flax.
        nn.init.zeros_(module.projection.bias)  # type: ignore[arg-type]
