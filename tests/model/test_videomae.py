"""VideoMAE and VideoMAEv2 give the outputs of transformers' implementation, from every layout of the weights."""

import json
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import videos as clips
from omegaconf import DictConfig
from torch import Tensor

from vivit_train.models.layers import sincos_positions
from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import load_pretrained
from vivit_train.run import evaluate, train
from vivit_train.training.checkpoint import load_checkpoint
from vivit_train.utils.errors import UserError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CLIP = {"num_frames": 4, "image_size": 32, "patch_size": 8}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
CLASSES = ["hop", "skip", "jump", "run", "rest"]
SMALL: dict[str, Any] = {"num_classes": 8, "dim": 32, "depth": 1, "heads": 2, "frames": 4, "image_size": 32}
OPTIONS: dict[str, Any] = {"pool": "mean", "act": "gelu", "pos_embed": "sincos", "fc_norm": True}


def theirs(kind: str = "VideoMAEForVideoClassification", **changes: Any) -> Any:
    """A tiny random model of transformers in which every parameter matters."""
    config = transformers.VideoMAEConfig(
        **SIZES | CLIP | DECODER | {"layer_norm_eps": 1e-6, "id2label": dict(enumerate(CLASSES))} | changes,
        use_mean_pooling=kind == "VideoMAEForVideoClassification",
    )
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def ours(**changes: Any) -> ViViT:
    sizes = {"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "frames": 4, "image_size": 32, "tubelet": (2, 8, 8)}
    return ViViT("vivit_st", num_classes=5, **sizes | OPTIONS | changes).eval()


AUTHORS = {
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense": r"blocks.\1.attn.proj",
    r"encoder\.layer\.(\d+)\.layernorm_before": r"blocks.\1.norm1",
    r"encoder\.layer\.(\d+)\.layernorm_after": r"blocks.\1.norm2",
    r"encoder\.layer\.(\d+)\.intermediate\.dense": r"blocks.\1.mlp.fc1",
    r"encoder\.layer\.(\d+)\.output\.dense": r"blocks.\1.mlp.fc2",
    r"layernorm": "norm",
    r"classifier": "head",
}


def as_authors(model: Any, prefix: str = "") -> dict[str, Tensor]:
    """The weights with the names in the authors' files; what is outside of the encoder keeps its name."""
    state, named = dict(model.state_dict()), {}
    for i in range(2):
        at = f"videomae.encoder.layer.{i}.attention.attention"
        named[f"{prefix}blocks.{i}.attn.qkv.weight"] = torch.cat(
            [state.pop(f"{at}.{x}.weight") for x in ("query", "key", "value")]
        )
        for x in ("query", "value"):
            named[f"{prefix}blocks.{i}.attn.{x[0]}_bias"] = state.pop(f"{at}.{x}.bias")
    for name, value in state.items():
        name, is_encoder = re.subn(r"^videomae\.", "", name)
        for pattern, new in AUTHORS.items():
            name = re.sub(f"^{pattern}(?=\\.)", new, name)
        named[prefix * is_encoder + name] = value
    return named


def saved(model: Any, form: str, folder: Path) -> str:
    if form == "folder":
        model.save_pretrained(folder)
        preprocessor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3], "do_normalize": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return str(folder)
    if form == "v2 folder":
        from safetensors.torch import save_file

        save_file(as_authors(model, "model."), folder / "model.safetensors")
        inner = {"img_size": 32, "num_frames": 4, "num_heads": 4, "cos_attn": False}
        (folder / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base", "model_config": inner}))
        return str(folder)
    state = as_authors(model, "encoder." if "encoder_to_decoder.weight" in model.state_dict() else "")
    wrapped = {"module": state} if form == "module" else {"model": state, "args": Namespace(lr=0.1), "epoch": 9}
    torch.save(wrapped, folder / "checkpoint.pth")
    return str(folder / "checkpoint.pth")


def at_the_size_of_the_authors(form: str) -> bool:
    return form in ("model", "module")  # Their files do not state a clip: 16 frames of 224 pixels.


@pytest.mark.parametrize("form", ["folder", "v2 folder", "model", "module"])
def test_the_logits_are_theirs(form: str, tmp_path: Path) -> None:
    clip = {"num_frames": 16, "image_size": 224} if at_the_size_of_the_authors(form) else {}
    patch = 56 if clip else 8
    model = theirs(**clip, patch_size=patch)
    sizes = {"frames": 16, "image_size": 224, "tubelet": (2, 56, 56)} if clip else {}
    net = ours(**sizes)
    report = load_pretrained(net, saved(model, form, tmp_path), classes={"": CLASSES})
    assert set(report.rows.values()) == {"copied"}
    assert report.statistics == (
        ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3)) if form == "folder" else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    assert "license: CC BY-NC 4.0" in str(report)
    video_BCTHW = clips(net)
    with torch.no_grad():
        logits = model(pixel_values=video_BCTHW.transpose(1, 2)).logits
        torch.testing.assert_close(net(video_BCTHW), logits, atol=1e-5, rtol=0)
        assert logits.std() > 0.1
        net.encoder.blocks[0].attention.qkv.bias[32:64] = 3  # A bias of k changes nothing.
        torch.testing.assert_close(net(video_BCTHW), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["folder", "model"])
