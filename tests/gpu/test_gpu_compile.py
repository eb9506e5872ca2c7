"""A compiled run is the same run: nothing is compiled anew in training, validation and last batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo
from omegaconf import DictConfig

from vivit_train.run import train
from vivit_train.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.gpu


def test_a_compiled_run_is_the_same_run(
    videos: Path, config: Callable[..., DictConfig], tmp_path: Path, on_device: list[str]
) -> None:
    """Of the validation's 8 clips the last batch has two, the others three: as many as there are colors."""
    weights = []
    for compiled in ("false", "true"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        settings = [
            f"model.compile={compiled}",
            "micro_batch_size=3",
            "global_batch_size=6",
            "trainer.max_epochs=2",
        ]
        settings += ["model.temporal_depth=1", f"run_dir={tmp_path / compiled}"]
        cfg = config("data=folder", f"data.root={videos}", *settings, *on_device)
        Path(cfg.run_dir).mkdir()
        train(cfg)
        stats = torch._dynamo.utils.counters["stats"]
        assert stats.get("unique_graphs", 0) == (2 if compiled == "true" else 0)
        assert not torch._dynamo.utils.counters["graph_break"]
        weights.append(load_checkpoint(tmp_path / compiled / "checkpoints/last.ckpt")[1])
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3)
