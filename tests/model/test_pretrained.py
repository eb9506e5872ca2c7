"""From an image ViT to a ViViT: the same numbers where the paper says so, and a report that hides nothing."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import Happened
from nets import randomize, tiny
from parity import INITS, cls_error, deit_error, init_error
from safetensors.torch import save_file
from torch import Tensor, nn

from vivit_train.models.vivit import SIZES, ModelName, ViViT
from vivit_train.models.weights import timm_models
from vivit_train.models.weights.timm_models import normalization, read_weights
from vivit_train.models.weights.timm_vit import init_from_vit
from vivit_train.training.checkpoint import load_checkpoint
from vivit_train.utils.errors import UserError

Weights = dict[str, Tensor]
DEIT = "deit_tiny_patch16_224.fp16.safetensors"


def image_vit(depth: int = 2, num_classes: int = 7, **kwargs: Any) -> nn.Module:
    """A random ViT-Ti of timm with our GELU, nothing in it zero, for images of 64 x 64."""
    settings = {"depth": depth, "img_size": 64, "num_classes": num_classes, "act_layer": "gelu_tanh"}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings | kwargs)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return vit.eval()


def vivit(model: ModelName, **kwargs: Any) -> ViViT:
    """A ViViT-Ti that the weights of `image_vit` fit."""
    settings: dict[str, Any] = {"num_classes": 5, "depth": 2, "frames": 8, "image_size": 64, "temporal_depth": 2}
    return ViViT.from_size(model, "Ti", **settings | kwargs).eval()


@pytest.mark.parametrize("case", INITS)
def test_parameters_are_those_of_the_authors_loader(case: str) -> None:
    assert init_error(case) < 1e-6


@pytest.mark.parametrize("frames_in_tubelet", [1, 2, 4])
def test_spatial_encoder_is_the_image_model_of_the_central_frame(frames_in_tubelet: int) -> None:
    vit, net = image_vit(), vivit("vivit_fe", tubelet=(frames_in_tubelet, 16, 16))
    init_from_vit(net, vit.state_dict())
    assert cls_error(net, vit) < 1e-4


def test_spatial_encoder_is_the_real_deit(shared: Path) -> None:
    assert deit_error(shared) < 1e-4


VARIANTS: dict[str, dict[str, Any]] = {
    "patch 8": {"patch_size": 8, "img_size": 32},
    "patch 14": {"patch_size": 14, "img_size": 56},
    "patch 32": {"patch_size": 32, "img_size": 96},
    "no cls token": {"class_token": False, "global_pool": "avg"},
    "norm after pooling": {"global_pool": "avg"},
    "no position of the cls token": {"no_embed_class": True},
    "layer scale": {"init_values": 0.1},
    "layer scale, no cls token": {"init_values": 0.1, "class_token": False, "global_pool": "avg"},
    "no qkv bias": {"qkv_bias": False},
    "attention pooling": {"class_token": False, "global_pool": "map"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_plain_vit_of_timm_gives_its_tokens(variant: str) -> None:
    vit = image_vit(**VARIANTS[variant])
    patch = VARIANTS[variant].get("patch_size", 16)
    size = VARIANTS[variant].get("img_size", 64)
    pool = "cls" if vit.cls_token is not None else "mean"
    net = vivit("vivit_fe", tubelet=(2, patch, patch), image_size=size, frames=4, pool=pool)
    report = init_from_vit(net, vit.state_dict(), min_coverage=0.99)
    theirs, ours = [], []
    vit.blocks.register_forward_hook(lambda _module, _inputs, output: theirs.append(output))
    net.encoder.blocks[-1].register_forward_hook(lambda _module, _inputs, output: ours.append(output))
    video = torch.rand(2, *net.input_shape)
    with torch.no_grad():
        net(video)
        for frame in (1, 3):
            vit.forward_features(video[:, :, frame])
    read = ours[0].shape[-2]  # the last block's cls token, which sees all of the block before; without one, all
    assert read == (1 if pool == "cls" else net.grid[1] * net.grid[2])
    torch.testing.assert_close(ours[0], torch.stack(theirs, dim=1)[..., :read, :], atol=1e-4, rtol=1e-4)
    scaled = {name for name, action in report.rows.items() if action == "copied, scaled"}
    assert scaled == {
        name
        for name in report.rows
        if "layer scale" in variant and name.startswith("encoder.") and (".out." in name or ".fc2." in name)
    }
    assert not [key for key in report.unused if key.startswith(("blocks.", "patch_embed", "pos_embed"))]
    if variant == "norm after pooling":
        assert report.rows["encoder.norm.weight"] == "random"
        assert {"fc_norm.weight", "fc_norm.bias"} <= set(report.unused)


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
@pytest.mark.parametrize("has_cls", [True, False])
def test_another_grid_of_a_vit_without_cls_position_is_resized(model: ModelName, has_cls: bool) -> None:
    heads = {"heads": 4} if model == "vivit_fdp" else {}
    pooling = {} if has_cls else {"class_token": False, "global_pool": "avg"}
    net, vit = vivit(model, image_size=(96, 32), **heads), image_vit(no_embed_class=True, **pooling)
    init_from_vit(net, vit.state_dict(), min_coverage=0.9)
    slots, steps = int(net.encoder.cls_token is not None), 1 if model == "vivit_fe" else 4
    corners = net.encoder.pos_embed[0, slots:].unflatten(0, (steps, 6, 2))[:, ::5]
    torch.testing.assert_close(corners, vit.pos_embed[0].unflatten(0, (1, 4, 4))[:, ::3, ::3].expand_as(corners))
    assert not net.encoder.pos_embed[0, :slots].any()


def huggingface_layout(image: Weights, prefix: str, layout: int) -> Weights:
    """timm's state dict in the keys of Hugging Face's ViT: on the hub (0), in memory since version 5 (1)."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm.": "layernorm.",
        "head.": "classifier.",
    }
    inner = {
        ".norm1.": (".layernorm_before.",) * 2,
        ".norm2.": (".layernorm_after.",) * 2,
        ".attn.proj.": (".attention.output.dense.", ".attention.o_proj."),
        ".mlp.fc1.": (".intermediate.dense.", ".mlp.fc1."),
        ".mlp.fc2.": (".output.dense.", ".mlp.fc2."),
    }
    weights = {}
    for key, value in image.items():
        if not key.startswith("blocks."):
            start = next(name for name in names if key.startswith(name))
            weights[("" if start == "head." else prefix) + key.replace(start, names[start])] = value
            continue
        name = prefix + key.replace("blocks.", ("encoder.layer.", "layers.")[layout])
        for ours, theirs in inner.items():
            name = name.replace(ours, theirs[layout])
        if ".attn.qkv." not in key:
            weights[name] = value
            continue
        for which, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
            theirs = (f".attention.attention.{which}.", f".attention.{which[0]}_proj.")[layout]
            weights[name.replace(".attn.qkv.", theirs)] = part.contiguous()
    return weights


