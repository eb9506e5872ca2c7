"""Augmentation and mixing on a device: what a worker does, draw by draw."""

from typing import Any

import pytest
import torch
from test_datamodule import batches_of
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vivit_train.data.transforms import TrainTransform, mix_batch, seeded

pytestmark = pytest.mark.gpu
RANDOM = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "bernoulli",
    "multinomial",
    "uniform_",
    "normal_",
    "_sample_dirichlet",
}
MEAN_ERROR = 2.0  # of 255: a rotation's rounding moves single pixels
NOTHING: dict[str, Any] = {"scale_jitter": None, "flip": 0.0, "color_jitter": 0.0, "randaugment": None}
EACH: dict[str, dict[str, Any]] = {
    "crop": {"scale_jitter": (0.7, 1.4), "flip": 0.5},
    "colors": {"color_jitter": 1.0},
    "stronger colors": {"color_jitter": 1.0, "strong_color": True},
    "RandAugment": {"randaugment": (2, 15)},
    "torchvision's RandAugment": {"randaugment": (2, 15), "randaugment_kind": "torchvision"},
    "erasing": {"random_erasing": 1.0},
    "all": {
        "scale_jitter": (0.9, 1.33),
        "flip": 0.5,
        "color_jitter": 0.8,
        "randaugment": (2, 15),
        "random_erasing": 0.5,
    },
}


class Draws(TorchFunctionMode):
    """Notes what is drawn, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []
        self.devices: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in RANDOM and isinstance(result, Tensor):
            self.devices.add(result.device.type)
            values = result.flatten()[:8].tolist()
            if result.device.type == "cpu":  # erasing draws the noise of a rectangle that is then black
                self.seen.append((func.__name__, values))
        return result


@pytest.mark.parametrize("what", EACH)
def test_a_device_augments_as_a_worker_does(what: str, device: torch.device) -> None:
    transform = TrainTransform(crop=32, short_side=40, resize_mode="keep_ratio", **NOTHING | EACH[what])
    draw = torch.Generator().manual_seed(0)
    for clip in range(16):
        rough = torch.rand(4, 3, 6, 8, generator=draw)
        video = (torch.nn.functional.interpolate(rough, (48, 64), mode="bilinear") * 255).to(torch.uint8)
        with seeded(clip):
            params = transform.draw(48, 64)
        box = params.cut(video)
        with Draws() as here:
            expected = transform.finish(box, params)
        with Draws() as there:
            found = transform.finish(box.to(device), params)
        assert there.seen == here.seen
        assert found.device.type == device.type
        assert found.shape == expected.shape == (4, 3, 32, 32)
        error = (found.cpu().float() - expected.float()).abs()
        assert error.mean() < MEAN_ERROR, (clip, error.mean(), error.max())


def test_batches_are_the_same_wherever_they_are_augmented(videos: Any, device: torch.device) -> None:
    here = batches_of(videos, "cpu", augment_on="worker", num_workers=0)
    there = batches_of(videos, device.type, augment_on="device", num_workers=2)
    assert len(here) == len(there) > 1
    for one, other in zip(here, there, strict=True):
        assert other["video"].device.type == device.type
        assert all(torch.equal(one[name], other[name]) for name in one if name not in ("video", "times_s"))
        assert (one["video"].float() - other["video"].cpu().float()).abs().mean() < MEAN_ERROR


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.3, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_a_device_mixes_as_a_cpu_does(mixup: float, cutmix: float, device: torch.device) -> None:
    video = torch.rand(6, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    label = torch.arange(6)[:, None] % torch.tensor([3, 5])
    for seed in range(16):
        torch.manual_seed(seed)
        expected = mix_batch(video, label, [3, 5], mixup, cutmix)
        torch.manual_seed(seed)
        found = mix_batch(video.to(device), label.to(device), [3, 5], mixup, cutmix)
        for one, other in zip(expected, found, strict=True):
            assert other.device.type == device.type
            torch.testing.assert_close(other.cpu(), one, atol=1e-6, rtol=1e-5)
        assert not torch.equal(found[0].cpu(), video)
