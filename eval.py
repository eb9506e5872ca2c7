"""Evaluate a checkpoint: python eval.py ckpt_path=FILE [eval.views=4x3] ... It reads conf/eval.yaml."""

import hydra
from omegaconf import DictConfig

from vivit_train.tools.scripts import run_evaluation, start


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> float | None:
    return run_evaluation(cfg, [__file__])


if __name__ == "__main__":
    start(main, "eval")
