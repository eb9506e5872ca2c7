"""Weights of the authors' code and of Hugging Face give the reference's logits, or an error that says why not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from nets import randomize, tiny, videos
from parity import GOLDENS, Tree
from safetensors.torch import load_file, save_file
from torch import nn

from vivit_train.models.layers import Attention, Encoder
from vivit_train.models.vivit import MODELS, ModelName, ViViT
from vivit_train.models.weights.files import video_statistics
from vivit_train.models.weights.huggingface import load_huggingface, save_huggingface
from vivit_train.models.weights.scenic import load_scenic
from vivit_train.models.weights.scenic import to_scenic as package_to_scenic
from vivit_train.utils.errors import UserError

HUGGINGFACE = GOLDENS / "huggingface"

both_attention_paths = pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])


def golden(case: str) -> tuple[Tree, Tree, dict[str, Any]]:
    """The parameter tree of a golden, its other arrays, and what `load_scenic` must be told."""
    arrays, _, settings = parity.scenic(case)
    return parity.part(arrays, "params/"), arrays, settings


def to_scenic(net: ViViT) -> Tree:
    """The authors' parameter tree of a model of ours: the layout of scenic.py backwards, written on its own."""
    tree: Tree = {}

    def put(path: str, value: torch.Tensor) -> None:
        tree[path] = value.detach().numpy()

    def norm(path: str, layer: nn.Module) -> None:
        put(f"{path}/scale", layer.weight)
        put(f"{path}/bias", layer.bias)

    def dense(path: str, layer: nn.Module) -> None:
        put(f"{path}/kernel", layer.weight.T)
        put(f"{path}/bias", layer.bias)

    def attention(path: str, layer: Attention) -> None:
        heads, dim = layer.heads, layer.out.in_features
        for name, weight, bias in zip(
            ("query", "key", "value"), layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True
        ):
            put(f"{path}/{name}/kernel", weight.T.reshape(dim, heads, dim // heads))
            put(f"{path}/{name}/bias", bias.reshape(heads, dim // heads))
        put(f"{path}/out/kernel", layer.out.weight.T.reshape(heads, dim // heads, dim))
        put(f"{path}/out/bias", layer.out.bias)

    def encoder(path: str, cls: str, ours: Encoder) -> None:
        fsa = net.model == "vivit_fsa"
        put(f"{path}/posembed_input/pos_embedding", ours.pos_embed)
        if ours.cls_token is not None:
            put(cls, ours.cls_token)
        norm(f"{path}/encoder_norm", ours.norm)
        for i, block in enumerate(ours.blocks):
            at = f"{path}/encoderblock_{i}"
            norm(f"{at}/{'LayerNorm_space' if fsa else 'LayerNorm_0'}", block.norm1)
            norm(f"{at}/{'LayerNorm_mlp' if fsa else 'LayerNorm_1'}", block.norm2)
            attention(f"{at}/MultiHeadDotProductAttention_{'space' if fsa else '0'}", block.attention)
            dense(f"{at}/{'MlpBlock' if fsa else 'MlpBlock_0'}/Dense_0", block.mlp.fc1)
            dense(f"{at}/{'MlpBlock' if fsa else 'MlpBlock_0'}/Dense_1", block.mlp.fc2)
            if fsa:
                norm(f"{at}/LayerNorm_time", block.norm_time)
                attention(f"{at}/MultiHeadDotProductAttention_time", block.attention_time)

    kernel = net.embedding.projection.weight.permute(2, 3, 4, 1, 0)
    put("embedding/kernel", kernel if net.embedding.frame_index is None else kernel[0])
    put("embedding/bias", net.embedding.projection.bias)
    if net.model == "vivit_fe":
        encoder("SpatialTransformer", "cls_SpatialTransformer", net.encoder)
        if net.temporal_encoder is not None:
            encoder("TemporalTransformer", "cls_TemporalTransformer", net.temporal_encoder)
    else:
        encoder("Transformer", "cls", net.encoder)
    dense("output_projection", net.head)
    return tree


@pytest.mark.parametrize("case", parity.MODELS)
@both_attention_paths
def test_logits_are_the_authors(case: str, eager: bool) -> None:
    tree, arrays, settings = golden(case)
    net = load_scenic(tree, **settings).eval().use_eager_attention(eager)
    video_BCTHW = torch.from_numpy(arrays["input/video"]).permute(0, 4, 1, 2, 3)
    expected = torch.from_numpy(arrays["output/logits_f64"])
    torch.testing.assert_close(net(video_BCTHW).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(net.double()(video_BCTHW.double()), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", parity.MODELS)
def test_gradients_reach_what_was_loaded(case: str) -> None:
    tree, arrays, settings = golden(case)
    net = load_scenic(tree, **settings)
    net(torch.from_numpy(arrays["input/video"]).permute(0, 4, 1, 2, 3)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(
    ("model", "changes"),
    [(model, changes) for model in MODELS for changes in ({}, {"tubelet": (1, 4, 4), "sampled_frames": 3})]
    + [
        ("vivit_st", {"pool": "mean"}),
        ("vivit_st", {"pool": "mean", "tubelet": (1, 4, 4), "sampled_frames": 3}),
        ("vivit_fe", {"pool": "mean"}),
        ("vivit_fe", {"pool": "mean", "tubelet": (1, 4, 4), "sampled_frames": 3}),
        ("vivit_fe", {"temporal_depth": 0}),
        ("vivit_fe", {"temporal_depth": 0, "pool": "mean"}),
        ("vivit_fe", {"depth": 12, "temporal_depth": 3}),
        ("vivit_fsa", {"order": "time_space"}),
    ],
)
def test_trees_come_back_as_the_model_that_they_were(model: ModelName, changes: dict[str, Any]) -> None:
    net = randomize(tiny(model, **changes))
    told: dict[str, Any] = {"pool": changes.get("pool", "cls"), "order": changes.get("order", "space_time")}
    again = load_scenic(to_scenic(net), model=model, frames=8, image_size=(8, 12), **told).eval()
    video = videos(net)
    torch.testing.assert_close(again(video), net(video), atol=1e-5, rtol=0)
    assert_same_weights(again, net)
    ours, expected = package_to_scenic(net), to_scenic(net)
    assert set(ours) == set(expected)
    for path, value in expected.items():
        assert ours[path].dtype == np.float32
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


def assert_same_weights(one: ViViT, other: ViViT) -> None:
    state = other.state_dict()
    assert set(state) == set(one.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("case", parity.MODELS)
def test_the_authors_trees_come_back_exactly(case: str) -> None:
    tree, _, settings = golden(case)
    ours = package_to_scenic(load_scenic(tree, **settings))
    assert set(ours) == set(tree)
    assert all(np.array_equal(ours[path], value) for path, value in tree.items())


def test_several_heads_are_one_projection_as_in_the_authors_epic_models() -> None:
    net = randomize(tiny("vivit_fe", num_classes={"verb": 3, "noun": 4}))
    tree = package_to_scenic(net)
    assert tree["output_projection/kernel"].shape == (16, 7)
    again = load_scenic(tree, model="vivit_fe", frames=8, image_size=(8, 12), pool="cls").eval()
    video = videos(net)
    torch.testing.assert_close(again(video), torch.cat(list(net(video).values()), dim=1))


def test_encoders_of_different_heads_are_refused() -> None:
    tree = to_scenic(randomize(tiny("vivit_fe")))
    path = "TemporalTransformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    tree[path] = tree[path].reshape(16, 2, 8)
    with pytest.raises(UserError, match=f"'{path}' has 2 heads, the model 4"):
        load_scenic(tree, model="vivit_fe", frames=8, image_size=(8, 12), pool="cls")


def test_the_tree_given_is_left_as_it_was() -> None:
    tree, _, settings = golden("spacetime")
    names = set(tree)
    load_scenic(tree, **settings)
    assert set(tree) == names


@pytest.mark.parametrize("case", parity.MODELS)
def test_a_missing_parameter_is_named(case: str) -> None:
    tree, _, settings = golden(case)
    for path in list(tree):
        value = tree.pop(path)
        with pytest.raises(UserError, match=f"no '{path}'"):
            load_scenic(tree, **settings)
        tree[path] = value


@pytest.mark.parametrize("path", ["Transformer/encoderblock_0/extra/kernel", "pre_logits/kernel"])
def test_a_parameter_left_over_is_named(path: str) -> None:
    tree, _, settings = golden("spacetime")
    with pytest.raises(UserError, match=f"vivit_st has no place for 1 parameter, the first: '{path}'"):
        load_scenic(tree | {path: np.zeros((16, 16))}, **settings)


@pytest.mark.parametrize("case", parity.MODELS)
@pytest.mark.parametrize("change", [{"frames": 8}, {"image_size": (12, 12)}])
def test_wrong_input_sizes_name_the_parameter_that_shows_it(case: str, change: dict[str, Any]) -> None:
    tree, _, settings = golden(case)
    in_time = case == "factorized_encoder" and "frames" in change
    name = "temporal_encoder.pos_embed" if in_time else "encoder.pos_embed"
    with pytest.raises(UserError, match=f"'{name}' is .*do frames, image_size, and pool match"):
        load_scenic(tree, **settings | change)


@pytest.mark.parametrize("change", [{"frames": 7}, {"image_size": (13, 8)}])
def test_input_sizes_that_do_not_divide_are_refused(change: dict[str, Any]) -> None:
    tree, _, settings = golden("spacetime")
    with pytest.raises(UserError, match="is not a multiple of the tubelet's"):
        load_scenic(tree, **settings | change)


@pytest.mark.parametrize("case", parity.MODELS)
def test_parameters_of_other_axes_are_named(case: str) -> None:
    tree, _, settings = golden(case)
    for path, value in tree.items():
        for odd in (value[..., None, None], value.ravel()[0]):
            with pytest.raises(UserError, match=f"'{path}' is "):
                load_scenic(tree | {path: odd}, **settings)


@pytest.mark.parametrize(("case", "pool"), [("spacetime", "mean"), ("factorized_encoder", "mean")])
def test_the_wrong_pooling_is_refused(case: str, pool: str) -> None:
    tree, _, settings = golden(case)
    with pytest.raises(UserError, match="cls"):
        load_scenic(tree, **settings | {"pool": pool})


def test_the_tree_of_another_model_is_refused() -> None:
    tree, _, settings = golden("spacetime")
    for model in ("vivit_fe", "vivit_fsa"):
        with pytest.raises(UserError, match=f"not a scenic {model}"):
            load_scenic(tree, **settings | {"model": model})


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A copy to spoil."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(HUGGINGFACE / name, tmp_path / name)
    return tmp_path


def change_weights(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Sets weights, or takes them out where they are None."""
    weights = load_file(folder / "model.safetensors") | change
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")


def change_config(folder: Path, **change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


def assert_logits_are_huggingfaces(net: ViViT) -> None:
    with np.load(HUGGINGFACE / "io.npz") as file:
        video_BCTHW = torch.from_numpy(file["pixel_values"]).transpose(1, 2)
        expected = torch.from_numpy(file["logits_fp64"])
    torch.testing.assert_close(net.eval()(video_BCTHW).double(), expected, atol=1e-5, rtol=0)


@both_attention_paths
def test_logits_are_huggingfaces(eager: bool) -> None:
    assert_logits_are_huggingfaces(load_huggingface(HUGGINGFACE).use_eager_attention(eager))


def test_the_key_layout_of_version_5_is_read_too(hub_folder: Path) -> None:
    to_v5 = json.loads((HUGGINGFACE / "keymap_hub_to_v5.json").read_text())
    weights = load_file(HUGGINGFACE / "model.safetensors")
    renamed = {to_v5[key]: value for key, value in weights.items()}
    assert set(renamed) != set(weights)
    save_file(renamed, hub_folder / "model.safetensors")
    assert_logits_are_huggingfaces(load_huggingface(hub_folder))


def test_half_precision_files_are_read_as_float32(hub_folder: Path) -> None:
    weights = load_file(hub_folder / "model.safetensors")
    save_file({key: value.half() for key, value in weights.items()}, hub_folder / "model.safetensors")
    assert {p.dtype for p in load_huggingface(hub_folder).parameters()} == {torch.float32}


def test_missing_qkv_biases_are_zero_where_the_configuration_says_so(hub_folder: Path) -> None:
    layers = [f"vivit.encoder.layer.{i}.attention.attention" for i in range(3)]
    gone = [f"{layer}.{which}.bias" for layer in layers for which in ("query", "key", "value")]
    change_weights(hub_folder, dict.fromkeys(gone))
    with pytest.raises(UserError, match=r"have no 'vivit\.encoder\.layer\.0\.attention\.attention\.query\.bias'"):
        load_huggingface(hub_folder)
    change_config(hub_folder, qkv_bias=False)
    without = load_huggingface(hub_folder)
    assert not any(block.attention.qkv.bias.any() for block in without.encoder.blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vivit.layernorm.weight": None}, "have no 'vivit.layernorm.weight'"),
        ({"classifier.weight": None}, "have no 'classifier.weight'"),
        ({"vivit.encoder.layer.1.output.dense.bias": None}, "have no 'vivit.encoder.layer.1.output.dense.bias'"),
        (
            {"vivit.pooler.dense.bias": torch.ones(48)},
            "no place for 1 Hugging Face weight, the first: 'vivit.pooler.dense.bias'",
        ),
        ({"vivit.layernorm.bias": torch.ones(47)}, r"'encoder.norm.bias' is \[47\] in the weights and \[48\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_huggingface_weights_fit_exactly_or_not_at_all(
    hub_folder: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    change_weights(hub_folder, change)
    with pytest.raises(UserError, match=message):
        load_huggingface(hub_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 16}, "'encoder.pos_embed' is .* 16 frames of 32x32"),
        ({"image_size": 48}, "'encoder.pos_embed' is .* 8 frames of 48x48"),
        ({"num_frames": 7}, "frames 7 is not a multiple"),
        ({"num_hidden_layers": 2}, "16 .* the first: 'vivit.encoder.layer.2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"model_type": "videomae"}, "describes 'videomae', not 'vivit'"),
    ],
)
def test_configurations_that_do_not_fit(hub_folder: Path, change: dict[str, Any], message: str) -> None:
    change_config(hub_folder, **change)
    with pytest.raises(UserError, match=message):
        load_huggingface(hub_folder)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config\.json"):
        load_huggingface(tmp_path)


SERVED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "short_side": 10}


@pytest.mark.parametrize(
    "changes", [{}, {"image_size": 8}, {"tubelet": (4, 2, 6)}, {"num_classes": {"": 3}}, {"norm_eps": 1e-3}]
)
def test_huggingface_folders_come_back_exactly(changes: dict[str, Any], tmp_path: Path) -> None:
    net = randomize(tiny("vivit_st", **changes))
    classes = [f"class {i}" for i in range(net.head.out_features)]
    save_huggingface(net, tmp_path / "new" / "folder", classes=classes, **SERVED)
    again = load_huggingface(tmp_path / "new" / "folder").eval()
    assert_same_weights(again, net)
    assert torch.equal(again(videos(net)), net(videos(net)))
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert list(config["id2label"].values()) == classes


def test_the_released_layout_is_written(tmp_path: Path) -> None:
    save_huggingface(load_huggingface(HUGGINGFACE), tmp_path, classes=[f"LABEL_{i}" for i in range(10)], **SERVED)
    before, after = (load_file(folder / "model.safetensors") for folder in (HUGGINGFACE, tmp_path))
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (HUGGINGFACE, tmp_path)]
    assert all(configs[0][key] == value for key, value in configs[1].items() if key in configs[0])


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), SERVED["mean"]])
@pytest.mark.parametrize("std", [(0.5, 0.5, 0.5), SERVED["std"]])
def test_the_normalization_comes_back(mean: Any, std: Any, tmp_path: Path) -> None:
    save_huggingface(tiny("vivit_st"), tmp_path, classes="abcde", **SERVED | {"mean": mean, "std": std})
    assert video_statistics(tmp_path) == (mean, std)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (0.5, 0.5)),  # their default, which serves in [-3, 1] what was trained in [-1, 1]
        ({"do_normalize": False}, (0.5, 0.5)),
        ({"offset": False, "rescale_factor": 1 / 255}, (0.5, 0.5)),
        (
            {"offset": False, "rescale_factor": 1 / 255, "image_mean": [0.4] * 3, "image_std": [0.2] * 3},
            (0.4, 0.2),
        ),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, (0.5, 0.5)),
    ],
)
def test_preprocessing_of_others_is_understood(
    change: dict[str, Any], expected: tuple[float, float], tmp_path: Path
) -> None:
    default = {
        "do_normalize": True,
        "do_rescale": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "offset": True,
        "rescale_factor": 0.00784313725490196,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(default | change))
    mean, std = video_statistics(tmp_path)
    assert mean == pytest.approx([expected[0]] * 3)
    assert std == pytest.approx([expected[1]] * 3)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("vivit_fe", {}, "cannot express the model vivit_fe"),
        ("vivit_fdp", {}, "cannot express the model vivit_fdp"),
        ("vivit_st", {"pool": "mean"}, "cannot express mean pooling"),
        ("vivit_st", {"tubelet": (1, 4, 4), "sampled_frames": 3}, "cannot express uniform frame sampling"),
        ("vivit_st", {"num_classes": {"verb": 2, "noun": 3}}, r"cannot express several heads \(verb, noun\)"),
        ("vivit_st", {"num_classes": 4}, "5 class names for 4 logits"),
    ],
)
def test_what_huggingface_cannot_express_is_refused(
    model: ModelName, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        save_huggingface(tiny(model, **changes), tmp_path / "out", classes="abcde", **SERVED)
    assert not (tmp_path / "out").exists()


def test_a_name_that_the_hub_does_not_give_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def download(name: str, **_: Any) -> str:
        if name == "google/vivit":
            return str(HUGGINGFACE)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert_logits_are_huggingfaces(load_huggingface("google/vivit"))
    with pytest.raises(
        UserError,
        match=r"did not provide a model of that name \(OSError: no network\): check the name",
    ):
        load_huggingface("google/other")
    with pytest.raises(UserError, match="no weights at /no/such/folder"):
        load_huggingface("/no/such/folder")


@pytest.mark.parametrize("damage", ["truncated", "pickle", "config"])
def test_damaged_huggingface_folders_are_refused(damage: str, hub_folder: Path) -> None:
    weights = hub_folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "pickle":
        weights.write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    else:
        (hub_folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json" if damage == "config" else "model.safetensors"):
        load_huggingface(hub_folder)


def test_a_normalization_to_minus_three_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"offset": False, "rescale_factor": 1 / 255})
        )
        video_statistics(tmp_path)
        assert not caplog.messages
        (tmp_path / "preprocessor_config.json").write_text("{}")
        video_statistics(tmp_path)
    (note,) = caplog.messages
    mean, std = (float(note.partition(f"init.{name}=[")[2].partition(",")[0]) for name in ("mean", "std"))
    assert ((0 - mean) / std, (1 - mean) / std) == (-3, 1)
