"""Multiruns: each job is a process of its own, and its outcome a line of the sweep's table.

Imported by hydra at start-up: nothing heavy here.
"""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vivit_train.utils.errors import TRY_AGAIN, UserError, reason
from vivit_train.utils.lock import lock_folder
from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.text import csv_cell, printable, printable_lines

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"
NOTE = "note.txt"  # a line for the table, which a run may leave in its folder
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # Ctrl-C a terminal gives to both
STOPPED = (TRY_AGAIN, 130)  # exit codes after a signal
STUDY = "vivit-train"
PRUNED = "pruned after epoch"  # attribute of a trial


@dataclass(frozen=True)
class Outcome:
    """How a run ended, as outcome.json in its folder says.

    Attributes:
        job: its number in the sweep.
        overrides: what the command line said, or the sweep chose, without `hydra.*`.
        score: the best val/score; null without validation, and of a run that failed.
        failed: it has no result.
        note: why it failed, or what else there is to say, in a line.
    """

    job: int | None
    overrides: list[str]
    score: float | None = None
    failed: bool = True
    note: str = "did not end: it runs, or was killed"

    def write(self, folder: str | Path) -> None:
        part = Path(folder) / f"{OUTCOME}.part"
        part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        part.replace(Path(folder) / OUTCOME)


