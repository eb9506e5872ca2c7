"""Training in half precision learns, and in bf16 about what float32 does."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from vivit_train.run import train

pytestmark = pytest.mark.gpu
FOLDER = ["recipe=demo", "model=vivit_st", "data.frames=8", "data.short_side=36", "data.crop=36"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_learns_two_clips_by_heart(
    precision: str,
    videos: Path,
    config: Callable[..., DictConfig],
    on_device: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vivit_train.config.half_precision_speedup", lambda dtype: 2.0)  # a CPU may be slower so
    settings = ["data=folder", f"data.root={videos}", *FOLDER, "debug=overfit", *on_device]
    cfg = config(*settings, f"trainer.precision={precision}", tiny=False)
    torch.use_deterministic_algorithms(False)
    train(cfg)
    assert re.search(r"overfit: 2 clips learned: loss 0\.00\d\d after \d+ steps", capsys.readouterr().out)
