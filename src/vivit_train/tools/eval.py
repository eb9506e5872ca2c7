"""`vivit eval`: eval.py for an installed package, with the configuration that the package holds."""

import hydra
from omegaconf import DictConfig

from vivit_train.tools.scripts import run_evaluation, start
from vivit_train.utils.conf import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="eval")
def main(cfg: DictConfig) -> float | None:
    return run_evaluation(cfg, ["-m", "vivit_train.tools.eval"])


if __name__ == "__main__":
    start(main, "eval")
