"""Reads the ViViT that TAdaConv (arXiv 2110.06178) trains and releases, with equal outputs: models 1 and 2."""

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.files import Statistics
from vivit_train.models.weights.keys import KeyMap, count_blocks, take
from vivit_train.models.weights.settings import shown_settings
from vivit_train.models.weights.source import Source, VideoWeights
from vivit_train.utils.errors import UserError

LICENSE = "Apache-2.0 (TAdaConv)"
STATISTICS: Statistics = ((0.45,) * 3, (0.225,) * 3)
OPTIONS = {"act": "gelu", "fc_norm": False, "rope": False}
BLOCK: KeyMap = {
    "norm1": ("norm",),
    "attention.qkv": ("attn.to_qkv",),
    "attention.out": ("attn.proj",),
    "norm2": ("norm_ffn",),
    "mlp.fc1": ("ffn.net.0",),
    "mlp.fc2": ("ffn.net.3",),
}
SPATIAL: KeyMap = {
    "embedding.projection": ("backbone.stem.conv1",),
    "encoder.cls_token": ("backbone.cls_token",),
    "encoder.pos_embed": ("backbone.pos_embd",),
    "encoder.norm": ("backbone.norm",),
    **{f"encoder.blocks.*.{ours}": (f"backbone.layers.*.{theirs}",) for ours, (theirs,) in BLOCK.items()},
}
TEMPORAL: KeyMap = {
    "temporal_encoder.cls_token": ("backbone.cls_token_out",),
    "temporal_encoder.pos_embed": ("backbone.temp_embd",),
    "temporal_encoder.norm": ("backbone.norm_out",),
    **{
        f"temporal_encoder.blocks.*.{ours}": (f"backbone.layers_temporal.*.{theirs}",)
        for ours, (theirs,) in BLOCK.items()
    },
}
HEAD: KeyMap = {"head": ("head.linear",)}
VERB_AND_NOUN: KeyMap = {"head": ("head.linear1", "head.linear2")}


def detect_tadaconv(source: Source, net: ViViT) -> VideoWeights | None:
    """Returns the weights of a ViViT in a checkpoint of TAdaConv.

    Raises:
        UserError: It is another model of TAdaConv, or has parts that ViViT does not have.
    """
    left = dict(source.tensors) if source.is_file else {}
    if "backbone.stem.conv1.weight" not in left or "backbone.pos_embd" not in left:
        return None
    key_map: KeyMap = {**SPATIAL, **TEMPORAL, **(VERB_AND_NOUN if "head.linear1.weight" in left else HEAD)}
    blocks = (key_map[f"{name}.blocks.*.norm1"][0] for name in ("encoder", "temporal_encoder"))
    state = take(left, key_map, max(count_blocks(left, block) for block in blocks))
    if left:
        raise UserError(f"{source.name} is not a ViViT of TAdaConv: ViViT has no place for '{min(left)}'")
    shapes, is_factorized = shown_settings(state), "temporal_encoder.pos_embed" in state
    named = ("dim", "depth", "mlp_dim", "tubelet", "pool", *(("temporal_depth",) if is_factorized else ()))
    settings = {"model": "vivit_fe" if is_factorized else "vivit_st", **OPTIONS}
    return VideoWeights(
        source.name,
        state,
        settings | {key: shapes[key] for key in named},
        statistics=STATISTICS,
        heads=("verb", "noun") if key_map["head"] == VERB_AND_NOUN["head"] else None,
        license=LICENSE,
    )
