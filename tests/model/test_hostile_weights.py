"""Damaged and hostile weights of every layout end in a report or in one message, and cost nothing."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights import tadaconv, timesformer, timm_vit, videomae
from vivit_train.models.weights.keys import KeyMap, their_names
from vivit_train.models.weights.load import load_pretrained
from vivit_train.utils.errors import UserError

SIZES: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "num_classes": 2, "image_size": 32}
VIDEOMAE = {"act": "gelu", "pool": "mean", "pos_embed": "sincos", "tubelet": (2, 16, 16), "frames": 4}


def renamed(net: ViViT, key_map: KeyMap) -> dict[str, Tensor]:
    state = {}
    for name, value in net.named_parameters():
        theirs = their_names(key_map, name)
        for key, part in zip(theirs, value.detach().chunk(len(theirs)) if theirs else (), strict=True):
            state[key] = part.clone()
    return state


def of_videomae() -> tuple[ViViT, dict[str, Tensor]]:
    net = ViViT("vivit_st", **SIZES | VIDEOMAE)
    state = renamed(net, videomae.AUTHORS_KEYS)
    q, _, v = state.pop("blocks.0.attn.qkv.bias").chunk(3)
    del state["pos_embed"]
    del state["head.weight"], state["head.bias"]
    return net, state | {"blocks.0.attn.q_bias": q.clone(), "blocks.0.attn.v_bias": v.clone()}


def of_timesformer() -> tuple[ViViT, dict[str, Tensor]]:
    net = ViViT("vivit_fsa", **SIZES, order="time_space", act="gelu", tubelet=(1, 16, 16), frames=2)
    state = renamed(net, timesformer.AUTHORS_KEYS)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    dense = {"blocks.0.temporal_fc.weight": torch.eye(16), "blocks.0.temporal_fc.bias": torch.zeros(16)}
    return net, state | dense | {"pos_embed": torch.zeros(1, 5, 16), "time_embed": torch.zeros(1, 2, 16)}


def of_tadaconv() -> tuple[ViViT, dict[str, Tensor]]:
    net = ViViT("vivit_fe", **SIZES, act="gelu", temporal_depth=1, frames=4)
    return net, renamed(net, {**tadaconv.SPATIAL, **tadaconv.TEMPORAL, **tadaconv.HEAD})


def of_dinov2() -> tuple[ViViT, dict[str, Tensor]]:
    net = ViViT("vivit_fe", **SIZES, act="gelu", reg_tokens=2, frames=4, temporal_depth=1)
    state = renamed(net, {**timm_vit.TIMM_KEYS, **timm_vit.OPTIONAL_KEYS})
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, 0].clone()
    state |= {"register_tokens": state.pop("reg_token"), "blocks.0.ls1.gamma": torch.ones(16)}
    return net, state


LAYOUTS: dict[str, Callable[[], tuple[ViViT, dict[str, Tensor]]]] = {
    "videomae": of_videomae,
    "timesformer": of_timesformer,
    "tadaconv": of_tadaconv,
    "dinov2": of_dinov2,
}
STRANGE = ("norm_pre.weight", "rope.x", "blocks.99.norm1.weight", "\x1b[31m")
SHAPES = ((), (0,), (1,), (16,), (1, 0, 16), (3, 5, 7), (16, 3, 1, 1), (16, 3, 0, 0, 0), (2, 2, 2, 2, 2, 2))


def mutated(state: Mapping[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """Tensors dropped, added, or replaced by ones of other shapes and types."""
    state = dict(state)
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(list(state))
        kind = draw.randrange(5)
        if kind == 0 and len(state) > 1:
            del state[key]
        elif kind == 1:
            state[key] = torch.zeros(draw.choice(SHAPES))
        elif kind == 2:
            state[key] = torch.full_like(state[key].float(), draw.choice([float("nan"), float("inf")]))
        elif kind == 3:
            state[key] = state[key].to(draw.choice([torch.int64, torch.uint8, torch.bool, torch.bfloat16]))
        else:
            state[draw.choice(STRANGE) + key[-4:]] = state[key]
    return state


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_weights_end_in_a_report_or_a_message(layout: str, tmp_path: Path) -> None:
    net, state = LAYOUTS[layout]()
    save_file(state, tmp_path / "x.safetensors")
    load_pretrained(net, str(tmp_path / "x.safetensors"))  # As it is, it can be read.
    before, messages = {name: value.clone() for name, value in net.state_dict().items()}, list[str]()
    for seed in range(15):
        torch.save({"model": mutated(state, random.Random(seed))}, tmp_path / "x.pth")
        try:
            load_pretrained(net, str(tmp_path / "x.pth"))
        except UserError as error:
            messages.append(str(error))
            assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        net.load_state_dict(before)
    assert 4 < len(messages) < 15
    assert not any("\x1b" in message for message in messages)


def test_few_bytes_do_not_become_a_table_of_positions_that_fills_memory(tmp_path: Path) -> None:
    net, state = of_timesformer()
    state |= {"pos_embed": torch.zeros(1, 1001**2 + 1, 16), "time_embed": torch.zeros(1, 10_000, 16)}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is refused: it claims 10,020,010,000 tokens of width 16"):
        load_pretrained(net, str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_frames": 10**9},
        {"num_frames": 2**20, "image_size": 2**16},
        {"num_frames": None},
        {"image_size": [[32]]},
        {"image_size": "${oc.env:HOME}"},
        {"hidden_act": {"gelu": 1}},
        {"num_attention_heads": 10**30},
        {"id2label": [1, 2]},
    ],
)
def test_a_folder_with_absurd_settings_is_refused(settings: Mapping[str, Any], tmp_path: Path) -> None:
    net, state = of_videomae()
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": "videomae", "num_frames": 4, "image_size": 32, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_pretrained(net, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(UserError):
        load_pretrained(net, str(tmp_path))
