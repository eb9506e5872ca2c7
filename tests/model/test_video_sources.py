"""TimeSformer and the ViViT of TAdaConv: what they compute, ours computes with their weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import videos
from torch import Tensor, nn

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import load_pretrained
from vivit_train.utils.errors import UserError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "frames": 4, "image_size": 32, "num_classes": 5}
OPTIONS: dict[str, Any] = {"order": "time_space", "act": "gelu", "tubelet": (1, 8, 8)}


def randomized(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw) + (parameter.ndim == 1))
    return module.eval()


def timesformer(**changes: Any) -> Any:
    config = transformers.TimesformerConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        | {"num_frames": 4, "image_size": 32, "patch_size": 8, "num_labels": 5}
        | changes
    )
    return randomized(transformers.TimesformerForVideoClassification(config))


AUTHORS = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.time_embeddings": "time_embed",
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer\.(\d+)\.temporal_layernorm": r"blocks.\1.temporal_norm1",
    r"encoder\.layer\.(\d+)\.temporal_attention\.attention\.qkv": r"blocks.\1.temporal_attn.qkv",
    r"encoder\.layer\.(\d+)\.temporal_attention\.output\.dense": r"blocks.\1.temporal_attn.proj",
    r"encoder\.layer\.(\d+)\.temporal_dense": r"blocks.\1.temporal_fc",
    r"encoder\.layer\.(\d+)\.layernorm_before": r"blocks.\1.norm1",
    r"encoder\.layer\.(\d+)\.attention\.attention\.qkv": r"blocks.\1.attn.qkv",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense": r"blocks.\1.attn.proj",
    r"encoder\.layer\.(\d+)\.layernorm_after": r"blocks.\1.norm2",
    r"encoder\.layer\.(\d+)\.intermediate\.dense": r"blocks.\1.mlp.fc1",
    r"encoder\.layer\.(\d+)\.output\.dense": r"blocks.\1.mlp.fc2",
    r"layernorm": "norm",
    r"classifier": "head",
}


def saved(model: Any, form: str, folder: Path) -> str:
    if form == "folder":
        model.save_pretrained(folder)
        return str(folder)
    state = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("timesformer.")
        for pattern, new in AUTHORS.items():
            name = re.sub(rf"^{pattern}(?=\.|$)", new, name)
        state[f"model.{name}"] = value
    torch.save({"epoch": 15, "model_state": state, "cfg": "TRAIN: ..."}, folder / "TimeSformer.pyth")
    return str(folder / "TimeSformer.pyth")


def without_class_token(model: Any, video_BCTHW: Tensor) -> Tensor:
    """The mean of TimeSformer's tokens, computed by transformers' own layers without the class token."""
    encoder, (B, _, t, _, _) = model.timesformer, video_BCTHW.shape
    x, _, _ = encoder.embeddings.patch_embeddings(video_BCTHW.transpose(1, 2))
    x_BtnD = (x + encoder.embeddings.position_embeddings[:, 1:]).unflatten(0, (B, t))
    x_BtnD = x_BtnD + encoder.embeddings.time_embeddings[:, :, None]
    for layer in encoder.encoder.layer:
        y_BntD = x_BtnD.transpose(1, 2)
        y = layer.temporal_attention(layer.temporal_layernorm(y_BntD.flatten(0, 1)))[0]
        x_BtnD = x_BtnD + layer.temporal_dense(y).view_as(y_BntD).transpose(1, 2)
        y = layer.attention(layer.layernorm_before(x_BtnD.flatten(0, 1)))[0]
        x_BtnD = x_BtnD + y.view_as(x_BtnD)
        x_BtnD = x_BtnD + layer.output(layer.intermediate(layer.layernorm_after(x_BtnD)))
    return encoder.layernorm(x_BtnD).flatten(1, 2).mean(1)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_timesformers_layers_are_ours_and_the_class_token_is_said_to_be_left_out(
    form: str, tmp_path: Path
) -> None:
    model, net = timesformer(), ViViT("vivit_fsa", **SIZES | OPTIONS).eval()
    report = load_pretrained(net, saved(model, form, tmp_path))
    assert {row for name, row in report.rows.items() if "head" not in name} == {"copied"}
    assert "note: vivit_fsa has no class token: that of TimeSformer is left out" in str(report)
    assert "license: CC BY-NC 4.0" in str(report)
    assert report.statistics == ((0.45,) * 3, (0.225,) * 3)
    video = videos(net)
    with torch.no_grad():
        theirs = without_class_token(model, video)
        torch.testing.assert_close(net.features(video), theirs, atol=1e-5, rtol=0)
    assert theirs.std() > 0.1


def test_timesformer_asks_for_the_model_that_it_fits(tmp_path: Path) -> None:
    path, net = saved(timesformer(), "folder", tmp_path), ViViT("vivit_fe", **SIZES | {"tubelet": (2, 8, 8)})
    keys = r"set model=vivit_fsa model.order=time_space model.act=gelu model.tubelet=\[1,8,8\],"
    with pytest.raises(UserError, match=keys):
        load_pretrained(net, path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "timesformer", "attention_type": "space_only"})
    )
    with pytest.raises(UserError, match="attention_type 'space_only' is not divided_space_time"):
        load_pretrained(net, path)


class Reference(nn.Module):
    """What TAdaConv computes with its ViViT, from torch's own layers."""

    def __init__(self, factorized: bool) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 32, (2, 8, 8), stride=(2, 8, 8))
        tokens = 16 if factorized else 32
        sizes = {"pos_embd": tokens + 1, "cls_token": 1} | (
            {"temp_embd": 3, "cls_token_out": 1} if factorized else {}
        )
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(1, size, 32)))
        self.layers, self.norm = self.encoder(2)
        self.layers_temporal, self.norm_out = self.encoder(1) if factorized else (None, None)
        self.linear = nn.Linear(32, 5)

    def encoder(self, depth: int) -> tuple[nn.ModuleList, nn.LayerNorm]:
        options = {
            "dropout": 0.0,
            "activation": "gelu",
            "layer_norm_eps": 1e-6,
            "batch_first": True,
            "norm_first": True,
        }
        layers = [nn.TransformerEncoderLayer(32, 4, 128, **options) for _ in range(depth)]
        return nn.ModuleList(layers), nn.LayerNorm(32, eps=1e-6)

    def forward(self, video: Tensor) -> Tensor:
        x = self.stem(video).flatten(3).permute(0, 2, 3, 1)
        x = x.flatten(0, 1) if self.layers_temporal else x.flatten(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embd
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)[:, 0]
        if self.layers_temporal:
            x = (
                torch.cat([self.cls_token_out.expand(len(video), -1, -1), x.unflatten(0, (-1, 2))], 1)
                + self.temp_embd
            )
            for layer in self.layers_temporal:
                x = layer(x)
            x = self.norm_out(x)[:, 0]
        return self.linear(x)


