"""The four models of ViViT: A Video Vision Transformer (arXiv 2103.15691).

    vivit_st    Model 1, spatio-temporal attention: one encoder over all tokens of the video.
    vivit_fe    Model 2, factorized encoder: a spatial encoder per time index, then a temporal encoder.
    vivit_fsa   Model 3, factorized self-attention: each block attends over space, then over time.
    vivit_fdp   Model 4, factorized dot-product attention: half of the heads over space, half over time.

Shape suffixes: B batch, C channels, T H W input frames and pixels, t time indices and n positions of the token
grid (n = rows x columns), N tokens of any sequence, D width, h heads, d head width. Tokens are ordered by time,
row, and column.

Another model is a subclass of the closest of the four, in any package. It changes `block` or `encode`, and states
its own `layout` if its encoders cover other axes. Otherwise it inherits the layout, and with it all sources of
weights. The configuration names it in `model._target_`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vivit_train.models.layers import (
    MLP,
    Activation,
    ActivationCheckpointing,
    Attention,
    Block,
    Encoder,
    FactorizedDotProductBlock,
    FactorizedSelfAttentionBlock,
    Positions,
    TubeletEmbedding,
    init_weights,
)

ModelName = Literal["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"]
SIZES: dict[str, dict[str, int]] = {
    "Ti": {"dim": 192, "depth": 12, "heads": 3},
    "S": {"dim": 384, "depth": 12, "heads": 6},
    "B": {"dim": 768, "depth": 12, "heads": 12},
    "L": {"dim": 1024, "depth": 24, "heads": 16},
    "H": {"dim": 1280, "depth": 32, "heads": 16},
}
Grid = tuple[int, int, int]  # This is (time, rows, columns).


@dataclass(frozen=True, eq=False)
class Layout:
    """The arrangement of a model's tokens and parameters, for the code that loads and saves weights.

    Models that share a layout can load each other's weights.

    Attributes:
        name: The name of the model in configurations, reports, and messages.
        encoders: The token axes of each encoder by its attribute name. The letters t, h, and w stand for time,
            rows, and columns: ("thw",) is one axis of all tokens, and ("t", "hw") are two axes.
        cls_token: Whether the encoders have a class token if `pool` is "cls".
        zero_init: The modules that start at zero when the other weights come from an image ViT.
    """

    name: str
    encoders: Mapping[str, tuple[str, ...]]
    cls_token: bool
    zero_init: tuple[str, ...] = ("head",)

    def token_sizes(self, encoder: str, grid: Grid) -> tuple[int, ...]:
        """Returns the size of each token axis of an encoder, without the class token."""
        sizes = dict(zip("thw", grid, strict=True))
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self.encoders[encoder])

    def covers(self, encoder: str, letter: str) -> bool:
        """Returns whether the tokens of an encoder extend over time, rows, or columns (t, h, or w)."""
        return any(letter in axis for axis in self.encoders[encoder])

    def position_grid(self, encoder: str, grid: Grid) -> Grid:
        """Returns the part of a grid that the position embeddings of an encoder cover; other axes have size 1."""
        t, rows, columns = grid
        covers_t, covers_h, covers_w = (self.covers(encoder, letter) for letter in "thw")
        return t if covers_t else 1, rows if covers_h else 1, columns if covers_w else 1

    def starts_at_zero(self, name: str) -> bool:
        """Returns whether a parameter belongs to a module in `zero_init`."""
        return any(f".{module}." in f".{name}" for module in self.zero_init)


class ViViT(nn.Module):
    """A ViViT that maps a normalized video [B, C, T, H, W] to logits.

    `ViViT("vivit_fe", ...)` builds the subclass of that name; see `MODELS`.

    Args:
        model: The name of one of the paper's four models. A subclass needs no name.
        num_classes: An int for one head with logits [B, classes], or a dict by head name for a dict of logits.
        frames: The number of input frames T.
        image_size: The input size H = W in pixels, or (H, W).
        dim: The width of the tokens.
        depth: The number of layers of the (spatial) encoder.
        heads: The number of attention heads.
        mlp_dim: The hidden width of the MLPs; the default is 4 x `dim`.
        temporal_depth: The number of layers of vivit_fe's temporal encoder; 0 averages over time instead.
        tubelet: The size of a tubelet in frames x rows x columns.
        sampled_frames: If set, uniform frame sampling of this many frames, which requires `tubelet[0]` to be 1.
        pool: The class token ("cls") or the mean of all tokens ("mean"). Models 3 and 4 always use the mean.
        order: The attention that comes first in vivit_fsa, "space_time" or "time_space".
        act: The activation of the MLPs: GELU in its tanh form, as in the authors' code, in its exact form
            ("gelu"), or as x * sigmoid(1.702 x) ("quick_gelu", CLIP).
        pos_embed: Position embeddings that are "learned", or fixed sines and cosines ("sincos", VideoMAE).
        fc_norm: Whether to normalize the mean of the tokens instead of each token; only for mean pooling.
        pre_norm: Whether to normalize the tokens before the first layer of the (spatial) encoder (CLIP).
        reg_tokens: The number of register tokens of the (spatial) encoder (DINOv2); only for models 1 and 2.
        rope: Whether the (spatial) encoder has rotary positions of rows and columns too (DINOv3); likewise.
        drop_path: The stochastic depth rate of the last layer; it increases linearly from 0 in each encoder.
        checkpoint_activations: What the backward pass recomputes to save memory: "none", each "mlp", or each
            "block".
        compile: Whether to compile the model in place with torch.compile. Parameter names stay the same.

    Raises:
        ValueError: Sizes are not divisible, or arguments contradict each other.
    """

    layout: ClassVar[Layout]

    def __new__(cls, model: str | None = None, *args: Any, **kwargs: Any) -> "ViViT":
        """Creates an instance of the named model, or of the subclass that is called."""
        if cls is ViViT and model not in MODELS:
            raise ValueError(unknown_model(model))
        if cls is not ViViT and not hasattr(cls, "layout"):
            names = ", ".join(base.__name__ for base in MODELS.values())
            raise TypeError(f"{cls.__name__} has no layout: make it a subclass of {names}")
        return super().__new__(MODELS[model] if cls is ViViT else cls)  # type: ignore[index]

    def __init__(
        self,
        model: ModelName | None = None,
        *,
        num_classes: int | Mapping[str, int],
        frames: int = 32,
        image_size: int | tuple[int, int] = 224,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_dim: int | None = None,
        temporal_depth: int = 4,
        tubelet: tuple[int, int, int] = (2, 16, 16),
        sampled_frames: int | None = None,
        pool: Literal["cls", "mean"] = "cls",
        order: Literal["space_time", "time_space"] = "space_time",
        act: Activation = "gelu_tanh",
        pos_embed: Positions = "learned",
        fc_norm: bool = False,
        pre_norm: bool = False,
        reg_tokens: int = 0,
        rope: bool = False,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        checkpoint_activations: ActivationCheckpointing = "none",
        compile: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.tubelet = (tubelet[0], tubelet[1], tubelet[2])
        self.input_shape = (3, frames, height, width)
        self.heads, self.order, self.act, self.fc_norm, self.rope = heads, order, act, fc_norm, rope
        problems = self.shape_problems(self.input_shape, self.tubelet, sampled_frames, dim, heads)
        problems += self.option_problems(pool, fc_norm, reg_tokens, dim // max(heads, 1) if rope else None)
        if model not in (None, self.model):
            problems.append(f"{type(self).__name__} is a {self.model}, not a {model}")
        if problems:
            raise ValueError("; ".join(problems))
        t = min(sampled_frames, frames) if sampled_frames else frames // tubelet[0]
        self.grid: Grid = (t, height // tubelet[1], width // tubelet[2])
        self.head_sizes = dict(num_classes) if isinstance(num_classes, Mapping) else {"": num_classes}
        has_cls = pool == "cls" and self.layout.cls_token

        def encoder(name: str, depth: int) -> Encoder:
            ramp = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
            blocks = [self.block(dim, heads, mlp_dim or 4 * dim, norm_eps, rate) for rate in ramp]
            sizes = self.layout.token_sizes(name, self.grid)
            image = (pre_norm, reg_tokens) if name == "encoder" else (False, 0)
            return Encoder(blocks, sizes, dim, norm_eps, has_cls, pos_embed, fc_norm, *image)

        self.embedding = TubeletEmbedding(dim, frames, self.tubelet, sampled_frames)
        self.encoder = encoder("encoder", depth)
        is_temporal = temporal_depth > 0 and "temporal_encoder" in self.layout.encoders
        self.temporal_encoder = encoder("temporal_encoder", temporal_depth) if is_temporal else None
        self.head = nn.Linear(dim, sum(self.head_sizes.values()))
        self.finish(checkpoint_activations)
        if compile:
            self.compile_in_place()

    def finish(self, checkpoint_activations: ActivationCheckpointing) -> None:
        """Draws the weights, those of the head as zero, and sets the options of the blocks."""
        if self.rope:
            self.encoder.add_rotary_positions(*self.grid[1:])
        self.apply(init_weights)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for module in self.modules():
            if isinstance(module, Block):
                module.activation_checkpointing = checkpoint_activations
            elif isinstance(module, MLP):
                module.act = self.act

    @classmethod
    def from_size(cls, model: ModelName | None = None, size: str = "B", **kwargs: Any) -> "ViViT":
        """Builds a ViViT of size "Ti", "S", "B", "L", or "H"; `kwargs` that are not None override the size."""
        if size not in SIZES:
            raise ValueError(f"size is '{size}'; it must be one of {', '.join(SIZES)}")
        return cls(model, **SIZES[size] | {name: value for name, value in kwargs.items() if value is not None})

    @classmethod
    def shape_problems(
        cls,
        input_shape: tuple[int, int, int, int],
        tubelet: tuple[int, int, int],
        sampled_frames: int | None,
        dim: int,
        heads: int,
    ) -> list[str]:
        """Returns a message for each reason why a model with these sizes cannot be built."""
        problems = []
        for what, size, part in zip(("frames", "height", "width"), input_shape[1:], tubelet, strict=True):
            if part < 1:
                problems.append(f"the tubelet's {what} must be at least 1, not {part}")
            elif size < 1 or size % part:
                problems.append(f"{what} {size} is not a multiple of the tubelet's {part}")
        if sampled_frames is not None and tubelet[0] != 1:
            problems.append(f"sampled_frames uses 2-D patches: tubelet[0] must be 1, not {tubelet[0]}")
        if sampled_frames is not None and sampled_frames < 1:
            problems.append(f"sampled_frames must be at least 1, not {sampled_frames}")
        if dim < 1 or heads < 1:
            problems.append(f"dim {dim} and heads {heads} must be at least 1")
        elif dim % heads:
            problems.append(f"dim {dim} is not a multiple of heads {heads}")
        return problems

    @classmethod
    def option_problems(cls, pool: str, fc_norm: bool, reg_tokens: int, rope_dim: int | None) -> list[str]:
        """Returns a message for each option that does not fit the others; `rope_dim` is d with rope, else None."""
        problems = []
        if fc_norm and pool == "cls" and cls.layout.cls_token:
            problems.append("fc_norm normalizes the mean of the tokens: set pool to mean, not cls")
        for name, is_set in (("reg_tokens", reg_tokens), ("rope", rope_dim is not None)):
            if is_set and len(cls.layout.encoders["encoder"]) > 1:
                problems.append(f"{cls.layout.name} has no {name}, only models 1 and 2: leave it out")
        if rope_dim is not None and rope_dim % 4:
            problems.append(f"rope needs heads whose width is a multiple of 4, not {rope_dim}")
        return problems

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.layout.name

    def block(self, dim: int, heads: int, mlp_dim: int, norm_eps: float, drop_path: float) -> Block:
        """Returns a new block of an encoder."""
        return Block(dim, heads, mlp_dim, norm_eps, drop_path)

    def encode(self, x_BtnD: Tensor) -> Tensor:
        """Returns the representation [B, D] of the tokens of the embedding."""
        raise NotImplementedError

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Returns the representation of the video before the head, [B, D]."""
        self.check_input(video_BCTHW)
        return self.encode(self.embedding(video_BCTHW))

    def check_input(self, video_BCTHW: Tensor) -> None:
        """Raises a ValueError if videos do not have the shape that the model takes."""
        if video_BCTHW.shape[1:] != self.input_shape:
            raise ValueError(
                f"this model takes videos [B, C, T, H, W] with [C, T, H, W] = {list(self.input_shape)}, "
                f"got {list(video_BCTHW.shape)}"
            )

    def forward(self, video_BCTHW: Tensor) -> Tensor | dict[str, Tensor]:
        logits = self.head(self.features(video_BCTHW))
        if list(self.head_sizes) == [""]:
            return logits
        return dict(zip(self.head_sizes, logits.split(list(self.head_sizes.values()), dim=-1), strict=True))

    def settings(self) -> dict[str, Any]:
        """Returns the arguments that the names and shapes of the parameters do not show."""
        named = {"heads": self.heads, "act": self.act, "fc_norm": self.fc_norm, "rope": self.rope}
        return {"model": self.model, **named, "norm_eps": self.encoder.norm.eps}

    def use_eager_attention(self, eager: bool = True) -> "ViViT":
        """Switches between fused attention and step-by-step attention, which exposes its maps to hooks."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.eager = eager
        return self

    def compile_in_place(self) -> None:
        """Compiles the forward pass with torch.compile, as one graph for all batch sizes."""
        from torch.fx.experimental import _config as shapes

        # dynamic=True gives one graph for any batch size; `features` fixes all other sizes. Duck shaping would
        # treat a batch size that equals one of them (32 clips of 32 frames) as the same size and fix it too.
        shapes.use_duck_shape = False
        self.compile(fullgraph=True, dynamic=True)


class ViViTSpaceTime(ViViT):
    """Model 1, spatio-temporal attention: one encoder attends over all tokens of the video."""

    layout = Layout("vivit_st", {"encoder": ("thw",)}, cls_token=True)

    def encode(self, x_BtnD: Tensor) -> Tensor:
        return self.encoder(x_BtnD.flatten(1, 2))


class ViViTFactorizedEncoder(ViViT):
    """Model 2, factorized encoder: a spatial encoder per time index, then a temporal encoder or the mean."""

    layout = Layout("vivit_fe", {"encoder": ("hw",), "temporal_encoder": ("t",)}, cls_token=True)

    def encode(self, x_BtnD: Tensor) -> Tensor:
        return self.over_time(self.encoder(x_BtnD))

    def over_time(self, x_BtD: Tensor) -> Tensor:
        return self.temporal_encoder(x_BtD) if self.temporal_encoder is not None else x_BtD.mean(1)


class ViViTFactorizedSelfAttention(ViViT):
    """Model 3, factorized self-attention: each block attends over space and over time, with separate weights."""

    layout = Layout(
        "vivit_fsa", {"encoder": ("t", "hw")}, cls_token=False, zero_init=("head", "attention_time.out")
    )

    def block(self, dim: int, heads: int, mlp_dim: int, norm_eps: float, drop_path: float) -> Block:
        return FactorizedSelfAttentionBlock(dim, heads, mlp_dim, norm_eps, drop_path, order=self.order)

    def encode(self, x_BtnD: Tensor) -> Tensor:
        return self.encoder(x_BtnD)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"order": self.order}


class ViViTFactorizedDotProduct(ViViT):
    """Model 4, factorized dot-product attention: half of the heads attend over time, half over space."""

    layout = Layout("vivit_fdp", {"encoder": ("t", "hw")}, cls_token=False)

    @classmethod
    def shape_problems(
        cls,
        input_shape: tuple[int, int, int, int],
        tubelet: tuple[int, int, int],
        sampled_frames: int | None,
        dim: int,
        heads: int,
    ) -> list[str]:
        problems = super().shape_problems(input_shape, tubelet, sampled_frames, dim, heads)
        if heads % 2:
            problems.append(f"{cls.layout.name} uses half of its heads for time: heads must be even, not {heads}")
        return problems

    def block(self, dim: int, heads: int, mlp_dim: int, norm_eps: float, drop_path: float) -> Block:
        return FactorizedDotProductBlock(dim, heads, mlp_dim, norm_eps, drop_path)

    def encode(self, x_BtnD: Tensor) -> Tensor:
        return self.encoder(x_BtnD)


MODELS: dict[ModelName, type[ViViT]] = {
    "vivit_st": ViViTSpaceTime,
    "vivit_fe": ViViTFactorizedEncoder,
    "vivit_fsa": ViViTFactorizedSelfAttention,
    "vivit_fdp": ViViTFactorizedDotProduct,
}


def create_model(
    name: ModelName, size: str = "B", *, num_classes: int | Mapping[str, int], **kwargs: Any
) -> ViViT:
    """Builds one of the four models by its name.

    Args:
        name: A name in `MODELS`.
        size: The size: "Ti", "S", "B", "L", or "H".
        num_classes: The number of classes, or a dict of numbers by head name.
        kwargs: Other arguments of `ViViT`. Those that are None keep the value of the size.

    Raises:
        ValueError: The name or the size is unknown, or the arguments do not fit together.
    """
    return ViViT.from_size(name, size, num_classes=num_classes, **kwargs)


def unknown_model(name: object) -> str:
    """Returns the message for a name that no model has."""
    return f"model is '{name}'; it must be one of {', '.join(MODELS)}"
