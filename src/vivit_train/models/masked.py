"""Masked autoencoding of videos (VideoMAE, arXiv 2203.12602): visible tokens, tube masks, decoder and targets.

A tube mask hides the same places of the image at all time indices. The spatial axis of every model is therefore
shorter by the masked share: attention of the encoders, over space and over time, sees visible tokens only.

Shape suffixes as in models/vivit.py, and k visible and m masked of the n places, P numbers of a tubelet's pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivit_train.models.layers import Block, Encoder, init_weights, sincos_positions
from vivit_train.models.vivit import MODELS, Grid, ViViT

EPS = 1e-6  # As in VideoMAE, it keeps a tubelet of one color finite.


def tube_masks(seeds: Sequence[int], places: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Returns the visible and the masked places of clips in ascending order, int64 [B, k] and [B, m].

    m is the nearest number to `ratio` x places, but at least one place is visible and one is masked.

    Args:
        seeds: The seed of each clip, which alone decides its mask.
        places: The number of places n.
        ratio: The share of the places to mask.
    """
    masked = min(max(round(ratio * places), 1), places - 1)
    order_Bn = torch.stack(
        [torch.randperm(places, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    return order_Bn[:, masked:].sort(1).values, order_Bn[:, :masked].sort(1).values


def visible_tokens(net: ViViT, video_BCTHW: Tensor, kept_Bk: Tensor) -> Tensor:
    """Returns what the encoders of a model make of the visible tokens alone, normalized, [B, t, k, D].

    A token of vivit_fe is that of its spatial encoder plus that of its time index from its temporal encoder, so
    that both encoders learn.

    Args:
        net: The model.
        video_BCTHW: The normalized clips.
        kept_Bk: The visible places.
    """
    net.check_input(video_BCTHW)
    x_BtnD = net.embedding(video_BCTHW)
    t, n = x_BtnD.shape[1:3]
    encoder, first = net.encoder, int(net.encoder.cls_token is not None)
    if net.layout.encoders["encoder"] == ("thw",):
        kept_BN = (torch.arange(t, device=kept_Bk.device)[:, None] * n + kept_Bk[:, None]).flatten(1)
        x_BND = normalized(encoder, encoder.tokens(x_BtnD.flatten(1, 2), kept=kept_BN))
        return x_BND[:, first : first + kept_BN.shape[1]].unflatten(1, (t, -1))
    x_BtND = encoder.tokens(x_BtnD, kept=kept_Bk[:, None])
    x_BtkD = x_BtND[:, :, first : first + kept_Bk.shape[1]]
    if net.temporal_encoder is None:
        return normalized(encoder, x_BtkD)
    x_BtD = normalized(encoder, x_BtND[:, :, 0] if first else x_BtkD.mean(2))
    over_time = net.temporal_encoder
    y_BtD = normalized(over_time, over_time.tokens(x_BtD))[:, int(over_time.cls_token is not None) :]
    return normalized(encoder, x_BtkD) + y_BtD[:, :, None]


def normalized(encoder: Encoder, x: Tensor) -> Tensor:
    """Returns the tokens of an encoder normalized, which it leaves to the pooling with `fc_norm`."""
    return encoder.norm(x) if encoder.fc_norm else x


class Decoder(nn.Module):
    """A small transformer that predicts the pixels of masked tubelets from visible tokens.

    Args:
        dim: The width D of the model.
        grid: The token grid of the model.
        pixels: The numbers of a tubelet's pixels P.
        decoder_dim: The width of the decoder.
        depth: The number of layers.
        heads: The number of attention heads.
        norm_eps: The epsilon of the layer norms.

    Raises:
        ValueError: The width is no multiple of the heads.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        grid: Grid,
        pixels: int,
        *,
        decoder_dim: int,
        depth: int,
        heads: int,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if decoder_dim % heads:
            raise ValueError(f"decoder_dim {decoder_dim} is not a multiple of decoder_heads {heads}")
        self.embedding = nn.Linear(dim, decoder_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, decoder_dim))
        places = sincos_positions(math.prod(grid), decoder_dim).unflatten(1, (grid[0], -1))
        self.register_buffer("positions", places, persistent=False)
        self.blocks = nn.ModuleList(
            [Block(decoder_dim, heads, 4 * decoder_dim, norm_eps, drop_path=0.0) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(decoder_dim, eps=norm_eps)
        self.head = nn.Linear(decoder_dim, pixels)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)
        for linear in (self.embedding, self.head):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            block.mlp.act = "gelu"  # type: ignore[union-attr]

    def forward(self, x_BtkD: Tensor, kept_Bk: Tensor, masked_Bm: Tensor) -> Tensor:
        """Returns the predicted pixels of the masked tubelets, [B, t, m, P], from `visible_tokens`."""
        visible, masked = (self.positions[0][:, places].transpose(0, 1) for places in (kept_Bk, masked_Bm))
        masked = masked + self.mask_token
        count = masked.shape[1] * masked.shape[2]
        # The masked tokens come first: only these are needed after the last block.
        x = torch.cat([masked.flatten(1, 2), (self.embedding(x_BtkD) + visible).flatten(1, 2)], dim=1)
        for i, block in enumerate(self.blocks, start=1):
            x = block(x, num_queries=count if i == len(self.blocks) else None)
        pixels: Tensor = self.head(self.norm(x))
        return pixels.unflatten(1, masked.shape[1:3])


def tubelets(net: ViViT, video_BTCHW: Tensor) -> Tensor:
    """Returns the pixels of each tubelet, [B, t, n, C, t x h x w], of the frames that the model sees."""
    if net.embedding.frame_index is not None:
        video_BTCHW = video_BTCHW.index_select(1, net.embedding.frame_index)
    t, h, w = net.tubelet
    cut = video_BTCHW.unfold(1, t, t).unfold(3, h, h).unfold(4, w, w)  # [B, t, C, rows, columns, *tubelet]
    return cut.permute(0, 1, 3, 4, 2, 5, 6, 7).flatten(5).flatten(2, 3)


def whole_clip(net: ViViT, tubelets_BtnCp: Tensor) -> Tensor:
    """Returns the clip [B, T, C, H, W] of its tubelets: the inverse of `tubelets`, of the frames that it keeps."""
    (_, rows, columns), tubelet = net.grid, net.tubelet
    parts = tubelets_BtnCp.unflatten(4, tubelet).unflatten(2, (rows, columns))
    return parts.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)


def at_places(tubelets_BtnCp: Tensor, places_Bm: Tensor) -> Tensor:
    """Returns the indices of the tubelets at some places of each clip for gather and scatter, [B, t, m, C, p]."""
    B, t, _, C, p = tubelets_BtnCp.shape
    return places_Bm[:, None, :, None, None].expand(B, t, -1, C, p)


def scales(tubelets_BtmCp: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the standard deviation of each tubelet and channel, each [B, t, m, C, 1]."""
    std, mean = torch.std_mean(tubelets_BtmCp, -1, unbiased=True, keepdim=True)
    return mean, std + EPS


def targets(net: ViViT, video_BTCHW: Tensor, masked_Bm: Tensor) -> Tensor:
    """Returns the targets of masked tubelets, [B, t, m, P]: pixels with mean 0 and variance 1 in each channel.

    Args:
        net: The model.
        video_BTCHW: The clips, uint8.
        masked_Bm: The masked places.
    """
    whole = tubelets(net, video_BTCHW)
    hidden = whole.gather(2, at_places(whole, masked_Bm)) / 255
    mean, std = scales(hidden)
    return ((hidden - mean) / std).flatten(3)


def clip_losses(predicted_BtmP: Tensor, target_BtmP: Tensor) -> Tensor:
    """Returns the mean squared error of each clip, [B]."""
    return F.mse_loss(predicted_BtmP.float(), target_BtmP, reduction="none").flatten(1).mean(1)


def problems_of(net: ViViT) -> list[str]:
    """Returns a message for each reason why a model cannot be pretrained by masking."""
    problems = []
    known = MODELS.get(net.model)  # type: ignore[call-overload]
    if known is None or type(net).encode is not known.encode:
        problems.append(f"{type(net).__name__} encodes tokens in its own way, which a mask cannot shorten")
    if net.rope:
        problems.append("rotary positions need all tokens of a frame: set model.rope=false")
    if net.grid[1] * net.grid[2] < 2:
        problems.append("a frame has a single tubelet, so none can be masked: set a smaller model.tubelet")
    if math.prod(net.tubelet) < 2:
        problems.append("a tubelet of a single pixel has no contrast to predict: set a larger model.tubelet")
    return problems
