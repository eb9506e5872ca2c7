"""A checkpoint is evaluated on clips of another size, with the weights that training at that size starts from."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from vivit_train import VideoClassifier, create_model, load_model, load_pretrained
from vivit_train.build import build_data
from vivit_train.config import derive
from vivit_train.run import evaluate, train
from vivit_train.utils.errors import UserError

Config = Callable[..., DictConfig]


@pytest.fixture
def ckpt(videos: Path, config: Config, tmp_path: Path) -> Path:
    train(config("data=folder", f"data.root={videos}", "optimizer.lr=0.01"))
    return tmp_path / "run/checkpoints/best.ckpt"


def logits(tmp_path: Path) -> torch.Tensor:
    with (tmp_path / "results/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([[float(v) for name, v in row.items() if name.startswith("logit:")] for row in rows])


@pytest.mark.parametrize(
    "words", [["data.frames=8"], pytest.param(["data.crop=64", "data.short_side=72"], marks=pytest.mark.slow)]
)
def test_positions_are_interpolated_as_for_a_start(
    words: list[str], videos: Path, ckpt: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, size = (8, 32) if words == ["data.frames=8"] else (4, 64)
    evaluate(config(f"ckpt_path={ckpt}", *words, name="eval"))
    text = f"clips of {frames} frames of {size} pixels, trained on 4 of 32: position embeddings are interpolated"
    assert text in capsys.readouterr().out
    trained = load_model(ckpt)
    net = create_model(
        "vivit_fe",
        "Ti",
        dim=32,
        depth=1,
        heads=2,
        num_classes=8,
        frames=frames,
        image_size=size,
        tubelet=(2, 16, 16),
    )
    load_pretrained(net, ckpt, classes=trained.classes)
    start = VideoClassifier(net, trained.classes, [0.5] * 3, [0.5] * 3).eval()
    data = build_data(derive(config("data=folder", f"data.root={videos}", *words)))
    with torch.inference_mode():
        expected = torch.cat([start(batch["video"][:, 0]) for batch in data.test_dataloader()])
    torch.testing.assert_close(logits(tmp_path), expected, atol=1e-4, rtol=1e-4)


def test_a_size_that_the_model_cannot_have_is_refused(ckpt: Path, config: Config) -> None:
    with pytest.raises(UserError, match="frames 5 is not a multiple of the tubelet's 2"):
        evaluate(config(f"ckpt_path={ckpt}", "data.frames=5", name="eval"))
