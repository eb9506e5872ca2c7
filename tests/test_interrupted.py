"""Ctrl-C in real processes: a line that says what is kept, exit code 130, and what was done stays on the disk."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import checkpoint

from vivit_train.data.synthetic import CLASSES


def interrupted(words: list[str], folder: Path, under_way: Callable[[], bool]) -> tuple[int, str]:
    """Starts `vivit` and sends SIGINT as soon as it is under way; returns the exit code and the last line."""
    command = [sys.executable, "-m", "vivit_train.tools.cli", *words]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
    until_s = time.monotonic() + 120
    while not under_way() and process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return process.returncode, errors.strip().splitlines()[-1]


@pytest.fixture
def many(videos: Path, tmp_path: Path) -> Path:
    """A folder with a checkpoint and 400 videos."""
    checkpoint(tmp_path / "best.ckpt", {"": list(CLASSES)})
    (tmp_path / "many").mkdir()
    source = next(videos.glob("test/*/*.mp4"))
    for i in range(400):
        shutil.copy(source, tmp_path / f"many/{i:04d}.mp4")
    return tmp_path


@pytest.mark.slow
def test_predictions_so_far_are_written(many: Path) -> None:
    with (many / "shown.txt").open("w") as shown:
        words = [*("predict", "best.ckpt", "many", "--csv", "out.csv"), *("--workers", "0", "--batch-size", "1")]
        command = [sys.executable, "-m", "vivit_train.tools.cli", *words]
        process = subprocess.Popen(command, cwd=many, stdout=shown, stderr=subprocess.PIPE, text=True)
        while not (many / "shown.txt").stat().st_size and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    done = list(csv.DictReader((many / "out.csv").open()))
    assert process.returncode == 130, errors
    assert 0 < len(done) < 400
    assert errors.strip().splitlines()[-1] == (
        f"interrupted: {len(done)} of 400 videos are done; their predictions are in out.csv"
    )


@pytest.mark.slow
def test_the_page_has_the_heat_maps_so_far(many: Path) -> None:
    words = ["explain", "best.ckpt", *(f"many/{i:04d}.mp4" for i in range(400))]
    code, line = interrupted(words, many, lambda: (many / "explain/2_0001.mp4").exists())
    page = (many / "explain/index.html").read_text()
    done = page.count('id="video')
    assert code == 130
    assert 0 < done < 400
    assert line == f"interrupted: {done} of 400 videos are done; their page is explain/index.html"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sign", "line"),
    [
        (
            ["crossval", "videos", "--folds", "2", "--val-percent", "25"],
            "crossval/fold_1/seed_0",
            "interrupted: 0 of 2 runs are done; run the same command to continue",
        ),
        (["bench", "model", "model.depth=40"], "", "stopped by Ctrl-C"),
    ],
)
def test_each_command_says_that_it_was_stopped(
    words: list[str], sign: str, line: str, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").symlink_to(videos)
    start_s = time.monotonic()
    done = interrupted(words, tmp_path, lambda: (tmp_path / sign).exists() and time.monotonic() - start_s > 4)
    assert done == (130, line)
