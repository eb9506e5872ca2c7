"""`vivit train`: train.py for an installed package, with the configuration that the package holds."""

import hydra
from omegaconf import DictConfig

from vivit_train.tools.scripts import run_training, start
from vivit_train.utils.conf import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    return run_training(cfg, ["-m", "vivit_train.tools.train"])


if __name__ == "__main__":
    start(main, "train")
