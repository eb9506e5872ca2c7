"""What the scripts train.py and eval.py share with the commands `vivit train` and `vivit eval`.

Hydra's flags such as --cfg must answer within a second, so heavy imports are local.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from vivit_train.tools.optuna_sweeper import register_search
from vivit_train.tools.sweep import is_job, run_job
from vivit_train.utils.errors import end_on_signals, exit_with_message
from vivit_train.utils.utf8 import in_utf_8

_PACKAGE = Path(__file__).parents[1]
# A wheel holds conf/ in the package. In a clone, it is next to src/.
CONF = next((f for f in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if f.is_dir()), _PACKAGE / "conf")


def start(main: Callable[[], object]) -> None:
    """Run the Hydra main function of a script."""
    in_utf_8()
    register_search()
    exit_with_message(main)


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
