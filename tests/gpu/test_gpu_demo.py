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


def test_the_demo_is_learned(tmp_path: Path, device: torch.device) -> None:
    """On a CPU that is `make demo`, which takes minutes: here a few steps, after which every video has its row."""
    words = ["trainer=gpu"] if device.type == "cuda" else ["trainer=cpu", "trainer.limit_train_batches=4"]
    words += [] if device.type == "cuda" else ["recipe.epochs=1", "trainer.limit_val_batches=2"]
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, f"data.root={tmp_path / 'demo'}", f"hydra.run.dir={run}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    metrics = json.loads((run / "metrics.json").read_text())
    (top1,) = (value for name, value in metrics.items() if name.endswith("top1"))
    (n,) = (value for name, value in metrics.items() if name.endswith("/n"))
    assert n == 256
    if device.type == "cuda":
        assert top1 >= SCORE
