"""The demo, from making its videos to the score of the best checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

pytestmark = pytest.mark.gpu
SCORE = 0.95


def test_the_demo_is_learned(tmp_path: Path, videos: Path, device: torch.device) -> None:
    """On a CPU that is `make demo`, which takes minutes: here a few videos, each with its row at the end."""
    if device.type == "cuda":
        words, videos_tested = ["trainer=gpu", f"data.root={tmp_path / 'demo'}"], 256
    else:
        words, videos_tested = ["trainer=cpu", "data=folder", f"data.root={videos}", "recipe=demo"], 16
        words += [
            "data.short_side=36",
            "data.crop=36",
            "data.frames=8",
            "trainer.max_epochs=1",
            "data.num_workers=1",
        ]
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, "eval.report=false", f"hydra.run.dir={run}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    metrics = json.loads((run / "metrics.json").read_text())
    (top1,) = (value for name, value in metrics.items() if "top1" in name)
    (n,) = (value for name, value in metrics.items() if name in ("n", "test/n"))
    assert n == videos_tested
    if device.type == "cuda":
        assert top1 >= SCORE
