"""Lightning's loggers, where ours do otherwise: they go on where a run does, and ask nobody for an account."""

import csv
import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(CSVLogger):
    """metrics.csv in `save_dir`. A run that goes on keeps the rows up to there; Lightning would delete them."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)
        file = Path(save_dir) / "metrics.csv"
        lines = file.read_text().splitlines() if file.is_file() else []
        self.earlier = list(csv.DictReader(lines))

    @rank_zero_only
    def go_on(self, step: int) -> None:
        """Keeps what was logged before this step. What a run that was killed logged after it, comes again."""
        for row in self.earlier:
            if (row.get("step") or "").isdigit() and int(row["step"]) < step:
                self.experiment.metrics.append({name: value for name, value in row.items() if value})


def wandb_logger(project: str, save_dir: str) -> WandbLogger:
    """Lightning's logger: online where wandb finds credentials, else, or with WANDB_MODE=offline, offline."""
    import wandb  # takes seconds

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
    if mode == "offline":
        print(f"wandb: offline; `wandb sync {save_dir}/wandb/offline-*` sends this run later")
    return WandbLogger(project=project, save_dir=save_dir, mode=mode)
