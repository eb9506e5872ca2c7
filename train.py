"""Train ViViT: python train.py [model=vivit_fe] [data=kinetics400] ... It reads conf/train.yaml."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vivit_train.help import answer_help
from vivit_train.tools.sweep import is_job, run_job
from vivit_train.utils.errors import end_on_signals, exit_with_message
from vivit_train.utils.utf8 import in_utf_8

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    if is_job():  # A job of a multirun runs in a child process, as a single run.
        return run_job(cfg, __file__)
    end_on_signals()
    from vivit_train.run import train

    return train(cfg)


if __name__ == "__main__":
    in_utf_8()
    exit_with_message(lambda: answer_help("train", CONF, sys.argv[1:]) or main())