@pytest.mark.parametrize("prefix", ["vit.", ""])
@pytest.mark.parametrize("layout", [0, 1])
def test_image_vits_of_hugging_face_are_read(prefix: str, layout: int, tmp_path: Path) -> None:
    image = image_vit().state_dict()
    save_file(huggingface_layout(image, prefix, layout), tmp_path / "model.safetensors")
    expected, net = vivit("vivit_st"), vivit("vivit_st")
    init_from_vit(expected, image)
    report = init_from_vit(net, str(tmp_path))
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in net.state_dict().items())
    assert report.coverage == 1
    assert all(key.startswith("classifier.") for key in report.unused)


@pytest.mark.parametrize("key", ["embeddings.token_type", "encoder.layer.0.attention.lora_a"])
def test_relatives_of_hugging_faces_vit_are_refused(key: str) -> None:
    weights = huggingface_layout(image_vit().state_dict(), "", 0) | {key: torch.ones(1, 1, 192)}
    with pytest.raises(UserError, match="not a plain ViT: ViViT has no place for"):
        init_from_vit(vivit("vivit_st"), weights)


def test_filter_inflation_gives_a_still_video_the_image_models_tokens() -> None:
    vit, still = image_vit(), torch.rand(1, 3, 1, 64, 64).repeat(1, 1, 8, 1, 1)
    for tubelet in ("inflation", "central_frame"):
        net = vivit("vivit_fe", tubelet=(4, 16, 16))
        init_from_vit(net, vit.state_dict(), tubelet=tubelet)
        tokens = vit.patch_embed(still[:, :, 0])[:, None].expand(-1, 2, -1, -1)
        torch.testing.assert_close(net.embedding(still), tokens, atol=1e-5, rtol=1e-5)
        frames_used = net.embedding.projection.weight.abs().amax((0, 1, 3, 4)) > 0
        assert frames_used.tolist() == ([True] * 4 if tubelet == "inflation" else [False, False, True, False])


