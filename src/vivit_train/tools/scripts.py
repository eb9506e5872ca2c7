"""What the scripts train.py and eval.py share with the commands `vivit train` and `vivit eval`.

Hydra's flags such as --cfg must answer within a second, so heavy imports are local.
"""

import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from vivit_train.composition import translate_hydra_errors
from vivit_train.help import answer_help
from vivit_train.tools.optuna_sweeper import register_search
from vivit_train.tools.sweep import is_job, run_job
from vivit_train.utils.conf import CONF
from vivit_train.utils.errors import UserError, end_on_signals, exit_with_message
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
        # A pickle can run any code. Hydra's parser accepts the flag cut short, too.
        if any(word.startswith("--ex") for word in sys.argv[1:]):
            raise UserError(
                "--experimental-rerun is refused, as it would execute a pickle file: a run folder's "
                ".hydra/overrides.yaml lists what to type again, and resume=auto continues the run"
            )
        with translate_hydra_errors(command):
            main()

    prepare_process()
    register_search()
    exit_with_message(run)


def run_training(cfg: DictConfig, program: Sequence[str]) -> float:
    """Train, or start the child process that trains if this is a job of a multirun.

    Args:
        cfg: Configuration composed from conf/train.yaml.
        program: Arguments of the Python interpreter that start the calling script.

    Returns:
        The best val/score, or NaN if there is none.
    """
    if is_job():
        return run_job(cfg, program)
    end_on_signals()
    from vivit_train.run import train

    return train(cfg)


def run_evaluation(cfg: DictConfig) -> None:
    """Evaluate the checkpoint that a configuration composed from conf/eval.yaml names."""
    from vivit_train.run import evaluate

    evaluate(cfg)
