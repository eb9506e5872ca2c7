"""Multiruns: run each job as a separate process and collect the outcomes in the table of the sweep.

Hydra imports this module at every start, so heavy imports are local.
"""

import csv
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vivit_train.composition import check_recipe
from vivit_train.utils.arguments import conforms
from vivit_train.utils.errors import CTRL_C, TRY_AGAIN, UserError, reason
from vivit_train.utils.files import check_folder, read_text, replacing
from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.run_folder import OUTCOME, RunFolder
from vivit_train.utils.text import csv_cell, plural, printable, printable_lines

log = logging.getLogger(__name__)

VAL_SCORE = "val/score"
ONLY_SWEEPS = ("hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
NOTE = "note.txt"  # A run may write one line to this file in its folder; it appears in the table.
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # A terminal itself sends SIGINT to both.
STOPPED = (TRY_AGAIN, CTRL_C)  # A job that a signal stopped ends with one of these exit codes.


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run, stored as outcome.json in its folder.

    Attributes:
        job: Number of the job in the sweep. It is None for a single run.
        overrides: Overrides of the command line or the sweep, without `hydra.*`.
        score: Best val/score, or the main score of an evaluation. It is None for a run that failed or had no
            validation.
        failed: Whether the run has no result.
        note: Reason for the failure or another remark, in one line.
        metric: Name of the score.
        n: Number of videos, if the score is the share of them that are right.
    """

    job: int | None
    overrides: list[str]
    score: float | None = None
    failed: bool = True
    note: str = "not finished: still running or killed"
    metric: str = VAL_SCORE
    n: int | None = None

    def write(self, folder: str | Path) -> None:
        with replacing(Path(folder) / OUTCOME) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_outcome(file: Path) -> Outcome:
    """Read the outcome of a run.

    Raises:
        UserError: The file is damaged or does not hold an outcome.
    """
    try:
        found = Outcome(**json.loads(read_text(file)))
    except (UserError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not the outcome of a run ({reason(error)}): move or delete it") from error
    is_whole = (
        conforms(found.job, int | None)
        and abs(found.job or 0) < 2**63
        and isinstance(found.overrides, list)
        and all(isinstance(text, str) for text in found.overrides)
        and conforms(found.score, float | None)
        and abs(found.score or 0) < 1e300  # NaN is not less, either.
        and isinstance(found.failed, bool)
        and isinstance(found.note, str)
        and isinstance(found.metric, str)
        and conforms(found.n, int | None)
        and 0 < (found.n or 1) < 2**53
    )
    if not is_whole:
        raise UserError(f"{file} is not the outcome of a run (a value has the wrong type): move or delete it")
    return found


class Summary(Callback):
    """Protects an earlier sweep in the folder of a multirun, and writes the summary of all jobs.

    summary.csv is rewritten after each job. The table is logged at the end. The exit code is 1 if a job failed.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse_unused_words(config)
        folder = OmegaConf.to_container(config.hydra.run, resolve=False)["dir"]  # type: ignore
        if started_from_outside() and "${now:" in folder:
            refuse(
                "the processes of a run must share one folder, but its name contains the time: "
                "set hydra.run.dir=DIR"
            )

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if started_from_outside():
            refuse("a sweep is one process that starts the ranks of its jobs: start it without srun or torchrun")
        refuse_unused_words(config)
        folder = OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"]  # type: ignore
        if "${" not in folder:  # A folder whose name contains the time is always new.
            check_jobs(folder)
            self.folder = take_folder(folder, config)  # The lock is held until this process ends.
            self.folder.begin()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN and is_first_rank():
            write_summary(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = write_summary(folder)
        if not jobs:
            return
        log.info(f"\n{table(jobs)}")
        drawn = draw_summary(folder, jobs)
        log.info(f"written: {folder}/summary.csv{', summary.png' * drawn}")
        if failed := sum(job.failed for job in jobs):
            jobs_text = plural(len(jobs), "job")
            refuse(f"{failed} of {jobs_text} failed: see the last column of {folder}/summary.csv for the reasons")


def refuse_unused_words(config: DictConfig) -> None:
    """End this process if an override of Hydra itself has no effect, or if a recipe does not exist."""
    hydra = config.hydra
    try:
        _ = [*hydra.overrides.task, *hydra.overrides.hydra]
    except OmegaConfBaseException:
        said = ", ".join(word for word in sys.argv[1:] if "${" in word)
        refuse(f"{said}: refers with ${{...}} to a key or a variable that does not exist")
    is_sweep, is_job_of_sweep = hydra.mode == RunMode.MULTIRUN, not OmegaConf.is_missing(hydra.job, "num")
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    try:
        check_recipe(hydra.overrides.task, folders)
    except UserError as error:
        refuse(str(error))
    search = hydra.runtime.choices.get("hparams_search")
    if search is not None and not is_sweep and not is_job_of_sweep:
        refuse(f"hparams_search={search} is for a sweep, which needs -m")
    for text in hydra.overrides.hydra:
        key, _, value = text.lstrip("+~").partition("=")
        node, _, name = key.removeprefix("hydra.").rpartition(".")
        schema = (
            OmegaConf.select(OmegaConf.structured(HydraConf), node) if node else OmegaConf.structured(HydraConf)
        )
        typed = schema is not None and dataclasses.is_dataclass(OmegaConf.get_type(schema))
        if text.startswith("+") and ((typed and name not in schema) or (node and schema is None)):
            refuse(f"{key}: there is no such key")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not value.strip("'\""):
            refuse(f"{key}: must be the path of a folder")
        if key.startswith("hydra.sweep.") and not is_sweep and not is_job_of_sweep:
            refuse(f"{key} is for a sweep, which needs -m; the folder of a single run is hydra.run.dir")
        if key.startswith(ONLY_SWEEPS) and not is_sweep and not is_job_of_sweep:
            refuse(f"{key} is for a sweep, which needs -m")
        if key.startswith("hydra.run.") and is_sweep:
            refuse(f"{key} is for a single run; the folder of a sweep is hydra.sweep.dir")


def refuse(text: str) -> NoReturn:
    """End this process from a Hydra callback. Hydra turns exceptions other than SystemExit into warnings."""
    sys.exit(printable_lines(f"error: {text}") if is_first_rank() else 1)


def check_jobs(folder: str) -> None:
    """End this process if a link in the folder of a sweep leads outside: Hydra writes to those of the jobs."""
    within = [os.path.relpath(place, folder) for place, _, _ in os.walk(folder)]
    try:
        check_folder(folder, within, "choose another folder with hydra.sweep.dir=DIR")
    except UserError as error:
        refuse(str(error))


def take_folder(folder: str, config: DictConfig | None) -> RunFolder:
    """Return the folder of a run or a sweep for this process, or end the process; see `RunFolder`.

    The message is not logged, because the log file would be that of the earlier run.
    """
    try:
        return RunFolder(folder, config)
    except UserError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"{folder}: {error.strerror or error}")


def started_from_outside() -> bool:
    """Return whether srun or torchrun started this process as one of several."""
    by_srun = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    return by_srun or by_torchrun


def choices(outcome: Outcome) -> dict[str, str]:
    return dict(override.split("=", 1) for override in outcome.overrides if "=" in override)


def write_summary(folder: Path) -> list[Outcome]:
    """Write summary.csv and return the outcomes of all jobs in the folder of a sweep, best first.

    The table has a column for each choice that differs between jobs. An outcome that cannot be read is logged and
    skipped.
    """
    jobs = []
    for outcome in folder.glob(f"**/{OUTCOME}"):
        try:
            jobs.append(read_outcome(outcome))
        except UserError as error:
            log.info(error)
    jobs.sort(key=lambda job: (job.failed, -(-1 if job.score is None else job.score), job.job or 0))
    names = swept(jobs)
    with replacing(folder / "summary.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", csv_cell(score_name(jobs)), *map(csv_cell, names), "failed", "note"])
        for job in jobs:
            chosen = (choice_cell(choices(job).get(name, "")) for name in names)
            writer.writerow([job.job, job.score, *chosen, int(job.failed), csv_cell(job.note)])
    return jobs


