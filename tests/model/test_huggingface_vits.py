"""Image ViTs in the layouts of Hugging Face give transformers' features of each frame, or a plain refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Happened
from safetensors.torch import save_file
from torch import Tensor, nn

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.backbone import read_backbone
from vivit_train.models.weights.load import is_image_vit, load_pretrained
from vivit_train.models.weights.source import Source
from vivit_train.utils.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
OTHERS = {"intermediate_size": 64}
TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
}
NORM = {"norm_eps": 1e-12}
CLIP = {"act": "quick_gelu", "pre_norm": True, "norm_eps": 1e-5}
SIGLIP = {"act": "gelu_tanh", "pool": "mean"}
DINOV3 = {"reg_tokens": 4, "rope": True, "norm_eps": 1e-5}
# The class of transformers, the changes of its configuration, the options that ViViT needs, and the license.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "ViTModel": ({"qkv_bias": False}, NORM, None),
    "ViTForImageClassification": ({}, NORM, None),
    "ViTMAEModel": ({"mask_ratio": 0.0}, NORM, "CC BY-NC 4.0"),
    "DeiTModel": ({}, NORM | {"reg_tokens": 1}, "Apache-2.0"),
    "Dinov2Model": ({"mlp_ratio": 2}, {}, "Apache-2.0"),
    "Dinov2ForImageClassification": ({"mlp_ratio": 2}, {}, "Apache-2.0"),
    "Dinov2WithRegistersModel": ({"mlp_ratio": 2}, {"reg_tokens": 4}, "Apache-2.0"),
    "DINOv3ViTModel": ({"num_register_tokens": 4}, DINOV3, "DINOv3 License"),
    "CLIPVisionModel": ({}, CLIP, "MIT"),
    "CLIPModel": ({}, CLIP, "MIT"),
    "SiglipVisionModel": ({}, SIGLIP, "Apache-2.0"),
    "SiglipModel": ({}, SIGLIP, "Apache-2.0"),
    "Siglip2VisionModel": ({"num_patches": 16}, SIGLIP, "Apache-2.0"),
}


def theirs(name: str, changes: dict[str, Any]) -> Any:
    """A tiny random model of transformers in which every parameter matters."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = SIZES | ({} if name.startswith("Dinov2") else OTHERS) | changes
    if name in ("CLIPModel", "SiglipModel"):
        config = getattr(transformers, name.replace("Model", "Config"))(text_config=TEXT, vision_config=sizes)
    else:
        config = getattr(transformers, name).config_class(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def features(model: Any, frames_BCHW: Tensor) -> Tensor:
    """The class token after the last norm; of SigLIP, the mean of the tokens."""
    name = type(model).__name__
    base = model.vision_model if name in ("CLIPModel", "SiglipModel") else model
    base = model.base_model if name.endswith("ForImageClassification") else base
    if name == "ViTMAEModel":  # It shuffles the patches by this noise.
        noise = torch.arange(16.0).expand(len(frames_BCHW), -1)
        return base(pixel_values=frames_BCHW, noise=noise).last_hidden_state[:, 0]
    if name == "Siglip2VisionModel":
        pixels = frames_BCHW.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[4, 4]] * len(frames_BCHW))
        return base(pixels, torch.ones(len(frames_BCHW), 16), shapes).last_hidden_state.mean(1)
    found = base(pixel_values=frames_BCHW)
    if name.startswith("CLIP"):
        return found.pooler_output
    return found.last_hidden_state.mean(1) if name.startswith("Siglip") else found.last_hidden_state[:, 0]


