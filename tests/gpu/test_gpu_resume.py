"""A run that goes on from a checkpoint has the weights of one that was not interrupted, bit by bit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from vivit_train.run import train
from vivit_train.training.module import VideoClassifier

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_is_the_same_run(
    precision: str,
    videos: Path,
    config: Callable[..., DictConfig],
    tmp_path: Path,
    on_device: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what draws at random: augmentation, mixing, stochastic depth. It ends in its second epoch's midst."""
    monkeypatch.setattr("vivit_train.config.half_precision_speedup", lambda dtype: 2.0)  # a CPU may be slower so
    settings = ["data=folder", f"data.root={videos}", "trainer.max_epochs=3", "mixup=0.3", "model.drop_path=0.2"]
    settings += ["data.flip=0.5", "data.scale_jitter=[0.8,1.3]", "data.color_jitter=0.8", "ema_decay=0.9"]
    settings += [
        "micro_batch_size=4",
        "data.num_workers=1",
        "callbacks.last.minutes=0",
        "trainer.deterministic=true",
    ]
    settings += ["callbacks.contact_sheet=null", *on_device, f"trainer.precision={precision}"]

    def run(name: str, *others: str) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir(exist_ok=True)
        train(config(*settings, f"run_dir={tmp_path / name}", *others))
        checkpoint: dict[str, Any] = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 9
        return checkpoint["state_dict"] | {f"current {k}": v for k, v in checkpoint["current_model_state"].items()}

    whole = run("whole")
    with monkeypatch.context() as patch:
        step = VideoClassifier.training_step

        def fails(task: VideoClassifier, batch: Any, index: int) -> torch.Tensor:
            if task.trainer.global_step == 5:
                raise ConnectionError
            return step(task, batch, index)

        patch.setattr(VideoClassifier, "training_step", fails)
        with pytest.raises(ConnectionError):
            run("resumed")
    resumed = run("resumed", "resume=auto")
    assert whole.keys() == resumed.keys()
    different = [name for name, value in whole.items() if not torch.equal(value, resumed[name])]
    assert not different
