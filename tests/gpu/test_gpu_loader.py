"""Clips reach the device from pinned memory, and 200 steps leave nothing behind."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vivit_train.data.annotations.folder import read_folder
from vivit_train.data.datamodule import VideoDataModule
from vivit_train.models.vivit import ViViT

pytestmark = pytest.mark.gpu
WARM, STEPS = 60, 200
MOST_GROWN_MB = 30.0


def batches(data: VideoDataModule) -> Iterator[Any]:
    loader = data.train_dataloader()
    for epoch in range(10**6):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        yield from loader


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_nothing_leaks(videos: Path, device: torch.device) -> None:
    sizes: dict[str, Any] = {"frames": 4, "short_side": 36, "crop": 32}
    data = VideoDataModule(
        "test",
        str(videos),
        read_folder,
        global_batch_size=8,
        micro_batch_size=8,
        num_workers=2,
        augment_on="device",
        color_jitter=0.8,
        **sizes,
    )
    net = ViViT("vivit_fe", num_classes=8, frames=4, image_size=32, dim=32, depth=1, heads=2, temporal_depth=1).to(
        device
    )
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    held: list[tuple[float, int, int]] = []
    source = batches(data)
    for step in range(1, STEPS + 1):
        batch = data.on_before_batch_transfer(next(source), 0)
        assert batch["video"].is_pinned() == (device.type == "cuda")
        batch["video"] = batch["video"].to(device, non_blocking=True)
        batch = data.on_after_batch_transfer(batch, 0)
        video_BCTHW = batch["video"].float().transpose(1, 2) / 255
        F.cross_entropy(net(video_BCTHW), batch["label"][:, 0].to(device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del batch, video_BCTHW
        if step in (WARM, STEPS):
            allocated = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            held.append((resident_mb(), len(os.listdir("/proc/self/fd")), allocated))
    (before_mb, files, allocated), (after_mb, files_after, allocated_after) = held
    assert after_mb - before_mb < MOST_GROWN_MB
    assert files_after <= files + 8  # batches on their way
    assert allocated_after <= allocated + 2**20
    source.close()
