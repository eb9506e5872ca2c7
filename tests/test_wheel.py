"""`vivit train` and `vivit eval` of a wheel, from a folder that is no clone."""

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, TINY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(*folder.glob("*.whl")) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def vivit(installed: Path, *arguments: str, cwd: Path) -> str:
    """Run `vivit` with the package of the wheel and return its output."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "vivit_train.tools.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_wheel_installs_one_package(installed: Path) -> None:
    """Above all no hydra_plugins, which every Hydra program of the environment would import."""
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"vivit_train"}
    pages = {path.name for path in (installed / "vivit_train/templates").iterdir()}
    assert pages >= {"page.html", "page.js", "style.css", "report.html", "doctor.html", "compare.html"}


@pytest.mark.slow
def test_a_wheel_trains(installed: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('a module of the current folder was imported')")
    vivit(installed, "train", "data=folder", f"data.root={videos}", *TINY, "hydra.run.dir=run", cwd=tmp_path)
    assert (tmp_path / "run/train.log").read_text()


@pytest.mark.slow
def test_a_wheel_evaluates(installed: Path, videos: Path, tmp_path: Path) -> None:
    vivit(installed, "train", "data=folder", f"data.root={videos}", *TINY, "hydra.run.dir=run", cwd=tmp_path)
    evaluation = ["eval", "ckpt_path=run/checkpoints/best.ckpt", "hydra.run.dir=eval"]
    assert " of 16, 95 % CI " in vivit(installed, *evaluation, cwd=tmp_path)
    assert (tmp_path / "eval/metrics.json").is_file()


@pytest.mark.slow
def test_a_wheel_sweeps_with_two_processes_per_job_and_a_configuration_of_one_s_own(
    installed: Path, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine/data").mkdir(parents=True)
    (tmp_path / "mine/data/mine.yaml").write_text(f"defaults: [folder, _self_]\nname: mine\nroot: {videos}\n")
    words = ["data=mine", "recipe=folder", *TINY, "trainer=ddp_cpu", "seed=1,2"]
    for flags, own in ((["--config-dir", "mine"], []), ([], ["hydra.searchpath=[file://mine]"])):
        vivit(installed, "train", "-m", *flags, *words, *own, f"hydra.sweep.dir=sweep{len(own)}", cwd=tmp_path)
        with (tmp_path / f"sweep{len(own)}/summary.csv").open(newline="") as file:
            assert [row["failed"] for row in csv.DictReader(file)] == ["0", "0"]


def test_flags_of_hydra_and_of_the_command(installed: Path, tmp_path: Path) -> None:
    assert "ckpt_path: best.ckpt" in vivit(installed, "eval", "--cfg", "job", "ckpt_path=best.ckpt", cwd=tmp_path)
    assert "mixup: 0.3" in vivit(installed, "train", "--cfg", "job", "mixup=0.3", cwd=tmp_path)
    assert vivit(installed, "--version", cwd=tmp_path).startswith("vivit-train ")
    for command in ("train", "eval", "prepare", "doctor", "replay", "bench loader", "bench model", "bench train"):
        assert "Examples:" in vivit(installed, *command.split(), "--help", cwd=tmp_path)
    assert not list(tmp_path.iterdir())