def vivit(model: str = "vivit_fe", **options: Any) -> ViViT:
    sizes = {"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64, "image_size": 32, "tubelet": (1, 8, 8)}
    more: dict[str, Any] = {"temporal_depth": 1, "act": "gelu"} | options
    return ViViT(model, num_classes=5, frames=2, **sizes | more).eval()


def error_of(net: nn.Module, model: Any) -> float:
    video = torch.rand(2, 3, 2, 32, 32)
    with torch.no_grad():
        expected = features(model, video.transpose(1, 2).flatten(0, 1))
        ours = net.encoder(net.embedding(video)).flatten(0, 1)
    assert expected.std() > 0.1
    return float((ours - expected).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "file in it", "file", "state dict"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_features_of_each_frame_are_those_of_transformers(name: str, form: str, tmp_path: Path) -> None:
    changes, options, license = FAMILIES[name]
    model, net = theirs(name, changes), vivit(**options)
    model.save_pretrained(tmp_path)
    path = tmp_path if form == "folder" else tmp_path / "model.safetensors"
    if form == "file":
        path = path.rename(tmp_path / "mine.safetensors")
    elif form == "state dict":
        torch.save(model.state_dict(), path := tmp_path / "mine.pth")
    report = load_pretrained(net, str(path))
    assert report.coverage == 1
    assert report.notes == []
    if form in ("folder", "file in it"):
        assert str(report.license).startswith(license or "None")
    assert error_of(net, model) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DINOv3ViTModel", "CLIPModel", "SiglipModel", "Dinov2WithRegistersModel"])
def test_embeddings_need_no_settings(name: str, tmp_path: Path) -> None:
    model = theirs(name, FAMILIES[name][0])
    model.save_pretrained(tmp_path)
    backbone = read_backbone(Source(str(tmp_path)))
    video = torch.rand(1, *backbone.net.input_shape)
    with torch.no_grad():
        expected = features(model, video.transpose(1, 2).flatten(0, 1)).mean(0)
        torch.testing.assert_close(backbone.net.features(video)[0], expected, atol=1e-5, rtol=0)


def dinov3(folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Writes the folder of a tiny DINOv3 as on the Hub, and returns its weights."""
    rows = {"q_proj": 32, "k_proj": 32, "v_proj": 32, "o_proj": 32}
    state = {"embeddings.patch_embeddings.weight": torch.randn(32, 3, 8, 8), "norm.weight": torch.ones(32)}
    state |= {f"embeddings.{name}": torch.randn(1, 1, 32) for name in ("cls_token", "mask_token")}
    state["embeddings.register_tokens"] = torch.randn(1, 4, 32)
    for i in range(2):
        state |= {f"layer.{i}.attention.{name}.weight": torch.randn(size, 32) for name, size in rows.items()}
        state |= {f"layer.{i}.mlp.up_proj.weight": torch.randn(64, 32), f"layer.{i}.norm1.weight": torch.ones(32)}
        state |= {
            f"layer.{i}.mlp.down_proj.weight": torch.randn(32, 64),
            f"layer.{i}.norm2.weight": torch.ones(32),
        }
        state |= {f"layer.{i}.layer_scale{j}.lambda1": torch.full((32,), 0.5) for j in (1, 2)}
    save_file(state, folder / "model.safetensors")
    config = {"model_type": "dinov3_vit", "num_attention_heads": 4} | settings
    (folder / "config.json").write_text(json.dumps(config))
    return state


@pytest.mark.parametrize("model", ["vivit_fe", "vivit_st"])
def test_the_layout_shows_in_the_names(model: str, tmp_path: Path) -> None:
    state, net = dinov3(tmp_path), vivit(model, **DINOV3)
    report = load_pretrained(net, str(tmp_path))
    assert is_image_vit(str(tmp_path))
    assert report.rows["encoder.blocks.1.attention.out.weight"] == "copied, scaled"
    assert report.rows["encoder.blocks.1.attention.qkv.bias"] == "zero"
    assert report.unused == ["mask_token"]
    assert report.statistics == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(net.encoder.blocks[1].mlp.fc2.weight, state["layer.1.mlp.down_proj.weight"] / 2)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    assert load_pretrained(net, str(tmp_path)).statistics == ((0.1, 0.2, 0.3), (1, 1, 1))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("layer.1.mlp.gate_proj.weight", (64, 32), r"no place for 'blocks.1.mlp.gate_proj.weight' \(gated MLPs"),
        ("layer.0.attention.q_norm.weight", (8,), r"no place for 'blocks.0.attention.q_norm.weight'"),
        ("embeddings.token_type_embeddings", (1, 32), "no place for 'embeddings.token_type_embeddings'"),
        ("layer.2.norm1.weight", (32,), "deeper than the model"),
        ("pre_layrnorm.weight", (32,), "with pre_norm true, but .* set model.pre_norm=true,"),
    ],
)
def test_parts_that_do_not_fit_are_named(name: str, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    save_file(dinov3(tmp_path) | {name: torch.ones(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_pretrained(vivit(**DINOV3), str(tmp_path))


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 8}, "with heads 8, but .* set model.heads=8"),
        (
            {"num_attention_heads": 10**12},
            "num_attention_heads in config.json is 1000000000000, but must be between",
        ),
        ({"num_attention_heads": "four"}, "num_attention_heads in config.json is 'four', but must be a number"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps in config.json is -1.0, but must be between"),
        ({"rope_theta": 10_000}, "rope_theta in config.json is 10000, but the rotary positions of ViViT have 100"),
        ({"hidden_act": "silu"}, "ViViT has no hidden_act 'silu'"),
        ({"model_type": "beit"}, "describes 'beit', but the weights must be those of"),
        ({"model_type": "clip", "vision_config": [1]}, "with heads 12, but"),
    ],
)
def test_strange_settings_are_one_message(
    settings: dict[str, Any], message: str, tmp_path: Path, happened: Happened
) -> None:
    dinov3(tmp_path, **settings)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(vivit(**DINOV3), str(tmp_path))
    happened(f"config.json of an image ViT with {settings}", error.value)


@pytest.mark.fault("Strangers' files")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {**state, "embeddings.patch_embeddings.weight": torch.ones(())},
            "does not hold the weights",
        ),
        (
            lambda state: {**state, "layer.0.attention.q_proj.weight": torch.ones(3)},
            "does not hold the weights|is",
        ),
        (lambda state: {**state, "norm.weight": torch.full((32,), torch.nan)}, "are not finite"),
        (lambda state: {"embeddings.patch_embedding.weight": torch.ones(32, 191)}, "is not a timm ViT"),
    ],
)
def test_strange_weights_are_one_message(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path, happened: Happened
) -> None:
    save_file(change(dinov3(tmp_path)), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(vivit(**DINOV3), str(tmp_path))
    happened("A strange tensor in the file of an image ViT of Hugging Face", error.value)