def test_a_pretrained_encoder_gives_its_tokens_or_starts_with_a_new_norm(form: str, tmp_path: Path) -> None:
    clip = {"num_frames": 16, "image_size": 224, "patch_size": 56} if form == "model" else {}
    sizes = {"frames": 16, "image_size": 224, "tubelet": (2, 56, 56)} if clip else {}
    model = theirs("VideoMAEForPreTraining", **clip)
    path, net = saved(model, form, tmp_path), ours(**sizes, fc_norm=False)
    report = load_pretrained(net, path)
    assert {row for name, row in report.rows.items() if "head" not in name} == {"copied"}
    assert report.rows["head.weight"] == "zero (the source has no head)"
    assert "encoder_to_decoder.weight" in report.unused
    video_BCTHW = clips(net)
    with torch.no_grad():
        tokens = model.videomae(pixel_values=video_BCTHW.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(net.features(video_BCTHW), tokens.mean(1), atol=1e-5, rtol=0)
    fresh = ours(**sizes)
    report = load_pretrained(fresh, path)
    assert report.rows["encoder.norm.weight"] == "random (pretraining has no norm of the mean)"
    assert torch.equal(fresh.encoder.norm.weight, torch.ones(32))
    assert torch.equal(fresh.encoder.blocks[1].mlp.fc2.weight, net.encoder.blocks[1].mlp.fc2.weight)


def test_positions_stay_fixed_and_are_interpolated_to_another_clip(tmp_path: Path) -> None:
    net, path = ours(frames=8, image_size=48), saved(theirs(), "folder", tmp_path)
    assert load_pretrained(net, path).rows["encoder.pos_embed"] == "interpolated"
    assert not net.encoder.pos_embed.requires_grad
    same = ours(pos_embed="learned")
    load_pretrained(same, path)
    assert same.encoder.pos_embed.requires_grad
    torch.testing.assert_close(same.encoder.pos_embed.data, ours().encoder.pos_embed.data, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"act": "gelu_tanh"}, "set model.act=gelu,"),
        ({"fc_norm": False}, "set model.fc_norm=true,"),
        ({"pool": "cls", "fc_norm": False, "act": "gelu_tanh"}, "act=gelu .*pool=mean model.fc_norm=true,"),
        (
            {"dim": 16, "heads": 2, "tubelet": (4, 8, 8)},
            r"set model.dim=32 model.tubelet=\[2,8,8\] model.heads=4,",
        ),
    ],
)
def test_one_message_states_every_key_to_set(changes: dict[str, Any], keys: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=keys):
        load_pretrained(ours(**changes), saved(theirs(), "folder", tmp_path))


