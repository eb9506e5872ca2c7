"""Evaluate a checkpoint: python eval.py ckpt_path=FILE [eval.views=4x3] ... It reads conf/eval.yaml."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vivit_train.help import answer_help
from vivit_train.utils.errors import exit_with_message
from vivit_train.utils.utf8 import in_utf_8

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    from vivit_train.run import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    in_utf_8()
    exit_with_message(lambda: answer_help("eval", CONF, sys.argv[1:]) or main())
