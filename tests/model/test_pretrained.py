"""From an image ViT to a ViViT: the same numbers where the paper says so, and a receipt that hides nothing."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from nets import randomise, tiny
from safetensors.torch import save_file
from torch import Tensor, nn

from vivit_train.errors import UserError
from vivit_train.model.exchange import load_scenic
from vivit_train.model.pretrained import init_from_vit, normalisation, read_weights
from vivit_train.model.vivit import ModelName, ViViT

Weights = dict[str, Tensor]
DEIT = "deit_tiny_patch16_224.fp16.safetensors"

INIT_CASES: dict[str, tuple[ModelName, str]] = {
    "init_spacetime": ("vivit_st", "central_frame"),
    "init_spacetime_average_resize_tile": ("vivit_st", "inflation"),
    "init_factorized_encoder": ("vivit_fe", "central_frame"),
    "init_factorized_self_attention": ("vivit_fsa", "central_frame"),
    "init_factorized_dot_product": ("vivit_fdp", "central_frame"),
}


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


def timm_layout(flax: dict[str, np.ndarray[Any, Any]]) -> Weights:
    """The authors' image ViT in timm's keys and layout."""
    x = {path: torch.from_numpy(value.copy()) for path, value in flax.items()}
    state = {
        "cls_token": x["cls"],
        "pos_embed": x["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": x["embedding/kernel"].permute(3, 2, 0, 1),
        "patch_embed.proj.bias": x["embedding/bias"],
        "norm.weight": x["Transformer/encoder_norm/scale"],
        "norm.bias": x["Transformer/encoder_norm/bias"],
        "head.weight": x["output_projection/kernel"].T,
        "head.bias": x["output_projection/bias"],
    }
    for i in range(sum(path.endswith("LayerNorm_0/scale") for path in x)):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        qkv = [f"{attention}/{which}" for which in ("query", "key", "value")]
        state[f"{ours}.attn.qkv.weight"] = torch.cat([x[f"{path}/kernel"].flatten(1).T for path in qkv])
        state[f"{ours}.attn.qkv.bias"] = torch.cat([x[f"{path}/bias"].flatten() for path in qkv])
        state[f"{ours}.attn.proj.weight"] = x[f"{attention}/out/kernel"].flatten(0, 1).T
        state[f"{ours}.attn.proj.bias"] = x[f"{attention}/out/bias"]
        for n in (0, 1):
            state[f"{ours}.norm{n + 1}.weight"] = x[f"{theirs}/LayerNorm_{n}/scale"]
            state[f"{ours}.norm{n + 1}.bias"] = x[f"{theirs}/LayerNorm_{n}/bias"]
            state[f"{ours}.mlp.fc{n + 1}.weight"] = x[f"{theirs}/MlpBlock_0/Dense_{n}/kernel"].T
            state[f"{ours}.mlp.fc{n + 1}.bias"] = x[f"{theirs}/MlpBlock_0/Dense_{n}/bias"]
    return state


@pytest.mark.parametrize("case", INIT_CASES)
def test_parameters_are_those_of_the_authors_loader(case: str, shared: Path) -> None:
    model, tubelet = INIT_CASES[case]
    folder = shared / "goldens" / "scenic" / case
    config = json.loads((folder / "config.json").read_text())
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    src, before, after = (
        {name.removeprefix(part): value for name, value in arrays.items() if name.startswith(part)}
        for part in ("src/", "before/", "after/")
    )
    settings: dict[str, Any] = {
        "model": model,
        "frames": 6,
        "image_size": (12, 12),
        "pool": {"token": "cls", "gap": "mean"}[config["model"]["classifier"]],
        "order": config["model"]["attention_config"].get("attention_order", "space_time"),
    }
    net, untouched = load_scenic(before, **settings), load_scenic(before, **settings).state_dict()
    expected = load_scenic(after, **settings).state_dict()
    init_from_vit(net, timm_layout(src), tubelet=tubelet)

    for name, value in net.named_parameters():
        if name.startswith("head."):
            want = torch.zeros_like(value)
        elif model == "vivit_fe" and name == "encoder.cls_token":
            want = torch.from_numpy(src["cls"])  # their loader forgets it
        elif "attention_time.out" in name:
            want = torch.zeros_like(value)  # a no-op at first; they copy the spatial attention, or zero all of it
        elif "attention_time" in name:
            want = untouched[name]
        else:
            want = expected[name]
        torch.testing.assert_close(value.detach(), want, atol=1e-6, rtol=0, msg=name)


def assert_spatial_encoder_is_the_image_model(net: ViViT, vit: nn.Module) -> None:
    video = torch.rand(2, *net.input_shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        cls_BtD = net.encoder(net.embedding(video))
        t = net.tubelet[0]
        for i in range(net.grid[0]):
            features = vit.forward_features(video[:, :, i * t + t // 2])[:, 0]
            torch.testing.assert_close(cls_BtD[:, i], features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames_in_tubelet", [1, 2, 4])
def test_spatial_encoder_is_the_image_model_of_the_central_frame(frames_in_tubelet: int) -> None:
    vit, net = image_vit(), vivit("vivit_fe", tubelet=(frames_in_tubelet, 16, 16))
    init_from_vit(net, vit.state_dict())
    assert_spatial_encoder_is_the_image_model(net, vit)


def test_spatial_encoder_is_the_real_deit(shared: Path) -> None:
    path = shared / "weights" / DEIT
    if not path.is_file():
        pytest.skip(f"no {path}")
    net = ViViT.from_size("vivit_fe", "Ti", num_classes=5, frames=4).eval()
    receipt = init_from_vit(net, str(path))
    vit = timm.create_model("deit_tiny_patch16_224", pretrained=False, act_layer="gelu_tanh").eval()
    vit.load_state_dict(read_weights(str(path)))
    assert_spatial_encoder_is_the_image_model(net, vit)
    assert receipt.coverage == 1
    assert receipt.unused == ["head.bias", "head.weight"]


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
def test_factorised_self_attention_starts_blind_to_time_and_learns(order: str) -> None:
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
    net = randomise(vivit(model, **kwargs))
    before = {name: value.clone() for name, value in net.named_parameters()}
    receipt = init_from_vit(net, image_vit().state_dict())
    assert list(receipt.rows) == [name for name, _ in net.named_parameters()]
    for name, action in receipt.rows.items():
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
    assert receipt.coverage == 1
    without_cls = ["cls_token"] if model in ("vivit_fsa", "vivit_fdp") else []
    assert sorted(receipt.unused) == sorted([*without_cls, "head.weight", "head.bias"])
    assert all(name in receipt.full() for name in receipt.rows)
    assert "100.0%" in str(receipt)
    assert "not used: " in str(receipt)


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
    receipt = init_from_vit(vivit("vivit_st"), shallow, min_coverage=0.5)
    assert {action for name, action in receipt.rows.items() if "blocks.1." in name} == {"random"}
    assert {action for name, action in receipt.rows.items() if "blocks.0." in name} == {"copied"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet10t", {}, "not a timm ViT: it has no 'patch_embed.proj.weight'"),
        ("vit_small_patch16_224", {"depth": 1}, "width 384 and patch 16x16, the model has width 192 "),
        ("vit_tiny_patch16_224", {"patch_size": 8}, "patch 8x8, .*tubelets 2x16x16"),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, "no place for 'reg_token'"),
        ("vit_tiny_patch16_224", {"init_values": 1e-5}, "no place for 'blocks.0.ls1.gamma'"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "no place for 'blocks.0.attn.q_norm.weight'"),
        ("vit_tiny_patch16_224", {"mlp_ratio": 2}, r"'blocks.0.mlp.fc1.weight' .* is \[384, 192\].*model.size"),
        ("deit_tiny_distilled_patch16_224", {}, "no place for 'dist_token'"),
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
    with pytest.raises(UserError, match=message):
        init_from_vit(net, image)


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
    with pytest.raises(UserError, match=r"'vit_tiny_patch16_225' is neither .* near: .*vit_tiny_patch16_224"):
        read_weights("vit_tiny_patch16_225")
    with pytest.raises(UserError, match=r"'nothing_like_it' is neither a file nor a model of timm$"):
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
def test_normalisation_is_known_by_name(source: str, expected: tuple[tuple[float, ...], ...] | None) -> None:
    assert normalisation(source) == expected