def test_another_model_is_told_the_whole_command(tmp_path: Path) -> None:
    tiny = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    with torch.device("meta"):
        net = ViViT.from_size("vivit_fe", "S", num_classes=2, frames=4, image_size=32, tubelet=(2, 8, 8))
    command = "set model=vivit_st model.size=Ti model.act=gelu model.pool=mean model.fc_norm=true,"
    with pytest.raises(UserError, match=command):
        load_pretrained(net, saved(theirs(**tiny), "folder", tmp_path))


def test_a_run_starts_from_it_and_its_checkpoint_starts_another(
    videos: Path, config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    clip = {"num_frames": 4, "image_size": 32, "patch_size": 16}
    path = saved(theirs("VideoMAEForPreTraining", **sizes, **clip), "folder", tmp_path)
    words = ["model=videomae", "data=folder", f"data.root={videos}"]
    train(config(*words, f"init.path={path}", "ema_decay=0.9"))
    written = (tmp_path / "run/weight_report.txt").read_text()
    assert "license: CC BY-NC 4.0" in written
    ckpt = tmp_path / "run/checkpoints/best.ckpt"
    positions = load_checkpoint(ckpt)[1]["encoder.pos_embed"]
    torch.testing.assert_close(positions, sincos_positions(8, 32))  # They are stored, and stay fixed.
    assert evaluate(config(f"ckpt_path={ckpt}", name="eval"))["n"] == 16
    with pytest.raises(UserError, match=r"set model\.act=gelu model\.fc_norm=true,"):
        load_pretrained(ViViT("vivit_st", **SMALL, pool="mean"), str(ckpt))
    report = load_pretrained(ViViT("vivit_st", **SMALL, **OPTIONS), str(ckpt))
    assert report.rows["encoder.norm.weight"] == "copied"


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 10**12}, "num_frames"),
        ({"num_frames": 2**20, "image_size": 2**16}, "refused: it claims"),
        ({"num_frames": 5}, "num_frames 5 and image_size 32 do not fit tubelets of 2x8x8"),
        ({"image_size": [32, 32, 32]}, "image_size a list"),
        ({"image_size": "big"}, "image_size 'big'"),
        ({"hidden_act": "relu"}, "no hidden_act 'relu'"),
        ({"hidden_act": ["gelu"]}, "no hidden_act a list"),
        ({"num_attention_heads": 3}, "model.heads=3"),
        ({"id2label": {"a": "b"}}, "id2label"),
        ({"model_type": "videomaev2", "model_config": {"cos_attn": True}}, "cosine attention"),
    ],
)
def test_strange_settings_are_one_message(
    settings: Mapping[str, Any], message: str, tmp_path: Path, happened: Any
) -> None:
    path = saved(theirs(), "folder", tmp_path)
    change(tmp_path / "config.json", **settings)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(ours(), path)
    happened(f"config.json of a VideoMAE with {settings}", str(error.value))


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        ("blocks.1.mlp.fc2.bias", None, "no 'blocks.1.mlp.fc2.bias'"),
        (None, "cls_token", "no place for 'cls_token'"),
        (None, "blocks.0.gamma_1", "no place for 'blocks.0.gamma_1'"),
        ("fc_norm.weight", None, "fine-tuned without mean pooling|no 'norm.weight'|no place for"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    drop: str | None, add: str | None, message: str, tmp_path: Path
) -> None:
    state = as_authors(theirs())
    state.pop(drop or "", None)
    if add:
        state[add] = torch.zeros(1, 1, 32)
    torch.save({"model": state}, tmp_path / "x.pth")
    net = ours()
    with pytest.raises(UserError, match=message):
        load_pretrained(net, str(tmp_path / "x.pth"))
    assert not net.head.weight.any()
