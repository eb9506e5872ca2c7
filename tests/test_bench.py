"""`vivit bench loader` on the tiny videos: numbers that make sense; how large they are is the machine's affair."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY_PROBE
from hydra.utils import instantiate
from omegaconf import DictConfig
from typer.testing import CliRunner
from videos import encode

from vivit_train.tools.bench.loader import Demand, advise, bench_loader, device_stages, table
from vivit_train.tools.bench.stages import decode_alone, repeat_rows
from vivit_train.tools.cli import app
from vivit_train.tools.encode import Settings
from vivit_train.tools.prepare import prepare
from vivit_train.utils.errors import UserError


def test_numbers_of_a_loader(videos: Path, config: Callable[..., DictConfig]) -> None:
    cfg = config("data=folder", f"data.root={videos}")
    result = bench_loader(cfg, clips=12, rounds=2, workers=[0, 1])
    assert (result.clips, result.unreadable) == (12, 0)
    assert sum(result.stage_ms.values()) == pytest.approx(result.total_ms)
    assert all(ms > 0 for ms in result.stage_ms.values())
    # what the stages say of one core is about what a loader without processes does: a shared machine is noisy
    assert 0.3 < result.clips_per_s[0] * result.total_ms / 1000 < 3
    assert set(result.clips_per_s) == {0, 1}
    assert all(math.isfinite(rate) and rate > 0 for rate in [*result.clips_per_s.values(), result.raw_ms])
    assert result.predicted[8] == pytest.approx(8 * result.predicted[1])
    assert result.prepared_gain
    assert result.prepared_gain > 0
    for word in (
        "open/probe",
        "seek",
        "decode",
        "collate",
        "raw limit",
        "| workers |",
        "Advice: training on this CPU, at up to ",
    ):
        assert word in table(result)


def test_clips_that_are_finished_after_the_transfer(videos: Path, config: Callable[..., DictConfig]) -> None:
    """On a GPU, or here, without one, in the main process; the code for a device runs on the processor too."""
    cfg = config("data=folder", f"data.root={videos}", "data.augment_on=device")
    result = bench_loader(cfg, clips=4, rounds=1, workers=[0])
    assert "augment" not in result.stage_ms
    assert result.beside_ms["augment in the main process"] > 0
    assert "| augment in the main process, in parallel |" in table(result)
    assert "| transfer: no GPU found |" in table(result)
    data = instantiate(cfg.data, _convert_="all")
    ms = device_stages(data, data.splits.train, torch.device("cpu"), rounds=1)
    assert list(ms) == ["transfer to cpu", "augment on cpu"]
    assert ms["augment on cpu"] > 0


def test_unreadable_clips_are_left_out_and_counted(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    for name in ("train/a/0", "train/a/1", "train/b/0", "val/a/0"):
        (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / f"{name}.mp4").write_text("this is text")
    cfg = config("data=folder", f"data.root={tmp_path / 'v'}")
    with pytest.raises(UserError, match="none of 3 clips can be read"):
        bench_loader(cfg, clips=12, rounds=1, workers=[0])
    encode(tmp_path / "v/train/a/0.mp4", frames=12)
    result = bench_loader(cfg, clips=12, rounds=1, workers=[0])
    assert (result.clips, result.unreadable) == (1, 2)


def test_what_cannot_be_sought_or_is_damaged_in_places_ends_no_measurement(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / "v" / name).mkdir(parents=True)
    encode(tmp_path / "v/val/a/0.mp4", frames=12)
    encode(tmp_path / "v/train/b/0.gif", "gif", frames=40, pix_fmt="rgb8")
    encode(tmp_path / "v/train/a/0.mp4", frames=120, g="12")
    data = (tmp_path / "v/train/a/0.mp4").read_bytes()
    middle = len(data) // 2
    for number in range(12):  # each is read elsewhere
        damaged = data[:middle] + bytes(200) + data[middle + 200 :]
        (tmp_path / f"v/train/a/{number}.mp4").write_bytes(damaged)
    cfg = config("data=folder", f"data.root={tmp_path / 'v'}", "data.frames=4", "data.stride=1")
    result = bench_loader(cfg, clips=13, rounds=1, workers=[0])
    assert result.clips + result.unreadable == 13
    assert 1 <= result.unreadable <= 11


def test_libavcodec_decodes_from_the_key_frame_before_to_the_last_frame(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", x264_params="keyint=24:min-keyint=24:scenecut=0", frames=72)
    for first, last, frames in ((0, 0, 1), (30, 40, 17), (48, 50, 3), (10, 71, 72)):
        clips: Any = [{"frame_numbers": torch.tensor([first, last])}]
        assert decode_alone(str(tmp_path / "a.mp4"), clips, 64).frames == frames


GPU = Demand(120, "a device that consumes 120 clips/s")


@pytest.mark.parametrize(
    ("demand", "gain", "words"),
    [
        (GPU, 3.9, "consumes 120 clips/s needs 14 cores; `vivit prepare` would make the loader 3.9x as fast"),
        (
            GPU,
            1.02,
            "`vivit prepare` would make little difference (1.0x): the slowest stage is augment (75%)",
        ),
        (GPU, "it was not measured", "needs 14 cores; it was not measured; the slowest stage is augment (75%)"),
        (
            Demand(6, "this", shares_cores=True),
            3.9,
            "this spends 25% of its time on loading; `vivit prepare`",
        ),
        (Demand(1, "this", shares_cores=True), 3.9, "this spends 5% of its time on loading: the model limits"),
    ],
)
def test_advice(demand: Demand, gain: float | str, words: str) -> None:
    assert words in advise(demand, 9, 2, gain, {"decode": 1.0, "augment": 3.0})


def test_prepared_videos_are_not_to_be_prepared(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / "v" / name).mkdir(parents=True)
        encode(tmp_path / f"v/{name}/0.mp4", frames=12)
    prepare(tmp_path / "v", tmp_path / "small", Settings(36, 8, 23), workers=1)
    for folder, prepared in (("v", False), ("small", True)):
        cfg = config("data=folder", f"data.root={tmp_path / folder}")
        result = bench_loader(cfg, clips=2, rounds=1, workers=[0], target_clips_per_s=1e6)
        assert (result.prepared_gain is None) == prepared
        assert ("; the videos are from `vivit prepare`; the slowest" in result.advice) == prepared


OPTIONS = ["--clips", "4", "--rounds", "1", "--workers", "1"]


def test_the_command_prints_a_table_and_writes_json(videos: Path, tmp_path: Path) -> None:
    arguments = ["bench", "loader", "data=folder", f"data.root={videos}", *TINY_PROBE, *OPTIONS]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "loader.json")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "| stage | ms per clip | share |" in done.stdout
    assert "Advice: training on this CPU, at up to " in done.stdout
    numbers = json.loads((tmp_path / "loader.json").read_text())
    assert numbers["clips"] == 4
    assert numbers["clips_per_s"]["1"] > 0


@pytest.mark.slow  # importing torch and lightning takes 5 to 30 s on a busy machine
def test_the_command_as_a_process(videos: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vivit_train.tools.cli",
        "bench",
        "loader",
        "data=folder",
        f"data.root={videos}",
    ]
    done = subprocess.run([*command, *TINY_PROBE, *OPTIONS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Advice: training on this CPU, at up to " in done.stdout


def test_what_the_doctor_stored_is_found_again_in_each_round(
    videos: Path, config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    data = instantiate(config("data=folder", f"data.root={root}").data, _convert_="all")
    paths = data.splits.train.paths.tolist()
    other = repeat_rows(data, data.splits.train, 2).paths.tolist()
    assert not set(other) & set(paths)
    assert [Path(path) for path in other] == [Path(path) for path in paths * 2]
    (root / "timelines.sqlite").touch()
    data = instantiate(config("data=folder", f"data.root={root}").data, _convert_="all")
    assert repeat_rows(data, data.splits.train, 2).paths.tolist() == paths * 2
