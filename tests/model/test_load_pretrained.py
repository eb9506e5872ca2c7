"""Weights from anywhere start a model: recognized by content, moved to other grids and classes, or refused."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from nets import CLASSES, counted, randomize, tiny, videos
from parity import GOLDENS, INITS, timm_layout
from safetensors.torch import save_file
from test_exchange import HUGGINGFACE
from test_scenic_files import WRITTEN_BY_FLAX, Malicious, nested
from torch import Tensor

from vivit_train.models.vivit import MODELS, ModelName, ViViT
from vivit_train.models.weights.flax_file import write_flax
from vivit_train.models.weights.huggingface import load_huggingface, save_huggingface
from vivit_train.models.weights.load import load_pretrained
from vivit_train.models.weights.scenic import save_scenic
from vivit_train.models.weights.timm_vit import init_from_vit
from vivit_train.utils.errors import UserError

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NAMES = ["hop", "skip", "jump", "run", "rest"]


def save_checkpoint(net: ViViT, path: Path, classes: Any = None, **model: Any) -> str:
    """A checkpoint as Lightning writes ours, with what concerns weights."""
    block = net.encoder.blocks[0]
    config = {"model": net.model, "size": "Ti", "heads": block.attention.heads, "frames": net.input_shape[1]}
    config |= {"image_size": list(net.input_shape[2:]), "tubelet": list(net.tubelet), "sampled_frames": None}
    content = {
        "state_dict": {f"net.{name}": value for name, value in net.state_dict().items()},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []}],
        "epoch": 3,
        "vivit_train": {
            "config": {"model": config | model},
            "classes": {"": NAMES} if classes is None else classes,
            "mean": list(IMAGENET[0]),
            "std": list(IMAGENET[1]),
        },
    }
    torch.save(content, path)
    return str(path)


def saved(net: ViViT, form: str, folder: Path) -> str:
    if form == "checkpoint":
        return save_checkpoint(net, folder / "best.ckpt")
    if form == "safetensors":
        save_file(net.state_dict(), folder / "net.safetensors")
        return str(folder / "net.safetensors")
    if form == "state dict":
        torch.save(net.state_dict(), folder / "net.pth")
        return str(folder / "net.pth")
    if form == "huggingface":
        save_huggingface(net, folder, classes=NAMES, mean=IMAGENET[0], std=IMAGENET[1], short_side=16)
        return str(folder)
    save_scenic(net, folder / "checkpoint_7")
    return str(folder if form == "scenic folder" else folder / "checkpoint_7")


FORMS = ["checkpoint", "safetensors", "state dict", "scenic file", "scenic folder"]
KNOWN = {"checkpoint": IMAGENET, "huggingface": IMAGENET, "scenic file": HALF, "scenic folder": HALF}


@pytest.mark.parametrize(
    ("model", "form"), [(model, form) for model in MODELS for form in FORMS] + [("vivit_st", "huggingface")]
)
def test_the_same_model_comes_back_exactly(model: ModelName, form: str, tmp_path: Path) -> None:
    theirs, net = randomize(tiny(model)), tiny(model)
    report = load_pretrained(net, saved(theirs, form, tmp_path), classes={"": NAMES})
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in net.state_dict().items())
    assert list(report.rows) == [name for name, _ in net.named_parameters()]
    assert set(report.rows.values()) == {"copied"}
    assert report.statistics == KNOWN.get(form)
    assert "of what a ViViT can fill" in str(report)
    assert report.source == (str(tmp_path / "checkpoint_7") if "scenic" in form else saved_as(form, tmp_path))


def saved_as(form: str, folder: Path) -> str:
    name = {"checkpoint": "best.ckpt", "safetensors": "net.safetensors", "state dict": "net.pth"}.get(form)
    return str(folder / name) if name else str(folder)


def plane(net: ViViT, name: str) -> Tensor:
    """Positions [N, D] that rise linearly along each axis of the grid, each with a slope of its own."""
    t, rows, columns = (torch.linspace(0, 1, size) if size > 1 else torch.zeros(1) for size in net.grid)
    if net.model == "vivit_fe":
        values = 5 * t if name.startswith("temporal") else (2 * rows[:, None] + 3 * columns).flatten()
    else:
        values = (5 * t[:, None, None] + 2 * rows[:, None] + 3 * columns).flatten()
    return values[:, None].expand(-1, net.head.in_features)


@pytest.mark.parametrize(
    ("model", "form"),
    [(model, form) for model in MODELS for form in ("checkpoint", "state dict", "scenic file")]
    + [("vivit_st", "huggingface")],
)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"image_size": 16}, {"image_size": 16, "frames": 16}),
        ({"image_size": 16}, {"image_size": 16, "frames": 4}),
        ({"image_size": 16}, {"image_size": 28}),
        ({"image_size": 16}, {"image_size": (8, 28)}),
        ({"image_size": 28}, {"image_size": 16}),
        ({"image_size": 8, "frames": 6}, {"image_size": 12, "frames": 10}),
        ({"image_size": (8, 20), "frames": 6}, {"image_size": (12, 16), "frames": 10}),
    ],
)
def test_positions_of_another_grid_are_interpolated(
    model: ModelName, form: str, theirs: dict[str, Any], ours: dict[str, Any], tmp_path: Path
) -> None:
    source, net = randomize(tiny(model, **theirs)), tiny(model, **ours)
    for name, parameter in source.named_parameters():
        if name.endswith("pos_embed"):
            parameter.data[0, -len(plane(source, name)) :] = plane(source, name)
    path = saved(source, form, tmp_path)
    told = form in ("checkpoint", "huggingface")
    if not told and isinstance(theirs["image_size"], tuple):  # square is what it takes them for
        with pytest.raises(UserError, match="positions"):
            load_pretrained(net, path, frames=theirs["frames"])
        return
    report = load_pretrained(net, path, frames=None if told else theirs.get("frames", 8))
    for name, parameter in net.named_parameters():
        old = source.get_parameter(name)
        if not name.endswith("pos_embed"):
            assert torch.equal(parameter, old), name
            assert report.rows[name] == "copied"
            continue
        want = plane(net, name)
        slots = parameter.shape[1] - len(want)
        torch.testing.assert_close(parameter[0, slots:].detach(), want, atol=1e-5, rtol=0)
        assert torch.equal(parameter[0, :slots], old[0, :slots])
        changed = {"t": net.grid[:1] != source.grid[:1], "e": net.grid[1:] != source.grid[1:]}
        moved = changed[name[0]] if model == "vivit_fe" else net.grid != source.grid
        assert report.rows[name] == ("interpolated" if moved else "copied"), name
    assert net(videos(net)).isfinite().all()


def test_corners_of_any_positions_are_kept(tmp_path: Path) -> None:
    theirs, net = randomize(tiny("vivit_fsa")), tiny("vivit_fsa", frames=12, image_size=(20, 28))
    load_pretrained(net, saved(theirs, "checkpoint", tmp_path))
    before, after = (
        x.encoder.pos_embed[0].unflatten(0, x.grid)[:: x.grid[0] - 1, :: x.grid[1] - 1, :: x.grid[2] - 1]
        for x in (theirs, net)
    )
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("form", ["state dict", "scenic file"])
def test_what_the_weights_do_not_say_is_inferred_or_asked_for(form: str, tmp_path: Path) -> None:
    theirs = randomize(tiny("vivit_st", frames=8, image_size=16))  # 4 x 4 x 4
    path = saved(theirs, form, tmp_path)
    same_space, same_time = tiny("vivit_st", frames=6, image_size=16), tiny("vivit_st", frames=8, image_size=24)
    for net in (same_space, same_time):  # one reading alone fits
        report = load_pretrained(net, path)
        assert report.rows["encoder.pos_embed"] == "interpolated"
    both = tiny("vivit_st", frames=8, image_size=8)  # 4 x 2 x 2: 64 are 16 x 2 x 2, or 4 x 4 x 4
    before = both.encoder.pos_embed.clone()
    with pytest.raises(UserError, match=r"has 64 positions, the model 4x2x2: .*set init\.frames"):
        load_pretrained(both, path)
    assert torch.equal(both.encoder.pos_embed, before)
    neither = tiny("vivit_st", frames=6, image_size=24)
    with pytest.raises(UserError, match=r"set init\.frames"):
        load_pretrained(neither, path)
    with pytest.raises(UserError, match=r"with init\.frames=6: set init\.frames"):
        load_pretrained(neither, path, frames=6)
    for net in (both, neither):
        report = load_pretrained(net, path, frames=8)
        assert report.rows["encoder.pos_embed"] == "interpolated"


@pytest.mark.parametrize(
    ("theirs", "ours", "action"),
    [
        (NAMES, NAMES, "copied"),
        (NAMES, list(reversed(NAMES)), "copied"),
        (NAMES, [*NAMES[:4], "sit"], "zero (other classes)"),
        (NAMES, NAMES[:3], "zero (other classes)"),
        (NAMES, None, "copied"),
        ({"": NAMES}, NAMES, "copied"),
    ],
)
@pytest.mark.parametrize("form", ["checkpoint", "huggingface"])
def test_the_head_is_kept_for_the_same_classes(
    form: str, theirs: Any, ours: Sequence[str] | None, action: str, tmp_path: Path
) -> None:
    source, net = randomize(tiny("vivit_st")), randomize(tiny("vivit_st", num_classes=len(ours or NAMES)), 1)
    path = saved(source, form, tmp_path)
    if form == "checkpoint":
        save_checkpoint(source, Path(path), theirs)
    report = load_pretrained(net, path, classes={"": ours} if ours else None)
    assert report.rows["head.weight"] == report.rows["head.bias"] == action
    rows = [NAMES.index(name) for name in ours or NAMES] if action == "copied" else None
    for kind in ("weight", "bias"):
        before, after = (x.get_parameter(f"head.{kind}") for x in (source, net))
        assert torch.equal(after, before[rows] if rows else torch.zeros_like(after))
    assert action in str(report)


@pytest.mark.parametrize("form", ["state dict", "scenic file"])
@pytest.mark.parametrize("classes", [CLASSES, CLASSES + 1])
def test_without_names_the_number_of_classes_decides(form: str, classes: int, tmp_path: Path) -> None:
    net = tiny("vivit_fe", num_classes=classes)
    path = saved(randomize(tiny("vivit_fe")), form, tmp_path)
    report = load_pretrained(net, path, classes={"": [str(i) for i in range(classes)]})
    assert report.rows["head.weight"] == ("copied" if classes == CLASSES else "zero (other classes)")
    assert bool(net.head.weight.any()) == (classes == CLASSES)


@pytest.mark.parametrize(
    ("ours", "action"),
    [
        ({"verb": ["a", "b"], "noun": ["x", "y", "z"]}, "copied"),
        ({"noun": ["x", "y", "z"], "verb": ["a", "b"]}, "copied"),
        ({"verb": ["b", "a"], "noun": ["x", "y"]}, "copied for verb, else zero (other classes)"),
        ({"": ["a", "b"]}, "zero (other classes)"),
    ],
)
def test_heads_are_kept_one_by_one(ours: Mapping[str, Sequence[str]], action: str, tmp_path: Path) -> None:
    theirs = {"verb": ["a", "b"], "noun": ["x", "y", "z"]}
    source = randomize(tiny("vivit_fe", num_classes={name: len(labels) for name, labels in theirs.items()}))
    net = tiny("vivit_fe", num_classes={name: len(labels) for name, labels in ours.items()})
    path = save_checkpoint(source, tmp_path / "best.ckpt", theirs)
    report = load_pretrained(net, path, classes=ours)
    assert report.rows["head.bias"] == action
    of = {label: i for i, label in enumerate(["a", "b", "x", "y", "z"])}
    kept = {name for name in ours if action == "copied" or f"for {name}," in action}
    want = [source.head.bias[of[x]].item() if name in kept else 0 for name in ours for x in ours[name]]
    assert net.head.bias.tolist() == want


def refused(net: ViViT, source: str, message: str, **kwargs: Any) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_pretrained(net, source, **kwargs)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("form", "model", "changes", "message"),
    [
        (
            "checkpoint",
            "vivit_st",
            {},
            "is a vivit_fe, but the model is a vivit_st: set model=vivit_fe, or start from other weights",
        ),
        (
            "scenic file",
            "vivit_st",
            {},
            "is a vivit_fe, but the model is a vivit_st: set model=vivit_fe, or start from other weights",
        ),
        ("state dict", "vivit_st", {}, r"does not match this vivit_st: the model has no 'temporal_encoder"),
        ("state dict", "vivit_fe", {"tubelet": (4, 4, 4)}, r"projection.weight' is .*2, 4, 4\] in .*4, 4, 4\] in"),
        (
            "state dict",
            "vivit_fsa",
            {},
            "it has no 'encoder.blocks.0.norm_time.weight' and the model has no '.*cls_token'",
        ),
        (
            "checkpoint",
            "vivit_fe",
            {"heads": 2},
            "is a ViViT with heads 4, but the model is a ViViT with heads 2: set model.heads=4",
        ),
        ("scenic file", "vivit_fe", {"heads": 2}, "query/kernel' has 4 heads, the model 2"),
        ("checkpoint", "vivit_fe", {"depth": 3}, "it has no 'encoder.blocks.2.norm1.weight'.*choose model"),
        ("checkpoint", "vivit_fe", {"depth": 1}, "the model has no 'encoder.blocks.1.norm1.weight'"),
        ("scenic file", "vivit_fe", {"depth": 1}, "vivit_fe has no place for .* the first: '.*encoderblock_1"),
        ("checkpoint", "vivit_fe", {"temporal_depth": 0}, "the model has no 'temporal_encoder.cls_token'"),
        ("checkpoint", "vivit_fe", {"pool": "mean"}, "the model has no 'encoder.cls_token': .*model.pool"),
        ("checkpoint", "vivit_fe", {"dim": 24}, r"projection.weight' is \[16, 3, .* in .* and \[24, 3, "),
        (
            "checkpoint",
            "vivit_fe",
            {"mlp_dim": 32},
            r"'encoder.blocks.0.mlp.fc1.weight' is \[24, 16\] .*\[32, 16\]",
        ),
        ("checkpoint", "vivit_fe", {"tubelet": (4, 4, 4)}, r"projection.weight' is .*2, 4, 4\] in .*4, 4, 4\] in"),
        (
            "scenic file",
            "vivit_fe",
            {"tubelet": (4, 4, 4)},
            r"projection.weight' is .*2, 4, 4\] in .*4, 4, 4\] in",
        ),
    ],
)
def test_another_model_is_refused_and_nothing_changes(
    form: str, model: ModelName, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(randomize(tiny("vivit_fe")), form, tmp_path)
    refused(randomize(tiny(model, **changes), 1), path, message)


def test_the_order_of_attention_must_be_the_same(tmp_path: Path) -> None:
    net = randomize(tiny("vivit_fsa", order="time_space"))
    path = save_checkpoint(net, tmp_path / "best.ckpt", order="time_space")
    refused(
        tiny("vivit_fsa"),
        path,
        "time_space, but the model is a ViViT with order space_time: set model.order",
    )


def test_older_and_strange_checkpoints(tmp_path: Path) -> None:
    net = randomize(tiny("vivit_fe"))
    path = tmp_path / "x.ckpt"
    save_checkpoint(net, path)
    content = torch.load(path, weights_only=True)
    for about in (None, {}, {"config": 3, "classes": [], "mean": 0, "std": 0}):
        torch.save(content | {"vivit_train": about}, path)
        refused(tiny("vivit_fe"), str(path), "x.ckpt was written by another version of vivit-train")
    content["vivit_train"]["config"]["model"] |= {"heads": None, "size": "B"}  # 12 heads
    torch.save(content, path)
    refused(tiny("vivit_fe"), str(path), "with heads 12")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.ones(1), "bn1.weight": torch.ones(1)}, "it has conv1.weight, bn1.weight"),
        ({"state": {}, "param_groups": [{"lr": 0.1}]}, "holds no state dict of tensors .*state, param_groups"),
        ([1, 2], "holds no state dict of tensors"),
        ({"vivit.layernorm.weight": torch.ones(1)}, "a Hugging Face ViViT: pass the folder"),
        (
            {
                "patch_embed.proj.weight": torch.ones(16, 3, 2, 4, 4),
                "pos_embed": torch.ones(1, 4, 16),
                "blocks.0.attn.qkv.weight": torch.ones(48, 16),
            },
            r"not an image ViT: its patch embedding is \[16, 3, 2, 4, 4\]",
        ),
    ],
)
def test_files_of_other_architectures_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    refused(tiny("vivit_fe"), str(tmp_path / "x.pth"), message)


@pytest.mark.parametrize("form", ["checkpoint", "safetensors", "scenic file"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_truncated_files_are_refused(form: str, share: float, tmp_path: Path) -> None:
    path = Path(saved(randomize(tiny("vivit_fe")), form, tmp_path))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(tiny("vivit_fe"), str(path), f"{path.name} cannot be read")


@pytest.mark.parametrize("name", ["best.ckpt", "net.safetensors", "folder/pytorch_model.bin", "checkpoint_3"])
def test_malicious_files_execute_nothing(name: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "executed", tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {"net.embedding.projection.weight": Malicious(trap)}}, path)
    (path.parent / "config.json").write_text(json.dumps({"model_type": "vivit"}))
    refused(tiny("vivit_st"), str(path.parent if "folder" in name else path), f"{path.name} is refused: it holds")
    assert not trap.exists()


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    refused(tiny("vivit_st"), str(tmp_path), r"has neither config\.json .* nor checkpoint_<step>")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    refused(
        tiny("vivit_st"),
        str(tmp_path),
        r"config\.json describes 'swin', but the weights must be those of a ViViT",
    )


@pytest.mark.parametrize("name", ["/no/such/folder/x", "/no/such.ckpt", "weights/x.safetensors", "runs/x.pth"])
def test_missing_files_are_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(tiny("vivit_st"), name, f"no weights at {name}")


def test_a_name_on_the_hub_is_looked_up_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, any(pattern == "*" or pattern.endswith(".py") for pattern in allow_patterns)))
        if name == "someone/vivit":
            return str(HUGGINGFACE)
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    theirs = load_huggingface(HUGGINGFACE)
    net = tiny(
        "vivit_st", dim=48, depth=3, heads=3, mlp_dim=192, image_size=32, tubelet=(2, 16, 16), num_classes=10
    )
    report = load_pretrained(net, "someone/vivit", classes={"": [str(i) for i in range(10)]})
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in net.state_dict().items())
    assert (report.source, report.statistics, asked) == ("someone/vivit", HALF, [("someone/vivit", False)])
    refused(
        net,
        "someone/else",
        "someone/else, and the Hugging Face Hub did not provide a model of that",
    )
    (tmp_path / "weights").mkdir()
    refused(net, "weights/vivit", "no weights at weights/vivit$")


def image_vit() -> Any:
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1, img_size=32, num_classes=2)
    return vit.eval()


def test_image_vits_go_on_to_init_from_vit(tmp_path: Path) -> None:
    state = image_vit().state_dict()
    path = tmp_path / "vit_tiny_patch16_224.augreg_in21k.safetensors"
    save_file(state, path)
    net = ViViT.from_size("vivit_fe", "Ti", num_classes=5, depth=1, frames=4, image_size=32)
    report = load_pretrained(net, str(path), tubelet="inflation")
    assert (report.source, report.statistics) == (str(path), HALF)
    assert report.rows["embedding.projection.weight"] == "inflated"
    assert net.embedding.projection.weight[:, :, 0].any()

    folder = tmp_path / "timm"  # as timm's models lie on the hub
    folder.mkdir()
    shutil.copyfile(path, folder / "model.safetensors")
    about = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1]}}
    (folder / "config.json").write_text(json.dumps(about))
    report = load_pretrained(net, str(folder))
    assert (report.source, report.statistics) == (str(folder), IMAGENET)
    refused(net, "vit_tiny_patch16_225", "'vit_tiny_patch16_225' is neither a file nor a timm model")


@pytest.mark.parametrize("case", INITS)
def test_image_vits_of_the_authors_are_read_too(case: str, tmp_path: Path) -> None:
    model, tubelet = INITS[case]
    with np.load(GOLDENS / "scenic" / case / "golden.npz") as file:
        src = {name[4:]: file[name] for name in file.files if name.startswith("src/")}
    write_flax(tmp_path / "checkpoint_1", {"optimizer": {"target": nested(src)}})
    settings: dict[str, Any] = {"image_size": 12, "frames": 6}
    direct, net = (tiny(model, **settings) for _ in range(2))
    net.load_state_dict(direct.state_dict())
    init_from_vit(direct, timm_layout(src), tubelet=tubelet)
    report = load_pretrained(net, str(tmp_path), tubelet=tubelet)
    assert all(torch.equal(value, direct.state_dict()[name]) for name, value in net.state_dict().items())
    assert (report.source, report.statistics) == (str(tmp_path), HALF)

    uniform = tiny("vivit_st", image_size=12, tubelet=(1, 4, 4), sampled_frames=3)  # the tree could be a ViViT's
    load_pretrained(uniform, str(tmp_path), frames=1)
    repeated = tiny("vivit_st", image_size=12, tubelet=(1, 4, 4), sampled_frames=3)
    init_from_vit(repeated, timm_layout(src))
    torch.testing.assert_close(uniform.encoder.pos_embed, repeated.encoder.pos_embed)
    assert torch.equal(uniform.embedding.projection.weight, repeated.embedding.projection.weight)


def test_a_checkpoint_written_by_flax_starts_a_model() -> None:
    net = tiny("vivit_fe", dim=4, depth=1, heads=2, mlp_dim=4, temporal_depth=1, num_classes=3, frames=16)
    report = load_pretrained(net, str(WRITTEN_BY_FLAX))
    assert report.statistics == HALF
    assert torch.equal(net.encoder.blocks[0].mlp.fc1.weight, counted().encoder.blocks[0].mlp.fc1.weight)
    assert report.rows["temporal_encoder.pos_embed"] == "interpolated"
    assert report.rows["encoder.pos_embed"] == "copied"
    assert report.rows["head.weight"] == "zero (other classes)"