@pytest.mark.parametrize("order", ["space_time", "time_space"])
def test_factorized_self_attention_starts_blind_to_time_and_learns(order: str) -> None:
    net = vivit("vivit_fsa", order=order)
    init_from_vit(net, image_vit().state_dict())
    tokens: list[Tensor] = []
    hook = net.encoder.norm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output.detach()))
    video = torch.rand(1, *net.input_shape)
    net(video)
    video[:, :, :2] = 0
    net(video)
    change_t = (tokens[0] - tokens[1]).abs().amax((0, 2, 3))
    assert change_t[0] > 1e-3
    assert not change_t[1:].any()

    hook.remove()
    temporal = net.encoder.blocks[0].attention_time
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):  # the classifier is zero as well: it, then the out projection, then q, k and v
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(video), torch.tensor([1])).backward()
        assert bool(temporal.out.weight.grad.any()) == (step >= 1)
        assert bool(temporal.qkv.weight.grad.any()) == (step >= 2)
        optimizer.step()
    assert all(part.any() for part in temporal.qkv.weight.grad.chunk(3))


@pytest.mark.parametrize(
    ("model", "kwargs", "positions"),
    [
        ("vivit_st", {}, "repeated"),
        ("vivit_fe", {}, "copied"),
        ("vivit_fsa", {}, "repeated"),
        ("vivit_fdp", {"heads": 4}, "repeated"),
        ("vivit_st", {"image_size": 96}, "resized, repeated"),
        ("vivit_fe", {"image_size": (64, 96)}, "resized"),
    ],
)
def test_receipt_says_what_happened_to_every_parameter(
    model: ModelName, kwargs: dict[str, Any], positions: str
) -> None:
    net = randomize(vivit(model, **kwargs))
    before = {name: value.clone() for name, value in net.named_parameters()}
    report = init_from_vit(net, image_vit().state_dict())
    assert list(report.rows) == [name for name, _ in net.named_parameters()]
    for name, action in report.rows.items():
        value = net.get_parameter(name)
        assert (action == "random") == torch.equal(value, before[name]), name
        assert (action == "zero") == (not value.any()), name
        if name == "encoder.pos_embed":
            assert action == positions
        elif name == "embedding.projection.weight":
            assert action == "inflated"
        elif name.startswith("head.") or "attention_time.out" in name:
            assert action == "zero", name
        elif name.startswith("temporal_encoder.") or "_time" in name:
            assert action == "random", name
        else:
            assert action == "copied", name
    assert report.coverage == 1
    without_cls = ["cls_token"] if model in ("vivit_fsa", "vivit_fdp") else []
    assert sorted(report.unused) == sorted([*without_cls, "head.weight", "head.bias"])
    assert all(name in report.full() for name in report.rows)
    assert "100.0 %" in str(report)
    assert "not used: " in str(report)


def test_positions_are_the_images_at_every_time() -> None:
    vit, net = image_vit(), vivit("vivit_st")
    init_from_vit(net, vit.state_dict())
    grid = net.encoder.pos_embed[:, 1:].unflatten(1, (4, 16))
    assert torch.equal(net.encoder.pos_embed[:, 0], vit.pos_embed[:, 0])
    assert all(torch.equal(grid[:, t], vit.pos_embed[:, 1:]) for t in range(4))


def test_resized_positions_keep_the_corners_and_the_plane_between_them() -> None:
    vit, net = image_vit(), vivit("vivit_fe", image_size=(96, 160))
    y, x = torch.meshgrid(torch.linspace(0, 1, 4), torch.linspace(0, 1, 4), indexing="ij")
    with torch.no_grad():
        vit.pos_embed[:, 1:] = (2 * y + 3 * x).flatten()[None, :, None]
    init_from_vit(net, vit.state_dict())
    y, x = torch.meshgrid(torch.linspace(0, 1, 6), torch.linspace(0, 1, 10), indexing="ij")
    expected = (2 * y + 3 * x).flatten()[:, None].expand(-1, 192)
    torch.testing.assert_close(net.encoder.pos_embed[0, 1:].detach(), expected)


