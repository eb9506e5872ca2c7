"""Train ViViT: python train.py [model=vivit_fe] [data=kinetics400] ... It reads conf/train.yaml."""

import hydra
from omegaconf import DictConfig

from vivit_train.tools.scripts import run_training, start


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    return run_training(cfg, [__file__])


if __name__ == "__main__":
    start(main, "train")