def score_name(jobs: Sequence[Outcome]) -> str:
    """Return the name of the score if all finished jobs have the same one."""
    names = {job.metric for job in jobs if not job.failed} or {VAL_SCORE}
    return names.pop() if len(names) == 1 else "score"


def draw_summary(folder: Path, jobs: Sequence[Outcome]) -> bool:
    """Draw summary.png: the score of each job by each choice; return whether there is anything to draw."""
    from vivit_train.utils.plots import scores_by_choice

    scored = [job for job in jobs if job.score is not None and not job.failed]
    names = swept(scored)
    if not names:
        return False
    columns = {name: [choices(job).get(name, "") for job in scored] for name in names}
    with replacing(folder / "summary.png") as part:
        scores, counts = [job.score or 0.0 for job in scored], [job.n for job in scored]
        scores_by_choice(part, columns, scores, counts, score_name(scored))
    return True


def swept(jobs: Sequence[Outcome]) -> list[str]:
    """Return the names of the choices that differ between jobs."""
    names = dict.fromkeys(name for job in jobs for name in choices(job))
    return [name for name in names if len({choices(job).get(name) for job in jobs}) > 1]


def table(jobs: Sequence[Outcome]) -> str:
    names = swept(jobs)
    texts = [
        " ".join(printable(f"{n}={short(choices(job)[n])}") for n in names if n in choices(job)) for job in jobs
    ]
    width = max(map(len, ["choices", *texts]))
    metric = printable(score_name(jobs))
    numbers = ["failed" if job.failed else "-" if job.score is None else f"{job.score:.4f}" for job in jobs]
    wide = max(9, len(metric))
    lines = [f"{'job':>4}  {metric:>{wide}}  {'choices':<{width}}  note"]
    for job, score, text in zip(jobs, numbers, texts, strict=True):
        number = "" if job.job is None else job.job
        lines.append(f"{number:>4}  {score:>{wide}}  {text:<{width}}  {printable(job.note)}")
    return "\n".join(line.rstrip() for line in lines)