def read_outcome(file: Path) -> Outcome:
    """How a run ended.

    Raises:
        UserError: the file is damaged, or not one of ours.
    """
    try:
        found = Outcome(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not the outcome of a run ({reason(error)}): move it away") from error
    is_whole = (
        isinstance(found.job, int | None)
        and isinstance(found.overrides, list)
        and all(isinstance(text, str) for text in found.overrides)
        and isinstance(found.score, int | float | None)
        and isinstance(found.failed, bool)
        and isinstance(found.note, str)
    )
    if not is_whole:
        raise UserError(f"{file} is not the outcome of a run (a value is of another kind): move it away")
    return found


class Lock(Callback):
    """Locks the folder of a run or a sweep before anything is written there; one whose name has the time in it is
    new, and is left to `train` and `evaluate`."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        lock_or_refuse(OmegaConf.to_container(config.hydra.run, resolve=False)["dir"])  # type: ignore

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        lock_or_refuse(OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"])  # type: ignore


class Summary(Callback):
    """Writes each run's outcome.json. In a multirun: summary.csv, anew after each job, and at the end the table
    and summary.png; where a job failed, the exit code is 1."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = OmegaConf.to_container(config.hydra.run, resolve=False)["dir"]  # type: ignore
        if started_from_outside() and "${now:" in folder:
            refuse("the processes of a run need one folder, and their clocks differ: hydra.run.dir=DIR names it")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if started_from_outside():
            refuse("a sweep is one process, which starts the ranks of its jobs: start it without srun or torchrun")

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.RUN and is_first_rank():
            unfinished(config).write(config.hydra.runtime.output_dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not is_first_rank():
            return
        if config.hydra.mode == RunMode.MULTIRUN:
            write_summary(Path(config.hydra.sweep.dir))
            return
        folder, run = Path(config.hydra.runtime.output_dir), unfinished(config)
        if job_return.status == JobStatus.COMPLETED:
            score = job_return.return_value
            note = (folder / NOTE).read_text(encoding="utf-8").strip() if (folder / NOTE).is_file() else ""
            score = None if score is None or score != score else score  # NaN is no JSON
            Outcome(run.job, run.overrides, score, failed=False, note=note).write(folder)
        else:
            error = job_return._return_value  # the property would raise it
            why = " ".join(str(error).split()) if isinstance(error, UserError) else reason(error)
            Outcome(run.job, run.overrides, note=why).write(folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = write_summary(folder)
        if not jobs:
            return
        log.info(f"\n{table(jobs)}")
        written, names = ["summary.csv"], swept(jobs)
        if scored := [job for job in jobs if job.score is not None]:
            from vivit_train.utils.plots import sweep_panels

            chosen = [{name: text for name, text in choices(job).items() if name in names} for job in scored]
            scores = [job.score for job in scored if job.score is not None]
            sweep_panels(folder / "summary.png", list(zip(chosen, scores, strict=True)))
            written.append("summary.png")
        log.info(f"written: {folder}/{', '.join(written)}")
        if failed := sum(job.failed for job in jobs):
            refuse(f"{failed} of {len(jobs)} jobs failed: the last column of {folder}/summary.csv says why")


def refuse(text: str) -> None:
    """Ends this process from within a callback of Hydra's, which makes warnings of other errors."""
    sys.exit(printable_lines(f"error: {text}") if is_first_rank() else 1)


def lock_or_refuse(folder: str) -> None:
    """Ends this process where another one writes into its folder. Of several ranks the first locks for all."""
    if "${" in folder or not is_first_rank():
        return
    try:
        lock_folder(folder)
    except UserError as error:
        refuse(str(error))


def started_from_outside() -> bool:
    """Whether srun or torchrun started this process as one of several."""
    by_srun = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    return by_srun or by_torchrun


def unfinished(config: DictConfig) -> Outcome:
    return Outcome(OmegaConf.select(config, "hydra.job.num"), list(config.hydra.overrides.task))


def choices(outcome: Outcome) -> dict[str, str]:
    return dict(override.split("=", 1) for override in outcome.overrides if "=" in override)


def write_summary(folder: Path) -> list[Outcome]:
    """The outcomes of all jobs in a sweep's folder, best first; writes them to summary.csv, with a column for each
    choice that is not the same in all. An outcome that cannot be read is named, and costs no other its line."""
    jobs = []
    for outcome in folder.glob(f"**/{OUTCOME}"):
        try:
            jobs.append(read_outcome(outcome))
        except UserError as error:
            log.info(error)
    jobs.sort(key=lambda job: (job.failed, -(-1 if job.score is None else job.score), job.job or 0))
    names = swept(jobs)
    part = folder / f"summary.csv.{os.getpid()}"  # jobs on several machines may end at once
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", "val/score", *map(csv_cell, names), "failed", "note"])
        for job in jobs:
            chosen = (choice_cell(choices(job).get(name, "")) for name in names)
            writer.writerow([job.job, job.score, *chosen, int(job.failed), csv_cell(job.note)])
    part.replace(folder / "summary.csv")
    return jobs


def swept(jobs: Sequence[Outcome]) -> list[str]:
    """The names of the choices that are not the same in all jobs."""
    names = dict.fromkeys(name for job in jobs for name in choices(job))
    return [name for name in names if len({choices(job).get(name) for job in jobs}) > 1]


def table(jobs: Sequence[Outcome]) -> str:
    names = swept(jobs)
    texts = [
        " ".join(printable(f"{n}={short(choices(job)[n])}") for n in names if n in choices(job)) for job in jobs
    ]
    width = max(map(len, ["choices", *texts]))
    lines = [f"{'job':>4}  val/score  {'choices':<{width}}  note"]
    for job, text in zip(jobs, texts, strict=True):
        score = "failed" if job.failed else "-" if job.score is None else f"{job.score:.4f}"
        lines.append(
            f"{'' if job.job is None else job.job:>4}  {score:>9}  {text:<{width}}  {printable(job.note)}"
        )
    return "\n".join(line.rstrip() for line in lines)


def choice_cell(text: str) -> str:
    """A choice in summary.csv: a negative number is no formula."""
    try:
        float(text)
    except ValueError:
        return csv_cell(text)
    return text


def short(text: str) -> str:
    """A drawn number without digits that nobody reads."""
    try:
        return text if len(text) < 9 else f"{float(text):.4g}"
    except ValueError:
        return text


def is_job() -> bool:
    """Whether this is a job of a multirun, in the process that one of Hydra's launchers runs it in."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(cfg: DictConfig, script: str) -> float:
    """Runs a job of a multirun as a process, with the command that a person would type for it alone.

    What it does to its process (ranks, a GPU's memory, a kill) ends with it, and the others go on.

    Args:
        script: the file of train.py.

    Returns:
        The job's score; NaN where it has none or failed, as its outcome.json says.

    Raises:
        UserError: submitit starts another number of processes than the job has devices.
        SystemExit: a signal told the job to end, and so ends the sweep.
    """
    hydra: Any = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    started = Outcome(hydra.job.num, list(hydra.overrides.task))
    if is_first_rank():
        started.write(folder)
    process = subprocess.Popen(command(hydra, script), cwd=hydra.runtime.cwd, env=os.environ | submitit_ranks(cfg))
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number != signal.SIGINT:
            process.send_signal(number)

    found = {number: signal.signal(number, pass_on) for number in (*PASSED_ON, signal.SIGINT)}
    code = process.wait()
    for name, handler in found.items():
        signal.signal(name, handler)
    outcome = read_outcome(folder / OUTCOME) if is_first_rank() else started
    if code and outcome == started and is_first_rank():
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        outcome = replace(outcome, note=how)
        outcome.write(folder)
    # a job may be done before the signal reaches it: submitit's process has no other, a sweep's has
    over = received and "SUBMITIT_EXECUTOR" not in os.environ
    if code in STOPPED or -code in received or over:
        write_summary(Path(hydra.sweep.dir))
        for number in dict.fromkeys(received):
            handler = found[signal.Signals(number)]
            if callable(handler) and number != signal.SIGINT:
                handler(number, None)  # submitit's, which has SLURM start the job again
        sys.exit(130 if code == 130 or signal.SIGINT in received else TRY_AGAIN)
    return float("nan") if code or outcome.score is None else outcome.score


def command(hydra: Any, script: str) -> list[str]:
    """What starts this job of a multirun alone, in its own folder."""
    name = ["--config-name", hydra.job.config_name]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            name += ["--config-dir", source.path]
    kept = [text for text in hydra.overrides.hydra if not text.startswith("hydra.mode=")]
    kept.append(f'hydra.run.dir="{hydra.runtime.output_dir}"')
    kept.append(f'hydra.sweep.dir="{os.path.abspath(hydra.sweep.dir)}"')
    return [sys.executable, script, *name, *kept, f"hydra.job.num={hydra.job.num}", *hydra.overrides.task]


def submitit_ranks(cfg: DictConfig) -> dict[str, str]:
    """The environment in which Lightning finds the ranks that submitit started here; SLURM's it knows itself."""
    tasks = int(os.environ.get("SUBMITIT_LOCAL_NTASKS", 1))
    if tasks == 1:
        return {}
    if cfg.trainer.devices != tasks:
        raise UserError(
            f"hydra.launcher.tasks_per_node={tasks} processes for trainer.devices={cfg.trainer.devices}: they "
            "must be the same"
        )
    from submitit.helpers import TorchDistributedEnvironment

    here = TorchDistributedEnvironment()
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(here.master_port), "LOCAL_RANK": str(here.local_rank)}


def open_storage(file: str) -> Any:
    """Optuna's storage in a file, which several processes may open, also by way of a network's file system.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'vivit-train[optuna]'") from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with translate_storage_errors(file):
        return JournalStorage(JournalFileBackend(file))


def open_study(file: str, pruner: Any = None) -> Any:
    """The search in a file; a new one where there is none."""
    storage = open_storage(file)
    import optuna

    with translate_storage_errors(file):
        return optuna.create_study(
            storage=storage, study_name=STUDY, direction="maximize", pruner=pruner, load_if_exists=True
        )


@contextmanager
def translate_storage_errors(file: str) -> Iterator[None]:
    """Optuna has no errors of its own for a file that holds something else."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, AssertionError) as error:
        raise UserError(
            f"{file} is no search of this program, or damaged ({reason(error)}): move it away"
        ) from error
