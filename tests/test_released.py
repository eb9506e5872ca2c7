"""Weights of others are scored by one command: the authors' trees and Hugging Face folders, on tiny models."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from trees import make_tree

from vivit_train.build import build_data
from vivit_train.config import derive
from vivit_train.models.vivit import ModelName, ViViT
from vivit_train.models.weights.huggingface import save_huggingface
from vivit_train.models.weights.scenic import save_scenic
from vivit_train.run import evaluate

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
        wanted_NK = 4 * torch.nn.functional.one_hot(label_N, net.head.out_features).float()
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


@pytest.mark.parametrize("model", ["vivit_fe", "vivit_st"])
def test_the_authors_checkpoint_is_scored_with_the_classes_and_the_clips_of_the_data(
    model: ModelName, kinetics: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tiny(model)
    video, label = clips(config, kinetics)
    expected = fit_head(net, normalized(video, [0.5] * 3, [0.5] * 3), label[:, 0])
    (tmp_path / "released").mkdir()
    save_scenic(net, tmp_path / "released/checkpoint")  # the name that the authors' files have
    words = [] if model == "vivit_fe" else ["model=vivit_st", "init.frames=4"]
    results = score(config, tmp_path / "released", kinetics, *words, "data.short_side=36")
    assert (results["test/top1@1x1"], results["n"]) == (1, 6)
    torch.testing.assert_close(logits(tmp_path / "run"), expected, atol=1e-4, rtol=1e-4)  # six digits are written
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
    torch.testing.assert_close(logits(tmp_path / "run"), expected, atol=1e-4, rtol=1e-4)
    protocol = results["protocol"]
    assert protocol["classes"] == "3 (config.json)"
    assert protocol["stride"] == "1 (command line)"
    assert protocol["short_side"] == "36 (preprocessor_config.json)"
    assert protocol["mean, std"] == f"{MEAN}, {STD} (preprocessor_config.json)"
