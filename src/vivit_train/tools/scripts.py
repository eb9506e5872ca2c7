"""What the scripts train.py and eval.py share with the commands `vivit train` and `vivit eval`.

Hydra's flags such as --cfg must answer within a second, so heavy imports are local.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vivit_train.composition import refuse_shadowed_files, translate_hydra_errors
from vivit_train.help import answer_help
from vivit_train.tools.optuna_sweeper import register_search
from vivit_train.tools.sweep import NOTE, Outcome, is_job, run_job, take_folder
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError, end_on_signals, end_with_message, exit_with_message, reason
from vivit_train.utils.rank import is_first_rank
from vivit_train.utils.run_folder import RunFolder
from vivit_train.utils.startup import prepare_process


def start(main: Callable[[], object], command: str) -> None:
    """Run the Hydra main function of a script, or answer its `--help`.

    Args:
        main: The function that Hydra decorates.
        command: "train" or "eval".
    """

    def run() -> None:
        if answer_help(command, CONF, sys.argv[1:]):
            return
        with translate_hydra_errors(command):
            main()

    prepare_process()
    register_search()
    exit_with_message(run)


def run_training(cfg: DictConfig, program: Sequence[str]) -> float | None:
    """Train, or start the child process that trains if this is a job of a multirun.

    Args:
        cfg: Configuration composed from conf/train.yaml.
        program: Arguments of the Python interpreter that start the calling script.

    Returns:
        The best val/score, or NaN if there is none.
    """
    check_own_files()
    if is_job():
        return run_job(cfg, program)
    end_on_signals()

    def run(folder: RunFolder) -> float:
        from vivit_train.run import train

        return train(cfg, folder)

    return record(cfg, run)


def run_evaluation(cfg: DictConfig, program: Sequence[str]) -> float | None:
    """Evaluate the checkpoint that a configuration composed from conf/eval.yaml names; see `run_training`."""
    check_own_files()
    if is_job():
        return run_job(cfg, program)

    def run(folder: RunFolder) -> None:
        from vivit_train.run import evaluate

        evaluate(cfg, folder)

    return record(cfg, run)


def check_own_files() -> None:
    """End with a message if a configuration file of the user's own would not be used."""
    try:
        refuse_shadowed_files()
    except UserError as error:
        end_with_message(error)


def record(cfg: DictConfig, run: Callable[[RunFolder], float | None]) -> float | None:
    """Run in the folder of a Hydra job, and write its configuration, its outcome and the message of its error.

    Args:
        cfg: Configuration of the job.
        run: Function that trains or evaluates, and returns a score if there is one.

    Returns:
        The score.

    Raises:
        SystemExit: The folder holds an earlier run, or the run has ended with an error that a user can fix.
    """
    hydra: Any = HydraConfig.get()
    is_job_of_sweep = not OmegaConf.is_missing(hydra.job, "num")  # The folder of the sweep is checked.
    with take_folder(cfg.run_dir, None if is_job_of_sweep else cfg) as folder:
        if not is_first_rank():
            return run(folder)
        started = Outcome(hydra.job.num if is_job_of_sweep else None, list(hydra.overrides.task))
        started.write(folder.path)
        write_configuration(cfg, folder.path / ".hydra")
        try:
            score = run(folder)
        except Exception as error:
            why = " ".join(str(error).split()) if isinstance(error, UserError) else reason(error)
            replace(started, note=why).write(folder.path)
            end_with_message(error)
            raise
        note = folder.path / NOTE
        text = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
        is_nan = score is not None and score != score  # JSON has no NaN.
        replace(started, score=None if is_nan else score, failed=False, note=text).write(folder.path)
        return score


def write_configuration(cfg: DictConfig, folder: Path) -> None:
    """Write the files that Hydra itself, without hydra.output_subdir=null, writes before the folder is checked."""
    hydra: Any = HydraConfig.get()
    folder.mkdir(exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, folder / "overrides.yaml")
