"""What the demo claims, by the commands that it runs (minutes; `make test-all`). `make demo` shows the same."""

import csv
import json
from pathlib import Path

import pytest
from test_commands import run

from vivit_train.data.synthetic import PARTNER


def predictions(folder: Path) -> list[tuple[str, str]]:
    return [(row["label"], row["prediction"]) for row in csv.DictReader((folder / "predictions.csv").open())]


EPOCHS = {"vivit_fe": 10, "vivit_st": 10, "vivit_fsa": 10, "vivit_fdp": 20}  # the last leaves its plateau later


@pytest.mark.slow
@pytest.mark.parametrize("model", EPOCHS)
def test_the_demo_s_motions_are_learned(model: str, tmp_path: Path) -> None:
    arguments = [f"model={model}", f"trainer.max_epochs={EPOCHS[model]}", "hydra.run.dir=run"]
    trained = run("train.py", *arguments, cwd=tmp_path, timeout=900)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test/top1@1x1"] >= 0.9

    for order in ("reversed", "shuffled"):
        arguments = ["ckpt_path=run/checkpoints/best.ckpt", f"eval.order={order}", f"hydra.run.dir={order}"]
        assert run("eval.py", *arguments, cwd=tmp_path).returncode == 0
    backwards = predictions(tmp_path / "reversed")
    assert sum(PARTNER[label] == prediction for label, prediction in backwards) >= 0.85 * len(backwards)
    shuffled = predictions(tmp_path / "shuffled")
    assert sum(label == prediction for label, prediction in shuffled) <= 0.6 * len(shuffled)
