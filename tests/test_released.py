"""Weights of others are scored by one command: the authors' trees and Hugging Face folders, on tiny models."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from trees import make_tree, write
from typer.testing import CliRunner

import vivit_train
from vivit_train.build import build_data
from vivit_train.config import derive, validate_evaluation
from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.huggingface import save_huggingface
from vivit_train.models.weights.scenic import save_scenic, to_scenic
from vivit_train.models.weights.source import Source
from vivit_train.models.weights.whole import Hints, arguments_of, read_whole
from vivit_train.recipe import data_defaults
from vivit_train.run import evaluate
from vivit_train.tools.cli import app
from vivit_train.training.checkpoint import Metadata
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]
CLASSES = ["air drumming", "passing American football (in game)", "zumba"]  # as training on the tree orders them
OTHER_ORDER = [CLASSES[2], CLASSES[0], CLASSES[1]]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIZE = {"frames": 4, "image_size": 32, "dim": 32, "depth": 2, "heads": 2, "temporal_depth": 1}


def tiny(model: ModelName, classes: Any = 3) -> ViViT:
    torch.manual_seed(0)
    net = ViViT(model, num_classes=classes, **SIZE).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


@pytest.fixture(scope="session")
def kinetics(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kinetics-400 with three classes: two videos of each in training and validation."""
    root = tmp_path_factory.mktemp("released") / "k400"
    make_tree("kinetics400", root, sorted((videos / "test").rglob("*.mp4"))[:6])
    return root


def clips(config: Config, root: Path, *words: str, data: str = "kinetics400") -> tuple[Tensor, Tensor]:
    """The validation clips in [0, 1], [N, C, T, H, W], and their class ids [N, heads]; of another code path."""
    size = ["data.frames=4", "data.crop=32", "data.short_side=36", "data.fps=12.5", "eval.views=1x1", *words]
    batches = list(build_data(derive(config(f"data={data}", f"data.root={root}", *size))).test_dataloader())
    video_NTCHW = torch.cat([batch["video"][:, 0] for batch in batches])
    return video_NTCHW.transpose(1, 2) / 255, torch.cat([batch["label"] for batch in batches])


