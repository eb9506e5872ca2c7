"""DDP and FSDP2 with one process train to the weights of a run without: over nccl, on a CPU over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY

from vivit_train.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def command(run: Path, videos: Path, *others: str) -> list[str]:
    data = [
        "data=folder",
        f"data.root={videos}",
        "trainer.max_epochs=2",
        "micro_batch_size=4",
        "model.temporal_depth=1",
        "trainer.deterministic=true",
    ]
    return [
        sys.executable,
        str(ROOT / "train.py"),
        *TINY,
        *data,
        "trainer.deterministic=true",
        f"hydra.run.dir={run}",
        *others,
    ]


def test_ddp_and_fsdp_with_one_process_are_as_without(videos: Path, tmp_path: Path, on_device: list[str]) -> None:
    """All three at once, as starting takes longer than training."""
    choices = {
        "alone": [],
        "ddp": ["trainer=ddp_cpu" if "trainer.accelerator=cpu" in on_device else "trainer=ddp"],
        "fsdp": ["trainer=fsdp"],
    }
    started = {}
    for name, words in choices.items():
        # as torchrun would: one process, and all the strategy does for several
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "gpu"}
        started[name] = subprocess.Popen(
            command(tmp_path / name, videos, *words, *on_device),
            env=os.environ | (ranks | place if words else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    said = {name: process.communicate()[0] for name, process in started.items()}
    for name, process in started.items():
        assert process.returncode == 0, f"{name}: {said[name][-1000:]}"
    weights = {name: load_checkpoint(tmp_path / name / "checkpoints/last.ckpt")[1] for name in choices}
    for name in ("ddp", "fsdp"):
        assert weights[name].keys() == weights["alone"].keys()
        for parameter, value in weights["alone"].items():
            torch.testing.assert_close(weights[name][parameter], value, atol=1e-4, rtol=1e-3)
