"""A linear head on pooled features of frames: the model of `vivit probe`.

Shape suffixes as in models/vivit.py, and s regions of a frame, E features of a frame or a clip, L the side of the
small frames in which motion is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivit_train.models.vivit import (
    ModelName,
    ViViT,
    ViViTFactorizedDotProduct,
    ViViTFactorizedEncoder,
    ViViTFactorizedSelfAttention,
    ViViTSpaceTime,
    unknown_model,
)
from vivit_train.utils.arguments import check_arguments

Input = Literal["frames", "foreground"]
Space = Literal["none", "cls", "mean", "grid"]
Time = Literal[
    "middle", "mean", "mean_std", "mean_diff", "diff", "ordered", "ordered_diff", "differences", "attentive"
]
Motion = Literal["none", "energy", "map"]
Source = tuple[Input, int]  # where features come from: the input of the encoder, and the number of layers
SIDE = 3  # "grid" and "map" average a frame over 3 x 3 regions.
# The places of each kind of features among those of `FrameProbe.regions`.
REGIONS = {"cls": slice(0, 1), "mean": slice(1, 2), "grid": slice(2, 2 + SIDE**2)}
LUMA = 32  # The side of the small frames in which motion is measured, in pixels.
HEADS = 4  # of an attentive head
MOTION = 7  # See `motion_energy`.
GAIN = 2.0  # of a foreground, whose contrast is lower than that of frames


@dataclass(frozen=True)
class Pooling:
    """How the features of the frames become those of a clip; see the arguments of `FrameProbe`."""

    space: Space
    time: Time
    motion: Motion = "none"
    layers: int | None = None
    input: Input = "frames"

    def __post_init__(self) -> None:
        if self.space == self.motion == "none":
            raise ValueError("space and motion are none, so the head would have no features")
        if self.time == "attentive" and (self.space == "none" or self.motion != "none"):
            raise ValueError("time is attentive, which needs a space and no motion")


class FrameProbe(ViViT):
    """The encoder of a ViViT, whose features of the frames are pooled without weights, and a head.

    With vivit_fe, it is the spatial encoder, which sees each frame by itself. With the other models, the features
    of a frame are those of a time index of the token grid, and depend on the whole clip.

    Args:
        model: The name of one of the four models, each of which has a subclass; the default is vivit_fe.
        input: What the encoder sees: the frames, or their `foreground`.
        space: The features of a frame: its class token, the mean of its patch tokens, their means in each of 3 x 3
            regions ("grid"), or "none".
        time: How the features of the frames become those of the clip: the middle frame's, their mean, their mean
            and standard deviation, their mean and mean absolute difference from frame to frame, this difference
            alone, all of them in order, in order and the difference, or in order and each absolute difference
            from frame to frame ("differences"); or, with "attentive", their mean over regions and frames with
            weights that the head learns.
        motion: What the head also gets of the absolute differences of successive frames: nothing, the seven
            numbers of `motion_energy`, or the mean of each difference in each of 3 x 3 regions ("map").
        layers: The number of layers whose output has the features of the frames; None means all. Those above them
            are not computed.
        more_poolings: More poolings, each a mapping with these five arguments, of which `space` and `time` are
            required. The head gets the features of all of them, one after the other.
        kwargs: Other arguments of `ViViT`. There is no temporal encoder.

    Raises:
        ValueError: There are no features, or `ViViT` refuses the other arguments.
    """

    def __new__(cls, model: str | None = None, *args: Any, **kwargs: Any) -> "FrameProbe":
        """Creates an instance of the subclass for the named model, or of the subclass that is called."""
        if cls is not FrameProbe:
            return nn.Module.__new__(cls)
        if (model := model or "vivit_fe") not in PROBES:
            raise ValueError(unknown_model(model))
        return nn.Module.__new__(PROBES[model])

    def __init__(
        self,
        model: ModelName | None = None,
        *,
        input: Input = "frames",
        space: Space = "grid",
        time: Time = "ordered",
        motion: Motion = "none",
        layers: int | None = None,
        more_poolings: Sequence[Mapping[str, Any]] = (),
        **kwargs: Any,
    ) -> None:
        for number, stated in enumerate(more_poolings):
            check_arguments(Pooling, stated, f"more_poolings[{number}]")
        more = [Pooling(**stated) for stated in more_poolings]
        super().__init__(model, **kwargs | {"temporal_depth": 0})
        self.poolings = [Pooling(space, time, motion, layers, input), *more]
        self.check_poolings()
        t, width = self.grid[0], self.head.in_features
        frames = torch.empty(1, t, REGIONS["grid"].stop, width, device="meta")
        luma = torch.empty(1, max(2, self.input_shape[1]), LUMA, LUMA, device="meta")
        size = sum(pooled(frames, luma, pooling).shape[1] for pooling in self.poolings)
        self.head = head_for(time, size, width, self.head.out_features)  # type: ignore[assignment]

    def check_poolings(self) -> None:
        """Raises ValueError if the encoder does not have the features, or the head cannot have those of all."""
        for pooling in self.poolings:
            if pooling.space == "cls" and self.encoder.cls_token is None:
                raise ValueError("space is cls, but with pool=mean there is no class token")
            if pooling.layers is not None and not 1 <= pooling.layers <= len(self.encoder.blocks):
                raise ValueError(f"layers is {pooling.layers}, but the encoder has {len(self.encoder.blocks)}")
            if pooling.time == "attentive" and len(self.poolings) > 1:
                raise ValueError("time is attentive, which needs a head of its own: set more_poolings=[]")

    @property
    def is_joint(self) -> bool:
        """Whether one axis has the tokens of all frames, so that there is one class token for all of them."""
        return self.layout.covers("encoder", "t") and len(self.layout.encoders["encoder"]) == 1

    def regions(self, video_BCTHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Returns what each kind of `space` takes from each frame after each number of layers, each [B, t, s, D].

        `layers` ascend. `REGIONS` says which kind of `space` takes which places of the axis s.
        """
        return [self.averaged(x) for x in self.tokens_after(video_BCTHW, layers)]

    def tokens_after(self, video_BCTHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Returns all tokens of the encoder after each number of layers; see `Encoder.intermediates`."""
        x_BtnD = self.embedding(video_BCTHW)
        return self.encoder.intermediates(x_BtnD.flatten(1, 2) if self.is_joint else x_BtnD, layers)

    def averaged(self, tokens: Tensor) -> Tensor:
        """Returns the class token, the mean of the patches and their means in regions, [B, t, s, D]."""
        first, (t, rows, columns) = int(self.encoder.cls_token is not None), self.grid
        count = t * rows * columns if self.is_joint else rows * columns
        patches, cls_token = tokens[..., first : first + count, :], tokens[..., :1, :]
        if self.is_joint:
            patches, cls_token = patches.unflatten(1, (t, -1)), cls_token[:, None].expand(-1, t, -1, -1)
        mean = patches.mean(-2, keepdim=True)
        maps = patches.mT.unflatten(-1, (rows, columns)).flatten(0, 1)
        grid = F.adaptive_avg_pool2d(maps, SIDE).flatten(2).mT.unflatten(0, (-1, t))
        return torch.cat([mean if self.encoder.cls_token is None else cls_token, mean, grid], dim=2)

    def source_of(self, pooling: Pooling) -> Source:
        """Returns where the features of a pooling come from."""
        return pooling.input, pooling.layers or len(self.encoder.blocks)

    @property
    def passes(self) -> dict[Input, list[int]]:
        """The inputs that pass through the encoder, in order, with the numbers of layers, ascending."""
        needed = [self.source_of(one) for one in self.poolings if one.space != "none"]
        return {seen: sorted({number for of, number in needed if of == seen}) for seen, _ in needed}

    def features(self, video_BCTHW: Tensor) -> Tensor:
        self.check_input(video_BCTHW)
        return self.pool(self.tokens(video_BCTHW), video_BCTHW)

    def tokens(self, video_BCTHW: Tensor) -> dict[Source, Tensor]:
        """Returns all tokens of each source of the poolings, in the order of the passes."""
        found: dict[Source, Tensor] = {}
        for seen, layers in self.passes.items():
            x_BCTHW = foreground(video_BCTHW) if seen == "foreground" else video_BCTHW
            found |= {(seen, n): x for n, x in zip(layers, self.tokens_after(x_BCTHW, layers), strict=True)}
        return found

    def pool(self, tokens: Mapping[Source, Tensor], video_BCTHW: Tensor) -> Tensor:
        """Returns the features of a clip from its tokens, [B, E]."""
        luma = luminance(video_BCTHW)
        regions = {source: self.averaged(x) for source, x in tokens.items()}
        return torch.cat(
            [pooled(regions.get(self.source_of(one), luma), luma, one) for one in self.poolings], dim=1
        )


class FactorizedEncoderProbe(FrameProbe, ViViTFactorizedEncoder):
    """The probe of vivit_fe."""


class SpaceTimeProbe(FrameProbe, ViViTSpaceTime):
    """The probe of vivit_st."""


class FactorizedSelfAttentionProbe(FrameProbe, ViViTFactorizedSelfAttention):
    """The probe of vivit_fsa."""


class FactorizedDotProductProbe(FrameProbe, ViViTFactorizedDotProduct):
    """The probe of vivit_fdp."""


PROBES: dict[str, type[FrameProbe]] = {
    probe.layout.name: probe
    for probe in (
        FactorizedEncoderProbe,
        SpaceTimeProbe,
        FactorizedSelfAttentionProbe,
        FactorizedDotProductProbe,
    )
}


class AttentiveHead(nn.Module):
    """Means of tokens with learned weights, and a linear layer: [B, N * D] -> [B, K].

    A weight is the softmax over all tokens of a linear score of the token plus a bias of its place. Each head has
    weights of its own. This is attention with one learned query a head, whose keys and values are the tokens.

    Args:
        tokens: The number of tokens N: the regions of all frames.
        width: Their width D.
        num_classes: The number of classes K.
        heads: The number of heads H.
    """

    def __init__(self, tokens: int, width: int, num_classes: int, heads: int = HEADS) -> None:
        super().__init__()
        self.in_features, self.out_features = tokens * width, num_classes  # as `nn.Linear` has them
        self.query = nn.Parameter(torch.zeros(width, heads))
        self.place = nn.Parameter(torch.zeros(tokens, heads))
        self.weight = nn.Parameter(torch.zeros(heads * width, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x_BE: Tensor) -> Tensor:
        return attentive_logits(x_BE, self.query, self.place, self.weight, self.bias)


def attentive_logits(x_BE: Tensor, query: Tensor, place: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the logits of an `AttentiveHead`, or of P of them, whose parameters then begin with an axis P."""
    x_BND = x_BE.unflatten(1, (place.shape[-2], -1))
    score = torch.einsum("bnd,...dh->...bnh", x_BND, query) * x_BND.shape[-1] ** -0.5 + place.unsqueeze(-3)
    mean = torch.einsum("bnd,...bnh->...bhd", x_BND, score.softmax(-2))
    return mean.flatten(-2) @ weight + bias.unsqueeze(-2)


def head_for(time: Time, size: int, width: int, num_classes: int) -> nn.Module:
    """Returns the head on features of a size, whose logits are 0; `width` is that of a token."""
    if time == "attentive":
        return AttentiveHead(size // width, width, num_classes)
    head = nn.Linear(size, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def mirrored(regions_BtsD: Tensor) -> Tensor:
    """Returns the features of the regions as if the frames were mirrored: the columns of the grid are reversed."""
    grid = regions_BtsD[:, :, REGIONS["grid"]].unflatten(2, (SIDE, SIDE)).flip(3).flatten(2, 3)
    return torch.cat([regions_BtsD[:, :, : REGIONS["grid"].start], grid], dim=2)


def pooled(regions: Tensor, luma_BTLL: Tensor, pooling: Pooling) -> Tensor:
    """Returns the features of a clip, [B, E].

    Args:
        regions: The features of the regions of each frame for its input and layers, [B, t, s, D]. They are not
            used if its space is "none".
        luma_BTLL: The small frames of `luminance`, which are used only for motion.
        pooling: The pooling.
    """
    space, time = pooling.space, pooling.time
    parts = [] if space == "none" else [pool_time(regions[:, :, REGIONS[space]].flatten(2), time)]
    parts += {"none": [], "energy": [motion_energy(luma_BTLL)], "map": [motion_map(luma_BTLL)]}[pooling.motion]
    return torch.cat(parts, dim=1)


def pool_time(x_BtE: Tensor, time: Time) -> Tensor:
    """Returns the features of a clip from those of its frames; see `FrameProbe`."""
    if time == "middle":
        return x_BtE[:, x_BtE.shape[1] // 2]
    differences = x_BtE.diff(dim=1).abs()
    difference = differences.sum(1) / max(1, x_BtE.shape[1] - 1)
    mean = x_BtE.mean(1)
    parts = {
        "mean": [mean],
        "mean_std": [mean, x_BtE.std(1, correction=0)],
        "mean_diff": [mean, difference],
        "diff": [difference],
        "ordered": [x_BtE.flatten(1)],
        "attentive": [x_BtE.flatten(1)],
        "ordered_diff": [x_BtE.flatten(1), difference],
        "differences": [x_BtE.flatten(1), differences.flatten(1)],
    }
    return torch.cat(parts[time], dim=1)


def foreground(video_BCTHW: Tensor) -> Tensor:
    """Returns what moves before a static background: each frame minus the median of the clip over time."""
    middle = (video_BCTHW.shape[2] - 1) // 2
    in_order = video_BCTHW.sort(dim=2).values  # ONNX has no median.
    return GAIN * (video_BCTHW - in_order[:, :, middle : middle + 1])


def luminance(video_BCTHW: Tensor) -> Tensor:
    """Returns small gray frames, [B, T, 32, 32]: the mean of the normalized channels."""
    return F.adaptive_avg_pool2d(video_BCTHW.mean(1), LUMA)


def motion_map(luma_BTLL: Tensor) -> Tensor:
    """Returns the mean absolute difference of successive frames in each of 3 x 3 regions, [B, (T - 1) * 9]."""
    return F.adaptive_avg_pool2d(luma_BTLL.diff(dim=1).abs(), SIDE).flatten(1)


def motion_energy(luma_BTLL: Tensor) -> Tensor:
    """Returns seven numbers about the absolute differences of successive frames, [B, 7].

    These are, of the mean difference of each frame, its mean, standard deviation, minimum and maximum over time,
    and how much larger it is in the second half; and of the map of the mean over time, its standard deviation and
    its maximum. All are 0 if there is one frame.
    """
    if luma_BTLL.shape[1] < 2:
        return luma_BTLL.new_zeros(len(luma_BTLL), MOTION)
    maps = luma_BTLL.diff(dim=1).abs()
    energy_BT = maps.mean((2, 3))
    half = energy_BT.shape[1] // 2
    later = energy_BT[:, half:].mean(1) - energy_BT[:, : max(half, 1)].mean(1)
    map_BP = maps.mean(1).flatten(1)
    extremes = energy_BT.amin(1), energy_BT.amax(1)
    over_time = energy_BT.mean(1), energy_BT.std(1, correction=0), *extremes, later
    return torch.stack([*over_time, map_BP.std(1, correction=0), map_BP.amax(1)], dim=1)
