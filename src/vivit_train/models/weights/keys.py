"""Key maps: tables of the names that other code gives to the parameters of a ViT.

A key map has our name of a module or parameter as the key, and their names as the value. `*` stands for the number
of a block. Several names mean that our tensor is theirs, joined along the first axis: q, k, and v.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

KeyMap = Mapping[str, tuple[str, ...]]
# The names of a block in timm, which VideoMAE's and TimeSformer's authors use too, and in files on the Hub.
TIMM_BLOCK: KeyMap = {
    "encoder.blocks.*.norm1": ("blocks.*.norm1",),
    "encoder.blocks.*.attention.qkv": ("blocks.*.attn.qkv",),
    "encoder.blocks.*.attention.out": ("blocks.*.attn.proj",),
    "encoder.blocks.*.norm2": ("blocks.*.norm2",),
    "encoder.blocks.*.mlp.fc1": ("blocks.*.mlp.fc1",),
    "encoder.blocks.*.mlp.fc2": ("blocks.*.mlp.fc2",),
}
HUB_BLOCK: KeyMap = {
    "encoder.blocks.*.norm1": ("encoder.layer.*.layernorm_before",),
    "encoder.blocks.*.attention.qkv": (
        "encoder.layer.*.attention.attention.query",
        "encoder.layer.*.attention.attention.key",
        "encoder.layer.*.attention.attention.value",
    ),
    "encoder.blocks.*.attention.out": ("encoder.layer.*.attention.output.dense",),
    "encoder.blocks.*.norm2": ("encoder.layer.*.layernorm_after",),
    "encoder.blocks.*.mlp.fc1": ("encoder.layer.*.intermediate.dense",),
    "encoder.blocks.*.mlp.fc2": ("encoder.layer.*.output.dense",),
}
# These are whole names in a key map; others are a module and a suffix.
PARAMETERS = ("cls_token", "reg_token", "pos_embed")


def their_names(key_map: KeyMap, name: str) -> tuple[str, ...]:
    """Returns their names of the tensors that make up our parameter, or () if they have no counterpart."""
    block = re.search(r"blocks\.(\d+)\.", name)
    pattern, number = (name.replace(block[0], "blocks.*."), block[1]) if block else (name, "")
    module, _, kind = pattern.rpartition(".")
    if kind in PARAMETERS:
        return key_map.get(pattern, ())
    return tuple(f"{theirs}.{kind}".replace("*", number) for theirs in key_map.get(module, ()))


def our_names(key_map: KeyMap, depth: int) -> Iterator[str]:
    """Yields our names of all parameters that a key map covers in a model with `depth` blocks."""
    for pattern in key_map:
        for i in range(depth if "*" in pattern else 1):
            name = pattern.replace("*", str(i))
            yield from [name] if name.endswith(PARAMETERS) else [f"{name}.weight", f"{name}.bias"]


def take(left: dict[str, Tensor], key_map: KeyMap, depth: int) -> dict[str, Tensor]:
    """Moves the tensors that a key map covers out of a state dict, and returns them with our names.

    A parameter whose tensors are not all there is left out.
    """
    state = {}
    for name in our_names(key_map, depth):
        theirs = their_names(key_map, name)
        if all(key in left for key in theirs):
            state[name] = join([left.pop(key).float() for key in theirs])
    return state


def count_blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    """Returns the number of blocks in a state dict; in the pattern of their modules, `*` stands for the number."""
    block = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)") + r"\.")
    return len({match[1] for name in state if (match := block.match(name))})


def with_prefix(key_map: KeyMap, prefix: str) -> dict[str, tuple[str, ...]]:
    """Returns a key map in which all of their names start with a prefix."""
    return {ours: tuple(prefix + name for name in theirs) for ours, theirs in key_map.items()}


def join(parts: list[Tensor]) -> Tensor:
    """Joins their tensors to ours, without a copy if there is only one."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
