"""The two scripts as a person runs them: real processes, their output, their exit codes."""

import csv
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, TINY
from omegaconf import DictConfig

from vivit_train.run import evaluate, train


def run(script: str, *arguments: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *arguments]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # the test processes are the parallelism
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=one_thread)


def fails_with_one_message(result: subprocess.CompletedProcess[str], *words: str) -> None:
    output = result.stdout + result.stderr
    assert result.returncode != 0, output
    assert "Traceback" not in output, output
    assert output.count("error:") == 1, output
    for word in words:
        assert word in output, output


def test_cfg_job_answers_without_torch(tmp_path: Path) -> None:
    """It takes a second; importing torch and Lightning would take five more."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--cfg", "job"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "vivit_train.models.vivit.ViViT" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "hydra" in imported
    assert not {"torch", "lightning", "timm", "matplotlib"} & imported


@pytest.mark.parametrize(
    "arguments",
    [["data.rot=/x"], ["modle=vivit_fe"], ["model=vivit_xl"], ["optimizer.lrr=1"], ["trainer.max_epoch=3"]],
    ids=" ".join,
)
def test_a_typo_in_an_override_is_one_message(arguments: list[str], tmp_path: Path) -> None:
    name = arguments[0].split("=")[0 if "model=" not in arguments[0] else 1]
    fails_with_one_message(run("train.py", *arguments, cwd=tmp_path), name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["data.frames=5"], ("frames 5 is not a multiple",), marks=pytest.mark.slow),
        pytest.param(
            ["data.root=videos", "data.num_workers=1"],
            ("0.mp4", "cannot be read", "max_bad_fraction"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["before training", "in a worker, in training"],
)
def test_what_a_user_can_mend_is_one_message(arguments: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        (tmp_path / "videos" / name / "0.mp4").write_text("this is text")
    fails_with_one_message(run("train.py", "data=folder", *TINY, *arguments, cwd=tmp_path), *words)


def test_an_output_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    target = locked / "run" if os.geteuid() else Path("/proc/run")  # root may write anywhere but there
    fails_with_one_message(run("train.py", f"hydra.run.dir={target}", cwd=tmp_path), str(target))


@pytest.mark.slow
def test_eval_without_a_checkpoint_is_one_message(tmp_path: Path) -> None:
    fails_with_one_message(run("eval.py", cwd=tmp_path), "ckpt_path")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_train(launcher: str, videos: Path, tmp_path: Path) -> None:
    """That they train as one does, test_processes.py proves; here they are started as a person starts them."""
    script = [str(ROOT / "train.py"), "data=folder", f"data.root={videos}", *TINY, "hydra.run.dir=run"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [sys.executable, *(torchrun if launcher == "torchrun" else []), *script, "trainer=ddp_cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best checkpoint: ") == 1
    assert "x 2 devices" in result.stdout
    assert len(list(csv.DictReader((tmp_path / "run/predictions.csv").open()))) == 16


def test_readme_s_own_videos_lines_run(
    videos: Path, config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands under "Your own videos", with a small model in place of the default one. `make demo` runs the
    two scripts themselves."""
    text = (ROOT / "README.md").read_text()
    block = text[text.index("## Your own videos") :].split("```")[1]
    commands = [line.split("#")[0].split() for line in block.splitlines() if line.startswith("python ")]
    assert [script for _, script, *_ in commands] == ["train.py", "eval.py"]
    monkeypatch.chdir(tmp_path)
    Path("videos").symlink_to(videos)
    Path("runs/mine").mkdir(parents=True)
    (_, _, *training), (_, _, *evaluation) = commands
    assert {"init=imagenet", "hydra.run.dir=runs/mine"} <= {*training}
    training = [argument for argument in training if argument != "init=imagenet"]  # needs the network
    score = train(config(*training, "run_dir=runs/mine"))
    views = evaluate(config(*evaluation, name="eval"))
    assert views["n"] == 16
    assert 0 <= score <= 1