def choice_cell(text: str) -> str:
    """Format a choice for summary.csv. Unlike other text, a negative number is not quoted as a formula."""
    try:
        float(text)
    except ValueError:
        return csv_cell(text)
    return text


def short(text: str) -> str:
    """Round a sampled number to four significant digits for the table."""
    try:
        return text if len(text) < 9 else f"{float(text):.4g}"
    except ValueError:
        return text


def is_job() -> bool:
    """Return whether a Hydra launcher runs a job of a multirun in this process."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(cfg: DictConfig, program: Sequence[str]) -> float:
    """Run a job of a multirun as a child process, with the command that would run it as a single run.

    The state of that process (ranks, GPU memory) ends with it. A job that is killed does not affect the others.

    Args:
        cfg: Configuration of the job.
        program: Arguments of the Python interpreter that start the script of the multirun: its path, or -m and a
            module.

    Returns:
        The score of the job. It is NaN if the job failed or has no score; its outcome.json gives the reason.

    Raises:
        UserError: The number of processes that submitit starts differs from the number of devices of the job.
        SystemExit: A signal stopped the job and thereby the sweep.
    """
    hydra: Any = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    started = Outcome(hydra.job.num, list(hydra.overrides.task))
    if is_first_rank():
        started.write(folder)
    process = subprocess.Popen(
        command(hydra, program), cwd=hydra.runtime.cwd, env=os.environ | submitit_ranks(cfg)
    )
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
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        outcome = replace(outcome, note=how)
        outcome.write(folder)
    # A job may end before the signal reaches it. A sweep then still has to stop, as it has more jobs to run. A
    # process of submitit runs only this job, so there is nothing to stop.
    over = received and "SUBMITIT_EXECUTOR" not in os.environ
    if code in STOPPED or -code in received or over:
        write_summary(Path(hydra.sweep.dir))
        for number in dict.fromkeys(received):
            handler = found[signal.Signals(number)]
            if callable(handler) and number != signal.SIGINT:
                handler(number, None)  # The handler of submitit makes SLURM requeue the job.
        sys.exit(CTRL_C if code == CTRL_C or signal.SIGINT in received else TRY_AGAIN)
    return float("nan") if code or outcome.score is None else outcome.score


def command(hydra: Any, program: Sequence[str]) -> list[str]:
    """Return the command that starts this job of a multirun as a single run in the folder of the job."""
    name = ["--config-name", hydra.job.config_name]
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    for source in hydra.runtime.config_sources:
        if source.provider in flags:
            name += [flags[source.provider], source.path]
    kept = [text for text in hydra.overrides.hydra if not text.startswith("hydra.mode=")]
    kept.append(f'hydra.run.dir="{hydra.runtime.output_dir}"')
    kept.append(f'hydra.sweep.dir="{os.path.abspath(hydra.sweep.dir)}"')
    return [sys.executable, *program, *name, *kept, f"hydra.job.num={hydra.job.num}", *hydra.overrides.task]


def submitit_ranks(cfg: DictConfig) -> dict[str, str]:
    """Return the environment variables that tell Lightning about ranks started locally by submitit.

    Lightning detects the ranks of a SLURM job by itself.
    """
    tasks = int(os.environ.get("SUBMITIT_LOCAL_NTASKS", 1))
    if tasks == 1:
        return {}
    if cfg.trainer.devices != tasks:
        raise UserError(
            f"hydra.launcher.tasks_per_node={tasks} and trainer.devices={cfg.trainer.devices} must be equal"
        )
    from submitit.helpers import TorchDistributedEnvironment

    here = TorchDistributedEnvironment()
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(here.master_port), "LOCAL_RANK": str(here.local_rank)}
