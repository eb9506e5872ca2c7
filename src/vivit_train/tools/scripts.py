"""What the scripts train.py and eval.py share with the commands `vivit train` and `vivit eval`.

Hydra's flags such as --cfg must answer within a second, so heavy imports are local.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vivit_train.composition import refuse_shadowed_files, translate_hydra_errors
from vivit_train.help import answer_help
from vivit_train.tools.flags import checked_words
from vivit_train.tools.optuna_sweeper import register_search
from vivit_train.tools.sweep import NOTE, VAL_SCORE, Outcome, is_job, run_job, take_folder
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError, end_on_signals, end_with_message, exit_with_message, reason
from vivit_train.utils.files import read_table, read_text
from vivit_train.utils.json_file import parse_json
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
        if "--version" in sys.argv[1:]:  # Hydra would show its own.
            sys.stdout.write(f"vivit-train {version('vivit-train')}\n")
            return
        # A pickle can run any code. Hydra's parser accepts the flag cut short, too.
        if any(word.startswith("--ex") for word in sys.argv[1:]):
            raise UserError(
                "--experimental-rerun is refused, as it would execute a pickle file: a run folder's "
                ".hydra/overrides.yaml lists what to type again, and resume=auto continues the run"
            )
        sys.argv[1:] = checked_words(sys.argv[1:], command)
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

    def run(folder: RunFolder) -> tuple[str, float]:
        from vivit_train.run import train

        return VAL_SCORE, train(cfg, folder)

    return record(cfg, run)


def run_evaluation(cfg: DictConfig, program: Sequence[str]) -> float | None:
    """Evaluate the checkpoint that a configuration composed from conf/eval.yaml names; see `run_training`."""
    check_own_files()
    if is_job():
        return run_job(cfg, program)

    end_on_signals()

    def run(folder: RunFolder) -> tuple[str, float]:
        from vivit_train.run import evaluate

        return next(iter(evaluate(cfg, folder).items()))  # metrics.json begins with the main score.

    return record(cfg, run)


def check_own_files() -> None:
    """End with a message if a configuration file of the user's own would not be used."""
    try:
        refuse_shadowed_files()
    except UserError as error:
        end_with_message(error)


def record(cfg: DictConfig, run: Callable[[RunFolder], tuple[str, float]]) -> float | None:
    """Run in the folder of a Hydra job, and write its configuration, its outcome and the message of its error.

    Args:
        cfg: Configuration of the job.
        run: Function that trains or evaluates, and returns the name and the value of a score.

    Returns:
        The score.

    Raises:
        SystemExit: The folder holds an earlier run, or the run has ended with an error that a user can fix.
    """
    hydra: Any = HydraConfig.get()
    is_job_of_sweep = not OmegaConf.is_missing(hydra.job, "num")  # The folder of the sweep is checked.
    with take_folder(cfg.run_dir, None if is_job_of_sweep else cfg) as folder:
        started = Outcome(hydra.job.num if is_job_of_sweep else None, list(hydra.overrides.task))
        if is_first_rank():
            started.write(folder.path)
            write_configuration(cfg, folder.path / ".hydra")
        try:
            metric, score = run(folder)
        except Exception as error:
            why = " ".join(str(error).split()) if isinstance(error, UserError) else reason(error)
            if is_first_rank():
                replace(started, note=why).write(folder.path)
            end_with_message(error)
            raise
        if not is_first_rank():
            return score
        note = folder.path / NOTE
        text = read_text(note, errors="replace").strip() if note.is_file() else ""
        known = None if score is None or score != score else score  # JSON has no NaN.
        found = replace(started, score=known, metric=metric, failed=False, note=text)
        replace(found, n=videos_scored(folder.path, metric)).write(folder.path)
        return score


def videos_scored(folder: Path, metric: str) -> int | None:
    """Return the number of videos of which the score of a run is a share, or None if it is not an accuracy."""
    try:
        if metric != VAL_SCORE:
            file = folder / "metrics.json"
            found = parse_json(read_text(file), file) if "top1@" in metric else None
            n = found.get("n") if isinstance(found, dict) else None
            return n if isinstance(n, int) and n > 0 else None
        names, *rows = read_table(folder / "metrics.csv", errors="replace") or [[]]
        if "val/n" not in names or "val/map" in names:
            return None
        cells = [row[names.index("val/n")] for row in rows if len(row) == len(names)]
        return max((int(float(cell)) for cell in cells if cell), default=None)
    except (UserError, ValueError, OverflowError):  # The run is over, and its table is missing, huge or damaged.
        return None


def write_configuration(cfg: DictConfig, folder: Path) -> None:
    """Write the files that Hydra itself, without hydra.output_subdir=null, writes before the folder is checked."""
    hydra: Any = HydraConfig.get()
    folder.mkdir(exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, folder / "overrides.yaml")
