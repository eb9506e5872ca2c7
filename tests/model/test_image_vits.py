"""Image ViTs of today give timm's features of each frame, or are refused with the part that does not fit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vivit_train.models.vivit import ViViT
from vivit_train.models.weights.load import load_pretrained
from vivit_train.models.weights.timm_models import known, read_weights
from vivit_train.utils.errors import UserError

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def image_vit(name: str, **changes: Any) -> nn.Module:
    """A tiny random model of timm in which every parameter matters."""
    torch.manual_seed(0)
    vit: nn.Module = timm.create_model(name, pretrained=False, **TINY | changes)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return vit.eval()


def saved(state: dict[str, Tensor], name: str, folder: Path) -> str:
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


def vivit(vit: nn.Module, **options: Any) -> ViViT:
    """A vivit_fe for the patches and pixels of an image ViT."""
    rows, columns = vit.patch_embed.grid_size
    patch = vit.patch_embed.patch_size
    settings: dict[str, Any] = {
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "mlp_dim": vit.blocks[0].mlp.fc2.in_features,
        "image_size": (rows * patch[0], columns * patch[1]),
        "tubelet": (1, *patch),
    }
    return ViViT("vivit_fe", num_classes=5, frames=2, temporal_depth=1, **settings | options).eval()


# The model of timm, its changes for a tiny one, the options that ViViT needs, and the license.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "DINOv2": ("vit_small_patch14_dinov2.lvd142m", {"img_size": 42}, {}, "apache-2.0"),
    "DINOv2 with registers": (
        "vit_small_patch14_reg4_dinov2.lvd142m",
        {"img_size": 42},
        {"reg_tokens": 4},
        "apache-2.0",
    ),
    "SigLIP": ("vit_base_patch16_siglip_224.webli", {"img_size": 48}, {"pool": "mean"}, "apache-2.0"),
    "SigLIP 2": ("vit_base_patch16_siglip_224.v2_webli", {"img_size": 48}, {"pool": "mean"}, "apache-2.0"),
    "CLIP": (
        "vit_base_patch32_clip_quickgelu_224.openai",
        {"img_size": 96},
        {"act": "quick_gelu", "pre_norm": True, "norm_eps": 1e-5},
        "apache-2.0",
    ),
    "OpenCLIP": (
        "vit_base_patch16_clip_224.laion2b",
        {"img_size": 48},
        {"pre_norm": True, "norm_eps": 1e-5},
        "apache-2.0",
    ),
    "DINOv3": (
        "vit_small_patch16_dinov3.lvd1689m",
        {"img_size": 48},
        {"rope": True, "reg_tokens": 4, "norm_eps": 1e-5},
        "dinov3-license",
    ),
    "DeiT-3": ("deit3_small_patch16_224.fb_in22k_ft_in1k", {"img_size": 48}, {}, "apache-2.0"),
    "MAE": ("vit_base_patch16_224.mae", {"img_size": 48}, {}, "cc-by-nc-4.0"),
    "norm of the mean": (
        "vit_base_patch16_224.dino",
        {"img_size": 48, "global_pool": "avg", "class_token": False},
        {"pool": "mean", "fc_norm": True},
        "apache-2.0",
    ),
    "distilled DeiT": (
        "deit_small_distilled_patch16_224.fb_in1k",
        {"img_size": 48},
        {"reg_tokens": 1},
        "apache-2.0",
    ),
    "positions of registers": (
        "vit_base_patch16_224.dino",
        {"img_size": 64, "reg_tokens": 4},
        {"reg_tokens": 4},
        "apache-2.0",
    ),
}


def features(vit: nn.Module, frames_BCHW: Tensor, pool: str) -> Tensor:
    """The class token, or the mean of the patches, after timm's norm."""
    tokens = vit.forward_features(frames_BCHW)
    mean = tokens[:, vit.num_prefix_tokens :].mean(1)
    return vit.fc_norm(mean if pool == "mean" else tokens[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_features_of_each_frame_are_those_of_timm(family: str, tmp_path: Path) -> None:
    name, changes, options, license = FAMILIES[family]
    vit = image_vit(name.partition(".")[0], **changes)
    net = vivit(vit, **{"act": "gelu"} | options)
    report = load_pretrained(net, saved(vit.state_dict(), name, tmp_path))
    assert report.license == license
    assert report.notes == []
    assert report.coverage == 1
    video = torch.rand(2, *net.input_shape)
    with torch.no_grad():
        theirs = features(vit, video.transpose(1, 2).flatten(0, 1), str(options.get("pool", "cls")))
        ours = net.encoder(net.embedding(video)).flatten(0, 1)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_file_of_the_authors_of_dinov2_gives_the_same_weights(tmp_path: Path) -> None:
    vit = image_vit("vit_small_patch14_reg4_dinov2", img_size=42)
    state = dict(vit.state_dict())
    theirs = {**state, "register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 32)}
    first = torch.randn(1, 1, 32)  # Their class token has a position.
    theirs |= {"cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], dim=1)}
    del theirs["reg_token"]
    expected, net = (vivit(vit, act="gelu", reg_tokens=4) for _ in range(2))
    load_pretrained(expected, saved(state, "timm", tmp_path))
    report = load_pretrained(net, saved(theirs, "authors", tmp_path))
    assert report.unused == ["mask_token"]
    tokens = torch.rand(1, 2, 9, 32)
    torch.testing.assert_close(net.encoder(tokens), expected.encoder(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tubelet", ["central_frame", "inflation"])
def test_patches_of_14_pixels_are_resized_to_16(tubelet: Any, tmp_path: Path) -> None:
    vit = image_vit("vit_small_patch14_dinov2", img_size=42)
    net = vivit(vit, act="gelu", tubelet=(2, 16, 16), image_size=48)
    report = load_pretrained(net, saved(vit.state_dict(), "x", tmp_path), tubelet=tubelet)
    assert report.rows["embedding.projection.weight"] == "resized, inflated"
    assert report.rows["encoder.pos_embed"] == "copied"
    assert "14x14 pixels are resized to 16x16; model.tubelet=[2,14,14] keeps them" in str(report)
    smooth = torch.linspace(0, 1, 3)[None, :, None, None, None].expand(1, 3, 2, 48, 48)
    with torch.no_grad():  # Images without detail look the same at either size.
        theirs = vit.patch_embed(smooth[:, :, 0, :42, :42])
        torch.testing.assert_close(net.embedding(smooth)[:, 0], theirs, atol=0.05, rtol=0.05)


def test_the_report_says_which_settings_would_give_the_features_of_the_source(tmp_path: Path) -> None:
    vit = image_vit("vit_base_patch32_clip_quickgelu_224", img_size=96)
    net = vivit(vit, pre_norm=True)
    report = load_pretrained(net, saved(vit.state_dict(), "vit_base_patch32_clip_quickgelu_224.openai", tmp_path))
    assert "for the features of the source, set model.act=quick_gelu model.norm_eps=1e-05" in str(report)
    siglip = image_vit("vit_base_patch16_siglip_224", img_size=48)
    report = load_pretrained(vivit(siglip, act="gelu"), saved(siglip.state_dict(), "x", tmp_path))
    assert "no class token, so that of the model is new; model.pool=mean needs none" in str(report)
    assert any(name.startswith("attn_pool.") for name in report.unused)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_small_patch16_dinov3", {"img_size": 32}, "set model.reg_tokens=4 model.rope=true,"),
        ("vit_small_plus_patch16_dinov3", {"img_size": 32}, "gated MLPs"),
        ("eva02_tiny_patch14_224", {"img_size": 28}, "no place for 'blocks.0.mlp.fc1.weight' .gated MLPs"),
        ("vit_giant_patch14_dinov2", {"img_size": 28}, "no place for 'blocks.0.mlp.fc1.weight' .gated MLPs"),
        ("vit_base_patch16_siglip_224", {"img_size": 32, "qk_norm": True}, "norms of q and k"),
    ],
)
def test_weights_with_other_parts_are_refused_by_the_part(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state = image_vit(name, **changes).state_dict()
    patch = state["patch_embed.proj.weight"].shape[-1]
    net = ViViT("vivit_fe", num_classes=5, frames=2, dim=32, depth=2, heads=2, tubelet=(2, patch, patch))
    with pytest.raises(UserError, match=message):
        load_pretrained(net, saved(state, "x", tmp_path))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vit_small_plus_patch16_dinov3", r"no gated MLPs \(SwiGLU\)"),
        ("eva02_base_patch14_224", "no rotary positions of its kind and no gated MLPs"),
        ("vit_giant_patch14_dinov2", "no gated MLPs"),
        ("beit_base_patch16_224", "no blocks of its kind .Beit"),
    ],
)
def test_models_of_timm_with_other_parts_are_refused_by_the_part(name: str, part: str) -> None:
    with pytest.raises(UserError, match=f"timm's '{name}' is not a plain ViT: ViViT has {part}"):
        read_weights(name)


def test_a_license_is_stated_only_if_the_name_decides_it() -> None:
    by_name = {
        "vit_small_patch16_dinov3.lvd1689m": "dinov3-license",
        "vit_base_patch16_224.mae": "cc-by-nc-4.0",
        "vit_base_patch16_224": None,  # Weights of several licenses have this architecture.
        "deit_tiny_patch16_224.fp16.safetensors": "apache-2.0",
    }
    for name, license in by_name.items():
        about = known(name)
        assert about is not None
        assert about.license == license
    assert known("mine.safetensors") is None


@pytest.mark.parametrize("model", ["vivit_fe", "vivit_st"])
def test_rotary_positions_see_the_place_but_no_frame(model: Any) -> None:
    sizes: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "tubelet": (1, 8, 8)}
    net = ViViT(model, num_classes=2, frames=2, image_size=32, rope=True, **sizes)
    assert not [name for name in net.state_dict() if "rope" in name]  # They are computed, not stored.
    with torch.no_grad():
        net.encoder.pos_embed.zero_()
    tokens = torch.randn(1, 2, 16, 16)

    def encoded(x_BtnD: Tensor) -> Tensor:
        return net.encoder(x_BtnD.flatten(1, 2) if model == "vivit_st" else x_BtnD)

    moved = tokens.roll(1, dims=2)
    assert not torch.allclose(encoded(tokens), encoded(moved), atol=1e-3)
    if model == "vivit_st":
        torch.testing.assert_close(encoded(tokens), encoded(tokens.flip(1)))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vivit_fsa", {"rope": True}, "vivit_fsa has no rope, only models 1 and 2"),
        ("vivit_fdp", {"reg_tokens": 2}, "vivit_fdp has no reg_tokens, only models 1 and 2"),
        ("vivit_fe", {"rope": True, "heads": 8}, "multiple of 4, not 2"),
        ("vivit_fe", {"fc_norm": True}, "set pool to mean, not cls"),
    ],
)
def test_options_that_do_not_fit_say_why(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViViT(model, num_classes=2, frames=2, image_size=32, **{"dim": 16, "heads": 2} | options)
