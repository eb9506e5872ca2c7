"""Where a GPU's memory lacks, the run says which micro-batch it was, and what to set; or trains with half."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from vivit_train.run import train
from vivit_train.utils.errors import OutOfMemoryError

LIMIT_BYTES = 700 * 2**20
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU's memory has no fraction for a process"),
]


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(LIMIT_BYTES / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def settings(videos: Path, *others: str) -> list[str]:
    """ViViT-S on clips of which sixteen at once take more than a gigabyte, and one takes a tenth of it."""
    size = ["model=vivit_st", "model.size=S", "model.tubelet=[2,16,16]", "data.frames=12", "data.stride=1"]
    crop = [
        "data.crop=112",
        "data.short_side=128",
        "recipe=demo",
        "init=none",
        "model.dim=null",
        "model.depth=null",
    ]
    batch = ["model.heads=null", "micro_batch_size=16", "global_batch_size=16", "trainer.max_epochs=1"]
    return ["data=folder", f"data.root={videos}", *size, *crop, *batch, "data.num_workers=0", *others]


def test_a_lack_of_memory_names_the_micro_batch(
    videos: Path, config: Callable[..., DictConfig], on_device: list[str], little_memory: None
) -> None:
    with pytest.raises(OutOfMemoryError, match=r"micro_batch_size=16 .*\n.*micro_batch_size=8") as lack:
        train(config(*settings(videos), *on_device, tiny=False))
    assert lack.value.micro_batch_size == 8


def test_where_memory_lacks_half_is_tried(
    videos: Path,
    config: Callable[..., DictConfig],
    on_device: list[str],
    little_memory: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(config(*settings(videos), *on_device, "auto_micro_batch_size=true", tiny=False))
    assert "auto_micro_batch_size: retrying with this value" in capsys.readouterr().out