TADACONV = {
    "self_attn.in_proj_": "attn.to_qkv.",
    "self_attn.out_proj": "attn.proj",
    "norm1": "norm",
    "norm2": "norm_ffn",
    "linear1": "ffn.net.0",
    "linear2": "ffn.net.3",
}


def as_tadaconv(model: nn.Module) -> dict[str, Tensor]:
    state = {}
    for name, value in model.state_dict().items():
        for theirs, new in TADACONV.items():
            name = name.replace(theirs, new) if name.startswith("layers") else name
        name = name.replace("stem.", "stem.conv1.")
        state[f"head.{name}" if name.startswith("linear.") else f"backbone.{name}"] = value
    return state


@pytest.mark.parametrize("model", ["vivit_fe", "vivit_st"])
def test_the_logits_of_tadaconvs_vivit_are_ours(model: Any, tmp_path: Path) -> None:
    theirs = randomized(Reference(model == "vivit_fe"))
    torch.save({"epoch": 29, "model_state": as_tadaconv(theirs)}, tmp_path / "vivit.pyth")
    sizes = SIZES | {"tubelet": (2, 8, 8), "temporal_depth": 1}
    net = ViViT(model, **sizes, act="gelu").eval()
    report = load_pretrained(net, str(tmp_path / "vivit.pyth"))
    assert set(report.rows.values()) == {"copied"}
    assert report.statistics == ((0.45,) * 3, (0.225,) * 3)
    video = videos(net)
    with torch.no_grad():
        torch.testing.assert_close(net(video), theirs(video), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"set model\.act=gelu,"):
        load_pretrained(ViViT(model, **sizes), str(tmp_path / "vivit.pyth"))


def test_other_models_of_tadaconv_are_refused_by_name(tmp_path: Path) -> None:
    state = as_tadaconv(Reference(factorized=True)) | {"head.pre_logits.fc.weight": torch.zeros(32, 32)}
    torch.save({"model_state": state}, tmp_path / "x.pyth")
    with pytest.raises(UserError, match=r"no place for 'head\.pre_logits\.fc\.weight'"):
        load_pretrained(ViViT("vivit_fe", **SIZES, act="gelu"), str(tmp_path / "x.pyth"))
