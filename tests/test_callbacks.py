"""What a run prints about itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vivit_train.training.callbacks import Report


@pytest.mark.parametrize(
    ("data_wait", "epoch_s", "advises"), [(0.35, 120, True), (0.05, 120, False), (0.35, 20, False)]
)
def test_a_loader_that_starves_the_model_is_pointed_out(
    data_wait: float, epoch_s: float, advises: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer: Any = SimpleNamespace(
        callback_metrics={"train/loss_epoch": 1.5},
        current_epoch=0,
        max_epochs=2,
        global_step=5,
        is_global_zero=True,
    )
    report = Report(tmp_path / "curves.png")
    report.started_s, report.first_step, report.total_steps, report.main_score = 0.0, 0, 10, "top1"
    report.epoch_s, report.step_end_s, report.validated = 1000.0, 1000.0 + epoch_s, False
    report.clips_per_s, report.data_wait = 12.0, data_wait
    report.on_train_epoch_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert f"data wait {data_wait:.0%}" in said
    assert ("vivit prepare" in said and f"{data_wait:.0%} of the time" in said) == advises
    assert (tmp_path / "curves.png").stat().st_size > 0
