"""On a real SLURM: two ranks by srun, a time limit that is survived, and a sweep as an array."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cluster import NoClusterError, cluster
from helpers import ROOT, TINY, Happened

pytestmark = pytest.mark.slow
EPOCHS = 100
SIGNAL_S, LOOKS_S = 60, 30  # before the limit; SLURM looks at limits every half minute
Slurm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Runs a command where srun and sbatch find the cluster."""
    try:
        with cluster() as environment:

            def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
                one_thread = environment | {"OMP_NUM_THREADS": "1"}
                return subprocess.run(
                    command, cwd=cwd, env=one_thread, capture_output=True, text=True, timeout=900
                )

            yield run
    except NoClusterError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def uninterrupted(slurm: Slurm, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    training = [sys.executable, str(ROOT / "train.py"), *settings(videos), "hydra.run.dir=run"]
    result = slurm("srun", "--ntasks-per-node=2", *training, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "4 clips x 2 devices" in result.stdout
    assert result.stdout.count("best checkpoint:") == 1
    return folder / "run"


def settings(videos: Path) -> list[str]:
    epochs = [f"trainer.max_epochs={EPOCHS}", "optimizer.lr=0.001"]
    return ["data=folder", f"data.root={videos}", *TINY, *epochs, "trainer.strategy=ddp", "trainer.devices=2"]


def job_script(videos: Path) -> str:
    """The one in docs/long-runs.md, for this cluster."""
    script = (ROOT / "docs/long-runs.md").read_text().split("```bash\n")[1].split("```")[0]
    changes = {
        "--ntasks-per-node=8": "--ntasks-per-node=2",
        "#SBATCH --gpus-per-node=8\n": "",
        "--cpus-per-task=12": "--cpus-per-task=1",
        "--time=24:00:00": "--time=30",
        "--signal=USR1@300": f"--signal=USR1@{SIGNAL_S}",
        "python train.py data=kinetics400 data.root=DIR trainer=ddp trainer.devices=8": " ".join(
            [sys.executable, str(ROOT / "train.py"), *settings(videos)]
        ),
    }
    for old, new in changes.items():
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    return script


@pytest.mark.fault("Sweeps and clusters")
def test_a_run_outlives_its_time_limit(
    slurm: Slurm, videos: Path, uninterrupted: Path, tmp_path: Path, happened: Happened
) -> None:
    (tmp_path / "job.sh").write_text(job_script(videos))
    submitted = slurm("sbatch", "--parsable", "job.sh", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    job, said = submitted.stdout.strip(), tmp_path / "k400.log"
    state, limited = "", False
    while state != "COMPLETED":
        time.sleep(2)
        shown = slurm("scontrol", "show", "job", job).stdout
        state = shown.split("JobState=")[1].split()[0]
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "COMPLETED"), (
            shown + said.read_text()
        )
        if not limited and (tmp_path / "runs/k400/checkpoints/last.ckpt").exists():
            hours, minutes, seconds = map(int, shown.split("RunTime=")[1].split()[0].split(":"))
            limit = 60 * hours + minutes + (1 if seconds < SIGNAL_S - LOOKS_S else 2)
            limited = slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}").returncode == 0
        if "Reason=BeginTime" in shown:  # SLURM waits two minutes before it starts a job again
            slurm("scontrol", "update", f"JobId={job}", "TimeLimit=30", "StartTime=now")
    text = said.read_text()
    assert int(shown.split("Restarts=")[1].split()[0]) >= 1, shown
    assert "SIGUSR1: stopping after this step" in text
    assert "Resuming from" in text
    assert not list(tmp_path.glob("run*/**/hpc_ckpt*"))
    found, expected = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (tmp_path / "runs/k400", uninterrupted)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    happened(
        "On a real SLURM, a run of two processes meets its time limit",
        "signal, checkpoint, exit code 75, requeue, `resume=auto`; weights as of one left alone, bit by bit",
    )


@pytest.mark.fault("Sweeps and clusters")
def test_ranks_without_a_common_folder_are_refused(slurm: Slurm, tmp_path: Path, happened: Happened) -> None:
    result = slurm("srun", "--ntasks-per-node=2", sys.executable, str(ROOT / "train.py"), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("error: the processes of a run must share one folder") == 1
    assert not os.listdir(tmp_path)
    happened("srun without `hydra.run.dir`", result.stderr)


@pytest.mark.fault("Sweeps and clusters")
@pytest.mark.parametrize("devices", [1, 2])
def test_a_sweep_is_an_array(slurm: Slurm, videos: Path, tmp_path: Path, devices: int, happened: Happened) -> None:
    pytest.importorskip("submitit", reason="needs the extra `submitit`")
    training = ["data=folder", f"data.root={videos}", *TINY, "trainer.strategy=ddp", f"trainer.devices={devices}"]
    sweep = ["hydra/launcher=slurm", "optimizer.lr=0.01,-1", "hydra.sweep.dir=sweep"]
    result = slurm(sys.executable, str(ROOT / "train.py"), "-m", *training, *sweep, cwd=tmp_path)
    assert result.returncode == 1
    assert "error: 1 of 2 jobs failed" in result.stderr
    assert (tmp_path / "sweep/0/metrics.json").exists()
    good, bad = csv.DictReader((tmp_path / "sweep/summary.csv").open())
    assert good["failed"] == "0"
    assert 0 <= float(good["val/score"]) <= 1
    assert "optimizer.lr=-1: must be" in bad["note"]
    assert len(list((tmp_path / "sweep/.submitit").glob("*_0/*_log.out"))) == devices
    happened(f"In an array of SLURM's, {devices} processes a job, one job fails", f"the other runs; {bad['note']}")
