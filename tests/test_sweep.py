"""Multiruns: processes of their own, one table; searches that go on; launchers that start the ranks."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, TINY, Happened
from hydra.core.utils import JobReturn, JobStatus
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from vivit_train.tools.optuna_sweeper import open_study
from vivit_train.tools.sweep import Outcome, draw_summary, table, write_summary
from vivit_train.utils.intervals import wilson
from vivit_train.utils.plots import choice_axis

# In train.py's place, so that a job takes a second: what it does is the number of its seed.
QUICK = f"""
import os, signal, sys, time
import hydra
from vivit_train.tools.scripts import record, start
from vivit_train.tools.sweep import is_job, run_job
from vivit_train.utils.errors import StoppedError, UserError

def stop(number, frame):
    raise StoppedError(signal.Signals(number), "stopped after step 7")

@hydra.main(version_base="1.3", config_path={str(ROOT / "conf")!r}, config_name="train")
def main(cfg):
    if is_job():
        return run_job(cfg, [__file__])
    return record(cfg, lambda folder: work(cfg))

def work(cfg):
    if cfg.seed == 1:
        raise UserError("the reason,\\nin two lines")
    if cfg.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == 3:
        signal.signal(signal.SIGTERM, stop)
        open("waits", "w").close()
        time.sleep(60)
    if cfg.seed == 4:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("waits", "w").close()
        time.sleep(1)
    if cfg.seed == 5:
        return "val/score", float("nan")
    print("rank", os.environ.get("LOCAL_RANK"), os.environ.get("MASTER_PORT"))
    return "val/score", cfg.optimizer.lr