def normalized(video_NCTHW: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    return (video_NCTHW - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)


def fit_head(net: ViViT, video_NCTHW: Tensor, label_N: Tensor) -> Tensor:
    """Chooses the head that classifies every clip correctly, and returns the logits."""
    with torch.no_grad():
        features_ND = net.features(video_NCTHW)
        wanted_NK = torch.nn.functional.one_hot(label_N, net.head.out_features).float()
        net.head.weight.copy_(torch.linalg.lstsq(features_ND, wanted_NK).solution.T)
        net.head.bias.zero_()
        return net(video_NCTHW)


def permuted(net: ViViT, order: Sequence[str]) -> ViViT:
    """The same model with its classes in another order."""
    rows = [CLASSES.index(name) for name in order]
    for parameter in net.head.parameters():
        parameter.data = parameter.data[rows]
    return net


def save_sharded(net: ViViT, folder: Path, classes: Sequence[str] = CLASSES, shards: int = 3) -> Path:
    """A Hugging Face folder whose weights are split, as save_pretrained does by max_shard_size."""
    save_huggingface(net, folder, classes=classes, mean=MEAN, std=STD, short_side=36)
    weights, places = load_file(folder / "model.safetensors"), {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[i::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    (folder / "model.safetensors").unlink()
    write_index(folder, places)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def logits(run: Path, classes: Sequence[str] = CLASSES) -> Tensor:
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    return torch.tensor([[float(row[f"logit:{name}"]) for name in classes] for row in rows])


def score(config: Config, source: object, root: Path, *words: str, data: str = "kinetics400") -> dict[str, Any]:
    return evaluate(
        config(
            f"ckpt_path={source}", f"data={data}", f"data.root={root}", *words, "data.num_workers=0", name="eval"
        )
    )


@pytest.mark.parametrize("model", ["vivit_fe", pytest.param("vivit_st", marks=pytest.mark.slow)])
def test_the_authors_checkpoint_is_scored_with_the_classes_and_the_clips_of_the_data(
    model: ModelName, kinetics: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny(model)
    video, label = clips(config, kinetics)
    expected = fit_head(net, normalized(video, [0.5] * 3, [0.5] * 3), label[:, 0])
    (tmp_path / "released").mkdir()
    save_scenic(net, tmp_path / "released/checkpoint")  # the name that the authors' files have
    words = [f"model={model}", *(["init.frames=4"] if model == "vivit_st" else [])]
    results = score(config, tmp_path / "released", kinetics, *words, "data.short_side=36")
    assert (results["test/top1@1x1"], results["n"]) == (1, 6)
    torch.testing.assert_close(logits(tmp_path / "results"), expected, atol=1e-5, rtol=0)
    assert results["protocol"] == {
        "source": str(tmp_path / "released"),
        "model": f"{model} (checkpoint)",
        "classes": "3 (data=kinetics400, in its order)",
        "mean, std": "[0.5, 0.5, 0.5], [0.5, 0.5, 0.5] (the authors' [-1, 1])",
        "frames": "4 (checkpoint)",
        "crop": "32 (checkpoint)",
        "short_side": "36 (command line)",
        "resize_mode": "keep_ratio (data=kinetics400)",
        "fps": "12.5 (data=kinetics400)",
        "sampling": "window (data=kinetics400)",
        "padding": "wrap (data=kinetics400)",
    }
    assert "protocol: 1x1 views; source" in capsys.readouterr().out


def test_a_sharded_hugging_face_folder_with_its_classes_in_another_order(
    kinetics: Path, config: Config, tmp_path: Path
) -> None:
    net = tiny("vivit_st")
    video, label = clips(config, kinetics, "data.stride=1", "data.fps=null")
    expected = fit_head(net, normalized(video), label[:, 0])
    save_sharded(permuted(net, OTHER_ORDER), tmp_path / "hf", OTHER_ORDER)
    results = score(config, tmp_path / "hf", kinetics, "data.stride=1")
    assert (results["test/top1@1x1"], results["n"]) == (1, 6)
    torch.testing.assert_close(logits(tmp_path / "results"), expected, atol=1e-5, rtol=0)
    protocol = results["protocol"]
    assert protocol["classes"] == "3 (config.json)"
    assert protocol["stride"] == "1 (command line)"
    assert protocol["short_side"] == "36 (preprocessor_config.json)"
    assert protocol["mean, std"] == f"{MEAN}, {STD} (preprocessor_config.json)"


@pytest.fixture(scope="session")
def epic(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EPIC-KITCHENS-100 with all its 97 + 300 classes, of which 2 verbs and 3 nouns occur."""
    root = tmp_path_factory.mktemp("released") / "epic"
    make_tree("epic_kitchens100", root, sorted((videos / "test").rglob("*.mp4"))[:2])
    for head, number in (("verb", 97), ("noun", 300)):
        names = [f"{i},{head}{i},['x'],y" for i in range(number)]
        write(
            root / f"epic-kitchens-100-annotations/EPIC_100_{head}_classes.csv",
            "id,key,instances,category",
            *names,
        )
    return root


def test_the_authors_epic_model_has_its_nouns_before_its_verbs(epic: Path, config: Config, tmp_path: Path) -> None:
    net = tiny("vivit_fe", {"verb": 97, "noun": 300})
    with torch.no_grad():  # It always says verb 1 and noun 2.
        net.head.weight.zero_()
        net.head.bias.copy_(torch.cat([torch.arange(97) == 1, torch.arange(300) == 2]))
    save_scenic(net, tmp_path / "checkpoint_1")
    assert to_scenic(net)["output_projection/bias"].nonzero()[0].tolist() == [2, 301]
    words = ["data.short_side=36", "data.stride=1"]
    results = score(config, tmp_path / "checkpoint_1", epic, *words, data="epic_kitchens100")
    rows = list(csv.DictReader((tmp_path / "results/predictions.csv").open()))
    assert {(row["verb_prediction"], row["noun_prediction"]) for row in rows} == {("verb1", "noun2")}
    assert results["test/verb_top1@1x1"] == pytest.approx(1 / 2)
    assert results["test/noun_top1@1x1"] == pytest.approx(1 / 3)
    assert results["protocol"]["classes"] == "97 + 300 (data=epic_kitchens100, in its order)"


@pytest.mark.slow
def test_names_of_the_data_are_those_of_labels_that_the_source_leaves_out(
    kinetics: Path, config: Config, tmp_path: Path
) -> None:
    net = tiny("vivit_st")
    video, label = clips(config, kinetics)
    expected = fit_head(net, normalized(video, [0.5] * 3, [0.5] * 3), label[:, 0])
    save_sharded(net, tmp_path / "hf", [f"LABEL_{i}" for i in range(3)])
    file = tmp_path / "hf/preprocessor_config.json"
    own = file.read_text()
    file.write_text('{"size": {"shortest_edge": 36}}')  # and the default's [-3, 1]
    results = score(config, tmp_path / "hf", kinetics)
    in_file = "(the authors' [-1, 1], not the [-3, 1] of preprocessor_config.json)"
    assert results["protocol"]["mean, std"].endswith(in_file)
    torch.testing.assert_close(logits(tmp_path / "results"), expected, atol=1e-5, rtol=0)
    file.write_text(own)
    results = score(config, tmp_path / "hf", kinetics, "init.mean=[0.5,0.5,0.5]", "init.std=[0.5,0.5,0.5]")
    torch.testing.assert_close(logits(tmp_path / "results"), expected, atol=1e-5, rtol=0)
    assert results["protocol"]["classes"] == "3 (data=kinetics400, in its order)"
    assert results["protocol"]["mean, std"].endswith("(init.mean, init.std)")


SPELLED_OTHERWISE = ["Zumba!", "drumming", CLASSES[1]]


def test_names_that_do_not_match_are_refused_with_what_to_do(
    kinetics: Path, config: Config, tmp_path: Path
) -> None:
    save_sharded(tiny("vivit_st"), tmp_path / "hf", SPELLED_OTHERWISE)
    with pytest.raises(UserError) as error:
        score(config, tmp_path / "hf", kinetics)
    message = str(error.value)
    assert "unknown label 'air drumming'" in message
    assert "Names of no row: 'Zumba!', 'drumming'." in message
    assert f"The classes are those of {tmp_path / 'hf'}: if data=kinetics400 spells them otherwise" in message
    assert message.endswith("set data.reader.classes=FILE.")


@pytest.mark.slow
def test_a_file_of_names_in_the_order_of_the_logits_replaces_those_of_the_source(
    kinetics: Path, config: Config, tmp_path: Path
) -> None:
    net = tiny("vivit_st")
    video, label = clips(config, kinetics)
    expected = fit_head(net, normalized(video), label[:, 0])
    order = [CLASSES[2], CLASSES[0], CLASSES[1]]
    save_sharded(permuted(net, order), tmp_path / "hf", SPELLED_OTHERWISE)
    file = write(tmp_path / "names.txt", *order)
    results = score(config, tmp_path / "hf", kinetics, f"data.reader.classes={file}")
    torch.testing.assert_close(logits(tmp_path / "results"), expected, atol=1e-5, rtol=0)
    assert results["test/top1@1x1"] == 1
    assert results["protocol"]["classes"] == f"3 (data.reader.classes={file})"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One source of each kind, and files that are none of them."""
    folder = tmp_path_factory.mktemp("sources")
    save_sharded(tiny("vivit_st"), folder / "hf")
    save_scenic(tiny("vivit_fe"), folder / "fe")
    save_scenic(tiny("vivit_st"), folder / "st")
    save_scenic(tiny("vivit_fdp"), folder / "fdp")
    save_file(tiny("vivit_st").state_dict(), folder / "net.safetensors")
    (folder / "empty").mkdir()
    net, config = tiny("vivit_fe"), {"model": {"model": "vivit_fe", **SIZE}}
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    metadata = Metadata(config, {"": CLASSES}, [0.5] * 3, [0.5] * 3)
    torch.save({"state_dict": state, "vivit_train": metadata.to_dict()}, folder / "ours.ckpt")
    return folder


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("hf", ["data=checkpoint", "data.root=null"], r"hf names no videos: set data=NAME data\.root=DIR"),
        ("hf", ["model=vivit_fe"], "hf is a vivit_st, not a vivit_fe: set model=vivit_st"),
        ("hf", ["model=vivit_st", "model.size=B"], r"model\.dim=768: 32 in .*hf\nmodel\.depth=12: 2 in"),
        ("hf", ["init.frames=4"], r"init\.frames=4: .*hf/config\.json states the frames"),
        ("hf", ["init.heads=[noun,verb]"], r"init\.heads=\[noun,verb\]: the model has a single head"),
        ("hf", ["data.crop=64"], r"data\.crop=64 is larger than data\.short_side=36"),
        ("hf", ["data=folder"], r"neither .*hf nor data=folder states stride: set data\.stride=NUMBER"),
        ("fe", ["model=vivit_fsa"], "fe is a vivit_fe, not a vivit_fsa: set model=vivit_fe"),
        ("fe", ["init.frames=8"], r"init\.frames=8: its position embeddings are those of 4 frames"),
        ("fdp", [], "fits vivit_st and vivit_fdp, .*: set model=vivit_st or model=vivit_fdp"),
        ("st", [], r"st cannot be evaluated: .*ambiguous: set init\.frames"),
        ("ours.ckpt", ["init.mean=[0.5,0.5,0.5]", "init.std=[0.5,0.5,0.5]"], "states this itself"),
        ("ours.ckpt", ["model=vivit_st"], r"model\.model='vivit_st': 'vivit_fe' in .*ours\.ckpt"),
        ("net.safetensors", [], r"net\.safetensors holds weights alone"),
        (
            "empty",
            [],
            r"the folder has no best\.ckpt, .*no config\.json \(Hugging Face\) and no checkpoint_<step>",
        ),
        ("nowhere", [], r"ckpt_path=.*nowhere: no such file"),
    ],
)
def test_what_is_stated_nowhere_or_contradicts_the_source_is_refused(
    name: str, words: list[str], message: str, sources: Path, kinetics: Path, config: Config
) -> None:
    with pytest.raises(UserError, match=message):
        score(config, sources / name, kinetics, *words)


def test_the_options_of_vivit_say_what_a_checkpoint_of_the_authors_leaves_open(
    sources: Path, tmp_path: Path
) -> None:
    """Models 1 and 4 have the same parameters, and their positions do not tell frames from pixels."""
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    words = ["--labels", str(tmp_path / "names.txt"), "--format", "safetensors", "--out"]

    def export(*more: str, out: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["export", *more, *words, str(tmp_path / out)])
        assert done.exit_code == code, done.output
        return done.output

    checkpoint, model = str(sources / "fdp"), ("--model", "vivit_fdp")
    assert "set model=vivit_st or model=vivit_fdp (--model NAME in vivit)" in export(checkpoint, out="a", code=2)
    assert "set init.frames (--frames N in vivit)" in export(checkpoint, *model, out="a", code=2)
    assert "ambiguous with init.frames=8" in export(checkpoint, *model, "--frames", "8", out="a", code=2)
    export(checkpoint, *model, "--frames", "4", out="a")
    found = vivit_train.load(tmp_path / "a", device="cpu").task.net
    for name, value in tiny("vivit_fdp").state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)
    for source in ("hf", "ours.ckpt"):
        refused = export(str(sources / source), *model, out="b", code=2)
        assert f"model can only be given for a checkpoint of the authors: {sources / source} states its" in refused


def test_other_numbers_of_classes_are_refused(kinetics: Path, config: Config, tmp_path: Path) -> None:
    save_scenic(tiny("vivit_fe", 5), tmp_path / "checkpoint_1")
    with pytest.raises(
        UserError, match=r"has 5 logits, but data=kinetics400 has 3 classes: .*data\.reader\.classes"
    ):
        score(config, tmp_path / "checkpoint_1", kinetics)


def test_a_name_on_the_hub_that_cannot_be_reached_is_one_message(
    kinetics: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        assert "model.safetensors.index.json" in allow_patterns
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=r"no weights at google/vivit-b-16x2-kinetics400, .*no network.*folder"):
        score(config, "google/vivit-b-16x2-kinetics400", kinetics)


@pytest.mark.parametrize("model", ["vivit_st", "vivit_fe", "vivit_fsa", "vivit_fdp"])
def test_a_model_by_its_name_says_nothing_else_in_an_evaluation(model: str, config: Config) -> None:
    node = config("ckpt_path=x", f"model={model}", name="eval").model
    assert {key: value for key, value in node.items() if value is not None} == {"model": model}


def test_the_commands_of_the_page_are_valid(config: Config) -> None:
    page = (ROOT / "docs/released-weights.md").read_text()
    commands = [words for words in re.findall(r"`(.*?)`", page) if words.startswith("ckpt_path=")]
    assert len(commands) == 7
    for words in commands:
        validate_evaluation(config(*words.split(), "data.root=x", name="eval"))


@pytest.mark.parametrize(
    ("data", "model", "settings", "size"),
    [
        ("kinetics400", "vivit_st", {"num_classes": 400}, (32, 224)),
        ("kinetics600", "vivit_fe", {"num_classes": 600, "temporal_depth": 24}, (32, 224)),
        ("epic_kitchens100", "vivit_fe", {"num_classes": 397}, (32, 224)),
        ("something_something_v2", "vivit_fe", {"num_classes": 174, "image_size": 256}, (32, 256)),
    ],
)
def test_trees_of_the_released_sizes_need_no_further_word(
    data: str, model: ModelName, settings: dict[str, Any], size: tuple[int, int], config: Config, tmp_path: Path
) -> None:
    net = ViViT(model, **{"dim": 8, "depth": 1, "heads": 2} | settings)
    save_scenic(net, tmp_path / "checkpoint")
    cfg = config(f"data={data}", "ckpt_path=x", name="eval")
    option, node = data_defaults(cfg.data.name)
    whole = read_whole(
        Source(str(tmp_path / "checkpoint")), Hints(None, "space_time", None, node.frames, node.crop)
    )
    assert option == data
    assert whole.net.input_shape == (3, size[0], size[1], size[1])
    assert arguments_of(whole.net)["temporal_depth"] == len(
        net.temporal_encoder.blocks if net.temporal_encoder else ()
    )
    assert whole.net.head_sizes == {"": settings["num_classes"]}


def process(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs eval.py in a process of its own, whose hub has the cache that the environment names."""
    command = [sys.executable, str(ROOT / "eval.py"), *words, "trainer=cpu", "data.num_workers=0"]
    command += ["hydra.run.dir=run"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_the_command_gives_the_logits_of_transformers(
    where: str, kinetics: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    id2label = dict(enumerate(OTHER_ORDER))
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    settings |= {"image_size": 32, "num_frames": 4, "id2label": id2label}
    torch.manual_seed(0)
    theirs = transformers.VivitForVideoClassification(transformers.VivitConfig(**settings)).eval()
    video, label = clips(config, kinetics)
    pixels = normalized(video).transpose(1, 2)
    with torch.no_grad():
        features = theirs.vivit(pixel_values=pixels).last_hidden_state[:, 0]
        rows = torch.tensor([OTHER_ORDER.index(CLASSES[i]) for i in label[:, 0]])
        wanted = torch.nn.functional.one_hot(rows, 3).float()
        theirs.classifier.weight.copy_(torch.linalg.lstsq(features, wanted).solution.T)
        theirs.classifier.bias.zero_()
        expected = theirs(pixel_values=pixels).logits
    hub = tmp_path / "cache/models--somebody--vivit"
    folder = tmp_path / "hf" if where == "folder" else hub / "snapshots/0123"
    theirs.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    size = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    mean, std = [2 * value - 1 for value in MEAN], [2 * value for value in STD]
    transformers.VivitImageProcessor(**size, image_mean=mean, image_std=std).save_pretrained(folder)
    if where == "hub":
        write(hub / "refs/main", "0123")
        (hub / "refs/main").write_text("0123")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = folder if where == "folder" else "somebody/vivit"
    data = ["model=vivit_st", "data=kinetics400", f"data.root={kinetics}"]
    done = process(tmp_path, f"ckpt_path={source}", *data)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test/top1@1x1"] == 1
    assert "classes 3 (config.json)" in done.stdout
    torch.testing.assert_close(logits(tmp_path / "run", OTHER_ORDER), expected, atol=1e-5, rtol=0)
    if where == "hub":
        done = process(tmp_path, "ckpt_path=somebody/else", *data, "overwrite=true")
        assert done.returncode == 1
        assert "HF_HUB_OFFLINE is set" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_command_vivit_scores_the_authors_checkpoint(kinetics: Path, config: Config, tmp_path: Path) -> None:
    net = tiny("vivit_fe")
    video, label = clips(config, kinetics, "eval.views=1x1")
    expected = fit_head(net, normalized(video, [0.5] * 3, [0.5] * 3), label[:, 0])
    save_scenic(net, tmp_path / "checkpoint")
    words = ["ckpt_path=checkpoint", "model=vivit_fe", "data=kinetics400", f"data.root={kinetics}"]
    words += ["data.short_side=36", "trainer=cpu", "hydra.run.dir=run"]
    command = [sys.executable, "-m", "vivit_train.tools.cli", "eval", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test/top1@1x1"] == 1
    torch.testing.assert_close(logits(tmp_path / "run"), expected, atol=1e-5, rtol=0)