def test_too_little_coverage_is_an_error_unless_allowed() -> None:
    shallow = image_vit(depth=1).state_dict()
    with pytest.raises(UserError, match=r"fills 62\.9% of the model, less than init.min_coverage=90%.*depth 2"):
        init_from_vit(vivit("vivit_st"), shallow)
    report = init_from_vit(vivit("vivit_st"), shallow, min_coverage=0.5)
    assert {action for name, action in report.rows.items() if "blocks.1." in name} == {"random"}
    assert {action for name, action in report.rows.items() if "blocks.0." in name} == {"copied"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet10t", {}, "not a timm ViT: it has no 'patch_embed.proj.weight'"),
        ("vit_small_patch16_224", {"depth": 1}, "ViT with dim 384, but the .* with dim 192: set model.dim=384,"),
        ("vit_small_patch16_224", {"depth": 12}, "set model.size=S,"),
        ("vit_tiny_patch16_224", {"patch_size": 8}, r"tubelet \[2,16,16\]: set model.tubelet=\[2,8,8\],"),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, "with reg_tokens 4, but .* set model.reg_tokens=4,"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "no place for 'blocks.0.attn.q_norm.weight'"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "with pre_norm true, but .* set model.pre_norm=true,"),
        ("vit_tiny_patch16_224", {"img_size": (32, 96)}, r"images that are not square: its 'pos_embed' \[1, 13"),
        (
            "vit_tiny_patch16_224",
            {"depth": 3},
            "deeper than the model: no place for 'blocks.2.norm1.weight' in 2 ",
        ),
        ("vit_relpos_small_patch16_224", {}, r"no place for 'blocks.0.attn.rel_pos"),
        ("vit_srelpos_small_patch16_224", {}, "no place for 'shared_rel_pos"),
        ("vit_small_patch16_rope_mixed_ape_224", {"embed_dim": 192, "num_heads": 3}, "no place for 'rope.freqs'"),
        ("vit_tiny_r_s16_p8_224", {}, "not a timm ViT|no place for 'patch_embed.backbone"),
        ("cait_xxs24_224", {}, "no place for 'blocks.0.attn.proj_l"),
        ("vit_giant_patch14_dinov2", {"embed_dim": 192, "num_heads": 3}, r"blocks.0.mlp.fc1.weight|patch 14x14"),
        ("vit_tiny_patch16_224", {"mlp_ratio": 2}, r"'blocks.0.mlp.fc1.weight' .* is \[384, 192\].*model.size"),
        ("deit_tiny_distilled_patch16_224", {}, "with reg_tokens 1, but .* set model.reg_tokens=1,"),
        (
            "eva_giant_patch14_224",
            {"embed_dim": 192, "num_heads": 3, "patch_size": 16, "mlp_ratio": 4},
            "'blocks.0.attn.q_bias'",
        ),
    ],
)
def test_weights_that_do_not_fit_say_why(name: str, settings: dict[str, Any], message: str) -> None:
    if "resnet" not in name:
        settings = {"depth": 2, "img_size": 64} | settings
    image = timm.create_model(name, pretrained=False, **settings).state_dict()
    net = vivit("vivit_st", frames=2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=message):
        init_from_vit(net, image)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_whatever_fails_late_leaves_the_model_as_it_was() -> None:
    image, net = image_vit().state_dict(), randomize(vivit("vivit_st"))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for damaged in (
        image | {"norm.weight": torch.ones(3)},
        {k: v for k, v in image.items() if "blocks.1" not in k},
    ):
        with pytest.raises(UserError):
            init_from_vit(net, damaged)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_weights_are_read_from_files(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    image = image_vit().state_dict()
    path = tmp_path / f"vit{suffix}"
    if suffix == ".safetensors":
        save_file(image, path)
    else:
        torch.save({wrapper: image, "epoch": 3} if wrapper else image, path)
    from_file, from_memory = vivit("vivit_fe"), vivit("vivit_fe")
    init_from_vit(from_file, str(path))
    init_from_vit(from_memory, image)
    assert torch.equal(from_file.encoder.blocks[1].mlp.fc2.weight, from_memory.encoder.blocks[1].mlp.fc2.weight)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_malicious_file_executes_nothing(tmp_path: Path, suffix: str, save: Any) -> None:
    trap, path = tmp_path / "executed", tmp_path / f"weights{suffix}"
    save({"state_dict": {"patch_embed.proj.weight": Malicious(trap)}}, path)
    with pytest.raises(UserError, match=f"weights{suffix}"):
        init_from_vit(tiny("vivit_st"), str(path))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious(trap)))  # the trap works
    assert trap.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"vit{suffix}"
    weights = {"pos_embed": torch.randn(100, 100)}
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"vit{suffix}"):
        read_weights(str(path))


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_small_patch16_rope_ape_224", "resnet18"])
def test_models_of_timm_that_are_no_plain_vit_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"timm's '{name}' is not a plain ViT"):
        read_weights(name)