start(main, "train")
"""


def sweep(folder: Path, *arguments: str) -> list[str]:
    (folder / "job.py").write_text(QUICK)
    return [sys.executable, "job.py", "-m", "hydra.sweep.dir=sweep", *arguments]


def run(command: Sequence[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, env=variables)


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep/summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.fault("Sweeps and clusters")
def test_a_job_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path, happened: Happened) -> None:
    result = run(sweep(tmp_path, "seed=1,2,5,0", "optimizer.lr=0.25"), tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("error: 2 of 4 jobs failed") == 1
    assert "Traceback" not in result.stderr
    rows = summary(tmp_path)
    assert [(row["job"], row["seed"], row["val/score"], row["note"]) for row in rows] == [
        ("3", "0", "0.25", ""),
        ("2", "5", "", ""),  # NaN
        ("0", "1", "", "the reason, in two lines"),
        ("1", "2", "", "killed by SIGKILL"),
    ]
    assert "   0     failed  seed=1   the reason, in two lines\n" in result.stdout
    happened("In a sweep one job fails and one is killed", f"the others run; in the end {result.stderr}")
    assert json.loads((tmp_path / "sweep/3/outcome.json").read_text())["overrides"] == [
        "seed=0",
        "optimizer.lr=0.25",
    ]


@pytest.mark.fault("Sweeps and clusters")
@pytest.mark.parametrize(
    ("seed", "note"), [(3, "stopped after step 7"), pytest.param(4, "", marks=pytest.mark.slow, id="at its end")]
)
def test_a_signal_ends_the_job_and_the_sweep(tmp_path: Path, seed: int, note: str, happened: Happened) -> None:
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(sweep(tmp_path, f"seed={seed},0"), cwd=tmp_path, env=variables)
    while not (tmp_path / "waits").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert [row["note"] for row in summary(tmp_path)] == [note]
    assert not (tmp_path / "sweep/1").exists()
    when = "when its job is done" if seed == 4 else "in a job"
    happened(f"SIGTERM to a sweep {when}", f"the sweep ends with code 75; the job's note is '{note}'")


@pytest.mark.slow
def test_submitit_starts_the_ranks(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs the extra `submitit`")
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "trainer.devices=2"]
    result = run(sweep(tmp_path, *launcher, "optimizer.lr=0.5"), tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["val/score"] for row in summary(tmp_path)] == ["0.5"]
    logs = sorted((tmp_path / "sweep/.submitit").glob("*/*_log.out"))
    lines = [line.split() for log in logs for line in log.read_text().splitlines() if line.startswith("rank")]
    assert [rank for _, rank, _ in lines] == ["0", "1"]
    assert len({port for _, _, port in lines}) == 1


@pytest.mark.parametrize("multirun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ranks_that_cannot_agree_are_refused(tmp_path: Path, multirun: bool) -> None:
    by_srun = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
    arguments = ["-m"] if multirun else []
    result = run([sys.executable, str(ROOT / "train.py"), *arguments], tmp_path, **by_srun)
    assert result.returncode == 1
    assert result.stderr == (
        "error: a sweep is one process that starts the ranks of its jobs: start it without srun or torchrun\n"
        if multirun
        else "error: the processes of a run must share one folder, but its name contains the time: "
        "set hydra.run.dir=DIR\n"
    )
    assert not (tmp_path / "runs").exists()


def test_the_table_shows_what_differs_best_first(tmp_path: Path) -> None:
    scores = {0: 0.5, 1: None, 2: 0.75}
    for job, score in scores.items():
        (tmp_path / str(job)).mkdir()
        overrides = ["data=folder", f"optimizer.lr=0.00123456{job}", "model=vivit_fe"]
        Outcome(job, overrides, score, failed=False, note="pruned" if job == 2 else "").write(tmp_path / str(job))
    lines = table(write_summary(tmp_path)).splitlines()
    assert lines == [
        " job  val/score  choices                note",
        "   2     0.7500  optimizer.lr=0.001235  pruned",
        "   0     0.5000  optimizer.lr=0.001235",
        "   1          -  optimizer.lr=0.001235",
    ]
    Outcome(0, ["eval.views=4x3"], 0.5, failed=False, note="", metric="test/top1@4x3").write(tmp_path / "0")
    assert table(write_summary(tmp_path)).splitlines()[0].split()[:2] == ["job", "score"]


def test_the_chart_has_numbers_on_a_continuous_axis_with_intervals(tmp_path: Path) -> None:
    axis = Figure().subplots()
    choice_axis(axis, ["0.001", "0.01", "0.1", "0.1"], np.array([0.5, 0.75, 0.25, 0.35]), [20, 20, 20, None])
    assert axis.get_xscale() == "log"
    (line,) = (line for line in axis.lines if len(line.get_xdata()) == 3)
    assert list(line.get_ydata()) == [0.5, 0.75, 0.3]  # the mean of the two jobs at 0.1
    bars = [bar.lines[2][0].get_segments()[0][:, 1] for bar in axis.containers]
    assert np.allclose(bars, [wilson(10, 20), wilson(15, 20), wilson(5, 20)])
    near, names = Figure().subplots(1, 2)
    choice_axis(near, ["1", "2.5", "4"], np.array([0.5, 0.75, 0.25]), [None] * 3)
    assert (near.get_xscale(), len(near.containers)) == ("linear", 0)
    choice_axis(names, ["sgd", "adamw", "sgd"], np.array([0.5, 0.75, 0.25]), [20] * 3)
    assert [tick.get_text() for tick in names.get_xticklabels()] == ["sgd", "adamw"]

    for job, n in enumerate((40, 40, None)):
        (tmp_path / str(job)).mkdir()
        overrides = [f"optimizer.lr=0.{job + 1}", "optimizer=$\\x1b[31m" if job else "optimizer=sgd"]
        Outcome(job, overrides, 0.5 + 0.1 * job, failed=False, note="", n=n).write(tmp_path / str(job))
    assert draw_summary(tmp_path, write_summary(tmp_path))
    assert Image.open(tmp_path / "summary.png").size[0] > 400
    assert not draw_summary(tmp_path, [])


class Jobs:
    """A launcher whose jobs score 10 x learning rate, and which dies in one of them."""

    def __init__(self, dies_in: int | None) -> None:
        self.dies_in, self.launched = dies_in, list[tuple[int, str]]()

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        for number, (fixed, rate) in enumerate(jobs, initial_job_idx):
            assert fixed == "seed=5"
            self.launched.append((number, rate))
            if number == self.dies_in:
                raise KeyboardInterrupt
            score = float("nan") if number == 1 else 10 * float(rate.split("=")[1])
            returns.append(JobReturn(status=JobStatus.COMPLETED, _return_value=score))
        return returns


def search(storage: Path, dies_in: int | None, n_jobs: int) -> list[tuple[int, str]]:
    from vivit_train.tools.optuna_sweeper import Search

    params = OmegaConf.create({"optimizer.lr": "tag(log, interval(0.0001, 0.01))"}, flags={"struct": False})
    sampler = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3})
    searching: Any = Search(str(storage), n_trials=7, n_jobs=n_jobs, params=params, seed=0, sampler=sampler)
    searching.launcher = Jobs(dies_in)
    try:
        searching.sweep(["seed=5"])
    except KeyboardInterrupt:
        assert dies_in is not None
    return searching.launcher.launched


@pytest.mark.fault("Sweeps and clusters")
@pytest.mark.parametrize(("n_jobs", "dies_in"), [(1, 4), (2, 5)])
def test_a_search_that_was_killed_tries_what_it_would_have(
    tmp_path: Path, n_jobs: int, dies_in: int, happened: Happened
) -> None:
    pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    whole = search(tmp_path / "whole", None, n_jobs)
    assert [number for number, _ in whole] == list(range(7))
    assert len({rate for _, rate in whole}) == 7
    before, after = search(tmp_path / "killed", dies_in, n_jobs), search(tmp_path / "killed", None, n_jobs)
    assert len(before) == dies_in + 1
    assert dict(before) | dict(after) == dict(whole)
    assert after[0][0] == dies_in - dies_in % n_jobs
    states = [trial.state.name for trial in open_study(str(tmp_path / "killed")).trials]
    assert states == ["COMPLETE", "FAIL", *["COMPLETE"] * 5]
    assert search(tmp_path / "killed", None, n_jobs) == []
    happened(
        f"A search by Optuna is killed in trial {dies_in} of 7, {n_jobs} at a time",
        "the same command launches that trial again, and then tries what it would have tried",
    )


@pytest.mark.fault("Sweeps and clusters")
def test_a_trial_without_parameters_is_dropped_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], happened: Happened
) -> None:
    """As a search leaves it that is killed between the number of a trial and its parameters."""
    pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    search(tmp_path / "killed", 2, 1)
    open_study(str(tmp_path / "killed")).ask({})
    launched = search(tmp_path / "killed", None, 1)
    assert [number for number, _ in launched] == [2, 4, 5, 6, 7]
    assert all(rate.startswith("optimizer.lr=") for _, rate in launched)
    said = capsys.readouterr().out
    assert "trial 3 is dropped, as the search was killed before it had a value for optimizer.lr" in said
    assert search(tmp_path / "killed", None, 1) == []
    happened("A search by Optuna is killed before a trial has its parameters", said.splitlines()[-1])


@pytest.mark.slow
def test_a_sweep_has_a_folder_per_job_and_ends_with_a_table(videos: Path, tmp_path: Path) -> None:
    choices = ["model=vivit_st,vivit_fe", "optimizer.lr=0.01,0.1", "hydra.sweep.dir=sweep"]
    result = run(
        [sys.executable, str(ROOT / "train.py"), "-m", "data=folder", f"data.root={videos}", *TINY, *choices],
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout[result.stdout.index("val/score  choices") :].count("model=vivit_") == 4
    assert len(summary(tmp_path)) == 4
    for job in range(4):
        assert (tmp_path / f"sweep/{job}/metrics.json").exists()
        assert json.loads((tmp_path / f"sweep/{job}/outcome.json").read_text())["n"] == 8
    assert (tmp_path / "sweep/summary.png").exists()


@pytest.mark.slow
def test_a_sweep_of_two_processes_has_one_folder(videos: Path, tmp_path: Path) -> None:
    ranks = ["trainer.strategy=ddp", "trainer.devices=2", "optimizer.lr=0.01,0.1"]
    training = [str(ROOT / "train.py"), "-m", "data=folder", f"data.root={videos}", *TINY, *ranks]
    result = run([sys.executable, *training], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("4 clips x 2 devices") == 2
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "0",
        "1",
        "multirun.yaml",
        "summary.csv",
        "summary.png",
    ]
    for job in "01":
        assert (folder / job / "metrics.json").exists()


@pytest.mark.slow
def test_optuna_searches_and_prunes(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", minversion="4.2", reason="needs the extra `optuna`")
    pruner = "callbacks.pruning.pruner"
    chosen = [
        "hparams_search=optuna",
        "hydra.sweeper.n_trials=3",
        "trainer.max_epochs=3",
        f"{pruner}._target_=optuna.pruners.ThresholdPruner",
        f"~{pruner}.n_startup_trials",
        f"+{pruner}.lower=1.1",  # of an accuracy: all
    ]
    training = [str(ROOT / "train.py"), "-m", "data=folder", f"data.root={videos}", *TINY, *chosen]
    result = run([sys.executable, *training, "hydra.sweep.dir=sweep"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert [row["note"] for row in summary(tmp_path)] == ["pruned after epoch 2 of 3"] * 3
    trials = open_study(str(tmp_path / "sweep/optuna.journal")).trials
    assert [trial.state.name for trial in trials] == ["PRUNED"] * 3
    assert [list(trial.intermediate_values) for trial in trials] == [[0, 1]] * 3


@pytest.mark.slow
def test_evaluations_are_a_sweep_too(videos: Path, tmp_path: Path) -> None:
    words = ["trainer=cpu", "eval.report=false", f"data.root={videos},nowhere", "hydra.sweep.dir=sweep"]
    checkpoint = ROOT / "tests/nets/run/checkpoints/last.ckpt"
    result = run([sys.executable, str(ROOT / "eval.py"), "-m", f"ckpt_path={checkpoint}", *words], tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: 1 of 2 jobs failed")
    first, second = summary(tmp_path)
    assert 0 <= float(first["test/top1@1x1"]) <= 1
    assert (second["test/top1@1x1"], second["failed"]) == ("", "1")
    assert "nowhere" in second["note"]