def test_what_a_file_is_does_not_depend_on_what_it_is_called(tmp_path: Path) -> None:
    weights = {"pos_embed": torch.randn(3, 3)}
    save_file(weights, tmp_path / "a.pth")
    torch.save(weights, tmp_path / "b.safetensors")
    (tmp_path / "c.pth").write_text("not at all weights")
    for extra in range(8):  # the length of the header comes first: one of them looks like a pickle
        save_file(weights, tmp_path / f"{extra}.bin", metadata={"x": "y" * (16 * extra)})
    for name in ("a.pth", "b.safetensors", *(f"{extra}.bin" for extra in range(8))):
        assert torch.equal(read_weights(str(tmp_path / name))["pos_embed"], weights["pos_embed"])
    with pytest.raises(UserError, match=r"c\.pth .*: it is neither a safetensors nor a PyTorch file"):
        read_weights(str(tmp_path / "c.pth"))


@pytest.mark.fault("Strangers' files")
def test_files_that_claim_to_be_larger_than_they_are_are_refused_unread(
    tmp_path: Path, happened: Happened
) -> None:
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    assert torch.equal(torch.load(tmp_path / "bomb.pth")["w"], torch.zeros(1_000_000))  # torch would unpack it
    for read in (read_weights, load_checkpoint):
        with pytest.raises(UserError, match=r"bomb\.pth is refused: it would unpack to 4,\d+,\d+ bytes") as error:
            read(str(tmp_path / "bomb.pth"))
    happened("A zip bomb given as weights or as a checkpoint", error.value)
    (tmp_path / "header.safetensors").write_bytes((1 << 39).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match=r"header\.safetensors cannot be read as weights") as error:
        read_weights(str(tmp_path / "header.safetensors"))
    happened("A safetensors file whose header claims 512 GiB", error.value)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        read_weights(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("name", ["missing.safetensors", "folder/missing", "missing.pth"])
def test_a_missing_file_is_no_model_to_download(name: str) -> None:
    with pytest.raises(UserError, match=f"no weights at {name}"):
        read_weights(name)


def test_an_unknown_model_is_answered_with_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"'vit_tiny_patch16_225' is neither .* similar: .*vit_tiny_patch16_224"):
        read_weights("vit_tiny_patch16_225")
    with pytest.raises(UserError, match=r"'nothing_like_it' is neither a file nor a timm model$"):
        read_weights("nothing_like_it")


HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("vit_base_patch16_224.augreg_in21k", HALF),
        ("vit_base_patch16_224.dino", IMAGENET),
        ("vit_base_patch16_224", HALF),
        ("deit_tiny_patch16_224", IMAGENET),
        ("weights/vit_base_patch16_224.dino.safetensors", IMAGENET),
        ("weights/vit_base_patch16_224.pth", HALF),
        (f"weights/{DEIT}", IMAGENET),
        ("weights/mine.safetensors", None),
    ],
)
def test_normalization_is_known_by_name(source: str, expected: tuple[tuple[float, ...], ...] | None) -> None:
    assert normalization(source) == expected


def test_the_names_of_image_vits_mean_weights_that_timm_has() -> None:
    for name, sizes in timm_models.IMAGENET.items():
        for size, model in sizes.items():
            assert timm_models.image_vit(name, size) == model
            assert timm.models.is_model_pretrained(model)
            dim, heads = SIZES[size]["dim"], SIZES[size]["heads"]
            with torch.device("meta"):
                image = timm.create_model(model, depth=1)
            assert (image.embed_dim, image.blocks[0].attn.num_heads) == (dim, heads)
    assert timm_models.image_vit("vit_base_patch16_224.orig_in21k", "B") == "vit_base_patch16_224.orig_in21k"
    assert timm_models.image_vit(None, "B") is None
    with pytest.raises(UserError, match=r"init.name=imagenet_orig has no weights for model.size=Ti, only for B"):
        timm_models.image_vit("imagenet_orig", "Ti")
